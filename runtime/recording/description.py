"""What planning needs to know of a recorded model, read from its configuration."""

import warnings
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from grace_opt.backbone import Backbone
from grace_opt.configuration import CONF_DIR, groups
from grace_opt.model import MoEModel
from grace_opt.model_file import read_model
from runtime.recording.architectures import architecture_of
from runtime.recording.loading import quantisation

VALUE_BYTES = {"float32": 4.0, "bfloat16": 2.0, "float16": 2.0}
QUANTISED = {"fp8": (1.0, "fp8"), "mxfp4": (0.53125, "mxfp4")}
"""Bytes a weight with its scales, and the name of its type (`GPU.weight_types`), by method."""


def describe(config: Any, name: str, layer_ids: Sequence[int], dense_weights: float) -> MoEModel:
    """Sizes of a model of transformers.

    Args:
        config: with `dtype`, that of the checkpoint.
        layer_ids: its MoE layers, which follow one another.
        dense_weights: weights outside the routed experts.

    Raises:
        ValueError: a size is missing or impossible.
    """
    names = architecture_of(config)
    value_bytes = VALUE_BYTES.get(str(config.dtype).removeprefix("torch."), 2.0)
    method = quantisation(config)
    weight_bytes, weight_type = QUANTISED.get(method, (value_bytes, "bf16"))
    if method and method not in QUANTISED:
        warnings.warn(
            f"weights are quantised by {method}, which is not described here: bytes_per_weight={weight_bytes:g} is "
            "that of unquantised ones",
            stacklevel=2,
        )
    dense_bytes_per_weight = 1.0 if weight_type == "fp8" else value_bytes
    limited = getattr(config, "topk_method", None) != "greedy"
    return MoEModel(
        name=name,
        num_layers=len(layer_ids),
        num_experts=getattr(config, names.num_experts),
        top_k=config.num_experts_per_tok,
        hidden_size=config.hidden_size,
        ffn_size=getattr(config, names.ffn_size),
        bytes_per_value=value_bytes,
        bytes_per_weight=weight_bytes,
        weight_type=weight_type,
        num_shared_experts=_num_shared(config),
        first_moe_layer=layer_ids[0],
        num_expert_groups=(limited and getattr(config, "n_group", None)) or 1,
        dense_bytes=dense_weights * dense_bytes_per_weight,
        backbone=_backbone(config, len(layer_ids), "fp8" if weight_type == "fp8" else "bf16"),
    )


def same_sizes(model: MoEModel) -> dict[str, str]:
    """Presets that have a model's sizes: choice of `model=` to the name they give it."""
    choices = [choice for choice in groups()["model"] if choice != "custom"]
    presets = {choice: read_model(CONF_DIR / "model" / f"{choice}.yaml") for choice in choices}
    return {
        choice: preset.name
        for choice, preset in presets.items()
        if model == replace(preset, name=model.name, dense_bytes=model.dense_bytes)
    }


def _num_shared(config: Any) -> int:
    names = architecture_of(config)
    if names.shared_count:
        return getattr(config, names.shared_count) or 0
    return int(bool(names.shared_width and getattr(config, names.shared_width)))


def _backbone(config: Any, num_moe_layers: int, weight_type: str) -> Backbone | None:
    """What surrounds the experts; None, with a warning, if Backbone has no words for it."""
    names = architecture_of(config)
    latent = getattr(config, "kv_lora_rank", None) or 0
    if latent and config.qk_nope_head_dim != config.v_head_dim:
        warnings.warn(
            f"heads of keys ({config.qk_nope_head_dim}) and values ({config.v_head_dim}) differ: the backbone is "
            "left out",
            stacklevel=3,
        )
        return None
    ordinary = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    dense = config.num_hidden_layers - num_moe_layers
    width = getattr(config, names.shared_width) if names.shared_width else _num_shared(config) * _ffn(config)
    return Backbone(
        num_heads=config.num_attention_heads,
        num_kv_heads=config.num_key_value_heads,
        head_size=config.v_head_dim if latent else ordinary,
        vocab_size=config.vocab_size,
        num_dense_layers=dense,
        dense_ffn_size=config.intermediate_size if dense else 0,
        shared_ffn_size=width or 0,
        kv_rank=latent,
        q_rank=(config.q_lora_rank or 0) if latent else 0,
        rope_size=config.qk_rope_head_dim if latent else 0,
        window=_window(config),
        tied=config.tie_word_embeddings,
        weight_type=weight_type,
    )


def _ffn(config: Any) -> int:
    return int(getattr(config, architecture_of(config).ffn_size))


def _window(config: Any) -> int:
    """Tokens that every other layer looks back; 0 for all of them, with a warning where others are limited."""
    size = getattr(config, "sliding_window", None) or 0
    kinds = getattr(config, "layer_types", None) or ["sliding_attention" if size else ""] * config.num_hidden_layers
    limited = sum(kind == "sliding_attention" for kind in kinds)
    if not size or not limited:
        return 0
    if abs(2 * limited - len(kinds)) <= 1:
        return int(size)
    warnings.warn(
        f"{limited} of {len(kinds)} layers look back {size} tokens: the backbone has all of them see everything",
        stacklevel=4,
    )
    return 0

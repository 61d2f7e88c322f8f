"""The architectures that can be recorded, and the names their configurations give to what is asked of all."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Architecture:
    """Names of configuration fields, and what differs between classes.

    Attributes:
        title: as people write it.
        num_experts, ffn_size: fields with the routed experts of a layer and the width of one.
        shared_width, shared_count: fields with the width of the shared experts together, or with their number.
        gate: what `gate` returns where the experts are a list of modules (transformers 4): `logits`, of whose softmax
            the block takes the largest, or `indices` before weights; "" if that layout does not occur.
    """

    title: str
    num_experts: str
    ffn_size: str
    shared_width: str = ""
    shared_count: str = ""
    gate: str = ""


ARCHITECTURES: Mapping[str, Architecture] = {
    "olmoe": Architecture("OLMoE", "num_experts", "intermediate_size", gate="logits"),
    "mixtral": Architecture("Mixtral", "num_local_experts", "intermediate_size", gate="logits"),
    "qwen2_moe": Architecture(
        "Qwen2-MoE", "num_experts", "moe_intermediate_size", "shared_expert_intermediate_size", gate="logits"
    ),
    "qwen3_moe": Architecture("Qwen3-MoE", "num_experts", "moe_intermediate_size", gate="logits"),
    "deepseek_v2": Architecture(
        "DeepSeek-V2", "n_routed_experts", "moe_intermediate_size", shared_count="n_shared_experts", gate="indices"
    ),
    "deepseek_v3": Architecture(
        "DeepSeek-V3", "n_routed_experts", "moe_intermediate_size", shared_count="n_shared_experts", gate="indices"
    ),
    "gpt_oss": Architecture("gpt-oss", "num_local_experts", "intermediate_size"),
}
"""By `model_type` of config.json."""


def architecture_of(config: Any) -> Architecture:
    """The architecture of a transformers configuration.

    Raises:
        ValueError: it is none of these.
    """
    kind = str(getattr(config, "model_type", ""))
    if kind not in ARCHITECTURES:
        known = ", ".join(f"{each.title} ({name})" for name, each in ARCHITECTURES.items())
        raise ValueError(f"its model_type is {kind!r}, and record knows {known}")
    return ARCHITECTURES[kind]

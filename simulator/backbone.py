"""Seconds of what surrounds the experts on one rank: measured tables of attention where there are any, else a roofline.

A part takes  launch + max(flops / sustained flops, bytes / memory bandwidth);  its bytes are its weights, once, and in
decode the cache of every sequence. Scores of ordinary heads come from measured tables of the optional package if
`tables` says so and a table has the model's heads, interpolated between its sizes (straight lines over logarithms).
"""

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from scipy.interpolate import LinearNDInterpolator

from grace_opt.backbone import Backbone
from grace_opt.gpu import GPU
from grace_opt.model import MoEModel
from simulator.calibration.tables import MissingDataError, packaged

KERNEL_S = 5e-6
"""Start of a kernel, assumed; a layer's attention has 4 (two projections, scores, output), other parts 2."""
TABLES = {
    "A100-SXM-80GB": "a100_sxm/attention/vllm/0.14.0",
    "H100-SXM-80GB": "h100_sxm/attention/vllm/0.24.0",
    "H200-SXM-141GB": "h200_sxm/attention/vllm/0.24.0",
    "B200-SXM-192GB": "b200_sxm/attention/vllm/0.24.0",
    "GB200": "gb200/attention/vllm/0.24.0",
}


@dataclass(frozen=True)
class Pass:
    """One forward pass of a rank.

    Attributes:
        sequences: on this rank.
        tokens: of each sequence that pass through the layers: the prompt in prefill, 1 in decode.
        context: tokens each sequence has in its cache before.
    """

    sequences: float
    tokens: int
    context: int = 0

    @property
    def num_tokens(self) -> float:
        return self.sequences * self.tokens


@dataclass(frozen=True)
class BackboneTime:
    """Seconds of one forward pass.

    Attributes:
        attention_s, router_s, shared_s: of one MoE layer.
        other_s: of all that is not in MoE layers: dense layers, head.
        measured: attention's scores are from a measured table.
    """

    attention_s: float
    router_s: float
    shared_s: float
    other_s: float
    measured: bool


def backbone_time(model: MoEModel, gpu: GPU, work: Pass, tables: bool = False) -> BackboneTime:
    """Time of one pass on one rank.

    Raises:
        ValueError: the model has no backbone.
        MissingDataError: `tables` are asked for, but not installed.
    """
    backbone, hidden = model.backbone, model.hidden_size
    if backbone is None:
        raise ValueError(f"model {model.name} has no backbone: its configuration must give model.backbone")
    scores = _measured_scores(backbone, gpu, work) if tables else None
    attention = _attention(backbone, hidden, gpu, work, scores)
    shared = 3 * hidden * backbone.shared_ffn_size
    head_tokens = work.sequences  # only the last token of a sequence is read
    dense = _part(gpu, 3 * hidden * backbone.dense_ffn_size, work.num_tokens) if backbone.num_dense_layers else 0.0
    return BackboneTime(
        attention_s=attention,
        router_s=_part(gpu, hidden * model.num_experts, work.num_tokens),
        shared_s=_part(gpu, shared, work.num_tokens) if shared else 0.0,
        other_s=backbone.num_dense_layers * (attention + dense) + _part(gpu, hidden * backbone.vocab_size, head_tokens),
        measured=scores is not None,
    )


def _part(gpu: GPU, weights: float, tokens: float, kernels: int = 2) -> float:
    """A matrix product of all tokens with so many weights (bf16)."""
    return kernels * KERNEL_S + max(2 * weights * tokens / gpu.flops_per_s, 2 * weights / gpu.memory_bytes_per_s)


def _attention(backbone: Backbone, hidden: int, gpu: GPU, work: Pass, scores: float | None) -> float:
    projections = _part(gpu, backbone.attention_weights(hidden), work.num_tokens, kernels=3)
    return projections + (_scores(backbone, gpu, work) if scores is None else scores)


def _scores(backbone: Backbone, gpu: GPU, work: Pass) -> float:
    """Scores and weighted sums; every other layer within the window, if there is one."""
    whole = work.context + (work.tokens + 1) / 2  # a causal token looks at half of its own part
    windows = [whole, min(whole, backbone.window)] if backbone.window else [whole]
    seconds = []
    for looked_at in windows:
        flops = work.num_tokens * backbone.score_flops(looked_at)
        cache = 2 * backbone.cache_values * work.sequences * min(looked_at, work.context + work.tokens)
        seconds.append(KERNEL_S + max(flops / gpu.flops_per_s, cache / gpu.memory_bytes_per_s))
    return float(np.mean(seconds))


def _measured_scores(backbone: Backbone, gpu: GPU, work: Pass) -> float | None:
    """The table's time, or None where it has no such heads or sizes."""
    if backbone.kv_rank or backbone.window or gpu.name not in TABLES:
        return None
    decode = work.tokens == 1
    found = _interpolator(TABLES[gpu.name], decode, backbone.num_heads, backbone.num_kv_heads, backbone.head_size)
    if found is None:
        return None
    size = work.context if decode else work.tokens
    seconds = float(found(np.log(max(work.sequences, 1)), np.log(max(size, 1))))
    return float(np.exp(seconds)) if np.isfinite(seconds) else None


@lru_cache(maxsize=32)
def _interpolator(folder: str, decode: bool, heads: int, kv_heads: int, head_size: int) -> LinearNDInterpolator | None:
    try:
        table = packaged(f"{folder}/{'generation' if decode else 'context'}_attention_perf.parquet")
    except MissingDataError as error:
        raise MissingDataError(f"backbone=measured: {error}; or take backbone=roofline") from None
    keys = (table["num_heads"] == heads) & (table["head_dim"] == head_size) & (table["attn_dtype"] == "bfloat16")
    keys &= (table["num_key_value_heads"] == kv_heads) & (table["kv_cache_dtype"] == "bfloat16")
    rows = table.where(keys)
    if len(rows) < 12:
        return None
    places = np.log(np.stack([rows["batch_size"], rows["step"] if decode else rows["isl"]], axis=1))
    return LinearNDInterpolator(places, np.log(rows["latency"] / 1e3))

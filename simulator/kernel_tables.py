"""Measured seconds of matrix products and attention scores, from the optional package.

A table holds one kernel on a regular grid of sizes; between them times follow straight lines over logarithms. Work
that is larger than the grid in a direction that can be cut (sequences, tokens, matrix sides) is done in equal parts
that fit; work that is smaller takes what the smallest does. Anything else outside is refused: nothing is extrapolated.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import product

import numpy as np
from numpy.typing import NDArray

from grace_opt.backbone import Backbone
from simulator.calibration.tables import MissingDataError, packaged

TABLES = {
    # Attention and products, then MLA, all measured with TensorRT-LLM.
    "A100-SXM-80GB": ("a100_sxm", "1.0.0", "1.0.0"),
    "H100-SXM-80GB": ("h100_sxm", "1.3.0rc20", "1.3.0rc20"),
    "H200-SXM-141GB": ("h200_sxm", "1.3.0rc20", "1.3.0rc20"),
    "B200-SXM-192GB": ("b200_sxm", "1.3.0rc20", "1.3.0rc20"),
    "GB200": ("gb200", "1.3.0rc20", "1.3.0rc20"),
    "L40S": ("l40s", "1.3.0rc20", "1.0.0"),
    "RTX-PRO-6000": ("rtx_pro_6000_server", "1.3.0rc20", "1.3.0rc20"),
}
PRODUCT_TYPES = {"bf16": "bfloat16", "fp8": "fp8_block"}
MOST_PARTS = 1024
Keys = tuple[tuple[str, str | int], ...]
"""Columns and the value that rows must have there."""


@dataclass(frozen=True, eq=False)
class Grid:
    """Times of one kernel.

    Attributes:
        source: the table.
        axes: ascending sizes in each direction.
        log_s: logarithms of seconds, one dimension an axis; NaN where nothing was measured.
    """

    source: str
    axes: tuple[NDArray[np.float64], ...]
    log_s: NDArray[np.float64]

    def seconds(self, sizes: Sequence[float]) -> float:
        """Interpolated; NaN beyond the grid or beside a hole in it."""
        places = []
        for size, axis in zip(sizes, self.axes, strict=True):
            if size > axis[-1]:
                return math.nan
            at = max(size, axis[0])
            low = min(int(np.searchsorted(axis, at, side="right")) - 1, max(len(axis) - 2, 0))
            high = min(low + 1, len(axis) - 1)
            share = math.log(at / axis[low]) / math.log(axis[high] / axis[low]) if high > low else 0.0
            places.append(((low, 1 - share), (high, share)))
        total = 0.0
        for corner in product(*places):
            weight = math.prod(share for _, share in corner)
            if weight > 1e-9:
                total += weight * float(self.log_s[tuple(index for index, _ in corner)])
        return math.exp(total)


@dataclass(frozen=True)
class KernelTables:
    """Kernels of a device as they were measured.

    Attributes:
        gpu: its name, as in conf/gpu.
        weight_type: of the matrices, `bf16` or `fp8`; scores are bf16.
    """

    gpu: str
    weight_type: str

    def __post_init__(self) -> None:
        if self.gpu not in TABLES:
            raise MissingDataError(
                f"no measured kernels of {self.gpu}, only of {', '.join(TABLES)}: take tables=false, the roofline"
            )

    def product_s(self, tokens: float, inputs: int, outputs: int) -> float:
        """Seconds of a matrix product [tokens, inputs] x [inputs, outputs]."""
        system, version, _ = TABLES[self.gpu]
        keys = (("gemm_dtype", PRODUCT_TYPES[self.weight_type]),)
        grid = _grid(f"{system}/gemm/trtllm/{version}/gemm_perf.parquet", keys, ("m", "n", "k"))
        sizes = (tokens, outputs, inputs)
        parts = [math.ceil(size / axis[-1]) for size, axis in zip(sizes, grid.axes, strict=True)]
        one = grid.seconds([size / count for size, count in zip(sizes, parts, strict=True)])
        return float(math.prod(parts)) * _found(one, grid, f"a product of {tokens:g} x {inputs} x {outputs}")

    def scores_s(self, backbone: Backbone, sequences: float, tokens: int, context: int) -> float:
        """Seconds of one layer's attention scores; with a window the mean of both kinds of layer."""
        if tokens > 1 and context > 0:
            raise ValueError(f"measured scores are of prompts from their start, not of {tokens} tokens after {context}")
        windows = (0, backbone.window) if backbone.window else (0,)
        size, phase = (context, "generation") if context else (tokens, "context")
        seconds = []
        for window in windows:
            grid, what = self._scores_grid(backbone, phase, window), f"{sequences:g} sequences of {size} tokens"
            count = 1
            while math.isnan(one := grid.seconds((sequences / count, size))) and count < MOST_PARTS:
                count *= 2
            seconds.append(count * _found(one, grid, what))
        return float(np.mean(seconds))

    def _scores_grid(self, backbone: Backbone, phase: str, window: int) -> Grid:
        system, version, mla_version = TABLES[self.gpu]
        size = "step" if phase == "generation" else "isl"
        keys: Keys = (("num_heads", backbone.num_heads), ("kv_cache_dtype", "bfloat16"))
        if backbone.kv_rank:
            path = f"{system}/mla/trtllm/{mla_version}/{phase}_mla_perf.parquet"
            return _grid(path, (*keys, ("mla_dtype", "bfloat16")), ("batch_size", size))
        path = f"{system}/attention/trtllm/{version}/{phase}_attention_perf.parquet"
        of_heads = (("num_key_value_heads", backbone.num_kv_heads), ("head_dim", backbone.head_size))
        keys = (*keys, *of_heads, ("attn_dtype", "bfloat16"), ("window_size", window))
        return _grid(path, keys, ("batch_size", size))


def _found(seconds: float, grid: Grid, what: str) -> float:
    if math.isnan(seconds):
        raise ValueError(f"{grid.source} measured nothing as large as {what}: take tables=false, the roofline")
    return seconds


@lru_cache(maxsize=64)
def _grid(path: str, keys: Keys, axes: tuple[str, ...]) -> Grid:
    """The rows with these keys; rows of the same sizes are averaged.

    Raises:
        MissingDataError: the package or the table is not there, or it has no such rows.
    """
    table = packaged(path)
    chosen = np.logical_and.reduce([table[name] == value for name, value in keys])
    if not chosen.any():
        wanted = ", ".join(f"{name}={value}" for name, value in keys)
        raise MissingDataError(f"{table.source} has no rows with {wanted}: take tables=false, the roofline")
    rows = table.where(chosen)
    values: Mapping[str, tuple[NDArray[np.float64], NDArray[np.int64]]] = {
        name: np.unique(rows[name], return_inverse=True) for name in axes
    }
    shape = tuple(len(values[name][0]) for name in axes)
    places = np.ravel_multi_index(tuple(values[name][1] for name in axes), shape)
    count = np.bincount(places, minlength=math.prod(shape))
    total = np.bincount(places, np.log(rows["latency"] / 1e3), math.prod(shape))
    log_s = np.divide(total, count, out=np.full(len(count), np.nan), where=count > 0).reshape(shape)
    return Grid(table.source, tuple(values[name][0] for name in axes), log_s)

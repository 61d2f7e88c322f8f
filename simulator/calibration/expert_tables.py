"""Tables of measured grouped expert computations: what each row computed, and how long it took.

Known are the tables of aiconfigurator (DeepSeek-V3's experts over expert-parallel sizes; fused kernels of many shapes)
and InferSim's (up and down projections apart).
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from simulator.calibration.skew import drawn_tokens, even_tokens
from simulator.calibration.tables import Table, packaged, published_folder, read_table

SYSTEMS = {
    "h100": "h100_sxm",
    "h200": "h200_sxm",
    "b200": "b200_sxm",
    "gb200": "gb200",
    "b300": "b300_sxm",
    "gb300": "gb300",
}
FORM = ("latency", "num_tokens", "hidden_size", "inter_size", "topk", "num_experts", "moe_ep_size", "distribution")
BYTES_PER_WEIGHT = {
    "bfloat16": 2.0,
    "float16": 2.0,
    "fp8_block": 1.0,
    "fp8": 1.0,
    "nvfp4": 0.5625,
    "w4a16_mxfp4": 0.53125,
}
WEIGHT_TYPES = {
    "bfloat16": "bf16",
    "float16": "bf16",
    "fp8_block": "fp8",
    "fp8": "fp8",
    "nvfp4": "nvfp4",
    "w4a16_mxfp4": "mxfp4",
}
TILES = {"moe_generation": 64, "moe_context": 128}
"""Tokens of a tile by the collector's name of the kernels: DeepGEMM's masked and contiguous ones; fused kernels choose
theirs by the number of tokens."""
IDLEST_FIRST = {("NVIDIA H200", "0.5.10"), ("NVIDIA B200", "0.5.10")}
"""Devices and versions whose wide tables come from the collector that gave surplus pairs to the idlest experts first
(`simulator.calibration.skew`). Nothing in a table says so; times of almost empty batches do: they imply twice as many
active experts on the busiest rank as in the other tables."""
FUSED: dict[str, tuple[str, float]] = {  # and 70 % of the data sheet for bf16, more than products reach
    "a100": ("a100_sxm/moe/sglang/0.5.10/moe_perf.parquet", 218e12),
    "h100": ("h100_sxm/moe/vllm/0.24.0/moe_perf.parquet", 692e12),
    "h200": ("h200_sxm/moe/vllm/0.24.0/moe_perf.parquet", 692e12),
    "b200": ("b200_sxm/moe/vllm/0.24.0/moe_perf.parquet", 1575e12),
    "gb200": ("gb200/moe/vllm/0.24.0/moe_perf.parquet", 1750e12),
    "b300": ("b300_sxm/moe/vllm/0.24.0/moe_perf.parquet", 1575e12),
    "gb300": ("gb300/moe/vllm/0.24.0/moe_perf.parquet", 1750e12),
    "l40s": ("l40s/moe/vllm/0.24.0/moe_perf.parquet", 253e12),
    "rtx_pro_6000": ("rtx_pro_6000_server/moe/vllm/0.24.0/moe_perf.parquet", 352e12),
}
CACHE_BYTES = 1.3e8  # the largest: 126 MB (B200), 128 MB (RTX PRO 6000)


@dataclass(frozen=True, eq=False)
class Rows:
    """Measured grouped computations: tokens of each expert (of every draw), sizes of the experts, seconds.

    Attributes:
        tokens: for each row [draws, S].
        passing: float64 [rows], rows that pass through what surrounds the products; NaN for the sum of the tokens.
        expert_bytes, flops_per_token, hidden_size, measured_s: float64 [rows].
        uniform, sparse: bool [rows], evenly loaded; skewed and no more pairs than experts.
        ep_size: float64 [rows].
        tile: rows to which the kernel pads.
    """

    tokens: list[NDArray[np.int64]]
    passing: NDArray[np.float64]
    expert_bytes: NDArray[np.float64]
    flops_per_token: NDArray[np.float64]
    hidden_size: NDArray[np.float64]
    measured_s: NDArray[np.float64]
    uniform: NDArray[np.bool_]
    sparse: NDArray[np.bool_]
    ep_size: NDArray[np.float64]
    tile: int

    @property
    def prefill(self) -> bool:
        """Whether the kernels are those of prefill, which pack rows of experts one behind the other."""
        return not np.isnan(self.passing).all()

    def where(self, rows: NDArray[np.bool_]) -> "Rows":
        """The rows that are marked."""
        arrays: dict[str, Any] = {name: v[rows] for name, v in vars(self).items() if isinstance(v, np.ndarray)}
        return replace(self, tokens=[self.tokens[i] for i in np.flatnonzero(rows)], **arrays)


def is_expert_table(table: Table) -> bool:
    """Whether it has the columns of measured MoE computations."""
    return all(name in table for name in FORM)


def rows_of(table: Table) -> Rows:
    """Reconstruct what each row of a table computed.

    Raises:
        ValueError: a row says what is not understood.
    """
    kernel = str(table["op_name"][0]) if "op_name" in table else ""
    prefill = kernel == "moe_context"
    types = np.unique(table["moe_dtype"]) if "moe_dtype" in table else np.array(["bfloat16"])
    if len(types) != 1 or types[0] not in BYTES_PER_WEIGHT:
        raise ValueError(
            f"{table.source}: moe_dtype must be one of {', '.join(BYTES_PER_WEIGHT)}, got {types.tolist()}"
        )
    columns = [table[name] for name in ("num_tokens", "num_experts", "topk", "moe_ep_size")]
    named = zip(*(table[name].tolist() for name in ("device", "version")), strict=True) if "device" in table else ()
    idlest_first = kernel in TILES and not IDLEST_FIRST.isdisjoint(named)
    tokens = []
    for n, experts, top_k, ep, name in zip(*columns, table["distribution"], strict=True):
        shape = int(n), int(experts), int(top_k), int(ep)
        if name in ("uniform", "balanced"):
            tokens.append(even_tokens(*shape, prefill))
        elif name.startswith("power_law_") and name[10:].replace(".", "", 1).isdigit():
            tokens.append(drawn_tokens(*shape, float(name[10:]), idlest_first))
        else:
            raise ValueError(
                f"{table.source}: distribution must be uniform, balanced or power_law_NUMBER, got {name!r}"
            )
    weights = 3 * table["hidden_size"] * table["inter_size"]
    uniform = np.isin(table["distribution"], ("uniform", "balanced"))
    return Rows(
        tokens,
        table["num_tokens"] if prefill else np.full(len(table), np.nan),
        weights * BYTES_PER_WEIGHT[types[0]],
        2 * weights,
        table["hidden_size"],
        table["latency"] / 1e3,
        uniform,
        ~uniform & (table["num_tokens"] * table["topk"] <= table["num_experts"]),
        table["moe_ep_size"],
        TILES.get(kernel, 1),
    )


def wide_rows(gpu: str, kind: str) -> Rows:
    """Measured grouped GEMM of DeepSeek-V3's experts, of `generation` (decode) or `context` (prefill)."""
    return rows_of(packaged(f"{SYSTEMS[gpu]}/moe/sglang/0.5.10/wideep_{kind}_moe_perf.parquet"))


def fused_rows(gpu: str, weight_type: str) -> Rows:
    """Rows of one GPU that holds all experts, with weights in `bf16` or `mxfp4`, larger than its cache.

    With more ranks the tables disagree. A collector that repeats one layer finds its weights in the cache; a model
    with its many layers does not.
    """
    table = packaged(FUSED[gpu][0])
    chosen = (table["moe_tp_size"] == 1) & (table["moe_ep_size"] == 1)
    chosen &= np.array([WEIGHT_TYPES.get(str(name)) == weight_type for name in table["moe_dtype"]])
    if weight_type == "mxfp4":
        chosen &= table["hidden_size"] == 2880  # gpt-oss; others have other kernels
    else:
        kernels = ("triton", "tritonexperts", "flashinferexperts")
        chosen &= np.array([str(name).endswith(kernels) for name in table["kernel_source"]])
        chosen &= (table["hidden_size"] >= 2048) & (table["topk"] > 1) & (table["num_experts"] >= 32)
        chosen &= table["hidden_size"] != 2688  # Nemotron's experts have two matrices, not three
    if gpu == "a100":
        chosen &= table["hidden_size"] == 2048  # its kernels are tuned for few shapes; this is that of GRACE's models
    rows = rows_of(table.where(chosen))
    active = np.array([(tokens > 0).sum(axis=1).mean() for tokens in rows.tokens])
    return rows.where(active * rows.expert_bytes > CACHE_BYTES)


def infersim_rows(gpu: str) -> Rows:
    """FP8 grouped products of InferSim's tables, decode and prefill, up and down projection together."""
    folder = published_folder() / "grouped_gemm"
    tables = [read_table(folder / f"grouped_gemm_{phase}_{gpu}.csv") for phase in ("decode", "prefill")]
    names = ("num_local_experts", "tokens_per_expert", "hidden_size", "intermediate_size", "up_proj_us", "down_proj_us")
    local, tokens, hidden, ffn, up, down = (np.concatenate([table[name] for table in tables]) for name in names)
    weights = 3 * hidden * ffn
    return Rows(
        [np.full((1, int(experts)), int(count), np.int64) for experts, count in zip(local, tokens, strict=True)],
        np.full(len(local), np.nan), weights, 2 * weights, hidden, (up + down) / 1e6,
        np.ones(len(local), bool), np.zeros(len(local), bool),
        np.concatenate([table["num_gpus"] for table in tables]), 1,
    )  # fmt: skip


@dataclass(frozen=True)
class DataSet:
    """Measurements that give the speeds of a GPU for a type of weights.

    Attributes:
        kind: decode, prefill, fused or products.
        read: the rows; raises MissingDataError where they are not on this machine.
        peak_flops_per_s: more than products can reach.
    """

    name: str
    gpu: str
    weight_type: str
    kind: str
    read: Callable[[], Rows]
    peak_flops_per_s: float = 5e15


def _data() -> Iterator[DataSet]:
    for phase, table, weight_type in (("decode", "generation", "fp8"), ("prefill", "context", "fp8_prefill")):
        for gpu in SYSTEMS:
            name = f"grouped GEMM {phase}, DeepSeek-V3 FP8, {gpu.upper()}"
            yield DataSet(name, gpu, weight_type, phase, partial(wide_rows, gpu, table))
    for weight_type in ("bf16", "mxfp4"):
        for gpu, (_, peak) in FUSED.items():
            if (gpu, weight_type) != ("a100", "mxfp4"):  # not measured
                name = f"fused MoE kernel, {weight_type}, {gpu.upper()}"
                yield DataSet(name, gpu, weight_type, "fused", partial(fused_rows, gpu, weight_type), peak)
    for gpu in ("h20", "h800"):
        name = f"grouped products, FP8, many shapes, {gpu.upper()} (InferSim)"
        yield DataSet(name, gpu, "fp8", "products", partial(infersim_rows, gpu))


DATA = tuple(_data())

"""Tables of measured grouped expert computations: what each row computed, and how long it took.

Known are the tables of aiconfigurator (DeepSeek-V3's experts over expert-parallel sizes; fused kernels of many shapes)
and InferSim's (up and down projections apart).
"""

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from simulator.calibration.skew import drawn_tokens, even_tokens
from simulator.calibration.tables import Table, packaged, published_folder, read_table

SYSTEMS = {"h100": "h100_sxm", "h200": "h200_sxm", "b200": "b200_sxm", "gb200": "gb200"}
FORM = ("latency", "num_tokens", "hidden_size", "inter_size", "topk", "num_experts", "moe_ep_size", "distribution")
BYTES_PER_WEIGHT = {"bfloat16": 2.0, "float16": 2.0, "fp8_block": 1.0, "fp8": 1.0, "nvfp4": 0.5625}
WEIGHT_TYPES = {"bfloat16": "bf16", "float16": "bf16", "fp8_block": "fp8", "fp8": "fp8", "nvfp4": "nvfp4"}
BF16: dict[str, tuple[str, float]] = {  # and 70 % of the data sheet, more than products reach
    "a100": ("a100_sxm/moe/sglang/0.5.10/moe_perf.parquet", 218e12),
    "h100": ("h100_sxm/moe/vllm/0.24.0/moe_perf.parquet", 692e12),
    "b200": ("b200_sxm/moe/vllm/0.24.0/moe_perf.parquet", 1575e12),
    "l40s": ("l40s/moe/vllm/0.24.0/moe_perf.parquet", 253e12),
    "rtx_pro_6000": ("rtx_pro_6000_server/moe/vllm/0.24.0/moe_perf.parquet", 352e12),
}
INFERSIM = ("h20", "h800")


@dataclass(frozen=True, eq=False)
class Rows:
    """Measured grouped computations: tokens of each expert (of every draw), sizes of the experts, seconds.

    Attributes:
        tokens: for each row [draws, S].
        passing: float64 [rows], rows that pass through what surrounds the products; NaN for the sum of the tokens.
        expert_bytes, flops_per_token, hidden_size, measured_s: float64 [rows].
        uniform, sparse: bool [rows], evenly loaded; fewer pairs than experts.
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
    prefill = "op_name" in table and (table["op_name"] == "moe_context").all()
    types = np.unique(table["moe_dtype"]) if "moe_dtype" in table else np.array(["bfloat16"])
    if len(types) != 1 or types[0] not in BYTES_PER_WEIGHT:
        raise ValueError(
            f"{table.source}: moe_dtype must be one of {', '.join(BYTES_PER_WEIGHT)}, got {types.tolist()}"
        )
    columns = [table[name] for name in ("num_tokens", "num_experts", "topk", "moe_ep_size")]
    tokens = []
    for n, experts, top_k, ep, name in zip(*columns, table["distribution"], strict=True):
        shape = int(n), int(experts), int(top_k), int(ep)
        if name in ("uniform", "balanced"):
            tokens.append(even_tokens(*shape, prefill))
        elif name.startswith("power_law_") and name[10:].replace(".", "", 1).isdigit():
            tokens.append(drawn_tokens(*shape, float(name[10:])))
        else:
            raise ValueError(
                f"{table.source}: distribution must be uniform, balanced or power_law_NUMBER, got {name!r}"
            )
    weights = 3 * table["hidden_size"] * table["inter_size"]
    return Rows(
        tokens,
        table["num_tokens"] if prefill else np.full(len(table), np.nan),
        weights * BYTES_PER_WEIGHT[types[0]],
        2 * weights,
        table["hidden_size"],
        table["latency"] / 1e3,
        np.isin(table["distribution"], ("uniform", "balanced")),
        table["num_tokens"] * table["topk"] <= table["num_experts"] * (0.99 if prefill else 1),
        table["moe_ep_size"],
        128 if prefill else 1,
    )


def wide_table(gpu: str, kind: str) -> Table:
    """Measured grouped GEMM of DeepSeek-V3's experts, of `generation` (decode) or `context` (prefill)."""
    return packaged(f"{SYSTEMS[gpu]}/moe/sglang/0.5.10/wideep_{kind}_moe_perf.parquet")


def bf16_rows(table: Table) -> Rows:
    """Evenly loaded and skewed bf16 rows of one GPU that holds all experts (with more ranks the tables disagree)."""
    alone = (table["moe_tp_size"] == 1) & (table["moe_ep_size"] == 1)
    kernels = ("triton", "tritonexperts", "flashinferexperts")
    kernel = np.array([str(name).endswith(kernels) for name in table["kernel_source"]])
    gated = table["hidden_size"] != 2688  # Nemotron's experts have two matrices, not three
    chosen = alone & kernel & np.isin(table["moe_dtype"], ("bfloat16", "float16")) & (table["hidden_size"] >= 2048)
    if table.source.startswith("a100"):
        chosen &= table["hidden_size"] == 2048  # its kernels are tuned for few shapes; this is that of GRACE's models
    return rows_of(table.where(chosen & gated & (table["topk"] > 1) & (table["num_experts"] >= 32)))


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
        np.ones(len(local), bool), tokens <= 1, np.concatenate([table["num_gpus"] for table in tables]), 1,
    )  # fmt: skip

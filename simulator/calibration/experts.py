"""Grouped GEMM: constants of a GPU from measured times, and how far predictions with them are from measurements.

Constants are fitted to evenly loaded experts only; skewed rows are always held out. Predictions run through
`simulator.compute.grouped_seconds`, as those of plans do.
"""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import least_squares

from grace_opt.gpu import GPU, SPEEDS
from simulator.calibration.comparison import Comparison
from simulator.calibration.skew import drawn_tokens, even_tokens
from simulator.calibration.tables import MissingDataError, Table, data_sheet, packaged, published_folder, read_table
from simulator.compute import constants_of, grouped_seconds

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
OVERLAP = 6.0
"""On H100, H200, B200 and GB200 alike the best of 2 to 12 for FP8 experts of 64 to 1024 tokens."""
INFERSIM = {"h20": "h20", "h800": "h800"}


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


def predict(rows: Rows, gpu: GPU) -> NDArray[np.float64]:
    """[rows] seconds; the median over draws."""
    result = np.empty(len(rows.tokens))
    shapes = [tokens.shape for tokens in rows.tokens]
    for shape in set(shapes):
        alike = [index for index, other in enumerate(shapes) if other == shape]
        tokens = np.stack([rows.tokens[index] for index in alike])
        sizes = zip(rows.expert_bytes[alike], rows.flops_per_token[alike], rows.hidden_size[alike], strict=True)
        constants = np.array([constants_of(gpu, *size) for size in sizes]).T[:, :, None] * np.ones(shape[0])
        given = rows.passing[alike, None]
        passing = np.where(np.isnan(given), tokens.sum(axis=2), given)
        result[alike] = np.median(grouped_seconds(tokens, *constants, rows=passing), axis=1)
    return result


def fit(rows: Rows, peak_flops_per_s: float = 5e15) -> dict[str, float]:
    """The speeds of a GPU (`gpu.SPEEDS`) that come closest to evenly loaded rows; relative errors count.

    Args:
        peak_flops_per_s: not to be exceeded.

    Raises:
        ValueError: too few rows.
    """
    known = rows.where(rows.uniform & ~rows.sparse)
    if len(known.tokens) < 6:
        raise ValueError(f"{len(known.tokens)} evenly loaded rows with a pair for every expert are too few to fit to")
    prefill = not np.isnan(known.passing).all()
    starts = [[f, 2e12, a, 1e-8, 4e-4 if prefill else 1e-9] for f in (2e14, 1.2e15) for a in (20e-6, 200e-6)]

    def gpu_of(logs: NDArray[np.float64]) -> GPU:
        flops, bandwidth, launch, row, least = np.exp(logs)
        return GPU("fitted", flops, bandwidth, 1.0, launch, known.tile, row_s=row, least_s=least, overlap=OVERLAP)

    def errors(logs: NDArray[np.float64]) -> NDArray[np.float64]:
        return np.asarray(np.log(predict(known, gpu_of(logs)) / known.measured_s))

    # rows of one small shape tell neither what a launch takes nor what a row does from what products take
    one_small_shape = len(np.unique(known.hidden_size)) == 1 and known.expert_bytes.max() < 2e7
    launch, row = (4e-5, 1e-11) if one_small_shape and not prefill else (1e-3, 1e-5)
    most = np.log([peak_flops_per_s, 1e13, launch, row, 1e-2])
    limits = np.log([1e12, 1e9, 5e-6, 1e-12, 1e-10]), most
    robust = {"loss": "soft_l1", "f_scale": 0.03, "max_nfev": 200}
    found = [least_squares(errors, np.minimum(np.log(s), most - 0.01), bounds=limits, **robust) for s in starts]
    gpu = gpu_of(min(found, key=lambda one: float(one.cost)).x)
    return {name: float(getattr(gpu, name)) for name in SPEEDS}


def gpu_with(speeds: Mapping[str, float]) -> GPU:
    """A GPU of so many speeds; nothing else of it is known."""
    fields: dict[str, Any] = {**speeds, "tile_tokens": int(speeds["tile_tokens"])}
    return GPU(name="fitted", memory_bytes=1.0, **fields)


def comparisons(skipped: list[str]) -> Iterator[Comparison]:
    """All data sets that are present, each protocol; what is absent adds a line to `skipped`."""
    for kind in ("generation", "context"):
        found: dict[str, Rows] = {}
        for gpu in SYSTEMS:
            try:
                found[gpu] = rows_of(wide_table(gpu, kind))
            except MissingDataError as error:
                skipped.append(f"grouped GEMM: {error}")
                break
            phase = "decode" if kind == "generation" else "prefill"
            yield from compare_rows(f"grouped GEMM {phase}, DeepSeek-V3 FP8, {gpu.upper()}", found[gpu])
        yield from _other_gpus(kind, found)
    for gpu, (path, peak) in BF16.items():
        try:
            rows = bf16_rows(packaged(path))
        except MissingDataError as error:
            skipped.append(f"fused MoE kernel: {error}")
            break
        yield from compare_rows(f"fused MoE kernel, bf16, {gpu.upper()}", rows, peak_flops_per_s=peak)
    for gpu in INFERSIM:
        try:
            rows = infersim_rows(gpu)
        except MissingDataError as error:
            skipped.append(f"grouped GEMM of InferSim: {error}")
            break
        yield from compare_rows(f"grouped products, FP8, many shapes, {gpu.upper()} (InferSim)", rows)


def compare_rows(
    data: str, rows: Rows, protocol: str | None = None, peak_flops_per_s: float = 5e15
) -> Iterator[Comparison]:
    """The comparisons one set of rows allows; those of one protocol if it is named."""
    speeds = gpu_with(fit(rows, peak_flops_per_s))
    known = ~rows.sparse
    if protocol in (None, "in_sample"):
        even = rows.where(rows.uniform & known)
        yield Comparison(f"{data}", "in_sample", predict(even, speeds), even.measured_s, "evenly loaded experts")
    if protocol in (None, "uniform_to_skewed") and (~rows.uniform & known).any():
        skewed = rows.where(~rows.uniform & known)
        yield Comparison(data, "uniform_to_skewed", predict(skewed, speeds), skewed.measured_s)
    few = rows.where(rows.sparse)
    if protocol is None and len(few.tokens):
        note = "no more pairs than experts: which experts were active is not known"
        yield Comparison(
            f"almost empty batches: {data}", "uniform_to_skewed", predict(few, speeds), few.measured_s, note
        )
    sizes = np.unique(rows.ep_size)
    if protocol in (None, "leave_one_ep_size_out") and len(sizes) > 2:
        even = rows.where(rows.uniform & known)
        parts = [(even.where(even.ep_size != size), even.where(even.ep_size == size)) for size in sizes]
        yield _left_out(data, "leave_one_ep_size_out", ((a, b) for a, b in parts if len(b.tokens)))


def compare_table(table: Table, fitted: Table | None, gpu: GPU | None, protocol: str | None) -> list[Comparison]:
    """The comparisons of a table of this form that a user gives.

    Args:
        fitted: another table, whose evenly loaded rows give the constants.
        gpu: a preset whose constants are used as they are.
        protocol: the only one wanted.

    Raises:
        ValueError: rows are in both tables, the protocol does not apply, or there are too few rows.
    """
    rows = rows_of(table)
    if gpu is not None:
        kind = WEIGHT_TYPES[str(table["moe_dtype"][0])] if "moe_dtype" in table else "bf16"
        prefill = f"{kind}_prefill" if rows.tile > 1 else kind
        speeds = gpu.for_weights(prefill if prefill in gpu.weight_types else kind)
        return [Comparison(f"{table.source} with preset {gpu.name}", "preset", predict(rows, speeds), rows.measured_s)]
    if fitted is not None:
        if not is_expert_table(fitted):
            raise ValueError(f"fit={fitted.source} has not the columns {', '.join(FORM)}")
        require_apart(table, fitted, FORM)
        speeds = gpu_with(fit(rows_of(fitted)))
        return [Comparison(f"{table.source} by {fitted.source}", "other_table", predict(rows, speeds), rows.measured_s)]
    found = list(compare_rows(table.source, rows, protocol))
    if not found:
        raise ValueError(f"protocol fit={protocol} does not apply to {table.source}: it has no rows for it")
    return found


def require_apart(tested: Table, fitted: Table, columns: Iterable[str]) -> None:
    """Raise ValueError if a row is in both tables."""
    both = [name for name in columns if name in fitted and name in tested]
    seen = set(zip(*(fitted[name].tolist() for name in both), strict=True))
    again = sum(row in seen for row in zip(*(tested[name].tolist() for name in both), strict=True))
    if again:
        raise ValueError(
            f"{again} rows of {tested.source} are also in {fitted.source}: a row is either fitted to or tested on"
        )


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


def wide_table(gpu: str, kind: str) -> Table:
    """Measured grouped GEMM of DeepSeek-V3's experts, of `generation` (decode) or `context` (prefill)."""
    return packaged(f"{SYSTEMS[gpu]}/moe/sglang/0.5.10/wideep_{kind}_moe_perf.parquet")


def presets() -> dict[str, dict[str, dict[str, float]]]:
    """Speeds by GPU and type of weights, fitted anew to all data that are present."""
    found: dict[str, dict[str, dict[str, float]]] = {}
    for gpu in SYSTEMS:
        for kind, name in (("generation", "fp8"), ("context", "fp8_prefill")):
            found.setdefault(gpu, {})[name] = fit(rows_of(wide_table(gpu, kind)))
    for gpu, (path, peak) in BF16.items():
        found.setdefault(gpu, {})["bf16"] = fit(bf16_rows(packaged(path)), peak)
    for gpu in INFERSIM:
        found.setdefault(gpu, {})["fp8"] = fit(infersim_rows(gpu))
    return found


def _other_gpus(kind: str, found: Mapping[str, Rows]) -> Iterator[Comparison]:
    """Each GPU predicted from the others: what they reach of their data sheets is reached of its own."""
    fits = {gpu: fit(rows) for gpu, rows in found.items()}
    sheets = {gpu: data_sheet(SYSTEMS[gpu]) for gpu in found}
    for gpu, rows in found.items():
        others = [other for other in found if other != gpu]
        if len(others) < 2:
            return
        speeds = dict(fits[gpu])
        for name, sheet in (("flops_per_s", "fp8_tc_flops"), ("memory_bytes_per_s", "mem_bw")):
            reached = [fits[other][name] / sheets[other][sheet] for other in others]
            speeds[name] = float(np.exp(np.mean(np.log(reached)))) * sheets[gpu][sheet]
        for name in ("launch_s", "row_s", "least_s"):
            speeds[name] = float(np.exp(np.mean([np.log(fits[other][name]) for other in others])))
        even = rows.where(rows.uniform & ~rows.sparse)
        phase = "decode" if kind == "generation" else "prefill"
        name = f"grouped GEMM {phase}, DeepSeek-V3 FP8, {gpu.upper()}"
        yield Comparison(name, "leave_one_gpu_type_out", predict(even, gpu_with(speeds)), even.measured_s)


def _left_out(data: str, protocol: str, parts: Iterable[tuple[Rows, Rows]]) -> Comparison:
    predicted, measured = [], []
    for others, left in parts:
        predicted.append(predict(left, gpu_with(fit(others))))
        measured.append(left.measured_s)
    return Comparison(data, protocol, np.concatenate(predicted), np.concatenate(measured))

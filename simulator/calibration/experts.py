"""Grouped GEMM: constants of a GPU from measured times, and how far predictions with them are from measurements.

Constants are fitted to evenly loaded experts only; skewed rows are always held out. Predictions run through
`simulator.compute.grouped_seconds`, as those of plans do.
"""

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import least_squares

from grace_opt.gpu import GPU, SPEEDS
from simulator.calibration.comparison import Comparison
from simulator.calibration.expert_tables import DATA, FORM, SYSTEMS, WEIGHT_TYPES, Rows, is_expert_table, rows_of
from simulator.calibration.tables import MissingDataError, Table, data_sheet
from simulator.compute import constants_of, grouped_seconds

OVERLAP = 2.0
"""Of 1.5, 2, 3, 4, 6 and 20 the best or within 0.3 points of it for evenly loaded experts, FP8 and bf16 alike."""
NEGLIGIBLE = {"slot_s": 1e-9, "row_s": 1e-10, "least_s": 1e-8}
"""Fitted constants that would add less than a microsecond are 0."""


def predict(rows: Rows, gpu: GPU) -> NDArray[np.float64]:
    """[rows] seconds; the mean over draws."""
    result = np.empty(len(rows.tokens))
    shapes = [tokens.shape for tokens in rows.tokens]
    for shape in set(shapes):
        alike = [index for index, other in enumerate(shapes) if other == shape]
        tokens = np.stack([rows.tokens[index] for index in alike])
        sizes = zip(rows.expert_bytes[alike], rows.flops_per_token[alike], rows.hidden_size[alike], strict=True)
        constants = np.array([constants_of(gpu, *size) for size in sizes]).T[:, :, None] * np.ones(shape[0])
        given = rows.passing[alike, None]
        passing = np.where(np.isnan(given), tokens.sum(axis=2), given)
        result[alike] = grouped_seconds(tokens, *constants, rows=passing).mean(axis=1)
    return result


def fit(rows: Rows, peak_flops_per_s: float = 5e15) -> dict[str, float]:
    """The speeds of a GPU (`gpu.SPEEDS`) that come closest to evenly loaded rows; relative errors count.

    Args:
        peak_flops_per_s: not to be exceeded.

    Raises:
        ValueError: too few rows.
    """
    known = rows.where(rows.uniform)
    if len(known.tokens) < 6:
        raise ValueError(f"{len(known.tokens)} evenly loaded rows are too few to fit to")
    starts = [[f, 2e12, a, 1e-6, 1e-8, 4e-4 if rows.prefill else 1e-9] for f in (2e14, 1.2e15) for a in (20e-6, 200e-6)]

    def gpu_of(logs: NDArray[np.float64]) -> GPU:
        flops, bandwidth, launch, slot, row, least = np.exp(logs)
        times = {"launch_s": launch, "slot_s": slot, "row_s": row, "least_s": least}
        return GPU("fitted", flops, bandwidth, 1.0, tile_tokens=known.tile, overlap=OVERLAP, **times)

    def errors(logs: NDArray[np.float64]) -> NDArray[np.float64]:
        return np.asarray(np.log(predict(known, gpu_of(logs)) / known.measured_s))

    # rows of one small shape tell neither what a launch takes nor what a row does from what products take
    one_small_shape = len(np.unique(known.hidden_size)) == 1 and known.expert_bytes.max() < 2e7
    launch, row = (4e-5, 1e-11) if one_small_shape and not rows.prefill else (1e-3, 1e-5)
    slot = 1e-5 if len(np.unique([tokens.shape[1] for tokens in known.tokens])) > 1 else 1e-11
    most = np.log([peak_flops_per_s, 1e13, launch, slot, row, 1e-2])
    limits = np.log([1e12, 1e9, 5e-6, 1e-12, 1e-12, 1e-10]), most
    robust = {"loss": "soft_l1", "f_scale": 0.03, "max_nfev": 200}
    found = [least_squares(errors, np.minimum(np.log(s), most - 0.01), bounds=limits, **robust) for s in starts]
    gpu = gpu_of(min(found, key=lambda one: float(one.cost)).x)
    speeds = {name: float(getattr(gpu, name)) for name in SPEEDS}
    return speeds | {name: 0.0 for name, least in NEGLIGIBLE.items() if speeds[name] < least}


def gpu_with(speeds: Mapping[str, float]) -> GPU:
    """A GPU of so many speeds; nothing else of it is known."""
    fields: dict[str, Any] = {**speeds, "tile_tokens": int(speeds["tile_tokens"])}
    return GPU(name="fitted", memory_bytes=1.0, **fields)


def comparisons(skipped: list[str]) -> Iterator[Comparison]:
    """All data sets that are present, each protocol; what is absent adds a line to `skipped`."""
    wide: dict[str, dict[str, Rows]] = {}
    for one in DATA:
        try:
            rows = one.read()
        except MissingDataError as error:
            line = f"experts: {error}"
            skipped.extend([line] if line not in skipped else [])
            continue
        yield from compare_rows(one.name, rows, peak_flops_per_s=one.peak_flops_per_s)
        if one.kind in ("decode", "prefill"):
            wide.setdefault(one.kind, {})[one.gpu] = rows
    for kind, found in wide.items():
        yield from _other_gpus(kind, found)


def compare_rows(
    data: str, rows: Rows, protocol: str | None = None, peak_flops_per_s: float = 5e15
) -> Iterator[Comparison]:
    """The comparisons one set of rows allows; those of one protocol if it is named."""
    speeds = gpu_with(fit(rows, peak_flops_per_s))
    known, even = ~rows.sparse, rows.where(rows.uniform)
    if protocol in (None, "in_sample"):
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
        prefill = f"{kind}_prefill" if rows.prefill else kind
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


def presets() -> dict[str, dict[str, dict[str, float]]]:
    """Speeds by GPU and type of weights, fitted anew to all data that are present."""
    found: dict[str, dict[str, dict[str, float]]] = {}
    for one in DATA:
        found.setdefault(one.gpu, {})[one.weight_type] = fit(one.read(), one.peak_flops_per_s)
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
        for name in ("launch_s", "slot_s", "row_s", "least_s"):
            speeds[name] = float(np.mean([fits[other][name] for other in others]))
        even = rows.where(rows.uniform)
        name = f"grouped GEMM {kind}, DeepSeek-V3 FP8, {gpu.upper()}"
        yield Comparison(name, "leave_one_gpu_type_out", predict(even, gpu_with(speeds)), even.measured_s)


def _left_out(data: str, protocol: str, parts: Iterable[tuple[Rows, Rows]]) -> Comparison:
    predicted, measured = [], []
    for others, left in parts:
        predicted.append(predict(left, gpu_with(fit(others))))
        measured.append(left.measured_s)
    return Comparison(data, protocol, np.concatenate(predicted), np.concatenate(measured))

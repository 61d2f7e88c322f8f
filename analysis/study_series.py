"""Rows of a study as series along an axis, and the words for its axes and values."""

import math
from collections.abc import Callable, Sequence
from typing import Any

from analysis.results import Row

SLOTS, SCALED, DOMAINS = "cell.slots_per_rank", "cell.scaled", "cell.split.fit_domains"
DECIDED = ("cell.planner", "cell.scheme")
"""Axes of what one decides; others are what one is given."""
Label = tuple[tuple[str, Any], ...]
"""Names and values of the axes that a series has in common."""


def varying(rows: Sequence[Row]) -> list[str]:
    """Names of the axes along which the rows differ."""
    names = dict.fromkeys(name for row in rows for name in row if name.startswith("cell."))
    return [name for name in names if len({repr(row.get(name)) for row in rows}) > 1]


def numeric_axes(rows: Sequence[Row]) -> list[str]:
    """Axes of positive numbers along which times are curves; slots and seeds are none."""
    return [name for name in varying(rows) if name != SLOTS and not name.endswith("seed") and _is_scale(rows, name)]


def varies_ep_size(rows: Sequence[Row]) -> bool:
    """Whether some axis changes the number of ranks; presets of which several have one size are no such axis."""
    presets = {(row["num_ranks"], row.get("cell.topology")) for row in rows}
    sizes = {row["num_ranks"] for row in rows}
    return len(sizes) > 1 and (len(presets) == len(sizes) or "cell.topology" not in varying(rows))


def series(rows: Sequence[Row], x: str, axes: Sequence[str]) -> dict[Label, list[Row]]:
    """Rows that differ only in x, sorted by it, for each combination of values of the axes."""
    return {label: sorted(group, key=lambda row: row[x]) for label, group in grouped(rows, axes).items()}


def grouped(rows: Sequence[Row], axes: Sequence[str]) -> dict[Label, list[Row]]:
    """Rows, in their order, for each combination of values of the axes."""
    groups: dict[Label, list[Row]] = {}
    for row in rows:
        groups.setdefault(tuple((name, row.get(name)) for name in axes), []).append(row)
    return groups


def name_of(label: Label) -> str:
    """A series in words: values of planners and schemes by themselves, others with the name of their axis."""
    words = [str(v) if name in DECIDED else f"{short(name)}={shown(name, v)}" for name, v in label]
    return ", ".join(words) or "all"


def short(axis: str) -> str:
    """The last part of an axis' name."""
    return axis.rpartition(".")[2]


def shown(axis: str, value: Any) -> str:
    """A value with a unit that people read."""
    scale, unit = unit_of(axis)
    return f"{value / scale:.3g}{unit}" if isinstance(value, int | float) and unit else str(value)


def unit_of(axis: str) -> tuple[float, str]:
    """What to divide values of an axis by, and the unit they then have."""
    for ending, unit in (("bytes_per_s", (1e9, " GB/s")), ("flops_per_s", (1e12, " TFLOP/s")), ("_s", (1e-6, " us"))):
        if axis.endswith(ending):
            return unit
    return 1.0, ""


def bytes_of(row: Row) -> str:
    """The weights on the fullest rank, for a sentence."""
    memory = row["memory_bytes_per_rank"]
    return f"{memory / 1e9:.3g} GB" if memory >= 1e9 else f"{memory / 1e6:.3g} MB"


def tokens_per_s(row: Row) -> float:
    """Tokens a second that one GPU takes through the MoE layers."""
    return float(row["tokens_per_rank"] / (row["layer_time_s"] * row["num_layers"]))


def _is_scale(rows: Sequence[Row], axis: str) -> bool:
    values = [row.get(axis) for row in rows]
    return all(type(v) in (int, float) and 0 < v < math.inf for v in values)  # type: ignore[operator]


def sets_size(rows: Sequence[Row], axis: str) -> bool:
    """Whether an axis is one of those that set the number of ranks."""
    if axis.startswith("cell.topology"):
        by_value: Callable[[Row], str] = lambda row: repr(row.get(axis))  # noqa: E731
        sizes = {value: {row["num_ranks"] for row in rows if by_value(row) == value} for value in map(by_value, rows)}
        return len({tuple(sorted(s)) for s in sizes.values()}) > 1
    return False

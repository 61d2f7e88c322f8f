"""Numbers as people read them: one unit for all values of a column or an axis, chosen by the largest."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

WORDS = {
    "layer_time_s": "layer time",
    "layer_time_worst_layer_s": "worst layer",
    "cross_node_rows_per_token": "rows between nodes per token",
    "intra_node_rows_per_token": "rows inside nodes per token",
    "load_max_over_mean": "busiest rank's load / mean",
    "load_max_over_mean_worst_layer": "load / mean, worst layer",
    "load_max_over_mean_least": "load / mean, any plan at least",
    "speedup_over_linear": "speed over linear",
    "speedup_over_best_rival": "speed over best rival",
    "slots_used": "slots used",
    "plan_s": "planning time",
    "plan": "plan file",
}
"""Of fields whose name alone would not be read at once; others are their name with spaces."""
NO_UNITS = {"seed", "layer", "ep_size"}


@dataclass(frozen=True)
class Unit:
    """What to multiply a value of result.json by, how many decimals to show, and the unit it then has."""

    name: str = ""
    factor: float = 1.0
    decimals: int = 0

    def show(self, value: float) -> str:
        """The number without its unit; nothing is ever -0."""
        return f"{round(value * self.factor, self.decimals) + 0.0:,.{self.decimals}f}"

    def with_name(self, value: float) -> str:
        """The number and its unit."""
        return f"{self.show(value)} {self.name}".rstrip()


def words(field: str) -> str:
    """A field's name in words, without the unit that ends it."""
    if field in WORDS:
        return WORDS[field]
    name = field.removeprefix("cell.")
    for ending in ("_bytes_per_s", "_per_s"):
        if name.endswith(ending):
            return name.replace("_", " ")
    return name.removesuffix("_pct").removesuffix("_s").replace("_", " ")


def unit_of(field: str, values: Sequence[Any]) -> Unit:
    """The unit of a field's values, by how its name ends."""
    numbers = [abs(float(value)) for value in values if is_number(value)]
    most = max(numbers, default=0.0)
    if field.endswith("_pct"):
        return Unit("%", 1, 1)
    if field.endswith(("_bytes_per_rank", "_bytes")):
        return _scaled(most, (("GB", 1e-9), ("MB", 1e-6), ("kB", 1e-3), ("B", 1.0)))
    if field.endswith("_s") and not field.endswith("_per_s"):
        return seconds(most)
    if all(type(value) is int for value in values if is_number(value)) or field in NO_UNITS:
        return Unit()
    return Unit("", 1.0, _decimals(most))


def seconds(most: float) -> Unit:
    """For times up to so many seconds."""
    return _scaled(most, (("s", 1.0), ("ms", 1e3), ("µs", 1e6)))


def is_number(value: Any) -> bool:
    """Whether a value of result.json is a finite number."""
    return type(value) in (int, float) and abs(value) < 1e300  # nan compares false


def _scaled(most: float, units: Sequence[tuple[str, float]]) -> Unit:
    name, factor = next(((name, factor) for name, factor in units if most * factor >= 0.8), units[-1])
    return Unit(name, factor, _decimals(most * factor))


def _decimals(most: float) -> int:
    """So many that the largest value shows four digits, and none less than one hundredth is lost above 1000."""
    return 3 if most <= 0 else int(min(max(3 - math.floor(math.log10(most)), 0), 6))

"""What the rows of `bench_planners` come to: geometric means of the best rival, and GRACE, over the joint planner."""

from collections.abc import Callable, Sequence

import numpy as np
from rich.table import Table

from analysis.report import console
from analysis.results import Row

OURS, WITH_HOMES, NO_RIVALS = "joint", "joint_with_homes", ("joint", "joint_with_homes", "grace")
"""GRACE at its own appetite has more memory than the others and is no rival; grace_trimmed is."""


def print_summary(rows: Sequence[Row]) -> None:
    """One line per group of cells: best rival / ours, GRACE / ours, the worst cell, and with homes as a decision."""
    table = Table("cells", "number", "best rival / joint", "worst", "GRACE / joint", "with homes", "worst", box=None)
    for title, chosen in GROUPS.items():
        ratios = [cell_ratios(cell) for cell in _cells(rows) if chosen(cell[0])]
        if ratios:
            best, grace, homes = (np.array(column) for column in zip(*ratios, strict=True))
            means = (f"{np.exp(np.nanmean(np.log(column))):.3f}" for column in (best, grace, homes))
            mean_best, mean_grace, mean_homes = means
            table.add_row(
                title,
                str(len(ratios)),
                mean_best,
                f"{best.min():.3f}",
                mean_grace,
                mean_homes,
                f"{np.nanmin(homes):.3f}",
            )
    console().print(table)


def cell_ratios(cell: Sequence[Row]) -> tuple[float, float, float]:
    """Held-out layer time of the best rival, and of GRACE at the budget, over ours; the same with homes as decision.

    There it is seconds per token of the rival that is best at evenly dealt homes: evenness alone is no gain of ours.
    """
    by_name = {row["planner"]: row for row in cell if "error" not in row}
    rivals = [row for name, row in by_name.items() if name not in NO_RIVALS]
    best = min(rivals, key=lambda row: row["layer_time_s"])
    ours = by_name[OURS]["layer_time_s"]
    with_homes = by_name[WITH_HOMES]["layer_s_per_token"] if WITH_HOMES in by_name else np.nan
    grace = by_name["grace_trimmed"]["layer_time_s"] if "grace_trimmed" in by_name else np.nan
    even = min(float(row.get("even_homes_s_per_token", np.nan)) for row in rivals)
    return best["layer_time_s"] / ours, grace / ours, even / with_homes


def _cells(rows: Sequence[Row]) -> list[list[Row]]:
    found: dict[tuple[str, ...], list[Row]] = {}
    for row in rows:
        found.setdefault(tuple(row[key] for key in ("model", "topology", "phase", "budget")), []).append(row)
    return list(found.values())


def _where(field: str, value: str) -> Callable[[Row], bool]:
    return lambda row: row[field] == value


GROUPS: dict[str, Callable[[Row], bool]] = {
    "all": lambda _: True,
    "slots = E": _where("budget", "E"),
    "with replicas": lambda row: row["budget"] != "E",
    "prefill": _where("phase", "prefill"),
    "decode": _where("phase", "decode"),
    **{
        name: _where("topology", name)
        for name in (
            "a100_25gbe_2x2",
            "a100_25gbe_2x4",
            "h100_ib_1x8",
            "h100_ib_2x8",
            "h100_ib_4x8",
            "h100_ib_8x8",
        )
    },
    **{name: _where("model", name) for name in ("deepseek_v2_lite", "gpt_oss_20b", "sample", "deepseek_v3")},
}

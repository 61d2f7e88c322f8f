"""What the rows of `bench_planners` come to: geometric means of the best rival, and GRACE, over the joint planner."""

from collections.abc import Callable, Sequence

import numpy as np
from rich.table import Table

from analysis.report import console
from analysis.results import Row

OURS, WITH_HOMES, DEALT, DEALT_WITH_HOMES = "joint", "joint_with_homes", "joint_dealt", "joint_dealt_with_homes"
RATIOS = ("rival / joint", "GRACE / joint", "dealt", "homes", "dealt, homes")
NO_RIVALS = (OURS, WITH_HOMES, DEALT, DEALT_WITH_HOMES, "grace")
"""GRACE at its own appetite has more memory than the others and is no rival; grace_trimmed is."""


def print_summary(rows: Sequence[Row]) -> None:
    """One line per group of cells: means and worst cells of the ratios of `cell_ratios`."""
    table = Table("cells", "number", *(title for name in RATIOS for title in (name, "worst")), box=None)
    for title, chosen in GROUPS.items():
        cells = [cell_ratios(cell) for cell in _cells(rows) if chosen(cell[0])]
        if cells:
            shown = [text for name in RATIOS for text in _mean_and_worst([ratios[name] for ratios in cells])]
            table.add_row(title, str(len(cells)), *shown)
    console().print(table)


def _mean_and_worst(ratios: Sequence[float]) -> tuple[str, str]:
    """Geometric mean and least of those that there are."""
    known = np.array([ratio for ratio in ratios if not np.isnan(ratio)])
    return (f"{np.exp(np.log(known).mean()):.3f}", f"{known.min():.3f}") if len(known) else ("", "")


def cell_ratios(cell: Sequence[Row]) -> dict[str, float]:
    """Held-out layer time of the best rival, and of GRACE at the budget, over ours; the same with slots dealt to
    layers, where there are more than every layer needs, and with homes as decision.

    With homes it is seconds per token of the rival that is best at evenly dealt homes: evenness alone is no gain of
    ours.
    """
    by_name = {row["planner"]: row for row in cell if "error" not in row}
    rivals = [row for name, row in by_name.items() if name not in NO_RIVALS]
    best = min(rivals, key=lambda row: row["layer_time_s"])
    even = min(float(row.get("even_homes_s_per_token", np.nan)) for row in rivals)

    def time_of(name: str, field: str = "layer_time_s") -> float:
        if cell[0]["budget"] == "E":
            name = {DEALT: OURS, DEALT_WITH_HOMES: WITH_HOMES}.get(name, name)
        return float(by_name[name][field]) if name in by_name else float("nan")

    found = (
        best["layer_time_s"] / time_of(OURS),
        time_of("grace_trimmed") / time_of(OURS),
        best["layer_time_s"] / time_of(DEALT),
        even / time_of(WITH_HOMES, "layer_s_per_token"),
        even / time_of(DEALT_WITH_HOMES, "layer_s_per_token"),
    )
    return dict(zip(RATIOS, found, strict=True))


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

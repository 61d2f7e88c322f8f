"""The ablation of the GRACE-MoE paper, step by step, beside the paper's own figures (arXiv 2509.25041)."""

import dataclasses
from collections.abc import Sequence
from typing import Any

from rich.table import Table

from analysis.parts import problems, solve, with_wanted_slots
from analysis.report import console
from analysis.results import Row, describe, price, require_writable, write_result
from grace_opt.cost import CostModel
from grace_opt.homes import Homes
from grace_opt.model import MoEModel
from grace_opt.plan_file import write_plan
from grace_opt.solution import Planner
from grace_opt.split import Split
from grace_opt.topology import Topology
from grace_opt.trace import Trace

QUANTITIES = ("all-to-all time", "cross-node traffic", "intra-node traffic", "GPU idle time", "std of GPU load")

# Step, planner, scheme, and the paper's change against Occult in percent, mean of its three models (QUANTITIES).
STEPS: tuple[tuple[str, str, str, tuple[float, ...] | None], ...] = (
    ("Occult", "occult", "flat", (0.0, 0.0, 0.0, 0.0, 0.0)),
    ("Occult + HSC", "occult", "hierarchical", (-35.2, -35.6, 100.0, -49.9, 0.0)),
    ("HG + HSC", "hg", "hierarchical", (-48.3, -50.7, 47.0, -4.8, 90.0)),
    ("+ FR + WRR", "hg_fr_wrr", "hierarchical", (-44.5, -41.6, 76.0, -6.2, 51.0)),
    ("+ DR + WRR", "hg_dr_wrr", "hierarchical", (-44.9, -41.8, 78.0, -26.9, 32.0)),
    ("+ DR + TAR", "hg_dr_tar", "hierarchical", (-50.6, -52.1, 57.0, -25.7, 39.0)),
    ("  W_p as printed", "hg_dr_tar_as_printed", "hierarchical", None),
)


def grace_ablation(
    model: MoEModel,
    topology: Topology,
    trace: Trace,
    split: Split,
    homes: Homes,
    cost: CostModel,
    steps: dict[str, Planner],
    output: str,
    slots_per_rank: int | Sequence[int] | None = None,
) -> list[Row]:
    """Fit every step on the fit part, price it held out, and print its change against Occult beside the paper's.

    Raises:
        ValueError: bad input, or a step that does not fit into the slots.
    """
    parts = problems(model, topology, trace, split, homes, slots_per_rank)
    if slots_per_rank is None:
        parts = with_wanted_slots(parts, steps.values())
    folder = require_writable(output)
    solutions = {name: solve(planner, parts["fit"]) for name, planner in steps.items()}
    for name, solution in solutions.items():
        write_plan(folder / "plans" / f"{name}.json", solution.plan)
    about = {**describe(parts["fit"], parts, cost, split, homes), "scheme": [scheme for _, _, scheme, _ in STEPS]}
    rows: list[Row] = []
    for step, name, scheme, paper in STEPS:
        priced = dataclasses.replace(cost, scheme=scheme)  # type: ignore[type-var]
        row = price(name, type(steps[name]).__name__, "held_out", parts["held_out"], solutions[name], priced)
        rows.append({**row, "step": step.strip(), **_changes(row, rows[0] if rows else row, paper)})
        write_result(folder, "grace_ablation", about, rows, complete=False)
    write_result(folder, "grace_ablation", about, rows)
    _print(about, rows)
    print(f"\nwrote {folder}/result.json and {len(solutions)} plans in plans/")
    return rows


def _changes(row: Row, occult: Row, paper: tuple[float, ...] | None) -> dict[str, float | None]:
    """Percent against Occult, ours and the paper's, one pair of fields for each quantity."""

    def quantities(r: Row) -> tuple[float, ...]:
        return (
            r["dispatch_s"] + r["combine_s"],
            r["cross_node_rows_per_token"],
            r["intra_node_rows_per_token"],
            r["idle_s"],
            r["load_std_over_mean"],
        )

    changes: dict[str, float | None] = {}
    for index, (ours, reference) in enumerate(zip(quantities(row), quantities(occult), strict=True)):
        field = QUANTITIES[index].replace(" ", "_").replace("-", "_").lower()
        changes[f"{field}_pct"] = 100 * (ours / reference - 1) if reference else None
        changes[f"{field}_paper_pct"] = paper[index] if paper else None
    return changes


def _print(about: dict[str, Any], rows: list[Row]) -> None:
    out = console()
    out.print(
        f"GRACE ablation: {about['model']} on {about['topology']}, held out, "
        f"batches of {rows[0]['tokens_per_rank']:.0f} tokens per rank ({about['tokens_per_rank']} asked for)\n"
        "change against Occult (flat); in brackets the paper's mean of three models\n",
        highlight=False,
        markup=False,
    )
    table = Table("step", box=None, pad_edge=False, padding=(0, 2))
    for quantity in QUANTITIES:
        table.add_column(quantity, justify="right", no_wrap=True)
    table.add_column("slots per rank", justify="right")
    for row in rows:
        cells = []
        for quantity in QUANTITIES:
            field = quantity.replace(" ", "_").replace("-", "_").lower()
            ours, paper = row[f"{field}_pct"], row[f"{field}_paper_pct"]
            cells.append(("-" if ours is None else f"{ours:+.1f} %") + ("" if paper is None else f" ({paper:+.1f})"))
        table.add_row(row["step"], *cells, str(row["slots_per_rank_used"]))
    out.print(table)

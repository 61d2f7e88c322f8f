"""`grace-opt front`: rows between nodes, the busiest rank and memory traded against each other, as a Pareto front.

At every memory budget the joint planner plans for the predicted time and for each weight between rows and load (see
`rows_and_load`), and every published planner plans too, all on the fit part. Each plan is a point, measured on the
held-out part by exact counts. A point is on the front if no other is as good in all three and better in one.

Points that are done are files in OUTPUT/points, so the same command goes on where one stopped, and one with further
budgets or weights plans only what is new.
"""

import dataclasses
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.csv
from rich.console import Console
from rich.markup import escape
from rich.progress import track
from rich.table import Table

from analysis.front_figure import front_figure, kind_of_rows
from analysis.front_points import Point, ctrl_c_counted, digest_of
from analysis.parts import fitting, problems, with_wanted_slots
from analysis.report import console
from analysis.results import Row, describe, require_writable, write_result
from analysis.rows_and_load import RowsAndLoad
from analysis.study_look import save
from analysis.study_table import table_of
from grace_opt.atomic import write_atomically
from grace_opt.cost import CostModel
from grace_opt.homes import Homes
from grace_opt.model import MoEModel
from grace_opt.planners.joint import Joint
from grace_opt.problem import Problem, smallest_slots
from grace_opt.solution import Planner
from grace_opt.split import Split
from grace_opt.topology import Topology
from grace_opt.trace import Trace

MORE_EXPERTS = 1.25
"""The middle one of the budgets by default, as copies of all experts over experts; the first is 1."""
Parts = dict[str, Problem]


def front(
    model: MoEModel,
    topology: Topology,
    trace: Trace,
    split: Split,
    homes: Homes,
    cost: CostModel,
    planners: dict[str, Planner],
    joint: Joint,
    output: str,
    weights: Sequence[float] = (0.3, 0.5, 0.7, 0.9),
    slots_per_rank: Sequence[int] | None = None,
    figures: bool = True,
) -> list[Row]:
    """Plan all points, write result.json, front.csv, the plans and the figure, print a table.

    Args:
        planners: the published ones; one that cannot plan within a budget becomes a row with its error.
        joint: searches every point of its own: once for its own cost, once for each weight.
        weights: of rows against load, from 0 (load alone) to 1 (rows alone).
        slots_per_rank: memory budgets, each for all ranks; None: every expert once, MORE_EXPERTS times, and as many
            as the planner that asks for most.

    Raises:
        ValueError: bad input, or no planner found a plan.
        KeyboardInterrupt: with how many points are done; the result has those.
    """
    _check(planners, weights)
    budgets = _budgets(problems(model, topology, trace, split, homes, None), planners, slots_per_rank)
    folder = require_writable(output)
    parts = budgets[0]
    about = describe(parts["fit"], parts, cost, split, homes)
    about |= {"slots_per_rank": [_slots(parts) for parts in budgets], "weights": list(weights)}
    points = [point for parts in budgets for point in _points(parts, planners, joint, cost, weights)]
    rows: list[Row] = []
    progress = Console(stderr=True)
    with ctrl_c_counted() as pressed:
        try:
            for point in track(points, "planning", console=progress, disable=not progress.is_terminal):
                rows.append(point.row(folder, cost))
                if pressed:  # a search that was stopped keeps its best, but is not what was asked for
                    rows.pop()
                    point.forget(folder)
                    raise KeyboardInterrupt
                _write(folder, about, rows, complete=False)
        except KeyboardInterrupt:
            done = f"{len(rows)} of {len(points)} points are in {folder}"
            raise KeyboardInterrupt(f"{done}; the same command continues") from None
    if all("error" in row for row in rows):
        raise ValueError(f"no planner found a plan; {rows[0]['planner']}: {rows[0]['error']}")
    rows = _write(folder, about, rows, complete=True)
    priced = [row for row in rows if "error" not in row]
    _print(about, rows)
    if figures:
        save(folder / "figures" / "front", front_figure(about, priced))
    drawn = ", figures/front.png and .svg" if figures else ""
    print(f"\nwrote {folder}/result.json, front.csv, {len(priced)} plans in plans/{drawn}")
    return rows


def with_fronts(rows: Sequence[Row]) -> list[Row]:
    """The rows with `on_front`, among all, and `on_front_of_budget`, among those of equal slots_per_rank."""
    priced = [row for row in rows if "error" not in row]

    def marked(row: Row) -> Row:
        alike = [other for other in priced if other["slots_per_rank"] == row["slots_per_rank"]]
        two = ("rows_per_token", "load_max_over_mean")
        marks = {"on_front": _is_best(row, priced, (*two, "memory_bytes_per_rank"))}
        return {**row, **marks, "on_front_of_budget": _is_best(row, alike, two)}

    return [row if "error" in row else marked(row) for row in rows]


def _is_best(row: Row, rows: Sequence[Row], fields: Sequence[str]) -> bool:
    """Whether no row is at most as large in all fields and smaller in one."""
    return not any(
        all(other[field] <= row[field] for field in fields) and any(other[field] < row[field] for field in fields)
        for other in rows
    )


def _check(planners: dict[str, Planner], weights: Sequence[float]) -> None:
    if wrong := [weight for weight in weights if not 0 <= weight <= 1]:
        raise ValueError(f"weights must be from 0 (load alone) to 1 (rows alone), got {wrong[0]}")
    if len(set(weights)) < len(weights):
        raise ValueError(f"weights must differ, got {list(weights)}")
    for name, planner in planners.items():
        if not callable(planner):
            raise ValueError(f"planners.{name} must be a planner, got {planner!r}")


def _budgets(parts: Parts, planners: dict[str, Planner], asked: Sequence[int] | None) -> list[Parts]:
    """The parts with each budget, the smallest first."""
    if asked is not None:
        if not asked or len(set(asked)) < len(asked):
            raise ValueError(f"slots_per_rank must list different numbers, or be null, got {list(asked)}")
        return [_with_slots(parts, slots) for slots in sorted(asked)]
    fit = parts["fit"]
    least = smallest_slots(fit.model, fit.topology)
    more = -(-int(fit.model.num_experts * MORE_EXPERTS) // fit.topology.num_ranks)
    with Console(stderr=True).status("asking planners how many slots they want"):
        most = _slots(with_wanted_slots(parts, planners.values()))
    budgets = [_with_slots(parts, fitting(slots, fit.model, fit.topology)) for slots in (least, more, most)]
    return [budget for _, budget in sorted({_slots(budget): budget for budget in budgets}.items())]


def _with_slots(parts: Parts, slots: int | list[int]) -> Parts:
    return {name: dataclasses.replace(part, slots=slots) for name, part in parts.items()}


def _slots(parts: Parts) -> int:
    return int(parts["fit"].slots_per_rank.max())


def _points(
    parts: Parts, planners: dict[str, Planner], joint: Joint, cost: CostModel, weights: Sequence[float]
) -> Iterator[Point]:
    """The points of one budget: published planners first, they take least."""
    digest = digest_of(parts, cost)
    for name, planner in planners.items():
        yield Point(name, None, planner, parts, digest)
    yield Point("joint", None, joint, parts, digest)
    load_alone = RowsAndLoad.of(parts["fit"], cost, weight=0.0)  # counts traffic: once for all weights
    for weight in weights:
        weighed = dataclasses.replace(joint, cost=dataclasses.replace(load_alone, weight=weight))
        yield Point("joint", weight, weighed, parts, digest)


def _write(folder: Path, about: dict[str, Any], rows: Sequence[Row], complete: bool) -> list[Row]:
    """Mark what is on the fronts, and write that."""
    marked = with_fronts(rows)
    write_result(folder, "front", about, marked, complete)
    write_atomically(folder / "front.csv", lambda path: pa.csv.write_csv(table_of(marked), path))
    return marked


def _print(about: dict[str, Any], rows: Sequence[Row]) -> None:
    """A table, budget by budget, the points of its front in bold and those of the front of all with a mark."""
    out = console()
    kind = "SYNTHETIC trace" if about["synthetic"] else "trace"
    assumed = f"\nASSUMED: {about['assumed']}" if about["assumed"] else ""
    head = f"{about['model']} on {about['topology']}, {about['scheme']} scheme\n{kind}: {about['trace']}{assumed}"
    out.print(f"{head}\nheld out, mean over layers; rows are those of dispatch\n", highlight=False, markup=False)
    table = Table(box=None, pad_edge=False, padding=(0, 1))
    table.add_column("slots\nper rank", justify="right")
    table.add_column("planner", no_wrap=True)
    titles = ["weight\nof rows", f"{kind_of_rows(about)}\nrows/token", "load\nmax/mean", "memory\nMB/rank", "layer\nms"]
    for title in titles:
        table.add_column(title, justify="right", no_wrap=True)
    table.add_column("on the\nfront")
    for slots in about["slots_per_rank"]:
        own = [row for row in rows if row["slots_per_rank"] == slots and "error" not in row]
        for row in sorted(own, key=lambda row: float(row["rows_per_token"])):
            table.add_row(
                str(slots),
                escape(row["planner"]),
                "" if row["weight"] is None else f"{row['weight']:g}",
                f"{row['rows_per_token']:.3f}",
                f"{row['load_max_over_mean']:.3f}",
                f"{row['memory_bytes_per_rank'] / 1e6:,.1f}",
                f"{row['layer_time_s'] * 1e3:.3f}",
                "*" if row["on_front"] else "",
                style="bold" if row["on_front_of_budget"] else None,
            )
        table.add_section()
    out.print(table)
    out.print("bold: on the front of its budget; *: on the front of all three, over all budgets", highlight=False)
    for row in rows:
        if "error" in row:
            text = f"{row['planner']} at {row['slots_per_rank']} slots per rank: no plan: {row['error']}"
            out.print(text, style="yellow", highlight=False, markup=False)

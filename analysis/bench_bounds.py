"""`make bench-bounds`: how far plans are from the best there can be, by certified lower bounds.

All of it is about the held-out part under its own homes, some layers of each model, two questions a cell:

    what is left to win   the fastest rival and the joint planner, both fitted to the other half as ever, against the
                          bound: no planner whatever could be further ahead of that rival than `rival_over_bound`
    how tight is that     plans of the joint planner fitted to this very part and its homes, one for the least time, one
                          for the fewest rows, against the bounds: `gap` of the layer time; medians over layers for
                          rows between nodes (on one node, between ranks) and for each batch's busiest sender

Cells are written to outputs/bench-bounds/result.json as they are done, and a second run goes on where one stopped;
`analysis/results/bounds.csv` keeps the rows of whole runs.
"""

import argparse
import time
import warnings
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from scipy.stats import gmean

from analysis.bench_cells import (
    BUDGETS,
    LARGE,
    PHASES,
    BuiltCell,
    Cell,
    build_cell,
    cell_parser,
    fill_cells,
    models_recorded,
)
from analysis.bench_planners import RIVALS
from analysis.certify import median_gap
from analysis.parts import solve
from analysis.results import Row
from analysis.rows_and_load import RowsAndLoad, rows
from grace_opt.bounds.certificate import counted_bounds, lower_bounds
from grace_opt.plan import Plan
from grace_opt.problem import Problem
from grace_opt.provenance import append_rows, provenance
from grace_opt.solution import Planner
from grace_opt.traffic import traffic
from simulator.cluster import SimulatedCluster

RESULTS = Path(__file__).parent / "results" / "bounds.csv"
OUTPUT = Path("outputs/bench-bounds")
TOPOLOGIES = ("a100_25gbe_2x4", "h100_ib_1x8", "h100_ib_2x8", "h100_ib_4x8")
LARGE_TOPOLOGY = "h100_ib_2x8"


def main(arguments: list[str] | None = None) -> None:
    """Fill the cells that are missing, print and append the rows."""
    parser = cell_parser("python -m analysis.bench_bounds", __doc__)
    parser.add_argument("--layers", type=int, default=3, help="of each model, evenly spaced (%(default)s)")
    parser.add_argument("--seconds", type=float, default=60, help="of bounds per layer (%(default)s)")
    parser.add_argument("--plan-seconds", type=float, default=30, help="of planning on the other half (%(default)s)")
    parser.add_argument("--part-seconds", type=float, default=10, help="of each plan for the part itself (%(default)s)")
    options = parser.parse_args(arguments)
    if options.layers < 1:
        parser.error(f"--layers must be at least 1, got {options.layers}")
    about = {"layers": options.layers}
    cells = all_cells(options.traces)
    all_rows, new = fill_cells(
        OUTPUT,
        "bench-bounds",
        about,
        cells,
        options.only,
        lambda cell, known: [] if known else [measure_cell(options, cell)],
    )
    for row in new:
        print("  ".join(f"{key}={value}" for key, value in row.items()))
    append_rows(RESULTS, [{**row, **provenance()} for row in new])
    ahead, most = (gmean([row[key] for row in all_rows]) for key in ("rival_over_joint", "rival_over_bound"))
    print(f"{len(all_rows)} cells: the best rival over joint {ahead:.3f}; no plan could reach more than {most:.3f}")


def all_cells(folder: Path) -> list[Cell]:
    """All cells whose trace is there."""
    pairs = [(model, topology) for model in models_recorded(folder) for topology in TOPOLOGIES]
    pairs.append((LARGE, LARGE_TOPOLOGY))
    return [(model, topology, phase, budget) for model, topology in pairs for phase in PHASES for budget in BUDGETS[:2]]


def measure_cell(options: argparse.Namespace, cell: Cell) -> Row:
    """Plan and bound one cell."""
    made = build_cell(options.traces, cell, [f"planners.joint.time_limit_s={options.plan_seconds}"])
    assert made is not None  # E and E + 1 are never another budget's
    cost: SimulatedCluster = made.built["cost"]
    whole = made.parts["held_out"]
    layers = spaced(whole.model.num_layers, options.layers)
    part = only_layers(whole, layers)
    rival, rival_s, joint_s = fitted_elsewhere(made, layers)
    plans = fitted_here(made, part, options.part_seconds)
    sending = cost.sending(part.topology)
    counts = [traffic(part.trace, plan, sending.tokens_per_rank) for plan in plans]
    rows_L = np.min([rows(of_plan, cost.scheme).sum(axis=1) for of_plan in counts], axis=0)
    busiest_L = np.min([sending.busiest_rows(of_plan) for of_plan in counts], axis=0)
    across, began = part.topology.num_nodes > 1, time.perf_counter()
    bounds = lower_bounds(
        part, options.seconds, sending=sending, rows_of_plan=rows_L.tolist() if across else None,
        busiest_of_plan=busiest_L.tolist(),
    )  # fmt: skip
    layer_s, bound_s = cost(part, plans[0]).mean_s, cost.least_time(part, bounds).mean_s
    return {
        **made.about,
        "scheme": cost.scheme,
        "split": "held_out",
        "layers": " ".join(map(str, layers)),
        "bound_seconds": options.seconds,
        "bound_s": bound_s,
        "layer_time_s": layer_s,
        "gap": layer_s / bound_s - 1,
        "gap_by_counting": layer_s / cost.least_time(part, counted_bounds(part)).mean_s - 1,
        "rows_gap": median_gap(rows_L, bounds.cross_node_rows if across else bounds.intra_node_rows),
        "busiest_gap": median_gap(busiest_L, bounds.busiest_sender_rows),
        "rival": rival,
        "rival_over_joint": rival_s / joint_s,
        "rival_over_bound": rival_s / bound_s,
        "plan_seconds": options.plan_seconds,
        "part_seconds": options.part_seconds,
        "bounding_s": time.perf_counter() - began,
        "seed": 0,
    }


def fitted_elsewhere(made: BuiltCell, layers: Sequence[int]) -> tuple[str, float, float]:
    """The fastest rival, and seconds of a mean layer of these under its plan and under the joint planner's."""
    seconds = {}
    for name in (*RIVALS, "joint"):
        try:
            plan = planned(made.built["planners"][name], made.parts["fit"])
        except ValueError:  # not within these slots
            continue
        seconds[name] = float(made.built["cost"](made.parts["held_out"], plan).layer_s[list(layers)].mean())
    joint_s = seconds.pop("joint")
    rival = min(seconds, key=seconds.__getitem__)
    return rival, seconds[rival], joint_s


def fitted_here(made: BuiltCell, part: Problem, seconds: float) -> list[Plan]:
    """Plans for the very homes of a part: one for the least time, one for the fewest rows."""
    cost: SimulatedCluster = made.built["cost"]
    joint = replace(made.built["planners"]["joint"], homes="known", time_limit_s=seconds, trials=10**6)
    return [planned(replace(joint, cost=of), part) for of in (cost, RowsAndLoad.of(part, cost, weight=1.0))]


def planned(planner: Planner, problem: Problem) -> Plan:
    """A plan, without what the planner warns of."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return solve(planner, problem).plan


def spaced(num_layers: int, wanted: int) -> list[int]:
    """Layers in the middle of as many equal stretches of the model."""
    wanted = min(wanted, num_layers)
    return [(2 * i + 1) * num_layers // (2 * wanted) for i in range(wanted)]


def only_layers(problem: Problem, layers: Sequence[int]) -> Problem:
    """The problem of some layers."""
    trace = replace(problem.trace, expert_ids=problem.trace.expert_ids[list(layers)])
    return replace(problem, model=replace(problem.model, num_layers=len(layers)), trace=trace)


if __name__ == "__main__":
    main()

"""`make bench-planners`: every planner over traces, clusters, phases and budgets, judged held out on many homes.

A plan is fitted once per cell. It is priced on the held-out part under seeded random homes, each map with its mirror
(nodes in reverse order), the same maps for every planner; a row gives the mean and the spread over them. Rows of the
joint planner with homes as its own decision are apart: there requests arrive in as many seeded orders and the plan's
rule deals them; every other plan is priced on these orders too, each request on the rank with the fewest tokens so far.
Rows `joint_dealt` are of the same memory over all layers, whose slots the planner deals to layers.
Random homes are cut into more batches than even ones, so only seconds per token compare across both.

Cells are written to outputs/bench-planners/result.json as they are done, and a second run goes on where one stopped
(`--again NAME ...` measures rows of these planners anew, beside those of the others);
`analysis/results/planners.csv` keeps the rows of whole runs.
"""

import argparse
import dataclasses
import time
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

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
from analysis.bench_planners_table import print_summary
from analysis.parts import solve
from analysis.results import Row, price
from grace_opt.homes import Balanced
from grace_opt.planners.home_choice import arrivals, dealt_in_orders, layer_s_per_token
from grace_opt.planners.home_scenarios import home_maps
from grace_opt.problem import Problem
from grace_opt.provenance import append_rows, provenance
from grace_opt.solution import Planner, Solution
from simulator.cluster import SimulatedCluster

RESULTS = Path(__file__).parent / "results" / "planners.csv"
OUTPUT = Path("outputs/bench-planners")
TOPOLOGIES = ("a100_25gbe_2x2", "a100_25gbe_2x4", "h100_ib_1x8", "h100_ib_2x8", "h100_ib_4x8")
LARGE_TOPOLOGY = "h100_ib_8x8"
RIVALS = (
    "linear", "round_robin", "eplb", "eplb_hierarchical", "occult", "grace_trimmed", "grace_plus", "moetuner",
    "exflow", "topology_ilp", "lazarus", "lplb",
)  # fmt: skip
ALIKE = (*RIVALS, "joint", "joint_with_homes", "grace")
"""Rows of every cell."""
DEALT = ("joint_dealt", "joint_dealt_with_homes")
"""Rows of cells with more slots than every expert once needs: with fewer all layers need all of theirs."""


def main(arguments: list[str] | None = None) -> None:
    """Fill the cells that are missing, print the summary, append the rows."""
    parser = cell_parser("python -m analysis.bench_planners", __doc__)
    parser.add_argument("--maps", type=int, default=16, help="seeded home maps, each with its mirror (%(default)s)")
    parser.add_argument("--seconds", type=float, default=60, help="time limit of the joint planner (%(default)s)")
    parser.add_argument("--rival-seconds", type=float, default=20, help="of planners that have one (%(default)s)")
    parser.add_argument(
        "--again", nargs="*", default=[], choices=(*ALIKE, *DEALT), metavar="PLANNER", help="rows to measure anew"
    )
    options = parser.parse_args(arguments)
    about, cells = {"maps": options.maps}, all_cells(options.traces)
    rows, new = fill_cells(
        OUTPUT, "bench-planners", about, cells, options.only,
        lambda cell, known: measure_cell(options, cell, known), options.again,
    )  # fmt: skip
    fields = dict.fromkeys(field for row in rows for field in row)
    append_rows(RESULTS, [{**{field: row.get(field, "") for field in fields}, **provenance()} for row in new])
    print_summary(rows)


def all_cells(folder: Path) -> list[Cell]:
    """All cells whose trace is there."""
    pairs = [(model, topology) for model in models_recorded(folder) for topology in TOPOLOGIES]
    pairs.append((LARGE, LARGE_TOPOLOGY))
    return [(model, topology, phase, budget) for model, topology in pairs for phase in PHASES for budget in BUDGETS]


def measure_cell(options: argparse.Namespace, cell: Cell, known: Sequence[Row] = ()) -> list[Row]:
    """One row per planner, but those known, for one model, cluster, phase and budget; none if the budget is another's
    in this cell."""
    names = {*ALIKE, *(DEALT if cell[3] != "E" else ())} - {row["planner"] for row in known}
    if not names:
        return []
    limits = {"joint": options.seconds, **dict.fromkeys(("moetuner", "exflow", "topology_ilp"), options.rival_seconds)}
    made = build_cell(
        options.traces, cell, [f"planners.{name}.time_limit_s={seconds}" for name, seconds in limits.items()]
    )
    if made is None:
        return []
    return [
        {**made.about, **judge(name, planner, parts, made.built["cost"], options.maps)}
        for name, (planner, parts) in contestants(made).items()
        if name in names
    ]


def contestants(made: BuiltCell) -> dict[str, tuple[Planner, dict[str, Problem]]]:
    """By the name of its row, each planner and the parts of the trace it plans and is judged on."""
    planners, parts = made.built["planners"], made.parts
    chooses = dataclasses.replace(planners["joint"], homes="chosen")
    appetite = planners["grace"].slots_wanted(parts["fit"])
    own = {name: dataclasses.replace(part, slots=appetite) for name, part in parts.items()}
    one_budget = {name: dataclasses.replace(part, dealt=True) for name, part in parts.items()}
    return {
        **{name: (planners[name], parts) for name in (*RIVALS, "joint")},
        "joint_with_homes": (chooses, parts),
        "grace": (planners["grace"], own),
        "joint_dealt": (planners["joint"], one_budget),
        "joint_dealt_with_homes": (chooses, one_budget),
    }


def judge(name: str, planner: Planner, parts: dict[str, Problem], cost: SimulatedCluster, num_maps: int) -> Row:
    """Plan once, price on every map of homes, under the cost's scheme and flat."""
    began = time.perf_counter()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            solution = solve(planner, parts["fit"])
        except ValueError as error:
            return {"planner": name, "error": str(error)}
    held_out = parts["held_out"]
    rows = [price(name, "", "held_out", part, solution, cost) for part in maps_for(solution, held_out, num_maps)]
    mean = {
        key: float(np.mean([row[key] for row in rows])) for key, value in rows[0].items() if isinstance(value, float)
    }
    times = np.array([row["layer_time_s"] for row in rows])
    fit = [cost(part, solution.plan).mean_s for part in maps_for(solution, parts["fit"], 2)]
    flat = dataclasses.replace(cost, scheme="flat")
    flat_s = [flat(part, solution.plan).mean_s for part in maps_for(solution, held_out, 2)]
    orders = [Balanced()(trace, held_out.topology.num_ranks) for trace in arrivals(held_out.trace, num_maps, 0)]
    even = [layer_s_per_token(held_out, cost, solution.plan, trace) for trace in orders]
    per_token = [row["layer_time_s"] / row["tokens_per_rank"] for row in rows]
    return {
        **{key: rows[0][key] for key in ("planner", "split", "scheme", "slots", "bound", "gap")},
        **mean,
        "layer_s_per_token": float(np.mean(per_token)),
        "even_homes_s_per_token": float(np.mean(even)),
        "layer_time_worst_map_s": float(times.max()),
        "layer_time_std_s": float(times.std()),
        "fit_layer_time_s": float(np.mean(fit)),
        "flat_layer_time_s": float(np.mean(flat_s)),
        "home_maps": len(times),
        "homes": "given" if solution.plan.homes is None else "chosen",
        "plan_s": solution.seconds,
        "cell_s": time.perf_counter() - began,
        "seed": 0,
    }


def maps_for(solution: Solution, problem: Problem, num_maps: int) -> Iterator[Problem]:
    """The problem under the home maps, or orders of arrival, on which a plan is judged."""
    traces: Sequence[Any]
    if solution.plan.homes is None:
        traces = home_maps(problem.trace, problem.topology, num_maps, 0)
    else:
        traces = dealt_in_orders(arrivals(problem.trace, num_maps, 0), solution.plan)
    for trace in traces:
        yield dataclasses.replace(problem, trace=trace)


if __name__ == "__main__":
    main()

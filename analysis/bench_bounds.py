"""`make bench-bounds`: how far the joint planner's plans are from the best there can be, by certified lower bounds.

Bounds speak of the part a plan was fitted to, on that part's own homes (planned for were random ones). Every n-th layer
of a model is planned for and bounded. `gap` is that of the layer time; `rows_gap` and `busiest_gap` are medians over
layers, of the rows between nodes and of those of each batch's busiest sender.

Cells are written to outputs/bench-bounds/result.json as they are done, and a second run goes on where one stopped;
`analysis/results/bounds.csv` keeps the rows of whole runs.
"""

import argparse
import time
from dataclasses import replace
from pathlib import Path

from analysis.bench_cells import BUDGETS, LARGE, PHASES, Cell, build_cell, cell_parser, fill_cells, models_recorded
from analysis.certify import certify
from analysis.parts import solve
from analysis.results import Row
from grace_opt.problem import Problem
from grace_opt.provenance import append_rows, provenance

RESULTS = Path(__file__).parent / "results" / "bounds.csv"
OUTPUT = Path("outputs/bench-bounds")
TOPOLOGIES = ("a100_25gbe_2x4", "h100_ib_1x8", "h100_ib_2x8", "h100_ib_4x8")
LARGE_TOPOLOGY = "h100_ib_2x8"
LARGE_EVERY = 4
"""So many times fewer layers of the large model."""


def main(arguments: list[str] | None = None) -> None:
    """Fill the cells that are missing, print and append the rows."""
    parser = cell_parser("python -m analysis.bench_bounds", __doc__)
    parser.add_argument("--every", type=int, default=4, help="every so many layers (%(default)s)")
    parser.add_argument("--seconds", type=float, default=60, help="of bounds per layer (%(default)s)")
    parser.add_argument("--plan-seconds", type=float, default=60, help="of planning, were it all layers (%(default)s)")
    options = parser.parse_args(arguments)
    if options.every < 1:
        parser.error(f"--every must be at least 1, got {options.every}")
    about = {"every": options.every}
    cells = all_cells(options.traces)
    _, new = fill_cells(OUTPUT, "bench-bounds", about, cells, options.only, lambda cell: [measure_cell(options, cell)])
    for row in new:
        print("  ".join(f"{key}={value}" for key, value in row.items()))
    append_rows(RESULTS, [{**row, **provenance()} for row in new])


def all_cells(folder: Path) -> list[Cell]:
    """All cells whose trace is there."""
    pairs = [(model, topology) for model in models_recorded(folder) if model != "sample" for topology in TOPOLOGIES]
    pairs.append((LARGE, LARGE_TOPOLOGY))
    return [(model, topology, phase, budget) for model, topology in pairs for phase in PHASES for budget in BUDGETS[:2]]


def measure_cell(options: argparse.Namespace, cell: Cell) -> Row:
    """Plan and bound one cell."""
    every = options.every * (LARGE_EVERY if cell[0] == LARGE else 1)
    made = build_cell(options.traces, cell, [])
    assert made is not None  # E and E + 1 are never another budget's
    cost = made.built["cost"]
    whole = made.parts["fit"]
    fit = every_layer(whole, every)
    seconds = options.plan_seconds * fit.model.num_layers / whole.model.num_layers
    solution = solve(replace(made.built["planners"]["joint"], time_limit_s=seconds), fit)
    counted = certify(solution, fit, cost, None).solution
    began = time.perf_counter()
    certificate = certify(solution, fit, cost, options.seconds)
    found = certificate.solution
    return {
        **made.about,
        "scheme": cost.scheme,
        "layers": fit.model.num_layers,
        "plan_limit_s": seconds,
        "bound_seconds": options.seconds,
        "layer_time_s": found.objective,
        "bound_s": found.bound,
        "gap": found.gap,
        "gap_by_counting": counted.gap,
        "rows_gap": certificate.median_gap,
        "busiest_gap": certificate.median_busiest_gap,
        "plan_s": solution.seconds,
        "bounding_s": time.perf_counter() - began,
        "seed": 0,
    }


def every_layer(problem: Problem, every: int) -> Problem:
    """The problem of layers 0, n, 2n and so on."""
    trace = replace(problem.trace, expert_ids=problem.trace.expert_ids[::every])
    return replace(problem, model=replace(problem.model, num_layers=trace.num_layers), trace=trace)


if __name__ == "__main__":
    main()

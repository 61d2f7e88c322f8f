"""`make bench`: the published planners on real traces, over clusters and budgets, judged held out on many homes.

A plan is fitted once per cell. It is priced on the held-out part under seeded random homes, each map with its mirror
(nodes in reverse order), the same maps for every planner; a row gives the mean and the spread over them. Rows go to
analysis/results/planners.csv, and the README's table is their summary.
"""

import argparse
import dataclasses
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from rich.progress import track
from rich.table import Table

from analysis.parts import problems, solve
from analysis.report import console
from grace_opt.configuration import build, read_configuration
from grace_opt.cost import CostModel
from grace_opt.homes import Random
from grace_opt.problem import Problem, smallest_slots
from grace_opt.provenance import append_rows, provenance
from grace_opt.solution import Planner
from grace_opt.topology import Topology
from grace_opt.trace import Trace

RESULTS = Path(__file__).parent / "results" / "planners.csv"
TRACES = {"deepseek_v2_lite": "deepseek-v2-lite.npz", "gpt_oss_20b": "gpt-oss-20b.npz"}
TOPOLOGIES = ("a100_25gbe_2x2", "a100_25gbe_2x4", "h100_ib_1x8", "h100_ib_2x8")
PLANNERS = ("linear", "round_robin", "eplb", "eplb_hierarchical", "occult", "grace_trimmed")
BUDGETS = ("E", "more")
NUM_MAPS = 16


def main(arguments: list[str] | None = None) -> None:
    """Fill all cells, print the summary, append the rows."""
    parser = argparse.ArgumentParser(prog="python -m analysis.bench_planners", description=__doc__)
    parser.add_argument("--traces", type=Path, default=Path("../shared/traces"), help="folder of traces (%(default)s)")
    folder = parser.parse_args(arguments).traces
    if not folder.is_dir():
        print(f"skipped: no real routing traces in {folder}; give --traces FOLDER")
        return
    cells = [(m, t, w, b) for m in TRACES for t in TOPOLOGIES for w in ("prefill", "decode") for b in BUDGETS]
    rows: list[dict[str, Any]] = []
    for cell in track(cells, "cells", console=None, disable=not console().is_terminal):
        rows += measure_cell(folder, *cell)
    append_rows(RESULTS, rows)
    print_summary(rows)


def measure_cell(folder: Path, model: str, topology: str, workload: str, budget: str) -> list[dict[str, Any]]:
    """One row per planner for one model, cluster, workload and budget."""
    overrides = [
        f"model={model}",
        f"topology={topology}",
        f"workload={workload}",
        f"trace.path={folder / TRACES[model]}",
    ]
    config = read_configuration("compare", overrides)
    built = {key: build(config[key]) for key in ("model", "topology", "trace", "split", "homes", "cost", "planners")}
    slots = smallest_slots(built["model"], built["topology"])
    if budget == "more":  # a quarter more, but at least one
        slots += max(1, round(slots / 4))
    parts = problems(built["model"], built["topology"], built["trace"], built["split"], built["homes"], slots)
    held_out = list(home_maps(parts["held_out"]))
    rows = []
    for name in PLANNERS:
        cell = {
            "trace": TRACES[model],
            "topology": topology,
            "phase": workload,
            "budget": budget,
            "slots_per_rank": slots,
            "slots_over_experts": slots * built["topology"].num_ranks / built["model"].num_experts,
        }
        rows.append({**cell, "planner": name, **judge(built["planners"][name], parts["fit"], held_out, built["cost"])})
    linear = rows[0]["layer_time_s"]
    return [{**row, "speedup_over_linear": linear / row["layer_time_s"], **provenance()} for row in rows]


def judge(planner: Planner, fit: Problem, held_out: list[Problem], cost: CostModel) -> dict[str, Any]:
    """Plan once, price on every map of homes."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        solution = solve(planner, fit)
    priced = [cost(problem, solution.plan) for problem in held_out]
    times = np.array([time.mean_s for time in priced])
    return {
        "split": "held_out",
        "scheme": cost.scheme,
        "layer_time_s": float(times.mean()),
        "layer_time_worst_map_s": float(times.max()),
        "layer_time_std_s": float(times.std()),
        "tokens_per_rank": float(np.mean([time.tokens_per_rank for time in priced])),
        "home_maps": len(times),
        "seed": 0,
        "plan_s": solution.seconds,
    }


def home_maps(problem: Problem) -> Iterator[Problem]:
    """The problem under NUM_MAPS seeded homes, each followed by its mirror unless there is one node only."""
    for seed in range(NUM_MAPS):
        trace = Random(seed)(problem.trace, problem.topology.num_ranks)
        yield dataclasses.replace(problem, trace=trace)
        if problem.topology.num_nodes > 1:
            yield dataclasses.replace(problem, trace=mirrored(trace, problem.topology))


def mirrored(trace: Trace, topology: Topology) -> Trace:
    """The same homes with the nodes in reverse order."""
    nodes = np.split(np.arange(topology.num_ranks), np.cumsum(topology.ranks_per_node)[:-1])
    return dataclasses.replace(trace, homes=np.concatenate(nodes[::-1])[trace.homes])


def print_summary(rows: list[dict[str, Any]]) -> None:
    """Speedup over linear by cluster and workload: geometric mean over traces and budgets, and the worst cell."""
    table = Table("cluster", "workload", box=None, pad_edge=False, padding=(0, 2))
    for planner in PLANNERS:
        table.add_column(planner.replace("_", "\n", 1), justify="right")
    for phase, topology in [(phase, topology) for phase in ("prefill", "decode") for topology in TOPOLOGIES]:
        cell = [row for row in rows if (row["topology"], row["phase"]) == (topology, phase)]
        table.add_row(topology, phase, *(f"{_mean(cell, planner):.2f}" for planner in PLANNERS))
    worst = [min(r["speedup_over_linear"] for r in rows if r["planner"] == planner) for planner in PLANNERS]
    table.add_section()
    table.add_row("all cells", "mean", *(f"{_mean(rows, planner):.2f}" for planner in PLANNERS))
    table.add_row("", "worst", *(f"{value:.2f}" for value in worst))
    console().print(table)


def _mean(rows: list[dict[str, Any]], planner: str) -> float:
    return float(np.exp(np.mean([np.log(row["speedup_over_linear"]) for row in rows if row["planner"] == planner])))


if __name__ == "__main__":
    main()

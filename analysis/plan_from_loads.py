"""`grace-opt plan` from a load history: placements by load, and the balance they bring; counts tell no more."""

import dataclasses
import re
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rich.markup import escape
from rich.table import Table

from analysis.parts import fitting, solve
from analysis.report import console
from analysis.results import Row, require_writable, write_result
from grace_opt.bounds.combinatorial import busiest_rank_load
from grace_opt.load_history import LoadHistory
from grace_opt.model import MoEModel
from grace_opt.plan import Plan
from grace_opt.plan_file import digest, write_plan
from grace_opt.planners.linear import Linear
from grace_opt.problem import LoadProblem, smallest_slots
from grace_opt.profile import expert_loads
from grace_opt.routing import schedules
from grace_opt.solution import Planner, Solution
from grace_opt.split import Alternate, Split
from grace_opt.topology import Topology

FROM_LOADS = ("eplb", "eplb_hierarchical", "lazarus", "linear", "lplb", "round_robin")
"""Choices of `planner` that need nothing but loads."""


def plan_from_loads(
    model: MoEModel,
    topology: Topology,
    history: LoadHistory,
    split: Split,
    planner: Planner,
    output: str,
    slots_per_rank: int | Sequence[int] | None,
    bound_seconds: float | None,
) -> list[Row]:
    """Plan on the even steps, tell the balance on even and odd ones; write plan.json and result.json.

    Raises:
        ValueError: the planner needs tokens, or something was asked for that only tokens tell.
    """
    if getattr(planner, "plans_from", "tokens") != "loads":
        name = re.sub(r"(?<=[a-z])(?=[A-Z])", "_", type(planner).__name__).lower()
        raise ValueError(
            f"planner {name} needs token-level routing, but the trace holds counts only "
            f"({history.source}): use planner={', '.join(FROM_LOADS[:-1])} or {FROM_LOADS[-1]}"
        )
    if not isinstance(split, Alternate):
        raise ValueError(f"{split} divides sequences, and counts have none: leave split=alternate, which divides steps")
    if bound_seconds is not None:
        raise ValueError("bound_seconds bounds what tokens travel, which counts do not tell: leave it null")
    slots = fitting(smallest_slots(model, topology), model, topology) if slots_per_rank is None else slots_per_rank
    parts = {name: LoadProblem(model, topology, part, slots) for name, part in _divide(history).items()}
    folder = require_writable(output)
    solution = solve(planner, parts["fit"])
    write_plan(folder / "plan.json", solution.plan)
    rows = _rows(solution, parts)
    if not isinstance(planner, Linear):
        rows += _rows(solve(Linear(), parts["fit"]), parts)
    about = _about(parts["fit"], history, parts)
    write_result(folder, "plan", about, rows)
    _print(about, rows)
    print(f"\nwrote {folder}/plan.json ({digest(solution.plan)[:19]}) and result.json")
    return rows


def rank_loads(plan: Plan, load_LE: NDArray[np.integer], node_of_rank: NDArray[np.integer]) -> NDArray[np.float64]:
    """[L, R] (token, expert) pairs that each rank serves, if every rank is home to equally many tokens of each expert.

    Example: experts of load 6 and 2, the first on ranks 0 and 1, the second on rank 1, under `uniform`: 3 and 5.
    """
    num_ranks = plan.placement.num_ranks
    load_LR = np.zeros((len(load_LE), num_ranks))
    for layer, load_E in enumerate(load_LE):
        tables = schedules(plan.placement, plan.routing, node_of_rank, layer)
        length_RE = tables.stop.astype(np.int64) - tables.start
        share_RE = load_E / num_ranks / length_RE
        for home in range(num_ranks):
            taken = np.repeat(tables.start[home].astype(np.int64) - np.cumsum(length_RE[home]) + length_RE[home],
                              length_RE[home]) + np.arange(length_RE[home].sum())  # fmt: skip
            rank = tables.schedule[taken] // plan.placement.slots.shape[2]
            load_LR[layer] += np.bincount(rank, np.repeat(share_RE[home], length_RE[home]), num_ranks)
    return load_LR


def _divide(history: LoadHistory) -> dict[str, LoadHistory]:
    """Even steps to fit, odd ones held out."""
    if history.num_steps == 1:
        raise ValueError(
            "the load history has one step: no part is left to judge a plan on; record more, shorter steps"
        )
    return {
        name: dataclasses.replace(history, counts=np.ascontiguousarray(history.counts[first::2]))
        for name, first in (("fit", 0), ("held_out", 1))
    }


def _rows(solution: Solution, parts: dict[str, LoadProblem]) -> list[Row]:
    rows = []
    for split, part in parts.items():
        load_LR = rank_loads(solution.plan, expert_loads(part.trace), part.topology.node_of_rank)
        mean_L, most_L = load_LR.mean(axis=1), load_LR.max(axis=1)
        least_L = np.maximum(busiest_rank_load(part), mean_L)
        rows.append(
            {
                "planner": str(solution.plan.provenance["planner"]),
                "split": split,
                "slots": part.num_slots,
                "slots_used": float(solution.plan.placement.slots_used.sum(axis=1).mean()),
                "load_max_over_mean": float((most_L / mean_L).mean()),
                "load_max_over_mean_worst_layer": float((most_L / mean_L).max()),
                "load_max_over_mean_least": float((least_L / mean_L).mean()),
                "load_mean_over_max": float((mean_L / most_L).mean()),
                "load_sum_of_means_over_sum_of_maxima": float(mean_L.sum() / most_L.sum()),
                "plan_s": solution.seconds,
            }
        )
    return rows


def _about(problem: LoadProblem, history: LoadHistory, parts: dict[str, LoadProblem]) -> dict[str, Any]:
    return {
        "model": problem.model.name,
        "topology": problem.topology.name,
        "num_nodes": problem.topology.num_nodes,
        "num_ranks": problem.topology.num_ranks,
        "slots_per_rank": problem.slots_per_rank.tolist(),
        "trace": history.source,
        "synthetic": False,
        "phase": history.phase,
        "split": "alternate steps",
        "steps": {name: part.trace.num_steps for name, part in parts.items()},
        "tokens": {name: part.trace.num_tokens for name, part in parts.items()},
        "left_out": "rows between ranks and times: counts do not tell which experts a token chose together",
    }


def _print(about: dict[str, Any], rows: list[Row]) -> None:
    out = console()
    slots = sorted(set(about["slots_per_rank"]))
    out.print(
        f"{about['model']} on {about['topology']}: {' to '.join(map(str, slots[:: max(len(slots) - 1, 1)]))} slots per "
        f"rank\nload history: {about['trace']}, steps: fit {about['steps']['fit']}, held out "
        f"{about['steps']['held_out']}\nleft out: {about['left_out']}\n",
        highlight=False,
        markup=False,
    )
    table = Table(box=None, pad_edge=False, padding=(0, 1))
    for title in ("planner", "split"):
        table.add_column(title, no_wrap=True)
    for title in ("load\nmax/mean", "worst\nlayer", "any plan\nat least", "mean/max\n(SGLang)", "sum of\nboth (vLLM)"):
        table.add_column(title, justify="right", no_wrap=True)
    fields = (
        "load_max_over_mean", "load_max_over_mean_worst_layer", "load_max_over_mean_least", "load_mean_over_max",
        "load_sum_of_means_over_sum_of_maxima",
    )  # fmt: skip
    for split in ("held_out", "fit"):
        for row in rows:
            if row["split"] == split:
                table.add_row(escape(row["planner"]), split, *(f"{row[field]:.3f}" for field in fields))
    out.print(table)

"""The two parts of a trace as planning problems: fitted on one, judged on the other."""

import dataclasses
import time
from collections.abc import Callable, Collection, Iterable, Sequence
from typing import Any

import numpy as np

from analysis.results import Row, price
from grace_opt.cost import CostModel
from grace_opt.homes import Homes
from grace_opt.model import MoEModel
from grace_opt.plan import Plan
from grace_opt.planners.home_choice import dealt
from grace_opt.planners.joint_progress import Progress
from grace_opt.problem import Problem, check_trace, slots_that_fit, smallest_slots
from grace_opt.solution import Planner, Solution
from grace_opt.split import Split
from grace_opt.topology import Topology
from grace_opt.trace import Trace


def problems(
    model: MoEModel,
    topology: Topology,
    trace: Trace,
    split: Split,
    homes: Homes,
    slots_per_rank: int | Sequence[int] | None,
    deal_slots: bool = False,
) -> dict[str, Problem]:
    """The parts `fit` and `held_out`, each with homes of its own; without a budget, slots for every expert once.

    Args:
        slots_per_rank: one number for all ranks, or one for each.
        deal_slots: it is the mean over layers (`Problem.dealt`).
    """
    check_trace(trace, model)
    slots = fitting(smallest_slots(model, topology), model, topology) if slots_per_rank is None else slots_per_rank
    parts = zip(("fit", "held_out"), split(trace), strict=True)
    return {name: Problem(model, topology, homes(part, topology.num_ranks), slots, deal_slots) for name, part in parts}


def problems_of_plan(
    plan: Plan, model: MoEModel, topology: Topology, trace: Trace, split: Split, homes: Homes
) -> dict[str, Problem]:
    """The parts with the slots that a plan from a file takes: those of its fullest layer, or, if they were dealt to
    layers, of the mean one."""
    reserved_L = plan.placement.slots_reserved
    if plan.provenance.get("deal_slots") is True:
        return problems(model, topology, trace, split, homes, -(-int(reserved_L.sum()) // len(reserved_L)), True)
    return problems(model, topology, trace, split, homes, plan.placement.slots_used.max(axis=0).tolist())


def deals_slots(planner: Planner) -> bool:
    """Whether it gives some layers more slots than others, where the problem has them dealt."""
    return bool(getattr(planner, "deals_slots", False))


def require_dealer(planners: Collection[Planner]) -> None:
    """Raise ValueError unless one of them deals slots to layers."""
    names = [type(planner).__name__ for planner in planners]
    if not any(map(deals_slots, planners)):
        raise ValueError(
            f"deal_slots=true would change nothing: {', '.join(names)} give{'s' * (len(names) == 1)} every layer the "
            "same slots, only joint deals them"
        )


def with_wanted_slots(parts: dict[str, Problem], planners: Iterable[Planner]) -> dict[str, Problem]:
    """The same parts with as many slots per rank as the planner that asks for most, or as fit; all get the same."""
    fit = parts["fit"]
    wanted = [planner.slots_wanted(fit) for planner in planners if hasattr(planner, "slots_wanted")]
    slots = fitting(max([*wanted, int(fit.slots_per_rank.max())]), fit.model, fit.topology)
    return {name: dataclasses.replace(part, slots=slots) for name, part in parts.items()}


def fitting(slots: int, model: MoEModel, topology: Topology) -> list[int] | int:
    """So many slots on every rank, fewer where memory is smaller; unchanged if not even the experts fit."""
    fits = np.minimum(slots, np.maximum(slots_that_fit(model, topology), 0))
    return fits.tolist() if fits.sum() >= model.num_experts else slots


def solve(
    planner: Planner,
    problem: Problem,
    watch: Callable[[Progress], None] | None = None,
    recordings: Sequence[Trace] | None = None,
) -> Solution:
    """The planner's solution with the seconds it took and, in the plan's provenance, the planner's options.

    Args:
        watch: follows a planner that searches.
        recordings: traces for the sizes of its mix (see `Joint.search`).
    """
    start = time.perf_counter()
    searches = (watch is not None or recordings is not None) and hasattr(planner, "search")
    solution = planner.search(problem, watch, recordings) if searches else planner(problem)  # type: ignore[attr-defined]
    seconds = time.perf_counter() - start
    options: dict[str, Any] = dataclasses.asdict(planner) if dataclasses.is_dataclass(planner) else {}
    options.pop("cost", None)  # the cost model that a planner searches with is that of the run
    provenance = {**solution.plan.provenance, "options": options}
    return dataclasses.replace(
        solution, plan=dataclasses.replace(solution.plan, provenance=provenance), seconds=seconds
    )


def price_parts(
    name: str, planner: Planner | None, parts: dict[str, Problem], solution: Solution, cost: CostModel
) -> list[Row]:
    """One row for each part; `planner` is None for a plan from a file.

    A plan with a home rule is priced with requests living where the rule puts them, and its rows say so.
    """
    method = "file" if planner is None else type(planner).__name__
    plan, parts = solution.plan, at_homes_of(solution.plan, parts)
    rows = [price(name, method, split, part, solution, cost) for split, part in parts.items()]
    return [{**row, "homes": "given" if plan.homes is None else "chosen"} for row in rows]


def at_homes_of(plan: Plan, parts: dict[str, Problem]) -> dict[str, Problem]:
    """The parts with requests living where the plan's rule puts them; unchanged if it has none."""
    if plan.homes is None:
        return parts
    return {name: dataclasses.replace(part, trace=dealt(part.trace, plan)) for name, part in parts.items()}

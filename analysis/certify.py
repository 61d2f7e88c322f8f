"""How far a plan is from the best there can be: its time and rows against lower bounds, where it was fitted."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
from numpy.typing import NDArray

from grace_opt.bounds import combinatorial
from grace_opt.bounds.certificate import SEARCHED, Bounds, counted_bounds, lower_bounds
from grace_opt.bounds.deals import least_over_deals
from grace_opt.bounds.senders import Sending
from grace_opt.cost import CostModel
from grace_opt.planners.home_choice import dealt
from grace_opt.problem import Problem
from grace_opt.solution import Solution
from grace_opt.traffic import traffic

INTRA_FROM_S = 60.0
"""Seconds per layer from which rows inside nodes are bounded by more than counting: minutes for 8 ranks a node."""


@dataclass(frozen=True, eq=False)
class Certificate:
    """A solution with objective and bound in seconds of a layer, and its rows between nodes against theirs.

    Attributes:
        solution: objective and bound are mean layer times on the problem's own homes, or those of the plan's rule;
            bound is None where the cost model tells none.
        cross_node_rows, least_cross_node_rows: of all layers together.
        median_gap: over layers with any such rows, of rows between nodes; None if there are none.
        median_busiest_gap: the same of the rows of each batch's busiest sender; None where it is not bounded.
    """

    solution: Solution
    cross_node_rows: int
    least_cross_node_rows: float
    median_gap: float | None
    median_busiest_gap: float | None


def certify(
    solution: Solution,
    problem: Problem,
    cost: CostModel,
    seconds_per_layer: float | None,
    watch: Callable[[int, float | None], None] | None = None,
) -> Certificate:
    """Bound what any plan could reach on a problem; Ctrl-C keeps what is proven so far.

    Where slots are dealt to layers, they are counted only, and gaps of single layers are none.

    Args:
        seconds_per_layer: see `lower_bounds`; None only counts slots.
        watch: called whenever a bound has risen, with how many layers are begun and the seconds of a layer that no plan
            beats, None where the cost model tells none. It may raise `Enough`: bounds end there.
    """
    plan = solution.plan
    if plan.homes is not None:
        problem = replace(problem, trace=dealt(problem.trace, plan))
    sending: Sending | None = cost.sending(problem.topology) if hasattr(cost, "sending") else None
    counts = traffic(problem.trace, plan, None if sending is None else sending.tokens_per_rank)
    rows_L = counts.cross_node_rows("hierarchical").sum(axis=1)
    busiest_L = np.zeros_like(rows_L) if sending is None else sending.busiest_rows(counts)
    if problem.dealt:
        return _of_any_deal(solution, problem, cost, rows_L)
    bounds = counted_bounds(problem)
    if seconds_per_layer is not None:
        bounds = lower_bounds(
            problem,
            seconds_per_layer,
            rows_of_plan=rows_L.tolist(),
            sending=sending,
            busiest_of_plan=busiest_L.tolist(),
            intra=seconds_per_layer >= INTRA_FROM_S,
            progress=None if watch is None else partial(_tell, watch, problem, cost, bounds, {}),
        )
    bound = least_seconds(problem, cost, bounds)
    solution = replace(solution, objective=cost(problem, plan).mean_s, bound=bound)
    return Certificate(
        solution,
        int(rows_L.sum()),
        float(bounds.cross_node_rows.sum()),
        median_gap(rows_L, bounds.cross_node_rows),
        median_gap(busiest_L, bounds.busiest_sender_rows),
    )


def _of_any_deal(solution: Solution, problem: Problem, cost: CostModel, rows_L: NDArray[np.int64]) -> Certificate:
    solution = replace(solution, objective=cost(problem, solution.plan).mean_s, bound=counted_seconds(problem, cost))
    rows = least_over_deals(problem, combinatorial.cross_node_rows)
    return Certificate(solution, int(rows_L.sum()), rows, None, None)


def median_gap(rows_L: NDArray[np.int64], least_L: NDArray[np.float64]) -> float | None:
    """How far rows are above what they are at least, over layers that need any; None if there are none."""
    some = least_L > 0
    return float(np.median(rows_L[some] / least_L[some] - 1)) if some.any() else None


def least_seconds(problem: Problem, cost: CostModel, bounds: Bounds) -> float | None:
    """Of a layer, in the mean; None if the cost model tells none."""
    if not hasattr(cost, "least_time"):
        return None
    least = cost.least_time(problem, bounds)
    return float(least.mean_s)


def counted_seconds(problem: Problem, cost: CostModel) -> float | None:
    """Of a layer, in the mean, that no plan beats by counting slots, however they are dealt to layers if they are."""
    if not problem.dealt or not hasattr(cost, "least_time"):
        return least_seconds(problem, cost, counted_bounds(replace(problem, dealt=False)))
    seconds = least_over_deals(problem, lambda alike: cost.least_time(alike, counted_bounds(alike)).layer_s)
    return seconds / problem.model.num_layers


def _tell(
    watch: Callable[[int, float | None], None],
    problem: Problem,
    cost: CostModel,
    counted: Bounds,
    proven: dict[tuple[int, int], float],
    kind: int,
    layer: int,
    rows: float,
) -> None:
    """Put what is proven of the layers so far into seconds; `proven` keeps it from call to call."""
    proven[kind, layer] = rows
    raised = {name: getattr(counted, name).copy() for name in SEARCHED}
    for (of_kind, of_layer), most in proven.items():
        raised[SEARCHED[of_kind]][of_layer] = most
    begun = len({of_layer for _, of_layer in proven})
    watch(begun, least_seconds(problem, cost, replace(counted, **raised)))

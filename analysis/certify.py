"""How far a plan is from the best there can be: its time and rows against lower bounds, where it was fitted."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial

import numpy as np

from grace_opt.bounds.certificate import Bounds, counted_bounds, lower_bounds
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
    """

    solution: Solution
    cross_node_rows: int
    least_cross_node_rows: float
    median_gap: float | None


def certify(
    solution: Solution,
    problem: Problem,
    cost: CostModel,
    seconds_per_layer: float | None,
    watch: Callable[[int, float | None], None] | None = None,
) -> Certificate:
    """Bound what any plan could reach on a problem; Ctrl-C keeps what is proven so far.

    Args:
        seconds_per_layer: see `lower_bounds`; None only counts slots.
        watch: called whenever a bound has risen, with how many layers are begun and the seconds of a layer that no plan
            beats, None where the cost model tells none. It may raise `Enough`: bounds end there.
    """
    plan = solution.plan
    if plan.homes is not None:
        problem = replace(problem, trace=dealt(problem.trace, plan))
    rows_L = traffic(problem.trace, plan).cross_node_rows("hierarchical").sum(axis=1)
    bounds = counted_bounds(problem)
    if seconds_per_layer is not None:
        intra = seconds_per_layer >= INTRA_FROM_S
        tell = None if watch is None else partial(_tell, watch, problem, cost, bounds, {})
        bounds = lower_bounds(problem, seconds_per_layer, rows_of_plan=rows_L.tolist(), intra=intra, progress=tell)
    bound = least_seconds(problem, cost, bounds)
    solution = replace(solution, objective=cost(problem, plan).mean_s, bound=bound)
    some = bounds.cross_node_rows > 0
    gaps = rows_L[some] / bounds.cross_node_rows[some] - 1
    median = float(np.median(gaps)) if some.any() else None
    return Certificate(solution, int(rows_L.sum()), float(bounds.cross_node_rows.sum()), median)


def least_seconds(problem: Problem, cost: CostModel, bounds: Bounds) -> float | None:
    """Of a layer, in the mean; None if the cost model tells none."""
    if not hasattr(cost, "least_time"):
        return None
    least = cost.least_time(problem, bounds.cross_node_rows, bounds.intra_node_rows, bounds.busiest_load)
    return float(least.mean_s)


def _tell(
    watch: Callable[[int, float | None], None],
    problem: Problem,
    cost: CostModel,
    counted: Bounds,
    proven: dict[int, float],
    layer: int,
    rows: float,
) -> None:
    """Put what is proven of the layers so far into seconds; `proven` keeps it from call to call."""
    proven[layer] = rows
    rows_L = counted.cross_node_rows.copy()
    rows_L[list(proven)] = list(proven.values())
    watch(len(proven), least_seconds(problem, cost, replace(counted, cross_node_rows=rows_L)))

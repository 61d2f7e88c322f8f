"""Placement by the topology of the cluster (arXiv 2508.09229): experts where their tokens have few hops to go.

Each layer by itself:

    Data        n_he, tokens at home on rank h that chose expert e; hops_hr, links outside nodes on the routes from rank
                h to rank r and back; slots_r
    Variables   x_er in {0, 1}: expert e is on rank r
    Constraints sum_r x_er = 1 for every e;  sum_e x_er <= slots_r for every r
    Objective   least sum over e, r of (sum_h n_he hops_hr) x_er

As in the paper, links inside a node are free: a link belongs to a node if the routes between its own ranks use it. A
link of no such route, like that of a network card, is outside. The paper sends a layer's tokens out from where its
attention is computed and collects them where the next one's is. With data-parallel attention both are the home of each
token, so the hops are weighted by the homes of the trace the plan is fitted to.

The constraints are those of a transport problem, so the program is integral and closes at once, at any size. The method
knows neither balance nor who is chosen with whom: a rank may be filled up. No replicas: slots that are left stay empty.
On a single node every placement is optimal, and the start is kept: index order, as evenly as slots allow.
"""

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import pulp
from numpy.typing import NDArray

from grace_opt.placement import Placement
from grace_opt.planners.linear import even_sizes
from grace_opt.planners.milp import Outcome, deadlines, is_late, require_time, solve
from grace_opt.problem import Problem
from grace_opt.routing import Routing
from grace_opt.solution import Solution, plan_for
from grace_opt.topology import Topology
from grace_opt.trace import Trace


@dataclass(frozen=True)
class TopologyIlp:
    """Experts on the ranks that their tokens reach over the fewest links between nodes, within the slots.

    The solution's objective is the number of links, over all layers, that (token, expert) pairs pass there and back,
    and its bound that no plan with one copy an expert passes fewer (copies are none of this program's).

    Attributes:
        time_limit_s: for all layers together; a layer that has none left keeps experts in index order.

    Example: one layer, 2 nodes of one rank with 2 slots, 2 links from one to the other. Experts 0 and 2 are chosen by
    tokens of rank 1 only, 1 and 3 by those of rank 0: ranks [1, 3] and [0, 2], and nothing passes a link.
    """

    plans_by: ClassVar[str] = "topology"  # of the topology it sees routes

    time_limit_s: float = 60.0

    def __post_init__(self) -> None:
        require_time("topology_ilp", self.time_limit_s)

    def __call__(self, problem: Problem) -> Solution:
        hops_RR = hops_between_nodes(problem.topology)
        start_E = np.repeat(np.arange(problem.topology.num_ranks), even_sizes(problem))
        ends = deadlines(self.time_limit_s, problem.model.num_layers)
        layers = [
            fewest_hops(
                loads_by_home(problem.trace, layer, len(hops_RR)).T @ (hops_RR + hops_RR.T),
                problem.slots_per_rank,
                start_E,
                next(ends),
            )
            for layer in range(problem.model.num_layers)
        ]
        placement = Placement.from_rank_of_expert(np.stack([rank_E for rank_E, _ in layers]), len(hops_RR))
        outcomes = [outcome for _, outcome in layers]
        return Solution(
            plan_for(problem, placement, Routing("primary"), "topology_ilp"),
            "optimal" if all(outcome.closed for outcome in outcomes) else "feasible",
            sum(outcome.objective for outcome in outcomes),
            sum(max(outcome.bound, 0.0) for outcome in outcomes),
        )


def fewest_hops(
    hops_ER: NDArray[np.int64], slots_R: NDArray[np.int64], start_E: NDArray[np.int64], deadline_s: float
) -> tuple[NDArray[np.int64], Outcome]:
    """[E] rank of each expert of one layer.

    Args:
        hops_ER: links that the tokens of an expert pass, there and back, if it is on a rank.
        start_E: a feasible plan.
        deadline_s: see `milp.solve`.
    """
    experts, ranks = (range(size) for size in hops_ER.shape)
    if (hops_ER == hops_ER[:, :1]).all():
        hops = float(hops_ER[:, 0].sum())
        return start_E, Outcome(hops, hops, True)
    if is_late(deadline_s, "topology_ilp"):
        return start_E, Outcome(float(hops_ER[experts, start_E].sum()), 0.0, False)

    program = pulp.LpProblem("fewest_hops", pulp.LpMinimize)
    x = [[program.add_variable(f"x_{e}_{r}", cat=pulp.LpBinary) for r in ranks] for e in experts]
    for e in experts:
        program += pulp.lpSum(x[e]) == 1
    for r in ranks:
        program += pulp.lpSum(x[e][r] for e in experts) <= int(slots_R[r])
    program += pulp.lpSum(int(hops_ER[e, r]) * x[e][r] for e in experts for r in ranks)

    for e in experts:
        for r in ranks:
            x[e][r].setInitialValue(int(start_E[e] == r))
    outcome = solve(program, deadline_s, relative_gap=0.0)
    return np.array([int(np.argmax([variable.value() for variable in x[e]])) for e in experts]), outcome


def hops_between_nodes(topology: Topology) -> NDArray[np.int64]:
    """[R, R] links outside nodes on the route of each ordered pair of ranks; 0 within a node."""
    node_R, num_ranks = topology.node_of_rank, topology.num_ranks
    same = (node_R[:, None] == node_R[None, :]).ravel()
    routes = topology.routes.tocsc() != 0
    inside = np.asarray(routes[:, same].sum(axis=1)).ravel() > 0
    hops = np.asarray(routes[~inside].sum(axis=0)).ravel()
    return np.where(same, 0, hops).reshape(num_ranks, num_ranks).astype(np.int64)


def loads_by_home(trace: Trace, layer: int, num_ranks: int) -> NDArray[np.int64]:
    """[R, E] tokens at home on each rank that chose each expert."""
    assert trace.homes is not None
    home_T = np.repeat(trace.homes, trace.lengths)
    keys = home_T[:, None] * trace.num_experts + trace.layer(layer)
    counts = np.bincount(keys.ravel(), minlength=num_ranks * trace.num_experts)
    return counts.reshape(num_ranks, trace.num_experts)

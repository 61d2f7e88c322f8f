"""ExFlow (arXiv 2401.08383): experts of consecutive layers placed so that tokens stay where they are.

    Data        n_lij, transitions from expert i of layer l to expert j of layer l + 1; size_p, experts of place p in
                every layer (equal shares, at most one apart)
    Variables   x_lip in {0, 1}: expert i of layer l is on place p; stay_lijp >= 0: so are i and, a layer later, j
    Constraints sum_p x_lip = 1 for all l, i;  sum_i x_lip = size_p for all l, p;
                stay_lijp <= x_lip and stay_lijp <= x_(l+1)jp for all l, i, j, p with n_lij > 0
    Objective   most sum n_lij stay_lijp, written as least transitions that change place

Places are nodes first, then the ranks inside each node: the staging that the authors' own solver offers for big cases.
The whole program is given to the solver only while it has at most `exact_size` variables `stay` (three layers of 6
experts on 2 places have 144, 26 layers of 64 on 2 nodes 200,000; a thousand can take minutes). Beyond that it is solved
layer by layer: with the neighbouring layers fixed, one layer is an assignment problem, solved exactly; sweeps over the
layers go on until none changes anything, from the index order and from `restarts` random starts, and the best end is
kept. The small program starts from that end too.

With top-K routing every pair (expert of a layer, expert of the next) of a token counts as one transition. The method
assumes an engine in which a token's context is on every GPU and the token stays where its last expert was. Schemes that
bring every token home after every layer, like those priced here, do not profit from it. No replicas: spare slots stay
empty.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import pulp
from numpy.typing import NDArray
from scipy.optimize import linear_sum_assignment

from grace_opt.placement import Placement
from grace_opt.planners.linear import even_sizes
from grace_opt.planners.milp import Outcome, deadlines, is_late, require_time, solve
from grace_opt.planners.transitions import crossing, transitions
from grace_opt.problem import Problem
from grace_opt.routing import Routing
from grace_opt.solution import Solution, plan_for

Counts = Sequence[NDArray[np.int64]]
"""L - 1 matrices, transitions from the experts of a layer to those of the next."""


@dataclass(frozen=True)
class Exflow:
    """Equal groups of experts on ranks, with the fewest transitions that leave a node, then a rank.

    The solution's objective is the number of transitions that change rank. It has a bound where one program covers
    everything, that is with one node or `levels=1`, and the solver was used.

    Attributes:
        levels: 2 places experts on nodes, then on the ranks of each; 1 on all ranks at once (as on a single node).
        restarts: random starts of the sweeps, besides the index order.
        exact_size: most variables `stay` of a program that is given to the solver.
        time_limit_s: for random starts and the solver together; the sweeps from the index order are always made.
        seed: of the random starts.

    Example: two layers, 4 experts, 2 ranks; tokens go 0 -> 3, 1 -> 2, 2 -> 1, 3 -> 0. Layer 1 has [0, 1] and [2, 3],
    layer 2 [2, 3] and [0, 1]; nothing changes rank.
    """

    plans_by: ClassVar[str] = "structure"  # of the topology it sees only which ranks share a node

    levels: int = 2
    restarts: int = 16
    exact_size: int = 200
    time_limit_s: float = 20.0
    seed: int = 0

    def __post_init__(self) -> None:
        require_time("exflow", self.time_limit_s)
        if self.levels not in (1, 2):
            raise ValueError(f"exflow: levels must be 1 or 2, got {self.levels}")
        for field in ("restarts", "exact_size", "seed"):
            if getattr(self, field) < 0:
                raise ValueError(f"exflow: {field} must not be negative, got {getattr(self, field)}")

    def __call__(self, problem: Problem) -> Solution:
        counts, sizes_R, node_R = transitions(problem.trace), even_sizes(problem), problem.topology.node_of_rank
        shape = (problem.model.num_layers, problem.model.num_experts)
        if self.levels == 1 or problem.topology.num_nodes == 1:
            rank_LE, outcome = self._place(counts, sizes_R, *shape, next(deadlines(self.time_limit_s, 1)))
        else:
            rank_LE, outcome = self._by_nodes(counts, sizes_R, node_R, *shape), None
        placement = Placement.from_rank_of_expert(rank_LE, len(sizes_R))
        plan = plan_for(problem, placement, Routing("primary"), "exflow")
        objective = float(crossing(counts, rank_LE))
        if outcome is None:
            return Solution(plan, objective=objective)
        bound = float(np.ceil(outcome.bound - 1e-6)) if np.isfinite(outcome.bound) else None
        return Solution(plan, "optimal" if outcome.closed else "feasible", objective, bound)

    def _by_nodes(
        self, counts: Counts, sizes_R: NDArray[np.int64], node_R: NDArray[np.int64], num_layers: int, num_experts: int
    ) -> NDArray[np.int64]:
        """[L, E] rank of each expert: a node by one program, then the ranks of each node by one."""
        num_nodes = int(node_R.max()) + 1
        ends = deadlines(self.time_limit_s, num_nodes + 1)
        sizes_N = np.bincount(node_R, sizes_R).astype(np.int64)
        node_LE, _ = self._place(counts, sizes_N, num_layers, num_experts, next(ends))
        rank_LE = np.empty_like(node_LE)
        for node in range(num_nodes):
            ranks = np.flatnonzero(node_R == node)
            experts = [np.flatnonzero(node_E == node) for node_E in node_LE]
            inner = [c[np.ix_(a, b)] for c, a, b in zip(counts, experts[:-1], experts[1:], strict=True)]
            local_LM, _ = self._place(inner, sizes_R[ranks], num_layers, int(sizes_N[node]), next(ends))
            for layer in range(num_layers):
                rank_LE[layer, experts[layer]] = ranks[local_LM[layer]]
        return rank_LE

    def _place(
        self, counts: Counts, sizes_P: NDArray[np.int64], num_layers: int, num_experts: int, deadline_s: float
    ) -> tuple[NDArray[np.int64], Outcome | None]:
        """[L, E] place of each expert, and what the solver says of it if it was asked."""
        place_LE = fewest_by_sweeps(counts, sizes_P, num_layers, self.restarts, self.seed, deadline_s)
        size = len(sizes_P) * sum(np.count_nonzero(count_EE) for count_EE in counts)
        if num_layers == 1 or num_experts == 0 or size > self.exact_size or is_late(deadline_s, "exflow"):
            return place_LE, None
        return fewest_by_program(counts, sizes_P, place_LE, deadline_s)


def fewest_by_sweeps(
    counts: Counts, sizes_P: NDArray[np.int64], num_layers: int, restarts: int, seed: int, deadline_s: float
) -> NDArray[np.int64]:
    """[L, E] place of each expert, the best end of sweeps from the index order and from random orders."""
    random = np.random.default_rng(seed)
    in_order_E = np.repeat(np.arange(len(sizes_P)), sizes_P)
    best_LE = np.tile(in_order_E, (num_layers, 1))
    fewest = np.inf
    for start in range(restarts + 1):
        if start > 0 and is_late(deadline_s, "exflow"):
            break
        place_LE = np.tile(in_order_E if start == 0 else random.permutation(in_order_E), (num_layers, 1))
        _sweep(counts, place_LE, in_order_E)
        crossed = crossing(counts, place_LE)
        if crossed < fewest:
            fewest, best_LE = crossed, place_LE
    return best_LE


def _sweep(counts: Counts, place_LE: NDArray[np.int64], slots_E: NDArray[np.int64]) -> None:
    """Place layer after layer, in place: first by the layer before, then by both neighbours until nothing improves.

    Args:
        slots_E: place of each slot.
    """
    num_places = int(slots_E.max(initial=-1)) + 1
    for sweep in range(1 + len(place_LE) * len(slots_E)):
        improved = False
        for layer in range(len(place_LE)):
            kept_EP = np.zeros((len(slots_E), num_places), np.int64)  # transitions that stay, for expert and place
            if layer > 0:
                kept_EP += counts[layer - 1].T @ (place_LE[layer - 1][:, None] == np.arange(num_places))
            if sweep > 0 and layer < len(counts):
                kept_EP += counts[layer] @ (place_LE[layer + 1][:, None] == np.arange(num_places))
            kept = np.take_along_axis(kept_EP, place_LE[layer][:, None], axis=1).sum()
            experts, slots = linear_sum_assignment(kept_EP[:, slots_E], maximize=True)
            if kept_EP[experts, slots_E[slots]].sum() > kept:
                place_LE[layer] = slots_E[slots]
                improved = True
        if sweep > 0 and not improved:
            return


def fewest_by_program(
    counts: Counts, sizes_P: NDArray[np.int64], start_LE: NDArray[np.int64], deadline_s: float
) -> tuple[NDArray[np.int64], Outcome]:
    """[L, E] place of each expert by the whole program, from a feasible plan; its objective: transitions that cross."""
    layers, experts = (range(size) for size in start_LE.shape)
    places = range(len(sizes_P))
    total = sum(int(count_EE.sum()) for count_EE in counts)

    program = pulp.LpProblem("exflow", pulp.LpMinimize)
    x = [[[program.add_variable(f"x_{a}_{i}_{p}", cat=pulp.LpBinary) for p in places] for i in experts] for a in layers]
    for layer in layers:
        for i in experts:
            program += pulp.lpSum(x[layer][i]) == 1
        for p in places:
            program += pulp.lpSum(x[layer][i][p] for i in experts) == int(sizes_P[p])
    staying = []
    for layer, count_EE in enumerate(counts):
        for i, j in np.argwhere(count_EE).tolist():
            for p in places:
                stay = program.add_variable(f"stay_{layer}_{i}_{j}_{p}", 0, 1)
                program += stay <= x[layer][i][p]
                program += stay <= x[layer + 1][j][p]
                stay.setInitialValue(int(start_LE[layer, i] == p == start_LE[layer + 1, j]))
                staying.append(int(count_EE[i, j]) * stay)
    program += total - pulp.lpSum(staying)

    for layer in layers:
        for i in experts:
            for p in places:
                x[layer][i][p].setInitialValue(int(start_LE[layer, i] == p))
    outcome = solve(program, deadline_s)
    place_LE = np.array([[int(np.argmax([v.value() for v in x[a][i]])) for i in experts] for a in layers])
    return (place_LE if crossing(counts, place_LE) < crossing(counts, start_LE) else start_LE), outcome

"""MoETuner (arXiv 2502.06643): groups of equal load by one integer program, their ranks by another.

Program 1, each layer by itself: experts to groups.

    Data        load_e, tokens that chose expert e; size_g, experts of group g (equal shares, at most one apart)
    Variables   x_eg in {0, 1}: expert e is in group g; busiest >= 0
    Constraints sum_g x_eg = 1 for every e;  sum_e x_eg = size_g and sum_e load_e x_eg <= busiest for every g;
                busiest >= the mean, and >= load_e + the load of the size - 1 lightest others, for every e
    Objective   least busiest

Program 2: groups to ranks, such that tokens that go from layer to layer keep no link waiting.

    Data        in_gr, out_gr, seconds of the slowest transfer between group g, if it is on rank r, and a group of the
                layer before (in) or after (out): rows x bytes of a row / bandwidth of the narrowest link of the route
    Variables   x_gr in {0, 1}: group g is on rank r; in, out >= 0
    Constraints sum_r x_gr = 1 for every g;  sum_g x_gr = 1 for every r;  x_gr = 0 where r has too few slots;
                sum_r in_gr x_gr <= in and sum_r out_gr x_gr <= out for every g
    Objective   least in + out

Details decided here, where the description leaves them open:

- A rank takes exactly one group, so with the neighbouring layers fixed the busiest pair of ranks is linear in one
  layer's x. Program 2 goes layer by layer: first with the layer before alone, then, in sweeps over all layers, with
  both neighbours, until a sweep changes nothing. All layers at once would need products of variables.
- With top-K routing every pair (expert of a layer, expert of the next) of a token counts as one transition.
- Both programs start from a greedy plan (heaviest expert first, then exchanges; least total traffic) and end when it is
  within `relative_gap` of the bound or when their share of the time limit is over; the better plan stands.
- Transitions are what the method plans for, as an engine that leaves tokens where their last expert was would send
  them. Schemes that bring every token home after every layer, like those priced here, do not profit from program 2.

No replicas: spare slots stay empty.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import pulp
from numpy.typing import NDArray
from scipy.optimize import linear_sum_assignment

from grace_opt.placement import Placement
from grace_opt.planners.linear import even_sizes
from grace_opt.planners.milp import deadlines, is_late, require_time, solve
from grace_opt.planners.transitions import between_groups, transitions
from grace_opt.problem import Problem
from grace_opt.profile import expert_loads
from grace_opt.routing import Routing
from grace_opt.solution import Solution, plan_for


@dataclass(frozen=True)
class Moetuner:
    """Equal groups of equal load, placed for the least traffic on the busiest pair of ranks between layers.

    The solution's objective is the sum over layers of the seconds that pair takes, given the groups of program 1; its
    status is "feasible" if time ended before every program was closed, else "heuristic": closed step by step is not
    optimal as a whole.

    Attributes:
        time_limit_s: for all programs together; a program that ends early leaves its time to later ones.
        relative_gap: a plan this close to the bound of its program is taken.
        sweeps: most passes of program 2 over all layers after the first.

    Example: one layer, loads 6, 5, 2, 1 on 2 ranks of 2 slots: groups {0, 3} and {1, 2} of load 7 each.
    """

    plans_by: ClassVar[str] = "topology"  # of the topology it sees routes and bandwidths

    time_limit_s: float = 60.0
    relative_gap: float = 2e-3
    sweeps: int = 2

    def __post_init__(self) -> None:
        require_time("moetuner", self.time_limit_s)
        if not 0 <= self.relative_gap < 1:
            raise ValueError(f"moetuner: relative_gap must lie between 0 and 1, got {self.relative_gap}")
        if self.sweeps < 0:
            raise ValueError(f"moetuner: sweeps must not be negative, got {self.sweeps}")

    def __call__(self, problem: Problem) -> Solution:
        sizes_G = even_sizes(problem)
        num_layers = problem.model.num_layers
        ends = deadlines(self.time_limit_s, num_layers * (2 + self.sweeps))
        groups = [equal_load_groups(load_E, sizes_G, ends, self.relative_gap) for load_E in expert_loads(problem.trace)]
        group_LE = [group_E for group_E, _ in groups]
        traffic = [
            between_groups(count_EE, before, after, len(sizes_G))
            for count_EE, before, after in zip(transitions(problem.trace), group_LE[:-1], group_LE[1:], strict=True)
        ]
        chain = _Chain(traffic, _seconds_per_row(problem), sizes_G[:, None] <= problem.slots_per_rank[None, :])
        rank_LG, closed = chain.place(ends, self.sweeps, self.relative_gap)
        rank_LE = np.stack([rank_G[group_E] for rank_G, group_E in zip(rank_LG, group_LE, strict=True)])
        placement = Placement.from_rank_of_expert(rank_LE, len(sizes_G))
        status = "heuristic" if closed and all(closed for _, closed in groups) else "feasible"
        plan = plan_for(problem, placement, Routing("primary"), "moetuner")
        return Solution(plan, status, objective=chain.seconds(rank_LG))


def equal_load_groups(
    load_E: NDArray[np.int64], sizes_G: NDArray[np.int64], ends: Iterator[float], relative_gap: float = 2e-3
) -> tuple[NDArray[np.int64], bool]:
    """[E] group of each expert (program 1), and whether the program was closed."""
    group_E = exchanged(load_E, heaviest_first(load_E, sizes_G))
    deadline_s = next(ends)
    least = _least_busiest(load_E, sizes_G)
    if np.bincount(group_E, load_E, len(sizes_G)).max() <= least * (1 + relative_gap):
        return group_E, True
    if is_late(deadline_s, "moetuner"):
        return group_E, False
    experts, groups = range(len(load_E)), range(len(sizes_G))
    scale = load_E.sum() / len(sizes_G)

    program = pulp.LpProblem("equal_load_groups", pulp.LpMinimize)
    x = [[program.add_variable(f"x_{e}_{g}", cat=pulp.LpBinary) for g in groups] for e in experts]
    busiest = program.add_variable("busiest", least / scale)
    for e in experts:
        program += pulp.lpSum(x[e]) == 1
    for g in groups:
        program += pulp.lpSum(x[e][g] for e in experts) == int(sizes_G[g])
        program += pulp.lpSum(load_E[e] / scale * x[e][g] for e in experts) <= busiest
    program += busiest

    _start_from(x, group_E)
    busiest.setInitialValue(np.bincount(group_E, load_E).max() / scale)
    outcome = solve(program, deadline_s, relative_gap)
    return _chosen(x), outcome.closed


def heaviest_first(load_E: NDArray[np.int64], sizes_G: NDArray[np.int64]) -> NDArray[np.int64]:
    """[E] experts by descending load, each to the lightest group that has room."""
    group_E, load_G, room_G = np.empty(len(load_E), np.int64), np.zeros(len(sizes_G)), sizes_G.copy()
    for expert in np.argsort(-load_E, kind="stable"):
        group = int(np.argmin(np.where(room_G > 0, load_G, np.inf)))
        group_E[expert] = group
        load_G[group] += load_E[expert]
        room_G[group] -= 1
    return group_E


def exchanged(load_E: NDArray[np.int64], group_E: NDArray[np.int64]) -> NDArray[np.int64]:
    """[E] groups of the same sizes, after exchanges with the busiest group that leave both groups below its load.

    Of these the one is made whose busier group ends lightest; each lowers the sum of squared loads, so there is an end.
    """
    group_E = group_E.copy()
    while True:
        load_G = np.bincount(group_E, load_E)
        busiest = int(np.argmax(load_G))
        inside, outside = np.flatnonzero(group_E == busiest), np.flatnonzero(group_E != busiest)
        if not len(outside):
            return group_E
        moved = load_E[inside][:, None] - load_E[outside][None, :]
        after = np.maximum(load_G[busiest] - moved, load_G[group_E[outside]][None, :] + moved)
        i, j = np.unravel_index(np.argmin(after), after.shape)
        if after[i, j] >= load_G[busiest]:
            return group_E
        group_E[inside[i]], group_E[outside[j]] = group_E[outside[j]], busiest


@dataclass(frozen=True, eq=False)
class _Chain:
    """Program 2 over all layers.

    Attributes:
        traffic: L - 1 matrices [G, G], transitions from each group of a layer to each of the next.
        seconds_per_row: [R, R], 0 on the diagonal.
        allowed: [G, R] whether a rank has slots for a group.
    """

    traffic: list[NDArray[np.int64]]
    seconds_per_row: NDArray[np.float64]
    allowed: NDArray[np.bool_]

    def place(self, ends: Iterator[float], sweeps: int, relative_gap: float) -> tuple[list[NDArray[np.int64]], bool]:
        """[L][G] rank of each group, and whether the last program of every layer was closed."""
        num_layers, num_groups = len(self.traffic) + 1, len(self.allowed)
        rank_LG = [np.arange(num_groups)]
        for layer in range(1, num_layers):
            cost_GR = self._slowest(self.traffic[layer - 1], rank_LG[-1], self.seconds_per_row)
            rank_LG.append(linear_sum_assignment(np.where(self.allowed, cost_GR, np.inf))[1])
        closed = [True] * num_layers
        for sweep in range(sweeps + 1):
            changed = False
            for layer in range(num_layers):
                neighbours = [side for side in self._sides(rank_LG, layer, later=sweep > 0) if side.any()]
                start_G = rank_LG[layer]
                if neighbours:
                    rank_LG[layer], closed[layer] = assign(neighbours, self.allowed, start_G, next(ends), relative_gap)
                changed |= (rank_LG[layer] != start_G).any()
            if sweep > 0 and not changed:
                break
        return rank_LG, all(closed)

    def seconds(self, rank_LG: list[NDArray[np.int64]]) -> float:
        """Sum over pairs of layers of the slowest pair of ranks."""
        inner = zip(self.traffic, rank_LG[:-1], rank_LG[1:], strict=True)
        return float(sum((count_GG * self.seconds_per_row[np.ix_(a, b)]).max() for count_GG, a, b in inner))

    def _sides(self, rank_LG: list[NDArray[np.int64]], layer: int, later: bool) -> Iterator[NDArray[np.float64]]:
        """in [G, R], and out if the later layer counts."""
        if layer > 0:
            yield self._slowest(self.traffic[layer - 1], rank_LG[layer - 1], self.seconds_per_row)
        if later and layer < len(self.traffic):
            yield self._slowest(self.traffic[layer].T, rank_LG[layer + 1], self.seconds_per_row.T)

    @staticmethod
    def _slowest(
        count_GG: NDArray[np.int64], rank_G: NDArray[np.int64], seconds_RR: NDArray[np.float64]
    ) -> NDArray[np.float64]:
        """[G, R] slowest transfer between the placed groups (rows of count_GG) and each other group on each rank."""
        seconds_GR = seconds_RR[rank_G]
        return np.asarray(np.max(count_GG[:, :, None] * seconds_GR[:, None, :], axis=0))


def assign(
    sides: list[NDArray[np.float64]],
    allowed_GR: NDArray[np.bool_],
    start_G: NDArray[np.int64],
    deadline_s: float,
    relative_gap: float,
) -> tuple[NDArray[np.int64], bool]:
    """[G] rank of each group of one layer (program 2), and whether the program was closed.

    Args:
        sides: one or two [G, R], seconds of the slowest transfer of a group on a rank, to one neighbouring layer each.
        allowed_GR: whether a rank has slots for a group.
        start_G: a feasible plan.
        deadline_s: see `milp.solve`.
    """
    groups = range(len(start_G))
    # No plan of a side is better than every group on its best rank, nor than every rank with its best group.
    least = [max(cost_GR.min(axis=1).max(), cost_GR.min(axis=0).max()) for cost_GR in sides]
    if _total(sides, start_G) <= sum(least) * (1 + relative_gap):
        return start_G, True
    if is_late(deadline_s, "moetuner"):
        return start_G, False
    scale = _total(sides, start_G)

    program = pulp.LpProblem("groups_to_ranks", pulp.LpMinimize)
    x = [[program.add_variable(f"x_{g}_{r}", 0, int(allowed_GR[g, r]), pulp.LpInteger) for r in groups] for g in groups]
    slowest = [program.add_variable(f"slowest_{side}", bound / scale) for side, bound in enumerate(least)]
    for g in groups:
        program += pulp.lpSum(x[g]) == 1
    for r in groups:
        program += pulp.lpSum(x[g][r] for g in groups) == 1
    for cost_GR, t in zip(sides, slowest, strict=True):
        for g in groups:
            program += pulp.lpSum(cost_GR[g, r] / scale * x[g][r] for r in groups) <= t
    program += pulp.lpSum(slowest)

    _start_from(x, start_G)
    for cost_GR, t in zip(sides, slowest, strict=True):
        t.setInitialValue(cost_GR[groups, start_G].max() / scale)
    outcome = solve(program, deadline_s, relative_gap)
    rank_G = _chosen(x)
    better = _total(sides, rank_G) < _total(sides, start_G)  # not equal: sweeps end
    return (rank_G if better else start_G), outcome.closed


def _total(sides: list[NDArray[np.float64]], rank_G: NDArray[np.int64]) -> float:
    return float(sum(cost_GR[np.arange(len(rank_G)), rank_G].max() for cost_GR in sides))


def _least_busiest(load_E: NDArray[np.int64], sizes_G: NDArray[np.int64]) -> float:
    """No groups of these sizes have a lighter busiest group: the mean, and each expert with the lightest company."""
    lightest = np.concatenate(([0], np.cumsum(np.sort(load_E))))
    company = int(sizes_G[sizes_G > 0].min()) - 1
    return float(max(load_E.sum() / np.count_nonzero(sizes_G), load_E.max() + lightest[company]))


def _seconds_per_row(problem: Problem) -> NDArray[np.float64]:
    """[R, R] seconds of a row on the narrowest link of its route; 0 on the diagonal."""
    topology = problem.topology
    slowest = (topology.routes.T.multiply(problem.model.token_bytes / topology.link_bytes_per_s)).max(axis=1)
    return np.asarray(slowest.todense()).reshape(topology.num_ranks, topology.num_ranks)


def _start_from(x: list[list[pulp.LpVariable]], chosen: NDArray[np.int64]) -> None:
    for row, choice in zip(x, chosen, strict=True):
        for column, variable in enumerate(row):
            variable.setInitialValue(int(column == choice))


def _chosen(x: list[list[pulp.LpVariable]]) -> NDArray[np.int64]:
    return np.array([int(np.argmax([variable.value() for variable in row])) for row in x])

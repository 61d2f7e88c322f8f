"""Lazarus (arXiv 2407.04656): replicas in proportion to load, on ranks whose failure seldom loses an expert.

Each layer by itself, with c slots on each rank:

    replicas    every expert gets at least f (fewer if slots or ranks do not allow it); then, while slots are left, one
                more goes to the expert with the largest load / replicas. None gets more than there are ranks.
    placement   "maximum rank overlap": experts in ascending order of replicas, in groups of c. The first group takes as
                many ranks as its first expert has replicas, and every rank of these holds the whole group; so do the
                next groups with the ranks that follow. Replicas beyond those fill the slots that are left.

A failed rank takes its experts' copies with it. Experts with equally few copies sit on the same ranks, so there are few
sets of ranks whose failure loses an expert: with 2 copies of 4 experts on 4 ranks of 2 slots, overlap loses an expert
in 2 of the 6 pairs of failed ranks, a ring of neighbours in 4.

Details decided here: proportional shares are those of highest averages; left-over replicas go one by one, the expert
with most of them first, to the rank with the most free slots that does not hold it yet; a replica for which there is no
such rank gives its slot to the expert with the largest load / replicas that fits. Ties go to the lower number. All
ranks must have the same number of slots, as the groups have.
"""

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from grace_opt.placement import Placement
from grace_opt.problem import Problem
from grace_opt.profile import expert_loads
from grace_opt.routing import Routing
from grace_opt.solution import Solution, plan_for


@dataclass(frozen=True)
class Lazarus:
    """Replicas by load in every slot, placed by maximum rank overlap.

    Attributes:
        fault_threshold: f, replicas every expert should have, where slots allow; 2 survives any one failed rank.
        routing: "uniform" polls all copies in turn, equal shares as the original's dispatcher gives them; "tar" prefers
            the token's own rank, then its node.

    Example: loads 8, 4, 2, 2 on 4 ranks of 2 slots with f = 1: replicas 4, 2, 1, 1. Ascending [2, 3] takes rank 0;
    [1, 0] takes ranks 1 and 2. Of the last two copies of 0 one goes to rank 3; the other finds no rank, and its slot on
    rank 3 goes to expert 1.
    """

    plans_by: ClassVar[str] = "structure"  # of the topology it sees only which ranks share a node
    plans_from: ClassVar[str] = "loads"  # counts are enough

    fault_threshold: int = 2
    routing: str = "uniform"

    def __post_init__(self) -> None:
        if self.fault_threshold < 1:
            raise ValueError(f"lazarus: fault_threshold must be at least 1, got {self.fault_threshold}")
        if self.routing not in ("uniform", "tar"):
            raise ValueError(f"lazarus: routing must be uniform or tar, got {self.routing!r}")

    def __call__(self, problem: Problem) -> Solution:
        slots = problem.slots_per_rank
        if slots.min() != slots.max():
            raise ValueError(
                f"lazarus groups as many experts as every rank has slots, but slots_per_rank runs from {slots.min()} "
                f"to {slots.max()}: give all ranks the same number"
            )
        layers = []
        for load_E in expert_loads(problem.trace):
            copies_E = replicas(load_E, len(slots), problem.num_slots, self.fault_threshold)
            layers.append(overlapping(copies_E, load_E, len(slots), int(slots[0])))
        placement = Placement.from_lists(layers, problem.model.num_experts)
        return Solution(plan_for(problem, placement, Routing(self.routing), "lazarus"))


def replicas(load_E: NDArray[np.integer], num_ranks: int, num_slots: int, fault_threshold: int) -> NDArray[np.int64]:
    """[E] copies of each expert."""
    least = min(fault_threshold, num_ranks, num_slots // len(load_E))
    copies_E = np.full(len(load_E), least, np.int64)
    for _ in range(min(num_slots, num_ranks * len(load_E)) - copies_E.sum()):
        copies_E[np.argmax(np.where(copies_E < num_ranks, load_E / copies_E, -1.0))] += 1
    return copies_E


def overlapping(
    copies_E: NDArray[np.int64], load_E: NDArray[np.integer], num_ranks: int, slots_per_rank: int
) -> list[list[int]]:
    """The experts of each rank of one layer; no rank holds an expert twice."""
    order = np.lexsort((load_E, copies_E))  # ascending, so a group's first expert has the fewest copies
    holds_RE = np.zeros((num_ranks, len(copies_E)), bool)
    next_rank = 0
    for start in range(0, len(order), slots_per_rank):
        group = order[start : start + slots_per_rank]
        ranks = np.arange(next_rank, min(next_rank + copies_E[group[0]], num_ranks))  # the last group may be small
        holds_RE[np.ix_(ranks, group)] = True
        next_rank += len(ranks)
    left_E = copies_E - holds_RE.sum(axis=0)
    while left_E.any():
        expert = int(np.argmax(left_E))
        free_R = np.where(holds_RE[:, expert], 0, slots_per_rank - holds_RE.sum(axis=1))
        if free_R.max() > 0:
            holds_RE[np.argmax(free_R), expert] = True
            left_E[expert] -= 1
        else:
            left_E[expert] = 0
    _fill(holds_RE, load_E, slots_per_rank)
    return [np.flatnonzero(holds_E).tolist() for holds_E in holds_RE]


def _fill(holds_RE: NDArray[np.bool_], load_E: NDArray[np.integer], slots_per_rank: int) -> None:
    """Give slots that are still free to the experts of largest load / copies that their ranks do not hold, in place."""
    for holds_E in holds_RE:
        while holds_E.sum() < min(slots_per_rank, len(holds_E)):
            share_E = load_E / holds_RE.sum(axis=0)
            holds_E[np.argmax(np.where(holds_E, -1.0, share_E))] = True

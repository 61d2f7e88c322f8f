"""Occult: equal-size groups of experts, grown greedily around far-apart seeds of the co-activation graph.

Expert placement of "Occult: Optimizing Collaborative Communication across Experts" (arXiv 2505.13345), which keeps
experts that tokens choose together on one rank. Details decided here, where the description leaves them open:

    affinity     tokens that chose both experts, unnormalised
    sizes        equal shares, at most one apart (`even_sizes`)
    seeds        first the expert of largest summed affinity; then, for each further group, the expert with the least
                 summed affinity to the seeds so far; ties to the larger summed affinity to all experts, so that experts
                 that are never chosen do not become seeds before busy ones
    growth       groups take turns in rank order; a turn takes the free expert of largest summed affinity to the group
    ranks        group i on rank i: the method is flat, nodes play no role

Remaining ties go to the lowest index.
"""

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from grace_opt.placement import Placement
from grace_opt.planners.linear import even_sizes
from grace_opt.problem import Problem
from grace_opt.profile import affinity
from grace_opt.routing import Routing
from grace_opt.solution import Solution, plan_for


@dataclass(frozen=True)
class Occult:
    """Groups of experts that are chosen together, one group a rank; no replicas.

    Example: 4 experts on 2 ranks; 3 tokens chose experts 0 and 2, 2 tokens 1 and 3, 1 token 0 and 1. Expert 0 is the
    first seed (summed affinity 4), expert 3 the second (never with 0). Expert 2 joins 0, expert 1 joins 3: ranks [0, 2]
    and [1, 3].
    """

    plans_by: ClassVar[str] = "structure"  # of the topology it sees only which ranks share a node

    def __call__(self, problem: Problem) -> Solution:
        sizes_R = even_sizes(problem)
        rank_LE = np.stack(
            [grow_groups(affinity(problem.trace, layer), sizes_R) for layer in range(problem.model.num_layers)]
        )
        placement = Placement.from_rank_of_expert(rank_LE, len(sizes_R))
        return Solution(plan_for(problem, placement, Routing("primary"), "occult"))


def grow_groups(affinity_EE: NDArray[np.int64], sizes_R: NDArray[np.int64]) -> NDArray[np.int64]:
    """[E] group of each expert; group r has sizes_R[r] experts.

    Args:
        affinity_EE: [E, E] symmetric, diagonal 0.
        sizes_R: [R] sizes of groups, E in all; empty groups are allowed.
    """
    assert sizes_R.sum() == len(affinity_EE)
    group_E = np.full(len(affinity_EE), -1)
    pull_RE = np.zeros((len(sizes_R), len(affinity_EE)), np.int64)  # summed affinity of an expert to a group

    def join(expert: int, group: int) -> None:
        group_E[expert] = group
        pull_RE[group] += affinity_EE[expert]

    busiest_E = np.argsort(-affinity_EE.sum(axis=1), kind="stable")
    for group in np.flatnonzero(sizes_R).tolist():
        free = busiest_E[group_E[busiest_E] < 0]
        join(free[np.argmin(pull_RE[:, free].sum(axis=0))], group)
    for turn in range(1, sizes_R.max()):
        for group in np.flatnonzero(sizes_R > turn).tolist():
            free = np.flatnonzero(group_E < 0)
            join(free[np.argmax(pull_RE[group, free])], group)
    return group_E

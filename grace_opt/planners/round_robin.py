"""Expert e on rank e mod R: neighbours in index order are kept apart."""

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from grace_opt.placement import Placement
from grace_opt.planners.linear import even_sizes
from grace_opt.problem import Problem
from grace_opt.routing import Routing
from grace_opt.solution import Solution, plan_for


@dataclass(frozen=True)
class RoundRobin:
    """Experts dealt to the ranks in turn; ranks whose slots are full are passed over. No replicas.

    Example: 5 experts on 2 ranks of 3 slots are [0, 2, 4] and [1, 3].
    """

    plans_by: ClassVar[str] = "structure"  # of the topology it sees only which ranks share a node
    plans_from: ClassVar[str] = "loads"  # it reads nothing of the trace

    def __call__(self, problem: Problem) -> Solution:
        sizes = even_sizes(problem)
        turns = [(turn, rank) for rank, size in enumerate(sizes) for turn in range(size)]
        rank_E = np.array([rank for _, rank in sorted(turns)])
        placement = Placement.from_rank_of_expert(
            np.broadcast_to(rank_E, (problem.model.num_layers, len(rank_E))), problem.topology.num_ranks
        )
        return Solution(plan_for(problem, placement, Routing("primary"), "round_robin"))

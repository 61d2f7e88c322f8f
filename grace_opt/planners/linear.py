"""Experts in index order: the default of DeepSpeed-MoE, Tutel, MegaBlocks, vLLM, SGLang and Megatron."""

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from grace_opt.placement import Placement
from grace_opt.problem import Problem
from grace_opt.routing import Routing
from grace_opt.solution import Solution, plan_for


@dataclass(frozen=True)
class Linear:
    """Consecutive experts on one rank, as evenly as the slots of the ranks allow; no replicas.

    Example: 5 experts on 2 ranks of 3 slots are [0, 1, 2] and [3, 4].
    """

    plans_by: ClassVar[str] = "structure"  # of the topology it sees only which ranks share a node
    plans_from: ClassVar[str] = "loads"  # it reads nothing of the trace

    def __call__(self, problem: Problem) -> Solution:
        rank_E = np.repeat(np.arange(problem.topology.num_ranks), even_sizes(problem))
        placement = Placement.from_rank_of_expert(
            np.broadcast_to(rank_E, (problem.model.num_layers, len(rank_E))), problem.topology.num_ranks
        )
        return Solution(plan_for(problem, placement, Routing("primary"), "linear"))


def even_sizes(problem: Problem) -> np.ndarray[tuple[int], np.dtype[np.int64]]:
    """[R] experts per rank, E in all: equal shares, at most one apart, less where a rank has fewer slots."""
    sizes = np.zeros(problem.topology.num_ranks, np.int64)
    for _ in range(problem.model.num_experts):
        room = sizes < problem.slots_per_rank
        sizes[np.argmin(np.where(room, sizes, np.iinfo(np.int64).max))] += 1
    return sizes

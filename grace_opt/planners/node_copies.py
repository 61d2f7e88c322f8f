"""Every node holds every expert: expert parallelism inside nodes, data parallelism between, no row between."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from grace_opt.placement import Placement, fill
from grace_opt.problem import Problem
from grace_opt.profile import expert_loads
from grace_opt.routing import Routing
from grace_opt.solution import Solution, plan_for


@dataclass(frozen=True)
class NodeCopies:
    """Each node deals all experts to its ranks, the hottest first, each to the rank with least load that has room;
    slots left over hold further copies of hot experts.

    Example: loads 9, 5, 4, 1 on nodes of 2 ranks with 2 slots: [0, 3] and [1, 2], on every node.
    """

    def __call__(self, problem: Problem) -> Solution:
        topology, experts = problem.topology, problem.model.num_experts
        slots_N = np.bincount(topology.node_of_rank, problem.slots_per_rank)
        if slots_N.min() < experts:
            raise ValueError(f"a node has {slots_N.min():.0f} slots, fewer than {experts} experts")
        layers = []
        for load_E, layer_id in zip(expert_loads(problem.trace), problem.model.layer_ids, strict=True):
            ranks: list[list[int]] = []
            for node in range(topology.num_nodes):
                ranks += _dealt(load_E, problem.slots_per_rank[topology.node_of_rank == node])
            if experts >= problem.slots_per_rank.max():
                fill(ranks, problem.slots_per_rank.tolist(), load_E, layer_id)
            layers.append(ranks)
        return Solution(plan_for(problem, Placement.from_lists(layers, experts), Routing("tar"), "node_copies"))


def _dealt(load_E: NDArray[np.integer], slots_R: NDArray[np.int64]) -> list[list[int]]:
    """Experts of each rank of a node."""
    ranks: list[list[int]] = [[] for _ in slots_R]
    load_R = np.zeros(len(slots_R))
    for expert in np.argsort(-load_E, kind="stable").tolist():
        full_R = np.array([len(held) for held in ranks]) >= slots_R
        rank = int(np.argmin(np.where(full_R, np.inf, load_R)))
        ranks[rank].append(expert)
        load_R[rank] += load_E[expert]
    return ranks

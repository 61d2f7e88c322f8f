"""Experts divided by hypergraph partitioning of the tokens' expert sets, with Mt-KaHyPar (arXiv 2303.17679).

Each layer by itself. Vertices are experts, of weight their load; the experts that a token chose are a hyperedge, and
equal sets are one edge of weight their tokens. An edge whose experts lie in c groups sends its tokens to c places, so
the connectivity metric, sum over edges of weight x (c - 1), counts destinations exactly, where a graph of pairs
(`grace.py`, `occult.py`) counts a token up to K (K - 1) / 2 times. Where tokens live plays no role.

    groups    experts are divided over nodes, then those of each node over its ranks, each time for the least
              connectivity with no group's load above its fair share by more than `imbalance`
    slots     the partitioner knows loads, not slots: experts move from groups that hold too many to groups with room,
              each time the move that exceeds the allowed load least, and of those the one that raises connectivity
              least, until every rank has as many experts as the others (at most one apart, fewer where slots are fewer)
    copies    in slots that are left, by the marginal gain of GRACE+ (`grace_plus.with_copies`), served under `cover`

The partitioner runs on one thread, where its default preset repeats itself; on several, only the deterministic preset
does, which takes several times as long and finds nothing better.
"""

import importlib
from dataclasses import dataclass
from types import ModuleType
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from grace_opt.placement import Placement
from grace_opt.planners.grace_plus import with_copies
from grace_opt.planners.linear import even_sizes
from grace_opt.problem import Problem
from grace_opt.profile import expert_loads
from grace_opt.routing import Routing
from grace_opt.solution import Solution, plan_for


@dataclass(frozen=True)
class Hypergraph:
    """Groups of experts that tokens choose together, of equal size and about equal load.

    Attributes:
        imbalance: share by which a group's load may exceed its fair share, where sizes allow it.
        num_tokens: evenly spaced tokens of the trace that make the hyperedges; null for all. Loads are those of all.
        load_weight: of copies; a token less on the busier rank, measured in saved visits.
        seed: of the partitioner.

    Raises:
        ValueError: an option is out of range; or, when planning, Mt-KaHyPar is not installed.

    Example: 4 experts on 2 ranks; 3 tokens chose experts 0 and 2, 3 tokens 1 and 3, 1 token 0 and 1: groups {0, 2} and
    {1, 3}, and only the last token has two destinations.
    """

    plans_by: ClassVar[str] = "structure"  # of the topology it sees only which ranks share a node

    imbalance: float = 0.05
    num_tokens: int | None = 4000
    load_weight: float = 1.0
    seed: int = 0

    def __post_init__(self) -> None:
        for field in ("imbalance", "load_weight"):
            if not 0 <= getattr(self, field) < np.inf:
                raise ValueError(f"hypergraph: {field} must be a number, at least 0, got {getattr(self, field)}")
        if self.num_tokens is not None and self.num_tokens < 1:
            raise ValueError(f"hypergraph: num_tokens must be at least 1, or null for all, got {self.num_tokens}")
        if not 0 <= self.seed < 2**31:
            raise ValueError(f"hypergraph: seed must be a number from 0 to 2**31 - 1, got {self.seed}")

    def __call__(self, problem: Problem) -> Solution:
        mt_kahypar()  # missing, it is missed before any work
        holds_LRE, loads_LE = [], expert_loads(problem.trace)
        for layer, load_E in enumerate(loads_LE):
            ids_TK = problem.trace.layer(layer)
            rank_E = self._ranks(ids_TK, load_E, problem)
            holds_LRE.append(with_copies(ids_TK, rank_E, load_E, problem.slots_per_rank, self.load_weight))
        lists = [[np.flatnonzero(holds_E).tolist() for holds_E in holds_RE] for holds_RE in holds_LRE]
        placement = Placement.from_lists(lists, problem.model.num_experts)
        replicated = bool((placement.num_copies > 1).any())
        return Solution(plan_for(problem, placement, Routing("cover" if replicated else "primary"), "hypergraph"))

    def _ranks(
        self, ids_TK: NDArray[np.unsignedinteger], load_E: NDArray[np.int64], problem: Problem
    ) -> NDArray[np.int64]:
        """[E] rank of each expert: nodes first, then the ranks of each."""
        step = 1 if self.num_tokens is None else -(-len(ids_TK) // self.num_tokens)
        edges = Hyperedges.of(ids_TK[::step], len(load_E))
        sizes_R, node_R = even_sizes(problem), problem.topology.node_of_rank
        sizes_N = np.bincount(node_R, weights=sizes_R).astype(np.int64)
        node_E = self._groups(edges, load_E, sizes_N, np.bincount(node_R))
        rank_E = np.empty(len(load_E), np.int64)
        for node in range(problem.topology.num_nodes):
            experts, ranks = np.flatnonzero(node_E == node), np.flatnonzero(node_R == node)
            group_M = self._groups(edges.among(experts), load_E[experts], sizes_R[ranks], np.ones_like(ranks))
            rank_E[experts] = ranks[group_M]
        return rank_E

    def _groups(
        self, edges: "Hyperedges", load_E: NDArray[np.int64], sizes_G: NDArray[np.int64], ranks_G: NDArray[np.int64]
    ) -> NDArray[np.int64]:
        """[E] group of each expert, of exactly these sizes; ranks_G is how many ranks share a group's load."""
        if len(sizes_G) == 1 or not len(load_E):
            return np.zeros(len(load_E), np.int64)
        limit_G = np.ceil((1 + self.imbalance) * load_E.sum() * ranks_G / ranks_G.sum()).astype(np.int64)
        group_E = partition(edges, load_E, limit_G, self.imbalance, self.seed) if len(edges.tokens) else load_E * 0
        return with_sizes(edges, group_E, load_E, sizes_G, limit_G)


@dataclass(frozen=True, eq=False)
class Hyperedges:
    """Distinct sets of experts that tokens chose; those of one expert tell nothing and are left out.

    Attributes:
        chosen: bool [U, E], the experts of each set.
        tokens: int64 [U], how many chose it.
    """

    chosen: NDArray[np.bool_]
    tokens: NDArray[np.int64]

    @classmethod
    def of(cls, ids_TK: NDArray[np.unsignedinteger], num_experts: int) -> "Hyperedges":
        """Those of a layer's tokens."""
        chosen_TE = np.zeros((len(ids_TK), num_experts), bool)
        np.put_along_axis(chosen_TE, ids_TK.astype(np.int64), True, axis=1)
        return cls._merged(chosen_TE, np.ones(len(ids_TK), np.int64))

    def among(self, experts: NDArray[np.int64]) -> "Hyperedges":
        """What is left of them when only these experts count."""
        return self._merged(self.chosen[:, experts], self.tokens)

    @classmethod
    def _merged(cls, chosen_TE: NDArray[np.bool_], tokens_T: NDArray[np.int64]) -> "Hyperedges":
        keep = chosen_TE.sum(axis=1) > 1
        packed_T = np.packbits(chosen_TE[keep], axis=1)
        packed_U, edge_T = np.unique(packed_T, axis=0, return_inverse=True)
        chosen_UE = np.unpackbits(packed_U, axis=1, count=chosen_TE.shape[1]).astype(bool)
        tokens_U = np.bincount(edge_T.ravel(), weights=tokens_T[keep], minlength=len(packed_U))
        return cls(chosen_UE, tokens_U.astype(np.int64))

    def connectivity(self, group_E: NDArray[np.int64]) -> int:
        """Sum over tokens of the groups their experts lie in, less one each."""
        groups_U = (self._members(group_E, int(group_E.max()) + 1) > 0).sum(axis=1)
        return int(self.tokens @ (groups_U - 1))

    def changes(self, group_E: NDArray[np.int64], num_groups: int) -> NDArray[np.int64]:
        """[E, G] by how much the connectivity rises when an expert moves to a group; of no meaning for its own."""
        count_UG = self._members(group_E, num_groups)
        weight_UE = self.chosen * self.tokens[:, None].astype(np.float64)  # floats, for fast and exact products
        opens_EG = weight_UE.T @ (count_UG == 0)
        closes_E = (weight_UE * (count_UG == 1)[:, group_E]).sum(axis=0)
        return np.asarray(opens_EG - closes_E[:, None]).astype(np.int64)

    def _members(self, group_E: NDArray[np.int64], num_groups: int) -> NDArray[np.float64]:
        """[U, G] experts of each set in each group."""
        return np.asarray(self.chosen.astype(np.float64) @ (group_E[:, None] == np.arange(num_groups)))


def mt_kahypar() -> ModuleType:
    """The partitioner's module, which is optional.

    Raises:
        ValueError: it is not installed.
    """
    try:
        return importlib.import_module("mtkahypar")
    except ModuleNotFoundError:
        raise ValueError(
            "planner=hypergraph needs Mt-KaHyPar, which is not installed: pip install 'grace-opt[hypergraph]'"
        ) from None


def partition(
    edges: Hyperedges, load_E: NDArray[np.int64], limit_G: NDArray[np.int64], imbalance: float, seed: int
) -> NDArray[np.int64]:
    """[E] groups of small connectivity whose loads stay within limit_G, as far as Mt-KaHyPar can."""
    mtkahypar = mt_kahypar()
    partitioner = mtkahypar.initialize(1, False)  # threads, warnings
    mtkahypar.set_seed(seed)
    context = partitioner.context_from_preset(mtkahypar.PresetType.DEFAULT)
    context.set_partitioning_parameters(len(limit_G), imbalance, mtkahypar.Objective.KM1)
    context.set_individual_target_block_weights(limit_G.tolist())
    experts = np.split(np.nonzero(edges.chosen)[1], np.cumsum(edges.chosen.sum(axis=1))[:-1])
    hypergraph = partitioner.create_hypergraph(
        context, len(load_E), len(experts), [pins.tolist() for pins in experts], load_E.tolist(), edges.tokens.tolist()
    )
    return np.array(hypergraph.partition(context).get_partition(), np.int64)


def with_sizes(
    edges: Hyperedges,
    group_E: NDArray[np.int64],
    load_E: NDArray[np.int64],
    sizes_G: NDArray[np.int64],
    limit_G: NDArray[np.int64],
) -> NDArray[np.int64]:
    """[E] the groups after as few moves as make their sizes exactly sizes_G, E in all."""
    group_E, num_groups = group_E.copy(), len(sizes_G)
    assert sizes_G.sum() == len(group_E)
    while ((spare_G := sizes_G - np.bincount(group_E, minlength=num_groups)) < 0).any():
        load_G = np.bincount(group_E, weights=load_E, minlength=num_groups)
        excess_G, moved_E1 = np.maximum(load_G - limit_G, 0), load_E[:, None]
        gained_EG = np.maximum(load_G + moved_E1 - limit_G, 0) - excess_G  # by the group that takes the expert
        lost_EG = excess_G - np.maximum(load_G - moved_E1 - limit_G, 0)  # by the group that it leaves
        excess_EG = gained_EG - np.take_along_axis(lost_EG, group_E[:, None], axis=1)
        allowed_EG = (spare_G[group_E] < 0)[:, None] & (spare_G > 0)
        excess_EG[~allowed_EG] = np.inf
        least_EG = excess_EG == excess_EG.min()
        change_EG = np.where(least_EG, edges.changes(group_E, num_groups), np.iinfo(np.int64).max)
        expert, group = np.unravel_index(np.argmin(change_EG), change_EG.shape)
        group_E[expert] = group
    return group_E

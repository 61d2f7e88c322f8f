"""GRACE-MoE (arXiv 2509.25041): group experts by affinity, copy the hot ones, serve tokens from the nearest copy.

Each layer by itself, in three steps, each with its own option:

    grouping      experts that tokens choose together share a node, then a rank: `spectral.py`
    replication   the heaviest rank's hot experts are copied to light ranks: `dynamic_replication.py`
    routing       a token takes its own rank's copy, else its node's, else any (`tar`), or any (`wrr`); ranks are polled
                  by 1 / predicted load

What the paper leaves open is decided so:

- The embedding is `unit_rows`: with it layers took less time on the data they were fitted to than with `random_walk` in
  all 16 cells tried (LOG.md), and a rival is compared at its best. `random_walk` sends less across, with less balance.
- Uniform grouping has equal sizes at both levels, so that ranks end at most one expert apart.
- Otherwise the node level leaves sizes free, but a node gets at least one expert a rank.
- The knee is that of one curve for the whole model: U(r) and S(r) pooled over layers, r in RATIOS, S against
  floor(n / D) of each node.
- Without replicas every expert has one copy, so the plan's routing is `primary`, whatever `routing` says.
- The method has no memory budget. `over_budget="error"` plans without one and refuses what exceeds the problem's
  slots; `over_budget="trim"` caps group sizes by the slots of ranks and nodes, and places copies in free slots only.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from grace_opt.placement import EMPTY, Placement
from grace_opt.planners.dynamic_replication import (
    LOAD_PREDICTIONS,
    REPLICATIONS,
    ReplicatedLayer,
    polling_weights,
    replicate,
)
from grace_opt.planners.spectral import (
    EMBEDDINGS,
    affinity_inside,
    knee,
    number_groups,
    size_limits,
    slack,
    spectral_clustering,
    within_limits,
)
from grace_opt.problem import Problem
from grace_opt.profile import affinity, expert_loads
from grace_opt.routing import Routing
from grace_opt.solution import Solution, plan_for
from grace_opt.topology import Topology

RATIOS = tuple(step / 20 for step in range(21))
"""Values of r among which the knee is sought."""
_CHOICES = {
    "grouping": ("uniform", "controlled", "non_uniform"),
    "levels": (1, 2),
    "replication": REPLICATIONS,
    "routing": ("wrr", "tar"),
    "load_prediction": LOAD_PREDICTIONS,
    "over_budget": ("error", "trim"),
    "embedding": EMBEDDINGS,
}


@dataclass(frozen=True)
class Grace:
    """Grouping, replication and routing of GRACE-MoE.

    Attributes:
        grouping: sizes of the groups of a node's ranks: "uniform", "controlled" (within `ratio` of equal) or
            "non_uniform".
        ratio: r of controlled grouping, which alone reads it; None takes the knee of U(r) against S(r).
        levels: 2 groups experts to nodes, then to the ranks of each; 1 to all ranks at once (as on a single node).
        replication: "none", "fixed" (FR) or "dynamic" (DR).
        routing: "wrr" or "tar".
        load_prediction: "even_split" or "as_printed", for the polling weights.
        over_budget: "error" or "trim".
        embedding: of experts for spectral clustering, "unit_rows" or "random_walk".
        seed: of k-means.

    Raises:
        ValueError: an option is none of these; or, when planning, the method wants more slots than the problem has.
    """

    plans_by: ClassVar[str] = "structure"  # of the topology it sees only which ranks share a node

    grouping: str = "controlled"
    ratio: float | None = 0.15
    levels: int = 2
    replication: str = "dynamic"
    routing: str = "tar"
    load_prediction: str = "even_split"
    over_budget: str = "error"
    embedding: str = "unit_rows"
    seed: int = 0

    def __post_init__(self) -> None:
        for field, choices in _CHOICES.items():
            if (value := getattr(self, field)) not in choices:
                raise ValueError(f"grace: {field} must be one of {', '.join(map(str, choices))}, got {value!r}")
        if self.ratio is not None and not (isinstance(self.ratio, int | float) and 0 <= self.ratio <= 1):
            raise ValueError(f"grace: ratio must lie between 0 and 1, or be null for the knee, got {self.ratio!r}")
        if self.seed < 0:
            raise ValueError(f"grace: seed must not be negative, got {self.seed}")
        if self.grouping != "controlled" and self.ratio != Grace.ratio:
            raise ValueError(
                f"grace: ratio={self.ratio} is read by controlled grouping only, but grouping={self.grouping}"
            )
        if self.replication == "none" and (self.routing, self.load_prediction) != (
            Grace.routing,
            Grace.load_prediction,
        ):
            raise ValueError("grace: routing and load_prediction are read with replicas only, but replication=none")

    def __call__(self, problem: Problem) -> Solution:
        if self.over_budget == "trim":
            layers = self._layers(problem, problem.slots_per_rank)
        else:
            layers = self._layers(problem, _unlimited(problem))
            _require_budget(layers, problem)
        placement = _placement(layers, problem)
        name = "grace" if self.over_budget == "error" else "grace_trimmed"
        return Solution(plan_for(problem, placement, self._routing(layers, placement, problem), name))

    def slots_wanted(self, problem: Problem) -> int:
        """The most slots that any rank takes in any layer when the method plans without a budget."""
        return int(_placement(self._layers(problem, _unlimited(problem)), problem).slots_used.max())

    def _layers(self, problem: Problem, room_R: NDArray[np.int64]) -> list[ReplicatedLayer]:
        """Experts and copies of each layer, at most room_R of them on each rank."""
        branches_L = [
            self._branches(affinity(problem.trace, layer), problem.topology, room_R)
            for layer in range(problem.model.num_layers)
        ]
        ratio = self._ratio(branches_L)
        return [
            replicate(load_E, _rank_of_expert(branches, ratio), room_R, self.replication)
            for load_E, branches in zip(expert_loads(problem.trace), branches_L, strict=True)
        ]

    def _branches(
        self, affinity_EE: NDArray[np.int64], topology: Topology, room_R: NDArray[np.int64]
    ) -> list["_Branch"]:
        """The first level: experts divided over nodes."""
        num_experts, node_R = len(affinity_EE), topology.node_of_rank
        if self.levels == 1:
            node_R = np.zeros_like(node_R)
        limits_R = size_limits(num_experts, room_R, 0 if self.grouping == "uniform" else num_experts)
        smallest_N, largest_N = (np.bincount(node_R, weights=limit_R).astype(np.int64) for limit_R in limits_R)
        cluster_E = spectral_clustering(affinity_EE, len(largest_N), self.embedding, self.seed)
        node_E = within_limits(number_groups(cluster_E, largest_N), affinity_EE, smallest_N, largest_N)
        branches = []
        for node in range(len(largest_N)):
            experts, ranks = np.flatnonzero(node_E == node), np.flatnonzero(node_R == node)
            inner_EE = affinity_EE[np.ix_(experts, experts)]
            clusters = spectral_clustering(inner_EE, len(ranks), self.embedding, self.seed)
            branches.append(_Branch(experts, ranks, room_R[ranks], inner_EE, number_groups(clusters, room_R[ranks])))
        return branches

    def _ratio(self, branches_L: Sequence[Sequence["_Branch"]]) -> float | None:
        """r for all layers; None leaves sizes free."""
        if self.grouping != "controlled":
            return 0.0 if self.grouping == "uniform" else None
        return self.ratio if self.ratio is not None else ratio_at_knee(branches_L)

    def _routing(self, layers: Sequence[ReplicatedLayer], placement: Placement, problem: Problem) -> Routing:
        if self.replication == "none":
            return Routing("primary")
        loads_LE = expert_loads(problem.trace)
        weights_LR = np.array(
            [
                polling_weights(layer.predicted_load(load_E, self.load_prediction))
                for layer, load_E in zip(layers, loads_LE, strict=True)
            ]
        )
        return Routing(self.routing, np.where(placement.slots != EMPTY, weights_LR[:, :, None], 0.0))


@dataclass(frozen=True, eq=False)
class _Branch:
    """Experts of one layer that are to be divided over the ranks of one node, clustered but not yet within limits.

    Attributes:
        experts: [M] ascending.
        ranks, room: [G] the ranks, and the most experts each can hold.
        affinity: [M, M].
        clusters: [M] index into `ranks`.
    """

    experts: NDArray[np.int64]
    ranks: NDArray[np.int64]
    room: NDArray[np.int64]
    affinity: NDArray[np.int64]
    clusters: NDArray[np.int64]

    def groups(self, ratio: float | None) -> NDArray[np.int64]:
        """[M] index into `ranks`, sizes within a ratio of equal; None leaves sizes free."""
        num_experts = len(self.experts)
        freedom = num_experts if ratio is None else slack(num_experts, len(self.ranks), ratio)
        return within_limits(self.clusters, self.affinity, *size_limits(num_experts, self.room, freedom))


def ratio_at_knee(branches_L: Sequence[Sequence[_Branch]]) -> float:
    """The r of RATIOS at the knee of U(r), the affinity inside ranks, against S(r), the deviation of their sizes.

    U is a sum where the paper has a share of all affinity; the factor between does not move the knee.
    """
    inside, deviation = np.zeros(len(RATIOS)), np.zeros(len(RATIOS))
    for index, ratio in enumerate(RATIOS):
        squares = []
        for branch in (branch for branches in branches_L for branch in branches):
            group_M = branch.groups(ratio)
            sizes = np.bincount(group_M, minlength=len(branch.ranks))
            inside[index] += affinity_inside(group_M, branch.affinity)
            squares.append((sizes - len(group_M) // len(sizes)) ** 2)
        deviation[index] = np.sqrt(np.concatenate(squares).mean())
    return RATIOS[knee(deviation, inside)]


def _rank_of_expert(branches: Sequence[_Branch], ratio: float | None) -> NDArray[np.int64]:
    rank_E = np.empty(sum(len(branch.experts) for branch in branches), np.int64)
    for branch in branches:
        rank_E[branch.experts] = branch.ranks[branch.groups(ratio)]
    return rank_E


def _placement(layers: Sequence[ReplicatedLayer], problem: Problem) -> Placement:
    return Placement.from_lists([layer.experts_of_ranks() for layer in layers], problem.model.num_experts)


def _unlimited(problem: Problem) -> NDArray[np.int64]:
    """[R] room on a rank that no layer can exhaust."""
    return np.full(problem.topology.num_ranks, problem.model.num_experts)


def _require_budget(layers: Sequence[ReplicatedLayer], problem: Problem) -> None:
    used_LR = _placement(layers, problem).slots_used
    over_LR = used_LR - problem.slots_per_rank
    if (over_LR > 0).any():
        layer, rank = np.unravel_index(np.argmax(over_LR), over_LR.shape)
        wanted, budget = used_LR[layer, rank], problem.slots_per_rank[rank]
        raise ValueError(
            f"grace wants {wanted} slots per rank (layer {problem.model.layer_ids[layer]}, rank {rank}), "
            f"the budget is {budget}: give slots_per_rank={used_LR.max()}, or planner=grace_trimmed"
        )

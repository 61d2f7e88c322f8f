"""EPLB, the balancer that serving engines ship: more copies of loaded experts, then greedy packing.

The algorithm of DeepSeek (https://github.com/deepseek-ai/EPLB, MIT licence), in each layer:

    1  groups to nodes    E experts in consecutive groups; groups packed to nodes by their load
    2  copies             in each node one copy an expert; then, while slots are left, one more copy to the expert with
                          the largest load / copies
    3  copies to ranks    in each node copies packed to ranks by load / copies

    packing               items by descending weight, each to the lightest pack that still has room; every pack takes
                          equally many items. With one item a pack, item i goes to pack i.

The flat policy ("global" in the original) is the same with one group and one node. Ties go to the lowest index; the
original leaves equal weights to PyTorch's sort, whose order is that of the index only where it sorts stably. Loads are
single precision as in the original, so that ties fall alike; sums of counts are exact up to 2**24 tokens.
"""

import warnings
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from numba import njit
from numpy.typing import ArrayLike, NDArray

from grace_opt.placement import Placement
from grace_opt.problem import Problem
from grace_opt.profile import expert_loads
from grace_opt.routing import Routing
from grace_opt.solution import Solution, plan_for


@dataclass(frozen=True)
class Eplb:
    """DeepSeek's EPLB: fills every slot of the budget, balances the load of ranks, is blind to who is chosen with whom.

    All ranks must have the same number of slots, because its packing gives each rank equally many copies. EPLB does not
    say which copy serves a token: engines differ.

    Attributes:
        hierarchical: keep each expert group on one node; needs nodes of equal size. If the model's groups do not divide
            over the nodes, the flat policy runs as in the original, and a warning says so.
        num_groups: groups for the hierarchical policy; None means those of the model's router, or every expert a group
            for a model without groups. A number that does not divide is an error: it was asked for.
        routing: "uniform" polls all copies in turn, blind to where they are, as vLLM and TensorRT-LLM do; "tar" prefers
            the token's own rank, then its node, as SGLang does with an all-to-all backend.
        forbid_duplicates: no rank holds an expert twice (the original may). An expert gets at most as many copies as
            its node (flat: the cluster) has ranks, and repeated experts are swapped away after the packing.

    Example: 4 experts of load 6, 3, 2, 1 on 2 ranks of 3 slots. Expert 0 gets three copies of load 2; the ranks become
    [1, 0, 3] and [0, 2, 0], load 6 each. With `forbid_duplicates` experts 0 and 1 get two copies, and the ranks become
    [0, 1, 3] and [0, 2, 1], loads 5.5 and 6.5.
    """

    plans_by: ClassVar[str] = "structure"  # of the topology it sees only which ranks share a node
    plans_from: ClassVar[str] = "loads"  # counts are enough

    hierarchical: bool = False
    num_groups: int | None = None
    forbid_duplicates: bool = False
    routing: str = "uniform"

    def __post_init__(self) -> None:
        if self.routing not in ("uniform", "tar"):
            raise ValueError(f"eplb: routing must be uniform or tar, got {self.routing!r}")
        if self.num_groups is None:
            return
        if not self.hierarchical:
            raise ValueError("eplb: num_groups is read by the hierarchical policy only: set hierarchical=true")
        if self.num_groups < 1:
            raise ValueError(f"eplb: num_groups must be at least 1, got {self.num_groups}")

    def __call__(self, problem: Problem) -> Solution:
        slots = problem.slots_per_rank
        if slots.min() != slots.max():
            raise ValueError(
                f"eplb packs equally many experts on every rank, but slots_per_rank runs from {slots.min()} to "
                f"{slots.max()}: give all ranks the same number"
            )
        groups, nodes = self.groups_and_nodes(problem)
        num_ranks = problem.topology.num_ranks
        expert_LP = rebalance(
            expert_loads(problem.trace), problem.num_slots, groups, nodes, num_ranks, self.forbid_duplicates
        )
        placement = Placement(
            expert_LP.reshape(len(expert_LP), num_ranks, -1).astype(np.int32), problem.model.num_experts
        )
        name = "eplb" if (groups, nodes) == (1, 1) else "eplb_hierarchical"
        return Solution(plan_for(problem, placement, Routing(self.routing), name))

    def groups_and_nodes(self, problem: Problem) -> tuple[int, int]:
        """Groups and nodes that the policy works on; (1, 1) is the flat policy.

        Raises:
            ValueError: a configured number of groups does not divide, or nodes differ in size.
        """
        if not self.hierarchical:
            return 1, 1
        model, topology = problem.model, problem.topology
        groups = self.num_groups or (model.num_expert_groups if model.num_expert_groups > 1 else model.num_experts)
        if self.num_groups is None and groups % topology.num_nodes:
            warnings.warn(
                f"eplb: hierarchical=true is not used, the flat policy runs: model {model.name} has {groups} expert "
                f"groups, which do not divide over {topology.num_nodes} nodes; num_groups={model.num_experts} would "
                "make every expert a group",
                stacklevel=3,
            )
            return 1, 1
        if groups % topology.num_nodes or model.num_experts % groups:
            raise ValueError(
                f"eplb: num_groups={groups} must be a multiple of the {topology.num_nodes} nodes of topology "
                f"{topology.name} and divide the {model.num_experts} experts of model {model.name}"
            )
        if len(set(topology.ranks_per_node)) > 1:
            raise ValueError(
                f"eplb: the hierarchical policy needs nodes of equal size, but topology {topology.name} has nodes of "
                f"{list(topology.ranks_per_node)} ranks: set hierarchical=false"
            )
        return groups, topology.num_nodes


def rebalance(
    weights_LE: ArrayLike,
    num_replicas: int,
    num_groups: int,
    num_nodes: int,
    num_gpus: int,
    forbid_duplicates: bool = False,
) -> NDArray[np.int64]:
    """[L, P] logical expert of each physical expert, P = num_replicas; slot s of GPU g is column g * P / num_gpus + s.

    Arguments and result are those of the original's `rebalance_experts` (its first result), including its choice of
    policy: hierarchical if num_groups is a multiple of num_nodes, else flat.

    Args:
        weights_LE: [L, E] load of each expert.
        forbid_duplicates: see `Eplb`.

    Raises:
        ValueError: numbers that do not divide, too few replicas, or more slots on a GPU than different experts.
    """
    load_LE = np.ascontiguousarray(weights_LE, np.float32)
    if load_LE.ndim != 2 or load_LE.size == 0 or not np.isfinite(load_LE).all() or (load_LE < 0).any():
        raise ValueError(f"eplb: loads must be finite, not negative, and shaped [layers, experts], got {load_LE.shape}")
    if min(num_groups, num_nodes, num_gpus) < 1:
        raise ValueError(f"eplb: needs at least one group, node and GPU, got {num_groups}, {num_nodes}, {num_gpus}")
    if num_groups % num_nodes:
        num_groups = num_nodes = 1
    num_experts = load_LE.shape[1]
    for whole, part, words in (
        (num_experts, num_groups, "experts do not divide into {} groups"),
        (num_gpus, num_nodes, "GPUs do not divide over {} nodes"),
        (num_replicas, num_gpus, "replicas do not divide over {} GPUs"),
    ):
        if whole % part:
            raise ValueError(f"eplb: {whole} {words.format(part)}")
    if num_replicas < num_experts:
        raise ValueError(f"eplb: {num_replicas} replicas are fewer than the {num_experts} experts")
    if forbid_duplicates and num_replicas // num_gpus > num_experts // num_nodes:
        raise ValueError(
            f"eplb: {num_replicas // num_gpus} slots on a GPU cannot hold different experts, there are only "
            f"{num_experts // num_nodes} to choose from: give fewer slots or set forbid_duplicates=false"
        )
    return np.asarray(_rebalance_layers(load_LE, num_replicas, num_groups, num_nodes, num_gpus, forbid_duplicates))


@njit(nogil=True, cache=True)
def _rebalance_layers(load_LE, num_physical, num_groups, num_nodes, num_ranks, forbid_duplicates):  # type: ignore[no-untyped-def]
    ranks_of_node, slots_of_node = num_ranks // num_nodes, num_physical // num_nodes
    most_copies = ranks_of_node if forbid_duplicates else slots_of_node
    expert_LP = np.empty((len(load_LE), num_physical), np.int64)
    for layer in range(len(load_LE)):
        expert_NM = _groups_to_nodes(load_LE[layer], num_groups, num_nodes)
        for node in range(num_nodes):
            load_M = load_LE[layer][expert_NM[node]]
            member_C, copies_M = _replicate(load_M, slots_of_node, most_copies)
            load_C = np.empty(slots_of_node, np.float32)
            for copy in range(slots_of_node):
                load_C[copy] = load_M[member_C[copy]] / np.float32(copies_M[member_C[copy]])
            rank_C, place_C = _pack(load_C, ranks_of_node)
            copy_RS = np.empty((ranks_of_node, slots_of_node // ranks_of_node), np.int64)
            for copy in range(slots_of_node):
                copy_RS[rank_C[copy], place_C[copy]] = copy
            if forbid_duplicates:
                _separate(copy_RS, member_C, load_C, len(load_M))
            start = node * slots_of_node
            expert_LP[layer, start : start + slots_of_node] = expert_NM[node][member_C[copy_RS.ravel()]]
    return expert_LP


@njit(nogil=True, cache=True)
def _groups_to_nodes(load_E, num_groups, num_nodes):  # type: ignore[no-untyped-def]
    """[N, E / N] experts of each node, group after group in the order the groups were packed."""
    group_size, groups_of_node = len(load_E) // num_groups, num_groups // num_nodes
    load_G = np.zeros(num_groups, np.float32)
    for expert in range(len(load_E)):
        load_G[expert // group_size] += load_E[expert]
    node_G, place_G = _pack(load_G, num_nodes)
    expert_NM = np.empty((num_nodes, groups_of_node * group_size), np.int64)
    for expert in range(len(load_E)):
        group = expert // group_size
        expert_NM[node_G[group], place_G[group] * group_size + expert % group_size] = expert
    return expert_NM


@njit(nogil=True, cache=True)
def _replicate(load_M, num_copies, most_copies):  # type: ignore[no-untyped-def]
    """Expert of each copy [num_copies], first copies first, and copies of each expert [M], none above most_copies."""
    num_members = len(load_M)
    member_C = np.arange(num_copies)
    copies_M = np.ones(num_members, np.int64)
    share_M = load_M.copy()
    for copy in range(num_members, num_copies):
        best = -1
        for member in range(num_members):
            if copies_M[member] < most_copies and (best < 0 or share_M[member] > share_M[best]):
                best = member
        member_C[copy] = best
        copies_M[best] += 1
        share_M[best] = load_M[best] / np.float32(copies_M[best])
    return member_C, copies_M


@njit(nogil=True, cache=True)
def _pack(weight_I, num_packs):  # type: ignore[no-untyped-def]
    """Pack of each item [I], and its place in the pack: the number of items that were there before it."""
    room = len(weight_I) // num_packs
    if room == 1:
        return np.arange(num_packs), np.zeros(num_packs, np.int64)
    pack_I, place_I = np.empty(len(weight_I), np.int64), np.empty(len(weight_I), np.int64)
    weight_of_pack, items_of_pack = np.zeros(num_packs, np.float32), np.zeros(num_packs, np.int64)
    for item in np.argsort(-weight_I, kind="mergesort"):  # stable: equal weights in index order
        lightest = -1
        for pack in range(num_packs):
            if items_of_pack[pack] < room and (lightest < 0 or weight_of_pack[pack] < weight_of_pack[lightest]):
                lightest = pack
        pack_I[item], place_I[item] = lightest, items_of_pack[lightest]
        weight_of_pack[lightest] += weight_I[item]
        items_of_pack[lightest] += 1
    return pack_I, place_I


@njit(nogil=True, cache=True)
def _separate(copy_RS, member_C, load_C, num_members):  # type: ignore[no-untyped-def]
    """Swap copies between ranks, in place, until no rank holds an expert twice.

    A repeated expert goes to a rank without it, in exchange for a copy that is new to its own rank or repeated on the
    other. Of these swaps the one is made after which the sum of squared rank loads is smallest; ties to the lowest rank
    and slot. Each swap makes one more (rank, expert) pair, so there is an end, and it is only reached without repeats:
    an expert has no more copies than there are ranks, so a rank q without a repeated expert e of rank r exists; if q
    repeats an expert, that one may be exchanged, and if not, q holds S experts, of which r lacks at least two.
    """
    num_ranks, num_slots = copy_RS.shape
    count_RM = np.zeros((num_ranks, num_members), np.int64)
    load_R = np.zeros(num_ranks, np.float64)
    for rank in range(num_ranks):
        for copy in copy_RS[rank]:
            count_RM[rank, member_C[copy]] += 1
            load_R[rank] += load_C[copy]
    for rank in range(num_ranks):
        for slot in range(num_slots):
            while count_RM[rank, member_C[copy_RS[rank, slot]]] > 1:
                away = copy_RS[rank, slot]
                best, best_rank, best_slot = np.inf, -1, -1
                for other in range(num_ranks):
                    if count_RM[other, member_C[away]]:
                        continue
                    for place in range(num_slots):
                        back = copy_RS[other, place]
                        if count_RM[rank, member_C[back]] and count_RM[other, member_C[back]] == 1:
                            continue
                        moved = float(load_C[away]) - float(load_C[back])
                        growth = 2 * moved * (moved + load_R[other] - load_R[rank])
                        if growth < best:
                            best, best_rank, best_slot = growth, other, place
                assert best_rank >= 0, "a swap that separates copies always exists"
                back = copy_RS[best_rank, best_slot]
                copy_RS[rank, slot], copy_RS[best_rank, best_slot] = back, away
                moved = float(load_C[away]) - float(load_C[back])
                load_R[rank] -= moved
                load_R[best_rank] += moved
                count_RM[rank, member_C[away]] -= 1
                count_RM[best_rank, member_C[away]] += 1
                count_RM[best_rank, member_C[back]] -= 1
                count_RM[rank, member_C[back]] += 1

"""Choose the copies that serve one token from all its experts together: a copy where the token goes anyway is free.

The policy `cover` of `routing`, for a token of home rank h, the n-th of its rank in its batch (from 0), turn = h + n:

    nodes   an expert with a copy on h's node is served there, one with copies on a single node there. Each expert left
            takes a node that the token visits by now, the first after h's node in cyclic order; when none is left that
            can, the node is visited that holds most of the experts left (ties: the one first in cyclic order after h's
            node, moved on by turn), and so on
    ranks   inside its node an expert is served by the rank where the row enters (h, or the rank of equal local number),
            if that holds a copy; else by the only rank that does; then, expert by expert, by a rank that the token
            visits by now, else by the one whose turn it is. Both are sought from copy number turn, in cyclic order.
            At last, expert by expert, one that took its turn and is alone on its rank moves to a rank that others visit

GRACE-MoE decides for each (token, expert) alone (its section 3); what is decided here is which nodes and ranks are
visited. It needs no communication, no random numbers and no counters, so prediction and execution count the same.

Example: 2 nodes x 2 ranks, ranks hold [0], [1], [2, 1], [3, 0]; a token of rank 0 that chose experts 3 and 0 visits
ranks 3 and 0; one that chose 1 and 2 visits 1 and 2: its own node serves expert 1, though rank 2 is visited anyway.
With [0], [1], [1, 2], [2] on one node a token of rank 0, turn 0, sends experts 1 and 2 to ranks 1 and 2; then expert 1,
alone on rank 1, moves to rank 2.
"""

from dataclasses import dataclass

import numpy as np
from numba import njit
from numpy.typing import NDArray

from grace_opt.placement import EMPTY, Placement
from grace_opt.topology import proxy_ranks


@dataclass(frozen=True, eq=False)
class CopyTable:
    """Where the copies of each expert of a layer are, in order of ranks; C is the most copies of any.

    Attributes:
        num_copies: int64 [E].
        rank, physical: int64 [E, C], of each copy; 0 beyond the last. A second copy on one rank is left out.
        node_of_rank: int64 [R].
        entry: int64 [R, N], the rank where rows of a home rank enter a node; on its own node the rank itself.
    """

    num_copies: NDArray[np.int64]
    rank: NDArray[np.int64]
    physical: NDArray[np.int64]
    node_of_rank: NDArray[np.int64]
    entry: NDArray[np.int64]


def copy_table(placement: Placement, ranks_per_node: tuple[int, ...], layer: int) -> CopyTable:
    """The copies of one layer (its index in the placement)."""
    slots_RS = placement.slots[layer]
    physical_P = np.flatnonzero(slots_RS.ravel() != EMPTY)
    expert_P, rank_P = slots_RS.ravel()[physical_P], physical_P // slots_RS.shape[1]
    _, first = np.unique(expert_P.astype(np.int64) * placement.num_ranks + rank_P, return_index=True)
    expert_P, rank_P, physical_P = expert_P[first], rank_P[first], physical_P[first]  # by expert, then by rank
    num_copies = np.bincount(expert_P, minlength=placement.num_experts)
    place = np.arange(len(expert_P)) - np.repeat(np.cumsum(num_copies) - num_copies, num_copies)
    rank_EC = np.zeros((placement.num_experts, num_copies.max()), np.int64)
    physical_EC = np.zeros_like(rank_EC)
    rank_EC[expert_P, place], physical_EC[expert_P, place] = rank_P, physical_P
    node_of_rank = np.repeat(np.arange(len(ranks_per_node)), ranks_per_node)
    return CopyTable(num_copies, rank_EC, physical_EC, node_of_rank, entry_ranks(ranks_per_node))


def entry_ranks(ranks_per_node: tuple[int, ...]) -> NDArray[np.int64]:
    """[R, N] rank where rows of a home rank enter a node."""
    entry_RN = proxy_ranks(ranks_per_node).copy()
    ranks = np.arange(len(entry_RN))
    entry_RN[ranks, np.repeat(np.arange(len(ranks_per_node)), ranks_per_node)] = ranks
    return entry_RN


@njit(nogil=True, cache=True, inline="always")
def cover_token(  # type: ignore[no-untyped-def]
    ids_TK, t, home, turn, copies_E, rank_EC, node_R, entry_RN, node_K, node_seen_N, rank_seen_R, stamp, copy_K
):
    """Write into copy_K [K] which copy (place in rank_EC) serves each expert of token t.

    It takes whole arrays: a part of one costs more than all the rest.

    Args:
        copy_K: as long as the token has experts; node_K may be longer.
        node_K, node_seen_N, rank_seen_R: scratch; what is stamped with `stamp` in the last two counts as visited.
    """
    several = 0
    for k in range(len(copy_K)):
        several += copies_E[ids_TK[t, k]] > 1
        copy_K[k] = 0
    if several == 0:
        return
    own, left = node_R[home], 0
    for k in range(len(copy_K)):
        expert = ids_TK[t, k]
        copies = copies_E[expert]
        node_K[k] = node_R[rank_EC[expert, 0]]
        if copies == 1 or node_K[k] == node_R[rank_EC[expert, copies - 1]]:  # ranks are in order: a single node
            node_seen_N[node_K[k]] = stamp
        elif _first_on(own, expert, copies_E, rank_EC, node_R) >= 0:
            node_K[k] = own
        else:
            node_K[k] = -1
            left += 1
    if left > 0:
        chosen = len(copy_K)
        _choose_nodes(ids_TK, t, chosen, own, turn, left, copies_E, rank_EC, node_R, node_K, node_seen_N, stamp)
    unsettled = 0
    for k in range(len(copy_K)):
        expert, node = ids_TK[t, k], node_K[k]
        first = _first_on(node, expert, copies_E, rank_EC, node_R)
        copy_K[k], found = -1, 0
        for copy in range(first, copies_E[expert]):
            rank = rank_EC[expert, copy]
            if node_R[rank] != node:
                break
            found += 1
            if rank == entry_RN[home, node]:
                copy_K[k] = copy
        if copy_K[k] < 0 and found == 1:
            copy_K[k] = first
        if copy_K[k] >= 0:
            rank_seen_R[rank_EC[expert, copy_K[k]]] = stamp
        else:
            node_K[k] = -1 - first  # settled below, when all ranks that must be visited are known
            unsettled += 1
    if unsettled > 0:
        _choose_ranks(ids_TK, t, turn, copies_E, rank_EC, node_R, node_K, rank_seen_R, stamp, copy_K)
    if unsettled > 1:
        _join_others(ids_TK, t, turn, copies_E, rank_EC, node_R, node_K, rank_seen_R, stamp, copy_K)


@njit(nogil=True, cache=True, inline="always")
def _choose_nodes(  # type: ignore[no-untyped-def]
    ids_TK, t, chosen, own, turn, left, copies_E, rank_EC, node_R, node_K, node_seen_N, stamp
):
    """Give each of the `left` experts without one a node: one visited by now, else the one that holds most of them.

    chosen: experts of the token; node_K may have room for more.
    """
    num_nodes = len(node_seen_N)
    while left > 0:
        for k in range(chosen):
            if node_K[k] >= 0:
                continue
            nearest = num_nodes
            for copy in range(copies_E[ids_TK[t, k]]):
                node = node_R[rank_EC[ids_TK[t, k], copy]]
                if node_seen_N[node] == stamp:
                    nearest = min(nearest, (node - own) % num_nodes)
            if nearest < num_nodes:
                node_K[k] = (own + nearest) % num_nodes
                left -= 1
        if left == 0:
            break
        best, most = -1, 0
        for step in range(num_nodes - 1):
            node = (own + 1 + (turn + step) % (num_nodes - 1)) % num_nodes
            holds = 0
            for k in range(chosen):
                holds += node_K[k] < 0 and _first_on(node, ids_TK[t, k], copies_E, rank_EC, node_R) >= 0
            if holds > most:
                best, most = node, holds
        node_seen_N[best] = stamp


@njit(nogil=True, cache=True, inline="always")
def _choose_ranks(  # type: ignore[no-untyped-def]
    ids_TK, t, turn, copies_E, rank_EC, node_R, node_K, rank_seen_R, stamp, copy_K
):
    """Give each expert without a copy one on a rank visited by now, else the one whose turn it is.

    node_K [K] is -1 - first copy on the expert's node; only of those that took their turn it stays so.
    """
    for k in range(len(copy_K)):
        if copy_K[k] >= 0:
            continue
        expert, first = ids_TK[t, k], -1 - node_K[k]
        copy_K[k] = _visited_copy(expert, first, turn, stamp, rank_seen_R, copies_E, rank_EC, node_R)
        if copy_K[k] >= 0:
            node_K[k] = 0  # it shares its rank, so it will not be alone
            continue
        copy_K[k] = first + turn % _held_there(expert, first, copies_E, rank_EC, node_R)
        rank_seen_R[rank_EC[expert, copy_K[k]]] = stamp


@njit(nogil=True, cache=True, inline="always")
def _join_others(  # type: ignore[no-untyped-def]
    ids_TK, t, turn, copies_E, rank_EC, node_R, node_K, rank_seen_R, stamp, copy_K
):
    """Move each expert that took its turn and is alone on its rank to a rank that others visit, if one holds it."""
    for k in range(len(copy_K)):
        if node_K[k] >= 0:
            continue
        expert, rank, alone = ids_TK[t, k], rank_EC[ids_TK[t, k], copy_K[k]], True
        for other in range(len(copy_K)):
            alone = alone and (other == k or rank_EC[ids_TK[t, other], copy_K[other]] != rank)
        if alone:
            rank_seen_R[rank] = -1
            copy = _visited_copy(expert, -1 - node_K[k], turn, stamp, rank_seen_R, copies_E, rank_EC, node_R)
            copy_K[k] = copy if copy >= 0 else copy_K[k]
            rank_seen_R[rank_EC[expert, copy_K[k]]] = stamp


@njit(nogil=True, cache=True, inline="always")
def _visited_copy(expert, first, turn, stamp, rank_seen_R, copies_E, rank_EC, node_R):  # type: ignore[no-untyped-def]
    """The copy on a visited rank, in cyclic order among those on the node of copy `first`; -1 if there is none."""
    held = _held_there(expert, first, copies_E, rank_EC, node_R)
    for step in range(held):
        copy = first + (turn + step) % held
        if rank_seen_R[rank_EC[expert, copy]] == stamp:
            return copy
    return -1


@njit(nogil=True, cache=True, inline="always")
def _held_there(expert, first, copies_E, rank_EC, node_R):  # type: ignore[no-untyped-def]
    """Copies on the node of copy `first`, which is the first there."""
    last = first + 1
    while last < copies_E[expert] and node_R[rank_EC[expert, last]] == node_R[rank_EC[expert, first]]:
        last += 1
    return last - first


@njit(nogil=True, cache=True, inline="always")
def _first_on(node, expert, copies_E, rank_EC, node_R):  # type: ignore[no-untyped-def]
    """The first copy on a node, -1 if there is none."""
    for copy in range(copies_E[expert]):
        if node_R[rank_EC[expert, copy]] == node:
            return copy
    return -1

"""Which copies serve each token of this rank, all its experts considered together: `grace_opt.cover`, on the device."""

from dataclasses import dataclass

import numpy as np
import torch
from numba import njit
from numpy.typing import NDArray
from torch import Tensor

from grace_opt.cover import CopyTable, copy_table, cover_token
from grace_opt.placement import Placement
from runtime.kernels import NOT_HERE, on_gpu
from runtime.kernels.choice import Choice


@dataclass(frozen=True)
class Copies:
    """The copies of one layer's experts as one home rank sees them, in order of ranks; C is the most of any expert.

    Attributes:
        home: the rank.
        num_physical: P.
        num_copies: int64 [E].
        rank, physical: int64 [E, C], of each copy.
        node_of_rank: int64 [R].
        entry: int64 [R, N], the rank where rows of a home rank enter a node.
        node: int64 [E], the node that serves an expert whatever else a token chose: home's own if it holds a copy, or
            the only one that does; NOT_HERE if that depends.
        copy: int64 [E, N], the copy (column of `rank`) that then serves it on a node: that of the entry rank, or the
            only one there; NOT_HERE if that depends, or if there is none.
        first: int64 [E, N + 1], copies on earlier nodes: those of node n are first[n] to first[n + 1].
    """

    home: int
    num_physical: int
    num_copies: Tensor
    rank: Tensor
    physical: Tensor
    node_of_rank: Tensor
    entry: Tensor
    node: Tensor
    copy: Tensor
    first: Tensor

    @classmethod
    def of_placement(
        cls,
        placement: Placement,
        ranks_per_node: tuple[int, ...],
        layer: int,
        home: int,
        device: torch.device | str = "cpu",
    ) -> "Copies":
        """Tables of one layer (its index in the placement)."""
        table = copy_table(placement, ranks_per_node, layer)
        arrays = (table.num_copies, table.rank, table.physical, table.node_of_rank, table.entry, *_settled(table, home))
        return cls(home, placement.slots[layer].size, *(torch.from_numpy(array).to(device) for array in arrays))


def cover(expert_ids: Tensor, copies: Copies) -> Choice:
    """The copies that serve each token of a batch by the policy `cover`.

    A token takes as its turn home + the number of tokens before it; one without experts (all negative) takes none.

    Args:
        expert_ids: [T, K] integers, the logical experts of this rank's tokens; negative ones are nothing.

    Example: the ranks of one node hold [0, 1], [2, 3], [2, 4], and home is 0. Tokens (2, 0), (-1, -1), (2, -1), (2, 4)
    take their turns 0, none, 1, 2 and go to copies (2, 0), (-1, -1), (4, -1), (4, 5): the last one visits rank 2
    anyway. Counts are 1, 0, 1, 0, 2, 1.
    """
    if on_gpu(expert_ids):
        from runtime.kernels.cover_triton import cover_triton

        return cover_triton(expert_ids, copies)
    tables = (copies.num_copies, copies.rank, copies.physical, copies.node_of_rank, copies.entry)
    arrays = _cover_in_order(
        expert_ids.long().contiguous().numpy(), copies.home, copies.num_physical, *(table.numpy() for table in tables)
    )
    return Choice(*(torch.from_numpy(array) for array in arrays))


def _settled(table: CopyTable, home: int) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
    """Node [E], copy [E, N] and first [E, N + 1] of `Copies`."""
    place_EC = np.arange(table.rank.shape[1])
    exists_EC = place_EC < table.num_copies[:, None]
    node_EC = np.where(exists_EC, table.node_of_rank[table.rank], NOT_HERE)
    on_ENC = node_EC[:, None, :] == np.arange(table.entry.shape[1])[:, None]
    held_EN = on_ENC.sum(axis=2)
    enters_ENC = on_ENC & (table.rank[:, None, :] == table.entry[home][:, None])
    sure_ENC = enters_ENC | (on_ENC & (held_EN == 1)[:, :, None])
    copy_EN = np.where(sure_ENC.any(axis=2), sure_ENC.argmax(axis=2), NOT_HERE)
    own = table.node_of_rank[home]
    only_E = np.where((held_EN > 0).sum(axis=1) == 1, node_EC[:, 0], NOT_HERE)
    node_E = np.where(held_EN[:, own] > 0, own, only_E)
    return node_E, copy_EN, np.pad(held_EN.cumsum(axis=1), ((0, 0), (1, 0)))


@njit(nogil=True, cache=True)
def _cover_in_order(ids_TK, home, num_physical, copies_E, rank_EC, physical_EC, node_R, entry_RN):  # type: ignore[no-untyped-def]
    num_tokens, top_k = ids_TK.shape
    physical_TK = np.full((num_tokens, top_k), NOT_HERE, np.int64)
    counts_P = np.zeros(num_physical, np.int64)
    chosen_1K, place_K = np.empty((1, top_k), np.int64), np.empty(top_k, np.int64)
    node_K, copy_K = np.empty(top_k, np.int64), np.empty(top_k, np.int64)
    node_seen_N, rank_seen_R = np.full(entry_RN.shape[1], -1, np.int64), np.full(len(node_R), -1, np.int64)
    turn = home
    for t in range(num_tokens):
        num_chosen = 0
        for k in range(top_k):
            assert ids_TK[t, k] < len(copies_E), "an expert id is not below the number of experts"
            if ids_TK[t, k] >= 0:
                chosen_1K[0, num_chosen], place_K[num_chosen] = ids_TK[t, k], k
                num_chosen += 1
        if num_chosen == 0:
            continue
        cover_token(
            chosen_1K, 0, home, turn, copies_E, rank_EC, node_R, entry_RN, node_K, node_seen_N, rank_seen_R, t,
            copy_K[:num_chosen],
        )  # fmt: skip
        for i in range(num_chosen):
            physical = physical_EC[chosen_1K[0, i], copy_K[i]]
            physical_TK[t, place_K[i]] = physical
            counts_P[physical] += 1
        turn += 1
    offsets = np.zeros(num_physical + 1, np.int64)
    offsets[1:] = np.cumsum(counts_P)
    return physical_TK, counts_P, offsets

"""Transitions: which expert of the next layer follows which expert of this one in the same token."""

from collections.abc import Sequence
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray
from scipy import sparse

from grace_opt.trace import Trace


def transitions(trace: Trace) -> list[NDArray[np.int64]]:
    """L - 1 matrices [E, E]: (token, choice, next choice) triples with expert i in layer l and expert j in layer l + 1.

    A token that chooses K experts in both layers counts K * K times.

    Example: a token that chose experts 0 and 1, then 2 and 3, adds 1 to (0, 2), (0, 3), (1, 2) and (1, 3).
    """
    chosen = [_chosen(trace, layer) for layer in range(trace.num_layers)]
    return [(before.T @ after).toarray() for before, after in pairwise(chosen)]


def between_groups(
    count_EE: NDArray[np.int64], group_E: NDArray[np.int64], next_E: NDArray[np.int64], num_groups: int
) -> NDArray[np.int64]:
    """[G, G] transitions from each group of this layer to each group of the next."""
    count_GG = np.zeros((num_groups, num_groups), np.int64)
    np.add.at(count_GG, (group_E[:, None], next_E[None, :]), count_EE)
    return count_GG


def crossing(counts: Sequence[NDArray[np.int64]], group_LE: NDArray[np.int64]) -> int:
    """Transitions, over all pairs of layers, that lead to another group; group_LE [L, E] is each expert's."""
    pairs = zip(counts, group_LE[:-1], group_LE[1:], strict=True)
    return int(sum(count_EE[before[:, None] != after[None, :]].sum() for count_EE, before, after in pairs))


def _chosen(trace: Trace, layer: int) -> sparse.csr_array:
    """[tokens, E] 1 where the token chose the expert."""
    ids_TK = trace.layer(layer).astype(np.int64)
    row_ends = np.arange(len(ids_TK) + 1) * trace.top_k
    ones = np.ones(ids_TK.size, np.int64)
    return sparse.csr_array((ones, ids_TK.ravel(), row_ends), shape=(len(ids_TK), trace.num_experts))

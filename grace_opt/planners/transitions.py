"""Transitions: which expert of the next layer follows which expert of this one in the same token."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from grace_opt.profile import transitions_after
from grace_opt.trace import Trace


def transitions(trace: Trace) -> list[NDArray[np.int64]]:
    """L - 1 matrices [E, E], those after each layer but the last (see `profile.transitions_after`)."""
    return [transitions_after(trace, layer) for layer in range(trace.num_layers - 1)]


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

"""Relaxations of the rows that leave home: from a layer's token sets and the slots of nodes (or other groups).

Let S_n be the experts that group n holds; it has room for c_n of them. A token with experts A and home h sends a row to
every other group it uses, so at least

    [A not inside S_h]                              and with two groups exactly that
    sum over n other than h of [A meets S_n]        if no expert has copies, since each must be fetched where it is
    |B| - m_h - sum over n other than h of (m_n - 1)^+      with copies, for any part B of A, m_n = |B meet S_n|:
                                                    the other |B| - m_h are found in V groups, at most
                                                    1 + (m_n - 1)^+ in each

More experts in a set never cost a row, so with copies every set may be taken to be full, |S_n| = min(c_n, E), as long
as together they hold every expert. Without room for copies sum c_n = E, and the sets are a partition.
"""

import numpy as np
from numpy.typing import NDArray

from grace_opt.bounds.relaxation import Block, Relaxation
from grace_opt.bounds.token_sets import TokenSets


def rows_relaxation(tokens: TokenSets, num_experts: int, slots_G: NDArray[np.integer]) -> Relaxation:
    """What all plans with these slots cost at least in rows to groups other than home.

    Args:
        tokens: with home groups.
        slots_G: [G] slots of each group.
    """
    sizes = np.minimum(slots_G, num_experts).tolist()
    copies = sum(sizes) > num_experts
    if len(sizes) == 2 and not copies:  # the second set is the complement of the first
        return Relaxation(num_experts, (_block(tokens, sizes[0], np.where(tokens.home == 0, 1.0, -1.0)),), "free")
    if copies:
        blocks = [_block(_part(tokens, tokens.home == n), size, 1.0) for n, size in enumerate(sizes)]
        return Relaxation(num_experts, tuple(blocks), "cover", spread=len(sizes) > 2)
    blocks = [_block(_part(tokens, tokens.home != n), size, -1.0) for n, size in enumerate(sizes)]
    return Relaxation(num_experts, tuple(blocks), "partition")


def _part(tokens: TokenSets, kept: NDArray[np.bool_]) -> TokenSets:
    return TokenSets(tokens.experts[kept], tokens.home[kept], tokens.weight[kept])


def _block(tokens: TokenSets, size: int, sign: NDArray[np.float64] | float) -> Block:
    weight = tokens.weight.astype(np.float64)
    return Block(size, tokens.experts, weight, np.broadcast_to(np.asarray(sign, np.float64), weight.shape).copy())

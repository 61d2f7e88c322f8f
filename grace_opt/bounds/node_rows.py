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
from grace_opt.bounds.senders import Senders
from grace_opt.bounds.token_sets import TokenSets


def rows_relaxation(
    tokens: TokenSets, num_experts: int, slots_G: NDArray[np.integer], senders: Senders | None = None
) -> Relaxation:
    """What all plans with these slots cost at least in rows to groups other than home.

    Args:
        tokens: with home groups, or senders.
        slots_G: [G] slots of each group.
        senders: the rows of each batch's busiest sender are summed; None: all rows.
    """
    sizes = np.minimum(slots_G, num_experts).tolist()
    copies = sum(sizes) > num_experts
    home = tokens.home if senders is None else senders.node[tokens.home]
    batch = np.zeros(1, np.int64) if senders is None else senders.batch
    everyone = np.ones(len(home), bool)

    def block(kept: NDArray[np.bool_], size: int, sign: NDArray[np.float64]) -> Block:
        sender = np.zeros(len(home), np.int64) if senders is None else tokens.home
        return Block(size, tokens.experts[kept], tokens.weight[kept].astype(np.float64), sign[kept], sender[kept])

    if len(sizes) == 2 and not copies:  # the second set is the complement of the first
        blocks = [block(everyone, sizes[0], np.where(home == 0, 1.0, -1.0))]
        return Relaxation(num_experts, tuple(blocks), "free", batch=batch)
    if copies:
        blocks = [block(home == n, size, np.ones(len(home))) for n, size in enumerate(sizes)]
        return Relaxation(num_experts, tuple(blocks), "cover", spread=len(sizes) > 2, batch=batch)
    blocks = [block(home != n, size, -np.ones(len(home))) for n, size in enumerate(sizes)]
    return Relaxation(num_experts, tuple(blocks), "partition", batch=batch)

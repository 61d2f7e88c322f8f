"""Choose the copies that serve one token by the other rules that a plan is searched for, beside `grace_opt.cover`.

    uniform   copy number turn mod copies, in order of ranks
    tar       as uniform, of the copies on the home rank if there are any, else on its node, else of all

turn = home rank h + earlier tokens of h in its batch that chose the expert (`grace_opt.routing`, with equal weights).
It does not depend on where copies are, so a search knows it beforehand: `turns_of_experts`.

Example: copies on ranks 0, 2 and 3, two ranks a node. Turn 1 of home 1 takes the copy on rank 2 under `uniform`, that
on rank 0 under `tar`.
"""

import numpy as np
from numba import njit

POLICIES = ("cover", "tar", "uniform")
"""Rules that a plan is searched for."""


@njit(nogil=True, cache=True, inline="always")
def copies_in_turn(ids_TK, t, home, turn_TK, nearest, copies_E, rank_EC, node_R, copy_K):  # type: ignore[no-untyped-def]
    """Write into copy_K [K] which copy (place in rank_EC) serves each expert of token t.

    Args:
        turn_TK: of `turns_of_experts`.
        nearest: the rule is `tar`, else `uniform`.
    """
    for k in range(len(copy_K)):
        copy_K[k] = copy_in_turn(home, turn_TK[t, k], nearest, ids_TK[t, k], copies_E, rank_EC, node_R)


@njit(nogil=True, cache=True)
def copy_in_turn(home, turn, nearest, expert, copies_E, rank_EC, node_R):  # type: ignore[no-untyped-def]
    """The copy that serves an expert of a token by turns; ranks of a node are consecutive, and so are its copies."""
    copies = copies_E[expert]
    if copies == 1:
        return 0
    if not nearest:
        return turn % copies
    first, held = 0, 0
    for copy in range(copies):
        rank = rank_EC[expert, copy]
        if rank == home:
            return copy
        if node_R[rank] == node_R[home]:
            first = copy if held == 0 else first
            held += 1
    return first + turn % (held if held > 0 else copies)


@njit(nogil=True, cache=True)
def turns_of_experts(ids_TK, home_T, num_ranks, num_experts):  # type: ignore[no-untyped-def]
    """int64 [T, K] turns of the tokens of one whole batch, those of a home in their order."""
    turn_RE = np.zeros((num_ranks, num_experts), np.int64)
    turn_TK = np.empty(ids_TK.shape, np.int64)
    for t in range(len(ids_TK)):
        for k in range(ids_TK.shape[1]):
            turn_TK[t, k] = home_T[t] + turn_RE[home_T[t], ids_TK[t, k]]
            turn_RE[home_T[t], ids_TK[t, k]] += 1
    return turn_TK

"""How many tokens each expert of the busiest rank had in measurements that only name a distribution.

The collector of aiconfigurator (collector/helper, Apache-2.0) makes loads so, from seeds it does not keep:

    power_law_a   every expert draws from a power law of exponent a between 1 and 0.8 tokens (0.01 and 2, if there are
                  no more pairs than experts); loads are scaled to tokens * top_k, rounded, and cut where an expert has
                  more than all tokens. What was cut or is missing is given to other experts, what is too much is taken
                  from some. The rank with the largest sum is timed.
    uniform       pairs are spread evenly; before prefill kernels, which pad experts to 128 rows, so that rows are full

Its versions differ in who gives and takes:

    dealt         ranks in turn, one pair each: the least loaded expert of the rank gets, the most loaded one gives
    idlest_first  what was cut fills the idlest expert, then the next; what is missing goes to one expert after the
                  other from the idlest up, and what is too much is taken in that order

A measured row is the mean over 5 draws, so what is predicted is the mean over draws.
"""

from functools import cache

import numpy as np
from numba import njit
from numpy.typing import NDArray

NUM_DRAWS = 64
PADDED = 128


@cache
def drawn_tokens(
    tokens: int, num_experts: int, top_k: int, ep_size: int, exponent: float, idlest_first: bool = False
) -> NDArray[np.int64]:
    """[draws, experts of a rank] tokens of each expert of the busiest rank; the same in every call."""
    random = np.random.default_rng([tokens, num_experts, top_k, ep_size, round(exponent * 100)])
    pairs, power = tokens * top_k, 1 - exponent
    low, high = (1.0, tokens * 0.8) if pairs > num_experts else (0.01, 2.0)
    weights = random.random((NUM_DRAWS, num_experts))
    if power:
        weights = (weights * (high**power - low**power) + low**power) ** (1 / power)
    else:
        weights = low * (high / low) ** weights
    counts = np.rint(weights / weights.sum(axis=1, keepdims=True) * pairs).astype(np.int64)
    for count in counts:
        cut = int(np.maximum(count - tokens, 0).sum())
        np.minimum(count, tokens, out=count)
        if idlest_first:
            _fill_idlest(count, cut, tokens)
            _go_round(count, pairs - int(count.sum()), tokens)
        else:
            _deal(count.reshape(ep_size, -1), pairs - int(count.sum()), tokens)
    by_rank = counts.reshape(NUM_DRAWS, ep_size, -1)
    busiest: NDArray[np.int64] = by_rank[np.arange(NUM_DRAWS), by_rank.sum(axis=2).argmax(axis=1)]
    busiest.setflags(write=False)
    return busiest


def even_tokens(tokens: int, num_experts: int, top_k: int, ep_size: int, prefill: bool) -> NDArray[np.int64]:
    """[1, experts of a rank] tokens of each expert when pairs are spread evenly."""
    local, rows = num_experts // ep_size, tokens * top_k // ep_size
    active = min(local, max(1, -(-rows // PADDED))) if prefill else local
    counts = np.zeros((1, local), np.int64)
    counts[0, :active] = rows // active
    counts[0, : rows % active] += 1
    return counts


@njit(cache=True)
def _deal(count_RS: NDArray[np.int64], missing: int, most: int) -> None:
    """Give (or take, if negative) one pair after the other, the ranks in turn; none gets more than `most`."""
    step, left = (1, missing) if missing > 0 else (-1, -missing)
    stuck = 0  # ranks in a row that can neither give nor take
    rank = 0
    while left and stuck < len(count_RS):
        load = count_RS[rank]
        expert = load.argmin() if step > 0 else load.argmax()
        if (load[expert] < most) if step > 0 else (load[expert] > 0):
            load[expert] += step
            left -= 1
            stuck = 0
        else:
            stuck += 1
        rank = (rank + 1) % len(count_RS)


def _fill_idlest(count: NDArray[np.int64], cut: int, most: int) -> None:
    """Fill up one expert after the other, from the idlest up."""
    order = np.argsort(-count, kind="stable")[::-1]
    room = most - count[order]
    count[order] += np.clip(cut - (np.cumsum(room) - room), 0, room)


def _go_round(count: NDArray[np.int64], missing: int, most: int) -> None:
    """Give or take one pair an expert, from the idlest up, as often as it needs."""
    order = np.argsort(-count, kind="stable")[::-1]
    while missing > 0 and (count < most).any():
        able = order[count[order] < most][:missing]
        count[able] += 1
        missing -= len(able)
    for turn in range(-missing):
        expert = order[turn % len(order)]
        count[expert if count[expert] > 0 else int(count.argmax())] -= 1

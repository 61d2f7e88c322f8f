"""How many tokens each expert of the busiest rank had in measurements that only name a distribution.

The collector of aiconfigurator 0.12 (collector/helper, Apache-2.0) makes loads so, from seeds it does not keep:

    power_law_a   every expert draws from a power law of exponent a between 1 and 0.8 tokens (0.01 and 2, if there are
                  no more pairs than experts); loads are scaled to tokens * top_k and rounded; what is missing or too
                  much is added or taken one by one from the busiest down or from the idlest up. The rank with the
                  largest sum is timed.
    uniform       pairs are spread evenly; before prefill kernels, which pad experts to 128 rows, so that rows are full

What is predicted for a drawn row is the median over draws.
"""

from functools import cache

import numpy as np
from numpy.typing import NDArray

NUM_DRAWS = 32
PADDED = 128


@cache
def drawn_tokens(tokens: int, num_experts: int, top_k: int, ep_size: int, exponent: float) -> NDArray[np.int64]:
    """[draws, experts of a rank] tokens of each expert of the busiest rank; the same in every call."""
    random = np.random.default_rng([tokens, num_experts, top_k, ep_size, round(exponent * 100)])
    pairs, power = tokens * top_k, 1 - exponent
    low, high = (1.0, tokens * 0.8) if pairs > num_experts else (0.01, 2.0)
    weights = random.random((NUM_DRAWS, num_experts)) * (high**power - low**power) + low**power
    weights **= 1 / power
    counts = np.rint(weights / weights.sum(axis=1, keepdims=True) * pairs).astype(np.int64)
    for count in counts:
        _mend(count, pairs, random)
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


def _mend(count: NDArray[np.int64], pairs: int, random: np.random.Generator) -> None:
    """Add or take tokens until the sum is right; equally loaded experts are in no order."""
    order = np.lexsort((random.random(len(count)), -count))
    missing = pairs - int(count.sum())
    whole, rest = divmod(max(missing, 0), len(count))
    count += whole
    count[order[:rest]] += 1
    for step in range(max(-missing, 0)):
        expert = order[-1 - step % len(count)]
        count[expert if count[expert] > 0 else int(count.argmax())] -= 1

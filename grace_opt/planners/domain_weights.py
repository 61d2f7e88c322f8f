"""Minimise the worst of several domains with a search that minimises means: let it see more of the domains that lag.

Multiplicative weights (Arora, Hazan, Kale, Theory of Computing 8, 2012, section 3.1 on zero-sum games): after every
stretch of the search a domain's weight grows with its time. A weight is the share of sample batches that are drawn from
the domain, each domain at least one draw; the slots whose worst domain was best are kept.
"""

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

STRETCHES = 8
"""How often the weights are set anew over a search."""
DRAWS, POOL = 2, 4
"""Draws of a domain in a sample, in the mean; and of which they are taken, in turn."""
GROWTH = 5.0


class DomainWeights:
    """Attributes: slots [R, S] those whose worst domain was best so far, and seconds, of it, that they take.

    Args:
        seconds_of: (slots) -> float64 [D], a layer's time for each domain.
    """

    def __init__(self, slots_RS: NDArray[np.int64], seconds_of: Callable[[NDArray[np.int64]], NDArray[np.float64]]):
        self._seconds_of, seconds_D = seconds_of, seconds_of(slots_RS)
        self.slots, self.seconds = slots_RS.copy(), float(seconds_D.max())
        self._weight = np.ones(len(seconds_D))

    def look(self, slots_RS: NDArray[np.int64]) -> None:
        """Keep slots if they are better, and shift the weights to the domains that take longest with them."""
        seconds_D = self._seconds_of(slots_RS)
        if seconds_D.max() < self.seconds:
            self.slots, self.seconds = slots_RS.copy(), float(seconds_D.max())
        self._weight *= np.exp(GROWTH * (seconds_D / seconds_D.mean() - 1))
        self._weight /= self._weight.sum()

    def draws(self) -> list[int]:
        """Draws of each domain for the next stretch: one each, the others by weight."""
        return draws_by_weight(self._weight)


def draws_by_weight(weight_D: NDArray[np.float64] | Sequence[float]) -> list[int]:
    """DRAWS for each domain in the mean, one at least; what is over is dealt by weight, largest remainders first."""
    weight = np.asarray(weight_D, np.float64)
    ideal_D = (DRAWS - 1) * len(weight) * weight / weight.sum()
    draws_D = np.floor(ideal_D + 1e-9).astype(np.int64)
    rest = (DRAWS - 1) * len(weight) - int(draws_D.sum())
    draws_D[np.argsort(draws_D - ideal_D, kind="stable")[:rest]] += 1
    return [int(draws) + 1 for draws in draws_D]

"""Slots dealt to layers: which of several numbers each layer gets, within what all layers have together."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray


def deal_of_least(value_CL: NDArray[np.float64], counts: Sequence[int], budget: int) -> NDArray[np.int64]:
    """[L] choices whose values add up to the least, of all whose counts add up to at most the budget.

    Exact, by dynamic programming: layer by layer, the least for every number of slots left.

    Args:
        value_CL: of a layer with each of these counts.

    Raises:
        ValueError: the budget is less than the least count for every layer.

    Example: values [[9, 5], [7, 4], [1, 3]] for counts 1, 2, 3 and a budget of 4 choose 3 and 1, of value 1 + 5.
    """
    choices, layers = value_CL.shape
    spare = budget - min(counts) * layers
    if spare < 0:
        raise ValueError(f"{budget} slots are too few for {layers} layers of {min(counts)}")
    extra = [min(count - min(counts), spare + 1) for count in counts]
    least_S = np.zeros(spare + 1)
    choice_LS = np.zeros((layers, spare + 1), np.int64)
    for layer in range(layers):
        value_CS = np.full((choices, spare + 1), np.inf)
        for choice, more in enumerate(extra):
            value_CS[choice, more:] = value_CL[choice, layer] + least_S[: spare + 1 - more]
        choice_LS[layer] = value_CS.argmin(axis=0)
        least_S = value_CS.min(axis=0)
    best_L, left = np.zeros(layers, np.int64), spare
    for layer in reversed(range(layers)):
        best_L[layer] = choice_LS[layer, left]
        left -= extra[best_L[layer]]
    return best_L


def numbers_to_try(fewest: int, given: int, most: int, also: Sequence[int] = ()) -> list[int]:
    """Slots of a layer worth a look: close steps around the given number, wider ones away from it, and both ends.

    Example: numbers_to_try(4, 5, 32, also=[8]) is [4, 5, 6, 7, 8, 9].
    """
    near = [given + step for step in (-4, -2, -1, 0, 1, 2, 4)]
    return sorted({count for count in (fewest, *near, *also) if fewest <= count <= most})

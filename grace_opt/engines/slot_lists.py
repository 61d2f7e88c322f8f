"""The common denominator of all engines: a layer is one list of logical experts, cut evenly over the ranks.

Slot s of a list of P slots is on rank s // (P / R). An engine's file is an encoding of such lists::

    Placement.from_lists([[[0, 1], [2, 1]]], num_experts=3)    is the list    0 1 2 1
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from grace_opt.placement import EMPTY, Placement


def slot_lists(placement: Placement) -> list[list[int]]:
    """[L] lists of the logical expert in each slot; every rank of a layer must hold equally many experts."""
    used_LR = placement.slots_used
    assert (used_LR == used_LR[:, :1]).all(), "ranks of a layer must be filled alike: see equal_slots"
    return [[int(expert) for expert in layer.ravel() if expert != EMPTY] for layer in placement.slots]


def slot_array(placement: Placement) -> NDArray[np.int64]:
    """[L, P] logical expert of each slot; all layers must hold equally many."""
    assert (placement.slots != EMPTY).all(), "all ranks and layers must be filled alike: see equal_slots"
    return placement.slots.reshape(placement.num_layers, -1).astype(np.int64)


def placement_of(lists: Any, num_ranks: int, where: str) -> Placement:
    """The placement that lists of logical experts mean; E is one more than the largest expert that occurs.

    Args:
        lists: what a file holds; checked.
        where: file and field, for messages.

    Raises:
        ValueError: no lists of expert ids, not cut evenly by the ranks, or an expert is missing in a layer.
    """
    if not isinstance(lists, Sequence) or isinstance(lists, str) or not lists:
        raise ValueError(f"{where} must be a list of layers, each a list of expert ids")
    for index, layer in enumerate(lists):
        if not isinstance(layer, Sequence) or not all(type(expert) is int and 0 <= expert < 2**16 for expert in layer):
            raise ValueError(f"{where}[{index}] must be a list of expert ids (whole numbers from 0)")
        if num_ranks < 1 or not layer or len(layer) % num_ranks:
            raise ValueError(f"{where}[{index}] has {len(layer)} slots, which do not divide over {num_ranks} ranks")
    num_experts = 1 + max(max(layer) for layer in lists)
    cut = [np.reshape(layer, (num_ranks, -1)).tolist() for layer in lists]
    try:
        return Placement.from_lists(cut, num_experts)
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from None

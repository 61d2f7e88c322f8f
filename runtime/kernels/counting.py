"""Count keys in order: how often each occurs, and how often it came before. The heart of a counting sort.

The order of the entries decides, never that of threads, so every execution counts what `grace_opt.traffic` predicted.
"""

from dataclasses import dataclass

import numpy as np
import torch
from numba import njit
from torch import Tensor

from runtime.kernels import NOT_HERE, on_gpu


@dataclass(frozen=True)
class Counted:
    """How often keys occur.

    Attributes:
        occurrence: int64 [N], how often the same key came before; NOT_HERE where the key is negative.
        counts: int64 [num_keys].
    """

    occurrence: Tensor
    counts: Tensor


def count(keys: Tensor, num_keys: int) -> Counted:
    """Count keys [N] (integers below num_keys; negative ones are nothing).

    Example: keys 3, 1, 3, -1, 3 of 4 have occurrence 0, 0, 1, -1, 2 and counts 0, 1, 0, 3.
    """
    if on_gpu(keys):
        from runtime.kernels.counting_triton import count_triton

        return count_triton(keys, num_keys)
    return Counted(*_count_sorted(keys, num_keys, sort=False)[:2])


def positions(slot: Tensor, num_slots: int) -> tuple[Tensor, Tensor]:
    """Places in an array sorted by slot (stable) for entries in any order.

    Args:
        slot: [N, K] integers below num_slots; NOT_HERE takes no place.

    Returns:
        int64 [N, K] positions (NOT_HERE where the slot is) and int64 [num_slots], where each slot's part ends.

    Example: slots (2, 0), (-1, 2) of 3 go to positions (1, 0), (-1, 2); the slots' parts end at 1, 1, 3.
    """
    if on_gpu(slot):
        from runtime.kernels.counting_triton import positions_triton

        return positions_triton(slot, num_slots)
    position, _, ends = _count_sorted(slot, num_slots, sort=True)
    return position.view(slot.shape), ends


def count_reference(keys: Tensor, num_keys: int) -> Counted:
    """As `count`, one key after the other."""
    occurrence, counts = [], [0] * num_keys
    for key in keys.tolist():
        occurrence.append(counts[key] if key >= 0 else NOT_HERE)
        if key >= 0:
            counts[key] += 1
    return Counted(torch.tensor(occurrence, dtype=torch.int64), torch.tensor(counts, dtype=torch.int64))


def positions_reference(slot: Tensor, num_slots: int) -> tuple[Tensor, Tensor]:
    """As `positions`: collect the entries of each slot in turn."""
    position, ends, place = torch.full(slot.shape, NOT_HERE), [], 0
    for s in range(num_slots):
        for n, k in (slot == s).nonzero().tolist():
            position[n, k] = place
            place += 1
        ends.append(place)
    return position, torch.tensor(ends, dtype=torch.int64)


def _count_sorted(keys: Tensor, num_keys: int, sort: bool) -> tuple[Tensor, Tensor, Tensor]:
    """Occurrences (or, sorted, positions) of all keys, counts of each, and the ends of their parts."""
    arrays = _count_in_order(keys.reshape(-1).long().numpy(), num_keys, sort)
    occurrence, counts, ends = (torch.from_numpy(array) for array in arrays)
    return occurrence, counts, ends


@njit(nogil=True, cache=True)
def _count_in_order(keys, num_keys, sort):  # type: ignore[no-untyped-def]
    counts = np.zeros(num_keys, np.int64)
    for key in keys:
        assert key < num_keys, "a key is not below num_keys"
        if key >= 0:
            counts[key] += 1
    ends = np.cumsum(counts)
    seen = ends - counts if sort else np.zeros_like(counts)
    occurrence = np.full(len(keys), NOT_HERE, np.int64)
    for i, key in enumerate(keys):
        if key >= 0:
            occurrence[i] = seen[key]
            seen[key] += 1
    return occurrence, counts, ends

"""Which copy serves each token of this rank: the round robin of `grace_opt.routing`, on the device, by itself."""

from dataclasses import dataclass

import numpy as np
import torch
from numba import njit
from torch import Tensor

from runtime.kernels import NOT_HERE, on_gpu


@dataclass(frozen=True)
class Choice:
    """Physical experts chosen, and how many tokens each of them gets from this rank.

    Attributes:
        physical: int64 [T, K]; NOT_HERE where the expert is negative.
        counts: int64 [P], tokens of this rank for each physical expert.
        offsets: int64 [P + 1], where each one's part begins, and the last ends, when tokens are sorted by `physical`.
    """

    physical: Tensor
    counts: Tensor
    offsets: Tensor


def choose(expert_ids: Tensor, home: int, start: Tensor, length: Tensor, schedule: Tensor, num_physical: int) -> Choice:
    """The n-th choice of expert e (in order of the flattened ids) takes schedule[start[e] + (home + n) % length[e]].

    Args:
        expert_ids: [T, K] integers, the logical experts of this rank's tokens.
        home: this rank.
        start, length: int64 [E], the part of `schedule` that this rank walks for each expert.
        schedule: int64 [entries], physical experts.

    Example: home 1, expert 0 with schedule 0, expert 1 with schedule 1, 2, 1: tokens (1, 0), (1, -1), (0, 1) go to
    (2, 0), (1, -1), (0, 1); counts 2, 2, 1; offsets 0, 2, 4, 5.
    """
    if on_gpu(expert_ids):
        from runtime.kernels.choice_triton import choose_triton

        return choose_triton(expert_ids, home, start, length, schedule, num_physical)
    arrays = _choose_in_order(
        expert_ids.reshape(-1).long().numpy(), home, start.numpy(), length.numpy(), schedule.numpy(), num_physical
    )
    physical, counts, offsets = (torch.from_numpy(array) for array in arrays)
    return Choice(physical.view(expert_ids.shape), counts, offsets)


def choose_reference(
    expert_ids: Tensor, home: int, start: Tensor, length: Tensor, schedule: Tensor, num_physical: int
) -> Choice:
    """As `choose`, one token after the other."""
    physical, counts = torch.full(expert_ids.shape, NOT_HERE), torch.zeros(num_physical + 1, dtype=torch.int64)
    seen = dict.fromkeys(range(len(start)), 0)
    for t, experts in enumerate(expert_ids.tolist()):
        for k, expert in enumerate(experts):
            if expert < 0:
                continue
            physical[t, k] = schedule[start[expert] + (home + seen[expert]) % length[expert]]
            seen[expert] += 1
            counts[physical[t, k]] += 1
    return Choice(physical, counts[:-1], counts.cumsum(0) - counts)


@njit(nogil=True, cache=True)
def _choose_in_order(experts, home, start_E, length_E, schedule, num_physical):  # type: ignore[no-untyped-def]
    turn_E = home % length_E
    counts_P = np.zeros(num_physical, np.int64)
    physical = np.full(len(experts), NOT_HERE, np.int64)
    for i, expert in enumerate(experts):
        assert expert < len(turn_E), "an expert id is not below the number of experts"
        if expert >= 0:
            physical[i] = schedule[start_E[expert] + turn_E[expert]]
            counts_P[physical[i]] += 1
            turn_E[expert] += 1
            if turn_E[expert] == length_E[expert]:
                turn_E[expert] = 0
    offsets = np.zeros(num_physical + 1, np.int64)
    offsets[1:] = np.cumsum(counts_P)
    return physical, counts_P, offsets

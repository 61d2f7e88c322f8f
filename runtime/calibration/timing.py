"""Time what all ranks do together: everyone starts behind a barrier, until the slowest rank is done."""

import math
from collections.abc import Callable

import numpy as np
import torch
import torch.distributed as dist
from numpy.typing import NDArray

from runtime.group import Group
from runtime.stopwatch import Stopwatch

LONG_ENOUGH_S = 0.02
"""Shorter computations are done several times between two barriers: a scheduler's tick (4 ms) or a barrier would drown
them."""


def seconds_of(group: Group, action: Callable[[], object], repetitions: int) -> float:
    """Median time of a computation; the same figure on every rank."""
    barrier_s = group.barrier_seconds()
    _timed(group, action, 1, 1, barrier_s)  # warm up
    times = math.ceil(LONG_ENOUGH_S / max(float(_timed(group, action, 1, 1, barrier_s)[0]), 1e-5))
    return max(float(np.median(_timed(group, action, times, repetitions, barrier_s))), 1e-6)


def exchange_seconds(group: Group, action: Callable[[], object], repetitions: int) -> NDArray[np.float64]:
    """[repetitions] times of an exchange, sorted; the same on every rank.

    There is always a barrier before and after, as in a layer: exchanges one right behind the other would find links
    without a pause and ranks out of step.
    """
    barrier_s = group.barrier_seconds()
    _timed(group, action, 1, 1, barrier_s)  # warm up
    return np.sort(np.maximum(_timed(group, action, 1, repetitions, barrier_s), 1e-6))


def _timed(
    group: Group, action: Callable[[], object], times: int, repetitions: int, barrier_s: float
) -> NDArray[np.float64]:
    watch = Stopwatch(group.barrier, group.device, barrier_s)
    for _ in range(repetitions):
        with watch("action"):
            for _ in range(times):
                action()
    watch.stop()
    taken = torch.tensor(watch.visits["action"], dtype=torch.float64)
    dist.all_reduce(taken, group=group.control)
    return np.asarray(taken.numpy() / group.size / times)

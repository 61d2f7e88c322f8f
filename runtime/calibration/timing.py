"""Time what all ranks do together: everyone starts behind a barrier, the slowest rank's end counts."""

import time
from collections.abc import Callable

import numpy as np
import torch
import torch.distributed as dist

from runtime.group import Group


def seconds_of(group: Group, action: Callable[[], object], repetitions: int, warmup: int = 1) -> float:
    """Median over repetitions of the time until the last rank has done it; the same figure on every rank."""
    taken = torch.zeros(repetitions, dtype=torch.float64)
    for repetition in range(-warmup, repetitions):
        group.barrier()
        started = _now(group)
        action()
        if repetition >= 0:
            taken[repetition] = _now(group) - started
    dist.all_reduce(taken, dist.ReduceOp.MAX, group=group.control)
    return float(np.median(taken.numpy()))


def _now(group: Group) -> float:
    if group.device != "cpu":
        torch.cuda.synchronize()
    return time.perf_counter()

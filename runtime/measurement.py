"""What running a plan yields, whatever was run: the time of each layer and phase, and the choices that were routed."""

from dataclasses import dataclass, field

import numpy as np
import torch
import torch.distributed as dist
from numpy.typing import NDArray

from grace_opt.cost import LayerTime
from grace_opt.problem import Problem
from runtime.group import Group

PHASES = ("dispatch", "experts", "combine")


@dataclass(frozen=True)
class Measurement:
    """Measured times, and the problem they are the times of.

    Attributes:
        time: of the MoE layers.
        problem: with the trace that was executed, in batches of `time.tokens_per_rank`.
        also_s: further seconds by name, such as attention.
    """

    time: LayerTime
    problem: Problem
    also_s: dict[str, float] = field(default_factory=dict)


def layer_time(seconds_RLBP: NDArray[np.float64], tokens_BR: NDArray[np.int64]) -> LayerTime:
    """Mean over ranks (all see the same phases), median over repetitions, mean over batches.

    Args:
        seconds_RLBP: [R, L, B, repetitions, phases + 1]: PHASES until all ranks were done with them, and
            `experts` until this rank was.
        tokens_BR: tokens of each batch and rank.
    """
    dispatch, experts, combine, busy = np.median(seconds_RLBP.mean(axis=0), axis=2).mean(axis=1).T
    return LayerTime(
        dispatch.copy(), experts.copy(), combine.copy(), np.maximum(experts - busy, 0.0), float(tokens_BR.mean())
    )


def of_all_ranks(group: Group, own: torch.Tensor) -> torch.Tensor:
    """The same tensor [...] of every rank, stacked: [R, ...]."""
    everyone = [torch.empty_like(own) for _ in range(group.size)]
    dist.all_gather(everyone, own, group=group.control)
    return torch.stack(everyone)


def require_ranks(group: Group, what: str, ranks_per_node: tuple[int, ...]) -> None:
    """Raise ValueError unless the processes stand on their hosts as a topology or plan says."""
    if ranks_per_node != group.ranks_per_node:
        raise ValueError(
            f"{what} has nodes of {list(ranks_per_node)} ranks, but {group.size} processes run on hosts "
            f"of {list(group.ranks_per_node)}: start one process a rank on each node"
        )

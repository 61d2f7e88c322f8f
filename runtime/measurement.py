"""What running a plan yields, whatever was run: the time of each layer and phase, and the choices that were routed."""

from dataclasses import dataclass, field

import numpy as np
import torch
import torch.distributed as dist
from numpy.typing import NDArray

from grace_opt.cost import LayerTime
from grace_opt.problem import Problem
from grace_opt.timeline import Timeline
from runtime.group import Group

PHASES = ("dispatch", "experts", "combine")


@dataclass(frozen=True)
class Measurement:
    """Measured times, and the problem they are the times of.

    Attributes:
        time: of the MoE layers.
        problem: with the trace that was executed, in batches of `time.tokens_per_rank`.
        timeline: of the same run, rank by rank; PHASES are its steps.
        also_s: further seconds by name, such as attention.
    """

    time: LayerTime
    problem: Problem
    timeline: Timeline
    also_s: dict[str, float] = field(default_factory=dict)


def layer_time(seconds_RLBP: NDArray[np.float64], tokens_BR: NDArray[np.int64]) -> LayerTime:
    """Mean over ranks (all see the same phases), median over repetitions, mean over batches.

    Args:
        seconds_RLBP: [R, L, B, repetitions, 2 * phases]: PHASES until all ranks were done with them, then until this
            rank was.
        tokens_BR: tokens of each batch and rank.
    """
    medians_PL = np.median(seconds_RLBP.mean(axis=0), axis=2).mean(axis=1).T
    (dispatch, experts, combine), busy = medians_PL[: len(PHASES)], medians_PL[len(PHASES) + PHASES.index("experts")]
    return LayerTime(
        dispatch.copy(), experts.copy(), combine.copy(), np.maximum(experts - busy, 0.0), float(tokens_BR.mean())
    )


def timeline(seconds_RLBP: NDArray[np.float64], layer_ids: tuple[int, ...]) -> Timeline:
    """Median over repetitions of the seconds that `layer_time` takes, every rank and batch by itself.

    What a barrier takes is off the time until all ranks were done, and so off the time of a rank that was last.
    """
    step_LBP = np.median(seconds_RLBP[..., : len(PHASES)].mean(axis=0), axis=2)
    busy_LBPR = np.moveaxis(np.median(seconds_RLBP[..., len(PHASES) :], axis=3), 0, 3)
    return Timeline(PHASES, np.minimum(busy_LBPR, step_LBP[..., None]), step_LBP, layer_ids)


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

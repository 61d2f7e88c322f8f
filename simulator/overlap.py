"""Communication hidden behind computation: two half batches that take turns, batch by batch from the replay.

    none        one batch: attention | dispatch, shared experts meanwhile | experts | combine | next layer
    two_batch   its two halves, a and b, share what computes and what communicates (DeepSeek-V3, arXiv 2412.19437,
                sections 3.2.1 and 3.4):

        computes       attention a  attention b  shared a  shared b  experts a  experts b  attention a ...
        communicates                dispatch a   dispatch b             combine a  combine b ...

Either side works in this order, one thing at a time, and starts as soon as the half before it in the row has left and
its own earlier part is done. A half batch costs what a half batch costs: the trace is counted and priced again in
batches of half the size, so start-ups, kernel launches and weights of active experts are paid twice, and halves may
load ranks differently. That can make two batches slower than one. SMs that communication kernels take from computation
are not counted.

MoE layers alone, with nothing around them to hide behind, take

    none        dispatch + experts + combine
    two_batch   dispatch a + max(dispatch b, experts a) + max(combine a, experts b) + combine b

Every phase ends when its slowest rank or link does. Means over batches are taken after all of this.
"""

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from grace_opt.problem import Problem
from grace_opt.timeline import phase_of
from grace_opt.trace import Trace
from grace_opt.traffic import Traffic
from simulator.cluster import SimulatedCluster
from simulator.timeline import steps

OVERLAPS = ("none", "two_batch")
MOST_CELLS = 2**22
"""Rows rank to rank, of all layers and batches, that are priced at once: bounds the memory for many small batches."""


def require_overlap(overlap: str) -> None:
    """Raise ValueError unless there is such an overlap."""
    if overlap not in OVERLAPS:
        raise ValueError(f"overlap must be one of {', '.join(OVERLAPS)}, got {overlap!r}")


@dataclass(frozen=True, eq=False)
class PhaseTimes:
    """Seconds of every phase in every layer and batch.

    Attributes:
        dispatch_s, experts_s, combine_s: float64 [L, B], until the slowest rank or link is done.
        idle_s: float64 [L, B], mean over ranks of the wait for the slowest one in the expert phase.
        tokens_of_rank: int64 [B, R], tokens at home on each rank.

    With two overlapping batches B counts halves: 2i and 2i + 1 belong together.
    """

    dispatch_s: NDArray[np.float64]
    experts_s: NDArray[np.float64]
    combine_s: NDArray[np.float64]
    idle_s: NDArray[np.float64]
    tokens_of_rank: NDArray[np.int64]

    def __post_init__(self) -> None:
        for array in (self.dispatch_s, self.experts_s, self.combine_s, self.idle_s, self.tokens_of_rank):
            array.setflags(write=False)

    @property
    def num_layers(self) -> int:
        return len(self.experts_s)


def batch_tokens(trace: Trace, num_ranks: int, tokens_per_rank: int | None, overlap: str) -> float | None:
    """What `traffic` must be asked for so that batches of so many tokens of a rank are counted whole, or in halves.

    Halves are exact: every rank's tokens are cut into twice as many parts as without overlap.

    Raises:
        ValueError: there is no such overlap, or a batch has no two tokens of a rank.
    """
    require_overlap(overlap)
    if overlap == "none":
        return tokens_per_rank
    assert trace.homes is not None
    longest = int(np.bincount(trace.homes, trace.lengths, num_ranks).max())
    batches = 1 if tokens_per_rank is None else max(1, round(longest / tokens_per_rank))
    if longest < 2 * batches:
        raise ValueError(
            f"overlap=two_batch cuts batches into halves, and a batch of {longest / batches:.3g} tokens per rank has "
            "none: take overlap=none or larger batches"
        )
    return longest / (2 * batches)


def phase_times(cost: SimulatedCluster, problem: Problem, counts: Traffic) -> PhaseTimes:
    """The phases of traffic that was counted already."""
    num_layers, num_batches, num_ranks, _ = counts.pair_rows.shape
    most = max(1, MOST_CELLS // (num_layers * num_ranks**2))
    parts = [
        _phase_times(cost, problem, _some_batches(counts, slice(first, first + most)))
        for first in range(0, num_batches, most)
    ]
    names = ("dispatch_s", "experts_s", "combine_s", "idle_s")
    arrays = {name: np.concatenate([getattr(part, name) for part in parts], axis=1) for name in names}
    return PhaseTimes(**arrays, tokens_of_rank=counts.tokens_of_rank.copy())


def moe_layers_s(phases: PhaseTimes, overlap: str) -> NDArray[np.float64]:
    """[L, B] seconds of each MoE layer and batch by itself; with two batches B counts pairs of halves."""
    require_overlap(overlap)
    dispatch, experts, combine = phases.dispatch_s, phases.experts_s, phases.combine_s
    if overlap == "none":
        return dispatch + experts + combine
    a, b = slice(0, None, 2), slice(1, None, 2)
    middle = np.maximum(dispatch[:, b], experts[:, a]) + np.maximum(combine[:, a], experts[:, b])
    return np.asarray(dispatch[:, a] + middle + combine[:, b])


def passes_s(phases: PhaseTimes, before_s: float, beside_s: float, overlap: str) -> NDArray[np.float64]:
    """[B] seconds of each batch through all MoE layers with what surrounds the experts.

    Args:
        before_s: what a layer computes before its rows leave: attention, router. With two batches, of a half.
        beside_s: what a layer computes beside the experts, on rows that stay where they are: shared experts.
    """
    require_overlap(overlap)
    if overlap == "none":
        dispatch_LB = np.maximum(phases.dispatch_s, beside_s)
        return np.asarray((before_s + dispatch_LB + phases.experts_s + phases.combine_s).sum(axis=0))
    halves = [slice(0, None, 2), slice(1, None, 2)]
    computed = communicated = np.zeros(phases.experts_s[0, halves[0]].shape)  # when either side is free
    done = [computed, computed]  # when a half has gone through its last part
    for layer in range(phases.num_layers):
        for half in (0, 1):
            done[half] = computed = np.maximum(computed, done[half]) + before_s
        computed = computed + 2 * beside_s
        for phase_LB, computes in ((phases.dispatch_s, False), (phases.experts_s, True), (phases.combine_s, False)):
            for half in (0, 1):
                free = computed if computes else communicated
                done[half] = np.maximum(free, done[half]) + phase_LB[layer, halves[half]]
                computed, communicated = (done[half], communicated) if computes else (computed, done[half])
    return communicated


def _phase_times(cost: SimulatedCluster, problem: Problem, counts: Traffic) -> PhaseTimes:
    parts = steps(cost, problem, counts)
    phases = {
        f"{phase}_s": np.sum([step.seconds for step in parts if phase_of(step.name) == phase], axis=0)
        for phase in ("dispatch", "experts", "combine")
    }
    (experts,) = (step for step in parts if step.name == "experts")
    idle_LB = experts.seconds - experts.busy_s.mean(axis=2)
    return PhaseTimes(**phases, idle_s=idle_LB, tokens_of_rank=counts.tokens_of_rank)


def _some_batches(counts: Traffic, batches: slice) -> Traffic:
    tables = ("tokens", "pair_rows", "rank_visits", "node_visits")
    some = {name: getattr(counts, name)[:, batches] for name in tables}
    return replace(counts, **some, tokens_of_rank=counts.tokens_of_rank[batches])

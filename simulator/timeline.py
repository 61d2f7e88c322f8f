"""The predicted timeline of a plan: who is busy how long in every step, and what each step waits for.

Made of the very numbers that `SimulatedCluster.price` adds up. Stages that a transport overlaps are one step, as they
run at the same time.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from grace_opt.problem import Problem
from grace_opt.timeline import Timeline, stage_names
from grace_opt.topology import Topology
from grace_opt.traffic import Traffic
from simulator.cluster import SimulatedCluster
from simulator.compute import expert_seconds, phase_end
from simulator.network import BOUNDS, StageDetail

KINDS = (*BOUNDS, "copying", "processor")
"""What a step waits for: what a stage does, or the putting in order of its rows, or a processor that ranks share."""
NOTHING, LATENCY, RANK, PAIR, SMS, LINK, COPYING, PROCESSOR = range(len(KINDS))


@dataclass(frozen=True, eq=False)
class Step:
    """One step of all layers and batches.

    Attributes:
        name: as in `Timeline.steps`.
        busy_s: float64 [L, B, R], what each rank works.
        seconds: float64 [L, B], until all are done.
        kind: int64 [L, B], index into KINDS of what takes most of it.
        where: int64 [L, B], the rank, link or processor of that kind; -1 where there is none.
    """

    name: str
    busy_s: NDArray[np.float64]
    seconds: NDArray[np.float64]
    kind: NDArray[np.int64]
    where: NDArray[np.int64]


def timeline(cost: SimulatedCluster, problem: Problem, counts: Traffic) -> Timeline:
    """The timeline of traffic that was counted already; its means over batches are those of `cost.price`."""
    return timeline_of(steps(cost, problem, counts), problem)


def timeline_of(parts: Sequence[Step], problem: Problem) -> Timeline:
    """Steps as one timeline, with the names of what they wait for."""
    return Timeline(
        tuple(step.name for step in parts),
        np.stack([step.busy_s for step in parts], axis=2),
        np.stack([step.seconds for step in parts], axis=2),
        tuple(problem.model.layer_ids),
        np.stack([_names(problem.topology, step) for step in parts], axis=2),
    )


def steps(cost: SimulatedCluster, problem: Problem, counts: Traffic) -> list[Step]:
    """Dispatch stage by stage, experts, combine stage by stage."""
    there, back = cost.stage_details(problem, counts)
    experts_LBR = expert_seconds(problem.model, problem.topology, counts.tokens_by_rank)
    return [
        *_phase(cost, problem, counts, "dispatch", there),
        expert_step(problem.topology, experts_LBR),
        *_phase(cost, problem, counts, "combine", back),
    ]


def expert_step(topology: Topology, busy_LBR: NDArray[np.float64]) -> Step:
    """The step in which each rank computes for so long alone."""
    seconds = phase_end(topology, busy_LBR)
    processor_R = np.asarray(topology.processor_of_rank)
    slowest = busy_LBR.argmax(axis=2)
    shared = seconds > busy_LBR.max(axis=2) * (1 + 1e-9)
    loads = busy_LBR @ (processor_R[:, None] == np.arange(processor_R.max() + 1)) / np.asarray(topology.cores)
    kind = np.where(seconds == 0, NOTHING, np.where(shared, PROCESSOR, RANK))
    where = np.where(seconds == 0, -1, np.where(shared, loads.argmax(axis=2), slowest))
    return Step("experts", busy_LBR, seconds, kind, where)


def bound_name(topology: Topology, kind: int, where: int) -> str:
    """What a step waits for, in words; "" for nothing."""
    if kind == LINK:
        return " -> ".join(topology.link_names[where])
    names = {
        NOTHING: "",
        LATENCY: "start-up",
        RANK: f"rank {where}",
        PAIR: f"a pair of rank {where}",
        SMS: "SMs of the kernel",
        COPYING: "putting rows in order",
        PROCESSOR: f"processor {where}",
    }
    return names[kind]


def _phase(
    cost: SimulatedCluster, problem: Problem, counts: Traffic, phase: str, details: Sequence[StageDetail]
) -> list[Step]:
    returning = phase == "combine"
    rows = counts.returning(cost.scheme) if returning else counts.stages(cost.scheme)
    row_bytes = cost.combine_row_bytes(problem.model) if returning else cost.dispatch_row_bytes(problem.model)
    kernel = None if cost.transport is None else getattr(cost.transport, phase)
    copy_bytes_per_s = np.array([gpu.copy_bytes_per_s for gpu in problem.topology.gpus])
    parts = []
    for name, detail, rows_LBRR in zip(stage_names(phase, len(details)), details, rows, strict=True):
        copied_LBR = rows_LBRR.sum(axis=2 if returning else 3) * row_bytes / copy_bytes_per_s
        parts.append(_step(name, detail, copied_LBR))
    return [_overlapped(phase, parts)] if kernel is not None and kernel.pipelined else parts


def _overlapped(name: str, parts: Sequence[Step]) -> Step:
    """One step, as long as the slowest of its parts in each layer and batch."""
    longest = np.array([part.seconds for part in parts]).argmax(axis=0)
    of_longest = {
        field: np.choose(longest, [getattr(part, field) for part in parts]) for field in ("seconds", "kind", "where")
    }
    return Step(name, np.max([part.busy_s for part in parts], axis=0), **of_longest)


def _step(name: str, detail: StageDetail, copied_LBR: NDArray[np.float64]) -> Step:
    """A stage: all ranks put rows in order, and all move them; or the other way round."""
    shape = copied_LBR.shape[:2]
    parts_CK = np.zeros((len(detail.seconds), len(KINDS)))
    parts_CK[:, : len(BOUNDS)] = detail.bound_s
    parts_CK[:, LATENCY] = np.maximum(parts_CK[:, LATENCY], detail.startup_s)
    parts_CK[:, COPYING] = detail.copy_s
    kind = np.where(detail.seconds > 0, parts_CK[:, LATENCY:].argmax(axis=1) + LATENCY, NOTHING)
    where = np.where((kind == detail.bound) & (kind != SMS), detail.where, -1)
    copied_LBR = np.minimum(copied_LBR, detail.copy_s.reshape(*shape, 1))  # nothing where nothing travels
    return Step(
        name,
        detail.rank_s.reshape(copied_LBR.shape) + copied_LBR,
        detail.seconds.reshape(shape),
        kind.reshape(shape),
        where.reshape(shape),
    )


def _names(topology: Topology, step: Step) -> NDArray[np.str_]:
    """[L, B] names of what the step waits for."""
    pairs, index = np.unique(np.stack([step.kind.ravel(), step.where.ravel()]), axis=1, return_inverse=True)
    names = np.array([bound_name(topology, kind, where) for kind, where in pairs.T.tolist()])
    return np.asarray(names[index.ravel()].reshape(step.kind.shape))

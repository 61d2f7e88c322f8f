"""Branch and bound on experts: fix one inside or outside a set, bound both cases; the worst open case counts.

Every plan falls into one open case, so the least of their bounds holds for all. The worst case is opened first: its
most undecided expert, weighted with its load, is fixed. A case whose sets are all decided is not bounded but counted.
"""

import heapq
import math
import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from threadpoolctl import threadpool_limits

from grace_opt.bounds.relaxation import Relaxation
from grace_opt.bounds.semidefinite import FREE, Effort, State, improve

AT_ROOT = Effort(rounds=12, steps=40, ascent=30)
IN_CASE = Effort(rounds=3, steps=30, ascent=12)
Case = tuple[float, int, NDArray[np.int8], State]
"""Bound, serial number (breaks ties), fixed experts, where the search stood."""


@dataclass(frozen=True)
class Limits:
    """When to stop.

    Attributes:
        seconds: of wall time; a step of the search that has begun is finished.
        cases: how many to bound, the first included; with this limit alone a run is deterministic.
        incumbent: cost of a plan that is known; cases that cannot beat it are closed.
    """

    seconds: float = math.inf
    cases: int = 10**9
    incumbent: float = math.inf


def bound_by_cases(
    relaxation: Relaxation,
    limits: Limits,
    progress: Callable[[float, int], None] | None = None,
    root: Effort = AT_ROOT,
    case: Effort = IN_CASE,
) -> float:
    """The best lower bound on the relaxation's objective over integral sets that the limits allow.

    Args:
        progress: called with (bound, cases bounded so far) whenever the bound rises. What it raises ends the search, as
            a KeyboardInterrupt does; what was reported remains proven.
    """
    end = time.monotonic() + limits.seconds
    with threadpool_limits(1, "blas"):
        fixed = np.full((len(relaxation.blocks), relaxation.num_experts), FREE, np.int8)
        first = _bounded(relaxation, fixed, State.begin(relaxation), root, end)
        cases: list[Case] = [(first.bound, 0, fixed, first)]
        done, proven = 1, 0.0
        while cases:
            if min(cases[0][0], limits.incumbent) > proven:
                proven = min(cases[0][0], limits.incumbent)
                if progress is not None:
                    progress(proven, done)
            bound, _, fixed, state = cases[0]
            decided = not (fixed == FREE).any()
            if bound >= limits.incumbent or decided or done >= limits.cases or time.monotonic() >= end:
                break
            heapq.heappop(cases)
            for branch in _branches(relaxation, fixed, *_undecided(relaxation, fixed, state)):
                done += 1
                child = _bounded(relaxation, branch, state, case, end)
                if child.bound < math.inf:
                    heapq.heappush(cases, (child.bound, done, branch, child))
    return proven if cases else math.inf


def _bounded(relaxation: Relaxation, fixed: NDArray[np.int8], state: State, effort: Effort, end: float) -> State:
    """The state of a case with its bound; `fixed` gains what follows from it."""
    if not _propagate(relaxation, fixed):
        return State(state.vectors, state.mixes, state.prices, math.inf)
    if relaxation.spread or (fixed == FREE).any():
        return improve(relaxation, state, fixed, effort, end)
    return State(state.vectors, state.mixes, state.prices, cost_of_sets(relaxation, fixed == 1))


def _branches(relaxation: Relaxation, fixed: NDArray[np.int8], block: int, expert: int) -> list[NDArray[np.int8]]:
    """The cases an expert splits into: inside or outside a set, or where the sets are a partition, in which of them."""
    partition = relaxation.coupling == "partition"
    places: list[int] = np.flatnonzero(fixed[:, expert] == FREE).tolist() if partition else [block, block]
    branches = [fixed.copy() for _ in places]
    for number, (branch, place) in enumerate(zip(branches, places, strict=True)):
        branch[place, expert] = 1 if partition or number == 0 else 0
    return branches


def cost_of_sets(relaxation: Relaxation, inside: NDArray[np.bool_]) -> float:
    """What tokens cost with these sets [blocks, E]; at least, if they may need several more (`spread`)."""
    cost = []
    for block, inside_E in zip(relaxation.blocks, inside, strict=True):
        held = inside_E[block.experts]
        leaves, enters = ~held.all(axis=1), held.any(axis=1)
        cost.append(block.weight * np.where(block.sign > 0, leaves, enters))
    return relaxation.costliest(cost)


def _propagate(relaxation: Relaxation, fixed: NDArray[np.int8]) -> bool:
    """Fix what sizes and coupling leave no choice about; False if they cannot be met."""
    sizes = np.array([block.size for block in relaxation.blocks])
    while True:
        before = fixed.copy()
        if relaxation.coupling != "free":
            ones, free = (fixed == 1).sum(axis=0), (fixed == FREE).sum(axis=0)
            if (ones + free == 0).any() or (relaxation.coupling == "partition" and (ones > 1).any()):
                return False
            fixed[(fixed == FREE) & ((ones == 0) & (free == 1))] = 1
            if relaxation.coupling == "partition":
                fixed[(fixed == FREE) & ((fixed == 1).sum(axis=0) == 1)] = 0
        ones, free = (fixed == 1).sum(axis=1), (fixed == FREE).sum(axis=1)
        if (ones > sizes).any() or (ones + free < sizes).any():
            return False
        fixed[(fixed == FREE) & (ones == sizes)[:, None]] = 0
        fixed[(fixed == FREE) & (ones + free == sizes)[:, None]] = 1
        if (fixed == before).all():
            return True


def _undecided(relaxation: Relaxation, fixed: NDArray[np.int8], state: State) -> tuple[int, int]:
    """(block, expert) to fix next."""
    load = np.array(
        [
            np.bincount(block.experts.ravel(), np.repeat(block.weight, block.experts.shape[1]), relaxation.num_experts)
            for block in relaxation.blocks
        ]
    )
    inside = state.inside()
    score = np.where(fixed == FREE, (1 + load) * (0.01 + np.clip(np.minimum(inside, 1 - inside), 0, None)), -1.0)
    block, expert = np.unravel_index(int(score.argmax()), score.shape)
    return int(block), int(expert)

"""Which copy of an expert serves a token: a policy, its weights, and the deterministic schedules that follow from them.

The copies that may serve a token of home rank h are

    primary   the first copy in physical order
    uniform   all copies, in turn
    wrr       all copies, by polling weight (GRACE-MoE section 3, "WRR")
    tar       copies on rank h if there are any, else copies on h's node, else all; each by polling weight
              (GRACE-MoE section 3, topology-aware routing with locality preference, "TAR")
    cover     those that let the token visit few nodes and ranks, all its experts considered together (`cover`)

Under `cover` nothing is drawn. The draw among the candidates of the others is a weighted round robin in token order:
the n-th token of rank h (counted from 0 in every batch) that chose expert e takes entry (h + n) mod length of the
schedule of (h, e). Adding h keeps ranks from starting at the same copy. It needs no communication and no random
numbers, so prediction and execution count the same tokens.
"""

from dataclasses import dataclass

import numpy as np
from numba import njit
from numpy.typing import NDArray

from grace_opt.placement import EMPTY, Placement

POLICIES = ("primary", "uniform", "wrr", "tar", "cover")
CYCLE = 64
"""Length of a schedule with unequal weights: shares are multiples of 1/64."""


@dataclass(frozen=True, eq=False)
class Routing:
    """The policy that picks a copy, and its polling weights.

    Attributes:
        policy: one of POLICIES.
        weights: float64 [L, R, S], relative share of each slot among the copies of its expert (any positive scale);
            None means equal shares. Only `wrr` (required) and `tar` read weights. Empty slots hold 0.

    Example: expert 1 has copies on ranks 0 and 1 with weights 1 and 3; under `wrr` the schedule of rank 0 runs
    1, 0, 1, 1 (repeated), that of rank 1 begins one entry later. Under `tar` each rank uses its own copy.
    """

    policy: str
    weights: NDArray[np.float64] | None = None

    def __post_init__(self) -> None:
        if self.policy not in POLICIES:
            raise ValueError(f"routing policy must be one of {', '.join(POLICIES)}, got {self.policy!r}")
        if self.policy == "wrr" and self.weights is None:
            raise ValueError("routing policy wrr needs polling weights; for equal shares use uniform")
        if self.weights is None:
            return
        if self.policy in ("primary", "uniform", "cover"):
            raise ValueError(f"routing policy {self.policy} reads no weights, but weights were given")
        weights = np.array(self.weights, np.float64)
        if weights.ndim != 3 or not np.isfinite(weights).all() or (weights < 0).any():
            raise ValueError("routing weights must be finite, not negative, and shaped [layers, ranks, slots]")
        if weights.sum() == np.inf:
            raise ValueError("routing weights are so large that their sum overflows: give shares of any smaller scale")
        weights.setflags(write=False)
        object.__setattr__(self, "weights", weights)

    def check(self, placement: Placement) -> None:
        """Raise ValueError unless the weights fit the placement: same shape, positive exactly on filled slots."""
        if self.weights is None:
            return
        if self.weights.shape != placement.slots.shape:
            raise ValueError(
                f"routing weights have shape {self.weights.shape}, the placement's slots {placement.slots.shape}"
            )
        if ((self.weights > 0) != (placement.slots != EMPTY)).any():
            raise ValueError("routing weights must be positive on every filled slot and 0 on every empty one")


@dataclass(frozen=True, eq=False)
class Schedules:
    """One layer's choice of copies, ready for a kernel: (h, e) takes its copies from schedule[start:stop] in turn.

    Attributes:
        start, stop: uint32 [R, E], the part of `schedule` that home rank h walks for expert e.
        schedule: uint32 [entries], physical experts. A copy without alternative has a schedule of length 1.
    """

    start: NDArray[np.uint32]
    stop: NDArray[np.uint32]
    schedule: NDArray[np.uint32]


def schedules(placement: Placement, routing: Routing, node_of_rank: NDArray[np.integer], layer: int) -> Schedules:
    """Tabulate one layer's replica choice for all pairs of home rank and expert.

    Args:
        node_of_rank: [R] node of each rank.
        layer: index of the layer in the placement.
    """
    assert routing.policy != "cover", "cover looks at whole tokens, not at (home rank, expert)"
    slots_P = placement.slots[layer].flatten()  # own arrays, all of one kind: `_tabulate` is compiled once
    weights_P = np.ones(len(slots_P)) if routing.weights is None else routing.weights[layer].flatten()
    rank_P = np.repeat(np.arange(placement.num_ranks, dtype=np.int64), placement.slots.shape[2])
    start, stop, schedule = _tabulate(
        slots_P, weights_P, rank_P, np.array(node_of_rank, np.int64), placement.num_experts,
        POLICIES.index(routing.policy),
    )  # fmt: skip
    return Schedules(start, stop, schedule)


@njit(nogil=True, cache=True)
def smooth_round_robin(weights_C):  # type: ignore[no-untyped-def]
    """[C] weights of copies to the order they are polled in: entry i takes the copy furthest behind its share.

    Equal weights give the C copies in order; others a cycle of max(CYCLE, C) entries.
    """
    num_copies = len(weights_C)
    if weights_C.min() == weights_C.max():
        return np.arange(num_copies)
    length = max(CYCLE, num_copies)
    share_C = weights_C / weights_C.sum()
    taken_C = np.zeros(num_copies)
    order = np.empty(length, np.int64)
    for i in range(length):
        order[i] = np.argmax(share_C * (i + 1) - taken_C)
        taken_C[order[i]] += 1.0
    return order


@njit(nogil=True, cache=True)
def _tabulate(slots_P, weights_P, rank_P, node_R, num_experts, policy):  # type: ignore[no-untyped-def]
    """Schedules of one layer. Homes with the same candidate copies share one schedule."""
    num_ranks, num_nodes = len(node_R), node_R.max() + 1
    start_RE = np.empty((num_ranks, num_experts), np.uint32)
    stop_RE = np.empty((num_ranks, num_experts), np.uint32)
    schedule = np.empty(len(slots_P) * max(CYCLE, 4), np.uint32)
    end = 0
    for expert in range(num_experts):
        copies = np.flatnonzero(slots_P == expert)
        if policy == 0:
            copies = copies[:1]
        # One candidate set a key: 0 is "all copies"; under tar also one a node and one a rank that holds a copy.
        first = np.full(1 + num_nodes + num_ranks, -1, np.int64)
        last = np.empty(1 + num_nodes + num_ranks, np.int64)
        for home in range(num_ranks):
            key = 0
            if policy == 3 and len(copies) > 1:
                if (rank_P[copies] == home).any():
                    key = 1 + num_nodes + home
                elif (node_R[rank_P[copies]] == node_R[home]).any():
                    key = 1 + node_R[home]
            if first[key] < 0:
                candidates = copies
                if key > num_nodes:
                    candidates = copies[rank_P[copies] == home]
                elif key > 0:
                    candidates = copies[node_R[rank_P[copies]] == node_R[home]]
                order = smooth_round_robin(weights_P[candidates])
                while end + len(order) > len(schedule):
                    schedule = np.concatenate((schedule, np.empty_like(schedule)))
                first[key], last[key] = end, end + len(order)
                schedule[end : end + len(order)] = candidates[order].astype(np.uint32)
                end += len(order)
            start_RE[home, expert] = first[key]
            stop_RE[home, expert] = last[key]
    return start_RE, stop_RE, schedule[:end].copy()

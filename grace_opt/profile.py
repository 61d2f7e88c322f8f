"""What planners read off a trace: how often each expert is chosen, and how often two are chosen together."""

import numpy as np
from numba import njit
from numpy.typing import NDArray

from grace_opt.load_history import LoadHistory
from grace_opt.trace import Trace


def expert_loads(trace: Trace | LoadHistory) -> NDArray[np.int64]:
    """[L, E] tokens that chose each expert: all that a planner may ask of a load history."""
    if isinstance(trace, LoadHistory):
        return trace.loads
    load_LE = np.zeros((trace.num_layers, trace.num_experts), np.int64)
    for layer in range(trace.num_layers):
        ids_TK = np.asarray(trace.expert_ids[layer])
        for start, stop in trace.runs():
            load_LE[layer] += np.bincount(ids_TK[start:stop].ravel(), minlength=trace.num_experts)
    return load_LE


def grouped_loads(trace: Trace, layer: int, runs: NDArray[np.int64], num_groups: int) -> NDArray[np.int64]:
    """[groups, E] tokens of each group that chose each expert.

    Args:
        runs: int64 [runs, 3], tokens start to stop of the recorded array, and the group they count for.
    """
    load_GE = np.zeros((num_groups, trace.num_experts), np.int64)
    _count_groups(trace.recorded(layer), runs, load_GE)
    return load_GE


@njit(nogil=True, cache=True)
def _count_groups(ids_TK, runs, load_GE):  # type: ignore[no-untyped-def]
    for run in range(len(runs)):
        start, stop, group = runs[run]
        for token in range(start, stop):
            for k in range(ids_TK.shape[1]):
                load_GE[group, ids_TK[token, k]] += 1


def affinity(trace: Trace, layer: int) -> NDArray[np.int64]:
    """[E, E] tokens that chose both experts in this layer (GRACE-MoE section 3); the diagonal is 0."""
    return np.asarray(_count_pairs(trace.layer(layer), trace.num_experts))


@njit(nogil=True, cache=True)
def _count_pairs(ids_TK, num_experts):  # type: ignore[no-untyped-def]
    count_EE = np.zeros((num_experts, num_experts), np.int64)
    for token in range(ids_TK.shape[0]):
        for i in range(ids_TK.shape[1]):
            for j in range(i):
                count_EE[ids_TK[token, i], ids_TK[token, j]] += 1
    return count_EE + count_EE.T


def transitions_after(trace: Trace, layer: int) -> NDArray[np.int64]:
    """[E, E] (token, choice, next choice) triples with expert i in this layer and expert j in the next.

    A token that chooses K experts in both layers counts K * K times.

    Example: a token that chose experts 0 and 1, then 2 and 3, adds 1 to (0, 2), (0, 3), (1, 2) and (1, 3).
    """
    return np.asarray(_count_transitions(trace.layer(layer), trace.layer(layer + 1), trace.num_experts))


@njit(nogil=True, cache=True)
def _count_transitions(ids_TK, next_TK, num_experts):  # type: ignore[no-untyped-def]
    count_EE = np.zeros((num_experts, num_experts), np.int64)
    for token in range(ids_TK.shape[0]):
        for i in range(ids_TK.shape[1]):
            for j in range(ids_TK.shape[1]):
                count_EE[ids_TK[token, i], next_TK[token, j]] += 1
    return count_EE

"""GRACE+: GRACE-MoE's groups refined by the exact number of GPUs a token visits; copies and shares that know about it.

Our own reading of a one-line description of open code of 2026 ("exact distinct-GPU refinement, communication-aware
replicas, flow-based quotas"; flat, so nodes play no role after the grouping). Each layer by itself:

    grouping     that of GRACE without replicas, within the slots (`grace.py`)
    refinement   two experts of different ranks change places as long as that lowers the sum over tokens of distinct
                 ranks visited; of all such exchanges the best one is made. None may raise the larger load of its two
                 ranks above that of the busiest rank GRACE left.
    replicas     slot by slot, expert e gets a copy on rank b where saved + load_weight * relief is largest:
                 saved    tokens of e that visit b for another expert anyway, and no rank of e's copies for any other:
                          served on b they visit one rank less
                 relief   by how much the busier one of b and e's busiest rank gets lighter if e's load is shared
                          equally by its copies
                 until the slots are full or no copy brings anything
    quotas       the split of load over copies that leaves the busiest rank with least (`load_split.py`), as polling
                 weights. With `tar` every rank serves its own tokens if it can, so the split starts from those, and the
                 rest of a copy's share is its weight.

Both are counted in tokens, hence the sum. The counts speak of originals: a token is taken to use the original of every
other expert.
"""

from dataclasses import dataclass, replace
from typing import ClassVar

import numpy as np
from numba import njit
from numpy.typing import NDArray

from grace_opt.placement import Placement
from grace_opt.planners.grace import Grace
from grace_opt.planners.load_split import polling_shares, split_load
from grace_opt.planners.topology_ilp import loads_by_home
from grace_opt.problem import Problem
from grace_opt.profile import expert_loads
from grace_opt.routing import Routing
from grace_opt.solution import Solution, plan_for


@dataclass(frozen=True)
class GracePlus:
    """GRACE, refined by exact counts.

    Attributes:
        ratio: how far GRACE's group sizes may lie from equal, as a share; 0 is uniform.
        levels: 2 groups experts to nodes first, as GRACE does; 1 to all ranks at once.
        load_weight: a token less on the busier rank, measured in saved visits.
        routing: "wrr" serves the quotas exactly, wherever the token is; "tar" prefers the token's own rank, then its
            node.
        seed: of GRACE's clustering.

    Example: GRACE groups [0, 1] and [2, 3]; 3 tokens chose 0 and 2, 3 chose 1 and 3, 1 chose 0 and 1. Exchanging 1
    and 2 lowers visits from 13 to 8.
    """

    plans_by: ClassVar[str] = "structure"  # of the topology it sees only which ranks share a node

    ratio: float = 0.15
    levels: int = 2
    load_weight: float = 1.0
    routing: str = "tar"
    seed: int = 0

    def __post_init__(self) -> None:
        if self.routing not in ("wrr", "tar"):
            raise ValueError(f"grace_plus: routing must be wrr or tar, got {self.routing!r}")
        if not 0 <= self.load_weight < np.inf:
            raise ValueError(f"grace_plus: load_weight must be a number, at least 0, got {self.load_weight}")
        self._grace()

    def __call__(self, problem: Problem) -> Solution:
        grouped = self._grace()(problem).plan.placement
        layers, loads_LE = [], expert_loads(problem.trace)
        for layer, load_E in enumerate(loads_LE):
            ids_TK = problem.trace.layer(layer)
            rank_E = refined(ids_TK, _rank_of_expert(grouped, layer), load_E, grouped.num_ranks)
            layers.append(with_copies(ids_TK, rank_E, load_E, problem.slots_per_rank, self.load_weight))
        placement = Placement.from_lists([[np.flatnonzero(e).tolist() for e in holds] for holds in layers], len(load_E))
        weights_LRS = np.stack([self._weights(problem, placement, layer) for layer in range(len(layers))])
        return Solution(plan_for(problem, placement, Routing(self.routing, weights_LRS), "grace_plus"))

    def _grace(self) -> Grace:
        grace = Grace(ratio=self.ratio, levels=self.levels, replication="none", over_budget="trim", seed=self.seed)
        return grace if self.ratio > 0 else replace(grace, grouping="uniform", ratio=Grace.ratio)

    def _weights(self, problem: Problem, placement: Placement, layer: int) -> NDArray[np.float64]:
        """[R, S] polling weights of one layer."""
        slots_RS = placement.slots[layer]
        load_RE = loads_by_home(problem.trace, layer, len(slots_RS))
        own_RS = np.where(slots_RS >= 0, np.take_along_axis(load_RE, np.maximum(slots_RS, 0), axis=1), 0)
        least_RS = own_RS if self.routing == "tar" else np.zeros_like(own_RS)
        served_RS, _ = split_load(load_RE.sum(axis=0), slots_RS, least_RS)
        return polling_shares(served_RS - least_RS, slots_RS)


def refined(
    ids_TK: NDArray[np.unsignedinteger], rank_E: NDArray[np.int64], load_E: NDArray[np.int64], num_ranks: int
) -> NDArray[np.int64]:
    """[E] rank of each expert after exchanges that lower the number of distinct ranks of tokens; sizes stay."""
    tokens, starts = tokens_of_experts(ids_TK, len(rank_E))
    return np.asarray(_exchange(ids_TK.astype(np.int64), tokens, starts, rank_E.copy(), load_E, num_ranks))


def with_copies(
    ids_TK: NDArray[np.unsignedinteger],
    rank_E: NDArray[np.int64],
    load_E: NDArray[np.int64],
    slots_R: NDArray[np.int64],
    load_weight: float,
) -> NDArray[np.bool_]:
    """[R, E] whether a rank holds an expert, originals and copies."""
    num_ranks = len(slots_R)
    holds_RE: NDArray[np.bool_] = rank_E[None, :] == np.arange(num_ranks)[:, None]
    tokens, starts = tokens_of_experts(ids_TK, len(rank_E))
    ids_TK = ids_TK.astype(np.int64)

    def saved_by(expert: int) -> NDArray[np.int64]:
        own = tokens[starts[expert] : starts[expert + 1]]
        return np.asarray(_saved(ids_TK, own, expert, rank_E, holds_RE[:, expert]))

    saved_ER = np.stack([saved_by(expert) for expert in range(len(rank_E))])
    while (holds_RE.sum(axis=1) < slots_R).any():
        value_ER = saved_ER + load_weight * _relief(holds_RE, load_E)
        value_ER[holds_RE.T | (holds_RE.sum(axis=1) >= slots_R)[None, :]] = -np.inf
        expert, rank = np.unravel_index(np.argmax(value_ER), value_ER.shape)
        if value_ER[expert, rank] <= 0:
            break
        holds_RE[rank, expert] = True
        saved_ER[expert] = saved_by(int(expert))
    return holds_RE


def _relief(holds_RE: NDArray[np.bool_], load_E: NDArray[np.int64]) -> NDArray[np.float64]:
    """[E, R] by how much the busier of rank r and expert e's busiest rank gets lighter if r gets a copy of e."""
    copies_E = holds_RE.sum(axis=0)
    load_R = holds_RE @ (load_E / copies_E)
    busiest_E = np.where(holds_RE, load_R[:, None], 0.0).max(axis=0)
    lighter_E = busiest_E - load_E / (copies_E * (copies_E + 1))
    heavier_ER = load_R[None, :] + (load_E / (copies_E + 1))[:, None]
    before_ER = np.maximum(busiest_E[:, None], load_R[None, :])
    return np.asarray(before_ER - np.maximum(lighter_E[:, None], heavier_ER))


def tokens_of_experts(
    ids_TK: NDArray[np.unsignedinteger], num_experts: int
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Tokens of expert 0, then of expert 1, ... and [E + 1] where those of each expert start."""
    order = np.argsort(ids_TK, axis=None, kind="stable")
    counts = np.bincount(ids_TK.ravel(), minlength=num_experts)
    return order // ids_TK.shape[1], np.concatenate(([0], np.cumsum(counts)))


def _rank_of_expert(placement: Placement, layer: int) -> NDArray[np.int64]:
    rank_E = np.empty(placement.num_experts, np.int64)
    ranks, slots = np.nonzero(placement.slots[layer] >= 0)
    rank_E[placement.slots[layer][ranks, slots]] = ranks
    return rank_E


@njit(nogil=True, cache=True)
def _exchange(ids_TK, tokens, starts, rank_E, load_E, num_ranks):  # type: ignore[no-untyped-def]
    """Best exchange first, until none lowers the number of visits. Changes rank_E and returns it.

    With c_tr of token t's experts on rank r, and tokens t of expert e on rank a, the tables hold

        alone[e]    tokens with c_ta = 1: moving e away from a saves them a visit
        new[e, b]   tokens with c_tb = 0: moving e to b costs them one
        both[e, f]  tokens with c_ta = 1 that chose f too: f comes to a in exchange, so they save nothing

    so exchanging e on a with f on b changes visits by new[e, b] - alone[e] + new[f, a] - alone[f] + both[e, f] +
    both[f, e]. Only tokens of the two experts are counted again.
    """
    num_experts, num_tokens = len(rank_E), len(ids_TK)
    count_TR = np.zeros((num_tokens, num_ranks), np.int16)
    alone_E = np.zeros(num_experts, np.int64)
    new_ER = np.zeros((num_experts, num_ranks), np.int64)
    both_EE = np.zeros((num_experts, num_experts), np.int64)
    for token in range(num_tokens):
        for expert in ids_TK[token]:
            count_TR[token, rank_E[expert]] += 1
        _tabulate(ids_TK[token], count_TR[token], rank_E, 1, alone_E, new_ER, both_EE)
    load_R = np.zeros(num_ranks, np.int64)
    for expert in range(num_experts):
        load_R[rank_E[expert]] += load_E[expert]
    limit = load_R.max()
    while True:
        best, e, f = 0, -1, -1
        for i in range(num_experts):
            for j in range(i):
                a, b = rank_E[i], rank_E[j]
                moved = load_E[i] - load_E[j]
                if a == b or load_R[a] - moved > limit or load_R[b] + moved > limit:
                    continue
                change = new_ER[i, b] - alone_E[i] + new_ER[j, a] - alone_E[j] + both_EE[i, j] + both_EE[j, i]
                if change < best:
                    best, e, f = change, i, j
        if e < 0:
            return rank_E
        touched = np.unique(np.concatenate((tokens[starts[e] : starts[e + 1]], tokens[starts[f] : starts[f + 1]])))
        for token in touched:
            _tabulate(ids_TK[token], count_TR[token], rank_E, -1, alone_E, new_ER, both_EE)
            for expert in ids_TK[token]:
                count_TR[token, rank_E[expert]] -= 1
        a, b = rank_E[e], rank_E[f]
        load_R[a] += load_E[f] - load_E[e]
        load_R[b] += load_E[e] - load_E[f]
        rank_E[e], rank_E[f] = b, a
        for token in touched:
            for expert in ids_TK[token]:
                count_TR[token, rank_E[expert]] += 1
            _tabulate(ids_TK[token], count_TR[token], rank_E, 1, alone_E, new_ER, both_EE)


@njit(nogil=True, cache=True)
def _tabulate(ids_K, count_R, rank_E, sign, alone_E, new_ER, both_EE):  # type: ignore[no-untyped-def]
    """Add (sign 1) or take away (-1) one token's part of the tables."""
    for expert in ids_K:
        for rank in range(len(count_R)):
            if count_R[rank] == 0:
                new_ER[expert, rank] += sign
        if count_R[rank_E[expert]] == 1:
            alone_E[expert] += sign
            for other in ids_K:
                both_EE[expert, other] += sign


@njit(nogil=True, cache=True)
def _saved(ids_TK, tokens, expert, rank_E, holds_R):  # type: ignore[no-untyped-def]
    """[R] tokens of an expert that visit a rank for another expert, and none of its copies' ranks for another one."""
    saved_R = np.zeros(len(holds_R), np.int64)
    visited_R = np.zeros(len(holds_R), np.bool_)
    for token in tokens:
        visited_R[:] = False
        for other in ids_TK[token]:
            if other != expert:
                visited_R[rank_E[other]] = True
        if not (visited_R & holds_R).any():
            saved_R += visited_R
    return saved_R

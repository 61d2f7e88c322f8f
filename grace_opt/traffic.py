"""Exact counts of what a plan moves: rows rank to rank for three communication schemes, tokens per physical expert.

A *row* is one token's hidden state. With home rank h of a token, its K chosen copies, and the ranks and nodes of those:

    pairs          one row h -> r for every chosen copy on a rank r other than h
    flat           one row h -> r for every distinct rank r other than h
    hierarchical   stage 1: one row h -> p(h, n) for every distinct node n other than h's, p the rank of equal local
                   number on n; stage 2: one row p(h, n) -> r for every distinct rank r of node n (h's own node
                   included, p(h, n) = h there) other than p(h, n)

    low_latency    the rows of `pairs`, as DeepEP's low-latency kernels send them; only predicted, never executed here

    hierarchical_padded   the same, but every transfer of stage 1 is filled up with zeros to the largest of its batch
                   (GRACE-MoE section 3)

Combine sends every row back the way it came, without padding. One pass over the trace counts three tables from which
all schemes follow: (token, copy) pairs, distinct ranks and distinct nodes visited, each per home rank.

Example: 2 nodes x 2 ranks, expert e on rank e, a token at home on rank 0 that chose experts 1, 2 and 3: `pairs` and
`flat` send rows 0->1, 0->2, 0->3; `hierarchical` sends 0->2 across, then 0->1 and 2->3 inside the nodes.
"""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
from numba import njit
from numpy.typing import NDArray

from grace_opt.cores import num_cores
from grace_opt.cover import copy_table, cover_token
from grace_opt.plan import Plan
from grace_opt.routing import schedules
from grace_opt.topology import proxy_ranks
from grace_opt.trace import Trace

SCHEMES = ("pairs", "flat", "hierarchical", "hierarchical_padded")
PREDICTED_SCHEMES = (*SCHEMES, "low_latency")
"""Those the runtime executes, and one that is only predicted."""


def require_scheme(scheme: str, known: Sequence[str] = SCHEMES) -> None:
    """Raise ValueError unless there is such a scheme."""
    if scheme not in known:
        raise ValueError(f"scheme must be one of {', '.join(known)}, got {scheme!r}")


@dataclass(frozen=True, eq=False)
class Traffic:
    """Counts of one plan on one trace, per layer and batch. A batch is what all ranks process together.

    Attributes:
        tokens: int64 [L, B, P], (token, expert) pairs served by each physical expert.
        pair_rows: int64 [L, B, R, R], pairs of home rank and serving rank; the diagonal stays at home.
        rank_visits: int64 [L, B, R, R], tokens of a home rank that use at least one copy on a rank.
        node_visits: int64 [L, B, R, N], tokens of a home rank that use at least one copy on a node.
        tokens_of_rank: int64 [B, R], tokens at home on each rank.
        ranks_per_node: ranks of each node.
    """

    tokens: NDArray[np.int64]
    pair_rows: NDArray[np.int64]
    rank_visits: NDArray[np.int64]
    node_visits: NDArray[np.int64]
    tokens_of_rank: NDArray[np.int64]
    ranks_per_node: tuple[int, ...]

    @property
    def num_tokens(self) -> int:
        return int(self.tokens_of_rank.sum())

    @property
    def node_of_rank(self) -> NDArray[np.int64]:
        """[R] node of each rank."""
        return np.repeat(np.arange(len(self.ranks_per_node)), self.ranks_per_node)

    @property
    def tokens_by_rank(self) -> NDArray[np.int64]:
        """[L, B, R, S] tokens per physical expert, by the rank that holds it."""
        num_layers, num_batches = self.tokens.shape[:2]
        return self.tokens.reshape(num_layers, num_batches, len(self.node_of_rank), -1)

    @property
    def load(self) -> NDArray[np.int64]:
        """[L, B, R] (token, expert) pairs each rank computes."""
        return np.asarray(self.tokens_by_rank.sum(axis=3))

    @property
    def active_experts(self) -> NDArray[np.int64]:
        """[L, B, R] physical experts of each rank that serve at least one token."""
        return np.asarray((self.tokens_by_rank > 0).sum(axis=3))

    def stages(self, scheme: str) -> tuple[NDArray[np.int64], ...]:
        """Rows rank to rank [L, B, R, R] of each stage of dispatch; on the diagonal those that stay where they are."""
        require_scheme(scheme, PREDICTED_SCHEMES)
        if not scheme.startswith("hierarchical"):
            return (self.rank_visits if scheme == "flat" else self.pair_rows,)
        across, inside = np.zeros_like(self.rank_visits), np.zeros_like(self.rank_visits)
        proxy_RN = proxy_ranks(self.ranks_per_node)
        ranks = np.arange(len(proxy_RN))
        for home, proxy_N in enumerate(proxy_RN):
            across[:, :, home, proxy_N] = self.node_visits[:, :, home, :]
            inside[:, :, proxy_N[self.node_of_rank], ranks] += self.rank_visits[:, :, home, :]
        if scheme == "hierarchical_padded":
            leaves = np.zeros((len(ranks), len(ranks)), bool)
            leaves[ranks[:, None], proxy_RN] = True
            leaves[ranks, ranks] = False
            if leaves.any():
                across[:, :, leaves] = across[:, :, leaves].max(axis=2, keepdims=True)
        return across, inside

    def dispatch(self, scheme: str) -> tuple[NDArray[np.int64], ...]:
        """Rows rank to rank [L, B, R, R] of each stage of dispatch; the diagonal (no transfer) is 0."""
        return tuple(_without_diagonal(rows) for rows in self.stages(scheme))

    def combine(self, scheme: str) -> tuple[NDArray[np.int64], ...]:
        """Rows rank to rank of each stage of combine: dispatch backwards, without padding; the diagonal is 0."""
        return tuple(_without_diagonal(rows) for rows in self.returning(scheme))

    def returning(self, scheme: str) -> tuple[NDArray[np.int64], ...]:
        """As `combine`, the diagonal holding rows that stay where they are."""
        return tuple(rows.swapaxes(2, 3) for rows in reversed(self.stages(scheme.removesuffix("_padded"))))

    def cross_node_rows(self, scheme: str) -> NDArray[np.int64]:
        """[L, B] dispatched rows that leave a node."""
        other = self.node_of_rank[:, None] != self.node_of_rank[None, :]
        return np.asarray(sum(rows[:, :, other].sum(axis=2) for rows in self.dispatch(scheme)))

    def intra_node_rows(self, scheme: str) -> NDArray[np.int64]:
        """[L, B] dispatched rows between two ranks of one node."""
        same = self.node_of_rank[:, None] == self.node_of_rank[None, :]
        return np.asarray(sum(rows[:, :, same].sum(axis=2) for rows in self.dispatch(scheme)))


def traffic(trace: Trace, plan: Plan, tokens_per_rank: float | None = None, num_threads: int | None = None) -> Traffic:
    """Count the traffic of a plan exactly.

    Args:
        trace: with homes.
        tokens_per_rank: tokens of a rank in one batch. Every rank's tokens are cut, in order, into the same number of
            near-equal batches of about this size; None counts the whole trace as one batch.
        num_threads: layers are counted in parallel; None uses all cores this process may run on.

    Raises:
        ValueError: the trace is not of the plan's layers and experts, or has no homes on its ranks.
    """
    _check(trace, plan)
    segments, tokens_BR = batch_segments(trace, plan.num_ranks, tokens_per_rank)
    ranks, nodes = plan.num_ranks, len(plan.ranks_per_node)
    shape = (trace.num_layers, len(tokens_BR))
    counts = Traffic(
        np.zeros((*shape, plan.placement.num_physical), np.int64),
        np.zeros((*shape, ranks, ranks), np.int64),
        np.zeros((*shape, ranks, ranks), np.int64),
        np.zeros((*shape, ranks, nodes), np.int64),
        tokens_BR,
        plan.ranks_per_node,
    )
    node_R = plan.node_of_rank
    rank_P = np.repeat(np.arange(ranks, dtype=np.uint32), plan.placement.slots.shape[2])
    node_P = node_R[rank_P].astype(np.uint32)

    def count(layer: int) -> None:
        ids_TK = trace.recorded(layer)
        tables = counts.tokens[layer], counts.pair_rows[layer], counts.rank_visits[layer], counts.node_visits[layer]
        if plan.routing.policy == "cover":
            copies = copy_table(plan.placement, plan.ranks_per_node, layer)
            where = copies.num_copies, copies.rank, copies.physical, copies.node_of_rank, copies.entry
            _count_covered_layer(ids_TK, segments, *where, *tables)
        else:
            choice = schedules(plan.placement, plan.routing, node_R, layer)
            _count_layer(ids_TK, segments, choice.start, choice.stop, choice.schedule, rank_P, node_P, *tables)

    with ThreadPoolExecutor(num_threads or num_cores()) as pool:
        list(pool.map(count, range(trace.num_layers)))
    for table in (counts.tokens, counts.pair_rows, counts.rank_visits, counts.node_visits, counts.tokens_of_rank):
        table.setflags(write=False)
    return counts


def _check(trace: Trace, plan: Plan) -> None:
    if (trace.num_layers, trace.num_experts) != (plan.placement.num_layers, plan.num_experts):
        raise ValueError(
            f"trace has {trace.num_layers} layers of {trace.num_experts} experts, "
            f"the plan {plan.placement.num_layers} layers of {plan.num_experts}"
        )
    if trace.homes is None:
        raise ValueError("trace has no homes: deal its sequences onto ranks first (grace_opt.homes)")
    if trace.homes.max() >= plan.num_ranks:
        raise ValueError(f"trace has a home on rank {trace.homes.max()}, the plan only {plan.num_ranks} ranks")


def batch_segments(
    trace: Trace, num_ranks: int, tokens_per_rank: float | None
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """What the ranks process together: every rank's tokens, in order, cut into equally many near-equal batches.

    Returns:
        int64 [segments, 4], runs of tokens (start, stop, home, batch), ordered by batch, home and place in the rank's
        order; and int64 [B, R], tokens of each rank and batch.
    """
    assert trace.homes is not None
    if tokens_per_rank is not None and tokens_per_rank < 1:
        raise ValueError(f"tokens_per_rank must be at least 1, got {tokens_per_rank}")
    tokens_R = np.bincount(trace.homes, trace.lengths, num_ranks).astype(np.int64)
    num_batches = 1 if tokens_per_rank is None else max(1, round(int(tokens_R.max()) / tokens_per_rank))
    cuts_RB = tokens_R[:, None] * np.arange(num_batches + 1)[None, :] // num_batches
    segments = _cut(trace.starts, trace.stops, trace.homes, cuts_RB)
    order = np.lexsort((segments[:, 2], segments[:, 3]))  # stable: order of tokens within a rank is kept
    return segments[order], np.ascontiguousarray(np.diff(cuts_RB, axis=1).T)


def _without_diagonal(rows_LBRR: NDArray[np.int64]) -> NDArray[np.int64]:
    rows_LBRR = rows_LBRR.copy()
    diagonal = np.arange(rows_LBRR.shape[2])
    rows_LBRR[:, :, diagonal, diagonal] = 0
    return rows_LBRR


@njit(nogil=True, cache=True)
def _cut(starts_Q, stops_Q, homes_Q, cuts_RB):  # type: ignore[no-untyped-def]
    """Cut sequences where a batch of their home rank ends; rows (start, stop, home, batch)."""
    seen_R = np.zeros(len(cuts_RB), np.int64)
    batch_R = np.zeros(len(cuts_RB), np.int64)
    rows = np.empty((len(starts_Q) + cuts_RB.size, 4), np.int64)
    num_rows = 0
    for sequence in range(len(starts_Q)):
        start, home = starts_Q[sequence], homes_Q[sequence]
        while start < stops_Q[sequence]:
            while seen_R[home] == cuts_RB[home, batch_R[home] + 1]:
                batch_R[home] += 1
            length = min(stops_Q[sequence] - start, cuts_RB[home, batch_R[home] + 1] - seen_R[home])
            rows[num_rows] = (start, start + length, home, batch_R[home])
            num_rows += 1
            start += length
            seen_R[home] += length
    return rows[:num_rows].copy()


@njit(nogil=True, cache=True)
def _count_layer(  # type: ignore[no-untyped-def]
    ids_TK, segments, start_RE, stop_RE, schedule, rank_P, node_P,
    tokens_BP, pair_rows_BRR, rank_visits_BRR, node_visits_BRN,
):  # fmt: skip
    """Add one layer's counts. Scratch arrays of one home rank and batch stay in the first-level cache."""
    num_experts = start_RE.shape[1]
    one = np.uint32(1)
    cursor_E = np.empty(num_experts, np.uint32)  # where each expert's round robin stands
    tokens_P = np.zeros(len(rank_P), np.int64)
    rank_seen_R = np.full(rank_visits_BRR.shape[2], -1, np.int64)
    node_seen_N = np.full(node_visits_BRN.shape[2], -1, np.int64)
    stamp = 0  # number of the token, over all segments; what is stamped with it was already visited by this token
    for segment in range(len(segments)):
        first, last, home, batch = segments[segment]
        start_E, stop_E = start_RE[home], stop_RE[home]
        if segment == 0 or home != segments[segment - 1, 2] or batch != segments[segment - 1, 3]:
            for expert in range(num_experts):
                cursor_E[expert] = start_E[expert] + home % (stop_E[expert] - start_E[expert])
        visits_R, visits_N = rank_visits_BRR[batch, home], node_visits_BRN[batch, home]
        ids = ids_TK[first:last]
        for token in range(ids.shape[0]):
            for k in range(ids.shape[1]):
                expert = ids[token, k]
                position = cursor_E[expert]
                physical = schedule[position]
                position += one
                cursor_E[expert] = start_E[expert] if position == stop_E[expert] else position
                tokens_P[physical] += 1
                rank = rank_P[physical]
                node = node_P[physical]
                visits_R[rank] += rank_seen_R[rank] != stamp
                visits_N[node] += node_seen_N[node] != stamp
                rank_seen_R[rank] = stamp
                node_seen_N[node] = stamp
            stamp += 1
        for physical in range(len(rank_P)):
            tokens_BP[batch, physical] += tokens_P[physical]
            pair_rows_BRR[batch, home, rank_P[physical]] += tokens_P[physical]
            tokens_P[physical] = 0


@njit(nogil=True, cache=True)
def _count_covered_layer(  # type: ignore[no-untyped-def]
    ids_TK, segments, copies_E, rank_EC, physical_EC, node_R, entry_RN,
    tokens_BP, pair_rows_BRR, rank_visits_BRR, node_visits_BRN,
):  # fmt: skip
    """As `_count_layer`, for a policy that looks at all experts of a token together."""
    node_K, copy_K = np.empty(ids_TK.shape[1], np.int64), np.empty(ids_TK.shape[1], np.int64)
    rank_seen_R, counted_R = np.full(len(node_R), -1, np.int64), np.full(len(node_R), -1, np.int64)
    node_seen_N, counted_N = np.full(entry_RN.shape[1], -1, np.int64), np.full(entry_RN.shape[1], -1, np.int64)
    stamp, turn = 0, 0
    for segment in range(len(segments)):
        first, last, home, batch = segments[segment]
        if segment == 0 or home != segments[segment - 1, 2] or batch != segments[segment - 1, 3]:
            turn = home
        for token in range(first, last):
            cover_token(
                ids_TK, token, home, turn, copies_E, rank_EC, node_R, entry_RN, node_K, node_seen_N, rank_seen_R,
                stamp, copy_K,
            )  # fmt: skip
            for k in range(len(copy_K)):
                expert = ids_TK[token, k]
                rank = rank_EC[expert, copy_K[k]]
                node = node_R[rank]
                tokens_BP[batch, physical_EC[expert, copy_K[k]]] += 1
                pair_rows_BRR[batch, home, rank] += 1
                rank_visits_BRR[batch, home, rank] += counted_R[rank] != stamp
                node_visits_BRN[batch, home, node] += counted_N[node] != stamp
                counted_R[rank] = stamp
                counted_N[node] = stamp
            stamp += 1
            turn += 1

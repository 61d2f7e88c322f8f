"""Counters of sample batches and the seconds they make under `BatchRates`, for a local search; compiled."""

from typing import Any, NamedTuple

import numpy as np
from numba import njit

from grace_opt.batch_rates import GRID

Array = Any  # numba wants plain tuples of arrays


class Sample(NamedTuple):
    """Tokens of one layer that stand for its batches.

    ids [T, K]; home, turn (see `grace_opt.cover`), batch [T], ascending; weight [B], tokens that each one of a batch
    stands for; tokens[first[e, b] : first[e, b + 1]] chose expert e in batch b, first [E, B + 1]; expert_turn [T, K]
    and nearest are of `copy_choice`, expert_turn None where the rule is `cover`.
    """

    ids: Array
    home: Array
    turn: Array
    batch: Array
    weight: Array
    first: Array
    tokens: Array
    expert_turn: Array
    nearest: bool


class Rates(NamedTuple):
    """Those of `BatchRates`, and the shape of the machine: node [R], entry [R, N] ranks of
    `grace_opt.cover`, and node_mask [N, W], ranks of a node as bits."""

    between_rank: Array
    between_node: Array
    inside: Array
    expert: Array
    most_tokens: Array
    overlaps: Array
    by_rank: Array
    node: Array
    entry: Array
    node_mask: Array


class Counters(NamedTuple):
    """What a placement does to the sample.

    rows [4, B, R]: sent between nodes, received between, sent inside, received inside; pairs [B, R, E] tokens of each
    expert; busy [B, R] seconds of the experts; parts [B] seconds of each batch; rank [T, K] that serves; visits [T, W]
    ranks a token visits, as bits.
    """

    rows: Array
    pairs: Array
    busy: Array
    parts: Array
    rank: Array
    visits: Array


@njit(nogil=True, cache=True, inline="always")
def add_rank(rows, node_R, entry_RN, by_rank, home, rank, batch, weight, node_known):  # type: ignore[no-untyped-def]
    """A token of a home rank visits one rank more, or with a negative weight less; node_known: it visits that node."""
    own, node = node_R[home], node_R[rank]
    if by_rank:
        if rank != home:
            kind = 0 if node != own else 2
            rows[kind, batch, home] += weight
            rows[kind + 1, batch, rank] += weight
        return
    enters = entry_RN[home, node]
    if node != own and not node_known:
        rows[0, batch, home] += weight
        rows[1, batch, enters] += weight
    if rank != enters:
        rows[2, batch, enters] += weight
        rows[3, batch, rank] += weight


@njit(nogil=True, cache=True)
def expert_seconds(table_RG, most_tokens, rank, tokens):  # type: ignore[no-untyped-def]
    """Seconds of an expert with so many tokens, read off the table of its rank."""
    if tokens <= 1e-9:
        return 0.0
    cell = min(int(np.sqrt(tokens / most_tokens) * (GRID - 1)), GRID - 2)
    low = most_tokens * (cell / (GRID - 1)) ** 2
    high = most_tokens * ((cell + 1) / (GRID - 1)) ** 2
    before, after = table_RG[rank, cell], table_RG[rank, cell + 1]
    return before + (after - before) * (tokens - low) / (high - low)


@njit(nogil=True, cache=True)
def batch_seconds(rates, rows, busy, b, doublings):  # type: ignore[no-untyped-def]
    """Seconds of one batch with p-norms in place of maxima, p = 2 ** doublings; both directions of a link count."""
    num_ranks, num_nodes = len(rates.inside), len(rates.between_node)
    experts, within, across, shared = 0.0, 0.0, 0.0, 0.0
    scale = 1e-30
    for r in range(num_ranks):
        scale = max(scale, busy[b, r])
    for r in range(num_ranks):
        experts += _power(busy[b, r] / scale, doublings)
    total = scale * _root(experts, doublings)
    wide, narrow, node_scale = 1e-30, 1e-30, 1e-30
    node_rows = np.zeros((2, num_nodes))
    for way in range(2):
        for r in range(num_ranks):
            wide = max(wide, rates.inside[r] * rows[2 + way, b, r])
            narrow = max(narrow, rates.between_rank[r] * rows[way, b, r])
            node_rows[way, rates.node[r]] += rows[way, b, r]
        for n in range(num_nodes):
            node_scale = max(node_scale, rates.between_node[n] * node_rows[way, n])
    for way in range(2):
        for r in range(num_ranks):
            within += _power(rates.inside[r] * rows[2 + way, b, r] / wide, doublings)
            across += _power(rates.between_rank[r] * rows[way, b, r] / narrow, doublings)
        for n in range(num_nodes):
            shared += _power(rates.between_node[n] * node_rows[way, n] / node_scale, doublings)
    inside = wide * _root(within, doublings)
    between = max(narrow * _root(across, doublings), node_scale * _root(shared, doublings))
    return total + (max(inside, between) if rates.overlaps else inside + between)


@njit(nogil=True, cache=True)
def _power(x, doublings):  # type: ignore[no-untyped-def]
    for _ in range(doublings):
        x *= x
    return x


@njit(nogil=True, cache=True)
def _root(x, doublings):  # type: ignore[no-untyped-def]
    for _ in range(doublings):
        x = np.sqrt(x)
    return x

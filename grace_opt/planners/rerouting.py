"""What a move of a local search changes in one sample batch: the ways of tokens, and the counters; compiled."""

from typing import NamedTuple

import numpy as np
from numba import njit

from grace_opt.cover import cover_token
from grace_opt.planners.copy_choice import copies_in_turn
from grace_opt.planners.search_objective import Array, add_rank, batch_seconds, expert_seconds


class Scratch(NamedTuple):
    """What a trial writes, and marks of what it has seen, kept from trial to trial.

    rows, busy, parts: as in `Counters`, of the batches tried. rerouted [most], new_rank [most, K] and
    new_visits [most, W]: tokens whose way changes; cells [.., 3] batch, rank and expert of changed pairs, cell_old what
    these were. seen_token [T], seen_cell [B, R, E]: the last trial that came by. node, copy [K], mask [W] and
    seen_node [N], seen_rank [R] are of the rule that routes; stamp [1] counts tokens routed, for those marks.
    """

    rows: Array
    busy: Array
    parts: Array
    rerouted: Array
    new_rank: Array
    new_visits: Array
    cells: Array
    cell_old: Array
    seen_token: Array
    seen_cell: Array
    node: Array
    copy: Array
    mask: Array
    seen_node: Array
    seen_rank: Array
    stamp: Array


@njit(nogil=True, cache=True)
def scratch_of(sample, counters, num_nodes):  # type: ignore[no-untyped-def]
    """For any move of a sample: a token has to be routed again if it chose one of two experts."""
    (num_tokens, top_k), words = sample.ids.shape, counters.visits.shape[1]
    most = 2 * np.max(sample.first[:, -1] - sample.first[:, 0]) + 1
    return Scratch(
        counters.rows.copy(), counters.busy.copy(), counters.parts.copy(), np.empty(most, np.int64),
        np.empty((most, top_k), np.int64), np.empty((most, words), np.int64), np.empty((2 * most * top_k, 3), np.int64),
        np.empty(2 * most * top_k), np.full(num_tokens, -1, np.int64), np.full(counters.pairs.shape, -1, np.int64),
        np.empty(top_k, np.int64), np.empty(top_k, np.int64), np.empty(words, np.int64),
        np.full(num_nodes, -1, np.int64), np.full(counters.busy.shape[1], -1, np.int64), np.zeros(1, np.int64),
    )  # fmt: skip


@njit(nogil=True, cache=True)
def change_batch(  # type: ignore[no-untyped-def]
    sample,
    expert_turn_TK,
    rates,
    counters,
    copies_E,
    rank_EC,
    scratch,
    b,
    old,
    new,
    trial,
    count,
    num_cells,
    doublings,
):
    """Route the tokens of batch b that chose one of two experts anew, and count what that changes.

    Pairs change in place: `cells` tells where, and what they were. All else goes into the scratch.

    Args:
        count, num_cells: tokens and cells that this trial has changed in other batches; returned with those of b.
    """
    ids_TK, home_T, turn_T, _, weight_B, first_EB, tokens, _, nearest = sample
    rank_TK, visits_TW, pairs_BRE = counters.rank, counters.visits, counters.pairs
    rows, busy, new_rank, new_visits, copy_K = (
        scratch.rows,
        scratch.busy,
        scratch.new_rank,
        scratch.new_visits,
        scratch.copy,
    )
    weight, before, cells_before = weight_B[b], count, num_cells
    for kind in range(4):
        for r in range(busy.shape[1]):
            rows[kind, b, r] = counters.rows[kind, b, r]
    busy[b] = counters.busy[b]
    for side in range(2):
        expert = old if side == 0 else new
        for position in range(first_EB[expert, b], first_EB[expert, b + 1]) if expert >= 0 else range(0):
            t = tokens[position]
            if scratch.seen_token[t] == trial:
                continue
            scratch.seen_token[t] = trial
            if expert_turn_TK is None:
                scratch.stamp[0] += 1
                cover_token(
                    ids_TK, t, home_T[t], turn_T[t], copies_E, rank_EC, rates.node, rates.entry, scratch.node,
                    scratch.seen_node, scratch.seen_rank, scratch.stamp[0], copy_K,
                )  # fmt: skip
            else:
                copies_in_turn(ids_TK, t, home_T[t], expert_turn_TK, nearest, copies_E, rank_EC, rates.node, copy_K)
            if not _reroute(ids_TK, t, rank_EC, copy_K, rank_TK, new_rank, new_visits, count):
                continue
            _change_rows(
                rates.node, rates.entry, rates.node_mask, rates.by_rank, rank_TK, visits_TW, rows, t, b, home_T[t],
                weight, new_rank, new_visits, count, scratch.mask,
            )  # fmt: skip
            for k in range(ids_TK.shape[1]):
                if new_rank[count, k] != rank_TK[t, k]:
                    for way in range(2):
                        r, e = (new_rank[count, k] if way else rank_TK[t, k]), ids_TK[t, k]
                        if scratch.seen_cell[b, r, e] != trial:
                            scratch.seen_cell[b, r, e] = trial
                            scratch.cells[num_cells] = b, r, e
                            scratch.cell_old[num_cells] = pairs_BRE[b, r, e]
                            num_cells += 1
                        pairs_BRE[b, r, e] += weight if way else -weight
            scratch.rerouted[count] = t
            count += 1
    for c in range(cells_before, num_cells):
        _, r, e = scratch.cells[c]
        busy[b, r] += expert_seconds(rates.expert, rates.most_tokens, r, pairs_BRE[b, r, e]) - expert_seconds(
            rates.expert, rates.most_tokens, r, scratch.cell_old[c]
        )
    scratch.parts[b] = batch_seconds(rates, rows, busy, b, doublings) if count > before else counters.parts[b]
    return count, num_cells


@njit(nogil=True, cache=True, inline="always")
def _reroute(ids_TK, t, rank_EC, copy_K, rank_TK, new_rank, new_visits, row):  # type: ignore[no-untyped-def]
    """Write the ranks that serve token t now, and those it visits, into a row; whether any is another than before."""
    for word in range(new_visits.shape[1]):
        new_visits[row, word] = 0
    changed = False
    for k in range(len(copy_K)):
        rank = rank_EC[ids_TK[t, k], copy_K[k]]
        new_rank[row, k] = rank
        new_visits[row, rank >> 6] |= np.int64(1) << (rank & 63)
        changed |= rank != rank_TK[t, k]
    return changed


@njit(nogil=True, cache=True, inline="always")
def _change_rows(  # type: ignore[no-untyped-def]
    node_R,
    entry_RN,
    node_mask,
    by_rank,
    rank_TK,
    visits_TW,
    rows,
    t,
    b,
    home,
    weight,
    new_rank,
    new_visits,
    row,
    mask_W,
):
    """Take away the rows of ranks that token t visits no more, add those of ranks it visits newly."""
    for word in range(len(mask_W)):
        mask_W[word] = visits_TW[t, word]
    for k in range(new_rank.shape[1]):
        old, new = rank_TK[t, k], new_rank[row, k]
        if old == new:
            continue
        word, bit = old >> 6, np.int64(1) << (old & 63)
        if mask_W[word] & bit and not new_visits[row, word] & bit:
            mask_W[word] ^= bit
            known = visits_node(mask_W, node_mask, node_R[old])
            add_rank(rows, node_R, entry_RN, by_rank, home, old, b, -weight, known)
        word, bit = new >> 6, np.int64(1) << (new & 63)
        if not mask_W[word] & bit:
            known = visits_node(mask_W, node_mask, node_R[new])
            add_rank(rows, node_R, entry_RN, by_rank, home, new, b, weight, known)
            mask_W[word] |= bit


@njit(nogil=True, cache=True, inline="always")
def visits_node(mask_W, node_mask, node):  # type: ignore[no-untyped-def]
    """Whether a rank of the node is among those in a mask."""
    common = 0
    for word in range(len(mask_W)):
        common |= mask_W[word] & node_mask[node, word]
    return common != 0

"""Simulated annealing of one layer's slots with exact counts, compiled; `local_search` tells what it does."""

import numpy as np
from numba import njit

from grace_opt.cover import cover_token
from grace_opt.planners.copy_choice import copies_in_turn
from grace_opt.planners.search_moves import NOBODY, list_copies, move_copy, propose
from grace_opt.planners.search_objective import add_rank, batch_seconds, expert_seconds


@njit(nogil=True, cache=True)
def anneal(  # type: ignore[no-untyped-def]
    slots_RS,
    best_RS,
    best,
    room_R,
    sample,
    expert_turn_TK,
    rates,
    counters,
    copies_E,
    rank_EC,
    trials,
    hottest,
    coldest,
    doublings,
    random,
    filled,
):
    """Seconds of the best slots; they are left in best_RS, those of the last trial in slots_RS.

    expert_turn_TK is that of the sample: numba leaves out of what it compiles the way that is not taken where an
    argument itself is None. Tested for each token, it would make the search a third slower.
    """
    ids_TK, home_T, turn_T, batch_T, weight_B, first_E, tokens, _, nearest = sample
    node_R, entry_RN, node_mask, by_rank = rates.node, rates.entry, rates.node_mask, rates.by_rank
    table_RG, most_tokens = rates.expert, rates.most_tokens
    rank_TK, visits_TW, pairs_BRE = counters.rank, counters.visits, counters.pairs
    list_copies(slots_RS, copies_E, rank_EC)
    num_tokens, top_k = sample.ids.shape
    num_batches, num_ranks = counters.busy.shape
    node_K, copy_K, mask_W = (
        np.empty(top_k, np.int64),
        np.empty(top_k, np.int64),
        np.empty(visits_TW.shape[1], np.int64),
    )
    seen_N, seen_R = np.full(len(rates.between_node), -1, np.int64), np.full(num_ranks, -1, np.int64)
    _count_all(
        sample, expert_turn_TK, rates, counters, copies_E, rank_EC, node_K, copy_K, seen_N, seen_R, mask_W, doublings
    )
    stamp = num_tokens
    now = counters.parts.mean()
    if now < best:
        best = now
        best_RS[:] = slots_RS
    most = 2 * np.max(np.diff(sample.first)) + 1
    rerouted, new_rank = np.empty(most, np.int64), np.empty((most, top_k), np.int64)
    new_visits = np.empty((most, visits_TW.shape[1]), np.int64)
    cells, cell_old = np.empty((2 * most * top_k, 3), np.int64), np.empty(2 * most * top_k)
    rows, busy, parts = counters.rows.copy(), counters.busy.copy(), counters.parts.copy()
    seen_T, seen_cell = np.full(num_tokens, -1, np.int64), np.full(counters.pairs.shape, -1, np.int64)
    seen_B = np.full(num_batches, -1, np.int64)
    hot, cold = hottest * now, coldest * now
    for trial in range(trials):
        r1, s1, r2, s2, new1, new2 = propose(
            random, slots_RS, room_R, copies_E, rank_EC, ids_TK, first_E, tokens, filled
        )
        if r1 == NOBODY:
            continue
        old1, old2 = slots_RS[r1, s1], slots_RS[r2, s2]
        slots_RS[r1, s1] = new1
        move_copy(old1, new1, r1, copies_E, rank_EC)
        if r2 != NOBODY:
            slots_RS[r2, s2] = new2
            move_copy(old2, new2, r2, copies_E, rank_EC)
        rows[:], busy[:] = counters.rows, counters.busy
        count, num_cells = 0, 0
        for side in range(2):
            expert = old1 if side == 0 else new1
            for position in range(first_E[expert], first_E[expert + 1]) if expert >= 0 else range(0):
                t = tokens[position]
                if seen_T[t] == trial:
                    continue
                seen_T[t] = trial
                b, home, weight = batch_T[t], home_T[t], weight_B[batch_T[t]]
                stamp += 1
                if expert_turn_TK is None:
                    cover_token(
                        ids_TK, t, home, turn_T[t], copies_E, rank_EC, node_R, entry_RN, node_K, seen_N, seen_R, stamp,
                        copy_K,
                    )  # fmt: skip
                else:
                    copies_in_turn(ids_TK, t, home, expert_turn_TK, nearest, copies_E, rank_EC, node_R, copy_K)
                if not _reroute(ids_TK, t, rank_EC, copy_K, rank_TK, new_rank, new_visits, count):
                    continue
                _change_rows(
                    node_R, entry_RN, node_mask, by_rank, rank_TK, visits_TW, rows, t, b, home, weight, new_rank,
                    new_visits, count, mask_W,
                )  # fmt: skip
                for k in range(top_k):
                    if new_rank[count, k] != rank_TK[t, k]:
                        for way in range(2):
                            r, e = (new_rank[count, k] if way else rank_TK[t, k]), ids_TK[t, k]
                            if seen_cell[b, r, e] != trial:
                                seen_cell[b, r, e] = trial
                                cells[num_cells, 0], cells[num_cells, 1], cells[num_cells, 2] = b, r, e
                                cell_old[num_cells] = pairs_BRE[b, r, e]
                                num_cells += 1
                            pairs_BRE[b, r, e] += weight if way else -weight
                seen_B[b] = trial
                rerouted[count] = t
                count += 1
        for c in range(num_cells):
            b, r, e = cells[c, 0], cells[c, 1], cells[c, 2]
            busy[b, r] += expert_seconds(table_RG, most_tokens, r, pairs_BRE[b, r, e]) - expert_seconds(
                table_RG, most_tokens, r, cell_old[c]
            )
        after = 0.0
        for b in range(num_batches):
            parts[b] = batch_seconds(rates, rows, busy, b, doublings) if seen_B[b] == trial else counters.parts[b]
            after += parts[b] / num_batches
        temperature = hot * (cold / hot) ** (trial / trials) if hot > 0 else 1e-300
        if after <= now or random.random() < np.exp((now - after) / temperature):
            now = after
            counters.rows[:], counters.busy[:], counters.parts[:] = rows, busy, parts
            for i in range(count):
                for k in range(top_k):
                    rank_TK[rerouted[i], k] = new_rank[i, k]
                for word in range(new_visits.shape[1]):
                    visits_TW[rerouted[i], word] = new_visits[i, word]
            if now < best:
                best = now
                best_RS[:] = slots_RS
            continue
        for c in range(num_cells):
            pairs_BRE[cells[c, 0], cells[c, 1], cells[c, 2]] = cell_old[c]
        move_copy(new1, old1, r1, copies_E, rank_EC)
        slots_RS[r1, s1] = old1
        if r2 != NOBODY:
            move_copy(new2, old2, r2, copies_E, rank_EC)
            slots_RS[r2, s2] = old2
    return best


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
            known = _visits_node(mask_W, node_mask, node_R[old])
            add_rank(rows, node_R, entry_RN, by_rank, home, old, b, -weight, known)
        word, bit = new >> 6, np.int64(1) << (new & 63)
        if not mask_W[word] & bit:
            known = _visits_node(mask_W, node_mask, node_R[new])
            add_rank(rows, node_R, entry_RN, by_rank, home, new, b, weight, known)
            mask_W[word] |= bit


@njit(nogil=True, cache=True, inline="always")
def _visits_node(mask_W, node_mask, node):  # type: ignore[no-untyped-def]
    common = 0
    for word in range(len(mask_W)):
        common |= mask_W[word] & node_mask[node, word]
    return common != 0


@njit(nogil=True, cache=True)
def _count_all(  # type: ignore[no-untyped-def]
    sample, expert_turn_TK, rates, counters, copies_E, rank_EC, node_K, copy_K, seen_N, seen_R, mask_W, doublings
):
    """Fill the counters anew."""
    ids_TK, home_T, turn_T, batch_T, weight_B, _, _, _, nearest = sample
    counters.rows[:], counters.pairs[:], counters.busy[:] = 0.0, 0.0, 0.0
    for t in range(len(ids_TK)):
        b, home, weight = batch_T[t], home_T[t], weight_B[batch_T[t]]
        if expert_turn_TK is None:
            cover_token(
                ids_TK, t, home, turn_T[t], copies_E, rank_EC, rates.node, rates.entry, node_K, seen_N, seen_R, t,
                copy_K,
            )  # fmt: skip
        else:
            copies_in_turn(ids_TK, t, home, expert_turn_TK, nearest, copies_E, rank_EC, rates.node, copy_K)
        mask_W[:] = 0
        for k in range(len(copy_K)):
            rank = rank_EC[ids_TK[t, k], copy_K[k]]
            word, bit = rank >> 6, np.int64(1) << (rank & 63)
            if not mask_W[word] & bit:
                known = _visits_node(mask_W, rates.node_mask, rates.node[rank])
                add_rank(counters.rows, rates.node, rates.entry, rates.by_rank, home, rank, b, weight, known)
                mask_W[word] |= bit
            counters.rank[t, k] = rank
            counters.pairs[b, rank, ids_TK[t, k]] += weight
        counters.visits[t] = mask_W
    for b in range(len(counters.parts)):
        for r in range(counters.busy.shape[1]):
            for e in range(counters.pairs.shape[2]):
                counters.busy[b, r] += expert_seconds(rates.expert, rates.most_tokens, r, counters.pairs[b, r, e])
        counters.parts[b] = batch_seconds(rates, counters.rows, counters.busy, b, doublings)

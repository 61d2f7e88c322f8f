"""Simulated annealing of one layer's slots with exact counts, compiled; `local_search` tells what it does.

A move is tried batch by batch. Its margin is drawn first: the change of the mean up to which it is accepted. Once the
mean change of the batches so far is above the margin by some standard errors, it is given up without the rest, as most
moves of a cold search are (the sequential test of Korattikara, Chen and Welling, Austerity in MCMC Land, 2014, section
4). What is accepted was tried on all batches, so counters stay exact. Trials begin with different batches.
"""

import numpy as np
from numba import njit

from grace_opt.cover import cover_token
from grace_opt.planners.copy_choice import copies_in_turn
from grace_opt.planners.rerouting import change_batch, scratch_of, visits_node
from grace_opt.planners.search_moves import NOBODY, list_copies, move_copy, propose
from grace_opt.planners.search_objective import add_rank, batch_seconds, expert_seconds

PATIENCE = 1.0
"""Standard errors by which a move must seem too bad before its remaining batches are left out."""


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
    num_batches = len(counters.parts)
    scratch = scratch_of(sample, counters, len(rates.between_node))
    list_copies(slots_RS, copies_E, rank_EC)
    _count_all(sample, expert_turn_TK, rates, counters, copies_E, rank_EC, scratch, doublings)
    now = counters.parts.mean()
    if now < best:
        best = now
        best_RS[:] = slots_RS
    hot, cold = hottest * now, coldest * now
    order_B = random.permutation(num_batches)  # those of a domain, or of a size, stand together
    for trial in range(trials):
        r1, s1, r2, s2, new1, new2 = propose(
            random, slots_RS, room_R, copies_E, rank_EC, sample.ids, sample.first, sample.tokens, filled
        )
        if r1 == NOBODY:
            continue
        old1, old2 = slots_RS[r1, s1], slots_RS[r2, s2]
        slots_RS[r1, s1] = new1
        move_copy(old1, new1, r1, copies_E, rank_EC)
        if r2 != NOBODY:
            slots_RS[r2, s2] = new2
            move_copy(old2, new2, r2, copies_E, rank_EC)
        temperature = hot * (cold / hot) ** (trial / trials) if hot > 0 else 1e-300
        margin = -np.log(1.0 - random.random()) * temperature
        count, num_cells, total, squares, tried = 0, 0, 0.0, 0.0, 0
        while tried < num_batches:
            b = order_B[(trial + tried) % num_batches]
            count, num_cells = change_batch(
                sample, expert_turn_TK, rates, counters, copies_E, rank_EC, scratch, b, old1, new1, trial, count,
                num_cells, doublings,
            )  # fmt: skip
            change = scratch.parts[b] - counters.parts[b]
            total, squares, tried = total + change, squares + change * change, tried + 1
            if 1 < tried < num_batches and _seems_worse(total, squares, tried, margin):
                break
        if tried == num_batches and total <= margin * num_batches:
            counters.rows[:], counters.busy[:], counters.parts[:] = scratch.rows, scratch.busy, scratch.parts
            now = counters.parts.mean()
            for i in range(count):
                t = scratch.rerouted[i]
                counters.rank[t] = scratch.new_rank[i]
                counters.visits[t] = scratch.new_visits[i]
            if now < best:
                best = now
                best_RS[:] = slots_RS
            continue
        for c in range(num_cells):
            b, r, e = scratch.cells[c]
            counters.pairs[b, r, e] = scratch.cell_old[c]
        move_copy(new1, old1, r1, copies_E, rank_EC)
        slots_RS[r1, s1] = old1
        if r2 != NOBODY:
            move_copy(new2, old2, r2, copies_E, rank_EC)
            slots_RS[r2, s2] = old2
    return best


@njit(nogil=True, cache=True, inline="always")
def _seems_worse(total, squares, tried, margin):  # type: ignore[no-untyped-def]
    """Whether batches seen so far make it unlikely that their mean change ends up below the margin."""
    mean = total / tried
    if mean <= margin:
        return False
    variance = max(squares - total * mean, 0.0) / (tried - 1)
    return mean - PATIENCE * np.sqrt(variance / tried) > margin


@njit(nogil=True, cache=True)
def _count_all(sample, expert_turn_TK, rates, counters, copies_E, rank_EC, scratch, doublings):  # type: ignore[no-untyped-def]
    """Fill the counters anew."""
    ids_TK, home_T, turn_T, batch_T, weight_B, _, _, _, nearest = sample
    mask_W, copy_K = scratch.mask, scratch.copy
    counters.rows[:], counters.pairs[:], counters.busy[:] = 0.0, 0.0, 0.0
    for t in range(len(ids_TK)):
        b, home, weight = batch_T[t], home_T[t], weight_B[batch_T[t]]
        if expert_turn_TK is None:
            scratch.stamp[0] += 1
            cover_token(
                ids_TK, t, home, turn_T[t], copies_E, rank_EC, rates.node, rates.entry, scratch.node,
                scratch.seen_node, scratch.seen_rank, scratch.stamp[0], copy_K,
            )  # fmt: skip
        else:
            copies_in_turn(ids_TK, t, home, expert_turn_TK, nearest, copies_E, rank_EC, rates.node, copy_K)
        mask_W[:] = 0
        for k in range(len(copy_K)):
            rank = rank_EC[ids_TK[t, k], copy_K[k]]
            word, bit = rank >> 6, np.int64(1) << (rank & 63)
            if not mask_W[word] & bit:
                known = visits_node(mask_W, rates.node_mask, rates.node[rank])
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

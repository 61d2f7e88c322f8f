"""Lower bounds from counting slots: they hold for every plan within the problem's slots, whatever its routing.

Data: load_e tokens that chose expert e, s_r slots of rank r, K experts a token chose, home rank of every token.
All count the trace as one batch. Rows of batches add up to rows of the trace; the busiest rank's load, summed
over batches, is no less than that of the trace.

Example: experts with loads 6, 2, 2 and 2 on 4 ranks of 1 slot: the hottest has no room for a second copy, so one rank
serves 6. With one slot more it may have two copies, and the bound falls to max(6 / 2, 12 / 4) = 3.
"""

import numpy as np
from numpy.typing import NDArray

from grace_opt.problem import Problem
from grace_opt.profile import expert_loads, grouped_loads
from grace_opt.topology import proxy_ranks
from grace_opt.traffic import batch_segments


def busiest_rank_load(problem: Problem) -> NDArray[np.float64]:
    """[L] no plan's busiest rank serves fewer (token, expert) pairs: max over j of min over m of the j largest loads
    and the n smallest, over m.

    Proof: the other E - j experts need a slot each, so the j hottest have at most sum s_r - (E - j) copies and lie on
    some m ranks with slots, at most that many and enough to hold them. Of the other experts at most as many as there
    are slots elsewhere have a copy elsewhere; n = E - j less the slots of the R - m largest ranks, or more, are served
    by these m ranks alone, of which one carries at least the mean. j = E is the mean over ranks; j = 1 without copies
    is the hottest expert and those that must share its rank.
    """
    experts, slots_R = problem.model.num_experts, np.sort(problem.slots_per_rank[problem.slots_per_rank > 0])
    sorted_LE = np.sort(expert_loads(problem.trace), axis=1)
    none_L1 = np.zeros((len(sorted_LE), 1))
    coldest_LN = np.concatenate([none_L1, sorted_LE.cumsum(axis=1)], axis=1)
    hottest_LE = sorted_LE[:, ::-1].cumsum(axis=1)
    taken_E1, ranks_M = np.arange(1, experts + 1)[:, None], np.arange(1, len(slots_R) + 1)
    elsewhere_M = slots_R.sum() - slots_R.cumsum()
    alone_EM = np.clip(experts - taken_E1 - elsewhere_M, 0, None)
    can_EM = (ranks_M <= slots_R.sum() - (experts - taken_E1)) & (slots_R[::-1].cumsum() >= taken_E1)
    load_LEM = np.where(can_EM, (hottest_LE[:, :, None] + coldest_LN[:, alone_EM]) / ranks_M, np.inf)
    return np.asarray(load_LEM.min(axis=2).max(axis=1))


def cross_node_rows(problem: Problem) -> NDArray[np.float64]:
    """[L] no plan sends fewer rows to another node under `hierarchical`, hence under no scheme.

    Proof: a token needs K distinct experts; the home node and m others hold at most the sum of their slots, so m is at
    least the number of other nodes, largest first, that brings this sum to K.
    """
    topology = problem.topology
    slots_N = np.bincount(topology.node_of_rank, problem.slots_per_rank, topology.num_nodes)
    return _fewest_visits(problem, slots_N, topology.node_of_rank)


def dispatched_rows(problem: Problem) -> NDArray[np.float64]:
    """[L] no plan sends fewer rows under `flat`, hence under no scheme: every rank served but home needs a row to it.

    Proof: as for `cross_node_rows`, with ranks in place of nodes.
    """
    return _fewest_visits(problem, problem.slots_per_rank, np.arange(problem.topology.num_ranks))


def rows_off_proxies(problem: Problem) -> NDArray[np.float64]:
    """[L] no plan sends fewer rows inside nodes under `hierarchical`: one to each rank visited but a proxy.

    Proof: as above; the ranks where a token already is, one a node, hold at most the sum of their slots together.
    """
    proxies_RN = proxy_ranks(problem.topology.ranks_per_node)
    trace, slots_R = problem.trace, problem.slots_per_rank
    assert trace.homes is not None
    tokens_R = np.bincount(trace.homes, trace.lengths, problem.topology.num_ranks)
    rows = 0.0
    for tokens, proxies in zip(tokens_R, proxies_RN, strict=True):
        rows += tokens * _groups_needed(slots_R[proxies].sum(), np.delete(slots_R, proxies), problem.model.top_k)
    return np.full(problem.model.num_layers, rows)


def busiest_receiver_rows(problem: Problem) -> NDArray[np.float64]:
    """[L] no plan's busiest rank receives fewer rows inside its node under `hierarchical`: those for one hot expert.

    Proof: every expert but e needs a slot, so e is on at most c = min(ranks with slots, sum s_r - E + 1) ranks. A token
    that chose e needs a row into one of them, unless it comes to that very rank: for its local number on its node is
    that of the token's home. Tokens of at most c local numbers do, the most frequent ones at best; the others' rows
    are spread over c ranks.
    """
    topology, trace = problem.topology, problem.trace
    assert trace.homes is not None
    proxies_RN = proxy_ranks(topology.ranks_per_node)
    ranks = int(np.count_nonzero(problem.slots_per_rank))
    copies = min(ranks, problem.num_slots - problem.model.num_experts + 1)
    segments, _ = batch_segments(trace, topology.num_ranks, None)
    rows_L = np.zeros(trace.num_layers)
    for layer in range(trace.num_layers):
        chosen_RE = grouped_loads(trace, layer, segments[:, :3], topology.num_ranks)
        arrives_RE = np.zeros_like(chosen_RE)
        np.add.at(arrives_RE, proxies_RN, chosen_RE[:, None, :])
        there_E = np.sort(arrives_RE, axis=0)[topology.num_ranks - copies :].sum(axis=0)
        rows_L[layer] = max(0.0, ((chosen_RE.sum(axis=0) - there_E) / copies).max())
    return rows_L


def _fewest_visits(
    problem: Problem, slots_G: NDArray[np.integer] | NDArray[np.float64], group_of_rank: NDArray[np.integer]
) -> NDArray[np.float64]:
    """[L] places (nodes or ranks) other than home that the trace's tokens must visit, summed over tokens."""
    trace = problem.trace
    assert trace.homes is not None
    tokens_R = np.bincount(trace.homes, trace.lengths, problem.topology.num_ranks)
    visits = 0.0
    for tokens, group in zip(tokens_R, group_of_rank, strict=True):
        visits += tokens * _groups_needed(slots_G[group], np.delete(slots_G, group), problem.model.top_k)
    return np.full(problem.model.num_layers, visits)


def _groups_needed(at_hand: float, others: NDArray[np.integer] | NDArray[np.float64], top_k: int) -> int:
    """How many of the others, largest first, hold top_k experts together with what is at hand."""
    held = at_hand + np.concatenate(([0], np.cumsum(-np.sort(-others))))
    return int(np.argmax(held >= top_k))

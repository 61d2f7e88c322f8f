"""Find the numbers of a home rule for a plan, and deal requests by it as they may come."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import linear_sum_assignment

from grace_opt.batch_rates import BatchRates, PricesTraffic
from grace_opt.home_rule import HomeRule, deal, home_costs
from grace_opt.plan import Plan
from grace_opt.problem import Problem
from grace_opt.trace import Trace
from grace_opt.traffic import traffic

CROWDING = (0.1, 0.3, 1.0, 3.0)
"""Candidates of crowding_s, as shares of a layer's time: the best is sought on the problem's own trace."""
POWER_STEPS = 30


def dealt(trace: Trace, plan: Plan) -> Trace:
    """The trace with homes by the plan's own rule."""
    return dealt_in_orders([trace], plan)[0]


def dealt_in_orders(orders: Sequence[Trace], plan: Plan) -> list[Trace]:
    """The same sequences in several orders of arrival, with homes by the plan's own rule in each."""
    assert plan.homes is not None
    costs = _costs_in_orders(orders, plan, plan.homes)
    return [deal(trace, costs_QR, plan.homes.crowding_s) for trace, costs_QR in zip(orders, costs, strict=True)]


def _costs_in_orders(orders: Sequence[Trace], plan: Plan, rule: HomeRule) -> list[NDArray[np.float64]]:
    """[Q, R] for each order: what a sequence costs does not depend on when it comes, so it is counted once."""
    first = orders[0]
    costs_QR = home_costs(first, plan.placement, plan.ranks_per_node, rule)
    by_start = np.argsort(first.starts)
    return [costs_QR[by_start[np.searchsorted(first.starts, trace.starts, sorter=by_start)]] for trace in orders]


def homes_by_profile(trace: Trace, num_ranks: int) -> Trace:
    """Sequences that choose alike on neighbouring ranks: the ranks are halved again and again, and with them the
    sequences along the direction in which their profiles differ most, each half with its ranks' share of the tokens."""
    profiles_QF = _profiles(trace)
    homes = np.zeros(trace.num_sequences, np.int64)
    parts = [(np.arange(trace.num_sequences), 0, num_ranks)]
    while parts:
        sequences, first, ranks = parts.pop()
        if ranks == 1 or len(sequences) < 2:
            homes[sequences] = first
            continue
        centred_QF = profiles_QF[sequences] - profiles_QF[sequences].mean(axis=0)
        along_Q = _leading(centred_QF)
        order = sequences[np.argsort(along_Q, kind="stable")]
        tokens_before = np.concatenate(([0], np.cumsum(trace.lengths[order])))
        cut = int(np.abs(tokens_before - tokens_before[-1] * (ranks // 2) / ranks).argmin())
        parts += [(order[:cut], first, ranks // 2), (order[cut:], first + ranks // 2, ranks - ranks // 2)]
    return replace(trace, homes=homes)


def _leading(centred_QF: NDArray[np.float64]) -> NDArray[np.float64]:
    """[Q] where each row lies along the direction of most variance, by power iteration from a fixed start."""
    along_Q = np.linspace(-1.0, 1.0, len(centred_QF))
    for _ in range(POWER_STEPS):
        along_Q = centred_QF @ (centred_QF.T @ along_Q)
        along_Q /= max(float(np.linalg.norm(along_Q)), 1e-300)
    return along_Q


def _profiles(trace: Trace) -> NDArray[np.float64]:
    """[Q, L * E] share of a sequence's tokens that chose each expert."""
    profiles_QLE = np.zeros((trace.num_sequences, trace.num_layers, trace.num_experts))
    for layer in range(trace.num_layers):
        ids_TK = np.asarray(trace.expert_ids[layer])
        for sequence, (start, stop) in enumerate(zip(trace.starts, trace.stops, strict=True)):
            profiles_QLE[sequence, layer] = np.bincount(ids_TK[start:stop].ravel(), minlength=trace.num_experts)
    return (profiles_QLE / trace.lengths[:, None, None]).reshape(trace.num_sequences, -1)


def aligned(slots_LRS: NDArray[np.int64], problem: Problem) -> NDArray[np.int64]:
    """[L, R, S] the same groups of experts on the nodes, then ranks, whose own tokens choose them most; unchanged where
    nodes are not of one size, or ranks not of one budget."""
    trace, topology = problem.trace, problem.topology
    assert trace.homes is not None
    if len(set(topology.ranks_per_node)) > 1 or len(set(problem.slots_per_rank.tolist())) > 1:
        return slots_LRS
    nodes, result = topology.num_nodes, slots_LRS.copy()
    home_T = np.repeat(trace.homes, trace.lengths)
    token_T = np.concatenate([np.arange(a, b) for a, b in zip(trace.starts, trace.stops, strict=True)])
    for layer, slots_RS in enumerate(slots_LRS):
        ids_TK = np.asarray(trace.expert_ids[layer])[token_T]
        keys = home_T[:, None] * trace.num_experts + ids_TK
        use_RE = np.bincount(keys.ravel(), minlength=topology.num_ranks * trace.num_experts).astype(float)
        use_RE = use_RE.reshape(topology.num_ranks, trace.num_experts)
        gain_RR = np.array(
            [[use_RE[home, group[group >= 0]].sum() for group in slots_RS] for home in range(len(slots_RS))]
        )
        gain_NN = gain_RR.reshape(nodes, -1, nodes, len(gain_RR) // nodes).sum(axis=(1, 3))
        for node, group in zip(*linear_sum_assignment(gain_NN, maximize=True), strict=True):
            to, of = (np.flatnonzero(topology.node_of_rank == which) for which in (node, group))
            ranks, groups = linear_sum_assignment(gain_RR[np.ix_(to, of)], maximize=True)
            result[layer, to[ranks]] = slots_RS[of[groups]]
    return result


def arrivals(trace: Trace, num_orders: int, first_seed: int) -> list[Trace]:
    """The sequences in seeded random orders, in which they may come; homes are yet to be dealt."""
    orders = [
        np.random.default_rng(seed).permutation(trace.num_sequences)
        for seed in range(first_seed, first_seed + num_orders)
    ]
    return [trace.select(order) for order in orders]


def with_best_rule(
    problem: Problem,
    cost: PricesTraffic,
    plan: Plan,
    rates: BatchRates,
    first_tokens: int | None,
    orders: Sequence[Trace],
    crowding: Sequence[float] = CROWDING,
) -> tuple[Plan, float]:
    """The plan with the rule of least layer time over orders of arrival, and that time for the mean batch."""
    tokens = rates.tokens_per_rank * problem.topology.num_ranks
    # a row of one rank's fair share, as a share of the time that the whole batch takes
    rule = HomeRule(
        first_tokens,
        tokens
        * max(
            float(rates.between_rank_s.mean()) / problem.topology.num_ranks,
            float(rates.between_node_s.mean()) / problem.topology.num_nodes,
        ),
        tokens * float(rates.inside_s.mean()) / problem.topology.num_ranks,
        0.0,
    )
    costs = _costs_in_orders(orders, plan, rule)
    layer_s = cost.price(problem, traffic(problem.trace, plan, cost.tokens_per_rank)).mean_s
    best: tuple[Plan, float] | None = None
    for share in crowding:
        crowding_s = share * layer_s
        traces = [deal(trace, costs_QR, crowding_s) for trace, costs_QR in zip(orders, costs, strict=True)]
        seconds = rates.tokens_per_rank * float(
            np.mean([layer_s_per_token(problem, cost, plan, trace) for trace in traces])
        )
        if best is None or seconds < best[1]:
            best = replace(plan, homes=replace(rule, crowding_s=crowding_s)), seconds
    assert best is not None
    return best


def layer_s_per_token(problem: Problem, cost: PricesTraffic, plan: Plan, trace: Trace) -> float:
    """Seconds of a layer per token of a rank when the problem's tokens live where this trace says.

    Uneven homes are cut into more and smaller batches than even ones: only the time per token compares.
    """
    time = cost.price(replace(problem, trace=trace), traffic(trace, plan, cost.tokens_per_rank))
    return time.mean_s / time.tokens_per_rank

"""The local search: its counters stay exact, its placements allowed, and what it finds is the optimum where known."""

import itertools
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from grace_opt.batch_rates import GRID, BatchRates
from grace_opt.placement import EMPTY, Placement
from grace_opt.plan import Plan
from grace_opt.planners.copy_choice import POLICIES
from grace_opt.planners.home_scenarios import ScenarioSampler
from grace_opt.planners.local_search import LocalSearch, rates_of
from grace_opt.routing import Routing
from grace_opt.traffic import traffic

NEARLY_MAX = 10  # doublings: with p = 1024 the norm of 8 equal parts is 1.002 of any


def random_rates(random, problem):
    """Rates that differ from rank to rank, of experts that take a little for being chosen at all."""
    ranks, nodes = problem.topology.num_ranks, problem.topology.num_nodes
    most = float(problem.trace.num_tokens)
    tokens_G = most * (np.arange(GRID) / (GRID - 1)) ** 2
    each_RG = random.uniform(0.5, 2, (ranks, 1)) * (0.3 * (1 - np.exp(-tokens_G)) + 0.1 * tokens_G)
    row_rates = random.uniform(0.5, 1, ranks), random.uniform(0.2, 1, nodes), random.uniform(0, 0.5, ranks)
    return BatchRates(most / ranks, *row_rates, each_RG, most, bool(random.integers(2)), bool(random.integers(2)))


def sample(problem, tokens_per_rank=None, num_batches=1, policy="cover"):
    scenarios = [(problem.trace, tokens_per_rank)] * num_batches
    return ScenarioSampler(problem, scenarios, 10_000 // num_batches, 0, policy).of_layer(0)


def exact_traffic(problem, slots_RS, policy):
    """Of the first layer as one batch, and the placement."""
    lists = [[[e for e in rank if e != EMPTY] for rank in slots_RS.tolist()]]
    placement = Placement.from_lists(lists, problem.model.num_experts)
    trace = replace(problem.trace, expert_ids=problem.trace.expert_ids[:1])
    return traffic(trace, Plan("toy", (0,), problem.topology.ranks_per_node, placement, Routing(policy))), placement


def seconds(problem, slots_RS, rates, policy="cover"):
    """What the search minimises, with maxima, from the exact traffic of one batch."""
    counts, _ = exact_traffic(problem, slots_RS, policy)
    tokens_G = rates.most_tokens * (np.arange(GRID) / (GRID - 1)) ** 2
    tokens_RS = counts.tokens_by_rank[0, 0]
    busy = max(np.interp(tokens_RS[r], tokens_G, rates.expert_s[r]).sum() for r in range(len(tokens_RS)))
    node_R = problem.topology.node_of_rank
    crosses = node_R[:, None] != node_R[None, :]
    stages = counts.dispatch("flat" if rates.by_rank else "hierarchical")
    rows = sum(stage[0, 0] for stage in stages)
    between, inside = 0.0, 0.0
    for axis in (0, 1):
        across_R, within_R = (rows * crosses).sum(axis=axis), (rows * ~crosses).sum(axis=axis)
        across_N = np.bincount(node_R, across_R)
        between = max(between, (rates.between_rank_s * across_R).max(), (rates.between_node_s * across_N).max())
        inside = max(inside, (rates.inside_s * within_R).max())
    return busy + (max(between, inside) if rates.overlaps else between + inside)


def check_placement(slots_RS, room_R, num_experts):
    held = [[e for e in rank if e != EMPTY] for rank in slots_RS.tolist()]
    assert set(itertools.chain(*held)) == set(range(num_experts))
    assert all(len(rank) == len(set(rank)) for rank in held)
    assert all((rank[room:] == EMPTY).all() for rank, room in zip(slots_RS, room_R, strict=True))


def start_of(case, random, filled=False):
    """Slots of the case's first layer, no expert twice on a rank, and up to two empty ones more."""
    held = [list(dict.fromkeys(rank)) for rank in case.plan.placement.to_lists()[0]]
    room_R = np.array([len(rank) + (0 if filled else random.integers(3)) for rank in held])
    slots_RS = np.full((len(held), room_R.max()), EMPTY, np.int64)
    for rank, experts in enumerate(held):
        slots_RS[rank, : len(experts)] = experts
    return slots_RS, room_R


def searched(start, seed, trials, filled=False):
    """A search of two stretches from (slots, room, experts, sample, rates); what holds for any is checked."""
    slots_RS, room_R, experts, tokens, rates = start

    def run(slots, trials, resume=False):
        search = LocalSearch(slots, room_R, experts, tokens, rates, seed, filled)
        search.run(trials, 0.03, 0.001)
        if resume:
            search.run(trials, 0.001, 0.0005, resume=True)
        return search

    search = run(slots_RS, trials, resume=True)
    check_placement(search.slots, room_R, experts)
    assert search.objective == pytest.approx(run(search.slots, 0).objective, rel=1e-9)
    assert search.objective <= run(slots_RS, 0).objective
    assert not filled or ((search.slots != EMPTY).sum(axis=1) == room_R).all()
    again = run(slots_RS, trials, resume=True)
    assert np.array_equal(search.slots, again.slots) and search.objective == again.objective
    return search


@given(
    data=st.data(), seed=st.integers(0, 999), trials=st.integers(0, 400), policy=st.sampled_from(POLICIES),
    filled=st.booleans(), batches=st.integers(1, 6),
)  # fmt: skip
def test_after_any_trials_a_recount_agrees_and_the_placement_is_allowed(
    random_cases, data, seed, trials, policy, filled, batches
):
    """Of many batches those left are not looked at where the first make a move seem too bad."""
    case, random = data.draw(random_cases), np.random.default_rng(seed)
    rates = rates_of(random_rates(random, case.problem), case.problem.topology)
    tokens = sample(case.problem, case.tokens_per_rank, batches, policy)
    start = (*start_of(case, random, filled), case.problem.model.num_experts, tokens, rates)
    searched(start, seed, trials, filled)


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize(("nodes", "ranks_per_node", "experts"), [(3, 4, 16), (3, 24, 40)])
def test_a_recount_agrees_where_copies_are_many(problem_of, random_ids, nodes, ranks_per_node, experts, policy):
    """Nodes and ranks are many enough that a token has a choice, and what other tokens visit must not matter."""
    random, ranks = np.random.default_rng(nodes), nodes * ranks_per_node
    homes = random.integers(ranks, size=400)
    problem = problem_of(random_ids(0, 1, 400, experts, 4), experts, 4, nodes, ranks_per_node, homes=homes)
    slots_RS = np.full((ranks, 4), EMPTY)
    for rank in range(ranks):
        slots_RS[rank, :2] = (rank + np.array([0, ranks])) % experts
    rates = rates_of(random_rates(random, problem), problem.topology)
    search = searched((slots_RS, np.full(ranks, 4), experts, sample(problem, policy=policy), rates), 1, 1500)
    assert not np.array_equal(search.slots, slots_RS)


@given(data=st.data(), seed=st.integers(0, 999), policy=st.sampled_from(POLICIES))
def test_the_objective_is_the_time_of_the_exact_traffic(random_cases, data, seed, policy):
    case, random = data.draw(random_cases), np.random.default_rng(seed)
    problem, rates = case.problem, random_rates(random, case.problem)
    slots_RS, room_R = start_of(case, random)
    tokens = sample(problem, policy=policy)
    search = LocalSearch(slots_RS, room_R, problem.model.num_experts, tokens, rates_of(rates, problem.topology), 0)
    search.run(0, 0, 0, NEARLY_MAX)
    exact = seconds(problem, slots_RS, rates, policy)
    assert exact * (1 - 1e-9) <= search.objective <= exact * 1.006  # norms of up to 18 parts


@given(data=st.data(), seed=st.integers(0, 999), trials=st.integers(0, 100), policy=st.sampled_from(POLICIES))
def test_what_it_counts_is_the_exact_traffic(random_cases, data, seed, trials, policy):
    """Of a whole batch, after some moves: tokens of each expert on each rank, and ranks visited from each home."""
    case, random = data.draw(random_cases), np.random.default_rng(seed)
    problem = case.problem
    (slots_RS, room_R), experts = start_of(case, random), problem.model.num_experts
    rates = rates_of(random_rates(random, problem), problem.topology)
    search = LocalSearch(slots_RS, room_R, experts, sample(problem, policy=policy), rates, seed)
    search.run(trials, 0.03, 0.001)
    counts, placement = exact_traffic(problem, search._current, policy)
    pairs_RE = np.zeros((len(slots_RS), experts))
    for physical, expert in enumerate(placement.slots[0].ravel()):
        if expert != EMPTY:
            pairs_RE[physical // placement.slots.shape[2], expert] += counts.tokens[0, 0, physical]
    assert np.allclose(search._counters.pairs[0], pairs_RE, atol=1e-6)
    ranks = np.arange(len(slots_RS))
    visits_TR = search._counters.visits[:, ranks >> 6] >> (ranks & 63) & 1
    visits_RR = np.zeros((len(ranks), len(ranks)), np.int64)
    np.add.at(visits_RR, search._sample.home, visits_TR)
    assert np.array_equal(visits_RR, counts.rank_visits[0, 0])


@pytest.mark.parametrize("seed", range(4))
def test_a_tiny_problem_is_solved_to_its_optimum(problem_of, random_ids, seed):
    """All ways to hold 4 experts in 6 slots on 3 ranks of 3 nodes, some left empty."""
    random = np.random.default_rng(seed)
    problem = problem_of(random_ids(seed, 1, 30, 4, 2), 4, 2, nodes=3, ranks_per_node=1)
    rates = random_rates(random, problem)
    held = [(*some, *[EMPTY] * (2 - len(some))) for n in range(3) for some in itertools.combinations(range(4), n)]
    every = [np.array(slots) for slots in itertools.product(held, repeat=3) if set(range(4)) <= {*sum(slots, ())}]
    optimum = min(seconds(problem, slots_RS, rates) for slots_RS in every)
    start = np.array([[0, 1], [2, EMPTY], [3, EMPTY]])
    search = LocalSearch(start, np.full(3, 2), 4, sample(problem), rates_of(rates, problem.topology), seed)
    search.run(20_000, 0.1, 0.001, NEARLY_MAX)
    assert optimum < 0.99 * seconds(problem, start, rates)
    assert seconds(problem, search.slots, rates) == pytest.approx(optimum, rel=1e-9)

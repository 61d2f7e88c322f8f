"""Homes by profile and groups of experts brought to them; `test_joint` tests what comes of both."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from grace_opt.home_rule import HomeRule, deal, home_costs
from grace_opt.planners.home_choice import aligned, arrivals, dealt_in_orders, homes_by_profile
from grace_opt.trace import Trace


@pytest.fixture(scope="module")
def trace():
    """8 sequences of 5 tokens, top-1; sequence q chooses expert q mod 4."""
    experts_Q = np.arange(8) % 4
    starts = np.arange(0, 40, 5)
    return Trace(np.repeat(experts_Q, 5)[None, :, None].astype(np.uint8), starts, starts + 5, starts * 0, ("a",), 4)


@pytest.mark.parametrize("num_ranks", [1, 2, 4])
def test_profiles_give_every_rank_its_share_of_tokens_and_keep_alike_together(trace, num_ranks):
    homes = homes_by_profile(trace, num_ranks).homes
    assert np.bincount(homes, minlength=num_ranks).tolist() == [8 // num_ranks] * num_ranks
    assert homes[:4].tolist() == homes[4:].tolist()


def test_every_rank_gets_a_sequence_where_there_are_as_many(trace):
    two = trace.select(np.array([0, 1]))
    assert sorted(homes_by_profile(two, 2).homes.tolist()) == [0, 1]


def test_groups_move_to_the_nodes_then_ranks_that_choose_them_most(trace, problem_of):
    one = problem_of([[[0]]], 4, 1, nodes=2)
    at_home = replace(trace, homes=np.array([3, 2, 1, 0] * 2))  # expert 0 is chosen on rank 3, and so on
    slots = np.array([[[0], [1], [2], [3]], [[3], [1], [2], [0]]])
    trace_of_two = replace(at_home, expert_ids=np.repeat(trace.expert_ids, 2, axis=0))
    problem = replace(one, model=replace(one.model, num_layers=2), trace=trace_of_two)
    moved = aligned(slots, problem)
    assert moved[0].ravel().tolist() == [3, 2, 1, 0]
    # groups of a node stay together: 3 and 1 on one, 2 and 0 on the other
    assert {frozenset(moved[1, :2, 0].tolist()), frozenset(moved[1, 2:, 0].tolist())} == {
        frozenset({3, 1}),
        frozenset({2, 0}),
    }
    assert moved[1, 0, 0] == 3 and moved[1, 3, 0] == 0
    assert aligned(slots, replace(problem, slots=[1, 1, 1, 2])) is slots  # groups of other ranks may not fit


def test_arrivals_are_seeded_orders_of_the_same_requests(trace):
    one, other = arrivals(trace, 2, 5)
    assert sorted(one.starts.tolist()) == sorted(other.starts.tolist()) == trace.starts.tolist()
    assert one.starts.tolist() != other.starts.tolist()
    assert arrivals(trace, 1, 6)[0].starts.tolist() == other.starts.tolist()


@settings(max_examples=20)
@given(data=st.data(), seed=st.integers(0, 9))
def test_homes_of_every_order_of_arrival_are_those_of_dealing_it_alone(random_cases, data, seed):
    """Though what a sequence costs is counted once for all orders."""
    case = data.draw(random_cases)
    rule = HomeRule(2, between_s=3, inside_s=0.5, crowding_s=0.2)
    orders = arrivals(case.problem.trace, 3, seed)
    for trace, dealt in zip(orders, dealt_in_orders(orders, replace(case.plan, homes=rule)), strict=True):
        costs_QR = home_costs(trace, case.plan.placement, case.plan.ranks_per_node, rule)
        assert np.array_equal(dealt.starts, trace.starts)
        assert np.array_equal(dealt.homes, deal(trace, costs_QR, 0.2).homes)

"""GRACE+: exact counts against token by token, the best copy by hand, quotas."""

import itertools
from dataclasses import replace

import numpy as np
import pytest

from grace_opt.planners.grace import Grace
from grace_opt.planners.grace_plus import GracePlus, refined, with_copies
from grace_opt.routing import Routing
from grace_opt.traffic import traffic


def visits(ids_TK, rank_E):
    """Distinct ranks of every token, summed over tokens."""
    return sum(len({int(rank_E[e]) for e in ids}) for ids in ids_TK)


def test_the_exchange_of_the_class_s_example():
    ids_TK = np.array([[0, 2]] * 3 + [[1, 3]] * 3 + [[0, 1]], np.uint8)
    rank_E = refined(ids_TK, np.array([0, 0, 1, 1]), np.array([4, 4, 3, 3]), 2)
    assert rank_E.tolist() == [0, 1, 0, 1]
    assert (visits(ids_TK, [0, 0, 1, 1]), visits(ids_TK, rank_E)) == (13, 8)


def test_an_exchange_that_would_make_a_busier_rank_than_the_busiest_is_not_made():
    # Loads 4, 4, 3, 3 but 0 and 2 together would be allowed; with heavier 0 and 2 they are not.
    ids_TK = np.array([[0, 2]] * 3 + [[1, 3]] * 3, np.uint8)
    assert refined(ids_TK, np.array([0, 0, 1, 1]), np.array([9, 1, 9, 1]), 2).tolist() == [0, 0, 1, 1]


@pytest.mark.parametrize("seed", range(8))
def test_no_exchange_is_left_that_lowers_the_visits_within_the_load(seed, random_ids):
    random = np.random.default_rng(seed)
    ids_TK = random_ids(seed, 1, 40, 9, 3)[0].astype(np.uint8)
    start_E = random.permutation(np.repeat(np.arange(3), [4, 3, 2]))
    load_E = np.bincount(ids_TK.ravel(), minlength=9)
    limit = np.bincount(start_E, load_E).max()
    rank_E = refined(ids_TK, start_E, load_E, 3)
    assert sorted(rank_E) == sorted(start_E)
    assert np.bincount(rank_E, load_E).max() <= limit
    for i, j in itertools.combinations(range(9), 2):
        other_E = rank_E.copy()
        other_E[[i, j]] = rank_E[[j, i]]
        if rank_E[i] != rank_E[j] and np.bincount(other_E, load_E).max() <= limit:
            assert visits(ids_TK, other_E) >= visits(ids_TK, rank_E)


def test_a_copy_goes_where_it_saves_most_visits():
    # Expert 0 on rank 0 is chosen with 1 (rank 1) by 5 tokens and with 2 (rank 2) by 3; no other copy saves as much.
    ids_TK = np.array([[0, 1]] * 5 + [[0, 2]] * 3, np.uint8)
    rank_E, load_E = np.array([0, 1, 2]), np.array([8, 5, 3])
    holds_RE = with_copies(ids_TK, rank_E, load_E, np.array([1, 2, 1]), load_weight=0.0)
    assert np.argwhere(holds_RE).tolist() == [[0, 0], [1, 0], [1, 1], [2, 2]]
    holds_RE = with_copies(ids_TK, rank_E, load_E, np.array([2, 2, 2]), load_weight=0.0)
    # the second copy of 0 saves the other 3; a copy of 1 or 2 on rank 0 saves what was not saved yet: as counted on
    # originals, 5 and 3
    assert holds_RE[0, 1] and holds_RE[1, 0] and holds_RE[2, 0]


def test_a_copy_that_brings_nothing_is_not_made():
    # Nobody chooses two experts, so no visit is saved. With load counted a copy of 0 turns 6 and 2 into 3 and 5, and
    # one of 1 then makes 4 and 4.
    ids_TK = np.array([[0]] * 6 + [[1]] * 2, np.uint8)
    rank_E, load_E, slots = np.array([0, 1]), np.array([6, 2]), np.array([2, 2])
    assert with_copies(ids_TK, rank_E, load_E, slots, 0.0).sum() == 2
    assert np.argwhere(with_copies(ids_TK, rank_E, load_E, slots, 1.0)).tolist() == [[0, 0], [0, 1], [1, 0], [1, 1]]


def test_without_spare_slots_it_is_grace_s_grouping_with_fewer_visits(problem_of, random_ids):
    problem = problem_of(random_ids(1, 2, 300, 16, 3), 16, slots=4, nodes=2)
    plan = GracePlus()(problem).plan
    grace = Grace(replication="none", over_budget="trim")(problem).plan
    assert (plan.placement.num_copies == 1).all()
    mine, theirs = (traffic(problem.trace, p).rank_visits.sum() for p in (plan, grace))
    assert mine < theirs


@pytest.mark.parametrize("routing", ["wrr", "tar"])
@pytest.mark.parametrize("seed", range(3))
def test_quotas_leave_the_busiest_rank_with_no_more_than_equal_weights_do(routing, seed, problem_of, random_ids):
    problem = problem_of(random_ids(seed, 1, 6000, 8, 2), 8, slots=3, ranks_per_node=4)
    plan = GracePlus(routing=routing)(problem).plan
    problem.check(plan)
    assert plan.placement.num_copies.max() > 1
    weights = (plan.placement.slots >= 0).astype(float)
    equal = replace(plan, routing=Routing(routing, weights))
    quotas, halves = (traffic(problem.trace, p).load[0, 0].max() for p in (plan, equal))
    assert quotas < halves


def test_options_out_of_range_are_refused():
    for options in ({"routing": "uniform"}, {"load_weight": -1}, {"ratio": 2}, {"levels": 3}, {"seed": -1}):
        with pytest.raises(ValueError, match=next(iter(options))):
            GracePlus(**options)

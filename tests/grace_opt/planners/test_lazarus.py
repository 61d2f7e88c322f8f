"""Lazarus: replicas by load, and overlap against all other placements."""

import itertools

import numpy as np
import pytest

from grace_opt.planners.lazarus import Lazarus, overlapping, replicas


def survivals(ranks_of_expert, num_ranks):
    """For 1, 2, ... failed ranks: how many sets of failed ranks leave every expert alive."""
    return [
        sum(
            all(not ranks <= set(failed) for ranks in ranks_of_expert)
            for failed in itertools.combinations(range(num_ranks), n)
        )
        for n in range(1, num_ranks)
    ]


def ranks_of(held, num_experts):
    return [{rank for rank, experts in enumerate(held) if e in experts} for e in range(num_experts)]


def test_the_worked_example_of_the_class(problem_of):
    ids = [[[0]] * 8 + [[1]] * 4 + [[2]] * 2 + [[3]] * 2]
    plan = Lazarus(fault_threshold=1)(problem_of(ids, 4, slots=2, nodes=2)).plan
    assert plan.placement.to_lists() == [[[2, 3], [0, 1], [0, 1], [0, 1]]]
    assert plan.routing.policy == "uniform"


def test_replicas_follow_load_above_the_threshold():
    assert replicas(np.array([8, 4, 2, 2]), 4, 8, fault_threshold=1).tolist() == [4, 2, 1, 1]
    assert replicas(np.array([8, 4, 2, 2]), 4, 8, fault_threshold=2).tolist() == [2, 2, 2, 2]
    assert replicas(np.array([8, 4, 2, 2]), 4, 10, fault_threshold=2).tolist() == [4, 2, 2, 2]


def test_the_threshold_gives_way_to_slots_and_copies_to_ranks():
    assert replicas(np.array([5, 1, 1]), 4, 5, fault_threshold=3).tolist() == [3, 1, 1]
    assert replicas(np.array([9, 0]), 2, 8, fault_threshold=1).tolist() == [2, 2]


def test_two_copies_each_overlap_in_pairs_of_ranks():
    held = overlapping(np.array([2, 2, 2, 2]), np.array([1, 2, 3, 4]), 4, 2)
    assert held == [[0, 1], [0, 1], [2, 3], [2, 3]]
    assert survivals(ranks_of(held, 4), 4) == [4, 4, 0]
    ring = [{0, 1}, {1, 2}, {2, 3}, {3, 0}]
    assert survivals(ring, 4) == [4, 2, 0]


@pytest.mark.parametrize("copies", [(2, 2, 2, 2), (1, 2, 2, 3), (1, 1, 3, 3), (2, 2, 1, 3)])
def test_no_other_placement_of_the_same_copies_survives_more_failures(copies):
    placed = ranks_of(overlapping(np.array(copies), np.array(copies), 4, 2), 4)
    assert [len(ranks) for ranks in placed] == list(copies)
    mine = survivals(placed, 4)
    choices = [[set(ranks) for ranks in itertools.combinations(range(4), n)] for n in copies]
    best = [0, 0, 0]
    for ranks_of_expert in itertools.product(*choices):
        if all(sum(rank in ranks for ranks in ranks_of_expert) <= 2 for rank in range(4)):
            best = np.maximum(best, survivals(ranks_of_expert, 4)).tolist()
    assert mine == best


@pytest.mark.parametrize("seed", range(5))
def test_slots_are_filled_without_repeats(seed, problem_of, random_ids):
    slots, num_experts = [(3, 8), (4, 7), (2, 5), (5, 5), (7, 5)][seed]
    problem = problem_of(random_ids(seed, 2, 200, num_experts, 2), num_experts, slots=slots, nodes=2)
    plan = Lazarus()(problem).plan
    assert (plan.placement.slots_used == min(slots, num_experts)).all()
    for layer in plan.placement.to_lists():
        assert all(len(set(held)) == len(held) for held in layer)
    if 4 * slots >= 2 * num_experts and num_experts % slots == 0:
        assert plan.placement.num_copies.min() >= 2


def test_a_small_last_group_makes_do_with_the_ranks_that_are_left():
    # Groups {0, 1, 2} on rank 0 and {3} on rank 1. The second copy of 3 finds no rank and leaves its slot to 1.
    assert overlapping(np.array([1, 1, 2, 2]), np.array([1, 2, 5, 6]), 2, 3) == [[0, 1, 2], [1, 2, 3]]


def test_unequal_slots_and_wrong_options_are_refused(problem_of):
    with pytest.raises(ValueError, match="slots_per_rank runs from 2 to 3"):
        Lazarus()(problem_of([[[0], [1]]], 4, slots=[2, 3]))
    with pytest.raises(ValueError, match="fault_threshold"):
        Lazarus(fault_threshold=0)
    with pytest.raises(ValueError, match="routing"):
        Lazarus(routing="wrr")

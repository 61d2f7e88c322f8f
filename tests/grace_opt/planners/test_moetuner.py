"""MoETuner: both programs against enumeration, and what their limits do."""

import itertools
import time

import numpy as np
import pytest

from grace_opt.planners.linear import Linear
from grace_opt.planners.milp import deadlines
from grace_opt.planners.moetuner import Moetuner, assign, equal_load_groups, exchanged, heaviest_first


def busiest(load_E, group_E):
    return np.bincount(group_E, load_E).max()


def test_the_worked_example_of_the_class(problem_of):
    # loads 6, 5, 2, 1
    plan = Moetuner()(problem_of([[[0]] * 6 + [[1]] * 5 + [[2]] * 2 + [[3]]], 4, slots=2)).plan
    assert plan.placement.to_lists() == [[[0, 3], [1, 2]]]
    assert plan.provenance["planner"] == "moetuner"


def test_the_heaviest_goes_to_the_lightest_group_that_has_room():
    # 9 | 8; 2 to the second; 1 too, the first is heavier by none: 9 against 10; then 1 is left for the first.
    assert heaviest_first(np.array([9, 8, 2, 1]), np.array([2, 2])).tolist() == [0, 1, 1, 0]
    assert heaviest_first(np.array([5, 4, 3]), np.array([1, 2])).tolist() == [0, 1, 1]


def test_an_exchange_relieves_the_busiest_group():
    # 9 + 4 against 5 + 2 and 6 + 1: whatever goes with 9, its group has at least 10, and exchanges get there.
    load_E = np.array([9, 4, 5, 2, 6, 1])
    group_E = exchanged(load_E, np.array([0, 0, 1, 1, 2, 2]))
    assert np.bincount(group_E).tolist() == [2, 2, 2]
    assert busiest(load_E, group_E) == 10


@pytest.mark.parametrize("seed", range(8))
def test_groups_of_equal_load_are_the_best_of_all(seed, groupings):
    load_E = np.random.default_rng(seed).integers(1, 40, 8) ** 2
    sizes = [(4, 4), (3, 3, 2), (2, 2, 2, 2), (3, 5)][seed % 4]
    group_E, closed = equal_load_groups(load_E, np.array(sizes), deadlines(60, 1), relative_gap=0.0)
    assert closed
    assert np.bincount(group_E).tolist() == list(sizes)
    assert busiest(load_E, group_E) == min(busiest(load_E, other) for other in groupings(sizes))


@pytest.mark.parametrize("seed", range(6))
def test_groups_take_the_ranks_that_keep_the_slowest_transfers_fastest(seed):
    random = np.random.default_rng(seed)
    sides = [random.integers(1, 50, (5, 5)).astype(float) for _ in range(1 + seed % 2)]
    allowed_GR = random.random((5, 5)) < 0.8
    allowed_GR[range(5), range(5)] = True

    def total(rank_G):
        return sum(cost_GR[range(5), rank_G].max() for cost_GR in sides)

    rank_G, closed = assign(sides, allowed_GR, np.arange(5), time.monotonic() + 60, 0.0)
    feasible = [p for p in itertools.permutations(range(5)) if allowed_GR[range(5), p].all()]
    assert closed and tuple(rank_G) in feasible
    assert total(rank_G) == min(total(list(p)) for p in feasible)


def test_tokens_stay_on_their_rank_where_groups_allow_it(problem_of):
    # Layer 1 has groups {0, 1} and {2, 3} by load (5 + 1 each); those of 0 and 1 go on to 2 and 3 and back again.
    there = [[0]] * 5 + [[1]] + [[2]] * 5 + [[3]]
    back = [[2]] * 5 + [[3]] + [[0]] * 5 + [[1]]
    solution = Moetuner()(problem_of([there, back, there], 4, slots=2))
    first = solution.plan.placement.to_lists()
    assert first[0] == first[2] == first[1][::-1]
    assert solution.objective == 0


def test_the_objective_is_the_slowest_transfer_of_every_pair_of_layers(problem_of):
    # One expert a rank; 3 tokens go 0 -> 0, 2 tokens 0 -> 1, 1 token 1 -> 0. Staying put: 2 rows of 10 s wait.
    ids = [[[0]] * 5 + [[1]], [[0]] * 3 + [[1]] * 2 + [[0]]]
    solution = Moetuner()(problem_of(ids, 2, slots=1, nodes=2, ranks_per_node=1))
    assert solution.objective == pytest.approx(2 * 10)


def test_without_time_the_greedy_plan_stands_and_a_warning_says_so(problem_of, random_ids):
    problem = problem_of(random_ids(3, 3, 40, 8, 2), 8, slots=2, nodes=2)
    with pytest.warns(UserWarning, match="moetuner: time_limit_s is over"):
        solution = Moetuner(time_limit_s=0, relative_gap=0)(problem)
    assert solution.status == "feasible"
    timely = Moetuner(relative_gap=0)(problem)
    assert timely.status == "heuristic"
    problem.check(timely.plan)


def test_it_balances_no_worse_than_index_order(problem_of, random_ids):
    problem = problem_of(random_ids(5, 2, 200, 12, 3), 12, slots=[5, 3, 4, 4], nodes=2)
    for layer in range(2):
        load_E = np.bincount(problem.trace.layer(layer).ravel(), minlength=12)
        loads = [
            max(load_E[experts].sum() for experts in planner(problem).plan.placement.to_lists()[layer])
            for planner in (Moetuner(), Linear())
        ]
        assert loads[0] < loads[1]


@pytest.mark.parametrize("options", [{"time_limit_s": -1}, {"relative_gap": 1}, {"sweeps": -1}])
def test_options_out_of_range_are_refused(options):
    with pytest.raises(ValueError, match=next(iter(options))):
        Moetuner(**options)

"""ExFlow: sweeps and the whole program against enumeration."""

import itertools

import numpy as np
import pytest

from grace_opt.planners.exflow import Exflow, fewest_by_sweeps
from grace_opt.planners.linear import Linear
from grace_opt.planners.transitions import crossing, transitions


def rank_of_expert(plan, num_experts):
    lists = plan.placement.to_lists()
    return np.array(
        [[next(r for r, held in enumerate(layer) if e in held) for e in range(num_experts)] for layer in lists]
    )


def test_the_worked_example_of_the_class(problem_of):
    problem = problem_of([[[0], [1], [2], [3]], [[3], [2], [1], [0]]], 4, slots=2)
    solution = Exflow()(problem)
    assert solution.plan.placement.to_lists() == [[[0, 1], [2, 3]], [[2, 3], [0, 1]]]
    assert (solution.objective, solution.bound, solution.status) == (0, 0, "optimal")


@pytest.mark.parametrize("seed", range(4))
def test_the_whole_program_finds_the_best_of_all_plans(seed, problem_of, random_ids, groupings):
    problem = problem_of(random_ids(seed, 3, 15, 5, 1), 5, slots=[3, 2], ranks_per_node=2)
    counts = transitions(problem.trace)
    solution = Exflow(restarts=0, time_limit_s=600)(problem)
    every = itertools.product(list(groupings([3, 2])), repeat=3)
    best = min(crossing(counts, np.array(layers)) for layers in every)
    assert solution.status == "optimal"
    assert solution.objective == solution.bound == best == crossing(counts, rank_of_expert(solution.plan, 5))


def test_one_layer_is_placed_best_given_the_other(problem_of, random_ids, groupings):
    (count_EE,) = transitions(problem_of(random_ids(1, 2, 60, 6, 2), 6, slots=3).trace)
    place_LE = fewest_by_sweeps([count_EE], np.array([3, 3]), 2, restarts=0, seed=0, deadline_s=np.inf)
    ends = crossing([count_EE], place_LE)
    for layer in range(2):
        for other in groupings([3, 3]):
            changed = place_LE.copy()
            changed[layer] = other
            assert crossing([count_EE], changed) >= ends


def test_restarts_never_end_worse(problem_of, random_ids):
    counts = transitions(problem_of(random_ids(2, 4, 200, 12, 2), 12, slots=3, nodes=2).trace)
    sizes = np.array([3, 3, 3, 3])
    few, many = (crossing(counts, fewest_by_sweeps(counts, sizes, 4, n, seed=0, deadline_s=np.inf)) for n in (0, 20))
    linear = crossing(counts, np.tile(np.repeat(np.arange(4), 3), (4, 1)))
    assert many < few < linear  # on these data each step brings something


def test_nodes_come_before_ranks(problem_of):
    # 0 and 1 pass tokens to each other, as 2 and 3 do: each pair shares a node, though every rank holds one expert.
    ids = [[[0], [1], [2], [3]] * 3, [[1], [0], [3], [2]] * 3]
    problem = problem_of(ids, 4, slots=1, nodes=2)
    plan = Exflow()(problem).plan
    node_LE = plan.node_of_rank[rank_of_expert(plan, 4)]
    assert crossing(transitions(problem.trace), node_LE) == 0


def test_two_levels_leave_a_node_less_often_than_index_order(problem_of, random_ids):
    problem = problem_of(random_ids(4, 3, 300, 16, 2), 16, slots=[5, 4, 4, 4], nodes=2)
    counts, crossed = transitions(problem.trace), []
    for planner in (Exflow(), Linear()):
        plan = planner(problem).plan
        assert plan.placement.slots_used.sum(axis=1).tolist() == [16] * 3
        crossed.append(crossing(counts, plan.node_of_rank[rank_of_expert(plan, 16)]))
    assert crossed[0] < crossed[1]


def test_one_layer_alone_keeps_index_order(problem_of):
    assert Exflow()(problem_of([[[0], [1], [2]]], 4, slots=2)).plan.placement.to_lists() == [[[0, 1], [2, 3]]]


def test_the_solver_is_not_asked_when_time_is_over(problem_of, random_ids):
    problem = problem_of(random_ids(0, 2, 15, 4, 1), 4, slots=2)
    with pytest.warns(UserWarning, match="exflow: time_limit_s is over"):
        solution = Exflow(time_limit_s=0)(problem)
    assert (solution.status, solution.bound) == ("heuristic", None)
    assert (
        rank_of_expert(solution.plan, 4).tolist()
        == rank_of_expert(Exflow(restarts=0, exact_size=0)(problem).plan, 4).tolist()
    )


@pytest.mark.parametrize(
    "options", [{"levels": 3}, {"restarts": -1}, {"exact_size": -1}, {"time_limit_s": -1}, {"seed": -1}]
)
def test_options_out_of_range_are_refused(options):
    with pytest.raises(ValueError, match=next(iter(options))):
        Exflow(**options)

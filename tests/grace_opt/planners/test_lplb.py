"""LPLB keeps a placement and splits its load."""

import numpy as np
import pytest

from grace_opt.planners.eplb import Eplb
from grace_opt.planners.grace import Grace
from grace_opt.planners.lplb import Lplb
from grace_opt.profile import expert_loads
from grace_opt.traffic import traffic


def test_the_worked_example_of_the_class(problem_of):
    # EPLB copies expert 0: halves of 3, then 4, 3, 3, 2 are packed as [1, 2] and [0, 0]; without repeats 0 is on both.
    problem = problem_of([[[0]] * 6 + [[1]] * 4 + [[2]] * 2], 3, slots=2)
    solution = Lplb()(problem)
    plan = solution.plan
    assert plan.placement.to_lists() == Eplb(forbid_duplicates=True)(problem).plan.placement.to_lists()
    assert plan.routing.policy == "wrr"
    share_of_1 = plan.routing.weights[plan.placement.slots == 0] / 6
    partner = [4 if 1 in held else 2 for held in plan.placement.to_lists()[0]]
    assert share_of_1.tolist() == pytest.approx([(6 - load) / 6 for load in partner])
    assert (solution.objective, solution.bound) == pytest.approx((6, 6))


@pytest.mark.parametrize("seed", range(3))
def test_its_busiest_rank_carries_no_more_than_with_equal_shares(seed, problem_of, random_ids):
    problem = problem_of(random_ids(seed, 2, 4000, 8, 2), 8, slots=3, nodes=2)
    solution = Lplb()(problem)
    problem.check(solution.plan)
    eplb = Eplb(forbid_duplicates=True)(problem).plan
    busiest = [traffic(problem.trace, plan).load.max(axis=2).sum() for plan in (solution.plan, eplb)]
    assert busiest[0] <= busiest[1] * 1.001
    assert busiest[0] == pytest.approx(solution.objective, rel=0.02)  # shares are rounded to 1/64
    assert solution.bound <= solution.objective


def test_without_copies_every_expert_is_served_where_it_is(problem_of, random_ids):
    problem = problem_of(random_ids(0, 1, 50, 4, 2), 4, slots=2)
    plan = Lplb()(problem).plan
    load_E = expert_loads(problem.trace)[0]
    assert np.array_equal(traffic(problem.trace, plan).tokens[0, 0], load_E[plan.placement.slots[0].ravel()])


def test_any_planner_s_placement_can_be_split(problem_of, random_ids):
    problem = problem_of(random_ids(1, 2, 60, 6, 2), 6, slots=[4, 3])
    inner = Grace(over_budget="trim")
    plan = Lplb(placement=inner)(problem).plan
    assert plan.placement.to_lists() == inner(problem).plan.placement.to_lists()
    assert Lplb(placement=inner).plans_by == "structure"

"""Programs solved by HiGHS start from the plan they hold and never end with a worse one."""

import time

import pulp
import pytest

from grace_opt.planners.milp import deadlines, is_late, require_time, solve


def knapsack():
    """Least weight of at least 3 of 5 things that weigh 1..5; it holds the heaviest three."""
    program = pulp.LpProblem("knapsack", pulp.LpMinimize)
    taken = [program.add_variable(f"taken_{i}", cat=pulp.LpBinary) for i in range(5)]
    program += pulp.lpSum((i + 1) * thing for i, thing in enumerate(taken))
    program += pulp.lpSum(taken) >= 3
    for i, thing in enumerate(taken):
        thing.setInitialValue(int(i >= 2))
    return program, taken


def test_a_program_is_solved_to_its_optimum():
    program, taken = knapsack()
    outcome = solve(program, time.monotonic() + 60)
    assert (outcome.objective, outcome.bound, outcome.closed) == (6, 6, True)
    assert [round(thing.value()) for thing in taken] == [1, 1, 1, 0, 0]


def test_without_time_the_plan_that_was_there_stands():
    program, taken = knapsack()
    outcome = solve(program, time.monotonic() - 1)
    assert outcome.objective == 12 and not outcome.closed and outcome.bound <= 6
    assert [thing.value() for thing in taken] == [0, 0, 1, 1, 1]


def test_a_constant_of_the_objective_counts():
    program, _ = knapsack()
    program.setObjective(10 - program.objective * 0 + pulp.lpSum(program.variables()))
    outcome = solve(program, time.monotonic() + 60)
    assert (outcome.objective, outcome.bound) == (13, 13)


def test_the_solver_is_silent(capfd):
    solve(knapsack()[0], time.monotonic() + 60)
    assert capfd.readouterr() == ("", "")


def test_time_that_is_not_used_is_left_to_later_programs():
    ends = deadlines(100, 4)
    shares = [end - time.monotonic() for end in ends]  # no program takes any time
    assert shares == pytest.approx([25, 100 / 3, 50, 100], abs=1)


def test_a_program_without_time_is_not_asked_and_a_warning_says_so():
    with pytest.warns(UserWarning, match="toy: time_limit_s is over"):
        assert is_late(time.monotonic(), "toy")
    assert not is_late(time.monotonic() + 60, "toy")


@pytest.mark.parametrize("wrong", [-1, float("nan"), "10", None])
def test_a_time_limit_is_a_number_of_seconds(wrong):
    with pytest.raises(ValueError, match="toy: time_limit_s must be"):
        require_time("toy", wrong)

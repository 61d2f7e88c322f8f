"""`validate`: a plan's own rule for homes decides where the replayed requests live."""

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest

from analysis.validate import validate
from grace_opt.home_rule import HomeRule
from grace_opt.homes import Balanced
from grace_opt.placement import Placement
from grace_opt.plan_file import write_plan
from grace_opt.planners.home_choice import dealt
from grace_opt.problem import Problem
from grace_opt.routing import Routing
from grace_opt.solution import plan_for
from grace_opt.split import Alternate
from simulator.cluster import SimulatedCluster

COST = SimulatedCluster()


class Replayed:
    """Stands for ranks: keeps what it is told to run; `elsewhere` as if requests were its own."""

    repetitions = 1
    scheme, tokens_per_rank = "hierarchical", None

    def __init__(self, elsewhere=False):
        self.ran, self.elsewhere = [], elsewhere

    def measure(self, problem, plan):
        self.ran.append((problem, plan))
        problem = replace(problem) if self.elsewhere else problem
        return SimpleNamespace(time=COST(problem, plan), problem=problem, timeline=SimpleNamespace(), also_s={})


@pytest.fixture
def run(monkeypatch, tmp_path, model, make_topology, make_trace):
    """(rule, ranks that run) -> rows, plan, trace; two layers, of which the first is run and says nothing of homes."""
    own_T = np.repeat(np.random.default_rng(0).integers(0, 2, 40), 5)  # the node to whose experts requests turn
    telling = np.stack([2 * own_T, 2 * own_T + 1], axis=1)
    silent = np.tile([0, 2], (200, 1))
    trace = make_trace(np.stack([silent, telling]), lengths=[5] * 40, num_experts=4)
    problem = Problem(replace(model, num_layers=2), make_topology(2, 1), Balanced()(trace, 2), 2)
    monkeypatch.setattr("analysis.validate._set", lambda model, scheme, size: _at(model, size))
    monkeypatch.setattr("analysis.validate._write_timelines", lambda *_: None)

    def at(rule, ranks, times=1):
        plan = plan_for(problem, Placement.from_lists([[[0, 1], [2, 3]]] * 2, 4), Routing("primary"), "made")
        path = tmp_path / "plan.json"
        write_plan(path, replace(plan, homes=rule))
        rows = validate(
            problem.model, problem.topology, trace, Alternate(), Balanced(), COST, ranks, {}, str(tmp_path / "out"),
            ["hierarchical"], [25], 1, 1, plans=[str(path)] * times, figures=False,
        )  # fmt: skip
        return rows, replace(plan, homes=rule), trace

    return at


def _at(model, size):
    return model if isinstance(model, Replayed) else replace(model, tokens_per_rank=size)


def test_requests_live_where_the_rule_puts_them_by_all_layers_of_the_plan(run):
    ranks = Replayed()
    rows, plan, trace = run(HomeRule(None, 1.0, 0.1, 0.1), ranks)
    ((problem, replayed),) = ranks.ran
    assert (replayed.placement.num_layers, problem.trace.num_layers) == (1, 1)
    whole = replace(problem.trace, expert_ids=trace.expert_ids)
    assert np.array_equal(problem.trace.homes, dealt(whole, plan).homes)
    node_of_request = trace.expert_ids[1, problem.trace.starts, 0] // 2
    assert (problem.trace.homes == node_of_request).mean() > 0.9  # the layer that is run would put all on either
    assert [row["homes"] for row in rows] == ["chosen"]


def test_without_a_rule_homes_are_those_asked_for(run):
    ranks = Replayed()
    rows, _, _ = run(None, ranks)
    ((problem, _),) = ranks.ran
    assert np.array_equal(problem.trace.homes, Balanced()(replace(problem.trace, homes=None), 2).homes)
    assert [row["homes"] for row in rows] == ["given"]


def test_two_plans_of_one_planner_are_both_run(run, tmp_path):
    ranks = Replayed()
    rows, _, _ = run(None, ranks, times=2)
    assert [row["planner"] for row in rows] == ["made", "made_2"]
    assert len(ranks.ran) == 2
    assert sorted(path.name for path in (tmp_path / "out" / "plans").iterdir()) == ["made.json", "made_2.json"]


def test_ranks_that_run_requests_of_their_own_are_told_not_to_follow_the_rule(run):
    with pytest.warns(UserWarning, match="plan made has a rule for homes; its requests live elsewhere here"):
        run(HomeRule(None, 1.0, 0.1, 0.1), Replayed(elsewhere=True))

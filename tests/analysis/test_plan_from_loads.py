"""What a placement by load brings, from counts alone: hand-computed loads of ranks, and their bound."""

from typing import Any

import numpy as np
import pytest

from analysis.plan_from_loads import FROM_LOADS, rank_loads
from grace_opt.configuration import build, groups, read_configuration
from grace_opt.load_history import LoadHistory
from grace_opt.planners.eplb import Eplb
from grace_opt.problem import LoadProblem, Problem

NODES = np.array([0, 0, 1, 1])
LOADS = np.array([[8, 4, 2, 2]])


@pytest.mark.parametrize(
    ("ranks", "policy", "expected"),
    [
        ([[0], [1], [2], [3]], "primary", [8, 4, 2, 2]),
        ([[0], [0, 1], [2], [3]], "primary", [8, 4, 2, 2]),
        ([[0], [0, 1], [2], [3]], "uniform", [4, 8, 2, 2]),
        # of the eight tokens of expert 0, two live on each rank; those of ranks 0 and 1 stay, the others take turns
        ([[0], [0, 1], [2], [3]], "tar", [4, 8, 2, 2]),
        # rank 3 serves its own two and the two of rank 2, rank 0 its own and those of rank 1
        ([[0], [1], [2], [0, 3]], "tar", [4, 4, 2, 6]),
    ],
)
def test_loads_of_ranks_follow_the_replica_choice(make_plan: Any, ranks: Any, policy: str, expected: Any) -> None:
    plan = make_plan([ranks], policy)
    assert rank_loads(plan, LOADS, NODES).tolist() == [pytest.approx(expected)]


def test_loads_of_ranks_follow_polling_weights(make_plan: Any) -> None:
    weights = np.array([[[3, 0], [1, 1], [1, 0], [1, 0]]])
    plan = make_plan([[[0], [0, 1], [2], [3]]], "wrr", weights)
    assert rank_loads(plan, LOADS, NODES).tolist() == [pytest.approx([6, 6, 2, 2])]


def test_a_problem_of_loads_is_planned_by_the_loads_of_all_steps(model: Any, make_topology: Any) -> None:
    """Steps of 6, 1, 2, 1 and 0, 2, 0, 0: EPLB sees 6, 3, 2, 1."""
    history = LoadHistory(np.array([[[6, 1, 2, 1]], [[0, 2, 0, 0]]]), top_k=2, model="toy")
    plan = Eplb()(LoadProblem(model, make_topology(1, 2), history, 3)).plan
    assert plan.placement.to_lists() == [[[1, 0, 3], [0, 2, 0]]]
    assert (plan.provenance["tokens"], plan.provenance["synthetic"]) == (6, False)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model": "other"}, "trace was recorded from model other"),
        ({"top_k": 3}, "trace has 1 MoE layers, 4 experts, top-3, but model toy has 1 MoE layers, 4 experts, top-2"),
    ],
)
def test_a_history_of_another_model_is_no_problem_of_this_one(
    model: Any, make_topology: Any, change: Any, message: str
) -> None:
    history = LoadHistory(np.ones((1, 1, 4), np.int64), **{"top_k": 2, "model": "toy", **change})
    with pytest.raises(ValueError, match=message):
        LoadProblem(model, make_topology(), history, 2)


def test_a_history_does_not_pass_for_a_trace(model: Any, make_topology: Any) -> None:
    history: Any = LoadHistory(np.ones((1, 1, 4), np.int64), 2, source="stat: a.pt")
    with pytest.raises(ValueError, match=r"needs token-level routing, but the trace holds counts only \(stat: a.pt\)"):
        Problem(model, make_topology(), history, 2)


def test_the_planners_named_are_all_that_need_only_loads() -> None:
    built = {name: build(read_configuration("plan", [f"planner={name}"]).planner) for name in groups()["planner"]}
    assert {name for name, each in built.items() if getattr(each, "plans_from", "tokens") == "loads"} == set(FROM_LOADS)

"""A problem is checked as a whole before anything is planned."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from grace_opt.model import MoEModel
from grace_opt.plan import Plan
from grace_opt.problem import Problem, check_trace, slots_that_fit, smallest_slots, with_slots
from grace_opt.topology import Topology
from grace_opt.trace import Trace

TOKENS = [[[0, 1], [2, 3]]]


@pytest.fixture
def trace(make_trace: Callable[..., Trace]) -> Trace:
    return make_trace(TOKENS, homes=[0, 3], model="toy")


def test_one_number_means_the_same_slots_for_all_ranks(make_problem: Callable[..., Problem], trace: Trace) -> None:
    problem = make_problem(trace, slots=2)
    assert problem.slots_per_rank.tolist() == [2, 2, 2, 2]
    assert (problem.num_slots, problem.slots_per_rank.flags.writeable) == (8, False)


def test_ranks_may_have_different_slots(make_problem: Callable[..., Problem], trace: Trace) -> None:
    assert make_problem(trace, slots=[3, 0, 1, 2]).slots_per_rank.tolist() == [3, 0, 1, 2]


@pytest.mark.parametrize(
    ("slots", "message"),
    [
        (0, "gives 0 slots on 4 ranks, fewer than the 4 experts of model toy: give slots_per_rank=1"),
        ([1, 1, 1, 0], "gives 3 slots on 4 ranks, fewer than the 4 experts"),
        ([5, -1, 1, 1], "slots_per_rank must not be negative, got -1"),
        ([2, 2, 2], "slots_per_rank must be one whole number or one for each of the 4 ranks"),
        (1.5, "slots_per_rank must be one whole number or one for each of the 4 ranks"),
        ([1, 1, 11, 1], "slots_per_rank=11 needs .* GB on rank 2, which has .* GB: it holds 10 slots per layer of toy"),
    ],
)
def test_slots_hold_the_experts_and_fit_the_memory(
    make_problem: Callable[..., Problem], trace: Trace, slots: Any, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        make_problem(trace, slots=slots)


def test_dense_weights_take_room_from_experts(model: MoEModel, make_topology: Callable[..., Topology]) -> None:
    topology = make_topology()
    assert slots_that_fit(model, topology).tolist() == [10] * 4  # 3000 bytes of memory, 300 bytes an expert
    assert slots_that_fit(replace(model, num_layers=2, dense_bytes=700), topology).tolist() == [3] * 4
    assert slots_that_fit(replace(model, dense_bytes=3001), topology).max() < 0


@pytest.mark.parametrize(("num_experts", "slots"), [(4, 1), (5, 2), (8, 2), (1, 1)])
def test_the_smallest_budget_holds_every_expert_once(
    model: MoEModel, make_topology: Callable[..., Topology], num_experts: int, slots: int
) -> None:
    assert smallest_slots(replace(model, num_experts=num_experts, top_k=1), make_topology()) == slots


def test_homes_are_dealt_first_and_on_ranks_that_exist(
    make_problem: Callable[..., Problem], make_trace: Callable[..., Trace]
) -> None:
    with pytest.raises(ValueError, match="needs homes: deal its sequences onto ranks first"):
        make_problem(make_trace(TOKENS))
    with pytest.raises(ValueError, match=r"at home on rank 4, but topology toy has only ranks 0\.\.3"):
        make_problem(make_trace(TOKENS, homes=[0, 4]))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"name": "other"}, "recorded from model toy, but the model given is other"),
        ({"num_layers": 2}, "trace has 1 MoE layers, 4 experts, top-2, but model toy has 2 MoE layers, 4 experts"),
        ({"num_experts": 8}, "but model toy has 1 MoE layers, 8 experts"),
        ({"top_k": 1}, "experts, top-1"),
    ],
)
def test_the_trace_is_one_of_the_model(
    make_problem: Callable[..., Problem], trace: Trace, model: MoEModel, change: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        make_problem(trace, model=replace(model, **change))


def test_a_recording_that_names_no_model_passes(model: MoEModel, trace: Trace) -> None:
    check_trace(replace(trace, model=""), replace(model, name="other"))


def test_a_plan_stays_within_the_slots(
    make_problem: Callable[..., Problem], make_plan: Callable[..., Plan], trace: Trace
) -> None:
    plan = make_plan([[[0, 1], [2], [], [3, 2, 1]]])
    make_problem(trace, slots=[2, 1, 0, 3]).check(plan)
    with pytest.raises(ValueError, match="plan holds 3 experts on rank 3 in layer 0, but slots_per_rank allows 2"):
        make_problem(trace, slots=2).check(plan)
    with pytest.raises(ValueError, match="plan is for model other"):
        make_problem(trace, slots=3).check(replace(plan, model="other"))


def test_slots_are_frozen(make_problem: Callable[..., Problem], trace: Trace) -> None:
    given = np.array([1, 1, 1, 1])
    problem = make_problem(trace, slots=given)
    given[0] = 9
    assert problem.slots_per_rank.tolist() == [1, 1, 1, 1]


def test_dealt_slots_are_a_budget_over_all_layers(
    make_problem: Callable[..., Problem],
    make_plan: Callable[..., Plan],
    make_trace: Callable[..., Trace],
    model: MoEModel,
) -> None:
    """Every rank is to have as many slots in a layer as its fullest."""
    trace = make_trace(TOKENS * 2, homes=[0, 3], model="toy")
    problem = make_problem(trace, slots=2, model=replace(model, num_layers=2))
    wide, narrow = [[0, 1, 2], [3], [], []], [[0], [1], [2], [3]]
    plan = make_plan([wide, narrow])
    replace(problem, dealt=True).check(plan)
    with pytest.raises(ValueError, match="plan holds 3 experts on rank 0 in layer 0, but slots_per_rank allows 2"):
        problem.check(plan)
    with pytest.raises(ValueError, match="takes 5 slots of every rank over its 2 layers, but slots_per_rank=2 deals 4"):
        replace(problem, dealt=True).check(make_plan([wide, [[0, 1], [2, 3], [], []]]))


def test_only_equal_slots_can_be_dealt(make_problem: Callable[..., Problem], trace: Trace) -> None:
    with pytest.raises(ValueError, match="slots_per_rank runs from 1 to 2: give one number, or deal_slots=false"):
        replace(make_problem(trace, slots=[2, 1, 2, 2]), dealt=True)


def test_one_layer_may_have_more_than_memory_holds_for_all(make_problem: Callable[..., Problem], trace: Trace) -> None:
    wide = with_slots(replace(make_problem(trace, slots=10), dealt=True), 12)
    assert (wide.slots_per_rank.tolist(), wide.dealt) == ([12] * 4, False)
    assert with_slots(wide, 1).topology.memory_bytes.tolist() == [3600] * 4

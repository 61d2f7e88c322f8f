"""Which copy serves: hand-worked schedules of the four policies."""

from collections import Counter
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from grace_opt.placement import Placement
from grace_opt.routing import CYCLE, Routing, schedules, smooth_round_robin
from grace_opt.traffic_reference import copies_in_turn, polling_order

# Four ranks on two nodes; expert 0 lives on ranks 0, 1 and 2 (physical 0, 2, 4), expert 1 on rank 3 only (physical 6).
PLACEMENT = Placement.from_lists([[[0], [0], [0], [1, 1]]], num_experts=2)
NODES = np.array([0, 0, 1, 1])


def schedule_of(placement: Placement, routing: Routing, home: int, expert: int) -> list[int]:
    table = schedules(placement, routing, NODES[: placement.num_ranks], 0)
    return table.schedule[table.start[home, expert] : table.stop[home, expert]].tolist()


def test_the_example_of_the_docstring() -> None:
    placement = Placement.from_lists([[[0, 1], [2, 3, 1]]], num_experts=4)
    weights = np.array([[[1, 1, 0], [1, 1, 3]]])
    physical = schedule_of(placement, Routing("wrr", weights), 0, 1)
    assert [copy // 3 for copy in physical] == [1, 0, 1, 1] * 16
    assert schedule_of(placement, Routing("wrr", weights), 1, 1) == physical
    assert schedule_of(placement, Routing("tar", weights), 0, 1) == [1]
    assert schedule_of(placement, Routing("tar", weights), 1, 1) == [5]


@pytest.mark.parametrize(
    ("policy", "schedule_of_home"),
    [
        ("primary", [[0], [0], [0], [0]]),
        ("uniform", [[0, 2, 4]] * 4),
        ("tar", [[0], [2], [4], [4]]),  # rank 3 holds no copy of expert 0, but rank 2 on its node does
    ],
)
def test_candidates_are_those_of_the_policy(policy: str, schedule_of_home: list[list[int]]) -> None:
    assert [schedule_of(PLACEMENT, Routing(policy), home, 0) for home in range(4)] == schedule_of_home


def test_without_a_copy_near_by_all_copies_serve() -> None:
    placement = Placement.from_lists([[[0], [0], [1], [2]]], num_experts=3)
    assert schedule_of(placement, Routing("tar"), 3, 0) == [0, 1]


def test_two_copies_on_one_rank_take_turns() -> None:
    assert schedule_of(PLACEMENT, Routing("tar"), 3, 1) == [6, 7]
    assert schedule_of(PLACEMENT, Routing("uniform"), 0, 1) == [6, 7]


def test_tar_weighs_the_copies_of_a_node() -> None:
    placement = Placement.from_lists([[[0], [0], [0], [1]]], num_experts=2)
    weights = np.array([[[1], [1], [1], [1]]])
    assert schedule_of(placement, Routing("tar", weights), 3, 0) == [2]
    far = Placement.from_lists([[[0], [0], [1], [2]]], num_experts=3)
    order = schedule_of(far, Routing("tar", np.array([[[3], [1], [1], [1]]])), 2, 0)
    assert order[:4] == [0, 0, 1, 0] and len(order) == CYCLE


@given(weights=st.lists(st.sampled_from([0.1, 0.3, 1, 2, 3, 7.5, 1e6]) | st.floats(1e-6, 1e6), min_size=1, max_size=70))
def test_the_polling_order_equals_its_reference(weights: list[float]) -> None:
    assert smooth_round_robin(np.array(weights, np.float64)).tolist() == polling_order(weights)


@given(counts=st.lists(st.integers(1, 30), min_size=2, max_size=5), scale=st.sampled_from([2.0**-40, 1.0, 1024.0]))
def test_a_copy_is_polled_in_proportion_to_its_weight_at_any_scale(counts: list[int], scale: float) -> None:
    weights = np.array(counts, float) * scale
    polled = Counter(smooth_round_robin(weights).tolist())
    length = sum(polled.values())
    for copy, weight in enumerate(weights):
        assert abs(polled[copy] - length * weight / weights.sum()) < len(counts)


@given(data=st.data())
def test_schedules_list_the_copies_of_the_reference(random_cases, data) -> None:  # type: ignore[no-untyped-def]
    plan = data.draw(random_cases.filter(lambda case: case.plan.routing.policy != "cover")).plan
    for layer in range(plan.placement.num_layers):
        table = schedules(plan.placement, plan.routing, plan.node_of_rank, layer)
        for home, expert in np.ndindex(plan.num_ranks, plan.num_experts):
            found = table.schedule[table.start[home, expert] : table.stop[home, expert]].tolist()
            assert found == copies_in_turn(plan, layer, home, expert)


@pytest.mark.parametrize(
    ("policy", "weights", "message"),
    [
        ("random", None, "policy must be one of primary, uniform, wrr, tar, cover, got 'random'"),
        ("wrr", None, "wrr needs polling weights; for equal shares use uniform"),
        ("uniform", [[[1.0]]], "uniform reads no weights"),
        ("primary", [[[1.0]]], "primary reads no weights"),
        ("cover", [[[1.0]]], "cover reads no weights"),
        ("tar", [1.0], r"\[layers, ranks, slots\]"),
        *(("tar", [[[value]]], "finite, not negative") for value in (-1, np.nan, np.inf)),
    ],
)
def test_what_is_no_routing_is_refused(policy: str, weights: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Routing(policy, weights)


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        (np.ones((1, 2, 2)), r"shape \(1, 2, 2\), the placement's slots \(1, 2, 3\)"),
        ([[[1, 1, 1], [1, 1, 1]]], "positive on every filled slot and 0 on every empty one"),
        ([[[1, 0, 0], [1, 1, 1]]], "positive on every filled slot"),
    ],
)
def test_weights_fit_the_slots(make_plan: Callable[..., Any], weights: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make_plan([[[0, 1], [2, 3, 1]]], "wrr", weights, nodes=[2])

"""A plan fits the model and the cluster shape it is meant for, and no other."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from grace_opt.model import MoEModel
from grace_opt.placement import Placement
from grace_opt.plan import Plan
from grace_opt.routing import Routing
from grace_opt.topology import Topology


@pytest.fixture
def plan(make_plan: Callable[..., Plan]) -> Plan:
    return make_plan([[[0], [1], [2], [3]]])


def test_a_plan_knows_its_shape(plan: Plan, model: MoEModel, make_topology: Callable[..., Topology]) -> None:
    assert (plan.num_ranks, plan.num_experts, plan.node_of_rank.tolist()) == (4, 4, [0, 0, 1, 1])
    plan.check(model, make_topology())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"layer_ids": (0, 1)}, "2 layer ids for 1 layers"),
        ({"ranks_per_node": (2, 1)}, r"nodes of \[2, 1\] ranks do not add up to 4 ranks"),
        ({"ranks_per_node": (4, 0)}, "do not add up"),
        ({"ranks_per_node": ()}, "do not add up"),
    ],
)
def test_a_plan_that_contradicts_itself_is_refused(plan: Plan, change: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        replace(plan, **change)


def test_a_layer_occurs_once(make_plan: Callable[..., Plan]) -> None:
    twice = make_plan([[[0], [1], [2], [3]]] * 2)
    with pytest.raises(ValueError, match="a layer occurs twice"):
        replace(twice, layer_ids=(3, 3))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"name": "other"}, "plan is for model toy, but the model given is other"),
        ({"num_experts": 5}, "plan has 4 experts in layers 0..0, but model toy has 5"),
        ({"num_layers": 2}, "but model toy has 4 experts in layers 0..1"),
        ({"first_moe_layer": 1}, "but model toy has 4 experts in layers 1..1"),
    ],
)
def test_a_plan_is_for_one_model(
    plan: Plan, model: MoEModel, make_topology: Callable[..., Topology], change: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        plan.check(replace(model, **change), make_topology())


@pytest.mark.parametrize("shape", [(1, 4), (4, 1), (2, 1)])
def test_a_plan_is_for_one_cluster_shape(
    plan: Plan, model: MoEModel, make_topology: Callable[..., Topology], shape: tuple[int, int]
) -> None:
    with pytest.raises(ValueError, match=r"plan is for nodes of \[2, 2\] ranks, but topology toy has nodes of"):
        plan.check(model, make_topology(*shape))


def test_weights_are_checked_with_the_placement(make_plan: Callable[..., Plan]) -> None:
    with pytest.raises(ValueError, match="routing weights have shape"):
        make_plan([[[0], [1], [2], [3]]], "wrr", np.ones((1, 4, 2)))


def test_a_plan_of_some_layers_keeps_their_ids_copies_and_weights():
    placement = Placement.from_lists([[[0, 1], [2]], [[2], [0, 1]], [[1, 0], [2, 1]]], num_experts=3)
    weights = np.arange(1.0, 13).reshape(3, 2, 2) * (placement.slots >= 0)
    plan = Plan("toy", (4, 5, 6), (1, 1), placement, Routing("wrr", weights))
    part = plan.of_layers(range(1, 3))
    assert part.layer_ids == (5, 6)
    assert part.placement.to_lists() == [[[2], [0, 1]], [[1, 0], [2, 1]]]
    assert np.array_equal(part.routing.weights, weights[1:])

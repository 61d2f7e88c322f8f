"""Which expert stands in which place of a renumbered model."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from grace_opt.engines.permutation import orders
from grace_opt.placement import Placement
from grace_opt.plan import Plan
from grace_opt.routing import Routing


def plan_of(*layers: Any, experts: int) -> Plan:
    ranks = len(layers[0])
    return Plan(
        "toy", tuple(range(3, 3 + len(layers))), (ranks,), Placement.from_lists(layers, experts), Routing("tar")
    )


def test_places_are_the_ranks_experts_in_order():
    (order,) = orders(plan_of([[3, 0], [1, 2]], experts=4)).values()
    assert order.tolist() == [3, 0, 1, 2]
    assert list(orders(plan_of([[3, 0], [1, 2]], [[0, 1], [2, 3]], experts=4))) == [3, 4]


def test_replicas_and_unequal_ranks_are_refused():
    with pytest.raises(ValueError, match="expert 0 has 2 copies in layer 3"):
        orders(plan_of([[0, 1], [0, 2]], experts=3))
    with pytest.raises(
        ValueError, match="rank 0 holds 3 experts in layer 3, but linear placement gives each of 2 ranks 2"
    ):
        orders(plan_of([[0, 1, 2], [3]], experts=4))


def test_whole_groups_may_move_and_experts_inside_their_group():
    (order,) = orders(plan_of([[3, 2], [0, 1]], experts=4), num_groups=2).values()
    assert order.tolist() == [3, 2, 0, 1]
    (order,) = orders(plan_of([[3], [2], [1], [0]], experts=4), num_groups=2).values()
    assert order.tolist() == [3, 2, 1, 0]


def test_experts_of_a_rank_are_sorted_so_that_groups_stay_whole():
    (order,) = orders(plan_of([[4, 0, 5, 1], [2, 6, 3, 7]], experts=8), num_groups=4).values()
    assert order.tolist() == [0, 1, 4, 5, 2, 3, 6, 7]
    # groups of 2 on ranks of 3: the second rank goes on with the group that the first began
    (order,) = orders(plan_of([[2, 0, 1], [5, 4, 3]], experts=6), num_groups=3).values()
    assert order.tolist() == [0, 1, 2, 3, 5, 4]


def test_groups_torn_apart_are_refused():
    with pytest.raises(ValueError, match="router of layer 3 is limited to 2 groups.*groups 0, 1 would share a block"):
        orders(plan_of([[3, 0], [1, 2]], experts=4), num_groups=2)
    with pytest.raises(ValueError, match="4 experts do not divide into the router's 3 groups"):
        orders(plan_of([[3, 0], [1, 2]], experts=4), num_groups=3)


@given(data=st.data())
def test_an_order_is_found_wherever_whole_groups_moved(data):
    """Groups in any order, experts in any order inside their group, cut into ranks; then the ranks' order is lost."""
    groups, size = data.draw(st.integers(1, 6)), data.draw(st.integers(1, 6))
    ranks = data.draw(st.sampled_from([n for n in range(1, groups * size + 1) if groups * size % n == 0]))
    random = np.random.default_rng(data.draw(st.integers(0, 2**32 - 1)))
    moved = np.concatenate([group * size + random.permutation(size) for group in random.permutation(groups)])
    held = [random.permutation(rank).tolist() for rank in moved.reshape(ranks, -1)]
    (order,) = orders(plan_of(held, experts=groups * size), num_groups=groups).values()
    assert [sorted(rank) for rank in order.reshape(ranks, -1).tolist()] == [sorted(rank) for rank in held]
    blocks = (order // size).reshape(groups, size)
    assert (blocks == blocks[:, :1]).all()

"""Copies chosen in turn are those that `traffic` counts, as its slow reference tells them."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from grace_opt.cover import copy_table
from grace_opt.placement import Placement
from grace_opt.planners.copy_choice import copy_in_turn, turns_of_experts
from grace_opt.routing import Routing
from grace_opt.traffic_reference import copies_in_turn


@pytest.mark.parametrize(("nearest", "home", "ranks"), [(False, 1, [2, 3, 0]), (True, 1, [0]), (True, 2, [2])])
def test_turns_walk_the_candidates(nearest, home, ranks):
    """One expert with copies on ranks 0, 2 and 3, two ranks a node; turns 1, 2 and 3."""
    table = copy_table(Placement.from_lists([[[0], [1], [0], [0]]], 2), (2, 2), 0)
    place = table.num_copies, table.rank, table.node_of_rank
    found = [table.rank[0, copy_in_turn(home, turn, nearest, 0, *place)] for turn in (1, 2, 3)]
    assert found == ranks * (3 // len(ranks))


@given(data=st.data(), policy=st.sampled_from(["tar", "uniform"]), turn=st.integers(0, 50))
def test_the_copy_in_turn_is_that_of_the_schedule(random_cases, data, policy, turn):
    plan = data.draw(random_cases).plan
    single = [[list(dict.fromkeys(rank)) for rank in layer] for layer in plan.placement.to_lists()]
    plan = replace(plan, placement=Placement.from_lists(single, plan.num_experts), routing=Routing(policy))
    table = copy_table(plan.placement, plan.ranks_per_node, 0)
    place = table.num_copies, table.rank, table.node_of_rank
    for home in range(plan.num_ranks):
        for expert in range(plan.num_experts):
            polled = copies_in_turn(plan, 0, home, expert)
            copy = copy_in_turn(home, turn, policy == "tar", expert, *place)
            assert table.physical[expert, copy] == polled[turn % len(polled)]


def test_a_turn_counts_earlier_tokens_of_the_home_that_chose_the_expert():
    ids_TK = np.array([[0, 1], [1, 2], [0, 1], [1, 0]])
    home_T = np.array([0, 0, 3, 0])
    assert turns_of_experts(ids_TK, home_T, 4, 3).tolist() == [[0, 0], [1, 0], [3, 3], [2, 1]]

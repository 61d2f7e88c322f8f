"""Plans are refused or filled so that every rank holds equally many experts."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from grace_opt.engines.equal_slots import equal_slots
from grace_opt.placement import EMPTY

LOAD = np.array([[9, 1, 5, 7]])


def test_a_small_rank_gets_the_most_loaded_experts_it_lacks(make_plan):
    plan = make_plan([[[0, 1, 2], [3]]], nodes=(2,))
    filled, notes = equal_slots(plan, True, LOAD)
    assert filled.placement.to_lists() == [[[0, 1, 2], [3, 0, 2]]]
    assert notes == [
        "2 slots of 2 (layer, rank) pairs were filled with replicas of loaded experts, at most 2 on a rank in a layer "
        "(2 over its layers)"
    ]


def test_polling_weights_that_do_not_cover_new_copies_are_left_out_with_a_word(make_plan):
    plan = make_plan([[[0, 1, 2], [3]]], "wrr", np.array([[[1.0, 2, 3], [4, 0, 0]]]), nodes=(2,))
    filled, notes = equal_slots(plan, True, LOAD)
    assert (filled.routing.policy, filled.routing.weights) == ("tar", None)
    assert "polling weights are left out" in notes[1]


def test_a_copy_counts_when_the_next_is_chosen(make_plan):
    plan = make_plan([[[0, 1, 2, 3], [3], [1]]], nodes=(3,))
    # 0 has 9 tokens on one copy; then 9 / 2 on two and 5 of expert 2 on one
    filled, _ = equal_slots(plan, True, np.array([[9, 1, 5, 1]]))
    assert filled.placement.to_lists()[0][1][:3] == [3, 0, 2]
    assert filled.placement.to_lists()[0][2][:2] == [1, 0]


def test_unequal_ranks_are_refused_unless_padding_is_asked_for_and_loads_are_there(make_plan):
    plan = make_plan([[[0, 1, 2], [3]]], nodes=(2,))
    with pytest.raises(ValueError, match="rank 1 holds 1 experts in layer 0, but 3 slots are needed.*unequal=pad"):
        equal_slots(plan, False, LOAD)
    with pytest.raises(ValueError, match="unequal=pad needs loads"):
        equal_slots(plan, True, None)


def test_an_equal_plan_stays_what_it_is(make_plan):
    plan = make_plan([[[0, 1], [2, 3]]], nodes=(2,))
    assert equal_slots(plan, False, None) == (plan, [])


def test_layers_of_different_size_matter_only_where_the_engine_says_so(make_plan):
    plan = make_plan([[[0, 1], [2, 3]], [[0, 1, 2], [3, 0, 1]]], nodes=(2,))
    with pytest.raises(ValueError, match="in layer 0, but 3 slots"):
        equal_slots(plan, False, None)
    assert equal_slots(plan, False, None, same_in_all_layers=False)[0] is plan


def test_second_copies_on_a_rank_are_taken_out_with_a_word(make_plan):
    plan = make_plan([[[0, 0, 1], [2, 3, 2]]], nodes=(2,))
    assert equal_slots(plan, False, None)[0] is plan
    single, notes = equal_slots(plan, False, None, expert_once_per_rank=True)
    assert single.placement.to_lists() == [[[0, 1], [2, 3]]]
    assert "an expert stands twice on rank 0 in layer 0 (and so in 1 more places)" in notes[0]


def test_a_rank_with_all_experts_cannot_be_filled(make_plan):
    plan = make_plan([[[0, 1, 2, 3], [0, 0, 0, 0, 0]]], nodes=(2,))
    with pytest.raises(ValueError, match="rank 0 holds all 4 experts of layer 0 and 5 slots are needed"):
        equal_slots(plan, True, LOAD)


@given(data=st.data())
def test_filling_adds_copies_and_takes_none_away(random_cases: Any, data: Any) -> None:
    plan = data.draw(random_cases).plan
    load_LE = np.arange(plan.placement.num_layers * plan.num_experts).reshape(-1, plan.num_experts)
    once = data.draw(st.booleans())
    held = [[set(rank) if once else rank for rank in layer] for layer in plan.placement.to_lists()]
    largest = max(len(rank) for layer in held for rank in layer)
    if any(largest - len(rank) > plan.num_experts - len(set(rank)) for layer in held for rank in layer):
        with pytest.raises(ValueError, match="holds all"):
            equal_slots(plan, True, load_LE, expert_once_per_rank=once)
        return
    filled, _ = equal_slots(plan, True, load_LE, expert_once_per_rank=once)
    used_LR = filled.placement.slots_used
    assert used_LR.min() == used_LR.max()
    for before, after in zip(plan.placement.to_lists(), filled.placement.to_lists(), strict=True):
        for old, new in zip(before, after, strict=True):
            kept = list(dict.fromkeys(old)) if once else old
            assert new[: len(kept)] == kept
            added = new[len(kept) :]
            assert len(set(added)) == len(added) and not set(added) & set(kept)
    assert (filled.placement.slots != EMPTY).all()

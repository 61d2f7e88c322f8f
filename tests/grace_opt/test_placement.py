"""A placement gives every expert a slot in every layer."""

from typing import Any

import numpy as np
import pytest

from grace_opt.placement import Placement, fill


@pytest.fixture(scope="module")
def placement() -> Placement:
    """The example of the docstring: 4 experts on 2 ranks, expert 1 replicated."""
    return Placement.from_lists([[[0, 1], [2, 3, 1]]], num_experts=4)


def test_ragged_ranks_are_padded(placement: Placement) -> None:
    assert placement.slots.tolist() == [[[0, 1, -1], [2, 3, 1]]]
    assert placement.slots.dtype == np.int32 and not placement.slots.flags.writeable
    assert placement.to_lists() == [[[0, 1], [2, 3, 1]]]


def test_physical_experts_are_numbered_by_rank_then_slot(placement: Placement) -> None:
    assert (placement.num_layers, placement.num_ranks, placement.num_physical) == (1, 2, 6)
    assert np.flatnonzero(placement.slots[0].ravel() == 1).tolist() == [1, 5]


def test_copies_and_slots_used_are_counted_by_layer() -> None:
    placement = Placement.from_lists([[[0, 1], [2, 3, 1]], [[3, 3, 2, 1, 0], []]], num_experts=4)
    assert placement.num_copies.tolist() == [[1, 2, 1, 1], [1, 1, 1, 2]]
    assert placement.slots_used.tolist() == [[2, 3], [5, 0]]


def test_a_rank_holds_its_experts_in_index_order() -> None:
    placement = Placement.from_rank_of_expert(np.array([[1, 0, 1, 0], [0, 0, 0, 0]]), num_ranks=2)
    assert placement.to_lists() == [[[1, 3], [0, 2]], [[0, 1, 2, 3], []]]


def test_the_callers_array_stays_its_own() -> None:
    slots = np.array([[[0], [1]]], np.int32)
    placement = Placement(slots, 2)
    slots[0, 0, 0] = 1
    assert placement.to_lists() == [[[0], [1]]]


@pytest.mark.parametrize(
    ("slots", "message"),
    [
        ([[[0, 1], [2, -1]]], r"placement drops expert 3 in layer 0 \(and 0 more\)"),
        ([[[0, 1], [2, 3]], [[0, 1], [1, 1]]], r"placement drops expert 2 in layer 1 \(and 1 more\)"),
        ([[[0, 1], [2, 4]]], "expert ids from 0 to 4"),
        ([[[0, 1, 2, 3], [-2, -1, -1, -1]]], "expert ids from -2"),
        ([[[0, 1, 2], [-1, 3, -1]]], "an empty slot before a filled one"),
        ([[0, 1], [2, 3]], r"\[layers, ranks, slots\]"),
        ([[[0.0, 1.0], [2.0, 3.0]]], "must be integers"),
        (np.zeros((0, 2, 2), int), "must be integers"),
    ],
)
def test_what_is_no_placement_is_refused(slots: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Placement(np.array(slots), num_experts=4)


def test_an_absurd_number_of_experts_is_refused_before_memory_is_taken() -> None:
    with pytest.raises(ValueError, match="2 slots for 1000000000000 experts"):
        Placement(np.array([[[0], [1]]]), num_experts=10**12)


@pytest.mark.parametrize("layers", [[], [[[0], [1]], [[0, 1]]]])
def test_every_layer_has_the_same_ranks(layers: Any) -> None:
    with pytest.raises(ValueError, match="same number of ranks in every layer, and at least one layer"):
        Placement.from_lists(layers, num_experts=2)


def test_ranks_are_filled_each_to_its_own_slots_and_who_lacks_most_chooses_first() -> None:
    ranks = [[0, 1, 2], [3], []]
    fill(ranks, [4, 2, 3], np.array([9, 1, 5, 7]), 0)
    # the last lacks 3: 0 (9 tokens on one copy), 3 (7), then 2 (5); the first has 3 left, the second 0 (4.5 a copy)
    assert ranks == [[0, 1, 2, 3], [3, 0], [0, 3, 2]]


def test_a_rank_that_holds_all_experts_takes_no_more() -> None:
    with pytest.raises(ValueError, match="rank 1 holds all 2 experts of layer 7 and 3 slots are needed"):
        fill([[0], [0, 1]], [1, 3], np.array([2, 1]), 7)

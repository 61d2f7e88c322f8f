"""Slots dealt to layers: the least of all deals, and numbers worth a look."""

from itertools import product

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from grace_opt.slot_deal import deal_of_least, numbers_to_try


def test_the_example_of_the_description() -> None:
    values = np.array([[9, 5], [7, 4], [1, 3]])
    assert deal_of_least(values, [1, 2, 3], 4).tolist() == [2, 0]


@given(data=st.data())
def test_no_deal_within_the_budget_has_less(data: st.DataObject) -> None:
    counts = sorted(data.draw(st.sets(st.integers(0, 9), min_size=1, max_size=4)))
    layers = data.draw(st.integers(1, 4))
    values = np.random.default_rng(data.draw(st.integers(0, 99))).random((len(counts), layers))
    budget = data.draw(st.integers(counts[0] * layers, counts[-1] * layers + 2))
    best_L = deal_of_least(values, counts, budget)
    assert sum(counts[choice] for choice in best_L) <= budget
    least = min(
        sum(values[choice, layer] for layer, choice in enumerate(deal))
        for deal in product(range(len(counts)), repeat=layers)
        if sum(counts[choice] for choice in deal) <= budget
    )
    assert values[best_L, np.arange(layers)].sum() == pytest.approx(least)


def test_counts_may_come_in_any_order() -> None:
    assert deal_of_least(np.array([[1.0, 2.0], [5.0, 3.0]]), [4, 1], 5).tolist() == [0, 1]


def test_a_budget_below_the_least_is_refused() -> None:
    with pytest.raises(ValueError, match="5 slots are too few for 3 layers of 2"):
        deal_of_least(np.zeros((2, 3)), [2, 3], 5)


@pytest.mark.parametrize(
    ("asked", "numbers"),
    [
        ((4, 5, 32, [8]), [4, 5, 6, 7, 8, 9]),
        ((8, 10, 16, [16]), [8, 9, 10, 11, 12, 14, 16]),
        ((4, 4, 4, []), [4]),
        ((2, 9, 10, []), [2, 5, 7, 8, 9, 10]),
    ],
)
def test_numbers_lie_close_around_the_given_one(asked: tuple[int, int, int, list[int]], numbers: list[int]) -> None:
    assert numbers_to_try(*asked) == numbers

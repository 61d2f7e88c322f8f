"""Bounds over all deals of slots to layers are at most that of any deal, and no dealt plan beats them."""

from collections.abc import Callable
from dataclasses import replace
from itertools import product
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from grace_opt.bounds import combinatorial
from grace_opt.bounds.certificate import counted_bounds
from grace_opt.bounds.deals import least_over_deals
from grace_opt.model import MoEModel
from grace_opt.problem import Problem, with_slots
from grace_opt.trace import Trace


@pytest.fixture(scope="module")
def problem_of(
    make_problem: Callable[..., Problem], make_trace: Callable[..., Trace], model: MoEModel
) -> Callable[..., Problem]:
    """(seed, layers, slots) -> 4 experts on 2 nodes of 2 ranks."""

    def make(seed: int, layers: int, slots: int) -> Problem:
        keys = np.random.default_rng(seed).random((layers, 20, 4)) * [1, 1, 2, 3]
        trace = make_trace(np.argsort(keys, axis=2)[:, :, :2], lengths=[1] * 20, homes=[0, 1, 2, 3] * 5)
        return replace(make_problem(trace, slots, model=replace(model, num_layers=layers)), dealt=True)

    return make


@given(data=st.data())
def test_no_deal_has_less_and_with_every_number_looked_at_one_has_as_much(problem_of: Any, data: st.DataObject) -> None:
    problem = problem_of(data.draw(st.integers(0, 99)), layers := data.draw(st.integers(1, 3)), 2)
    for bounds_of in (combinatorial.cross_node_rows, combinatorial.busiest_rank_load):
        of_slots = {slots: bounds_of(with_slots(problem, slots)) for slots in range(1, 5)}
        least = min(
            sum(of_slots[slots][layer] for layer, slots in enumerate(deal))
            for deal in product(of_slots, repeat=layers)
            if sum(deal) <= 2 * layers
        )
        assert least_over_deals(problem, bounds_of) == pytest.approx(least)


def test_a_number_that_is_not_looked_at_counts_as_the_next_higher(problem_of: Any) -> None:
    """The layers need 12 and 21 slots, one more than there are; 11 counts as 12, which lowers the bound."""
    problem = problem_of(0, 2, 2)
    model, trace = replace(problem.model, num_experts=40), replace(problem.trace, num_experts=40)
    problem = replace(with_slots(problem, 40), model=model, trace=trace, slots=16, dealt=True)
    assert least_over_deals(problem, lambda alike: (alike.slots_per_rank[:2] < [12, 21]).astype(float)) == 0
    assert least_over_deals(problem, lambda alike: (alike.slots_per_rank[:2] < [13, 21]).astype(float)) == 1
    with pytest.raises(ValueError, match="these are dealt to layers"):
        counted_bounds(problem)

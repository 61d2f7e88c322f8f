"""Whatever a search leaves behind, its certificate holds."""

from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from grace_opt.bounds.node_rows import rows_relaxation
from grace_opt.bounds.relaxation import WIDTH
from grace_opt.bounds.semidefinite import FREE, Effort, State, improve
from grace_opt.bounds.token_sets import TokenSets

SLOTS = ([3, 4], [4, 5], [7, 2], [2, 2, 3], [3, 3, 2], [0, 7], [5, 5])


@settings(max_examples=25)
@given(
    seed=st.integers(0, 10**6),
    slots=st.sampled_from(SLOTS),
    top_k=st.integers(1, 4),
    rounds=st.integers(0, 4),
    busiest=st.booleans(),
)
def test_a_bound_is_at_most_the_optimum(  # type: ignore[no-untyped-def]
    random_tokens, with_senders, best_rows, seed: int, slots: list[int], top_k: int, rounds: int, busiest: bool
) -> None:
    tokens, senders = random_tokens(seed, top_k=top_k, groups=len(slots)), None
    if busiest:
        tokens, senders = with_senders(tokens, len(slots))
    relaxation = rows_relaxation(tokens, 7, np.array(slots), senders)
    nothing = np.full((len(relaxation.blocks), 7), FREE, np.int8)
    state = improve(relaxation, State.begin(relaxation, seed), nothing, Effort(rounds, 10, ascent=5))
    assert state.bound <= best_rows(tokens, 7, slots, senders)


@settings(max_examples=25)
@given(seed=st.integers(0, 10**6), slots=st.sampled_from(SLOTS[:5]))
def test_random_multipliers_give_a_bound_too(random_tokens, best_rows, seed: int, slots: list[int]) -> None:  # type: ignore[no-untyped-def]
    tokens = random_tokens(seed, groups=len(slots))
    relaxation = rows_relaxation(tokens, 7, np.array(slots))
    random = np.random.default_rng(seed)
    state = State.begin(relaxation, seed)
    state.prices = random.exponential(5.0, 7)
    for chosen, share in zip(state.mixes.chosen, state.mixes.share, strict=True):
        chosen[:] = random.integers(len(relaxation.inequalities.number), size=chosen.shape)
        share[:] = random.dirichlet(np.full(WIDTH, 0.2), len(share))
    nothing = np.full((len(relaxation.blocks), 7), FREE, np.int8)
    assert improve(relaxation, state, nothing, Effort(0, 0, ascent=0)).bound <= best_rows(tokens, 7, slots)


def test_a_longer_search_closes_most_of_the_gap(
    random_tokens: Callable[..., TokenSets], best_rows: Callable[..., int]
) -> None:
    tokens = random_tokens(3)
    relaxation = rows_relaxation(tokens, 7, np.array([3, 4]))
    nothing = np.full((1, 7), FREE, np.int8)
    state = improve(relaxation, State.begin(relaxation), nothing, Effort(20, 40, ascent=60))
    assert state.bound >= 0.9 * best_rows(tokens, 7, [3, 4])


def test_sets_that_cannot_be_have_an_infinite_bound(random_tokens: Callable[..., TokenSets]) -> None:
    relaxation = rows_relaxation(random_tokens(0), 7, np.array([3, 4]))
    four_inside = np.array([[1, 1, 1, 1, FREE, FREE, FREE]], np.int8)
    assert improve(relaxation, State.begin(relaxation), four_inside, Effort(1)).bound == np.inf


def test_fixed_experts_are_bounded_as_such(
    random_tokens: Callable[..., TokenSets], rows_of_sets: Callable[..., int]
) -> None:
    """With two free experts left there are two sets: the bound is at most the better, and close to it."""
    tokens = random_tokens(5)
    relaxation = rows_relaxation(tokens, 7, np.array([3, 4]))
    fixed = np.array([[1, 1, 0, 0, FREE, FREE, 0]], np.int8)
    rows = []
    for last in (4, 5):
        inside = np.isin(np.arange(7), [0, 1, last])
        rows.append(rows_of_sets(tokens, np.array([inside, ~inside])))
    state = improve(relaxation, State.begin(relaxation), fixed, Effort(12, 40, ascent=40))
    assert min(rows) * 0.97 <= state.bound <= min(rows)
    assert state.inside()[0, [0, 1, 2, 3, 6]] == pytest.approx([1, 1, 0, 0, 0])

"""Loads that tables only name: even ones by hand, drawn ones by what every collector keeps."""

import numpy as np
import pytest

from simulator.calibration.skew import _deal, _fill_idlest, _go_round, drawn_tokens, even_tokens


def test_even_loads_give_every_expert_its_share():
    assert even_tokens(64, 256, 8, 32, prefill=False).tolist() == [[2] * 8]


def test_with_fewer_pairs_than_experts_some_have_one_token():
    assert even_tokens(16, 256, 8, 16, prefill=False).tolist() == [[1] * 8 + [0] * 8]


def test_even_loads_before_prefill_fill_rows_of_128():
    counts = even_tokens(1024, 256, 8, 32, prefill=True)  # 256 rows on this rank: two experts
    assert counts.tolist() == [[128, 128, 0, 0, 0, 0, 0, 0]]


def test_pairs_are_dealt_to_ranks_in_turn():
    count_RS = np.array([[2, 0], [5, 5], [1, 3]])
    _deal(count_RS, 4, 5)  # the second rank is full; the others get two each
    assert count_RS.tolist() == [[2, 2], [5, 5], [3, 3]]


def test_pairs_are_taken_from_the_most_loaded_expert_of_ranks_in_turn():
    count_RS = np.array([[2, 0], [4, 5], [0, 0]])
    _deal(count_RS, -4, 5)
    assert count_RS.tolist() == [[0, 0], [3, 4], [0, 0]]


def test_what_was_cut_fills_the_idlest_expert_then_the_next():
    count = np.array([4, 0, 1, 4])
    _fill_idlest(count, 6, 4)
    assert count.tolist() == [4, 4, 3, 4]


@pytest.mark.parametrize(("missing", "expected"), [(3, [4, 1, 2, 4]), (-2, [3, 0, 0, 3])])
def test_what_is_missing_or_too_much_goes_round_from_the_idlest_up(missing: int, expected: list[int]):
    count = np.array([4, 0, 1, 3])
    _go_round(count, missing, 4)
    assert count.tolist() == expected


@pytest.mark.parametrize("idlest_first", [False, True])
@pytest.mark.parametrize("tokens", [2, 16, 512])
@pytest.mark.parametrize("exponent", [1.0, 1.01, 1.2])
def test_drawn_loads_keep_every_pair_and_no_token_chooses_twice(tokens: int, exponent: float, idlest_first: bool):
    alone = drawn_tokens(tokens, 256, 8, 1, exponent, idlest_first)
    assert (alone.sum(axis=1) == tokens * 8).all()
    assert alone.min() >= 0 and alone.max() <= tokens


def test_the_busiest_rank_is_timed():
    drawn = drawn_tokens(512, 256, 8, 32, 1.2)
    assert drawn.shape[1] == 8
    assert (drawn.sum(axis=1) >= 512 * 8 / 32).all()


def test_the_idlest_first_collector_leaves_more_experts_of_the_busiest_rank_active():
    """Why it matters which one made a table: 8 tokens on 8 ranks."""
    active = [(drawn_tokens(8, 256, 8, 8, 1.2, first) > 0).sum(axis=1).mean() for first in (False, True)]
    assert active[1] > 1.5 * active[0]

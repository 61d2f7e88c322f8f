"""Sequences are dealt onto ranks."""

from collections.abc import Callable

import numpy as np
import pytest

from grace_opt.homes import Balanced, Random
from grace_opt.split import Alternate
from grace_opt.trace import Trace


@pytest.fixture(scope="module")
def trace(make_trace: Callable[..., Trace]) -> Trace:
    return make_trace(np.zeros((1, 15, 1)), lengths=[5, 2, 1, 3, 1, 3])


def test_each_sequence_goes_to_the_rank_with_the_fewest_tokens(trace: Trace) -> None:
    # tokens of ranks 0, 1, 2:        5 0 0, 5 2 0, 5 2 1, 5 2 4, 5 3 4, 5 6 4
    assert Balanced()(trace, 3).homes.tolist() == [0, 1, 2, 2, 1, 1]  # type: ignore[union-attr]


def test_ties_go_to_the_lowest_rank(make_trace: Callable[..., Trace]) -> None:
    assert Balanced()(make_trace(np.zeros((1, 5, 1))), 2).homes.tolist() == [0, 1, 0, 1, 0]  # type: ignore[union-attr]


def test_held_out_sequences_reach_every_rank(trace: Trace) -> None:
    for part in Alternate()(trace):
        assert set(Balanced()(part, 3).homes.tolist()) == {0, 1, 2}  # type: ignore[union-attr]


def test_random_homes_depend_on_their_seed_only(trace: Trace) -> None:
    homes = [Random(seed)(trace, 4).homes for seed in (1, 1, 2, 3)]
    assert all(h is not None and h.min() >= 0 and h.max() < 4 for h in homes)
    assert len({str(h) for h in homes[:2]}) == 1 and len({str(h) for h in homes}) > 1

"""The exact solver meets enumeration."""

from collections.abc import Callable

import numpy as np
import pytest

from grace_opt.bounds.exact import fewest_rows
from grace_opt.bounds.token_sets import TokenSets


@pytest.mark.parametrize("slots", [[3, 4], [4, 5], [7, 2], [2, 2, 3], [3, 3, 3], [1, 2, 6]])
@pytest.mark.parametrize("seed", range(2))
def test_it_meets_enumeration(
    random_tokens: Callable[..., TokenSets],
    rows_of_sets: Callable[..., int],
    best_rows: Callable[..., int],
    slots: list[int],
    seed: int,
) -> None:
    tokens = random_tokens(seed, groups=len(slots), sets=12)
    found = fewest_rows(tokens, 7, np.array(slots))
    assert found.optimal
    assert found.rows == best_rows(tokens, 7, slots) == rows_of_sets(tokens, found.holds)
    assert (found.holds.sum(axis=1) <= slots).all()


def test_too_few_slots_are_one_clear_line(random_tokens: Callable[..., TokenSets]) -> None:
    with pytest.raises(ValueError, match="no placement of 7 experts was found in 5 s: give more seconds"):
        fewest_rows(random_tokens(0), 7, np.array([3, 3]), seconds=5)

"""Small random token sets, and what they cost by trying everything."""

from collections.abc import Callable
from itertools import combinations, product

import numpy as np
import pytest
from numpy.typing import NDArray

from grace_opt.bounds.token_sets import TokenSets


def _random_tokens(seed: int, experts: int = 7, top_k: int = 3, groups: int = 2, sets: int = 25) -> TokenSets:
    random = np.random.default_rng(seed)
    chosen = np.sort(random.permuted(np.tile(np.arange(experts), (sets, 1)), axis=1)[:, :top_k], axis=1)
    return TokenSets(chosen, random.integers(groups, size=sets), random.integers(1, 9, sets))


def _rows(tokens: TokenSets, holds_GE: NDArray[np.bool_]) -> int:
    """Fewest other groups each token needs, by trying all choices of groups."""
    total = 0
    for chosen, home, weight in zip(tokens.experts, tokens.home, tokens.weight, strict=True):
        others = [group for group in range(len(holds_GE)) if group != home]
        total += weight * next(
            visited
            for visited in range(len(others) + 1)
            if any(holds_GE[[home, *some]][:, chosen].any(axis=0).all() for some in combinations(others, visited))
        )
    return int(total)


def _best_rows(tokens: TokenSets, num_experts: int, slots: list[int]) -> int:
    """The optimum over all node sets within the slots that hold every expert."""
    choices = []
    for size in slots:
        sets = []
        for members in combinations(range(num_experts), min(size, num_experts)):
            held = np.zeros(num_experts, bool)
            held[list(members)] = True
            sets.append(held)
        choices.append(sets)
    return min(_rows(tokens, np.array(sets)) for sets in product(*choices) if np.any(sets, axis=0).all())


@pytest.fixture(scope="session")
def random_tokens() -> Callable[..., TokenSets]:
    """(seed, experts=7, top_k=3, groups=2, sets=25) -> weighted token sets."""
    return _random_tokens


@pytest.fixture(scope="session")
def rows_of_sets() -> Callable[..., int]:
    """(tokens, holds [G, E]) -> rows that leave home."""
    return _rows


@pytest.fixture(scope="session")
def best_rows() -> Callable[..., int]:
    """(tokens, num_experts, slots of each group) -> the fewest rows of any placement."""
    return _best_rows

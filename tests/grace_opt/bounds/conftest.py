"""Small random token sets, and what they cost by trying everything."""

from collections.abc import Callable
from itertools import combinations, product

import numpy as np
import pytest
from numpy.typing import NDArray

from grace_opt.bounds.senders import Senders
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


def _with_senders(tokens: TokenSets, groups: int, batches: int = 2) -> tuple[TokenSets, Senders]:
    """Tokens in random batches, two senders a group: in each batch those of one home are dealt to its two."""
    random = np.random.default_rng(tokens.num_tokens)
    batch, which = random.integers(batches, size=len(tokens.home)), random.integers(2, size=len(tokens.home))
    node = np.tile(np.repeat(np.arange(groups), 2), batches)
    home = (batch * groups + tokens.home) * 2 + which
    return TokenSets(tokens.experts, home, tokens.weight), Senders(node, np.repeat(np.arange(batches), 2 * groups))


def _busiest_rows(tokens: TokenSets, senders: Senders, holds_GE: NDArray[np.bool_]) -> int:
    """Of the busiest sender of each batch, summed."""
    rows = []
    for sender, node in enumerate(senders.node):
        own = tokens.home == sender
        homes = np.full(own.sum(), node)
        rows.append(_rows(TokenSets(tokens.experts[own], homes, tokens.weight[own]), holds_GE))
    return sum(max(np.array(rows)[senders.batch == batch]) for batch in np.unique(senders.batch))


def _best_rows(tokens: TokenSets, num_experts: int, slots: list[int], senders: Senders | None = None) -> int:
    """The optimum over all node sets within the slots that hold every expert."""
    choices = []
    for size in slots:
        sets = []
        for members in combinations(range(num_experts), min(size, num_experts)):
            held = np.zeros(num_experts, bool)
            held[list(members)] = True
            sets.append(held)
        choices.append(sets)
    placements = (np.array(sets) for sets in product(*choices) if np.any(sets, axis=0).all())
    if senders is None:
        return min(_rows(tokens, holds) for holds in placements)
    return min(_busiest_rows(tokens, senders, holds) for holds in placements)


@pytest.fixture(scope="session")
def random_tokens() -> Callable[..., TokenSets]:
    """(seed, experts=7, top_k=3, groups=2, sets=25) -> weighted token sets."""
    return _random_tokens


@pytest.fixture(scope="session")
def rows_of_sets() -> Callable[..., int]:
    """(tokens, holds [G, E]) -> rows that leave home."""
    return _rows


@pytest.fixture(scope="session")
def with_senders() -> Callable[..., tuple[TokenSets, Senders]]:
    """(tokens, groups, batches=2) -> the tokens with senders for homes, two a group and batch, and these."""
    return _with_senders


@pytest.fixture(scope="session")
def busiest_rows() -> Callable[..., int]:
    """(tokens, senders, holds [G, E]) -> rows of the busiest sender of each batch, summed."""
    return _busiest_rows


@pytest.fixture(scope="session")
def best_rows() -> Callable[..., int]:
    """(tokens, num_experts, slots of each group, senders=None) -> the fewest rows of any placement."""
    return _best_rows

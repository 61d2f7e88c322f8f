"""Quadratics below a function of a count: what semidefinite bounds need to know of a token.

A token has K experts, m of which lie in a set S. What it costs is a function phi(m), m = 0..K. With x the indicator of
S and X = x x^T, both m and m^2 are linear in (x, X), so any q(m) = c0 + c1 m + c2 m^2 with q <= phi on 0..K gives a
linear lower bound on the cost, and so does any convex mix of several.

The strongest are those that touch phi at three counts, of which at least two are neighbours: the facets of the hull of
(m, m^2, phi(m)). For phi = [m < K] they are 1 - (m - a)(m - a - 1) / ((K - a)(K - a - 1)), as a product of
neighbouring integers is never negative; for phi = [m >= 1] the bounds of Dawson and Sankoff (1967).
"""

from functools import lru_cache
from itertools import combinations

import numpy as np
from numpy.typing import NDArray

TOLERANCE = 1e-9


def quadratics_below(phi: NDArray[np.floating]) -> NDArray[np.float64]:
    """[J, 3] coefficients c0, c1, c2 of all quadratics that lie below phi [K + 1] and touch it at three counts.

    With fewer than three counts: the one polynomial through all of them. Each is lowered by what rounding lifts it
    above phi.
    """
    phi = np.asarray(phi, np.float64)
    counts = np.arange(len(phi), dtype=np.float64)
    powers = counts[:, None] ** np.arange(3)[None, :]
    found: list[NDArray[np.float64]] = []
    touching: set[tuple[int, ...]] = set()
    size = min(3, len(phi))
    for points in combinations(range(len(phi)), size):
        chosen = list(points)
        coefficients = np.zeros(3)
        coefficients[:size] = np.linalg.solve(powers[chosen, :size], phi[chosen])
        above = powers @ coefficients - phi
        if above.max() > TOLERANCE:
            continue
        meets = tuple(np.flatnonzero(above > -TOLERANCE).tolist())
        if meets in touching:
            continue
        touching.add(meets)
        coefficients[0] -= max(above.max(), 0.0)
        found.append(coefficients)
    return np.array(found)


def not_inside(size: int) -> NDArray[np.float64]:
    """[size + 1] 1 unless all of the experts lie in S: such a token leaves the node whose set is S."""
    return np.append(np.ones(size), 0.0)


def meets(size: int) -> NDArray[np.float64]:
    """[size + 1] 1 if any of the experts lies in S."""
    return np.append(0.0, np.ones(size))


LARGEST_ENUMERATED = 6
"""Up to this many experts a token, every subset has inequalities of its own; beyond, small ones and the whole."""


@lru_cache(maxsize=8)
def subset_quadratics(size: int) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Lower bounds on [not inside S] from subsets of a token's experts: where a subset sticks out, the token does.

    A subset's quadratic with a = 0 is the mean of its pairs', so it counts for pairs only.

    Returns:
        int64 [J], each subset as bits over the token's experts; float64 [J, 3], its quadratic in the subset's count.
    """
    masks, rows = [], []
    for mask in _subsets(size):
        members = mask.bit_count()
        for quadratic in quadratics_below(not_inside(members)):
            if members > 2 and np.isclose(quadratic[0], 1) and np.isclose(quadratic[1], -quadratic[2]):
                continue
            masks.append(mask)
            rows.append(quadratic)
    return np.array(masks, np.int64), np.array(rows)


@lru_cache(maxsize=8)
def spread_quadratics(size: int) -> tuple[NDArray[np.int64], NDArray[np.float64], NDArray[np.float64]]:
    """Lower bounds on the places a token visits besides home, where experts may have copies, from several sets.

    With s experts of a subset, m of them at home and m_n at place n: those visited hold the other s - m, each place
    visited at most 1 + (m_n - 1)^+ of them, so  visits >= s - m - sum over n of (m_n - 1)^+.

    Returns:
        int64 [J] subsets as bits; float64 [J, 3] the part in m, with the constant; float64 [J, 3] that in each m_n.
    """
    masks, at_home, elsewhere = [], [], []
    for mask in _subsets(size):
        members = mask.bit_count()
        for quadratic in quadratics_below(-np.maximum(np.arange(members + 1.0) - 1, 0)) if members > 1 else ():
            masks.append(mask)
            at_home.append([members, -1.0, 0.0])
            elsewhere.append([min(quadratic[0], 0.0), *quadratic[1:]])
    shape = (-1, 3)
    return np.array(masks, np.int64), np.array(at_home).reshape(shape), np.array(elsewhere).reshape(shape)


def _subsets(size: int) -> list[int]:
    """Subsets with inequalities of their own, as bits; single experts only of a token that has no other."""
    every = [mask for mask in range(1, 1 << size) if mask.bit_count() >= min(size, 2)]
    return every if size <= LARGEST_ENUMERATED else [m for m in every if m.bit_count() <= 3 or m.bit_count() == size]

"""Every inequality on a token holds, whichever of its experts lie in a set."""

from itertools import combinations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from grace_opt.bounds.quadratics import not_inside, quadratics_below, spread_quadratics, subset_quadratics


@given(values=st.lists(st.integers(-4, 4), min_size=1, max_size=9))
def test_a_quadratic_below_a_function_is_below_it_and_touches_it(values: list[int]) -> None:
    phi = np.array(values, float)
    powers = np.arange(len(phi))[:, None] ** np.arange(3)
    quadratics = quadratics_below(phi)
    assert len(quadratics)
    for coefficients in quadratics:
        room = phi - powers @ coefficients
        assert room.min() >= -1e-12
        assert (room < 1e-6).sum() >= min(3, len(phi))


@pytest.mark.parametrize("size", [2, 3, 4, 6, 8])
def test_not_inside_has_the_quadratics_of_neighbouring_integers(size: int) -> None:
    """1 - (m - a)(m - a - 1) / ((s - a)(s - a - 1)), a = 0 .. s - 2, and no others."""
    expected = [
        [1 - a * (a + 1) / ((size - a) * (size - a - 1)), (2 * a + 1) / ((size - a) * (size - a - 1)),
         -1 / ((size - a) * (size - a - 1))]
        for a in range(size - 1)
    ]  # fmt: skip
    found = quadratics_below(not_inside(size))
    assert np.allclose(sorted(found.tolist()), sorted(expected), atol=1e-9)


@pytest.mark.parametrize("size", range(1, 9))
def test_an_inequality_of_a_subset_never_exceeds_what_the_token_costs(size: int) -> None:
    masks, rows = subset_quadratics(size)
    for inside in range(1 << size):
        count = np.array([(int(mask) & inside).bit_count() for mask in masks])
        values = rows[:, 0] + rows[:, 1] * count + rows[:, 2] * count**2
        leaves = inside != (1 << size) - 1
        assert values.max() <= leaves + 1e-9
        assert values.max() == pytest.approx(float(leaves)), "the strongest one is exact on sets"


@given(seed=st.integers(0, 2**32 - 1), size=st.integers(1, 8), places=st.integers(2, 5))
def test_an_inequality_of_several_sets_never_exceeds_the_places_a_token_visits(
    seed: int, size: int, places: int
) -> None:
    """Copies at random, home is place 0; the fewest places by trying all."""
    random = np.random.default_rng(seed)
    holds = random.random((places, size)) < random.random()
    holds[random.integers(places, size=size), np.arange(size)] = True
    visits = min(
        len(chosen)
        for number in range(places)
        for chosen in combinations(range(1, places), number)
        if holds[[0, *chosen]].any(axis=0).all()
    )
    masks, at_home, elsewhere = spread_quadratics(size)
    bits = (masks[:, None] >> np.arange(size)) & 1
    powers = (bits @ holds.T)[:, :, None] ** np.arange(3)  # [J, places, 3]
    values = (powers[:, 0] * at_home).sum(axis=1) + (powers[:, 1:] * elsewhere[:, None]).sum(axis=(1, 2))
    assert values.max(initial=0) <= visits + 1e-9

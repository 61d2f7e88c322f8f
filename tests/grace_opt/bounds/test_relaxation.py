"""A mix of inequalities is linear, and below the cost of any sets."""

from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from grace_opt.bounds.branch_and_bound import cost_of_sets
from grace_opt.bounds.node_rows import rows_relaxation
from grace_opt.bounds.relaxation import WIDTH, Mixes, assemble, evaluate
from grace_opt.bounds.token_sets import TokenSets

SIZES = {"free": [3, 4], "cover": [4, 4], "partition": [2, 2, 3], "spread": [3, 4, 3]}


@given(
    seed=st.integers(0, 10**6), coupling=st.sampled_from(sorted(SIZES)), top_k=st.integers(1, 5), busiest=st.booleans()
)
def test_any_shares_give_a_mix_below_the_rows_of_any_sets(  # type: ignore[no-untyped-def]
    random_tokens, with_senders, rows_of_sets, busiest_rows, seed: int, coupling: str, top_k: int, busiest: bool
) -> None:
    slots, senders = SIZES[coupling], None
    tokens = random_tokens(seed, top_k=top_k, groups=len(slots))
    if busiest:
        tokens, senders = with_senders(tokens, len(slots))
    relaxation = rows_relaxation(tokens, 7, np.array(slots), senders)
    assert relaxation.coupling == ("cover" if coupling == "spread" else coupling)
    assert relaxation.spread == (coupling == "spread")
    random = np.random.default_rng(seed)
    order = random.permutation(7)
    holds = np.zeros((len(slots), 7), bool)
    for group, size in enumerate(slots):  # round the experts, so that copies come last
        holds[group, order[(sum(slots[:group]) + np.arange(size)) % 7]] = True
    mixes = Mixes.even(relaxation)
    for chosen, share in zip(mixes.chosen, mixes.share, strict=True):
        chosen[:] = random.integers(len(relaxation.inequalities.number), size=chosen.shape)
        share[:] = random.dirichlet(np.full(WIDTH, 0.2), len(share))
    for batch in np.unique(relaxation.batch):
        members = relaxation.batch == batch
        mixes.of_sender[members] = random.dirichlet(np.full(members.sum(), 0.5))
    inside = holds[: len(relaxation.blocks)]
    signs = np.hstack((np.ones((len(inside), 1)), np.where(inside, 1.0, -1.0)))
    constant, matrices = assemble(relaxation, mixes, mixes.share)
    mix = constant + sum(float(y @ matrix @ y) for y, matrix in zip(signs, matrices, strict=True))
    rows = busiest_rows(tokens, senders, holds) if busiest else rows_of_sets(tokens, holds)
    assert mix <= rows + 1e-9
    cost = cost_of_sets(relaxation, inside)
    assert cost <= rows if coupling == "spread" else cost == rows


@pytest.mark.parametrize("busiest", [False, True])
def test_the_matrices_are_the_slope_of_the_smoothed_objective(  # type: ignore[no-untyped-def]
    random_tokens, with_senders, busiest: bool
) -> None:
    tokens, senders = random_tokens(0, top_k=4), None
    if busiest:
        tokens, senders = with_senders(tokens, 2)
    relaxation = rows_relaxation(tokens, 7, np.array([3, 4]), senders)
    random = np.random.default_rng(0)
    vectors = random.standard_normal((8, 5))
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    gram, change = vectors @ vectors.T, random.standard_normal((8, 8))
    change += change.T
    np.fill_diagonal(change, 0)
    mixes = Mixes.even(relaxation)
    after, before = (evaluate(relaxation, mixes, [gram + step * change], 0.3)[0] for step in (1e-5, -1e-5))
    _, _, (matrix,) = evaluate(relaxation, mixes, [gram], 0.3)
    assert (after - before) / 2e-5 == pytest.approx((matrix * change).sum(), rel=1e-5)


def test_shares_follow_the_costliest_sender(random_tokens, with_senders) -> None:  # type: ignore[no-untyped-def]
    tokens, senders = with_senders(random_tokens(3), 2)
    relaxation = rows_relaxation(tokens, 7, np.array([3, 4]), senders)
    mixes = Mixes.even(relaxation)
    assert mixes.of_sender.tolist() == [0.25] * 8
    y = np.array([1.0, 1, 1, 1, -1, -1, -1, -1])
    for _ in range(30):
        mixes.renew(relaxation, [np.outer(y, y)], 0.01)
    constant, (matrix,) = assemble(relaxation, mixes, mixes.share)
    assert constant + y @ matrix @ y == pytest.approx(cost_of_sets(relaxation, (y[1:] > 0)[None]), rel=1e-3)


def test_renewing_adds_the_strongest_inequality(random_tokens: Callable[..., TokenSets]) -> None:
    """On sets the strongest is exact, so shares that follow it give the cost itself."""
    relaxation = rows_relaxation(random_tokens(1, top_k=5), 7, np.array([3, 4]))
    y = np.array([1.0, 1, 1, 1, -1, -1, -1, -1])
    mixes = Mixes.even(relaxation)
    for _ in range(3):
        mixes.renew(relaxation, [np.outer(y, y)], 0.01)
    constant, (matrix,) = assemble(relaxation, mixes, mixes.share)
    inside = (y[1:] > 0)[None]
    assert constant + y @ matrix @ y == pytest.approx(cost_of_sets(relaxation, inside), rel=1e-3)

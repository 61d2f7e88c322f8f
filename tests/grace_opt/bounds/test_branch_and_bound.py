"""Cases cover all plans; to the end they give the optimum."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from grace_opt.bounds.branch_and_bound import Limits, bound_by_cases
from grace_opt.bounds.eigenvalue_bound import EigenvalueBound
from grace_opt.bounds.node_rows import rows_relaxation
from grace_opt.bounds.semidefinite import Effort
from grace_opt.bounds.token_sets import TokenSets

QUICK = Effort(2, 15, ascent=5)


@pytest.mark.parametrize("slots", [[3, 4], [1, 6], [5, 4], [2, 7], [2, 2, 3]])
@pytest.mark.parametrize("seed", range(3))
def test_run_to_its_end_it_meets_the_optimum(
    random_tokens: Callable[..., TokenSets], best_rows: Callable[..., int], slots: list[int], seed: int
) -> None:
    """Two groups, or no room for copies: the relaxed cost is that of the best plan."""
    tokens = random_tokens(seed, groups=len(slots))
    relaxation = rows_relaxation(tokens, 7, np.array(slots))
    assert bound_by_cases(relaxation, Limits(), root=QUICK, case=QUICK) == best_rows(tokens, 7, slots)


@pytest.mark.parametrize("slots", [[3, 4], [5, 4], [2, 2, 3]])
@pytest.mark.parametrize("seed", range(2))
def test_run_to_its_end_it_meets_the_least_rows_of_the_busiest_sender(  # type: ignore[no-untyped-def]
    random_tokens, with_senders, best_rows, slots: list[int], seed: int
) -> None:
    tokens, senders = with_senders(random_tokens(seed, groups=len(slots)), len(slots))
    relaxation = rows_relaxation(tokens, 7, np.array(slots), senders)
    best = best_rows(tokens, 7, slots, senders)
    assert bound_by_cases(relaxation, Limits(), root=QUICK, case=QUICK) == best
    assert 0 < bound_by_cases(relaxation, Limits(cases=1), root=QUICK, case=QUICK) <= best


def test_with_copies_on_three_groups_it_stays_below(
    random_tokens: Callable[..., TokenSets], best_rows: Callable[..., int]
) -> None:
    tokens = random_tokens(0, groups=3)
    relaxation = rows_relaxation(tokens, 7, np.array([3, 3, 3]))
    bound = bound_by_cases(relaxation, Limits(cases=30), root=QUICK, case=QUICK)
    assert 0 < bound <= best_rows(tokens, 7, [3, 3, 3])


def test_bounds_only_rise_and_repeat_under_a_limit_of_cases(random_tokens: Callable[..., TokenSets]) -> None:
    relaxation = rows_relaxation(random_tokens(1), 7, np.array([3, 4]))
    runs: list[list[float]] = [[], []]
    for run in runs:
        last = bound_by_cases(relaxation, Limits(cases=7), lambda bound, _, run=run: run.append(bound), QUICK, QUICK)  # type: ignore[misc]
        assert run[-1] == last
        assert run == sorted(run)
    assert runs[0] == runs[1]


def test_it_stops_at_the_cost_of_a_known_plan(
    random_tokens: Callable[..., TokenSets], best_rows: Callable[..., int]
) -> None:
    tokens = random_tokens(2)
    best = best_rows(tokens, 7, [3, 4])
    relaxation = rows_relaxation(tokens, 7, np.array([3, 4]))
    assert bound_by_cases(relaxation, Limits(incumbent=best), root=QUICK, case=QUICK) == best
    assert bound_by_cases(relaxation, Limits(incumbent=best + 9), root=QUICK, case=QUICK) == best


def test_without_time_the_first_bound_is_that_of_one_step_and_holds(
    random_tokens: Callable[..., TokenSets], best_rows: Callable[..., int], monkeypatch: pytest.MonkeyPatch
) -> None:
    evaluated = 0
    evaluate = EigenvalueBound._negative

    def counted(self: EigenvalueBound, *arguments: Any) -> Any:
        nonlocal evaluated
        evaluated += 1
        return evaluate(self, *arguments)

    monkeypatch.setattr(EigenvalueBound, "_negative", counted)
    tokens = random_tokens(2)
    relaxation = rows_relaxation(tokens, 7, np.array([3, 4]))
    bound = bound_by_cases(relaxation, Limits(seconds=1e-9))
    assert 0 <= bound <= best_rows(tokens, 7, [3, 4])
    assert 1 <= evaluated <= 5  # a line search may take a few

"""Tokens as weighted sets."""

from collections.abc import Callable
from dataclasses import replace

import numpy as np

from grace_opt.bounds.token_sets import token_sets
from grace_opt.trace import Trace


def test_the_example_of_the_docstring(make_trace: Callable[..., Trace]) -> None:
    trace = make_trace([[[1, 0], [0, 1], [0, 1], [0, 1]]], homes=[0, 0, 1, 0])
    sets = token_sets(trace, 0, np.array([0, 1]))
    assert sets.experts.tolist() == [[0, 1], [0, 1]]
    assert (sets.home.tolist(), sets.weight.tolist()) == ([0, 1], [3, 1])
    assert sets.num_tokens == 4


def test_only_listed_sequences_count_and_homes_are_groups(make_trace: Callable[..., Trace]) -> None:
    trace = make_trace([[[3, 2], [0, 1], [2, 3], [1, 2]]], lengths=[1, 2, 1])
    trace = replace(trace.select(np.array([2, 0])), homes=np.array([3, 1]))
    sets = token_sets(trace, 0, np.array([0, 0, 1, 1]))
    assert (sets.experts.tolist(), sets.home.tolist()) == ([[2, 3], [1, 2]], [0, 1])


def test_in_batches_homes_are_counted_on(make_trace: Callable[..., Trace]) -> None:
    """Rank 0 has two tokens, rank 1 one: batches of one token a rank put the first of rank 0 into batch 0."""
    trace = make_trace([[[0, 1], [0, 1], [2, 3]]], homes=[0, 0, 1])
    sets = token_sets(trace, 0, np.array([0, 1]), 1)
    assert (sets.experts.tolist(), sets.home.tolist()) == ([[0, 1], [0, 1], [2, 3]], [0, 2, 3])


def test_the_heaviest_sets_stay(make_trace: Callable[..., Trace]) -> None:
    trace = make_trace([[[0, 1]] + [[1, 2]] * 3 + [[2, 3]] * 2], homes=[0] * 6)
    sets = token_sets(trace, 0, np.array([0])).heaviest(2)
    assert (sets.experts.tolist(), sets.weight.tolist()) == ([[1, 2], [2, 3]], [3, 2])

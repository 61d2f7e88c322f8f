"""Loads and affinities count tokens."""

from collections.abc import Callable

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from grace_opt.profile import affinity, expert_loads, grouped_loads
from grace_opt.trace import Trace

TOKENS = [[[0, 1, 2], [1, 2, 3], [2, 1, 0]], [[3, 2, 1], [3, 2, 0], [3, 1, 0]]]


def test_a_load_is_the_tokens_that_chose_an_expert(make_trace: Callable[..., Trace]) -> None:
    assert expert_loads(make_trace(TOKENS)).tolist() == [[2, 3, 3, 1], [2, 2, 2, 3]]


def test_an_affinity_is_the_tokens_that_chose_both_experts(make_trace: Callable[..., Trace]) -> None:
    expected = [[0, 2, 2, 0], [2, 0, 3, 1], [2, 3, 0, 1], [0, 1, 1, 0]]
    assert affinity(make_trace(TOKENS), 0).tolist() == expected


def test_a_part_of_a_trace_profiles_its_own_tokens_only(make_trace: Callable[..., Trace]) -> None:
    part = make_trace(TOKENS).select(np.array([0, 2]))
    assert expert_loads(part).tolist() == [[2, 2, 2, 0], [1, 2, 1, 2]]
    assert affinity(part, 1)[3].tolist() == [1, 2, 1, 0]


def test_loads_of_groups_are_those_of_their_runs(make_trace: Callable[..., Trace]) -> None:
    runs = np.array([[0, 1, 1], [2, 3, 1], [1, 2, 0]])
    assert grouped_loads(make_trace(TOKENS), 0, runs, 3).tolist() == [[0, 1, 1, 1], [2, 2, 2, 0], [0, 0, 0, 0]]


@given(data=st.data())
def test_every_token_pairs_each_of_its_experts_with_all_others(random_cases, data) -> None:  # type: ignore[no-untyped-def]
    trace = data.draw(random_cases).problem.trace
    loads = expert_loads(trace)
    assert (loads.sum(axis=1) == trace.num_tokens * trace.top_k).all()
    for layer in range(trace.num_layers):
        count_EE = affinity(trace, layer)
        assert (count_EE == count_EE.T).all() and (np.diag(count_EE) == 0).all()
        assert (count_EE.sum(axis=1) == (trace.top_k - 1) * loads[layer]).all()

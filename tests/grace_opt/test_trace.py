"""A trace lists sequences over one array of choices; parts of it copy nothing."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from grace_opt.trace import Trace, check_expert_ids, sequence_bounds

TOKENS = [[[0, 1], [1, 2], [3, 0], [2, 3]]]


@pytest.fixture(scope="module")
def trace(make_trace: Callable[..., Trace]) -> Trace:
    """Three sequences of 1, 2 and 1 tokens, at home on ranks 0, 1, 0."""
    return make_trace(TOKENS, homes=[0, 1, 0], lengths=[1, 2, 1], domains=[0, 1, 1], domain_names=("law", "code"))


def test_sizes_are_those_of_the_listed_sequences(trace: Trace) -> None:
    assert (trace.num_layers, trace.num_tokens, trace.top_k, trace.num_sequences) == (1, 4, 2, 3)
    assert trace.lengths.tolist() == [1, 2, 1]
    assert list(trace.runs()) == [(0, 4)]


def test_a_part_shares_the_array_and_has_no_homes(trace: Trace) -> None:
    part = trace.select(np.array([0, 2]))
    assert np.shares_memory(part.expert_ids, trace.expert_ids)
    assert part.homes is None
    assert (part.num_tokens, part.domains.tolist(), list(part.runs())) == (2, [0, 1], [(0, 1), (3, 4)])
    assert part.layer(0).tolist() == [[0, 1], [2, 3]]


def test_sequences_may_be_listed_in_any_order(trace: Trace) -> None:
    part = trace.select(np.array([2, 0, 1]))
    assert list(part.runs()) == [(3, 4), (0, 3)]
    assert part.layer(0).tolist() == [[2, 3], [0, 1], [1, 2], [3, 0]]


def test_arrays_cannot_be_changed(trace: Trace) -> None:
    for array in (trace.starts, trace.stops, trace.domains, trace.homes):
        assert array is not None and not array.flags.writeable


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"dtype": np.int64}, "expert_ids must be uint8 or uint16 .* got int64"),
        ({"expert_ids": [[0, 1]]}, r"expert_ids must be .*\[layers, tokens, top_k\]"),
        ({"homes": [0, 1]}, "homes must have one entry per sequence"),
        ({"homes": [0, 1, -1]}, "home ranks must not be negative"),
        ({"domains": [0]}, "domains must have one entry per sequence"),
        ({"domains": [0, 0, 1]}, r"domain numbers must be 0\.\.0"),
        ({"lengths": [1, 2, 0]}, "every sequence must hold at least one"),
        ({"lengths": [1, 2, 2]}, "every sequence must hold at least one of the recorded tokens"),
        ({"phase": "training"}, "phase must be one of prefill, decode, mixed, got 'training'"),
        ({"num_experts": 0}, "num_experts must be 1..65536, got 0"),
        ({"num_experts": 65537}, "num_experts must be 1..65536"),
    ],
)
def test_what_is_no_trace_is_refused(make_trace: Callable[..., Trace], change: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=f"trace: {message}"):
        make_trace(**{"expert_ids": TOKENS, "lengths": [1, 2, 1], **change})


def test_an_empty_part_is_refused(trace: Trace) -> None:
    with pytest.raises(ValueError, match="there are no tokens"):
        trace.select(np.array([], np.int64))


def test_sequences_are_numbered_by_first_appearance() -> None:
    starts, stops = sequence_bounds(np.array([7, 7, 2, 9, 9, 9], np.uint16))
    assert (starts.tolist(), stops.tolist()) == ([0, 2, 3], [2, 3, 6])


def test_tokens_of_a_sequence_stand_together() -> None:
    with pytest.raises(ValueError, match="tokens of sequence 7 do not stand together"):
        sequence_bounds(np.array([7, 2, 7]))


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
@pytest.mark.parametrize(("bad", "message"), [([1, 4], r"outside 0\.\.3"), ([2, 2], "the same expert twice")])
def test_a_wrong_choice_is_named(dtype: Any, bad: list[int], message: str) -> None:
    ids_LTK = np.array([TOKENS[0], [[0, 1], [1, 2], bad, [2, 3]]], dtype)
    with pytest.raises(ValueError, match=rf"expert_ids\[1, 2\] = \[{bad[0]}, {bad[1]}\] names .*{message}"):
        check_expert_ids(ids_LTK, 4)
    check_expert_ids(ids_LTK[:1], 4)

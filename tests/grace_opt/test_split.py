"""A split divides sequences, never tokens, and leaves no part empty."""

from collections.abc import Callable

import numpy as np
import pytest

from grace_opt.split import Alternate, ByDomain, Random, Split
from grace_opt.trace import Trace


@pytest.fixture(scope="module")
def trace(make_trace: Callable[..., Trace]) -> Trace:
    """Sequences of 1, 2, 1, 1 and 2 tokens."""
    return make_trace(
        np.zeros((1, 7, 1)), [0] * 5, [1, 2, 1, 1, 2], domains=[0, 1, 1, 2, 0], domain_names=("law", "code", "chat")
    )


def test_even_sequences_fit_and_odd_ones_are_held_out(trace: Trace) -> None:
    fit, held_out = Alternate()(trace)
    assert fit.starts.tolist() == [0, 3, 5] and fit.stops.tolist() == [1, 4, 7]
    assert held_out.starts.tolist() == [1, 4] and held_out.stops.tolist() == [3, 5]


def test_named_domains_fit_and_all_others_are_held_out(trace: Trace) -> None:
    fit, held_out = ByDomain(["law", "chat"])(trace)
    assert (fit.domains.tolist(), held_out.domains.tolist()) == ([0, 2, 0], [1, 1])


def test_a_random_split_depends_on_its_seed_only(trace: Trace) -> None:
    def starts(seed: int) -> tuple[int, ...]:
        return tuple(Random(seed, fit_share=0.4)(trace)[0].starts.tolist())

    assert starts(1) == starts(1)
    assert all(len(starts(seed)) == 2 for seed in range(9))
    assert len({starts(seed) for seed in range(9)}) > 1


@pytest.mark.parametrize("split", [Alternate(), ByDomain(["code"]), Random(3)])
def test_every_sequence_is_in_one_part_and_homes_are_dealt_anew(trace: Trace, split: Split) -> None:
    parts = split(trace)
    assert sorted(np.concatenate([part.starts for part in parts])) == trace.starts.tolist()
    assert sum(part.num_tokens for part in parts) == trace.num_tokens
    assert [part.homes for part in parts] == [None, None]


@pytest.mark.parametrize(
    ("split", "message"),
    [
        (ByDomain(["law", "code", "chat"]), "leaves the held-out part empty: the trace has 5 sequences"),
        (ByDomain([]), "leaves the fit part empty"),
        (ByDomain(["poetry"]), "no domain 'poetry'; it has law, code, chat"),
        (Random(0, fit_share=0.01), "leaves the fit part empty"),
        (Random(0, fit_share=0.99), "leaves the held-out part empty"),
        (Random(0, fit_share=1.0), "fit_share must lie between 0 and 1"),
    ],
)
def test_a_split_that_leaves_a_part_empty_is_refused(trace: Trace, split: Split, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        split(trace)


def test_one_sequence_cannot_be_split(make_trace: Callable[..., Trace]) -> None:
    with pytest.raises(ValueError, match="split alternate leaves the held-out part empty"):
        Alternate()(make_trace([[[0, 1]]]))

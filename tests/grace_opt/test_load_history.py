"""Load histories: what they count, and what is none."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from grace_opt.load_history import LoadHistory

# Two steps of two layers with four experts, top-2: 3 tokens, then 1.
COUNTS = np.array([[[3, 1, 1, 1], [0, 2, 2, 2]], [[1, 1, 0, 0], [2, 0, 0, 0]]])


def test_loads_are_those_of_all_steps_and_tokens_those_behind_them() -> None:
    history = LoadHistory(COUNTS, top_k=2)
    assert history.loads.tolist() == [[4, 2, 1, 1], [2, 2, 2, 2]]
    assert (history.num_steps, history.num_layers, history.num_experts, history.num_tokens) == (2, 2, 4, 4)
    assert not history.counts.flags.writeable and not history.loads.flags.writeable


@pytest.mark.parametrize("name", ["expert_ids", "starts", "homes", "layer", "runs", "select", "num_sequences"])
def test_whoever_asks_for_tokens_is_told_that_there_are_none(name: str) -> None:
    history = LoadHistory(COUNTS, top_k=2, source="stat: a.pt")
    with pytest.raises(ValueError, match=r"needs token-level routing, but the trace holds counts only \(stat: a.pt\)"):
        getattr(history, name)
    with pytest.raises(AttributeError):
        _ = history.anything_else


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"counts": COUNTS.astype(np.int32)}, r"counts must be int64 \[steps, layers, experts\], got int32"),
        ({"counts": COUNTS[0]}, r"counts must be int64 .* got int64 \(2, 4\)"),
        ({"counts": COUNTS[:0]}, r"counts must be int64 .* got int64 \(0, 2, 4\)"),
        ({"counts": -COUNTS}, r"counts must be 0..2\*\*40, got -3 to 0"),
        ({"counts": COUNTS * 2**40}, r"counts must be 0..2\*\*40"),
        ({"counts": COUNTS * [[[1], [0]]]}, "layer 4 has no counts: the recording lacks it, or it is dense"),
        ({"top_k": 5}, "top_k=5 must be 1..4"),
        ({"first_moe_layer": -1}, "first_moe_layer=-1 not negative"),
        ({"phase": "training"}, "phase must be one of prefill, decode, mixed, got 'training'"),
    ],
)
def test_what_is_no_load_history_is_refused(change: Any, message: str) -> None:
    with pytest.raises(ValueError, match=f"load history: .*{message}"):
        replace(LoadHistory(COUNTS, top_k=2, first_moe_layer=3), **change)

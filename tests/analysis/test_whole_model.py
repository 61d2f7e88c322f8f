"""The whole model's passes, in words and numbers."""

from dataclasses import replace

import numpy as np
import pytest

from analysis.whole_model import Passes, counter, end_to_end, fields, print_end_to_end
from grace_opt.backbone import Backbone
from simulator.cluster import SimulatedCluster

COST = SimulatedCluster("flat", 4)
PASSES = Passes(prefill_tokens=8, decode_tokens=4, context=4)


@pytest.fixture
def case(model, make_trace, make_problem, make_plan):
    """Eight tokens of each rank, in sequences of 4."""
    ids_TK = np.argsort(np.random.default_rng(5).random((32, 4)), axis=1)[:, :2]
    problem = make_problem(make_trace([ids_TK], homes=[0, 1, 2, 3] * 2, lengths=[4] * 8))
    problem = replace(problem, model=replace(model, backbone=Backbone(2, 2, 5, 10, shared_ffn_size=4)))
    return problem, counter(problem, make_plan([[[0], [1], [2], [3]]]))


def test_prompts_fill_a_pass_and_a_sequence_generates_one_token():
    assert (PASSES.work("prefill", 8).sequences, PASSES.work("prefill", 8).tokens) == (2, 4)
    assert PASSES.work("prefill", 3).tokens == 3  # a prompt has no more tokens than the pass
    assert (PASSES.work("decode", 4).sequences, PASSES.work("decode", 4).context) == (4, 4)


def test_a_half_has_half_the_sequences_of_the_same_length():
    for name, tokens in (("prefill", 8), ("decode", 4)):
        whole, half = PASSES.work(name, tokens), PASSES.work(name, tokens, halves=2)
        assert (half.sequences, half.tokens, half.context) == (whole.sequences / 2, whole.tokens, whole.context)


@pytest.mark.parametrize("overlap", ["none", "two_batch"])
def test_parts_of_a_step_less_what_is_hidden_are_the_step(case, overlap: str):
    prefill, decode = end_to_end(COST, *case, PASSES, overlap)
    assert (prefill["tokens_per_rank"], decode["tokens_per_rank"]) == (8, 4)
    for row in (prefill, decode):
        parts = row["all_to_all_s"] + row["experts_s"] + row["backbone_s"] - row["hidden_s"]
        assert row["step_s"] == pytest.approx(parts)
    found = fields([prefill, decode])
    assert found["prefill_tokens_per_s"] == pytest.approx(4 * 8 / found["time_to_first_token_s"])
    assert found["decode_tokens_per_s"] == pytest.approx(4 * 4 / found["time_per_token_s"])


def test_a_longer_context_takes_longer_to_generate_from(case):
    short, long = (end_to_end(COST, *case, replace(PASSES, context=context), "none")[1] for context in (4, 4000))
    assert long["step_s"] > short["step_s"]


def test_two_batches_hide_more_than_one(case):
    one, two = (end_to_end(COST, *case, PASSES, overlap)[0] for overlap in ("none", "two_batch"))
    assert two["hidden_s"] > one["hidden_s"]


def test_where_tables_lack_the_device_a_line_says_that_the_roofline_is_used(case, capsys):
    with pytest.warns(UserWarning, match="dense parts are from the roofline: no measured kernels of toy") as heard:
        rows = end_to_end(COST, *case, replace(PASSES, tables=True), "none")
    assert len(heard) == 1
    assert rows == end_to_end(COST, *case, PASSES, "none")
    print_end_to_end(rows)
    assert "attention and dense parts from the roofline" in capsys.readouterr().out


@pytest.mark.parametrize("field", ["prefill_tokens", "decode_tokens", "context"])
def test_passes_of_no_tokens_are_refused(field: str):
    with pytest.raises(ValueError, match=f"passes.{field} must be at least 1, got 0"):
        Passes(**{field: 0})

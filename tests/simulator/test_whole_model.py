"""Layers and backbone put together."""

import numpy as np
import pytest

from grace_opt.backbone import Backbone
from grace_opt.model import MoEModel
from simulator.backbone import BackboneTime
from simulator.overlap import PhaseTimes
from simulator.whole_model import Workload, end_to_end, pass_time

AROUND = BackboneTime(attention_s=3.0, router_s=1.0, shared_s=2.0, other_s=10.0, measured=False)


def phases(dispatch, experts, combine, layers=2):
    """The same in every layer; one number a batch."""
    each = [np.tile(np.array(value, float), (layers, 1)) for value in (dispatch, experts, combine)]
    return PhaseTimes(*each, np.full(each[0].shape, 0.5), np.full((each[0].shape[1], 4), 8))


def test_phases_of_all_layers_add_up():
    time = pass_time(phases([4], [5], [6]), AROUND)
    assert time.total_s == 2 * (3 + 1 + 4 + 5 + 6) + 10
    assert (time.all_to_all_s, time.experts_s, time.idle_s, time.backbone_s) == (20, 10, 1, 2 * 6 + 10)
    assert time.hidden_s == 4  # shared experts behind dispatch


def test_shared_experts_hide_behind_dispatch_or_add_what_is_longer():
    assert pass_time(phases([1], [5], [6]), AROUND).total_s == 2 * (3 + 1 + 2 + 5 + 6) + 10


def test_a_pass_is_put_together_batch_by_batch():
    # shared experts take 2: dispatch of 1 and 3 becomes 2 and 3; its mean, 2, would hide them wholly
    time = pass_time(phases([1, 3], [5, 5], [6, 6]), AROUND)
    assert time.total_s == pytest.approx(2 * (3 + 1 + 2.5 + 5 + 6) + 10)


def test_two_batches_pay_for_each_half():
    time = pass_time(phases([4, 4], [5, 5], [6, 6]), AROUND, "two_batch")
    assert (time.all_to_all_s, time.experts_s, time.idle_s, time.backbone_s) == (40, 20, 2, 2 * (2 * 6 + 10))
    assert time.hidden_s == time.all_to_all_s + time.experts_s + time.backbone_s - time.total_s > 0


def test_a_workload_deals_sequences_evenly():
    work = Workload(256, 128, 16)
    assert work.prefill(4).num_tokens == 64 * 128
    assert (work.decode(4).num_tokens, work.decode(4).context) == (64, 136)
    with pytest.raises(ValueError, match="workload.sequences=256 must be a multiple of the 3 ranks"):
        work.prefill(3)


def test_a_workload_is_one_pass_over_prompts_and_one_for_each_further_token(make_topology):
    model = MoEModel("toy", 2, 4, 2, hidden_size=2, ffn_size=3, backbone=Backbone(2, 2, 2, 10))
    layers = phases([4], [5], [6])  # 8 tokens of a rank
    time = end_to_end(model, make_topology(), Workload(32, 1, 3), layers, layers)
    assert time.total_s == time.prefill.total_s + 2 * time.decode.total_s
    assert time.tokens_per_s == 32 * 3 / time.total_s
    with pytest.raises(ValueError, match="the layers were timed with 8 tokens per rank, a pass has 80"):
        end_to_end(model, make_topology(), Workload(32, 10, 3), layers, layers)


def test_an_unknown_overlap_is_refused():
    with pytest.raises(ValueError, match="overlap must be one of none, two_batch, got 'full'"):
        pass_time(phases([1], [1], [1]), AROUND, "full")

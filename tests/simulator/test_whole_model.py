"""Layers and backbone put together."""

import numpy as np
import pytest

from grace_opt.cost import LayerTime
from grace_opt.model import MoEModel
from simulator.backbone import BackboneTime
from simulator.whole_model import Workload, pass_time

MODEL = MoEModel("toy", num_layers=2, num_experts=4, top_k=2, hidden_size=2, ffn_size=3)
AROUND = BackboneTime(attention_s=3.0, router_s=1.0, shared_s=2.0, other_s=10.0, measured=False)


def layers(dispatch: float, experts: float, combine: float) -> LayerTime:
    return LayerTime(*(np.full(2, value) for value in (dispatch, experts, combine, 0.5)), tokens_per_rank=8)


def test_phases_of_all_layers_add_up():
    time = pass_time(MODEL, layers(4.0, 5.0, 6.0), AROUND)
    assert time.total_s == 2 * (3 + 1 + 4 + 5 + 6) + 10
    assert (time.all_to_all_s, time.experts_s, time.idle_s, time.backbone_s) == (20, 10, 1, 22)


def test_shared_experts_hide_behind_dispatch_or_add_what_is_longer():
    assert pass_time(MODEL, layers(1.0, 5.0, 6.0), AROUND).total_s == 2 * (3 + 1 + 2 + 5 + 6) + 10


def test_two_batches_overlap_what_communicates_with_what_computes():
    # of a half: communication 10, computation 3 + 1 + 5 + 2 = 11 in each of two layers; the start adds 10
    time = pass_time(MODEL, layers(4.0, 5.0, 6.0), AROUND, "two_batch")
    assert time.total_s == 2 * (11 + 11) + 10 + 2 * 10
    assert time.all_to_all_s == 2 * 20


def test_a_workload_deals_sequences_evenly():
    work = Workload(256, 128, 16)
    assert work.prefill(4).num_tokens == 64 * 128
    assert (work.decode(4).num_tokens, work.decode(4).context) == (64, 136)
    with pytest.raises(ValueError, match="workload.sequences=256 must be a multiple of the 3 ranks"):
        work.prefill(3)


def test_an_unknown_overlap_is_refused():
    with pytest.raises(ValueError, match="overlap must be one of none, two_batch, got 'full'"):
        pass_time(MODEL, layers(1, 1, 1), AROUND, "full")

"""Seconds of attention and the other dense parts."""

import pytest

from grace_opt.backbone import Backbone
from grace_opt.configuration import build, read_configuration
from grace_opt.gpu import GPU
from grace_opt.model import MoEModel
from simulator.backbone import KERNEL_S, Pass, backbone_time
from simulator.calibration.tables import has_package

# Weights: attention 2 * 2 * (2 + 2 + 2 + 2) = 32, router 2 * 4 = 8, shared 3 * 2 * 2 = 12, head 2 * 10 = 20.
BACKBONE = Backbone(num_heads=2, num_kv_heads=2, head_size=2, vocab_size=10, shared_ffn_size=2)
MODEL = MoEModel("toy", 2, 4, 2, hidden_size=2, ffn_size=3, backbone=BACKBONE)
COMPUTES = GPU("slow at flops", flops_per_s=1.0, memory_bytes_per_s=1e12, memory_bytes=1e9)
READS = GPU("slow at reading", flops_per_s=1e12, memory_bytes_per_s=1.0, memory_bytes=1e9)


def test_in_prefill_operations_decide():
    time = backbone_time(MODEL, COMPUTES, Pass(sequences=1, tokens=3))
    scores = 3 * BACKBONE.score_flops(2)  # a causal token looks at two on average
    assert time.attention_s == pytest.approx(2 * 32 * 3 + scores + 4 * KERNEL_S)
    assert time.router_s == pytest.approx(2 * 8 * 3 + 2 * KERNEL_S)
    assert time.shared_s == pytest.approx(2 * 12 * 3 + 2 * KERNEL_S)
    assert time.other_s == pytest.approx(2 * 20 + 2 * KERNEL_S)  # the head reads the last token


def test_in_decode_weights_and_caches_are_read():
    time = backbone_time(MODEL, READS, Pass(sequences=5, tokens=1, context=9))
    assert time.attention_s == pytest.approx(2 * 32 + 5 * 10 * 2 * BACKBONE.cache_values, rel=1e-4)


def test_a_window_shortens_every_other_layers_attention():
    model = MoEModel("toy", 2, 4, 2, 2, 3, backbone=Backbone(2, 2, 2, 10, window=4))
    wide = MoEModel("toy", 2, 4, 2, 2, 3, backbone=Backbone(2, 2, 2, 10))
    work = Pass(5, 1, 99)
    assert backbone_time(model, READS, work).attention_s < backbone_time(wide, READS, work).attention_s


def test_a_model_without_backbone_is_refused():
    with pytest.raises(ValueError, match="model bare has no backbone"):
        backbone_time(MoEModel("bare", 1, 4, 2, 2, 3), READS, Pass(1, 1))


@pytest.mark.skipif(not has_package(), reason="measured tables: the optional package is not installed")
def test_measured_attention_is_near_the_roofline_and_says_that_it_is_measured():
    config = read_configuration("plan", ["model=qwen3_30b_a3b", "topology=a100_25gbe_2x2"])
    model, gpu = build(config.model), build(config.topology).gpus[0]
    for work in (Pass(64, 128), Pass(64, 1, 136)):
        measured, modelled = (backbone_time(model, gpu, work, tables) for tables in (True, False))
        assert measured.measured and not modelled.measured
        assert 0.5 < modelled.attention_s / measured.attention_s < 1.5

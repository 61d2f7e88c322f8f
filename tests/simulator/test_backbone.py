"""Seconds of attention and the other dense parts."""

import pytest

from grace_opt.backbone import Backbone
from grace_opt.configuration import build, read_configuration
from grace_opt.gpu import GPU
from grace_opt.model import MoEModel
from simulator.backbone import KERNEL_S, SCORES_S, Pass, backbone_time

# Matrices: attention 2 x 12 and 4 x 2, router 2 x 4, shared 2 x 4 and 2 x 2, head 2 x 10.
BACKBONE = Backbone(num_heads=2, num_kv_heads=2, head_size=2, vocab_size=10, shared_ffn_size=2)
MODEL = MoEModel("toy", 2, 4, 2, hidden_size=2, ffn_size=3, backbone=BACKBONE)
COMPUTES = GPU("slow at flops", flops_per_s=1.0, memory_bytes_per_s=1e12, memory_bytes=1e9)
READS = GPU("slow at reading", flops_per_s=1e12, memory_bytes_per_s=1.0, memory_bytes=1e9)


def test_in_prefill_operations_decide():
    time = backbone_time(MODEL, COMPUTES, Pass(sequences=1, tokens=3))
    scores = 3 * BACKBONE.score_flops(2)  # a causal token looks at two on average
    assert time.attention_s == pytest.approx(2 * 32 * 3 + scores + 2 * KERNEL_S + SCORES_S)
    assert time.router_s == pytest.approx(2 * 8 * 3 + 2 * KERNEL_S)
    assert time.shared_s == pytest.approx(2 * 12 * 3 + 2 * KERNEL_S)
    assert time.other_s == pytest.approx(2 * 20 + KERNEL_S)  # the head reads the last token


def test_in_decode_weights_activations_and_caches_are_read():
    time = backbone_time(MODEL, READS, Pass(sequences=5, tokens=1, context=9))
    activations = 2 * 5 * ((2 + 12) + (4 + 2))
    assert time.attention_s == pytest.approx(2 * 32 + activations + 5 * 10 * 2 * BACKBONE.cache_values, rel=1e-4)


def test_fp8_weights_are_half_as_many_bytes():
    fp8 = MoEModel("toy", 2, 4, 2, 2, 3, backbone=Backbone(2, 2, 2, 10, shared_ffn_size=2, weight_type="fp8"))
    work = Pass(1, 1, 1)
    saved = backbone_time(MODEL, READS, work).attention_s - backbone_time(fp8, READS, work).attention_s
    assert saved == pytest.approx(32)


def test_a_window_shortens_every_other_layers_attention():
    model = MoEModel("toy", 2, 4, 2, 2, 3, backbone=Backbone(2, 2, 2, 10, window=4))
    wide = MoEModel("toy", 2, 4, 2, 2, 3, backbone=Backbone(2, 2, 2, 10))
    work = Pass(5, 1, 99)
    short = backbone_time(wide, READS, work).attention_s - backbone_time(model, READS, work).attention_s
    assert short == pytest.approx(5 * (100 - 5) * 2 * BACKBONE.cache_values / 2)


def test_a_model_without_backbone_is_refused():
    with pytest.raises(ValueError, match="model bare has no backbone"):
        backbone_time(MoEModel("bare", 1, 4, 2, 2, 3), READS, Pass(1, 1))


def test_a_device_nobody_measured_is_refused_where_tables_are_asked_for():
    with pytest.raises(OSError, match="no measured kernels of slow at flops, only of .*: take tables=false"):
        backbone_time(MODEL, COMPUTES, Pass(1, 1), tables=True)


@pytest.mark.parametrize("name", ["olmoe_1b_7b", "deepseek_v2_lite", "qwen3_30b_a3b", "mixtral_8x7b"])
def test_the_roofline_is_near_what_was_measured_which_says_that_it_is_measured(measured_tables, name: str):
    model = build(read_configuration("plan", [f"model={name}"]).model)
    gpu = build(read_configuration("plan", ["topology=a100_25gbe_2x2"]).topology).gpus[0]
    for work in (Pass(64, 128), Pass(64, 1, 136)):
        measured, modelled = (backbone_time(model, gpu, work, tables) for tables in (True, False))
        assert measured.measured and not modelled.measured
        assert modelled.attention_s == pytest.approx(measured.attention_s, rel=0.4)


@pytest.fixture
def measured_tables():
    from simulator.calibration.tables import has_package

    if not has_package():
        pytest.skip("measured tables: the optional package is not installed")

"""Weights and work outside the routed experts."""

import pytest

from grace_opt.backbone import Backbone
from grace_opt.configuration import build, groups, read_configuration

GROUPED = Backbone(num_heads=4, num_kv_heads=2, head_size=8, vocab_size=100)
LATENT = Backbone(num_heads=4, num_kv_heads=4, head_size=8, vocab_size=100, kv_rank=16, rope_size=2)


def test_grouped_attention_has_projections_for_its_heads_and_fewer_for_keys_and_values():
    assert GROUPED.attention_weights(32) == 32 * 8 * (4 + 2 + 2 + 4)
    assert GROUPED.cache_values == 2 * 2 * 8


def test_latent_attention_caches_the_compressed_part_only():
    assert LATENT.cache_values == 18
    assert LATENT.attention_weights(32) == 32 * 4 * 10 + 32 * 18 + 16 * 4 * 16 + 4 * 8 * 32


def test_scores_of_a_token_grow_with_what_it_looks_at():
    assert GROUPED.score_flops(100) == 2 * 4 * 100 * 16


def test_in_decode_latent_heads_look_at_the_wider_compressed_part():
    assert LATENT.score_flops(100) == 2 * 4 * 100 * (2 * 8 + 2)
    assert LATENT.score_flops(100, decode=True) == 2 * 4 * 100 * (2 * 16 + 2)


@pytest.mark.parametrize("name", sorted(groups()["model"]))
def test_the_weights_of_a_preset_are_those_its_dense_bytes_say(name: str):
    model = build(read_configuration("plan", [f"model={name}"]).model)
    weights = model.backbone.num_weights(model.hidden_size, model.num_layers, model.num_experts)
    assert weights * model.backbone.bytes_per_weight == pytest.approx(model.dense_bytes, rel=0.01)


def test_impossible_sizes_are_refused():
    with pytest.raises(ValueError, match="model.backbone.num_heads must be at least 1, got 0"):
        Backbone(0, 1, 1, 1)
    with pytest.raises(ValueError, match="model.backbone.window must not be negative, got -1"):
        Backbone(1, 1, 1, 1, window=-1)
    with pytest.raises(ValueError, match="model.backbone.weight_type must be one of bf16, fp8, got 'int4'"):
        Backbone(1, 1, 1, 1, weight_type="int4")

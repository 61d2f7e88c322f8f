"""Sizes of a model follow from its numbers, and impossible numbers are refused."""

import math
from dataclasses import replace

import pytest

from grace_opt.model import MoEModel


def test_bytes_and_flops_follow_from_the_sizes(model: MoEModel) -> None:
    assert model.token_bytes == 10 * 2
    assert model.expert_bytes == 3 * 10 * 5 * 2
    assert model.expert_flops_per_token == 2 * 3 * 10 * 5


def test_a_published_expert_weighs_what_it_should() -> None:
    deepseek = MoEModel("DeepSeek-V2-Lite", 26, 64, 6, 2048, 1408, num_shared_experts=2, first_moe_layer=1)
    assert deepseek.token_bytes == 4096
    assert deepseek.expert_bytes == pytest.approx(17.3e6, rel=1e-3)
    assert deepseek.layer_ids == range(1, 27)


def test_quantised_weights_weigh_less_but_rows_do_not(model: MoEModel) -> None:
    mxfp4 = replace(model, bytes_per_weight=0.53125)
    assert mxfp4.expert_bytes == 3 * 10 * 5 * 0.53125
    assert mxfp4.token_bytes == model.token_bytes


@pytest.mark.parametrize(
    ("field", "value"),
    [
        *((f, 0) for f in ("num_layers", "num_experts", "top_k", "hidden_size", "ffn_size", "num_expert_groups")),
        *((field, -1) for field in ("num_shared_experts", "first_moe_layer", "dense_bytes")),
        *((field, value) for field in ("bytes_per_value", "bytes_per_weight") for value in (0, -1, math.inf, math.nan)),
        ("dense_bytes", math.nan),
        ("top_k", 5),
        ("num_experts", 65537),
        ("num_expert_groups", 3),
    ],
)
def test_impossible_sizes_are_refused_by_name(model: MoEModel, field: str, value: float) -> None:
    with pytest.raises(ValueError, match=f"model.{field}"):
        replace(model, **{field: value})

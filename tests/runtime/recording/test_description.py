"""Sizes of a model come from its configuration, and are those of the preset where there is one."""

from typing import Any

import pytest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers", reason="transformers is not installed: no configurations to read")

from runtime.recording.description import describe, same_sizes
from runtime.recording.routers import moe_blocks

DEEPSEEK_V2_LITE = {
    "hidden_size": 2048, "intermediate_size": 10944, "moe_intermediate_size": 1408, "num_hidden_layers": 27,
    "num_attention_heads": 16, "num_key_value_heads": 16, "n_routed_experts": 64, "n_shared_experts": 2,
    "num_experts_per_tok": 6, "first_k_dense_replace": 1, "q_lora_rank": None, "n_group": 1, "topk_method": "greedy",
    "vocab_size": 102400,
}  # fmt: skip
OLMOE = {"intermediate_size": 1024}
QWEN3_30B = {"num_hidden_layers": 48, "head_dim": 128}
QWEN3_235B = {
    "num_hidden_layers": 94, "head_dim": 128, "hidden_size": 4096, "num_attention_heads": 64,
    "moe_intermediate_size": 1536,
}  # fmt: skip
GPT_OSS_20B = {
    "num_hidden_layers": 24, "num_local_experts": 32, "quantization_config": {"quant_method": "mxfp4"},
}  # fmt: skip
DEEPSEEK_V3 = {"quantization_config": {"quant_method": "fp8"}}
PUBLISHED = {
    "olmoe_1b_7b": ("Olmoe", OLMOE, range(16)),
    "mixtral_8x7b": ("Mixtral", {}, range(32)),
    "qwen3_30b_a3b": ("Qwen3Moe", QWEN3_30B, range(48)),
    "qwen3_235b_a22b": ("Qwen3Moe", QWEN3_235B, range(94)),
    "deepseek_v2_lite": ("DeepseekV2", DEEPSEEK_V2_LITE, range(1, 27)),
    "deepseek_v3": ("DeepseekV3", DEEPSEEK_V3, range(3, 61)),
    "gpt_oss_20b": ("GptOss", GPT_OSS_20B, range(24)),
}


@pytest.mark.parametrize("preset", PUBLISHED)
def test_a_published_configuration_is_described_as_its_preset(preset: str) -> None:
    kind, published, layers = PUBLISHED[preset]
    config = getattr(transformers, f"{kind}Config")(**published, dtype="bfloat16")
    assert list(same_sizes(describe(config, "mine", layers, 1.0))) == [preset]


def test_the_backbone_has_the_weights_of_the_model(architecture: str, make_model: Any) -> None:
    model = make_model(architecture)
    model.config.dtype = torch.bfloat16
    layers = list(moe_blocks(model))
    described = describe(model.config, "tiny", layers, 0.0)
    counted = sum(
        weight.numel()
        for name, weight in model.named_parameters()
        if weight.ndim == 2 and ".experts." not in name and "shared_expert_gate" not in name
    )
    weights = described.backbone.num_weights(described.hidden_size, described.num_layers, described.num_experts)
    assert weights == counted
    assert described.num_expert_groups == (4 if architecture in ("DeepseekV2 groups", "DeepseekV3") else 1)


def test_weights_quantised_in_another_way_are_warned_of() -> None:
    config = transformers.OlmoeConfig(dtype="float16", quantization_config={"quant_method": "awq"})
    with pytest.warns(UserWarning, match="quantised by awq, which is not described here: bytes_per_weight=2 is"):
        assert describe(config, "mine", range(16), 1.0).bytes_per_weight == 2


def test_heads_that_the_backbone_cannot_describe_leave_it_out(make_model: Any) -> None:
    model = make_model("DeepseekV3", v_head_dim=4)
    model.config.dtype = torch.float32
    with pytest.warns(UserWarning, match=r"heads of keys \(8\) and values \(4\) differ: the backbone is left out"):
        described = describe(model.config, "mine", [1, 2], 10.0)
    assert described.backbone is None and described.dense_bytes == 40.0


def test_layers_that_look_back_are_described_if_they_are_every_other_one() -> None:
    config = transformers.MixtralConfig(sliding_window=4096, dtype="bfloat16")
    with pytest.warns(UserWarning, match="32 of 32 layers look back 4096 tokens"):
        assert describe(config, "mine", range(32), 1.0).backbone.window == 0

"""A renumbered checkpoint computes what the original computes: tiny random models of each architecture."""

import re

import numpy as np
import pytest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip(
    "transformers", reason="transformers is not installed: no model to compare logits of"
)

from grace_opt.engines.checkpoint import changes
from grace_opt.engines.renumber import renumber
from grace_opt.placement import Placement
from grace_opt.plan import Plan
from grace_opt.routing import Routing

EXPERTS, RANKS = 8, 2
SIZES = {
    "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 3, "num_attention_heads": 2, "vocab_size": 50,
    "num_key_value_heads": 2, "max_position_embeddings": 64, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2,
}  # fmt: skip
LATENT = {
    "q_lora_rank": 8, "kv_lora_rank": 8, "qk_rope_head_dim": 4, "qk_nope_head_dim": 4, "v_head_dim": 8, "head_dim": 4,
    "first_k_dense_replace": 1, "n_routed_experts": EXPERTS, "n_shared_experts": 1, "moe_intermediate_size": 12,
    "num_experts_per_tok": 3,
}  # fmt: skip
QWEN = {
    "num_experts": EXPERTS, "num_experts_per_tok": 3, "moe_intermediate_size": 12, "head_dim": 8,
    "shared_expert_intermediate_size": 12,
}  # fmt: skip
MODELS = {
    "Olmoe": {"num_experts": EXPERTS, "num_experts_per_tok": 3},
    "Mixtral": {"num_local_experts": EXPERTS, "num_experts_per_tok": 2},
    "Qwen2Moe": QWEN,
    "Qwen3Moe": QWEN,
    "DeepseekV2": {**LATENT, "n_group": 1, "topk_group": 1, "topk_method": "greedy", "q_lora_rank": None},
    "DeepseekV2 groups": {**LATENT, "n_group": 4, "topk_group": 2, "topk_method": "group_limited_greedy"},
    "DeepseekV3": {**LATENT, "n_group": 4, "topk_group": 2},
    "GptOss": {"num_local_experts": EXPERTS, "num_experts_per_tok": 3, "head_dim": 8, "sliding_window": 8},
}


def build(name: str):
    """A random model in single precision; routers compute in it whatever the model is in."""
    kind = name.split()[0]
    torch.manual_seed(0)
    config = getattr(transformers, f"{kind}Config")(**{**SIZES, **MODELS[name]})
    config._attn_implementation = "eager"
    model = getattr(transformers, f"{kind}ForCausalLM")(config).eval()
    with torch.no_grad():
        for parameter in [*model.parameters(), *(b for n, b in model.named_buffers() if "correction" in n)]:
            parameter.copy_(torch.randn_like(parameter) * 0.3)
    return model


def logits(model):
    tokens = torch.arange(48).reshape(2, 24) % SIZES["vocab_size"]
    with torch.no_grad():
        return model(tokens).logits


def plan_for(name: str) -> Plan:
    """Experts anywhere; with a group-limited router groups anywhere, and experts inside them."""
    random = np.random.default_rng(5)
    first, groups = MODELS[name].get("first_k_dense_replace", 0), MODELS[name].get("n_group", 1)
    layer_ids = tuple(range(first, SIZES["num_hidden_layers"]))
    size = EXPERTS // groups
    slots = [
        np.concatenate([g * size + random.permutation(size) for g in random.permutation(groups)]).reshape(RANKS, -1)
        for _ in layer_ids
    ]
    return Plan(name, layer_ids, (RANKS,), Placement(np.array(slots), EXPERTS), Routing("primary"))


@pytest.mark.parametrize("name", MODELS)
def test_a_renumbered_checkpoint_gives_the_same_logits(name, tmp_path):
    model = build(name)
    model.save_pretrained(tmp_path / "model", max_shard_size="20KB")
    assert len(list((tmp_path / "model").glob("*.safetensors"))) > 1
    renumber(plan_for(name), tmp_path / "model", tmp_path / "out")
    again = type(model).from_pretrained(tmp_path / "out", dtype=torch.float32, attn_implementation="eager").eval()
    assert not all(torch.equal(one, other) for one, other in zip(model.parameters(), again.parameters(), strict=True))
    expected = logits(model)
    assert (logits(again) - expected).abs().max() < 1e-5 * expected.abs().max()


@pytest.mark.parametrize("name", MODELS)
def test_the_comparison_would_notice_a_router_left_behind(name, tmp_path, monkeypatch):
    model = build(name)
    model.save_pretrained(tmp_path / "model")

    def without_router(checkpoint, orders):
        found = changes(checkpoint, orders)
        for tensor in [name for name in found.rows if re.search(r"\.(gate|router)\.", name)]:
            del found.rows[tensor]
        return found

    monkeypatch.setattr("grace_opt.engines.renumber.changes", without_router)
    renumber(plan_for(name), tmp_path / "model", tmp_path / "out")
    again = type(model).from_pretrained(tmp_path / "out", dtype=torch.float32, attn_implementation="eager").eval()
    expected = logits(model)
    assert (logits(again) - expected).abs().max() > 1e-3 * expected.abs().max()

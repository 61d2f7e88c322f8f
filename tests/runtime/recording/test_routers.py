"""What the hooks record is what the experts computed: their outputs are computed again from it."""

from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers", reason="transformers is not installed: no routers to record")

from torch.nn import functional

from runtime.recording.architectures import ARCHITECTURES, architecture_of
from runtime.recording.routers import Routers, moe_blocks

EXPERTS, TOP_K = 8, 3
TOKENS = torch.arange(40).reshape(2, 20) * 7 % 300


def record(model: Any) -> tuple[dict[int, Any], dict[int, tuple[Any, Any]], np.ndarray]:
    """MoE blocks, what went into and came out of each, and the recorded ids [T, L, K]."""
    blocks = moe_blocks(model)
    seen = {}
    hooks = [
        block.register_forward_hook(lambda _, args, out, layer=layer: seen.__setitem__(layer, (args[0], out)))
        for layer, block in blocks.items()
    ]
    with Routers(blocks, architecture_of(model.config), EXPERTS, TOP_K) as routers, torch.inference_mode():
        model(TOKENS)
        ids_TLK = routers.take(TOKENS.numel())
    for hook in hooks:
        hook.remove()
    outputs = {
        layer: (x[0].flatten(0, -2) if x.ndim == 4 else x.flatten(0, -2), out) for layer, (x, out) in seen.items()
    }
    return blocks, outputs, ids_TLK


def replay(config: Any, block: Any, x_TD: Any, ids_TK: Any) -> Any:
    """[T, D] output of a MoE block if these experts are chosen, from the definitions of the architectures."""
    weights_TK = weights(config, block, x_TD, ids_TK)
    all_TED = torch.stack([expert(block, e, x_TD) for e in range(EXPERTS)], dim=1)
    chosen_TKD = all_TED.gather(1, ids_TK[..., None].expand(-1, -1, x_TD.shape[1]))
    output = (weights_TK[..., None] * chosen_TKD).sum(dim=1)
    if hasattr(block, "shared_experts"):
        output = output + block.shared_experts(x_TD)
    if hasattr(block, "shared_expert"):
        output = output + torch.sigmoid(block.shared_expert_gate(x_TD)) * block.shared_expert(x_TD)
    return output


def weights(config: Any, block: Any, x_TD: Any, ids_TK: Any) -> Any:
    router = block.router if hasattr(block, "router") else block.gate
    logits_TE = functional.linear(x_TD, router.weight, getattr(router, "bias", None))
    if config.model_type == "gpt_oss":
        return torch.softmax(logits_TE.gather(1, ids_TK), dim=1)
    scores_TE = logits_TE.sigmoid() if config.model_type == "deepseek_v3" else logits_TE.softmax(dim=1)
    weights_TK = scores_TE.gather(1, ids_TK)
    if config.model_type == "mixtral" or (config.model_type != "deepseek_v2" and config.norm_topk_prob):
        weights_TK = weights_TK / weights_TK.sum(dim=1, keepdim=True)
    return weights_TK * getattr(config, "routed_scaling_factor", 1.0)


def expert(block: Any, e: int, x_TD: Any) -> Any:
    experts = block.experts
    if isinstance(experts, torch.nn.ModuleList):
        return experts[e](x_TD)
    if hasattr(experts, "gate_up_proj_bias"):  # gpt-oss: values of gate and up take turns, both are limited
        both = x_TD @ experts.gate_up_proj[e] + experts.gate_up_proj_bias[e]
        gate, up = both[:, ::2].clamp(max=7.0), both[:, 1::2].clamp(-7.0, 7.0)
        return ((up + 1) * gate * torch.sigmoid(1.702 * gate)) @ experts.down_proj[e] + experts.down_proj_bias[e]
    gate, up = functional.linear(x_TD, experts.gate_up_proj[e]).chunk(2, dim=1)
    return functional.linear(functional.silu(gate) * up, experts.down_proj[e])


def test_the_recorded_experts_give_the_output_of_every_block(architecture: str, make_model: Any) -> None:
    model = make_model(architecture)
    blocks, seen, ids_TLK = record(model)
    assert ids_TLK.dtype == np.uint8 and ids_TLK.shape == (TOKENS.numel(), len(blocks), TOP_K)
    assert (np.diff(np.sort(ids_TLK, axis=2), axis=2) > 0).all()
    for position, (layer, block) in enumerate(blocks.items()):
        x_TD, output = seen[layer]
        expected = (output[0] if isinstance(output, tuple) else output).flatten(0, -2)
        ids_TK = torch.from_numpy(ids_TLK[:, position].astype(np.int64))
        with torch.inference_mode():
            assert (replay(model.config, block, x_TD, ids_TK) - expected).abs().max() < 1e-5 * expected.abs().max()
            ids_TK[:, -1] = other_experts(ids_TK)  # one wrong id must show, for every single token
            off_T = (replay(model.config, block, x_TD, ids_TK) - expected).abs().max(dim=1).values
        assert off_T.min() > 1e-4 * expected.abs().max()


def other_experts(ids_TK: Any) -> Any:
    """[T] the first expert that a token did not choose."""
    free_TE = torch.ones(len(ids_TK), EXPERTS).scatter(1, ids_TK, 0.0)
    return free_TE.argmax(dim=1)


def test_recorded_layers_are_the_moe_layers(architecture: str, make_model: Any) -> None:
    dense = 0 if architecture in ("Olmoe", "Mixtral", "Qwen3Moe", "GptOss") else 1
    assert list(moe_blocks(make_model(architecture))) == list(range(dense, 3))


def test_every_architecture_has_a_model_here(architecture: str, make_model: Any) -> None:
    assert make_model(architecture).config.model_type in ARCHITECTURES


def test_more_than_256_experts_need_two_bytes(make_model: Any) -> None:
    model = make_model("Olmoe", num_experts=300, num_hidden_layers=1)
    with Routers(moe_blocks(model), architecture_of(model.config), 300, TOP_K) as routers, torch.inference_mode():
        model(TOKENS)
        ids_TLK = routers.take(TOKENS.numel())
    assert ids_TLK.dtype == np.uint16 and 256 <= ids_TLK.max() < 300


def test_hooks_are_gone_afterwards(make_model: Any) -> None:
    model = make_model("Mixtral")
    record(model)
    modules = [module for block in moe_blocks(model).values() for module in block.modules()]
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in modules)


def test_a_layer_that_was_not_asked_for_each_token_is_refused(make_model: Any) -> None:
    model = make_model("GptOss")
    with Routers(moe_blocks(model), architecture_of(model.config), EXPERTS, TOP_K) as routers:
        with pytest.raises(ValueError, match="layer 0: the router gave experts to 0 tokens in 0 calls, expected 40"):
            routers.take(40)
        with torch.inference_mode():
            model(TOKENS)
        with pytest.raises(ValueError, match="to 40 tokens in 1 calls, expected 39 in one"):
            routers.take(39)


def test_experts_that_are_given_no_ids_are_refused(make_model: Any) -> None:
    model = make_model("GptOss")
    expected = r"layer 0: expected the ids of 4 experts a token, got torch.int64 \["
    with (
        Routers(moe_blocks(model), architecture_of(model.config), EXPERTS, TOP_K + 1),
        torch.inference_mode(),
        pytest.raises(ValueError, match=expected),
    ):
        model(TOKENS)


def test_dense_layers_between_moe_layers_are_refused(make_model: Any) -> None:
    with pytest.raises(ValueError, match="its MoE layers are 0, 2, with dense ones between"):
        moe_blocks(make_model("Qwen3Moe", mlp_only_layers=[1]))

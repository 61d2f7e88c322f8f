"""Tiny random models of every architecture, built from configurations, and a tokenizer of bytes."""

import importlib.util
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

EXPERTS, TOP_K, VOCABULARY = 8, 3, 300
SIZES = {
    "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 3, "num_attention_heads": 2,
    "num_key_value_heads": 2, "vocab_size": VOCABULARY, "max_position_embeddings": 128, "pad_token_id": 0,
    "bos_token_id": 1, "eos_token_id": 2, "num_experts_per_tok": TOP_K,
}  # fmt: skip
LATENT = {
    "q_lora_rank": 8, "kv_lora_rank": 8, "qk_rope_head_dim": 4, "qk_nope_head_dim": 8, "v_head_dim": 8,
    "first_k_dense_replace": 1, "n_routed_experts": EXPERTS, "n_shared_experts": 2, "moe_intermediate_size": 12,
}  # fmt: skip
QWEN = {"num_experts": EXPERTS, "moe_intermediate_size": 12, "norm_topk_prob": True}
MODELS = {
    "Olmoe": {"num_experts": EXPERTS},
    "Mixtral": {"num_local_experts": EXPERTS},
    "Qwen2Moe": {**QWEN, "shared_expert_intermediate_size": 20, "mlp_only_layers": [0]},
    "Qwen3Moe": {**QWEN, "head_dim": 8},
    "DeepseekV2": {**LATENT, "topk_method": "greedy", "q_lora_rank": None},
    "DeepseekV2 groups": {**LATENT, "n_group": 4, "topk_group": 2, "topk_method": "group_limited_greedy"},
    "DeepseekV3": {**LATENT, "n_group": 4, "topk_group": 2},
    "GptOss": {"num_local_experts": EXPERTS, "head_dim": 8, "sliding_window": 8},
}


@pytest.fixture(scope="package", autouse=True)
def one_thread() -> Iterator[None]:
    """Tiny products are slower on several threads, most of all where tests share the cores."""
    if importlib.util.find_spec("torch") is None:
        yield
        return
    torch = importlib.import_module("torch")
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def make_model() -> Callable[..., Any]:
    """(name, **sizes) -> a random causal language model, always the same; names are in `conftest.MODELS`."""
    return _model


@pytest.fixture(params=MODELS)
def architecture(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A saved OLMoE with a tokenizer that gives a token for each byte, after <s>."""
    path = tmp_path_factory.mktemp("models") / "tiny-moe"
    _model("Olmoe").save_pretrained(path)
    save_tokenizer(path)
    return path


def save_tokenizer(path: Path) -> None:
    tokenizers, transformers = pytest.importorskip("tokenizers"), pytest.importorskip("transformers")
    alphabet = sorted(tokenizers.pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: number for number, token in enumerate(["<pad>", "<s>", "</s>", *alphabet])}
    tokenizer = tokenizers.Tokenizer(tokenizers.models.BPE(vocabulary, []))
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.post_processor = tokenizers.processors.TemplateProcessing("<s> $A", special_tokens=[("<s>", 1)])
    names = {"bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>"}
    transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizer, **names).save_pretrained(path)


def _model(name: str, **sizes: Any) -> Any:
    torch, transformers = pytest.importorskip("torch"), pytest.importorskip("transformers")
    kind = name.split()[0]
    torch.manual_seed(0)
    config = getattr(transformers, f"{kind}Config")(**{**SIZES, **MODELS[name], **sizes})
    model = getattr(transformers, f"{kind}ForCausalLM")(config).eval()
    with torch.no_grad():
        for parameter in [*model.parameters(), *(b for n, b in model.named_buffers() if "correction" in n)]:
            parameter.copy_(torch.randn_like(parameter) * 0.3)
    return model

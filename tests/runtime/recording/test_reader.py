"""Prefill and decode are recorded apart, and batches change nothing."""

from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("transformers", reason="transformers is not installed: no model to record")

from runtime.recording.architectures import architecture_of
from runtime.recording.reader import Reader
from runtime.recording.routers import Routers, moe_blocks

PROMPTS = [np.arange(3, 15, dtype=np.int32), np.arange(40, 52, dtype=np.int32) * 3]


def read(model: Any, prompts: Any, decode_tokens: int = 0, temperature: float = 0.0, seed: int = 0) -> Any:
    with Routers(moe_blocks(model), architecture_of(model.config), 8, 3) as routers:
        return Reader(model, routers, decode_tokens, temperature, seed)(prompts)


def continued(model: Any, prompt: np.ndarray, steps: int) -> np.ndarray:
    """The prompt and the likeliest next tokens, everything computed anew for each."""
    tokens = torch.from_numpy(prompt).long()[None]
    with torch.inference_mode():
        for _ in range(steps):
            tokens = torch.cat((tokens, model(tokens).logits[:, -1:].argmax(dim=-1)), dim=1)
    return tokens[0].numpy().astype(np.int32)


def test_a_decoded_token_chooses_what_it_would_choose_in_prefill(architecture: str, make_model: Any) -> None:
    model = make_model(architecture)
    model.generation_config.eos_token_id = None
    choices = read(model, PROMPTS, decode_tokens=4)
    for prompt, prefill, decode in zip(PROMPTS, choices.prefill, choices.decode, strict=True):
        whole = read(model, [continued(model, prompt, 4)]).prefill[0]
        assert np.array_equal(prefill, whole[: len(prompt)]) and np.array_equal(decode, whole[len(prompt) :])
        assert len(np.unique(whole.reshape(len(whole), -1), axis=0)) > 1, "tokens choose differently"


def test_a_sequence_of_a_batch_chooses_what_it_chooses_alone(architecture: str, make_model: Any) -> None:
    model = make_model(architecture)
    together = read(model, PROMPTS).prefill
    assert np.array_equal(together, [read(model, [prompt]).prefill[0] for prompt in PROMPTS])
    assert not np.array_equal(together[0], together[1])


def test_a_sequence_that_ends_itself_is_not_continued(make_model: Any) -> None:
    model = make_model("Olmoe")
    after = [continued(model, prompt, 4)[len(prompt) :] for prompt in PROMPTS]
    assert after[0][0] not in after[1]
    model.generation_config.eos_token_id = [int(after[0][0]), 299]
    choices = read(model, PROMPTS, decode_tokens=4)
    assert [len(ids) for ids in choices.decode] == [0, 4]
    model.generation_config.eos_token_id = None
    assert np.array_equal(choices.decode[1], read(model, PROMPTS, decode_tokens=4).decode[1])


def test_drawn_tokens_follow_the_seed(make_model: Any) -> None:
    model = make_model("Olmoe")
    runs = [read(model, PROMPTS, 12, temperature=1.0, seed=seed).decode for seed in (1, 1, 2)]
    assert np.array_equal(runs[0][0], runs[1][0]) and not np.array_equal(runs[0][0], runs[2][0])

"""Forward passes whose routing is recorded: a batch of prompts at once, then one token a step from the cache.

Sequences of a batch have equal lengths, so nothing is ever padded, masked or shifted. Logits are made for the last
position only.
"""

import inspect
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from transformers import DynamicCache

from runtime.recording.routers import Routers


@dataclass(frozen=True, eq=False)
class Choices:
    """Experts chosen by the sequences of a batch.

    Attributes:
        prefill: uint8 or uint16 [B, T, L, K].
        decode: one [N, L, K] a sequence; N tokens were generated before it ended.
    """

    prefill: NDArray[np.unsignedinteger]
    decode: tuple[NDArray[np.unsignedinteger], ...]


class Reader:
    """Reads batches and continues them.

    Args:
        model: causal language model of transformers, with its routers hooked.
        decode_tokens: most tokens that continue a sequence; one that ends itself is not continued.
        temperature: 0 takes the likeliest token; otherwise of the distribution it is drawn from.
        seed: of these draws.
    """

    def __init__(self, model: Any, routers: Routers, decode_tokens: int, temperature: float, seed: int) -> None:
        self._model, self._routers = model, routers
        self._decode_tokens, self._temperature = decode_tokens, temperature
        self._device = model.get_input_embeddings().weight.device
        self._random = torch.Generator(self._device).manual_seed(seed)
        self._cache_name = "cache" if "cache" in inspect.signature(model.forward).parameters else "past_key_values"
        ends = model.generation_config.eos_token_id if model.generation_config is not None else None
        self._ends = torch.tensor([] if ends is None else ends, dtype=torch.int64, device=self._device).reshape(-1)

    @torch.inference_mode()
    def __call__(self, tokens: Sequence[NDArray[np.int32]]) -> Choices:
        """Read sequences of equal lengths."""
        self._routers.forget()
        tokens_BT = torch.from_numpy(np.stack(tokens)).long().to(self._device)
        cache = DynamicCache(config=self._model.config) if self._decode_tokens else None
        logits_BV = self._forward(tokens_BT, cache)
        ids_TLK = self._routers.take(tokens_BT.numel())
        prefill = ids_TLK.reshape(*tokens_BT.shape, *ids_TLK.shape[1:])
        steps, lengths = [], np.zeros(len(tokens), np.int64)
        running_B = torch.ones(len(tokens), dtype=torch.bool, device=self._device)
        for _ in range(self._decode_tokens):
            token_B = self._choose(logits_BV)
            running_B &= ~torch.isin(token_B, self._ends)
            if not running_B.any():
                break
            logits_BV = self._forward(token_B[:, None], cache)
            steps.append(self._routers.take(len(tokens)))
            lengths += running_B.cpu().numpy()
        decode_BNLK = np.stack(steps, axis=1) if steps else prefill[:, :0]
        return Choices(prefill, tuple(ids[:length] for ids, length in zip(decode_BNLK, lengths, strict=True)))

    def _forward(self, tokens_BT: Tensor, cache: Any) -> Tensor:
        """[B, V] logits after the last tokens."""
        held = {} if cache is None else {self._cache_name: cache}
        output = self._model(input_ids=tokens_BT, use_cache=cache is not None, logits_to_keep=1, **held)
        logits: Tensor = output.logits[:, -1]
        return logits.to(self._device)

    def _choose(self, logits_BV: Tensor) -> Tensor:
        """[B] next tokens."""
        if not self._temperature:
            return logits_BV.argmax(dim=-1)
        weights_BV = torch.softmax(logits_BV.float() / self._temperature, dim=-1)
        return torch.multinomial(weights_BV, 1, generator=self._random)[:, 0]

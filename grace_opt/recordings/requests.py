"""Responses of SGLang and vLLM that carry the experts of each token of a request, as JSON or JSON lines.

Both servers are started with `--enable-return-routed-experts`. SGLang, asked with `return_routed_experts`, sends base64
of int32 [rows, layers, K] in `meta_info` of its own interface or in `sglext` of the OpenAI one; vLLM sends base64 of a
.npy file, uint8 or uint16 of that shape, in each of the `choices`. Rows are tokens from the start that was asked for,
without the last one, which was never forwarded. Layers are all hidden layers; dense ones read as expert 0.
"""

import base64
import itertools
import json
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from grace_opt.model import MoEModel
from grace_opt.npy_bytes import MAGIC, read_npy_integers
from grace_opt.recordings.recording import WHOLE_BYTES, Tokens, Watch, moe_choices, reading

Routing = tuple[Any, Any]
"""What a response carries, base64, and the number of tokens it generated (None if it does not say)."""


@dataclass(frozen=True)
class SglangRequests:
    """Responses of SGLang."""

    title = "SGLang requests"
    suffixes = (".jsonl", ".json")

    def __call__(self, paths: Sequence[Path], model: MoEModel, watch: Watch) -> Iterator[Tokens]:
        return _requests(paths, model, watch, _of_sglang, _integers)


@dataclass(frozen=True)
class VllmRequests:
    """Responses of vLLM."""

    title = "vLLM requests"
    suffixes = (".jsonl", ".json")

    def __call__(self, paths: Sequence[Path], model: MoEModel, watch: Watch) -> Iterator[Tokens]:
        return _requests(paths, model, watch, _of_vllm, _npy)


def _requests(
    paths: Sequence[Path],
    model: MoEModel,
    watch: Watch,
    find: Callable[[dict[str, Any]], Iterator[Routing]],
    decode: Callable[[bytes, MoEModel], NDArray[Any]],
) -> Iterator[Tokens]:
    without = 0
    for done, path in enumerate(paths):
        with reading(path):
            for place, response, share in _responses(path):
                watch((done + share) / len(paths))
                found = [each for each in find(response) if each[0] is not None]
                without += not found
                for text, generated in found:
                    with reading(Path(f"{path} {place}")):
                        if type(text) is not str:
                            raise ValueError(f"routed_experts must be base64 text, got {type(text).__name__}")
                        ids_TLK = decode(_bytes(text), model)
                        if len(ids_TLK):
                            yield _tokens(moe_choices(ids_TLK, model, "routed_experts"), generated)
    if without:
        warnings.warn(f"{without} responses carry no routed_experts and are left out", stacklevel=2)


def _responses(path: Path) -> Iterator[tuple[str, dict[str, Any], float]]:
    """Where it is, the response, and the share of the file read."""
    size = max(path.stat().st_size, 1)
    if path.suffix == ".json":
        if size > WHOLE_BYTES:
            raise ValueError(f"{size / 1e9:.1f} GB of JSON in one piece: write one response a line (.jsonl)")
        content = json.loads(path.read_bytes())
        for number, response in enumerate(content if isinstance(content, list) else [content]):
            yield f"response {number}", _response(response), 1.0
        return
    with path.open("rb") as file:
        for number in itertools.count(1):
            line = file.readline(WHOLE_BYTES + 1)
            if not line:
                return
            if len(line) > WHOLE_BYTES:
                raise ValueError(f"line {number} is longer than {WHOLE_BYTES / 1e6:.0f} MB: write one response a line")
            try:
                content = json.loads(line) if line.strip() else []
            except ValueError:
                raise ValueError(f"line {number} is no JSON, or truncated") from None
            for response in content if isinstance(content, list) else [content]:
                yield f"line {number}", _response(response), file.tell() / size


def _response(value: Any) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise ValueError(f"a response must be a JSON object, got {type(value).__name__}")
    return value


def _of_sglang(response: dict[str, Any]) -> Iterator[Routing]:
    choices = response.get("choices") or []
    meta, usage = _part(response, "meta_info"), _part(response, "usage") if len(choices) == 1 else {}
    yield meta.get("routed_experts"), meta.get("completion_tokens")
    yield _part(response, "sglext").get("routed_experts"), usage.get("completion_tokens")
    for choice in choices:
        yield _part(_response(choice), "sglext").get("routed_experts"), usage.get("completion_tokens")


def _of_vllm(response: dict[str, Any]) -> Iterator[Routing]:
    choices = response.get("choices") or [response]
    usage = _part(response, "usage").get("completion_tokens") if len(choices) == 1 else None
    for choice in map(_response, choices):
        tokens = choice.get("token_ids")
        yield choice.get("routed_experts"), len(tokens) if isinstance(tokens, list) else usage


def _part(value: dict[str, Any], name: str) -> dict[str, Any]:
    part = value.get(name)
    return part if isinstance(part, dict) else {}


def _bytes(text: str) -> bytes:
    try:
        return base64.b64decode(text, validate=True)
    except ValueError as error:
        raise ValueError(f"routed_experts is no base64, or truncated: {error}") from None


def _integers(content: bytes, model: MoEModel) -> NDArray[Any]:
    """int32 [rows, layers, K]; the bytes do not say their shape."""
    if content.startswith(MAGIC):
        raise ValueError("routed_experts holds a .npy file, as vLLM sends it: give source=vllm_requests")
    row = 4 * model.top_k * (model.first_moe_layer + model.num_layers)
    if len(content) % row:
        raise ValueError(
            f"routed_experts has {len(content)} bytes, no multiple of the {row} that a token takes in model "
            f"{model.name} ({row // 4 // model.top_k} layers, top-{model.top_k}): another model? give model=NAME"
        )
    return np.frombuffer(content, "<i4").reshape(-1, row // 4 // model.top_k, model.top_k)


def _npy(content: bytes, _: MoEModel) -> NDArray[Any]:
    """[rows, layers, K]; the header is checked against the bytes that are there before anything is made."""
    if not content.startswith(MAGIC):
        raise ValueError("routed_experts holds no .npy file: SGLang's responses need source=sglang_requests")
    try:
        return read_npy_integers(content)
    except ValueError as error:
        raise ValueError(f"routed_experts: {error}") from None


def _tokens(ids_TLK: NDArray[np.unsignedinteger], generated: Any) -> Tokens:
    """A request's tokens; of those generated, all but the last were forwarded."""
    if type(generated) is not int:
        return Tokens(ids_TLK, [len(ids_TLK)])
    prompt = len(ids_TLK) - max(generated - 1, 0)
    if prompt < 0:
        raise ValueError(f"routed_experts has {len(ids_TLK)} tokens, fewer than the {generated} that were generated")
    return Tokens(ids_TLK, [len(ids_TLK)], np.arange(len(ids_TLK)) < prompt)

"""Configuration, tokenizer and weights of a model of transformers; whatever goes wrong is one line.

Weights come from safetensors files only, and no code that a model brings along is ever run.
"""

import importlib.util
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import huggingface_hub
import torch
import transformers

from runtime.recording.text import Tokenizer

DTYPES = {"auto": "auto", "float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
SPREAD = "spread"

_SAFE = {"trust_remote_code": False}


def load_config(model: str) -> Any:
    """The configuration of a folder or a model of the hub.

    Raises:
        FileNotFoundError: there is neither.
        ValueError: transformers cannot read it.
    """
    folder = Path(model)
    if not folder.is_dir() and not re.fullmatch(r"[\w-][\w.-]*(/[\w-][\w.-]*)?", model):
        raise FileNotFoundError(f"model={model} is no folder, and no name of the Hugging Face hub (as owner/name)")
    if folder.is_dir() and not (folder / "config.json").is_file():
        raise FileNotFoundError(f"model={model} holds no config.json: give the folder of a Hugging Face model")
    with _loading(model, "its configuration"):
        return transformers.AutoConfig.from_pretrained(model, **_SAFE)


def load_tokenizer(model: str, vocab_size: int) -> Tokenizer:
    """The tokenizer of the same folder or name.

    Raises:
        ValueError: there is none.
    """
    with _loading(model, "its tokenizer (tokenizer.json)"):
        loaded = transformers.AutoTokenizer.from_pretrained(model, **_SAFE)
        if set(loaded("some words", add_special_tokens=False)["input_ids"]) <= set(loaded.all_special_ids):
            raise ValueError("it has no vocabulary")
    start = loaded("")["input_ids"][:1]

    def encode(text: str) -> list[int]:
        tokens: list[int] = loaded(text, add_special_tokens=False)["input_ids"]
        if tokens and max(tokens) >= vocab_size:
            raise ValueError(
                f"model={model}: its tokenizer gives token {max(tokens)}, but the model knows {vocab_size}: it is "
                "another model's"
            )
        return tokens

    return Tokenizer(encode, tuple(start) if start == [loaded.bos_token_id] else ())


def load_model(model: str, config: Any, device: str, dtype: str) -> Any:
    """The model with its weights, on its device, ready to run.

    Args:
        device: auto (a GPU if there is one), cpu, cuda, cuda:N, or spread (over all GPUs, by accelerate).
        dtype: one of DTYPES; auto is that of the checkpoint.

    Raises:
        ValueError: no such device, weights are missing or not in safetensors, or there is no room.
    """
    if dtype not in DTYPES:
        raise ValueError(f"dtype must be one of {', '.join(DTYPES)}, got {dtype!r}")
    place = _device(device)
    options = {"device_map": "auto"} if device == SPREAD else {"device_map": {"": place}} if _has_accelerate() else {}
    if quantisation(config) == "mxfp4":  # its kernels choose experts by themselves, where no hook sees them
        options["quantization_config"] = transformers.Mxfp4Config(dequantize=True)
    with _loading(model, "its weights"):
        loaded, found = transformers.AutoModelForCausalLM.from_pretrained(
            model,
            config=config,
            dtype=DTYPES[dtype],
            use_safetensors=True,
            output_loading_info=True,
            **_SAFE,
            **options,
        )
        if found["missing_keys"]:
            names = sorted(found["missing_keys"])
            raise ValueError(f"{len(names)} tensors are missing, first {names[0]}: the files are not whole")
        if "device_map" not in options:
            loaded = loaded.to(place)
    if hasattr(loaded.config, "output_router_logits"):
        loaded.config.output_router_logits = False  # they would be kept for all layers
    return loaded.eval()


def _device(device: str) -> torch.device:
    if device == SPREAD and not _has_accelerate():
        raise ValueError("device=spread needs accelerate, which is not installed: pip install accelerate")
    if device in ("auto", SPREAD):
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        torch.empty(0, device=device)
        return torch.device(device)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise ValueError(f"device={device} cannot be used ({reason}): give auto, cpu, cuda, cuda:N or spread") from None


def _has_accelerate() -> bool:
    return importlib.util.find_spec("accelerate") is not None


def quantisation(config: Any) -> str:
    """How the checkpoint's weights are quantised; "" if they are not."""
    found = getattr(config, "quantization_config", None) or {}
    method = found.get("quant_method", "") if isinstance(found, dict) else found.quant_method
    return str(getattr(method, "value", method))


@contextmanager
def _loading(model: str, what: str) -> Iterator[None]:
    """Whatever the libraries raise becomes one line that names the model; bars are for terminals."""
    messages = transformers.utils.logging
    before = messages.get_verbosity()
    messages.set_verbosity_error()
    if not sys.stderr.isatty():
        messages.disable_progress_bar()
        huggingface_hub.utils.disable_progress_bars()
    try:
        yield
    except Exception as error:  # of a damaged or foreign model they raise almost anything
        text = " ".join(str(error).split())
        raise ValueError(f"model={model}: {what} cannot be loaded ({type(error).__name__}: {text})") from None
    finally:
        messages.set_verbosity(before)

"""The trained sample model on disk: weights as safetensors, sizes and vocabulary as its metadata."""

import dataclasses
import json
from pathlib import Path
from typing import Any

from safetensors.torch import save_file

from grace_opt.atomic import write_atomically
from runtime.sample.model import SampleConfig, SampleMoE
from runtime.sample.text import Tokenizer
from runtime.weights import open_safetensors

FORMAT, VERSION = "grace-sample-model", "1"


def save_model(path: Path, model: SampleMoE, tokenizer: Tokenizer) -> None:
    """Write model and tokenizer to one file, whole or not at all."""
    metadata = {
        "format": FORMAT,
        "version": VERSION,
        "config": json.dumps(dataclasses.asdict(model.config)),
        "pieces": json.dumps([piece.decode("latin-1") for piece in tokenizer.pieces]),
    }
    write_atomically(path, lambda temporary: save_file(model.state_dict(), temporary, metadata=metadata))


def load_model(path: Path) -> tuple[SampleMoE, Tokenizer]:
    """Read what `save_model` wrote.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is not a sample model of this version.
    """
    config, tokenizer, file = open_model(path)
    model = SampleMoE(config)
    model.load_state_dict({name: file.get_tensor(name) for name in model.state_dict()})
    return model.eval(), tokenizer


def open_model(path: Path) -> tuple[SampleConfig, Tokenizer, Any]:
    """Sizes and vocabulary of a sample model, and the file, its weights still to be read; raises as `load_model`."""
    if not path.is_file():
        raise FileNotFoundError(f"sample model {path} does not exist: train it with python -m runtime.sample")
    file = open_safetensors(path)
    metadata = file.metadata() or {}
    found = metadata.get("format"), metadata.get("version")
    if found != (FORMAT, VERSION):
        raise ValueError(f"{path}: format must be {FORMAT} version {VERSION}, got {found[0]} version {found[1]}")
    pieces = tuple(piece.encode("latin-1") for piece in json.loads(metadata["pieces"]))
    return SampleConfig(**json.loads(metadata["config"])), Tokenizer(pieces), file

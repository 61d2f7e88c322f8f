"""The trained sample model on disk: weights as safetensors, sizes and vocabulary as its metadata."""

import dataclasses
import json
from pathlib import Path

from safetensors import safe_open
from safetensors.torch import save_file

from grace_opt.atomic import write_atomically
from runtime.sample.model import SampleConfig, SampleMoE
from runtime.sample.text import Tokenizer

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
    if not path.is_file():
        raise FileNotFoundError(f"sample model {path} does not exist: train it with python -m runtime.sample")
    with safe_open(path, framework="pt") as file:
        metadata = file.metadata() or {}
        found = metadata.get("format"), metadata.get("version")
        if found != (FORMAT, VERSION):
            raise ValueError(f"{path}: format must be {FORMAT} version {VERSION}, got {found[0]} version {found[1]}")
        weights = {name: file.get_tensor(name) for name in list(file.keys())}
    model = SampleMoE(SampleConfig(**json.loads(metadata["config"])))
    model.load_state_dict(weights)
    return model.eval(), Tokenizer(tuple(piece.encode("latin-1") for piece in json.loads(metadata["pieces"])))

"""`grace-opt record`: a model of transformers reads text, and which experts it chooses becomes traces.

torch and transformers are imported when a model is about to be read, so that help and mistakes need neither.
"""

import copy
import importlib.util
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from grace_opt.interrupts import interrupts_held
from grace_opt.model import MoEModel
from grace_opt.model_file import write_model
from runtime.recording.recording import Recording, Traces
from runtime.recording.text import Sequences, read_sequences, text_files


@dataclass(frozen=True)
class Files:
    """Where everything goes.

    Attributes:
        prefill, decode: traces; the second only if something is decoded.
        model: sizes of the model, for `model=custom model.path=FILE`.
    """

    prefill: Path
    decode: Path
    model: Path

    @classmethod
    def at(cls, output: str, decodes: bool, overwrite: bool) -> "Files":
        """Files named after `output`.

        Raises:
            ValueError, FileExistsError: `output` is no name of a trace, or a file is in the way.
        """
        target = Path(output)
        if target.suffix != ".safetensors":
            raise ValueError(f"output={output} must name a .safetensors file")
        files = cls(target, target.with_name(f"{target.stem}_decode.safetensors"), target.with_suffix(".yaml"))
        for path in (files.prefill, files.model, *[files.decode] * decodes):
            if path.exists() and not overwrite:
                raise FileExistsError(f"{path} exists: give another output, or overwrite=true")
        return files


def record(
    model: str,
    text: str | Sequence[str],
    output: str,
    name: str | None = None,
    domain: str | None = None,
    field: str | None = None,
    tokens_per_sequence: int = 512,
    max_sequences: int = 256,
    batch: int = 8,
    decode_tokens: int = 0,
    temperature: float = 0.0,
    seed: int = 0,
    device: str = "auto",
    dtype: str = "auto",
    overwrite: bool = False,
) -> None:
    """Read text with a model; write a trace of prefill, one of decode if asked for, and the model's sizes.

    Args:
        model: folder, or name on the Hugging Face hub.
        text: files and patterns (see `text.py`).
        output: trace to write; the other files stand beside it.
        name: of the model; None: the last part of `model`.
        domain, field, tokens_per_sequence, max_sequences: see `read_sequences`.
        batch: sequences that run at once.
        decode_tokens, temperature, seed: see `Reader`.
        device, dtype: see `load_model`.
        overwrite: replace files that are there.

    Raises:
        ValueError: no model that can be recorded, no text, or no room; one line says which.
        FileExistsError: a file is already there.
        KeyboardInterrupt: Ctrl-C, with what was written of the sequences that were done.
    """
    if batch < 1 or decode_tokens < 0 or not 0 <= temperature < float("inf"):
        raise ValueError(
            "batch must be at least 1, decode_tokens and temperature at least 0, "
            f"got {batch}, {decode_tokens}, {temperature}"
        )
    if temperature and not decode_tokens:
        raise ValueError(f"temperature={temperature} is of tokens that are generated: give decode_tokens=N too")
    if seed and not temperature:
        warnings.warn(f"seed={seed} has no effect: nothing is drawn unless temperature is above 0", stacklevel=2)
    files, paths = Files.at(output, decode_tokens > 0, overwrite), text_files(text)
    _require_transformers()
    from runtime.recording import loading

    config = loading.load_config(model)
    _check(model, config, tokens_per_sequence + decode_tokens)
    tokenizer = loading.load_tokenizer(model, config.vocab_size)
    sequences = read_sequences(paths, tokenizer, tokens_per_sequence, max_sequences, field, domain)
    loaded = loading.load_model(model, copy.deepcopy(config), device, dtype)
    recording = Recording.of(loaded, config, name or Path(model).resolve().name)
    about = f"{_source(model, config, loaded)}, reading {_names(paths)}"
    with _progress(recording.model.name, len(sequences.tokens)) as watch:
        traces = recording.run(sequences, batch, decode_tokens, temperature, seed, files.prefill.parent, watch)
    with interrupts_held():  # two traces and the sizes belong together
        _write(files, recording.model, sequences, traces, about)
    done = f"{len(traces.done)} of {len(sequences.tokens)} sequences are in {files.prefill}"
    if isinstance(traces.ended_by, KeyboardInterrupt):
        raise KeyboardInterrupt(done if traces.done else "no sequence was done, nothing is written")
    if traces.ended_by is not None:
        raise ValueError(f"{traces.ended_by}{f'; {done}' * bool(traces.done)}") from None


def _require_transformers() -> None:
    missing = [name for name in ("torch", "transformers") if importlib.util.find_spec(name) is None]
    if missing:
        raise ValueError(f"record needs {missing[0]}, which is not installed: pip install 'grace-opt[record]'")


def _check(model: str, config: Any, longest: int) -> None:
    """Raise ValueError if the architecture is unknown, or sequences are longer than it can read."""
    from runtime.recording.architectures import architecture_of

    try:
        architecture_of(config)
    except ValueError as error:
        raise ValueError(f"model={model}: {error}") from None
    limit = getattr(config, "max_position_embeddings", longest)
    if longest > limit:
        raise ValueError(
            f"tokens_per_sequence + decode_tokens is {longest}, but model={model} reads {limit} at most: give fewer"
        )


def _write(files: Files, model: MoEModel, sequences: Sequences, traces: Traces, about: str) -> None:
    """Write what is done and say so; nothing if nothing is."""
    if not traces.done:
        return
    if len(traces.done) == 1:
        warnings.warn("there is one sequence only: no split into fit and held-out parts can divide it", stacklevel=3)
    if traces.ended_by is not None:
        about += f", ended after {len(traces.done)} of {len(sequences.tokens)} sequences"
    for phase, path in (("prefill", files.prefill), ("decode", files.decode)):
        said = traces.write(path, phase, model, sequences, about)
        if said:
            print(f"wrote {path}: {said}")
            continue
        if traces.decode is not None:
            warnings.warn("no token was decoded: every sequence ended where its text does", stacklevel=3)
        if path.exists():
            warnings.warn(f"{path} is of an earlier recording", stacklevel=3)
    write_model(files.model, model, f"{about.split(', reading')[0]}, as grace-opt record found it")
    print(f"wrote {files.model}: sizes of the model")
    _say_how_to_plan(files, model)


def _say_how_to_plan(files: Files, model: MoEModel) -> None:
    from runtime.recording.description import same_sizes

    chosen = f"model=custom model.path={files.model}"
    for choice, preset in same_sizes(model).items():
        if preset == model.name:
            chosen = f"model={choice}"
        else:
            print(f"its sizes are those of model={choice}; a trace recorded with name={preset} is taken for one of it")
    print(f"\nplan on it, with the topology=... of your cluster:\n  grace-opt plan {chosen} trace.path={files.prefill}")


def _source(model: str, config: Any, loaded: Any) -> str:
    import torch
    import transformers

    commit = getattr(config, "_commit_hash", None)
    dtype, device = str(loaded.dtype).removeprefix("torch."), loaded.get_input_embeddings().weight.device.type
    return (
        f"{model}{f' at {commit[:12]}' if commit else ''} ({dtype} on {device}, "
        f"transformers {transformers.__version__}, torch {torch.__version__})"
    )


def _names(paths: Sequence[Path]) -> str:
    return ", ".join(path.name for path in paths[:3]) + f" and {len(paths) - 3} more" * (len(paths) > 3)


@contextmanager
def _progress(name: str, total: int) -> Iterator[Callable[[int], None]]:
    """A bar of sequences on a terminal; elsewhere nothing."""
    console = Console(stderr=True)
    columns = (TextColumn("recording {task.description}"), BarColumn(), MofNCompleteColumn(), TextColumn("sequences"))
    with Progress(
        *columns, TimeElapsedColumn(), TimeRemainingColumn(), console=console, transient=True,
        disable=not console.is_terminal,
    ) as bar:  # fmt: skip
        task = bar.add_task(name, total=total)
        yield lambda done: bar.update(task, advance=done)

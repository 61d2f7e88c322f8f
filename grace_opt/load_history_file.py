"""Load histories on disk: a safetensors file with `counts` int64 [steps, L, E], mapped when read.

Its metadata are format, version, model, top_k, first_moe_layer, phase and source.
"""

from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from grace_opt.load_history import LoadHistory
from grace_opt.tensor_file import map_tensors, read_header, write_tensors
from grace_opt.trace import Trace
from grace_opt.trace_file import read_trace

FORMAT, VERSION = "grace-loads", "1"


def write_load_history(path: str | Path, history: LoadHistory, chunk: int = 1024) -> None:
    """Write a load history, whole or not at all, `chunk` steps at a time."""
    metadata = {
        "format": FORMAT,
        "version": VERSION,
        "model": history.model,
        "top_k": str(history.top_k),
        "first_moe_layer": str(history.first_moe_layer),
        "phase": history.phase,
        "source": history.source,
    }

    def fill(tensors: dict[str, NDArray[Any]]) -> None:
        for start in range(0, history.num_steps, chunk):
            tensors["counts"][start : start + chunk] = history.counts[start : start + chunk]

    write_tensors(Path(path), {"counts": ("I64", history.counts.shape)}, metadata, fill)


def read_load_history(path: str | Path) -> LoadHistory:
    """Read a load history.

    Raises:
        ValueError: what the file holds is none; the message names file and field.
        FileNotFoundError: there is no such file.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"load history {path} does not exist")
    try:
        tensors, metadata = map_tensors(path)
        return _history(tensors, metadata)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None
    except Exception as error:  # of a damaged header anything may be missing
        raise ValueError(f"{path}: damaged, or no load history ({type(error).__name__}: {error})") from error


def read_trace_or_loads(path: str | Path) -> Trace | LoadHistory:
    """A trace (see `read_trace`), or the load history that a recording of counts became; the file says which."""
    return read_load_history(path) if is_load_history(Path(path)) else read_trace(path)


def is_load_history(path: Path) -> bool:
    """Whether the metadata of a safetensors file name this format; no other check is made."""
    if path.suffix != ".safetensors" or not path.is_file():
        return False
    try:
        metadata = read_header(path)[0].get("__metadata__")
    except (ValueError, RecursionError):  # damaged: to be told by whoever reads it
        return False
    return isinstance(metadata, dict) and metadata.get("format") == FORMAT


def _history(tensors: dict[str, NDArray[Any]], metadata: dict[str, str]) -> LoadHistory:
    if metadata.get("format") != FORMAT or metadata.get("version") != VERSION:
        raise ValueError(
            f"format must be {FORMAT} version {VERSION}, "
            f"got {metadata.get('format', 'none')!r} version {metadata.get('version', 'none')!r}"
        )
    missing = [name for name in ("model", "top_k", "first_moe_layer", "phase", "source") if name not in metadata]
    missing += [name for name in ("counts",) if name not in tensors]
    if missing:
        raise ValueError(f"field {', '.join(missing)} is missing")
    numbers = {}
    for name in ("top_k", "first_moe_layer"):
        if not (metadata[name].isascii() and metadata[name].isdecimal() and len(metadata[name]) < 10):
            raise ValueError(f"{name} must be a whole number, got {metadata[name]!r}")
        numbers[name] = int(metadata[name])
    model, phase, source = metadata["model"], metadata["phase"], metadata["source"]
    return LoadHistory(tensors["counts"], numbers["top_k"], numbers["first_moe_layer"], model, phase, source)

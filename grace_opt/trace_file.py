"""Traces on disk: our safetensors file (memory-mapped when read), and the npz arrays that recordings are shared as.

The safetensors file holds `expert_ids` uint8 or uint16 [L, T, K], `sequence` uint32 [T] and `domain` uint8 [T] (one
value a token; the tokens of a sequence stand together), and as metadata format, version, model, num_experts, phase,
source, domain_names (a JSON list) and synthetic ("true" or "false"). An npz recording holds `expert_ids` [T, L, K],
`sequence` and `num_experts`, and if it likes `domain`, `domain_names`, `phase`, `model` and `synthetic`.
"""

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import save_file

from grace_opt.atomic import write_atomically
from grace_opt.tensor_file import map_tensors, write_tensors
from grace_opt.trace import Trace, check_expert_ids, sequence_bounds

FORMAT, VERSION = "grace-trace", "1"


def write_trace(
    path: str | Path,
    *,
    expert_ids: NDArray[np.unsignedinteger],
    sequence: NDArray[np.integer],
    domain: NDArray[np.integer],
    domain_names: tuple[str, ...],
    model: str,
    num_experts: int,
    phase: str,
    source: str,
    synthetic: bool = False,
) -> None:
    """Write a trace file, whole or not at all.

    Args:
        expert_ids: uint8 or uint16 [L, T, K].
        sequence, domain: [T] sequence and domain of each token.

    Raises:
        ValueError: what is given is not a valid trace.
    """
    _trace(expert_ids, sequence, domain, domain_names, model, num_experts, phase, source, synthetic)
    check_expert_ids(expert_ids, num_experts)
    if sequence.min() < 0 or sequence.max() >= 2**32:
        raise ValueError(f"sequence must be numbered from 0 to {2**32 - 1}, got {sequence.min()} to {sequence.max()}")
    if len(domain_names) > 256:
        raise ValueError(f"domain_names must name at most 256 domains, got {len(domain_names)}")
    tensors = {
        "expert_ids": np.ascontiguousarray(expert_ids),
        "sequence": np.ascontiguousarray(sequence, dtype=np.uint32),
        "domain": np.ascontiguousarray(domain, dtype=np.uint8),
    }
    metadata = {
        "format": FORMAT,
        "version": VERSION,
        "model": model,
        "num_experts": str(num_experts),
        "phase": phase,
        "source": source,
        "domain_names": json.dumps(list(domain_names)),
        "synthetic": str(synthetic).lower(),
    }
    write_atomically(Path(path), lambda temporary: save_file(tensors, temporary, metadata=metadata))


def write_token_major(
    path: Path,
    pieces: Iterable[NDArray[np.unsignedinteger]],
    lengths: Sequence[int],
    domains: Sequence[int],
    *,
    num_layers: int,
    top_k: int,
    domain_names: Sequence[str],
    model: str,
    num_experts: int,
    phase: str,
    source: str,
) -> None:
    """Write a trace from choices that come token by token, as they are recorded; none but one piece is held.

    Args:
        pieces: [t, L, K], tokens of all sequences in order, cut anywhere; ids are checked by who made them.
        lengths, domains: [Q] tokens and domain of each sequence.
    """
    num_tokens = int(np.sum(lengths))
    layout = {
        "sequence": ("U32", (num_tokens,)),
        "expert_ids": ("U8" if num_experts <= 256 else "U16", (num_layers, num_tokens, top_k)),
        "domain": ("U8", (num_tokens,)),
    }
    metadata = {
        "format": FORMAT, "version": VERSION, "model": model, "num_experts": str(num_experts), "phase": phase,
        "source": source, "domain_names": json.dumps(list(domain_names)), "synthetic": "false",
    }  # fmt: skip

    def fill(tensors: dict[str, NDArray[Any]]) -> None:
        start = 0
        for ids_TLK in pieces:
            tensors["expert_ids"][:, start : start + len(ids_TLK)] = ids_TLK.transpose(1, 0, 2)
            start += len(ids_TLK)
        assert start == num_tokens
        tensors["sequence"][:] = np.repeat(np.arange(len(lengths), dtype=np.uint32), lengths)
        tensors["domain"][:] = np.repeat(np.array(domains, np.uint8), lengths)

    write_tensors(path, layout, metadata, fill)


def read_trace(path: str | Path) -> Trace:
    """Read a trace, .safetensors (memory-mapped) or .npz, and check every expert id once.

    An .npz recording need not name its model; `trace.model` is then "", and only shapes tell it from other models.

    Raises:
        ValueError: what the file holds is not a trace; the message names file and field.
        FileNotFoundError: there is no such file.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"trace file {path} does not exist: give trace.path=FILE (.safetensors or .npz)")
    readers = {".safetensors": _read_safetensors, ".npz": _read_npz}
    if path.suffix not in readers:
        raise ValueError(f"{path}: a trace is a .safetensors or .npz file, got {path.suffix or 'no suffix'!r}")
    try:
        trace = readers[path.suffix](path)
        check_expert_ids(trace.expert_ids, trace.num_experts)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None
    except Exception as error:  # of a damaged file the libraries beneath raise almost anything
        raise ValueError(f"{path}: damaged, or no trace ({type(error).__name__}: {error})") from error
    return trace


def _trace(
    expert_ids: NDArray[np.unsignedinteger],
    sequence: NDArray[np.integer],
    domain: NDArray[np.integer],
    domain_names: tuple[str, ...],
    model: str,
    num_experts: int,
    phase: str,
    source: str,
    synthetic: bool,
) -> Trace:
    num_tokens = expert_ids.shape[1] if expert_ids.ndim == 3 else -1
    for name, array in (("sequence", sequence), ("domain", domain)):
        if array.shape != (num_tokens,) or not np.issubdtype(array.dtype, np.integer):
            raise ValueError(
                f"{name} must hold one integer for each of the {num_tokens} tokens of expert_ids "
                f"{expert_ids.shape}, got {array.dtype} {array.shape}"
            )
    if num_tokens == 0:
        raise ValueError("expert_ids: there are no tokens")
    starts, stops = sequence_bounds(sequence)
    if (domain != np.repeat(domain[starts], stops - starts)).any():
        raise ValueError("domain changes inside a sequence; a sequence belongs to one domain")
    return Trace(
        expert_ids, starts, stops, domain[starts].astype(np.int64), domain_names, num_experts, model, phase, source,
        synthetic,
    )  # fmt: skip


def _read_safetensors(path: Path) -> Trace:
    tensors, metadata = map_tensors(path)
    if metadata.get("format") != FORMAT or metadata.get("version") != VERSION:
        raise ValueError(
            f"format must be {FORMAT} version {VERSION}, "
            f"got {metadata.get('format', 'none')!r} version {metadata.get('version', 'none')!r}"
        )
    fields = ("model", "num_experts", "phase", "source", "domain_names", "synthetic")
    missing = [name for name in fields if name not in metadata]
    missing += [name for name in ("expert_ids", "sequence", "domain") if name not in tensors]
    if missing:
        raise ValueError(f"field {', '.join(missing)} is missing")
    for name in ("expert_ids", "sequence", "domain"):
        if not np.issubdtype(tensors[name].dtype, np.unsignedinteger):
            raise ValueError(f"{name} has dtype {tensors[name].dtype}; a trace holds unsigned integers")
    if metadata["synthetic"] not in ("true", "false"):
        raise ValueError(f"synthetic must be true or false, got {metadata['synthetic']!r}")
    return _trace(
        tensors["expert_ids"], tensors["sequence"], tensors["domain"], _domain_names(metadata["domain_names"]),
        metadata["model"], _num_experts(metadata["num_experts"]), metadata["phase"], metadata["source"],
        metadata["synthetic"] == "true",
    )  # fmt: skip


def _domain_names(text: str) -> tuple[str, ...]:
    try:
        names = json.loads(text)
    except json.JSONDecodeError:
        names = None
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise ValueError(f"domain_names must be a JSON list of names, got {text!r}")
    return tuple(names)


def _num_experts(value: object) -> int:
    if not str(value).isdecimal():
        raise ValueError(f"num_experts must be one whole number, got {value}")
    return int(str(value))


def _read_npz(path: Path) -> Trace:
    loaded = np.load(path, allow_pickle=False)
    if not isinstance(loaded, np.lib.npyio.NpzFile):
        raise ValueError("it holds one array, not the named arrays of an .npz file")
    with loaded as arrays:

        def read(name: str, default: object = None) -> NDArray[Any]:
            try:
                return np.asarray(arrays.get(name, default))
            except ValueError as error:  # an array of objects would be unpickled, which runs code of the file's author
                raise ValueError(f"{name}: {error}") from None

        missing = [n for n in ("expert_ids", "sequence", "num_experts") if n not in arrays]
        if missing:
            raise ValueError(f"field {', '.join(missing)} is missing; it holds {', '.join(arrays.files)}")
        ids_TLK = read("expert_ids")
        if ids_TLK.ndim != 3 or ids_TLK.dtype not in (np.uint8, np.uint16):
            raise ValueError(
                f"expert_ids must be uint8 or uint16 [tokens, layers, top_k], got {ids_TLK.dtype} {ids_TLK.shape}"
            )
        sequence, num_experts = read("sequence"), _num_experts(read("num_experts"))
        domain = read("domain", np.zeros(len(ids_TLK), np.uint8))
        names, phase, model = read("domain_names", ["all"]), str(read("phase", "mixed")), str(read("model", ""))
        synthetic = bool(read("synthetic", False).any())
        if names.ndim != 1:
            raise ValueError(f"domain_names must be a list of names, got {names}")
    ids_LTK = np.ascontiguousarray(ids_TLK.transpose(1, 0, 2))
    return _trace(ids_LTK, sequence, domain, tuple(map(str, names)), model, num_experts, phase, path.name, synthetic)

"""`grace-opt import`: what a serving engine recorded, to a trace or, where it only counted, to a load history."""

import tempfile
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import chain
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

from grace_opt.load_history import LoadHistory
from grace_opt.load_history_file import write_load_history
from grace_opt.model import MoEModel
from grace_opt.recordings.recording import Source, Step, Tokens, Watch
from grace_opt.trace_file import write_token_major

CHUNK_BYTES = 1 << 26


def import_recording(
    model: MoEModel,
    source: Source,
    path: str | Sequence[str],
    output: str,
    phase: str | None = None,
    domain: str = "all",
) -> None:
    """Read a recording piece by piece and write it as one file of this project, whole or not at all.

    Args:
        path: a file, a folder of files, or a list of them: several ranks', or several dumps'.
        output: file to write, .safetensors.
        phase: prefill or decode, to keep only those tokens; None keeps all.
        domain: what the text is of, for `split=domain`.

    Raises:
        ValueError: the recording is damaged, incomplete or of another model; one line names file and field.
    """
    if phase not in (None, "prefill", "decode"):
        raise ValueError(f"phase must be prefill or decode, or null for both, got {phase!r}")
    target = Path(output)
    if target.suffix != ".safetensors":
        raise ValueError(f"output={output} must name a .safetensors file")
    paths = files_at(path, source.suffixes)
    about = f"{source.title}: {paths[0].name}" + f" and {len(paths) - 1} more" * (len(paths) > 1)
    with _progress(target.name) as watch:
        pieces = iter(source(paths, model, watch))
        first = next(pieces, None)
        if first is None:
            raise ValueError(f"{paths[0]}: nothing was recorded, all of it is empty or padding")
        if isinstance(first, Step) and phase is not None:
            raise ValueError(f"phase={phase}: counts do not say which are of prompts; record the phases apart")
        pieces = chain([first], pieces)
        target.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=target.parent) as spool:
            if isinstance(first, Step):
                text = _write_loads(spool, pieces, model, target, about)
            else:
                text = _write_trace(spool, pieces, model, target, phase, about, domain)
    print(f"wrote {target}: {text}")


def files_at(path: str | Sequence[str], suffixes: tuple[str, ...]) -> list[Path]:
    """The files with these suffixes that a path names or that lie in it; without suffixes, the folders themselves."""
    given = [Path(p) for p in ([path] if isinstance(path, str) else path)]
    found: list[Path] = []
    for place in given:
        if not place.exists():
            raise FileNotFoundError(f"path={place} does not exist: give a recording, or a folder of one")
        if suffixes and place.is_dir():
            found += [file for suffix in suffixes for file in sorted(place.glob(f"*{suffix}"))]
        elif place.is_dir() == (not suffixes) and (not suffixes or place.suffix in suffixes):
            found.append(place)
        else:
            expected = f"a {' or '.join(suffixes)} file" if suffixes else "the folder with meta_info.json"
            raise ValueError(f"path={place}: expected {expected}, or another source=")
    if not found:
        raise ValueError(f"path={path}: there is no {' or '.join(suffixes)} file")
    if len({file.resolve() for file in found}) < len(found):
        raise ValueError(f"path={path}: a file is given twice")
    return found


def _write_loads(spool: IO[bytes], pieces: Iterator[Any], model: MoEModel, target: Path, about: str) -> str:
    for piece in pieces:
        spool.write(piece.counts.tobytes())
    counts_SLE = _mapped(spool, np.int64).reshape(-1, model.num_layers, model.num_experts)
    history = LoadHistory(counts_SLE, model.top_k, model.first_moe_layer, model.name, source=about)
    write_load_history(target, history)
    return (
        f"a load history of {model.name}, {history.num_steps} steps of {_layers(model)}, {history.num_tokens} tokens; "
        "counts only: it can be planned by load (planner=eplb), not by who is chosen with whom"
    )


def _write_trace(
    spool: IO[bytes], pieces: Iterator[Any], model: MoEModel, target: Path, phase: str | None, about: str, domain: str
) -> str:
    """Spool the choices token-major as they come, then write them layer-major."""
    dtype = np.uint8 if model.num_experts <= 256 else np.uint16
    lengths: list[int] = []
    domains: dict[str, int] = {}  # number of each name
    domain_Q: list[int] = []
    phases: set[str] = set()
    for piece in pieces if phase is None else (_of_phase(piece, phase) for piece in pieces):
        kinds = {None} if piece.prefill is None else set(np.unique(piece.prefill).tolist())
        phases |= {{True: "prefill", False: "decode", None: "mixed"}[kind] for kind in kinds}
        spool.write(np.ascontiguousarray(piece.expert_ids, dtype).tobytes())
        kept = [n for n in piece.lengths if n]
        lengths += kept
        domain_Q += [domains.setdefault(piece.domain or domain, len(domains))] * len(kept)
    if len(domains) > 256:
        raise ValueError(f"the recording names {len(domains)} domains; a trace holds at most 256")
    if not lengths:
        raise ValueError(f"phase={phase}: the recording has no such tokens")
    if len(lengths) == 1:
        warnings.warn("there is one sequence only: no split into fit and held-out parts can divide it", stacklevel=3)
    ids_TLK = _mapped(spool, dtype).reshape(-1, model.num_layers, model.top_k)
    now = phases.pop() if len(phases) == 1 else "mixed"
    step = max(CHUNK_BYTES // ids_TLK[0].nbytes, 1)
    write_token_major(
        target, (ids_TLK[start : start + step] for start in range(0, len(ids_TLK), step)), lengths, domain_Q,
        num_layers=model.num_layers, top_k=model.top_k, domain_names=list(domains), model=model.name,
        num_experts=model.num_experts, phase=now, source=about,
    )  # fmt: skip
    return (
        f"a trace of {model.name}, {len(ids_TLK)} tokens in {len(lengths)} sequences, {_layers(model)}, "
        f"top-{model.top_k}, {now}"
    )


def _of_phase(piece: Tokens, phase: str) -> Tokens:
    """The tokens of one phase."""
    if piece.prefill is None:
        raise ValueError(f"phase={phase}: part of the recording does not say which tokens are of prompts")
    keep_T = piece.prefill if phase == "prefill" else ~piece.prefill
    ends = np.cumsum(piece.lengths)
    kept = np.diff(np.concatenate(([0], np.cumsum(keep_T)[ends - 1])))
    return Tokens(piece.expert_ids[keep_T], kept.tolist(), piece.prefill[keep_T], piece.domain)


def _mapped(spool: IO[bytes], dtype: Any) -> NDArray[Any]:
    spool.flush()
    if not spool.tell():
        return np.empty(0, dtype)
    return np.memmap(spool, dtype, "r")


def _layers(model: MoEModel) -> str:
    return f"{model.num_layers} MoE layers ({model.layer_ids[0]} to {model.layer_ids[-1]}), {model.num_experts} experts"


@contextmanager
def _progress(name: str) -> Iterator[Watch]:
    """A bar on a terminal; elsewhere nothing."""
    console = Console(stderr=True)
    columns = (TextColumn("importing {task.description}"), BarColumn(), TextColumn("{task.percentage:.0f} %"))
    with Progress(
        *columns, TimeElapsedColumn(), console=console, transient=True, disable=not console.is_terminal
    ) as bar:
        task = bar.add_task(name, total=1.0)

        def watch(share: float) -> None:
            bar.update(task, completed=share)

        yield watch

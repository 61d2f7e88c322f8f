"""Recordings as plain arrays: histories of loads in JSON or .npz, and this project's own files."""

import json
import math
import zipfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from grace_opt.load_history_file import is_load_history, read_load_history
from grace_opt.model import MoEModel
from grace_opt.npy_bytes import read_npy_header
from grace_opt.recordings.recording import WHOLE_BYTES, Step, Tokens, Watch, moe_choices, moe_counts, reading
from grace_opt.trace_file import read_trace

_MOST_DEFLATED = 1100
"""Deflate makes at most 1032 bytes of one; a member that claims more is none that was compressed."""


@dataclass(frozen=True)
class LoadHistoryJson:
    """{"load_history": [{"logical_expert_load": [[E numbers] of each layer]}, ...]}, as balancers are tried on."""

    title = "JSON of loads"
    suffixes = (".json",)

    def __call__(self, paths: Sequence[Path], model: MoEModel, watch: Watch) -> Iterator[Step]:
        for done, path in enumerate(paths):
            watch(done / len(paths))
            with reading(path):
                if path.stat().st_size > WHOLE_BYTES:
                    raise ValueError(f"JSON of more than {WHOLE_BYTES / 1e6:.0f} MB: write several files")
                content = json.loads(path.read_bytes())
                steps = content.get("load_history") if isinstance(content, dict) else None
                if not isinstance(steps, list):
                    raise ValueError("field load_history must be a list")
                for number, step in enumerate(steps):
                    field = f"load_history[{number}].logical_expert_load"
                    rows = step.get("logical_expert_load") if isinstance(step, dict) else None
                    if not isinstance(rows, list) or not all(isinstance(row, list) for row in rows):
                        raise ValueError(f"{field} must be a list of layers, each a list of counts")
                    if len({len(row) for row in rows}) != 1:
                        raise ValueError(f"{field}: all layers must have equally many experts")
                    if not all(type(n) is int and 0 <= n <= 2**40 for row in rows for n in row):
                        raise ValueError(f"{field} must hold whole numbers that are not negative")
                    counts_LE = moe_counts(np.array(rows, np.int64), model, field)
                    if counts_LE.any():
                        yield Step(counts_LE)


@dataclass(frozen=True)
class LoadArray:
    """One array of counts [steps, layers, E] or [layers, E] of an .npz file.

    Attributes:
        array: its name; None if the file holds only one.
    """

    array: str | None = None
    title = "array of loads"
    suffixes = (".npz",)

    def __call__(self, paths: Sequence[Path], model: MoEModel, watch: Watch) -> Iterator[Step]:
        for done, path in enumerate(paths):
            with reading(path):
                check_npz(path)
                with np.load(path, allow_pickle=False) as arrays:
                    name = self.array if self.array is not None else ", ".join(arrays.files)
                    if name not in arrays.files:
                        raise ValueError(f"give source.array=NAME, one of {', '.join(arrays.files)}; got {self.array}")
                    counts: Any = np.asarray(arrays[name])
                if counts.ndim not in (2, 3):
                    raise ValueError(f"{name} must have axes [steps, layers, experts], got {list(counts.shape)}")
                counts = counts.reshape(-1, *counts.shape[-2:])
                for step, counts_LE in enumerate(counts):
                    watch((done + step / len(counts)) / len(paths))
                    if counts_LE.any():
                        yield Step(moe_counts(counts_LE, model, name))


@dataclass(frozen=True)
class Own:
    """Traces (.safetensors, .npz) or load histories of this project: checked, merged with their domains, mapped."""

    title = "imported file"
    suffixes = (".safetensors", ".npz")

    def __call__(self, paths: Sequence[Path], model: MoEModel, watch: Watch) -> Iterator[Tokens] | Iterator[Step]:
        kinds = {is_load_history(path) for path in paths}
        if len(kinds) > 1:
            raise ValueError(f"{paths[0].parent} has traces and load histories: give path=[FILE,...] of one kind")
        return _steps(paths, model, watch) if kinds == {True} else _tokens(paths, model, watch)


def _steps(paths: Sequence[Path], model: MoEModel, watch: Watch) -> Iterator[Step]:
    for done, path in enumerate(paths):
        history = read_load_history(path)
        with reading(path):
            _check_name(history.model, model)
            for step, counts_LE in enumerate(history.counts):
                watch((done + step / history.num_steps) / len(paths))
                yield Step(moe_counts(counts_LE, model, "counts"))


def _tokens(paths: Sequence[Path], model: MoEModel, watch: Watch) -> Iterator[Tokens]:
    for done, path in enumerate(paths):
        if path.suffix == ".npz":
            with reading(path):
                check_npz(path)
        trace = read_trace(path)
        if trace.synthetic:
            raise ValueError(f"{path}: a synthetic trace is no recording; use it as it is, with trace.path={path}")
        phase = {"prefill": True, "decode": False}.get(trace.phase)
        with reading(path):
            _check_name(trace.model, model)
            bounds = zip(trace.starts.tolist(), trace.stops.tolist(), trace.domains.tolist(), strict=True)
            for start, stop, domain in bounds:
                watch((done + start / trace.expert_ids.shape[1]) / len(paths))
                ids_LTK = np.asarray(trace.expert_ids[:, start:stop])
                prefill = None if phase is None else np.full(stop - start, phase)
                ids_TLK = moe_choices(ids_LTK.transpose(1, 0, 2), model, "expert_ids")
                yield Tokens(ids_TLK, [stop - start], prefill, trace.domain_names[domain])


def _check_name(recorded: str, model: MoEModel) -> None:
    if recorded and recorded != model.name:
        raise ValueError(f"recorded from model {recorded}, but the model given is {model.name}: give model=NAME")


def check_npz(path: Path) -> None:
    """Refuse members that claim more than deflate can make of their bytes, before anything is allocated."""
    with zipfile.ZipFile(path) as archive:
        for info in archive.infolist():
            if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
                raise ValueError(f"{info.filename} is compressed in a way that numpy never writes")
            if info.file_size > _MOST_DEFLATED * max(info.compress_size, 1) or info.compress_size > path.stat().st_size:
                raise ValueError(f"{info.filename} claims {info.file_size} bytes: damaged")
            with archive.open(info) as member:
                shape, _, dtype = read_npy_header(member)
                count = math.prod(shape)
                if dtype.hasobject:
                    raise ValueError(f"{info.filename} holds objects, which would be unpickled; allow_pickle=False")
                if member.tell() + count * dtype.itemsize != info.file_size:
                    raise ValueError(f"{info.filename} claims {count} numbers, but its bytes are others: damaged")

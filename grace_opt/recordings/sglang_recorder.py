"""What SGLang's expert distribution recorder dumps (`--expert-distribution-recorder-mode`), as of version 0.5.

    stat       logical_count int32 [steps, layers, E], summed over ranks; a ring of which unused steps are zero
    per_pass   a file a rank: records with forward_pass_id, rank and global_physical_count [layers, P], and the
               last_physical_to_logical_map [layers, P]
    per_token  the same records with topk_ids_of_layer [layers, tokens, 8] of physical experts, -1 where nothing was
               chosen, forward_mode, and of prompts extend_seq_lens

Layers are all hidden layers; dense ones are zero, or -1. There are no request ids: a piece of a prompt is a sequence,
and so are the tokens that one rank generates in one pass.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from grace_opt.model import MoEModel
from grace_opt.recordings.passes import by_pass, check_map, distinct, fold, warn_of_passes_as_sequences
from grace_opt.recordings.recording import Step, Tokens, Watch, moe_choices, moe_counts, reading
from grace_opt.recordings.torch_file import read_torch

_PROMPT_MODES, _DECODE_MODE = (1, 8), 2  # ForwardMode EXTEND and SPLIT_PREFILL, DECODE


@dataclass(frozen=True)
class Stat:
    """Counts of logical experts, one file a dump."""

    title = "SGLang recorder, stat"
    suffixes = (".pt",)

    def __call__(self, paths: Sequence[Path], model: MoEModel, watch: Watch) -> Iterator[Step]:
        for done, path in enumerate(paths):
            with reading(path):
                counts_SLE = _tensor(_field(read_torch(path), "logical_count"), "logical_count", 3)
                for step, counts in enumerate(counts_SLE):
                    watch((done + step / len(counts_SLE)) / len(paths))
                    if counts.any():
                        yield Step(moe_counts(counts, model, "logical_count"))


@dataclass(frozen=True)
class PerPass:
    """Counts of physical experts, one file a rank."""

    title = "SGLang recorder, per_pass"
    suffixes = (".pt",)

    def __call__(self, paths: Sequence[Path], model: MoEModel, watch: Watch) -> Iterator[Step]:
        with reading(paths[0].parent):
            passes = by_pass(_records(paths, model))
            for done, ranks in enumerate(passes):
                watch(done / len(passes))
                counts_LE: NDArray[np.int64] | int = 0
                for _, (path, record, logical_LP) in ranks:
                    with reading(path):
                        name = "global_physical_count"
                        counts_LP = _tensor(_field(record, name), name, 2)
                        _require_shape(counts_LP.shape, logical_LP.shape, name)
                        counts_LE = counts_LE + moe_counts(fold(counts_LP, logical_LP, model.num_experts), model, name)
                if np.any(counts_LE):
                    yield Step(np.asarray(counts_LE))


@dataclass(frozen=True)
class PerToken:
    """Choices of tokens, one file a rank."""

    title = "SGLang recorder, per_token"
    suffixes = (".pt",)

    def __call__(self, paths: Sequence[Path], model: MoEModel, watch: Watch) -> Iterator[Tokens]:
        with reading(paths[0].parent):
            passes, generated = by_pass(_records(paths, model)), False
            for done, ranks in enumerate(passes):
                watch(done / len(passes))
                items = dict(ranks)
                recorded = [(rank, _ids(*items[rank][:2])) for rank in items]
                for rank, ids_LTK in distinct(recorded):
                    path, record, logical_LP = items[rank]
                    with reading(path):
                        for piece in _tokens(ids_LTK, record, logical_LP, model):
                            generated = generated or record.get("forward_mode") not in _PROMPT_MODES
                            yield piece
        if generated:
            warn_of_passes_as_sequences()


Record = tuple[Path, dict[str, Any], NDArray[np.int64]]


def _records(paths: Sequence[Path], model: MoEModel) -> Iterator[tuple[int, int, Record]]:
    """(pass, rank, (file, record, map)) of all files."""
    for path in paths:
        with reading(path):
            saved = read_torch(path)
            name = "last_physical_to_logical_map"
            logical_LP = check_map(_tensor(_field(saved, name), name, 2), model, name)
            records = _field(saved, "records")
            if type(records) is not list:
                raise ValueError("records must be a list")
            for record in records:
                number, rank = _field(record, "forward_pass_id"), _field(record, "rank")
                if type(number) is not int or type(rank) is not int:
                    raise ValueError(f"forward_pass_id {number!r} and rank {rank!r} must be whole numbers")
                yield number, rank, (path, record, logical_LP)


def _ids(path: Path, record: dict[str, Any]) -> NDArray[Any]:
    with reading(path):
        return _tensor(_field(record, "topk_ids_of_layer"), "topk_ids_of_layer", 3)


def _tokens(
    ids_LTK: NDArray[Any], record: dict[str, Any], logical_LP: NDArray[np.int64], model: MoEModel
) -> Iterator[Tokens]:
    """The tokens of one record, none if they are all padding."""
    name = "topk_ids_of_layer"
    _require_shape(ids_LTK.shape[:1], logical_LP.shape[:1], name)
    lengths, prefill = _sequences(record, ids_LTK.shape[1])
    chosen_LT = (ids_LTK >= 0).sum(axis=2)
    real_T = chosen_LT.max(axis=0, initial=0) > 0
    if not real_T.any():
        return
    lengths = np.add.reduceat(real_T.astype(np.int64), np.cumsum([0, *lengths[:-1]])).tolist()
    ids_LTK, chosen_LT = ids_LTK[:, real_T], chosen_LT[:, real_T]
    moe_L = chosen_LT.any(axis=1)
    if not moe_L[-model.num_layers :].all():
        layer = int(np.flatnonzero(~moe_L)[-1])
        raise ValueError(f"{name}: no token chose an expert in layer {layer}, which has experts in model {model.name}")
    if (chosen_LT[moe_L] != model.top_k).any():
        odd = chosen_LT[moe_L][chosen_LT[moe_L] != model.top_k][0]
        raise ValueError(f"{name}: a token chose {odd} experts in a layer, but {model.top_k} in model {model.name}")
    if (ids_LTK[moe_L][..., : model.top_k] < 0).any() or ids_LTK.max() >= logical_LP.shape[1]:
        raise ValueError(
            f"{name} must name physical experts 0..{logical_LP.shape[1] - 1}, first those chosen and then -1; "
            f"got up to {ids_LTK.max()}"
        )
    ids_LTK = np.maximum(ids_LTK[..., : model.top_k], 0)
    logical_LTK = np.where(moe_L[:, None, None], logical_LP[np.arange(len(ids_LTK))[:, None, None], ids_LTK], 0)
    ids_TLK = moe_choices(logical_LTK.transpose(1, 0, 2), model, name)
    yield Tokens(ids_TLK, [n for n in lengths if n], None if prefill is None else np.full(len(ids_TLK), prefill))


def _sequences(record: dict[str, Any], num_tokens: int) -> tuple[list[int], bool | None]:
    """Tokens of each sequence of a record, and whether they are of prompts (None: both kinds)."""
    mode, lengths = record.get("forward_mode"), record.get("extend_seq_lens")
    if mode == _DECODE_MODE or lengths is None:
        return [num_tokens], False if mode == _DECODE_MODE else None
    if type(lengths) is not list or not all(type(n) is int and n >= 0 for n in lengths) or sum(lengths) != num_tokens:
        raise ValueError(f"extend_seq_lens must be lengths of sequences that add up to {num_tokens} tokens")
    return [n for n in lengths if n], True if mode in _PROMPT_MODES else None


def _field(value: Any, name: str) -> Any:
    if type(value) is not dict or name not in value:
        held = ", ".join(value) if type(value) is dict else type(value).__name__
        raise ValueError(f"field {name} is missing; found {held[:100]}: another recorder mode?")
    return value[name]


def _tensor(value: Any, name: str, num_axes: int) -> NDArray[Any]:
    if not isinstance(value, np.ndarray) or value.ndim != num_axes or not np.issubdtype(value.dtype, np.integer):
        what = f"{value.dtype} {list(value.shape)}" if isinstance(value, np.ndarray) else type(value).__name__
        raise ValueError(f"{name} must be a tensor of integers with {num_axes} axes, got {what}")
    return value


def _require_shape(got: tuple[int, ...], expected: tuple[int, ...], name: str) -> None:
    if got != expected:
        raise ValueError(f"{name} has shape {list(got)}, but last_physical_to_logical_map {list(expected)}")

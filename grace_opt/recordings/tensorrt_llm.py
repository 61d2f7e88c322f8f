"""Expert statistics of TensorRT-LLM (`EXPERT_STATISTIC_ITER_RANGE`, `EXPERT_STATISTIC_PATH`), a folder a run.

`meta_info.json` holds num_experts and num_experts_per_token. `rank{r}.safetensors` holds counts [E] under
"{iteration}_{layer}", to be summed over ranks; `rank{r}_raw.safetensors` holds the choices [tokens, K] under the same
names. Layers are absolute, MoE layers only; those of a draft model (multi-token prediction) may follow and are to be
left out by number. Raw files name no requests: the tokens of a rank in an iteration are one
sequence.
"""

import json
import re
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from grace_opt.model import MoEModel
from grace_opt.recordings.passes import by_pass, distinct, warn_of_passes_as_sequences
from grace_opt.recordings.recording import Step, Tokens, Watch, moe_choices, moe_counts, reading
from grace_opt.tensor_file import map_tensors

Layers = dict[int, NDArray[Any]]


@dataclass(frozen=True)
class Counts:
    """Counts of experts, a file a rank.

    Attributes:
        leave_out: recorded layers that are not the model's own.
    """

    leave_out: Sequence[int] = ()
    title = "TensorRT-LLM statistics"
    suffixes = ()

    def __call__(self, paths: Sequence[Path], model: MoEModel, watch: Watch) -> Iterator[Step]:
        for done, folder in enumerate(paths):
            with reading(folder):
                passes = _passes(folder, model, r"rank(\d+)\.safetensors", self.leave_out)
                for number, ranks in enumerate(passes):
                    watch((done + number / len(passes)) / len(paths))
                    counts_LE = sum(_stack(layers, model, (model.num_experts,)).astype(np.int64) for _, layers in ranks)
                    if np.any(counts_LE):
                        yield Step(moe_counts(np.asarray(counts_LE), model, "counts"))


@dataclass(frozen=True)
class Choices:
    """Choices of tokens, a file a rank.

    Attributes:
        leave_out: recorded layers that are not the model's own.
    """

    leave_out: Sequence[int] = ()
    title = "TensorRT-LLM raw statistics"
    suffixes = ()

    def __call__(self, paths: Sequence[Path], model: MoEModel, watch: Watch) -> Iterator[Tokens]:
        for done, folder in enumerate(paths):
            with reading(folder):
                passes = _passes(folder, model, r"rank(\d+)_raw\.safetensors", self.leave_out)
                for number, ranks in enumerate(passes):
                    watch((done + number / len(passes)) / len(paths))
                    stacked = [(rank, _stack(layers, model, (-1, model.top_k))) for rank, layers in ranks]
                    for _, ids_LTK in distinct(stacked):
                        real_T = (ids_LTK >= 0).any(axis=(0, 2))  # the rest is padding
                        ids_TLK = moe_choices(ids_LTK[:, real_T].transpose(1, 0, 2), model, "choices")
                        if len(ids_TLK):
                            yield Tokens(ids_TLK, [len(ids_TLK)])
        warn_of_passes_as_sequences()


def _passes(folder: Path, model: MoEModel, pattern: str, leave_out: Sequence[int]) -> list[list[tuple[int, Layers]]]:
    _check_meta(folder / "meta_info.json", model)
    ranks = {int(found[1]): path for path in sorted(folder.iterdir()) if (found := re.fullmatch(pattern, path.name))}
    if not ranks:
        raise ValueError(f"there is no file {pattern.replace(chr(92), '')}: counts are source=tensorrt_llm, "
                         "choices source=tensorrt_llm_raw")  # fmt: skip
    return by_pass(
        (iteration, rank, layers)
        for rank, path in ranks.items()
        for iteration, layers in _iterations(path, leave_out).items()
    )


def _check_meta(path: Path, model: MoEModel) -> None:
    with reading(path):
        meta = json.loads(path.read_text(encoding="utf-8"))
        for field, expected in (("num_experts", model.num_experts), ("num_experts_per_token", model.top_k)):
            if not isinstance(meta, dict) or field not in meta:
                raise ValueError(f"field {field} is missing")
            if meta[field] != expected:
                raise ValueError(
                    f"{field} is {meta[field]!r}, but {expected} in model {model.name}: another model? give model=NAME"
                )


def _iterations(path: Path, leave_out: Sequence[int]) -> dict[int, Layers]:
    """Tensors of each iteration by layer."""
    with reading(path):
        iterations: dict[int, Layers] = defaultdict(dict)
        for name, tensor in map_tensors(path)[0].items():
            found = re.fullmatch(r"(\d{1,12})_(\d{1,6})", name, re.ASCII)
            if not found:
                raise ValueError(f"tensor {name!r} should be named ITERATION_LAYER")
            if int(found[2]) in leave_out:
                continue
            layers = iterations[int(found[1])]
            if int(found[2]) in layers:
                raise ValueError(f"tensor {name!r} is there twice")
            layers[int(found[2])] = tensor
        return iterations


def _stack(layers: Layers, model: MoEModel, shape: tuple[int, ...]) -> NDArray[Any]:
    """[L, ...] the tensors of one rank and iteration."""
    missing, more = set(model.layer_ids) - set(layers), set(layers) - set(model.layer_ids)
    if missing or more:
        known = f"MoE layers of model {model.name} are {model.layer_ids[0]} to {model.layer_ids[-1]}"
        if missing:
            raise ValueError(f"layer {min(missing)} is missing: {known}")
        raise ValueError(f"layer {min(more)} is recorded, but {known}: source.leave_out=[{min(more)}] drops it")
    tensors = [layers[layer] for layer in model.layer_ids]
    for layer, tensor in zip(model.layer_ids, tensors, strict=True):
        fits = len(tensor.shape) == len(shape) and all(
            want in (-1, n) for want, n in zip(shape, tensor.shape, strict=True)
        )
        if not fits or tensor.shape != tensors[0].shape:
            expected = list(tensors[0].shape) if fits else [n if n >= 0 else "tokens" for n in shape]
            raise ValueError(f"layer {layer} has shape {list(tensor.shape)}; expected {expected}")
    return np.stack(tensors)

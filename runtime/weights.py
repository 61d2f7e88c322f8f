"""Experts' weights from safetensors files; a rank reads its own experts and no others.

Files come in three layouts; {layer} is the absolute id of a layer, {expert} that of an expert::

    sample model       layers.{layer}.experts.gate, up        [E, D, F]    runtime/sample/checkpoint.py
                       layers.{layer}.experts.down            [E, F, D]
    OLMoE, DeepSeek,   model.layers.{layer}.mlp.experts.{expert}.gate_proj.weight, up_proj    [F, D]
    Qwen3-MoE          model.layers.{layer}.mlp.experts.{expert}.down_proj.weight             [D, F]
    Mixtral            model.layers.{layer}.block_sparse_moe.experts.{expert}.w1.weight, w3   [F, D]
                       model.layers.{layer}.block_sparse_moe.experts.{expert}.w2.weight       [D, F]

A model is one file, or a folder as Hugging Face has them: `model.safetensors`, or several files and
`model.safetensors.index.json`, which says what is where.
"""

import hashlib
import json
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from runtime.reference import Experts

SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"
PLAIN_TYPES = ("F32", "BF16", "F16")
WHOLE_BYTES, SAMPLE_BYTES = 64 * 2**20, 4096


@dataclass(frozen=True)
class Layout:
    """What an expert's matrices are called.

    Attributes:
        gate, up, down: names with {layer}, and with {expert} where each expert has tensors of its own, then transposed.
    """

    gate: str
    up: str
    down: str

    @property
    def stacked(self) -> bool:
        """Whether all experts of a layer are one tensor."""
        return "{expert}" not in self.gate

    def layers(self, names: Iterable[str]) -> set[int]:
        """Layers whose experts are among the tensors `names`."""
        pattern = re.escape(self.gate).replace(r"\{layer\}", r"(\d+)").replace(r"\{expert\}", r"\d+")
        return {int(match[1]) for match in map(re.compile(pattern).fullmatch, names) if match}


_OLMOE, _MIXTRAL = (
    "model.layers.{layer}.mlp.experts.{expert}.",
    "model.layers.{layer}.block_sparse_moe.experts.{expert}.",
)
LAYOUTS = (
    Layout(*(f"layers.{{layer}}.experts.{matrix}" for matrix in ("gate", "up", "down"))),
    Layout(*(f"{_OLMOE}{matrix}_proj.weight" for matrix in ("gate", "up", "down"))),
    Layout(*(f"{_MIXTRAL}{matrix}.weight" for matrix in ("w1", "w3", "w2"))),
)


def read_experts(
    path: str | Path,
    layer: int,
    experts: Sequence[int],
    dtype: torch.dtype | None = None,
    device: torch.device | str = "cpu",
) -> Experts:
    """The weights of some experts of one layer, in this order; one may occur several times.

    Args:
        path: a safetensors file, or a Hugging Face folder.
        layer: absolute id of the layer.
        experts: logical ids; may be empty.
        dtype: to convert to; None keeps the file's.

    Raises:
        FileNotFoundError: there is no such file, or an index names one that is not there.
        ValueError: a file is damaged, or without this layer or expert, or the matrices do not fit each other.
    """
    if not experts:  # sizes and type are still those of the layer
        one = read_experts(path, layer, [0], dtype, device)
        return one.select(torch.zeros(0, dtype=torch.long, device=device))
    tensors = _Tensors(Path(path))
    layout = _layout(tensors, layer)
    read = _read_stacked if layout.stacked else _read_separate
    return Experts(*(tensor.to(device, dtype) for tensor in read(tensors, layout, layer, experts)))


def weights_digest(path: str | Path) -> str:
    """SHA-256 that differs when two models' weights do, to check that ranks which read their own files agree.

    Of a file of up to 64 MiB it covers every byte; of a larger one its size, its header (names, types and shapes) and
    the first 4096 bytes of every tensor. So it tells checkpoints of a training apart, but not a single flipped bit.
    """
    total = hashlib.sha256()
    for file in sorted(set(tensor_files(Path(path)).values())):
        size = file.stat().st_size
        total.update(size.to_bytes(8, "little"))
        with file.open("rb") as stream:
            if size <= WHOLE_BYTES:
                total.update(hashlib.file_digest(stream, "sha256").digest())
                continue
            prefix = stream.read(8)
            header = stream.read(int.from_bytes(prefix, "little"))
            total.update(header)
            entries = [entry for name, entry in json.loads(header).items() if name != "__metadata__"]
            for start, stop in sorted(entry["data_offsets"] for entry in entries):
                stream.seek(len(prefix) + len(header) + start)
                total.update(stream.read(min(SAMPLE_BYTES, stop - start)))
    return "sha256:" + total.hexdigest()


def tensor_files(path: Path) -> dict[str, Path]:
    """Every tensor's file. Of a folder with an index only the index is read.

    Raises:
        FileNotFoundError: there is no such file, or the index names one that is not there.
        ValueError: a file is damaged.
    """
    if not path.is_dir():
        return dict.fromkeys(open_safetensors(path).keys(), path)
    if not (path / INDEX).is_file():
        if not (path / SINGLE).is_file():
            raise FileNotFoundError(f"{path} holds neither {SINGLE} nor {INDEX}: give a model's folder or file")
        return tensor_files(path / SINGLE)
    try:
        index = json.loads((path / INDEX).read_text(encoding="utf-8"))["weight_map"]
        files = {str(tensor): path / str(name) for tensor, name in index.items()}
    except (ValueError, KeyError, TypeError, AttributeError):
        raise ValueError(f"{path / INDEX}: damaged, or without weight_map: copy the model again") from None
    for file in sorted(set(files.values())):
        if file.parent != path or not file.is_file():
            raise FileNotFoundError(f"{path / INDEX} names {file.name}, which is not in the folder: copy it there")
    return files


def open_safetensors(path: Path) -> Any:
    """The file, its tensors still unread.

    Raises:
        FileNotFoundError, ValueError: it does not exist; it is damaged.
    """
    if not path.is_file():
        raise FileNotFoundError(f"{path} does not exist: give a safetensors file or a folder that holds {INDEX}")
    try:
        return safe_open(path, framework="pt")
    except (SafetensorError, OSError) as error:
        raise ValueError(f"{path}: truncated, or no safetensors file ({error}): copy it again") from None


class _Tensors:
    """The tensors of a model by name, each still unread; a file is opened when first needed."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.file_of_tensor = tensor_files(path)
        self._opened: dict[Path, Any] = {}

    def slice(self, name: str, shape: Sequence[int] | None = None) -> Any:
        """A tensor to cut parts from.

        Args:
            shape: what it must have; None accepts any.
        """
        file = self.file_of_tensor.get(name)
        if file is None:
            raise ValueError(f"{self.path}: tensor {name} is missing: the plan or the file is of another model")
        if file not in self._opened:
            self._opened[file] = open_safetensors(file)
        try:
            found = self._opened[file].get_slice(name)
        except SafetensorError:
            raise ValueError(f"{file}: tensor {name} is missing, though the index names it: copy it again") from None
        if found.get_dtype() not in PLAIN_TYPES:
            kinds = ", ".join(PLAIN_TYPES)
            raise ValueError(f"{file}: tensor {name} must be {kinds}, got {found.get_dtype()}: convert it first")
        if shape is not None and found.get_shape() != list(shape):
            raise ValueError(f"{file}: tensor {name} must be {list(shape)} to fit the gate, got {found.get_shape()}")
        return found


def _layout(tensors: _Tensors, layer: int) -> Layout:
    """The one in which the model holds this layer."""
    for layout in LAYOUTS:
        layers = layout.layers(tensors.file_of_tensor)
        if layer in layers:
            return layout
        if layers:
            held = f"{min(layers)}..{max(layers)}"
            raise ValueError(
                f"{tensors.path}: no experts of layer {layer}, only of layers {held}: is it the plan's model?"
            )
    names = ", ".join(layout.gate for layout in LAYOUTS)
    raise ValueError(f"{tensors.path}: no tensor is called like an expert's; looked for {names}")


def _read_stacked(tensors: _Tensors, layout: Layout, layer: int, experts: Sequence[int]) -> list[Tensor]:
    gate = tensors.slice(layout.gate.format(layer=layer))
    E, D, F = _sizes(gate, 3, tensors, layout.gate.format(layer=layer))
    if min(experts) < 0 or max(experts) >= E:
        raise ValueError(f"{tensors.path}: layer {layer} has experts 0..{E - 1}, not {min(experts)}..{max(experts)}")
    up = tensors.slice(layout.up.format(layer=layer), (E, D, F))
    down = tensors.slice(layout.down.format(layer=layer), (E, F, D))
    return [torch.stack([part[expert] for expert in experts]) for part in (gate, up, down)]


def _read_separate(tensors: _Tensors, layout: Layout, layer: int, experts: Sequence[int]) -> list[Tensor]:
    first = layout.gate.format(layer=layer, expert=experts[0])
    F, D = _sizes(tensors.slice(first), 2, tensors, first)
    parts = []
    for template, shape in ((layout.gate, (F, D)), (layout.up, (F, D)), (layout.down, (D, F))):
        names = (template.format(layer=layer, expert=expert) for expert in experts)
        parts.append(torch.stack([tensors.slice(name, shape)[:].T for name in names]))
    return parts


def _sizes(gate: Any, dimensions: int, tensors: _Tensors, name: str) -> list[int]:
    shape: list[int] = gate.get_shape()
    if len(shape) != dimensions:
        raise ValueError(
            f"{tensors.file_of_tensor[name]}: tensor {name} must have {dimensions} dimensions, got {shape}"
        )
    return shape

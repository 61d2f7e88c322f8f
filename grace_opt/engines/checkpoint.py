"""A Hugging Face checkpoint with its experts renumbered, written beside the original, shard by shard.

Under `model.layers.{layer}.mlp.` or `model.layers.{layer}.block_sparse_moe.` of a layer in the plan::

    experts.{expert}.*                                    renamed     OLMoE, Mixtral, Qwen2/3-MoE, DeepSeek-V2/V3
    experts.gate_up_proj, down_proj, *_bias, *_blocks,
        *_scales                     [E, ...]             rows moved  gpt-oss, and fused files of transformers 5
    gate.weight, gate.e_score_correction_bias, router.weight, router.bias
                                     [E, ...]             rows moved
    shared_expert.*, shared_experts.*, shared_expert_gate.*           as they are

Anything else there is refused: it might depend on the experts' numbers. Other tensors, and layers that the plan does
not have (such as those for multi-token prediction), stay as they are.
"""

import json
import re
import shutil
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from grace_opt.engines.safetensors_stream import Header, read_header, rewrite, row_bytes

SINGLE, INDEX, CONFIG, NOTE = (
    "model.safetensors",
    "model.safetensors.index.json",
    "config.json",
    "grace_permutation.json",
)
OTHER_WEIGHTS = (".safetensors", ".bin", ".pt", ".pth", ".gguf", ".h5", ".msgpack", ".onnx", ".index.json")

_BLOCK = re.compile(
    r"(?P<head>(?:model\.|model\.language_model\.|language_model\.model\.)?layers\.(?P<layer>\d+)\."
    r"(?:mlp|block_sparse_moe)\.)(?P<rest>.+)"
)
_SEPARATE = re.compile(r"experts\.(?P<expert>\d+)\.(?P<part>.+)")
_ROUTER = re.compile(r"(?:gate\.(?:weight|e_score_correction_bias)|router\.(?:weight|bias))")
_FUSED = re.compile(r"experts\.(?:gate_up_proj|down_proj)(?:_bias|_blocks|_scales)?")
_SHARED = re.compile(r"shared_experts?(?:_gate)?\..+")


@dataclass(frozen=True)
class Checkpoint:
    """A model's folder: headers read, tensors unread.

    Attributes:
        headers: of each safetensors file, by name.
        index: what the index file holds; None if the model is one file.
        config: what config.json holds.
    """

    folder: Path
    headers: Mapping[str, Header]
    index: Mapping[str, Any] | None
    config: Mapping[str, Any]

    @property
    def num_groups(self) -> int:
        """Blocks of experts that a group-limited router chooses first; 1 without (DeepSeek-V3's n_group)."""
        text = self.config.get("text_config", self.config)
        groups = text.get("n_group") or 1
        if type(groups) is not int or groups < 1:
            raise ValueError(f"{self.folder / CONFIG}: n_group must be a whole number, got {groups!r}")
        return 1 if text.get("topk_method") == "greedy" else groups

    @property
    def num_bytes(self) -> int:
        """Of all tensors."""
        return sum(max((t.stop for t in header.tensors.values()), default=0) for header in self.headers.values())


@dataclass(frozen=True)
class Changes:
    """What becomes of the tensors: new names, and rows in a new order, by old name."""

    names: dict[str, str] = field(default_factory=dict)
    rows: dict[str, NDArray[np.int64]] = field(default_factory=dict)


def read_checkpoint(folder: Path) -> Checkpoint:
    """Read index, headers and configuration.

    Raises:
        ValueError, FileNotFoundError: a file is missing or damaged, or the experts were renumbered before.
    """
    if (folder / NOTE).exists():
        raise ValueError(f"{folder} was renumbered before ({NOTE}): give the original checkpoint")
    if not (folder / CONFIG).is_file():
        raise FileNotFoundError(f"{folder} holds no {CONFIG}: give checkpoint=FOLDER of a Hugging Face model")
    config, index = _json(folder / CONFIG), None
    if re.search(r"experts\.\d+", json.dumps(config)):
        raise ValueError(
            f"{folder / CONFIG} names single experts (a quantisation's exceptions?), which would change place"
        )
    if (folder / INDEX).is_file():
        index = _json(folder / INDEX)
        weight_map = index.get("weight_map")
        if not isinstance(weight_map, dict) or not all(isinstance(name, str) for name in weight_map.values()):
            raise ValueError(f"{folder / INDEX}: damaged, or without weight_map: copy the model again")
        files = sorted(set(weight_map.values()))
    else:
        weight_map, files = None, [SINGLE]
    if any(Path(name).name != name for name in files):
        raise ValueError(f"{folder / INDEX}: weight_map must name files in the folder")
    headers = {name: read_header(folder / name) for name in files}
    held = {tensor: name for name, header in headers.items() for tensor in header.tensors}
    if weight_map is not None and held != weight_map:
        odd = min(set(held.items()) ^ set(weight_map.items()))[0]
        raise ValueError(f"{folder / INDEX}: weight_map and the files differ, first in tensor {odd}: copy it again")
    return Checkpoint(folder, headers, index, config)


def changes(checkpoint: Checkpoint, orders: Mapping[int, NDArray[np.int64]]) -> Changes:
    """What has to change so that place p of a layer holds expert orders[layer][p].

    Raises:
        ValueError: a layer of the plan has not these experts, no router, or tensors not known here.
    """
    result = Changes()
    parts: dict[int, dict[str, set[int]]] = {layer: {} for layer in orders}  # experts that have each tensor
    places = {layer: np.argsort(order) for layer, order in orders.items()}
    routers: set[int] = set()
    for header in checkpoint.headers.values():
        for name in header.tensors:
            match = _BLOCK.fullmatch(name)
            if match is None or int(match["layer"]) not in orders:
                continue
            layer, rest = int(match["layer"]), match["rest"]
            order = orders[layer]
            separate = _SEPARATE.fullmatch(rest)
            if separate is not None:
                expert = int(separate["expert"])
                parts[layer].setdefault(separate["part"], set()).add(expert)
                if expert < len(order):
                    result.names[name] = f"{match['head']}experts.{places[layer][expert]}.{separate['part']}"
            elif _FUSED.fullmatch(rest) or _ROUTER.fullmatch(rest):
                _require_rows(header, name, len(order))
                result.rows[name] = order
                if _FUSED.fullmatch(rest):
                    parts[layer][rest] = set(range(len(order)))
                elif rest.endswith(".weight"):
                    routers.add(layer)
            elif not _SHARED.fullmatch(rest):
                raise ValueError(f"{header.path}: tensor {name} is not known here and may depend on experts' numbers")
    for layer, found in parts.items():
        wanted = set(range(len(orders[layer])))
        wrong = next((part for part, experts in found.items() if experts != wanted), None)
        if not found or wrong is not None or layer not in routers:
            what = "no experts" if not found else "no router" if wrong is None else f"other experts ({wrong})"
            raise ValueError(
                f"{checkpoint.folder}: layer {layer} has {what}, expected experts 0..{len(wanted) - 1} and a router: "
                "is it the plan's model?"
            )
    return result


def other_expert_layers(checkpoint: Checkpoint, orders: Mapping[int, NDArray[np.int64]]) -> list[int]:
    """Layers with experts that are not in the plan."""
    matches = (_BLOCK.fullmatch(name) for header in checkpoint.headers.values() for name in header.tensors)
    layers = {int(match["layer"]) for match in matches if match and match["rest"].startswith("experts.")}
    return sorted(layers - set(orders))


def write_checkpoint(
    checkpoint: Checkpoint,
    changed: Changes,
    output: Path,
    note: Mapping[str, Any],
    watch: Callable[[int], None] = lambda done: None,
) -> list[str]:
    """Write the whole folder or nothing.

    Args:
        output: if it is there, it is replaced once the new one is whole.
        note: goes into grace_permutation.json.

    Returns:
        Files that were not copied, because they may hold the experts as they were.

    Raises:
        OSError: not enough room, or a file cannot be written.
    """
    output.parent.mkdir(parents=True, exist_ok=True)
    room = shutil.disk_usage(output.parent).free
    if room < checkpoint.num_bytes:
        raise OSError(
            f"{output.parent} has {room / 1e9:.1f} GB free, the checkpoint takes {checkpoint.num_bytes / 1e9:.1f}"
        )
    temporary = Path(tempfile.mkdtemp(prefix=f".{output.name}.", dir=output.parent))
    try:
        for name, header in checkpoint.headers.items():
            rewrite(header, temporary / name, changed.names, changed.rows, watch)
        if checkpoint.index is not None:
            renamed = {changed.names.get(name, name): file for name, file in checkpoint.index["weight_map"].items()}
            index = {**checkpoint.index, "weight_map": dict(sorted(renamed.items()))}
            (temporary / INDEX).write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")
        left_out = _copy_others(checkpoint, temporary)
        (temporary / NOTE).write_text(json.dumps(note) + "\n", encoding="utf-8")
        temporary.chmod(0o755)
        _put(temporary, output)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
    return left_out


def _put(folder: Path, output: Path) -> None:
    """Rename a whole folder onto `output`."""
    if not output.exists():
        folder.rename(output)
        return
    replaced = folder.with_name(f"{folder.name}.replaced")
    output.rename(replaced)
    folder.rename(output)
    shutil.rmtree(replaced)


def _copy_others(checkpoint: Checkpoint, target: Path) -> list[str]:
    """Tokenizer, configuration and what else there is, except other weights."""
    left_out = []
    for path in sorted(checkpoint.folder.rglob("*")):
        name = path.relative_to(checkpoint.folder)
        if not path.is_file() or str(name) in (*checkpoint.headers, INDEX):
            continue
        if name.parts[0].startswith("."):  # of git or of a download tool
            continue
        if path.name.endswith(OTHER_WEIGHTS):
            left_out.append(str(name))
            continue
        (target / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, target / name)
    return left_out


def _require_rows(header: Header, name: str, num_experts: int) -> None:
    shape = header.tensors[name].shape
    if not shape or shape[0] != num_experts:
        raise ValueError(
            f"{header.path}: tensor {name} must have {num_experts} rows, one an expert, its shape is {list(shape)}"
        )
    row_bytes(header, name)


def _json(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path}: truncated or no JSON ({error})") from None
    if not isinstance(found, dict):
        raise ValueError(f"{path} must hold an object")
    return found

"""Renumbered checkpoints, tensor by tensor and byte by byte, without any model library."""

import json
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from grace_opt.engines.renumber import renumber
from grace_opt.engines.safetensors_stream import read_header
from grace_opt.placement import Placement
from grace_opt.plan import Plan
from grace_opt.routing import Routing

WIDTH = {"BF16": 2, "F32": 4, "F8_E4M3": 1, "U8": 1}
# Layer 0 is dense. Place p of layer 1 gets expert ORDER[1][p], of layer 2 ORDER[2][p].
ORDER = {1: [3, 0, 1, 2], 2: [1, 2, 0, 3]}
PLAN = Plan(
    "toy", (1, 2), (2,), Placement.from_lists([[[3, 0], [1, 2]], [[1, 2], [0, 3]]], 4), Routing("primary")
)  # fmt: skip


def write(path: Path, tensors: dict[str, tuple[str, list[int], bytes]]) -> None:
    header, data = {"__metadata__": {"format": "pt"}}, b""
    for name, (dtype, shape, content) in tensors.items():
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [len(data), len(data) + len(content)]}
        data += content
    text = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + data)


def read(folder: Path) -> dict[str, tuple[str, tuple[int, ...], bytes]]:
    """All tensors of a folder, as its index or single file has them."""
    index = folder / "model.safetensors.index.json"
    files = set(json.loads(index.read_text())["weight_map"].values()) if index.exists() else {"model.safetensors"}
    tensors = {}
    for file in files:
        header, content = read_header(folder / file), (folder / file).read_bytes()
        for name, tensor in header.tensors.items():
            data = content[header.data_start + tensor.start : header.data_start + tensor.stop]
            tensors[name] = (tensor.dtype, tensor.shape, data)
    if index.exists():
        assert set(json.loads(index.read_text())["weight_map"]) == set(tensors)
    return tensors


def tensor(random: np.random.Generator, dtype: str, *shape: int) -> tuple[str, list[int], bytes]:
    return dtype, list(shape), random.bytes(WIDTH[dtype] * int(np.prod(shape)))


def separate(random, block="mlp", parts=("gate_proj.weight", "up_proj.weight", "down_proj.weight"), dtype="BF16"):
    tensors = {"model.embed_tokens.weight": tensor(random, "BF16", 5, 3)}
    tensors["model.layers.0.mlp.gate_proj.weight"] = tensor(random, "BF16", 4, 3)
    for layer in (1, 2, 3):
        head = f"model.layers.{layer}.{block}."
        tensors[head + "gate.weight"] = tensor(random, "BF16", 4, 3)
        for expert in range(4):
            for part in parts:
                tensors[f"{head}experts.{expert}.{part}"] = tensor(random, dtype, 2, 3)
    return tensors


def deepseek(random):
    scaled = ("gate_proj.weight", "gate_proj.weight_scale_inv", "up_proj.weight", "down_proj.weight")
    tensors = separate(random, parts=scaled, dtype="F8_E4M3")
    for layer in (1, 2):
        head = f"model.layers.{layer}.mlp."
        tensors[head + "gate.e_score_correction_bias"] = tensor(random, "F32", 4)
        tensors[head + "shared_experts.up_proj.weight"] = tensor(random, "BF16", 4, 3)
        tensors[head + "shared_expert_gate.weight"] = tensor(random, "BF16", 1, 3)
    return tensors


def gpt_oss(random):
    tensors = {}
    for layer in (1, 2):
        head = f"model.layers.{layer}.mlp."
        tensors[head + "router.weight"] = tensor(random, "BF16", 4, 3)
        tensors[head + "router.bias"] = tensor(random, "BF16", 4)
        for matrix in ("gate_up_proj", "down_proj"):
            tensors[f"{head}experts.{matrix}_blocks"] = tensor(random, "U8", 4, 6, 2, 16)
            tensors[f"{head}experts.{matrix}_scales"] = tensor(random, "U8", 4, 6, 2)
            tensors[f"{head}experts.{matrix}_bias"] = tensor(random, "BF16", 4, 6)
    return tensors


LAYOUTS = {
    "olmoe": separate,
    "mixtral": lambda random: separate(random, "block_sparse_moe", ("w1.weight", "w2.weight", "w3.weight")),
    "deepseek": deepseek,
    "gpt_oss": gpt_oss,
}


@pytest.fixture
def make(tmp_path):
    """(tensors, shards=2, **config) -> folder of a checkpoint; tensors are dealt onto the shards in turn."""

    def make(tensors, shards=2, **config):
        folder = tmp_path / "model"
        folder.mkdir()
        (folder / "config.json").write_text(json.dumps(config))
        (folder / "tokenizer.json").write_text("{}")
        (folder / "pytorch_model.bin").write_bytes(b"old")
        if shards == 1:
            write(folder / "model.safetensors", tensors)
            return folder
        names = [f"model-{shard + 1:05}-of-{shards:05}.safetensors" for shard in range(shards)]
        for shard, name in enumerate(names):
            write(folder / name, dict(list(tensors.items())[shard::shards]))
        where = {tensor: names[place % shards] for place, tensor in enumerate(tensors)}
        index = {"metadata": {"total_size": 1}, "weight_map": where}
        (folder / "model.safetensors.index.json").write_text(json.dumps(index))
        return folder

    return make


def expected(name: str, old: dict[str, Any]) -> bytes:
    """The bytes that a tensor of the result must have, from the definition of the permutation."""
    parts = name.split(".")
    layer = int(parts[2]) if parts[1] == "layers" else -1
    if layer not in ORDER or parts[4] not in ("experts", "gate", "router"):
        return old[name][2]
    if parts[5].isdigit():
        parts[5] = str(ORDER[layer][int(parts[5])])
        return old[".".join(parts)][2]
    content = old[name][2]
    width = len(content) // 4
    return b"".join(content[expert * width : (expert + 1) * width] for expert in ORDER[layer])


@pytest.mark.parametrize("shards", [1, 2, 5])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_tensor_is_the_permuted_one_byte_by_byte(make, tmp_path, layout, shards):
    old = LAYOUTS[layout](np.random.default_rng(7))
    source = make(old, shards)
    done = renumber(PLAN, source, tmp_path / "out")
    new = read(tmp_path / "out")
    assert set(new) == set(old)
    for name, (dtype, shape, content) in new.items():
        assert (dtype, list(shape)) == (old[name][0], old[name][1])
        assert content == expected(name, old), name
    changed = sum(new[name][2] != old[name][2] for name in old)
    assert changed >= 12
    assert (tmp_path / "out/tokenizer.json").read_text() == "{}"
    assert not (tmp_path / "out/pytorch_model.bin").exists()
    assert any("pytorch_model.bin" in line for line in done.warnings)
    note = json.loads((tmp_path / "out/grace_permutation.json").read_text())
    assert note["expert_of_place"] == {str(layer): order for layer, order in ORDER.items()}
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model", "out"]


def test_layers_that_are_not_in_the_plan_stay_and_are_named(make, tmp_path):
    done = renumber(PLAN, make(separate(np.random.default_rng(0))), tmp_path / "out")
    assert any("layers 3 have experts but are not in the plan" in line for line in done.warnings)


def test_metadata_and_index_are_kept(make, tmp_path):
    renumber(PLAN, make(separate(np.random.default_rng(0))), tmp_path / "out")
    index = json.loads((tmp_path / "out/model.safetensors.index.json").read_text())
    assert index["metadata"] == {"total_size": 1}
    assert read_header(tmp_path / "out/model-00001-of-00002.safetensors").metadata == {"format": "pt"}


def test_the_safetensors_package_reads_the_result(make, tmp_path):
    from safetensors import safe_open

    tensors = {"model.layers.0.x": ("F32", [1], b"\0\0\x80\x3f")}
    for layer in (1, 2):
        rows = np.arange(4, dtype="<f4").tobytes()
        tensors[f"model.layers.{layer}.mlp.router.weight"] = ("F32", [4, 1], rows)
        tensors[f"model.layers.{layer}.mlp.experts.down_proj"] = ("F32", [4, 1], rows)
    renumber(PLAN, make(tensors, 1), tmp_path / "out")
    with safe_open(tmp_path / "out/model.safetensors", framework="np") as file:
        assert file.get_tensor("model.layers.1.mlp.experts.down_proj")[:, 0].tolist() == ORDER[1]
        assert file.get_tensor("model.layers.0.x").tolist() == [1.0]


def test_a_result_is_only_replaced_when_told_and_nothing_else_ever(make, tmp_path):
    source, out = make(separate(np.random.default_rng(0))), tmp_path / "out"
    renumber(PLAN, source, out)
    with pytest.raises(FileExistsError, match="out exists: give another output, or overwrite=true"):
        renumber(PLAN, source, out)
    (out / "extra").touch()
    renumber(PLAN, source, out, overwrite=True)
    assert not (out / "extra").exists()
    with pytest.raises(FileExistsError, match="only a folder with grace_permutation.json is replaced"):
        renumber(PLAN, source, source, overwrite=True)
    with pytest.raises(ValueError, match="was renumbered before"):
        renumber(PLAN, out, tmp_path / "twice")


def test_a_failure_leaves_what_was_there(make, tmp_path, monkeypatch):
    source, out = make(separate(np.random.default_rng(0))), tmp_path / "out"
    renumber(PLAN, source, out)
    before = read(out)

    def full(*_: object) -> None:
        raise OSError("disk full")

    monkeypatch.setattr("grace_opt.engines.checkpoint.rewrite", full)
    with pytest.raises(OSError, match="disk full"):
        renumber(PLAN, source, out, overwrite=True)
    assert read(out) == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model", "out"]


def test_groups_of_the_router_are_respected(make, tmp_path):
    source = make(deepseek(np.random.default_rng(0)), n_group=2, topk_method="noaux_tc")
    with pytest.raises(ValueError, match="router of layer 1 is limited to 2 groups"):
        renumber(PLAN, source, tmp_path / "out")
    assert not (tmp_path / "out").exists()
    (source / "config.json").write_text('{"n_group": 2, "topk_method": "greedy"}')
    renumber(PLAN, source, tmp_path / "out")


def wrong(name: str) -> Any:
    tensors = separate(np.random.default_rng(0))
    head = "model.layers.1.mlp."
    match name:
        case "no router":
            del tensors[head + "gate.weight"]
        case "router of another size":
            tensors[head + "gate.weight"] = ("BF16", [5, 3], bytes(30))
        case "an expert short":
            del tensors[head + "experts.3.up_proj.weight"]
        case "an expert more":
            tensors[head + "experts.4.up_proj.weight"] = ("BF16", [2, 3], bytes(12))
        case "no experts":
            tensors = {key: value for key, value in tensors.items() if not key.startswith("model.layers.2.")}
        case "unknown tensor":
            tensors[head + "gate.tid2eid"] = ("BF16", [2, 3], bytes(12))
    return tensors


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("no router", "layer 1 has no router"),
        ("router of another size", "gate.weight must have 4 rows, one an expert, its shape is [5, 3]"),
        ("an expert short", "layer 1 has other experts (up_proj.weight), expected experts 0..3"),
        ("an expert more", "layer 1 has other experts (up_proj.weight), expected experts 0..3"),
        ("no experts", "layer 2 has no experts"),
        ("unknown tensor", "gate.tid2eid is not known here"),
    ],
)
def test_another_models_checkpoint_is_refused_in_one_line_and_nothing_written(make, tmp_path, name, told):
    source = make(wrong(name))
    with pytest.raises(ValueError, match=".") as error:
        renumber(PLAN, source, tmp_path / "out")
    assert told in str(error.value) and "\n" not in str(error.value)
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_experts_named_in_the_configuration_are_refused(make, tmp_path):
    source = make(separate(np.random.default_rng(0)), quantization_config={"ignore": ["model.layers.1.mlp.experts.2"]})
    with pytest.raises(ValueError, match="names single experts"):
        renumber(PLAN, source, tmp_path / "out")


@pytest.mark.parametrize("cut", [0, 7, 20, 300, -1])
def test_a_truncated_file_is_refused(make, tmp_path, cut):
    source = make(separate(np.random.default_rng(0)), 1)
    path = source / "model.safetensors"
    path.write_bytes(path.read_bytes()[:cut])
    with pytest.raises(ValueError, match=r"model\.safetensors: truncated") as error:
        renumber(PLAN, source, tmp_path / "out")
    assert "\n" not in str(error.value)


@settings(max_examples=200, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_a_damaged_header_is_refused_in_one_line_or_read_within_the_file(tmp_path, data):
    path = tmp_path / "model.safetensors"
    write(path, {"a": ("BF16", [4, 2], bytes(16)), "b": ("F32", [1], bytes(4))})
    content = bytearray(path.read_bytes())
    for _ in range(data.draw(st.integers(1, 3))):
        place = data.draw(st.integers(0, len(content) - 1))
        content[place : place + data.draw(st.integers(0, 6))] = data.draw(st.binary(max_size=4))
        content = content or bytearray(b"x")
    path.write_bytes(content)
    try:
        header = read_header(path)
    except ValueError as error:
        message = str(error)
        assert "\n" not in message and "model.safetensors" in message
    else:
        assert all(header.data_start + tensor.stop <= len(content) for tensor in header.tensors.values())


def test_an_index_that_contradicts_the_files_is_refused(make, tmp_path):
    source = make(separate(np.random.default_rng(0)))
    path = source / "model.safetensors.index.json"
    index = json.loads(path.read_text())
    for change, told in (
        (
            {"model.embed_tokens.weight": "model-00002-of-00002.safetensors"},
            "differ, first in tensor model.embed_tokens",
        ),
        ({"model.embed_tokens.weight": "../other.safetensors"}, "must name files in the folder"),
        ({"model.embed_tokens.weight": "missing.safetensors"}, "missing.safetensors does not exist"),
    ):
        path.write_text(json.dumps({"weight_map": {**index["weight_map"], **change}}))
        with pytest.raises((ValueError, OSError), match=".") as error:
            renumber(PLAN, source, tmp_path / "out")
        assert told in str(error.value)


def test_a_folder_without_a_model_is_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match="holds no config.json"):
        renumber(PLAN, tmp_path, tmp_path / "out")

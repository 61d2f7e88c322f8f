"""Experts read from files are those that were written, only the asked-for bytes are read, and damage has one line."""

import json

import pytest

torch = pytest.importorskip("torch")

from safetensors.torch import save_file

from runtime import weights
from runtime.reference import Experts
from runtime.weights import INDEX, SINGLE, read_experts, weights_digest

LAYERS, NUM_EXPERTS, HIDDEN, FFN = (1, 2), 6, 8, 4  # layer 0 is dense, as in DeepSeek-V2
NAMES = {
    "olmoe": ("model.layers.{}.mlp.experts.{}.", ("gate_proj", "up_proj", "down_proj")),
    "mixtral": ("model.layers.{}.block_sparse_moe.experts.{}.", ("w1", "w3", "w2")),
}
LAYOUTS = ("sample", *NAMES)


def experts_of(layer, dtype=torch.float32):
    random = torch.Generator().manual_seed(layer)
    shapes = ((NUM_EXPERTS, HIDDEN, FFN), (NUM_EXPERTS, HIDDEN, FFN), (NUM_EXPERTS, FFN, HIDDEN))
    return Experts(*(torch.randn(*shape, generator=random).to(dtype) for shape in shapes))


def tensors_of(layout, dtype=torch.float32):
    """What a file of this layout holds, some other tensors included."""
    tensors = {"embedding" if layout == "sample" else "model.embed_tokens.weight": torch.zeros(3, HIDDEN)}
    for layer in LAYERS:
        held = experts_of(layer, dtype)
        stacks = {"gate": held.gate, "up": held.up, "down": held.down}
        if layout == "sample":
            tensors |= {f"layers.{layer}.experts.{name}": stack for name, stack in stacks.items()}
            continue
        prefix, names = NAMES[layout]
        for name, stack in zip(names, stacks.values(), strict=True):
            for expert in range(NUM_EXPERTS):
                tensors[f"{prefix.format(layer, expert)}{name}.weight"] = stack[expert].T.contiguous()
    return tensors


def write_folder(folder, tensors):
    """Two files, dealt in turns, and their index."""
    files = {name: f"model-{number % 2}.safetensors" for number, name in enumerate(tensors)}
    for file in set(files.values()):
        save_file({name: tensors[name] for name in tensors if files[name] == file}, folder / file)
    (folder / INDEX).write_text(json.dumps({"metadata": {}, "weight_map": files}))
    return folder


@pytest.fixture
def path(tmp_path):
    save_file(tensors_of("olmoe"), tmp_path / SINGLE)
    return tmp_path / SINGLE


def assert_equal(read, expected):
    for name in ("gate", "up", "down"):
        torch.testing.assert_close(getattr(read, name), getattr(expected, name), rtol=0, atol=0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_layout_gives_the_experts_asked_for_in_their_order(layout, dtype, tmp_path):
    save_file(tensors_of(layout, dtype), tmp_path / "any.safetensors")
    read = read_experts(tmp_path / "any.safetensors", 2, [5, 0, 5])
    assert_equal(read, experts_of(2, dtype).select(torch.tensor([5, 0, 5])))


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_folder_is_read_through_its_index_or_its_only_file(layout, tmp_path):
    expected = experts_of(1).select(torch.tensor([3, 4]))
    assert_equal(read_experts(write_folder(tmp_path, tensors_of(layout)), 1, [3, 4]), expected)
    (tmp_path / INDEX).unlink()
    save_file(tensors_of(layout), tmp_path / SINGLE)
    assert_equal(read_experts(tmp_path, 1, [3, 4]), expected)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_no_experts_are_none_of_the_right_size(layout, tmp_path):
    save_file(tensors_of(layout, torch.bfloat16), tmp_path / SINGLE)
    none = read_experts(tmp_path, 1, [])
    assert none.gate.shape == none.up.shape == (0, HIDDEN, FFN) and none.down.shape == (0, FFN, HIDDEN)
    assert none.down.dtype == torch.bfloat16


def test_weights_are_converted_when_asked(path):
    assert_equal(read_experts(path, 1, [2], dtype=torch.bfloat16), experts_of(1, torch.bfloat16).select([2]))


@pytest.mark.parametrize("layout", LAYOUTS)
def test_only_the_bytes_of_the_experts_asked_for_are_read(layout, tmp_path, monkeypatch):
    cuts, opened = [], weights.safe_open

    class Slice:
        def __init__(self, name, inner):
            self.name, self.inner = name, inner
            self.get_shape, self.get_dtype = inner.get_shape, inner.get_dtype

        def __getitem__(self, index):
            cuts.append((self.name, index))
            return self.inner[index]

    class File:
        """Without get_tensor: whole tensors cannot be read."""

        def __init__(self, file, framework):
            self.inner = opened(file, framework)
            self.keys = self.inner.keys

        def get_slice(self, name):
            return Slice(name, self.inner.get_slice(name))

    save_file(tensors_of(layout), tmp_path / SINGLE)
    monkeypatch.setattr(weights, "safe_open", File)
    read_experts(tmp_path, 2, [4, 1])
    if layout == "sample":
        expected = [(f"layers.2.experts.{name}", expert) for name in ("gate", "up", "down") for expert in (4, 1)]
    else:
        prefix, names = NAMES[layout]
        expected = [(f"{prefix.format(2, expert)}{name}.weight", slice(None)) for name in names for expert in (4, 1)]
    assert cuts == expected


def test_a_missing_file_says_what_to_give(path):
    with pytest.raises(FileNotFoundError, match="none.safetensors does not exist: give a safetensors file or a folder"):
        read_experts(path.with_name("none.safetensors"), 1, [0])
    path.unlink()
    with pytest.raises(FileNotFoundError, match="holds neither model.safetensors nor model.safetensors.index.json"):
        read_experts(path.parent, 1, [0])


@pytest.mark.parametrize("kept", [0, 5, 100, -1])
def test_a_truncated_file_is_named(path, kept):
    path.write_bytes(path.read_bytes()[:kept])
    for read in (lambda: read_experts(path, 1, [0]), lambda: weights_digest(path)):
        with pytest.raises(ValueError, match=r"model.safetensors: truncated, or no safetensors file .*: copy it again"):
            read()


def test_a_damaged_index_and_what_it_misses_are_named(tmp_path):
    write_folder(tmp_path, tensors_of("olmoe"))
    (tmp_path / "model-1.safetensors").unlink()
    with pytest.raises(FileNotFoundError, match="names model-1.safetensors, which is not in the folder"):
        read_experts(tmp_path, 1, [0])
    for text in ("{", "{}", "[]", '{"weight_map": 3}'):
        (tmp_path / INDEX).write_text(text)
        with pytest.raises(ValueError, match="index.json: damaged, or without weight_map"):
            read_experts(tmp_path, 1, [0])


def test_an_index_that_names_files_elsewhere_is_refused(path):
    folder = path.parent / "inner"
    folder.mkdir()
    (folder / INDEX).write_text(
        json.dumps({"weight_map": {"model.layers.1.mlp.experts.0.gate_proj.weight": f"../{SINGLE}"}})
    )
    with pytest.raises(FileNotFoundError, match="not in the folder"):
        read_experts(folder, 1, [0])


def test_an_index_that_names_the_wrong_file_is_told(tmp_path):
    write_folder(tmp_path, tensors_of("olmoe"))
    index = json.loads((tmp_path / INDEX).read_text())
    index["weight_map"] = dict.fromkeys(index["weight_map"], "model-0.safetensors")
    (tmp_path / INDEX).write_text(json.dumps(index))
    with pytest.raises(ValueError, match=r"model-0.safetensors: tensor model.layers.1.* is missing, though the index"):
        read_experts(tmp_path, 1, list(range(NUM_EXPERTS)))


def test_a_layer_or_expert_the_model_lacks_is_named(path, tmp_path):
    with pytest.raises(ValueError, match=r"no experts of layer 0, only of layers 1..2"):
        read_experts(path, 0, [0])
    with pytest.raises(ValueError, match=r"tensor model.layers.1.mlp.experts.6.gate_proj.weight is missing"):
        read_experts(path, 1, [0, 6])
    save_file(tensors_of("sample"), tmp_path / "sample.safetensors")
    for experts in ([0, 6], [-1]):
        with pytest.raises(ValueError, match=r"layer 1 has experts 0..5, not"):
            read_experts(tmp_path / "sample.safetensors", 1, experts)


def test_a_file_without_experts_says_what_was_looked_for(tmp_path):
    save_file({"weight": torch.zeros(2)}, tmp_path / SINGLE)
    with pytest.raises(
        ValueError, match=r"no tensor is called like an expert's; looked for layers.{layer}.experts.gate"
    ):
        read_experts(tmp_path, 1, [0])


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("matrix", [0, 1, 2])
def test_matrices_that_do_not_fit_are_named(layout, matrix, tmp_path):
    tensors = tensors_of(layout)
    if layout == "sample":
        name = f"layers.1.experts.{('gate', 'up', 'down')[matrix]}"
        tensors[name] = tensors[name][..., 1:].contiguous()
    else:
        prefix, names = NAMES[layout]
        name = f"{prefix.format(1, 3)}{names[matrix]}.weight"
        tensors[name] = tensors[name][1:].contiguous()
    save_file(tensors, tmp_path / SINGLE)
    with pytest.raises(ValueError, match=r"model.safetensors: tensor .* must be \[.*\] to fit the gate, got \["):
        read_experts(tmp_path, 1, [2, 3])


def test_a_gate_that_is_no_matrix_is_named(tmp_path):
    save_file({"layers.0.experts.gate": torch.zeros(2, 3)}, tmp_path / SINGLE)
    with pytest.raises(ValueError, match=r"tensor layers.0.experts.gate must have 3 dimensions, got \[2, 3\]"):
        read_experts(tmp_path, 0, [0])


def test_quantised_weights_are_refused(tmp_path):
    tensors = {name: tensor.to(torch.float8_e4m3fn) for name, tensor in tensors_of("olmoe").items()}
    save_file(tensors, tmp_path / SINGLE)
    with pytest.raises(ValueError, match="must be F32, BF16, F16, got F8_E4M3: convert it first"):
        read_experts(tmp_path, 1, [0])


@pytest.mark.parametrize("whole_bytes", [0, weights.WHOLE_BYTES])
def test_digests_differ_when_weights_do(whole_bytes, tmp_path, monkeypatch):
    monkeypatch.setattr(weights, "WHOLE_BYTES", whole_bytes)
    folders = [tmp_path / name for name in ("one", "same", "other")]
    for folder in folders:
        folder.mkdir()
        tensors = tensors_of("olmoe")
        if folder.name == "other":
            tensors["model.layers.2.mlp.experts.5.down_proj.weight"][0, 0] += 1
        write_folder(folder, tensors)
    one, same, other = map(weights_digest, folders)
    assert one == same != other and one.startswith("sha256:")

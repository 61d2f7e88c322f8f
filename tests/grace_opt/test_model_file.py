"""Model files: what is written is read again, and what is no model is one line."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from grace_opt.backbone import Backbone
from grace_opt.configuration import CONF_DIR, build, groups, read_configuration
from grace_opt.model import MoEModel
from grace_opt.model_file import read_model, write_model

TOY = MoEModel("toy", num_layers=2, num_experts=8, top_k=2, hidden_size=16, ffn_size=8, bytes_per_weight=0.53125)


@given(
    name=st.text(st.characters(exclude_categories=("C",)), min_size=1),
    dense_bytes=st.floats(0, 1e15),
    backbone=st.none() | st.builds(Backbone, *[st.integers(1, 10**6)] * 4, tied=st.booleans()),
)
def test_what_is_written_is_read_again(tmp_path_factory, name: str, dense_bytes: float, backbone: Backbone) -> None:
    path = tmp_path_factory.getbasetemp() / "toy.yaml"
    model = MoEModel(name, 2, 8, 2, 16, 8, dense_bytes=dense_bytes, backbone=backbone)
    write_model(path, model, "made up")
    assert path.read_text().startswith("# made up\n")
    assert read_model(path) == model


@pytest.mark.parametrize("name", sorted(set(groups()["model"]) - {"custom"}))
def test_a_preset_is_a_model_file(name: str) -> None:
    assert read_model(CONF_DIR / "model" / f"{name}.yaml") == build(read_configuration("plan", [f"model={name}"]).model)


def test_a_command_takes_a_model_file(tmp_path: Path) -> None:
    write_model(tmp_path / "toy.yaml", TOY)
    assert build(read_configuration("plan", ["model=custom", f"model.path={tmp_path}/toy.yaml"]).model) == TOY


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("top_k: 2\n", "", "field top_k is missing"),
        ("top_k: 2", "top_k: two", "top_k must be int, got 'two'"),
        ("top_k: 2", "top_k: true", "top_k must be int, got True"),
        ("top_k: 2", "top_k: 9", "model.top_k is 9 but there are only 8 experts"),
        ("top_k: 2", "topk: 2", "topk is no field; fields are name, num_layers"),
        ("weight_type: bf16", "weight_type: 16", "weight_type must be str, got 16"),
        ("grace_opt.model.MoEModel", "os.system", "_target_ is no field"),
        ("name: toy", "name: [toy", "no readable YAML"),
        ("name: toy", "name: ${oc.env:HOME}", "name"),
        ("weight_type: bf16", "backbone: 3", "backbone must hold fields with values, got 3"),
        ("weight_type: bf16", "backbone: {num_heads: 1}", "field backbone.num_kv_heads is missing"),
    ],
)
def test_what_is_no_model_is_one_line_with_file_and_field(tmp_path: Path, old: str, new: str, message: str) -> None:
    path = tmp_path / "toy.yaml"
    write_model(path, TOY)
    path.write_text(path.read_text().replace(old, new))
    if message == "name":  # nothing in the file is looked up
        assert read_model(path).name == "${oc.env:HOME}"
        return
    with pytest.raises(ValueError, match="toy.yaml: ") as error:
        read_model(path)
    assert message in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize("content", [b"", b"- 1\n", b"word", b"\xff\xfe"])
def test_a_file_of_another_kind_is_one_line(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "x.yaml").write_bytes(content)
    with pytest.raises(ValueError, match="x.yaml: ") as error:
        read_model(tmp_path / "x.yaml")
    assert "\n" not in str(error.value)


def test_a_file_that_is_not_there_is_named() -> None:
    with pytest.raises(FileNotFoundError, match=r"model file no.yaml does not exist: give model.path=FILE \(.yaml\)"):
        read_model("no.yaml")

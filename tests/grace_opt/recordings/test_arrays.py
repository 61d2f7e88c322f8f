"""Loads as JSON or arrays, and this project's own files."""

import json
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from grace_opt.load_history import LoadHistory
from grace_opt.load_history_file import write_load_history
from grace_opt.recordings.arrays import LoadArray, LoadHistoryJson, Own
from grace_opt.trace_file import write_trace

STEPS = [[[1, 2, 3, 0], [2, 2, 1, 1]], [[0, 0, 1, 1], [1, 1, 0, 0]]]
IDS_LTK = np.array([[[0, 1], [1, 2], [3, 0]], [[3, 2], [2, 0], [0, 1]]], np.uint8)
TRACE: dict[str, Any] = {
    "expert_ids": IDS_LTK, "sequence": np.array([5, 5, 9]), "domain": np.array([1, 1, 0]), "model": "toy",
    "domain_names": ("law", "code"), "num_experts": 4, "phase": "decode", "source": "by hand",
}  # fmt: skip


def history_json(path: Path, steps: Any = STEPS) -> Path:
    path.write_text(json.dumps({"load_history": [{"logical_expert_load": step} for step in steps]}))
    return path


def test_a_load_history_in_json_is_read(tmp_path: Path, import_to: Any) -> None:
    assert import_to(LoadHistoryJson(), history_json(tmp_path / "h.json")).counts.tolist() == STEPS


def test_all_hidden_layers_may_be_there(tmp_path: Path, import_to: Any) -> None:
    path = history_json(tmp_path / "h.json", [[[0] * 4, *step] for step in STEPS])
    assert import_to(LoadHistoryJson(), path).counts.tolist() == STEPS


def test_an_array_of_loads_is_read_by_name(tmp_path: Path, import_to: Any) -> None:
    np.savez_compressed(tmp_path / "l.npz", loads=np.array(STEPS, np.uint16), other=np.zeros(3))
    assert import_to(LoadArray("loads"), tmp_path / "l.npz").counts.tolist() == STEPS
    with pytest.raises(ValueError, match=r"l.npz: give source.array=NAME, one of loads, other"):
        import_to(LoadArray(), tmp_path / "l.npz")


def test_the_only_array_needs_no_name_and_may_be_one_step(tmp_path: Path, import_to: Any) -> None:
    np.savez(tmp_path / "l.npz", loads=np.array(STEPS[0]))
    assert import_to(LoadArray(), tmp_path / "l.npz").counts.tolist() == STEPS[:1]


def test_real_loads_are_read(shared_traces: Path, import_to: Any, toy: Any) -> None:
    model = type(toy)("gemma", num_layers=30, num_experts=128, top_k=8, hidden_size=10, ffn_size=5)
    history = import_to(LoadArray("gemma4_26b"), shared_traces / "load-counts.npz", model)
    assert history.counts.shape == (4, 30, 128) and history.counts[0, 0, :3].tolist() == [1310, 4305, 281]


def test_traces_of_ours_are_merged_and_keep_sequences_domains_and_phase(tmp_path: Path, import_to: Any) -> None:
    write_trace(tmp_path / "a.safetensors", **TRACE)
    arrays = {"expert_ids": IDS_LTK.transpose(1, 0, 2), "sequence": [0, 1, 1], "num_experts": 4, "phase": "decode"}
    np.savez(tmp_path / "b.npz", **arrays, domain=[0, 0, 0], domain_names=["chat"])
    trace = import_to(Own(), tmp_path)
    assert trace.expert_ids.tolist() == np.concatenate([IDS_LTK, IDS_LTK], axis=1).tolist()
    names = [trace.domain_names[number] for number in trace.domains]
    assert (trace.lengths.tolist(), names, trace.phase) == ([2, 1, 1, 2], ["code", "law", "chat", "chat"], "decode")


def test_load_histories_of_ours_are_merged(tmp_path: Path, import_to: Any) -> None:
    for name in ("a", "b"):
        write_load_history(tmp_path / f"{name}.safetensors", LoadHistory(np.array(STEPS), 2, 1, "toy"))
    assert import_to(Own(), tmp_path).counts.tolist() == [*STEPS, *STEPS]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model": "other"}, "a.safetensors: recorded from model other, but the model given is toy"),
        ({"synthetic": True}, "a synthetic trace is no recording"),
        ({"num_experts": 9, "expert_ids": IDS_LTK * 2}, "names expert 6, but model toy has experts"),
        ({"expert_ids": IDS_LTK[:1]}, "expert_ids has 1 layers, but model toy has 2 MoE layers"),
    ],
)
def test_a_trace_of_another_model_is_refused(tmp_path: Path, import_to: Any, change: Any, message: str) -> None:
    write_trace(tmp_path / "a.safetensors", **{**TRACE, **change})
    with pytest.raises(ValueError, match=message):
        import_to(Own(), tmp_path / "a.safetensors")


def test_traces_and_histories_do_not_mix(tmp_path: Path, import_to: Any) -> None:
    write_trace(tmp_path / "a.safetensors", **TRACE)
    write_load_history(tmp_path / "b.safetensors", LoadHistory(np.array(STEPS), 2, 1, "toy"))
    with pytest.raises(ValueError, match="has traces and load histories"):
        import_to(Own(), tmp_path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ([], "field load_history must be a list"),
        ({"load_history": [5]}, r"load_history\[0\].logical_expert_load must be a list of layers"),
        ({"load_history": [{"logical_expert_load": [[1, 2], [1]]}]}, "all layers must have equally many experts"),
        ({"load_history": [{"logical_expert_load": [[1.5] * 4] * 2}]}, "must hold whole numbers"),
        ({"load_history": [{"logical_expert_load": [[-1] * 4] * 2}]}, "must hold whole numbers that are not negative"),
        ({"load_history": [{"logical_expert_load": [[10**30] * 4] * 2}]}, "must hold whole numbers"),
        (
            {"load_history": [{"logical_expert_load": [[1] * 5] * 2}]},
            r"has shape \[2, 5\], but model toy has 4 experts",
        ),
        ({"load_history": [{"logical_expert_load": [[1] * 4] * 7}]}, "has 7 layers, but model toy has 2 MoE layers"),
        ({"load_history": []}, "nothing was recorded"),
    ],
)
def test_a_load_history_that_does_not_fit_is_refused(
    tmp_path: Path, import_to: Any, content: Any, message: str
) -> None:
    (tmp_path / "h.json").write_text(json.dumps(content))
    with pytest.raises(ValueError, match=f"h.json: {message}|h.json: .*{message}"):
        import_to(LoadHistoryJson(), tmp_path / "h.json")


def test_an_array_of_objects_is_refused(tmp_path: Path, import_to: Any) -> None:
    np.savez(tmp_path / "l.npz", loads=np.array([[{}]], object))
    with pytest.raises(ValueError, match=r"l.npz: loads.npy holds objects"):
        import_to(LoadArray(), tmp_path / "l.npz")


def test_an_array_that_claims_more_than_its_bytes_is_refused_before_anything_is_made(
    tmp_path: Path, import_to: Any
) -> None:
    with zipfile.ZipFile(tmp_path / "l.npz", "w") as archive, archive.open("loads.npy", "w") as file:
        np.lib.format.write_array_header_1_0(
            file, {"descr": "<i8", "fortran_order": False, "shape": (10**6, 10**6, 4)}  # type: ignore[arg-type]
        )  # fmt: skip
        file.write(bytes(64))
    with pytest.raises(ValueError, match="claims 4000000000000 numbers, but its bytes are others"):
        import_to(LoadArray(), tmp_path / "l.npz")


@pytest.mark.parametrize("name", ["h.json", "l.npz", "a.safetensors", "b.safetensors", "c.npz"])
@given(data=st.data())
def test_flipped_bytes_and_cuts_raise_nothing_but_a_named_refusal(
    tmp_path_factory: pytest.TempPathFactory, refuses_or_reads: Callable[..., None], name: str, data: st.DataObject
) -> None:
    path = tmp_path_factory.getbasetemp() / name
    if not path.exists():
        history_json(path.with_name("h.json"))
        np.savez_compressed(path.with_name("l.npz"), loads=np.array(STEPS))
        write_trace(path.with_name("a.safetensors"), **TRACE)
        write_load_history(path.with_name("b.safetensors"), LoadHistory(np.array(STEPS), 2, 1, "toy"))
        np.savez(path.with_name("c.npz"), expert_ids=IDS_LTK.transpose(1, 0, 2), sequence=[0, 1, 1], num_experts=4)
    content = bytearray(path.read_bytes())
    for _ in range(data.draw(st.integers(1, 3))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    fuzzed = path.with_stem("fuzzed")
    fuzzed.write_bytes(content[: data.draw(st.integers(0, len(content)))])
    source = {"h.json": LoadHistoryJson(), "l.npz": LoadArray()}.get(name, Own())
    refuses_or_reads(source, fuzzed)

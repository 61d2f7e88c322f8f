"""Trace files: whole or not at all, mapped when read, and a clear refusal of everything that is no trace."""

import json
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from safetensors.numpy import save_file

from grace_opt import trace_file
from grace_opt.trace import Trace
from grace_opt.trace_file import read_trace, write_trace

IDS = np.array([[[0, 1], [1, 2], [3, 0]], [[3, 2], [2, 0], [0, 1]]], np.uint8)  # 2 layers, 3 tokens, top-2
FIELDS: dict[str, Any] = {
    "expert_ids": IDS, "sequence": np.array([5, 5, 9]), "domain": np.array([1, 1, 0]), "domain_names": ("law", "code"),
    "model": "toy", "num_experts": 4, "phase": "decode", "source": "by hand", "synthetic": True,
}  # fmt: skip
ARRAYS: dict[str, Any] = {"expert_ids": IDS.transpose(1, 0, 2), "sequence": [5, 5, 9], "num_experts": 4}
METADATA = {
    "format": "grace-trace", "version": "1", "model": "toy", "num_experts": "4", "phase": "decode", "source": "by hand",
    "domain_names": '["law", "code"]', "synthetic": "true",
}  # fmt: skip


@pytest.fixture
def path(tmp_path: Path) -> Path:
    write_trace(tmp_path / "trace.safetensors", **FIELDS)
    return tmp_path / "trace.safetensors"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("fuzz")
    write_trace(folder / "whole.safetensors", **FIELDS)
    np.savez_compressed(folder / "whole.npz", **ARRAYS)
    return folder


def write_raw(path: Path, metadata: dict[str, str], **tensors: Any) -> None:
    """A safetensors file that `write_trace` would refuse."""
    arrays = {"expert_ids": IDS, "sequence": np.uint32([5, 5, 9]), "domain": np.uint8([1, 1, 0]), **tensors}
    save_file({name: np.ascontiguousarray(a) for name, a in arrays.items() if a is not None}, path, metadata=metadata)


def refuses_or_reads(path: Path) -> None:
    """Either a trace comes out, or a ValueError that names the file; never another exception."""
    try:
        read_trace(path)
    except ValueError as error:
        if not str(error).startswith(f"{path}: "):
            raise AssertionError(f"the message does not name the file: {error}") from error


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_what_is_written_is_read(tmp_path: Path, dtype: Any) -> None:
    write_trace(tmp_path / "new" / "t.safetensors", **{**FIELDS, "expert_ids": IDS.astype(dtype)})
    trace = read_trace(tmp_path / "new" / "t.safetensors")
    assert trace.expert_ids.dtype == dtype and (trace.expert_ids == IDS).all()
    assert (trace.starts.tolist(), trace.stops.tolist(), trace.domains.tolist()) == ([0, 2], [2, 3], [1, 0])
    assert (trace.domain_names, trace.model, trace.num_experts) == (("law", "code"), "toy", 4)
    assert (trace.phase, trace.source, trace.synthetic, trace.homes) == ("decode", "by hand", True, None)


def test_choices_are_mapped_not_loaded(path: Path) -> None:
    trace = read_trace(path)
    assert isinstance(trace.expert_ids, np.memmap)
    assert isinstance(trace.select(np.array([1])).expert_ids, np.memmap)
    assert not trace.expert_ids.flags.writeable


def test_a_recording_is_read_token_major(tmp_path: Path) -> None:
    np.savez(tmp_path / "r.npz", **ARRAYS, domain=[1, 1, 0], domain_names=["law", "code"], phase="decode", model="toy")
    trace = read_trace(tmp_path / "r.npz")
    assert (trace.expert_ids == IDS).all() and trace.expert_ids.flags.c_contiguous
    assert (trace.model, trace.phase, trace.source) == ("toy", "decode", "r.npz")
    assert (trace.domains.tolist(), trace.domain_names) == ([1, 0], ("law", "code"))


def test_a_recording_without_domains_has_one(tmp_path: Path) -> None:
    np.savez(tmp_path / "r.npz", **ARRAYS)
    assert read_trace(tmp_path / "r.npz").domain_names == ("all",)


def test_real_recordings_are_read(shared_traces: Path) -> None:
    trace = read_trace(shared_traces / "deepseek-v2-lite.npz")
    assert trace.expert_ids.shape == (26, 33279, 6)
    assert trace.num_experts == 64 and trace.domain_names == ("intent", "law", "summary", "translation")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"expert_ids": IDS.astype(np.int64)}, "expert_ids must be uint8 or uint16"),
        ({"expert_ids": IDS[0]}, "sequence must hold one integer for each"),
        ({"expert_ids": IDS[:, :0], "sequence": np.zeros(0, int), "domain": np.zeros(0, int)}, "there are no tokens"),
        ({"num_experts": 3}, r"expert_ids\[0, 2\] = \[3, 0\] names an expert outside 0\.\.2"),
        ({"expert_ids": np.ones_like(IDS)}, r"expert_ids\[0, 0\] = \[1, 1\] names the same expert twice"),
        ({"sequence": np.array([5, 9, 5])}, "tokens of sequence 5 do not stand together"),
        ({"sequence": np.array([5, 5])}, r"sequence must hold one integer for each of the 3 tokens.*got int64 \(2,\)"),
        ({"sequence": np.array([5.0, 5, 9])}, "sequence must hold one integer .* got float64"),
        ({"sequence": np.array([-1, -1, 9])}, "sequence must be numbered from 0 to 4294967295"),
        ({"domain": np.array([1, 0, 0])}, "domain changes inside a sequence"),
        ({"domain": np.array([2, 2, 0])}, r"domain numbers must be 0\.\.1"),
        ({"domain_names": tuple(map(str, range(257)))}, "domain_names must name at most 256 domains, got 257"),
        ({"phase": "training"}, "phase must be one of"),
    ],
)
def test_what_is_no_trace_is_neither_written_nor_read(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        write_trace(tmp_path / "t.safetensors", **{**FIELDS, **change})
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("metadata", "tensors", "message"),
    [
        ({"format": "other"}, {}, "format must be grace-trace version 1, got 'other' version '1'"),
        ({"version": "2"}, {}, "got 'grace-trace' version '2'"),
        ({"phase": None}, {}, "field phase is missing"),
        ({}, {"domain": None, "sequence": None}, "field sequence, domain is missing"),
        ({}, {"expert_ids": IDS.astype(np.int64)}, "expert_ids has dtype int64"),
        ({}, {"expert_ids": IDS.astype(np.uint32)}, "expert_ids must be uint8 or uint16"),
        ({}, {"expert_ids": IDS[:, 0]}, "sequence must hold one integer"),
        ({}, {"expert_ids": np.zeros((2, 0, 2), np.uint8)}, "sequence must hold one integer"),
        ({}, {"expert_ids": IDS[:, :, :0]}, "no tokens"),
        ({"num_experts": "3"}, {}, r"expert_ids\[0, 2\] = \[3, 0\] names an expert outside"),
        ({"num_experts": "many"}, {}, "num_experts"),
        ({"num_experts": "99999999999999"}, {}, r"num_experts must be 1\.\.65536"),
        ({}, {"expert_ids": np.ones_like(IDS)}, "the same expert twice"),
        ({}, {"sequence": np.array([5, 9, 5], np.uint32)}, "tokens of sequence 5 do not stand together"),
        ({}, {"domain": np.array([1, 0, 0], np.uint8)}, "domain changes inside a sequence"),
        ({"domain_names": "[law"}, {}, "domain_names"),
        ({"domain_names": "3"}, {}, "domain_names"),
        ({"synthetic": "maybe"}, {}, "synthetic must be true or false, got 'maybe'"),
    ],
)
def test_a_file_that_is_no_trace_is_refused(
    tmp_path: Path, metadata: dict[str, Any], tensors: dict[str, Any], message: str
) -> None:
    path = tmp_path / "bad.safetensors"
    write_raw(path, {k: v for k, v in {**METADATA, **metadata}.items() if v is not None}, **tensors)
    with pytest.raises(ValueError, match=f"bad.safetensors: .*{message}"):
        read_trace(path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"sequence": None}, "field sequence is missing; it holds expert_ids, num_experts"),
        ({"expert_ids": None, "num_experts": None}, "field expert_ids, num_experts is missing"),
        ({"expert_ids": IDS.astype(np.int32)}, r"expert_ids must be .* \[tokens, layers, top_k\], got int32"),
        ({"expert_ids": IDS[0]}, "expert_ids must be uint8"),
        ({"expert_ids": IDS.astype(object)}, "expert_ids: .*allow_pickle=False"),
        ({"sequence": np.array([5, 5, "9"], object)}, "sequence: .*allow_pickle=False"),
        ({"sequence": 5}, "sequence must hold one integer"),
        ({"num_experts": [4, 4]}, "num_experts must be one whole number"),
        ({"num_experts": "four"}, "num_experts must be one whole number"),
        ({"num_experts": 4.5}, "num_experts must be one whole number"),
        ({"domain": [0, 0, 1]}, r"domain numbers must be 0\.\.0"),
        ({"domain": [0, 0, 0], "domain_names": "law"}, "domain_names must be a list"),
        ({"phase": "training"}, "phase must be one of"),
    ],
)
def test_a_recording_that_is_no_trace_is_refused(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    np.savez(tmp_path / "bad.npz", **{name: a for name, a in {**ARRAYS, **change}.items() if a is not None})
    with pytest.raises(ValueError, match=f"bad.npz: .*{message}"):
        read_trace(tmp_path / "bad.npz")


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04", b"\x93NUMPY", b"\x80\x04N.", b"hello" * 100])
@pytest.mark.parametrize("suffix", [".npz", ".safetensors"])
def test_a_file_of_another_kind_is_refused(tmp_path: Path, content: bytes, suffix: str) -> None:
    path = (tmp_path / "bad").with_suffix(suffix)
    path.write_bytes(content)
    with pytest.raises(ValueError, match=str(path)):
        read_trace(path)


def test_one_array_under_an_npz_name_is_refused(tmp_path: Path) -> None:
    with (tmp_path / "bad.npz").open("wb") as file:
        np.save(file, IDS)
    with pytest.raises(ValueError, match="bad.npz: .*one array"):
        read_trace(tmp_path / "bad.npz")


def test_a_missing_file_and_an_unknown_suffix_are_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="trace file .*none.npz does not exist: give trace.path"):
        read_trace(tmp_path / "none.npz")
    (tmp_path / "trace.csv").touch()
    with pytest.raises(ValueError, match=r"trace.csv: a trace is a .safetensors or .npz file, got '.csv'"):
        read_trace(tmp_path / "trace.csv")


@pytest.mark.parametrize("suffix", [".safetensors", ".npz"])
def test_a_file_cut_anywhere_is_refused(folder: Path, suffix: str) -> None:
    whole = (folder / "whole").with_suffix(suffix).read_bytes()
    path = (folder / "cut").with_suffix(suffix)
    for length in range(len(whole)):
        path.write_bytes(whole[:length])
        with pytest.raises(ValueError, match=str(path)):
            read_trace(path)


@pytest.mark.parametrize("suffix", [".safetensors", ".npz"])
@given(data=st.data())
def test_flipped_bytes_raise_nothing_but_a_named_refusal(folder: Path, suffix: str, data: st.DataObject) -> None:
    content = bytearray((folder / "whole").with_suffix(suffix).read_bytes())
    for _ in range(data.draw(st.integers(1, 3))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    path = (folder / "flipped").with_suffix(suffix)
    path.write_bytes(content)
    refuses_or_reads(path)


def test_a_header_with_any_field_replaced_raises_nothing_but_a_named_refusal(
    folder: Path, damaged: Callable[[Any], Any]
) -> None:
    whole = (folder / "whole.safetensors").read_bytes()
    length = struct.unpack("<Q", whole[:8])[0]
    path = folder / "damaged.safetensors"
    for _, header in damaged(json.loads(whole[8 : 8 + length])):
        text = json.dumps(header).encode()
        path.write_bytes(struct.pack("<Q", len(text)) + text + whole[8 + length :])
        refuses_or_reads(path)


@pytest.mark.parametrize("shape", [[2**32, 2**32], [2**63], [-1, -12], [0, 2**62, 3]])
def test_a_shape_that_does_not_match_its_bytes_is_refused(folder: Path, shape: list[int]) -> None:
    entries = {"expert_ids": {"dtype": "U8", "shape": shape, "data_offsets": [0, 12 if min(shape) < 0 else 0]}}
    text = json.dumps({"__metadata__": METADATA, **entries}).encode()
    path = folder / "shape.safetensors"
    path.write_bytes(struct.pack("<Q", len(text)) + text + bytes(12))
    with pytest.raises(ValueError, match="shape.safetensors: "):
        read_trace(path)


def test_an_interrupted_write_leaves_the_old_file_and_no_half_one(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def break_down(_tensors: Any, target: Path, **_: Any) -> None:
        Path(target).write_bytes(b"half")
        raise KeyboardInterrupt

    monkeypatch.setattr(trace_file, "save_file", break_down)
    with pytest.raises(KeyboardInterrupt):
        write_trace(path, **{**FIELDS, "source": "new"})
    assert read_trace(path).source == "by hand"
    assert list(path.parent.iterdir()) == [path]


def test_writing_again_replaces_the_file_while_the_old_one_stays_mapped(path: Path) -> None:
    old: Trace = read_trace(path)
    write_trace(path, **{**FIELDS, "expert_ids": IDS[:, ::-1]})
    assert (old.expert_ids == IDS).all()
    assert (read_trace(path).expert_ids == IDS[:, ::-1]).all()

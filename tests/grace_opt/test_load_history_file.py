"""Load histories on disk: what is written is read, mapped, and told from a trace; everything else is refused."""

import json
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from grace_opt.load_history import LoadHistory
from grace_opt.load_history_file import is_load_history, read_load_history, read_trace_or_loads, write_load_history
from grace_opt.trace_file import write_trace

COUNTS = np.arange(3 * 2 * 4).reshape(3, 2, 4)
HISTORY = LoadHistory(COUNTS, 2, 1, "toy", "decode", "by hand")
METADATA = {
    "format": "grace-loads", "version": "1", "model": "toy", "top_k": "2", "first_moe_layer": "1", "phase": "decode",
    "source": "by hand",
}  # fmt: skip


@pytest.fixture
def path(tmp_path: Path) -> Path:
    write_load_history(tmp_path / "h.safetensors", HISTORY, chunk=2)
    return tmp_path / "h.safetensors"


def test_what_is_written_is_read_and_mapped(path: Path) -> None:
    history = read_load_history(path)
    assert history.counts.tolist() == COUNTS.tolist() and isinstance(history.counts.base, np.memmap)
    for field in ("top_k", "first_moe_layer", "model", "phase", "source"):
        assert getattr(history, field) == getattr(HISTORY, field)


def test_the_safetensors_package_reads_it_too(path: Path) -> None:
    assert load_file(path)["counts"].tolist() == COUNTS.tolist()


def test_a_history_is_told_from_a_trace(path: Path, tmp_path: Path) -> None:
    trace = tmp_path / "t.safetensors"
    write_trace(
        trace, expert_ids=np.array([[[0, 1]]], np.uint8), sequence=np.zeros(1, int), domain=np.zeros(1, int),
        domain_names=("all",), model="toy", num_experts=4, phase="decode", source='says "format": "grace-loads"',
    )  # fmt: skip
    assert (is_load_history(path), is_load_history(trace)) == (True, False)
    assert isinstance(read_trace_or_loads(path), LoadHistory)
    assert read_trace_or_loads(trace).num_tokens == 1


@pytest.mark.parametrize(
    ("metadata", "counts", "message"),
    [
        ({"format": "grace-trace"}, COUNTS, "format must be grace-loads version 1, got 'grace-trace'"),
        ({"version": "2"}, COUNTS, "got 'grace-loads' version '2'"),
        ({"top_k": None}, COUNTS, "field top_k is missing"),
        ({"top_k": "two"}, COUNTS, "top_k must be a whole number, got 'two'"),
        ({"phase": "training"}, COUNTS, "phase must be one of"),
        ({}, COUNTS.astype(np.int32), "counts must be int64"),
        ({}, COUNTS.astype(np.float32), "counts has dtype F32; expected integers"),
        ({}, -COUNTS, "counts must be 0"),
    ],
)
def test_a_file_that_is_no_history_is_refused(tmp_path: Path, metadata: Any, counts: Any, message: str) -> None:
    kept = {key: value for key, value in {**METADATA, **metadata}.items() if value is not None}
    save_file({"counts": counts}, tmp_path / "bad.safetensors", metadata=kept)
    with pytest.raises(ValueError, match=f"bad.safetensors: .*{message}"):
        read_load_history(tmp_path / "bad.safetensors")


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"load history .*none does not exist"):
        read_load_history(tmp_path / "none")


def test_a_file_cut_anywhere_is_refused(path: Path) -> None:
    whole = path.read_bytes()
    for length in range(len(whole)):
        path.write_bytes(whole[:length])
        with pytest.raises(ValueError, match=str(path)):
            read_load_history(path)


def test_a_header_with_any_field_replaced_raises_nothing_but_a_named_refusal(
    path: Path, damaged: Callable[[Any], Any]
) -> None:
    whole = path.read_bytes()
    length = struct.unpack("<Q", whole[:8])[0]
    for _, header in damaged(json.loads(whole[8 : 8 + length])):
        text = json.dumps(header).encode()
        path.write_bytes(struct.pack("<Q", len(text)) + text + whole[8 + length :])
        try:
            read_load_history(path)
        except ValueError as error:
            if not str(error).startswith(f"{path}: "):
                raise AssertionError(f"the message does not name the file: {error}") from error

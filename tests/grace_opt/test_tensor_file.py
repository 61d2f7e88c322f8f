"""Safetensors files, mapped and streamed: they agree with the package, and no header claims what is not there."""

import json
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from grace_opt.tensor_file import DTYPES, map_tensors, write_tensors


def raw(path: Path, header: Any, content: bytes) -> Path:
    text = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + content)
    return path


@pytest.mark.parametrize("dtype", list(DTYPES))
def test_integers_of_the_package_are_mapped_and_ours_are_read_by_it(tmp_path: Path, dtype: str) -> None:
    values = np.arange(6, dtype=DTYPES[dtype]).reshape(2, 3)
    save_file({"a": values, "empty": values[:0]}, tmp_path / "theirs", metadata={"x": "y"})
    tensors, metadata = map_tensors(tmp_path / "theirs")
    assert tensors["a"].tolist() == values.tolist() and tensors["empty"].shape == (0, 3) and metadata == {"x": "y"}
    layout = {"a": (dtype, (2, 3)), "b": ("U8", (1,))}
    write_tensors(tmp_path / "ours", layout, {"x": "y"}, lambda t: np.copyto(t["a"], values))
    assert load_file(tmp_path / "ours")["a"].tolist() == values.tolist()
    assert map_tensors(tmp_path / "ours")[0]["a"].dtype == values.dtype


def test_an_interrupted_write_leaves_nothing(tmp_path: Path) -> None:
    def fill(_: Any) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_tensors(tmp_path / "t", {"a": ("U8", (4,))}, {}, fill)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ({"dtype": "U8", "shape": [10**12], "data_offsets": [0, 10**12]}, "the file is truncated: a needs bytes"),
        ({"dtype": "U8", "shape": [10**6, 10**6], "data_offsets": [0, 8]}, "the file is truncated"),
        ({"dtype": "U8", "shape": [-2, -4], "data_offsets": [0, 8]}, "expected whole numbers"),
        ({"dtype": "U8", "shape": [8], "data_offsets": [-8, 0]}, "expected whole numbers"),
        ({"dtype": "U8", "shape": [True], "data_offsets": [0, 1]}, "expected whole numbers"),
        ({"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}, "a has dtype F32; expected integers"),
    ],
)
def test_a_claim_beyond_the_file_is_refused(tmp_path: Path, entry: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        map_tensors(raw(tmp_path / "t", {"a": entry}, bytes(8)))


def test_two_tensors_in_one_place_are_refused(tmp_path: Path) -> None:
    entry = {"dtype": "U8", "shape": [8], "data_offsets": [0, 8]}
    with pytest.raises(ValueError, match="a and b claim the same bytes"):
        map_tensors(raw(tmp_path / "t", {"a": entry, "b": entry}, bytes(8)))

"""Safetensors files as raw bytes: a header of names, types, shapes and offsets, then the tensors' bytes.

Rows of any type (bf16, fp8, packed 4-bit) are moved without being understood. A file is 8 bytes of header length, the
header as JSON, and the data; offsets count from the data's first byte (https://github.com/huggingface/safetensors).
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from grace_opt import tensor_file

CHUNK = 16 * 2**20


@dataclass(frozen=True)
class Tensor:
    """One entry of a header.

    Attributes:
        start, stop: bytes of the data.
    """

    dtype: str
    shape: tuple[int, ...]
    start: int
    stop: int


@dataclass(frozen=True)
class Header:
    """What a file holds.

    Attributes:
        tensors: by name, in the order of their bytes.
        data_start: byte of the file where the data begins.
    """

    path: Path
    tensors: Mapping[str, Tensor]
    metadata: Mapping[str, str] | None
    data_start: int


def read_header(path: Path) -> Header:
    """Read and check a file's header.

    Raises:
        ValueError, FileNotFoundError: damaged, truncated, or not there.
    """
    if not path.is_file():
        raise FileNotFoundError(f"{path} does not exist: copy the model again")
    size = path.stat().st_size
    try:
        content, data_start = tensor_file.read_header(path)
        metadata = content.pop("__metadata__", None)
        found = {name: _tensor(entry) for name, entry in content.items()}
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise ValueError(f"{path}: truncated, or no safetensors file ({error}): copy it again") from None
    tensors = dict(sorted(found.items(), key=lambda item: (item[1].start, item[1].stop)))
    end = 0
    for name, tensor in tensors.items():
        if tensor.start != end or tensor.stop < tensor.start:
            raise ValueError(f"{path}: tensor {name} does not begin where the one before it ends: copy it again")
        end = tensor.stop
    if size != data_start + end:
        raise ValueError(f"{path}: truncated: {size} bytes, but its header says {data_start + end}: copy it again")
    return Header(path, tensors, metadata, data_start)


def rewrite(
    header: Header,
    output: Path,
    names: Mapping[str, str],
    rows: Mapping[str, NDArray[np.integer]],
    watch: Callable[[int], None] = lambda done: None,
) -> None:
    """Copy a file with some tensors renamed and the rows of some in another order; a chunk in memory at a time.

    Args:
        names: new name of each tensor that is renamed.
        rows: by old name, for each row of the result the row it comes from; dimension 0 are rows.
        watch: is told how many bytes were written since it was last told.
    """
    content: dict[str, Any] = {} if header.metadata is None else {"__metadata__": dict(header.metadata)}
    for name, tensor in header.tensors.items():
        entry = {"dtype": tensor.dtype, "shape": list(tensor.shape), "data_offsets": [tensor.start, tensor.stop]}
        content[names.get(name, name)] = entry
    with header.path.open("rb") as source, output.open("wb") as target:
        target.write(tensor_file.header_bytes(content))
        for name, tensor in header.tensors.items():
            first = header.data_start + tensor.start
            if name not in rows:
                _copy(source, target, first, tensor.stop - tensor.start, watch)
                continue
            width = row_bytes(header, name)
            for row in rows[name].tolist():
                _copy(source, target, first + row * width, width, watch)


def row_bytes(header: Header, name: str) -> int:
    """Bytes of one row, dimension 0, of a tensor.

    Raises:
        ValueError: rows do not end at whole bytes.
    """
    tensor = header.tensors[name]
    size = tensor.stop - tensor.start
    if not tensor.shape or not tensor.shape[0] or size % tensor.shape[0]:
        raise ValueError(f"{header.path}: tensor {name} of shape {list(tensor.shape)} has no rows of whole bytes")
    return size // tensor.shape[0]


def _tensor(entry: Any) -> Tensor:
    start, stop = entry["data_offsets"]
    shape = tuple(entry["shape"])
    if not all(type(value) is int and value >= 0 for value in (start, stop, *shape)):
        raise ValueError("sizes must be whole numbers")
    return Tensor(str(entry["dtype"]), shape, start, stop)


def _copy(source: BinaryIO, target: BinaryIO, start: int, length: int, watch: Callable[[int], None]) -> None:
    source.seek(start)
    while length:
        chunk = source.read(min(length, CHUNK))
        if not chunk:
            raise OSError(f"{source.name} became shorter while it was read")
        target.write(chunk)
        length -= len(chunk)
        watch(len(chunk))

"""Safetensors files read by mapping and written without holding them in memory.

The safetensors package copies what it reads and wants all tensors at once when it writes; recordings have gigabytes.
The format is eight bytes that give the length of a JSON header, the header (dtype, shape and offsets of each tensor,
and texts under `__metadata__`), then the bytes of the tensors.
"""

import json
import math
import struct
from collections.abc import Callable, Mapping
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from grace_opt.atomic import write_atomically

DTYPES: dict[str, Any] = {
    "U8": np.uint8, "U16": np.uint16, "U32": np.uint32,
    "I8": np.int8, "I16": np.int16, "I32": np.int32, "I64": np.int64,
}  # fmt: skip
"""Integers only: no recording of routing needs others."""

LONGEST_HEADER = 100_000_000
"""Bytes; the safetensors package takes no longer one either."""

Layout = Mapping[str, tuple[str, tuple[int, ...]]]
"""Name of each tensor to its dtype (a key of `DTYPES`) and shape, in the order of the file."""


def read_header(path: Path) -> tuple[dict[str, Any], int]:
    """The header's JSON object, and the byte where the tensors begin; entries are not checked.

    Raises:
        ValueError: truncated, or no such file.
    """
    size = path.stat().st_size
    with path.open("rb") as file:
        prefix = file.read(8)
        length = struct.unpack("<Q", prefix)[0] if len(prefix) == 8 else size
        if 8 + length > size or length > LONGEST_HEADER:
            raise ValueError("the file is truncated or no safetensors file (its header is incomplete)")
        header = json.loads(file.read(length).decode("utf-8"))
    if not isinstance(header, dict):
        raise ValueError("the safetensors header is not a JSON object")
    return header, 8 + length


def header_bytes(header: Mapping[str, Any]) -> bytes:
    """What a file with this header begins with, padded so that the tensors stay aligned."""
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    return struct.pack("<Q", len(text)) + text


def map_tensors(path: Path) -> tuple[dict[str, NDArray[Any]], dict[str, str]]:
    """Tensors of integers, mapped, and the metadata.

    Raises:
        ValueError: damaged, a tensor of another dtype, or one that claims bytes that are not there or not its own.
    """
    header, start = read_header(path)
    metadata = header.pop("__metadata__", {})
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        raise ValueError("the metadata of the safetensors header must be text by name")
    content = np.memmap(path, np.uint8, "r")[start:]
    tensors, taken = {}, []
    for name, entry in header.items():
        dtype, shape, (begin, end) = entry["dtype"], entry["shape"], entry["data_offsets"]
        if dtype not in DTYPES:
            raise ValueError(f"{name} has dtype {dtype}; expected integers ({', '.join(DTYPES)})")
        if not all(type(number) is int and number >= 0 for number in (*shape, begin, end)):
            raise ValueError(f"{name} has shape {shape} at {begin} to {end}; expected whole numbers")
        if end - begin != np.dtype(DTYPES[dtype]).itemsize * math.prod(shape) or end > len(content):
            raise ValueError(f"the file is truncated: {name} needs bytes that are not there")
        tensors[name] = content[begin:end].view(DTYPES[dtype]).reshape(shape)
        taken.append((begin, end, name))
    taken.sort()
    for (_, end, name), (begin, _, after) in pairwise(taken):
        if begin < end:
            raise ValueError(f"{name} and {after} claim the same bytes")
    return tensors, metadata


def write_tensors(
    path: Path, layout: Layout, metadata: Mapping[str, str], fill: Callable[[dict[str, NDArray[Any]]], None]
) -> None:
    """Let `fill` write the tensors of a new file, mapped; the file appears whole or not at all."""
    header: dict[str, Any] = {"__metadata__": dict(metadata)}
    place = 0
    for name, (dtype, shape) in layout.items():
        end = place + np.dtype(DTYPES[dtype]).itemsize * math.prod(shape)
        header[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [place, end]}
        place = end
    head = header_bytes(header)

    def write(temporary: Path) -> None:
        with temporary.open("wb") as file:
            file.write(head)
            file.truncate(len(head) + place)
        content = np.memmap(temporary, np.uint8, "r+")
        offsets = {name: header[name]["data_offsets"] for name in layout}
        tensors = {
            name: content[len(head) + begin : len(head) + end].view(DTYPES[layout[name][0]])
            for name, (begin, end) in offsets.items()
        }
        fill({name: tensors[name].reshape(layout[name][1]) for name in layout})
        content.flush()

    write_atomically(path, write)

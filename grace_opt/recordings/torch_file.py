"""Tensors and plain values out of a file that `torch.save` wrote, without torch and without running anything in it.

Such a file is a zip archive of uncompressed entries: `data.pkl`, a pickle of the structure, and one entry of raw bytes
per tensor storage. A pickle is a program for a small stack machine; here one that knows only the instructions that make
dicts, lists, tuples, texts and numbers, and the two calls that a tensor takes. Everything else is refused by name.
Tensors are views of the mapped file, and all together they may be no larger than it.
"""

import math
import pickletools
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

STORAGES: dict[str, Any] = {
    "ByteStorage": np.uint8, "CharStorage": np.int8, "ShortStorage": np.int16, "IntStorage": np.int32,
    "LongStorage": np.int64, "HalfStorage": np.float16, "FloatStorage": np.float32, "DoubleStorage": np.float64,
    "BoolStorage": np.bool_,
}  # fmt: skip
_MARK = object()
_REBUILD, _ORDERED = "torch._utils _rebuild_tensor_v2", "collections OrderedDict"


def read_torch(path: Path) -> Any:
    """What was saved: dicts, lists, tuples, texts, numbers, and arrays in place of tensors.

    Raises:
        ValueError: not such a file, truncated, or it asks for anything but tensors and plain values.
    """
    if not zipfile.is_zipfile(path):
        raise ValueError("no file of torch.save: it is no zip archive, or truncated")
    content = np.memmap(path, np.uint8, "r")
    with zipfile.ZipFile(path) as archive:
        entries = {info.filename.partition("/")[2]: _entry(info, content) for info in archive.infolist()}
    if "data.pkl" not in entries:
        raise ValueError("no file of torch.save: data.pkl is missing")
    if entries.get("byteorder", np.frombuffer(b"little", np.uint8)).tobytes() != b"little":
        raise ValueError("byteorder must be little, as on the machines that serve models")
    return _Machine(_Storages(entries, len(content)).tensor).run(entries["data.pkl"].tobytes())


def _entry(info: zipfile.ZipInfo, content: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """The bytes of a zip entry, in place."""
    if info.compress_type != zipfile.ZIP_STORED:
        raise ValueError(f"{info.filename} is compressed, which torch.save never does")
    start = info.header_offset
    head = content[start : start + 30].tobytes()
    if len(head) < 30 or head[:4] != b"PK\x03\x04":
        raise ValueError(f"{info.filename} does not start where the archive says")
    start += 30 + int.from_bytes(head[26:28], "little") + int.from_bytes(head[28:30], "little")
    if start + info.file_size > len(content):
        raise ValueError(f"the file is truncated: {info.filename} needs bytes that are not there")
    return content[start : start + info.file_size]


class _Storages:
    """Storages of the archive, and tensors as views of them."""

    def __init__(self, entries: dict[str, NDArray[np.uint8]], size: int) -> None:
        self._entries, self._left = entries, size

    def tensor(self, storage: Any, offset: Any, shape: Any, strides: Any, *_: Any) -> NDArray[Any]:
        _, kind, key, _, count = storage
        name = str(kind).removeprefix("torch ")
        if name not in STORAGES:
            raise ValueError(f"a tensor has the type {name}; expected one of {', '.join(STORAGES)}")
        data, dtype = self._entries.get(f"data/{key}"), np.dtype(STORAGES[name])
        numbers = (offset, count, *shape, *strides)
        if not all(type(n) is int and n >= 0 for n in numbers) or len(shape) != len(strides):
            raise ValueError(f"a tensor has offset, storage, shape and strides {numbers}; expected whole numbers")
        if data is None or len(data) != count * dtype.itemsize:
            raise ValueError(f"the file is truncated: storage {key} needs {count} numbers that are not there")
        elements = math.prod(shape)
        self._left -= elements * dtype.itemsize
        last = offset + sum((n - 1) * stride for n, stride in zip(shape, strides, strict=True)) if elements else 0
        if elements and (last >= count or self._left < 0):
            raise ValueError(f"a tensor of shape {list(shape)} claims more than its storage of {count} numbers holds")
        flat = data.view(dtype)[offset:] if elements else np.empty(0, dtype)
        steps = [stride * dtype.itemsize for stride in strides]
        return np.lib.stride_tricks.as_strided(flat, shape, steps, writeable=False)


class _Machine:
    """The stack machine; see the module for what it knows."""

    def __init__(self, tensor: Callable[..., Any]) -> None:
        self._tensor = tensor
        self._stack: list[Any] = []
        self._memo: dict[int, Any] = {}

    def run(self, program: bytes) -> Any:
        push, pop, stack = self._stack.append, self._stack.pop, self._stack
        room = 1000 + len(program) // 8  # containers: one takes a byte in the file, and 50 or more in memory
        for instruction, argument, _ in pickletools.genops(program):
            name = instruction.name
            if name in _PUSHES:
                push(argument)
            elif name in _CONSTANTS:
                push(_CONSTANTS[name])
            elif name in _CONTAINERS:
                room -= 1
                if room < 0:
                    raise ValueError("the pickle in data.pkl holds more containers than its size explains")
                self._contain(name)
            elif name in ("BINPUT", "LONG_BINPUT"):
                self._memo[int(argument or 0)] = stack[-1]
            elif name in ("BINGET", "LONG_BINGET"):
                push(self._memo[int(argument or 0)])
            elif name == "MEMOIZE":
                self._memo[len(self._memo)] = stack[-1]
            elif name == "APPEND":
                self._extend([pop()])
            elif name == "APPENDS":
                self._extend(self._marked())
            elif name in ("SETITEM", "SETITEMS"):
                pairs = [stack.pop(-2), pop()] if name == "SETITEM" else self._marked()
                self._fill(pairs)
            elif name == "GLOBAL":
                push(_Name(argument))
            elif name == "BINPERSID":
                push(_storage(pop()))
            elif name == "REDUCE":
                arguments, function = pop(), pop()
                push(self._call(function, arguments))
            elif name == "STOP":
                return pop()
            elif name not in ("PROTO", "FRAME"):
                raise ValueError(f"it asks for {name} {argument!r}: only tensors and plain values are read".rstrip())
        raise ValueError("the pickle in data.pkl has no end")

    def _contain(self, name: str) -> None:
        if name in _TUPLES:
            count = _TUPLES[name]
            self._stack[-count:] = [tuple(self._stack[-count:])]
        else:
            self._stack.append(tuple(self._marked()) if name == "TUPLE" else _EMPTY[name]())

    def _marked(self) -> list[Any]:
        """The values above the last mark, which goes too."""
        place = len(self._stack) - 1
        while self._stack[place] is not _MARK:
            place -= 1
            if place < 0:
                raise ValueError("the pickle in data.pkl is damaged: a mark is missing")
        values = self._stack[place + 1 :]
        del self._stack[place:]
        return values

    def _extend(self, values: list[Any]) -> None:
        if type(self._stack[-1]) is not list:
            raise ValueError("the pickle in data.pkl is damaged: it appends to what is no list")
        self._stack[-1].extend(values)

    def _fill(self, pairs: list[Any]) -> None:
        if type(self._stack[-1]) is not dict or not all(type(key) is str for key in pairs[::2]):
            raise ValueError("the pickle in data.pkl fills something other than a dict of names")
        self._stack[-1].update(zip(pairs[::2], pairs[1::2], strict=True))

    def _call(self, function: Any, arguments: Any) -> Any:
        if function == _Name(_REBUILD):
            return self._tensor(*arguments)
        if function == _Name(_ORDERED) and arguments == ():
            return {}
        raise ValueError(f"it calls {function}: only tensors and plain values are read")


class _Name(str):
    """`module name` of a class or function, which stays a name; no text of the file equals one."""

    def __eq__(self, other: object) -> bool:
        return type(other) is _Name and str.__eq__(self, other)

    __hash__ = str.__hash__


def _storage(value: Any) -> Any:
    if type(value) is not tuple or len(value) != 5 or value[0] != "storage" or type(value[1]) is not _Name:
        raise ValueError("the pickle in data.pkl refers to something other than a storage")
    return value


_PUSHES = {
    "BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8", "BININT", "BININT1", "BININT2", "LONG1", "BINFLOAT",
}  # fmt: skip
_CONSTANTS = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False, "EMPTY_TUPLE": (), "MARK": _MARK}
_EMPTY: dict[str, Callable[[], Any]] = {"EMPTY_DICT": dict, "EMPTY_LIST": list}
_TUPLES = {"TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3}
_CONTAINERS = {*_EMPTY, *_TUPLES, "TUPLE"}

"""Files of torch.save: the same values as torch reads, and nothing that runs, hangs or takes memory."""

import io
import pickle
import resource
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from grace_opt.recordings.recording import reading
from grace_opt.recordings.torch_file import read_torch

torch = pytest.importorskip("torch")

VALUE = {
    "records": [
        {"pass": 3, "counts": torch.arange(12, dtype=torch.int32).reshape(3, 4), "lengths": [5, 300, 70000]},
        {"pass": 2**40, "counts": torch.arange(6).reshape(2, 3).T, "flags": (True, False), "share": 0.25, "none": None},
    ],
    "empty": torch.zeros(2, 0, 8, dtype=torch.int32),
    "scalar": torch.tensor(7),
    "nested": {"text": "é", "tuple": (1, 2, 3, 4, -5), "none": ()},
}  # fmt: skip


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("torch") / "whole.pt"
    torch.save(VALUE, path)
    return path


def plain(value: Any) -> Any:
    """Arrays and tensors as lists, with their dtypes."""
    if isinstance(value, dict):
        return {key: plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(map(plain, value))
    if isinstance(value, torch.Tensor):
        value = value.numpy()
    return (str(value.dtype), value.tolist()) if isinstance(value, np.ndarray) else value


def read(path: Path) -> Any:
    with reading(path):
        return read_torch(path)


def archive(path: Path, program: bytes, entries: dict[str, bytes] | None = None, compression: int = 0) -> Path:
    with zipfile.ZipFile(path, "w", compression) as file:
        file.writestr("x/data.pkl", program)
        for name, content in (entries or {}).items():
            file.writestr(f"x/{name}", content)
    return path


def tensor_program(numel: int, offset: int, shape: tuple[int, ...], strides: tuple[int, ...], copies: int = 1) -> bytes:
    """A pickle of a list of tensors over storage 0 of int64, with any numbers."""

    class Pickler(pickle.Pickler):
        def persistent_id(self, obj: Any) -> Any:
            return ("storage", torch.LongStorage, "0", "cpu", numel) if obj is STORAGE else None

    class Tensor:
        def __reduce__(self) -> Any:
            return torch._utils._rebuild_tensor_v2, (STORAGE, offset, shape, strides, False, ())

    buffer = io.BytesIO()
    Pickler(buffer, protocol=2).dump([Tensor() for _ in range(copies)])
    return buffer.getvalue()


STORAGE = object()


def test_values_are_those_that_torch_reads(whole: Path) -> None:
    assert plain(read(whole)) == plain(torch.load(whole, weights_only=True))


@pytest.mark.parametrize(
    "dtype", [torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64, torch.bool, torch.half]
)
def test_every_type_of_number_is_read(tmp_path: Path, dtype: Any) -> None:
    torch.save(torch.arange(5).to(dtype), tmp_path / "t.pt")
    assert plain(read(tmp_path / "t.pt")) == plain(torch.arange(5).to(dtype))


def test_tensors_are_views_of_the_mapped_file(whole: Path) -> None:
    counts = read(whole)["records"][0]["counts"]
    base = counts
    while base.base is not None and not isinstance(base, np.memmap):
        base = base.base
    assert isinstance(base, np.memmap) and not counts.flags.writeable


@pytest.mark.parametrize("protocol", [0, 1, 2, 4])
def test_a_call_of_anything_but_a_tensor_is_refused_and_not_made(tmp_path: Path, protocol: int) -> None:
    class Writes:
        def __reduce__(self) -> Any:
            return Path.touch, (tmp_path / "ran",)

    path = archive(tmp_path / "attack.pt", pickle.dumps({"a": Writes()}, protocol))
    with pytest.raises(ValueError, match=r"attack.pt: it (calls|asks for)"):
        read(path)
    assert not (tmp_path / "ran").exists()


def test_a_text_does_not_pass_for_a_function(tmp_path: Path) -> None:
    program = b"\x80\x02" + b"X\x18\x00\x00\x00collections OrderedDict" + b")R."
    with pytest.raises(ValueError, match="it calls"):
        read(archive(tmp_path / "text.pt", program.replace(b"X\x18", b"X\x17")))


@pytest.mark.parametrize(
    ("numbers", "message"),
    [
        ((10**12, 0, (10**12,), (1,)), "storage 0 needs 1000000000000 numbers that are not there"),
        ((4, 0, (10**12,), (0,)), "claims more than its storage"),
        ((4, 0, (10**6, 10**6), (0, 0)), "claims more than its storage"),
        ((4, 3, (2,), (1,)), "claims more than its storage"),
        ((4, 0, (2, 2), (1 << 70, 1)), "claims more than its storage"),
        ((4, -1, (2,), (1,)), "expected whole numbers"),
        ((4, 0, (-2,), (1,)), "expected whole numbers"),
        ((4, 0, (2,), (-1,)), "expected whole numbers"),
        ((4, 0, (2, 2), (1,)), "expected whole numbers"),
        ((3, 0, (2,), (1,)), "storage 0 needs 3 numbers"),
    ],
)
def test_a_tensor_that_claims_more_than_is_there_is_refused(tmp_path: Path, numbers: Any, message: str) -> None:
    path = archive(tmp_path / "claim.pt", tensor_program(*numbers), {"data/0": bytes(32)})
    with pytest.raises(ValueError, match=f"claim.pt: .*{message}"):
        read(path)


def test_one_storage_claimed_many_times_is_refused(tmp_path: Path) -> None:
    program = tensor_program(4096, 0, (4096,), (1,), copies=1000)
    path = archive(tmp_path / "many.pt", program, {"data/0": bytes(4096 * 8)})
    with pytest.raises(ValueError, match="claims more than its storage"):
        read(path)


@pytest.mark.parametrize("container", [b"}", b"]", b")\x85", b"K\x00\x85"])
def test_containers_beyond_what_the_size_explains_are_refused(tmp_path: Path, container: bytes) -> None:
    path = archive(tmp_path / "bomb.pt", b"\x80\x02" + container * 200_000 + b".")
    with pytest.raises(ValueError, match="more containers than its size explains"):
        read(path)


def test_memory_stays_near_the_size_of_the_file(tmp_path: Path) -> None:
    """A place in the memo far beyond any other, which Python's own unpickler makes room for."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    path = archive(tmp_path / "memo.pt", b"\x80\x02Nr\xff\xff\xff\xff.")
    assert read(path) is None
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 50_000  # KiB


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "no file of torch.save"),
        (b"\x80\x02}.", "no file of torch.save"),
        (b"PK\x03\x04", "no file of torch.save"),
    ],
)
def test_a_file_of_another_kind_is_refused(tmp_path: Path, content: bytes, message: str) -> None:
    (tmp_path / "other.pt").write_bytes(content)
    with pytest.raises(ValueError, match=f"other.pt: {message}"):
        read(tmp_path / "other.pt")


def test_a_compressed_archive_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="data.pkl is compressed"):
        read(archive(tmp_path / "deflated.pt", b"\x80\x02}." + bytes(1000), compression=zipfile.ZIP_DEFLATED))


def test_big_endian_numbers_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="byteorder must be little"):
        read(archive(tmp_path / "big.pt", b"\x80\x02}.", {"byteorder": b"big"}))


def test_a_file_cut_anywhere_is_refused(whole: Path, tmp_path: Path) -> None:
    content, path = whole.read_bytes(), tmp_path / "cut.pt"
    for length in range(0, len(content), 7):
        path.write_bytes(content[:length])
        with pytest.raises(ValueError, match="cut.pt: "):
            read(path)


@settings(max_examples=300)
@given(data=st.data())
def test_flipped_bytes_raise_nothing_but_a_named_refusal(whole: Path, data: st.DataObject) -> None:
    content = bytearray(whole.read_bytes())
    for _ in range(data.draw(st.integers(1, 4))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    path = whole.parent / "flipped.pt"
    path.write_bytes(content)
    refuses_or_reads(path)


@settings(max_examples=300)
@given(
    program=st.lists(st.sampled_from([bytes([n]) for n in b"\x80\x02}]()tuse.qhrjRQcNKMJXGNa\x85\x86\x87\x88\x8a\x94"]))
)
def test_programs_of_random_instructions_raise_nothing_but_a_named_refusal(
    tmp_path_factory: pytest.TempPathFactory, program: list[bytes]
) -> None:
    refuses_or_reads(archive(tmp_path_factory.getbasetemp() / "random.pt", b"\x80\x02" + b"".join(program) + b"."))


def refuses_or_reads(path: Path) -> None:
    try:
        read(path)
    except ValueError as error:
        if not str(error).startswith(f"{path}: ") or "\n" in str(error):
            raise AssertionError(f"no line that names the file: {error}") from error

"""Arrays from strangers: what numpy wrote is read, and nothing is made of a header that lies."""

import io
import struct

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from grace_opt.npy_bytes import MAGIC, read_npy_integers


def npy(array):
    stream = io.BytesIO()
    np.save(stream, array, allow_pickle=False)
    return stream.getvalue()


def with_header(text, data=b""):
    return MAGIC + b"\x01\x00" + struct.pack("<H", len(text)) + text.encode() + data


@pytest.mark.parametrize("dtype", [np.uint8, np.int32, np.int64, np.bool_])
@pytest.mark.parametrize("order", ["C", "F"])
def test_what_numpy_wrote_is_read(dtype, order):
    array = np.array([[0, 1, 1], [1, 0, 1]], dtype, order=order)
    assert (read_npy_integers(npy(array)) == array).all() and read_npy_integers(npy(array)).dtype == dtype


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"PK\x03\x04 and so on", "magic"),
        (MAGIC + b"\x09\x00", r"version \(9, 0\); expected 1.0 or 2.0"),
        (npy(np.zeros(3)), r"float64 \[3\] with 24 bytes: truncated, or no integers"),
        (npy(np.zeros(3, np.int32))[:-1], r"int32 \[3\] with 11 bytes: truncated"),
        (
            with_header("{'descr': '<i4', 'fortran_order': False, 'shape': (1000000000000,)}\n"),
            "with 0 bytes: truncated",
        ),
        (with_header("{'descr': '<i4', 'fortran_order': False, 'shape': (-1, -2)}\n", b"\0" * 8), "truncated"),
        (with_header("{'descr': '|O', 'fortran_order': False, 'shape': (1,)}\n", b"\0" * 8), "no integers"),
        (with_header("{'descr': (\n"), "header is damaged"),
    ],
)
def test_what_is_no_array_of_integers_is_refused(content, message):
    with pytest.raises(ValueError, match=message):
        read_npy_integers(content)


@settings(max_examples=200, deadline=None)
@given(st.integers(0, 150), st.binary(max_size=6), st.integers(0, 6))
def test_a_damaged_file_is_an_array_or_a_refusal(place, put, gone):
    content = npy(np.arange(6, dtype=np.int16))
    damaged = content[:place] + put + content[place + gone :]
    try:
        array = read_npy_integers(damaged)
    except ValueError:
        return
    assert array.nbytes <= len(damaged)

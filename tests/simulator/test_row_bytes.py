"""Bytes of a row by the type it travels in."""

import pytest

from simulator.row_bytes import WIRE_TYPES, row_bytes


@pytest.mark.parametrize(
    ("wire_type", "expected"),
    [
        ("bf16", 14336),
        ("fp16", 14336),
        ("fp32", 28672),
        ("fp8", 7168 + 224),
        ("fp8_tensor", 7168),
        ("mxfp8", 7168 + 224),
        ("nvfp4", 3584 + 448),
        ("mxfp4", 3584 + 224),
    ],
)
def test_a_row_of_7168_values_by_hand(wire_type, expected):
    assert row_bytes(7168, wire_type) == expected


def test_a_block_that_is_not_full_has_a_scale_too():
    assert row_bytes(129, "fp8") == 129 + 2 * 4


def test_every_type_is_known_by_hand():
    assert set(WIRE_TYPES) == {"bf16", "fp16", "fp32", "fp8", "fp8_tensor", "mxfp8", "nvfp4", "mxfp4"}


def test_an_unknown_type_is_refused():
    with pytest.raises(ValueError, match=r"wire type must be one of bf16, .* or null, got 'int3'"):
        row_bytes(8, "int3")

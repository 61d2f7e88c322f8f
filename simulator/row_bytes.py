"""Rows to bytes: what one token's hidden state weighs on the wire, by the type it travels in.

    bf16, fp16   2 bytes a value            mxfp8   1 byte a value, one byte of scale per 32
    fp32         4 bytes a value            nvfp4   half a byte a value, one byte of scale per 16
    fp8          1 byte a value, one fp32   mxfp4   half a byte a value, one byte of scale per 32
                 scale per 128              fp8_tensor   1 byte a value, scales not sent

A row of 7168 values takes 14336 bytes as bf16 and 7168 + 224 as fp8.
"""

import math

WIRE_TYPES: dict[str, tuple[float, int, int]] = {
    "bf16": (2, 0, 1),
    "fp16": (2, 0, 1),
    "fp32": (4, 0, 1),
    "fp8": (1, 4, 128),
    "fp8_tensor": (1, 0, 1),
    "mxfp8": (1, 1, 32),
    "nvfp4": (0.5, 1, 16),
    "mxfp4": (0.5, 1, 32),
}
"""Bytes of a value, bytes of a scale, values that share one."""


def require_wire_type(field: str, wire_type: str | None) -> None:
    """Raise ValueError unless there is such a type of rows; None is always allowed."""
    if wire_type is not None and wire_type not in WIRE_TYPES:
        raise ValueError(f"{field} must be one of {', '.join(WIRE_TYPES)} or null, got {wire_type!r}")


def row_bytes(hidden_size: int, wire_type: str) -> float:
    """Bytes of a row of so many values, scales included.

    Raises:
        ValueError: there is no such type.
    """
    require_wire_type("wire type", wire_type)
    value_bytes, scale_bytes, block = WIRE_TYPES[wire_type]
    return hidden_size * value_bytes + scale_bytes * math.ceil(hidden_size / block)

"""Headers of .npy arrays from strangers, checked before anything of their size is made.

`numpy.load` takes the size from the header before it looks at the content. Versions 1.0 and 2.0 hold every array of
numbers (numpy.lib.format).
"""

import io
import math
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

MAGIC = b"\x93NUMPY"
_HEADERS = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}


def read_npy_header(stream: IO[bytes]) -> tuple[tuple[int, ...], bool, np.dtype[Any]]:
    """Shape, whether the first axis varies fastest, and type; the stream is left where the values begin.

    Raises:
        ValueError: no such header, or of another version.
    """
    version = np.lib.format.read_magic(stream)
    if version not in _HEADERS:
        raise ValueError(f".npy of version {version}; expected 1.0 or 2.0")
    try:
        return _HEADERS[version](stream)
    except Exception as error:  # numpy parses it as Python's literals, and raises what that raises
        raise ValueError(f".npy header is damaged ({type(error).__name__})") from None


def read_npy_integers(content: bytes) -> NDArray[np.integer]:
    """A whole file of whole numbers (or truth values), without a copy.

    Raises:
        ValueError: no such file, other numbers, or not as many bytes as its header says.
    """
    stream = io.BytesIO(content)
    shape, fortran, dtype = read_npy_header(stream)
    data = content[stream.tell() :]
    if dtype.kind not in "iub" or min(shape, default=0) < 0 or len(data) != math.prod(shape) * dtype.itemsize:
        raise ValueError(f".npy of {dtype} {list(shape)} with {len(data)} bytes: truncated, or no integers")
    return np.frombuffer(data, dtype).reshape(shape, order="F" if fortran else "C")

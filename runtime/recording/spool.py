"""Choices of a recording on disk while it runs: a place for every sequence, filled in any order."""

import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray


class Spool:
    """Token-major choices in a temporary file without a name, which goes when this object does.

    Args:
        folder: where there is room for all choices, beside what is written from them.
        room: most tokens of each sequence.
        num_layers, top_k, dtype: L, K and the type of an expert id.
    """

    def __init__(self, folder: Path, room: Sequence[int], num_layers: int, top_k: int, dtype: Any) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._file = tempfile.TemporaryFile(dir=folder)  # noqa: SIM115  (open as long as this object)
        self._shape, self._dtype = (num_layers, top_k), dtype
        self._starts = np.concatenate(([0], np.cumsum(room, dtype=np.int64)))
        self.lengths = np.zeros(len(room), np.int64)
        """[Q] tokens that were put; 0 for sequences that were not."""

    def put(self, sequence: int, ids_TLK: NDArray[np.unsignedinteger]) -> None:
        """Keep one sequence's choices."""
        assert ids_TLK.shape[1:] == self._shape
        assert len(ids_TLK) <= self._starts[sequence + 1] - self._starts[sequence]
        self._file.seek(int(self._starts[sequence]) * self._token_bytes)
        self._file.write(np.ascontiguousarray(ids_TLK, self._dtype).tobytes())
        self.lengths[sequence] = len(ids_TLK)

    def pieces(self, sequences: Sequence[int]) -> Iterator[NDArray[np.unsignedinteger]]:
        """[T, L, K] of each of these sequences."""
        for sequence in sequences:
            self._file.seek(int(self._starts[sequence]) * self._token_bytes)
            content = self._file.read(int(self.lengths[sequence]) * self._token_bytes)
            ids: NDArray[np.unsignedinteger] = np.frombuffer(content, self._dtype).reshape(-1, *self._shape)
            yield ids

    @property
    def _token_bytes(self) -> int:
        return self._shape[0] * self._shape[1] * int(np.dtype(self._dtype).itemsize)

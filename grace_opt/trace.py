"""Which experts real tokens chose: a routing trace, its sequences, and the ranks those sequences live on."""

from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
from numba import njit
from numpy.typing import NDArray

PHASES = ("prefill", "decode", "mixed")


@dataclass(frozen=True, eq=False)
class Trace:
    """The top-k choices of every token, layer-major, as a set of sequences over a (memory-mapped) array.

    A part of a trace (a split) keeps the same array and lists fewer sequences; nothing is copied.

    Attributes:
        expert_ids: uint8 or uint16 [L, T, K], the experts each token chose, each at most once.
        starts, stops: int64 [Q], tokens of sequence q are expert_ids[:, starts[q]:stops[q]], in order.
        domains: int64 [Q], index into `domain_names` for each sequence.
        domain_names: what the text of a domain is.
        model: name of the model that was recorded; "" if the file does not say.
        num_experts: E.
        phase: prefill, decode or mixed.
        source: where the choices come from, one line.
        synthetic: True if no model produced them.
        homes: int64 [Q], the rank each sequence lives on; None until dealt (see `homes.py`).

    Example: two sequences of two tokens, one layer, top-2::

        Trace(np.array([[[0, 1], [1, 2], [3, 0], [2, 3]]], np.uint8), starts=[0, 2], stops=[2, 4], ...)
    """

    expert_ids: NDArray[np.unsignedinteger]
    starts: NDArray[np.int64]
    stops: NDArray[np.int64]
    domains: NDArray[np.int64]
    domain_names: tuple[str, ...]
    num_experts: int
    model: str = ""
    phase: str = "prefill"
    source: str = ""
    synthetic: bool = False
    homes: NDArray[np.int64] | None = None

    def __post_init__(self) -> None:
        ids = self.expert_ids
        if ids.ndim != 3 or ids.dtype not in (np.uint8, np.uint16):
            raise ValueError(
                f"trace: expert_ids must be uint8 or uint16 [layers, tokens, top_k], got {ids.dtype} {ids.shape}"
            )
        for field in ("starts", "stops", "domains", "homes"):
            value = getattr(self, field)
            if value is None:
                continue
            value = np.array(value, np.int64)
            if value.shape != (len(self.starts),):
                raise ValueError(f"trace: {field} must have one entry per sequence ({len(self.starts)})")
            value.setflags(write=False)
            object.__setattr__(self, field, value)
        if not 1 <= self.num_experts <= 65536:
            raise ValueError(f"trace: num_experts must be 1..65536, got {self.num_experts}")
        if not len(self.starts) or 0 in ids.shape:
            raise ValueError("trace: there are no tokens")
        if (self.starts >= self.stops).any() or self.starts.min() < 0 or self.stops.max() > ids.shape[1]:
            raise ValueError("trace: every sequence must hold at least one of the recorded tokens")
        if self.domains.min() < 0 or self.domains.max() >= len(self.domain_names):
            raise ValueError(f"trace: domain numbers must be 0..{len(self.domain_names) - 1}, one per domain name")
        if self.phase not in PHASES:
            raise ValueError(f"trace: phase must be one of {', '.join(PHASES)}, got {self.phase!r}")
        if self.homes is not None and self.homes.min() < 0:
            raise ValueError("trace: home ranks must not be negative")

    @property
    def num_layers(self) -> int:
        return int(self.expert_ids.shape[0])

    @property
    def top_k(self) -> int:
        return int(self.expert_ids.shape[2])

    @property
    def num_sequences(self) -> int:
        return len(self.starts)

    @property
    def lengths(self) -> NDArray[np.int64]:
        """[Q] tokens of each sequence."""
        return self.stops - self.starts

    @property
    def num_tokens(self) -> int:
        """Tokens of the listed sequences."""
        return int(self.lengths.sum())

    def select(self, sequences: NDArray[np.integer]) -> "Trace":
        """The trace of these sequences only, without homes (homes are dealt inside a part)."""
        return replace(
            self,
            starts=self.starts[sequences],
            stops=self.stops[sequences],
            domains=self.domains[sequences],
            homes=None,
        )

    def recorded(self, layer: int) -> NDArray[np.unsignedinteger]:
        """[T, K] one layer's choices of all tokens in the array, contiguous and read-only, copied only if they must be.

        Compiled functions are compiled anew, for seconds, for every layout and for arrays that may be written to.
        """
        ids_TK = np.ascontiguousarray(self.expert_ids[layer]).view()
        ids_TK.setflags(write=False)
        return ids_TK

    def layer(self, layer: int) -> NDArray[np.unsignedinteger]:
        """[tokens of the listed sequences, K] one layer's choices, copied into one array."""
        ids_TK = np.asarray(self.expert_ids[layer])
        return np.concatenate([ids_TK[start:stop] for start, stop in self.runs()])

    def runs(self) -> Iterator[tuple[int, int]]:
        """Token ranges (start, stop) of the listed sequences, neighbouring ones joined."""
        breaks = np.flatnonzero(self.starts[1:] != self.stops[:-1]) + 1
        for first, last in zip([0, *breaks], [*breaks, len(self.starts)], strict=True):
            yield int(self.starts[first]), int(self.stops[last - 1])


def sequence_bounds(sequence_T: NDArray[np.integer]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """[T] sequence id of each token to the starts and stops [Q] of the sequences, in order of first appearance.

    Raises:
        ValueError: tokens of one sequence do not stand together.
    """
    breaks = np.flatnonzero(np.diff(sequence_T.astype(np.int64))) + 1
    starts = np.concatenate(([0], breaks))
    ids, counts = np.unique(sequence_T[starts], return_counts=True)
    if (counts > 1).any():
        raise ValueError(f"tokens of sequence {ids[counts > 1][0]} do not stand together: sort the tokens by sequence")
    return starts.astype(np.int64), np.append(breaks, len(sequence_T)).astype(np.int64)


def check_expert_ids(expert_ids: NDArray[np.unsignedinteger], num_experts: int) -> None:
    """Raise ValueError if a token chose an expert that does not exist, or the same expert twice.

    Args:
        expert_ids: [L, T, K].
    """
    for layer, ids_TK in enumerate(expert_ids):
        token, kind = _first_bad_token(np.asarray(ids_TK), num_experts)
        if token >= 0:
            what = f"an expert outside 0..{num_experts - 1}" if kind == 1 else "the same expert twice"
            raise ValueError(f"expert_ids[{layer}, {token}] = {expert_ids[layer, token].tolist()} names {what}")


@njit(nogil=True, cache=True)
def _first_bad_token(ids_TK, num_experts):  # type: ignore[no-untyped-def]
    """(token, 1) for an id out of range, (token, 2) for a repeated one, (-1, 0) if all are fine."""
    last_token_E = np.full(num_experts, -1, np.int64)
    for token in range(ids_TK.shape[0]):
        for k in range(ids_TK.shape[1]):
            expert = ids_TK[token, k]
            if expert >= num_experts:
                return token, 1
            if last_token_E[expert] == token:
                return token, 2
            last_token_E[expert] = token
    return -1, 0

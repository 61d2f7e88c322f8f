"""Deal the sequences of a trace onto home ranks, as the data-parallel front end of a server does.

Homes are dealt inside one part of a split; numbering by position in the whole trace would put every held-out sequence
of an `alternate` split on odd ranks.
"""

import heapq
from dataclasses import dataclass, replace
from typing import Protocol

import numpy as np

from grace_opt.trace import Trace


class Homes(Protocol):
    """(trace, num_ranks) -> the same trace with homes."""

    def __call__(self, trace: Trace, num_ranks: int) -> Trace: ...


@dataclass(frozen=True)
class Balanced:
    """Each sequence, in order, to the rank with the fewest tokens so far; ties to the lowest rank."""

    def __call__(self, trace: Trace, num_ranks: int) -> Trace:
        tokens_of_rank = [(0, rank) for rank in range(num_ranks)]
        homes = np.empty(trace.num_sequences, np.int64)
        for sequence, length in enumerate(trace.lengths.tolist()):
            tokens, rank = tokens_of_rank[0]
            homes[sequence] = rank
            heapq.heapreplace(tokens_of_rank, (tokens + length, rank))
        return replace(trace, homes=homes)


@dataclass(frozen=True)
class Random:
    """Each sequence to a seeded random rank."""

    seed: int

    def __post_init__(self) -> None:
        if self.seed < 0:
            raise ValueError(f"homes: seed must not be negative, got {self.seed}")

    def __call__(self, trace: Trace, num_ranks: int) -> Trace:
        homes = np.random.default_rng(self.seed).integers(num_ranks, size=trace.num_sequences)
        return replace(trace, homes=homes)

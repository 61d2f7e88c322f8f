"""A layer's tokens as sets: tokens with the same experts and the same home count as one with a weight."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from grace_opt.trace import Trace
from grace_opt.traffic import batch_segments


@dataclass(frozen=True, eq=False)
class TokenSets:
    """Distinct (set of experts, home) pairs of a layer and how many tokens have each.

    Attributes:
        experts: int64 [M, K], ascending in a row.
        home: int64 [M], the home group (node or rank) of these tokens.
        weight: int64 [M], tokens.

    Example: tokens {1, 0} at home on 0, {0, 1} on 0 and {0, 1} on 1 are sets {0, 1}, {0, 1} with homes 0, 1 and
    weights 2, 1.
    """

    experts: NDArray[np.int64]
    home: NDArray[np.int64]
    weight: NDArray[np.int64]

    def __post_init__(self) -> None:
        assert self.home.shape == self.weight.shape == self.experts.shape[:1]
        for array in (self.experts, self.home, self.weight):
            array.setflags(write=False)

    @property
    def num_tokens(self) -> int:
        return int(self.weight.sum())

    def heaviest(self, num_sets: int) -> "TokenSets":
        """The sets of greatest weight only (ties: the first). Rows only shrink: still a lower bound."""
        kept = np.sort(np.argsort(-self.weight, kind="stable")[:num_sets])
        return TokenSets(self.experts[kept], self.home[kept], self.weight[kept])


def token_sets(
    trace: Trace, layer: int, group_of_rank: NDArray[np.integer], tokens_per_rank: float | None = None
) -> TokenSets:
    """The sets of one layer, ordered by home and experts.

    Args:
        trace: with homes.
        group_of_rank: [R] what counts as a token's home: the node of its rank, or the rank itself.
        tokens_per_rank: of a batch (see `traffic.batch_segments`): the home of a token in batch b is then
            b x groups + group. None: one batch.
    """
    group_of_rank = np.asarray(group_of_rank, np.int64)
    segments, _ = batch_segments(trace, len(group_of_rank), tokens_per_rank)
    home_S = segments[:, 3] * (group_of_rank.max() + 1) + group_of_rank[segments[:, 2]]
    home_T = np.repeat(home_S, segments[:, 1] - segments[:, 0])
    ids_LTK = np.asarray(trace.expert_ids[layer])
    ids_TK = np.concatenate([ids_LTK[start:stop] for start, stop in segments[:, :2]])
    rows = np.column_stack((home_T, np.sort(ids_TK.astype(np.int64), axis=1)))
    order = np.lexsort(rows.T[::-1])
    rows = rows[order]
    first = np.flatnonzero(np.concatenate(([True], (rows[1:] != rows[:-1]).any(axis=1))))
    weight = np.diff(np.append(first, len(rows)))
    return TokenSets(np.ascontiguousarray(rows[first, 1:]), rows[first, 0].copy(), weight)

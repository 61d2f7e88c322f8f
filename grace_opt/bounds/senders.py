"""Who sends rows to other nodes: a stage ends with its busiest sender, later than the mean sender would tell.

Proof of what `relaxation` makes of it: for shares that add up to 1 over the senders of a batch, the busiest sends no
less than the sum of share x rows. So any shares, batch by batch, turn a bound on weighted rows into one on the busiest.

Example: rank 0 is home to 30 tokens, ranks 1 to 3 to 10 each, and no plan keeps more than half of any rank's tokens on
their node: 30 rows in all, 7.5 for the mean rank, but 15 for the busiest.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from grace_opt.bounds.token_sets import TokenSets, token_sets
from grace_opt.trace import Trace
from grace_opt.traffic import Traffic, batch_segments


@dataclass(frozen=True, eq=False)
class Sending:
    """Which ranks send as one, in what batches.

    Attributes:
        sender_of_rank: int64 [R], numbers from 0; ranks of one sender are of one node.
        tokens_per_rank: of a batch (see `traffic.batch_segments`); None: one batch.
    """

    sender_of_rank: NDArray[np.int64]
    tokens_per_rank: float | None = None

    def token_sets(self, trace: Trace, layer: int, node_of_rank: NDArray[np.integer]) -> "tuple[TokenSets, Senders]":
        """A layer's tokens with their senders for homes, and these."""
        tokens_BR = batch_segments(trace, len(node_of_rank), self.tokens_per_rank)[1]
        first = np.unique(self.sender_of_rank, return_index=True)[1]
        batch = np.repeat(np.arange(len(tokens_BR)), len(first))
        senders = Senders(np.tile(np.asarray(node_of_rank, np.int64)[first], len(tokens_BR)), batch)
        return token_sets(trace, layer, self.sender_of_rank, self.tokens_per_rank), senders

    def busiest_rows(self, counts: Traffic) -> NDArray[np.int64]:
        """[L] rows between nodes of the busiest sender of each batch, summed over batches.

        Args:
            counts: in these batches.
        """
        away_RN = counts.node_of_rank[:, None] != np.arange(len(counts.ranks_per_node))
        rows_LBR = (counts.node_visits * away_RN).sum(axis=3)
        together = self.sender_of_rank[:, None] == np.arange(self.sender_of_rank.max() + 1)
        return np.asarray((rows_LBR @ together).max(axis=2).sum(axis=1))


@dataclass(frozen=True, eq=False)
class Senders:
    """The senders of all batches, batch by batch.

    Attributes:
        node: int64 [G], of each.
        batch: int64 [G], ascending.
    """

    node: NDArray[np.int64]
    batch: NDArray[np.int64]

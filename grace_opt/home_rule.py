"""Homes as a decision: which rank a request should live on, from the routing of its first tokens and a plan.

The cost of rank r for a request is what its first tokens cause if they are at home there, in seconds of a layer per
token: rows to other nodes x `between_s` + rows inside nodes x `inside_s`, mean over tokens and layers, counted exactly
under the plan. Requests are dealt in the order in which they come, each to the rank of least

    cost + crowding_s * (tokens of the rank - fewest tokens of any rank) / mean tokens of a rank,

with the request counted on the rank and in the mean; ties to the lowest rank. With crowding_s = 0 only affinity counts,
with a large one only balance. A serving front end that sees the first tokens' routing (its prefill, or a small router's
guess) can apply the rule as it stands: it needs the plan and these four numbers, which travel in the plan file.

Example: 2 ranks on 2 nodes, experts 0 and 1 on rank 0, 2 and 3 on rank 1; a request whose first tokens chose 0 and 1
costs nothing at rank 0, and one row a token at rank 1.
"""

from dataclasses import dataclass, replace

import numpy as np
from numba import njit
from numpy.typing import NDArray

from grace_opt.cover import copy_table, cover_token
from grace_opt.placement import Placement
from grace_opt.trace import Trace


@dataclass(frozen=True)
class HomeRule:
    """How requests are dealt onto ranks.

    Attributes:
        first_tokens: tokens of a request that are known when it gets its home; None: all of them.
        between_s, inside_s: seconds of a layer that a row between nodes, or inside one, costs.
        crowding_s: seconds that a rank with the mean tokens costs against an empty one.
    """

    first_tokens: int | None
    between_s: float
    inside_s: float
    crowding_s: float

    def __post_init__(self) -> None:
        if self.first_tokens is not None and self.first_tokens < 1:
            raise ValueError(f"home rule: first_tokens must be at least 1, or null for all, got {self.first_tokens}")
        for name in ("between_s", "inside_s", "crowding_s"):
            if not 0 <= getattr(self, name) < np.inf:
                raise ValueError(f"home rule: {name} must be a time in seconds, got {getattr(self, name)}")


def home_costs(
    trace: Trace, placement: Placement, ranks_per_node: tuple[int, ...], rule: HomeRule
) -> NDArray[np.float64]:
    """[Q, R] seconds per token and layer that each sequence costs on each rank, by its first tokens."""
    known = trace.lengths if rule.first_tokens is None else np.minimum(trace.lengths, rule.first_tokens)
    stops = trace.starts + known
    costs_QR = np.zeros((trace.num_sequences, placement.num_ranks))
    for layer in range(trace.num_layers):
        table = copy_table(placement, ranks_per_node, layer)
        _add_costs(
            trace.recorded(layer), trace.starts, stops, table.num_copies, table.rank, table.node_of_rank, table.entry,
            float(rule.between_s), float(rule.inside_s), costs_QR,
        )  # fmt: skip
    return costs_QR / (known[:, None] * trace.num_layers)


def deal(trace: Trace, costs_QR: NDArray[np.float64], crowding_s: float) -> Trace:
    """The trace with the homes that the rule gives its sequences, in their order."""
    tokens_R = np.zeros(costs_QR.shape[1])
    homes = np.empty(trace.num_sequences, np.int64)
    for sequence, length in enumerate(trace.lengths.tolist()):
        after_R = tokens_R + length
        crowding_R = (after_R - tokens_R.min()) / ((tokens_R.sum() + length) / len(tokens_R))
        homes[sequence] = np.argmin(costs_QR[sequence] + crowding_s * crowding_R)
        tokens_R[homes[sequence]] += length
    return replace(trace, homes=homes)


@njit(nogil=True, cache=True)
def _add_costs(  # type: ignore[no-untyped-def]
    ids_TK, starts_Q, stops_Q, copies_E, rank_EC, node_R, entry_RN, between_s, inside_s, costs_QR
):
    top_k = ids_TK.shape[1]
    node_K, copy_K = np.empty(top_k, np.int64), np.empty(top_k, np.int64)
    seen_N, seen_R = np.full(entry_RN.shape[1], -1, np.int64), np.full(len(node_R), -1, np.int64)
    known_N, known_R = seen_N.copy(), seen_R.copy()
    stamp = 0
    for sequence in range(len(starts_Q)):
        for token in range(starts_Q[sequence], stops_Q[sequence]):
            for home in range(len(node_R)):
                turn = home + token - starts_Q[sequence]
                cover_token(
                    ids_TK, token, home, turn, copies_E, rank_EC, node_R, entry_RN, node_K, seen_N, seen_R, stamp,
                    copy_K,
                )  # fmt: skip
                for k in range(top_k):
                    rank = rank_EC[ids_TK[token, k], copy_K[k]]
                    node = node_R[rank]
                    if node != node_R[home] and known_N[node] != stamp:
                        known_N[node] = stamp
                        costs_QR[sequence, home] += between_s
                    if rank != entry_RN[home, node] and known_R[rank] != stamp:
                        known_R[rank] = stamp
                        costs_QR[sequence, home] += inside_s
                stamp += 1

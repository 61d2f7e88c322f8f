"""What the rows of a stage put on ranks, pairs and links, counted once and priced under any bandwidths."""

from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
from numba import njit
from numpy.typing import NDArray
from scipy import sparse

from grace_opt.topology import Topology


@dataclass(frozen=True, eq=False)
class StageLoad:
    """Rows of a stage, for each of C columns (layers x batches). Scope 0 is inside a node, 1 between nodes.

    Attributes:
        shape: (layers, batches), C = layers x batches.
        rows: [C, R, R] rows rank to rank.
        link_rows: float64 [links, C], rows that cross each directed link.
        end_rows: float64 [2, C, R], rows a rank sends or receives in a scope, whichever is more.
        pair_rows: float64 [2, C], most rows between two ranks.
        handled_rows: float64 [C, R], rows a rank sends or receives, those that stay with it included.
        ordered_rows: [C, R], rows a rank puts in order: those it sends, or on the way back receives.
        latency_s: float64 [2, C], latency of the longest route used.
    """

    shape: tuple[int, int]
    rows: NDArray[Any]
    link_rows: NDArray[np.float64]
    end_rows: NDArray[np.float64]
    pair_rows: NDArray[np.float64]
    handled_rows: NDArray[np.float64]
    ordered_rows: NDArray[np.float64]
    latency_s: NDArray[np.float64]

    @property
    def travels(self) -> NDArray[np.bool_]:
        """[C] whether any row leaves its rank."""
        return np.asarray(self.pair_rows.any(axis=0))


@dataclass(frozen=True, eq=False)
class RouteTable:
    """Routes of a topology, pair by pair, and which links serve each scope."""

    start: NDArray[np.int32]  # [R * R + 1] where each pair's links begin
    links: NDArray[np.int32]
    weight: NDArray[np.float64]
    between: NDArray[np.bool_]  # [R, R] whether two ranks are on different nodes
    serves: NDArray[np.bool_]  # [2, links]


@lru_cache(maxsize=16)
def route_table(topology: Topology) -> RouteTable:
    """Built once a topology; few are kept."""
    by_pair = sparse.csc_array(topology.routes)
    between = topology.node_of_rank[:, None] != topology.node_of_rank[None, :]
    serves = np.zeros((2, len(topology.link_names)), bool)
    scope = np.repeat(between.ravel(), np.diff(by_pair.indptr)).astype(int)
    serves[scope, by_pair.indices] = True
    return RouteTable(
        by_pair.indptr.astype(np.int32), by_pair.indices.astype(np.int32), by_pair.data.astype(float), between, serves
    )


def stage_load(topology: Topology, rows_LBRR: NDArray[Any], returning: bool = False) -> StageLoad:
    """Count what the rows of a stage put on each part of the topology.

    Args:
        rows_LBRR: [L, B, R, R] rows rank to rank; those on the diagonal stay where they are.
        returning: rows are on their way back: the receiver sums them, where otherwise the sender puts them in order.
    """
    shape, ranks = rows_LBRR.shape[:2], rows_LBRR.shape[2]
    rows_CRR = np.ascontiguousarray(rows_LBRR).reshape(-1, ranks, ranks)
    table = route_table(topology)
    columns = len(rows_CRR)
    link_CL = np.zeros((columns, len(topology.link_names)))
    end_2CR, pair_2C = np.zeros((2, columns, ranks)), np.zeros((2, columns))
    handled_2CR, latency_2C = np.zeros((2, columns, ranks)), np.zeros((2, columns))
    _count(
        rows_CRR, table.start, table.links, table.weight, table.between, topology.latency_s,
        link_CL, end_2CR, pair_2C, handled_2CR, latency_2C,
    )  # fmt: skip
    ordered_CR = handled_2CR[1 if returning else 0]
    return StageLoad(
        (shape[0], shape[1]), rows_CRR, link_CL.T, end_2CR, pair_2C, handled_2CR.max(axis=0), ordered_CR, latency_2C
    )


@njit(nogil=True, cache=True)
def _count(  # type: ignore[no-untyped-def]
    rows_CRR, start, links, weight, between_RR, latency_RR, link_CL, end_2CR, pair_2C, handled_2CR, latency_2C
):
    ranks = rows_CRR.shape[1]
    sent = np.empty((2, ranks))
    received = np.empty((2, ranks))
    for column in range(len(rows_CRR)):
        sent[:] = 0
        received[:] = 0
        for source in range(ranks):
            for end in range(ranks):
                rows = float(rows_CRR[column, source, end])
                if rows <= 0:
                    continue
                handled_2CR[0, column, source] += rows
                handled_2CR[1, column, end] += rows
                if source == end:
                    continue
                scope = 1 if between_RR[source, end] else 0
                sent[scope, source] += rows
                received[scope, end] += rows
                pair_2C[scope, column] = max(pair_2C[scope, column], rows)
                latency_2C[scope, column] = max(latency_2C[scope, column], latency_RR[source, end])
                pair = source * ranks + end
                for position in range(start[pair], start[pair + 1]):
                    link_CL[column, links[position]] += rows * weight[position]
        for scope in range(2):
            for rank in range(ranks):
                end_2CR[scope, column, rank] = max(sent[scope, rank], received[scope, rank])


@njit(nogil=True, cache=True)
def slowest_link_of_rank(rows_CRR, start, links, seconds_LC):  # type: ignore[no-untyped-def]
    """[C, R] time of the slowest link that a rank's rows, sent or received, cross."""
    columns, ranks = rows_CRR.shape[:2]
    slowest = np.zeros((columns, ranks))
    for column in range(columns):
        for source in range(ranks):
            for end in range(ranks):
                if source == end or rows_CRR[column, source, end] <= 0:
                    continue
                pair = source * ranks + end
                for position in range(start[pair], start[pair + 1]):
                    seconds = seconds_LC[links[position], column]
                    slowest[column, source] = max(slowest[column, source], seconds)
                    slowest[column, end] = max(slowest[column, end], seconds)
    return slowest

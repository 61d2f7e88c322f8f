"""Rows to seconds: what a matrix of transfers takes on the links of a topology.

A stage of communication takes

    max over ranks of row bytes put in order or summed / copy rate      (rows that stay at home included)
    + max over routes used of latency
    + max over links of (bytes - burst) / bandwidth.

Every link counts each direction by itself, so a rank's own link bounds what it sends and what it receives, and a node's
shared link bounds the sum over its ranks. Stages follow one another.
"""

import numpy as np
from numpy.typing import NDArray

from grace_opt.topology import Topology


def stage_seconds(
    topology: Topology, rows_LBRR: NDArray[np.int64], row_bytes: float, returning: bool = False
) -> NDArray[np.float64]:
    """[L, B] seconds of one stage; one in which nothing travels takes none.

    Args:
        rows_LBRR: [L, B, R, R] rows rank to rank; those on the diagonal stay where they are.
        row_bytes: bytes of one row.
        returning: rows are on their way back: the receiver sums them, where otherwise the sender puts them in order.
    """
    num_layers, num_batches = rows_LBRR.shape[:2]
    rows_pairs = rows_LBRR.reshape(num_layers * num_batches, -1).T
    link_bytes = (topology.routes @ rows_pairs) * row_bytes
    waiting = np.maximum(link_bytes - np.asarray(topology.link_burst_bytes)[:, None], 0.0)
    transfer = (waiting / topology.link_bytes_per_s[:, None]).max(axis=0, initial=0.0)
    latency = ((rows_pairs > 0) * topology.latency_s.reshape(-1, 1)).max(axis=0, initial=0.0)
    travels = link_bytes.any(axis=0).reshape(num_layers, num_batches)
    copy_bytes_per_s = np.array([gpu.copy_bytes_per_s for gpu in topology.gpus])
    copying = (rows_LBRR.sum(axis=2 if returning else 3) * row_bytes / copy_bytes_per_s).max(axis=2)
    return np.asarray(np.where(travels, (transfer + latency).reshape(travels.shape) + copying, 0.0))


def phase_seconds(
    topology: Topology, stages: tuple[NDArray[np.int64], ...], row_bytes: float, returning: bool = False
) -> NDArray[np.float64]:
    """[L, B] seconds of a phase of several stages, one after the other."""
    return np.asarray(sum(stage_seconds(topology, rows, row_bytes, returning) for rows in stages))

"""Rows to seconds: what a matrix of transfers takes on the links of a topology.

A stage of communication takes  max over routes used of latency  +  max over links of bytes / bandwidth.
Every link counts each direction by itself, so a rank's own link bounds what it sends and what it receives, and a node's
shared link bounds the sum over its ranks. Stages follow one another.
"""

import numpy as np
from numpy.typing import NDArray

from grace_opt.topology import Topology


def stage_seconds(topology: Topology, rows_LBRR: NDArray[np.int64], row_bytes: float) -> NDArray[np.float64]:
    """[L, B] seconds of one stage.

    Args:
        rows_LBRR: [L, B, R, R] rows rank to rank, diagonal 0.
        row_bytes: bytes of one row.
    """
    num_layers, num_batches = rows_LBRR.shape[:2]
    rows_pairs = rows_LBRR.reshape(num_layers * num_batches, -1).T
    link_bytes = (topology.routes @ rows_pairs) * row_bytes
    transfer = (link_bytes / topology.link_bytes_per_s[:, None]).max(axis=0, initial=0.0)
    latency = ((rows_pairs > 0) * topology.latency_s.reshape(-1, 1)).max(axis=0, initial=0.0)
    return np.asarray((transfer + latency).reshape(num_layers, num_batches))


def phase_seconds(topology: Topology, stages: tuple[NDArray[np.int64], ...], row_bytes: float) -> NDArray[np.float64]:
    """[L, B] seconds of a phase of several stages, one after the other."""
    return np.asarray(sum(stage_seconds(topology, rows, row_bytes) for rows in stages))

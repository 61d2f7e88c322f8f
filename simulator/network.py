"""Rows to seconds: what a matrix of transfers takes on the links of a topology.

A stage of communication takes

    max over ranks of row bytes put in order or summed / copy rate      (rows that stay at home included)
    + max over routes used of latency
    + max over links of (bytes - burst) / bandwidth * (1 + contention * evenness ** EVENNESS_POWER).

Evenness is the mean over the maximum of the time of links of the slowest one's kind (bandwidth within a factor of 2):
flows that are bounded at both ends do not share links so fairly that all finish together, but where one link is busier
than the rest it alone decides. Every link counts each direction by itself, so a rank's own link bounds what it sends
and what it receives, and a node's shared link bounds the sum over its ranks. Stages follow one another.
"""

import numpy as np
from numpy.typing import NDArray

from grace_opt.topology import Topology

EVENNESS_POWER = 7
"""TCP between 4 hosts, exchanges of made-up rows: 1.19, 1.13, 1.05, 1.03 and 1.00 of the busiest link's time at
evenness 1, 0.94, 0.85, 0.77 and 0.48."""


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
    transfer = _slowest(topology, waiting / topology.link_bytes_per_s[:, None])
    latency = ((rows_pairs > 0) * topology.latency_s.reshape(-1, 1)).max(axis=0, initial=0.0)
    travels = link_bytes.any(axis=0).reshape(num_layers, num_batches)
    copy_bytes_per_s = np.array([gpu.copy_bytes_per_s for gpu in topology.gpus])
    copying = (rows_LBRR.sum(axis=2 if returning else 3) * row_bytes / copy_bytes_per_s).max(axis=2)
    return np.asarray(np.where(travels, (transfer + latency).reshape(travels.shape) + copying, 0.0))


def _slowest(topology: Topology, seconds: NDArray[np.float64]) -> NDArray[np.float64]:
    """[columns] seconds until the last of all links is done, given those of each alone [links, columns]."""
    longest = seconds.max(axis=0, initial=0.0)
    if not topology.contention or not seconds.size:
        return np.asarray(longest)
    speed = topology.link_bytes_per_s
    bottleneck = speed[seconds.argmax(axis=0)]
    alike = (speed[:, None] <= 2 * bottleneck) & (2 * speed[:, None] >= bottleneck)
    evenness = (seconds * alike).sum(axis=0) / alike.sum(axis=0) / np.maximum(longest, 1e-30)
    return np.asarray(longest * (1 + topology.contention * evenness**EVENNESS_POWER))


def phase_seconds(
    topology: Topology, stages: tuple[NDArray[np.int64], ...], row_bytes: float, returning: bool = False
) -> NDArray[np.float64]:
    """[L, B] seconds of a phase of several stages, one after the other."""
    return np.asarray(sum(stage_seconds(topology, rows, row_bytes, returning) for rows in stages))

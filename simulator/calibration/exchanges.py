"""Measured exchanges: the rows that a benchmark moved, priced by the same functions that price a plan.

Benchmarks draw the experts of a token uniformly, so that the expected rows follow from sizes alone. With E experts of
which a rank (or node) holds e, a token visits it with probability 1 - C(E - e, K) / C(E, K).
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from grace_opt.gpu import GPU
from grace_opt.topology import Topology
from grace_opt.traffic import Traffic
from simulator.network import loads_seconds
from simulator.stage_load import StageLoad, stage_load
from simulator.transport import Kernel

WIRE_BYTES_PER_S = 1e15
GROUPS_OF_TOKEN = 4
"""DeepEP's benchmark of its normal kernels lets a token choose experts on so many nodes at most."""


@dataclass(frozen=True)
class Layout:
    """Machine and routing of a benchmark.

    Attributes:
        num_nodes, ranks_per_node: equal nodes.
        inside_bytes_per_s, between_bytes_per_s: capacity of a rank's links by their data sheets, to compare GPUs by.
        routing: `uniform`; `grouped`, on GROUPS_OF_TOKEN nodes at most; `even`, a token's choices spread over as many
            ranks as it has choices; `all_to_all`, as many rows to every rank.
        num_experts, top_k: of the layer.
    """

    num_nodes: int
    ranks_per_node: int
    inside_bytes_per_s: float
    between_bytes_per_s: float
    routing: str
    num_experts: int
    top_k: int

    @property
    def num_ranks(self) -> int:
        return self.num_nodes * self.ranks_per_node


@dataclass(frozen=True, eq=False)
class Exchange:
    """Measurements of one kernel that differ in the number of tokens only.

    Attributes:
        layout: machine and routing.
        scheme: how rows move (see `grace_opt.traffic`).
        returning: combine rather than dispatch.
        row_bytes: bytes of a row on the wire.
        sms: SMs the kernel ran on; None if they do not limit it.
        tokens: float64 [rows], tokens of a rank.
        measured_s: float64 [rows].
        fills: whether the kernel fills a place for each choice before rows come back.
    """

    layout: Layout
    scheme: str
    returning: bool
    row_bytes: float
    sms: int | None
    tokens: NDArray[np.float64]
    measured_s: NDArray[np.float64]
    fills: bool = False

    def __len__(self) -> int:
        return len(self.tokens)

    def seconds(self, kernel: Kernel) -> NDArray[np.float64]:
        """[rows] predicted under a transport's kernel."""
        kernel = replace(kernel, sms=self.sms)
        layout = self.layout
        loads = _loads(layout, self.scheme, self.returning, tuple(self.tokens.tolist()))
        choices_CR = np.tile(self.tokens[:, None] * layout.top_k, layout.num_ranks)
        return loads_seconds(
            _topology(layout), loads, self.row_bytes, kernel, num_experts=layout.num_experts, choices_CR=choices_CR
        )


def predicted(exchanges: Sequence[Exchange], kernel: Kernel) -> NDArray[np.float64]:
    """[rows] predictions of several exchanges, one after the other."""
    return np.concatenate([exchange.seconds(kernel) for exchange in exchanges])


def measured(exchanges: Sequence[Exchange]) -> NDArray[np.float64]:
    """[rows] measurements of several exchanges, one after the other."""
    return np.concatenate([exchange.measured_s for exchange in exchanges])


@lru_cache(maxsize=64)
def _topology(layout: Layout) -> Topology:
    """Wires that limit nothing: what those of the benchmark did is in the constants that are fitted to it."""
    gpu = GPU("benchmark", flops_per_s=1e15, memory_bytes_per_s=1e12, memory_bytes=1e11)
    between_bytes_per_s = WIRE_BYTES_PER_S if layout.num_nodes > 1 else math.inf
    return Topology.two_level(
        "benchmark", gpu, layout.num_nodes, layout.ranks_per_node, WIRE_BYTES_PER_S, 0.0, between_bytes_per_s, 1e-9
    )


@lru_cache(maxsize=4096)
def _loads(layout: Layout, scheme: str, returning: bool, tokens: tuple[float, ...]) -> tuple[StageLoad, ...]:
    counts = uniform_traffic(layout, np.array(tokens))
    stages = counts.returning(scheme) if returning else counts.stages(scheme)
    return tuple(stage_load(_topology(layout), rows, returning) for rows in stages)


def uniform_traffic(layout: Layout, tokens_C: NDArray[np.float64]) -> Traffic:
    """Expected counts, as fractions of rows; one layer, a batch for each number of tokens of a rank."""
    ranks, nodes = layout.num_ranks, layout.num_nodes
    batches = len(tokens_C)
    visits_R, visits_N = visits_per_token(layout)

    def spread(per_token: float, width: int) -> NDArray[np.float64]:
        return np.broadcast_to(per_token * tokens_C[None, :, None, None], (1, batches, ranks, width))

    return Traffic(  # counts are whole numbers elsewhere; here their expectations
        np.zeros((1, batches, ranks), np.int64),
        spread(layout.top_k / ranks, ranks),  # type: ignore[arg-type]
        spread(visits_R / ranks, ranks),  # type: ignore[arg-type]
        spread(visits_N / nodes, nodes),  # type: ignore[arg-type]
        np.broadcast_to(tokens_C[:, None], (batches, ranks)),
        (layout.ranks_per_node,) * nodes,
    )


def visits_per_token(layout: Layout) -> tuple[float, float]:
    """Expected distinct ranks and nodes that a token visits, its own included."""
    ranks, nodes, top_k = layout.num_ranks, layout.num_nodes, layout.top_k
    if layout.routing == "all_to_all":
        return float(ranks), float(nodes)
    if layout.routing == "even":
        return float(min(ranks, top_k)), float(min(nodes, top_k))
    if layout.routing == "grouped" and nodes > GROUPS_OF_TOKEN:
        return _grouped_visits(layout)
    return distinct(layout.num_experts, ranks, top_k), distinct(layout.num_experts, nodes, top_k)


def distinct(num_experts: int, places: int, top_k: int) -> float:
    """Expected distinct places among which `num_experts` are dealt equally, of `top_k` drawn uniformly.

    Example: 256 experts, top-8 on 2, 4 and 8 nodes: 1.99, 3.61 and 5.30.
    """
    held = num_experts / places
    missed = math.prod((num_experts - held - k) / (num_experts - k) for k in range(top_k))
    return places * (1 - max(missed, 0.0))


@lru_cache(maxsize=16)
def _grouped_visits(layout: Layout) -> tuple[float, float]:
    """By drawing scores: the nodes with the best experts first, then the best experts on them."""
    ranks, nodes, draws = layout.num_ranks, layout.num_nodes, 4000
    score = np.random.default_rng(0).random((draws, nodes, layout.num_experts // nodes))
    chosen_nodes = np.argsort(-score.max(axis=2), axis=1)[:, :GROUPS_OF_TOKEN]
    allowed = np.zeros((draws, nodes, 1), bool)
    np.put_along_axis(allowed[:, :, 0], chosen_nodes, True, axis=1)
    experts = np.argsort(-(score * allowed).reshape(draws, -1), axis=1)[:, : layout.top_k]
    seen_R, seen_N = np.zeros((draws, ranks), bool), np.zeros((draws, nodes), bool)
    np.put_along_axis(seen_R, experts * ranks // layout.num_experts, True, axis=1)
    np.put_along_axis(seen_N, experts * nodes // layout.num_experts, True, axis=1)
    return float(seen_R.sum(axis=1).mean()), float(seen_N.sum(axis=1).mean())

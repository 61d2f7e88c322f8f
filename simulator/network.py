"""Rows to seconds: what a matrix of transfers takes on the links of a topology, under the kernels of a transport.

With no transport a stage of communication takes

    max over ranks of row bytes put in order or summed / copy rate      (rows that stay at home included)
    + max over routes used of latency
    + max over links of (bytes - burst) / bandwidth * (1 + contention * evenness ** EVENNESS_POWER).

Evenness is the mean over the maximum of the time of links of the slowest one's kind (bandwidth within a factor of 2):
flows that are bounded at both ends do not share links so fairly that all finish together, but where one link is busier
than the rest it alone decides. Every link counts each direction by itself, so a rank's own link bounds what it sends
and what it receives, and a node's shared link bounds the sum over its ranks. Stages follow one another.

With a transport the last line is one of several bounds, and its start-up takes the place of latency
(`simulator.transport`).
With sharing `max_min` flows share links max-min fairly, which the last line bounds from below.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from grace_opt.topology import Topology
from simulator.fair_flows import fair_seconds
from simulator.stage_load import StageLoad, route_table, slowest_link_of_rank, stage_load
from simulator.transport import SCOPES, Kernel

EVENNESS_POWER = 7
"""TCP between 4 hosts, exchanges of made-up rows: 1.19, 1.13, 1.05, 1.03 and 1.00 of the busiest link's time at
evenness 1, 0.94, 0.85, 0.77 and 0.48."""

SHARING = ("busiest_link", "max_min")
BOUNDS = ("nothing", "latency", "rank", "pair", "SMs", "link")
"""What a stage waits for: nothing to send, start-up or latency alone, what a rank sends or receives, what one pair of
ranks exchanges, the SMs of a rank, a link."""
ALL = 2  # in place of a scope: every link, where no transport tells inside from between


@dataclass(frozen=True, eq=False)
class StageDetail:
    """Who is busy how long in a stage, and with what; C columns are layers x batches.

    Attributes:
        seconds: float64 [C], time of the stage.
        rank_s: float64 [C, R], until a rank's own rows are sent and received, and places for them filled; 0 for a rank
            without any.
        bound: int64 [C], index into BOUNDS of what decides the stage.
        where: int64 [C], the rank, or the link (`topology.link_names`) that decides; -1 for nothing and latency.
        startup_s: float64 [C], start-up or latency.
        bound_s: float64 [C, BOUNDS], seconds that each bound alone would take, start-up left out.
        copy_s: float64 [C], putting rows in order or summing them, part of `seconds`.
    """

    seconds: NDArray[np.float64]
    rank_s: NDArray[np.float64]
    bound: NDArray[np.int64]
    where: NDArray[np.int64]
    startup_s: NDArray[np.float64]
    bound_s: NDArray[np.float64]
    copy_s: NDArray[np.float64]


def stage_seconds(
    topology: Topology, rows_LBRR: NDArray[Any], row_bytes: float, returning: bool = False
) -> NDArray[np.float64]:
    """[L, B] seconds of one stage; one in which nothing travels takes none.

    Args:
        rows_LBRR: [L, B, R, R] rows rank to rank; those on the diagonal stay where they are.
        row_bytes: bytes of one row.
        returning: rows are on their way back: the receiver sums them, where otherwise the sender puts them in order.
    """
    return phase_seconds(topology, (rows_LBRR,), row_bytes, returning)


def phase_seconds(
    topology: Topology,
    stages: Sequence[NDArray[Any]],
    row_bytes: float,
    returning: bool = False,
    kernel: Kernel | None = None,
    sharing: str = "busiest_link",
    num_experts: int = 0,
    choices_LBR: NDArray[Any] | None = None,
) -> NDArray[np.float64]:
    """[L, B] seconds of a phase of several stages, one after the other unless the kernel overlaps them.

    Args:
        stages: rows [L, B, R, R] of each.
        kernel: of a transport; None if links alone limit.
        sharing: one of SHARING.
        num_experts: physical experts of a layer, for kernels whose start-up grows with them.
        choices_LBR: [L, B, R] choices of each rank's own tokens, for kernels that fill a place for each; None: as many
            as rows that come home, which is less where copies of one token's choices share a rank.
    """
    loads = [stage_load(topology, rows, returning) for rows in stages]
    choices_CR = None if choices_LBR is None else choices_LBR.reshape(-1, topology.num_ranks)
    return loads_seconds(topology, loads, row_bytes, kernel, sharing, num_experts, choices_CR).reshape(loads[0].shape)


def loads_seconds(
    topology: Topology,
    loads: Sequence[StageLoad],
    row_bytes: float,
    kernel: Kernel | None = None,
    sharing: str = "busiest_link",
    num_experts: int = 0,
    choices_CR: NDArray[Any] | None = None,
) -> NDArray[np.float64]:
    """[C] seconds of a phase whose stages were counted already (see `phase_seconds`)."""
    kernel = kernel or Kernel()
    handled_C = _sm_seconds(loads, row_bytes, kernel)
    times = []
    for load, sm_CR in zip(loads, handled_C, strict=True):
        seconds = np.zeros(len(load.rows))
        for scope in _scopes(kernel):
            line = _bounds(topology, load, row_bytes, kernel, scope, sharing, num_experts).seconds(sm_CR)
            seconds = np.maximum(seconds, np.where(_used(load, scope), line.min(axis=0), 0.0))
        times.append(np.where(load.travels, seconds + _copy_seconds(topology, load, row_bytes, kernel), 0.0))
    total = np.max(times, axis=0) if kernel.pipelined else sum(times)
    if math.isfinite(kernel.fill_bytes_per_s):
        total = total + _fill_seconds(loads, row_bytes, kernel, choices_CR).max(axis=1)
    return np.asarray(total)


def stage_detail(
    topology: Topology,
    stages: Sequence[NDArray[Any]],
    row_bytes: float,
    returning: bool = False,
    kernel: Kernel | None = None,
    sharing: str = "busiest_link",
    num_experts: int = 0,
    choices_LBR: NDArray[Any] | None = None,
) -> tuple[StageDetail, ...]:
    """Of each stage, what `phase_seconds` is made of; those of a pipelined kernel run at the same time."""
    kernel = kernel or Kernel()
    loads = [stage_load(topology, rows, returning) for rows in stages]
    *first, last = (
        _detail(topology, load, row_bytes, kernel, sharing, num_experts, sm_CR)
        for load, sm_CR in zip(loads, _sm_seconds(loads, row_bytes, kernel), strict=True)
    )
    choices_CR = None if choices_LBR is None else choices_LBR.reshape(-1, topology.num_ranks)
    fill_CR = _fill_seconds(loads, row_bytes, kernel, choices_CR)
    return *first, replace(last, seconds=last.seconds + fill_CR.max(axis=1), rank_s=last.rank_s + fill_CR)


def _scopes(kernel: Kernel) -> tuple[int, ...]:
    return (0, 1) if kernel.inside or kernel.between else (ALL,)


def _used(load: StageLoad, scope: int) -> NDArray[np.bool_]:
    return load.travels if scope == ALL else load.pair_rows[scope] > 0


@dataclass(frozen=True, eq=False)
class _Bounds:
    """What bounds a stage in one scope, under each protocol of the kernel (one, if links alone limit)."""

    startup: NDArray[np.float64]  # [protocols, C] latency, where links alone limit
    least: NDArray[np.float64]  # [protocols, 1]
    growth: NDArray[np.float64]  # [protocols, 1]
    ends: NDArray[np.float64]  # [protocols, C, R]
    pairs: NDArray[np.float64]  # [protocols, C]
    wire: NDArray[np.float64]  # [C]

    def seconds(self, sm_CR: NDArray[np.float64]) -> NDArray[np.float64]:
        """[protocols, C]."""
        moving = np.maximum(np.maximum(self.ends.max(axis=2), self.pairs), np.maximum(self.wire, sm_CR.max(axis=1)))
        return np.asarray(self.growth + np.maximum(self.least, self.startup + moving))


def _bounds(
    topology: Topology, load: StageLoad, row_bytes: float, kernel: Kernel, scope: int, sharing: str, num_experts: int
) -> _Bounds:
    wire_C = _wire_seconds(topology, load, row_bytes, scope, sharing)
    protocols = () if scope == ALL else getattr(kernel, SCOPES[scope])
    if not protocols:
        latency_C = load.latency_s.max(axis=0) if scope == ALL else load.latency_s[scope]
        nothing, zero = np.zeros((1, *load.handled_rows.shape)), np.zeros((1, 1))
        return _Bounds(latency_C[None], zero, zero, nothing, nothing[:, :, 0], wire_C)
    num_ends = topology.num_nodes if scope else max(topology.ranks_per_node)
    ends_CR, pairs_C = load.end_rows[scope] * row_bytes, load.pair_rows[scope] * row_bytes
    return _Bounds(
        np.array([np.full(len(pairs_C), part.startup_s) for part in protocols]),
        np.array([[part.least_s] for part in protocols]),
        np.array([[part.growth_s(num_ends, num_experts, row_bytes)] for part in protocols]),
        np.stack([ends_CR / part.bytes_per_s_among(num_ends) for part in protocols]),
        np.stack([pairs_C / part.pair_bytes_per_s for part in protocols]),
        wire_C,
    )


def _sm_seconds(loads: Sequence[StageLoad], row_bytes: float, kernel: Kernel) -> list[NDArray[np.float64]]:
    """[C, R] of each stage, what the SMs of a rank take: for its own rows, or where stages overlap for those of all."""
    crosses_C = np.any([load.pair_rows[1] > 0 for load in loads], axis=0)
    handled = [load.handled_rows for load in loads]
    if kernel.pipelined:
        handled = [np.asarray(sum(handled))] * len(loads)
    return [kernel.sm_seconds(handled_CR, row_bytes, crosses_C) for handled_CR in handled]


def _copy_seconds(topology: Topology, load: StageLoad, row_bytes: float, kernel: Kernel) -> NDArray[np.float64]:
    if kernel.places_rows:
        return np.zeros(len(load.rows))
    copy_bytes_per_s = np.array([gpu.copy_bytes_per_s for gpu in topology.gpus])
    return np.asarray((load.ordered_rows * row_bytes / copy_bytes_per_s).max(axis=1))


def _fill_seconds(
    loads: Sequence[StageLoad], row_bytes: float, kernel: Kernel, choices_CR: NDArray[Any] | None
) -> NDArray[np.float64]:
    """[C, R] seconds until a rank's places for rows that come home are filled; where none travel, no kernel runs."""
    placed_CR = loads[-1].ordered_rows if choices_CR is None else choices_CR
    travels_C = np.any([load.travels for load in loads], axis=0)
    return np.asarray(placed_CR * row_bytes / kernel.fill_bytes_per_s * travels_C[:, None])


def _link_seconds(topology: Topology, load: StageLoad, row_bytes: float) -> NDArray[np.float64]:
    """[links, C] time of each link alone."""
    waiting = np.maximum(load.link_rows * row_bytes - np.asarray(topology.link_burst_bytes)[:, None], 0.0)
    return np.asarray(waiting / topology.link_bytes_per_s[:, None])


def _wire_seconds(
    topology: Topology, load: StageLoad, row_bytes: float, scope: int, sharing: str
) -> NDArray[np.float64]:
    """[C] seconds until the last of a scope's links is done."""
    if sharing == "max_min":  # flows of both scopes share links: one answer for both
        return np.asarray(fair_seconds(topology, load.rows * row_bytes))
    seconds = _link_seconds(topology, load, row_bytes)
    if scope == ALL:
        return _slowest(topology, seconds, topology.link_bytes_per_s)
    serves = route_table(topology).serves[scope]
    return _slowest(topology, seconds[serves], topology.link_bytes_per_s[serves])


def _slowest(topology: Topology, seconds: NDArray[np.float64], speed: NDArray[np.float64]) -> NDArray[np.float64]:
    """[columns] seconds until the last of some links is done, given those of each alone [links, columns]."""
    longest = seconds.max(axis=0, initial=0.0)
    if not topology.contention or not seconds.size:
        return np.asarray(longest)
    bottleneck = speed[seconds.argmax(axis=0)]
    alike = (speed[:, None] <= 2 * bottleneck) & (2 * speed[:, None] >= bottleneck)
    evenness = (seconds * alike).sum(axis=0) / alike.sum(axis=0) / np.maximum(longest, 1e-30)
    return np.asarray(longest * (1 + topology.contention * evenness**EVENNESS_POWER))


def _detail(
    topology: Topology, load: StageLoad, row_bytes: float, kernel: Kernel, sharing: str, num_experts: int,
    sm_CR: NDArray[np.float64],
) -> StageDetail:  # fmt: skip
    columns = np.arange(len(load.rows))
    table, links_LC = route_table(topology), _link_seconds(topology, load, row_bytes)
    slowest_CR = slowest_link_of_rank(load.rows, table.start, table.links, np.ascontiguousarray(links_LC))
    seconds, rank_s = np.zeros(len(columns)), np.zeros(sm_CR.shape)
    startup_C, bound_s = np.zeros(len(columns)), np.zeros((len(columns), len(BOUNDS)))
    rank_of = np.zeros((len(columns), len(BOUNDS)), np.int64)
    for scope in _scopes(kernel):
        bounds = _bounds(topology, load, row_bytes, kernel, scope, sharing, num_experts)
        line = bounds.seconds(sm_CR)
        best = line.argmin(axis=0)
        ends, pairs, line = bounds.ends[best, columns], bounds.pairs[best, columns], line[best, columns]
        startup, least, growth = bounds.startup[best, columns], bounds.least[best, 0], bounds.growth[best, 0]
        busy_CR = (load.end_rows[scope] > 0) if scope != ALL else load.end_rows.any(axis=0)
        moving_CR = startup[:, None] + np.maximum(np.maximum(ends, slowest_CR), sm_CR)
        own_CR = growth[:, None] + np.maximum(least[:, None], moving_CR)
        rank_s = np.maximum(rank_s, own_CR * busy_CR)
        decides = _used(load, scope) & (line > seconds)
        zero = np.zeros_like(line)
        parts = np.stack(
            [zero, np.maximum(least - startup, 0), ends.max(axis=1), pairs, sm_CR.max(axis=1), bounds.wire], 1
        )
        bound_s[decides], startup_C[decides] = parts[decides], (growth + startup)[decides]
        rank_of[decides, 2] = ends.argmax(axis=1)[decides]
        rank_of[decides, 3] = _busiest_sender(topology, load, scope)[decides]
        rank_of[decides, 5] = _busiest_link(topology, links_LC, scope)[decides]
        seconds = np.where(decides, line, seconds)
    rank_of[:, 4] = sm_CR.argmax(axis=1)
    bound = np.where(load.travels, np.where(bound_s.max(axis=1) > 0, bound_s.argmax(axis=1), 1), 0)
    where = np.where(bound > 1, rank_of[columns, bound], -1)
    longest = rank_s.max(axis=1)  # contention and fair sharing lengthen what links alone would take
    rank_s *= np.divide(seconds, longest, out=np.ones_like(longest), where=longest > 0)[:, None]
    copy_C = np.where(load.travels, _copy_seconds(topology, load, row_bytes, kernel), 0.0)
    seconds = np.where(load.travels, seconds + copy_C, 0.0)
    return StageDetail(seconds, rank_s, bound, where, startup_C, bound_s, copy_C)


def _busiest_sender(topology: Topology, load: StageLoad, scope: int) -> NDArray[np.int64]:
    """[C] the rank that sends most to any one other in a scope."""
    counted = ~np.eye(topology.num_ranks, dtype=bool)
    if scope != ALL:
        counted &= route_table(topology).between == bool(scope)
    return np.asarray((load.rows * counted).reshape(len(load.rows), -1).argmax(axis=1) // topology.num_ranks)


def _busiest_link(topology: Topology, links_LC: NDArray[np.float64], scope: int) -> NDArray[np.int64]:
    """[C] the link that takes longest of those that serve a scope; -1 without links."""
    if not len(links_LC):
        return np.full(links_LC.shape[1], -1)
    serves = np.ones(len(links_LC), bool) if scope == ALL else route_table(topology).serves[scope]
    return np.asarray(np.where(serves[:, None], links_LC, -1.0).argmax(axis=0))

"""Seconds no plan can beat under a simulated cluster, from lower bounds on rows and load.

Data: X rows of the whole trace between nodes or inside them (at least), those of the busiest sender and receiver, load
of the busiest rank summed over batches (at least), B batches whose tokens, and the times each expert is chosen, no plan
changes. Times are means over batches.

Communication. Rows of one scope, x in a batch, bound a stage in two ways: all of them are spread over R ranks at best,
and those of one sender (the ranks of a node that share its way out, or one rank) over its own, as those of one
receiver are. On n ranks a stage takes at least g(x), where

    without a transport   g(x) = least latency of a route + x / capacity
    under a kernel        g(x) = min over protocols of growth + max(least, startup + x s),
                          s = max(row bytes / (n bandwidth of a rank), 1 / capacity)

as some of these ranks sends no less than their mean. g(x) / x falls with x, and no batch sends more than c rows, so
g(x) >= x g(c) / c and the mean over batches is at least (X / B) g(c) / c; with one batch it is g(X). X is the sum of
what these rows are at least; of senders, of the busiest in each batch. Capacity is that of the weakest fractional cut:
for weights pi >= 0 of links that add up to at least 1 on every route these rows may take,

    x row <= sum of link bytes pi <= sum of pi (bandwidth t + burst)    so    t >= (x row - pi burst) / (pi bandwidth),

the best pi by a linear program; linear in x, so that the mean over batches obeys it (where bursts pass, apart from g).
Which sender is the busiest is not known: the widest way out and the greatest burst of any count.

Experts. A rank with n pairs takes at least launch + n (tile / tile tokens + row), so the busiest bounds the phase; no
rank can be ahead of all, so the mean over ranks does: an expert that n tokens chose takes at least
f(n) = (load^p + (tile ceil(n / tile tokens))^p)^(1/p) on all its copies together, as f(n) + f(m) >= f(n + m)
(Minkowski). Of different GPUs the best figure of each kind counts. What is not named here is dropped.
"""

from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray
from scipy import sparse
from scipy.optimize import linprog

from grace_opt.bounds.certificate import Bounds
from grace_opt.cost import LayerTime
from grace_opt.gpu import GPU, ROW_VALUES
from grace_opt.model import MoEModel
from grace_opt.problem import Problem
from grace_opt.profile import grouped_loads
from grace_opt.topology import Topology, proxy_ranks
from grace_opt.traffic import batch_segments
from simulator.transport import SCOPES, Kernel

if TYPE_CHECKING:
    from simulator.cluster import SimulatedCluster

ROUNDING = 1 - 1e-9


def sender_of_rank(topology: Topology, staged: bool = True) -> NDArray[np.int64]:
    """[R] which ranks send as one: those of a node if they share a way out narrower than their own, else each alone."""
    alone, node_of_rank = np.arange(topology.num_ranks), topology.node_of_rank
    if topology.num_nodes == 1:
        return alone
    of_rank, of_node = (_capacity(topology, 1, staged, False, tuple(who.tolist()))[1] for who in (alone, node_of_rank))
    return np.asarray(node_of_rank if of_node < 0.999 * of_rank * max(topology.ranks_per_node) else alone)


def least_time(cluster: "SimulatedCluster", problem: Problem, bounds: Bounds) -> LayerTime:
    """A time that no plan beats, as `cluster(problem, plan)` tells times.

    Args:
        bounds: of the whole trace; those of senders are of `sender_of_rank`, in the cluster's batches.
    """
    segments, tokens_BR = batch_segments(problem.trace, problem.topology.num_ranks, cluster.tokens_per_rank)
    staged = cluster.scheme.startswith("hierarchical")
    flows = [_flows(problem, bounds, 1, staged, tokens_BR)]
    if staged:
        flows.append(_flows(problem, bounds, 0, staged, tokens_BR))
    phases = []
    for returning in (False, True):
        transport = cluster.transport
        kernel = Kernel() if transport is None else (transport.dispatch, transport.combine)[returning]
        row_bytes = (cluster.dispatch_row_bytes, cluster.combine_row_bytes)[returning](problem.model)
        stages = [
            np.max([_seconds(problem, kernel, flow, len(tokens_BR), row_bytes, returning) for flow in of_scope], axis=0)
            for of_scope in flows
        ]
        phases.append(np.max(stages, axis=0) if kernel.pipelined else np.sum(stages, axis=0))
    experts_L = _experts(problem, segments, len(tokens_BR), bounds.busiest_load)
    return LayerTime(
        dispatch_s=phases[0] * ROUNDING,
        experts_s=experts_L * ROUNDING,
        combine_s=phases[1] * ROUNDING,
        idle_s=np.zeros_like(experts_L),
        tokens_per_rank=float(tokens_BR.mean()),
    )


@dataclass(frozen=True, eq=False)
class _Flow:
    """Rows that have some ranks in common at one end.

    Attributes:
        scope: 1 between nodes, 0 inside them.
        rows: [L] of the whole trace, at least.
        most: rows of a batch, at most.
        ranks: over how many ranks they may be spread.
        home, far: [R] which ranks are one, at the end that is home or at the other; None: all are.
    """

    scope: int
    staged: bool
    rows: NDArray[np.float64]
    most: float
    ranks: int
    home: tuple[int, ...] | None = None
    far: tuple[int, ...] | None = None


def _flows(
    problem: Problem, bounds: Bounds, scope: int, staged: bool, tokens_BR: NDArray[np.int64]
) -> tuple[_Flow, _Flow]:
    """All rows of a scope; those of the busiest sender between nodes, or of the busiest receiver inside them."""
    topology, top_k = problem.topology, problem.model.top_k
    largest, ranks = float(tokens_BR.sum(axis=1).max()), topology.num_ranks
    if not scope:
        everyone = tuple(range(ranks))
        return (
            _Flow(0, staged, bounds.intra_node_rows, largest * top_k, ranks),
            _Flow(0, staged, bounds.busiest_receiver_rows, largest, 1, far=everyone),
        )
    visits = min(top_k, topology.num_nodes - 1) if staged else top_k
    sender_R = sender_of_rank(topology, staged)
    of_sender = np.array([np.bincount(sender_R, tokens_R) for tokens_R in tokens_BR])
    together = int(np.bincount(sender_R).max())
    return (
        _Flow(1, staged, bounds.cross_node_rows, largest * visits, ranks),
        _Flow(1, staged, bounds.busiest_sender_rows, of_sender.max() * visits, together, tuple(sender_R.tolist())),
    )


def _seconds(
    problem: Problem, kernel: Kernel, flow: _Flow, batches: int, row_bytes: float, returning: bool
) -> NDArray[np.float64]:
    """[L] mean over batches of the seconds that a flow takes."""
    topology, rows_L = problem.topology, flow.rows
    if not rows_L.any() or not len(_pairs(topology, flow.scope, flow.staged, returning)):
        return np.zeros_like(rows_L)
    burst, bandwidth, latency_s = _capacity(topology, flow.scope, flow.staged, returning, flow.home, flow.far)
    wire_L = np.maximum(rows_L / batches * row_bytes - burst, 0.0) / bandwidth
    on_wire_s = row_bytes / bandwidth if burst == 0 else 0.0
    largest_L = rows_L if batches == 1 else np.full_like(rows_L, max(flow.most, 1.0))
    protocols = getattr(kernel, SCOPES[flow.scope])
    if protocols:
        ends = topology.num_nodes if flow.scope else max(topology.ranks_per_node)
        lines = []
        for part in protocols:
            row_s = max(row_bytes / part.bytes_per_s_among(ends) / flow.ranks, on_wire_s)
            growth_s = part.growth_s(ends, problem.model.num_experts, row_bytes)
            lines.append(growth_s + np.maximum(part.least_s, part.startup_s + largest_L * row_s))
        whole_L = np.min(lines, axis=0)
    else:
        whole_L = latency_s + largest_L * on_wire_s
    share_L = rows_L / batches / np.maximum(largest_L, 1e-300)
    return np.asarray(np.maximum(np.where(rows_L > 0, share_L * whole_L, 0.0), wire_L))


@lru_cache(maxsize=64)
def _capacity(
    topology: Topology,
    scope: int,
    staged: bool,
    returning: bool,
    home: tuple[int, ...] | None = None,
    far: tuple[int, ...] | None = None,
) -> tuple[float, float, float]:
    """Burst bytes and bytes/s of the weakest cut of a flow's pairs, the greatest of all its groups; least latency."""
    pairs = _pairs(topology, scope, staged, returning)
    source, destination = np.divmod(pairs, topology.num_ranks)
    at_home, at_far = (destination, source) if returning else (source, destination)
    group = np.zeros(len(pairs), np.int64)
    for name_of_rank, rank in ((home, at_home), (far, at_far)):
        if name_of_rank is not None:
            group = np.asarray(name_of_rank)[rank]
    cuts = [_weakest_cut(topology, pairs[group == one]) for one in np.unique(group)]
    bursts = [cut @ np.asarray(topology.link_burst_bytes) for cut in cuts]
    bandwidths = [cut @ topology.link_bytes_per_s for cut in cuts]
    return float(max(bursts)), float(max(bandwidths)), float(topology.latency_s.ravel()[pairs].min())


def _pairs(topology: Topology, scope: int, staged: bool, returning: bool) -> NDArray[np.int64]:
    """Ordered pairs of ranks, as source x R + destination, between which rows of a scope may go."""
    ranks = topology.num_ranks
    between = topology.node_of_rank[:, None] != topology.node_of_rank[None, :]
    allowed = between if scope else ~between & ~np.eye(ranks, dtype=bool)
    if staged and scope:
        reached = np.zeros((ranks, ranks), bool)
        reached[np.arange(ranks)[:, None], proxy_ranks(topology.ranks_per_node)] = True
        allowed = allowed & reached
    return np.flatnonzero((allowed.T if returning else allowed).ravel())


def _weakest_cut(topology: Topology, pairs: NDArray[np.int64]) -> NDArray[np.float64]:
    """[links] the weights pi of least total bandwidth that add up to at least 1 on the route of every pair."""
    routes = sparse.csc_array(topology.routes)[:, pairs].T
    found = linprog(topology.link_bytes_per_s, A_ub=-routes, b_ub=-np.ones(len(pairs)), method="highs")
    weight = np.maximum(found.x, 0.0) if found.success else np.ones(len(topology.link_bytes_per_s))
    return np.asarray(weight / (routes @ weight).min())


def _experts(
    problem: Problem, segments: NDArray[np.int64], batches: int, load_L: NDArray[np.float64]
) -> NDArray[np.float64]:
    """[L] mean over batches of the seconds until the slowest rank has computed."""
    model, trace = problem.model, problem.trace
    devices = [gpu.for_weights(model.weight_type) for gpu in dict.fromkeys(problem.topology.gpus)]
    launch_s, least_s = min(gpu.launch_s for gpu in devices), min(gpu.least_s for gpu in devices)
    row_s = min(gpu.row_s for gpu in devices) * model.hidden_size / ROW_VALUES
    pair_s = model.expert_flops_per_token / max(gpu.flops_per_s for gpu in devices)
    busiest_L = launch_s + load_L / batches * (pair_s + row_s)
    mean_L = np.zeros_like(load_L)
    for layer in range(trace.num_layers):
        chosen_BE = grouped_loads(trace, layer, segments[:, [0, 1, 3]], batches)
        least_BE = np.min([_expert_seconds(model, gpu, chosen_BE) for gpu in devices], axis=0)
        work_B = least_BE.sum(axis=1) + row_s * chosen_BE.sum(axis=1)
        mean_L[layer] = np.maximum(launch_s + work_B / problem.topology.num_ranks, least_s).mean()
    return np.maximum(busiest_L, mean_L)


def _expert_seconds(model: MoEModel, gpu: GPU, chosen: NDArray[np.int64]) -> NDArray[np.float64]:
    """[...] f(n) of experts that so many tokens chose; none take none."""
    load_s = model.expert_bytes / gpu.memory_bytes_per_s
    compute_s = -(-chosen // gpu.tile_tokens) * (gpu.tile_tokens * model.expert_flops_per_token / gpu.flops_per_s)
    more, less = np.maximum(compute_s, load_s), np.minimum(compute_s, load_s)
    return np.asarray(np.where(chosen > 0, more * (1 + (less / more) ** gpu.overlap) ** (1 / gpu.overlap), 0.0))

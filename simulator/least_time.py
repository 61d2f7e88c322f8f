"""Seconds no plan can beat under a simulated cluster, from lower bounds on rows and load.

Data: X rows of the whole trace between nodes or inside them (at least), load of the busiest rank summed over batches
(at least), B batches whose tokens, and the times each expert is chosen, no plan changes. Times are means over batches.

Communication. In a batch with x rows of one scope on R ranks a stage takes at least g(x), where

    without a transport   g(x) = least latency of a route + x / capacity
    under a kernel        g(x) = min over protocols of growth + max(least, startup + x s),
                          s = max(row bytes / (R bandwidth of a rank), 1 / capacity)

as some rank sends no less than the mean. g(x) / x falls with x, and no batch sends more than c rows, so
g(x) >= x g(c) / c and the mean over batches is at least (X / B) g(c) / c; with one batch it is g(X). Capacity is that
of the weakest fractional cut: for weights pi >= 0 of links that add up to at least 1 on every route in use,

    x row <= sum of link bytes pi <= sum of pi (bandwidth t + burst)    so    t >= (x row - pi burst) / (pi bandwidth),

the best pi by a linear program; linear in x, so that the mean over batches obeys it (where bursts pass, apart from g).

Experts. A rank with n pairs takes at least launch + n (tile / tile tokens + row), so the busiest bounds the phase; no
rank can be ahead of all, so the mean over ranks does: an expert that n tokens chose takes at least
f(n) = (load^p + (tile ceil(n / tile tokens))^p)^(1/p) on all its copies together, as f(n) + f(m) >= f(n + m)
(Minkowski). Of different GPUs the best figure of each kind counts. What is not named here is dropped.
"""

from typing import TYPE_CHECKING

import numpy as np
from numba import njit
from numpy.typing import NDArray
from scipy import sparse
from scipy.optimize import linprog

from grace_opt.cost import LayerTime
from grace_opt.gpu import GPU, ROW_VALUES
from grace_opt.model import MoEModel
from grace_opt.problem import Problem
from grace_opt.topology import Topology, proxy_ranks
from grace_opt.traffic import batch_segments
from simulator.transport import SCOPES, Kernel

if TYPE_CHECKING:
    from simulator.cluster import SimulatedCluster

ROUNDING = 1 - 1e-9


def least_time(
    cluster: "SimulatedCluster",
    problem: Problem,
    cross_rows: NDArray[np.float64],
    intra_rows: NDArray[np.float64],
    busiest_load: NDArray[np.float64],
) -> LayerTime:
    """A time that no plan beats, as `cluster(problem, plan)` tells times.

    Args:
        cross_rows, intra_rows, busiest_load: float64 [L], lower bounds on the rows between nodes, on those inside nodes
            under `hierarchical`, and on the busiest rank's load, of the whole trace (`grace_opt.bounds.certificate`).
    """
    segments, tokens_BR = batch_segments(problem.trace, problem.topology.num_ranks, cluster.tokens_per_rank)
    staged = cluster.scheme.startswith("hierarchical")
    largest = float(tokens_BR.sum(axis=1).max())
    visits = min(problem.model.top_k, problem.topology.num_nodes - 1) if staged else problem.model.top_k
    rows = [(1, np.asarray(cross_rows, np.float64), largest * visits)]
    if staged:
        rows.append((0, np.asarray(intra_rows, np.float64), largest * problem.model.top_k))
    phases = []
    for returning in (False, True):
        transport = cluster.transport
        kernel = Kernel() if transport is None else (transport.dispatch, transport.combine)[returning]
        row_bytes = (cluster.dispatch_row_bytes, cluster.combine_row_bytes)[returning](problem.model)
        stages = [
            _stage(problem, kernel, scope, X, most, len(tokens_BR), row_bytes, staged, returning)
            for scope, X, most in rows
        ]
        phases.append(np.max(stages, axis=0) if kernel.pipelined else np.sum(stages, axis=0))
    experts_L = _experts(problem, segments, len(tokens_BR), np.asarray(busiest_load, np.float64))
    return LayerTime(
        dispatch_s=phases[0] * ROUNDING,
        experts_s=experts_L * ROUNDING,
        combine_s=phases[1] * ROUNDING,
        idle_s=np.zeros_like(experts_L),
        tokens_per_rank=float(tokens_BR.mean()),
    )


def _stage(
    problem: Problem, kernel: Kernel, scope: int, rows_L: NDArray[np.float64], most: float, batches: int,
    row_bytes: float, staged: bool, returning: bool,
) -> NDArray[np.float64]:  # fmt: skip
    """[L] mean over batches of the seconds that a stage's rows of one scope take."""
    topology = problem.topology
    pairs = _pairs(topology, scope, staged, returning)
    if not len(pairs) or not rows_L.any():
        return np.zeros_like(rows_L)
    weight = _weakest_cut(topology, pairs)
    burst, bandwidth = weight @ np.asarray(topology.link_burst_bytes), weight @ topology.link_bytes_per_s
    wire_L = np.maximum(rows_L / batches * row_bytes - burst, 0.0) / bandwidth
    on_wire_s = row_bytes / bandwidth if burst == 0 else 0.0
    largest_L = rows_L if batches == 1 else np.full_like(rows_L, max(most, 1.0))
    protocols = getattr(kernel, SCOPES[scope])
    if protocols:
        ends = topology.num_nodes if scope else max(topology.ranks_per_node)
        lines = []
        for part in protocols:
            row_s = max(row_bytes / part.bytes_per_s_among(ends) / topology.num_ranks, on_wire_s)
            growth_s = part.growth_s(ends, problem.model.num_experts, row_bytes)
            lines.append(growth_s + np.maximum(part.least_s, part.startup_s + largest_L * row_s))
        whole_L = np.min(lines, axis=0)
    else:
        whole_L = topology.latency_s.ravel()[pairs].min() + largest_L * on_wire_s
    share_L = rows_L / batches / np.maximum(largest_L, 1e-300)
    return np.asarray(np.maximum(np.where(rows_L > 0, share_L * whole_L, 0.0), wire_L))


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
        chosen_BE = np.zeros((batches, model.num_experts), np.int64)
        _count_choices(trace.recorded(layer), segments, chosen_BE)
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


@njit(nogil=True, cache=True)
def _count_choices(ids_TK, segments, chosen_BE):  # type: ignore[no-untyped-def]
    for segment in range(len(segments)):
        first, last, _, batch = segments[segment]
        for token in range(first, last):
            for k in range(ids_TK.shape[1]):
                chosen_BE[batch, ids_TK[token, k]] += 1

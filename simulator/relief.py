"""The same machine without one of its limits: links that are infinitely fast, kernels that start at once, and so on."""

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from grace_opt.problem import Problem
from simulator.cluster import SimulatedCluster
from simulator.timeline import COPYING, LATENCY, LINK, PAIR, SMS
from simulator.transport import Kernel, Protocol

FAST = 1e9  # so many times as fast is infinitely fast


def without(
    cost: SimulatedCluster, problem: Problem, kind: int, where: Sequence[int]
) -> tuple[SimulatedCluster, Problem]:
    """Cost and problem with one kind of bound (see `timeline.KINDS`) removed; links one by one, the others wholly.

    Args:
        where: links that become infinitely fast.
    """
    topology = problem.topology
    if kind == LINK:
        speed = topology.link_bytes_per_s.copy()
        speed[list(where)] *= FAST
        return cost, replace(problem, topology=replace(topology, link_bytes_per_s=speed))
    if kind == COPYING:
        gpus = tuple(replace(gpu, copy_bytes_per_s=math.inf) for gpu in topology.gpus)
        return cost, replace(problem, topology=replace(topology, gpus=gpus))
    if kind == LATENCY:
        problem = replace(problem, topology=replace(topology, latency_s=np.zeros_like(topology.latency_s)))
        times = ("startup_s", "least_s", "spread_s", "round_s", "expert_s")
        return _with_protocols(cost, {**dict.fromkeys(times, 0.0), "row_bytes_per_s": math.inf}), problem
    if kind == PAIR:
        return _with_protocols(cost, {"pair_bytes_per_s": math.inf}), problem
    assert kind == SMS, kind
    return _with_kernels(cost, lambda kernel: replace(kernel, sms=None)), problem


def _with_protocols(cost: SimulatedCluster, change: dict[str, Any]) -> SimulatedCluster:
    def changed(protocols: Sequence[Protocol]) -> list[Protocol]:
        return [replace(protocol, **change) for protocol in protocols]

    return _with_kernels(cost, lambda k: replace(k, inside=changed(k.inside), between=changed(k.between)))


def _with_kernels(cost: SimulatedCluster, change: Callable[[Kernel], Kernel]) -> SimulatedCluster:
    if cost.transport is None:
        return cost
    transport = cost.transport
    return replace(
        cost, transport=replace(transport, dispatch=change(transport.dispatch), combine=change(transport.combine))
    )

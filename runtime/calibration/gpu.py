"""What a rank computes with: expert time against tokens, and the rate at which rows are put in order and summed.

    expert seconds = launch + sum over active experts of max(load, ceil(tokens / tile) * tile * per_token)

fitted to uniform loads of rank 0 alone: `load` is an expert's weights over the memory bandwidth, `per_token` its flops
over throughput. Ranks are taken to be alike. Those that share cores, as on CPUs, slow each other down: what all of a
node take together, and all of the cluster, over what one takes alone, says how many can compute at once. Rows are
copied by all ranks at once, as they are in a layer.
"""

import os
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.optimize import least_squares

from grace_opt.gpu import GPU
from grace_opt.model import MoEModel
from runtime.calibration.timing import seconds_of
from runtime.exchange import Peers, Stage
from runtime.experts import GroupedExperts
from runtime.group import Group
from runtime.kernels import NOT_HERE
from runtime.replay import DTYPES, make_experts

TILES = (1, 16, 32, 64, 128)
TOKENS = (1, 4, 16, 64, 256)
ACTIVE = (2, 8, 16)
SHARED = (16, 64)
"""Active experts and tokens of each with which the sharing of cores is measured."""


@dataclass(frozen=True)
class Computing:
    """A rank's device, and how well the fit describes it.

    Attributes:
        worst_error: largest relative distance of a point from the fit.
        cores_of_node, cores_of_all: how many ranks of a node, and of the cluster, compute at full speed at once.
        points: (active experts, tokens of each, seconds) measured.
    """

    gpu: GPU
    worst_error: float
    cores_of_node: float
    cores_of_all: float
    points: tuple[tuple[int, int, float], ...]


def measure_computing(
    group: Group, nodes: tuple[int, ...], model: MoEModel, copy_bytes: int, repetitions: int
) -> Computing:
    """Time experts of this model's sizes and the copying of rows; every rank must call it.

    Args:
        nodes: ranks of each node.
    """

    def seconds(ranks: int, active: int, tokens: int) -> float:
        """The first so many ranks compute, the others wait."""
        action = _experts(group, model, active, tokens) if group.rank < ranks else _nothing
        return seconds_of(group, action, repetitions)

    points = [(n, m, seconds(1, n, m)) for n in ACTIVE for m in TOKENS]
    alone, together, everyone = (seconds(ranks, *SHARED) for ranks in (1, nodes[0], group.size))
    launch_s, load_s, token_s, tile, worst = fit_experts(points)
    gpu = GPU(
        name=torch.cuda.get_device_name() if group.device != "cpu" else "CPU",
        flops_per_s=model.expert_flops_per_token / token_s,
        memory_bytes_per_s=model.expert_bytes / load_s,
        memory_bytes=_memory_bytes(group),
        launch_s=launch_s,
        tile_tokens=tile,
        copy_bytes_per_s=_copy_rate(group, model, copy_bytes, repetitions),
    )
    cores = (nodes[0] * alone / together, group.size * alone / everyone)
    return Computing(gpu, worst, *cores, tuple(points))


def fit_experts(points: list[tuple[int, int, float]]) -> tuple[float, float, float, int, float]:
    """(launch_s, load_s, seconds per token, tile, worst relative error) that describe the points best.

    Args:
        points: (active experts, tokens of each, seconds).
    """
    active, tokens, seconds = np.array(points).T
    best: tuple[float, NDArray[np.float64], int, float] | None = None
    for tile in TILES:

        def errors(log: NDArray[np.float64], tile: int = tile) -> NDArray[np.float64]:
            launch, load, token = np.exp(log)
            padded = np.ceil(tokens / tile) * tile
            return np.asarray(np.log((launch + active * np.maximum(load, padded * token)) / seconds))

        smallest = float(seconds.min())
        start = np.log([smallest / 2, smallest / 4, float((seconds / (active * tokens)).min())])
        found = least_squares(errors, start, loss="soft_l1")
        if best is None or found.cost < best[0]:
            best = (float(found.cost), np.exp(found.x), tile, float(np.abs(np.expm1(errors(found.x))).max()))
    assert best is not None
    launch, load, token = (float(value) for value in best[1])
    return launch, load, token, best[2], best[3]


def _experts(group: Group, model: MoEModel, active: int, tokens: int) -> Callable[[], object]:
    """One computation of `active` experts with so many tokens each; no token has two of them, as in most rows."""
    device, dtype = group.device, DTYPES[model.bytes_per_value]
    experts = GroupedExperts(make_experts(model, 0, 0, list(range(active)), device))
    rows = torch.randn(active * tokens, model.hidden_size, device=device).to(dtype)
    slot = torch.full((len(rows), model.top_k), NOT_HERE, device=device)
    slot[:, 0] = torch.arange(len(rows), device=device) % active
    return partial(experts, rows, slot, torch.ones(slot.shape, device=device))


def _nothing() -> None:
    pass


def _copy_rate(group: Group, model: MoEModel, size: int, repetitions: int) -> float:
    """Bytes of rows per second, once there and once back, of a stage that keeps all rows at home."""
    peers = Peers.everyone()
    rows = torch.randn(max(2, size // int(model.token_bytes)), model.hidden_size, device=group.device)
    rows = rows.to(DTYPES[model.bytes_per_value])
    destination = torch.full((len(rows), 1), peers.me, device=group.device)
    stage = Stage.plan(destination, peers)
    nothing = Stage.plan(destination[:0], peers)
    seconds = seconds_of(group, lambda: stage.backward(stage.forward(rows)), repetitions)
    seconds -= seconds_of(group, lambda: nothing.backward(nothing.forward(rows[:0])), repetitions)
    return 2 * len(rows) * model.token_bytes / max(seconds, 1e-9)


def _memory_bytes(group: Group) -> float:
    """Device memory, or this rank's part of its host's."""
    if group.device != "cpu":
        return float(torch.cuda.get_device_properties(group.device).total_memory)
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / max(group.ranks_per_node)

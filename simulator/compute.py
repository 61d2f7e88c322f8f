"""Tokens per physical expert to seconds: a roofline with a floor for loading the weights of every active expert.

A rank takes

    (least^10 + busy^10)^(1/10)
    busy = launch + slot * slots^0.75 + sum over its active experts of (load^p + compute^p)^(1/p) + row * rows

    load     expert_bytes / memory bandwidth
    compute  tiles * tile_flops / flops,  tiles = ceil(tokens / tile)
    slot     kernels that look at every physical expert of the rank, active or not; slots that hold none count as well,
             as engines give ranks equal numbers. The power is what evenly loaded experts show: a slot more takes 0.9 us
             where there are 8 to 64, 0.6 us where there are 64 to 128 (B200, decode)
    row      what surrounds the matrix products: permuting, quantising, activation
    least    what the host needs to start the kernels, where it starts them one by one; the tenth powers make of the
             larger of both a curve without a kink
    p        how well loading and computing of an expert overlap where both take as long; infinite: wholly

In decode loading decides, so active experts count; in prefill tokens do. The constants are those of a GPU and a type of
weights (`grace_opt.gpu`), fitted on evenly loaded experts (`simulator.calibration.experts`).

Ranks that share a processor of c cores end together after  max(longest of them alone, sum of all / c).
"""

import warnings
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from grace_opt.gpu import GPU, ROW_VALUES
from grace_opt.model import MoEModel
from grace_opt.topology import Topology

SLOT_POWER = 0.75
LEAST_POWER = 10

Constants = tuple[NDArray[np.float64], ...]
Power = NDArray[np.float64] | int


def expert_seconds(model: MoEModel, topology: Topology, tokens_LBRS: NDArray[np.int64]) -> NDArray[np.float64]:
    """[L, B, R] seconds each rank computes.

    Args:
        tokens_LBRS: [L, B, R, S] tokens of each physical expert, by rank.
    """
    return grouped_seconds(tokens_LBRS, *_constants(topology, model))


def grouped_seconds(
    tokens: NDArray[np.int64],
    load_s: NDArray[np.float64],
    tile_s: NDArray[np.float64],
    tile_tokens: NDArray[np.float64],
    launch_s: NDArray[np.float64],
    slot_s: NDArray[np.float64],
    row_s: NDArray[np.float64],
    least_s: NDArray[np.float64],
    overlap: NDArray[np.float64],
    *,
    rows: NDArray[np.float64] | None = None,
) -> NDArray[np.float64]:
    """[...] seconds of grouped computations of experts with so many tokens [..., S]; none take none.

    Args:
        load_s, tile_s, tile_tokens, launch_s, slot_s, row_s, least_s, overlap: [...], see `constants_of`.
        rows: [...] rows that pass through what surrounds the products, if not the sum of the tokens.
    """
    compute = -(-tokens // tile_tokens[..., None].astype(np.int64)) * tile_s[..., None]
    each = _softly(compute, load_s[..., None], overlap[..., None])
    experts = np.where(tokens > 0, each, 0.0).sum(axis=-1)
    passing = tokens.sum(axis=-1) if rows is None else rows
    busy = launch_s + slot_s * tokens.shape[-1] ** SLOT_POWER + experts + row_s * passing
    return np.asarray(np.where(experts > 0, _softly(busy, least_s, LEAST_POWER), 0.0))


def _softly(one: NDArray[np.float64], other: NDArray[np.float64], power: Power) -> NDArray[np.float64]:
    """(one^power + other^power)^(1/power): the larger, and somewhat more where both are close."""
    more = np.maximum(one, other)
    less = np.minimum(one, other) / np.maximum(more, np.finfo(np.float64).tiny)
    return np.asarray(more * (1 + less**power) ** (1 / power))


def constants_of(gpu: GPU, expert_bytes: float, flops_per_token: float, hidden_size: float) -> tuple[float, ...]:
    """What `grouped_seconds` needs: load_s, tile_s, tile_tokens, launch_s, slot_s, row_s, least_s, overlap."""
    load_s, tile_s = expert_bytes / gpu.memory_bytes_per_s, gpu.tile_tokens * flops_per_token / gpu.flops_per_s
    row_s = gpu.row_s * hidden_size / ROW_VALUES
    return load_s, tile_s, gpu.tile_tokens, gpu.launch_s, gpu.slot_s, row_s, gpu.least_s, gpu.overlap


@lru_cache(maxsize=16)
def _constants(topology: Topology, model: MoEModel) -> Constants:
    known = {gpu: gpu.for_weights(model.weight_type) for gpu in dict.fromkeys(topology.gpus)}
    for gpu in known:
        if model.weight_type not in ("bf16", *gpu.weight_types):
            warnings.warn(
                f"gpu {gpu.name} knows no speeds for {model.weight_type} weights: experts of {model.name} are computed "
                "at its bf16 speed",
                stacklevel=2,
            )
    sizes = model.expert_bytes, model.expert_flops_per_token, model.hidden_size
    rows = [constants_of(known[gpu], *sizes) for gpu in topology.gpus]
    return tuple(np.array(column, np.float64) for column in zip(*rows, strict=True))


def phase_end(topology: Topology, seconds_LBR: NDArray[np.float64]) -> NDArray[np.float64]:
    """[L, B] seconds until all ranks are done with work that takes each of them seconds_LBR [L, B, R] alone."""
    processor_R, cores = np.asarray(topology.processor_of_rank), np.asarray(topology.cores)
    if len(cores) == len(processor_R) and (cores >= 1).all():  # nobody shares
        return np.asarray(seconds_LBR.max(axis=2))
    of_processor = processor_R[:, None] == np.arange(len(cores))[None, :]
    shared = (seconds_LBR @ of_processor) / cores
    return np.asarray(np.maximum(seconds_LBR.max(axis=2), shared.max(axis=2)))

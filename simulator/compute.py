"""Tokens per physical expert to seconds: a roofline with a floor for loading the weights of every active expert.

A rank takes  launch + sum over its active experts of max(expert_bytes / memory bandwidth, tiles * tile_flops / flops),
tiles = ceil(tokens / tile). In decode the floor decides, so active experts count; in prefill tokens do.

Ranks that share a processor of c cores end together after  max(longest of them alone, sum of all / c).
"""

import numpy as np
from numpy.typing import NDArray

from grace_opt.model import MoEModel
from grace_opt.topology import Topology


def expert_seconds(model: MoEModel, topology: Topology, tokens_LBRS: NDArray[np.int64]) -> NDArray[np.float64]:
    """[L, B, R] seconds each rank computes.

    Args:
        tokens_LBRS: [L, B, R, S] tokens of each physical expert, by rank.
    """
    launch_R, load_R, tile_R, tile_s_R = (
        np.array(column)
        for column in zip(
            *(
                (
                    gpu.launch_s,
                    model.expert_bytes / gpu.memory_bytes_per_s,
                    gpu.tile_tokens,
                    gpu.tile_tokens * model.expert_flops_per_token / gpu.flops_per_s,
                )
                for gpu in topology.gpus
            ),
            strict=True,
        )
    )
    compute = -(-tokens_LBRS // tile_R[:, None]) * tile_s_R[:, None]
    busy = np.where(tokens_LBRS > 0, np.maximum(compute, load_R[:, None]), 0.0).sum(axis=3)
    return np.asarray(np.where(busy > 0, busy + launch_R, 0.0))


def phase_end(topology: Topology, seconds_LBR: NDArray[np.float64]) -> NDArray[np.float64]:
    """[L, B] seconds until all ranks are done with work that takes each of them seconds_LBR [L, B, R] alone."""
    processor_R, cores = np.asarray(topology.processor_of_rank), np.asarray(topology.cores)
    of_processor = processor_R[:, None] == np.arange(len(cores))[None, :]
    shared = (seconds_LBR @ of_processor) / cores
    return np.asarray(np.maximum(seconds_LBR.max(axis=2), shared.max(axis=2)))

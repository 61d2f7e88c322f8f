"""Balance and traffic in the words of each engine.

    SGLang         balancedness: mean load of ranks / largest, mean over layers
    vLLM           balancedness: sum over layers of mean loads / sum over layers of largest loads
    TensorRT-LLM   imbalance ratio: (largest - mean) / mean, mean over layers

Loads are (token, expert) pairs of a rank; each is taken for one batch, then the mean over batches. vllm-ascend and
OmniInfer build on vLLM and are told its figure; this project's runtime is told largest / mean.
"""

import numpy as np
from numpy.typing import NDArray

from analysis.results import Row
from grace_opt.traffic import Traffic

FIELD = {
    "sglang": "load_mean_over_max",
    "tensorrt_llm": "load_excess_over_mean",
    "grace": "load_max_over_mean",
}
_OF_VLLM = "load_sum_of_means_over_sum_of_maxima"
TITLE = {
    "load_mean_over_max": "balancedness (1 is even)",
    _OF_VLLM: "balancedness (1 is even)",
    "load_excess_over_mean": "imbalance ratio (0 is even)",
    "load_max_over_mean": "busiest rank / mean",
}


def field_of(engine: str) -> str:
    """The field of a row that is the engine's own figure of balance."""
    return FIELD.get(engine, _OF_VLLM)


def balance(load_LBR: NDArray[np.integer]) -> Row:
    """The figures of all engines.

    Example: one batch, loads 2 and 6 in a layer, 4 and 4 in the next: SGLang (4/6 + 1) / 2, vLLM 8 / 10, TensorRT-LLM
    (2/4 + 0) / 2.
    """
    mean_LB, most_LB = load_LBR.mean(axis=2), load_LBR.max(axis=2)
    return {
        "load_mean_over_max": float((mean_LB / most_LB).mean()),
        _OF_VLLM: float((mean_LB.sum(axis=0) / most_LB.sum(axis=0)).mean()),
        "load_excess_over_mean": float((most_LB / mean_LB - 1).mean()),
    }


def travel(counts: Traffic, scheme: str, there_bytes: float, back_bytes: float) -> Row:
    """Ranks that serve a token, its own included if it does, and bytes between nodes; means over tokens and layers.

    Args:
        there_bytes, back_bytes: of a row of dispatch and of combine.
    """
    per_token = counts.num_tokens * len(counts.rank_visits)
    there = float(counts.cross_node_rows(scheme).sum())
    back = float(counts.cross_node_rows(scheme.removesuffix("_padded")).sum())
    return {
        "destination_ranks_per_token": float(counts.rank_visits.sum()) / per_token,
        "cross_node_bytes_per_token": (there * there_bytes + back * back_bytes) / per_token,
    }

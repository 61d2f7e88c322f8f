"""What makes a routing trace worth planning for, in a few figures that name no expert.

Means over layers of

    load_max_over_mean  load of the busiest expert over the mean
    repeats_*           chance that an expert chosen by a token is also chosen by the token before it, by another token
                        of its sequence, by a token of another sequence of its domain
    domain_shift        total variation between the loads of two domains, mean over the pairs of domains
    affinity            total variation between the pairs of experts that tokens chose and pairs drawn by load alone
    affinity_log        mean over pairs of experts of |log(tokens that chose both / expected by load alone)|
    coupling            as affinity, for pairs (expert in this layer, expert in the next)
    groups_*            distinct groups a token visits when the experts are divided into 8 equal groups: in index order,
                        or fitted to the even sequences by exchanges; counted on the odd sequences
    busiest_group       choices that fall on the busiest fitted group over the mean, odd sequences

Example: one layer, four experts, one domain, sequences [0 1] [0 2] and [2 3] [2 3] of two tokens each. Of the 4 choices
of second tokens, 3 repeat the first's: repeats_previous 0.75. repeats_sequence is 0.75 too, repeats_domain 0.25,
load_max_over_mean 1.5.
"""

from dataclasses import dataclass

import numpy as np
from numba import njit
from numpy.typing import NDArray

from grace_opt.profile import affinity, expert_loads, transitions_after
from grace_opt.split import Alternate
from grace_opt.trace import Trace

MAX_TOKENS = 40_000
NUM_GROUPS = 8


@dataclass(frozen=True, eq=False)
class TraceStatistics:
    """The figures of one trace, its load curve, and the sequences they were measured on.

    Attributes:
        source, phase, domain_names, top_k: as in the trace.
        load_curve: float64 [L, E], loads over their mean in falling order.
        lengths, domains: int64 [Q], tokens and domain of each sequence.
        figures: the figures above by name.
    """

    source: str
    phase: str
    domain_names: tuple[str, ...]
    top_k: int
    load_curve: NDArray[np.float64]
    lengths: NDArray[np.int64]
    domains: NDArray[np.int64]
    figures: dict[str, float]

    def __post_init__(self) -> None:
        for field in ("load_curve", "lengths", "domains"):
            value = np.array(getattr(self, field))
            value.setflags(write=False)
            object.__setattr__(self, field, value)


def fit_statistics(trace: Trace, max_tokens: int = MAX_TOKENS) -> TraceStatistics:
    """Measure a trace; of a longer one every n-th sequence, such that about `max_tokens` are read.

    Raises:
        ValueError: the trace has a single sequence, or tokens choose a single expert.
    """
    step = max(1, round(trace.num_tokens / max_tokens))
    part = trace.select(np.arange(0, trace.num_sequences, step))
    if part.num_sequences < 2 or part.top_k < 2:
        raise ValueError(
            "statistics of a trace compare sequences and the experts of a token: expected at least 2 of each, got "
            f"{part.num_sequences} sequences (of {trace.num_sequences}, max_tokens={max_tokens}) and top-{part.top_k}"
        )
    load_LE = expert_loads(part)
    curve_LE = np.sort(load_LE)[:, ::-1] / load_LE.mean(1, keepdims=True)
    return TraceStatistics(
        trace.source, trace.phase, trace.domain_names, trace.top_k, curve_LE, part.lengths, part.domains, measure(part)
    )


def measure(trace: Trace) -> dict[str, float]:
    """The figures by name."""
    fit, held_out = Alternate()(trace)
    load_LE = expert_loads(trace)
    layers = []
    for layer in range(trace.num_layers):
        ids_TK = trace.layer(layer)
        pairs = _affinity(affinity(trace, layer), load_LE[layer])
        figures = {"load_max_over_mean": load_LE[layer].max() / load_LE[layer].mean()}
        layers.append(figures | _repeats(trace, ids_TK) | pairs | _groups(fit, held_out, layer))
    means = {name: float(np.mean([figures[name] for figures in layers])) for name in layers[0]}
    return means | {"coupling": _coupling(trace)}


def _repeats(trace: Trace, ids_TK: NDArray[np.unsignedinteger]) -> dict[str, float]:
    """repeats_* and domain_shift of one layer."""
    lengths, domains, E = trace.lengths, trace.domains, trace.num_experts
    sequence_T = np.repeat(np.arange(len(lengths)), lengths)
    cell_TK = sequence_T[:, None] * E + ids_TK
    count_QE = np.bincount(cell_TK.ravel(), minlength=len(lengths) * E).reshape(-1, E).astype(float)
    same_QE = count_QE * (count_QE - 1) / np.maximum(lengths - 1, 1)[:, None]

    load_XE = np.zeros((len(trace.domain_names), E))  # X domains
    np.add.at(load_XE, domains, count_QE)
    tokens_X = np.bincount(domains, lengths, minlength=len(load_XE))
    others_QE, tokens_Q = load_XE[domains] - count_QE, tokens_X[domains] - lengths
    alone = tokens_Q == 0  # the only sequence of its domain is compared with all other sequences
    others_QE[alone], tokens_Q[alone] = load_XE.sum(0) - count_QE[alone], len(ids_TK) - lengths[alone]

    share_XE = load_XE[tokens_X > 0] / load_XE[tokens_X > 0].sum(1, keepdims=True)
    apart = np.abs(share_XE[:, None] - share_XE).sum(2)[np.triu_indices(len(share_XE), 1)] / 2
    return {
        "repeats_previous": _repeats_previous(ids_TK, sequence_T),
        "repeats_sequence": same_QE.sum() / ids_TK.size,
        "repeats_domain": (count_QE * others_QE / tokens_Q[:, None]).sum() / ids_TK.size,
        "domain_shift": apart.mean() if len(apart) else 0.0,
    }


@njit(nogil=True, cache=True)
def _repeats_previous(ids_TK, sequence_T):  # type: ignore[no-untyped-def]
    num_tokens, top_k = ids_TK.shape
    repeated, compared = 0, 0
    for token in range(1, num_tokens):
        if sequence_T[token] == sequence_T[token - 1]:
            compared += top_k
            for i in range(top_k):
                for j in range(top_k):
                    repeated += ids_TK[token, i] == ids_TK[token - 1, j]
    return repeated / max(compared, 1)


def _affinity(count_EE: NDArray[np.int64], load_E: NDArray[np.int64]) -> dict[str, float]:
    """affinity and affinity_log (with half a token added to both counts) of one layer."""
    upper = np.triu_indices(len(load_E), 1)
    observed = count_EE[upper]
    by_load = np.outer(load_E, load_E)[upper].astype(float)
    by_load *= observed.sum() / by_load.sum()
    return {
        "affinity": np.abs(observed - by_load).sum() / 2 / observed.sum(),
        "affinity_log": np.abs(np.log((observed + 0.5) / (by_load + 0.5))).mean(),
    }


def _coupling(trace: Trace) -> float:
    """Mean over neighbouring layers; 0 if there is one layer only."""
    variations = [0.0] if trace.num_layers == 1 else []
    for layer in range(trace.num_layers - 1):
        count_EE = transitions_after(trace, layer)
        by_load_EE = np.outer(count_EE.sum(1), count_EE.sum(0)) / count_EE.sum()
        variations.append(np.abs(count_EE - by_load_EE).sum() / 2 / count_EE.sum())
    return float(np.mean(variations))


def _groups(fit: Trace, held_out: Trace, layer: int) -> dict[str, float]:
    """groups_* and busiest_group of one layer."""
    index_E, fitted_E, num_groups = _index_and_fitted_groups(fit, layer)
    ids_TK = held_out.layer(layer)
    tokens_G = np.bincount(fitted_E[ids_TK.ravel()], minlength=num_groups)
    return {
        "groups_index": _distinct(ids_TK, index_E, num_groups) / len(ids_TK),
        "groups_fitted": _distinct(ids_TK, fitted_E, num_groups) / len(ids_TK),
        "busiest_group": tokens_G.max() / tokens_G.mean(),
    }


def _index_and_fitted_groups(fit: Trace, layer: int) -> tuple[NDArray[np.int64], NDArray[np.int64], int]:
    """[E] group of each expert in index order, [E] after exchanges, and the number of groups."""
    num_groups = min(NUM_GROUPS, fit.num_experts)
    index_E = np.arange(fit.num_experts) * num_groups // fit.num_experts
    return index_E, _exchange(affinity(fit, layer), index_E), num_groups


def groups_of_independent_draws(trace: Trace) -> float:
    """Distinct fitted groups of a token that draws its experts independently by load: what loads alone explain.

    To be held against `groups_fitted`: the same groups, the same odd sequences, mean over layers.
    """
    fit, held_out = Alternate()(trace)
    visits = 0
    for layer in range(trace.num_layers):
        _, fitted_E, num_groups = _index_and_fitted_groups(fit, layer)
        drawn_TK = independent_draws(held_out.layer(layer), trace.num_experts)
        visits += _distinct(drawn_TK, fitted_E, num_groups)
    return visits / (held_out.num_tokens * trace.num_layers)


def independent_draws(ids_TK: NDArray[np.unsignedinteger], num_experts: int, seed: int = 0) -> NDArray[np.int64]:
    """As many tokens [T, K], each K experts drawn without replacement in proportion to the loads (the Gumbel trick)."""
    load_E = np.bincount(ids_TK.ravel(), minlength=num_experts)
    noise_TE = np.random.default_rng(seed).gumbel(size=(len(ids_TK), num_experts))
    with np.errstate(divide="ignore"):  # an expert that nobody chose is drawn last
        return np.argsort(-(np.log(load_E) + noise_TE), axis=1)[:, : ids_TK.shape[1]]


@njit(nogil=True, cache=True)
def _exchange(count_EE, group_E):  # type: ignore[no-untyped-def]
    """[E] groups of the same sizes: two experts change places as long as that keeps more pairs together."""
    num_experts, group_E = len(group_E), group_E.copy()
    together_EG = np.zeros((num_experts, group_E.max() + 1), np.int64)
    for i in range(num_experts):
        for j in range(num_experts):
            together_EG[i, group_E[j]] += count_EE[i, j]
    improved = True
    while improved:
        improved = False
        for i in range(num_experts):
            for j in range(i):
                a, b = group_E[i], group_E[j]
                gain = together_EG[i, b] - together_EG[i, a] + together_EG[j, a] - together_EG[j, b]
                if a != b and gain > 2 * count_EE[i, j]:  # the gain counts i and j together, who never are
                    improved = True
                    group_E[i], group_E[j] = b, a
                    together_EG[:, a] += count_EE[:, j] - count_EE[:, i]
                    together_EG[:, b] += count_EE[:, i] - count_EE[:, j]
    return group_E


@njit(nogil=True, cache=True)
def _distinct(ids_TK, group_E, num_groups):  # type: ignore[no-untyped-def]
    """Distinct groups of every token, summed over tokens."""
    last_token_G = np.full(num_groups, -1)
    visits = 0
    for token in range(ids_TK.shape[0]):
        for k in range(ids_TK.shape[1]):
            group = group_E[ids_TK[token, k]]
            visits += last_token_G[group] != token
            last_token_G[group] = token
    return visits

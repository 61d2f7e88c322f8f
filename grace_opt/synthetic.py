"""A seeded synthetic routing trace with the statistics of a real one, for sizes nobody has recorded.

Every token draws its top-k experts without replacement, with odds exp(logit):

    logit(token, expert) = bias(expert) + < z(token), v(expert) >
    z(token)             = domain * z(its domain) + sequence * z(its sequence) + token * z(the token itself)

The z on the right are normal vectors, the same in all layers (that couples the layers); v(expert) is a random
direction, drawn anew in each layer. Coordinate d of v weighs exp(-d / dimensions): the fewer coordinates count, the
fewer and larger the clusters of similar experts. A token's own z is correlated with that of the token before it
(`memory`), and the load of an expert with coordinate 0 of its v (`crowding`): busy experts are more or less alike.

The six scales are fitted so that a synthetic trace of the real one's size has its figures (`trace_statistics.py`), and
the biases so that each layer has its load curve. At other sizes

    num_layers   layer l of L has the load curve found at the same relative depth
    num_experts  the i-th busiest of E experts has the load at quantile (i + 1/2) / E of that curve, and `dimensions`
                 grows with E: a cluster keeps its number of experts; the other scales stay
    num_tokens   sequences have the real ones' lengths and domains, in random order, again and again until enough

The seed alone decides the output, not the machine or the number of threads: noise is a hash of layer, token and expert,
and all terms of a logit are multiples of 2^-18, so that sums below 64 are exact in float32 whatever their order.
"""

from concurrent.futures import ThreadPoolExecutor
from dataclasses import astuple, dataclass, replace

import numpy as np
from numba import njit
from numpy.typing import NDArray
from scipy.optimize import least_squares

from grace_opt.cores import num_cores
from grace_opt.model import MoEModel
from grace_opt.trace import Trace
from grace_opt.trace_file import read_trace
from grace_opt.trace_statistics import TraceStatistics, fit_statistics, measure

CALIBRATED = {
    "repeats_previous": 1, "repeats_sequence": 1, "repeats_domain": 1, "domain_shift": 1, "affinity": 1,
    "affinity_log": 1, "groups_fitted": 3, "busiest_group": 1,
}  # fmt: skip
"""Figures the scales are fitted to, by weight: a few percent of groups_fitted are much."""
CALIBRATION_LAYERS = 8
MAX_DIMENSIONS = 256
BIAS_TOKENS = 16_384
BIAS_STEPS = 6
Terms = tuple[NDArray[np.float32], NDArray[np.float32], np.uint64]
"""v of the experts [D, E], quantiles of the Gumbel noise, key of its hash."""


@dataclass(frozen=True)
class Scales:
    """Weights in z, correlation of a token with the one before, dimensions that count, correlation of load and v_0."""

    domain: float = 1.2
    sequence: float = 0.8
    token: float = 2.7
    memory: float = 0.5
    dimensions: float = 3.5
    crowding: float = 0.5


BOUNDS = (0.01, 0.01, 0.01, 0.01, 0.5, 0.01), (5.0, 5.0, 8.0, 0.98, 30.0, 1.0)


def synthetic_trace(like: str, model: MoEModel, num_tokens: int, seed: int) -> Trace:
    """A synthetic trace of a model's size with the statistics of the trace file `like`."""
    sizes = (model.num_layers, model.num_experts, model.top_k)
    return synthesize(fit_statistics(read_trace(like)), *sizes, num_tokens, seed, model.name)


def synthesize(
    statistics: TraceStatistics,
    num_layers: int,
    num_experts: int,
    top_k: int,
    num_tokens: int,
    seed: int,
    model: str = "",
    scales: Scales | None = None,
) -> Trace:
    """A synthetic trace of this size; `scales` are calibrated unless given.

    Raises:
        ValueError: no trace has this size.
    """
    _check_size(num_layers, num_experts, top_k, num_tokens)
    if seed < 0:
        raise ValueError(f"a synthetic trace needs a seed that is not negative, got {seed}")
    scales = scales or calibrate(statistics)
    scales = replace(scales, dimensions=scales.dimensions * num_experts / statistics.load_curve.shape[1])
    lengths, domains = _sequences(statistics, num_tokens, seed)
    trace = Trace(
        np.empty((num_layers, num_tokens, top_k), np.uint8 if num_experts <= 256 else np.uint16),
        np.cumsum(lengths) - lengths, np.cumsum(lengths), domains, statistics.domain_names, num_experts, model,
        statistics.phase, f"synthetic, seed {seed}, fitted to {statistics.source or 'an unnamed trace'}", True,
    )  # fmt: skip
    _fill(trace, _resized(statistics.load_curve, num_layers, num_experts), scales, seed)
    trace.expert_ids.setflags(write=False)
    return trace


def calibrate(statistics: TraceStatistics, seed: int = 0) -> Scales:
    """The scales that make a synthetic trace of the real one's size most like it.

    Least squares of log ratios of figures: counts of random draws, hence long difference steps and an early stop.
    """
    L, E = statistics.load_curve.shape
    curve_LE = _resized(statistics.load_curve, min(L, CALIBRATION_LAYERS), E)
    stops = np.cumsum(statistics.lengths)
    trace = Trace(
        np.empty((len(curve_LE), stops[-1], statistics.top_k), np.uint16), stops - statistics.lengths, stops,
        statistics.domains, statistics.domain_names, E, synthetic=True,
    )  # fmt: skip

    def log_ratios(x: NDArray[np.float64]) -> list[float]:
        _fill(trace, curve_LE, Scales(*x.tolist()), seed)
        figures = measure(trace)
        return [w * float(np.log((figures[n] + 0.01) / (statistics.figures[n] + 0.01))) for n, w in CALIBRATED.items()]

    start, early = astuple(Scales()), {"max_nfev": 12, "ftol": 0.1, "xtol": 0.01}
    found = least_squares(log_ratios, start, bounds=BOUNDS, x_scale=start, diff_step=0.25, **early)
    return Scales(*found.x.round(3).tolist())  # rounded: the last digits of a fit may differ between machines


def _check_size(num_layers: int, num_experts: int, top_k: int, num_tokens: int) -> None:
    if min(num_layers, num_experts, top_k, num_tokens) < 1:
        given = f"num_layers={num_layers}, num_experts={num_experts}, top_k={top_k}, num_tokens={num_tokens}"
        raise ValueError(f"a synthetic trace needs at least one layer, expert, choice and token, got {given}")
    if top_k > num_experts:
        raise ValueError(f"a token cannot choose top_k={top_k} different experts among num_experts={num_experts}")
    if num_experts > 65_536:
        raise ValueError(f"a trace stores expert ids in 16 bits: num_experts must be at most 65536, got {num_experts}")


def _sequences(statistics: TraceStatistics, num_tokens: int, seed: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Lengths and domains [Q] of sequences with num_tokens tokens together; the last one is cut."""
    rng = np.random.default_rng([seed, 0])
    rounds = -(-num_tokens // int(statistics.lengths.sum()))
    order = np.concatenate([rng.permutation(len(statistics.lengths)) for _ in range(rounds)])
    order = order[: np.searchsorted(np.cumsum(statistics.lengths[order]), num_tokens) + 1]
    lengths = statistics.lengths[order]
    lengths[-1] -= lengths.sum() - num_tokens
    return lengths, statistics.domains[order]


def _resized(curve_LE: NDArray[np.float64], num_layers: int, num_experts: int) -> NDArray[np.float64]:
    """The load curves at other depths and quantiles, mean 1."""
    L, E = curve_LE.shape
    depths = ((np.arange(num_layers) + 0.5) / num_layers * L).astype(int)
    quantiles = (np.arange(num_experts) + 0.5) / num_experts
    resized = np.stack([np.interp(quantiles, (np.arange(E) + 0.5) / E, curve_LE[depth]) for depth in depths])
    return np.asarray(resized / resized.mean(1, keepdims=True))


def _fill(trace: Trace, curve_LE: NDArray[np.float64], scales: Scales, seed: int) -> None:
    """Draw all choices of a trace in place, layers in parallel, each from its own seed."""
    latent_TD, crowding, E = _latent(trace, scales, seed), scales.crowding, trace.num_experts
    gumbel = _rounded(-np.log(-np.log((np.arange(2**16) + 0.5) / 2**16)))

    def fill(layer: int) -> None:
        rng = np.random.default_rng([seed, 2, layer])
        direction_DE, other_E = rng.standard_normal((latent_TD.shape[1], E)), rng.standard_normal(E)
        load_E = np.empty(E)
        load_E[np.argsort(crowding * direction_DE[0] + np.sqrt(1 - crowding**2) * other_E)] = curve_LE[layer]
        direction_DE *= np.exp(-np.arange(len(direction_DE)) / scales.dimensions)[:, None]
        direction_DE /= np.linalg.norm(direction_DE, axis=0)
        terms = _rounded(direction_DE), gumbel, rng.integers(2**63, dtype=np.uint64)
        _choose(trace.expert_ids[layer], _fit_bias(load_E, trace.top_k, latent_TD, terms), latent_TD, *terms, 1)

    with ThreadPoolExecutor(num_cores()) as threads:
        list(threads.map(fill, range(trace.num_layers)))


def _latent(trace: Trace, scales: Scales, seed: int) -> NDArray[np.float32]:
    """z of every token [T, D], multiples of 1/256; the coordinates left out would hold 2 % (e^-4) of the variance."""
    rng = np.random.default_rng([seed, 1])
    D = min(max(2, round(2 * scales.dimensions)), MAX_DIMENSIONS)
    domain_XD = rng.standard_normal((len(trace.domain_names), D))  # X domains, standardised because they are few
    domain_XD = (domain_XD - domain_XD.mean(0)) / (domain_XD.std(0) + 1e-9)
    mean_QD = scales.domain * domain_XD[trace.domains] + scales.sequence * rng.standard_normal((trace.num_sequences, D))
    latent_TD = rng.standard_normal((trace.num_tokens, D), np.float32)
    _remember(latent_TD, mean_QD, trace.starts, trace.stops, scales.token, scales.memory)
    return latent_TD


@njit(nogil=True, cache=True)
def _remember(latent_TD, mean_QD, starts, stops, scale, memory):  # type: ignore[no-untyped-def]
    """Turn independent draws into the z of tokens, in place: a first-order autoregression in each sequence."""
    fresh = np.sqrt(1 - memory * memory)
    for sequence in range(len(starts)):
        for d in range(latent_TD.shape[1]):
            own = np.float64(latent_TD[starts[sequence], d])
            for token in range(starts[sequence], stops[sequence]):
                if token > starts[sequence]:
                    own = memory * own + fresh * latent_TD[token, d]
                latent_TD[token, d] = np.rint(256 * (mean_QD[sequence, d] + scale * own)) / 256


def _fit_bias(
    load_E: NDArray[np.float64], top_k: int, latent_TD: NDArray[np.float32], terms: Terms
) -> NDArray[np.float32]:
    """[E] biases that give the experts these loads (mean 1), fitted on every n-th token by fixed-point steps."""
    stride = -(-len(latent_TD) // BIAS_TOKENS)
    ids_TK = np.empty((-(-len(latent_TD) // stride), top_k), np.uint16)
    chance_E = np.minimum(load_E * top_k / len(load_E), 0.95)  # small models cannot be as skewed as large ones
    target_E = chance_E * len(ids_TK) + 0.5
    bias_E = np.log(target_E / target_E.max())
    for _ in range(BIAS_STEPS):
        _choose(ids_TK, _rounded(bias_E), latent_TD, *terms, stride)
        chosen_E = np.bincount(ids_TK.ravel(), minlength=len(bias_E)) + 0.5
        bias_E += 1.5 * np.log(target_E / chosen_E)  # 1.5: latent terms blunt the effect of a bias
        bias_E = np.maximum(bias_E - bias_E.max(), -20)
    return _rounded(bias_E)


def _rounded(values: NDArray[np.floating]) -> NDArray[np.float32]:
    """Multiples of 1/1024."""
    return np.asarray(np.rint(values * 1024) / 1024, np.float32)


@njit(nogil=True, cache=True)
def _choose(ids_TK, bias_E, latent_TD, direction_DE, gumbel, key, stride):  # type: ignore[no-untyped-def]
    """Row i: the top-k of token i * stride, best first, by bias + latent term + Gumbel noise (a top-k of such sums is a
    draw without replacement). `gumbel` holds the quantiles of the noise; the top bits of a splitmix64 hash pick one."""
    num_rows, top_k = ids_TK.shape
    num_experts = len(bias_E)
    logit_E = np.empty(num_experts, np.float32)
    best_K = np.empty(top_k, np.float32)
    for row in range(num_rows):
        token = row * stride
        logit_E[:] = bias_E
        for d in range(latent_TD.shape[1]):
            z = latent_TD[token, d]
            for expert in range(num_experts):
                logit_E[expert] += z * direction_DE[d, expert]
        best_K[:] = -np.inf
        for expert in range(num_experts):
            bits = key + np.uint64(token * num_experts + expert) * np.uint64(0x9E3779B97F4A7C15)
            bits = (bits ^ (bits >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
            bits = (bits ^ (bits >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
            logit = logit_E[expert] + gumbel[bits >> np.uint64(48)]
            if logit > best_K[top_k - 1]:
                place = top_k - 1
                while place > 0 and best_K[place - 1] < logit:
                    best_K[place] = best_K[place - 1]
                    ids_TK[row, place] = ids_TK[row, place - 1]
                    place -= 1
                best_K[place] = logit
                ids_TK[row, place] = expert

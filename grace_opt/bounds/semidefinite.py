"""Semidefinite lower bounds: search a relaxation at low rank, then certify what was found by its multipliers.

Search. Y = V V^T with rows of V on the unit sphere, of rank about sqrt(2 E) (Burer and Monteiro 2003: enough for the
optimum), so that Y >= 0 and its diagonal need no constraint. Shares of inequalities follow the exponential method of
multipliers (smooth, minimise over V by L-BFGS, multiply each share by exp(inequality / smoothing), repeat); prices mu
of the coupling follow the augmented Lagrangian; sizes of sets are kept by a penalty on |V^T a|^2.

What it finds are multipliers; `eigenvalue_bound` makes a bound of them, whatever they are.

An expert may be fixed inside or outside a set (branch and bound): its row of V is then row 0 or its negative, and Y is
S Y' S^T with Y' of the free experts only.
"""

import math
import time
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import minimize

from grace_opt.bounds.eigenvalue_bound import EigenvalueBound, until, with_prices
from grace_opt.bounds.relaxation import Matrices, Mixes, Relaxation, assemble, evaluate

ROUNDING = 1e-9
"""Allowance for rounding, relative to tokens x (E + 1)."""
FREE = -1
SEARCH_SHARE = 0.6
"""Of the time until a search must end; its certificate has the rest."""


@dataclass(frozen=True)
class Effort:
    """How long to search.

    Attributes:
        rounds: times the shares are updated.
        steps: L-BFGS iterations in a round.
        smoothing: of a token's maximum over inequalities, in rows.
        ascent: iterations of each of three ascents on u and mu.
    """

    rounds: int = 12
    steps: int = 40
    smoothing: float = 0.1
    ascent: int = 30


@dataclass(eq=False)
class State:
    """Where a search stands; also a start for the next one.

    Attributes:
        vectors: float64 [blocks, E + 1, rank], V.
        mixes: shares of the inequalities.
        prices: float64 [E], mu.
        bound: certified; minus infinity before the first certificate.
    """

    vectors: NDArray[np.float64]
    mixes: Mixes
    prices: NDArray[np.float64]
    bound: float = -math.inf

    @classmethod
    def begin(cls, relaxation: Relaxation, seed: int = 0) -> "State":
        """Random directions, even shares, no prices."""
        side = relaxation.num_experts + 1
        rank = min(side, math.isqrt(2 * side) + 2)
        vectors = np.random.default_rng(seed).standard_normal((len(relaxation.blocks), side, rank))
        return cls(_unit(vectors), Mixes.even(relaxation), np.zeros(relaxation.num_experts))

    def copy(self) -> "State":
        return State(self.vectors.copy(), self.mixes.copy(), self.prices.copy(), self.bound)

    def inside(self) -> NDArray[np.float64]:
        """[blocks, E] the x of the relaxation: how far each expert lies in each set."""
        return np.asarray((1 + np.einsum("br,ber->be", self.vectors[:, 0], self.vectors[:, 1:])) / 2)


def improve(
    relaxation: Relaxation, state: State, fixed: NDArray[np.int8], effort: Effort, end: float = math.inf
) -> State:
    """Search on from a state, under fixed experts, and certify.

    Args:
        fixed: int8 [blocks, E], 1 inside, 0 outside, FREE neither.
        end: when to stop, by `time.monotonic`; what is found by then is certified, which takes two evaluations more.
    """
    if not _feasible(relaxation, fixed):
        return State(state.vectors, state.mixes, state.prices, math.inf)
    state = state.copy()
    search = _Search(relaxation, fixed, state)
    begun = time.monotonic()
    for _ in range(effort.rounds):
        search.round(effort, begun + SEARCH_SHARE * (end - begun))
    bound = search.certify(effort, end)
    state.bound = max(state.bound, bound)
    return state


def _feasible(relaxation: Relaxation, fixed: NDArray[np.int8]) -> bool:
    sizes = np.array([block.size for block in relaxation.blocks])
    ones, free = (fixed == 1).sum(axis=1), (fixed == FREE).sum(axis=1)
    if (ones > sizes).any() or (ones + free < sizes).any():
        return False
    return relaxation.coupling == "free" or bool((fixed != 0).any(axis=0).all())


class _Search:
    def __init__(self, relaxation: Relaxation, fixed: NDArray[np.int8], state: State) -> None:
        self.relaxation, self.state = relaxation, state
        self.signs = np.where(fixed == FREE, 0.0, 2.0 * fixed - 1.0)  # [blocks, E]
        self.sizes = [relaxation.size_vector(b) for b in range(len(relaxation.blocks))]
        self.scale = max(relaxation.num_tokens, 1.0) / relaxation.num_experts
        self.size_weight = 50 * self.scale / (relaxation.num_experts + 1)
        self.price_weight = 2 * self.scale

    def round(self, effort: Effort, end: float) -> None:
        """Minimise over V; then move prices and shares, and give every token its strongest inequality."""
        state = self.state
        if time.monotonic() >= end:
            return
        result = minimize(
            self._value, state.vectors.ravel(), args=(effort.smoothing,), jac=True, method="L-BFGS-B",
            options={"maxiter": effort.steps, "maxcor": 20}, callback=until(end),
        )  # fmt: skip
        state.vectors = self._tied(_unit(result.x.reshape(state.vectors.shape)))
        gram = _gram(state.vectors)
        if self.relaxation.coupling != "free":
            state.prices = self._moved_prices(gram)
        state.mixes.renew(self.relaxation, gram, effort.smoothing)

    def certify(self, effort: Effort, end: float) -> float:
        """The bound of the present shares, after ascent on shares, u and prices."""
        state = self.state
        _, matrices = assemble(self.relaxation, state.mixes, state.mixes.share)
        certificate = EigenvalueBound(self.relaxation, state.mixes, self.signs)
        bound, state.prices = certificate.ascend(self._multipliers(matrices), state.prices, effort.ascent, end)
        rounding = ROUNDING * self.relaxation.num_tokens * (self.relaxation.num_experts + 1)
        return bound - rounding

    def _tied(self, vectors: NDArray[np.float64]) -> NDArray[np.float64]:
        """Rows of fixed experts replaced by row 0 or its negative."""
        tied = vectors.copy()
        tied[:, 1:] = np.where(self.signs[:, :, None] == 0, vectors[:, 1:], self.signs[:, :, None] * vectors[:, :1])
        return tied

    def _moved_prices(self, gram: Matrices) -> NDArray[np.float64]:
        missing_E = 1 - sum((1 + y[0, 1:]) / 2 for y in gram)
        prices = self.state.prices + self.price_weight * missing_E
        return np.maximum(prices, 0.0) if self.relaxation.coupling == "cover" else prices

    def _value(self, flat: NDArray[np.float64], smoothing: float) -> tuple[float, NDArray[np.float64]]:
        raw = flat.reshape(self.state.vectors.shape)
        length = np.linalg.norm(raw, axis=2, keepdims=True)
        vectors = self._tied(raw / length)
        gram = _gram(vectors)
        value, _, matrices = evaluate(self.relaxation, self.state.mixes, gram, smoothing)
        if self.relaxation.coupling != "free":
            prices = self._moved_prices(gram)
            value += float((prices @ prices - self.state.prices @ self.state.prices) / (2 * self.price_weight))
            matrices = with_prices(matrices, prices)
        slope = np.empty_like(vectors)
        for b, (matrix, size) in enumerate(zip(matrices, self.sizes, strict=True)):
            outside = vectors[b].T @ size
            value += self.size_weight * float(outside @ outside)
            slope[b] = 2 * matrix @ vectors[b] + 2 * self.size_weight * np.outer(size, outside)
        slope[:, 0] += np.einsum("be,ber->br", self.signs, slope[:, 1:])
        slope[:, 1:][self.signs != 0] = 0.0
        unit = raw / length
        slope = (slope - (slope * unit).sum(axis=2, keepdims=True) * unit) / length
        return value / self.scale, slope.ravel() / self.scale

    def _multipliers(self, matrices: Matrices) -> Matrices:
        """u [E + 1] of each block at which V is stationary."""
        priced = with_prices(matrices, self.state.prices) if self.relaxation.coupling != "free" else matrices
        found = []
        for matrix, size, vectors in zip(priced, self.sizes, self.state.vectors, strict=True):
            pull = matrix @ vectors + self.size_weight * np.outer(size, vectors.T @ size)
            found.append((pull * vectors).sum(axis=1))
        return found


def _unit(vectors: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.asarray(vectors / np.linalg.norm(vectors, axis=2, keepdims=True))


def _gram(vectors: NDArray[np.float64]) -> Matrices:
    return [rows @ rows.T for rows in vectors]

"""A bound from multipliers: one least eigenvalue a block.

For any shares, any mu (not negative under `cover`) and any u, with Q_b the matrices of the mix less mu,
and P_b an orthonormal basis of the complement of a_b,

    optimum >= constant + sum mu + sum over b of ( sum u_b + (E + 1) lambda_min(P_b^T (Q_b - Diag u_b) P_b) )

since <Q, Y> = sum u + <Q - Diag u, Y> as diag Y = 1, and Y = P (P^T Y P) P^T has trace E + 1. So a search may stop
anywhere and err anyhow: nothing it does can make a bound invalid. Shares, u and mu are improved by ascent on a smooth
minimum of the eigenvalues. An allowance for rounding is subtracted.
"""

import math
import time
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import minimize

from grace_opt.bounds.relaxation import Matrices, Mixes, Relaxation, assemble, inequalities


class EigenvalueBound:
    """The certified bound as a function of shares, u and prices.

    Shares, also those of senders, are varied through their logarithms, so that they stay a convex mix.
    """

    def __init__(self, relaxation: Relaxation, mixes: Mixes, signs: NDArray[np.float64]) -> None:
        self.relaxation, self.mixes = relaxation, mixes
        self.ties = [_tie(row) for row in signs]  # S [E + 1, free + 1]
        sizes = [tie.T @ relaxation.size_vector(b) for b, tie in enumerate(self.ties)]
        self.bases = [_complement(size) for size in sizes]
        self.scale = max(relaxation.num_tokens, 1.0) / relaxation.num_experts
        self.shapes = [share.shape for share in mixes.share]
        self.start = [np.where(share > 0, share, 0.0) for share in mixes.share]
        self.start_of_sender = mixes.of_sender
        self.best = -math.inf
        self.best_point: NDArray[np.float64] = np.zeros(0)
        self.coupled = relaxation.coupling != "free"

    def ascend(
        self, multipliers: Matrices, prices: NDArray[np.float64], iterations: int, end: float = math.inf
    ) -> tuple[float, NDArray[np.float64]]:
        """The best certified bound met until `end` (`time.monotonic`), its prices; leaves its shares in the mixes."""
        reduced = [tie.T**2 @ u for tie, u in zip(self.ties, multipliers, strict=True)]
        tilts = [np.zeros(share.size) for share in (*self.start, self.start_of_sender)]
        point = np.concatenate([*reduced, *tilts, prices if self.coupled else prices[:0]])
        limits = None
        if self.relaxation.coupling == "cover":
            limits = [(None, None)] * (len(point) - len(prices)) + [(0.0, None)] * len(prices)
        for smoothing in (1e-2, 3e-3, 1e-3, 3e-4):
            result = minimize(
                self._negative, point, args=(smoothing * self.scale,), jac=True, method="L-BFGS-B", bounds=limits,
                options={"maxiter": iterations, "maxcor": 10}, callback=until(end),
            )  # fmt: skip
            point = result.x
            if time.monotonic() >= end:
                break
        _, tilts, best_prices = self._split(self.best_point)
        self.mixes.share, self.mixes.of_sender = self._shares(tilts)
        return self.best, best_prices if self.coupled else prices

    def _split(self, point: NDArray[np.float64]) -> tuple[Matrices, Matrices, NDArray[np.float64]]:
        sides = [basis.shape[0] for basis in self.bases]
        sizes = [rows * width for rows, width in self.shapes]
        parts = np.split(point, np.cumsum([*sides, *sizes, len(self.start_of_sender)]))
        return parts[: len(sides)], parts[len(sides) : -1], parts[-1]

    def _shares(self, tilts: Matrices) -> tuple[Matrices, NDArray[np.float64]]:
        """Those of inequalities, of each block, and of senders."""
        *of_blocks, of_senders = tilts
        shapes = zip(self.start, of_blocks, self.shapes, strict=True)
        shares = [_tilted(start, tilt.reshape(shape)) for start, tilt, shape in shapes]
        return shares, self.relaxation.tilted(self.start_of_sender, of_senders)

    def _negative(self, point: NDArray[np.float64], smoothing: float) -> tuple[float, NDArray[np.float64]]:
        multipliers, tilts, prices = self._split(point)
        shares, of_sender = self._shares(tilts)
        constant, matrices = assemble(self.relaxation, self.mixes, shares, of_sender)
        if self.coupled:
            matrices = with_prices(matrices, prices)
        smooth = exact = constant + float(prices.sum()) * (1 - len(matrices) / 2)
        slopes, gram, price_slope = [], [], np.full(len(prices), 1 - len(matrices) / 2)
        for matrix, tie, basis, u in zip(matrices, self.ties, self.bases, multipliers, strict=True):
            trace = len(u)
            low, vectors = np.linalg.eigh(basis.T @ (tie.T @ matrix @ tie - np.diag(u)) @ basis)
            weight = np.exp(-(low - low[0]) / smoothing)
            smooth += u.sum() + trace * (low[0] - smoothing * math.log(weight.sum()))
            exact += u.sum() + trace * low[0]
            lifted = basis @ vectors
            y = (lifted * (trace * weight / weight.sum())) @ lifted.T
            slopes.append(1 - np.diag(y))
            gram.append(tie @ y @ tie.T)
            if self.coupled:
                price_slope -= gram[-1][0, 1:] / 2
        if exact > self.best:
            self.best, self.best_point = float(exact), point.copy()
        values = inequalities(self.relaxation, self.mixes, gram)
        share_slopes, cost = [], []
        for block, share, value in zip(self.relaxation.blocks, shares, values, strict=True):
            value[share == 0] = 0.0
            mean = (share * value).sum(axis=1)
            cost.append(block.weight * mean)
            weight = block.weight * of_sender[block.sender]
            share_slopes.append((weight[:, None] * share * (value - mean[:, None])).ravel())
        share_slopes.append(self.relaxation.slopes_of_shares(cost, of_sender))
        return -smooth / self.scale, -np.concatenate([*slopes, *share_slopes, price_slope]) / self.scale


def until(end: float) -> Callable[[NDArray[np.float64]], None]:
    """A callback that ends a minimisation after its first step past a time of `time.monotonic`."""

    def stop(_: NDArray[np.float64]) -> None:
        if time.monotonic() >= end:
            raise StopIteration

    return stop


def with_prices(matrices: Matrices, prices: NDArray[np.float64]) -> Matrices:
    """Matrices less the prices of experts' x, half a y_0 y_e each."""
    return [matrix - _priced(len(matrix), prices) for matrix in matrices]


def _priced(side: int, prices: NDArray[np.float64]) -> NDArray[np.float64]:
    """The matrix of sum over experts of price x y_0 y_e / 2, which x = (1 + y) / 2 takes from the objective."""
    matrix = np.zeros((side, side))
    matrix[0, 1:] = matrix[1:, 0] = prices / 4
    return matrix


def _tilted(start: NDArray[np.float64], tilt: NDArray[np.float64]) -> NDArray[np.float64]:
    """Shares proportional to start x exp(tilt)."""
    share = start * np.exp(tilt - tilt.max(axis=1, keepdims=True))
    return np.asarray(share / share.sum(axis=1, keepdims=True))


def _tie(signs_E: NDArray[np.float64]) -> NDArray[np.float64]:
    """[E + 1, free + 1] from y_0 and the free experts to all."""
    free = np.flatnonzero(signs_E == 0)
    tie = np.zeros((len(signs_E) + 1, len(free) + 1))
    tie[0, 0] = 1.0
    tie[1:, 0] = signs_E
    tie[1 + free, 1 + np.arange(len(free))] = 1.0
    return tie


def _complement(vector: NDArray[np.float64]) -> NDArray[np.float64]:
    """Orthonormal basis, in columns, of what is orthogonal to a vector; of everything if it is zero."""
    length = np.linalg.norm(vector)
    if length == 0:
        return np.eye(len(vector))
    reflected = vector / length
    reflected[-1] += 1.0 if reflected[-1] >= 0 else -1.0
    reflected /= np.linalg.norm(reflected)
    return np.asarray((np.eye(len(vector)) - 2 * np.outer(reflected, reflected))[:, :-1])

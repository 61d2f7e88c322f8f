"""The convex problem behind semidefinite bounds: tokens that leave, or enter, sets of experts of given sizes.

Data: blocks b, one a node: |S_b| experts of a set S_b, and weighted tokens that cost 1 unless all their experts lie in
S_b (they leave node b), or cost 1 if any does (they enter it).
Decision variables: per block Y = y y^T relaxed to Y >= 0 (semidefinite) with diagonal 1, where y_0 = 1 and
y_e = 1 or -1 as expert e - 1 lies in S_b or not; x = (1 + y) / 2.
Constraints: |S_b| fixed, that is y^T a = 0 for a = (E - 2 |S_b|, 1, ..., 1), so Y a = 0; over blocks sum_b x_be = 1
(`partition`) or >= 1 (`cover`), or nothing (`free`).
Objective: sum over tokens of weight x max over inequalities of a lower bound that is linear in Y (`quadratics.py`).

A token enters S_b exactly if it is not inside the complement, so one kind of inequality serves both (y_0 changes sign).
"""

from dataclasses import dataclass, field
from functools import lru_cache
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from grace_opt.bounds.mix_kernels import assemble_of_tokens, renew_of_tokens, values_of_tokens
from grace_opt.bounds.quadratics import spread_quadratics, subset_quadratics

Matrices = list[NDArray[np.float64]]
COUPLINGS = ("free", "partition", "cover")
WIDTH = 24
"""Inequalities a token may have in play at once."""
SENDER_SMOOTHING = 0.02
"""Of the maximum over senders, relative to the tokens of a batch's largest."""


@dataclass(frozen=True, eq=False)
class Block:
    """One set of experts and the tokens it is paid for.

    Attributes:
        size: experts in the set.
        experts: int64 [M, K].
        weight: float64 [M], tokens.
        sign: float64 [M], 1 for tokens that cost unless inside the set, -1 for those that cost if they meet it.
        sender: int64 [M], whose cost they are.
    """

    size: int
    experts: NDArray[np.int64]
    weight: NDArray[np.float64]
    sign: NDArray[np.float64]
    sender: NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class Relaxation:
    """All blocks, how they hang together, and the inequalities on a token's cost.

    With `spread`, a token costs 1 for every set it needs besides that of its own block (`spread_quadratics`).
    batch: int64 [G], in which batch each sender sends; of a batch its costliest sender counts.
    """

    num_experts: int
    blocks: tuple[Block, ...]
    coupling: str
    spread: bool = False
    batch: NDArray[np.int64] = field(default_factory=lambda: np.zeros(1, np.int64))

    def __post_init__(self) -> None:
        assert self.coupling in COUPLINGS
        assert all(0 <= block.size <= self.num_experts for block in self.blocks)
        assert (np.diff(self.batch) >= 0).all()

    @property
    def num_tokens(self) -> float:
        """The most that tokens cost, if each costs 1 in a block."""
        return float(np.maximum.reduceat(self.of_senders([block.weight for block in self.blocks]), self._first).sum())

    def of_senders(self, cost: Matrices) -> NDArray[np.float64]:
        """[G] sums of costs [M] of each block."""
        counts = [
            np.bincount(block.sender, of_block, len(self.batch))
            for block, of_block in zip(self.blocks, cost, strict=True)
        ]
        return np.asarray(np.sum(counts, axis=0))

    def costliest(self, cost: Matrices) -> float:
        """Of costs [M] of each block: those of the costliest sender of each batch, summed over batches."""
        return float(np.maximum.reduceat(self.of_senders(cost), self._first).sum())

    def smooth_costliest(self, cost: Matrices, share_G: NDArray[np.float64]) -> tuple[float, NDArray[np.float64]]:
        """The same, each maximum as smoothing x log sum share exp(cost / smoothing); the shares of its slope."""
        smoothing = SENDER_SMOOTHING * self.num_tokens / len(self._first)
        tilt_G = self.of_senders(cost) / smoothing
        highest = np.maximum.reduceat(tilt_G, self._first)
        total = np.add.reduceat(share_G * np.exp(tilt_G - highest[self.batch]), self._first)
        return float(smoothing * (highest + np.log(total)).sum()), self.tilted(share_G, tilt_G)

    def tilted(self, share_G: NDArray[np.float64], tilt_G: NDArray[np.float64]) -> NDArray[np.float64]:
        """[G] shares of senders in proportion to share x exp(tilt), which add up to 1 in each batch."""
        share_G = share_G * np.exp(tilt_G - np.maximum.reduceat(tilt_G, self._first)[self.batch])
        return np.asarray(share_G / np.add.reduceat(share_G, self._first)[self.batch])

    def slopes_of_shares(self, cost: Matrices, share_G: NDArray[np.float64]) -> NDArray[np.float64]:
        """[G] of sum share x cost, in the logarithms of shares that keep adding up to 1."""
        cost_G = self.of_senders(cost)
        return np.asarray(share_G * (cost_G - np.add.reduceat(share_G * cost_G, self._first)[self.batch]))

    @property
    def _first(self) -> NDArray[np.int64]:
        """[batches] the first sender of each."""
        return np.flatnonzero(np.diff(self.batch, prepend=-1))

    @property
    def inequalities(self) -> "Inequalities":
        return _inequalities(self.blocks[0].experts.shape[1], self.spread)

    def size_vector(self, block: int) -> NDArray[np.float64]:
        """[E + 1] the a of y^T a = 0."""
        return np.append(self.num_experts - 2.0 * self.blocks[block].size, np.ones(self.num_experts))


class Inequalities(NamedTuple):
    """Lower bounds on what a token costs, for kernels.

    Attributes:
        members: int64 [J, K], the experts of each one's subset, by place in the token.
        number: int64 [J], how many they are.
        own: float64 [J, 3], quadratic in how many of them lie in the set of the token's block.
        other: float64 [J, 3], the same for each other set; all 0 for the first `num_own`.
        num_own: those that look at the token's own block only.
    """

    members: NDArray[np.int64]
    number: NDArray[np.int64]
    own: NDArray[np.float64]
    other: NDArray[np.float64]
    num_own: int


@lru_cache(maxsize=8)
def _inequalities(size: int, spread: bool) -> Inequalities:
    masks, own = subset_quadratics(size)
    other, num_own = np.zeros_like(own), len(masks)
    if spread:
        more, at_home, elsewhere = spread_quadratics(size)
        masks, own, other = np.append(masks, more), np.vstack((own, at_home)), np.vstack((other, elsewhere))
    members = np.zeros((len(masks), size), np.int64)
    for row, mask in zip(members, masks.tolist(), strict=True):
        places = [place for place in range(size) if mask >> place & 1]
        row[: len(places)] = places
    number = np.array([mask.bit_count() for mask in masks.tolist()], np.int64)
    return Inequalities(members, number, own, other, num_own)


@dataclass(eq=False)
class Mixes:
    """Per block and token, the inequalities in play and their shares of a convex mix: the multipliers of a bound.

    Attributes:
        chosen: int16 [M, WIDTH] of each block, indices into the quadratics; -1 for none, after those in play.
        share: float64 [M, WIDTH] of each block, each row adds up to 1.
        of_sender: float64 [G], share of each sender in its batch; those of a batch add up to 1.
    """

    chosen: list[NDArray[np.int16]]
    share: list[NDArray[np.float64]]
    of_sender: NDArray[np.float64]

    @classmethod
    def even(cls, relaxation: Relaxation) -> "Mixes":
        """Equal shares of the inequalities of pairs and of all experts together."""
        known = relaxation.inequalities
        number, size = known.number[: known.num_own], known.members.shape[1]
        start = np.flatnonzero((number <= 2) | (number == size))[:WIDTH]
        row = np.full(WIDTH, -1, np.int16)
        row[: len(start)] = start
        share = (row >= 0) / len(start)
        shapes = [(len(block.weight), 1) for block in relaxation.blocks]
        of_sender = 1 / np.bincount(relaxation.batch)[relaxation.batch]
        return cls([np.tile(row, shape) for shape in shapes], [np.tile(share, shape) for shape in shapes], of_sender)

    def copy(self) -> "Mixes":
        return Mixes(
            [array.copy() for array in self.chosen], [array.copy() for array in self.share], self.of_sender.copy()
        )

    def renew(self, relaxation: Relaxation, gram: Matrices, smoothing: float) -> None:
        """Multiply shares by exp(inequality / smoothing), drop the least, add each token's strongest at Y = gram."""
        values = inequalities(relaxation, self, gram)
        stack, cost = np.array(gram), []
        for b, (block, value) in enumerate(zip(relaxation.blocks, values, strict=True)):
            cost.append(block.weight * smooth_maximum(value, self.share[b], smoothing))
            renew_of_tokens(stack, b, block.experts, block.sign, relaxation.inequalities, self.chosen[b], self.share[b])
        _, self.of_sender = relaxation.smooth_costliest(cost, self.of_sender)


def inequalities(relaxation: Relaxation, mixes: Mixes, gram: Matrices) -> Matrices:
    """[M, WIDTH] of each block: the value at Y = gram of every inequality in play; -1e300 for none."""
    stack, known = np.array(gram), relaxation.inequalities
    return [
        values_of_tokens(stack, b, block.experts, block.sign, known, chosen)
        for b, (block, chosen) in enumerate(zip(relaxation.blocks, mixes.chosen, strict=True))
    ]


def smooth_maximum(
    value_MW: NDArray[np.float64], share_MW: NDArray[np.float64], smoothing: float
) -> NDArray[np.float64]:
    """[M] smoothing x log sum share exp(value / smoothing); leaves the shares of its gradient in share_MW."""
    highest = value_MW.max(axis=1)
    share_MW *= np.exp((value_MW - highest[:, None]) / smoothing)
    total = share_MW.sum(axis=1)
    share_MW /= total[:, None]
    return np.asarray(highest + smoothing * np.log(total))


def assemble(
    relaxation: Relaxation, mixes: Mixes, shares: Matrices, of_sender: NDArray[np.float64] | None = None
) -> tuple[float, Matrices]:
    """Constant and matrices Q [E + 1, E + 1] a block: constant + sum <Q, Y> is the mix with these shares."""
    of_sender = mixes.of_sender if of_sender is None else of_sender
    experts = relaxation.num_experts
    linear_BE = np.zeros((len(relaxation.blocks), experts))
    pairs_BEE = np.zeros((len(relaxation.blocks), experts, experts))
    constant = 0.0
    for b, (block, chosen, share) in enumerate(zip(relaxation.blocks, mixes.chosen, shares, strict=True)):
        known = relaxation.inequalities
        constant += assemble_of_tokens(
            b, block.experts, block.weight * of_sender[block.sender], block.sign, known, chosen, share, linear_BE,
            pairs_BEE,
        )  # fmt: skip
    constant += linear_BE.sum() / 2 + pairs_BEE.sum() / 4
    pairs_BEE = (pairs_BEE + pairs_BEE.swapaxes(1, 2)) / 2
    matrices = np.zeros((len(relaxation.blocks), experts + 1, experts + 1))
    matrices[:, 1:, 1:] = pairs_BEE / 4
    matrices[:, 0, 1:] = matrices[:, 1:, 0] = linear_BE / 4 + pairs_BEE.sum(axis=2) / 4
    return float(constant), list(matrices)


def evaluate(relaxation: Relaxation, mixes: Mixes, gram: Matrices, smoothing: float) -> tuple[float, float, Matrices]:
    """The smoothed objective at Y = gram; constant and matrices of the mix that is its gradient.

    A token's maximum over inequalities is smoothed to  smoothing x log sum share exp(inequality / smoothing).
    """
    shares = [share.copy() for share in mixes.share]
    known = zip(relaxation.blocks, inequalities(relaxation, mixes, gram), shares, strict=True)
    cost = [block.weight * smooth_maximum(values, share, smoothing) for block, values, share in known]
    value, of_sender = relaxation.smooth_costliest(cost, mixes.of_sender)
    return (value, *assemble(relaxation, mixes, shares, of_sender))

"""Anneal one layer's placement, copies and empty slots included, against exactly counted sample batches.

State: which expert each slot of each rank holds. Moves (`search_moves`):

    swap      two slots of different ranks exchange what they hold (one may be empty: the expert moves)
    replace   a slot that is empty, or whose expert has another copy, takes any other expert
    drop      a slot whose expert has another copy becomes empty; not where slots are to stay filled

No move brings an expert to a rank that holds it. A move changes the way of the tokens that chose one of the experts it
touches. Only these are routed again, by the rule that will serve them (`grace_opt.cover` or `copy_choice`), and only
the counters they touch change.

Objective: mean over batches of  P(experts) + P(between) + P(inside),  the terms of `grace_opt.batch_rates` with a
p-norm over ranks in place of the maximum: it also rewards a move that relieves the second busiest. Accepted are moves
that are better, and worse ones by the rule of simulated annealing. Same seed and same number of trials, same result.
"""

import numpy as np
from numpy.typing import NDArray

from grace_opt.batch_rates import BatchRates
from grace_opt.cover import entry_ranks
from grace_opt.placement import EMPTY
from grace_opt.planners.annealing import anneal
from grace_opt.planners.search_objective import Counters, Rates, Sample
from grace_opt.topology import Topology


class LocalSearch:
    """A search of one layer that can be stopped after any number of trials and gone on with.

    Args:
        slots_RS: where to begin; no rank holds an expert twice.
        filled: every slot holds an expert, and does so after every move.

    Attributes:
        slots: int64 [R, S], the best placement found so far; columns beyond a rank's own slots stay EMPTY.
        objective: seconds of the best, under the p-norm of the last stretch.
    """

    def __init__(
        self,
        slots_RS: NDArray[np.int64],
        room_R: NDArray[np.int64],
        num_experts: int,
        sample: Sample,
        rates: Rates,
        seed: int,
        filled: bool = False,
    ) -> None:
        assert not filled or ((slots_RS != EMPTY).sum(axis=1) == room_R).all(), "slots that stay filled begin so"
        self.slots, self._filled = slots_RS.copy(), filled
        self._current, self._room, self._sample, self._rates = slots_RS.copy(), room_R.copy(), sample, rates
        batches, ranks, (tokens, top_k) = len(sample.weight), len(slots_RS), sample.ids.shape
        self._copies = np.zeros(num_experts, np.int64), np.zeros((num_experts, ranks), np.int64)
        self._counters = Counters(
            np.zeros((4, batches, ranks)), np.zeros((batches, ranks, num_experts)), np.zeros((batches, ranks)),
            np.zeros(batches), np.zeros((tokens, top_k), np.int64), np.zeros((tokens, -(-ranks // 64)), np.int64),
        )  # fmt: skip
        self._random, self.objective = np.random.default_rng(seed), np.inf

    def run(self, trials: int, hottest: float, coldest: float, doublings: int = 3, resume: bool = False) -> None:
        """Try so many moves while the temperature falls in equal ratios.

        Args:
            hottest, coldest: first and last temperature, as shares of the objective at the start.
            doublings: the p-norm is of p = 2 ** doublings.
            resume: go on from where the last stretch ended, not from the best known. Then doublings must be the same.
        """
        if not resume:
            self._current[:] = self.slots
            self.objective = np.inf
        self.objective = float(
            anneal(
                self._current, self.slots, self.objective, self._room, self._sample, self._sample.expert_turn,
                self._rates, self._counters, *self._copies, trials, float(hottest), float(coldest), doublings,
                self._random, self._filled,
            )
        )  # fmt: skip


def rates_of(rates: BatchRates, topology: Topology) -> Rates:
    """Rates as compiled code takes them."""
    ranks = np.arange(topology.num_ranks)
    node_mask = np.zeros((topology.num_nodes, -(-len(ranks) // 64)), np.int64)
    np.bitwise_or.at(node_mask, (topology.node_of_rank, ranks >> 6), np.int64(1) << (ranks & 63))
    return Rates(
        rates.between_rank_s, rates.between_node_s, rates.inside_s, rates.expert_s, rates.most_tokens, rates.overlaps,
        rates.by_rank, topology.node_of_rank.astype(np.int64), entry_ranks(topology.ranks_per_node), node_mask,
    )  # fmt: skip


def sample_of(
    ids_TK: NDArray[np.integer],
    home_T: NDArray[np.int64],
    turn_T: NDArray[np.int64],
    batch_T: NDArray[np.int64],
    weight_B: NDArray[np.float64],
    num_experts: int,
    policy: str = "cover",
    expert_turn_TK: NDArray[np.int64] | None = None,
) -> Sample:
    """Tokens with their index by expert; turns of experts (see `copy_choice`) unless the policy is `cover`."""
    assert (policy == "cover") == (expert_turn_TK is None)
    ids_TK = np.ascontiguousarray(ids_TK, np.int64)
    num_batches = len(weight_B)
    keys_TK = ids_TK * num_batches + batch_T[:, None]
    order = np.argsort(keys_TK.ravel(), kind="stable")
    keys_EB = np.arange(num_experts)[:, None] * num_batches + np.arange(num_batches + 1)
    first = np.searchsorted(keys_TK.ravel()[order], keys_EB).astype(np.int64)
    tokens = order // ids_TK.shape[1]
    return Sample(ids_TK, home_T, turn_T, batch_T, weight_B, first, tokens, expert_turn_TK, policy == "tar")

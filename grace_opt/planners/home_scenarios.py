"""Sample batches to search on: what the ranks would process together under several seeded random maps of homes.

Where requests will live is not known when experts are placed. Batches of random maps, each map followed by its mirror
(nodes in reverse order), keep a search from serving the one map it was given; and a batch of a few sequences is as
uneven as those of a server are, which independent tokens are not.
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from grace_opt.homes import Random
from grace_opt.planners.copy_choice import turns_of_experts
from grace_opt.planners.local_search import sample_of
from grace_opt.planners.search_objective import Sample
from grace_opt.problem import Problem
from grace_opt.topology import Topology
from grace_opt.trace import Trace
from grace_opt.traffic import batch_segments

Scenario = tuple[Trace, int | None]
"""A trace with homes, and the tokens of a rank in one of its batches; None: all of them are one."""


class _Batch(NamedTuple):
    """Tokens of a whole batch, home and turn of each; places [sampled] of those that are sampled, in order.

    Attributes:
        expert_ids: [L, T, K] of the trace they are tokens of.
    """

    expert_ids: NDArray[np.unsignedinteger]
    token: NDArray[np.int64]
    home: NDArray[np.int64]
    turn: NDArray[np.int64]
    sampled: NDArray[np.int64]


def home_maps(trace: Trace, topology: Topology, num_maps: int, first_seed: int) -> list[Trace]:
    """The trace under seeded random homes, each map followed by its mirror; one node has no mirror."""
    maps = []
    for seed in range(first_seed, first_seed + num_maps):
        trace = Random(seed)(trace, topology.num_ranks)
        maps.append(trace)
        if topology.num_nodes > 1:
            maps.append(mirrored(trace, topology))
    return maps


def mirrored(trace: Trace, topology: Topology) -> Trace:
    """The same homes with the nodes in reverse order."""
    nodes = np.split(np.arange(topology.num_ranks), np.cumsum(topology.ranks_per_node)[:-1])
    return replace(trace, homes=np.concatenate(nodes[::-1])[trace.homes])


class ScenarioSampler:
    """Picks the tokens of sample batches once, for all layers.

    Args:
        scenarios: one for each batch; it is drawn from all that its trace has at that size.
        tokens_per_batch: at most so many of a batch are sampled.
        policy: the rule that picks copies, one of `copy_choice.POLICIES`.
    """

    def __init__(
        self,
        problem: Problem,
        scenarios: Sequence[Scenario],
        tokens_per_batch: int,
        seed: int,
        policy: str = "cover",
    ) -> None:
        random = np.random.default_rng(seed)
        self._batches, self._problem, self._policy = list[_Batch](), problem, policy
        for trace, tokens_per_rank in scenarios:
            segments, tokens_BR = batch_segments(trace, problem.topology.num_ranks, tokens_per_rank)
            chosen = int(random.integers(len(tokens_BR)))
            token, home, turn = _tokens_of(segments[segments[:, 3] == chosen])
            sampled = np.sort(random.permutation(len(token))[: max(1, tokens_per_batch)])
            self._batches.append(_Batch(trace.expert_ids, token, home, turn, sampled))

    def of_layer(self, layer: int, batches: Sequence[int] | None = None) -> Sample:
        """The sample with one layer's choices; of these batches, in this order, or of all."""
        chosen = self._batches if batches is None else [self._batches[batch] for batch in batches]
        ids_TK = np.concatenate([batch.expert_ids[layer][batch.token[batch.sampled]] for batch in chosen])
        home = np.concatenate([batch.home[batch.sampled] for batch in chosen])
        turn = np.concatenate([batch.turn[batch.sampled] for batch in chosen])
        number = np.repeat(np.arange(len(chosen)), [len(batch.sampled) for batch in chosen])
        weight = np.array([len(batch.token) / len(batch.sampled) for batch in chosen])
        turns_TK = None if self._policy == "cover" else np.concatenate([self._turns(layer, batch) for batch in chosen])
        num_experts = self._problem.model.num_experts
        return sample_of(ids_TK, home, turn, number, weight, num_experts, self._policy, turns_TK)

    def _turns(self, layer: int, batch: _Batch) -> NDArray[np.int64]:
        """[sampled, K] turns of experts, of which those of the whole batch that are not sampled take theirs too."""
        whole_TK, topology = batch.expert_ids[layer][batch.token].astype(np.int64), self._problem.topology
        turns_TK = turns_of_experts(whole_TK, batch.home, topology.num_ranks, self._problem.model.num_experts)
        return np.asarray(turns_TK[batch.sampled])


def _tokens_of(segments: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
    """Tokens of one batch, the home of each, and its turn: its number among its home's, plus the home."""
    lengths = segments[:, 1] - segments[:, 0]
    token = np.concatenate([np.arange(start, stop) for start, stop in segments[:, :2]])
    home = np.repeat(segments[:, 2], lengths)
    first = np.flatnonzero(np.concatenate(([True], home[1:] != home[:-1])))
    turn = np.arange(len(home)) - np.repeat(first, np.diff(np.append(first, len(home)))) + home
    return token, home, turn

"""Sample batches to search on: what the ranks would process together under several seeded random maps of homes.

Where requests will live is not known when experts are placed. Batches of random maps, each map followed by its mirror
(nodes in reverse order), keep a search from serving the one map it was given; and a batch of a few sequences is as
uneven as those of a server are, which independent tokens are not.
"""

from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from grace_opt.homes import Random
from grace_opt.planners.local_search import sample_of
from grace_opt.planners.search_objective import Sample
from grace_opt.problem import Problem
from grace_opt.topology import Topology
from grace_opt.trace import Trace
from grace_opt.traffic import batch_segments


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
        maps: the trace under several maps of homes.
        num_tokens: sampled in all.
        num_batches: they are spread over; from as many maps as there are, evenly.
    """

    def __init__(
        self,
        problem: Problem,
        maps: list[Trace],
        tokens_per_rank: int | None,
        num_batches: int,
        num_tokens: int,
        seed: int,
    ) -> None:
        random = np.random.default_rng(seed)
        token, home, turn, batch, weight = [], [], [], [], []
        for index in range(num_batches):
            segments, tokens_BR = batch_segments(maps[index % len(maps)], problem.topology.num_ranks, tokens_per_rank)
            chosen = int(random.integers(len(tokens_BR)))
            tokens_B, homes_B, turns_B = _tokens_of(segments[segments[:, 3] == chosen])
            keep = np.sort(random.permutation(len(tokens_B))[: max(1, num_tokens // num_batches)])
            token.append(tokens_B[keep])
            home.append(homes_B[keep])
            turn.append(turns_B[keep])
            batch.append(np.full(len(keep), index))
            weight.append(len(tokens_B) / len(keep))
        self._token, self._home, self._turn = np.concatenate(token), np.concatenate(home), np.concatenate(turn)
        self._batch, self._weight, self._problem = np.concatenate(batch), np.array(weight), problem

    def of_layer(self, layer: int) -> Sample:
        """The sample with one layer's choices."""
        ids_TK = np.asarray(self._problem.trace.expert_ids[layer])[self._token]
        return sample_of(ids_TK, self._home, self._turn, self._batch, self._weight, self._problem.model.num_experts)


def _tokens_of(segments: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
    """Tokens of one batch, the home of each, and its turn: its number among its home's, plus the home."""
    lengths = segments[:, 1] - segments[:, 0]
    token = np.concatenate([np.arange(start, stop) for start, stop in segments[:, :2]])
    home = np.repeat(segments[:, 2], lengths)
    first = np.flatnonzero(np.concatenate(([True], home[1:] != home[:-1])))
    turn = np.arange(len(home)) - np.repeat(first, np.diff(np.append(first, len(home)))) + home
    return token, home, turn

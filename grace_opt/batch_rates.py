"""What a cost model charges near a problem's own traffic, as rates that a search can add up a million times.

    layer time = fixed + busiest rank's experts + between + inside     (between and inside side by side, if `overlaps`)

    experts   sum over a rank's experts of seconds(tokens), read off a table
    between   max over ranks of rows x seconds a row, and over nodes of the sum over their ranks x seconds a row
    inside    max over ranks of rows x seconds a row

Rows are those of dispatch, sent or received, whichever takes longer; a rate covers their way back too. The rates are
found by asking the cost model for the time of made-up traffic, so they hold for any topology, transport and scheme.
They guide a search; what a plan costs is what the cost model says of its exact traffic.
"""

from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from grace_opt.cost import LayerTime
from grace_opt.problem import Problem
from grace_opt.topology import proxy_ranks
from grace_opt.traffic import Traffic

GRID = 256
"""Entries of the table of an expert's seconds; entry i is for most_tokens * (i / (GRID - 1)) ** 2 tokens."""


class PricesTraffic(Protocol):
    """A cost model that prices traffic which was counted, or made up."""

    @property
    def scheme(self) -> str: ...

    @property
    def tokens_per_rank(self) -> int | None: ...

    def price(self, problem: Problem, counts: Traffic) -> LayerTime: ...


@dataclass(frozen=True, eq=False)
class BatchRates:
    """Rates of one problem and cost model, for batches of so many tokens.

    Attributes:
        tokens_per_rank: mean tokens of a rank in a batch.
        between_rank_s, inside_s: float64 [R], seconds a row of one rank, when no other rank has any.
        between_node_s: float64 [N], seconds a row when all ranks of the node have equally many.
        expert_s: float64 [R, GRID], seconds of an expert on a rank by its tokens (see GRID).
        most_tokens: of the last entry.
        overlaps: rows between and inside nodes move at the same time.
        by_rank: a row crosses nodes for each rank visited, not for each node (scheme flat).
    """

    tokens_per_rank: float
    between_rank_s: NDArray[np.float64]
    between_node_s: NDArray[np.float64]
    inside_s: NDArray[np.float64]
    expert_s: NDArray[np.float64]
    most_tokens: float
    overlaps: bool
    by_rank: bool


def batch_rates(problem: Problem, cost: PricesTraffic) -> BatchRates:
    """Ask a cost model for its rates at the batch size it prices."""
    assert problem.trace.homes is not None
    ranks, nodes = problem.topology.num_ranks, problem.topology.num_nodes
    tokens = _tokens_per_rank(problem, cost.tokens_per_rank)
    most_tokens = max(tokens * ranks, 1.0)
    between, node, inside, both = _row_rates(problem, cost, max(round(tokens), 1))
    alone = between[_with_peers(problem)], inside[_with_peers(problem)]
    overlaps = nodes > 1 and bool(both < max(alone) + 0.5 * min(alone))
    return BatchRates(
        tokens, between, node, inside, _expert_seconds(problem, cost, most_tokens), most_tokens, overlaps,
        cost.scheme not in ("hierarchical", "hierarchical_padded"),
    )  # fmt: skip


def _with_peers(problem: Problem) -> int:
    """A rank of the largest node: it can have rows of both kinds."""
    sizes = problem.topology.ranks_per_node
    return sum(sizes[: int(np.argmax(sizes))])


def _tokens_per_rank(problem: Problem, tokens_per_rank: int | None) -> float:
    """Mean tokens of a rank in a batch of the problem's own trace."""
    homes = problem.trace.homes
    tokens_R = np.bincount(homes, problem.trace.lengths, problem.topology.num_ranks)  # type: ignore[arg-type]
    batches = 1 if tokens_per_rank is None else max(1, round(float(tokens_R.max()) / tokens_per_rank))
    return float(tokens_R.mean()) / batches


def _row_rates(
    problem: Problem, cost: PricesTraffic, rows: int
) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64], float]:
    """[R], [N], [R] seconds a row, and those of one rank with rows of both kinds: slopes from `rows` to twice that."""
    topology = problem.topology
    ranks, nodes, node_R = topology.num_ranks, topology.num_nodes, topology.node_of_rank
    probes = [("between", rank) for rank in range(ranks)] + [("node", node) for node in range(nodes)]
    probes += [("inside", rank) for rank in range(ranks)] + [("both", _with_peers(problem))]
    visits_LRR = np.zeros((2 * len(probes), ranks, ranks), np.int64)
    entry_RN = proxy_ranks(topology.ranks_per_node)
    for index, (kind, which) in enumerate(probes):
        for home in np.flatnonzero(node_R == which) if kind == "node" else [which]:
            others = [int(entry_RN[home, node]) for node in range(nodes) if node != node_R[home]]
            peers = [int(rank) for rank in np.flatnonzero(node_R == node_R[home]) if rank != home]
            for factor in (1, 2):
                row_R = visits_LRR[index + (factor - 1) * len(probes), home]
                if kind != "inside" and others:
                    _spread(row_R, others, factor * rows)
                if kind in ("inside", "both") and peers:
                    _spread(row_R, peers, factor * rows)
    seconds = _communication_seconds(problem, cost, visits_LRR)
    slope = np.maximum(seconds[len(probes) :] - seconds[: len(probes)], 0.0) / rows
    size_N = np.bincount(node_R)
    between, node, inside = slope[:ranks], slope[ranks : ranks + nodes] / size_N, slope[ranks + nodes : -1]
    return between, node, inside, float(slope[-1])


def _spread(row_R: NDArray[np.int64], ends: list[int], rows: int) -> None:
    """Add so many rows to the ranks in turn."""
    share, rest = divmod(rows, len(ends))
    for position, end in enumerate(ends):
        row_R[end] += share + (position < rest)


def _communication_seconds(problem: Problem, cost: PricesTraffic, visits_LRR: NDArray[np.int64]) -> NDArray[np.float64]:
    """[L] dispatch and combine when so many tokens of each home rank (first) use a copy on each rank (second)."""
    topology = problem.topology
    probes, ranks = visits_LRR.shape[:2]
    node_visits = np.stack(
        [visits_LRR[:, :, topology.node_of_rank == n].sum(axis=2) for n in range(topology.num_nodes)]
    )
    time = cost.price(
        problem,
        Traffic(
            np.zeros((probes, 1, ranks), np.int64),
            visits_LRR[:, None],
            visits_LRR[:, None],
            np.ascontiguousarray(node_visits.transpose(1, 2, 0))[:, None],
            np.ones((1, ranks), np.int64),
            topology.ranks_per_node,
        ),
    )
    return np.asarray(time.dispatch_s + time.combine_s)


def _expert_seconds(problem: Problem, cost: PricesTraffic, most_tokens: float) -> NDArray[np.float64]:
    """[R, GRID] what an expert adds to its rank: the rank with 9 such experts less that with 8, an eighth of both.

    Below one token the expert is busy in a share of the batches only.
    """
    topology, ranks = problem.topology, problem.topology.num_ranks
    tokens_G = np.maximum(most_tokens * (np.arange(GRID) / (GRID - 1)) ** 2, 0.0)
    whole_G = np.maximum(np.rint(tokens_G), 1).astype(np.int64)
    kinds = {gpu: rank for rank, gpu in reversed(list(enumerate(topology.gpus)))}
    table_RG = np.zeros((ranks, GRID))
    nothing = np.zeros((2 * GRID, 1, ranks, ranks), np.int64)
    for gpu, rank in kinds.items():
        tokens = np.zeros((2, GRID, 1, ranks, 9), np.int64)
        tokens[0, :, 0, rank, :8], tokens[1, :, 0, rank, :] = whole_G[:, None], whole_G[:, None]
        counts = Traffic(
            tokens.reshape(2 * GRID, 1, ranks * 9), nothing, nothing, nothing[..., : topology.num_nodes],
            np.ones((1, ranks), np.int64), topology.ranks_per_node,
        )  # fmt: skip
        eight, nine = cost.price(problem, counts).experts_s.reshape(2, GRID)
        busy = -np.expm1(-tokens_G)
        of_kind = [other for other in range(ranks) if topology.gpus[other] == gpu]
        table_RG[of_kind] = np.maximum(nine - eight, 0.0) * busy
    return table_RG

"""Tokens to the ranks of their copies and back, in the three schemes that `grace_opt.traffic` counts.

    Pairs          a row for every chosen copy
    Flat           a row for every distinct rank
    Hierarchical   a row for every distinct node, to the rank of equal local number; from there one for every rank

With each row travel the token's K physical experts and gate weights (CHOICE_BYTES each), so that whoever holds a row
knows which of its experts it must serve or pass on. What dispatch must remember for combine is handed over, as
`Dispatched`.
"""

from dataclasses import dataclass
from typing import Protocol

import torch
import torch.distributed as dist
from torch import Tensor

from grace_opt.plan import Plan
from grace_opt.topology import proxy_ranks
from runtime.exchange import Peers, Stage
from runtime.kernels import NOT_HERE

CHOICE_BYTES = 8
"""An expert id as int32 and a gate weight as float32."""


@dataclass(frozen=True)
class Dispatched:
    """The rows a rank received, and the way back.

    Attributes:
        rows: [N, D] hidden states.
        physical: int64 [N, K], the physical experts to apply to each row; NOT_HERE for those other ranks serve.
        weights: float32 [N, K], their gate weights.
        stages: what combine runs backwards, last stage first.
    """

    rows: Tensor
    physical: Tensor
    weights: Tensor
    stages: tuple[Stage, ...]


class Dispatcher(Protocol):
    """Moves rows to the ranks of their experts; `combine` moves results back and sums them."""

    def dispatch(self, x: Tensor, physical: Tensor, weights: Tensor, alarm: Tensor | None = None) -> Dispatched:
        """Rows [T, D] with physical experts and gate weights [T, K] to the ranks that serve them.

        Args:
            alarm: bool scalar, True if the rows are unfit to be sent; every rank then raises ValueError.
        """


def combine(results: Tensor, dispatched: Dispatched) -> Tensor:
    """Weighted results [N, D] of the rows of `dispatched` back home: [T, D], summed over all that return to a token."""
    for stage in reversed(dispatched.stages):
        results = stage.backward(results)
    return results


@dataclass(frozen=True)
class Layout:
    """Where physical experts are and who exchanges with whom, for one rank.

    Attributes:
        rank_of_physical, node_of_rank: int64 [P] and [R].
        local_of_rank: int64 [R], number of each rank on this rank's node; NOT_HERE on other nodes.
        proxy: int64 [N], the ranks that receive this rank's tokens on each node.
        clients: ranks of other nodes whose tokens this rank receives for its node.
        everyone, node: the ranks of all nodes, and of this rank's node.
    """

    rank_of_physical: Tensor
    node_of_rank: Tensor
    local_of_rank: Tensor
    proxy: Tensor
    clients: tuple[int, ...]
    everyone: Peers
    node: Peers

    @classmethod
    def of_plan(cls, plan: Plan, device: torch.device | str = "cpu") -> "Layout":
        """For the calling rank; all ranks must call it together, for it makes their process groups."""
        me, nodes, ranks = dist.get_rank(), torch.from_numpy(plan.node_of_rank), torch.arange(plan.num_ranks)
        proxies = torch.from_numpy(proxy_ranks(plan.ranks_per_node))
        inside = nodes == nodes[me]
        local = torch.where(inside, inside.cumsum(0) - 1, NOT_HERE)
        return cls(
            ranks.repeat_interleave(plan.placement.slots.shape[2]).to(device),
            nodes.to(device),
            local.to(device),
            proxies[me].to(device),
            tuple(ranks[(proxies[:, nodes[me]] == me) & ~inside].tolist()),
            Peers.everyone(),
            Peers.of_my_node(plan.ranks_per_node),
        )


@dataclass(frozen=True)
class Pairs:
    """One row for every (token, copy)."""

    layout: Layout

    def dispatch(self, x: Tensor, physical: Tensor, weights: Tensor, alarm: Tensor | None = None) -> Dispatched:
        """See `Dispatcher`."""
        stage = Stage.plan(self.layout.rank_of_physical[physical], self.layout.everyone, alarm)
        # Every pair is a row of its own, so it takes only its own expert along.
        alone = Stage(stage.peers, stage.position.reshape(-1, 1), stage.sent, stage.received)
        choices = alone.start(_pack(physical.reshape(-1, 1), weights.reshape(-1, 1)))
        rows = stage.start(x)
        return Dispatched(rows.wait(), *_unpack(choices.wait()), (stage,))


@dataclass(frozen=True)
class Flat:
    """One row for every distinct rank of a token."""

    layout: Layout

    def dispatch(self, x: Tensor, physical: Tensor, weights: Tensor, alarm: Tensor | None = None) -> Dispatched:
        """See `Dispatcher`."""
        visited = distinct(self.layout.rank_of_physical[physical], len(self.layout.node_of_rank))
        stage = Stage.plan(visited, self.layout.everyone, alarm)
        choices, rows = stage.start(_pack(physical, weights)), stage.start(x)
        return _arrive(self.layout, rows.wait(), choices.wait(), (stage,))


@dataclass(frozen=True)
class Hierarchical:
    """One row for every distinct node of a token, then one for every distinct rank (GRACE-MoE, "HSC").

    Attributes:
        padded: fill up the transfers between nodes to the size of the largest with zeros, as the paper's stage does.
    """

    layout: Layout
    padded: bool = False

    def dispatch(self, x: Tensor, physical: Tensor, weights: Tensor, alarm: Tensor | None = None) -> Dispatched:
        """See `Dispatcher`. Routing inside the node is computed while the rows between nodes are in flight."""
        layout = self.layout
        if len(layout.proxy) == 1:  # one node: nothing to cross
            return Flat(layout).dispatch(x, physical, weights, alarm)
        visited = distinct(layout.node_of_rank[layout.rank_of_physical[physical]], len(layout.proxy))
        proxies = torch.where(visited >= 0, layout.proxy[visited.clamp(min=0)], NOT_HERE)
        across = Stage.plan(proxies, layout.everyone, alarm)
        if self.padded:
            across = across.filled([p for p in layout.proxy.tolist() if p != dist.get_rank()], layout.clients)
        choices, rows = across.start(_pack(physical, weights)), across.start(x)
        arrived = choices.wait()
        if len(layout.node.ranks) == 1:  # nowhere to pass rows on to
            return _arrive(layout, rows.wait(), arrived, (across,))
        local = layout.local_of_rank[layout.rank_of_physical[_unpack(arrived)[0]]]
        inside = Stage.plan(distinct(local, len(layout.node.ranks)), layout.node)
        choices = inside.start(arrived)
        return _arrive(layout, inside.forward(rows.wait()), choices.wait(), (across, inside))


def distinct(place: Tensor, num_places: int) -> Tensor:
    """[T, K] places, -1 for none, to int64 [T, num_places]: column p holds p where it is among a token's, else -1."""
    hits = torch.zeros(len(place), num_places + 1, dtype=torch.bool, device=place.device)
    hits.scatter_(1, torch.where(place < 0, num_places, place), True)
    return torch.where(hits[:, :-1], torch.arange(num_places, device=place.device), NOT_HERE)


def _arrive(layout: Layout, rows: Tensor, choices: Tensor, stages: tuple[Stage, ...]) -> Dispatched:
    """Of the experts that came along only those of this rank are served here."""
    physical, weights = _unpack(choices)
    here = layout.rank_of_physical[physical] == dist.get_rank()
    return Dispatched(rows, torch.where(here, physical, NOT_HERE), weights, stages)


def _pack(physical: Tensor, weights: Tensor) -> Tensor:
    """Ids and weights [N, K] as one int32 tensor [N, 2 K], so that they travel in one message."""
    return torch.cat((physical.int(), weights.float().view(torch.int32)), dim=1)


def _unpack(choices: Tensor) -> tuple[Tensor, Tensor]:
    physical, weights = choices.chunk(2, dim=1)
    return physical.long(), weights.contiguous().view(torch.float32)

"""Tokens to the ranks of their copies and back, in the three schemes that `grace_opt.traffic` counts.

    Pairs          a row for every chosen copy
    Flat           a row for every distinct rank
    Hierarchical   a row for every distinct node, to the rank of equal local number; from there one for every rank

With each row travel the token's K physical experts and gate weights, so that whoever holds a row knows which of its
experts it must serve or pass on. What dispatch must remember for combine is handed over as `Dispatched`.
"""

from dataclasses import dataclass, replace
from typing import Protocol

import torch
import torch.distributed as dist
from torch import Tensor

from grace_opt.plan import Plan
from grace_opt.topology import proxy_ranks
from runtime.exchange import Stage

NOT_HERE = -1


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

    def dispatch(self, x: Tensor, physical: Tensor, weights: Tensor) -> Dispatched:
        """Rows [T, D] with physical experts and gate weights [T, K] to the ranks that serve them."""


def combine(results: Tensor, dispatched: Dispatched) -> Tensor:
    """Weighted results [N, D] of the rows of `dispatched` back home: [T, D], summed over all that return to a token."""
    for stage in reversed(dispatched.stages):
        results = stage.backward(results)
    return results


@dataclass(frozen=True)
class Layout:
    """Where physical experts are, as tensors.

    Attributes:
        rank_of_physical, node_of_rank: int64 [P] and [R].
        proxy: int64 [N], the ranks that receive this rank's tokens on each node.
    """

    rank_of_physical: Tensor
    node_of_rank: Tensor
    proxy: Tensor

    @classmethod
    def of_plan(cls, plan: Plan, device: torch.device | str = "cpu") -> "Layout":
        """For the calling rank."""
        ranks = torch.arange(plan.num_ranks).repeat_interleave(plan.placement.slots.shape[2])
        proxies = torch.from_numpy(proxy_ranks(plan.ranks_per_node)[dist.get_rank()])
        return cls(ranks.to(device), torch.from_numpy(plan.node_of_rank).to(device), proxies.to(device))


@dataclass(frozen=True)
class Pairs:
    """One row for every (token, copy)."""

    layout: Layout

    def dispatch(self, x: Tensor, physical: Tensor, weights: Tensor) -> Dispatched:
        """Rows [T, D] with physical experts and gate weights [T, K] to the ranks that serve them."""
        num_pairs, top_k = physical.numel(), physical.shape[1]
        rank = self.layout.rank_of_physical[physical.flatten()]
        pair = Stage.plan(torch.arange(num_pairs, device=x.device), rank, num_pairs)
        token = replace(pair, order=pair.order // top_k, num_rows=len(x))
        # Every pair is a row of its own, so it takes only its own expert along.
        own_physical, own_weight = (pair.forward(tensor.reshape(-1, 1)) for tensor in (physical, weights.float()))
        return Dispatched(token.forward(x), own_physical, own_weight, (token,))


@dataclass(frozen=True)
class Flat:
    """One row for every distinct rank of a token."""

    layout: Layout

    def dispatch(self, x: Tensor, physical: Tensor, weights: Tensor) -> Dispatched:
        """As `Pairs.dispatch`."""
        ranks = distinct(self.layout.rank_of_physical[physical], len(self.layout.node_of_rank))
        token, rank = ranks.nonzero(as_tuple=True)
        return _forward(Stage.plan(token, rank, len(x)), x, physical, weights.float(), self.layout, ())


@dataclass(frozen=True)
class Hierarchical:
    """One row for every distinct node of a token, then one for every distinct rank (GRACE-MoE, "HSC")."""

    layout: Layout

    def dispatch(self, x: Tensor, physical: Tensor, weights: Tensor) -> Dispatched:
        """As `Pairs.dispatch`."""
        layout, me = self.layout, dist.get_rank()
        nodes = distinct(layout.node_of_rank[layout.rank_of_physical[physical]], len(layout.proxy))
        token, node = nodes.nonzero(as_tuple=True)
        across = Stage.plan(token, layout.proxy[node], len(x))
        rows, physical, weights = (across.forward(tensor) for tensor in (x, physical, weights.float()))
        ranks = distinct(layout.rank_of_physical[physical], len(layout.node_of_rank))
        row, rank = (ranks & (layout.node_of_rank == layout.node_of_rank[me])).nonzero(as_tuple=True)
        return _forward(Stage.plan(row, rank, len(rows)), rows, physical, weights, layout, (across,))


def distinct(place: Tensor, num_places: int) -> Tensor:
    """[T, K] places to bool [T, num_places]: which are among a token's."""
    hits = torch.zeros(len(place), num_places, dtype=torch.bool, device=place.device)
    return hits.scatter_(1, place, True)


def _forward(
    stage: Stage, x: Tensor, physical: Tensor, weights: Tensor, layout: Layout, before: tuple[Stage, ...]
) -> Dispatched:
    """Run the last stage; of the experts that came along only those of this rank are served here."""
    physical = stage.forward(physical)
    here = layout.rank_of_physical[physical] == dist.get_rank()
    return Dispatched(stage.forward(x), torch.where(here, physical, NOT_HERE), stage.forward(weights), (*before, stage))

"""Rows from every rank to every rank: the one exchange the runtime needs, uneven and with empty parts.

A *stage* sends copies of rows to peers, and later brings back what they made of them, summed:

    rows [N, D]  --permute-->  by destination  --exchange-->  by source  ... compute ...
    rows [N, D]  <--sum of copies--  by destination  <--exchange--  by source
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cache

import torch
import torch.distributed as dist
from torch import Tensor

from runtime.kernels.counting import positions
from runtime.kernels.permute import permute
from runtime.kernels.unpermute import unpermute


@dataclass(frozen=True)
class Peers:
    """The ranks of a stage.

    Attributes:
        ranks: their numbers among all ranks, ascending; this rank is among them.
        group: their process group, for the exchange of counts.
    """

    ranks: tuple[int, ...]
    group: dist.ProcessGroup

    @classmethod
    def of(cls, ranks: Sequence[int]) -> "Peers":
        """All ranks must call this together, also those that are not among these."""
        world = dist.group.WORLD
        assert world is not None
        everyone = len(ranks) == dist.get_world_size()
        return cls(tuple(ranks), world if everyone else _group_within(world, tuple(ranks)))

    @classmethod
    def everyone(cls) -> "Peers":
        """All ranks."""
        return cls.of(range(dist.get_world_size()))

    @classmethod
    def of_my_node(cls, ranks_per_node: Sequence[int]) -> "Peers":
        """The ranks of the calling rank's node; all ranks must call it together."""
        ranks = torch.split(torch.arange(sum(ranks_per_node)), list(ranks_per_node))
        nodes = [cls.of(node.tolist()) for node in ranks]
        return next(node for node in nodes if dist.get_rank() in node.ranks)

    @property
    def me(self) -> int:
        """This rank's place among them."""
        return self.ranks.index(dist.get_rank())


@dataclass(frozen=True)
class Stage:
    """One stage of communication, kept so that it can be run with several tensors, and backwards.

    Attributes:
        peers: the ranks it joins.
        position: int64 [N, J], where each of up to J copies of a row stands among the rows sent, ordered by destination
            and then by row; -1 is no copy.
        sent, received: rows to and from each peer; those to this rank itself never leave it.
        sent_filled, received_filled: the same with padding, as transferred; None without padding.
    """

    peers: Peers
    position: Tensor
    sent: tuple[int, ...]
    received: tuple[int, ...]
    sent_filled: tuple[int, ...] | None = None
    received_filled: tuple[int, ...] | None = None

    @classmethod
    def plan(cls, destination: Tensor, peers: Peers, alarm: Tensor | None = None) -> "Stage":
        """Send a copy of row n to each peer in destination[n].

        Args:
            destination: int64 [N, J], indices into peers.ranks, each at most once in a row; -1 is none.
            alarm: bool scalar, True if this rank's input is unfit; all peers are told with the counts.

        Raises:
            ValueError: on every peer alike, if any of them raised the alarm.
        """
        position, ends = positions(destination, len(peers.ranks))
        counts = torch.diff(ends.long(), prepend=ends.new_zeros(1).long())
        told = torch.zeros(len(counts), 2, dtype=torch.int64, device=counts.device)
        told[:, 0] = counts
        if alarm is not None:
            told[:, 1] = alarm
        heard = torch.empty_like(told)
        dist.all_to_all_single(heard, told, group=peers.group)
        sent, (received, alarms) = counts.tolist(), heard.T.tolist()
        if any(alarms):
            ranks = [rank for rank, raised in zip(peers.ranks, alarms, strict=True) if raised]
            raise ValueError(f"NaN or infinite values in the input of rank {', '.join(map(str, ranks))}")
        return cls(peers, position, tuple(sent), tuple(received))

    def filled(self, targets: Sequence[int], sources: Sequence[int]) -> "Stage":
        """The same with zeros behind the rows of some transfers, so that all of those are as large as the largest.

        Args:
            targets, sources: peers to which this rank's rows are filled up, and those that fill up theirs to it.
        """
        sizes = [self.sent[p] for p in targets] + [self.received[p] for p in sources]
        largest = torch.tensor(max(sizes, default=0), device=self.position.device)
        dist.all_reduce(largest, dist.ReduceOp.MAX, group=self.peers.group)
        sent, received = list(self.sent), list(self.received)
        for sizes, peers in ((sent, targets), (received, sources)):
            for peer in peers:
                sizes[peer] = int(largest)
        return replace(self, sent_filled=tuple(sent), received_filled=tuple(received))

    def start(self, rows: Tensor) -> "Transfer":
        """Begin to send [N, ...] rows; what arrives is ordered by source."""
        outgoing = permute(rows, self.position, sum(self.sent))
        if self.sent_filled is None or self.received_filled is None:
            return Transfer.start(outgoing, self.sent, self.received, self.peers)
        wide = outgoing.new_zeros((sum(self.sent_filled), *outgoing.shape[1:]))
        for target, source in zip(
            torch.split(wide, list(self.sent_filled)), torch.split(outgoing, list(self.sent)), strict=True
        ):
            target[: len(source)] = source
        return Transfer.start(wide, self.sent_filled, self.received_filled, self.peers, self.received)

    def forward(self, rows: Tensor) -> Tensor:
        """[N, ...] to [rows received, ...], by source."""
        return self.start(rows).wait()

    def backward(self, rows: Tensor) -> Tensor:
        """[rows received, D] back to where they came from; the copies of a row are summed in float32: [N, D]."""
        returned = Transfer.start(rows, self.received, self.sent, self.peers).wait()
        return unpermute(returned, self.position)


@dataclass(frozen=True)
class Transfer:
    """Rows on their way.

    Attributes:
        rows: where they arrive.
        arriving: rows from each peer, as transferred.
        wanted: how many of those are no padding.
        works: what to wait for.
    """

    rows: Tensor
    arriving: tuple[int, ...]
    wanted: tuple[int, ...]
    works: tuple[dist.Work, ...]

    @classmethod
    def start(
        cls,
        outgoing: Tensor,
        sent: tuple[int, ...],
        received: tuple[int, ...],
        peers: Peers,
        wanted: tuple[int, ...] | None = None,
    ) -> "Transfer":
        """Send sent[p] consecutive rows to each peer p, and make room for received[p] rows from each.

        All receives are posted before all sends: gloo's own all-to-all now and then serialises the two directions of a
        pair (NCCL runs the same calls as one group).
        """
        rows, me = outgoing.new_empty((sum(received), *outgoing.shape[1:])), peers.me
        parts_out, parts_in = torch.split(outgoing.contiguous(), list(sent)), torch.split(rows, list(received))
        parts_in[me].copy_(parts_out[me])
        turn = [(me + step) % len(peers.ranks) for step in range(1, len(peers.ranks))]  # not all to the same one first
        others = [(peer, peers.ranks[peer]) for peer in turn]
        calls = [dist.P2POp(dist.irecv, _as_bytes(parts_in[p]), rank) for p, rank in others if received[p]]
        calls += [dist.P2POp(dist.isend, _as_bytes(parts_out[p]), rank) for p, rank in others if sent[p]]
        works = tuple(dist.batch_isend_irecv(calls)) if calls else ()
        return cls(rows, received, wanted or received, works)

    def wait(self) -> Tensor:
        """The rows, when they are here, by source."""
        for work in self.works:
            work.wait()
        if self.wanted == self.arriving:
            return self.rows
        parts = torch.split(self.rows, list(self.arriving))
        return torch.cat([part[:size] for part, size in zip(parts, self.wanted, strict=True)])


@cache
def _group_within(world: dist.ProcessGroup, ranks: tuple[int, ...]) -> dist.ProcessGroup:
    """Made once for all layers: making a group takes all ranks and some time."""
    group: dist.ProcessGroup = dist.new_group(list(ranks))
    return group


def _as_bytes(rows: Tensor) -> Tensor:
    return rows.view(torch.uint8) if rows.dtype == torch.bfloat16 else rows

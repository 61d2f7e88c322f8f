"""Rows from every rank to every rank: the one collective the runtime needs, uneven and with zero-sized parts."""

from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor


@dataclass(frozen=True)
class Stage:
    """One stage of communication, kept so that it can be run again with other rows, and backwards.

    Attributes:
        order: int64 [rows sent], which of this rank's rows are sent, by destination; a row may go to several ranks.
        sent, received: rows to and from each rank, [R]; those to this rank itself never leave it.
        num_rows: rows this rank had before the stage.
    """

    order: Tensor
    sent: tuple[int, ...]
    received: tuple[int, ...]
    num_rows: int

    @classmethod
    def plan(cls, row: Tensor, rank: Tensor, num_rows: int) -> "Stage":
        """Send row[i] to rank[i]; rows for one destination keep their order.

        Args:
            row, rank: int64 [rows sent].
        """
        sent = torch.bincount(rank, minlength=dist.get_world_size())
        received = torch.empty_like(sent)
        dist.all_to_all_single(received, sent)
        order = row[torch.argsort(rank, stable=True)]
        return cls(order, tuple(sent.tolist()), tuple(received.tolist()), num_rows)

    def forward(self, rows: Tensor) -> Tensor:
        """[num_rows, ...] on each rank to [rows received, ...], by source."""
        return exchange(rows[self.order], self.sent, self.received)

    def backward(self, rows: Tensor) -> Tensor:
        """[rows received, ...] back to where they came from; what returns to one row is summed in float32."""
        returned = exchange(rows, self.received, self.sent)
        total = returned.new_zeros((self.num_rows, *rows.shape[1:]), dtype=torch.float32)
        return total.index_add_(0, self.order, returned.float()).to(rows.dtype)


def exchange(rows: Tensor, sent: tuple[int, ...], received: tuple[int, ...]) -> Tensor:
    """Send sent[r] consecutive rows to each rank r; return received[r] rows from each, by rank.

    All receives are posted before all sends: gloo's own all-to-all now and then serialises the two directions of a pair
    (NCCL runs the same calls as one group).
    """
    me = dist.get_rank()
    result = rows.new_empty((sum(received), *rows.shape[1:]))
    outgoing, incoming = torch.split(rows.contiguous(), list(sent)), torch.split(result, list(received))
    incoming[me].copy_(outgoing[me])
    peers = [rank for rank in range(len(sent)) if rank != me]
    calls = [dist.P2POp(dist.irecv, _as_bytes(incoming[rank]), rank) for rank in peers if received[rank]]
    calls += [dist.P2POp(dist.isend, _as_bytes(outgoing[rank]), rank) for rank in peers if sent[rank]]
    for work in dist.batch_isend_irecv(calls) if calls else ():
        work.wait()
    return result


def _as_bytes(rows: Tensor) -> Tensor:
    return rows.view(torch.uint8) if rows.dtype == torch.bfloat16 else rows

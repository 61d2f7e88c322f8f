"""Which copy serves each token of this rank: the round robin of `grace_opt.routing`, on the device, by itself."""

from dataclasses import dataclass

import torch
from torch import Tensor

from grace_opt.plan import Plan
from grace_opt.routing import schedules


@dataclass(frozen=True)
class ReplicaChoice:
    """One layer's schedules as seen from one home rank.

    Attributes:
        home: the rank.
        start, length: int64 [E], the part of `schedule` that this rank walks for each expert.
        schedule: int64 [entries], physical experts.

    Example: home 0, expert 1 with schedule 1, 0, 1, 1: the tokens that chose expert 1 are served by copies 1, 0, 1, 1,
    1, 0, ... in the order of the tokens.
    """

    home: int
    start: Tensor
    length: Tensor
    schedule: Tensor

    @classmethod
    def of_plan(cls, plan: Plan, layer: int, home: int, device: torch.device | str = "cpu") -> "ReplicaChoice":
        """Tables of one layer (its index in the plan)."""
        tables = schedules(plan.placement, plan.routing, plan.node_of_rank, layer)
        start, stop, schedule = (
            torch.from_numpy(table.astype("int64")).to(device)
            for table in (tables.start[home], tables.stop[home], tables.schedule)
        )
        return cls(home, start, stop - start, schedule)

    def __call__(self, expert_ids: Tensor) -> Tensor:
        """[T, K] logical experts of a batch of this rank's tokens, in order, to [T, K] physical experts."""
        flat = expert_ids.flatten().long()
        position = self.home + occurrences(flat, len(self.start))
        return self.schedule[self.start[flat] + position % self.length[flat]].view(expert_ids.shape)


def occurrences(experts: Tensor, num_experts: int) -> Tensor:
    """[N] how often the same expert came before, for each entry: 3, 1, 3, 3 gives 0, 0, 1, 2."""
    order = torch.argsort(experts, stable=True)
    counts = torch.bincount(experts, minlength=num_experts)
    first = counts.cumsum(0) - counts
    result = torch.empty_like(experts)
    result[order] = torch.arange(len(experts), device=experts.device) - first[experts[order]]
    return result

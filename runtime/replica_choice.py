"""A plan's routing as one rank sees it: the tables by which it chooses copies by itself (`runtime.kernels.choice`)."""

from dataclasses import dataclass

import torch
from torch import Tensor

from grace_opt.plan import Plan
from grace_opt.routing import schedules
from runtime.kernels.choice import Choice, choose


@dataclass(frozen=True)
class ReplicaChoice:
    """One layer's schedules as seen from one home rank.

    Attributes:
        home: the rank.
        start, length: int64 [E], the part of `schedule` that this rank walks for each expert.
        schedule: int64 [entries], physical experts.
        num_physical: P.

    Example: home 0, expert 1 with schedule 1, 0, 1, 1: the tokens that chose expert 1 are served by copies 1, 0, 1, 1,
    1, 0, ... in the order of the tokens.
    """

    home: int
    start: Tensor
    length: Tensor
    schedule: Tensor
    num_physical: int

    @classmethod
    def of_plan(cls, plan: Plan, layer: int, home: int, device: torch.device | str = "cpu") -> "ReplicaChoice":
        """Tables of one layer (its index in the plan)."""
        tables = schedules(plan.placement, plan.routing, plan.node_of_rank, layer)
        start, stop, schedule = (
            torch.from_numpy(table.astype("int64")).to(device)
            for table in (tables.start[home], tables.stop[home], tables.schedule)
        )
        return cls(home, start, stop - start, schedule, plan.placement.slots[layer].size)

    def __call__(self, expert_ids: Tensor) -> Tensor:
        """[T, K] logical experts of a batch of this rank's tokens, in order, to [T, K] physical experts."""
        return self.counted(expert_ids).physical

    def counted(self, expert_ids: Tensor) -> Choice:
        """As `__call__`, with the number of tokens that each physical expert gets."""
        return choose(expert_ids, self.home, self.start, self.length, self.schedule, self.num_physical)

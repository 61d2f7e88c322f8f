"""A plan's routing as one rank sees it: the tables by which it chooses copies by itself (`runtime.kernels`)."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from grace_opt.plan import Plan
from grace_opt.routing import schedules
from runtime.kernels.choice import Choice, choose
from runtime.kernels.cover import Copies, cover


@dataclass(frozen=True)
class ReplicaChoice:
    """One layer's choice of copies as seen from one home rank, whatever the policy.

    Attributes:
        counted: [T, K] logical experts of a batch of this rank's tokens, in order, to the physical experts that serve
            them, and the number of tokens that each gets.

    Example: home 0 under `wrr`, expert 1 with schedule 1, 0, 1, 1: the tokens that chose expert 1 are served by copies
    1, 0, 1, 1, 1, 0, ... in the order of the tokens.
    """

    counted: Callable[[Tensor], Choice]

    @classmethod
    def of_plan(cls, plan: Plan, layer: int, home: int, device: torch.device | str = "cpu") -> "ReplicaChoice":
        """Tables of one layer (its index in the plan)."""
        if plan.routing.policy == "cover":  # looks at whole tokens
            copies = Copies.of_placement(plan.placement, plan.ranks_per_node, layer, home, device)
            return cls(partial(cover, copies=copies))
        tables = schedules(plan.placement, plan.routing, plan.node_of_rank, layer)
        start, stop, schedule = (
            torch.from_numpy(table.astype("int64")).to(device)
            for table in (tables.start[home], tables.stop[home], tables.schedule)
        )
        num_physical = plan.placement.slots[layer].size
        return cls(
            partial(choose, home=home, start=start, length=stop - start, schedule=schedule, num_physical=num_physical)
        )

    def __call__(self, expert_ids: Tensor) -> Tensor:
        """[T, K] logical experts of a batch of this rank's tokens, in order, to [T, K] physical experts."""
        return self.counted(expert_ids).physical

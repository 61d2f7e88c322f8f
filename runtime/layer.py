"""One expert-parallel MoE layer under a plan: choose copies, dispatch, compute, combine."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor

from grace_opt.plan import Plan
from runtime.dispatcher import NOT_HERE, Dispatched, Dispatcher, Flat, Hierarchical, Layout, Pairs, combine
from runtime.reference import Experts
from runtime.replica_choice import ReplicaChoice

DISPATCHERS: dict[str, Callable[[Layout], Dispatcher]] = {"pairs": Pairs, "flat": Flat, "hierarchical": Hierarchical}


@dataclass(frozen=True)
class MoELayer:
    """The layer as one rank sees it.

    Attributes:
        choice: which copy serves this rank's tokens.
        dispatcher: how rows travel.
        experts: weights of this rank's slots, in slot order.
        first_physical: physical id of this rank's slot 0.
        shared: experts that every token passes at home.
    """

    choice: ReplicaChoice
    dispatcher: Dispatcher
    experts: Experts
    first_physical: int
    shared: Experts | None = None

    @classmethod
    def of_plan(
        cls, plan: Plan, layer: int, scheme: str, experts: Experts, shared: Experts | None = None
    ) -> "MoELayer":
        """For the calling rank.

        Args:
            layer: index of the layer in the plan.
            experts: weights of this rank's filled slots, in slot order.
        """
        if plan.num_ranks != dist.get_world_size():
            raise ValueError(f"plan is for {plan.num_ranks} ranks, but {dist.get_world_size()} processes run it")
        me, device = dist.get_rank(), experts.gate.device
        dispatcher = DISPATCHERS[scheme](Layout.of_plan(plan, device))
        return cls(
            ReplicaChoice.of_plan(plan, layer, me, device),
            dispatcher,
            experts,
            me * plan.placement.slots.shape[2],
            shared,
        )

    def __call__(self, x: Tensor, expert_ids: Tensor, weights: Tensor) -> Tensor:
        """[T, D] of this rank's tokens to [T, D], given the router's choice and gate weights [T, K]."""
        dispatched = self.dispatcher.dispatch(x, self.choice(expert_ids), weights)
        result = combine(self.compute(dispatched), dispatched)
        if self.shared is not None:
            for expert in range(len(self.shared.gate)):
                result = result + self.shared(expert, x)
        return result

    def compute(self, dispatched: Dispatched) -> Tensor:
        """[N, D] weighted sum of this rank's experts for each row, in the rows' type, accumulated in float32."""
        result = torch.zeros_like(dispatched.rows, dtype=torch.float32)
        for slot, rows, k in self.rows_of_slots(dispatched):
            weight = dispatched.weights[rows, k][:, None]
            result.index_add_(0, rows, self.experts(slot, dispatched.rows[rows]).float() * weight)
        return result.to(dispatched.rows.dtype)

    def rows_of_slots(self, dispatched: Dispatched) -> list[tuple[int, Tensor, Tensor]]:
        """For each slot that serves any row: the slot, its rows, and the place among the row's K experts."""
        slot = torch.where(dispatched.physical == NOT_HERE, NOT_HERE, dispatched.physical - self.first_physical)
        served = [s for s in torch.unique(slot).tolist() if s != NOT_HERE]
        return [(s, *(slot == s).nonzero(as_tuple=True)) for s in served]

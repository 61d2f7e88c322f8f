"""One expert-parallel MoE layer under a plan: choose copies, dispatch, compute, combine."""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import partial

import torch
import torch.distributed as dist
from torch import Tensor

from grace_opt.plan import Plan
from grace_opt.traffic import require_scheme
from runtime.dispatcher import Dispatched, Dispatcher, Flat, Hierarchical, Layout, Pairs, combine
from runtime.experts import GroupedExperts
from runtime.kernels import NOT_HERE
from runtime.reference import Experts
from runtime.replica_choice import ReplicaChoice

DISPATCHERS: dict[str, Callable[[Layout], Dispatcher]] = {
    "pairs": Pairs,
    "flat": Flat,
    "hierarchical": Hierarchical,
    "hierarchical_padded": partial(Hierarchical, padded=True),
}
Watch = Callable[[str], AbstractContextManager[object]]
"""Times what happens inside, by the name of a phase (see `stopwatch.Stopwatch`)."""


@dataclass(frozen=True)
class MoELayer:
    """The layer as one rank sees it.

    Attributes:
        layer_id: absolute id, for messages.
        choice: which copy serves this rank's tokens.
        dispatcher: how rows travel.
        experts: weights of this rank's slots, in slot order.
        first_physical: physical id of this rank's slot 0.
        shared: experts that every token passes at home.
    """

    layer_id: int
    choice: ReplicaChoice
    dispatcher: Dispatcher
    experts: GroupedExperts
    first_physical: int
    shared: Experts | None = None

    @classmethod
    def of_plan(
        cls, plan: Plan, layer: int, scheme: str, experts: Experts, shared: Experts | None = None
    ) -> "MoELayer":
        """For the calling rank; all ranks must call it together.

        Args:
            layer: index of the layer in the plan.
            scheme: one of DISPATCHERS.
            experts: weights of this rank's filled slots, in slot order.

        Raises:
            ValueError: the plan is for another number of ranks, or the weights for another number of slots.
        """
        if plan.num_ranks != dist.get_world_size():
            raise ValueError(f"plan is for {plan.num_ranks} ranks, but {dist.get_world_size()} processes run it")
        require_scheme(scheme)
        me, device = dist.get_rank(), experts.gate.device
        held = int(plan.placement.slots_used[layer, me])
        if len(experts.gate) != held:
            raise ValueError(f"rank {me} holds {held} experts in layer {layer}, got weights of {len(experts.gate)}")
        return cls(
            plan.layer_ids[layer],
            ReplicaChoice.of_plan(plan, layer, me, device),
            DISPATCHERS[scheme](Layout.of_plan(plan, device)),
            GroupedExperts(experts),
            me * plan.placement.slots.shape[2],
            shared,
        )

    def __call__(self, x: Tensor, expert_ids: Tensor, weights: Tensor, watch: Watch = nullcontext) -> Tensor:
        """[T, D] of this rank's tokens to [T, D], given the router's choice and gate weights [T, K].

        Raises:
            ValueError: on all ranks alike, if the input of any is NaN or infinite.
        """
        with watch("dispatch"):
            dispatched = self.dispatch(x, expert_ids, weights)
        with watch("experts"):
            served = self.compute(dispatched)
        with watch("combine"):
            result = combine(served, dispatched)
        return result if self.shared is None else result + self.shared.all(x)

    def dispatch(self, x: Tensor, expert_ids: Tensor, weights: Tensor) -> Dispatched:
        """Rows to the ranks that serve them; an unfit input is refused before it spreads."""
        unfit = ~(torch.isfinite(x).all() & torch.isfinite(weights).all())
        try:
            return self.dispatcher.dispatch(x, self.choice(expert_ids), weights, unfit)
        except ValueError as error:
            raise ValueError(f"MoE layer {self.layer_id}: {error}") from None

    def compute(self, dispatched: Dispatched) -> Tensor:
        """[N, D] weighted sum of this rank's experts for each row, in the rows' type, accumulated in float32."""
        return self.experts(dispatched.rows, self.slots_of(dispatched), dispatched.weights)

    def slots_of(self, dispatched: Dispatched) -> Tensor:
        """[N, K] slots of this rank that serve each row, NOT_HERE for the rest."""
        return torch.where(dispatched.physical == NOT_HERE, NOT_HERE, dispatched.physical - self.first_physical)

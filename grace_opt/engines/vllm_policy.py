"""Balancing policies for vLLM's EPLB: one serves a saved plan, one plans online by load.

vLLM calls a policy on every rank with the same arguments and expects the same answer (vLLM 0.33,
`vllm/distributed/eplb/policy/abstract.py`). Its tensors come in and go out by their own methods, so that torch is not
imported here.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from grace_opt.engines.slot_lists import slot_array
from grace_opt.plan import Plan
from grace_opt.plan_file import read_plan
from grace_opt.planners.eplb import rebalance


@dataclass(frozen=True, eq=False)
class PlanPolicy:
    """Answers with a saved plan, whatever the load.

    Attributes:
        plan: its ranks are filled alike.
        path: its file, for messages.
    """

    plan: Plan
    path: str

    def rebalance_experts(
        self,
        weight: Any,
        num_replicas: int,
        num_groups: int,
        num_nodes: int,
        num_ranks: int,
        old_global_expert_indices: Any = None,
    ) -> Any:
        """int64 tensor [L, P], the logical expert in each slot.

        Args:
            weight: tensor [L, E], load of each expert; only its shape is read.
            old_global_expert_indices: tensor [L, P], where experts are now.

        Raises:
            ValueError: the plan is for other numbers of layers, experts, slots or ranks.
        """
        shape, plan = tuple(weight.shape), self.plan
        planned = (plan.placement.num_layers, plan.num_experts, plan.placement.num_physical, plan.num_ranks)
        if (*shape, num_replicas, num_ranks) != planned:
            words = "{} MoE layers, {} experts, {} slots, {} ranks"
            served = words.format(*shape, num_replicas, num_ranks) if len(shape) == 2 else f"loads of shape {shape}"
            raise ValueError(
                f"plan {self.path} is for {words.format(*planned)}, but vLLM serves {served}: use the flags that "
                "`grace-opt export engine=vllm` printed, without draft layers"
            )
        return _as_tensor(slot_array(plan.placement), num_ranks, weight, old_global_expert_indices)


@dataclass(frozen=True)
class OnlinePolicy:
    """Plans from the load vLLM measured, as `planners.eplb`; no expert twice on a GPU where slots allow it."""

    def rebalance_experts(
        self,
        weight: Any,
        num_replicas: int,
        num_groups: int,
        num_nodes: int,
        num_ranks: int,
        old_global_expert_indices: Any = None,
    ) -> Any:
        """int64 tensor [L, P], as that of `PlanPolicy`; `weight` are the loads."""
        load_LE = weight.float().cpu().numpy()
        nodes = num_nodes if num_groups % num_nodes == 0 else 1  # the flat policy sees one node
        once = num_replicas // num_ranks <= load_LE.shape[1] // nodes
        slots_LP = rebalance(load_LE, num_replicas, num_groups, num_nodes, num_ranks, forbid_duplicates=once)
        return _as_tensor(slots_LP, num_ranks, weight, old_global_expert_indices)


def read_policy(path: str) -> PlanPolicy:
    """The policy that serves the plan in a file.

    Raises:
        ValueError, OSError: the plan cannot be read, or its ranks are not filled alike.
    """
    plan = read_plan(path)
    used_LR = plan.placement.slots_used
    if used_LR.min() != used_LR.max():
        raise ValueError(
            f"{path}: ranks hold {used_LR.min()} to {used_LR.max()} experts, but vLLM gives all the same number: "
            "give the file that `grace-opt export engine=vllm unequal=pad` writes"
        )
    return PlanPolicy(plan, path)


def keep_slots(new_LP: NDArray[np.integer], old_LP: NDArray[np.integer], num_ranks: int) -> NDArray[np.integer]:
    """The new map, each rank's slots reordered: experts that stay on a rank keep their slot, others fill in order.

    Example: on a rank with old slots 5 2 7, new slots 7 5 3 become 5 3 7.
    """
    kept_LP, width = new_LP.copy(), new_LP.shape[1] // num_ranks
    for layer, (new_P, old_P) in enumerate(zip(new_LP.tolist(), old_LP.tolist(), strict=True)):
        for first in range(0, len(new_P), width):
            coming: list[int] = new_P[first : first + width]
            slots: list[int | None] = [None] * width
            for slot, expert in enumerate(old_P[first : first + width]):
                if expert in coming:
                    coming.remove(expert)
                    slots[slot] = expert
            rest = iter(coming)
            kept_LP[layer, first : first + width] = [next(rest) if expert is None else expert for expert in slots]
    return kept_LP


def _as_tensor(slots_LP: NDArray[np.integer], num_ranks: int, weight: Any, old: Any) -> Any:
    """On the CPU, as vLLM's own policy; weights of experts that keep their slot are not copied."""
    if old is not None and tuple(old.shape) == slots_LP.shape:
        slots_LP = keep_slots(slots_LP, old.cpu().numpy(), num_ranks)
    return weight.cpu().long().new_tensor(slots_LP.tolist())

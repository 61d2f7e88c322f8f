"""Renumber the experts of a model so that an engine's linear placement realises a plan without replicas.

Linear placement puts experts r * E / R .. (r + 1) * E / R - 1 on rank r. If place p of a layer gets the plan's expert
`order[p]`, rank by rank, and the rows of the router (weight, bias, selection bias) move alike, then the model computes
the same: the router's scores are permuted as the experts are.

A router limited to groups chooses among G consecutive blocks of E / G experts first, so a block must keep its members:
experts may only move inside their group, and groups as a whole. Inside a rank the order is free, and used for that.
"""

import numpy as np
from numpy.typing import NDArray

from grace_opt.plan import Plan


def orders(plan: Plan, num_groups: int = 1) -> dict[int, NDArray[np.int64]]:
    """Absolute layer id to [E], the plan's expert in each place.

    Args:
        num_groups: G, blocks of a group-limited router; 1 without.

    Raises:
        ValueError: replicas, unequal ranks, or groups that the plan tears apart.

    Example: ranks [3, 0] and [1, 2] give [3, 0, 1, 2]; with 2 groups ({0, 1}, {2, 3}) they are refused.
    """
    if (plan.placement.num_copies > 1).any():
        layer, expert = np.argwhere(plan.placement.num_copies > 1)[0]
        raise ValueError(
            f"expert {expert} has {plan.placement.num_copies[layer, expert]} copies in layer {plan.layer_ids[layer]}: "
            "a checkpoint holds every expert once; plan with slots_per_rank = experts / ranks"
        )
    used_LR = plan.placement.slots_used
    if used_LR.min() != used_LR.max():
        layer, rank = np.argwhere(used_LR != plan.num_experts / plan.num_ranks)[0]
        raise ValueError(
            f"rank {rank} holds {used_LR[layer, rank]} experts in layer {plan.layer_ids[layer]}, but linear placement "
            f"gives each of {plan.num_ranks} ranks {plan.num_experts / plan.num_ranks:g}: plan with as many slots"
        )
    if plan.num_experts % num_groups:
        raise ValueError(f"{plan.num_experts} experts do not divide into the router's {num_groups} groups")
    result = {}
    for layer_id, ranks in zip(plan.layer_ids, plan.placement.to_lists(), strict=True):
        order = _order(ranks, plan.num_experts // num_groups)
        for group in np.reshape(order // (plan.num_experts // num_groups), (num_groups, -1)):
            if len(set(group.tolist())) > 1:
                raise ValueError(
                    f"the router of layer {layer_id} is limited to {num_groups} groups, and the plan tears them apart "
                    f"(groups {', '.join(map(str, sorted(set(group.tolist()))))} would share a block): only whole "
                    "groups may move between ranks; use an engine that reads a placement"
                )
        result[layer_id] = order
    return result


def _order(ranks: list[list[int]], group_size: int) -> NDArray[np.int64]:
    """Experts rank by rank; on each first the rest of the group begun before, last the group that is not whole."""
    order: list[int] = []
    for experts in ranks:
        begun = order[-1] // group_size if len(order) % group_size else -1
        sizes = np.bincount(np.array(experts) // group_size)

        def place(expert: int, begun: int = begun, sizes: NDArray[np.int64] = sizes) -> tuple[int, int]:
            group = expert // group_size
            return (0 if group == begun else 1 if sizes[group] == group_size else 2, group)

        order += experts if group_size == 1 else sorted(experts, key=place)
    return np.array(order, np.int64)

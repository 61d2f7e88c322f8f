"""Fit a plan to engines, which give every rank equally many slots: refuse it, or fill small ranks with replicas."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from grace_opt.placement import Placement, fill
from grace_opt.plan import Plan
from grace_opt.routing import Routing


def equal_slots(
    plan: Plan,
    pad: bool,
    load_LE: NDArray[np.integer] | None,
    same_in_all_layers: bool = True,
    expert_once_per_rank: bool = False,
) -> tuple[Plan, list[str]]:
    """The plan with equally many experts on every rank, and sentences on what was changed.

    A rank that holds too few gets copies of loaded experts (`placement.fill`). Replicas change no answer of the model.
    A changed plan has no polling weights left: its routing is `tar` where it was `wrr`.

    Args:
        pad: fill small ranks; otherwise they are refused.
        load_LE: [L, E] tokens of each expert, which chooses what fills; needed only if something is to be filled.
        same_in_all_layers: to the largest rank of all layers, instead of that of each layer.
        expert_once_per_rank: second copies of an expert on one rank are taken out first.

    Raises:
        ValueError: ranks differ and `pad` is false, or `load_LE` is missing, or a rank has no expert left to take.

    Example: ranks [0, 1, 2], [3] and loads 9, 1, 5, 7: the second rank gets 0, then 2; it holds [3, 0, 2].
    """
    lists = plan.placement.to_lists()
    notes: list[str] = []
    if expert_once_per_rank:
        lists, notes = _without_repeats(lists, plan.layer_ids)
    counts_LR = np.array([[len(rank) for rank in layer] for layer in lists])
    target_L = counts_LR.max(axis=1)
    if same_in_all_layers:
        target_L[:] = target_L.max()
    missing_LR = target_L[:, None] - counts_LR
    if not missing_LR.any():
        return (_replace(plan, lists) if notes else plan), notes
    layer, rank = np.unravel_index(int(np.argmax(missing_LR)), missing_LR.shape)
    unequal = (
        f"rank {rank} holds {counts_LR[layer, rank]} experts in layer {plan.layer_ids[layer]}, but {target_L[layer]} "
        "slots are needed on every rank"
    )
    if notes:
        unequal += f" ({notes[0]})"
    if not pad:
        raise ValueError(
            f"{unequal}: engines take no unequal ranks; fill them with replicas (unequal=pad), or run the plan with "
            "this project's runtime"
        )
    if load_LE is None:
        raise ValueError(f"{unequal}: unequal=pad needs loads to choose replicas by; give trace=file trace.path=FILE")
    assert load_LE.shape == (plan.placement.num_layers, plan.num_experts)
    for index, ranks in enumerate(lists):
        fill(ranks, [int(target_L[index])] * len(ranks), load_LE[index], plan.layer_ids[index])
    notes.append(
        f"{missing_LR.sum()} slots of {missing_LR.size} (layer, rank) pairs were filled with replicas of loaded "
        f"experts, at most {missing_LR.max()} on a rank in a layer ({missing_LR.sum(axis=0).max()} over its layers)"
    )
    if plan.routing.weights is not None:
        notes.append("the plan's polling weights are left out: they say nothing of the new copies")
    return _replace(plan, lists), notes


def _without_repeats(lists: list[list[list[int]]], layer_ids: Sequence[int]) -> tuple[list[list[list[int]]], list[str]]:
    single = [[list(dict.fromkeys(rank)) for rank in layer] for layer in lists]
    repeated = [
        (layer_ids[index], rank)
        for index, layer in enumerate(lists)
        for rank, experts in enumerate(layer)
        if len(experts) != len(single[index][rank])
    ]
    if not repeated:
        return single, []
    layer, rank = repeated[0]
    return single, [
        f"an expert stands twice on rank {rank} in layer {layer} (and so in {len(repeated) - 1} more places), which "
        "this engine forbids: second copies were taken out"
    ]


def _replace(plan: Plan, lists: list[list[list[int]]]) -> Plan:
    placement = Placement.from_lists(lists, plan.num_experts)
    policy = "tar" if plan.routing.policy == "wrr" else plan.routing.policy
    return replace(plan, placement=placement, routing=Routing(policy))

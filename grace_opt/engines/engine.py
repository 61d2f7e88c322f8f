"""What an exporter says of its engine: the files it reads, how it is started with them, and what it will not do."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from grace_opt.placement import EMPTY
from grace_opt.plan import Plan

SERVED = "served_plan.json"
"""Written for every engine: the plan as it will be run there, to be priced, and served by the policy for vLLM."""


@dataclass(frozen=True)
class Options:
    """What a plan does not say and some engine needs.

    Attributes:
        num_hidden_layers: all layers of the model, dense ones too; None: the plan's last layer is the model's last.
    """

    num_hidden_layers: int | None = None


class Engine(Protocol):
    """One engine's module. Plans it is given have passed `equal_slots`.

    Attributes:
        NAME: as its makers write it.
        POLICY: the routing policy of ours that comes nearest to how it picks replicas.
        SAME_IN_ALL_LAYERS: every layer must have as many slots as every other.
        EXPERT_ONCE_PER_RANK: a rank must not hold an expert twice.
    """

    NAME: str
    POLICY: str
    SAME_IN_ALL_LAYERS: bool
    EXPERT_ONCE_PER_RANK: bool

    def files(self, plan: Plan, options: Options, folder: Path) -> Mapping[str, bytes]:
        """Name and content of each file; `folder` is where they will lie, for files that name others."""

    def start(self, plan: Plan, folder: Path) -> list[str]:
        """Lines to type: environment and command-line flags that make the engine load the files in `folder`."""

    def ignores(self, plan: Plan) -> list[str]:
        """What of the plan this engine will not do, and when it does nothing at all; a sentence each."""


@dataclass(frozen=True)
class Export:
    """What was written for an engine.

    Attributes:
        engine: its name.
        files: paths, the one the engine reads first.
        start: lines to type.
        warnings: what was changed to fit the engine, and what the engine will ignore.
        about: more facts for scripts.
    """

    engine: str
    files: tuple[str, ...]
    start: tuple[str, ...]
    warnings: tuple[str, ...]
    about: Mapping[str, Any] = field(default_factory=dict)


def counted_layers(plan: Plan) -> str:
    """A sentence for engines whose files count MoE layers instead of naming them."""
    first, last = plan.layer_ids[0], plan.layer_ids[-1]
    return f"MoE layers are counted from 0: the plan's layers {first}..{last} must be all {len(plan.layer_ids)} of them"


def replica_choice(plan: Plan, engine: str, policies: tuple[str, ...], chooses: str) -> list[str]:
    """Sentences on what the plan says of replicas and homes and an engine does not follow.

    Args:
        policies: routing policies of ours that the engine's own choice amounts to.
        chooses: how the engine picks a copy.
    """
    lines = []
    slots = np.sort(plan.placement.slots, axis=2)
    repeated = np.argwhere(((slots[..., 1:] == slots[..., :-1]) & (slots[..., 1:] != EMPTY)).any(axis=2))
    if len(repeated):
        layer, rank = repeated[0]
        lines.append(
            f"an expert stands twice on rank {rank} in layer {plan.layer_ids[layer]} (and so in {len(repeated) - 1} "
            f"more places): {engine} takes it, but the second copy only costs memory"
        )
    if (plan.placement.num_copies > 1).any():
        if plan.routing.policy not in policies:
            lines.append(f"the plan picks replicas by {plan.routing.policy}, but {engine} does so itself: {chooses}")
        elif plan.routing.weights is not None:
            lines.append(f"the plan's polling weights are not used: {engine} picks replicas itself, {chooses}")
    if plan.homes is not None:
        lines.append(f"the plan's rule for homes is not used: {engine} deals requests onto ranks by its own scheduler")
    if len(set(plan.ranks_per_node)) > 1:
        lines.append(
            f"the plan is for nodes of {list(plan.ranks_per_node)} ranks, but {engine} takes nodes to be of equal size"
        )
    return lines

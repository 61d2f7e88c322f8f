"""A plan: placement and routing of one model on one cluster shape; what is solved, saved, priced and executed."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from grace_opt.home_rule import HomeRule
from grace_opt.model import MoEModel
from grace_opt.placement import Placement
from grace_opt.routing import Routing
from grace_opt.topology import Topology


@dataclass(frozen=True, eq=False)
class Plan:
    """Placement and routing, and the model and node structure they are meant for.

    Attributes:
        model: name of the model.
        layer_ids: absolute ids of the layers, one per layer of the placement.
        ranks_per_node: ranks of each node; ranks of a node are consecutive.
        provenance: who made the plan from what; kept, never interpreted.
        homes: the rule by which requests are to be dealt onto ranks; None: any home will do.
    """

    model: str
    layer_ids: tuple[int, ...]
    ranks_per_node: tuple[int, ...]
    placement: Placement
    routing: Routing
    provenance: Mapping[str, Any] = field(default_factory=dict)
    homes: HomeRule | None = None

    def __post_init__(self) -> None:
        if len(self.layer_ids) != self.placement.num_layers:
            raise ValueError(f"plan: {len(self.layer_ids)} layer ids for {self.placement.num_layers} layers")
        if len(set(self.layer_ids)) != len(self.layer_ids):
            raise ValueError("plan: a layer occurs twice")
        if min(self.ranks_per_node, default=0) < 1 or sum(self.ranks_per_node) != self.placement.num_ranks:
            raise ValueError(
                f"plan: nodes of {list(self.ranks_per_node)} ranks do not add up to {self.placement.num_ranks} ranks"
            )
        self.routing.check(self.placement)

    @property
    def num_ranks(self) -> int:
        return self.placement.num_ranks

    @property
    def num_experts(self) -> int:
        return self.placement.num_experts

    @property
    def node_of_rank(self) -> NDArray[np.int64]:
        """[R] node of each rank."""
        return np.repeat(np.arange(len(self.ranks_per_node)), self.ranks_per_node)

    def of_layers(self, layers: range) -> "Plan":
        """The plan of some consecutive layers only, by index."""
        part, weights = slice(layers.start, layers.stop), self.routing.weights
        return replace(
            self,
            layer_ids=self.layer_ids[part],
            placement=Placement(self.placement.slots[part], self.num_experts),
            routing=Routing(self.routing.policy, None if weights is None else weights[part]),
        )

    def check(self, model: MoEModel, topology: Topology) -> None:
        """Raise ValueError unless the plan is one for this model on this cluster shape."""
        if self.model != model.name:
            raise ValueError(f"plan is for model {self.model}, but the model given is {model.name}")
        if self.num_experts != model.num_experts or self.layer_ids != tuple(model.layer_ids):
            raise ValueError(
                f"plan has {self.num_experts} experts in layers {self.layer_ids[0]}..{self.layer_ids[-1]}, but model "
                f"{model.name} has {model.num_experts} experts in layers {model.layer_ids[0]}..{model.layer_ids[-1]}"
            )
        if self.ranks_per_node != topology.ranks_per_node:
            raise ValueError(
                f"plan is for nodes of {list(self.ranks_per_node)} ranks, but topology {topology.name} has nodes of "
                f"{list(topology.ranks_per_node)} ranks"
            )

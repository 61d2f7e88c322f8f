"""How an engine will run a plan: the slots it takes, its default, its own balancer, its choice of replicas."""

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from analysis.parts import fitting
from grace_opt.batch_rates import PricesTraffic
from grace_opt.cost import LayerTime
from grace_opt.engines.engine import Engine
from grace_opt.engines.equal_slots import equal_slots
from grace_opt.engines.export import ENGINES
from grace_opt.model import MoEModel
from grace_opt.placement import Placement
from grace_opt.plan import Plan
from grace_opt.planners.eplb import Eplb
from grace_opt.planners.linear import Linear
from grace_opt.problem import Problem, slots_that_fit, smallest_slots
from grace_opt.routing import Routing
from grace_opt.solution import plan_for
from grace_opt.topology import Topology
from grace_opt.traffic import Traffic, traffic

GRACE = "grace"
"""This project's runtime: runs any plan as it is."""


@dataclass(frozen=True)
class Serving:
    """An engine, as far as it decides what a plan brings.

    Attributes:
        engine: its key in ENGINES, or GRACE.
        module: the engine's exporter; None for GRACE.
        all_to_all: tokens travel to the ranks that need them; False: every rank gets all tokens, and a placement
            changes the load of ranks only.
    """

    engine: str
    module: Engine | None
    all_to_all: bool

    @classmethod
    def of(cls, engine: str, all_to_all: bool) -> "Serving":
        """The engine of that name.

        Raises:
            ValueError: there is none.
        """
        if engine not in (*ENGINES, GRACE):
            raise ValueError(f"engine must be one of {', '.join((*ENGINES, GRACE))}, got {engine!r}")
        return cls(engine, ENGINES.get(engine), all_to_all)

    @property
    def name(self) -> str:
        return "grace-opt's runtime" if self.module is None else self.module.NAME

    def slots(self, model: MoEModel, topology: Topology, redundancy: int) -> int | list[int]:
        """Slots per rank with so many more than the fewest that hold every expert; equal ones, unless for GRACE."""
        if self.module is None:
            return fitting(smallest_slots(model, topology) + redundancy, model, topology)
        return -(-model.num_experts // topology.num_ranks) + redundancy

    def most_redundancy(self, model: MoEModel, topology: Topology) -> int:
        """What memory, the number of experts and the engine's own limit allow, per rank."""
        room_R = slots_that_fit(model, topology)
        room = int(room_R.max() if self.module is None else room_R.min())
        most = getattr(self.module, "MOST_REDUNDANT", None)
        if most is not None:
            room = min(room, (model.num_experts + most) // topology.num_ranks)
        return min(room, model.num_experts) - int(np.max(self.slots(model, topology, 0)))

    def default(self, problem: Problem) -> Plan:
        """What it does with no plan: experts in order; if they do not divide over the ranks, slot s holds expert
        s % E (as SGLang and vLLM fill up)."""
        ranks, experts = problem.topology.num_ranks, problem.model.num_experts
        if self.module is None or experts % ranks == 0:
            return self.served(Linear()(problem).plan, None)
        slots_P = np.arange(ranks * int(problem.slots_per_rank[0])) % experts
        slots_LRS = np.broadcast_to(
            slots_P.reshape(ranks, -1), (problem.model.num_layers, ranks, len(slots_P) // ranks)
        )
        return plan_for(problem, Placement(slots_LRS.astype(np.int32), experts), self._routing(), "linear")

    def eplb(self, model: MoEModel, topology: Topology) -> Eplb:
        """Its own balancer: hierarchical if the router's expert groups divide over the nodes, else flat."""
        groups = model.num_expert_groups
        once = self.module is not None and self.module.EXPERT_ONCE_PER_RANK
        even = len(set(topology.ranks_per_node)) == 1
        if groups > 1 and groups % topology.num_nodes == 0 and even:
            return Eplb(hierarchical=True, num_groups=groups, forbid_duplicates=once)
        return Eplb(forbid_duplicates=once)

    def served(self, plan: Plan, load_LE: NDArray[np.int64] | None) -> Plan:
        """The plan as it will be run: ranks filled alike by loads, copies picked as the engine picks them.

        Raises:
            ValueError: the engine cannot have this plan.
        """
        if self.module is None:
            return plan
        fitted, _ = equal_slots(
            plan, load_LE is not None, load_LE, self.module.SAME_IN_ALL_LAYERS, self.module.EXPERT_ONCE_PER_RANK
        )
        return replace(fitted, routing=self._routing(), homes=None)

    def count(self, problem: Problem, plan: Plan, tokens_per_rank: float | None) -> Traffic:
        """What the engine moves under a plan, in batches of so many tokens of a rank."""
        counts = traffic(problem.trace, plan, tokens_per_rank)
        return counts if self.all_to_all else gathered(counts)

    def _routing(self) -> Routing:
        assert self.module is not None
        return Routing(self.module.POLICY)


def gathered(counts: Traffic) -> Traffic:
    """The same loads where every rank gets all tokens, whoever needs them: a row from each home to each rank.

    Example: a home with 3 tokens visits each rank, and each node, 3 times.
    """
    tokens_BR = counts.tokens_of_rank
    visits = np.ascontiguousarray(np.broadcast_to(tokens_BR[None, :, :, None], counts.rank_visits.shape))
    nodes = np.ascontiguousarray(np.broadcast_to(tokens_BR[None, :, :, None], counts.node_visits.shape))
    return replace(counts, pair_rows=visits, rank_visits=visits, node_visits=nodes)


@dataclass(frozen=True)
class GatheringCost:
    """A cost model of an engine that gathers all tokens everywhere, for a planner that searches."""

    cost: PricesTraffic

    @property
    def scheme(self) -> str:
        return self.cost.scheme

    @property
    def tokens_per_rank(self) -> int | None:
        return self.cost.tokens_per_rank

    def price(self, problem: Problem, counts: Traffic) -> LayerTime:
        """The price of gathered traffic."""
        return self.cost.price(problem, gathered(counts))

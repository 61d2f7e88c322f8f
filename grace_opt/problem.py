"""What is to be planned: a model, a machine, the tokens to serve, and the memory for experts."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from grace_opt.load_history import LoadHistory
from grace_opt.model import MoEModel
from grace_opt.plan import Plan
from grace_opt.topology import Topology
from grace_opt.trace import Trace


@dataclass(frozen=True, eq=False)
class Problem:
    """A planning problem, checked as a whole.

    Attributes:
        model, topology: what runs where.
        trace: the tokens to plan for, with homes on the ranks of the topology.
        slots: int64 [R], copies of experts a rank may hold in each layer; one number means the same for all ranks.
        dealt: that number is the mean over layers: one layer may have more, on every rank, and another fewer.

    Raises:
        ValueError: trace and model differ, a home is no rank, fewer slots than experts, or more than memory holds; or
            slots to be dealt differ from rank to rank.
    """

    model: MoEModel
    topology: Topology
    trace: Trace
    slots: NDArray[np.int64] | Sequence[int] | int
    dealt: bool = False

    def __post_init__(self) -> None:
        self._check_routing()
        given = np.asarray(self.slots)
        if given.shape not in ((), (1,), (self.topology.num_ranks,)) or not np.issubdtype(given.dtype, np.integer):
            raise ValueError(
                f"slots_per_rank must be one whole number or one for each of the {self.topology.num_ranks} ranks, "
                f"got {self.slots}"
            )
        if given.min() < 0:
            raise ValueError(f"slots_per_rank must not be negative, got {given.min()}")
        slots = np.array(np.broadcast_to(given, self.topology.num_ranks), np.int64)
        slots.setflags(write=False)
        object.__setattr__(self, "slots", slots)
        if self.dealt and slots.min() != slots.max():
            raise ValueError(
                "slots are dealt to layers where every rank has equally many, but slots_per_rank runs from "
                f"{slots.min()} to {slots.max()}: give one number, or deal_slots=false"
            )
        if slots.sum() < self.model.num_experts:
            raise ValueError(
                f"slots_per_rank gives {slots.sum()} slots on {len(slots)} ranks, fewer than the "
                f"{self.model.num_experts} experts of model {self.model.name}: "
                f"give slots_per_rank={smallest_slots(self.model, self.topology)}"
            )
        room = slots_that_fit(self.model, self.topology)
        if (slots > room).any():
            rank = int(np.argmax(slots - room))
            needed = self.model.rank_bytes(int(slots[rank]))
            raise ValueError(
                f"slots_per_rank={slots[rank]} needs {needed / 1e9:.1f} GB on rank {rank}, which has "
                f"{self.topology.memory_bytes[rank] / 1e9:.1f} GB: it holds {max(room[rank], 0)} slots per layer of "
                f"{self.model.name}"
            )

    def _check_routing(self) -> None:
        check_trace(self.trace, self.model)
        if self.trace.homes is None:
            raise ValueError("the trace of a problem needs homes: deal its sequences onto ranks first")
        if self.trace.homes.max() >= self.topology.num_ranks:
            raise ValueError(
                f"trace has a sequence at home on rank {self.trace.homes.max()}, but topology {self.topology.name} "
                f"has only ranks 0..{self.topology.num_ranks - 1}"
            )

    @property
    def slots_per_rank(self) -> NDArray[np.int64]:
        """[R] the budget, as an array."""
        return np.asarray(self.slots)

    @property
    def num_slots(self) -> int:
        """Slots of a layer over all ranks."""
        return int(self.slots_per_rank.sum())

    def check(self, plan: Plan) -> None:
        """Raise ValueError unless the plan is one for this problem, within its slots."""
        plan.check(self.model, self.topology)
        if self.dealt:
            reserved, budget = (
                int(plan.placement.slots_reserved.sum()),
                int(self.slots_per_rank[0]) * len(plan.layer_ids),
            )
            if reserved > budget:
                raise ValueError(
                    f"plan takes {reserved} slots of every rank over its {len(plan.layer_ids)} layers, but "
                    f"slots_per_rank={self.slots_per_rank[0]} deals {budget}"
                )
            return
        over = plan.placement.slots_used - self.slots_per_rank[None, :]
        if (over > 0).any():
            layer, rank = np.unravel_index(int(np.argmax(over)), over.shape)
            raise ValueError(
                f"plan holds {plan.placement.slots_used[layer, rank]} experts on rank {rank} in layer "
                f"{plan.layer_ids[layer]}, but slots_per_rank allows {self.slots_per_rank[rank]}"
            )


@dataclass(frozen=True, eq=False)
class LoadProblem(Problem):
    """A problem of which only loads are known, for planners that ask for no more (`plans_from = "loads"`).

    Attributes:
        trace: the load history in place of tokens; `expert_loads` reads it, everything else about tokens fails.
    """

    trace: LoadHistory  # type: ignore[assignment]

    def _check_routing(self) -> None:
        check_trace(self.trace, self.model)


def check_trace(trace: Trace | LoadHistory, model: MoEModel) -> None:
    """Raise ValueError unless the trace can be one of this model."""
    if trace.model and trace.model != model.name:
        raise ValueError(f"trace was recorded from model {trace.model}, but the model given is {model.name}")
    recorded = (trace.num_layers, trace.num_experts, trace.top_k)
    expected = (model.num_layers, model.num_experts, model.top_k)
    if recorded != expected:
        raise ValueError(
            "trace has {} MoE layers, {} experts, top-{}, ".format(*recorded)
            + "but model {} has {} MoE layers, {} experts, top-{}".format(model.name, *expected)
        )


def with_slots(problem: Problem, slots: int) -> Problem:
    """The problem with so many slots in every layer, whether or not memory holds them: only some layers will."""
    needed = problem.model.rank_bytes(slots)
    gpus = tuple(replace(gpu, memory_bytes=max(gpu.memory_bytes, needed)) for gpu in problem.topology.gpus)
    topology = replace(problem.topology, gpus=gpus)
    return replace(problem, topology=topology, slots=slots, dealt=False)


def smallest_slots(model: MoEModel, topology: Topology) -> int:
    """Fewest slots per rank that hold every expert once, if a rank with less memory holds what fits."""
    room = np.maximum(slots_that_fit(model, topology), 0)
    for slots in range(-(-model.num_experts // topology.num_ranks), model.num_experts + 1):
        if np.minimum(slots, room).sum() >= model.num_experts:
            return slots
    return -(-model.num_experts // topology.num_ranks)


def slots_that_fit(model: MoEModel, topology: Topology) -> NDArray[np.int64]:
    """[R] slots per layer that a rank's memory holds beside the dense weights (caches and activations not counted)."""
    room = (topology.memory_bytes - model.dense_bytes) / (model.num_layers * model.expert_bytes)
    return np.floor(np.clip(room, -1, 1e9)).astype(np.int64)

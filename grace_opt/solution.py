"""What a planner returns, and the interface of a planner."""

from dataclasses import dataclass
from typing import Protocol

from grace_opt.placement import Placement
from grace_opt.plan import Plan
from grace_opt.problem import Problem
from grace_opt.routing import Routing


@dataclass(frozen=True, eq=False)
class Solution:
    """A plan and what is known about how good it is.

    Attributes:
        objective: what the planner minimised, in its own unit; None for a heuristic without one.
        bound: no plan has a smaller objective; None if none was proven.
        status: "heuristic", "optimal", "feasible" (search stopped early).
        seconds: time the planner took.
    """

    plan: Plan
    status: str = "heuristic"
    objective: float | None = None
    bound: float | None = None
    seconds: float = 0.0

    @property
    def gap(self) -> float | None:
        """(objective - bound) / bound; None if one is missing or the bound is 0."""
        if self.objective is None or not self.bound:
            return None
        return (self.objective - self.bound) / self.bound


class Planner(Protocol):
    """(problem) -> Solution; a frozen dataclass whose fields are the method's options.

    A planner whose method has no memory budget also has `slots_wanted(problem) -> int`, the slots per rank it takes.
    """

    def __call__(self, problem: Problem) -> Solution: ...


def plan_for(problem: Problem, placement: Placement, routing: Routing, planner: str) -> Plan:
    """The plan of a problem with its model, layers and node structure filled in, checked against the budget."""
    trace = problem.trace
    provenance = {
        "planner": planner,
        "trace": trace.source,
        "synthetic": trace.synthetic,
        "tokens": trace.num_tokens,
        "topology": problem.topology.name,
        "slots_per_rank": problem.slots_per_rank.tolist(),
        **({"deal_slots": True} if problem.dealt else {}),
    }
    plan = Plan(
        problem.model.name,
        tuple(problem.model.layer_ids),
        problem.topology.ranks_per_node,
        placement,
        routing,
        provenance,
    )
    problem.check(plan)
    return plan

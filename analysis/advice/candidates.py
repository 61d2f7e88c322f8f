"""What could be done: a planner at a redundancy, planned on the fit part, as the engine will run it.

Where prefill and decode have a recording each, a planner that searches weighs both; any other knows no batches and
plans for one of them at a time.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import ceil

import numpy as np

from analysis.advice.demand import Phase
from analysis.advice.serving import GatheringCost, Serving
from analysis.parts import solve
from grace_opt.batch_rates import PricesTraffic
from grace_opt.model import MoEModel
from grace_opt.planners.joint import Joint
from grace_opt.problem import Problem
from grace_opt.profile import expert_loads
from grace_opt.solution import Planner, Solution
from grace_opt.topology import Topology
from simulator.cluster import SimulatedCluster

MORE_EXPERTS = 1.25
"""The largest redundancy that is tried by default, as copies of all experts over experts."""
ALL = "all"
"""The goal of a plan for all phases at once."""


@dataclass(frozen=True, eq=False)
class Candidate:
    """A plan to choose from.

    Attributes:
        planner: its name; `linear` is the engine's default, `eplb` its own balancer.
        goal: the phase it was searched for, or ALL.
        redundancy: slots per rank beyond the fewest that hold every expert.
        solution: the plan as the engine will run it.
    """

    planner: str
    goal: str
    redundancy: int
    solution: Solution

    @property
    def name(self) -> str:
        """Of its file, and in the result."""
        goal = "" if self.goal == ALL else f"_for_{self.goal}"
        return f"{self.planner.replace('/', '_')}{goal}_redundancy_{self.redundancy}"

    @property
    def num_slots(self) -> int:
        """Of a layer, over all ranks."""
        return self.solution.plan.placement.num_physical


@dataclass(frozen=True, eq=False)
class Workshop:
    """Where candidates are made.

    Attributes:
        planners: those to try beside the engine's own.
        phases: each with the part to plan on.
    """

    serving: Serving
    planners: dict[str, Planner]
    phases: tuple[Phase, ...]
    cost: SimulatedCluster

    def default(self) -> Candidate:
        """The engine with no plan."""
        return Candidate("linear", ALL, 0, Solution(self.serving.default(self._at(self.phases[0].fit, 0))))

    def make(self, planner: str, redundancy: int, goal: str = ALL, phases: Sequence[Phase] | None = None) -> Candidate:
        """Plan for a goal.

        Args:
            phases: the same with other parts to plan on.

        Raises:
            ValueError: the planner cannot plan within the slots, or the engine cannot have the plan.
        """
        aims = [phase for phase in phases or self.phases if goal in (ALL, phase.name)]
        problem = self._at(aims[0].fit, redundancy)
        own = self.serving.eplb(problem.model, problem.topology)
        recordings = [phase.fit.trace for phase in aims] if self.recorded_apart and len(aims) > 1 else None
        aimed = own if planner == "eplb" else self._aimed(self.planners[planner], aims)
        solution = solve(aimed, problem, recordings=recordings)
        served = self.serving.served(solution.plan, expert_loads(problem.trace))
        return Candidate(planner, goal, redundancy, replace(solution, plan=served))

    @property
    def recorded_apart(self) -> bool:
        """Whether phases have a recording each."""
        return any(phase.fit is not self.phases[0].fit for phase in self.phases)

    def goals(self, planner: str) -> list[str]:
        """For which a planner plans first: for all phases, or one by one if it cannot weigh them."""
        if self.recorded_apart and not self.searches(planner):
            return [phase.name for phase in self.phases]
        return [ALL]

    def searches(self, planner: str) -> bool:
        """Whether the planner's plan depends on the goal."""
        return planner != "eplb" and isinstance(self.planners[planner], Joint)

    def _at(self, problem: Problem, redundancy: int) -> Problem:
        return replace(problem, slots=self.serving.slots(problem.model, problem.topology, redundancy))

    def _aimed(self, planner: Planner, phases: Sequence[Phase]) -> Planner:
        """A searching planner with the batches of the phases and for the engine's rule; others as they are."""
        if not isinstance(planner, Joint):
            return planner
        module = self.serving.module
        if module is not None:
            planner = replace(planner, policy=module.POLICY, fill=True)
        sized = replace(self.cost, tokens_per_rank=phases[0].tokens_per_rank)
        cost: PricesTraffic = sized if self.serving.all_to_all else GatheringCost(sized)
        mix = [{"tokens_per_rank": phase.tokens_per_rank, "share": phase.passes_of_request} for phase in phases]
        return replace(planner, cost=cost, mix=mix if len(phases) > 1 else None)


def redundancies(model: MoEModel, topology: Topology, serving: Serving, asked: Sequence[int] | None) -> list[int]:
    """Those to try, ascending: 0, 1, 2 and MORE_EXPERTS times the experts, as far as they fit; or those asked for.

    Raises:
        ValueError: what is asked for is no such list, or does not fit.
    """
    most = max(0, serving.most_redundancy(model, topology))
    if asked is None:
        least = int(np.max(serving.slots(model, topology, 0)))
        more = max(0, ceil(MORE_EXPERTS * model.num_experts / topology.num_ranks) - least)
        return sorted({extra for extra in (0, 1, 2, more) if extra <= most})
    if not asked or len(set(asked)) < len(asked) or min(asked) < 0:
        raise ValueError(f"redundancy must list different numbers, none negative, or be null, got {list(asked)}")
    if max(asked) > most:
        raise ValueError(
            f"redundancy={max(asked)} is more than fits: at most {most} experts per rank and layer beside the "
            f"{model.num_experts} of {model.name} on {topology.name} with {serving.name}"
        )
    return sorted(asked)

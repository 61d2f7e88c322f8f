"""LPLB, DeepSeek's linear-program load balancer (https://github.com/deepseek-ai/LPLB): a fixed placement, load split
over its replicas by a linear program (`load_split.py`).

The original takes a placement from EPLB and solves the program anew for every batch, on the GPU, from the tokens each
expert has in that batch. HERE IT IS SOLVED ONCE, for the trace the plan is fitted to, and the split becomes polling
weights that hold for all tokens: what is left of the method when a plan must be known beforehand. It balances the mean
load, not the fluctuation from batch to batch, and is no measure of the original on small batches. In the original a
replica takes at most the tokens of the expert it doubles, which the program's equality says too.
"""

from dataclasses import dataclass, field

import numpy as np

from grace_opt.bounds.combinatorial import busiest_rank_load
from grace_opt.planners.eplb import Eplb
from grace_opt.planners.load_split import polling_shares, split_load
from grace_opt.problem import Problem
from grace_opt.profile import expert_loads
from grace_opt.routing import Routing
from grace_opt.solution import Planner, Solution, plan_for


@dataclass(frozen=True)
class Lplb:
    """Another planner's placement, served by the split that leaves the busiest rank with least.

    The solution's objective is the load of the busiest rank, sum over layers, before shares are rounded to the 1/64 of
    a polling schedule; its bound holds for every placement within the slots.

    Attributes:
        placement: the planner whose placement is kept and whose routing is dropped; EPLB in the original, here without
            an expert twice on one rank, which no split can use.

    Example: ranks [0, 2] and [1, 0], loads 6, 4 and 2. Expert 0 is served by rank 0 for 4 tokens and by rank 1 for 2;
    both ranks serve 6.
    """

    placement: Planner = field(default_factory=lambda: Eplb(forbid_duplicates=True))

    @property
    def plans_by(self) -> str:
        """What of the topology it sees: what the planner of its placement sees."""
        return getattr(self.placement, "plans_by", "topology")

    @property
    def plans_from(self) -> str:
        """Whether loads are enough: if they are for its placement."""
        return getattr(self.placement, "plans_from", "tokens")

    def __call__(self, problem: Problem) -> Solution:
        placement = self.placement(problem).plan.placement
        splits = [
            split_load(load_E, slots_RS)
            for load_E, slots_RS in zip(expert_loads(problem.trace), placement.slots, strict=True)
        ]
        weights_LRS = np.stack(
            [
                polling_shares(served_RS, slots_RS)
                for (served_RS, _), slots_RS in zip(splits, placement.slots, strict=True)
            ]
        )
        plan = plan_for(problem, placement, Routing("wrr", weights_LRS), "lplb")
        objective, bound = sum(busiest for _, busiest in splits), float(busiest_rank_load(problem).sum())
        return Solution(plan, objective=objective, bound=min(bound, objective))  # equal up to the solver's rounding

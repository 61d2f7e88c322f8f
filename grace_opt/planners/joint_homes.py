"""Homes as the joint planner's decision: a plan for requests that live where its own rule puts them.

    profile   plan for requests that live with their like (`homes_by_profile`)
    dealt     go on with requests dealt by the rule that is best for that plan

The order matters: a plan for random homes is a local optimum that dealing does not leave. The best plan and rule met on
the way is what counts.
"""

import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from grace_opt.batch_rates import BatchRates
from grace_opt.plan import Plan
from grace_opt.planners.home_choice import aligned, arrivals, dealt, dealt_in_orders, homes_by_profile, with_best_rule
from grace_opt.planners.joint_choice import layer_seconds, plan_of_slots
from grace_opt.planners.joint_progress import Progress, Watcher
from grace_opt.planners.joint_search import LayerSearches
from grace_opt.planners.joint_slots import Deal, SlotDealer, padded
from grace_opt.planners.joint_starts import slots_of
from grace_opt.problem import Problem
from grace_opt.solution import Solution
from grace_opt.trace import Trace
from grace_opt.traffic import traffic

if TYPE_CHECKING:
    from grace_opt.planners.joint import Joint

TURNS = {"profile": 0.8, "dealt": 1.0}
"""When each ends, as a share of the time."""
LOOK_CROWDING = (0.3,)
"""Of the rule under which numbers of slots are compared: one is enough for that."""
Found = tuple[Plan, float]
"""A plan with its rule, and seconds of a layer."""


class HomeSearch:
    """Plan for homes of the planner's own choice, turn by turn.

    Args:
        rates, starts: of the one size of batches; [L, R, S] slots of each start.
        seeds: first seeds of orders of arrival, those to search on and those to choose on.
        began: when the clock started.
    """

    def __init__(
        self,
        options: "Joint",
        problem: Problem,
        rates: BatchRates,
        starts: Sequence[NDArray[np.int64]],
        seeds: tuple[int, int],
        began: float,
        watch: Callable[[Progress], None] | None,
    ) -> None:
        self._options, self._problem, self._rates, self._starts = options, problem, rates, starts
        self._seed, self._began, self._watch = seeds[0], began, watch
        self._orders = arrivals(problem.trace, 2, seeds[1])
        self._slots_L, self._room_LR = list(starts[0]), Deal.alike(problem, starts).room
        self._best: Found | None = None
        self._finished = True

    def run(self) -> Solution:
        """The best plan and rule; after Ctrl-C the best so far."""
        try:
            for turn, (name, share) in enumerate(TURNS.items()):
                if self._turn(turn, name, self._began + share * self._options.time_limit_s):
                    break
        except KeyboardInterrupt:
            self._finished = False
            if self._best is None:
                warnings.warn("joint: interrupted, the plan has no rule for homes yet", stacklevel=4)
                return Solution(plan_of_slots(np.stack(self._slots_L), self._problem), status="feasible")
            warnings.warn("joint: interrupted, the best plan so far is kept", stacklevel=4)
        assert self._best is not None
        plan, seconds = self._best
        return Solution(plan, status="heuristic" if self._finished else "feasible", objective=seconds)

    def _turn(self, turn: int, name: str, deadline: float) -> bool:
        """Search, find the rule, keep the better plan; whether Ctrl-C ended it."""
        options, problem = self._options, self._problem
        maps, starts = self._homes_and_starts(turn, name)
        draw = [(maps[index % len(maps)], options.cost.tokens_per_rank) for index in range(options.num_batches)]
        layers = None
        if problem.dealt and name == "profile":
            # what a plan brings to requests that live with their like is more than a rule can have of it;
            # one set of homes for all numbers of slots, as uneven ones are cut into more batches, by chance
            by_rule = partial(self._seconds, self._dealt_for(starts[0]))
            now = time.perf_counter()
            dealer = SlotDealer(options, problem, self._rates, [[draw]], by_rule)
            deal = dealer.run(starts, now, max(0.0, deadline - now))
            self._room_LR, starts, layers = deal.room, deal.starts, deal.layers
            self._slots_L = list(starts[0])
            if deal.interrupted:
                raise KeyboardInterrupt
        exact = partial(layer_seconds, replace(problem, trace=maps[0]), options.cost, options.policy)
        follow = None if self._watch is None else Watcher(self._watch, exact, False)
        search = LayerSearches(options, problem, self._rates, [[draw]], starts, self._room_LR, deadline, follow, layers)
        self._slots_L = search.slots_L
        self._finished &= search.run()
        plan = plan_of_slots(np.stack(self._slots_L), problem)
        found = with_best_rule(problem, options.cost, plan, self._rates, options.first_tokens, self._orders)
        if self._best is None or found[1] < self._best[1]:
            self._best = found
        return search.interrupted

    def _dealt_for(self, slots_LRS: NDArray[np.int64]) -> Trace:
        """Requests dealt by a rule for these slots."""
        options, plan, order = self._options, plan_of_slots(slots_LRS, self._problem), self._orders[:1]
        plan, _ = with_best_rule(
            self._problem, options.cost, plan, self._rates, options.first_tokens, order, LOOK_CROWDING
        )
        return dealt(order[0], plan)

    def _seconds(self, trace: Trace, slots_LRS: NDArray[np.int64], at: Problem) -> NDArray[np.float64]:
        """[L] of a layer, by exact traffic of a trace with homes."""
        cost = self._options.cost
        counts = traffic(trace, plan_of_slots(slots_LRS, at), cost.tokens_per_rank)
        return cost.price(replace(at, trace=trace), counts).layer_s

    def _homes_and_starts(self, turn: int, name: str) -> tuple[list[Trace], Sequence[NDArray[np.int64]]]:
        """Traces with homes to search on, and where to begin."""
        options, problem = self._options, self._problem
        seen = arrivals(problem.trace, options.num_batches, self._seed + turn * options.num_batches)
        if name == "dealt":
            assert self._best is not None
            plan = self._best[0]
            return dealt_in_orders(seen, plan), [padded(slots_of(plan, problem), int(self._room_LR.max()))]
        trace = homes_by_profile(seen[0], problem.topology.num_ranks)
        return [trace], [aligned(slots, replace(problem, trace=trace)) for slots in self._starts]

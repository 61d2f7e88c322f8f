"""The joint planner: placement, copies and routing searched together against the cost model, layer by layer.

    starts    plans of published planners (`starts`), copies they may not have left out
    search    from the best start of each layer, annealing on sample batches of random home maps (`local_search`,
              `home_scenarios`), then a short stretch at a low temperature with a p-norm closer to the maximum
    choice    for each layer the placement that the cost model itself prices lowest on the exact traffic of further home
              maps: search results and starts alike, so that no layer is worse there than the best start under `cover`
    routing   `cover`: a token's experts are considered together (`grace_opt.cover`)

If a start with its own routing is still better as a whole, its plan is returned as it is. Everything is fitted to the
problem's trace: how much of it holds on other sequences is for a held-out part to say.
"""

import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from grace_opt.batch_rates import BatchRates, PricesTraffic, batch_rates
from grace_opt.placement import EMPTY, Placement
from grace_opt.plan import Plan
from grace_opt.planners.eplb import Eplb
from grace_opt.planners.grace import Grace
from grace_opt.planners.grace_plus import GracePlus
from grace_opt.planners.home_choice import aligned, arrivals, dealt, homes_by_profile, with_best_rule
from grace_opt.planners.home_scenarios import home_maps
from grace_opt.planners.joint_search import LayerSearches, Progress
from grace_opt.planners.linear import Linear
from grace_opt.planners.occult import Occult
from grace_opt.problem import Problem
from grace_opt.routing import Routing
from grace_opt.solution import Planner, Solution, plan_for
from grace_opt.trace import Trace
from grace_opt.traffic import traffic

HOME_TURNS = (0.8, 1.0)
"""When, as shares of the time, the plan is done for homes by profile, then for homes dealt by its rule."""
SEARCH_SEED, CHOICE_SEED = 1000, 2000
"""First seeds of the home maps: those a plan is judged on elsewhere are others."""
STARTS: dict[str, Planner] = {
    "grace": Grace(over_budget="trim"),
    "grace_plus": GracePlus(),
    "eplb": Eplb(hierarchical=True),
    "occult": Occult(),
    "linear": Linear(),
}


@dataclass(frozen=True)
class Joint:
    """Search placement, copies and routing together.

    Attributes:
        cost: the cost model to plan for; it must price made-up traffic too, as the simulated cluster does.
        trials: moves tried in each layer, unless time runs out; with enough time the result depends on seed alone.
        time_limit_s: for all layers together; Ctrl-C ends the search as well. Either way the best so far counts.
        hottest: first temperature, as a share of a layer's time; the last is COOLING times that.
        num_batches, num_tokens: sample batches that the search sees, and tokens in all of them.
        homes: "given" plans for any homes; "chosen" decides them too, by a rule that the plan then carries.
        first_tokens: of a request, known when its home is chosen; None: all of them. Read with homes=chosen only.
        num_maps: home maps (each with its mirror) on which candidates are compared exactly.
        seed: of samples and of the search.
    """

    cost: PricesTraffic
    trials: int = 40_000
    time_limit_s: float = 20.0
    hottest: float = 0.003
    num_batches: int = 4
    num_tokens: int = 4_000
    num_maps: int = 4
    homes: str = "given"
    first_tokens: int | None = 32
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("trials", "num_batches", "num_tokens", "num_maps"):
            if getattr(self, name) < 1:
                raise ValueError(f"joint: {name} must be at least 1, got {getattr(self, name)}")
        for name in ("time_limit_s", "hottest"):
            if not 0 < getattr(self, name) < np.inf:
                raise ValueError(f"joint: {name} must be a positive number, got {getattr(self, name)}")
        if self.homes not in ("given", "chosen"):
            raise ValueError(f"joint: homes must be given or chosen, got {self.homes!r}")
        if self.first_tokens is not None and self.first_tokens < 1:
            raise ValueError(f"joint: first_tokens must be at least 1, or null for all, got {self.first_tokens}")
        if self.seed < 0:
            raise ValueError(f"joint: seed must not be negative, got {self.seed}")
        if not callable(getattr(self.cost, "price", None)):
            raise ValueError(f"joint: cost must be a model that prices traffic, got {type(self.cost).__name__}")

    def __call__(self, problem: Problem) -> Solution:
        return self.search(problem, lambda _: None)

    def search(self, problem: Problem, watch: Callable[[Progress], None]) -> Solution:
        """Plan; `watch` is called whenever a layer is done."""
        began = time.perf_counter()
        rates = batch_rates(problem, self.cost)
        starts = _starts(problem)
        candidates = [_slots(plan, problem) for plan in starts.values()]
        if self.homes == "chosen":
            return self._with_homes(problem, rates, candidates, began, watch)
        maps = home_maps(problem.trace, problem.topology, -(-self.num_batches // 2), SEARCH_SEED + self.seed)
        search = LayerSearches(self, problem, rates, maps, candidates, began + self.time_limit_s, watch)
        finished = search.run()
        maps = home_maps(problem.trace, problem.topology, self.num_maps, CHOICE_SEED + self.seed)
        plan, seconds = _choose(problem, self.cost, maps, [np.stack(search.slots_L), *candidates])
        for start in starts.values():
            if (priced := float(_price(problem, self.cost, maps, start).mean())) < seconds:
                plan, seconds = replace(start, provenance=plan.provenance), priced
        return Solution(plan, status="heuristic" if finished else "feasible", objective=seconds)

    def _with_homes(
        self,
        problem: Problem,
        rates: BatchRates,
        starts: Sequence[NDArray[np.int64]],
        began: float,
        watch: Callable[[Progress], None],
    ) -> Solution:
        """Plan for requests that live with their like, deal them by a rule for the plan, plan anew; the best seen."""
        orders = arrivals(problem.trace, 2, CHOICE_SEED + self.seed)
        best: tuple[Plan, float] | None = None
        finished = True
        for turn, share in enumerate(HOME_TURNS):
            seen = arrivals(problem.trace, self.num_batches, SEARCH_SEED + self.seed + turn * self.num_batches)
            if best is None:
                maps = [homes_by_profile(seen[0], problem.topology.num_ranks)]
                equal = len(set(problem.slots_per_rank.tolist())) == 1
                starts = [aligned(slots, maps[0], problem.topology) if equal else slots for slots in starts]
            else:
                maps, starts = [dealt(trace, best[0]) for trace in seen], [_slots(best[0], problem)]
            search = LayerSearches(self, problem, rates, maps, starts, began + share * self.time_limit_s, watch)
            finished &= search.run()
            plan = _plan(np.stack(search.slots_L), problem)
            found = with_best_rule(problem, self.cost, plan, rates, self.first_tokens, orders)
            if best is None or found[1] < best[1]:
                best = found
            if search.interrupted:
                break
        assert best is not None
        return Solution(best[0], status="heuristic" if finished else "feasible", objective=best[1])


def _starts(problem: Problem) -> dict[str, Plan]:
    """Plans of published planners; one that cannot plan within the slots is left out."""
    plans = {}
    for name, planner in STARTS.items():
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            try:
                plans[name] = planner(problem).plan
            except ValueError:
                if name == "linear":  # it plans whatever can be planned
                    raise
    return plans


def _slots(plan: Plan, problem: Problem) -> NDArray[np.int64]:
    """[L, R, S] what each slot of the budget holds; no rank holds an expert twice."""
    width = int(problem.slots_per_rank.max())
    slots_LRS = np.full((plan.placement.num_layers, plan.num_ranks, width), EMPTY, np.int64)
    for layer, ranks in enumerate(plan.placement.to_lists()):
        for rank, experts in enumerate(ranks):
            distinct = list(dict.fromkeys(experts))
            slots_LRS[layer, rank, : len(distinct)] = distinct
    return slots_LRS


def _plan(slots_LRS: NDArray[np.int64], problem: Problem) -> Plan:
    lists = [[[int(e) for e in rank if e != EMPTY] for rank in layer] for layer in slots_LRS]
    replicated = (slots_LRS != EMPTY).sum() > problem.model.num_layers * problem.model.num_experts
    routing = Routing("cover" if replicated else "primary")
    return plan_for(problem, Placement.from_lists(lists, problem.model.num_experts), routing, "joint")


def _choose(
    problem: Problem, cost: PricesTraffic, maps: Sequence[Trace], candidates: Sequence[NDArray[np.int64]]
) -> tuple[Plan, float]:
    """The plan that takes for each layer the candidate [L, R, S] of least time, and its mean layer time."""
    seconds_CL = np.stack([_price(problem, cost, maps, _plan(slots, problem)) for slots in candidates])
    best_L = seconds_CL.argmin(axis=0)
    slots_LRS = np.stack([candidates[best][layer] for layer, best in enumerate(best_L)])
    return _plan(slots_LRS, problem), float(seconds_CL.min(axis=0).mean())


def _price(problem: Problem, cost: PricesTraffic, maps: Sequence[Trace], plan: Plan) -> NDArray[np.float64]:
    """[L] mean layer time over home maps."""
    times = []
    for trace in maps:
        with_homes = replace(problem, trace=trace)
        times.append(cost.price(with_homes, traffic(trace, plan, cost.tokens_per_rank)).layer_s)
    return np.asarray(np.mean(times, axis=0))

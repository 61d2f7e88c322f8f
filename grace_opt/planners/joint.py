"""The joint planner: placement, copies and routing searched together against the cost model, layer by layer.

    starts    plans of published planners (`joint_starts`), copies they may not have left out
    search    from the best start of each layer, annealing on sample batches of random home maps (`local_search`,
              `home_scenarios`), then a short stretch at a low temperature with a p-norm closer to the maximum
    deal      of slots to layers, if the problem has them dealt (`joint_slots`)
    choice    for each layer the placement that the cost model itself prices lowest on the exact traffic of further home
              maps: search results and starts alike, so that no layer is worse there than the best start under the
              same routing
    routing   `cover`: a token's experts are considered together (`grace_opt.cover`); or the rule of a serving engine
              that picks copies itself, `tar` or `uniform` (`grace_opt.routing`)

If a start with its own routing is still better as a whole, its plan is returned as it is, unless it routes by another
rule than was asked for (all will do where `cover` is). Engines take no ranks with fewer experts than others: with
`fill` no slot is ever left empty. Everything is fitted to the problem's trace: how much of it holds on other sequences
is for a held-out part to say.
"""

import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from grace_opt.batch_rates import PricesTraffic
from grace_opt.plan import Plan
from grace_opt.planners.copy_choice import POLICIES
from grace_opt.planners.domain_weights import DRAWS, POOL
from grace_opt.planners.home_choice import aligned
from grace_opt.planners.home_scenarios import Scenario
from grace_opt.planners.joint_choice import best_of_each_layer, layer_seconds, plan_of_slots
from grace_opt.planners.joint_homes import HomeSearch
from grace_opt.planners.joint_progress import Progress, Watcher
from grace_opt.planners.joint_search import LayerSearches
from grace_opt.planners.joint_slots import Deal, SlotDealer
from grace_opt.planners.joint_starts import plan_of_linear, slots_of, starts_of, warm_up
from grace_opt.planners.workload import ROBUST, Workload, require_mix
from grace_opt.problem import Problem
from grace_opt.solution import Solution
from grace_opt.trace import Trace

HOMES = ("given", "known", "chosen")
SEARCH_SEED, CHOICE_SEED = 1000, 2000
"""First seeds of the home maps: those a plan is judged on elsewhere are others."""


@dataclass(frozen=True)
class Joint:
    """Search placement, copies and routing together.

    Attributes:
        cost: the cost model to plan for; it must price made-up traffic too, as the simulated cluster does.
        trials: moves tried in each layer, unless time runs out; with enough time the result depends on seed alone.
        time_limit_s: for all layers together, once everything is compiled; Ctrl-C ends the search as well. Either way
            the best so far counts.
        hottest: first temperature, as a share of a layer's time; the last is COOLING times that.
        num_batches, num_tokens: sample batches that the search sees, and tokens in all of them. Shares of a mix, and
            domains, may ask for more batches of as many tokens in all.
        policy: "cover", "tar" or "uniform", by which the plan's copies are searched, compared and served. One that is
            not `cover` is asked for by an engine: the plan has it, without weights, whatever the starts do.
        fill: every slot holds an expert, none twice on a rank, in all that is searched and returned. Needs a budget of
            at most E slots on a rank; where copies cost more than they bring, a smaller one is better. False: slots
            may stay empty, and do where a copy would not help.
        homes: "given" plans for any homes; "known" for those of the trace, as if no request ever lived elsewhere;
            "chosen" decides them too, by a rule that the plan then carries; the rule counts what homes cost under
            `cover`, so that is the policy then.
        first_tokens: of a request, known when its home is chosen; None: all of them. Read with homes=chosen only.
        num_maps: home maps (each with its mirror) on which candidates are compared exactly.
        mix: sizes of batches to plan for, as a list of {tokens_per_rank, share}: the mean layer time of the batches
            that a rank runs is minimised, of which each size has its share (shares need not add up to 1). None: the
            one size that `cost` prices.
        robust: "none" plans for the trace as it is; "mean" gives each of its domains the same weight, "worst" minimises
            the layer time of the domain that takes longest (see `workload`).
        seed: of samples and of the search.
    """

    deals_slots: ClassVar[bool] = True

    cost: PricesTraffic
    trials: int = 40_000
    time_limit_s: float = 20.0
    hottest: float = 0.003
    num_batches: int = 16
    num_tokens: int = 16_000
    num_maps: int = 4
    policy: str = "cover"
    fill: bool = False
    homes: str = "given"
    first_tokens: int | None = 32
    mix: Sequence[Mapping[str, float]] | None = None
    robust: str = "none"
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("trials", "num_batches", "num_tokens", "num_maps"):
            if getattr(self, name) < 1:
                raise ValueError(f"joint: {name} must be at least 1, got {getattr(self, name)}")
        for name in ("time_limit_s", "hottest"):
            if not 0 < getattr(self, name) < np.inf:
                raise ValueError(f"joint: {name} must be a positive number, got {getattr(self, name)}")
        if self.policy not in POLICIES:
            raise ValueError(f"joint: policy must be one of {', '.join(POLICIES)}, got {self.policy!r}")
        if not isinstance(self.fill, bool):
            raise ValueError(f"joint: fill must be true or false, got {self.fill!r}")
        if self.homes not in HOMES:
            raise ValueError(f"joint: homes must be one of {', '.join(HOMES)}, got {self.homes!r}")
        if self.first_tokens is not None and self.first_tokens < 1:
            raise ValueError(f"joint: first_tokens must be at least 1, or null for all, got {self.first_tokens}")
        require_mix(self.mix)
        if self.robust not in ROBUST:
            raise ValueError(f"joint: robust must be one of {', '.join(ROBUST)}, got {self.robust!r}")
        if self.homes != "given" and (self.mix is not None or self.robust != "none"):
            raise ValueError("joint: a mix, or robust=mean or worst, is planned with homes=given only")
        if self.homes == "chosen" and self.policy != "cover":
            raise ValueError(f"joint: policy={self.policy} is planned for with homes=given only")
        if self.seed < 0:
            raise ValueError(f"joint: seed must not be negative, got {self.seed}")
        if not callable(getattr(self.cost, "price", None)):
            raise ValueError(f"joint: cost must be a model that prices traffic, got {type(self.cost).__name__}")

    def __call__(self, problem: Problem) -> Solution:
        return self.search(problem)

    def search(
        self,
        problem: Problem,
        watch: Callable[[Progress], None] | None = None,
        recordings: Sequence[Trace] | None = None,
    ) -> Solution:
        """Plan; `watch` follows stages and layers, and may end the search by raising `Enough`.

        Args:
            recordings: a trace with homes for each size of the mix, if each has its own; starts see the problem's.
        """
        self._require_room(problem)
        layers, tell = problem.model.num_layers, watch or (lambda _: None)
        workload = Workload.of(problem, self.cost, self.mix, self.robust, recordings, self.homes == "known")
        try:
            tell(Progress("compiling", 0, layers))
            warm_up(problem, self.cost, self.homes, self.policy)
            began = time.perf_counter()
            tell(Progress("starting", 0, layers))
            starts = starts_of(problem)
        except KeyboardInterrupt:
            warnings.warn("joint: interrupted before the search began, the plan is that of linear", stacklevel=2)
            return Solution(plan_of_linear(problem, self.policy, self.fill), status="feasible")
        candidates = [slots_of(plan, problem, self.fill) for plan in starts.values()]
        if self.homes == "chosen":
            seeds = SEARCH_SEED + self.seed, CHOICE_SEED + self.seed
            return HomeSearch(self, problem, workload.rates[0], candidates, seeds, began, watch).run()
        if self.homes == "known":
            candidates = [aligned(slots, problem) for slots in candidates]
        exact = partial(layer_seconds, problem, self.cost, self.policy)
        follow = None if watch is None else Watcher(watch, exact, True)
        slots_L = list(candidates[0])
        try:
            rates, draws, deadline = workload.mean_rates(), self._draws(workload), began + self.time_limit_s
            maps = workload.home_maps(self.num_maps, CHOICE_SEED + self.seed)
            deal = Deal.alike(problem, candidates)
            if problem.dealt:
                tell(Progress("dealing", 0, layers))
                few = [[of_size[:2] for of_size in of_domain] for of_domain in maps]
                dealer = SlotDealer(self, problem, rates, draws, partial(self._seconds, workload, few))
                deal = dealer.run(candidates, began, self.time_limit_s)
            candidates = list(deal.starts)
            search = LayerSearches(self, problem, rates, draws, candidates, deal.room, deadline, follow, deal.layers)
            slots_L = search.slots_L
            finished = not deal.interrupted and search.run()
            tell(Progress("choosing", layers, layers))
            plan, seconds = best_of_each_layer(workload, maps, [np.stack(slots_L), *candidates], self.policy)
            for start in filter(self._may_return, starts.values()):
                if (priced := workload.objective(workload.seconds(start, maps))) < seconds:
                    plan, seconds = replace(start, provenance=plan.provenance), priced
        except KeyboardInterrupt:
            warnings.warn("joint: interrupted, the plan is the best of the samples", stacklevel=2)
            return Solution(plan_of_slots(np.stack(slots_L), problem, self.policy), status="feasible")
        return Solution(plan, status="heuristic" if finished else "feasible", objective=seconds)

    def _seconds(
        self, workload: Workload, maps: Sequence[Sequence[Sequence[Trace]]], slots_LRS: NDArray[np.int64], at: Problem
    ) -> NDArray[np.float64]:
        """[L] of a layer, by exact traffic; domains count alike."""
        return np.asarray(workload.seconds(plan_of_slots(slots_LRS, at, self.policy), maps).mean(axis=0))

    def _require_room(self, problem: Problem) -> None:
        most, experts = int(problem.slots_per_rank.max()), problem.model.num_experts
        if self.fill and most > experts:
            raise ValueError(
                f"joint: fill=true would have a rank hold an expert twice, with slots_per_rank={most} for {experts} "
                f"experts; give slots_per_rank={experts} at most"
            )

    def _may_return(self, start: Plan) -> bool:
        """Whether a start may be the plan with its own routing, and any second copies on a rank; its slots compete
        under `policy` anyway."""
        if self.fill:
            return False
        return self.policy == "cover" or (start.routing.policy == self.policy and start.routing.weights is None)

    def _draws(self, workload: Workload) -> list[list[list[Scenario]]]:
        """[domain][draw] sample batches. A draw of a domain has a map of homes and its mirror at the least; a search
        for the best worst domain has more draws to take from than it sees."""
        if self.robust == "none":
            return workload.scenarios(self.num_batches, 1, SEARCH_SEED + self.seed)
        at_once, draws = (DRAWS, POOL) if self.robust == "worst" else (1, 1)
        each = max(2, self.num_batches // (at_once * len(workload.domains)))
        return workload.scenarios(each, draws, SEARCH_SEED + self.seed)

"""Where the joint planner's search begins: plans of published planners, and compiled code that is ready to run."""

import warnings
from collections.abc import Mapping
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from grace_opt.batch_rates import PricesTraffic
from grace_opt.placement import EMPTY, fill
from grace_opt.plan import Plan
from grace_opt.planners.eplb import Eplb
from grace_opt.planners.grace import Grace
from grace_opt.planners.grace_plus import GracePlus
from grace_opt.planners.home_choice import arrivals, with_best_rule
from grace_opt.planners.home_scenarios import ScenarioSampler
from grace_opt.planners.joint_choice import best_of_each_layer, plan_of_slots
from grace_opt.planners.linear import Linear
from grace_opt.planners.local_search import LocalSearch, rates_of
from grace_opt.planners.node_copies import NodeCopies
from grace_opt.planners.occult import Occult
from grace_opt.planners.workload import Workload
from grace_opt.problem import Problem
from grace_opt.profile import expert_loads
from grace_opt.solution import Planner

STARTS: dict[str, Planner] = {
    "grace": Grace(over_budget="trim"),
    "grace_plus": GracePlus(),
    "eplb": Eplb(hierarchical=True),
    "occult": Occult(),
    "node_copies": NodeCopies(),
    "linear": Linear(),
}
QUICK_STARTS = {name: STARTS[name] for name in ("eplb", "occult", "node_copies", "linear")}
"""Those that take no time to speak of."""
FEW_TOKENS = 1000
"""Of one layer, on which everything compiled runs once."""


def starts_of(problem: Problem, planners: Mapping[str, Planner] = STARTS) -> dict[str, Plan]:
    """Plans of published planners; one that cannot plan within the slots is left out."""
    plans = {}
    for name, planner in planners.items():
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            try:
                plans[name] = planner(problem).plan
            except ValueError:
                if name == "linear":  # it plans whatever can be planned
                    raise
    return plans


def slots_of(plan: Plan, problem: Problem, filled: bool = False) -> NDArray[np.int64]:
    """[L, R, S] what each slot of the budget holds; no rank holds an expert twice. What the plan leaves empty is filled
    with copies of loaded experts, if asked for."""
    lists = [[list(dict.fromkeys(rank)) for rank in layer] for layer in plan.placement.to_lists()]
    if filled:
        load_LE = expert_loads(problem.trace)
        for layer, ranks in enumerate(lists):
            fill(ranks, problem.slots_per_rank.tolist(), load_LE[layer], plan.layer_ids[layer])
    width = max(int(problem.slots_per_rank.max()), int(plan.placement.slots_reserved.max()))
    slots_LRS = np.full((plan.placement.num_layers, plan.num_ranks, width), EMPTY, np.int64)
    for layer, ranks in enumerate(lists):
        for rank, experts in enumerate(ranks):
            slots_LRS[layer, rank, : len(experts)] = experts
    return slots_LRS


def warm_up(problem: Problem, cost: PricesTraffic, homes: str, policy: str) -> None:
    """Run all compiled code of a search once, on a few tokens of one layer, so that no clock of a search counts the
    seconds in which it is compiled: once a machine, as numba keeps it."""
    tiny = _few_tokens(problem)
    workload = Workload.of(tiny, cost, None, "none")
    starts = starts_of(tiny)
    candidates = [slots_of(plan, tiny) for plan in starts.values()]
    maps = workload.home_maps(1, 0)
    sample = ScenarioSampler(tiny, [(maps[0][0][0], cost.tokens_per_rank)], 1, 0, policy).of_layer(0)
    rates = rates_of(workload.mean_rates(), tiny.topology)
    LocalSearch(candidates[0][0], tiny.slots_per_rank, tiny.model.num_experts, sample, rates, 0).run(0, 0.0, 0.0)
    plan, _ = best_of_each_layer(workload, maps, candidates, policy)
    for start in starts.values():  # their own routing is counted by other code
        workload.seconds(start, [[maps[0][0][:1]]])
    if homes == "chosen":
        with_best_rule(tiny, cost, plan, workload.rates[0], None, arrivals(tiny.trace, 1, 0))


def _few_tokens(problem: Problem) -> Problem:
    """The first layer and the first sequences, down to FEW_TOKENS."""
    trace = problem.trace
    assert trace.homes is not None
    few = np.arange(int(np.searchsorted(np.cumsum(trace.lengths), FEW_TOKENS)) + 1)[: trace.num_sequences]
    part = replace(trace.select(few), expert_ids=trace.expert_ids[:1], homes=trace.homes[few])
    return replace(problem, model=replace(problem.model, num_layers=1), trace=part)


def plan_of_linear(problem: Problem, policy: str, filled: bool) -> Plan:
    """What there is before any search: experts in index order."""
    return plan_of_slots(slots_of(Linear()(problem).plan, problem, filled), problem, policy)

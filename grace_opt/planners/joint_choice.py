"""Of several placements of all layers, the one to keep for each layer, by what the cost model says of exact traffic."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from grace_opt.batch_rates import PricesTraffic
from grace_opt.placement import EMPTY, Placement
from grace_opt.plan import Plan
from grace_opt.planners.workload import Workload
from grace_opt.problem import Problem
from grace_opt.routing import Routing
from grace_opt.solution import plan_for
from grace_opt.trace import Trace
from grace_opt.traffic import traffic


def plan_of_slots(slots_LRS: NDArray[np.int64], problem: Problem, policy: str = "cover") -> Plan:
    """The plan that holds this and routes by a policy; with `cover`, where no expert has copies, by `primary`."""
    lists = [[[int(e) for e in rank if e != EMPTY] for rank in layer] for layer in slots_LRS]
    replicated = (slots_LRS != EMPTY).sum() > problem.model.num_layers * problem.model.num_experts
    routing = Routing(policy if replicated or policy != "cover" else "primary")
    return plan_for(problem, Placement.from_lists(lists, problem.model.num_experts), routing, "joint")


def layer_seconds(problem: Problem, cost: PricesTraffic, policy: str, layer: int, slots_RS: NDArray[np.int64]) -> float:
    """Exact time of one layer on the problem's own homes."""
    trace = replace(problem.trace, expert_ids=problem.trace.expert_ids[layer : layer + 1])
    slots = slots_RS.shape[1] if problem.dealt else problem.slots
    one = replace(problem, model=replace(problem.model, num_layers=1), trace=trace, slots=slots)
    plan = plan_of_slots(slots_RS[None], one, policy)
    return cost.price(one, traffic(trace, plan, cost.tokens_per_rank, num_threads=1)).mean_s


def best_of_each_layer(
    workload: Workload,
    maps: Sequence[Sequence[Sequence[Trace]]],
    candidates: Sequence[NDArray[np.int64]],
    policy: str = "cover",
) -> tuple[Plan, float]:
    """The plan that takes for each layer the candidate [L, R, S] that is best under a policy, and its objective.

    Args:
        maps: [domain][size] traces with homes to compare on.
    """
    problem = workload.problem
    seconds_CDL = np.stack([workload.seconds(plan_of_slots(slots, problem, policy), maps) for slots in candidates])
    best_L = _least_worst(seconds_CDL) if workload.worst else seconds_CDL.mean(axis=1).argmin(axis=0)
    slots_LRS = np.stack([candidates[best][layer] for layer, best in enumerate(best_L)])
    chosen_DL = np.take_along_axis(seconds_CDL, best_L[None, None, :], axis=0)[0]
    return plan_of_slots(slots_LRS, problem, policy), workload.objective(chosen_DL)


def _least_worst(seconds_CDL: NDArray[np.float64]) -> NDArray[np.int64]:
    """[L] choices whose worst domain, over all layers together, no change of one layer makes better.

    From the best candidate as a whole, so that none is better than the result.
    """
    layers = seconds_CDL.shape[2]
    best_L = np.full(layers, seconds_CDL.sum(axis=2).max(axis=1).argmin())
    total_D = seconds_CDL[best_L[0]].sum(axis=1)
    improved = True
    while improved:
        improved = False
        for layer in range(layers):
            others_CD = total_D - seconds_CDL[best_L[layer], :, layer] + seconds_CDL[:, :, layer]
            choice = int(others_CD.max(axis=1).argmin())
            if others_CD[choice].max() < total_D.max() * (1 - 1e-12):
                best_L[layer], total_D, improved = choice, others_CD[choice], True
    return best_L

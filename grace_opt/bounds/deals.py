"""Bounds where slots are dealt to layers: the least over all deals of what the layers' own bounds add up to.

Proof: a plan has some deal of s_l slots to layer l, at least ceil(E / R) each and L s in all, and no layer's value is
below its bound with s_l slots. Bounds fall as slots rise, so that of the next higher number looked at is one too; the
least over all deals, of bounds lowered in this way, is found by dynamic programming (`slot_deal`).
"""

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from grace_opt.problem import Problem, with_slots
from grace_opt.slot_deal import deal_of_least, numbers_to_try


def least_over_deals(problem: Problem, bounds_of: Callable[[Problem], NDArray[np.float64]]) -> float:
    """What no plan beats, all layers together.

    Args:
        bounds_of: [L] of each layer, for a problem with the same slots in every layer; it may not rise with slots.
    """
    layers, experts = problem.model.num_layers, problem.model.num_experts
    fewest, given = -(-experts // problem.topology.num_ranks), int(problem.slots_per_rank[0])
    most = min(experts, given + (given - fewest) * (layers - 1))
    on_a_node = -(-experts // min(problem.topology.ranks_per_node))
    counts = numbers_to_try(fewest, given, most, [on_a_node - 1, on_a_node, most])
    price = [fewest, *(count + 1 for count in counts[:-1])]
    bound_CL = np.stack([bounds_of(with_slots(problem, count)) for count in counts])
    choice_L = deal_of_least(bound_CL, price, given * layers)
    return float(bound_CL[choice_L, np.arange(layers)].sum())

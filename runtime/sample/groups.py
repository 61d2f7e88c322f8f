"""Is the routing worth placing by? How many groups a token visits, with experts placed by affinity and without.

One layer at a time, the experts are split into equal groups (think of GPUs). The fewer distinct groups hold a token's
experts, the less it travels. Three figures on sequences that nothing was fitted on:

    index        experts in index order, 0..7 | 8..15 | ...
    fitted       groups that maximise the affinity inside them
    independent  the fitted groups again, for independent draws of experts: what the loads alone explain

This is a check of the sample, not a planner: those live in `grace_opt.planners`.
"""

import numpy as np

from grace_opt.profile import affinity
from grace_opt.split import Alternate
from grace_opt.trace import Trace


def held_out_groups(trace: Trace, num_groups: int = 8) -> dict[str, float]:
    """Mean over layers of the three figures: fitted on even sequences, counted on odd ones."""
    fit, held_out = Alternate()(trace)
    index_E = np.arange(trace.num_experts) * num_groups // trace.num_experts
    figures = []
    for layer in range(trace.num_layers):
        ids_TK = held_out.layer(layer)
        fitted_E = fit_groups(affinity(fit, layer), num_groups)
        drawn_TK = independent_draws(ids_TK, trace.num_experts)
        pairs = ((ids_TK, index_E), (ids_TK, fitted_E), (drawn_TK, fitted_E))
        figures.append([distinct_groups(ids, group_E) for ids, group_E in pairs])
    return dict(zip(("index", "fitted", "independent"), np.mean(figures, axis=0).tolist(), strict=True))


def fit_groups(affinity_EE: np.ndarray, num_groups: int) -> np.ndarray:
    """Group of every expert [E], groups of equal size: exchange the best pair of experts until no exchange helps.

    Args:
        affinity_EE: tokens that chose both experts; the diagonal is 0.
    """
    E = len(affinity_EE)
    group_E = np.arange(E) * num_groups // E
    while True:
        inside_EG = affinity_EE @ np.eye(num_groups)[group_E]
        # Expert i joins the group of j; both gains still count the affinity of i and j, who never meet.
        move_EE = inside_EG[:, group_E] - inside_EG[np.arange(E), group_E][:, None]
        gain_EE = np.where(group_E[:, None] == group_E, 0, move_EE + move_EE.T - 2 * affinity_EE)
        i, j = np.unravel_index(gain_EE.argmax(), gain_EE.shape)
        if gain_EE[i, j] <= 0:
            return group_E
        group_E[[i, j]] = group_E[[j, i]]


def distinct_groups(expert_ids_TK: np.ndarray, group_E: np.ndarray) -> float:
    """Mean number of distinct groups among a token's experts."""
    visited_TG = np.zeros((len(expert_ids_TK), group_E.max() + 1), bool)
    visited_TG[np.arange(len(expert_ids_TK))[:, None], group_E[expert_ids_TK]] = True
    return float(visited_TG.sum(1).mean())


def independent_draws(expert_ids_TK: np.ndarray, num_experts: int, seed: int = 0) -> np.ndarray:
    """As many tokens [T, K], each K experts drawn without replacement in proportion to the loads (the Gumbel trick)."""
    (T, K), load_E = expert_ids_TK.shape, np.bincount(expert_ids_TK.ravel(), minlength=num_experts)
    noise_TE = np.random.default_rng(seed).gumbel(size=(T, num_experts))
    with np.errstate(divide="ignore"):  # an expert that nobody chose is drawn last
        return np.argsort(-(np.log(load_E) + noise_TE), axis=1)[:, :K]

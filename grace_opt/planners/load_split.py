"""The split of a layer's load over the copies of a fixed placement that leaves the busiest rank with least.

    Data        load_e, tokens that chose expert e; the copies p of each expert and their ranks; least_p, tokens that
                copy p serves in any case (0 unless given)
    Variables   served_p >= least_p, tokens that copy p serves; busiest >= 0
    Constraints sum of served_p over the copies of e = load_e for every e;
                sum of served_p over the copies on r <= busiest for every rank r
    Objective   least busiest

A linear program; read as a flow it sends the load of every expert through its copies to ranks of capacity `busiest`.

Example: expert 0 of load 6 on ranks 0 and 1, expert 1 of load 4 on rank 1: rank 0 serves 5 of the 6, rank 1 serves
1 + 4.
"""

import numpy as np
from numpy.typing import NDArray
from scipy import sparse
from scipy.optimize import linprog

from grace_opt.placement import EMPTY


def split_load(
    load_E: NDArray[np.integer], slots_RS: NDArray[np.integer], least_RS: NDArray[np.integer] | None = None
) -> tuple[NDArray[np.float64], float]:
    """[R, S] tokens that each slot serves, 0 where it is empty, and those of the busiest rank.

    Args:
        load_E: tokens that chose each expert.
        slots_RS: the expert in each slot, EMPTY = -1; every expert has one.
        least_RS: tokens that a slot serves in any case; no more for an expert than its load.
    """
    filled = slots_RS != EMPTY
    rank_P, expert_P = np.nonzero(filled)[0], slots_RS[filled]
    num_copies, copies = len(expert_P), np.arange(len(expert_P))
    scale = max(load_E.sum() / len(slots_RS), 1.0)  # the solver's tolerances are absolute
    serves = sparse.csr_array((np.ones(num_copies), (expert_P, copies)), shape=(len(load_E), num_copies + 1))
    carries = sparse.csr_array((np.ones(num_copies), (rank_P, copies)), shape=(len(slots_RS), num_copies + 1))
    above = sparse.csr_array(
        (np.ones(len(slots_RS)), (np.arange(len(slots_RS)), np.full(len(slots_RS), num_copies))), shape=carries.shape
    )
    least_P = np.zeros(num_copies) if least_RS is None else least_RS[filled] / scale
    result = linprog(
        np.append(np.zeros(num_copies), 1.0),
        A_ub=carries - above,
        b_ub=np.zeros(len(slots_RS)),
        A_eq=serves,
        b_eq=load_E / scale,
        bounds=np.stack([np.append(least_P, 0.0), np.full(num_copies + 1, np.inf)], axis=1),
        method="highs",
    )
    assert result.status == 0, result.message
    served_RS = np.zeros(slots_RS.shape)
    served_RS[filled] = np.maximum(result.x[:-1], least_P) * scale
    return served_RS, float(result.x[-1] * scale)


def polling_shares(served_RS: NDArray[np.float64], slots_RS: NDArray[np.integer]) -> NDArray[np.float64]:
    """[R, S] weights for the routing: tokens served, and next to nothing, but not nothing, for a copy that serves none.

    A routing's weights must be positive; a share below 1 / CYCLE is never polled.
    """
    floor = max(served_RS.max(), 1.0) * 1e-6
    return np.where(slots_RS != EMPTY, np.maximum(served_RS, floor), 0.0)

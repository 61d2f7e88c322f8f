"""What a point of a Pareto front is planned for: rows and load weighed against each other, in place of seconds.

    price of a layer = weight * rows / rows of `linear`  +  (1 - weight) * busiest rank's load / mean load

Both terms are near 1 for a plan that does nothing for either, so equal steps of the weight are steps along the front
on any machine; with the machine's own seconds the term of the slower link would drown the other (weighted sums reach
the points of the convex hull of a front only: Ehrgott, Multicriteria Optimization, 2005, section 3.1).
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from grace_opt.cost import CostModel, LayerTime
from grace_opt.planners.linear import Linear
from grace_opt.problem import Problem
from grace_opt.traffic import Traffic, traffic


@dataclass(frozen=True)
class RowsAndLoad:
    """Prices traffic for a planner; what it calls seconds are the shares of the formula above.

    Attributes:
        weight: of rows, from 0 (load alone) to 1 (rows alone).
        linear_rows: dispatched rows of a mean batch under `linear`, of the kind that `rows` counts.
        mean_load: (token, expert) pairs that a rank computes in a mean batch.
        scheme, tokens_per_rank: as of the cost model in whose place it stands.
    """

    weight: float
    linear_rows: float
    mean_load: float
    scheme: str
    tokens_per_rank: int | None

    @classmethod
    def of(cls, problem: Problem, cost: CostModel, weight: float) -> "RowsAndLoad":
        """With the units of a problem's own trace."""
        counts = traffic(problem.trace, Linear()(problem).plan, cost.tokens_per_rank)
        linear_rows = max(float(rows(counts, cost.scheme).mean()), 1.0)
        return cls(weight, linear_rows, float(counts.load.mean()), cost.scheme, cost.tokens_per_rank)

    def price(self, problem: Problem, counts: Traffic) -> LayerTime:
        """The price of traffic that was counted, or made up."""
        rows_L = self.weight / self.linear_rows * rows(counts, self.scheme).mean(axis=1)
        load_L = (1 - self.weight) / self.mean_load * counts.load.max(axis=2).mean(axis=1)
        nothing_L = np.zeros_like(rows_L)
        return LayerTime(rows_L, load_L, nothing_L, nothing_L.copy(), float(counts.tokens_of_rank.mean()))


def rows(counts: Traffic, scheme: str) -> NDArray[np.int64]:
    """[L, B] dispatched rows that leave a node; on one node, where none can, those that leave a rank."""
    return counts.cross_node_rows(scheme) if len(counts.ranks_per_node) > 1 else counts.intra_node_rows(scheme)

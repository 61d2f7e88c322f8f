"""The fewest rows between nodes, exactly, by constraint programming: for small layers.

Data: weighted token sets t with experts A_t and home node h_t; node n holds at most c_n distinct experts.
Decision variables: x_ne, node n holds expert e; v_tn, token t visits node n (not its home); s_tne, it finds e there.
Constraints:
    sum_e x_ne <= c_n                           slots
    sum_n x_ne >= 1                             every expert has a place
    s_tne <= v_tn, s_tne <= x_ne                an expert is found where the token goes and a copy is
    x_he + sum over n of s_tne >= 1             for each e in A_t, h its home
Objective: minimise sum of weight_t v_tn.

Any node sets of these sizes can be dealt onto ranks, so the optimum is that over all plans (routing included).
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from ortools.sat.python import cp_model

from grace_opt.bounds.token_sets import TokenSets


@dataclass(frozen=True, eq=False)
class FewestRows:
    """What the solver found.

    Attributes:
        holds: bool [N, E], node sets of the best placement found.
        rows: its rows between nodes.
        bound: no placement has fewer.
    """

    holds: NDArray[np.bool_]
    rows: int
    bound: int

    @property
    def optimal(self) -> bool:
        return self.rows == self.bound


def fewest_rows(
    tokens: TokenSets, num_experts: int, slots_N: NDArray[np.integer], seconds: float = 60.0, workers: int = 1
) -> FewestRows:
    """Solve one layer, or stop after some seconds with the best placement and bound so far.

    Args:
        tokens: with home nodes.
        slots_N: [N] slots of each node.

    Raises:
        ValueError: nothing was found in that time.
    """
    model = cp_model.CpModel()
    nodes, experts = range(len(slots_N)), range(num_experts)
    holds = [[model.new_bool_var(f"x{n}_{e}") for e in experts] for n in nodes]
    for n in nodes:
        model.add(sum(holds[n]) <= int(slots_N[n]))
    for e in experts:
        model.add_bool_or([holds[n][e] for n in nodes])
    visits: list[cp_model.IntVar] = []
    weights: list[int] = []
    for chosen, home, weight in zip(tokens.experts.tolist(), tokens.home.tolist(), tokens.weight.tolist(), strict=True):
        others = [n for n in nodes if n != home]
        visit = {n: model.new_bool_var("") for n in others}
        for e in chosen:
            found = {n: model.new_bool_var("") for n in others}
            for n in others:
                model.add_implication(found[n], visit[n])
                model.add_implication(found[n], holds[n][e])
            model.add_bool_or([holds[home][e], *found.values()])
        visits += visit.values()
        weights += [weight] * len(others)
    model.minimize(cp_model.LinearExpr.weighted_sum(visits, weights))
    solver = cp_model.CpSolver()
    solver.parameters.max_time_in_seconds = seconds
    solver.parameters.num_workers = workers
    status = solver.solve(model)
    if status not in (cp_model.OPTIMAL, cp_model.FEASIBLE):
        raise ValueError(
            f"no placement of {num_experts} experts was found in {seconds:g} s: "
            f"give more seconds, or more slots than {int(np.sum(slots_N))}"
        )
    found_NE = np.array([[bool(solver.value(x)) for x in row] for row in holds]).reshape(len(slots_N), num_experts)
    rows, bound = round(solver.objective_value), int(np.ceil(solver.best_objective_bound - 1e-6))
    return FewestRows(found_NE, rows, rows if status == cp_model.OPTIMAL else bound)

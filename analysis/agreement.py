"""How well predictions agree with measurements: errors, rank correlation, speedups; over the rows of a validation."""

from collections.abc import Iterable, Sequence
from itertools import combinations, groupby
from typing import Any

import numpy as np
from scipy.stats import kendalltau

from analysis.results import Row

APART = 0.03
"""Repeated measurements of one plan differ by about this part."""
CELL = ("cluster", "workload", "tokens_per_rank_asked")
"""Rows that agree in these are plans for the same work on the same machine, so their order means something."""


def summarize(rows: Iterable[Row]) -> list[Row]:
    """One row a cell: mean and worst absolute error, signed bias, and how well its plans and schemes are ordered.

    Errors are (predicted - measured) / measured of the layer time; in percent.
    """
    done = sorted((row for row in rows if "error" not in row), key=_cell)
    summary = []
    for cell, group in groupby(done, key=_cell):
        plans = list(group)
        errors = np.array([row["predicted_s"] / row["measured_s"] - 1 for row in plans]) * 100
        worst = plans[int(np.argmax(np.abs(errors)))]
        summary.append(
            {
                **dict(zip(CELL, cell, strict=True)),
                "num_plans": len(plans),
                "mean_pct": float(np.abs(errors).mean()),
                "worst_pct": float(np.abs(errors).max()),
                "worst_plan": f"{worst['planner']} + {worst['scheme']}",
                "bias_pct": float(errors.mean()),
                "kendall_tau": tau(plans),
                "ordered_right": ordered_right(plans),
                **speedups(plans),
            }
        )
    return summary


def tau(plans: Sequence[Row]) -> float | None:
    """Kendall's rank correlation of predicted and measured layer times; None if no two differ in either."""
    predicted, measured = ([row[key] for row in plans] for key in ("predicted_s", "measured_s"))
    if len(set(predicted)) < 2 or len(set(measured)) < 2:
        return None
    return float(kendalltau(predicted, measured).statistic)


def ordered_right(plans: Sequence[Row]) -> float | None:
    """Share of pairs of plans, measured more than APART of their time apart, that are predicted in that order.

    None if no two are. Kendall's tau counts pairs that no measurement can tell apart as well.
    """
    right = []
    for one, other in combinations(plans, 2):
        measured, predicted = (one[key] - other[key] for key in ("measured_s", "predicted_s"))
        if abs(measured) > APART * max(one["measured_s"], other["measured_s"]):
            right.append(measured * predicted > 0)
    return float(np.mean(right)) if right else None


def speedups(plans: Sequence[Row]) -> dict[str, Any]:
    """Predicted and measured speedup of grace + hierarchical over linear + pairs, and over occult + hierarchical."""
    time = {(row["planner"], row["scheme"]): (row["predicted_s"], row["measured_s"]) for row in plans}
    found: dict[str, Any] = {}
    best = time.get(("grace", "hierarchical"))
    for name, rival in (("linear_pairs", ("linear", "pairs")), ("occult", ("occult", "hierarchical"))):
        if best is not None and rival in time:
            found[f"speedup_over_{name}_predicted"] = time[rival][0] / best[0]
            found[f"speedup_over_{name}_measured"] = time[rival][1] / best[1]
    return found


def _cell(row: Row) -> tuple[Any, ...]:
    return tuple(row[key] for key in CELL)

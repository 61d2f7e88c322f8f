"""What default, EPLB and advised plan are in the engine's own terms, for each phase, with intervals."""

from typing import Any

from analysis.advice.bootstrap import Resamples
from analysis.advice.candidates import Candidate
from analysis.advice.choice import Choice, Comparison, Gain
from analysis.advice.demand import Phase
from analysis.advice.engine_terms import field_of

TERMS = (
    "layer_time_s", "destination_ranks_per_token", "cross_node_bytes_per_token", "load_max_over_mean",
    "load_mean_over_max", "load_sum_of_means_over_sum_of_maxima", "load_excess_over_mean", "step_s",
)  # fmt: skip


def phase_terms(
    comparison: Comparison, resamples: Resamples, default: Candidate, eplb: Choice | None, choice: Choice, engine: str
) -> dict[str, dict[str, dict[str, Any]]]:  # fmt: skip
    """phase -> default, eplb, advised -> figures; with FIELD_interval, [low, high], where there are resamples.

    `step_gain` of the advised plan is the share of `step_s` that it saves over the default; neither is there if the
    model has no backbone.
    """
    terms: dict[str, dict[str, dict[str, Any]]] = {}
    for phase in comparison.phases:
        advised = choice[phase.name]
        own = None if eplb is None or eplb[phase.name] is advised else eplb[phase.name]
        shown = {"default": default, "eplb": own, "advised": advised}
        terms[phase.name] = {
            name: _figures(comparison, resamples, one, phase, engine) for name, one in shown.items() if one is not None
        }
        if terms[phase.name]["default"]["step_s"] is not None:
            gain = comparison.phase_gain(comparison.shared(default), choice, phase.name, "step_s")
            terms[phase.name]["advised"]["step_gain"] = plain(gain)
    return terms


def plain(gain: Gain) -> dict[str, float | None]:
    """A gain as mean, low and high; these two are None without resamples."""
    sure = gain.sure
    return {"mean": gain.mean, "low": None if sure is None else sure.low, "high": None if sure is None else sure.high}


def _figures(
    comparison: Comparison, resamples: Resamples, candidate: Candidate, phase: Phase, engine: str
) -> dict[str, Any]:
    row = next(row for row in comparison.rows[candidate.name] if row["pass"] == phase.name)
    figures: dict[str, Any] = {field: row[field] for field in TERMS}
    told = ("layer_time_s", "destination_ranks_per_token", "cross_node_bytes_per_token", field_of(engine), "step_s")
    for field in told if resamples.made(candidate) else ():
        if figures[field] is not None:
            sure = resamples.spread(candidate, phase.name, field)
            figures[f"{field}_interval"] = None if sure is None else [sure.low, sure.high]
    return figures

"""The plan that `grace-opt advise` speaks of: which one, and the same counts as the engine's under it.

The rows of an advice are means over orders in which requests arrive, each with the homes it leads to and their mirror.
All of them are counted, and their mean must be that of the row; the first is drawn.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import PurePosixPath

import numpy as np

from analysis.advice.demand import phases_of
from analysis.advice.engine_terms import travel
from analysis.advice.judging import Judge
from analysis.advice.serving import Serving
from analysis.html_report.advice import part
from analysis.html_report.inputs import (
    PARTS,
    Drawn,
    composed,
    described,
    fitted,
    mean_imbalance,
    plan_beside,
    require_row,
)
from analysis.html_report.result_file import Found, Result
from analysis.whole_model import PASSES
from grace_opt.configuration import build
from grace_opt.load_history_file import read_trace_or_loads
from grace_opt.problem import Problem
from grace_opt.traffic import Traffic
from simulator.cluster import SimulatedCluster

DEFAULT = "linear"
"""The planner of the engine's default, which is what an advice compares with and never what it draws."""


def has_advice(result: Result) -> bool:
    """Whether the result is one of `advise` that came to its end."""
    return result.command == "advise" and isinstance(result.content.get("advice"), Mapping)


def advised(result: Result, planner: str | None = None) -> Found:
    """The row of the plan to draw, of the first pass that is planned for.

    Args:
        planner: whose fastest plan is meant; None: the advised one, or, if none is, the best that was tried.

    Raises:
        ValueError: there is no such row.
    """
    priced = [f for f in result.with_number("layer_time_s", "held_out") if f["pass"] in PASSES and f["plan"]]
    of_pass = [[f for f in priced if f["pass"] == name] for name in PASSES]
    rows = sorted(next(filter(None, of_pass), []), key=lambda found: float(found["layer_time_s"]))
    if planner is not None:
        own = [found for found in rows if found["planner"] == planner]
        if not own:
            names = ", ".join(dict.fromkeys(found.text("planner") for found in rows)) or "none"
            raise ValueError(f"planner={planner} has no plan in this advice; those with one: {names:.300}")
        return own[0]
    for name, said in _named(result).items():
        chosen = next((f for f in priced if (f["pass"], PurePosixPath(f.text("plan")).name) == (name, said)), None)
        if chosen is None and _uses(result):
            raise ValueError(f"{result.path}: the plan that is advised for {name}, {said:.100}, has no row")
        if chosen is not None and chosen["planner"] != DEFAULT:
            return chosen
    tried = [found for found in rows if found["planner"] != DEFAULT]
    if not tried:
        raise ValueError(f"{result.path}: no plan but the engine's default was priced")
    return tried[0]


def rebuild_advised(result: Result, found: Found, given: Sequence[str]) -> Drawn:
    """The plan of a row of an advice, on the sequences it was judged on.

    Raises:
        ValueError, OSError: inputs are not there, or are others than those of the result.
    """
    config = composed(result, given)
    name, engine = str(found["pass"]), str(config.engine)
    if name not in PASSES or result.problem.get("engine") != engine:
        told = f"pass {name!r:.40} of engine {result.problem.get('engine')!r:.40}"
        raise ValueError(f"{result.path} is about {told}, the inputs here have {', '.join(PASSES)} of {engine!r}")
    inputs = {field: build(config[field]) for field in (*PARTS, "passes")}
    plan = plan_beside(result, found)
    parts = described(result, plan, inputs)
    if name == "decode" and config.decode_trace is not None:
        parts = fitted(result, plan, {**inputs, "trace": read_trace_or_loads(str(config.decode_trace))})
    serving = Serving.of(engine, bool(config.all_to_all))
    (phase,) = phases_of({name: parts}, inputs["passes"], [name], 1)
    cost: SimulatedCluster = replace(inputs["cost"], tokens_per_rank=phase.tokens_per_rank)
    judge = Judge(inputs["homes"], (phase,), cost, serving, inputs["passes"], int(config.maps), int(config.seed))
    dealt = [problem for (problem,) in judge.problems()]
    counts = [serving.count(problem, plan, phase.tokens_per_rank) for problem in dealt]
    require_row(result, found, _means(counts, cost, dealt[0]))
    model, topology = dealt[0].model, dealt[0].topology
    in_order = serving.default(replace(dealt[0], slots=serving.slots(model, topology, 0)))
    linear = serving.count(dealt[0], in_order, phase.tokens_per_rank)
    about = _about(result, found, serving, phase.tokens_per_rank, len(dealt))
    return Drawn(found.text("planner"), dealt[0], plan, cost, counts[0], in_order, linear, about)


def _means(counts: Sequence[Traffic], cost: SimulatedCluster, problem: Problem) -> dict[str, float]:
    """Of fields of a row that are means over homes."""
    sizes = cost.dispatch_row_bytes(problem.model), cost.combine_row_bytes(problem.model)
    each = [{**travel(one, cost.scheme, *sizes), "load_max_over_mean": mean_imbalance(one)} for one in counts]
    return {field: float(np.mean([figures[field] for figures in each])) for field in each[0]}


def _about(result: Result, found: Found, serving: Serving, tokens_per_rank: int, maps: int) -> str:
    """Which plan this is, and under what it was counted."""
    role = "a plan that was tried"
    if has_advice(result) and found is advised(result):
        role = "the plan that is advised" if _uses(result) else "the best plan that was tried; none is advised"
    copies = f"redundant experts per rank: {found['redundancy']}"
    moved = "" if serving.all_to_all else " Every rank gets all tokens, whatever the plan."
    means = f" Figures of the result are means over {maps} ways in which requests may live on ranks; this is the first."
    return (
        f"This is {role}: {found.text('planner')}, {copies} ({found.text('plan')}). It is drawn for "
        f"{found['pass']}, in batches of at most {tokens_per_rank:,} tokens of a rank, with copies picked as "
        f"{serving.name} picks them.{moved}{means if maps > 1 else ''}"
    )


def _uses(result: Result) -> bool:
    return bool(result.content["advice"].get("verdict") == "use")


def _named(result: Result) -> dict[str, str]:
    """Pass -> file name of its plan in the advice, the first pass first."""
    plans = part(part(result.content, "advice", "").row, "plans", "").row
    of_pass = {name: part(plans, name, "").text("plan") for name in PASSES}
    return {name: PurePosixPath(path).name for name, path in of_pass.items() if path}

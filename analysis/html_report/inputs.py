"""Model, cluster, trace and plan of a result, built again from its command line, and checked against what it says.

A result says which arguments its command was given. Those that choose inputs are composed anew; arguments that a person
gives the report take their place. A result may come from anyone, so of its own arguments none may name a class, refer
to other values or to the environment, or reach for anything but inputs. What is built must then be described as the
result describes it, and the plan must send exactly the rows, and bear the load, that the result says.
"""

import re
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from omegaconf import DictConfig, OmegaConf

from analysis.html_report.result_file import Found, Result
from analysis.html_report.units import is_number
from analysis.parts import at_homes_of, problems_of_plan
from analysis.results import describe
from analysis.whole_model import counted, counter
from grace_opt.configuration import build, check, read_configuration
from grace_opt.load_history import LoadHistory
from grace_opt.plan import Plan
from grace_opt.plan_file import read_plan
from grace_opt.planners.linear import Linear
from grace_opt.problem import Problem
from grace_opt.traffic import Traffic
from simulator.cluster import SimulatedCluster

INPUTS = ("model", "topology", "trace", "split", "homes", "workload", "transport", "cost", "gpu", "scheme", "seed",
          "overlap", "plan", "passes", "context", "engine", "all_to_all", "maps", "decode_trace")  # fmt: skip
"""Arguments of a result that are used: groups, and keys that they refer to."""
UNSAFE = ("_target_", "_partial_", "_args_", "${")
OURS = ("grace_opt.", "simulator.", "analysis.")
PARTS = ("model", "topology", "trace", "split", "homes", "cost")


@dataclass(frozen=True, eq=False)
class Drawn:
    """A plan on the part of the trace that it was not fitted to.

    Attributes:
        name: of its planner.
        counts: its traffic, in the batches of the cost model.
        in_order: experts in index order.
        linear: traffic of those, the same batches.
        about: what a reader must know of plan and batches, in sentences.
    """

    name: str
    problem: Problem
    plan: Plan
    cost: SimulatedCluster
    counts: Traffic
    in_order: Plan
    linear: Traffic
    about: str = ""


def rebuild(result: Result, found: Found, given: Sequence[str]) -> Drawn:
    """The plan of a row, with all that is needed to count and draw it.

    Args:
        given: further arguments of the command, by a person.

    Raises:
        ValueError, OSError: inputs are not there, or are others than those of the result.
    """
    config = composed(result, given)
    inputs = {name: build(config[name]) for name in PARTS}
    plan = read_plan(str(config.plan)) if result.command == "simulate" else plan_beside(result, found)
    parts = described(result, plan, inputs)
    return drawn(result, found, plan, parts, inputs["cost"], str(config.get("overlap", "none")))


def composed(result: Result, given: Sequence[str]) -> DictConfig:
    """The configuration of the command that made the result, as far as it chooses inputs.

    Raises:
        ValueError: it cannot be composed, or does what a result must not do.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the command has said them
            config = read_configuration(result.command, [*_recorded(result, given), *given])
            check(config)
        _require_ours(OmegaConf.to_container(config), given)
    except ValueError as error:
        raise ValueError(f"inputs of {result.path}: {error}") from None
    return config


def _recorded(result: Result, given: Sequence[str]) -> list[str]:
    """The arguments of the result that choose inputs, but those that a person gives."""
    arguments = result.made.get("arguments", [])
    if not isinstance(arguments, list) or not all(isinstance(argument, str) for argument in arguments):
        raise ValueError("made.arguments must be a list of texts")
    theirs = {argument.partition("=")[0] for argument in given}
    chosen = [
        a for a in arguments if re.split(r"[.=@]", a.lstrip("+~"))[0] in INPUTS and a.partition("=")[0] not in theirs
    ]
    if unsafe := [a for a in chosen if any(word in a for word in UNSAFE)]:
        raise ValueError(f"made.arguments holds {unsafe[0]!r:.100}, which a report does not follow; give it yourself")
    return chosen


def _require_ours(config: Any, given: Sequence[str]) -> None:
    """Raise ValueError if a part is of another package, unless a person said so."""
    if isinstance(config, dict):
        target = config.get("_target_")
        if target is not None and not str(target).startswith(OURS) and not any("_target_" in a for a in given):
            raise ValueError(f"{target} is no part of grace-opt; give it yourself")
        for value in config.values():
            _require_ours(value, given)
    elif isinstance(config, list):
        for value in config:
            _require_ours(value, given)


def plan_beside(result: Result, found: Found) -> Plan:
    """The plan that a row names, from the folder of the result."""
    path = (result.folder / (found.text("plan") or "plan.json")).resolve()
    if not path.is_relative_to(result.folder.resolve()):
        raise ValueError(f"{result.path}: plan {found.text('plan')!r:.100} is not in the folder of the result")
    return read_plan(path)


def fitted(result: Result, plan: Plan, inputs: Mapping[str, Any]) -> dict[str, Problem]:
    """Both parts of the trace, with the plan's slots.

    Raises:
        ValueError: there are no tokens or no times of phases, or the plan is for another model or cluster.
    """
    model, topology, trace = (inputs[name] for name in ("model", "topology", "trace"))
    if isinstance(trace, LoadHistory) or not isinstance(inputs["cost"], SimulatedCluster):
        raise ValueError(f"{result.path}: figures of a plan need tokens and the simulated cluster")
    plan.check(model, topology)
    return problems_of_plan(plan, model, topology, trace, inputs["split"], inputs["homes"])


def described(result: Result, plan: Plan, inputs: Mapping[str, Any]) -> dict[str, Problem]:
    """`fitted`, if the result describes the inputs as they are here.

    Raises:
        ValueError: it does not.
    """
    parts = fitted(result, plan, inputs)
    about = describe(parts["fit"], parts, inputs["cost"], inputs["split"], inputs["homes"])
    for key, value in about.items():
        asked = result.problem.get(key, value)
        if key not in ("slots_per_rank", "deal_slots", "assumed") and asked != value:
            raise ValueError(
                f"{result.path} is about {key} {asked!r:.100}, the inputs here have {value!r:.100}: give those of the "
                "result, as given='[\"trace.path=FILE\"]'"
            )
    return parts


def drawn(
    result: Result, found: Found, plan: Plan, parts: dict[str, Problem], cost: SimulatedCluster, overlap: str
) -> Drawn:
    """A plan counted on the held-out part, beside experts in index order.

    Raises:
        ValueError: the counts are not those of the row.
    """
    held_out = at_homes_of(plan, parts)["held_out"]
    counts = counted(held_out, counter(held_out, plan), cost.tokens_per_rank, overlap)
    require_row(result, found, _figures(counts, cost.scheme))
    in_order = Linear()(replace(parts["held_out"], slots=held_out.slots)).plan
    linear = counted(parts["held_out"], counter(parts["held_out"], in_order), cost.tokens_per_rank, overlap)
    return Drawn(found.text("planner"), held_out, plan, cost, counts, in_order, linear)


def require_row(result: Result, found: Found, here: Mapping[str, float]) -> None:
    """Raise ValueError unless these figures of the plan on this trace are those of the row, as far as it has them."""
    if all(found[field] is None for field in here):
        raise ValueError(f"{result.path}: {found.at} has none of {', '.join(here)}, by which its plan is known")
    for field, value in here.items():
        said = found[field]
        if said is not None and not (is_number(said) and np.isclose(said, value, rtol=1e-9)):
            raise ValueError(
                f"{result.path}: {found.text('planner')} has {field} {said!s:.40}, its plan on this trace "
                f"{value:.12g}: trace, homes or plan are not those of the result"
            )


def mean_imbalance(counts: Traffic) -> float:
    """`load_max_over_mean` of a row."""
    return float((counts.load.max(axis=2) / counts.load.mean(axis=2)).mean())


def _figures(counts: Traffic, scheme: str) -> dict[str, float]:
    """What a row says of traffic and load."""
    per_token = counts.num_tokens * len(counts.tokens)
    return {
        "cross_node_rows_per_token": counts.cross_node_rows(scheme).sum() / per_token,
        "intra_node_rows_per_token": counts.intra_node_rows(scheme).sum() / per_token,
        "load_max_over_mean": mean_imbalance(counts),
    }

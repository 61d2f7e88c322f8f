"""Model, cluster, trace and plan of a result, built again from its command line, and checked against what it says.

A result says which arguments its command was given. Those that choose inputs are composed anew; arguments that a person
gives the report come after them. A result may come from anyone, so of its own arguments none may name a class, refer to
other values or to the environment, or reach for anything but inputs. What is built must then be described as the result
describes it, and the plan must send exactly the rows, and bear the load, that the result says.
"""

import re
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from omegaconf import OmegaConf

from analysis.html_report.result_file import Found, Result
from analysis.parts import at_homes_of, problems
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

REBUILT = ("plan", "compare", "simulate", "front")
"""Commands whose rows belong to plans that are kept beside the result."""
INPUTS = ("model", "topology", "trace", "split", "homes", "workload", "transport", "cost", "gpu", "scheme", "seed",
          "overlap", "plan")  # fmt: skip
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
        linear: traffic of experts in index order, the same batches.
    """

    name: str
    problem: Problem
    plan: Plan
    cost: SimulatedCluster
    counts: Traffic
    linear: Traffic


def rebuild(result: Result, found: Found, given: Sequence[str]) -> Drawn:
    """The plan of a row, with all that is needed to count and draw it.

    Args:
        given: further arguments of the command, by a person.

    Raises:
        ValueError, OSError: inputs are not there, or are others than those of the result.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the command has said them
            config = read_configuration(result.command, [*_recorded(result), *given])
            check(config)
        _require_ours(OmegaConf.to_container(config), given)
    except ValueError as error:
        raise ValueError(f"inputs of {result.path}: {error}") from None
    parts = {name: build(config[name]) for name in PARTS}
    plan = _read_plan(result, found, config.get("plan"))
    return _checked(result, found, plan, parts, str(config.get("overlap", "none")))


def _recorded(result: Result) -> list[str]:
    """The arguments of the result that choose inputs."""
    arguments = result.made.get("arguments", [])
    if not isinstance(arguments, list) or not all(isinstance(argument, str) for argument in arguments):
        raise ValueError("made.arguments must be a list of texts")
    chosen = [a for a in arguments if re.split(r"[.=@]", a.lstrip("+~"))[0] in INPUTS]
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


def _read_plan(result: Result, found: Found, named: Any) -> Plan:
    """The plan of a row: beside the result, or, for `simulate`, where its command line says."""
    if result.command == "simulate":
        return read_plan(str(named))
    path = (result.folder / (found.text("plan") or "plan.json")).resolve()
    if not path.is_relative_to(result.folder.resolve()):
        raise ValueError(f"{result.path}: plan {found.text('plan')!r:.100} is not in the folder of the result")
    return read_plan(path)


def _checked(result: Result, found: Found, plan: Plan, parts: dict[str, Any], overlap: str) -> Drawn:
    model, topology, trace, cost = (parts[name] for name in ("model", "topology", "trace", "cost"))
    if isinstance(trace, LoadHistory) or not isinstance(cost, SimulatedCluster):
        raise ValueError(f"{result.path}: figures of a plan need tokens and the simulated cluster")
    plan.check(model, topology)
    slots = plan.placement.slots_used.max(axis=0).tolist()
    both = problems(model, topology, trace, parts["split"], parts["homes"], slots)
    about = describe(both["fit"], both, cost, parts["split"], parts["homes"])
    for key, value in about.items():
        asked = result.problem.get(key, value)
        if key not in ("slots_per_rank", "assumed") and asked != value:
            raise ValueError(
                f"{result.path} is about {key} {asked!r:.100}, the inputs here have {value!r:.100}: give those of the "
                "result, as given='[\"trace.path=FILE\"]'"
            )
    held_out = at_homes_of(plan, both)["held_out"]
    counts = counted(held_out, counter(held_out, plan), cost.tokens_per_rank, overlap)
    _require_row(result, found, counts, cost.scheme)
    in_order = Linear()(replace(both["held_out"], slots=held_out.slots)).plan
    linear = counted(both["held_out"], counter(both["held_out"], in_order), cost.tokens_per_rank, overlap)
    return Drawn(found.text("planner"), held_out, plan, cost, counts, linear)


def _require_row(result: Result, found: Found, counts: Traffic, scheme: str) -> None:
    """Raise ValueError unless the plan sends and computes on this trace what the result says."""
    per_token = counts.num_tokens * len(counts.tokens)
    here = {
        "cross_node_rows_per_token": counts.cross_node_rows(scheme).sum() / per_token,
        "intra_node_rows_per_token": counts.intra_node_rows(scheme).sum() / per_token,
        "load_max_over_mean": float((counts.load.max(axis=2) / counts.load.mean(axis=2)).mean()),
    }
    for field, value in here.items():
        said = found[field]
        if said is not None and not np.isclose(float(said), value, rtol=1e-9):
            raise ValueError(
                f"{result.path}: {found.text('planner')} has {field} {said}, its plan on this trace {value:.12g}: "
                "trace, homes or plan are not those of the result"
            )

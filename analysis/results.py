"""What a command finds out: one flat row per planner and split, and the `result.json` that keeps them."""

import json
import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from grace_opt import __version__
from grace_opt.atomic import write_text_atomically
from grace_opt.cost import CostModel
from grace_opt.homes import Homes
from grace_opt.problem import Problem
from grace_opt.provenance import origin
from grace_opt.solution import Solution
from grace_opt.split import Split
from grace_opt.traffic import Traffic, traffic

Row = dict[str, Any]


def price(
    planner: str,
    method: str,
    split: str,
    problem: Problem,
    solution: Solution,
    cost: CostModel,
    counts: Traffic | None = None,
) -> Row:
    """The row of one plan on one part of a trace.

    Args:
        planner, method: name of the configured planner, and of its class; variants of one method share the class.
        split: name of the part, `fit` or `held_out`.
        counts: the plan's traffic on this part in the cost's batches, if it was counted before.

    Rows per token are those of dispatch under the cost's scheme, mean over layers; times and loads are means over
    layers and batches, those named `worst` the worst layer's.
    """
    plan, scheme = solution.plan, cost.scheme
    counted = counts is not None and hasattr(cost, "price")
    counts = traffic(problem.trace, plan, cost.tokens_per_rank) if counts is None else counts
    time = cost.price(problem, counts) if counted else cost(problem, plan)  # type: ignore[attr-defined]
    per_token = counts.num_tokens * problem.model.num_layers
    imbalance_LB = counts.load.max(axis=2) / counts.load.mean(axis=2)
    return {
        "planner": planner,
        "method": method,
        "split": split,
        "scheme": scheme,
        "slots": problem.num_slots,
        "slots_used": float(plan.placement.slots_used.sum(axis=1).mean()),
        "slots_per_rank_used": int(plan.placement.slots_used.max()),
        "cross_node_rows_per_token": counts.cross_node_rows(scheme).sum() / per_token,
        "intra_node_rows_per_token": counts.intra_node_rows(scheme).sum() / per_token,
        "load_max_over_mean": float(imbalance_LB.mean()),
        "load_max_over_mean_worst_layer": float(imbalance_LB.mean(axis=1).max()),
        "load_std_over_mean": float((counts.load.std(axis=2) / counts.load.mean(axis=2)).mean()),
        "active_experts_per_rank": float(counts.active_experts.mean()),
        "layer_time_s": time.mean_s,
        "layer_time_worst_layer_s": float(time.layer_s.max()),
        "dispatch_s": float(time.dispatch_s.mean()),
        "experts_s": float(time.experts_s.mean()),
        "combine_s": float(time.combine_s.mean()),
        "idle_s": float(time.idle_s.mean()),
        "tokens_per_rank": time.tokens_per_rank,
        "objective": solution.objective,
        "bound": solution.bound,
        "gap": solution.gap,
        "plan_s": solution.seconds,
    }


def add_speedups(rows: Sequence[Row]) -> list[Row]:
    """The rows with `speedup_over_linear` and `speedup_over_best_rival` of the same split, scheme and homes.

    A rival is a plan of another method: `eplb` and `eplb_hierarchical`, or `grace` and `grace_trimmed`, are no rivals.
    """
    result = []
    for row in rows:
        if "error" in row:
            result.append(row)
            continue
        same = ("split", "scheme", "homes")
        alike = [r for r in rows if "error" not in r and all(r.get(key) == row.get(key) for key in same)]
        linear = [r["layer_time_s"] for r in alike if r["method"] == "Linear"]
        rivals = [r["layer_time_s"] for r in alike if r["method"] != row["method"]]
        speedups = {
            "speedup_over_linear": linear[0] / row["layer_time_s"] if linear else None,
            "speedup_over_best_rival": min(rivals) / row["layer_time_s"] if rivals else None,
        }
        result.append({**row, **speedups})
    return result


def describe(
    problem: Problem, parts: Mapping[str, Problem], cost: CostModel, split: Split, homes: Homes
) -> dict[str, Any]:
    """What was asked: the `problem` entry of result.json."""
    trace = problem.trace
    slots = problem.slots_per_rank
    return {
        "model": problem.model.name,
        "topology": problem.topology.name,
        "num_nodes": problem.topology.num_nodes,
        "num_ranks": problem.topology.num_ranks,
        "slots_per_rank": int(slots[0]) if (slots == slots[0]).all() else slots.tolist(),
        "deal_slots": problem.dealt,
        "trace": trace.source,
        "trace_names_model": bool(trace.model),
        "synthetic": trace.synthetic,
        "phase": trace.phase,
        "scheme": cost.scheme,
        "assumed": assumed_constants(problem, cost),
        "tokens_per_rank": cost.tokens_per_rank,
        "split": repr(split),
        "homes": repr(homes),
        "tokens": {name: part.trace.num_tokens for name, part in parts.items()},
        "sequences": {name: part.trace.num_sequences for name, part in parts.items()},
    }


def assumed_constants(problem: Problem, cost: CostModel) -> str:
    """Which constants behind a price no measurement supports, of the machine or of the transport; "" if none."""
    transport = getattr(cost, "transport", None)
    return "; ".join(filter(None, [problem.topology.assumed, getattr(transport, "assumed", "")]))


def write_result(
    output: Path,
    command: str,
    problem: Mapping[str, Any],
    rows: Sequence[Row],
    complete: bool = True,
    extra: Mapping[str, Any] | None = None,
) -> None:
    """Write `result.json`, whole or not at all; `complete` is False while rows are still to come.

    Args:
        extra: further entries, of plain values.
    """
    content = {
        "command": command,
        "version": __version__,
        "status": "complete" if complete else "partial",
        "made": origin(),
        "problem": dict(problem),
        "rows": [{key: _plain(value) for key, value in row.items()} for row in rows],
        **(extra or {}),
    }
    write_text_atomically(output / "result.json", json.dumps(content, indent=1, allow_nan=False) + "\n")


def require_writable(output: str) -> Path:
    """The output folder; it is made when something is written, so that a run that fails leaves nothing.

    Raises:
        ValueError: it cannot be made or written to.
    """
    if not output:
        raise ValueError("output must name a folder, got an empty name")
    path = Path(output)
    existing = next(place for place in (path, *path.absolute().parents) if place.exists())
    if not existing.is_dir() or not os.access(existing, os.W_OK | os.X_OK):
        raise ValueError(f"output={output} is no folder that can be written to: {existing} is in the way")
    return path


def _plain(value: Any) -> Any:
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, float) and not math.isfinite(value):
        raise ValueError(f"a result is {value}; this is a defect, please report it")
    return value

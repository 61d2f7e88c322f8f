"""`torchrun ... -m runtime validate`: predicted against measured layer times of many plans on the ranks it runs on."""

import dataclasses
import warnings
from collections.abc import Sequence
from itertools import product
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from rich.console import Console
from rich.progress import track

from analysis import plots
from analysis.agreement import summarize
from analysis.parts import problems, solve, with_wanted_slots
from analysis.report import print_validation
from analysis.results import Row, describe, require_writable, write_result
from analysis.timeline_files import draw_timelines, write_chrome_trace
from grace_opt.cost import CostModel, LayerTime
from grace_opt.homes import Homes
from grace_opt.model import MoEModel
from grace_opt.plan import Plan
from grace_opt.plan_file import read_plan, write_plan
from grace_opt.planners.home_choice import dealt
from grace_opt.problem import Problem
from grace_opt.solution import Planner
from grace_opt.split import Split
from grace_opt.timeline import Timeline
from grace_opt.topology import Topology
from grace_opt.trace import Trace
from grace_opt.traffic import traffic
from simulator.cluster import SimulatedCluster
from simulator.timeline import timeline

PHASES = ("dispatch", "experts", "combine")
PICTURES = 4  # of timelines; all are written, few are drawn


class Measured(Protocol):
    """A cost model that runs the plan, and tells which tokens it ran."""

    @property
    def repetitions(self) -> int: ...

    def measure(self, problem: Problem, plan: Plan) -> "Measurement": ...


class Measurement(Protocol):
    """Measured times, the problem with the trace that was run, who was busy when, and further seconds by name."""

    time: LayerTime
    problem: Problem
    timeline: Timeline
    also_s: dict[str, float]


def validate(
    model: MoEModel,
    topology: Topology,
    trace: Trace,
    split: Split,
    homes: Homes,
    cost: CostModel,
    measured: Measured,
    planners: dict[str, Planner],
    output: str,
    schemes: Sequence[str],
    tokens_per_rank: Sequence[int],
    batches: int,
    layers: int | None,
    only: Sequence[str] | None = None,
    plans: Sequence[str] = (),
    slots_per_rank: int | Sequence[int] | None = None,
    figures: bool = True,
    timeline_batches: int = 2,
    timeout_s: float = 60,
) -> list[Row]:
    """Plan on the fit part, predict and run the held-out part, print both.

    Writes result.json, plans, a figure, and the timelines of every run, predicted and measured beside each other. Rows
    are written as they come, so an interrupted run leaves those that were finished.

    Args:
        cost, measured: predict and measure; scheme and batch size are set here.
        schemes, tokens_per_rank: every plan is run under each scheme at each batch size.
        batches: of each size that are run.
        layers: consecutive MoE layers, from the middle of the model, that are planned and run; None is all.
        only: names of planners; null is all.
        plans: plan files to run in place of the planners, with as many slots as they fill; they must hold all layers
            of the model.
        figures: draw a figure, and the timelines of the first runs.
        timeline_batches: of each timeline that are written.
        timeout_s: silence of a rank after which the others end; read before the ranks join.

    Raises:
        ValueError: bad input.
    """
    folder = require_writable(output)
    excerpt, shown = excerpt_of(model, trace, layers)
    given = _plans_from(plans, model, topology)
    if given:
        slots_per_rank = np.max([plan.placement.slots_used.max(axis=0) for plan in given.values()], axis=0).tolist()
    parts = problems(excerpt, topology, shown, split, homes, slots_per_rank)
    chosen = {name: planner for name, planner in planners.items() if only is None or name in only}
    if only is not None and set(only) - set(chosen):
        raise ValueError(f"only={list(only)} must name planners of this command: {', '.join(planners)}")
    if slots_per_rank is None:
        parts = with_wanted_slots(parts, chosen.values())
    ranks, held_out = topology.num_ranks, parts["held_out"]
    work = {size: first_sequences(held_out.trace, ranks, size, batches) for size in tokens_per_rank}
    models = {cell: (_set(cost, *cell), _set(measured, *cell)) for cell in product(schemes, tokens_per_rank)}
    first = excerpt.first_moe_layer - model.first_moe_layer
    todo = {name: plan.of_layers(range(first, first + excerpt.num_layers)) for name, plan in given.items()}
    todo = todo or {name: solve(planner, parts["fit"]).plan for name, planner in chosen.items()}
    living = {name: _homes_of(given.get(name, plan), trace if given else shown, homes) for name, plan in todo.items()}
    for name, plan in todo.items():
        write_plan(folder / "plans" / f"{name}.json", plan)
    about = {
        **describe(parts["fit"], parts, cost, split, homes),
        "layers": list(excerpt.layer_ids),
        "batches": batches,
        "plans": dict(zip(given, plans, strict=True)),
    }
    rows: list[Row] = []
    console = Console(stderr=True)
    cells = list(product(tokens_per_rank, todo.items(), schemes))
    for size, (name, plan), scheme in track(cells, "running", console=console, disable=not console.is_terminal):
        predicting, measuring = models[scheme, size]
        problem = dataclasses.replace(held_out, trace=living[name](work[size], ranks))
        ran = measuring.measure(problem, plan)
        if plan.homes is not None and ran.problem is not problem:
            warnings.warn(f"plan {name} has a rule for homes; its requests live elsewhere here", stacklevel=2)
        cell = {"planner": name, "scheme": scheme, "cluster": topology.name, "tokens_per_rank_asked": size}
        both = {**_predicted_timeline(predicting, ran.problem, plan), "measured": ran.timeline}
        drawn = figures and len(rows) < PICTURES
        named = {**cell, "assumed": about["assumed"]}
        _write_timelines(folder / "timelines", both, named, plan.node_of_rank.tolist(), drawn, timeline_batches)
        rows.append({**cell, **_row(predicting(ran.problem, plan), ran, plan), "repetitions": measured.repetitions})
        write_result(folder, "validate", about, rows, complete=False)
    write_result(folder, "validate", {**about, "summary": summarize(rows)}, rows)
    print_validation(about, rows)
    if figures:
        plots.draw_validation(folder / "figures", rows, excerpt.name + plots.caveat(about["assumed"]))
    print(
        f"\nwrote {folder}/result.json, {len(todo)} plans in plans/, {len(rows)} timelines in timelines/"
        + (", a figure in figures/" if figures else "")
    )
    return rows


def excerpt_of(model: MoEModel, trace: Trace, layers: int | None) -> tuple[MoEModel, Trace]:
    """Some consecutive layers from the middle of a model, and of its trace."""
    layers = model.num_layers if layers is None else layers
    if not 1 <= layers <= model.num_layers:
        raise ValueError(f"layers must be from 1 to the {model.num_layers} of model {model.name}, got {layers}")
    if trace.num_layers != model.num_layers:
        raise ValueError(f"trace has {trace.num_layers} MoE layers, but model {model.name} has {model.num_layers}")
    first = (model.num_layers - layers) // 2
    part = dataclasses.replace(model, num_layers=layers, first_moe_layer=model.first_moe_layer + first)
    return part, dataclasses.replace(trace, expert_ids=trace.expert_ids[first : first + layers])


def first_sequences(trace: Trace, ranks: int, tokens_per_rank: int, batches: int) -> Trace:
    """As few of the first sequences as fill so many batches of every rank, the last one cut; homes are yet to be
    dealt."""
    wanted = tokens_per_rank * batches * ranks
    if trace.num_tokens < wanted:
        raise ValueError(
            f"{batches} batches of {tokens_per_rank} tokens on {ranks} ranks need {wanted} "
            f"held-out tokens, the trace has {trace.num_tokens}: give smaller tokens_per_rank or batches"
        )
    enough = int(np.searchsorted(np.cumsum(trace.lengths), wanted)) + 1
    part = trace.select(np.arange(enough))
    excess = part.num_tokens - wanted
    return dataclasses.replace(part, stops=np.append(part.stops[:-1], part.stops[-1] - excess))


def _plans_from(paths: Sequence[str], model: MoEModel, topology: Topology) -> dict[str, Plan]:
    """Plans from files, of all layers of the model, by planner: joint, joint_2, ... in the order of the files."""
    found: dict[str, Plan] = {}
    for path in paths:
        plan = read_plan(path)
        plan.check(model, topology)
        name = str(plan.provenance.get("planner", Path(path).stem))
        taken = sum(other == name or other.startswith(f"{name}_") for other in found)
        found[f"{name}_{taken + 1}" if taken else name] = plan
    return found


def _homes_of(plan: Plan, all_layers: Trace, homes: Homes) -> Homes:
    """Those that the plan's own rule deals, by all layers it has; the given ones if it has no rule.

    Args:
        all_layers: trace with the choices of all layers of the plan.
    """
    if plan.homes is None:
        return homes

    def by_rule(trace: Trace, num_ranks: int) -> Trace:
        whole = dataclasses.replace(trace, expert_ids=all_layers.expert_ids)
        return dataclasses.replace(trace, homes=dealt(whole, plan).homes)

    return by_rule


def _set(model: Any, scheme: str, tokens_per_rank: int) -> Any:
    """The same cost model under another scheme and batch size."""
    return dataclasses.replace(model, scheme=scheme, tokens_per_rank=tokens_per_rank)


def _predicted_timeline(cost: CostModel, problem: Problem, plan: Plan) -> dict[str, Timeline]:
    """By the name it is shown with; none if the cost model knows none."""
    if not isinstance(cost, SimulatedCluster):
        return {}
    return {"predicted": timeline(cost, problem, traffic(problem.trace, plan, cost.tokens_per_rank))}


def _write_timelines(
    folder: Path, timelines: dict[str, Timeline], cell: Row, nodes: list[int], drawn: bool, batches: int
) -> None:
    """The Chrome trace of one run, and perhaps its picture."""
    name = f"{cell['planner'].replace('/', '_')}_{cell['scheme']}_{cell['tokens_per_rank_asked']}"
    write_chrome_trace(folder / f"{name}.json", timelines, nodes, cell, batches)
    if drawn:
        title = f"{cell['planner']}, {cell['scheme']}, {cell['tokens_per_rank_asked']} tokens per rank on "
        title += cell["cluster"] + plots.caveat(cell["assumed"])
        draw_timelines(folder / f"{name}.png", timelines, nodes, title)


def _row(predicted: LayerTime, ran: Measurement, plan: Plan) -> Row:
    row: Row = {
        "workload": ran.problem.trace.source if ran.also_s else f"{ran.problem.model.name} replayed",
        "split": "new_text" if ran.also_s else "held_out",
        "tokens_per_rank": predicted.tokens_per_rank,
        "homes": "given" if plan.homes is None else "chosen",
        "slots": ran.problem.num_slots,
        "slots_used": float(plan.placement.slots_used.sum(axis=1).mean()),
    }
    for name, time in (("predicted", predicted), ("measured", ran.time)):
        row |= {f"{name}_s": time.mean_s, f"{name}_idle_s": float(time.idle_s.mean())}
        row |= {f"{name}_{phase}_s": float(getattr(time, f"{phase}_s").mean()) for phase in PHASES}
        row[f"{name}_layers_s"] = time.layer_s.tolist()
    return row | ran.also_s

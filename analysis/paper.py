"""`grace-opt compare experiment=paper`: the evaluation of GRACE-MoE (arXiv 2509.25041), side by side with its tables.

Three models, two clusters, two workloads, all schemes and ablation steps, end to end. Plans are fitted to one half of
the sequences and timed on the other; every step has the same slots. Where a trace has fewer tokens than a batch, its
held-out sequences are read again.
"""

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from analysis.ablation import QUANTITIES, STEPS
from analysis.parts import problems, solve, with_wanted_slots
from analysis.report import console
from analysis.results import Row, require_writable, write_result
from grace_opt.configuration import build, read_configuration
from grace_opt.problem import Problem
from grace_opt.solution import Planner
from grace_opt.traffic import Traffic, traffic
from simulator.cluster import SimulatedCluster
from simulator.whole_model import EndToEnd, Workload, end_to_end

CLUSTERS = ("a100_25gbe_2x2", "a100_25gbe_2x4")
WORKLOADS = {"256 x 128 + 16": Workload(256, 128, 16), "512 x 64 + 32": Workload(512, 64, 32)}
FIRST = ("a100_25gbe_2x2", "256 x 128 + 16")
"""Cluster and workload of the paper's ablation and of its comparison with Occult."""
GRACE = "+ DR + TAR"
FIELDS = dict(
    zip(
        (*QUANTITIES, "end to end"),
        ("all_to_all_s", "cross_node_rows_per_token", "intra_node_rows_per_token", "idle_s", "load_std_over_mean",
         "total_s"),
        strict=True,
    )
)  # fmt: skip
"""Fields of a row by the quantity they hold."""
Step = tuple[str, str, str]
RUNS: tuple[Step, ...] = (
    ("index order, pairs", "linear", "pairs"),
    ("index order, flat", "linear", "flat"),
    ("index order + HSC", "linear", "hierarchical"),
    *((step.strip(), planner, scheme) for step, planner, scheme, _ in STEPS),
    ("fully non-uniform + HSC", "non_uniform", "hierarchical"),
    ("GRACE, padded HSC", "hg_dr_tar", "hierarchical_padded"),
)
OVER_SLOWEST = {"olmoe_1b_7b": 4.66, "deepseek_v2_lite": 3.73, "qwen3_30b_a3b": 4.47}
OVER_OCCULT = {"olmoe_1b_7b": 1.45, "deepseek_v2_lite": 1.31, "qwen3_30b_a3b": 1.31}
GROUPING = {
    "Occult + HSC": (3494, 502, 6328),
    "HG + HSC": (2846, 507, 5698),
    "fully non-uniform + HSC": (2826, 617, 5748),
}
"""OLMoE with uniform, controlled and free sizes of groups, in ms: all-to-all, idle, end to end."""
EFFECTS: tuple[tuple[str, str, str, dict[str, tuple[float, float]]], ...] = (
    ("HG", "HG + HSC", "Occult + HSC", {
        "olmoe_1b_7b": (-18.6, -19.2), "deepseek_v2_lite": (-18.0, -16.7), "qwen3_30b_a3b": (-24.7, -34.8)}),
    ("TAR", "+ DR + TAR", "+ DR + WRR", {
        "olmoe_1b_7b": (-9.5, -12.1), "deepseek_v2_lite": (-8.1, -12.4), "qwen3_30b_a3b": (-13.7, -29.4)}),
)  # fmt: skip
"""Step, with, without, and by model the change of all-to-all time and of cross-node traffic in percent."""
Reasons = Mapping[str, str]
"""Why a quantity differs, with the figures that show it; "open" where none does."""


def paper(models: dict[str, list[str]], steps: dict[str, Planner], output: str, tables: bool = False) -> list[Row]:
    """Time every step of every model, cluster and workload; print ours beside the paper's; write result.json.

    Args:
        models: for each choice of conf/model the overrides that say which trace it is timed on.
        steps: planners by the names that RUNS uses.
        tables: attention from measured tables where the optional package has them.

    Raises:
        ValueError: bad input.
    """
    folder = require_writable(output)
    progress = Console(stderr=True)
    rows: list[Row] = []
    skipped: list[str] = []
    about: dict[str, Any] = {"models": list(models), "clusters": list(CLUSTERS), "workloads": list(WORKLOADS)}
    with progress.status("starting") as status:
        for model, overrides in models.items():
            for cluster in CLUSTERS:
                status.update(f"{model} on {cluster}")
                try:
                    rows += time_steps(model, cluster, overrides, steps, tables)
                except FileNotFoundError as error:
                    skipped.append(f"{model}: {error}")
                    break
                write_result(folder, "paper", about, rows, complete=False)
    if not rows:
        raise ValueError(f"nothing could be timed: {'; '.join(skipped)}")
    compared = list(compare(rows))
    write_result(folder, "paper", {**about, "skipped": skipped, "compared": compared}, rows)
    _print(rows, compared, skipped)
    print(f"\nwrote {folder}/result.json")
    return rows


def time_steps(
    model: str, cluster: str, overrides: Sequence[str], steps: dict[str, Planner], tables: bool
) -> Iterator[Row]:
    """Rows of one model on one cluster; plans are made once, and counted once for each workload."""
    config = read_configuration("compare", [f"model={model}", f"topology={cluster}", *overrides])
    built = {key: build(config[key]) for key in ("model", "topology", "trace", "split", "homes", "cost")}
    cost = built.pop("cost")
    parts = with_wanted_slots(problems(**built, slots_per_rank=None), steps.values())
    plans = {name: solve(planner, parts["fit"]).plan for name, planner in steps.items()}
    for workload, work in WORKLOADS.items():
        ranks = parts["fit"].topology.num_ranks
        prompt, token = work.prefill(ranks), work.decode(ranks)
        held_out = _filled(parts["held_out"], built["homes"], int(prompt.num_tokens) * ranks)
        counts_of = {
            name: [traffic(held_out.trace, plan, int(part.num_tokens)) for part in (prompt, token)]
            for name, plan in plans.items()
        }
        for name, planner, scheme in RUNS:
            counts, priced = counts_of[planner], dataclasses.replace(cost, scheme=scheme)
            layers = [priced.price(held_out, count) for count in counts]
            time = end_to_end(held_out.model, held_out.topology, work, layers[0], layers[1], tables=tables)
            waiting = [waiting_s(priced, held_out, count) for count in counts]
            about = {"model": model, "synthetic": held_out.trace.synthetic, "cluster": cluster, "workload": workload}
            yield {
                **about, "step": name, "planner": planner, "scheme": scheme,
                "backbone": "measured" if tables else "roofline",
                **_row(time, counts, scheme, held_out), "waiting_s": waiting[0] + time.passes * waiting[1],
            }  # fmt: skip


def waiting_s(cost: SimulatedCluster, problem: Problem, counts: Traffic) -> float:
    """Seconds of a pass that a rank, in the mean, is done with its own rows before the last rank is done with its."""
    stages = (stage for phase in cost.stage_details(problem, counts) for stage in phase)
    idle = sum(((stage.seconds - stage.copy_s)[:, None] - stage.rank_s).mean() for stage in stages)
    return float(problem.model.num_layers * idle)


def compare(rows: Sequence[Row]) -> Iterator[Row]:
    """Our figures beside the paper's, as speedups, as changes in percent, or in ms."""
    firsts = {
        model: [r for r in rows if r["model"] == model and (r["cluster"], r["workload"]) == FIRST]
        for model in dict.fromkeys(row["model"] for row in rows)
    }
    for model, first in firsts.items():
        own, why = [row for row in rows if row["model"] == model], reasons(first, firsts)
        cells = {(row["cluster"], row["workload"]) for row in own}
        best = max(max(r["total_s"] for r in cell) / _of(cell, GRACE)["total_s"] for cell in _cells(own, cells))
        yield _beside(f"{model}: end to end over the slowest", best, OVER_SLOWEST.get(model), "x", why["over slowest"])
        occult = _of(first, "Occult")["total_s"] / _of(first, GRACE)["total_s"]
        yield _beside(f"{model}: end to end over Occult", occult, OVER_OCCULT.get(model), "x", why["end to end"])
        for effect, new, old, figures in EFFECTS:
            for quantity, figure in zip(QUANTITIES[:2], figures.get(model, (None, None)), strict=True):
                ours = _change(first, FIELDS[quantity], new, old)
                yield _beside(f"{model}: {effect}, {quantity}", ours, figure, "%", why[quantity])
    yield from _grouping(firsts)
    yield from _ablation(firsts)


def _grouping(firsts: Mapping[str, Sequence[Row]]) -> Iterator[Row]:
    first = firsts.get("olmoe_1b_7b")
    if not first:
        return
    why, quantities = reasons(first, firsts), ("all-to-all time", "GPU idle time", "end to end")
    for step, figures in GROUPING.items():
        for quantity, figure in zip(quantities, figures, strict=True):
            ours = 1e3 * _of(first, step)[FIELDS[quantity]]
            yield _beside(f"olmoe_1b_7b: {step}, {quantity}", ours, figure, "ms", why["ms"])
    for step, figures in list(GROUPING.items())[1:]:
        for quantity, figure, uniform in zip(quantities, figures, GROUPING["Occult + HSC"], strict=True):
            ours = _change(first, FIELDS[quantity], step, "Occult + HSC")
            what = f"olmoe_1b_7b: {step} over uniform, {quantity}"
            yield _beside(what, ours, 100 * (figure / uniform - 1), "%", why[quantity])


def _ablation(firsts: Mapping[str, Sequence[Row]]) -> Iterator[Row]:
    """Change against Occult, mean over the models there are."""
    for step, _, _, figures in STEPS[1:]:
        for index, quantity in enumerate(QUANTITIES):
            ours = [_change(first, FIELDS[quantity], step.strip(), "Occult") for first in firsts.values()]
            recorded = [x for x, first in zip(ours, firsts.values(), strict=True) if not first[0]["synthetic"]]
            paper_figure = figures[index] if figures else None
            why = "only synthetic traces"
            if recorded and paper_figure is not None:
                apart = abs(np.mean(recorded) - paper_figure)
                why = (
                    "open: recorded traces alone differ too" if apart > 10 else "synthetic traces; recorded ones agree"
                )
            if quantity == "GPU idle time":
                why = reasons(next(iter(firsts.values())), firsts)[quantity]
            what = f"ablation: {step.strip()}, {quantity}"
            yield _beside(what, float(np.mean(ours)), paper_figure, "%", why)


def reasons(first: Sequence[Row], firsts: Mapping[str, Sequence[Row]]) -> Reasons:
    """What our own figures say of differences from the paper, for the rows of one model in the cell FIRST.

    Args:
        firsts: those rows of every model.
    """
    occult, grouped, uniform = (_of(first, step) for step in ("Occult", "HG + HSC", "Occult + HSC"))
    share = 100 * uniform["all_to_all_s"] / uniform["total_s"]
    paper_share = 100 * GROUPING["Occult + HSC"][0] / GROUPING["Occult + HSC"][2]
    busiest = _change(first, "busiest_node_rows_per_token", "HG + HSC", "Occult + HSC")
    in_prefill = _change(first, "prefill_idle_s", "HG + HSC", "Occult + HSC")
    traffic_why = "open"
    if first[0]["synthetic"]:
        real = [f for f in firsts.values() if not f[0]["synthetic"]]
        fell = [f"{_change(f, 'cross_node_rows_per_token', 'HG + HSC', 'Occult + HSC'):+.1f} %" for f in real]
        traffic_why = "synthetic trace: what a model's own experts are chosen with is not in it" + "".join(
            f"; on a recorded trace HG changes cross-node rows by {f}" for f in fell
        )
    return {
        "over slowest": "open: the paper's slowest is another engine, ours is index order with every pair sent",
        "end to end": f"all-to-all is {share:.0f} % of the time with Occult + HSC, {paper_share:.0f} % in the paper "
        "(OLMoE); what fills the rest there is open",
        "all-to-all time": traffic_why
        if first[0]["synthetic"]
        else f"a phase waits for the busiest direction of a node, whose rows HG changes by {busiest:+.1f} % only",
        "cross-node traffic": traffic_why,
        "intra-node traffic": "open",
        "std of GPU load": "open",
        "GPU idle time": f"open: waiting for late ranks in communication adds {1e3 * occult['waiting_s']:.1f} ms to "
        f"{1e3 * occult['idle_s']:.0f} ms (Occult) and {1e3 * grouped['waiting_s']:.1f} to "
        f"{1e3 * grouped['idle_s']:.0f} (HG) here; HG changes idle time by {in_prefill:+.0f} % in prefill alone, the "
        "rest is decode, where a rank reads the weights of each of its experts and HG's hold unequal numbers",
        "ms": "open: the paper gives no rate its software reaches; ours are sustained rates of links and GPUs",
    }


def _change(rows: Sequence[Row], field: str, new: str, old: str) -> float:
    """Percent by which a step's figure is above another's."""
    before, after = _of(rows, old)[field], _of(rows, new)[field]
    return float(100 * (after / before - 1)) if before else 0.0


def _beside(what: str, ours: float, paper_figure: float | None, unit: str, why: str) -> Row:
    """Ours beside the paper's; speedups and times differ by percent of the paper's, changes by points."""
    apart = None
    if paper_figure is not None:
        apart = float(ours - paper_figure if unit == "%" else 100 * (ours / paper_figure - 1))
    differs = bool(apart is not None and abs(apart) > 10)
    figures = {"ours": float(ours), "paper": paper_figure, "points_apart": apart}
    return {"what": what, "unit": unit, **figures, "differs": differs, "why": why if differs else ""}


def _filled(problem: Problem, homes: Any, tokens: int) -> Problem:
    """The problem with its sequences read as often as fills a batch of so many tokens."""
    trace = problem.trace
    times = -(-tokens // trace.num_tokens)
    if times > 1:
        trace = trace.select(np.tile(np.arange(trace.num_sequences), times))
    return dataclasses.replace(problem, trace=homes(trace, problem.topology.num_ranks))


def _row(time: EndToEnd, counts: Sequence[Traffic], scheme: str, problem: Problem) -> Row:
    prompt = counts[0]
    per_token = prompt.num_tokens * problem.model.num_layers
    parts = {name: time.part_s(name) for name in ("all_to_all_s", "experts_s", "idle_s", "backbone_s")}
    return {
        "slots_per_rank": int(problem.slots_per_rank.max()),
        "total_s": time.total_s,
        "prefill_s": time.prefill.total_s,
        "prefill_idle_s": time.prefill.idle_s,
        "time_per_token_s": time.decode.total_s,
        "tokens_per_s": time.tokens_per_s,
        **parts,
        "cross_node_rows_per_token": prompt.cross_node_rows(scheme).sum() / per_token,
        "intra_node_rows_per_token": prompt.intra_node_rows(scheme).sum() / per_token,
        "busiest_node_rows_per_token": _busiest_node_rows(prompt, scheme) / per_token,
        "load_std_over_mean": float((prompt.load.std(axis=2) / prompt.load.mean(axis=2)).mean()),
    }


def _busiest_node_rows(counts: Traffic, scheme: str) -> int:
    """Dispatched rows that the busiest node of each layer and batch sends or receives, summed."""
    inside = counts.node_of_rank[:, None] == np.arange(len(counts.ranks_per_node))
    rows = sum(counts.dispatch(scheme))
    between = np.einsum("rn,lbrs,sm->lbnm", inside, rows, inside) * ~np.eye(inside.shape[1], dtype=bool)
    return int(np.maximum(between.sum(axis=3), between.sum(axis=2)).max(axis=2).sum())


def _of(rows: Sequence[Row], step: str) -> Row:
    return next(row for row in rows if row["step"] == step)


def _cells(rows: Sequence[Row], keys: set[tuple[str, str]]) -> Iterator[list[Row]]:
    for key in keys:
        yield [row for row in rows if (row["cluster"], row["workload"]) == key]


def _print(rows: Sequence[Row], compared: Sequence[Row], skipped: Sequence[str]) -> None:
    out = console()
    for model in dict.fromkeys(row["model"] for row in rows):
        own = [row for row in rows if row["model"] == model]
        kind = "SYNTHETIC trace" if own[0]["synthetic"] else "real trace"
        out.print(f"\n{model} ({kind}), end to end in ms, held out\n", highlight=False, markup=False)
        table = Table("step", box=None, pad_edge=False, padding=(0, 2))
        cells = list(dict.fromkeys((row["cluster"], row["workload"]) for row in own))
        for cluster, workload in cells:
            table.add_column(f"{cluster}\n{workload}", justify="right", no_wrap=True)
        for step in dict.fromkeys(row["step"] for row in own):
            times = [_of([r for r in own if (r["cluster"], r["workload"]) == cell], step)["total_s"] for cell in cells]
            table.add_row(escape(step), *(f"{time * 1e3:.0f}" for time in times))
        out.print(table)
    out.print("\nbeside the paper\n")
    table = Table("", box=None, pad_edge=False, padding=(0, 2))
    for title in ("ours", "paper", "why"):
        table.add_column(title, justify="right", no_wrap=True)
    notes = list(dict.fromkeys(row["why"] for row in compared if row["differs"]))
    for row in compared:
        figures = [_figure(row[name], row["unit"]) for name in ("ours", "paper")]
        why = f"differs ({notes.index(row['why']) + 1})" if row["differs"] else ""
        table.add_row(escape(row["what"]), *figures, why)
    out.print(table)
    for number, note in enumerate(notes, 1):
        out.print(f"({number}) {note}", highlight=False, markup=False)
    for line in skipped:
        out.print(f"skipped: {line}", style="yellow", highlight=False, markup=False)


def _figure(value: float | None, unit: str) -> str:
    if value is None:
        return ""
    return {"%": f"{value:+.1f} %", "x": f"{value:.2f}x", "ms": f"{value:.0f} ms"}[unit]

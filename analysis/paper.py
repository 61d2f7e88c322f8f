"""`grace-opt compare experiment=paper`: the evaluation of GRACE-MoE (arXiv 2509.25041), side by side with its tables.

Three models, two clusters, two workloads, all schemes and ablation steps, end to end. Plans are fitted to one half of
the sequences and timed on the other; every step has the same slots. Where a trace has fewer tokens than a batch, its
held-out sequences are read again.
"""

import dataclasses
from collections.abc import Iterator, Sequence
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
from grace_opt.plan import Plan
from grace_opt.problem import Problem
from grace_opt.solution import Planner
from grace_opt.traffic import Traffic, traffic
from simulator.whole_model import EndToEnd, Workload, end_to_end

CLUSTERS = ("a100_25gbe_2x2", "a100_25gbe_2x4")
WORKLOADS = {"256 x 128 + 16": Workload(256, 128, 16), "512 x 64 + 32": Workload(512, 64, 32)}
FIRST = ("a100_25gbe_2x2", "256 x 128 + 16")
"""Cluster and workload of the paper's ablation and of its comparison with Occult."""
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
    "HG + HSC": (2846 / 3494, 507 / 502, 5698 / 6328),
    "fully non-uniform + HSC": (2826 / 3494, 617 / 502, 5748 / 6328),
}
"""OLMoE against uniform groups (Occult + HSC): all-to-all, idle, end to end."""
EFFECTS: tuple[tuple[str, str, str, dict[str, tuple[float, float]]], ...] = (
    ("HG", "HG + HSC", "Occult + HSC", {
        "olmoe_1b_7b": (-18.6, -19.2), "deepseek_v2_lite": (-18.0, -16.7), "qwen3_30b_a3b": (-24.7, -34.8)}),
    ("TAR", "+ DR + TAR", "+ DR + WRR", {
        "olmoe_1b_7b": (-9.5, -12.1), "deepseek_v2_lite": (-8.1, -12.4), "qwen3_30b_a3b": (-13.7, -29.4)}),
)  # fmt: skip
"""Step, with, without, and by model the change of all-to-all time and of cross-node traffic in percent."""
WHY = {
    "all-to-all time": "a phase lasts as long as the busiest direction of a node: unequal groups, uneven traffic",
    "cross-node traffic": "other text (or a synthetic trace) than WikiText-2, judged on sequences no plan saw",
    "intra-node traffic": "open",
    "GPU idle time": "ours is the wait for experts; the paper's includes waiting for late nodes in communication",
    "std of GPU load": "depends on how spectral clustering embeds experts, which the paper leaves open",
    "end to end": "links, experts and a roofline of the rest are timed; what an engine's host adds is not",
}


SYNTHETIC = "synthetic trace: its experts are chosen together as the sample model's are, less than a trained model's"


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
    """Rows of one model on one cluster: plans and counts are made once and priced under every scheme."""
    config = read_configuration("compare", [f"model={model}", f"topology={cluster}", *overrides])
    built = {key: build(config[key]) for key in ("model", "topology", "trace", "split", "homes", "cost")}
    cost = built.pop("cost")
    parts = with_wanted_slots(problems(**built, slots_per_rank=None), steps.values())
    plans = {name: solve(planner, parts["fit"]).plan for name, planner in steps.items()}
    for workload, work in WORKLOADS.items():
        ranks = parts["fit"].topology.num_ranks
        prompt, token = work.prefill(ranks), work.decode(ranks)
        held_out = _filled(parts["held_out"], built["homes"], int(prompt.num_tokens) * ranks)
        for name, planner, scheme in ((n, p, s) for n, p, s in RUNS if p in plans):
            counts = [_counts(held_out, plans[planner], int(part.num_tokens)) for part in (prompt, token)]
            priced = dataclasses.replace(cost, scheme=scheme)
            layers = [priced.price(held_out, count) for count in counts]
            time = end_to_end(held_out.model, held_out.topology, work, layers[0], layers[1], tables=tables)
            about = {"model": model, "synthetic": held_out.trace.synthetic, "cluster": cluster, "workload": workload}
            yield {**about, "step": name, "planner": planner, "scheme": scheme, **_row(time, counts, scheme, held_out)}


def compare(rows: Sequence[Row]) -> Iterator[Row]:
    """Our figures beside the paper's, as speedups or as changes in percent."""
    for model in dict.fromkeys(row["model"] for row in rows):
        own = [row for row in rows if row["model"] == model]
        cells = {(row["cluster"], row["workload"]) for row in own}
        best = max(max(r["total_s"] for r in cell) / _of(cell, "+ DR + TAR")["total_s"] for cell in _cells(own, cells))
        yield _beside(f"{model}: end to end over the slowest", "end to end", best, OVER_SLOWEST.get(model), "x")
        first = [row for row in own if (row["cluster"], row["workload"]) == FIRST]
        occult = _of(first, "Occult")["total_s"] / _of(first, "+ DR + TAR")["total_s"]
        yield _beside(f"{model}: end to end over Occult", "end to end", occult, OVER_OCCULT.get(model), "x")
        for effect, new, old, figures in EFFECTS:
            for quantity, field, paper_pct in zip(
                ("all-to-all time", "cross-node traffic"),
                ("all_to_all_s", "cross_node_rows_per_token"),
                figures.get(model, (None, None)),
                strict=True,
            ):
                ours = 100 * (_of(first, new)[field] / _of(first, old)[field] - 1)
                yield _beside(f"{model}: {effect}, {quantity}", quantity, ours, paper_pct, "%", own[0]["synthetic"])
    yield from _grouping(rows)
    yield from _ablation(rows)


def _grouping(rows: Sequence[Row]) -> Iterator[Row]:
    first = [r for r in rows if r["model"] == "olmoe_1b_7b" and (r["cluster"], r["workload"]) == FIRST]
    if not first:
        return
    uniform = _of(first, "Occult + HSC")
    names = (("all-to-all time", "all_to_all_s"), ("GPU idle time", "idle_s"), ("end to end", "total_s"))
    for step, figures in GROUPING.items():
        for (quantity, field), paper_ratio in zip(names, figures, strict=True):
            ours = 100 * (_of(first, step)[field] / uniform[field] - 1)
            what = f"olmoe_1b_7b: {step} over uniform, {quantity}"
            yield _beside(what, quantity, ours, 100 * (paper_ratio - 1), "%", first[0]["synthetic"])


def _ablation(rows: Sequence[Row]) -> Iterator[Row]:
    """Change against Occult, mean over the models there are."""
    fields = ("all_to_all_s", "cross_node_rows_per_token", "intra_node_rows_per_token", "idle_s", "load_std_over_mean")
    models = [
        [r for r in rows if r["model"] == model and (r["cluster"], r["workload"]) == FIRST]
        for model in dict.fromkeys(row["model"] for row in rows)
    ]
    for step, _, _, figures in STEPS[1:]:
        for index, (quantity, field) in enumerate(zip(QUANTITIES, fields, strict=True)):
            changes = [100 * (_of(own, step.strip())[field] / _of(own, "Occult")[field] - 1) for own in models]
            ours = float(np.mean(changes))
            yield _beside(
                f"ablation: {step.strip()}, {quantity}", quantity, ours, figures[index] if figures else None, "%"
            )


def _beside(
    what: str, quantity: str, ours: float, paper_figure: float | None, unit: str, synthetic: bool = False
) -> Row:
    apart = None
    if paper_figure is not None:
        apart = float(100 * (ours / paper_figure - 1) if unit == "x" else ours - paper_figure)
    differs = bool(apart is not None and abs(apart) > 10)
    why = SYNTHETIC if synthetic and quantity in ("all-to-all time", "cross-node traffic") else WHY[quantity]
    return {
        "what": what,
        "unit": unit,
        "ours": float(ours),
        "paper": paper_figure,
        "points_apart": apart,
        "differs": differs,
        "why": why if differs else "",
    }


def _filled(problem: Problem, homes: Any, tokens: int) -> Problem:
    """The problem with its sequences read as often as fills a batch of so many tokens."""
    trace = problem.trace
    times = -(-tokens // trace.num_tokens)
    if times > 1:
        trace = trace.select(np.tile(np.arange(trace.num_sequences), times))
    return dataclasses.replace(problem, trace=homes(trace, problem.topology.num_ranks))


def _counts(problem: Problem, plan: Plan, tokens_per_rank: int) -> Traffic:
    return traffic(problem.trace, plan, tokens_per_rank)


def _row(time: EndToEnd, counts: Sequence[Traffic], scheme: str, problem: Problem) -> Row:
    prompt = counts[0]
    per_token = prompt.num_tokens * problem.model.num_layers
    parts = {name: time.part_s(name) for name in ("all_to_all_s", "experts_s", "idle_s", "backbone_s")}
    return {
        "slots_per_rank": int(problem.slots_per_rank.max()),
        "total_s": time.total_s,
        "prefill_s": time.prefill.total_s,
        "time_per_token_s": time.decode.total_s,
        "tokens_per_s": time.tokens_per_s,
        **parts,
        "cross_node_rows_per_token": prompt.cross_node_rows(scheme).sum() / per_token,
        "intra_node_rows_per_token": prompt.intra_node_rows(scheme).sum() / per_token,
        "load_std_over_mean": float((prompt.load.std(axis=2) / prompt.load.mean(axis=2)).mean()),
    }


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
    for title in ("ours", "paper", ""):
        table.add_column(title, justify="right" if title else "left")
    for row in compared:
        figures = [_figure(row[name], row["unit"]) for name in ("ours", "paper")]
        table.add_row(escape(row["what"]), *figures, f"differs: {row['why']}" if row["differs"] else "")
    out.print(table)
    for line in skipped:
        out.print(f"skipped: {line}", style="yellow", highlight=False, markup=False)


def _figure(value: float | None, unit: str) -> str:
    if value is None:
        return ""
    return f"{value:+.1f} %" if unit == "%" else f"{value:.2f}x"

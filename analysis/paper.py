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

from analysis.paper_comparison import compare, print_comparison
from analysis.paper_steps import RUNS
from analysis.parts import problems, solve, with_wanted_slots
from analysis.results import Row, require_writable, write_result
from grace_opt.configuration import build, read_configuration
from grace_opt.problem import Problem
from grace_opt.solution import Planner
from grace_opt.traffic import Traffic, traffic
from simulator.cluster import SimulatedCluster
from simulator.overlap import phase_times
from simulator.whole_model import EndToEnd, Workload, end_to_end

CLUSTERS = ("a100_25gbe_2x2", "a100_25gbe_2x4")
WORKLOADS = {"256 x 128 + 16": Workload(256, 128, 16), "512 x 64 + 32": Workload(512, 64, 32)}


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
    print_comparison(rows, compared, skipped)
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
            phases = [phase_times(priced, held_out, count) for count in counts]
            time = end_to_end(held_out.model, held_out.topology, work, phases[0], phases[1], tables=tables)
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

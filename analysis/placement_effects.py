"""Published effects of balancing and replicas on whole engines, beside what the cost model says of them.

DeepSeek-V3 has no public trace, so a synthetic one stands in; the only figure taken from the measurements is how skewed
its loads are: the exponent of the load curve that gives TensorRT-LLM's imbalance over 32 ranks without EPLB. Everything
else (what EPLB makes of it, which configuration is faster and by how much) is predicted. Plans are fitted to half of
the sequences and judged on the other half.
"""

import dataclasses
from collections.abc import Sequence
from functools import cache
from itertools import combinations
from typing import Any

from rich.table import Table as Printed
from scipy.optimize import brentq

from analysis.parts import problems, solve
from analysis.report import console
from analysis.results import Row
from grace_opt.configuration import CONF_DIR, build, read_configuration
from grace_opt.problem import Problem
from grace_opt.synthetic import Scales, synthesize
from grace_opt.topology import Topology
from grace_opt.trace import Trace
from grace_opt.trace_file import read_trace
from grace_opt.trace_statistics import fit_statistics
from grace_opt.traffic import Traffic, traffic
from simulator.calibration.tables import MissingDataError, Table, published_folder, read_table

LAYERS, TOKENS = 4, 131_072
APART = 0.015
"""Repeated runs of an engine differ by about this part: closer pairs have no order."""
WATERFILL, LARGE_SCALE, TRT = "lmsys blog 2026-06-26", "lmsys blog 2025-05-05", "TRT-LLM tech_blog/blog04"
# Group, configuration as printed, nodes of 8, planner, slots per rank, phase.
Run = tuple[str, str, int, str, int, str]
RUNS: tuple[Run, ...] = tuple(
    (f"{WATERFILL}|{dataset}", config, 2, planner, slots, "decode")
    for dataset in ("MMLU", "GPQA", "GSM8K")
    for config, planner, slots in (
        ("no EPLB", "linear", 16),
        ("static EPLB red0", "eplb", 16),
        ("static EPLB red16", "eplb", 17),
        ("static EPLB red32", "eplb", 18),
    )
)
SPEEDUPS: tuple[tuple[str, int, int, str], ...] = (("prefill", 4, 9, "prefill"), ("decode", 9, 4, "decode"))
"""Dataset as printed, nodes of 8, slots per rank with EPLB (288 in all), phase."""
TOKENS_PER_RANK = {"prefill": 16_384, "decode": 256}


def effects(skipped: list[str]) -> list[Row]:
    """One row an effect: measured and predicted figure, and whether the sign is right."""
    try:
        published = read_table(published_folder() / "placement_e2e_effects.csv")
    except MissingDataError as error:
        skipped.append(f"effects of EPLB on whole engines: {error}")
        return []
    trace = skewed_trace(_measured(published, TRT, "No EPLB (8 slots/rank)", "machine translation bs256/rank", "rank"))
    return [*_throughputs(published, trace), *_speedups(published, trace), *_imbalances(published, trace)]


def orders(rows: Sequence[Row]) -> tuple[int, int]:
    """Pairs of one group that were measured more than APART apart, and how many of them are predicted in that order."""
    told = right = 0
    for one, other in combinations([row for row in rows if row["kind"] == "throughput"], 2):
        if one["group"] == other["group"] and abs(one["measured"] / other["measured"] - 1) > APART:
            told += 1
            right += (one["measured"] > other["measured"]) == (one["predicted"] > other["predicted"])
    return told, right


def print_effects(rows: Sequence[Row]) -> None:
    """Print measured beside predicted effects and the share of signs and orders that are right."""
    if not rows:
        return
    out = console()
    out.print(
        "\npublished effects of EPLB, DeepSeek-V3 on a SYNTHETIC trace (over the first of each group)\n", markup=False
    )
    table = Printed(box=None, pad_edge=False, padding=(0, 1))
    for title in ("measured by", "what"):
        table.add_column(title)
    for title in ("measured", "predicted"):
        table.add_column(title, justify="right")
    for row in rows:
        table.add_row(row["group"].replace("|", ", "), row["what"], f"{row['measured']:.3f}", f"{row['predicted']:.3f}")
    out.print(table)
    signs = [row["sign_right"] for row in rows if row["sign_right"] is not None]
    told, right = orders(rows)
    out.print(
        f"\nsigns right: {sum(signs)} of {len(signs)}; in order: {right} of {told} pairs that differ by over 1.5 %"
    )


def skewed_trace(imbalance: float) -> Trace:
    """A synthetic DeepSeek-V3 trace that `linear` places with this (max - mean) / mean over 32 ranks in decode."""

    def found(exponent: float) -> float:
        part = _parts(_trace(exponent), _cluster(4), 8)["held_out"]
        return _imbalance(_counts(part, _solved("linear", part), "decode")) - imbalance

    low, high = 1.0, 6.0
    return _trace(float(brentq(found, low, high, xtol=0.02)) if found(high) > 0 else high)


@cache
def _trace(exponent: float) -> Trace:
    like = fit_statistics(read_trace(CONF_DIR / "samples" / "sample.safetensors"))
    powered = like.load_curve**exponent
    scale = like.load_curve.mean(axis=1, keepdims=True) / powered.mean(axis=1, keepdims=True)
    statistics = dataclasses.replace(like, load_curve=powered * scale)
    model = _model()
    return synthesize(statistics, LAYERS, model.num_experts, model.top_k, TOKENS, 0, model.name, Scales())


@cache
def _model() -> Any:
    return dataclasses.replace(build(read_configuration("compare", ["model=deepseek_v3"]).model), num_layers=LAYERS)


@cache
def _cluster(nodes: int) -> Topology:
    topology: Topology = build(
        read_configuration("compare", ["topology=h100_ib_4x8", f"topology.num_nodes={nodes}"]).topology
    )
    return topology


def _parts(trace: Trace, topology: Topology, slots: int) -> dict[str, Problem]:
    config = read_configuration("compare", [])
    return problems(_model(), topology, trace, build(config.split), build(config.homes), slots)


def _solved(planner: str, problem: Problem) -> Any:
    config = read_configuration("compare", [])
    return solve(build(config.planners[planner]), problem).plan


def _counts(problem: Problem, plan: Any, phase: str) -> Traffic:
    return traffic(problem.trace, plan, TOKENS_PER_RANK[phase])


def _imbalance(counts: Traffic) -> float:
    return float((counts.load.max(axis=2) / counts.load.mean(axis=2) - 1).mean())


def _layer_s(nodes: int, planner: str, slots: int, phase: str, trace: Trace) -> float:
    parts = _parts(trace, _cluster(nodes), slots)
    plan = _solved(planner, parts["fit"])
    overrides = {"prefill": ["transport=deepep_normal_h100", "scheme=hierarchical"]}.get(
        phase, ["transport=deepep_low_latency_h100", "scheme=low_latency"]
    )
    cost = build(read_configuration("compare", ["topology=h100_ib_4x8", f"workload={phase}", *overrides]).cost)
    return float(cost.price(parts["held_out"], _counts(parts["held_out"], plan, phase)).mean_s)


def _throughputs(published: Table, trace: Trace) -> list[Row]:
    rows: list[Row] = []
    first: dict[str, tuple[float, float]] = {}
    times: dict[tuple[str, int], float] = {}
    for group, config, nodes, planner, slots, phase in RUNS:
        source, dataset = group.split("|")
        measured = _measured(published, source, config, dataset, "throughput")
        if (planner, slots) not in times:
            times[planner, slots] = _layer_s(nodes, planner, slots, phase, trace)
        predicted = 1 / times[planner, slots]
        base = first.setdefault(group, (measured, predicted))
        ratios = measured / base[0], predicted / base[1]
        rows.append(_effect(group, "throughput", f"throughput, {config}", *ratios))
    return rows


def _speedups(published: Table, trace: Trace) -> list[Row]:
    rows = []
    for dataset, nodes, slots, phase in SPEEDUPS:
        measured = _measured(published, LARGE_SCALE, "EPLB vs none", dataset, "speedup")
        least = -(-_model().num_experts // (8 * nodes))
        without = _layer_s(nodes, "linear", least, phase, trace)
        predicted = without / _layer_s(nodes, "eplb", slots, phase, trace)
        rows.append(
            _effect(LARGE_SCALE, "speedup", f"EPLB over none, {dataset}, {8 * nodes} GPUs", measured, predicted)
        )
    return rows


def _imbalances(published: Table, trace: Trace) -> list[Row]:
    rows = []
    dataset = "machine translation bs256/rank"
    parts = _parts(trace, _cluster(4), 9)
    for config, planner, slots in (("No EPLB (8 slots/rank)", "linear", 8), ("EPLB 9 slots/rank (288)", "eplb", 9)):
        parts = _parts(trace, _cluster(4), slots)
        counts = _counts(parts["held_out"], _solved(planner, parts["fit"]), "decode")
        slot = float((counts.tokens.max(axis=2) / counts.tokens.mean(axis=2) - 1).mean())
        for kind, predicted in (("rank", _imbalance(counts)), ("slot", slot)):
            measured = _measured(published, TRT, config, dataset, kind)
            what = f"{kind} imbalance, {config}" + (" (fitted)" if (kind, planner) == ("rank", "linear") else "")
            rows.append(_effect(TRT, "imbalance", what, measured, predicted))
    return rows


def _effect(group: str, kind: str, what: str, measured: float, predicted: float) -> Row:
    told = kind != "imbalance" and abs(measured - 1) > APART
    sign = (measured > 1) == (predicted > 1) if told else None
    return {
        "group": group, "kind": kind, "what": what, "measured": measured, "predicted": predicted, "sign_right": sign,
    }  # fmt: skip


def _measured(table: Table, source: str, config: str, dataset: str, metric: str) -> float:
    rows = [
        value
        for s, c, d, m, value in zip(
            table["source"], table["config"], table["dataset"], table["metric"], table["value"], strict=True
        )
        if s.startswith(source) and c == config and d == dataset and m.startswith(metric)
    ]
    if len(rows) != 1:
        raise ValueError(
            f"{table.source} has {len(rows)} rows of {source}, {config}, {dataset}, {metric}; expected one"
        )
    return float(rows[0])

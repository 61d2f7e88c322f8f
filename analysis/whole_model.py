"""The whole model under a plan: a pass over prompts and one that generates, as fields of a row and as a table."""

import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from rich.table import Table

from analysis.report import console
from analysis.results import Row, price
from grace_opt.cost import CostModel
from grace_opt.plan import Plan
from grace_opt.problem import Problem
from grace_opt.solution import Solution
from grace_opt.traffic import Traffic, traffic
from simulator.backbone import BackboneTime, Pass
from simulator.calibration.tables import MissingDataError
from simulator.cluster import SimulatedCluster
from simulator.overlap import batch_tokens, moe_layers_s, phase_times, require_overlap
from simulator.whole_model import pass_time, slowest_backbone

PASSES = ("prefill", "decode")
Count = Callable[[float | None], Traffic]
"""Traffic of a plan on one part of a trace, in batches of so many tokens per rank; None for one batch."""


@dataclass(frozen=True)
class Passes:
    """The two forward passes that are priced with all that surrounds the experts.

    Attributes:
        prefill_tokens: of a rank in one pass over prompts; None: the whole part of the trace in one pass.
        decode_tokens: of a rank in one pass that generates, one of each sequence.
        context: tokens of a prompt (at most those of the pass), and in the cache of a sequence that generates.
        tables: attention and dense parts from measured tables where there are any, else from the roofline.
    """

    prefill_tokens: int | None = 4096
    decode_tokens: int = 128
    context: int = 2048
    tables: bool = False

    def __post_init__(self) -> None:
        for field in ("prefill_tokens", "decode_tokens", "context"):
            value = getattr(self, field)
            if value is not None and value < 1:
                raise ValueError(f"passes.{field} must be at least 1, got {value}")

    def work(self, name: str, tokens: float, halves: int = 1) -> Pass:
        """A pass, `prefill` or `decode`, of so many tokens of a rank, or each of its halves, of half the sequences.

        Sequences may be fractions: half a prompt of attention takes half the time.
        """
        if name == "decode":
            return Pass(tokens / halves, 1, self.context)
        prompt = min(self.context, max(1, int(tokens)))
        return Pass(tokens / prompt / halves, prompt)


def counter(problem: Problem, plan: Plan) -> Count:
    """Counts of a plan on one part of a trace, each size once."""
    done: dict[float | None, Traffic] = {}

    def count(tokens: float | None) -> Traffic:
        if tokens not in done:
            done[tokens] = traffic(problem.trace, plan, tokens)
        return done[tokens]

    return count


def counted(problem: Problem, count: Count, tokens_per_rank: int | None, overlap: str) -> Traffic:
    """Batches of so many tokens of a rank, or their halves if two overlap."""
    return count(batch_tokens(problem.trace, problem.topology.num_ranks, tokens_per_rank, overlap))


def price_overlapped(
    planner: str, method: str, split: str, problem: Problem, solution: Solution, cost: CostModel, counts: Traffic,
    overlap: str,
) -> Row:  # fmt: skip
    """The row of `analysis.results.price`, with `overlap`.

    With two batches, times of a layer and of its phases are those of both halves: the phases sum to more than the layer
    where one hides another. Loads and active experts are those of a half, whose experts are loaded by themselves.

    Args:
        counts: from `counted`.
    """
    row = price(planner, method, split, problem, solution, cost, counts)
    require_overlap(overlap)
    if overlap == "none":
        return {**row, "overlap": overlap}
    phases = phase_times(_simulated(cost), problem, counts)
    layers_L = moe_layers_s(phases, overlap).mean(axis=1)
    both = {field: 2 * float(getattr(phases, field).mean()) for field in ("dispatch_s", "experts_s", "combine_s")}
    times = {"layer_time_s": float(layers_L.mean()), "layer_time_worst_layer_s": float(layers_L.max()), **both}
    tokens = 2 * float(counts.tokens_of_rank.mean())
    return {**row, **times, "idle_s": 2 * float(phases.idle_s.mean()), "tokens_per_rank": tokens, "overlap": overlap}


def end_to_end(
    cost: CostModel, problem: Problem, count: Count, passes: Passes, overlap: str, names: Sequence[str] = PASSES
) -> list[Row]:
    """One row for each pass that is named, none (and a warning) if the model has no backbone.

    Seconds are means over batches, tokens a second those of all ranks.

    Raises:
        ValueError: there is no such overlap, or measured tables end before the sizes asked for.
    """
    require_overlap(overlap)
    if problem.model.backbone is None:
        warnings.warn(
            f"model {problem.model.name} has no backbone: end to end is left out, times are of MoE layers alone "
            "(model.backbone would describe attention and dense parts)",
            stacklevel=2,
        )
        return []
    simulated, halves = _simulated(cost), 1 if overlap == "none" else 2
    sizes = {"prefill": passes.prefill_tokens, "decode": passes.decode_tokens}
    phases = {name: phase_times(simulated, problem, counted(problem, count, sizes[name], overlap)) for name in names}
    fullest = {name: halves * float(of.tokens_of_rank.max(axis=1).mean()) for name, of in phases.items()}
    work = {name: passes.work(name, tokens, halves) for name, tokens in fullest.items()}
    around = _around(problem, work, passes.tables)
    rows = []
    for name, of in phases.items():
        time = pass_time(of, around[name], overlap)
        tokens = halves * float(of.tokens_of_rank.sum(axis=1).mean())
        rows.append(
            {
                "pass": name,
                "tokens_per_rank": tokens / problem.topology.num_ranks,
                "sequences_of_fullest_rank": halves * work[name].sequences,
                "tokens_per_sequence": work[name].tokens,
                "context": work[name].context,
                "step_s": time.total_s,
                "all_to_all_s": time.all_to_all_s,
                "experts_s": time.experts_s,
                "idle_s": time.idle_s,
                "backbone_s": time.backbone_s,
                "hidden_s": time.hidden_s,
                "tokens_per_s": tokens / time.total_s,
                "backbone": "measured" if time.measured else "roofline",
                "overlap": overlap,
            }
        )
    return rows


def fields(rows: Sequence[Row]) -> Row:
    """The passes in one row: latencies and rates, all None without a backbone."""
    of = {row["pass"]: row for row in rows}
    prefill, decode = of.get("prefill", {}), of.get("decode", {})
    return {
        "time_to_first_token_s": prefill.get("step_s"),
        "time_per_token_s": decode.get("step_s"),
        "prefill_tokens_per_s": prefill.get("tokens_per_s"),
        "decode_tokens_per_s": decode.get("tokens_per_s"),
        "backbone": prefill.get("backbone"),
    }


def print_end_to_end(rows: Sequence[Row]) -> None:
    """Print a line for each pass of the held-out part."""
    if not rows:
        return
    out = console()
    measured = {"measured": "measured tables", "roofline": "the roofline"}[rows[0]["backbone"]]
    overlap = {"none": "none", "two_batch": "two half batches take turns"}[rows[0]["overlap"]]
    out.print(
        f"\nthe whole model, held out: attention and dense parts from {measured}; overlap: {overlap}\n",
        highlight=False,
    )
    table = Table(box=None, pad_edge=False, padding=(0, 1))
    table.add_column("pass")
    for title in (
        *(
            "tokens\nper rank",
            "sequences\nat most",
            "tokens\nof each",
            "in\ncache",
            "step\nms",
            "all-to-all\nms",
            "experts\nms",
        ),
        *("backbone\nms", "hidden\nms", "tokens/s"),
    ):
        table.add_column(title, justify="right", no_wrap=True)
    for row in rows:
        means = {"prefill": "prefill (first token)", "decode": "decode (every token after)"}[row["pass"]]
        sizes = [f"{row[name]:.4g}" for name in ("tokens_per_rank", "sequences_of_fullest_rank")]
        times = ("step_s", "all_to_all_s", "experts_s", "backbone_s", "hidden_s")
        cells = [*sizes, str(row["tokens_per_sequence"]), str(row["context"])]
        table.add_row(means, *cells, *(f"{row[name] * 1e3:.3f}" for name in times), f"{row['tokens_per_s']:,.0f}")
    out.print(table)


def _around(problem: Problem, work: Mapping[str, Pass], tables: bool) -> dict[str, BackboneTime]:
    """Of each pass; from measured tables if they have all passes, else a line says what is missing."""
    model, topology = problem.model, problem.topology
    if tables:
        try:
            return {name: slowest_backbone(model, topology, one, tables=True) for name, one in work.items()}
        except MissingDataError as error:
            reason = str(error).removesuffix(": take tables=false, the roofline")
            warnings.warn(f"attention and dense parts are from the roofline: {reason}", stacklevel=3)
    return {name: slowest_backbone(model, topology, one) for name, one in work.items()}


def _simulated(cost: CostModel) -> SimulatedCluster:
    if not isinstance(cost, SimulatedCluster):
        raise ValueError(f"overlap and end to end need cost=simulated, got {type(cost).__name__}")
    return cost

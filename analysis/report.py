"""Rows as tables on a terminal."""

import sys
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from rich.console import Console
from rich.markup import escape
from rich.measure import Measurement
from rich.table import Table

from analysis.agreement import summarize
from analysis.results import Row
from grace_opt.plan import Plan
from grace_opt.problem import Problem

WIDTH = 140
Column = tuple[str, str, str, float, int]
# Title, field, format, unit, and when the column is given up on a narrow terminal: the largest number first.
_COLUMNS: tuple[Column, ...] = (
    ("cross-node\nrows/token", "cross_node_rows_per_token", "{:.3f}", 1, 0),
    ("intra-node\nrows/token", "intra_node_rows_per_token", "{:.3f}", 1, 0),
    ("load\nmax/mean", "load_max_over_mean", "{:.2f}", 1, 0),
    ("dispatch\nms", "dispatch_s", "{:.3f}", 1e3, 3),
    ("experts\nms", "experts_s", "{:.3f}", 1e3, 3),
    ("combine\nms", "combine_s", "{:.3f}", 1e3, 3),
    ("layer\nms", "layer_time_s", "{:.3f}", 1e3, 0),
    ("worst\nlayer", "layer_time_worst_layer_s", "{:.3f}", 1e3, 2),
    ("over\nlinear", "speedup_over_linear", "{:.2f}x", 1, 0),
    ("over best\nrival", "speedup_over_best_rival", "{:.2f}x", 1, 1),
    ("slots\nused", "slots_used", "{:.1f}", 1, 4),
    ("plan\ns", "plan_s", "{:.2f}", 1, 5),
)


def console() -> Console:
    """Standard output, wide enough for a table also when it is no terminal."""
    return Console() if sys.stdout.isatty() else Console(width=WIDTH)


def print_rows(problem: Mapping[str, Any], rows: Sequence[Row]) -> None:
    """Print what was asked and one table, held-out rows first, the fastest plan of each split in bold."""
    out = console()
    out.print(_headline(problem, rows), highlight=False, markup=False)
    splits = [s for s in ("held_out", "fit") if any(r.get("split") == s for r in rows)]
    priced = [row for row in rows if "error" not in row]
    shown = [column for column in _COLUMNS if any(row.get(column[1]) is not None for row in priced)]
    table = _table(priced, splits, shown)
    unbounded = out.options.update(max_width=1000)
    while len(shown) > 1 and Measurement.get(out, unbounded, table).maximum > out.width:
        shown.remove(max(shown, key=lambda column: column[-1]))
        table = _table(priced, splits, shown)
    out.print(table)
    for row in rows:
        if "error" in row:
            out.print(f"{row['planner']}: no plan: {row['error']}", style="yellow", highlight=False, markup=False)


def print_validation(problem: Mapping[str, Any], rows: Sequence[Row]) -> None:
    """Print predicted against measured layer times of every plan, by phase and by layer, and how well they agree."""
    out = console()
    kind = "SYNTHETIC trace" if problem["synthetic"] else "trace"
    text = (
        f"{problem['model']} on {problem['topology']}: {problem['slots_per_rank']} slots per rank\n"
        f"planned on {kind}: {problem['trace']}\n{_assumed(problem)}"
        "predicted / measured in ms, mean over MoE layers\n"
    )
    out.print(text, highlight=False, markup=False)
    phases = ("dispatch", "experts", "combine")
    cells = [
        [
            *(_both(row[f"predicted_{p}_s"], row[f"measured_{p}_s"]) for p in phases),
            _both(row["predicted_s"], row["measured_s"]),
        ]
        for row in rows
    ]
    errors = [[f"{row['predicted_s'] / row['measured_s'] - 1:+.1%}"] for row in rows]
    out.print(_plans_table(rows, (*phases, "layer", "error"), [a + b for a, b in zip(cells, errors, strict=True)]))
    out.print("\nlayer by layer\n")
    shown = [
        [_both(*both) for both in zip(row["predicted_layers_s"], row["measured_layers_s"], strict=True)] for row in rows
    ]
    out.print(_plans_table(rows, tuple(f"MoE layer\n{layer}" for layer in problem["layers"]), shown))
    print_agreement(summarize(rows))


def print_bounds(bounds: Sequence[Row], batches: int) -> None:
    """Print what each step of a layer waits for, and its time and the layer's without that."""
    out = console()
    table = Table(box=None, pad_edge=False, padding=(0, 1))
    for title in ("step", "waits for"):
        table.add_column(title)
    for title in ("of layers\nx batches", "of its\ntime", "now\nms", "without\nms", "layer\nms", "without\nms"):
        table.add_column(title, justify="right", no_wrap=True)
    table.add_column("then waits for")
    previous = ""
    for row in bounds:
        table.add_row(
            row["step"] if row["step"] != previous else "",
            escape(f"{row['bound']} ({row['detail']})" if row["detail"] else row["bound"]),
            *(f"{row[field]:.0f} %" for field in ("share_pct", "time_pct")),
            *(f"{row[field] * 1e3:.3f}" for field in ("now_s", "without_s", "layer_now_s", "layer_without_s")),
            escape(row["next_bound"]),
        )
        previous = row["step"]
    out.print(f"\nwhat bounds each step of a layer (held out, batches: {batches}), and without that\n", highlight=False)
    out.print(table)


def _assumed(problem: Mapping[str, Any]) -> str:
    return f"ASSUMED: {problem['assumed']}\n" if problem.get("assumed") else ""


def _plans_table(rows: Sequence[Row], titles: Sequence[str], cells: Sequence[Sequence[str]]) -> Table:
    table = Table(box=None, pad_edge=False, padding=(0, 1))
    for title in ("planner", "scheme"):
        table.add_column(title, no_wrap=True)
    for title in ("tokens\nper rank", *titles):
        table.add_column(title, justify="right", no_wrap=True, overflow="fold")
    for row, line in zip(rows, cells, strict=True):
        table.add_row(escape(row["planner"]), row["scheme"], f"{row['tokens_per_rank']:.0f}", *line)
    return table


def print_agreement(summary: Sequence[Row]) -> None:
    """Print one line a cell: errors of the predicted layer time, rank correlation, speedups."""
    out = console()
    table = Table(box=None, pad_edge=False, padding=(0, 1))
    for title in ("cluster", "workload"):
        table.add_column(title)
    for title in (
        "tokens\nper rank",
        "plans",
        "mean\nerror",
        "worst",
        "bias",
        "Kendall\ntau",
        "pairs in\norder",
        "over linear\n+ pairs",
    ):
        table.add_column(title, justify="right")
    table.add_column("over occult\nhierarchical", justify="right")
    for cell in summary:
        ratios = [
            f"{cell[f'speedup_over_{rival}_predicted']:.2f} / {cell[f'speedup_over_{rival}_measured']:.2f}"
            if f"speedup_over_{rival}_measured" in cell
            else ""
            for rival in ("linear_pairs", "occult")
        ]
        table.add_row(
            cell["cluster"],
            cell["workload"],
            str(cell["tokens_per_rank_asked"]),
            str(cell["num_plans"]),
            *(
                f"{cell[f'{kind}_pct']:+.1f} %".removeprefix("+" * (kind != "bias"))
                for kind in ("mean", "worst", "bias")
            ),
            "" if cell["kendall_tau"] is None else f"{cell['kendall_tau']:.2f}",
            "" if cell["ordered_right"] is None else f"{cell['ordered_right']:.0%}",
            *ratios,
        )
    out.print("\nerrors of the predicted layer time; speedups of grace + hierarchical, predicted / measured\n")
    out.print(table)


def _both(predicted: float, measured: float) -> str:
    digits = 0 if measured >= 0.1 else 1
    return f"{predicted * 1e3:.{digits}f}/{measured * 1e3:.{digits}f}"


def _table(rows: Sequence[Row], splits: Sequence[str], columns: Sequence[Column]) -> Table:
    table = Table(box=None, pad_edge=False, padding=(0, 1))
    for title in ("planner", "split"):
        table.add_column(title, no_wrap=True)
    for title, *_ in columns:
        table.add_column(title, justify="right", no_wrap=True)
    for split in splits:
        of_split = [row for row in rows if row["split"] == split]
        best = min(row["layer_time_s"] for row in of_split)
        for row in of_split:
            cells = [
                text.format(row[field] * unit) if row.get(field) is not None else ""
                for _, field, text, unit, _ in columns
            ]
            table.add_row(escape(row["planner"]), split, *cells, style="bold" if row["layer_time_s"] == best else None)
        table.add_section()
    return table


def _headline(problem: Mapping[str, Any], rows: Sequence[Row]) -> str:
    kind = "SYNTHETIC trace" if problem["synthetic"] else "trace"
    unnamed = "" if problem["trace_names_model"] else " (the file names no model; its shape fits)"
    batch = {row["split"]: row["tokens_per_rank"] for row in rows if "error" not in row}
    parts = ", ".join(
        f"{name} {problem['tokens'][name]} in batches of {batch[name]:.0f} per rank" for name in ("fit", "held_out")
    )
    dealt = " in the mean over layers" if problem.get("deal_slots") else ""
    asked = "" if problem["tokens_per_rank"] is None else f" ({problem['tokens_per_rank']} asked for)"
    return (
        f"{problem['model']} on {problem['topology']}: {problem['slots_per_rank']} slots per rank{dealt}, "
        f"{problem['scheme']} scheme\n"
        f"{kind}: {problem['trace']}{unnamed}\n"
        f"tokens: {parts}{asked}\n{_assumed(problem)}"
        "predicted times, mean over layers; rows are those of dispatch\n"
    )


def print_deal(problem: Problem, plan: Plan) -> None:
    """Say how many slots each layer got, if they were to be dealt."""
    if problem.dealt:
        slots, layers = np.unique(plan.placement.slots_reserved, return_counts=True)
        deal = ", ".join(f"{many} of {one}" for one, many in zip(slots.tolist(), layers.tolist(), strict=True))
        print(f"\nlayers by slots that every rank needs in them: {deal}; engines take no such plan as it is")


def print_homes(plan: Plan) -> None:
    """Say that the plan's own rule deals requests onto ranks, if it has one."""
    if plan.homes is not None:
        first = plan.homes.first_tokens
        known = "all tokens" if first is None else f"the first {first} tokens"
        print(f"\nhomes by the plan's rule, from {known} of each request: not those of `homes`, nor of other plans")

"""Rows as tables on a terminal."""

import sys
from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.measure import Measurement
from rich.table import Table

from analysis.results import Row

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
    asked = "" if problem["tokens_per_rank"] is None else f" ({problem['tokens_per_rank']} asked for)"
    return (
        f"{problem['model']} on {problem['topology']}: {problem['slots_per_rank']} slots per rank, "
        f"{problem['scheme']} scheme\n"
        f"{kind}: {problem['trace']}{unnamed}\n"
        f"tokens: {parts}{asked}\n"
        "predicted times, mean over layers; rows are those of dispatch\n"
    )

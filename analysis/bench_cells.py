"""Cells of the planners' benchmarks: a trace, a cluster, a phase and a budget of slots, built as those of a run are."""

import argparse
import json
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.progress import track

from analysis.parts import problems
from analysis.report import console
from analysis.results import Row, write_result
from grace_opt.configuration import build, read_configuration
from grace_opt.problem import Problem, smallest_slots

TRACES = {"deepseek_v2_lite": "deepseek-v2-lite.npz", "gpt_oss_20b": "gpt-oss-20b.npz", "sample": None}
LARGE = "deepseek_v3"
"""On a synthetic trace."""
PHASES = ("prefill", "decode")
BUDGETS = ("E", "E + 1 per rank", "1.25 E")
Cell = tuple[str, str, str, str]
"""Model, topology, phase, budget."""
Measure = Callable[[Cell, Sequence[Row]], list[Row]]
"""From a cell and the rows it has to those it lacks."""


@dataclass(frozen=True, eq=False)
class BuiltCell:
    """A cell's problems, and the objects of its configuration by key: model, topology, trace, cost, planners, ..."""

    about: Row
    built: dict[str, Any]
    parts: dict[str, Problem]


def cell_parser(prog: str, description: str | None) -> argparse.ArgumentParser:
    """Where the traces are, and which cells are wanted."""
    parser = argparse.ArgumentParser(prog=prog, description=description)
    parser.add_argument("--traces", type=Path, default=Path("../shared/traces"), help="folder of traces (%(default)s)")
    parser.add_argument("--only", nargs="*", default=[], help="cells whose names hold all of these words")
    return parser


def models_recorded(folder: Path) -> list[str]:
    """Models whose trace is there; a line for each that is not."""
    models = []
    for model, file in TRACES.items():
        if file is None or (folder / file).is_file():
            models.append(model)
        else:
            print(f"skipped: no {file} in {folder}; give --traces FOLDER")
    return models


def build_cell(folder: Path, cell: Cell, overrides: Sequence[str]) -> BuiltCell | None:
    """None if the budget is another's in this cell."""
    model, topology, phase, budget = cell
    file = TRACES.get(model)
    trace = ["trace=synthetic"] if model == LARGE else [f"trace.path={folder / file}"] if file else []
    config = read_configuration(
        "compare", [f"model={model}", f"topology={topology}", f"workload={phase}", *trace, *overrides]
    )
    built = {key: build(config[key]) for key in ("model", "topology", "trace", "split", "homes", "cost", "planners")}
    smallest = smallest_slots(built["model"], built["topology"])
    slots = _slots(built["model"].num_experts, smallest, built["topology"].num_ranks, budget)
    if slots is None:
        return None
    about = {
        "trace": built["trace"].source if model == LARGE else file or "sample",
        "model": model, "topology": topology, "phase": phase, "budget": budget, "slots_per_rank": slots,
    }  # fmt: skip
    parts = problems(built["model"], built["topology"], built["trace"], built["split"], built["homes"], slots)
    return BuiltCell(about, built, parts)


def fill_cells(
    output: Path,
    command: str,
    about: Row,
    cells: Sequence[Cell],
    only: Sequence[str],
    measure: Measure,
    again: Sequence[str] = (),
) -> tuple[list[Row], list[Row]]:
    """Measure what an earlier run has not, in cells whose names hold all of some words; all rows, and the new ones.

    Rows of the planners `again` are measured anew. The result is written after each cell.
    """
    rows, new = _known_rows(output), []
    wanted = [cell for cell in cells if all(word in " ".join(cell) for word in only)]
    if not wanted:
        print(f"no cell's name holds {' and '.join(only)}; names are like {' '.join(cells[0])!r}", file=sys.stderr)
        sys.exit(2)
    for cell in track(wanted, "cells", console=None, disable=not console().is_terminal):
        known = [row for row in rows if _cell(row) == cell and row.get("planner") not in again]
        made = measure(cell, known)
        if made:
            new += made
            rows = [row for row in rows if _cell(row) != cell] + known + made
            write_result(output, command, about, rows, complete=False)
    write_result(output, command, about, rows)
    return rows, new


def _cell(row: Row) -> Cell:
    return row["model"], row["topology"], row["phase"], row["budget"]


def _known_rows(folder: Path) -> list[Row]:
    path = folder / "result.json"
    return list(json.loads(path.read_text(encoding="utf-8"))["rows"]) if path.is_file() else []


def _slots(num_experts: int, smallest: int, ranks: int, budget: str) -> int | None:
    """Slots per rank of a budget; None if a smaller budget has as many."""
    more = max(smallest, -(-num_experts * 5 // (4 * ranks)))
    slots = {"E": smallest, "E + 1 per rank": smallest + 1, "1.25 E": more}[budget]
    return None if budget == "1.25 E" and slots <= smallest + 1 else slots

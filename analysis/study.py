"""`grace-opt study`: what a plan brings on every combination of listed values, resumable, with figures to decide by.

Cells are run by a Hydra multirun: by processes of this machine (the joblib launcher), or on a cluster by whatever
launcher `hydra/launcher=` names. A cell that is done is a file in OUTPUT/cells, so the same command continues a study
that was killed, and one with further values runs only what is new.
"""

import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from hydra import initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from omegaconf import OmegaConf
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from analysis.parts import require_dealer
from analysis.report import console
from analysis.results import Row, require_writable, write_result
from analysis.study_axes import Sweep, read_sweep
from analysis.study_cell import Cell, keep, run_cell
from analysis.study_figures import draw_study
from analysis.study_findings import findings
from analysis.study_look import labels
from analysis.study_series import short, shown
from analysis.study_table import rows_of, write_table
from grace_opt.configuration import CONF_DIR, build

MOST_LINES = 40
"""Rows of cells, and sentences about them, that are printed; all are in the files."""


def study(overrides: list[str]) -> list[Row]:
    """Run the cells that are not done, then write table.parquet, table.csv, result.json and figures.

    Raises:
        ValueError: bad arguments, no cell could be priced, or the launcher failed.
        KeyboardInterrupt: with how many cells are done; the table has those.
    """
    sweep = read_sweep("study", overrides)
    _require_dealer(sweep)
    output = str(sweep.config.output)
    folder = require_writable(output)
    wanted = [cell.row(folder) is None for cell in sweep.cells]
    failure: Exception | None = None
    try:
        if any(wanted):
            _run(sweep, wanted, folder)
    except KeyboardInterrupt:
        _write(sweep, folder, figures=False)
        raise KeyboardInterrupt(f"{_done(sweep, folder)}; the same command continues") from None
    except Exception as error:  # cells keep their errors to themselves: what comes out is the launcher's
        failure = error
    rows = _write(sweep, folder, figures=bool(sweep.config.figures))
    if failure is not None or not all(cell.path(folder).exists() for cell in sweep.cells):
        why = "" if failure is None else f" ({type(failure).__name__}: {' '.join(str(failure).split())[:300]})"
        raise ValueError(
            f"processes of the study ended early{why}: {_done(sweep, folder)}; the same command continues, "
            "hydra.launcher.n_jobs=1 needs least memory"
        ) from failure
    failed = [row for row in rows if row["kind"] == "cell" and row["status"] == "error"]
    if len(failed) == len(sweep.cells):
        raise ValueError(f"none of {len(failed)} cells could be priced: {failed[0]['error']}")
    return rows


def _require_dealer(sweep: Sweep) -> None:
    """Raise ValueError if slots are to be dealt to layers and no planner of these cells deals any."""
    asked = {cell.parts["planner"]: cell.content["planner"] for cell in sweep.cells if cell.content["deal_slots"]}
    if asked:
        require_dealer([build(OmegaConf.create(planner)) for planner in asked.values()])


def _run(sweep: Sweep, wanted: Sequence[bool], folder: Path) -> None:
    cells = [cell for cell, want in zip(sweep.cells, wanted, strict=True) if want]
    for cell in cells:
        cell.path(folder).unlink(missing_ok=True)  # damaged, or failed for a reason that may have passed
    config_dir = str(CONF_DIR.absolute())
    with initialize_config_dir(config_dir, version_base="1.3"), _progress(cells, len(sweep.cells), folder):
        hydra: Any = GlobalHydra.instance().hydra
        returns = hydra.multirun("study", run_cell, sweep.arguments(wanted), with_log_configuration=False)
    for record in (job.return_value for batch in returns for job in batch):
        path = folder / "cells" / f"{record['digest']}.json"
        if not path.exists() and "config" in record:  # computed where our folder cannot be seen
            keep(path, record)


@contextmanager
def _progress(cells: Sequence[Cell], total: int, folder: Path) -> Iterator[None]:
    """Cells done of all and time left, on a terminal: counts files, so it shows what any launcher does."""
    columns = (TextColumn("cells"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    shown_on = Console(stderr=True)
    over = threading.Event()
    with Progress(*columns, console=shown_on, disable=not shown_on.is_terminal) as progress:
        task = progress.add_task("cells", total=total, completed=total - len(cells))

        def count() -> None:
            done = sum(cell.path(folder).exists() for cell in cells)
            progress.update(task, completed=total - len(cells) + done)

        def watch() -> None:
            while not over.wait(0.5):
                count()

        thread = threading.Thread(target=watch, daemon=True)
        if shown_on.is_terminal:
            thread.start()
        try:
            yield
        finally:
            over.set()
            count()


def _write(sweep: Sweep, folder: Path, figures: bool) -> list[Row]:
    """Write and print what all cells that are done say."""
    rows = rows_of(sweep, folder)
    if not rows:
        return []
    priced = [row for row in rows if row["status"] == "ok"]
    found = findings(priced) if priced else []
    about = _about(sweep, rows, priced)
    write_table(folder, rows)
    everything = [*rows, *found]
    write_result(folder, "study", about, everything, complete=about["cells_done"] == about["cells"])
    drawn = draw_study(folder / "figures", priced, found) if figures and priced else []
    _print(sweep, about, rows, found)
    pictures = f", figures {', '.join(drawn)} in figures/" if drawn else ""
    print(f"\nwrote {folder}/table.parquet, table.csv and result.json{pictures}")
    return everything


def _about(sweep: Sweep, rows: Sequence[Row], priced: Sequence[Row]) -> dict[str, Any]:
    return {
        "axes": {axis.name: list(axis.values) for axis in sweep.swept},
        "fixed": [f"{axis.key}={axis.values[0]}" for axis in sweep.axes if len(axis.values) == 1],
        "cells": len(sweep.cells),
        "cells_done": len(rows),
        "cells_failed": len(rows) - len(priced),
        "synthetic": any(row["synthetic"] for row in priced),
        "assumed": list(dict.fromkeys(row["assumed"] for row in priced if row["assumed"])),
        "labels": labels(priced),
    }


def _print(sweep: Sweep, about: dict[str, Any], rows: Sequence[Row], found: Sequence[Row]) -> None:
    out = console()
    failed = f", {about['cells_failed']} of them failed" if about["cells_failed"] else ""
    out.print(f"{about['cells_done']} of {about['cells']} cells done{failed}", highlight=False)
    for line in about["labels"]:
        out.print(line, highlight=False, markup=False)
    if len(rows) <= MOST_LINES:
        out.print(_table(sweep, rows))
    sentences = [row["text"] for row in found if row["kind"] != "break_even"]
    sentences += [row["text"] for row in found if row["kind"] == "break_even"]
    for text in sentences[:MOST_LINES]:
        out.print(text, highlight=False, markup=False)
    if len(sentences) > MOST_LINES:
        print(f"{len(sentences) - MOST_LINES} more findings are in result.json")
    errors = dict.fromkeys(row["error"] for row in rows if row["error"])
    for text in list(errors)[:5]:
        count = sum(row["error"] == text for row in rows)
        out.print(f"{count} cells failed: {text}", style="yellow", highlight=False, markup=False)
    for text in dict.fromkeys(row["warnings"] for row in rows if row.get("warnings")):
        out.print(f"warning: {text}", style="yellow", highlight=False, markup=False)


def _table(sweep: Sweep, rows: Sequence[Row]) -> Table:
    names = [axis.name for axis in sweep.swept]
    table = Table(box=None, pad_edge=False, padding=(0, 1))
    for name in names:
        table.add_column(short(name))
    titles = ["slots\nper rank", "load\nmax/mean", "cross-node\nrows/token", "layer\nms", "over\nlinear"]
    whole = any(row.get("time_per_token_s") is not None for row in rows)
    for title in (*titles, *(("first\ntoken ms", "next\nms") if whole else ())):
        table.add_column(title, justify="right")
    for row in rows:
        values = [escape(shown(name, row[name])) for name in names]
        if row["status"] == "error":
            table.add_row(*values, "", "", "", "failed", style="yellow")
            continue
        speedup = row.get("speedup_over_linear")
        table.add_row(
            *values,
            str(row["slots_per_rank"]),
            f"{row['load_max_over_mean']:.2f}",
            f"{row['cross_node_rows_per_token']:.3f}",
            f"{row['layer_time_s'] * 1e3:.3f}",
            "" if speedup is None else f"{speedup:.2f}x",
            *(_ms(row[name]) for name in ("time_to_first_token_s", "time_per_token_s") if whole),
        )
    return table


def _ms(seconds: float | None) -> str:
    return "" if seconds is None else f"{seconds * 1e3:.2f}"


def _done(sweep: Sweep, folder: Path) -> str:
    done = sum(cell.row(folder) is not None for cell in sweep.cells)
    return f"{done} of {len(sweep.cells)} cells are done in {folder}"

"""The rows of a study as one tidy table, in Parquet and CSV."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet

from analysis.results import Row
from analysis.study_axes import Sweep
from grace_opt import __version__
from grace_opt.atomic import write_atomically


def rows_of(sweep: Sweep, output: str | Path) -> list[Row]:
    """One row for each cell that is done, in the order of the arguments: the values swept, then what was found."""
    rows = []
    for cell, values in zip(sweep.cells, sweep.values, strict=True):
        if (row := cell.row(output)) is not None:
            rows.append({"kind": "cell", **values, **row, "cell": cell.digest})
    return _with_speedups(rows)


def write_table(folder: Path, rows: Sequence[Row]) -> None:
    """Write `table.parquet` and `table.csv`, the same columns in both; what a failed cell lacks is null."""
    table = table_of(rows)
    write_atomically(folder / "table.parquet", lambda path: pa.parquet.write_table(table, path))
    write_atomically(folder / "table.csv", lambda path: pa.csv.write_csv(table, path))


def table_of(rows: Sequence[Row]) -> pa.Table:
    """The rows as columns of one type each; numbers and text under one name become text."""
    names = list(dict.fromkeys(name for row in rows for name in row if name != "kind"))
    columns = {name: _column([row.get(name) for row in rows]) for name in names}
    return pa.table(columns).replace_schema_metadata({"grace_opt": __version__, "times": "predicted, seconds"})


def _column(values: Sequence[Any]) -> pa.Array:
    kinds = {type(value) for value in values if value is not None}
    if kinds == {int, float}:
        return pa.array([None if value is None else float(value) for value in values])
    if not kinds:
        return pa.array(values, pa.string())
    if len(kinds) > 1 or kinds & {list, dict, tuple}:
        return pa.array([None if value is None else str(value) for value in values])
    return pa.array(values)


def _with_speedups(rows: list[Row]) -> list[Row]:
    """With `speedup_over_linear` and `fit_speedup_over_linear` where a cell differs from one of `linear` by the planner
    only."""

    def others(row: Row) -> tuple[Any, ...]:
        return tuple(repr(value) for name, value in row.items() if name.startswith("cell.") and name != "cell.planner")

    linear = {others(row): row for row in rows if row["status"] == "ok" and row["method"] == "Linear"}
    result = []
    for row in rows:
        base = linear.get(others(row)) if row["status"] == "ok" else None
        speedups = {
            f"{part}speedup_over_linear": base[f"{part}layer_time_s"] / row[f"{part}layer_time_s"] if base else None
            for part in ("", "fit_")
        }
        result.append({**row, **speedups})
    return result

"""What a result was made from and by, and everything it holds, as tables: fields of any command, known or not."""

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

from analysis.html_report.elements import Cell, Child, Element, details, el, section, table
from analysis.html_report.result_file import Found, Result
from analysis.html_report.units import is_number, unit_of, words
from grace_opt import __version__
from grace_opt.provenance import provenance

MOST_ROWS, MOST_COLUMNS = 500, 40
KNOWN = ("command", "version", "status", "problem", "rows", "made", "advice")
NAMES = {"num_nodes": "nodes", "num_ranks": "ranks", "assumed": "assumed constants", "trace": "trace source",
         "phase": "phase of the trace", "tokens_per_rank": "tokens per rank and batch, asked for",
         "trace_names_model": "the trace names its model"}  # fmt: skip


def inputs(result: Result) -> Element:
    """Inputs and versions."""
    asked = {**result.problem, **{k: v for k, v in result.content.items() if k not in KNOWN}}
    lines = [
        (NAMES.get(key, key.replace("_", " ")), _text(value)) for key, value in asked.items() if not _is_rows(value)
    ]
    lines = [(name, text) for name, text in lines if text]
    made = result.made
    command = " ".join(map(_quoted, ["grace-opt", result.command, *_texts(made.get("arguments"))])) if made else ""
    here = provenance()
    versions = [
        ("command", command or f"grace-opt {result.command} (arguments not recorded)"),
        ("made by", f"grace-opt {_text(result.content.get('version')) or 'of unknown version'}"),
        ("commit", _text(made.get("commit"))),
        ("machine", _text(made.get("machine"))),
        ("date", _text(made.get("date"))),
        ("seed", next((a.partition("=")[2] for a in _texts(made.get("arguments")) if a.startswith("seed=")), "")),
        ("this page", f"grace-opt {__version__}, commit {here['commit']}, {here['date']}"),
    ]
    synthetic = [("SYNTHETIC", "yes: the trace was made up, not recorded")] if result.synthetic else []
    return section(
        "inputs", "Inputs and versions",
        table(("input", "value"), [*synthetic, *lines], "inputs") if lines or synthetic else None,
        table(("made", "by what, when"), [line for line in versions if line[1]], "versions"),
    )  # fmt: skip


def further(result: Result) -> Element | None:
    """Lists of objects that a command writes beside its rows, each as a table."""
    places = [(f"/problem/{key}", key, value) for key, value in result.problem.items()]
    places += [(f"/{key}", key, value) for key, value in result.content.items() if key not in KNOWN]
    drawn = []
    for at, key, value in places:
        if _is_rows(value):
            rows = [Found(row, f"{at}/{index}") for index, row in enumerate(value)]
            drawn += [el("h3", key.replace("_", " ")), fields_table(rows, key.replace("_", " "))]
    return section("further", "What else the command found", drawn) if drawn else None


def all_rows(result: Result) -> Element:
    """Every row with every field."""
    shown = result.rows[:MOST_ROWS]
    more = len(result.rows) - len(shown)
    text = (
        f"The first {len(shown)} of {len(result.rows)} rows; all are in result.json."
        if more
        else f"All {len(shown)} rows of result.json."
    )
    return section("rows", "All numbers", el("p", text), details("Show the rows", fields_table(shown, "all rows")))


def fields_table(rows: Sequence[Found], name: str) -> Element:
    """Rows of any fields: numbers with one unit a column, all else as text."""
    fields = [
        f for f in dict.fromkeys(f for found in rows for f in found.row) if any(_text(found[f]) for found in rows)
    ]
    fields = fields[:MOST_COLUMNS]
    units = {f: unit_of(f, [found[f] for found in rows]) for f in fields}
    numeric = {f for f in fields if all(is_number(found[f]) or found[f] is None for found in rows)}
    lines: list[list[Cell | Child]] = [
        [Cell(found[f], units[f], found.place(f)) if f in numeric else _text(found[f]) for f in fields]
        for found in rows
    ]
    titles = [f"{words(f)} {units[f].name}".rstrip() if f in numeric else words(f) for f in fields]
    return table(titles, lines, name)


def _is_rows(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and all(isinstance(row, Mapping) for row in value)


def _text(value: Any) -> str:
    """A value in words; "" for none."""
    if value is None or value == "" or value == [] or value == {}:
        return ""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, Mapping):
        return ", ".join(f"{key}: {_text(item)}" for key, item in value.items())
    if isinstance(value, list):
        return ", ".join(_text(item) for item in value)
    return f"{value:,}" if type(value) is int else value if isinstance(value, str) else json.dumps(value)


def _texts(value: Any) -> list[str]:
    return [str(item) for item in value] if isinstance(value, list) else []


def _quoted(argument: str) -> str:
    """As a shell takes it."""
    return argument if re.fullmatch(r"[\w@%+=:,./~-]+", argument) else "'" + argument.replace("'", "'\"'\"'") + "'"

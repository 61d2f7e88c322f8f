"""Predicted against measured: runs of a validation, and errors against measurements that others published."""

from collections.abc import Sequence

from analysis.html_report.bars import Bar, bars
from analysis.html_report.chart import Axis
from analysis.html_report.elements import Cell, Child, Element, figure, number, section, table
from analysis.html_report.result_file import Found, Result
from analysis.html_report.units import Unit, is_number, seconds

MOST_RUNS = 24
CELL = ("cluster", "workload", "tokens_per_rank_asked")


def validation(result: Result) -> Element | None:
    """One figure for every cluster, workload and batch size."""
    rows = [f for f in result.rows if is_number(f["predicted_s"]) and is_number(f["measured_s"])]
    groups: dict[tuple[str, ...], list[Found]] = {}
    for found in rows:
        groups.setdefault(tuple(found.text(field) for field in CELL), []).append(found)
    drawn = [_runs(number_, cell, group) for number_, (cell, group) in enumerate(groups.items())]
    return section("agreement", "Predicted against measured", drawn) if drawn else None


def accuracy(result: Result) -> Element | None:
    """Median errors of data sets and protocols."""
    rows = [found for found in result.rows if is_number(found["median_pct"]) and found["data"]]
    if not rows:
        return None
    unit = Unit("%", 1, 1)
    axis = Axis("median error of predicted times, %", 0.0, max(f["median_pct"] for f in rows) * 1.05 or 1.0, unit)
    shown = [
        Bar(_compared(f), [("one", f["median_pct"])], number(f["median_pct"], unit, f.place("median_pct"), named=True))
        for f in rows
    ]
    fields = ("median_pct", "mean_pct", "p90_pct", "worst_pct", "bias_pct")
    lines: list[Sequence[Cell | Child]] = [
        (f.text("data"), f.text("protocol"), *(Cell(f[field], unit, f.place(field)) for field in fields), f.text("aim"),
         f.text("note"))
        for f in rows
    ]  # fmt: skip
    titles = ("data", "protocol", *(f"{field.removesuffix('_pct')} %" for field in fields), "aim", "note")
    caption = "Constants were not fitted to these measurements, unless the protocol is in sample; shorter is better."
    drawn = figure("errors", "Median error", bars(shown, axis), caption, table(titles, lines, "errors"))
    return section("accuracy", "Errors of the cost model", drawn)


def _compared(found: Found) -> str:
    missed = " (aim missed)" if found["reached"] is False else ""
    return f"{found.text('data')}, {found.text('protocol').replace('_', ' ')}{missed}"


def _runs(index: int, cell: tuple[str, ...], rows: Sequence[Found]) -> Element:
    order = sorted(rows, key=lambda found: float(found["measured_s"]))
    most = max(max(f["predicted_s"], f["measured_s"]) for f in order)
    unit = seconds(most)
    axis = Axis(f"layer time, {unit.name}", 0.0, most * 1.02, unit)
    shown = [
        Bar(f"{f.text('planner')}, {f.text('scheme')}: {kind}", [(fill, f[f"{kind}_s"])],
            number(f[f"{kind}_s"], unit, f.place(f"{kind}_s"), named=True), kind == "measured")
        for f in order[:MOST_RUNS] for kind, fill in (("measured", "one"), ("predicted", "bound"))
    ]  # fmt: skip
    error = Unit("%", 100, 1)
    lines: list[Sequence[Cell | Child]] = [
        (f.text("planner"), f.text("scheme"), *(Cell(f[n], unit, f.place(n)) for n in ("predicted_s", "measured_s")),
         Cell(f["predicted_s"] / f["measured_s"] - 1 if f["measured_s"] else None, error))
        for f in order
    ]  # fmt: skip
    titles = ("planner", "scheme", f"predicted, {unit.name}", f"measured, {unit.name}", "error %")
    title = ", ".join(part for part in (*cell[:2], f"{cell[2]} tokens per rank" if cell[2] else "") if part)
    caption = "Mean over layers, the fastest measured first. Equal lengths of a pair are a right prediction."
    return figure(f"runs-{index}", title or "runs", bars(shown, axis), caption, table(titles, lines, title or "runs"))

"""Our figures beside those of the GRACE-MoE paper: speedups, changes and times, as rows and as a table."""

from collections.abc import Iterator, Mapping, Sequence

import numpy as np
from rich.markup import escape
from rich.table import Table

from analysis.ablation import QUANTITIES, STEPS
from analysis.paper_reasons import reasons
from analysis.paper_steps import EFFECTS, FIELDS, FIRST, GRACE, GROUPING, OVER_OCCULT, OVER_SLOWEST, change, of_step
from analysis.report import console
from analysis.results import Row


def compare(rows: Sequence[Row]) -> Iterator[Row]:
    """Our figures beside the paper's, as speedups, as changes in percent, or in ms."""
    firsts = {
        model: [r for r in rows if r["model"] == model and (r["cluster"], r["workload"]) == FIRST]
        for model in dict.fromkeys(row["model"] for row in rows)
    }
    for model, first in firsts.items():
        own, why = [row for row in rows if row["model"] == model], reasons(first, firsts)
        cells = {(row["cluster"], row["workload"]) for row in own}
        best = max(max(r["total_s"] for r in cell) / of_step(cell, GRACE)["total_s"] for cell in _cells(own, cells))
        yield _beside(f"{model}: end to end over the slowest", best, OVER_SLOWEST.get(model), "x", why["over slowest"])
        occult = of_step(first, "Occult")["total_s"] / of_step(first, GRACE)["total_s"]
        yield _beside(f"{model}: end to end over Occult", occult, OVER_OCCULT.get(model), "x", why["end to end"])
        for effect, new, old, figures in EFFECTS:
            for quantity, figure in zip(QUANTITIES[:2], figures.get(model, (None, None)), strict=True):
                ours = change(first, FIELDS[quantity], new, old)
                yield _beside(f"{model}: {effect}, {quantity}", ours, figure, "%", why[quantity])
    yield from _grouping(firsts)
    yield from _ablation(firsts)


def _grouping(firsts: Mapping[str, Sequence[Row]]) -> Iterator[Row]:
    first = firsts.get("olmoe_1b_7b")
    if not first:
        return
    why, quantities = reasons(first, firsts), ("all-to-all time", "GPU idle time", "end to end")
    for step, figures in GROUPING.items():
        for quantity, figure in zip(quantities, figures, strict=True):
            ours = 1e3 * of_step(first, step)[FIELDS[quantity]]
            yield _beside(f"olmoe_1b_7b: {step}, {quantity}", ours, figure, "ms", why["ms"])
    for step, figures in list(GROUPING.items())[1:]:
        for quantity, figure, uniform in zip(quantities, figures, GROUPING["Occult + HSC"], strict=True):
            ours = change(first, FIELDS[quantity], step, "Occult + HSC")
            what = f"olmoe_1b_7b: {step} over uniform, {quantity}"
            yield _beside(what, ours, 100 * (figure / uniform - 1), "%", why[quantity])


def _ablation(firsts: Mapping[str, Sequence[Row]]) -> Iterator[Row]:
    """Change against Occult, mean over the models there are."""
    for step, _, _, figures in STEPS[1:]:
        for index, quantity in enumerate(QUANTITIES):
            ours = [change(first, FIELDS[quantity], step.strip(), "Occult") for first in firsts.values()]
            recorded = [x for x, first in zip(ours, firsts.values(), strict=True) if not first[0]["synthetic"]]
            paper_figure = figures[index] if figures else None
            why = "only synthetic traces"
            if recorded and paper_figure is not None:
                apart = abs(np.mean(recorded) - paper_figure)
                why = (
                    "open: recorded traces alone differ too" if apart > 10 else "synthetic traces; recorded ones agree"
                )
            if quantity == "GPU idle time":
                why = reasons(next(iter(firsts.values())), firsts)[quantity]
            what = f"ablation: {step.strip()}, {quantity}"
            yield _beside(what, float(np.mean(ours)), paper_figure, "%", why)


def _beside(what: str, ours: float, paper_figure: float | None, unit: str, why: str) -> Row:
    """Ours beside the paper's; speedups and times differ by percent of the paper's, changes by points."""
    apart = None
    if paper_figure is not None:
        apart = float(ours - paper_figure if unit == "%" else 100 * (ours / paper_figure - 1))
    differs = bool(apart is not None and abs(apart) > 10)
    figures = {"ours": float(ours), "paper": paper_figure, "points_apart": apart}
    return {"what": what, "unit": unit, **figures, "differs": differs, "why": why if differs else ""}


def _cells(rows: Sequence[Row], keys: set[tuple[str, str]]) -> Iterator[list[Row]]:
    for key in keys:
        yield [row for row in rows if (row["cluster"], row["workload"]) == key]


def print_comparison(rows: Sequence[Row], compared: Sequence[Row], skipped: Sequence[str]) -> None:
    """Print times of all steps, ours beside the paper's with numbered reasons, and what was skipped."""
    out = console()
    for model in dict.fromkeys(row["model"] for row in rows):
        own = [row for row in rows if row["model"] == model]
        kind = "SYNTHETIC trace" if own[0]["synthetic"] else "real trace"
        out.print(f"\n{model} ({kind}), end to end in ms, held out\n", highlight=False, markup=False)
        table = Table("step", box=None, pad_edge=False, padding=(0, 2))
        cells = list(dict.fromkeys((row["cluster"], row["workload"]) for row in own))
        rows_of = [[row for row in own if (row["cluster"], row["workload"]) == cell] for cell in cells]
        for cluster, workload in cells:
            table.add_column(f"{cluster}\n{workload}", justify="right", no_wrap=True)
        for step in dict.fromkeys(row["step"] for row in own):
            times = [of_step(of_cell, step)["total_s"] for of_cell in rows_of]
            table.add_row(escape(step), *(f"{time * 1e3:.0f}" for time in times))
        out.print(table)
    out.print("\nbeside the paper\n")
    table = Table("", box=None, pad_edge=False, padding=(0, 2))
    for title in ("ours", "paper", "why"):
        table.add_column(title, justify="right", no_wrap=True)
    notes = list(dict.fromkeys(row["why"] for row in compared if row["differs"]))
    for row in compared:
        figures = [_figure(row[name], row["unit"]) for name in ("ours", "paper")]
        why = f"differs ({notes.index(row['why']) + 1})" if row["differs"] else ""
        table.add_row(escape(row["what"]), *figures, why)
    out.print(table)
    for number, note in enumerate(notes, 1):
        out.print(f"({number}) {note}", highlight=False, markup=False)
    for line in skipped:
        out.print(f"skipped: {line}", style="yellow", highlight=False, markup=False)


def _figure(value: float | None, unit: str) -> str:
    if value is None:
        return ""
    return {"%": f"{value:+.1f} %", "x": f"{value:.2f}x", "ms": f"{value:.0f} ms"}[unit]

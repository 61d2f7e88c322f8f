"""Plans side by side: times by phase, held out and fit apart; who could not plan; how far from the best possible."""

from collections.abc import Sequence

from analysis.html_report.bars import Bar, bars
from analysis.html_report.chart import Axis
from analysis.html_report.elements import (
    Cell,
    Child,
    Element,
    details,
    el,
    figure,
    legend,
    number,
    section,
    swatch,
    table,
)
from analysis.html_report.result_file import Found, Result
from analysis.html_report.subject import Subject, differing, groups_of
from analysis.html_report.units import Unit, is_number, unit_of, words

PHASES = ("dispatch_s", "experts_s", "combine_s")
COLUMNS = ("layer_time_s", "speedup_over_linear", "speedup_over_best_rival", "dispatch_s", "experts_s", "combine_s",
           "idle_s", "cross_node_rows_per_token", "intra_node_rows_per_token", "load_max_over_mean",
           "load_max_over_mean_worst_layer", "memory_bytes_per_rank", "slots_used", "plan_s")  # fmt: skip
MOST = 24
"""Bars of a figure, the best; all rows are in the tables."""


def planners(about: Subject | None) -> Element | None:
    """Every plan for the same work as the subject."""
    if about is None:
        return None
    own = about.found["homes"]
    parts = [("held_out", "sequences no plan was fitted to", list(about.group)),
             ("fit", "the sequences the plans were fitted to", _alike(about))]  # fmt: skip
    values = [found[about.metric] for _, _, rows in parts for found in rows]
    unit = unit_of(about.metric, values)
    axis = Axis(f"{words(about.metric)}{unit.name and f', {unit.name}'}", 0.0, max(values) * 1.02, unit)
    drawn = [_bars(about, split, said, rows, axis) for split, said, rows in parts if rows]
    homes = (
        "Requests live where the plan's own rule puts them, not where those of other plans do. "
        if own == "chosen"
        else ""
    )
    work = f"Of what was priced, this is the work on which the plan gains most: {about.kind}." if about.kind else ""
    return section("planners", "Against the engine default and rivals", el("p", homes, work) if homes or work else None,
                   drawn)  # fmt: skip


def failed(result: Result) -> Element | None:
    """Planners that have no plan, with why."""
    if not result.failed:
        return None
    reasons: dict[str, list[str]] = {}
    for found in result.failed:
        slots = found["slots_per_rank"] if found["slots_per_rank"] is not None else found["cell.slots_per_rank"]
        name = (found.text("planner") or found.text("cell.planner") or found.at) + (
            f", {slots} slots per rank" if slots else ""
        )
        reasons.setdefault(found.text("error"), []).append(name)
    rows: list[Sequence[Child]] = [("; ".join(dict.fromkeys(names)), error) for error, names in reasons.items()]
    return section("failed", "No plan", el("p", "These could not plan within what they were given."),
                   table(("planner", "why"), rows, "planners without a plan"))  # fmt: skip


def certificate(about: Subject | None) -> Element | None:
    """The plan against what no plan can beat, where it was fitted."""
    if about is None:
        return None
    found = about.own_fit or about.found
    if is_number(found["load_max_over_mean_least"]):
        pair = (about.metric, "load_max_over_mean_least")
    elif is_number(found["objective"]) and is_number(found["bound"]) and found["bound"] > 0:
        pair = ("objective", "bound")
    else:
        return None
    found_, least = (found[field] for field in pair)
    unit = unit_of("layer_time_s" if pair[0] == "objective" else pair[0], [found_, least])
    axis = Axis(f"{words(about.metric)}{unit.name and f', {unit.name}'}", 0.0, max(found_, least) * 1.05, unit)
    shown = [
        Bar("found", [("one", found_)], number(found_, unit, found.place(pair[0]), named=True), True, least),
        Bar("no plan can do with less than", [("bound", least)], number(least, unit, found.place(pair[1]), named=True)),
    ]
    gap = found["gap"] if is_number(found["gap"]) else found_ / least - 1
    place = found.place("gap") if is_number(found["gap"]) else None
    caption: list[Child] = [
        "The gap is ", number(gap, Unit("%", 100, 1), place, named=True),
        " of the bound: the best plan lies somewhere in it. The bound holds for every placement with these slots on "
        "the sequences that the plan was fitted to, under this scheme and this model of the cluster. It is proven, not "
        "estimated, and may be lower than what any plan reaches.",
    ]  # fmt: skip
    rows: list[Sequence[Cell | Child]] = [("found", Cell(found_, unit, found.place(pair[0]))),
                                          ("bound", Cell(least, unit, found.place(pair[1])))]  # fmt: skip
    numbers = table(("", axis.title), rows, "found and bound")
    drawn = figure("gap", f"{found.text('planner')} and the bound on all plans", bars(shown, axis), caption, numbers)
    return section("certificate", "How much better a plan could be", drawn)


def cells(result: Result, about: Subject | None) -> Element | None:
    """The best plan for every kind of work, if there are several."""
    groups = {} if about is None else groups_of(result, about.metric)
    if about is None or len(groups) < 2:
        return None
    fields = differing(groups)
    unit = unit_of(about.metric, [rows[0][about.metric] for rows in groups.values()])
    lines: list[Sequence[Cell | Child]] = []
    for rows in groups.values():
        best = rows[0]
        base = next((f for f in rows if "linear" in (f["planner"], str(f["method"]).lower())), None)
        ratio = None if base is None else base[about.metric] / best[about.metric]
        told = Cell(best[about.metric], unit, best.place(about.metric))
        lines.append((*map(best.text, fields), best.text("planner"), told, Cell(ratio, Unit("", 1, 3))))
    titles = (*map(words, fields), "best plan", f"{words(about.metric)} {unit.name}", "times as fast as linear")
    shown = table(titles, lines, "the best plan for every kind of work")
    text = f"{len(groups)} kinds of work were priced, held out; this is the best plan for each."
    return section(
        "cells", "Everything that was priced", el("p", text), details("Show all", shown) if len(lines) > 20 else shown
    )


def _alike(about: Subject) -> list[Found]:
    """The fit rows of the group's plans, in their order."""
    scheme = about.found["scheme"]
    by_name = {f.text("planner"): f for f in about.fit if f["scheme"] == scheme and f["homes"] == about.found["homes"]}
    return [by_name[name] for found in about.group if (name := found.text("planner")) in by_name]


def _bars(about: Subject, split: str, said: str, rows: list[Found], axis: Axis) -> Element:
    phased = about.metric == "layer_time_s" and all(is_number(f[p]) for f in rows for p in PHASES) and all(
        f["overlap"] in (None, "none") for f in rows)  # fmt: skip
    shown = [
        Bar(
            _name(found),
            [(p.removesuffix("_s"), found[p]) for p in PHASES] if phased else [("one", found[about.metric])],
            number(found[about.metric], axis.unit, found.place(about.metric), named=True),
            found["planner"] == about.found["planner"] and found["weight"] == about.found["weight"],
        )
        for found in rows[:MOST]
    ]
    kinds = legend([(swatch(p.removesuffix("_s")), p.removesuffix("_s")) for p in PHASES]) if phased else None
    caption = (
        f"Mean over layers on {said}; shorter is better. "
        + ("From left to right a bar is dispatch, experts and combine. " if phased else "")
        + (
            "These are the figures that count."
            if split == "held_out"
            else "Here a plan knows what comes: no figure to promise."
        )
    )
    title = "Held out" if split == "held_out" else "Where they were fitted"
    return figure(f"planners-{split}", title, [kinds, *bars(shown, axis)], caption, row_table(rows, title))


def row_table(rows: Sequence[Found], name: str) -> Element:
    """The figures of plans, one line each."""
    fields = [field for field in COLUMNS if any(is_number(found[field]) for found in rows)]
    units = {field: unit_of(field, [found[field] for found in rows]) for field in fields}
    titles = ["planner", *(f"{words(field)} {units[field].name}".rstrip() for field in fields)]
    lines: list[list[Cell | Child]] = [
        [_name(found), *(Cell(found[f], units[f], found.place(f)) for f in fields)] for found in rows
    ]
    return table(titles, lines, name)


def _name(found: Found) -> str:
    weight = found["weight"]
    return found.text("planner") + (f", weight of rows {weight}" if weight is not None else "")

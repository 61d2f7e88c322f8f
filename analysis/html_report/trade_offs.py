"""Curves: time over memory or another axis of a study, rows between nodes against load; and what a study found."""

from collections.abc import Sequence

from analysis.html_report.chart import Axis, spanning
from analysis.html_report.curves import MOST, Series, curves
from analysis.html_report.elements import Cell, Child, Element, el, figure, section, table
from analysis.html_report.result_file import Found, Result
from analysis.html_report.units import Unit, is_number, unit_of, words
from analysis.study_series import DECIDED, SLOTS, Label, name_of, numeric_axes, varying
from analysis.study_series import unit_of as unit_of_axis

SLOTS_FIELD, TIME = "slots_per_rank", "layer_time_s"


def redundancy(result: Result) -> Element | None:
    """Time of a layer over slots per rank, if there are several budgets."""
    rows = [
        found
        for found in result.with_number(TIME, "held_out")
        if is_number(found[SLOTS_FIELD]) and found["weight"] is None
    ]
    if len({found[SLOTS_FIELD] for found in rows}) < 2 or not (result.command == "front" or SLOTS in _varying(rows)):
        return None
    text = (
        "Every slot beyond the first copy of each expert is a redundant expert: it costs memory, and may save time. A "
        "curve that is flat says that more of them bring nothing."
    )
    drawn = _by_context(rows, SLOTS_FIELD, "slots", "slots per rank and layer", Unit("", 1, 0))
    return section("redundancy", "What redundant experts bring", el("p", text), drawn)


def along_axes(result: Result) -> Element | None:
    """Time of a layer along the numeric axes of a study."""
    rows = result.with_number(TIME, "held_out")
    axes = [axis for axis in numeric_axes([dict(found.row) for found in rows]) if axis != SLOTS] if rows else []
    drawn = []
    for axis in axes:
        factor, unit = unit_of_axis(axis)
        title = f"{words(axis.rpartition('.')[2])}{unit and f',{unit}'}"
        drawn += _by_context(
            rows, axis, axis.rpartition(".")[2].replace("_", "-"), title, Unit(unit.strip(), 1 / factor, 3)
        )
    return section("axes", "Time of a layer along what was varied", drawn) if drawn else None


def findings(result: Result) -> Element | None:
    """The sentences of a study."""
    texts = [found.text("text") for found in result.rows if found["kind"] not in (None, "cell") and found["text"]]
    if not texts:
        return None
    return section("findings", "What the study found", el("ul", (el("li", text) for text in dict.fromkeys(texts))))


def front(result: Result) -> Element | None:
    """Rows against the busiest rank's load, a mark for each budget."""
    rows = [f for f in result.with_number("rows_per_token", "held_out") if is_number(f["load_max_over_mean"])]
    if not rows:
        return None
    budgets = sorted({float(found[SLOTS_FIELD]) for found in rows if is_number(found[SLOTS_FIELD])})[:MOST]
    kind = "between nodes" if (result.problem.get("num_nodes") or 2) != 1 else "between ranks"
    x = spanning(f"rows {kind}, per token and layer", [f["rows_per_token"] for f in rows], Unit("", 1, 3))
    y = spanning("load of the busiest rank over the mean", [f["load_max_over_mean"] for f in rows], Unit("", 1, 3))
    series = []
    for slots in budgets:
        own = sorted((f for f in rows if f[SLOTS_FIELD] == slots), key=lambda f: float(f["rows_per_token"]))
        ringed = [index for index, found in enumerate(own) if found["on_front"] is True]
        points = [(found["rows_per_token"], found["load_max_over_mean"]) for found in own]
        names = [f.text("planner") + ("" if f["weight"] is None else f" {f['weight']}") for f in own]
        series.append(Series(f"{slots:g} slots per rank", points, ringed, names, joined=False))
    caption = (
        "A point is a plan, measured held out by exact counts; lower left is best. A ring marks the front: no other "
        "plan is as good in rows, load and memory, and better in one."
    )
    best = [found for found in rows if found["on_front"] is True] or rows
    fields = ("rows_per_token", "load_max_over_mean", "memory_bytes_per_rank", TIME)
    units = {name: unit_of(name, [found[name] for found in rows]) for name in fields}
    lines: list[Sequence[Cell | Child]] = [
        (found.text("planner"), found.text("weight"), found.text(SLOTS_FIELD),
         *(Cell(found[name], units[name], found.place(name)) for name in fields),
         "yes" if found["on_front"] is True else "")
        for found in sorted(rows, key=lambda f: (not f["on_front"], float(f["rows_per_token"])))
    ]  # fmt: skip
    titles = (
        "planner",
        "weight of rows",
        "slots per rank",
        *(f"{words(n)} {units[n].name}".rstrip() for n in fields),
        "on the front",
    )
    shown = figure("front-points", f"{len(best)} of {len(rows)} plans are on the front", curves(series, x, y), caption,
                   table(titles, lines, "plans of the front"))  # fmt: skip
    return section("front", "Rows, load and memory against each other", shown)


def _by_context(rows: Sequence[Found], x: str, name: str, title: str, unit: Unit) -> list[Element]:
    """A figure for everything that one is given, a series for everything that one decides."""
    given = [axis for axis in _varying(rows) if axis not in (*DECIDED, SLOTS, x)]
    groups: dict[Label, list[Found]] = {}
    for found in rows:
        groups.setdefault(tuple((axis, found[axis]) for axis in given), []).append(found)
    return [
        _curve(group, x, f"{name}-{number}", name_of(context) if context else "", title, unit)
        for number, (context, group) in enumerate(groups.items())
        if len({found[x] for found in group}) > 1
    ]


def _curve(rows: Sequence[Found], x: str, name: str, context: str, title: str, x_unit: Unit) -> Element:
    by_name: dict[str, list[Found]] = {}
    for found in sorted(rows, key=lambda found: float(found[x])):
        scheme = f", {found['scheme']}" if len({str(f["scheme"]) for f in rows}) > 1 else ""
        by_name.setdefault(found.text("planner") + scheme, []).append(found)
    shown = sorted(by_name, key=lambda n: (n != "linear", min(float(f[TIME]) for f in by_name[n])))[:MOST]
    unit = unit_of(TIME, [found[TIME] for found in rows])
    values = [float(found[x]) for found in rows]
    steep = min(values) > 0 and max(values) / min(values) > 20 and x != SLOTS_FIELD
    across = (
        Axis(title, min(values) / 1.1, max(values) * 1.1, x_unit, True) if steep else spanning(title, values, x_unit)
    )
    up = spanning(f"{words(TIME)}, {unit.name}", [found[TIME] for n in shown for found in by_name[n]], unit)
    series = [Series(n, [(float(f[x]), float(f[TIME])) for f in by_name[n]], _least(by_name[n])) for n in shown]
    left_out = len(by_name) - len(shown)
    caption = "Held out, mean over layers; lower is better. The scale does not begin at 0. A ring marks its least." + (
        f" {left_out} slower planners are in the table only." if left_out else ""
    )
    memory = [found["memory_bytes_per_rank"] for found in rows]
    of_memory = unit_of("memory_bytes_per_rank", memory)
    lines: list[Sequence[Cell | Child]] = [
        (n, Cell(f[x], x_unit, f.place(x)), Cell(f[TIME], unit, f.place(TIME)),
         Cell(f["memory_bytes_per_rank"], of_memory, f.place("memory_bytes_per_rank")))
        for n, group in by_name.items() for f in group
    ]  # fmt: skip
    titles = ("series", title, f"{words(TIME)}, {unit.name}", f"weights on the fullest rank, {of_memory.name}")
    return figure(f"curve-{name}", context or "Time of a MoE layer", curves(series, across, up), caption,
                  table(titles, lines, f"{title} {context}"))  # fmt: skip


def _least(rows: Sequence[Found]) -> list[int]:
    return [min(range(len(rows)), key=lambda index: float(rows[index][TIME]))]


def _varying(rows: Sequence[Found]) -> list[str]:
    return varying([dict(found.row) for found in rows])

"""The object `advice` of `grace-opt advise`: verdict, how sure it is, memory, the engine's terms, what is open."""

from collections.abc import Mapping, Sequence
from typing import Any

from analysis.html_report.chart import spanning
from analysis.html_report.curves import Series, curves
from analysis.html_report.elements import Cell, Child, Element, el, figure, number, section, table
from analysis.html_report.result_file import Found, Result
from analysis.html_report.units import Unit, is_number, unit_of, words

SHARE = Unit("%", 100.0, 1)
TIMES = {"prefill": " of the time to first token", "decode": " of the time per token"}
LISTS = (("not_considered", "Not considered"), ("notes", "To know"), ("next", "Next"))


def advice_headline(result: Result) -> Element | None:
    """The verdict in a sentence."""
    advice = part(result.content, "advice", "")
    if not advice.row:
        return None
    engine = advice.text("engine_name") or advice.text("engine")
    if advice["verdict"] != "use":
        return el("p", el("strong", "Leave it as it is."), " ", advice.text("why"), class_="lead")
    gain, over = part(advice.row, "gain", advice.at), part(advice.row, "gain_over_eplb", advice.at)
    said: list[Child] = [el("strong", "Use the plan."), " On sequences it was not fitted to it saves ", *_share(gain),
                         f" of the MoE layers' time against what {engine} does by default"]  # fmt: skip
    if is_number(over["mean"]):
        said += [", and ", *_share(over), " against its own balancer (EPLB) in the same memory"]
    return el("p", said, ". ", _end_to_end(advice, "it"), "Predicted, not measured.", class_="lead")


def advice_sections(result: Result) -> list[Element]:
    """Memory, the engine's own terms, other domains, and what is open."""
    advice = part(result.content, "advice", "")
    made = [_redundancy(advice), _terms(advice), _domains(advice), _lists(advice)] if advice.row else []
    return [one for one in made if one is not None]


def _redundancy(advice: Found) -> Element | None:
    at = part(advice.row, "redundancy", advice.at)
    points = [p for p in _rows(at, "curve") if is_number(p["per_rank"]) and is_number(p["gain"])]
    if not points:
        return None
    series = [Series("saved, mean", [(p["per_rank"], p["gain"]) for p in points],
                     [i for i, p in enumerate(points) if p["per_rank"] == at["chosen"]])]  # fmt: skip
    for end in ("low", "high"):
        if all(is_number(p[end]) for p in points):
            series.append(Series(f"{end} end of the interval", [(p["per_rank"], p[end]) for p in points]))
    values = [share for one in series for _, share in one.points]
    x = spanning("redundant experts per rank", [p["per_rank"] for p in points], Unit())
    y = spanning("share of the MoE layers' time that is saved, %", [*values, 0.0], SHARE)
    memory = _memory(at)
    lines: list[Sequence[Cell | Child]] = [
        (p.text("planner"), Cell(p["per_rank"], Unit(), p.place("per_rank")),
         *(Cell(p[f], SHARE, p.place(f)) for f in ("gain", "low", "high")))
        for p in points
    ]  # fmt: skip
    titles = ("planner", "redundant experts per rank", "saved %", "at least %", "at most %")
    ring = "what is advised" if advice["verdict"] == "use" else "the best; it is not advised"
    caption = [f"Against the engine's default, held out. The ring is {ring}. ", *memory]
    numbers = table(titles, lines, "savings by redundancy")
    drawn = figure("savings", "Time saved by redundant experts", curves(series, x, y), caption, numbers)
    return section("redundancy", "What redundant experts bring", drawn)


def _memory(at: Found) -> list[Child]:
    fields = (("bytes_per_rank", "They cost "), ("weights_bytes_per_rank", " on a rank, whose weights then take "))
    if not all(is_number(at[field]) for field, _ in fields):
        return []
    told: list[Child] = []
    for field, text in fields:
        told += [text, number(at[field], unit_of("_bytes", [at[field]]), at.place(field), named=True)]
    return [*told, "."]


def _terms(advice: Found) -> Element | None:
    """Figures of the default, EPLB and what is advised, as the engine counts them."""
    phases = part(advice.row, "terms", advice.at)
    lines = [(phase, name, part(part(phases.row, phase, phases.at).row, name, f"{phases.at}/{phase}"))
             for phase in phases.row for name in part(phases.row, phase, phases.at).row]  # fmt: skip
    fields = [
        f for f in dict.fromkeys(f for *_, row in lines for f in row.row) if any(is_number(r[f]) for *_, r in lines)
    ]
    if not lines:
        return None
    units = {f: unit_of(f, [row[f] for *_, row in lines]) for f in fields}
    rows: list[list[Cell | Child]] = [
        [phase, name, *(Cell(row[f], units[f], row.place(f)) for f in fields)] for phase, name, row in lines
    ]
    whole = [] if advice["verdict"] == "use" else _end_to_end(advice, "the best plan")  # else the headline has it
    titles = ["phase", "plan", *(f"{words(f)} {units[f].name}".rstrip() for f in fields)]
    return section("terms", "In the engine's own terms", el("p", whole) if whole else None,
                   table(titles, rows, "terms of the engine"))  # fmt: skip


def _end_to_end(advice: Found, plan: str) -> list[Child]:
    """What a plan saves of whole passes; empty if the model has no backbone, or there is no plan but the default."""
    phases = part(advice.row, "terms", advice.at)
    told: list[Child] = []
    for name, time in TIMES.items():
        terms = part(part(phases.row, name, phases.at).row, "advised", f"{phases.at}/{name}")
        gain = part(terms.row, "step_gain", terms.at)
        if is_number(gain["mean"]) and gain["mean"] != 0:
            told += [" and " if told else f"With all that surrounds the MoE layers {plan} saves ", *_share(gain), time]
    return [*told, ". "] if told else []


def _domains(advice: Found) -> Element | None:
    rows = [row for row in _rows(advice, "domain_shift") if is_number(row["seen"]) and is_number(row["unseen"])]
    if not rows:
        return None
    lines: list[Sequence[Cell | Child]] = [
        (row.text("domain"), *(Cell(row[f], SHARE, row.place(f)) for f in ("seen", "unseen"))) for row in rows
    ]
    text = "What is saved on text of a domain, if the recording had such text and if it had none."
    titles = ("domain", "saved with it in the recording, %", "without it, %")
    return section("domains", "When other text comes", el("p", text), table(titles, lines, "domain shift"))


def _lists(advice: Found) -> Element | None:
    drawn: list[Child] = []
    for field, title in LISTS:
        lines = advice[field]
        if isinstance(lines, list) and lines:
            drawn += [el("h3", title), el("ul", (el("li", str(line)) for line in lines))]
    return section("open", "What is open, and what to do", drawn) if drawn else None


def _share(gain: Found) -> list[Child]:
    told: list[Child] = [number(gain["mean"], SHARE, gain.place("mean"), named=True)]
    if is_number(gain["low"]) and is_number(gain["high"]):
        told += [" (", number(gain["low"], SHARE, gain.place("low")), " to ",
                 number(gain["high"], SHARE, gain.place("high"), named=True)]  # fmt: skip
        told += [f", {gain['level']:.0%} interval)" if is_number(gain["level"]) else ")"]
    return told


def part(whole: Mapping[str, Any], name: str, at: str) -> Found:
    """An object inside another; empty if there is none."""
    value = whole.get(name)
    return Found(value if isinstance(value, Mapping) else {}, f"{at}/{name}")


def _rows(found: Found, field: str) -> list[Found]:
    value = found[field]
    objects = enumerate(value) if isinstance(value, list) else ()
    return [Found(row, f"{found.place(field)}/{index}") for index, row in objects if isinstance(row, Mapping)]

"""What a result says in one sentence, with the held-out figure and what it is compared with; losses as plainly."""

from collections.abc import Sequence

import numpy as np

from analysis.html_report.advice import advice_headline
from analysis.html_report.elements import Child, Element, el, number
from analysis.html_report.result_file import Found, Result
from analysis.html_report.subject import GAIN, LOSS, Subject
from analysis.html_report.units import Unit, is_number, unit_of, words

IN_ORDER, OWN = "linear, experts in index order", "eplb, the engines' own balancer"
RATIO, SHARE = Unit("", 1.0, 2), Unit("%", 100.0, 1)


def headline(result: Result, about: Subject | None) -> Element:
    """The sentence."""
    if result.command == "validate":
        return _of_validation(result)
    if (verdict := advice_headline(result)) is not None:
        return verdict
    if about is None:
        told = result.texts("headline") or result.texts("answer") or result.texts("text")
        plain = f"{len(result.rows)} rows of `{result.command}`."
        return el("p", told[0] if told else plain, class_="lead")
    loses = about.linear is not None and about.ratio(about.linear) < LOSS
    return el("p", _sentence(about), class_="lead loss" if loses else "lead")


def key_figures(about: Subject | None) -> Element | None:
    """The few numbers that a reader looks for."""
    if about is None:
        return None
    found, entries = about.found, []
    unit = unit_of(about.metric, [f[about.metric] for f in about.group])
    entries.append(
        (f"{words(about.metric)}, held out", number(found[about.metric], unit, found.place(about.metric), named=True))
    )
    if about.own_fit is not None:
        fit = about.own_fit
        entries.append(
            (
                "the same on the part it was fitted to",
                number(fit[about.metric], unit, fit.place(about.metric), named=True),
            )
        )
    for field, name in (("speedup_over_linear", "times as fast as linear"), ("cross_node_rows_per_token", ""),
                        ("load_max_over_mean", ""), ("memory_bytes_per_rank", "")):  # fmt: skip
        if is_number(found[field]) and field != about.metric:
            entries.append(
                (
                    name or words(field),
                    number(found[field], unit_of(field, [found[field]]), found.place(field), named=True),
                )
            )
    shown = (el("div", el("dt", name), el("dd", value)) for name, value in entries)
    return el("dl", shown, class_="key")


def warnings_of(result: Result, notes: Sequence[str]) -> list[Element]:
    """What a reader must know before any number: loud where the trace is made up."""
    found = []
    if result.synthetic:
        found.append(("SYNTHETIC TRACE", "The routing was made up with the statistics of a recorded trace. "
                      "What it says of a real model is a guess.", "loud"))  # fmt: skip
    if result.content.get("status") not in (None, "complete"):
        found.append(("PARTIAL RESULT", "The command was interrupted or is still running; rows are missing.", "loud"))
    found += [("ASSUMED", f"{text}: no measurement supports this constant.", "") for text in result.assumed]
    found += [("LEFT OUT", text, "") for text in notes]
    return [
        el("p", el("strong", title), " ", text, class_=f"note {kind}".rstrip(), role="note")
        for title, text, kind in found
    ]


def _sentence(about: Subject) -> list[Child]:
    found = about.found
    unit = unit_of(about.metric, [f[about.metric] for f in about.group])
    value = number(found[about.metric], unit, found.place(about.metric), named=True)
    predicted = "is predicted to take " if about.metric == "layer_time_s" else "has "
    what = " for a MoE layer" if about.metric == "layer_time_s" else " of the mean load on its busiest rank"
    parts: list[Child] = [
        el("strong", about.name),
        " ",
        predicted,
        value,
        what,
        " on sequences it was not fitted to",
        about.kind and f" ({about.kind})",
    ]
    rivals = [(about.linear, IN_ORDER), (about.engine, OWN)]
    if about.rival is not None and about.rival is not about.engine:
        rivals.append((about.rival, f"{about.rival.text('planner')}, the best of other methods"))
    said = [_against(about, other, name, unit) for other, name in rivals if other is not None]
    if not said:
        alone = "; the result has no other plan to compare it with." if about.linear is None else "."
        return [*parts, alone]
    for index, words_of in enumerate(said):
        parts += [": " if index == 0 else "; ", *words_of]
    loses = about.linear is not None and about.ratio(about.linear) < LOSS
    return [*parts, ". It loses: leave the experts in index order." if loses else "."]


def _against(about: Subject, other: Found, name: str, unit: Unit) -> list[Child]:
    ratio = about.ratio(other)
    place = (
        about.found.place("speedup_over_linear")
        if other is about.linear and about.found["speedup_over_linear"]
        else None
    )
    time: list[Child] = [" (", number(other[about.metric], unit, other.place(about.metric), named=True), ")"]
    faster, slower = (
        ("as fast as", "slower than") if about.metric == "layer_time_s" else ("as even as", "less even than")
    )
    if ratio >= GAIN:
        shown = about.found["speedup_over_linear"] if place else ratio
        return [number(shown, RATIO, place), f" times {faster} ", name, *time]
    if ratio <= LOSS:
        return [number(1 / ratio - 1, SHARE, named=True), f" {slower} ", name, *time]
    return [f"{faster} ", name, *time, ", within 0.5 %"]


def _of_validation(result: Result) -> Element:
    rows = [
        f for f in result.rows if is_number(f["predicted_s"]) and is_number(f["measured_s"]) and f["measured_s"] > 0
    ]
    if not rows:
        return el("p", "Nothing was measured.", class_="lead")
    errors = np.array([f["predicted_s"] / f["measured_s"] - 1 for f in rows])
    worst = rows[int(np.argmax(np.abs(errors)))]
    return el(
        "p", "Predicted layer times are off by ", number(float(np.abs(errors).mean()), SHARE, named=True),
        f" in the mean over {len(rows)} runs, and by ", number(float(np.abs(errors).max()), SHARE, named=True),
        f" at worst ({worst.text('planner')}, {worst.text('scheme')}).", class_="lead",
    )  # fmt: skip

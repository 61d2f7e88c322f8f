"""The page: sections in order, with a head that allows nothing from outside.

Content-Security-Policy lets only the one style of this page apply, by its digest: no script, no picture, no font, no
request of any kind.
"""

import base64
import hashlib
from collections.abc import Sequence
from pathlib import Path

from analysis.html_report.elements import Element, el, write
from analysis.html_report.headline import headline, key_figures, warnings_of
from analysis.html_report.result_file import Result
from analysis.html_report.subject import Subject

GENERATOR = "grace-opt report"
"""By which a page of ours is known."""


def page(result: Result, about: Subject | None, sections: Sequence[Element], notes: Sequence[str]) -> str:
    """The markup of the whole page."""
    style = (Path(__file__).parent / "style.css").read_text(encoding="utf-8")
    digest = base64.b64encode(hashlib.sha256(style.encode()).digest()).decode()
    policy = f"default-src 'none'; style-src 'sha256-{digest}'; base-uri 'none'; form-action 'none'"
    title = _title(result)
    head = el(
        "head",
        el("meta", charset="utf-8"),
        el("meta", http_equiv="Content-Security-Policy", content=policy),
        el("meta", name="viewport", content="width=device-width, initial-scale=1"),
        el("meta", name="generator", content=GENERATOR),
        el("meta", name="color-scheme", content="light dark"),
        el("meta", name="referrer", content="no-referrer"),
        el("title", f"{title}: grace-opt {result.command}"),
    )
    sheet = el("style")
    sheet.text = style  # ours: written as it is
    head.append(sheet)
    contents = el("nav", el("ul", (_link(section) for section in sections)), aria_label="Contents")
    top = el("header", el("p", f"grace-opt {result.command}", class_="over"), el("h1", title), headline(result, about),
             warnings_of(result, notes), key_figures(about))  # fmt: skip
    skip = el("a", "Skip to the figures", href="#main", class_="skip")
    said = "Times are predicted by the cost model, unless a figure says measured."
    body = el("body", skip, _patterns(), top, contents,
              el("main", sections, id="main", tabindex=-1),
              el("footer", el("p", said)))  # fmt: skip
    return f"<!DOCTYPE html>\n{write(el('html', head, body, lang='en'))}\n"


def _title(result: Result) -> str:
    model, topology = result.problem.get("model"), result.problem.get("topology")
    if isinstance(model, str) and isinstance(topology, str):
        return f"{model} on {topology}"
    labels = result.texts("labels")
    return labels[0].partition(",")[0] if labels else f"Result of {result.command}"


def _link(section: Element) -> Element:
    heading = section.find("h2")
    return el("li", el("a", "" if heading is None else "".join(heading.itertext()), href=f"#{section.get('id')}"))


def _patterns() -> Element:
    """Hatchings: what a fill means is never told by its colour alone."""
    hatched = [
        el("pattern",
           el("rect", width=6, height=6, class_=f"under-{kind}"),
           el("path", d="M-1 1l2 -2M0 6l6 -6M5 7l2 -2", class_=f"over-{kind}"),
           id=f"hatch-{kind}", width=6, height=6, patternUnits="userSpaceOnUse")
        for kind in ("dispatch", "combine", "waiting")
    ]  # fmt: skip
    return el("svg", el("defs", hatched), width=0, height=0, class_="patterns", aria_hidden="true", focusable="false")

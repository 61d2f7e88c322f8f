"""HTML and SVG as element trees: texts are escaped when the tree is written, so none can become markup.

Control characters, lone surrogates and marks that turn the direction of writing become U+FFFD. Attributes are keywords:
`class_` is `class`, `data_at` is `data-at`.
"""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any
from xml.etree import ElementTree as Tree

from analysis.html_report.units import Unit, is_number

Element = Tree.Element
Child = Element | str | None
Children = Child | Iterable["Children"]
UNFIT = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\ud800-\udfff\u200e\u200f\u202a-\u202e\u2066-\u2069\ufffe\uffff]")
LONGEST = 2000
"""Letters of one text; what is longer ends with an ellipsis."""


def el(tag: str, *children: Children, **attributes: Any) -> Element:
    """An element; children that are None and attributes that are None are left out."""
    given = {
        name.rstrip("_").replace("_", "-"): UNFIT.sub("\ufffd", str(value))
        for name, value in attributes.items()
        if value is not None
    }
    element = Tree.Element(tag, given)
    for child in _flat(children):
        if isinstance(child, str):
            _append_text(element, clean(child))
        else:
            element.append(child)
    return element


def clean(value: Any) -> str:
    """A text that can stand in a page, of bounded length."""
    text = UNFIT.sub("\ufffd", str(value))
    return text if len(text) <= LONGEST else text[: LONGEST - 1] + "…"


def write(element: Element) -> str:
    """The markup of a tree."""
    return Tree.tostring(element, encoding="unicode", method="html")


def number(
    value: Any, unit: Unit, at: str | None = None, tag: str = "span", named: bool = False, **more: Any
) -> Element:
    """A number as people read it, with the exact one beside it.

    Args:
        at: where the value stands in result.json, as a JSON pointer; None if it was computed for the report.
        named: with its unit.
    """
    if not is_number(value):
        return el(tag, "–", **more)
    text = unit.with_name(value) if named else unit.show(value)
    return el(tag, text, title=repr(value), data_value=repr(value), data_factor=repr(unit.factor), data_at=at, **more)


@dataclass(frozen=True, eq=False)
class Cell:
    """A number of a table (see `number`)."""

    value: Any
    unit: Unit
    at: str | None = None


def table(
    titles: Sequence[str], rows: Sequence[Sequence[Cell | Child]], name: str, bold: Sequence[int] = ()
) -> Element:
    """A table in a box of its own that scrolls; columns of numbers are those whose first cell is one.

    Args:
        name: of the box, for those who do not see it.
        bold: rows that stand out.
    """
    numeric = [any(isinstance(row[column], Cell) for row in rows) for column in range(len(titles))]
    head = el("tr", (el("th", title, scope="col", class_="number" if n else None)
                     for title, n in zip(titles, numeric, strict=True)))  # fmt: skip
    body = [
        el(
            "tr",
            (_cell(cell, first=not column) for column, cell in enumerate(row)),
            class_="bold" if i in bold else None,
        )
        for i, row in enumerate(rows)
    ]
    return el("div", el("table", el("thead", head), el("tbody", body)), class_="scroll", tabindex=0, role="region",
              aria_label=name)  # fmt: skip


def details(summary: str, *children: Children) -> Element:
    """What is folded away until asked for."""
    return el("details", el("summary", summary), *children)


def figure(name: str, title: str, picture: Children, caption: Children, numbers: Child) -> Element:
    """A picture with title, caption and the same as a table.

    Args:
        name: of the element, unique in the page.
        picture: one image for those who do not see it, named by the title.
        numbers: the table that says what the picture shows.
    """
    return el(
        "figure",
        el("h3", title, id=f"{name}-title"),
        el(
            "div",
            picture,
            role="img",
            class_="picture",
            aria_labelledby=f"{name}-title",
            aria_describedby=f"{name}-text",
        ),
        el("figcaption", caption, id=f"{name}-text"),
        details("The numbers of this figure", numbers),
        id=name,
    )


def section(name: str, title: str, *children: Children) -> Element:
    """A part of the page under a heading of its own, which the page's list of contents names."""
    return el("section", el("h2", title, id=f"{name}-heading"), *children, id=name, aria_labelledby=f"{name}-heading")


def legend(entries: Sequence[tuple[Element, str]]) -> Element:
    """Samples of colours, marks and lines with what they mean."""
    return el("ul", (el("li", sample, text) for sample, text in entries), class_="legend")


def swatch(kind: str) -> Element:
    """A sample of a fill."""
    return el("svg", el("rect", width="100%", height="100%", class_=kind), width=14, height=14, aria_hidden="true")


def _cell(cell: Cell | Child, first: bool) -> Element:
    if isinstance(cell, Cell):
        return number(cell.value, cell.unit, cell.at, "td", class_="number")
    return el("th", cell, scope="row") if first else el("td", cell)


def _flat(children: Iterable[Any]) -> Iterable[Element | str]:
    for child in children:
        if isinstance(child, str | Element):
            yield child
        elif child is not None:
            yield from _flat(child)


def _append_text(element: Element, text: str) -> None:
    if len(element):
        element[-1].tail = (element[-1].tail or "") + text
    else:
        element.text = (element.text or "") + text

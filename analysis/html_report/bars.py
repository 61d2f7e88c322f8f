"""Bars with their values written beside their names: above each bar, so that any name fits on any screen."""

from collections.abc import Sequence
from dataclasses import dataclass

from analysis.html_report.chart import Axis, framed, pct, scale
from analysis.html_report.elements import Child, Element, el


@dataclass(frozen=True, eq=False)
class Bar:
    """One bar.

    Attributes:
        name: what it is of.
        parts: (class of its fill, value) of what is put end to end.
        written: its value.
        stands_out: whether it is the one that is spoken of.
        line: a value to draw a line at, as a bound.
    """

    name: str
    parts: Sequence[tuple[str, float]]
    written: Child
    stands_out: bool = False
    line: float | None = None


def bars(rows: Sequence[Bar], axis: Axis) -> list[Element]:
    """Bars from 0 on one scale."""
    drawn = [
        el(
            "div",
            el("p", el("span", row.name, class_="name"), " ", el("span", row.written, class_="value")),
            _bar(row, axis),
            class_="bar stands-out" if row.stands_out else "bar",
        )
        for row in rows
    ]
    return [*drawn, scale(axis), el("p", axis.title, class_="axis below")]


def columns(rows: Sequence[tuple[str, float, float | None]], axis: Axis, line: float) -> list[Element]:
    """Columns side by side, for many ranks.

    Args:
        rows: (name, value, value to mark on it or None) of each.
        line: a value to draw a line at through all of them.
    """
    height, width = 180, 1 / len(rows)

    def y(value: float) -> str:
        return f"{height * (1 - axis.at(value)):.1f}"

    drawn: list[Child] = []
    for index, (name, value, mark) in enumerate(rows):
        middle, said = pct((index + 0.5) * width), f"{name}: {axis.unit.with_name(value)}"
        drawn.append(el("rect", el("title", said), x=pct((index + 0.17) * width), width=pct(0.66 * width), y=y(value),
                        height=f"{height * axis.at(value):.1f}", class_="one"))  # fmt: skip
        if mark is not None:
            drawn.append(el("line", x1=pct((index + 0.09) * width), x2=pct((index + 0.91) * width), y1=y(mark),
                            y2=y(mark), class_="mark"))  # fmt: skip
        if len(rows) <= 4:
            drawn.append(el("text", axis.unit.show(value), x=middle, y=height - 10, class_="on-one middle"))
        if index % -(-len(rows) // 16) == 0:
            drawn.append(el("text", name.rpartition(" ")[2], x=middle, y=height + 17, class_="tick middle"))
    grid = [
        (el("line", x1="0%", x2="100%", y1=y(mark), y2=y(mark), class_="grid"),
         el("text", axis.written(mark), x="-8", y=y(mark), class_="tick left"))
        for mark in axis.marks
    ]  # fmt: skip
    mean = el("line", x1="0%", x2="100%", y1=y(line), y2=y(line), class_="mean")
    return [el("p", axis.title, class_="axis"), framed(height, grid, drawn, mean), el("p", "rank", class_="axis below")]


def _bar(row: Bar, axis: Axis) -> Element:
    begin, drawn = 0.0, []
    for kind, value in row.parts:
        drawn.append(el("rect", x=pct(axis.at(begin)), y=0, width=pct(axis.at(begin + value) - axis.at(begin)),
                        height="100%", class_=kind))  # fmt: skip
        if begin:
            drawn.append(el("line", x1=pct(axis.at(begin)), x2=pct(axis.at(begin)), y1=0, y2="100%", class_="gap"))
        begin += value
    if row.line is not None:
        drawn.append(el("line", x1=pct(axis.at(row.line)), x2=pct(axis.at(row.line)), y1=-4, y2=18, class_="mark"))
    return el("svg", drawn, width="100%", height=14, class_="chart", aria_hidden="true")

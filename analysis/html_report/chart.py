"""What pictures share: places in per cent, so that they grow and shrink with the page and their letters do not.

Horizontal places are shares of the plot's width. What is written left of a plot lies outside of its svg, in a margin of
fixed width (class `plot` of style.css). Nothing carries a style of its own.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from analysis.html_report.elements import Child, Children, Element, el
from analysis.html_report.units import Unit

TOP, BELOW = 10, 22
"""Pixels above a plot, and below it for numbers."""


@dataclass(frozen=True)
class Axis:
    """A scale from `low` to `high` with marks at round numbers.

    Attributes:
        title: what it measures, with its unit.
        unit: of the numbers at the marks.
        logarithmic: equal factors are equal lengths.
    """

    title: str
    low: float
    high: float
    unit: Unit
    logarithmic: bool = False

    def at(self, value: float) -> float:
        """Place of a value, from 0 to 1."""
        if self.high == self.low:
            return 0.5
        if self.logarithmic:
            return math.log(value / self.low) / math.log(self.high / self.low)
        return (value - self.low) / (self.high - self.low)

    @property
    def marks(self) -> list[float]:
        """Round values inside, four to eight of them."""
        if self.high == self.low:
            return [self.low]
        size = (self.high - self.low) / 5
        power = 10 ** math.floor(math.log10(size))
        step = next(step * power for step in (1, 2, 2.5, 5, 10) if step * power >= size * 0.999)
        first = math.ceil(self.low / step - 1e-9)
        return [n * step for n in range(first, math.floor(self.high / step + 1e-9) + 1)]

    def written(self, value: float) -> str:
        """A mark's number, as short as the marks allow."""
        text = f"{value * self.unit.factor:.6g}"
        return "0" if abs(value) < 1e-12 * max(abs(self.low), abs(self.high)) else text


def spanning(title: str, values: Sequence[float], unit: Unit, room: float = 0.06, zero: bool = False) -> Axis:
    """An axis with some room around the values, from 0 if wanted."""
    low, high = (0.0 if zero else min(values)), max(values)
    if low == high:
        low, high = low - (abs(low) * 0.05 or 1), high + (abs(high) * 0.05 or 1)
    more = room * (high - low)
    return Axis(title, low if zero else low - more, high + more, unit)


def pct(share: float) -> str:
    """A place, or a length, as SVG takes it."""
    return f"{100 * share:.3f}".rstrip("0").rstrip(".") + "%"


def plot(height: int, x: Axis, y: Axis, *drawn: Children) -> list[Element]:
    """A plot with both axes, written; what is drawn has its places in a height of `height` pixels."""
    lines, labels = [], []
    for mark in y.marks:
        place = f"{height * (1 - y.at(mark)):.1f}"
        lines.append(el("line", x1="0%", x2="100%", y1=place, y2=place, class_="grid"))
        labels.append(el("text", y.written(mark), x="-8", y=place, class_="tick left"))
    for mark in x.marks:
        place = pct(x.at(mark))
        lines.append(el("line", x1=place, x2=place, y1=height, y2=height + 4, class_="grid"))
        labels.append(el("text", x.written(mark), x=place, y=height + 17, class_="tick middle"))
    base = el("line", x1="0%", x2="100%", y1=height, y2=height, class_="base")
    return [
        el("p", y.title, class_="axis"),
        framed(height, lines, base, labels, drawn),
        el("p", x.title, class_="axis below"),
    ]


def framed(height: int, *drawn: Children, kind: str = "plot", top: int = TOP) -> Element:
    """A picture whose places begin below the upper edge and right of a margin."""
    inside = el("g", drawn, transform=f"translate(0 {top})")
    return el("svg", inside, class_=f"chart {kind}", height=height + top + BELOW, aria_hidden="true")


def scale(axis: Axis) -> Element:
    """An axis by itself, for bars that begin at its left end."""
    marks = [
        (
            el("line", x1=pct(axis.at(mark)), x2=pct(axis.at(mark)), y1=0, y2=5, class_="base"),
            el("text", axis.written(mark), x=pct(axis.at(mark)), y=18, class_=f"tick {_anchor(axis.at(mark))}"),
        )
        for mark in axis.marks
    ]
    base = el("line", x1="0%", x2="100%", y1=0.5, y2=0.5, class_="base")
    return el("svg", base, marks, class_="chart", width="100%", height=24, aria_hidden="true")


def at_point(x: str, y: str | float, *drawn: Child, **attributes: str) -> Element:
    """Something around a point whose place may be a share of the width."""
    return el("svg", *drawn, x=x, y=y, width=1, height=1, overflow="visible", **attributes)


def _anchor(place: float) -> str:
    return "start" if place < 0.02 else "end" if place > 0.97 else "middle"

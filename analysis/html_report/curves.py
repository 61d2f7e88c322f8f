"""Lines and points over two axes; a series is told by its colour, its mark and its dashes."""

from collections.abc import Sequence
from dataclasses import dataclass

from analysis.html_report.chart import Axis, at_point, pct, plot
from analysis.html_report.elements import Child, Element, el, legend

HEIGHT, WIDTH = 300, 640
"""Pixels of a plot; its width is that of wide screens."""
MARKS = (
    "M-5 0a5 5 0 1 0 10 0a5 5 0 1 0 -10 0z", "M-4.5 -4.5h9v9h-9z", "M0 -6L6 4.5H-6z", "M0 -6.5L5.5 0L0 6.5L-5.5 0z",
    "M0 6L6 -4.5H-6z", "M-5.5 -2h3.5v-3.5h4v3.5h3.5v4h-3.5v3.5h-4v-3.5h-3.5z",
)  # fmt: skip
MOST = len(MARKS)
"""Series that can be told apart."""


@dataclass(frozen=True, eq=False)
class Series:
    """Points with a name.

    Attributes:
        points: (x, y) of each.
        ringed: indices of points that stand out.
        labels: what to write at a ringed point, where there is room.
        joined: whether a line goes through the points.
    """

    name: str
    points: Sequence[tuple[float, float]]
    ringed: Sequence[int] = ()
    labels: Sequence[str] = ()
    joined: bool = True


def curves(series: Sequence[Series], x: Axis, y: Axis) -> list[Element]:
    """At most MOST series, each with a mark of its own, and the legend."""
    drawn: list[Child] = []
    for number, one in enumerate(series):
        if one.joined and len(one.points) > 1:
            path = "M" + "L".join(f"{1000 * x.at(a):.1f} {1000 * (1 - y.at(b)):.1f}" for a, b in one.points)
            line = el("path", d=path, class_=f"line series-{number} dash-{number}", vector_effect="non-scaling-stroke")
            box = {"viewBox": "0 0 1000 1000", "preserveAspectRatio": "none", "overflow": "visible"}
            drawn.append(el("svg", line, width="100%", height=HEIGHT, **box))
    for number, one in enumerate(series):
        for index, (a, b) in enumerate(one.points):
            said = el("title", f"{one.name}: {x.title} {x.written(a)}, {y.title} {y.unit.show(b)}")
            ring = el("circle", r=10, class_="ring") if index in one.ringed else None
            mark = el("path", said, d=MARKS[number], class_=f"point series-{number}")
            drawn.append(at_point(pct(x.at(a)), f"{HEIGHT * (1 - y.at(b)):.1f}", ring, mark))
    drawn += _labels(series, x, y)
    samples = [(_sample(number, one.joined), one.name) for number, one in enumerate(series)]
    return [legend(samples), *plot(HEIGHT, x, y, drawn)]


def _labels(series: Sequence[Series], x: Axis, y: Axis) -> list[Element]:
    """Names above ringed points, left out where they would touch a name that stands; narrow screens show none."""
    rings = [one.points[index] for one in series for index in one.ringed]
    taken = {(a, b): (x.at(a) - 10 / WIDTH, HEIGHT * (1 - y.at(b)) - 4, 20 / WIDTH) for a, b in rings}
    written: list[tuple[float, float, float]] = []
    drawn = []
    for one in series:
        for index in one.ringed if one.labels else ():
            left, top = x.at(one.points[index][0]), HEIGHT * (1 - y.at(one.points[index][1])) - 16
            text = one.labels[index]
            wide = len(text) * 7 / WIDTH
            anchor, begin = ("end", left - wide) if left > 0.8 else ("middle", left - wide / 2)
            others = [box for point, box in taken.items() if point != tuple(one.points[index])]
            if all(begin > b + w or b > begin + wide or abs(top - t) > 15 for b, t, w in (*written, *others)):
                written.append((begin, top, wide))
                drawn.append(el("text", text, x=pct(left), y=f"{top:.1f}", class_=f"label {anchor}"))
    return drawn


def _sample(number: int, joined: bool) -> Element:
    line = el("line", x1=0, x2=34, y1=8, y2=8, class_=f"line series-{number} dash-{number}") if joined else None
    mark = at_point("17", 8, el("path", d=MARKS[number], class_=f"point series-{number}"))
    return el("svg", line, mark, width=34, height=16, aria_hidden="true")

"""A matrix as squares of eight shades; one path a shade, so that ten thousands of cells stay small."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from analysis.html_report.chart import pct
from analysis.html_report.elements import Element, el, legend, swatch

SHADES = 8
GUTTER = 0.075
"""Share of the picture left and above for names."""


def heatmap(
    shades: NDArray[np.int64],
    starts: Sequence[int],
    names: Sequence[str],
    thick: Sequence[int] = (),
    written: Sequence[Sequence[str]] | None = None,
) -> Element:
    """A square picture.

    Args:
        shades: int64 [n, n], from 0 to SHADES - 1, -1 for none.
        starts: first line (and column) of each group; a thin line parts groups.
        names: of the groups, written at their middle.
        thick: starts at which the line is thick.
        written: [n][n] texts in the cells.
    """
    n = len(shades)
    place = {"x": pct(GUTTER), "y": pct(GUTTER), "width": pct(1 - GUTTER), "height": pct(1 - GUTTER)}
    paths = (el("path", d=_squares(shades == shade), class_=f"shade-{shade}") for shade in range(SHADES))
    parts = _lines(starts, n, thick)
    cells = el("svg", paths, parts, viewBox=f"0 0 {n} {n}", preserveAspectRatio="none", **place)
    frame = el("rect", **place, class_="frame")
    middles = [(start + end) / 2 for start, end in zip(starts, [*starts[1:], n], strict=True)]
    step = max(1, -(-len(names) // 12))
    labels = [
        (
            el("text", name, x=pct(GUTTER * 0.8), y=pct(_place(middle, n)), class_="tick left"),
            el("text", name, x=pct(_place(middle, n)), y=pct(GUTTER * 0.6), class_="tick middle"),
        )
        for name, middle in list(zip(names, middles, strict=True))[::step]
    ]
    texts = [
        el("text", text, x=pct(_place(column + 0.5, n)), y=pct(_place(line + 0.5, n)),
           class_=f"cell on-{shades[line, column]}")
        for line, row in enumerate(written or ()) for column, text in enumerate(row) if shades[line, column] >= 0
    ]  # fmt: skip
    return el(
        "svg",
        cells,
        frame,
        labels,
        texts,
        class_="chart square small" if n <= 8 else "chart square",
        aria_hidden="true",
    )


def shades_legend(edges: Sequence[str]) -> Element:
    """What the shades mean, from the lightest; `edges` are the texts of SHADES ranges."""
    return legend([(swatch(f"shade-{shade}"), text) for shade, text in enumerate(edges)])


def _place(cell: float, n: int) -> float:
    return GUTTER + (1 - GUTTER) * cell / n


def _squares(chosen: NDArray[np.bool_]) -> str:
    """A path of the chosen cells, neighbours of a line as one rectangle."""
    padded = np.pad(chosen.astype(np.int8), ((0, 0), (1, 1)))
    change = np.diff(padded, axis=1)
    lines, begins = np.nonzero(change == 1)
    _, ends = np.nonzero(change == -1)
    return "".join(f"M{b} {y}h{e - b}v1h{b - e}z" for y, b, e in zip(lines.tolist(), begins.tolist(), ends.tolist(),
                                                                     strict=True))  # fmt: skip


def _lines(starts: Sequence[int], n: int, thick: Sequence[int]) -> list[Element]:
    """Between groups; between many groups only the thick ones, as the others would hide the cells."""
    shown = [start for start in starts[1:] if start in thick or len(starts) <= 16]
    return [
        el("path", d=f"M0 {at}H{n}M{at} 0V{n}", class_="part thick" if at in thick else "part",
           vector_effect="non-scaling-stroke")
        for at in shown
    ]  # fmt: skip

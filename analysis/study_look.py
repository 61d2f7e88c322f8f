"""How the figures of a study look: which axis gives colours, line styles and panels, and what each figure must say."""

import textwrap
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from analysis.results import Row
from analysis.study_series import DECIDED, SCALED, Label, grouped, name_of
from grace_opt.atomic import write_atomically

MOST_PANELS = 9
COLORS = ("#4477aa", "#ee6677", "#228833", "#ccbb44", "#66ccee", "#aa3377", "#bbbbbb", "#000000")
STYLES, MARKERS = ("-", "--", ":", "-."), "osD^v<>P"


@dataclass(frozen=True)
class Look:
    """Which axis gives the colours, which the line styles, which the panels.

    Attributes:
        values: of every axis, in the order of the rows.
    """

    color: str | None
    style: str | None
    panels: tuple[str, ...]
    values: dict[str, list[Any]]

    @classmethod
    def of(cls, rows: Sequence[Row], axes: Sequence[str], decided_only: bool = False) -> "Look":
        """The usual roles; with `decided_only` what one is given (a workload, a model) is for panels alone."""
        color, style = roles([name for name in axes if name in DECIDED or not decided_only])
        rest = tuple(name for name in axes if name not in (color, style))
        return cls(color, style, rest, {name: values_of(rows, name) for name in axes})

    @property
    def lines(self) -> list[str]:
        """The axes that tell the lines of a panel apart."""
        return [name for name in (self.color, self.style) if name is not None]

    def line(self, label: Label) -> dict[str, Any]:
        """How a series is drawn."""
        color, style = self._numbers(label)
        return {"color": COLORS[color % 8], "linestyle": STYLES[style % 4], "marker": MARKERS[color % 8],
                "markersize": 4.5, "markerfacecolor": "white", "linewidth": 1.3}  # fmt: skip

    def mark(self, label: Label) -> dict[str, Any]:
        """How the point of a series that counts is drawn."""
        color, _ = self._numbers(label)
        return {"color": COLORS[color % 8], "marker": MARKERS[color % 8], "markersize": 8, "zorder": 4}

    def inside(self, rows: Sequence[Row], context: Label) -> list[Row]:
        """The rows of a panel."""
        return [row for row in rows if self.is_inside(row, context)]

    def is_inside(self, row: Row, context: Label) -> bool:
        """Whether a row has the values that a panel or a series is for."""
        return all(row.get(name) == value for name, value in context)

    def _numbers(self, label: Label) -> tuple[int, int]:
        numbers = {name: self.values[name].index(value) for name, value in label}
        return numbers.get(self.color or "", 0), numbers.get(self.style or "", 0)


def roles(axes: Sequence[str]) -> tuple[str | None, str | None]:
    """The axis that gives the colours and the one that gives the line styles."""
    ordered = sorted(axes, key=lambda name: DECIDED.index(name) if name in DECIDED else len(DECIDED))
    return (ordered[0] if ordered else None), (ordered[1] if len(ordered) > 1 else None)


def values_of(rows: Sequence[Row], axis: str) -> list[Any]:
    """Values of an axis in the order of the rows."""
    return list(dict.fromkeys(row.get(axis) for row in rows))


def panels_of(
    rows: Sequence[Row], look: Look, title: str, columns: int = 0, height: float = 0.0
) -> tuple[Figure, list[tuple[Axes, Label]]]:
    """A figure with a panel (with `columns` a line of panels) for each combination of the axes that panels are for."""
    contexts = list(grouped(rows, look.panels))
    left_out = max(len(contexts) - MOST_PANELS, 0)
    contexts = contexts[:MOST_PANELS]
    wide = columns or min(3, len(contexts))
    lines = len(contexts) if columns else -(-len(contexts) // wide)
    each = max(3.4, 1.6 + height * len(look.values.get(SCALED, values_of(rows, SCALED))))
    figure = Figure(figsize=(max(4.6 * wide, 7.2), each * lines + 1.6), layout="constrained")
    grid: list[Axes] = list(np.atleast_1d(figure.subplots(lines, wide)).ravel())
    for axis in grid:
        axis.spines[["top", "right"]].set_visible(False)
        axis.grid(alpha=0.25)
        axis.tick_params(labelsize=8)
    shown = [context for context in contexts for _ in range(columns or 1)]
    for axis, context in zip(grid, shown, strict=False):
        axis.set_title(name_of(context) if context else "", fontsize=9)
    for axis in grid[len(shown) :]:
        axis.set_visible(False)
    notes = [title + (f" (the first {MOST_PANELS} of {left_out + MOST_PANELS} panels)" if left_out else "")]
    notes += ["\n".join(textwrap.wrap(line, 110)) for line in labels(rows)]
    figure.suptitle("\n".join(notes), fontsize=10)
    return figure, list(zip(grid, shown, strict=False))


def labels(rows: Sequence[Row]) -> list[str]:
    """What must be said wherever the rows are shown: what is priced, synthetic traces, constants nobody measured."""
    rows = [row for row in rows if row.get("model")]
    models, clusters = (", ".join(dict.fromkeys(str(row[key]) for row in rows)) for key in ("model", "topology"))
    said = [f"{models} on {clusters}, held out, predicted"] if rows else []
    if any(row["synthetic"] for row in rows):
        said.append("SYNTHETIC trace" if all(row["synthetic"] for row in rows) else "some traces are SYNTHETIC")
    assumed = dict.fromkeys(f"{row['topology']}: {row['assumed']}" for row in rows if row["assumed"])
    return [*said, *(f"assumed, no measurement: {what}" for what in assumed)]


def legend(figure: Figure, look: Look, note: str) -> None:
    """Colours and styles under the panels."""
    axis = next(axis for axis in figure.axes if axis.get_visible())
    handles = []
    for name in look.lines:
        for value in look.values[name]:
            line = look.line(((name, value),))
            line |= {"color": "black", "marker": ""} if name == look.style else {}
            handles += axis.plot([], [], **line, label=name_of(((name, value),)))
    if note:
        handles += axis.plot([], [], linestyle="", label=note)
    figure.legend(handles=handles, loc="outside lower center", ncols=4, fontsize=8, frameon=False)


def save(path: Path, figure: Figure) -> None:
    """Write a figure as PNG and SVG; `path` has no suffix."""
    FigureCanvasAgg(figure)
    for kind in ("png", "svg"):
        save: Callable[[Path], None] = lambda temporary: figure.savefig(temporary, dpi=130)  # noqa: E731
        write_atomically(path.with_suffix(f".{kind}"), save)

"""The picture of a Pareto front: rows against the busiest rank, one panel a memory budget, lower left is best."""

import textwrap
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patheffects import withStroke

from analysis.plots import caveat, unframe
from analysis.results import Row
from analysis.study_look import COLORS

PUBLISHED, WEIGHED, FASTEST = COLORS[0], COLORS[1], COLORS[5]
MOST_COLUMNS = 3
LABELS_AT = 1.05
"""Where names stand, as a share of the panel's width: beside it, so that they hide no point."""
LINE, MOST_LETTERS = 0.06, 30
"""Height of a line of a name, as a share of the panel's, and its length."""
APART = 0.07
"""Weights are written at points this far from the last one that has its weight, as a share of the panel."""


def front_figure(about: Mapping[str, Any], rows: Sequence[Row]) -> Figure:
    """One panel a budget, with the same scales: points of every planner, and its front as a line.

    Args:
        about: the `problem` entry of the result.
        rows: of plans that were priced, with `on_front` and `on_front_of_budget`.
    """
    budgets = list(dict.fromkeys(row["slots_per_rank"] for row in rows))
    columns = min(MOST_COLUMNS, len(budgets))
    lines = -(-len(budgets) // columns)
    figure = Figure(figsize=(4.9 * columns, 4.1 * lines + 1.3), layout="constrained")
    panels: list[Axes] = list(np.atleast_1d(figure.subplots(lines, columns, sharex=True, sharey=True)).ravel())
    for index, (panel, slots) in enumerate(zip(panels, budgets, strict=False)):
        own = [row for row in rows if row["slots_per_rank"] == slots]
        _draw_points(panel, own)
        panel.set_title(f"{slots} slots per rank, up to {_memory(own)} per rank", fontsize=9)
        panel.set_xlabel(f"{kind_of_rows(about)} rows per token and layer", fontsize=9)
        panel.set_ylabel("" if index % columns else "load of the busiest rank / mean", fontsize=9)
        panel.tick_params(labelsize=8, labelbottom=True)
        panel.grid(alpha=0.25)
        unframe(panel)
    for panel in panels[len(budgets) :]:
        panel.set_visible(False)
    panels[0].margins(0.06)
    for panel, slots in zip(panels, budgets, strict=False):  # once the scales are those of all points
        own = [row for row in rows if row["slots_per_rank"] == slots]
        _name_published(panel, [row for row in own if row["method"] != "Joint"])
        _write_weights(panel, [row for row in own if row["weight"] is not None])
    said = f"{about['model']} on {about['topology']}, held out, exact counts{caveat(about['assumed'])}"
    said += ", SYNTHETIC trace" if about["synthetic"] else ""
    figure.suptitle("\n".join(textwrap.wrap(said, 55 * columns)), fontsize=10)
    figure.legend(
        handles=_legend(panels[0]), loc="outside lower center", ncols=2 * columns - 1, fontsize=8, frameon=False
    )
    return figure


def kind_of_rows(about: Mapping[str, Any]) -> str:
    """Which rows a front trades: on one node none leave it."""
    return "cross-node" if about["num_nodes"] > 1 else "intra-node"


def _draw_points(panel: Axes, rows: Sequence[Row]) -> None:
    """Filled where no plan of any budget is as good in rows, load and memory."""
    front = sorted(_place(row) for row in rows if row["on_front_of_budget"])
    panel.plot(*np.transpose(front), "-", drawstyle="steps-post", color="#888888", linewidth=1.2, zorder=2)
    for row in rows:
        marker, color, _ = _kind(row)
        face = color if row["on_front"] else "white"
        panel.plot(*_place(row), marker, color=color, markerfacecolor=face, markersize=5.5, zorder=4)


def _kind(row: Row) -> tuple[str, str, str]:
    """Marker, colour and words of a kind of point."""
    if row["method"] != "Joint":
        return "o", PUBLISHED, "published planners"
    if row["weight"] is None:
        return "D", FASTEST, "joint, for predicted time"
    return "s", WEIGHED, "joint, with this weight of rows against load"


def _name_published(panel: Axes, rows: Sequence[Row]) -> None:
    """Names beside the panel in the order of their points, a thin line to each; one name for plans that coincide."""
    names: dict[tuple[float, float], list[str]] = {}
    for row in rows:
        x, y = _share(panel, row)
        names.setdefault((round(y, 3), round(x, 3)), []).append(row["planner"])
    points = sorted(names)
    texts = [textwrap.wrap(", ".join(names[point]), MOST_LETTERS) for point in points]
    heights = spread([y for y, _ in points], [LINE * len(text) for text in texts])
    for (y, x), height, text in zip(points, heights, texts, strict=True):
        panel.annotate(
            "\n".join(text), (x, y), xytext=(LABELS_AT, height), xycoords="axes fraction",
            textcoords="axes fraction", fontsize=7.5, va="center", ha="left", zorder=1,
            arrowprops={"arrowstyle": "-", "color": "#bbbbbb", "linewidth": 0.6, "shrinkA": 1, "shrinkB": 3,
                        "relpos": (0, 0.5)},
        )  # fmt: skip


def spread(wanted: Sequence[float], sizes: Sequence[float]) -> list[float]:
    """Middles of labels between 0 and 1, in the order of those wanted, with the least sum of squared moves.

    Labels of these sizes touch if the middles lie `offset` apart, so middle - offset must not fall: pools of neighbours
    that would are put at their mean (pool adjacent violators; Ayer et al., 1955). Labels too many for the panel stand
    closer than their sizes.
    """
    shrunk = np.array(sizes) / max(float(np.sum(sizes)), 1.0)
    offset = np.cumsum(shrunk) - shrunk / 2
    pools: list[tuple[float, int]] = []
    for level in wanted - offset:
        pools.append((float(level), 1))
        while len(pools) > 1 and pools[-2][0] > pools[-1][0]:
            (low, few), (high, more) = pools[-2:]
            pools[-2:] = [((low * few + high * more) / (few + more), few + more)]
    levels = [mean for mean, count in pools for _ in range(count)]
    return list(map(float, np.clip(levels, 0, 1 - shrunk.sum()) + offset))


def _write_weights(panel: Axes, rows: Sequence[Row]) -> None:
    """The weight at points that are far enough from the last one that has it."""
    last = np.array([-1.0, -1.0])
    for row in sorted(rows, key=lambda row: float(row["weight"])):
        place = np.array(_share(panel, row))
        if np.abs(place - last).max() >= APART:
            panel.annotate(
                f"{row['weight']:g}", _place(row), xytext=(0, -7), textcoords="offset points", fontsize=7,
                color=WEIGHED, ha="center", va="top", zorder=5,
                path_effects=[withStroke(linewidth=2, foreground="white")],
            )  # fmt: skip
            last = place


def _legend(panel: Axes) -> list[Any]:
    rows: tuple[Row, ...] = (
        {"method": "", "weight": None},
        {"method": "Joint", "weight": None},
        {"method": "Joint", "weight": 0.5},
    )
    handles = []
    for marker, color, label in map(_kind, rows):
        handles += panel.plot([], [], marker, color=color, markerfacecolor="white", markersize=5.5, label=label)
    handles += panel.plot([], [], "-", color="#888888", linewidth=1.2, label="front of the budget")
    return [
        *handles,
        *panel.plot([], [], "o", color="black", markersize=5.5, label="filled: on the front of all three"),
    ]


def _place(row: Row) -> tuple[float, float]:
    return float(row["rows_per_token"]), float(row["load_max_over_mean"])


def _share(panel: Axes, row: Row) -> tuple[float, float]:
    """Where a point is, as shares of the panel's width and height."""
    (left, right), (low, high) = panel.get_xlim(), panel.get_ylim()
    x, y = _place(row)
    return (x - left) / (right - left), (y - low) / (high - low)


def _memory(rows: Sequence[Row]) -> str:
    most = max(float(row["memory_bytes_per_rank"]) for row in rows)
    return f"{most / 1e9:.1f} GB" if most >= 1e9 else f"{most / 1e6:.1f} MB"

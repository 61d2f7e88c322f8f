"""Figures of a comparison: affinity in placement order, load per rank, phases per planner, traffic against balance."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from analysis.results import Row
from grace_opt.atomic import write_atomically
from grace_opt.placement import EMPTY
from grace_opt.plan import Plan
from grace_opt.problem import Problem
from grace_opt.profile import affinity, expert_loads
from grace_opt.traffic import traffic

FIGURES = ("affinity", "load_per_rank", "phases", "traffic_against_balance")
SERIES_COLORS, MARKERS = ("#4477aa", "#ee6677", "#228833", "#aa3377"), "osD^v<>"
PHASE_COLORS = {"dispatch_s": "#4477aa", "experts_s": "#ddaa33", "combine_s": "#66ccee"}


def draw_comparison(
    folder: Path,
    problem: Problem,
    plans: Mapping[str, Plan],
    rows: Sequence[Row],
    tokens_per_rank: int | None,
    assumed: str = "",
) -> None:
    """Draw all figures of a comparison on one part of a trace as PNG files.

    Args:
        problem: the part the figures show (held out).
        rows: of all planners and splits; those of `held_out` are drawn.
        assumed: constants that no measurement supports, besides those of the topology.
    """
    shown = [row for row in rows if row.get("split") == "held_out"]
    label = "synthetic trace, held out" if problem.trace.synthetic else "held out"
    title = f"{problem.model.name} on {problem.topology.name}, {label}{caveat(assumed or problem.topology.assumed)}"
    drawn = (
        affinity_in_placement_order(problem, plans, title),
        load_per_rank(problem, plans, tokens_per_rank, title),
        phases_per_planner(shown, title),
        traffic_against_balance(shown, title),
    )
    for name, figure in zip(FIGURES, drawn, strict=True):
        save(folder / f"{name}.png", figure)


def affinity_in_placement_order(problem: Problem, plans: Mapping[str, Plan], title: str) -> Figure:
    """Co-activation over its expectation for independent choices, in the middle layer, experts in the order of ranks.

    White lines part ranks (up to 16 of them), thick ones nodes. A replica appears wherever it stands.
    """
    layer = problem.model.num_layers // 2
    load_E = expert_loads(problem.trace)[layer].astype(float)
    expected_EE = np.maximum(load_E[:, None] * load_E[None, :] / problem.trace.num_tokens, 1e-9)
    lift_EE = affinity(problem.trace, layer) / expected_EE
    subject = f"affinity / independent choices, layer {problem.model.layer_ids[layer]}"
    figure, axes = grid(len(plans), 3.1, f"{title}\n{subject}")
    for axis, (name, plan) in zip(axes, plans.items(), strict=False):
        slots_RS = plan.placement.slots[layer]
        order = slots_RS[slots_RS != EMPTY]
        picture = axis.imshow(lift_EE[np.ix_(order, order)], vmin=0, vmax=3, cmap="magma", interpolation="nearest")
        ends = np.cumsum((slots_RS != EMPTY).sum(axis=1))
        for rank, end in enumerate(ends[:-1]):
            thick = plan.node_of_rank[rank] != plan.node_of_rank[rank + 1]
            if plan.num_ranks > 16 and not thick:
                continue  # lines would hide the cells
            axis.axhline(end - 0.5, color="white", linewidth=1.6 if thick else 0.5)
            axis.axvline(end - 0.5, color="white", linewidth=1.6 if thick else 0.5)
        axis.set_title(name, fontsize=9)
        axis.set_xticks([])
        axis.set_yticks([])
    figure.colorbar(picture, ax=axes, shrink=0.7, label="observed / independent", extend="max")
    return figure


def load_per_rank(problem: Problem, plans: Mapping[str, Plan], tokens_per_rank: int | None, title: str) -> Figure:
    """Load of every rank over the mean, layer by layer; 1 is balance."""
    figure, axes = grid(len(plans), 2.6, f"{title}\nload of each rank / mean")
    for axis, (name, plan) in zip(axes, plans.items(), strict=False):
        load_LBR = traffic(problem.trace, plan, tokens_per_rank).load
        share_LR = load_LBR.sum(axis=1) / load_LBR.sum(axis=1).mean(axis=1, keepdims=True)
        ids = problem.model.layer_ids
        edges = (-0.5, plan.num_ranks - 0.5, ids[-1] + 0.5, ids[0] - 0.5)  # absolute layer ids, as in the plan
        picture = axis.imshow(
            share_LR, vmin=0, vmax=2, cmap="RdBu_r", aspect="auto", interpolation="nearest", extent=edges
        )
        axis.set_title(f"{name} (worst {share_LR.max():.2f})", fontsize=9)
        axis.set_xlabel("rank", fontsize=8)
        axis.set_ylabel("MoE layer", fontsize=8)
        axis.tick_params(labelsize=7)
    figure.colorbar(picture, ax=axes, shrink=0.7, label="load / mean", extend="max")
    return figure


def phases_per_planner(rows: Sequence[Row], title: str) -> Figure:
    """Mean time of a layer by phase, one bar a planner."""
    figure = Figure(figsize=(8, 1.4 + 0.42 * len(rows)), layout="constrained")
    axis = figure.subplots()
    left = np.zeros(len(rows))
    names = [row["planner"] for row in rows]
    for phase, color in PHASE_COLORS.items():
        width = np.array([row[phase] for row in rows]) * 1e3
        axis.barh(names, width, left=left, color=color, label=phase.removesuffix("_s"))
        left += width
    for name, end in zip(names, left, strict=True):
        axis.annotate(f"{end:.3g}", (end, name), xytext=(4, 0), textcoords="offset points", va="center", fontsize=8)
    axis.invert_yaxis()
    axis.margins(x=0.1)
    axis.set_xlabel("predicted time of a MoE layer, ms (mean over layers)")
    axis.set_title(title, fontsize=10)
    axis.legend(fontsize=8, frameon=False, ncols=3, loc="upper left", bbox_to_anchor=(0, -0.2))
    unframe(axis)
    return figure


def traffic_against_balance(rows: Sequence[Row], title: str) -> Figure:
    """Rows that leave a node (on one node: a rank) against the busiest rank; the lower left corner is best."""
    field, name = "cross_node_rows_per_token", "cross-node"
    if all(row[field] == 0 for row in rows):
        field, name = "intra_node_rows_per_token", "intra-node"
    figure = Figure(figsize=(6.4, 4.8), layout="constrained")
    axis = figure.subplots()
    places = np.array([[row[field], row["load_max_over_mean"]] for row in rows])
    axis.scatter(*places.T, color="#4477aa", zorder=3)
    cells = np.round(places / np.maximum(np.ptp(places, axis=0), 1e-9) * 20)  # neighbours share one label
    for cell in np.unique(cells, axis=0):
        near = np.flatnonzero((cells == cell).all(axis=1)).tolist()
        names = ", ".join(rows[i]["planner"] for i in near)
        axis.annotate(names, places[near].max(axis=0), xytext=(5, 4), textcoords="offset points", fontsize=8)
    axis.set_xlabel(f"{name} rows per token and layer")
    axis.set_ylabel("load of the busiest rank / mean")
    axis.margins(0.18)
    axis.set_title(title, fontsize=10)
    axis.grid(alpha=0.3)
    unframe(axis)
    return figure


def draw_validation(folder: Path, rows: Sequence[Row], title: str) -> None:
    """Draw `agreement.png`: predicted against measured layer times, on the diagonal where they agree."""
    save(folder / "agreement.png", predicted_against_measured(rows, title))


def predicted_against_measured(rows: Sequence[Row], title: str) -> Figure:
    """One panel a batch size, one mark a plan; the grey band is within 10 %."""
    sizes = sorted({row["tokens_per_rank_asked"] for row in rows}, reverse=True)
    schemes = sorted({row["scheme"] for row in rows})
    planners = list(dict.fromkeys(row["planner"] for row in rows))
    figure, axes = grid(len(sizes), 4.6, f"{title} on {rows[0]['cluster']}: time of a MoE layer, ms")
    for axis, size in zip(axes, sizes, strict=False):
        shown = [row for row in rows if row["tokens_per_rank_asked"] == size]
        times = np.array([[row["measured_s"], row["predicted_s"]] for row in shown]) * 1e3
        ends = np.array([times.min() * 0.8, times.max() * 1.25])
        axis.fill_between(ends, ends * 0.9, ends * 1.1, color="#dddddd", linewidth=0)
        axis.plot(ends, ends, color="#888888", linewidth=0.8)
        for row, (measured, predicted) in zip(shown, times, strict=True):
            color, marker = SERIES_COLORS[schemes.index(row["scheme"]) % 4], MARKERS[planners.index(row["planner"]) % 7]
            axis.plot(measured, predicted, marker, color=color, markersize=6, markerfacecolor="none")
        axis.set(
            xscale="log", yscale="log", xlim=ends, ylim=ends, xlabel="measured", ylabel="predicted", aspect="equal"
        )
        axis.set_title(f"{shown[0]['tokens_per_rank']:.0f} tokens per rank", fontsize=9)
        for ticks in (axis.xaxis, axis.yaxis):
            ticks.set_major_formatter("{x:g}")
            ticks.set_minor_formatter("{x:g}")
            ticks.set_tick_params(which="both", labelsize=7)
        unframe(axis)
    for scheme in schemes:
        axes[0].plot([], [], "s", color=SERIES_COLORS[schemes.index(scheme) % 4], label=scheme)
    for planner in planners:
        axes[0].plot([], [], MARKERS[planners.index(planner) % 7], color="black", markerfacecolor="none", label=planner)
    axes[0].legend(fontsize=7, frameon=False, loc="upper left")
    return figure


def caveat(assumed: str) -> str:
    """What is added to a title where constants are assumed that no measurement supports."""
    return " (assumed constants)" if assumed else ""


def grid(count: int, size: float, title: str) -> tuple[Figure, list[Axes]]:
    """A figure of so many square panels of so many inches, at most four beside each other."""
    columns = min(4, count)
    lines = math.ceil(count / columns)
    figure = Figure(figsize=(size * columns + 1, size * lines + 0.7), layout="constrained")
    axes: Any = np.atleast_1d(figure.subplots(lines, columns)).ravel()
    for axis in axes[count:]:
        axis.set_visible(False)
    figure.suptitle(title, fontsize=10)
    return figure, list(axes)


def unframe(axis: Axes) -> None:
    """Leave only the axes where the scales are."""
    axis.spines[["top", "right"]].set_visible(False)


def save(path: Path, figure: Figure) -> None:
    """Write a figure as a PNG file, whole or not at all."""
    FigureCanvasAgg(figure)
    write_atomically(path, lambda temporary: figure.savefig(temporary, dpi=130))

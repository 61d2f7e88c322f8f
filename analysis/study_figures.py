"""Figures of a study, chosen by the axes that vary; each as PNG and SVG.

    time_against_AXIS   numeric axis: log time against log axis, a ring where another choice becomes the fastest
    redundancy          time and memory against redundant experts, knees as filled marks
    ep_size             tokens a second per GPU and memory against the number of ranks, the best size as a filled mark
    domain_shift        speed-up over linear on the domains of the plan and on others
    sensitivity         time over the fastest's, for each constant that was scaled; bold where another planner wins
    times               anything else: time of every combination

One axis gives the colours (planners first), one the line styles (schemes first), others the panels.
"""

from collections.abc import Sequence
from pathlib import Path

from matplotlib.figure import Figure

from analysis.results import Row
from analysis.study_look import Look, legend, panels_of, roles, save, values_of
from analysis.study_series import (
    DOMAINS,
    SCALED,
    SLOTS,
    grouped,
    name_of,
    numeric_axes,
    series,
    sets_size,
    short,
    tokens_per_s,
    unit_of,
    varies_ep_size,
    varying,
)


def draw_study(folder: Path, rows: Sequence[Row], found: Sequence[Row]) -> list[str]:
    """Draw what the axes call for into a folder; the names of the figures.

    Args:
        rows: cells that were priced.
        found: what `study_findings.findings` found in them.
    """
    axes = varying(rows)
    drawn: dict[str, Figure] = {}
    for axis in numeric_axes(rows):
        if not sets_size(rows, axis):
            drawn[f"time_against_{short(axis)}"] = time_against(rows, axis, found)
    if SLOTS in axes:
        drawn["redundancy"] = redundancy(rows, found)
    if varies_ep_size(rows):
        drawn["ep_size"] = ep_size(rows)
    if DOMAINS in axes and any(row["kind"] == "domain_shift" for row in found):
        drawn["domain_shift"] = domain_shift(rows, found)
    if SCALED in axes:
        drawn["sensitivity"] = sensitivity(rows)
    if not drawn and axes:
        drawn["times"] = times(rows)
    for name, figure in drawn.items():
        save(folder / name, figure)
    return list(drawn)


def time_against(rows: Sequence[Row], axis: str, found: Sequence[Row]) -> Figure:
    """Time of a layer against a numeric axis, both logarithmic."""
    look = Look.of(rows, [name for name in varying(rows) if name != axis])
    scale, unit = unit_of(axis)
    figure, panels = panels_of(rows, look, f"time of a MoE layer against {axis.removeprefix('cell.')}")
    for panel, context in panels:
        for label, group in series(look.inside(rows, context), axis, look.lines).items():
            panel.plot([row[axis] / scale for row in group], [_ms(row) for row in group], **look.line(label))
        for point in found:
            if (point["kind"], point.get("axis")) == ("fastest", axis) and look.is_inside(point, context):
                panel.plot(point["value"] / scale, point["layer_time_s"] * 1e3, "o", ms=11, mfc="none", mec="black")
        panel.set(xscale="log", yscale="log", xlabel=f"{short(axis)}{unit and ','}{unit}", ylabel="ms")
        places = sorted({row[axis] / scale for row in rows})
        panel.set_xticks(places, [f"{place:.3g}" for place in places], fontsize=7)
        panel.set_xticks([], minor=True)
        low, high = panel.get_ylim()
        panel.yaxis.set_major_formatter("{x:g}")
        panel.yaxis.set_minor_formatter("{x:g}" if high / low < 12 else "")
        panel.tick_params(axis="y", which="both", labelsize=7)
    legend(figure, look, "ring: from here on another choice is the fastest")
    return figure


def redundancy(rows: Sequence[Row], found: Sequence[Row]) -> Figure:
    """Time and memory against redundant experts."""
    look = Look.of(rows, [name for name in varying(rows) if name != SLOTS])
    figure, panels = panels_of(rows, look, "time and memory against redundant experts", columns=2)
    scale, unit = _memory_unit(rows)
    for index, (panel, context) in enumerate(panels):
        value = (_ms, lambda row: row["memory_bytes_per_rank"] / scale)[index % 2]
        for label, group in series(look.inside(rows, context), "redundant_experts", look.lines).items():
            panel.plot([row["redundant_experts"] for row in group], [value(row) for row in group], **look.line(label))
            for knee in found:
                if knee["kind"] == "knee" and look.is_inside(knee, (*context, *label)):
                    panel.plot(knee["redundant_experts"], value(knee), **look.mark(label))
        title = ("ms for a MoE layer", f"{unit} of weights on the fullest rank")[index % 2]
        panel.set(xlabel="redundant experts in a layer", ylabel=title)
    legend(figure, look, "filled: knee of a curve")
    return figure


def ep_size(rows: Sequence[Row]) -> Figure:
    """What a GPU serves, and the weights it holds, by the number of ranks one set of experts is spread over."""
    look = Look.of(rows, [name for name in varying(rows) if not sets_size(rows, name)])
    figure, panels = panels_of(rows, look, "EP size at equal GPUs in all", columns=2)
    scale, unit = _memory_unit(rows)
    for index, (panel, context) in enumerate(panels):
        value = (tokens_per_s, lambda row: row["memory_bytes_per_rank"] / scale)[index % 2]
        for label, group in series(look.inside(rows, context), "num_ranks", look.lines).items():
            panel.plot([row["num_ranks"] for row in group], [value(row) for row in group], **look.line(label))
            best = max(group, key=tokens_per_s)
            panel.plot(best["num_ranks"], value(best), **look.mark(label))
        title = ("tokens/s per GPU through the MoE layers", f"{unit} of weights on the fullest rank")[index % 2]
        panel.set(xscale="log", xlabel="EP size (ranks that share one set of experts)", ylabel=title)
        sizes = sorted({row["num_ranks"] for row in rows})
        panel.set_xticks(sizes, [str(size) for size in sizes])
        panel.set_xticks([], minor=True)
    legend(figure, look, "filled: best size")
    return figure


def domain_shift(rows: Sequence[Row], found: Sequence[Row]) -> Figure:
    """Speed-up over linear on the plan's own domains (open) and on others (filled)."""
    shifts = [row for row in found if row["kind"] == "domain_shift"]
    look = Look.of(shifts, [name for name in varying(rows) if name != DOMAINS], decided_only=True)
    figure, panels = panels_of(rows, look, "gain over linear when the domain shifts")
    for panel, context in panels:
        inside = look.inside(shifts, context)
        places = list(dict.fromkeys(row[DOMAINS] for row in inside))
        labels = list(dict.fromkeys(tuple((name, row.get(name)) for name in look.lines) for row in inside))
        for row in inside:
            label = tuple((name, row.get(name)) for name in look.lines)
            height = places.index(row[DOMAINS]) + 0.6 * ((labels.index(label) + 0.5) / len(labels) - 0.5)
            ends = [row["fit_speedup_over_linear"], row["speedup_over_linear"]]
            color = look.line(label)["color"]
            panel.plot(ends, [height] * 2, "-", color=color, linewidth=1)
            panel.plot(ends[0], height, "o", mfc="white", mec=color)
            panel.plot(ends[1], height, "o", color=color)
        panel.axvline(1, color="#888888", linewidth=0.8)
        panel.set_yticks(range(len(places)), [f"planned on {place}" for place in places], fontsize=8)
        panel.invert_yaxis()
        panel.set_xlabel("speed-up over linear")
    legend(figure, look, "open: on the domains of the plan; filled: on all others")
    return figure


def sensitivity(rows: Sequence[Row]) -> Figure:
    """For each constant scaled, the time of every planner over the fastest's."""
    look = Look.of(rows, [name for name in varying(rows) if name != SCALED], decided_only=True)
    figure, panels = panels_of(rows, look, "ranking when a constant of the cost model is scaled", height=0.32)
    for panel, context in panels:
        inside = look.inside(rows, context)
        scaled = list(dict.fromkeys(row.get(SCALED) for row in inside))
        winners = []
        for place, value in enumerate(scaled):
            group = [row for row in inside if row.get(SCALED) == value]
            best = min(group, key=_ms)
            winners.append(tuple(best.get(name) for name in look.lines))
            for row in group:
                label = tuple((name, row.get(name)) for name in look.lines)
                panel.plot(_ms(row) / _ms(best), place, **{**look.line(label), "linestyle": ""})
        base = winners[scaled.index(None)] if None in scaled else winners[0]
        panel.set_yticks(range(len(scaled)), ["as configured" if v is None else str(v) for v in scaled], fontsize=8)
        for text, winner in zip(panel.get_yticklabels(), winners, strict=True):
            text.set_fontweight("bold" if winner != base else "normal")
        panel.invert_yaxis()
        panel.set_xlabel("time / that of the fastest")
    legend(figure, look, "bold: another one wins")
    return figure


def times(rows: Sequence[Row]) -> Figure:
    """Time of every combination, one line each."""
    axes = varying(rows)
    color = roles(axes)[0] or ""
    lines = [name for name in axes if name != color]
    look = Look(color, None, (), {name: values_of(rows, name) for name in axes})
    figure, ((panel, _),) = panels_of(rows, look, "time of a MoE layer")
    groups = grouped(rows, lines)
    for place, group in enumerate(groups.values()):
        for row in group:
            panel.plot(_ms(row), place, **{**look.line(((color, row.get(color)),)), "linestyle": ""})
    panel.set_yticks(range(len(groups)), [name_of(label) for label in groups], fontsize=8)
    panel.invert_yaxis()
    panel.set_xlabel("ms")
    figure.set_size_inches(9, 2.2 + 0.3 * len(groups))
    legend(figure, look, "")
    return figure


def _ms(row: Row) -> float:
    return float(row["layer_time_s"]) * 1e3


def _memory_unit(rows: Sequence[Row]) -> tuple[float, str]:
    return (1e9, "GB") if max(row["memory_bytes_per_rank"] for row in rows) >= 1e9 else (1e6, "MB")

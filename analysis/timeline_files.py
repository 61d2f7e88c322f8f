"""A timeline as files: a trace that Perfetto or chrome://tracing opens, and a picture.

Both put the timelines they are given, predicted and measured, one below the other: processes of the trace, panels of
the picture. A track or line is a rank; what it works is coloured by phase, what it waits at a barrier is grey.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from matplotlib.ticker import MaxNLocator

from analysis.plots import PHASE_COLORS, save, unframe
from grace_opt.atomic import write_text_atomically
from grace_opt.timeline import Timeline, phase_of

MAX_EVENTS = 100_000
FIRST_PROCESS = 1_000_000  # no rank: viewers take a thread numbered as its process for the main one
WAITING, WAITING_COLOR = "waiting", "#d9d9d9"
Event = dict[str, Any]


def write_chrome_trace(
    path: Path, timelines: Mapping[str, Timeline], node_of_rank: Sequence[int], about: Mapping[str, Any], batches: int
) -> None:
    """Write timelines as JSON in the trace event format, one event a line.

    Times are microseconds from the start of the first batch that is shown; one batch follows another, each through all
    layers. `otherData` says which batches these are. No two spans of a track overlap.

    Args:
        timelines: by name, "predicted" and "measured".
        node_of_rank: [R].
        about: what was run, kept as `otherData`.
        batches: how many are shown, the first ones; fewer where that would be more than MAX_EVENTS.

    The format: Trace Event Format, Google, 2016 ("X" complete events and "M" metadata).
    """
    few = {name: timeline.select(*_first(timeline, batches)) for name, timeline in timelines.items()}
    numbered = enumerate(few.items(), FIRST_PROCESS)
    events = [event for pid, (name, part) in numbered for event in _process(pid, name, part, node_of_rank)]
    shown = {name: list(range(part.num_batches)) for name, part in few.items()}
    of = {name: timeline.num_batches for name, timeline in timelines.items()}
    other = json.dumps({**about, "batches_shown": shown, "batches": of}, allow_nan=False)
    lines = ",\n".join(json.dumps(event, allow_nan=False) for event in events)
    write_text_atomically(path, f'{{"displayTimeUnit": "ms",\n"otherData": {other},\n"traceEvents": [\n{lines}\n]}}\n')


def draw_timelines(
    path: Path,
    timelines: Mapping[str, Timeline],
    node_of_rank: Sequence[int],
    title: str,
    layer: int | None = None,
    batches: int = 2,
) -> None:
    """Draw `gantt` of one layer's first batches as a PNG file.

    Args:
        layer: its place in the timelines; None is the middle one.
    """
    first = next(iter(timelines.values()))
    layer = len(first.layer_ids) // 2 if layer is None else layer
    few = {name: t.select([layer], range(min(batches, t.num_batches))) for name, t in timelines.items()}
    shown = next(iter(few.values())).num_batches
    subject = f"MoE layer {first.layer_ids[layer]}, " + (f"batches 0 to {shown - 1}" if shown > 1 else "batch 0")
    save(path, gantt(few, node_of_rank, f"{title}\n{subject}"))


def gantt(timelines: Mapping[str, Timeline], node_of_rank: Sequence[int], title: str) -> Figure:
    """One panel a timeline, one line a rank, all on one scale of time; black lines part nodes, dotted ones batches."""
    ranks = next(iter(timelines.values())).num_ranks
    height = float(np.clip(0.24 * ranks, 0.9, 7))
    figure = Figure(figsize=(10, 1.3 + (height + 0.45) * len(timelines)), layout="constrained")
    axes = np.atleast_1d(figure.subplots(len(timelines), 1, sharex=True))
    for axis, (name, timeline) in zip(axes, timelines.items(), strict=True):
        _draw(axis, timeline, node_of_rank)
        axis.set_title(f"{name}: {timeline.total_s * 1e3:.3g} ms", fontsize=9, loc="left")
    axes[-1].set_xlabel("ms", fontsize=8)
    axes[-1].set_xlim(0, max(timeline.total_s for timeline in timelines.values()) * 1e3 or 1)
    figure.suptitle(title, fontsize=10)
    steps = list(dict.fromkeys(step for timeline in timelines.values() for step in timeline.steps))
    handles = [Patch(**_style(step), label=step) for step in steps] + [Patch(color=WAITING_COLOR, label=WAITING)]
    figure.legend(handles=handles, fontsize=8, frameon=False, ncols=len(handles), loc="outside lower center")
    return figure


def _draw(axis: Axes, timeline: Timeline, node_of_rank: Sequence[int]) -> None:
    start = timeline.start_s * 1e3
    for place, step in enumerate(timeline.steps):
        begin, lasts = start[:, :, place].ravel(), timeline.step_s[:, :, place].ravel() * 1e3
        for rank in range(timeline.num_ranks):
            busy = timeline.busy_s[:, :, place, rank].ravel() * 1e3
            lane = (rank - 0.4, 0.8)
            waits = list(zip(begin + busy, lasts - busy, strict=True))
            axis.broken_barh(waits, lane, facecolor=WAITING_COLOR, linewidth=0)
            axis.broken_barh(list(zip(begin, busy, strict=True)), lane, linewidth=0, **_style(step))
    for rank in np.flatnonzero(np.diff(node_of_rank)).tolist():
        axis.axhline(rank + 0.5, color="black", linewidth=0.8)
    for begin in start[0, 1:, 0]:
        axis.axvline(begin, color="black", linewidth=0.8, linestyle=":")
    axis.set_ylim(timeline.num_ranks - 0.5, -0.5)
    axis.set_ylabel("rank", fontsize=8)
    axis.yaxis.set_major_locator(MaxNLocator(integer=True))
    axis.tick_params(labelsize=7)
    unframe(axis)


def _style(step: str) -> dict[str, Any]:
    """A phase's colour; the stage inside the node is lighter."""
    return {"facecolor": PHASE_COLORS[f"{phase_of(step)}_s"], "alpha": 0.55 if step.endswith(" inside") else 1.0}


def _first(timeline: Timeline, batches: int) -> tuple[range, range]:
    """All layers, and as many batches as asked for and as fit."""
    layers = len(timeline.layer_ids)
    fit = MAX_EVENTS // (2 * layers * len(timeline.steps) * timeline.num_ranks)
    return range(layers), range(max(1, min(batches, timeline.num_batches, fit)))


def _process(pid: int, name: str, timeline: Timeline, node_of_rank: Sequence[int]) -> Iterator[Event]:
    """Metadata and spans of one timeline; after the tracks of ranks one that says which layer is computed."""
    ranks = timeline.num_ranks
    yield {"ph": "M", "pid": pid, "name": "process_name", "args": {"name": name}}
    yield {"ph": "M", "pid": pid, "name": "process_sort_index", "args": {"sort_index": pid}}
    for rank in range(ranks + 1):
        label = "layers" if rank == ranks else f"rank {rank} (node {node_of_rank[rank]})"
        yield {"ph": "M", "pid": pid, "tid": rank, "name": "thread_name", "args": {"name": label}}
        yield {"ph": "M", "pid": pid, "tid": rank, "name": "thread_sort_index", "args": {"sort_index": rank}}
    start = timeline.start_s
    for layer, batch in np.ndindex(timeline.step_s.shape[:2]):
        where = {"layer": timeline.layer_ids[layer], "batch": batch}
        begin = float(start[layer, batch, 0])
        whole = f"layer {where['layer']}, batch {batch}"
        yield from _span(pid, ranks, whole, begin, begin + float(timeline.layer_s[layer, batch]), where)
        for place, step in enumerate(timeline.steps):
            begin, lasts = float(start[layer, batch, place]), float(timeline.step_s[layer, batch, place])
            bound = {} if timeline.bound_by is None else {"bound": str(timeline.bound_by[layer, batch, place])}
            for rank, busy in enumerate(timeline.busy_s[layer, batch, place].tolist()):
                ends = begin + min(busy, lasts)
                yield from _span(pid, rank, step, begin, ends, {**where, **bound})
                yield from _span(pid, rank, WAITING, ends, begin + lasts, {**where, "step": step, **bound})


def _span(pid: int, tid: int, name: str, start_s: float, end_s: float, args: Mapping[str, Any]) -> Iterator[Event]:
    """A complete event in whole nanoseconds, so that ends meet starts exactly; none if it is shorter than one."""
    start_ns, end_ns = round(start_s * 1e9), round(end_s * 1e9)
    if end_ns > start_ns:
        times = {"ts": start_ns / 1000, "dur": (end_ns - start_ns) / 1000}
        category = {"cat": "idle" if name == WAITING else phase_of(name)}
        yield {"ph": "X", "pid": pid, "tid": tid, "name": name, **category, **times, "args": dict(args)}

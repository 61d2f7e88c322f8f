"""A timeline: a lane a rank, what it works and where it waits, step after step."""

from collections.abc import Sequence

from analysis.html_report.chart import Axis, framed, pct
from analysis.html_report.elements import Child, Element, el, legend, swatch
from grace_opt.timeline import Timeline, phase_of


def lanes(timeline: Timeline, node_of_rank: Sequence[int], axis: Axis) -> list[Element]:
    """The first layer and batch of a timeline, from its start; the axis is that of `seconds`."""
    ranks = timeline.num_ranks
    tall = max(8, min(26, 460 // ranks))
    drawn: list[Child] = []
    begin = 0.0
    for place, step in enumerate(timeline.steps):
        lasts = float(timeline.step_s[0, 0, place])
        for rank in range(ranks):
            busy = min(float(timeline.busy_s[0, 0, place, rank]), lasts)
            for kind, start, length in ((fill(step), begin, busy), ("waiting", begin + busy, lasts - busy)):
                if length > 0:
                    said = f"rank {rank}: {'waits in ' * (kind == 'waiting')}{step}, {axis.unit.with_name(length)}"
                    drawn.append(el("rect", el("title", said), x=pct(axis.at(start)), width=pct(length / axis.high),
                                    y=rank * tall + 1, height=tall - 2, class_=kind))  # fmt: skip
        begin += lasts
        drawn.append(
            el("line", x1=pct(axis.at(begin)), x2=pct(axis.at(begin)), y1=0, y2=ranks * tall, class_="barrier")
        )
    every = max(1, ranks // 24)
    for rank in range(0, ranks, every):
        drawn.append(el("text", f"rank {rank}", x="-8", y=rank * tall + tall / 2, class_="tick left"))
    for rank in range(1, ranks):
        if node_of_rank[rank] != node_of_rank[rank - 1]:
            drawn.append(el("line", x1="0%", x2="100%", y1=rank * tall, y2=rank * tall, class_="node"))
    height = ranks * tall
    ticks = [(el("line", x1=pct(axis.at(m)), x2=pct(axis.at(m)), y1=height, y2=height + 4, class_="base"),
              el("text", axis.written(m), x=pct(axis.at(m)), y=height + 17, class_="tick middle"))
             for m in axis.marks]  # fmt: skip
    base = el("line", x1="0%", x2="100%", y1=height, y2=height, class_="base")
    names = list(dict.fromkeys(timeline.steps))
    samples = [(swatch(fill(step)), step) for step in names] + [(swatch("waiting"), "waiting for the slowest")]
    return [
        legend(samples),
        framed(height, drawn, base, ticks, top=4),
        el("p", axis.title, class_="axis below"),
    ]


def fill(step: str) -> str:
    """Class of a step's fill; the stage inside nodes is hatched."""
    return f"{phase_of(step)} inside" if step.endswith(" inside") else phase_of(step)

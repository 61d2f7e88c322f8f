"""What a plan does on the cluster, on sequences it was not fitted to: who stands with whom, who works, who sends."""

from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from analysis.html_report.bars import columns
from analysis.html_report.chart import Axis
from analysis.html_report.elements import Cell, Child, Element, el, figure, legend, number, section, swatch, table
from analysis.html_report.heatmap import SHADES, heatmap, shades_legend
from analysis.html_report.inputs import Drawn
from analysis.html_report.lanes import lanes
from analysis.html_report.units import Unit, seconds
from grace_opt.placement import EMPTY
from grace_opt.plan import Plan
from grace_opt.profile import affinity, expert_loads
from grace_opt.timeline import stage_names
from simulator.timeline import timeline

LIFTS = (0.25, 0.5, 0.75, 1.0, 1.5, 2.0, 3.0)
"""Where the shades of an affinity map change."""
SHARE = Unit("%", 100.0, 1)
MOST_WRITTEN = 8
"""Ranks up to which numbers stand in the cells of a traffic matrix."""


def placement(drawn: Drawn, layer: int | None) -> list[Element]:
    """All sections about a plan; `layer` is an absolute id, None the one in which the plan joins most.

    Raises:
        ValueError: the model has no such MoE layer.
    """
    ids = list(drawn.problem.model.layer_ids)
    if layer is not None and layer not in ids:
        raise ValueError(f"layer={layer} is no MoE layer of {drawn.problem.model.name}: it has {ids[0]} to {ids[-1]}")
    counts_LEE = (affinity(drawn.problem.trace, index) for index in range(len(ids)))
    joined_L2 = np.array(
        [
            [_joined(plan, index, count_EE) for plan in (drawn.plan, drawn.in_order)]
            for index, count_EE in enumerate(counts_LEE)
        ]
    )
    place = int(np.argmax(joined_L2[:, 0] - joined_L2[:, 1])) if layer is None else ids.index(layer)
    return [
        _affinity(drawn, place, joined_L2[place]),
        _load(drawn, place),
        _traffic(drawn),
        _timeline(drawn, place),
    ]


def _affinity(drawn: Drawn, place: int, joined: NDArray[np.float64]) -> Element:
    """Co-activation over its expectation, experts in the order of ranks."""
    problem, plan = drawn.problem, drawn.plan
    count_EE = affinity(problem.trace, place)
    load_E = expert_loads(problem.trace)[place].astype(float)
    expected_EE = np.maximum(load_E[:, None] * load_E[None, :] / problem.trace.num_tokens, 1e-9)
    slots_RS = plan.placement.slots[place]
    order = slots_RS[slots_RS != EMPTY]
    shades = np.digitize((count_EE / expected_EE)[np.ix_(order, order)], LIFTS)
    shades[order[:, None] == order[None, :]] = -1
    sizes = (slots_RS != EMPTY).sum(axis=1)
    starts = [0, *np.cumsum(sizes)[:-1].tolist()]
    nodes = plan.node_of_rank
    thick = [starts[rank] for rank in range(1, len(starts)) if nodes[rank] != nodes[rank - 1]]
    names = [str(rank) for rank in range(len(starts))]
    edges = [
        f"under {LIFTS[0]:g}",
        *(f"{a:g} to {b:g}" for a, b in pairwise(LIFTS)),
        f"{LIFTS[-1]:g} or more",
    ]
    where = "node" if len(plan.ranks_per_node) > 1 else "rank"
    id_ = plan.layer_ids[place]
    caption: list[Child] = [
        "Each square says how often a token chose two experts together, over how often it would if choices were "
        "independent: darker on white, brighter on black, is oftener. Experts stand in the order of the ranks that "
        "hold them, a copy wherever it is held; numbers are ranks, thin lines part them "
        "(where they are at most 16), thick lines part nodes. ",
        number(float(joined[0]), SHARE, named=True), f" of the pairs that tokens chose together are on one {where}; ",
        number(float(joined[1]), SHARE, named=True), " with experts in index order. Of all layers, this is the one in "
        "which the plan brings most together, unless another was asked for.",
    ]  # fmt: skip
    axes = el("p", "both ways: experts, by the rank that holds them", class_="axis")
    picture = [shades_legend(edges), axes, heatmap(shades, starts, names, thick)]
    numbers = _rank_table(plan, place, count_EE)
    shown = figure("affinity", f"Layer {id_}, {drawn.name}", picture, caption, numbers)
    about = el("p", drawn.about) if drawn.about else None
    return section("affinity-map", "Which experts stand together", about, shown)


def _rank_table(plan: Plan, place: int, count_EE: NDArray[np.int64]) -> Element:
    """Of every rank its experts, and the share of their pairs that it holds both of."""
    lines: list[list[Cell | Child]] = []
    for rank, experts in enumerate(plan.placement.to_lists()[place]):
        held = np.unique(np.array(experts, np.int64))
        total = count_EE[held].sum()
        own = count_EE[np.ix_(held, held)].sum() / total if total else 0.0
        text = ", ".join(map(str, experts))
        lines.append([f"rank {rank}", f"node {plan.node_of_rank[rank]}", Cell(float(own), SHARE), text])
    return table(
        ("rank", "node", "pairs of its experts that it holds both of, %", "experts, in order"),
        lines,
        "experts of ranks",
    )


def _joined(plan: Plan, place: int, count_EE: NDArray[np.int64]) -> float:
    """Share of co-activated pairs of which some node (on one node: some rank) holds both experts."""
    nodes = plan.node_of_rank if len(plan.ranks_per_node) > 1 else np.arange(plan.num_ranks)
    held_EN = np.zeros((plan.num_experts, int(nodes.max()) + 1), bool)
    for rank, experts in enumerate(plan.placement.to_lists()[place]):
        held_EN[experts, nodes[rank]] = True
    together_EE = (held_EN.astype(np.int64) @ held_EN.T.astype(np.int64)) > 0
    return float(count_EE[together_EE].sum() / max(count_EE.sum(), 1))


def _load(drawn: Drawn, place: int) -> Element:
    load_R, linear_R = (counts.load[place].mean(axis=0) for counts in (drawn.counts, drawn.linear))
    unit = Unit("", 1.0, 0)
    axis = Axis("(token, expert) pairs a batch", 0.0, float(max(load_R.max(), linear_R.max())) * 1.12 or 1.0, unit)
    marked = drawn.name != "linear"
    rows = [(f"rank {rank}", float(own), float(old) if marked else None)
            for rank, (own, old) in enumerate(zip(load_R, linear_R, strict=True))]  # fmt: skip
    mean = float(load_R.mean())
    caption: list[Child] = [
        f"Work of every rank in layer {drawn.plan.layer_ids[place]}, mean over batches. A layer waits for its busiest "
        "rank: ",
        number(float(load_R.max()) / mean if mean else 0.0, Unit("", 1, 3)), " times the mean here, ",
        number(float(linear_R.max()) / mean if mean else 0.0, Unit("", 1, 3)), " times with experts in index order.",
    ]  # fmt: skip
    samples = [(swatch("one"), drawn.name), (_rule("mean"), "mean of all ranks")]
    samples += [(_rule("mark"), "experts in index order")] if marked else []
    pairs, ratio = Unit("", 1, 1), Unit("", 1, 3)
    lines: list[list[Cell | Child]] = [
        [name, Cell(own, pairs), Cell(own / mean if mean else 0.0, ratio), Cell(float(old), pairs)]
        for (name, own, _), old in zip(rows, linear_R, strict=True)
    ]
    numbers = table(("rank", "pairs a batch", "over the mean", "linear, pairs a batch"), lines, "load of ranks")
    title = f"Load of every rank, layer {drawn.plan.layer_ids[place]}"
    return section(
        "load",
        "Who works",
        figure("load-per-rank", title, [legend(samples), *columns(rows, axis, mean)], caption, numbers),
    )


def _traffic(drawn: Drawn) -> Element:
    stages = drawn.counts.dispatch(drawn.cost.scheme)
    size = drawn.cost.dispatch_row_bytes(drawn.problem.model)
    figures = []
    for name, rows_LBRR in zip(stage_names("dispatch", len(stages)), stages, strict=True):
        sent_RR = rows_LBRR.mean(axis=(0, 1))
        figures.append(_matrix(drawn, name, sent_RR, size))
    text = (
        f"A row is the hidden state of one token, here {size:,.0f} bytes. Combine sends them back, without padding. "
        f"The scheme is {drawn.cost.scheme}."
    )
    return section("traffic", "Who sends to whom", el("p", text), el("div", figures, class_="pair"))


def _matrix(drawn: Drawn, name: str, sent_RR: NDArray[np.float64], size: float) -> Element:
    ranks, most = len(sent_RR), float(sent_RR.max())
    shades = np.where(sent_RR > 0, np.minimum(sent_RR / (most or 1.0) * SHADES, SHADES - 1).astype(np.int64), -1)
    nodes = drawn.plan.node_of_rank
    thick = [rank for rank in range(1, ranks) if nodes[rank] != nodes[rank - 1]]
    written = [[_short(value) for value in row] for row in sent_RR.tolist()] if ranks <= MOST_WRITTEN else None
    edges = [f"{_short(most * s / SHADES)} to {_short(most * (s + 1) / SHADES)}" for s in range(SHADES)]
    apart = nodes[:, None] != nodes[None, :]
    caption: list[Child] = [
        "Rows a batch, mean over layers and batches: a line sends, a column receives; empty squares send nothing. All "
        "together ", number(float(sent_RR.sum()), Unit("rows", 1, 0), named=True), ", ",
        number(float(sent_RR.sum() * size), Unit("MB", 1e-6, 2), named=True), "; between nodes ",
        number(float(sent_RR[apart].sum()), Unit("rows", 1, 0), named=True), ".",
    ]  # fmt: skip
    names = [str(rank) for rank in range(ranks)]
    lines: list[list[Cell | Child]] = [
        [f"from {rank}", *(Cell(value, Unit("", 1, 1)) for value in row)] for rank, row in enumerate(sent_RR.tolist())
    ]
    numbers = table(("rows a batch", *(f"to {rank}" for rank in range(ranks))), lines, f"rows of {name}")
    legend_ = (
        shades_legend(edges)
        if written is None
        else el("p", "rows a batch, from the rank on the left to the rank above", class_="axis")
    )
    picture = [legend_, heatmap(shades, list(range(ranks)), names, thick, written)]
    return figure(
        f"traffic-{name.replace(' ', '-')}", f"{name.capitalize()}: from rank to rank", picture, caption, numbers
    )


def _timeline(drawn: Drawn, place: int) -> Element:
    whole = timeline(drawn.cost, drawn.problem, drawn.counts)
    one = whole.select([place], [0])
    unit = seconds(one.total_s)
    axis = Axis(f"time from the start of the layer, {unit.name}", 0.0, one.total_s or 1.0, unit)
    nodes = drawn.plan.node_of_rank.tolist()
    waits_R = one.idle_s[0, 0]
    caption: list[Child] = [
        f"Layer {one.layer_ids[0]}{f', the first of {whole.num_batches} batches' * (whole.num_batches > 1)}: ",
        number(one.total_s, unit, named=True), " in all. A lane is a rank; a step ends for all when its slowest rank "
        "or link is done (thin lines), and who is done before waits. Mean wait of a rank: ",
        number(float(waits_R.mean()), unit, named=True), ".",
    ]  # fmt: skip
    lines: list[list[Cell | Child]] = []
    for index, step in enumerate(one.steps):
        busy_R = one.busy_s[0, 0, index]
        bound = "" if one.bound_by is None else str(one.bound_by[0, 0, index])
        lines.append([step, Cell(float(one.step_s[0, 0, index]), unit), Cell(float(busy_R.mean()), unit),
                      Cell(float(busy_R.min()), unit), Cell(float(busy_R.max()), unit), bound])  # fmt: skip
    titles = ("step", f"until all are done, {unit.name}", f"a rank's work, mean, {unit.name}", f"least, {unit.name}",
              f"most, {unit.name}", "it waits for")  # fmt: skip
    title = f"Predicted timeline of layer {one.layer_ids[0]}"
    numbers = table(titles, lines, "steps of the layer")
    shown = figure("timeline-of-layer", title, lanes(one, nodes, axis), caption, numbers)
    return section("timeline", "When each rank works and waits", shown)


def _rule(kind: str) -> Element:
    return el("svg", el("line", x1=0, x2=24, y1=7, y2=7, class_=kind), width=24, height=14, aria_hidden="true")


def _short(value: float) -> str:
    """A count in few letters."""
    if value >= 9999.5:
        return f"{value / 1e6:.3g}M" if value >= 999_500 else f"{value / 1e3:.3g}k"
    return f"{value:.0f}" if value >= 10 or value == 0 else f"{value:.2g}"

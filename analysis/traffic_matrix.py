"""A picture of what a plan sends: rows or bytes from rank to rank, stage by stage of a scheme."""

from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray

from grace_opt.timeline import stage_names
from grace_opt.traffic import Traffic


def traffic_matrix(
    counts: Traffic, scheme: str, title: str, row_bytes: float | None = None, returning: bool = False
) -> Figure:
    """One panel a stage, the mean over layers and batches; what a rank sends is a line, what it receives a column.

    Bars on the margins are the totals of every rank; lines part nodes. Pairs that send nothing are white.

    Args:
        row_bytes: bytes of a row, to show bytes in place of rows.
        returning: the stages of combine in place of those of dispatch.
    """
    stages = counts.combine(scheme) if returning else counts.dispatch(scheme)
    unit, size = ("rows", 1.0) if row_bytes is None else ("MB", row_bytes / 1e6)
    sent = [rows.mean(axis=(0, 1)) * size for rows in stages]
    phase = "combine" if returning else "dispatch"
    names = stage_names(phase, len(stages))
    figure = Figure(figsize=(5 * len(sent) + 1, 5.7), layout="constrained")
    axes = np.atleast_1d(figure.subplots(1, len(sent)))
    positive = np.concatenate([values[values > 0] for values in sent] or [[]])
    low, high = (positive.min(), positive.max()) if len(positive) else (0.1, 1.0)
    norm = LogNorm(low / (2 if low == high else 1), high)
    for axis, values, name in zip(axes, sent, names, strict=True):
        picture = axis.imshow(np.ma.masked_equal(values, 0), norm=norm, cmap="viridis", interpolation="nearest")
        axis.set_title(f"{name}: {values.sum():.3g} {unit}", fontsize=9)
        _part_nodes(axis, counts.node_of_rank)
        _totals(axis, values)
    figure.suptitle(f"{title}\n{phase} under {scheme}, mean over layers and batches", fontsize=10)
    figure.colorbar(picture, ax=list(axes), shrink=0.6, label=f"{unit} a batch")
    return figure


def _part_nodes(axis: Axes, node_of_rank: NDArray[np.int64]) -> None:
    for rank in np.flatnonzero(np.diff(node_of_rank)):
        axis.axhline(rank + 0.5, color="black", linewidth=0.8)
        axis.axvline(rank + 0.5, color="black", linewidth=0.8)
    axis.set_xlabel("to rank", fontsize=8)
    axis.set_ylabel("from rank", fontsize=8)
    axis.tick_params(labelsize=7)
    for ticks in (axis.xaxis, axis.yaxis):
        ticks.set_major_locator(MaxNLocator(integer=True))


def _totals(axis: Axes, values: NDArray[Any]) -> None:
    """Bars of what each rank receives above, and of what it sends on the right."""
    ranks = np.arange(len(values))
    above, beside = axis.inset_axes((0, 1.02, 1, 0.14)), axis.inset_axes((1.02, 0, 0.14, 1))
    above.bar(ranks, values.sum(axis=0), width=0.9, color="#888888")
    beside.barh(ranks, values.sum(axis=1), height=0.9, color="#888888")
    above.set_xlim(axis.get_xlim())
    beside.set_ylim(axis.get_ylim())
    most = max(values.sum(axis=0).max(), values.sum(axis=1).max()) or 1.0
    above.set_ylim(0, most)
    beside.set_xlim(0, most)
    for bars in (above, beside):
        bars.set_axis_off()

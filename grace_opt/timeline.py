"""When each rank works and when it waits, step by step of every layer and batch; predicted or measured.

A step is a phase or a stage of one ("dispatch across", "dispatch inside", "experts", ...) and ends at a barrier, when
the slowest rank or link is done. Idle time is counted batch by batch: the rank that waits in one batch may be the one
that is waited for in the next, which averages over batches would hide.

    rank 0   | dispatch ......... idle | experts ... idle ....... | combine
    rank 1   | dispatch .............. | experts ................ | combine
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True, eq=False)
class Timeline:
    """Seconds of every rank in every step, layer by layer and batch by batch.

    Attributes:
        steps: names in order; the first word of each is its phase: dispatch, experts or combine.
        busy_s: float64 [L, B, steps, R], what each rank works, from the start of the step.
        step_s: float64 [L, B, steps], until all ranks are done; never less than any rank's busy_s.
        layer_ids: absolute id of each layer.
        bound_by: str [L, B, steps], the rank or link each step waits for, where that is known.

    Example: one layer, one batch, two ranks that dispatch for 1 and 2 s and compute for 3 and 1 s::

        Timeline(("dispatch", "experts"), [[[[1, 2], [3, 1]]]], [[[2, 3]]], (0,)).idle_s   # [[[1, 2]]]
    """

    steps: tuple[str, ...]
    busy_s: NDArray[np.float64]
    step_s: NDArray[np.float64]
    layer_ids: tuple[int, ...]
    bound_by: NDArray[np.str_] | None = None

    def __post_init__(self) -> None:
        busy, step = np.array(self.busy_s, np.float64), np.array(self.step_s, np.float64)
        expected = (len(self.layer_ids), *step.shape[1:2], len(self.steps))
        if step.shape != expected or busy.shape[:-1] != expected or busy.ndim != 4:
            raise ValueError(
                f"a timeline of {len(self.layer_ids)} layers and {len(self.steps)} steps needs busy_s [L, B, steps, R] "
                f"and step_s [L, B, steps], got {list(busy.shape)} and {list(step.shape)}"
            )
        if not (np.isfinite(step).all() and np.isfinite(busy).all()) or (busy < 0).any():
            raise ValueError("times of a timeline must be finite and not negative")
        if (busy.max(axis=3) > step * (1 + 1e-9) + 1e-12).any():
            raise ValueError("a rank of a timeline is busy for longer than the step takes until all ranks are done")
        if self.bound_by is not None and self.bound_by.shape != expected:
            raise ValueError(f"bound_by of a timeline must be {list(expected)}, got {list(self.bound_by.shape)}")
        for field, array in (("busy_s", busy), ("step_s", step)):
            array.setflags(write=False)
            object.__setattr__(self, field, array)

    @property
    def num_batches(self) -> int:
        return int(self.step_s.shape[1])

    @property
    def num_ranks(self) -> int:
        return int(self.busy_s.shape[3])

    @property
    def layer_s(self) -> NDArray[np.float64]:
        """[L, B] time of each layer and batch."""
        return np.asarray(self.step_s.sum(axis=2))

    @property
    def total_s(self) -> float:
        """All layers and batches, one after the other."""
        return float(self.step_s.sum())

    @property
    def idle_s(self) -> NDArray[np.float64]:
        """[L, B, R] what each rank waits at the barriers of a layer."""
        return np.asarray(np.maximum(self.step_s[..., None] - self.busy_s, 0.0).sum(axis=2))

    @property
    def start_s(self) -> NDArray[np.float64]:
        """[L, B, steps] start of each step, when a batch passes all layers and the next one follows it."""
        in_order = self.step_s.swapaxes(0, 1)
        ends = np.cumsum(in_order).reshape(in_order.shape)
        return np.asarray((ends - in_order).swapaxes(0, 1))

    def phase_s(self, phase: str) -> NDArray[np.float64]:
        """[L, B] time of the steps of a phase."""
        return np.asarray(self.step_s[:, :, [phase_of(step) == phase for step in self.steps]].sum(axis=2))

    def select(self, layers: Sequence[int], batches: Sequence[int]) -> "Timeline":
        """Some of its layers (by place, not by id) and batches."""
        cells = np.ix_(layers, batches)
        bound_by = None if self.bound_by is None else self.bound_by[cells]
        ids = tuple(self.layer_ids[layer] for layer in layers)
        return Timeline(self.steps, self.busy_s[cells], self.step_s[cells], ids, bound_by)


def stage_names(phase: str, num_stages: int) -> tuple[str, ...]:
    """Names of the steps of a phase that has so many stages: dispatch goes across nodes first, combine inside them."""
    if num_stages == 1:
        return (phase,)
    assert num_stages == 2, num_stages
    order = ("inside", "across") if phase == "combine" else ("across", "inside")
    return tuple(f"{phase} {where}" for where in order)


def phase_of(step: str) -> str:
    """The phase a step belongs to: "dispatch across" is part of dispatch."""
    return step.partition(" ")[0]

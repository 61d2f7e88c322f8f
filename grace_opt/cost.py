"""What a plan costs: time per layer and phase, and the interface of whatever tells it."""

from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from grace_opt.plan import Plan
from grace_opt.problem import Problem


@dataclass(frozen=True, eq=False)
class LayerTime:
    """Seconds per MoE layer and phase, predicted or measured; mean over batches.

    A phase ends when its slowest rank or link ends, so the layer takes dispatch + experts + combine.

    Attributes:
        dispatch_s, experts_s, combine_s: float64 [L], time of each phase.
        idle_s: float64 [L], mean over ranks of the time a rank waits for the slowest one; contained in the phases.
        tokens_per_rank: mean tokens of a rank in one batch, the work these times are for.
    """

    dispatch_s: NDArray[np.float64]
    experts_s: NDArray[np.float64]
    combine_s: NDArray[np.float64]
    idle_s: NDArray[np.float64]
    tokens_per_rank: float

    def __post_init__(self) -> None:
        for array in (self.dispatch_s, self.experts_s, self.combine_s, self.idle_s):
            if not np.isfinite(array).all() or (array < 0).any():
                raise ValueError("times of a layer must be finite and not negative")
            array.setflags(write=False)

    @property
    def layer_s(self) -> NDArray[np.float64]:
        """[L] time of each layer."""
        return self.dispatch_s + self.experts_s + self.combine_s

    @property
    def mean_s(self) -> float:
        """Mean time of a layer."""
        return float(self.layer_s.mean())


class CostModel(Protocol):
    """(problem, plan) -> LayerTime, under one communication scheme and batch size.

    `tokens_per_rank` is the size of a rank's batch, None for the whole trace at once (see `traffic.traffic`).
    """

    @property
    def scheme(self) -> str: ...

    @property
    def tokens_per_rank(self) -> int | None: ...

    def __call__(self, problem: Problem, plan: Plan) -> LayerTime: ...

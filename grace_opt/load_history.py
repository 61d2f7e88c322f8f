"""How often each expert was chosen, step after step: all that a recording of counts tells."""

from dataclasses import dataclass
from functools import cached_property
from typing import ClassVar, NoReturn

import numpy as np
from numpy.typing import NDArray

from grace_opt.trace import PHASES, Trace


@dataclass(frozen=True, eq=False)
class LoadHistory:
    """Loads of experts over time, without the tokens behind them.

    Nothing says which experts a token chose together, so a placement can be planned by load alone, and neither rows
    between ranks nor times can be told.

    Attributes:
        counts: int64 [steps, L, E], tokens that chose each expert in each step (a forward pass, or a window of them).
        top_k: experts a token chooses in a layer.
        first_moe_layer: absolute id of the first of the L layers.
        model: name of the model that was recorded.
        phase: prefill, decode or mixed.
        source: where the counts come from, one line.

    Example: one step, one layer, four experts: `LoadHistory(np.array([[[6, 3, 2, 1]]]), top_k=2)` saw 6 tokens.
    """

    synthetic: ClassVar[bool] = False  # a plan says it of what it was made from

    counts: NDArray[np.int64]
    top_k: int
    first_moe_layer: int = 0
    model: str = ""
    phase: str = "mixed"
    source: str = ""

    def __post_init__(self) -> None:
        counts = self.counts
        if counts.ndim != 3 or counts.dtype != np.int64 or 0 in counts.shape:
            raise ValueError(
                f"load history: counts must be int64 [steps, layers, experts], got {counts.dtype} {counts.shape}"
            )
        if counts.shape[2] > 65536:
            raise ValueError(f"load history: there are at most 65536 experts, got {counts.shape[2]}")
        if not 1 <= self.top_k <= counts.shape[2] or self.first_moe_layer < 0:
            raise ValueError(
                f"load history: top_k={self.top_k} must be 1..{counts.shape[2]} and "
                f"first_moe_layer={self.first_moe_layer} not negative"
            )
        if self.phase not in PHASES:
            raise ValueError(f"load history: phase must be one of {', '.join(PHASES)}, got {self.phase!r}")
        if counts.min() < 0 or counts.max() > 2**40:
            raise ValueError(f"load history: counts must be 0..2**40, got {counts.min()} to {counts.max()}")
        counts.setflags(write=False)
        if not self.loads.any(axis=1).all():
            layer = int(np.argmin(self.loads.any(axis=1))) + self.first_moe_layer
            raise ValueError(f"load history: layer {layer} has no counts: the recording lacks it, or it is dense")

    def __getattr__(self, name: str) -> NoReturn:
        """Whoever takes this for a trace and asks for tokens learns, in one line, that there are none."""
        if name in Trace.__annotations__ or (hasattr(Trace, name) and not name.startswith("_")):
            raise ValueError(
                f"this command needs token-level routing, but the trace holds counts only ({self.source}): "
                "`grace-opt plan planner=eplb` plans from counts"
            )
        raise AttributeError(f"a load history has no {name}")

    @cached_property
    def loads(self) -> NDArray[np.int64]:
        """[L, E] of all steps together."""
        load_LE: NDArray[np.int64] = np.asarray(self.counts.sum(axis=0))
        load_LE.setflags(write=False)
        return load_LE

    @property
    def num_steps(self) -> int:
        return len(self.counts)

    @property
    def num_layers(self) -> int:
        return int(self.counts.shape[1])

    @property
    def num_experts(self) -> int:
        return int(self.counts.shape[2])

    @property
    def num_tokens(self) -> int:
        """Tokens behind the counts of a layer, mean over layers."""
        return round(int(self.loads.sum()) / self.num_layers / self.top_k)

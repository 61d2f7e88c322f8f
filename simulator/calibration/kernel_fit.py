"""The constants of a kernel that make its predictions least wrong, relative to what was measured.

Data: exchanges. Decision variables: the logarithms of a kernel's constants. Objective: the sum over rows of a robust
loss (soft_l1, SCALE) of log(predicted / measured), so that small and large messages, fast and slow ones count alike
and single outliers little. The start is where straight lines through the smallest and the largest message would be.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import least_squares

from simulator.calibration.exchanges import Exchange, measured, predicted
from simulator.transport import SCOPES, Kernel

SCALE = 0.03
"""Relative errors beyond this are treated as outliers: measurements of one cell differ by 1 to 5 %."""
RANGE = {
    "startup_s": (1e-7, 1e-3),
    "least_s": (1e-7, 1e-3),
    "spread_s": (1e-9, 1e-3),
    "round_s": (1e-9, 1e-3),
    "expert_s": (1e-12, 1e-6),
    "sm_row_bytes": (1.0, 1e5),
    "half_ends": (10.0, 1e5),
}
RATE_RANGE = (1e8, 1e14)


@dataclass(frozen=True)
class Shape:
    """Which constants a kernel has: for each scope and protocol the names of those fitted, with their starting values.

    Attributes:
        inside, between: one mapping of starting values a protocol.
        kernel: starting values of the kernel's own constants (`sm_inside_bytes_per_s`, ...).
        fixed: other fields of the kernel.
    """

    inside: Sequence[Mapping[str, float]] = ()
    between: Sequence[Mapping[str, float]] = ()
    kernel: Mapping[str, float] = field(default_factory=dict)
    fixed: Mapping[str, Any] = field(default_factory=dict)

    @property
    def start(self) -> dict[tuple[str, int, str], float]:
        """Starting values by scope, protocol and name."""
        parts = {
            (scope, i, name): value
            for scope in SCOPES
            for i, protocol in enumerate(getattr(self, scope))
            for name, value in protocol.items()
        }
        return {**parts, **{("kernel", 0, name): value for name, value in self.kernel.items()}}

    def made(self, values: Mapping[tuple[str, int, str], float]) -> Kernel:
        """The kernel with these constants."""
        protocols: dict[str, Any] = {
            scope: [
                {name: values[scope, i, name] for name in protocol} for i, protocol in enumerate(getattr(self, scope))
            ]
            for scope in SCOPES
        }
        own = {name: values["kernel", 0, name] for name in self.kernel}
        return Kernel(**{**protocols, **own, **self.fixed})


def identified(shape: Shape, exchanges: Sequence[Exchange]) -> Shape:
    """The shape without constants these measurements tell nothing of: growth needs sizes that differ."""
    layouts = [exchange.layout for exchange in exchanges]
    ranks = {layout.ranks_per_node for layout in layouts}
    sizes = {"inside": ranks, "between": {layout.num_nodes for layout in layouts}}

    varied_rows = len({exchange.row_bytes for exchange in exchanges}) > 1

    def kept(scope: str, name: str) -> bool:
        if name in ("spread_s", "round_s", "half_ends"):
            return len(sizes[scope]) > (2 if name == "half_ends" else 1)
        if name == "expert_s":
            return len({layout.num_experts for layout in layouts}) > 1
        if name == "row_bytes_per_s":
            return varied_rows
        return name != "pair_bytes_per_s" or (len(ranks) > 1 and 2 in ranks)  # two ranks are one pair, more share

    kernel = shape.kernel if len({exchange.sms for exchange in exchanges}) > 1 else {}
    kernel = {name: value for name, value in kernel.items() if varied_rows or name != "sm_row_bytes"}
    return replace(
        shape,
        inside=[{n: v for n, v in part.items() if kept("inside", n)} for part in shape.inside],
        between=[{n: v for n, v in part.items() if kept("between", n)} for part in shape.between],
        kernel=kernel,
    )


def fit_kernel(exchanges: Sequence[Exchange], shapes: Sequence[Shape]) -> Kernel:
    """The kernel that fits best of those found from each starting point, without constants that are not identified."""
    found = [_fit_from(exchanges, identified(shape, exchanges)) for shape in shapes]
    return min(found, key=lambda pair: pair[0])[1]


def _fit_from(exchanges: Sequence[Exchange], shape: Shape) -> tuple[float, Kernel]:
    start = shape.start
    names, target = list(start), np.log(measured(exchanges))
    low, high = np.log([RANGE.get(name, RATE_RANGE) for _, _, name in names]).T
    guess = np.clip(np.log([start[key] for key in names]), low + 1e-6, high - 1e-6)

    def kernel_of(logs: NDArray[np.float64]) -> Kernel:
        return shape.made({key: math.exp(value) for key, value in zip(names, logs, strict=True)})

    def error(logs: NDArray[np.float64]) -> NDArray[np.float64]:
        return np.asarray(np.log(predicted(exchanges, kernel_of(logs))) - target)

    found = least_squares(error, guess, bounds=(low, high), loss="soft_l1", f_scale=SCALE, x_scale=0.3, max_nfev=60)
    return float(found.cost), kernel_of(found.x)

"""What a communication library's kernels reach at the ends of the wires: start-up, bandwidth, protocols, SMs.

The links of a topology limit the wires, the kernels of a transport the ranks. A stage in which rows travel takes

    max over scopes (inside a node, between nodes) of
        min over the kernel's protocols for that scope of
            growth + max(least, startup + max(rank bytes / bandwidth, pair bytes / pair bandwidth, SMs, busiest link))

and, where it fills places for what comes back, the time of that pass.

A rank's bytes are those it sends or receives in that scope, whichever is more. Growth is with the number n of ranks of
a node, or of nodes: as 1 - 1/n, the share of them that are others, or as log2 n, the rounds of a barrier; with the
number of experts; and with the size of a row, the first of which must pass before the next. Bandwidth may fall with n.
SMs move every row that a rank sends or receives in any stage, those that stay with it included, at so many bytes per
second each, with a surcharge a row: on DeepEP's normal kernels one rate holds for 4 to 24 SMs, for 2 and 4 nodes, and
for 1 to 22 choices.
A scope without protocols is limited by links and latency alone.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from grace_opt.traffic import PREDICTED_SCHEMES, require_scheme
from simulator.row_bytes import require_wire_type

SCOPES = ("inside", "between")


@dataclass(frozen=True)
class Protocol:
    """A straight line, of which a library has several: short messages start faster, long ones move faster.

    Attributes:
        startup_s: where the line starts.
        bytes_per_s: what a rank sends or receives.
        pair_bytes_per_s: what it sends to any one other rank.
        least_s: what the smallest stage takes, if more: work that overlaps the first bytes.
        spread_s: time added as ranks of the node, or nodes, become many: times 1 - 1/n.
        round_s: time added per doubling of them: times log2 n.
        row_bytes_per_s: what a single row passes at; adds the time of one row.
        expert_s: time added per physical expert of the layer, as each is told how many rows come.
        half_ends: ranks of the node, or nodes, among which `bytes_per_s` is half: more of them share the kernel's
            blocks, their queues and the switch. Bandwidth among n is bytes_per_s / (1 + n / half_ends).
    """

    startup_s: float
    bytes_per_s: float
    pair_bytes_per_s: float = math.inf
    least_s: float = 0.0
    spread_s: float = 0.0
    round_s: float = 0.0
    row_bytes_per_s: float = math.inf
    expert_s: float = 0.0
    half_ends: float = math.inf

    def __post_init__(self) -> None:
        for name in ("startup_s", "least_s", "spread_s", "round_s", "expert_s"):
            if not 0 <= getattr(self, name) < math.inf:
                raise ValueError(f"transport: {name} must be a time in seconds, got {getattr(self, name)}")
        for name in ("bytes_per_s", "pair_bytes_per_s", "row_bytes_per_s", "half_ends"):
            if not getattr(self, name) > 0:
                raise ValueError(f"transport: {name} must be positive, got {getattr(self, name)}")

    def bytes_per_s_among(self, num_ends: int) -> float:
        """Bytes/s of a rank among so many ranks of a node, or nodes."""
        return self.bytes_per_s / (1 + num_ends / self.half_ends)

    def growth_s(self, num_ends: int, num_experts: int, row_bytes: float) -> float:
        """Seconds added among so many ranks of a node, or nodes."""
        grown = self.spread_s * (1 - 1 / num_ends) + self.round_s * math.log2(num_ends)
        return grown + self.expert_s * num_experts + row_bytes / self.row_bytes_per_s


@dataclass(frozen=True)
class Kernel:
    """One direction (dispatch or combine) of a transport.

    Attributes:
        inside, between: protocols inside a node and between nodes; mappings of a configuration become Protocols.
        sms: streaming multiprocessors it runs on; None if they do not limit it.
        sm_inside_bytes_per_s, sm_between_bytes_per_s: bytes each of them moves, in a phase that stays inside nodes and
            in one that does not.
        sm_row_bytes: what handling a row costs them besides its bytes, in bytes.
        pipelined: stages of the hierarchical scheme overlap, so that a phase takes its slowest stage, not their sum.
        places_rows: rows are read where they lie and written where they belong, without a pass to put them in order.
        fill_bytes_per_s: before rows come back a rank fills a place for each choice of its own tokens with zeros, at so
            many bytes per second, whichever rank serves it; infinite if it does not.
    """

    inside: Sequence[Protocol] = ()
    between: Sequence[Protocol] = ()
    sms: int | None = None
    sm_inside_bytes_per_s: float = math.inf
    sm_between_bytes_per_s: float = math.inf
    sm_row_bytes: float = 0.0
    pipelined: bool = False
    places_rows: bool = False
    fill_bytes_per_s: float = math.inf

    def __post_init__(self) -> None:
        for scope in SCOPES:
            object.__setattr__(self, scope, tuple(_made(Protocol, part, scope) for part in getattr(self, scope)))
        if self.sms is not None and self.sms < 1:
            raise ValueError(f"transport: sms must be at least 1 or null, got {self.sms}")
        for name in ("sm_inside_bytes_per_s", "sm_between_bytes_per_s", "fill_bytes_per_s"):
            if not getattr(self, name) > 0:
                raise ValueError(f"transport: {name} must be positive, got {getattr(self, name)}")
        if self.pipelined and self.fill_bytes_per_s < math.inf:
            raise ValueError("transport: a pipelined kernel fills no places, set fill_bytes_per_s to infinity")
        if not 0 <= self.sm_row_bytes < math.inf:
            raise ValueError(f"transport: sm_row_bytes must be a number of bytes, got {self.sm_row_bytes}")

    def sm_seconds(
        self, handled_CR: NDArray[np.float64], row_bytes: float, crosses_C: NDArray[np.bool_]
    ) -> NDArray[np.float64]:
        """[C, R] seconds the SMs of each rank need for the rows it handles."""
        if self.sms is None:
            return np.zeros_like(handled_CR)
        rate_C = self.sms * np.where(crosses_C, self.sm_between_bytes_per_s, self.sm_inside_bytes_per_s)
        return np.asarray(handled_CR * (row_bytes + self.sm_row_bytes) / rate_C[:, None])


@dataclass(frozen=True)
class Transport:
    """A communication library on one kind of hardware.

    Attributes:
        name: for reports.
        source: the measurements it was fitted to; "" if to none.
        assumed: which of its figures no measurement supports; shown beside every prediction. "" if none.
        dispatch, combine: what limits either direction.
        dispatch_type, combine_type: type of rows on the wire (see `simulator.row_bytes`); None: the model's.
        header_bytes: sent with each dispatched row.
        schemes: those it executes; empty for any.

    Example: a library that takes 20 us and then moves 46 GB/s between nodes, whatever happens inside them::

        line = Kernel(between=[Protocol(startup_s=20e-6, bytes_per_s=46e9)])
        Transport("demo", dispatch=line, combine=line)
    """

    name: str
    dispatch: Kernel = Kernel()
    combine: Kernel = Kernel()
    source: str = ""
    assumed: str = ""
    dispatch_type: str | None = None
    combine_type: str | None = None
    header_bytes: float = 0.0
    schemes: Sequence[str] = ()

    def __post_init__(self) -> None:
        for field in ("dispatch", "combine"):
            object.__setattr__(self, field, _made(Kernel, getattr(self, field), field))
            require_wire_type(f"transport {self.name}: {field}_type", getattr(self, f"{field}_type"))
        object.__setattr__(self, "schemes", tuple(self.schemes))
        for scheme in self.schemes:
            require_scheme(scheme, PREDICTED_SCHEMES)
        if not 0 <= self.header_bytes < math.inf:
            raise ValueError(f"transport {self.name}: header_bytes must be a number of bytes, got {self.header_bytes}")

    def require_scheme(self, scheme: str) -> None:
        """Raise ValueError if this library does not move rows that way."""
        if self.schemes and scheme not in self.schemes:
            raise ValueError(
                f"transport {self.name} executes {', '.join(self.schemes)}, not {scheme}: "
                f"set scheme={self.schemes[0]} or choose another transport"
            )

    def with_sms(self, sms: int) -> "Transport":
        """The same kernels on so many SMs."""
        return replace(self, dispatch=replace(self.dispatch, sms=sms), combine=replace(self.combine, sms=sms))


def _made(kind: Any, part: Any, where: str) -> Any:
    """What a mapping of a configuration describes."""
    if isinstance(part, kind):
        return part
    known = [field.name for field in fields(kind)]
    if not isinstance(part, Mapping) or set(part) - set(known):
        odd = sorted(set(part) - set(known))[0] if isinstance(part, Mapping) else part
        raise ValueError(f"transport: {where} has {odd!r}, expected {', '.join(known)}")
    try:
        return kind(**part)
    except TypeError:
        raise ValueError(f"transport: {where} must give at least startup_s and bytes_per_s, got {dict(part)}") from None

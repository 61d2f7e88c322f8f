"""Where the seconds of one rank go: phases between barriers, and the waiting at the barriers themselves.

With barriers a phase lasts from the moment when all ranks may start it to the moment when all have ended it, so every
rank sees the same duration, whatever it did itself; no clocks are compared:

    rank 0   | dispatch ......... idle | experts ... idle ....... | combine
    rank 1   | dispatch .............. | experts ................ | combine
             ^ barrier                 ^                          ^
"""

import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch


@dataclass
class Stopwatch:
    """Collects visits to phases. Call it as a context manager around each; call `stop` after the last.

    Attributes:
        barrier: returns when every rank has called it; None lets phases run into each other.
        device: where the work runs; it is waited for before a clock is read.
        barrier_s: what a barrier takes that nobody has to wait at, taken off every phase.
        visits: seconds of every visit, by phase, in order: until all ranks are done, if there are barriers.
        busy: the same until this rank is done.
    """

    barrier: Callable[[], None] | None = None
    device: str = "cpu"
    barrier_s: float = 0.0
    visits: dict[str, list[float]] = field(default_factory=lambda: defaultdict(list))
    busy: dict[str, list[float]] = field(default_factory=lambda: defaultdict(list))
    _open: tuple[str, float] | None = None

    @contextmanager
    def __call__(self, phase: str) -> Iterator[None]:
        """Time what happens inside."""
        started = self._released()
        yield
        ended = self.now()
        self.busy[phase].append(ended - started)
        if self.barrier is None:
            self.visits[phase].append(ended - started)
        else:
            self._open = phase, started

    def stop(self) -> None:
        """End the last phase."""
        self._released()

    def now(self) -> float:
        """A clock of this process, when its device has done what it was told."""
        if self.device.startswith("cuda"):
            torch.cuda.synchronize(self.device)
        return time.perf_counter()

    def _released(self) -> float:
        """Wait for all ranks; that ends the phase before."""
        if self.barrier is None:
            return self.now()
        self.barrier()
        released = self.now()
        if self._open is not None:
            phase, started = self._open
            self.visits[phase].append(max(released - started - self.barrier_s, 0.0))
            self._open = None
        return released

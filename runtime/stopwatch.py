"""Where the seconds of one rank go: phases between barriers, and the waiting at the barriers themselves."""

import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch

IDLE = "idle"


@dataclass(frozen=True)
class Stopwatch:
    """Adds up phases. With a barrier before each, a phase starts on all ranks at once and the waiting is `idle`.

    Attributes:
        barrier: returns when every rank has called it; None lets phases run into each other.
        device: where the work runs; it is waited for before a clock is read.
        visits: seconds of every visit, by phase, in order.
    """

    barrier: Callable[[], None] | None = None
    device: str = "cpu"
    visits: dict[str, list[float]] = field(default_factory=lambda: defaultdict(list))

    @contextmanager
    def __call__(self, phase: str) -> Iterator[None]:
        """Time what happens inside."""
        if self.barrier is not None:
            arrived = self._now()
            self.barrier()
            self.visits[IDLE].append(self._now() - arrived)
        started = self._now()
        yield
        self.visits[phase].append(self._now() - started)

    def _now(self) -> float:
        if self.device.startswith("cuda"):
            torch.cuda.synchronize(self.device)
        return time.perf_counter()

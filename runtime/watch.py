"""A heartbeat of every rank, so that a run that lost one ends soon, and with its name.

Every rank writes a beat to the shared store and reads those of the others, in a thread that goes on while the main
thread waits in a collective. Two cases:

    a collective fails (a peer was killed)          `missing` waits for a beat to go stale, and names its rank
    nothing fails, nothing moves (stopped process,  the thread itself ends the process when a beat is older than the
    cut link, a peer that hangs)                    timeout, and names the rank

A rank that ends on purpose says so first, with its reason.
"""

import contextlib
import os
import select
import signal
import sys
import threading
import time
from collections.abc import Callable, Sequence

from torch.distributed.distributed_c10d import Store

INTERVAL_S = 0.25
STALE_S = 1.75
"""Silence after which a rank is missing, once something has failed."""
GRACE_S = 0.5
LOST = 1
"""Exit code of a process whose run lost a rank."""
FINISHED, LEFT = "finished", "left "


class PeerEndedError(ConnectionError):
    """Another rank ended because of something it has already reported.

    Attributes:
        code: its exit code.
    """

    def __init__(self, reason: str, code: int) -> None:
        super().__init__(reason)
        self.code = code


class Watch(threading.Thread):
    """Beats for this rank and watches the others.

    Attributes:
        store: a client that no other thread uses; a blocked call of theirs would stop the beat.
        rank: this process.
        where: for each rank, the host it runs on.
        timeout_s: silence of a rank that ends the run.
    """

    def __init__(self, store: Store, rank: int, where: Sequence[str], timeout_s: float) -> None:
        super().__init__(name="watch", daemon=True)
        self.store, self.rank, self.where, self.timeout_s = store, rank, where, timeout_s
        self._keys = [f"beat/{other}" for other in range(len(where))]
        self._seen = [("", time.monotonic()) for _ in where]  # each rank's newest beat and when it was first seen
        self._lock, self._ended = threading.Lock(), threading.Event()
        self._wakeup = os.pipe()
        self._old_handler: Callable[..., object] | int | None = None

    def __enter__(self) -> "Watch":
        # The thread must hear of SIGTERM (torchrun ends the peers of a failed rank) while the main thread waits in a
        # collective, where no Python handler runs: the pipe hears of it at once.
        os.set_blocking(self._wakeup[1], False)
        signal.set_wakeup_fd(self._wakeup[1], warn_on_full_buffer=False)
        self._old_handler = signal.signal(signal.SIGTERM, lambda *_: None)
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        signal.set_wakeup_fd(-1)
        signal.signal(signal.SIGTERM, self._old_handler)
        self.join(timeout=2 * INTERVAL_S)

    def run(self) -> None:
        """Beat until the run ends; end the process when another rank fell silent."""
        beat = 0
        while not self._ended.is_set():
            beat += 1
            if select.select([self._wakeup[0]], [], [], INTERVAL_S)[0] and not self._ended.is_set():
                if signal.SIGTERM in os.read(self._wakeup[0], 64):
                    self._die(str(self.missing() or "told to stop"))
                continue
            try:
                self._beat(str(beat))
            except (RuntimeError, ValueError) as error:
                if not self._ended.is_set():
                    self._die(f"no contact with the host of rank 0, {self.where[0]}: {_first_line(error)}")
            silent = self.silent(self.timeout_s)
            if silent and not self._ended.is_set():
                self._die(f"{self._names(silent)} gave no sign of life for {self.timeout_s:g} s")

    def missing(self) -> ConnectionError | None:
        """After something failed: which rank is missing, or has left and why; None if all are well."""
        deadline = time.monotonic() + 2 * STALE_S
        while time.monotonic() < deadline:
            try:
                self._beat(f"-{time.monotonic_ns()}")
            except (RuntimeError, ValueError) as error:
                return ConnectionError(f"rank 0 on {self.where[0]} or its host is missing: {_first_line(error)}")
            silent = self.silent(STALE_S)
            if silent:
                return ConnectionError(f"{self._names(silent)} is missing: killed, crashed or cut off")
            left = [rank for rank, (beat, _) in enumerate(self._seen) if beat.startswith(LEFT) and rank != self.rank]
            if left:
                code, _, reason = self._seen[left[0]][0].removeprefix(LEFT).partition(" ")
                return PeerEndedError(reason, int(code))
            time.sleep(INTERVAL_S / 2)
        return None

    def leave(self, reason: str | None = None, code: int = 0) -> None:
        """Tell the others that this rank ends; if something is wrong, why and with which exit code."""
        self._ended.set()
        with contextlib.suppress(RuntimeError), self._lock:
            self.store.set(self._keys[self.rank], FINISHED if reason is None else f"{LEFT}{code} {reason}")

    def silent(self, seconds: float) -> list[int]:
        """Other ranks whose beat has not changed for so long."""
        now = time.monotonic()
        return [
            rank
            for rank, (beat, since) in enumerate(self._seen)
            if rank != self.rank and not beat.startswith((FINISHED, LEFT)) and now - since > seconds
        ]

    def _beat(self, own: str) -> None:
        with self._lock:
            if not self._ended.is_set():
                self.store.set(self._keys[self.rank], own)
            beats = [beat.decode() for beat in self.store.multi_get(self._keys)]
        now = time.monotonic()
        self._seen = [seen if seen[0] == beat else (beat, now) for seen, beat in zip(self._seen, beats, strict=True)]

    def _names(self, ranks: list[int]) -> str:
        return " and ".join(f"rank {rank} on {self.where[rank]}" for rank in ranks)

    def _die(self, line: str) -> None:
        """End the process from this thread: the main thread may wait for ever."""
        print(f"grace-opt: rank {self.rank}: {line}", file=sys.stderr, flush=True)
        time.sleep(GRACE_S)
        os._exit(LOST)


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]

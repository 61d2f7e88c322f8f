"""A heartbeat of every rank, so that a run that lost one ends soon, and with its name.

Every rank writes a beat to the shared store and reads those of the others, in a thread that goes on while the main
thread waits in a collective. Three cases:

    a collective fails (a peer was killed)          `missing` waits for a beat to go stale, and names its rank
    nothing fails, nothing moves (stopped process,  a thread ends the process when a beat is older than the timeout, and
    cut link, a peer that hangs)                    names the rank
    a rank ends on purpose                          it says so first, with its reason; the threads of the others read
                                                    that and end their processes, whatever these wait for

One thread beats and another judges: behind a cut link a call of the store never returns.
"""

import hashlib
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
GRACE_S, LINGER_S = 0.5, 1.5
"""From saying why this rank ends to its end: time for others to read it. Those who leave the word to another rank stay
longer, so that the first to end is the one that has said something."""
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
        store: a client that nobody else uses; a blocked call of theirs would stop the beat.
        rank: this process.
        where: for each rank, the host it runs on.
        timeout_s: silence of a rank that ends the run.
    """

    def __init__(self, store: Store, rank: int, where: Sequence[str], timeout_s: float) -> None:
        super().__init__(name="watch", daemon=True)
        self.store, self.rank, self.where, self.timeout_s = store, rank, where, timeout_s
        self._keys = [f"beat/{other}" for other in range(len(where))]
        self._seen = [("", time.monotonic()) for _ in where]  # each rank's newest beat and when it was first seen
        self._heard, self._gone = time.monotonic(), ""  # when the store last answered; why it never will again
        self._farewell: str | None = None
        self._first = True  # to give the reason of the farewell
        self._leaving, self._told, self._ended = threading.Event(), threading.Event(), threading.Event()
        self._last_word = threading.Lock()  # of main thread and this one, whoever takes it ends the process
        self._wakeup = os.pipe()
        self._old_handler: Callable[..., object] | int | None = None

    def __enter__(self) -> "Watch":
        # The thread must hear of SIGTERM (torchrun ends the peers of a failed rank) while the main thread waits in a
        # collective, where no Python handler runs: the pipe hears of it at once.
        os.set_blocking(self._wakeup[1], False)
        signal.set_wakeup_fd(self._wakeup[1], warn_on_full_buffer=False)
        self._old_handler = signal.signal(signal.SIGTERM, lambda *_: None)
        threading.Thread(target=self._beat, name="beat", daemon=True).start()
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        signal.set_wakeup_fd(-1)
        signal.signal(signal.SIGTERM, self._old_handler)
        self.join(timeout=2 * INTERVAL_S)

    def run(self) -> None:
        """End the process when another rank fell silent or has left, or when told to, until the run ends."""
        while not self._ended.is_set():
            if select.select([self._wakeup[0]], [], [], INTERVAL_S)[0] and not self._ended.is_set():
                if signal.SIGTERM in os.read(self._wakeup[0], 64):
                    self._die(self.missing() or ConnectionError("told to stop"))
                continue
            wrong = self._wrong(self.timeout_s)
            if wrong is not None and not self._ended.is_set():
                self._die(wrong)

    def missing(self) -> ConnectionError | None:
        """After something failed: which rank is missing, or has left and why; None if all are well."""
        deadline = time.monotonic() + 2 * STALE_S
        while time.monotonic() < deadline:
            wrong = self._wrong(STALE_S)
            if wrong is not None:
                return wrong
            time.sleep(INTERVAL_S / 2)
        return None

    def leave(self, reason: str | None = None, code: int = 0) -> bool:
        """Tell the others that this rank ends; if something is wrong, why and with which exit code.

        Returns:
            Whether this rank is the first to give this reason, and so the one to print it.
        """
        self._last_word.acquire()  # for good; if the thread has it, it is ending the process
        self._ended.set()
        self._farewell = FINISHED if reason is None else f"{LEFT}{code} {reason}"
        self._leaving.set()
        self._told.wait(2 * GRACE_S)
        return self._first

    def _wrong(self, patience_s: float) -> ConnectionError | None:
        """What the others have said, or that one has said nothing for so long."""
        now = time.monotonic()
        for rank, (beat, _) in enumerate(self._seen):
            if beat.startswith(LEFT) and rank != self.rank:
                code, _, reason = beat.removeprefix(LEFT).partition(" ")
                return ConnectionError(reason) if int(code) == LOST else PeerEndedError(reason, int(code))
        if self._gone or now - self._heard > patience_s:
            why = self._gone or f"no answer for {patience_s:g} s"
            return ConnectionError(f"rank 0 on {self.where[0]} or its host is missing: {why}")
        silence = {  # up to the store's last answer: behind a cut link, those beside this rank are silent too
            rank: self._heard - since
            for rank, (beat, since) in enumerate(self._seen)
            if rank != self.rank and not beat.startswith(FINISHED)
        }
        if max(silence.values(), default=0.0) <= patience_s:
            return None
        together = max(patience_s - 2 * INTERVAL_S, patience_s / 2)  # a host's ranks fall silent within a beat
        silent = [f"rank {rank} on {self.where[rank]}" for rank, seconds in silence.items() if seconds > together]
        verb = "is" if len(silent) == 1 else "are"
        return ConnectionError(f"{' and '.join(silent)} {verb} missing: no sign of life for {patience_s:g} s")

    def _beat(self) -> None:
        """Beat, read the beats of the others, and in the end say farewell; nobody else uses the store."""
        number = 0
        try:
            while self._farewell is None:
                number += 1
                self.store.set(self._keys[self.rank], str(number))
                beats = [beat.decode() for beat in self.store.multi_get(self._keys)]
                now = time.monotonic()
                self._seen = [old if old[0] == new else (new, now) for old, new in zip(self._seen, beats, strict=True)]
                self._heard = now
                self._leaving.wait(INTERVAL_S)
            if self._farewell != FINISHED:
                said = f"said/{hashlib.sha256(self._farewell.encode()).hexdigest()}"
                self._first = self.store.compare_set(said, "", str(self.rank)).decode() == str(self.rank)
            self.store.set(self._keys[self.rank], self._farewell)
        except (RuntimeError, ValueError) as error:
            self._gone = (str(error).strip().splitlines() or [type(error).__name__])[0]
        self._told.set()

    def _die(self, error: ConnectionError) -> None:
        """End the process from this thread, unless the main thread does: it may wait for ever."""
        if not self._last_word.acquire(blocking=False):
            return
        if isinstance(error, PeerEndedError):
            time.sleep(LINGER_S)
            os._exit(error.code)
        print(f"grace-opt: rank {self.rank}: {error}", file=sys.stderr, flush=True)
        time.sleep(GRACE_S)
        os._exit(LOST)

"""Ctrl-C kept from falling between two steps that belong together."""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def interrupts_held() -> Iterator[None]:
    """Ctrl-C takes effect at the end of the block, and never in processes that are started inside.

    Those inherit the mask. It is not enough here: another thread may receive the signal, and Python then runs the
    handler in the main thread all the same.

    Raises:
        KeyboardInterrupt: at the end, if Ctrl-C came.
    """
    pressed: list[int] = []
    in_main = threading.current_thread() is threading.main_thread()  # only there handlers run, and are set
    before = signal.signal(signal.SIGINT, lambda number, _: pressed.append(number)) if in_main else None
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGINT])
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        if in_main:
            signal.signal(signal.SIGINT, before)
    if pressed:
        raise KeyboardInterrupt

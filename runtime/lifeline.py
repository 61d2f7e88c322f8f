"""A process that ends when its parent ends, however the parent ended."""

import ctypes
import os
import signal
import sys

PR_SET_PDEATHSIG = 1  # linux/prctl.h


def end_with_parent() -> None:
    """From now on, let the kernel end this process as soon as its parent is gone: a worker never outlives torchrun.

    Call it first thing, from the main thread of a process that the main thread of its parent started. It outlives exec.
    Linux only; elsewhere nothing happens.
    """
    if sys.platform != "linux":
        return
    parent = os.getppid()
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, int(signal.SIGKILL), 0, 0, 0)
    if os.getppid() != parent:  # it ended before the kernel knew
        os.kill(os.getpid(), signal.SIGKILL)


if __name__ == "__main__":  # python -m runtime.lifeline ARGUMENTS: what python ARGUMENTS does, tied to its parent
    end_with_parent()
    os.execv(sys.executable, [sys.executable, *sys.argv[1:]])

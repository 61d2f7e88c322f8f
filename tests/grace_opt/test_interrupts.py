"""A held Ctrl-C comes late, but it comes, and only here."""

import signal
import subprocess
import sys
import threading
import time

import pytest

from grace_opt.interrupts import interrupts_held


def interrupted_at_work(seconds, thread):
    """A thread receives Ctrl-C, then steps for so long; what was done."""
    done = []

    def work():
        with interrupts_held():
            signal.pthread_kill(thread.ident, signal.SIGINT)
            deadline = time.monotonic() + seconds
            while time.monotonic() < deadline:
                done.append("step")
            done.append("all")

    with pytest.raises(KeyboardInterrupt):
        work()
    return done


def test_an_interrupt_takes_effect_at_the_end_of_the_block():
    assert interrupted_at_work(0, threading.main_thread()) == ["all"]


def test_one_that_another_thread_receives_is_held_as_well():
    ready = threading.Event()
    waiting = threading.Thread(target=ready.wait)  # its mask is open
    waiting.start()
    try:
        assert interrupted_at_work(0.2, waiting)[-1] == "all"
    finally:
        ready.set()
        waiting.join()


def test_a_process_started_inside_never_sees_it():
    with interrupts_held():
        process = subprocess.Popen([sys.executable, "-c", "import time; print(1, flush=True); time.sleep(30)"],
                                   stdout=subprocess.PIPE)  # fmt: skip
    process.stdout.read(1)
    process.send_signal(signal.SIGINT)
    with pytest.raises(subprocess.TimeoutExpired):
        process.wait(timeout=0.5)
    process.kill()
    process.wait()


def test_afterwards_everything_is_as_before():
    handler, mask = signal.getsignal(signal.SIGINT), signal.pthread_sigmask(signal.SIG_BLOCK, [])
    with interrupts_held():
        pass
    assert (signal.getsignal(signal.SIGINT), signal.pthread_sigmask(signal.SIG_BLOCK, [])) == (handler, mask)

"""A phase lasts until all ranks are done with it."""

import pytest

pytest.importorskip("torch")

from runtime.stopwatch import Stopwatch


class Clock:
    """Seconds that pass only when told to; a barrier takes 1 s, and 3 s longer where a slow rank is waited for."""

    def __init__(self, monkeypatch):
        self.seconds, self.slow = 0.0, False
        monkeypatch.setattr("runtime.stopwatch.time.perf_counter", lambda: self.seconds)

    def work(self, seconds):
        self.seconds += seconds

    def barrier(self):
        self.seconds += 4.0 if self.slow else 1.0
        self.slow = False


def test_with_barriers_a_phase_lasts_until_the_slowest_rank_is_done(monkeypatch):
    clock = Clock(monkeypatch)
    watch = Stopwatch(clock.barrier, barrier_s=1.0)
    with watch("dispatch"):
        clock.work(10)
    clock.slow = True
    with watch("experts"):
        clock.work(5)
    watch.stop()
    assert watch.visits == {"dispatch": [13], "experts": [5]}  # the barrier's own second is taken off
    assert watch.busy == {"dispatch": [10], "experts": [5]}


def test_without_barriers_a_phase_is_what_this_rank_did(monkeypatch):
    clock = Clock(monkeypatch)
    watch = Stopwatch()
    for seconds in (2, 3):
        with watch("dispatch"):
            clock.work(seconds)
    watch.stop()
    assert watch.visits == watch.busy == {"dispatch": [2, 3]}

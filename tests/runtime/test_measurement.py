"""Seconds of all ranks and repetitions become the time of a layer and a timeline that agree."""

import numpy as np
import pytest

pytest.importorskip("torch")

from runtime.measurement import PHASES, layer_time, timeline

TOKENS = np.full((2, 2), 8)


def seconds(busy: object, until_all: object) -> np.ndarray:
    """[R, L, B, repetitions, 2 * phases] from busy [R, L, B, repetitions, phases] and [L, B, repetitions, phases]."""
    return np.concatenate([np.broadcast_to(until_all, np.shape(busy)), busy], axis=-1)


def test_a_timeline_is_the_median_of_repetitions_rank_by_rank() -> None:
    """One layer, two batches, three repetitions: rank 1 is slower in batch 0, rank 0 in batch 1."""
    slow, fast = [[1, 5, 2], [2, 6, 2], [9, 9, 9]], [[1, 1, 1], [1, 2, 2], [1, 3, 3]]
    busy = np.array([[[fast, slow]], [[slow, fast]]], float)
    measured = timeline(seconds(busy, busy.max(axis=0)), (7,))
    assert (measured.steps, measured.layer_ids) == (PHASES, (7,))
    assert measured.busy_s[0, 0].T.tolist() == [[1, 2, 2], [2, 6, 2]]
    assert measured.step_s.tolist() == [[[2, 6, 2], [2, 6, 2]]]
    assert measured.idle_s.tolist() == [[[5, 0], [0, 5]]]


def test_the_time_of_a_layer_is_the_mean_of_its_timeline_over_batches() -> None:
    busy = np.random.default_rng(0).random((4, 3, 2, 5, 3))
    ran = seconds(busy, busy.max(axis=0) + 0.1)
    measured, time = timeline(ran, (0, 1, 2)), layer_time(ran, TOKENS)
    for phase in PHASES:
        assert measured.phase_s(phase).mean(axis=1) == pytest.approx(getattr(time, f"{phase}_s"))
    assert (measured.idle_s.mean(axis=(1, 2)) >= time.idle_s).all()  # that of the experts alone


def test_a_rank_that_was_last_is_busy_as_long_as_the_step_takes_without_its_barrier() -> None:
    busy = np.array([[[[[1, 1, 1]]]], [[[[2, 2, 2]]]]], float)
    measured = timeline(seconds(busy, busy.max(axis=0) - 0.25), (0,))
    assert measured.busy_s[0, 0].T.tolist() == [[1, 1, 1], [1.75, 1.75, 1.75]]

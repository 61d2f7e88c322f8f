"""Who works and who waits, by hand."""

import numpy as np
import pytest

from grace_opt.timeline import Timeline, phase_of

STEPS = ("dispatch across", "dispatch inside", "experts", "combine")


@pytest.fixture
def timeline() -> Timeline:
    """Two layers of two batches on two ranks; in batch 0 rank 1 is waited for, in batch 1 rank 0."""
    busy = np.array([[1, 2], [0, 1], [3, 5], [1, 1]], float)
    both = np.stack([busy, busy[:, ::-1]])
    return Timeline(STEPS, np.stack([both, 2 * both]), np.stack([both, 2 * both]).max(axis=3) + 0.5, (3, 4))


def test_idle_time_is_counted_batch_by_batch_and_not_from_averages(timeline: Timeline) -> None:
    # layer 0, batch 0: rank 0 waits 1.5 + 1.5 + 2.5 + 0.5, rank 1 half a second in every step
    assert timeline.idle_s[0].tolist() == [[6, 2], [2, 6]]
    averages = timeline.step_s.mean(axis=1)[..., None] - timeline.busy_s.mean(axis=1)
    assert averages[0].sum(axis=0).tolist() == [4, 4]  # each rank as if it were always half of either
    assert timeline.idle_s[0].max(axis=1).tolist() == [6, 6]


def test_a_batch_passes_all_layers_before_the_next_follows(timeline: Timeline) -> None:
    assert timeline.layer_s.tolist() == [[11, 11], [20, 20]]
    assert timeline.start_s[0, 0].tolist() == [0, 2.5, 4, 9.5]
    assert timeline.start_s[:, :, 0].tolist() == [[0, 31], [11, 42]]
    assert timeline.total_s == 62
    assert timeline.phase_s("dispatch").tolist() == [[4, 4], [7, 7]]


def test_a_part_keeps_its_layers_names_and_bounds(timeline: Timeline) -> None:
    bounds = np.array([[[f"{cell}{step}" for step in range(4)] for cell in row] for row in ("ab", "cd")])
    part = Timeline(STEPS, timeline.busy_s, timeline.step_s, (3, 4), bounds).select([1], [0])
    assert (part.layer_ids, part.num_batches, part.num_ranks, part.total_s) == ((4,), 1, 2, 20)
    assert part.bound_by is not None
    assert part.bound_by.tolist() == [[["c0", "c1", "c2", "c3"]]]
    assert [phase_of(step) for step in part.steps] == ["dispatch", "dispatch", "experts", "combine"]


@pytest.mark.parametrize(
    ("busy", "step", "message"),
    [
        ([[[[1, 3]]]], [[[2]]], "a rank of a timeline is busy for longer than the step takes"),
        ([[[[1, -1]]]], [[[2]]], "times of a timeline must be finite and not negative"),
        ([[[[1, 1]]]], [[[np.inf]]], "times of a timeline must be finite and not negative"),
        ([[[1, 1]]], [[[2]]], r"got \[1, 1, 2\] and \[1, 1, 1\]"),
        ([[[[1, 1]], [[1, 1]]]], [[[2]]], r"got \[1, 2, 1, 2\] and \[1, 1, 1\]"),
    ],
)
def test_times_that_cannot_be_are_refused(busy: object, step: object, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Timeline(("experts",), np.array(busy, float), np.array(step, float), (0,))

"""Timelines as files: a trace whose spans never overlap, and a picture."""

import json
from pathlib import Path

import numpy as np
import pytest

from analysis.timeline_files import MAX_EVENTS, draw_timelines, gantt, write_chrome_trace
from grace_opt.timeline import Timeline

STEPS = ("dispatch across", "dispatch inside", "experts", "combine inside", "combine across")


def random_timeline(layers: int = 3, batches: int = 4, ranks: int = 4, bounds: bool = True) -> Timeline:
    busy = np.random.default_rng(0).random((layers, batches, len(STEPS), ranks)) * 1e-3 / 3
    busy[:, :, 1] = 0  # a stage in which nothing travels
    names = np.full(busy.shape[:3], "rank 0") if bounds else None
    return Timeline(STEPS, busy, busy.max(axis=3), tuple(range(5, 5 + layers)), names)


def spans_of(events: list[dict], pid: int, tid: int) -> list[dict]:
    return sorted((e for e in events if e["ph"] == "X" and (e["pid"], e["tid"]) == (pid, tid)), key=lambda e: e["ts"])


@pytest.fixture
def written(tmp_path: Path) -> dict:
    both = {"predicted": random_timeline(), "measured": random_timeline(bounds=False)}
    write_chrome_trace(tmp_path / "a" / "b.json", both, [0, 0, 1, 1], {"planner": "eplb"}, batches=2)
    assert [path.name for path in (tmp_path / "a").iterdir()] == ["b.json"]  # nothing temporary is left
    return json.loads((tmp_path / "a" / "b.json").read_text())


def test_the_trace_says_what_it_shows(written: dict) -> None:
    assert written["displayTimeUnit"] == "ms"
    assert written["otherData"] == {
        "planner": "eplb",
        "batches_shown": {"predicted": [0, 1], "measured": [0, 1]},
        "batches": {"predicted": 4, "measured": 4},
    }
    names = [e["args"]["name"] for e in written["traceEvents"] if e["name"] == "process_name"]
    assert names == ["predicted", "measured"]
    threads = [e["args"]["name"] for e in written["traceEvents"] if e["name"] == "thread_name"]
    assert threads[:5] == ["rank 0 (node 0)", "rank 1 (node 0)", "rank 2 (node 1)", "rank 3 (node 1)", "layers"]


def test_spans_of_a_rank_fill_the_time_and_never_overlap(written: dict) -> None:
    events, timeline = written["traceEvents"], random_timeline()
    for pid in {event["pid"] for event in events}:
        for tid in range(5):
            spans = spans_of(events, pid, tid)
            ends = [round((span["ts"] + span["dur"]) * 1000) for span in spans]
            assert [round(span["ts"] * 1000) for span in spans] == [0, *ends[:-1]]
            assert ends[-1] * 1e-9 == pytest.approx(timeline.layer_s[:, :2].sum())


def test_a_span_says_layer_batch_and_what_it_waits_for(written: dict) -> None:
    events, timeline = written["traceEvents"], random_timeline()
    predicted, measured = sorted({event["pid"] for event in events})
    first = spans_of(events, predicted, 2)[0]
    assert (first["name"], first["cat"], first["args"]) == (
        "dispatch across",
        "dispatch",
        {"layer": 5, "batch": 0, "bound": "rank 0"},
    )
    assert first["dur"] * 1e-6 == pytest.approx(timeline.busy_s[0, 0, 0, 2], abs=1e-9)
    waiting = [span for span in spans_of(events, measured, 2) if span["name"] == "waiting"]
    assert waiting[0]["args"]["step"] == "dispatch across"
    total = sum(span["dur"] for span in waiting) * 1e-6
    assert total == pytest.approx(timeline.idle_s[:, :2, 2].sum(), abs=1e-7)
    assert not any(span["name"] == "dispatch inside" for span in spans_of(events, measured, 2))  # nothing took no time


def test_a_large_timeline_is_written_in_part(tmp_path: Path) -> None:
    many = random_timeline(layers=20, batches=30, ranks=16)
    write_chrome_trace(tmp_path / "t.json", {"predicted": many}, [0] * 16, {}, batches=30)
    written = json.loads((tmp_path / "t.json").read_text())
    assert len(written["traceEvents"]) < MAX_EVENTS * 1.1
    assert written["otherData"]["batches_shown"]["predicted"] == list(range(30))[: MAX_EVENTS // (2 * 20 * 5 * 16)]
    assert written["otherData"]["batches"] == {"predicted": 30}


def test_the_picture_has_a_panel_for_each_and_shows_the_middle_layer(tmp_path: Path) -> None:
    both = {"predicted": random_timeline(), "measured": random_timeline(bounds=False)}
    draw_timelines(tmp_path / "t.png", both, [0, 0, 1, 1], "eplb")
    assert (tmp_path / "t.png").read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"
    few = {name: timeline.select([1], [0, 1]) for name, timeline in both.items()}
    figure = gantt(few, [0, 0, 1, 1], "eplb")
    assert [axis.get_title(loc="left").split(":")[0] for axis in figure.axes] == ["predicted", "measured"]
    assert figure.axes[0].get_xlim() == figure.axes[1].get_xlim()
    (legend,) = figure.legends
    assert [text.get_text() for text in legend.get_texts()] == [*STEPS, "waiting"]

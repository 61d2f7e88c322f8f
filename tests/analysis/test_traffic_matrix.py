"""The traffic matrix shows the rows that were counted."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from analysis.plots import save
from analysis.traffic_matrix import traffic_matrix
from grace_opt.plan import Plan
from grace_opt.trace import Trace
from grace_opt.traffic import SCHEMES, Traffic, traffic

ONE_EACH = [[[0], [1], [2], [3]]]  # expert e on rank e


@pytest.fixture
def counts(make_trace: Callable[..., Trace], make_plan: Callable[..., Plan]) -> Traffic:
    """Three tokens on rank 0 that chose experts 2 and 3; rank 1 has none; one token on rank 2, one on rank 3."""
    trace = make_trace([[[2, 3], [2, 3], [2, 3], [2, 3], [0, 3]]], homes=[0, 0, 0, 2, 3])
    return traffic(trace, make_plan(ONE_EACH))


def test_a_stage_is_a_panel_with_its_rows(counts: Traffic) -> None:
    figure = traffic_matrix(counts, "hierarchical", "toy")
    panels = [axis for axis in figure.axes if axis.images and axis.get_title()]
    assert [panel.get_title() for panel in panels] == ["dispatch across: 4 rows", "dispatch inside: 5 rows"]
    shown = [np.ma.filled(panel.images[0].get_array(), 0) for panel in panels]
    assert shown[0].tolist() == [[0, 0, 3, 0], [0, 0, 0, 0], [0, 0, 0, 0], [0, 1, 0, 0]]
    assert shown[1].tolist() == [[0, 0, 0, 0], [1, 0, 0, 0], [0, 0, 0, 4], [0, 0, 0, 0]]


def test_bytes_and_the_way_back_can_be_shown(counts: Traffic) -> None:
    figure = traffic_matrix(counts, "flat", "toy", row_bytes=1e6, returning=True)
    assert figure.axes[0].get_title() == "combine: 8 MB"
    assert "combine under flat" in figure.get_suptitle()


@pytest.mark.parametrize("scheme", [*SCHEMES, "low_latency"])
def test_every_scheme_is_drawn(counts: Traffic, scheme: str, tmp_path: Path) -> None:
    save(tmp_path / "m.png", traffic_matrix(counts, scheme, "toy"))
    assert (tmp_path / "m.png").stat().st_size > 5000


def test_nothing_sent_is_drawn_as_nothing(
    make_trace: Callable[..., Trace], make_plan: Callable[..., Plan], tmp_path: Path
) -> None:
    idle = traffic(make_trace([[[0, 1]]], homes=[0]), make_plan([[[0, 1], [2], [3], []]]))
    save(tmp_path / "m.png", traffic_matrix(idle, "hierarchical", "toy"))
    assert (tmp_path / "m.png").stat().st_size > 5000

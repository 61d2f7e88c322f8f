"""`grace-opt front`: points are measured by exact counts, kept, and none that is beaten is called one of the front."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from itertools import combinations, pairwise
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.text import Annotation, Text

from analysis.front import front, with_fronts
from analysis.front_figure import front_figure, spread
from analysis.parts import problems
from analysis.rows_and_load import RowsAndLoad
from grace_opt.configuration import read_configuration
from grace_opt.homes import Balanced
from grace_opt.plan import Plan
from grace_opt.plan_file import read_plan
from grace_opt.planners.eplb import Eplb
from grace_opt.planners.joint import Joint
from grace_opt.planners.linear import Linear
from grace_opt.problem import Problem
from grace_opt.split import Alternate
from grace_opt.topology import Topology
from grace_opt.trace import Trace
from grace_opt.traffic import traffic
from simulator.cluster import SimulatedCluster


@pytest.fixture
def asked(tmp_path: Path, model, make_topology: Callable[..., Topology], make_trace: Callable[..., Trace]) -> dict:
    """48 sequences of four tokens whose experts come in pairs, 0 with 2 and 1 with 3; `linear` parts both pairs."""
    pairs = np.array([[0, 2], [1, 3]], np.uint8)[np.random.default_rng(0).integers(2, size=192)]
    cost = SimulatedCluster("hierarchical")
    return {
        "model": model, "topology": make_topology(), "trace": make_trace(pairs[None], lengths=[4] * 48),
        "split": Alternate(), "homes": Balanced(), "cost": cost, "planners": {"linear": Linear(), "eplb": Eplb()},
        "joint": Joint(cost, trials=500, time_limit_s=60, num_batches=2, num_maps=1), "output": str(tmp_path / "out"),
        "weights": [0.0, 1.0], "slots_per_rank": [1, 2], "figures": False,
    }  # fmt: skip


@dataclass(frozen=True)
class Counted:
    """A planner that notes its calls."""

    calls: list

    def __call__(self, problem: Problem):
        self.calls.append(problem.num_slots)
        return Linear()(problem)

    def __repr__(self) -> str:
        return "Counted()"


@dataclass(frozen=True)
class Interrupted:
    """A planner during which Ctrl-C comes; one that is patient keeps its best plan and says nothing."""

    patient: bool

    def __call__(self, problem: Problem):
        try:
            signal.raise_signal(signal.SIGINT)
        except KeyboardInterrupt:
            if not self.patient:
                raise
        return Linear()(problem)


def result_of(asked: dict) -> dict:
    return json.loads((Path(asked["output"]) / "result.json").read_text())


def test_a_price_is_the_weighed_sum_of_rows_over_those_of_linear_and_load_over_its_mean(
    make_trace: Callable[..., Trace], make_plan: Callable[..., Plan], make_problem: Callable[..., Problem]
) -> None:
    """Loads are 1, 2, 3 and 2. Expert e on rank e: one token needs the other node; 1 and 2 exchanged: all four do."""
    problem = make_problem(make_trace([[[1, 2], [0, 1], [2, 3], [2, 3]]], homes=[0, 1, 2, 3]), slots=1)
    price = RowsAndLoad.of(problem, SimulatedCluster("hierarchical"), 0.25)
    assert (price.linear_rows, price.mean_load) == (1, 2)
    as_linear, exchanged = (
        price.price(problem, traffic(problem.trace, make_plan([ranks]))).mean_s
        for ranks in ([[0], [1], [2], [3]], [[0], [2], [1], [3]])
    )
    assert as_linear == pytest.approx(0.25 * 1 + 0.75 * 1.5)
    assert exchanged == pytest.approx(0.25 * 4 + 0.75 * 1.5)


def test_on_one_node_rows_are_those_that_leave_a_rank(
    make_trace: Callable[..., Trace], make_topology: Callable[..., Topology], make_problem: Callable[..., Problem]
) -> None:
    """Expert e on rank e, tokens at home on ranks 0 and 1: they go to 1 and 2, and to 0."""
    trace = make_trace([[[1, 2], [0, 1]]], homes=[0, 1])
    problem = make_problem(trace, slots=1, topology=make_topology(1, 4))
    assert RowsAndLoad.of(problem, SimulatedCluster("hierarchical"), 1.0).linear_rows == 3


def point(rows: float, load: float, memory: float = 1.0, slots: int = 1, planner: str = "p") -> dict:
    return {
        "planner": planner, "method": "", "weight": None, "slots_per_rank": slots, "rows_per_token": rows,
        "load_max_over_mean": load, "memory_bytes_per_rank": memory,
    }  # fmt: skip


def test_a_point_is_on_the_front_unless_another_is_as_good_in_all_and_better_in_one() -> None:
    rows = [
        point(1, 3), point(2, 2), point(2, 2), point(2, 3), point(3, 1), {"planner": "e", "error": "no plan"},
        point(1, 2, memory=2, slots=2), point(2, 2, memory=2, slots=2), point(3, 1, memory=1, slots=2),
    ]  # fmt: skip
    marks = [(row.get("on_front"), row.get("on_front_of_budget")) for row in with_fronts(rows)]
    assert marks == [
        (True, True), (True, True), (True, True), (False, False), (True, True), (None, None),
        (True, True), (False, False), (True, True),
    ]  # fmt: skip


def test_points_are_measured_held_out_by_exact_counts(asked: dict) -> None:
    rows = front(**asked)
    assert [(row["slots_per_rank"], row["planner"], row["weight"]) for row in rows] == [
        (slots, *who) for slots in (1, 2)
        for who in (("linear", None), ("eplb", None), ("joint", None), ("joint", 0.0), ("joint", 1.0))
    ]  # fmt: skip
    content = result_of(asked)
    assert (content["command"], content["status"], content["rows"]) == ("front", "complete", rows)
    assert content["problem"]["slots_per_rank"] == [1, 2]
    header, *lines = (Path(asked["output"]) / "front.csv").read_text().splitlines()
    assert (len(lines), "rows_per_token" in header) == (len(rows), True)
    where = {key: asked[key] for key in ("model", "topology", "trace", "split", "homes")}
    trace = problems(**where, slots_per_rank=2)["held_out"].trace
    for row in rows:
        counts = traffic(trace, read_plan(Path(asked["output"]) / row["plan"]))
        assert row["split"] == "held_out"
        assert row["rows_per_token"] == counts.cross_node_rows("hierarchical").sum() / trace.num_tokens
        assert row["load_max_over_mean"] == counts.load.max() / counts.load.mean()
        # an expert is 300 bytes, and the model has one layer and nothing else
        assert row["memory_bytes_per_rank"] == 300 * row["slots_per_rank_used"] <= 300 * row["slots_per_rank"]


def test_the_weight_of_rows_keeps_together_what_tokens_use_together(asked: dict) -> None:
    """With one slot, a token of a pair on one node crosses at most once, one of a parted pair always."""
    rows = {(row["planner"], row["weight"]): row for row in front(**{**asked, "slots_per_rank": [1]})}
    assert rows["linear", None]["rows_per_token"] == 1
    assert rows["joint", 1.0]["rows_per_token"] < 0.6
    assert rows["joint", 1.0]["on_front_of_budget"]
    assert not rows["linear", None]["on_front"]


def test_what_is_done_is_not_planned_again_and_what_is_new_is(asked: dict) -> None:
    asked["planners"] = {"counted": Counted([])}
    calls = asked["planners"]["counted"].calls
    first = front(**{**asked, "slots_per_rank": [1], "weights": [1.0]})
    again = front(**{**asked, "weights": [1.0, 0.5]})
    assert calls == [4, 8]
    joint = {(row["slots_per_rank"], row["weight"]): row["plan_s"] for row in again if row["planner"] == "joint"}
    assert [row["plan_s"] for row in first[1:]] == [joint[1, None], joint[1, 1.0]]
    others = replace(asked["trace"], expert_ids=asked["trace"].expert_ids[:, ::-1])
    changes = (
        {"cost": SimulatedCluster("flat")},
        {"trace": others},
        {"topology": replace(asked["topology"], name="x")},
    )
    for change in changes:
        front(**{**asked, **change, "slots_per_rank": [1], "weights": []})
    assert calls == [4, 8, 4, 4, 4]
    next((Path(asked["output"]) / "points").glob("counted_slots_1.json")).write_text("{")
    front(**{**asked, **changes[-1], "slots_per_rank": [1], "weights": []})
    assert calls == [4, 8, 4, 4, 4, 4]


@pytest.mark.parametrize("patient", [False, True])
def test_ctrl_c_leaves_the_points_before_it_and_ends_a_search_that_would_go_on(asked: dict, patient: bool) -> None:
    asked["planners"] = {"linear": Linear(), "interrupted": Interrupted(patient), "eplb": Eplb()}
    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt, match=r"1 of 12 points are in .*; the same command continues"):
        front(**asked)
    assert signal.getsignal(signal.SIGINT) is before
    content = result_of(asked)
    assert (content["status"], [row["planner"] for row in content["rows"]]) == ("partial", ["linear"])
    assert [path.name for path in (Path(asked["output"]) / "points").iterdir()] == ["linear_slots_1.json"]


def test_a_process_that_is_interrupted_ends_with_130(tmp_path: Path) -> None:
    arguments = [
        "front", f"output={tmp_path}", "slots_per_rank=[16]", "weights=[0.5]", "point_seconds=300",
        "joint.trials=100000000", "~planner@planners.moetuner", "~planner@planners.exflow",
    ]  # fmt: skip
    process = subprocess.Popen(
        [sys.executable, "-m", "grace_opt", *arguments], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    last, deadline = tmp_path / "points" / "lplb_slots_16.json", time.monotonic() + 300
    while time.monotonic() < deadline and not last.exists() and process.poll() is None:
        time.sleep(0.1)
    time.sleep(3)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=240)
    assert process.returncode == 130, errors
    assert "of 13 points are in" in errors
    assert "Traceback" not in errors
    names = {row["planner"] for row in json.loads((tmp_path / "result.json").read_text())["rows"]}
    assert {"linear", "grace_plus", "lplb"} <= names
    assert "joint" not in names


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"weights": [0.5, 1.5]}, "weights must be from 0 (load alone) to 1 (rows alone), got 1.5"),
        ({"weights": [float("nan")]}, "weights must be from 0"),
        ({"weights": [0.5, 0.5]}, "weights must differ"),
        ({"slots_per_rank": []}, "slots_per_rank must list different numbers, or be null, got []"),
        ({"slots_per_rank": [2, 2]}, "slots_per_rank must list different numbers"),
        ({"slots_per_rank": [2, 0]}, "fewer than the 4 experts"),
        ({"slots_per_rank": [1, 11]}, "which has 0.0 GB: it holds 10 slots"),
        ({"planners": {"eplb": None}}, "planners.eplb must be a planner"),
        ({"output": ""}, "output must name a folder"),
    ],
)
def test_bad_input_is_one_line_and_leaves_nothing(asked: dict, change: dict, expected: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=re.escape(expected)) as error:
        front(**{**asked, **change})
    assert "\n" not in str(error.value)
    assert not list(tmp_path.iterdir())


def test_without_budgets_they_are_every_expert_once_a_quarter_more_and_what_a_planner_asks_for(asked: dict) -> None:
    @dataclass(frozen=True)
    class Wants(Linear):
        def slots_wanted(self, problem: Problem) -> int:
            return 4

    front(**{**asked, "slots_per_rank": None, "weights": [], "planners": {"wants": Wants()}})
    assert result_of(asked)["problem"]["slots_per_rank"] == [1, 2, 4]


def test_the_command_plans_with_every_planner_there_is() -> None:
    """Those of `compare`, which has them all; the joint planner apart."""
    asked, compared = (read_configuration(command, []) for command in ("front", "compare"))
    assert {*asked.planners, "joint"} == set(compared.planners)
    assert asked.joint.time_limit_s == asked.point_seconds


@given(
    st.lists(st.tuples(st.floats(0, 1), st.floats(0.01, 0.3)), min_size=1, max_size=12).map(
        lambda labels: sorted(labels)
    )
)
def test_labels_are_spread_without_overlap_and_stay_inside(labels: list[tuple[float, float]]) -> None:
    wanted, sizes = zip(*labels, strict=True)
    scale = min(1.0, 1 / sum(sizes))
    middles = spread(wanted, sizes)
    ends = [(m - scale * s / 2, m + scale * s / 2) for m, s in zip(middles, sizes, strict=True)]
    assert ends[0][0] >= -1e-9 and ends[-1][1] <= 1 + 1e-9
    assert all(below[1] <= above[0] + 1e-9 for below, above in pairwise(ends))


def test_labels_move_no_further_than_they_must() -> None:
    assert spread([0.3, 0.9], [0.2, 0.2]) == pytest.approx([0.3, 0.9])
    assert spread([0.5, 0.5], [0.2, 0.2]) == pytest.approx([0.4, 0.6])
    assert spread([0.0, 0.0, 0.9], [0.2, 0.2, 0.2]) == pytest.approx([0.1, 0.3, 0.9])


def test_every_planner_is_named_in_the_figure_and_no_name_hides_another() -> None:
    """Thirteen plans within a hair's breadth, two of them the same, at both budgets."""
    names = [f"planner_number_{number}" for number in range(13)]
    rows = [
        point(1 - min(number, 11) * 1e-3, 1.02, 1.0 * slots, slots, name)
        for slots in (1, 2) for number, name in enumerate(names)
    ]  # fmt: skip
    rows = with_fronts(
        [*rows, *({**point(0.8, 1.3, slots, slots), "method": "Joint", "weight": 0.5} for slots in (1, 2))]
    )
    about = {"model": "toy", "topology": "toy", "num_nodes": 2, "assumed": "", "synthetic": True}
    figure = front_figure(about, rows)
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    texts = [child for panel in figure.axes for child in panel.get_children() if isinstance(child, Annotation)]
    named = " ".join(text.get_text().replace("\n", " ") for text in texts).replace(",", "").split()
    assert sorted(named) == sorted([*names, "0.5"] * 2)
    boxes = [Text.get_window_extent(text, canvas.get_renderer()) for text in texts]  # without the lines to the points
    assert not any(a.overlaps(b) for a, b in combinations(boxes, 2))
    assert "SYNTHETIC" in figure.get_suptitle()


def test_the_front_is_drawn_as_png_and_svg(asked: dict) -> None:
    front(**{**asked, "figures": True, "weights": [], "slots_per_rank": [1]})
    for kind in ("png", "svg"):
        assert os.path.getsize(Path(asked["output"]) / "figures" / f"front.{kind}") > 5000

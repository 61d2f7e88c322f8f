"""`grace-opt plan`: plan and bound close in on each other, end at a wanted gap, and survive Ctrl-C at any time."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from threading import Timer
from types import SimpleNamespace

import numpy as np
import pytest

from analysis import certify as certify_module
from analysis import plan as plan_module
from analysis.certify import certify
from analysis.gap_line import GapLine, stands
from analysis.parts import problems_of_plan
from analysis.plan import plan
from grace_opt.homes import Balanced
from grace_opt.plan_file import read_plan
from grace_opt.planners.eplb import Eplb
from grace_opt.planners.joint import Joint
from grace_opt.planners.joint_progress import Enough
from grace_opt.planners.linear import Linear
from grace_opt.split import Alternate
from simulator.cluster import SimulatedCluster

COST = SimulatedCluster()
SMALL = Joint(COST, trials=500, num_batches=2, num_tokens=100, num_maps=1)


@pytest.fixture(scope="module")
def trace(make_trace):
    """2 layers, 40 sequences of 4 tokens, of which most choose experts {0, 1} or {2, 3}."""
    random = np.random.default_rng(0)
    pairs = np.array([[0, 1], [2, 3], [0, 2], [1, 3]])
    return make_trace(pairs[random.choice(4, (2, 160), p=[0.4, 0.4, 0.1, 0.1])], lengths=[4] * 40)


@pytest.fixture
def arguments(trace, model, make_topology, tmp_path):
    return {
        "model": replace(model, num_layers=2), "topology": make_topology(), "trace": trace, "split": Alternate(),
        "homes": Balanced(), "cost": COST, "planner": SMALL, "output": str(tmp_path), "slots_per_rank": 1,
    }  # fmt: skip


def result(folder):
    return json.loads((folder / "result.json").read_text())


def test_the_line_shows_what_is_known_and_the_gap():
    assert stands(None, None) == ""
    assert stands(None, 0.0015) == "  bound 1.500 ms"
    assert stands(0.003, 0.002) == "  found 3.000 ms a layer  bound 2.000 ms  gap 50.0%"
    assert stands(0.003, None) == "  found 3.000 ms a layer"


def test_the_line_has_enough_at_the_wanted_gap_only():
    line = GapLine(2, 0.5)
    for found_s, bound_s in ((None, None), (3.1, 2.0), (3.0, None), (None, 2.0)):
        line.show("searching", 0, found_s, bound_s)
    with pytest.raises(Enough):
        line.show("searching", 0, 3.0, 2.0)
    GapLine(2, None).show("searching", 0, 2.0, 2.0)


def test_the_line_keeps_the_last_plan_while_nothing_new_is_known():
    line = GapLine(8, None)
    shown = lambda: " ".join(str(column.render(task)) for column in line._bar.columns[:1] for task in line._bar.tasks)  # noqa: E731
    assert shown() == "planning 0/8 layers"
    line.show("searching", 3, 0.003, 0.002)
    line.show("choosing", 8, None, 0.002)
    assert shown() == "choosing 8/8 layers  found 3.000 ms a layer  bound 2.000 ms  gap 50.0%"
    assert not line._bar.finished  # else its clock would stand still


def test_bounds_are_told_in_seconds_as_they_rise_and_the_last_is_the_certificates(arguments, make_problem, trace):
    trace = replace(trace, homes=np.arange(40) % 4)
    problem = make_problem(trace, 1, model=arguments["model"])
    solution, told = Linear()(problem), []
    certificate = certify(solution, problem, COST, 5.0, lambda begun, bound_s: told.append((begun, bound_s)))
    counted = certify(solution, problem, COST, None)
    bounds = [bound_s for _, bound_s in told]
    assert bounds == sorted(bounds) and counted.solution.bound <= bounds[0] < bounds[-1]
    assert bounds[-1] == certificate.solution.bound
    assert {begun for begun, _ in told} == {1, 2}


def test_a_watcher_that_has_enough_ends_the_bounds_with_what_is_proven(arguments, make_problem, trace, monkeypatch):
    problem = make_problem(replace(trace, homes=np.arange(40) % 4), 1, model=arguments["model"])

    def watch(begun, bound_s):
        told.append(bound_s)
        raise Enough

    told, original = [], certify_module.lower_bounds
    monkeypatch.setattr(certify_module, "lower_bounds", lambda *args, **options: original(*args, workers=1, **options))
    certificate = certify(Linear()(problem), problem, COST, 5.0, watch)
    assert len(told) == 1
    assert certificate.solution.bound == told[0]


def test_a_wide_gap_ends_the_search_and_starts_no_bounds(arguments, monkeypatch):
    def never(*_, **__):
        raise AssertionError

    monkeypatch.setattr(certify_module, "lower_bounds", never)
    stages = []
    monkeypatch.setattr(GapLine, "show", spy(GapLine.show, stages))
    rows = plan(**arguments, bound_seconds=5.0, gap=1e6)
    assert [row["planner"] for row in rows] == ["joint", "joint", "linear", "linear"]
    assert stages == [("compiling", 0), ("starting", 0), ("searching", 0), ("choosing", 2), ("bounding", 0)]


def test_a_narrow_gap_is_closed_by_bounds_that_then_end(arguments, monkeypatch):
    """What counting proves is not enough; what is proven last is, and nothing is told after it."""
    stages = []
    show = GapLine.show
    full = plan(**arguments, bound_seconds=5.0)[0]
    counted = plan(**arguments)[0]
    assert full["bound"] > counted["bound"]
    wanted = full["gap"] + 1e-9
    monkeypatch.setattr(GapLine, "show", spy(show, stages))
    row = plan(**arguments, bound_seconds=5.0, gap=wanted)[0]
    assert row["gap"] <= wanted < counted["gap"]
    assert stages[2:5] == [("searching", 0), ("searching", 1), ("searching", 2)]
    assert stages[-1] == ("bounding", 2)


def spy(show, stages):
    def call(line, stage, done, found_s, bound_s):
        stages.append((stage, done))
        if stage in ("searching", "bounding"):
            assert found_s > 0 and bound_s > 0
        show(line, stage, done, found_s, bound_s)

    return call


def test_rows_carry_the_bound_and_a_first_result_stands_before_it_is_sought(arguments, tmp_path, monkeypatch):
    seen = []

    def interrupted(*arguments, **options):
        seen.append(result(tmp_path))
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(plan_module, "_bound", interrupted)
        with pytest.raises(KeyboardInterrupt):
            plan(**arguments, bound_seconds=5.0)
    assert seen[0]["status"] == "partial" and seen[0]["rows"][0]["bound"] > 0
    assert result(tmp_path) == seen[0]
    rows = plan(**arguments, bound_seconds=5.0)
    assert result(tmp_path)["status"] == "complete"
    assert rows[0]["bound"] == rows[1]["bound"] > seen[0]["rows"][0]["bound"]
    assert rows[0]["gap"] == pytest.approx(rows[0]["objective"] / rows[0]["bound"] - 1)
    assert rows[2]["planner"] == "linear" and rows[2]["bound"] is None


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"gap": -0.1}, "gap must be a number, not negative, or null, got -0.1"),
        ({"gap": float("nan")}, "gap must be a number, not negative, or null, got nan"),
        ({"gap": 0.1, "planner": Eplb()}, "gap=0.1 would end nothing: Eplb has no search .*; give bound_seconds too"),
        ({"gap": 0.1, "planner": replace(SMALL, homes="chosen")}, "gap=0.1 would end nothing: Joint has no search .*"),
        (
            {"gap": 0.1, "cost": SimpleNamespace(price=COST.price)},
            "gap=0.1 needs a cost model that tells least times; SimpleNamespace does not",
        ),
        ({"deal_slots": True, "planner": Eplb()}, "deal_slots=true would change nothing: Eplb gives every layer .*"),
        (
            {"deal_slots": True, "bound_seconds": 1},
            "bound_seconds=1 bounds layers one by one, which deal_slots=true .*",
        ),
        ({"bound_seconds": 0}, "bound_seconds must be a positive number, or null for bounds by counting alone, got 0"),
    ],
)
def test_limits_of_no_sense_are_refused_in_one_line(arguments, change, message):
    with pytest.raises(ValueError, match=f"^{message}$"):
        plan(**{**arguments, **change})


@pytest.fixture
def started():
    """(arguments) -> a command in a process group of its own, as a shell starts it: Ctrl-C reaches its worker processes
    too. Whatever happens, none of the group is left."""
    processes = []

    def start(*arguments):
        processes.append(
            subprocess.Popen(
                [sys.executable, "-m", "grace_opt", "plan", *map(str, arguments)],
                stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True,
            )
        )  # fmt: skip
        return processes[-1]

    yield start
    for process in processes:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def wait_for(process, condition):
    deadline = time.monotonic() + 240
    while not condition() and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.05)
    assert process.poll() is None, process.communicate()


def interrupted(process):
    os.killpg(process.pid, signal.SIGINT)
    output, errors = process.communicate(timeout=120)
    assert process.returncode == 0 and "Traceback" not in errors, errors
    return output, errors


@pytest.mark.parametrize("wait_s", [0.0, 0.5, 6.0])
def test_an_interrupt_while_processes_prove_bounds_keeps_plan_and_bound(started, tmp_path, wait_s):
    """As the workers start, while they load, and while they prove."""
    process = started("planner.trials=100", "planner.num_maps=1", "bound_seconds=300", f"output={tmp_path}")
    wait_for(process, lambda: (tmp_path / "result.json").exists() and children(process.pid))
    time.sleep(wait_s)
    output, _ = interrupted(process)
    assert result(tmp_path)["status"] == "complete"
    row = result(tmp_path)["rows"][0]
    assert row["planner"] == "joint" and row["bound"] > 0
    assert "no plan takes less than" in output
    read_plan(tmp_path / "plan.json")


def children(pid):
    path = f"/proc/{pid}/task/{pid}/children"
    return open(path).read().split() if os.path.exists(path) else True


def test_an_interrupt_while_it_searches_keeps_the_best_plan(arguments, tmp_path, monkeypatch):
    """The search would take minutes; the interrupt comes a little after it began."""
    show = GapLine.show

    def soon(line, stage, done, *seconds):
        if (stage, done) == ("searching", 0):
            Timer(0.5, lambda: os.kill(os.getpid(), signal.SIGINT)).start()
        show(line, stage, done, *seconds)

    monkeypatch.setattr(GapLine, "show", soon)
    endless = replace(SMALL, trials=10**9, time_limit_s=600.0)
    with pytest.warns(UserWarning, match="^joint: interrupted, the best plan so far is kept$"):
        rows = plan(**{**arguments, "planner": endless})
    assert result(tmp_path)["status"] == "complete" and rows[0]["bound"] > 0
    assert read_plan(tmp_path / "plan.json").provenance["planner"] == "joint"


def test_dealt_slots_are_told_and_a_plan_of_them_is_priced_again_within_the_same_memory(arguments, tmp_path, capsys):
    """A toy GPU holds 5 slots in each of 2 layers, not 7 in both."""
    rows = plan(**{**arguments, "slots_per_rank": 5, "deal_slots": True})
    said = capsys.readouterr().out
    assert "5 slots per rank in the mean over layers" in said and "layers by slots that every rank needs" in said
    assert result(tmp_path)["problem"]["deal_slots"] is True
    assert rows[0]["gap"] > 0 and rows[0]["slots"] == 20
    written = read_plan(tmp_path / "plan.json")
    keys = ("model", "topology", "trace", "split", "homes")
    parts = problems_of_plan(written, *(arguments[key] for key in keys))
    assert parts["fit"].dealt
    parts["fit"].check(written)
    alike = replace(written, provenance={**written.provenance, "deal_slots": False})
    assert not problems_of_plan(alike, *(arguments[key] for key in keys))["fit"].dealt

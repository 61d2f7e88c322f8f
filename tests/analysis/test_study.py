"""`grace-opt study` as a user calls it, on the embedded sample."""

import csv
import json
import os
import signal
import subprocess
import sys
import time

import pyarrow.parquet
import pytest

import analysis.study_cell as study_cell
from analysis.study import study
from analysis.study_table import table_of

AXES = ["planner=linear,eplb", "topology.inter_bytes_per_s=1e9,4e9", "slots_per_rank=18", "hydra/launcher=basic"]


def contents(folder):
    result = json.loads((folder / "result.json").read_text())
    table = pyarrow.parquet.read_table(folder / "table.parquet").to_pylist()
    with (folder / "table.csv").open(newline="") as file:
        return result, table, list(csv.DictReader(file))


def count_cells(monkeypatch):
    """The cells that are priced from now on."""
    priced = []
    price = study_cell.Cell.price

    def counting(self, output):
        priced.append(self.digest)
        return price(self, output)

    monkeypatch.setattr(study_cell.Cell, "price", counting)
    return priced


def test_a_study_leaves_one_tidy_table_twice_and_figures(tmp_path, capsys):
    study([*AXES, f"output={tmp_path}"])
    result, table, text = contents(tmp_path)
    assert (result["command"], result["status"], result["problem"]["cells"]) == ("study", "complete", 4)
    assert [(r["cell.planner"], r["cell.topology.inter_bytes_per_s"]) for r in table] == [
        ("linear", 1e9), ("linear", 4e9), ("eplb", 1e9), ("eplb", 4e9),
    ]  # fmt: skip
    assert [float(r["layer_time_s"]) for r in text] == [r["layer_time_s"] for r in table]
    assert list(text[0]) == list(table[0])
    assert [r["speedup_over_linear"] for r in table[:2]] == [1, 1]
    assert table[2]["speedup_over_linear"] == table[0]["layer_time_s"] / table[2]["layer_time_s"]
    assert [r["layer_time_s"] for r in result["rows"] if r["kind"] == "cell"] == [r["layer_time_s"] for r in table]
    assert (tmp_path / "figures" / "time_against_inter_bytes_per_s.png").exists()
    out = capsys.readouterr().out
    assert "4 of 4 cells done" in out
    assert "assumed, no measurement" in out


def test_the_same_command_runs_nothing_again_and_a_new_value_only_what_is_new(tmp_path, monkeypatch):
    priced = count_cells(monkeypatch)
    study([*AXES, f"output={tmp_path}", "figures=false"])
    assert len(priced) == 4
    study([*AXES, f"output={tmp_path}", "figures=false"])
    assert len(priced) == 4
    more = [*AXES, "topology.inter_bytes_per_s=1e9,2e9,4e9", f"output={tmp_path}", "figures=false"]
    study(more)
    assert len(priced) == 6
    assert [r["cell.topology.inter_bytes_per_s"] for r in contents(tmp_path)[1]] == [1e9, 2e9, 4e9] * 2


def test_cells_that_fail_are_rows_and_the_others_go_on(tmp_path, capsys):
    study(["slots_per_rank=3,18", "planner=linear,eplb", "hydra/launcher=basic", f"output={tmp_path}"])
    result, table, _ = contents(tmp_path)
    assert [r["status"] for r in table] == ["error", "error", "ok", "ok"]
    assert all("fewer than the 64 experts" in r["error"] and r["layer_time_s"] is None for r in table[:2])
    assert (result["status"], result["problem"]["cells_failed"]) == ("complete", 2)
    assert "2 cells failed: slots_per_rank gives 12 slots" in " ".join(capsys.readouterr().out.split())


def test_a_study_in_which_every_cell_fails_says_why(tmp_path):
    with pytest.raises(ValueError, match=r"none of 2 cells could be priced: slots_per_rank gives 12 slots"):
        study(["slots_per_rank=3", "planner=linear,eplb", "hydra/launcher=basic", f"output={tmp_path}"])
    assert [r["status"] for r in contents(tmp_path)[1]] == ["error", "error"]


def test_slots_that_no_planner_deals_are_one_line_and_leave_nothing(tmp_path):
    with pytest.raises(ValueError, match="deal_slots=true would change nothing: Linear, Eplb give every layer"):
        study([*AXES, "deal_slots=false,true", f"output={tmp_path}/none"])
    assert not any(tmp_path.iterdir())


def test_a_launcher_that_fails_is_one_line_and_keeps_what_is_done(tmp_path, monkeypatch):
    monkeypatch.setattr(study_cell, "keep", lambda *_: (_ for _ in ()).throw(RuntimeError("node lost")))
    with pytest.raises(ValueError, match=r"ended early \(RuntimeError: node lost\): 0 of 4 cells are done"):
        study([*AXES, f"output={tmp_path}"])


def test_a_synthetic_trace_is_called_so(tmp_path, short_sample, capsys):
    study(["planner=linear,eplb", "trace=synthetic", "trace.num_tokens=4096", f"trace.like={short_sample}",
           "hydra/launcher=basic", f"output={tmp_path}"])  # fmt: skip
    result, table, _ = contents(tmp_path)
    assert result["problem"]["synthetic"] and all(r["synthetic"] for r in table)
    assert "SYNTHETIC trace" in capsys.readouterr().out
    assert "SYNTHETIC trace" in (tmp_path / "figures" / "times.svg").read_text()


def test_numbers_and_text_under_one_name_become_text():
    table = table_of([{"a": 1, "b": None, "c": 1}, {"a": "x", "b": None, "c": 2.5}, {"a": None, "c": None}])
    assert table.to_pylist() == [
        {"a": "1", "b": None, "c": 1.0}, {"a": "x", "b": None, "c": 2.5}, {"a": None, "b": None, "c": None},
    ]  # fmt: skip


def start(*arguments):
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([os.getcwd(), os.environ.get("PYTHONPATH", "")])}
    return subprocess.Popen(
        [sys.executable, "-m", "grace_opt", "study", *arguments], stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        text=True, env=environment, start_new_session=True,
    )  # fmt: skip


def wait_for_cells(folder, count):
    deadline = time.monotonic() + 180
    while time.monotonic() < deadline and len(list(folder.glob("cells/*.json"))) < count:
        time.sleep(0.05)


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGKILL])
def test_a_study_that_was_stopped_continues(how, tmp_path):
    """Two quick cells, then two whose planner never ends; every process of the study gets the signal."""
    quick, slow = "grace_opt.planners.linear.Linear", "tests.grace_opt.slow_planner.Slow"
    arguments = ["planner=linear", "topology.inter_bytes_per_s=1e9,2e9", "slots_per_rank=18", f"output={tmp_path}"]
    arguments += ["hydra.launcher.n_jobs=2", "figures=false"]
    process = start(*arguments, f"planner._target_={quick},{slow}")
    wait_for_cells(tmp_path, 2)
    time.sleep(1)
    os.killpg(process.pid, how)
    _, errors = process.communicate(timeout=60)
    done = sorted(tmp_path.glob("cells/*.json"))
    assert len(done) == 2
    assert not list(tmp_path.rglob(".*.json*"))
    if how == signal.SIGINT:
        assert process.returncode == 130, errors
        assert errors == f"grace-opt: interrupted: 2 of 4 cells are done in {tmp_path}; the same command continues\n"
        result, table, _ = contents(tmp_path)
        assert (result["status"], len(table)) == ("partial", 2)
    before = [path.stat().st_mtime_ns for path in done]
    process = start(*arguments, f"planner._target_={quick}")
    assert process.wait(timeout=180) == 0
    assert [path.stat().st_mtime_ns for path in done] == before


def test_a_typo_is_one_line_and_leaves_nothing(tmp_path):
    process = start("plannner=linear,eplb", f"output={tmp_path}/out")
    out, errors = process.communicate(timeout=120)
    assert (process.returncode, out) == (2, "")
    assert errors == "grace-opt: unknown option 'plannner'; did you mean planner?\n"
    assert list(tmp_path.iterdir()) == []


def test_help_lists_options_and_ready_studies():
    run = subprocess.run(
        [sys.executable, "-m", "grace_opt", "study", "--help"], capture_output=True, text=True, check=True
    )
    assert "scaled=null" in run.stdout
    assert "experiment=bandwidth" in run.stdout
    assert "output_subdir" not in run.stdout

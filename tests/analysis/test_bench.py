"""The benchmarks run at a small size and say what they measured."""

import argparse
import json
from functools import partial

import pytest

from analysis import bench_bounds
from analysis.bench_cells import fill_cells
from analysis.bench_planners import ALIKE, RIVALS, measure_cell
from analysis.bench_traffic import measure, write_random_trace
from analysis.results import write_result
from grace_opt.provenance import append_rows


def test_the_traffic_benchmark_measures_what_its_row_says(tmp_path):
    write_random_trace(tmp_path / "bench.safetensors", num_tokens=5000, num_layers=2)
    row = measure(tmp_path / "bench.safetensors")
    assert (row["tokens"], row["layers"], row["slots"], row["ranks"]) == (5000, 2, 288, 64)
    assert row["fraction_of_limit"] > 0
    assert row["extra_mb"] is None or row["extra_mb"] < 300


def test_rows_are_appended_under_one_header(tmp_path):
    for value in (1, 2):
        append_rows(tmp_path / "rows.csv", [{"a": value}])
    assert (tmp_path / "rows.csv").read_text().split() == ["a", "1", "2"]


def test_a_cell_of_the_planners_benchmark_holds_every_planner_at_the_same_slots(tmp_path):
    options = argparse.Namespace(traces=tmp_path, maps=1, seconds=1.0, rival_seconds=1.0)
    rows = measure_cell(options, ("sample", "a100_25gbe_2x2", "prefill", "E + 1 per rank"))
    by_name = {row["planner"]: row for row in rows}
    ours = {"joint", "joint_with_homes", "joint_dealt", "joint_dealt_with_homes"}
    assert set(by_name) == {*RIVALS, "grace", *ours}
    assert {row["slots"] for name, row in by_name.items() if name != "grace"} == {4 * 17}
    assert {row["homes"] for row in rows} == {"given", "chosen"} and by_name["joint_with_homes"]["homes"] == "chosen"
    assert all(row["layer_time_s"] > 0 and row["home_maps"] in (1, 2) for row in rows)


def test_a_budget_that_another_holds_already_makes_no_cell(tmp_path):
    options = argparse.Namespace(traces=tmp_path, maps=1, seconds=1.0, rival_seconds=1.0)
    assert measure_cell(options, ("sample", "h100_ib_4x8", "prefill", "1.25 E")) == []


def test_rows_that_are_known_are_not_measured_again(tmp_path):
    options = argparse.Namespace(traces=tmp_path, maps=1, seconds=1.0, rival_seconds=1.0)
    cell, lacking = ("sample", "a100_25gbe_2x2", "decode", "E"), ("eplb", "grace")
    known = [{"planner": name} for name in ALIKE if name not in lacking]
    assert [row["planner"] for row in measure_cell(options, cell, known)] == ["eplb", "grace"]
    assert measure_cell(options, cell, [{"planner": name} for name in ALIKE]) == []


def test_a_planner_measured_again_has_new_rows_beside_those_of_the_others(tmp_path):
    names = dict(zip(("model", "topology", "phase", "budget"), cell := ("m", "t", "decode", "E"), strict=True))
    old = [{**names, "planner": "eplb"}, {**names, "planner": "joint"}]
    elsewhere = [{**row, "phase": "prefill"} for row in old]
    write_result(tmp_path, "bench", {}, [*old, *elsewhere])
    again = {**names, "planner": "joint", "layer_time_s": 1.0}
    rows, new = fill_cells(
        tmp_path, "bench", {}, [cell], [], lambda _, known: [again] if known == old[:1] else [], ["joint"]
    )
    assert new == [again] and rows == [*elsewhere, old[0], again]
    assert json.loads((tmp_path / "result.json").read_text())["rows"] == rows


def test_a_cell_of_the_bounds_benchmark_proves_more_than_counting_does(tmp_path, monkeypatch):
    """One case a layer, however long it takes."""
    at_root = partial(bench_bounds.lower_bounds, workers=1, cases_per_layer=1)
    monkeypatch.setattr(bench_bounds, "lower_bounds", at_root)
    monkeypatch.setattr(bench_bounds, "RIVALS", ("linear", "eplb"))
    options = argparse.Namespace(traces=tmp_path, layers=1, seconds=1e9, plan_seconds=8.0, part_seconds=2.0)
    row = bench_bounds.measure_cell(options, ("sample", "a100_25gbe_2x2", "prefill", "E"))
    assert row["layers"] == "4"
    assert 0 < row["gap"] < row["gap_by_counting"]
    assert row["layer_time_s"] > row["bound_s"] > 0
    assert row["rows_gap"] >= 0 and row["busiest_gap"] >= 0
    assert row["rival"] in ("linear", "eplb") and 1 < row["rival_over_joint"] < row["rival_over_bound"]


@pytest.mark.parametrize(
    ("wanted", "layers"), [(1, [3]), (2, [1, 4]), (3, [1, 3, 5]), (6, list(range(6))), (9, list(range(6)))]
)
def test_layers_are_spread_evenly(wanted, layers):
    assert bench_bounds.spaced(6, wanted) == layers


def test_words_that_name_no_cell_are_one_line(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as ended:
        bench_bounds.main(["--only", "nothing"])
    assert ended.value.code == 2
    assert "no cell's name holds nothing; names are like 'sample a100_25gbe_2x4" in capsys.readouterr().err
    assert not any(tmp_path.iterdir())


def test_a_run_with_nothing_left_to_do_changes_nothing(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    row = {"model": "deepseek_v3", "topology": "h100_ib_2x8", "phase": "decode", "budget": "E"}
    row |= {"rival_over_joint": 1.5, "rival_over_bound": 2.0}
    more = {**row, "budget": "E + 1 per rank"}
    write_result(bench_bounds.OUTPUT, "bench-bounds", {}, [row, more])
    monkeypatch.setattr(bench_bounds, "RESULTS", tmp_path / "bounds.csv")
    bench_bounds.main(["--only", "deepseek_v3", "decode"])
    assert json.loads((bench_bounds.OUTPUT / "result.json").read_text())["rows"] == [row, more]
    assert not (tmp_path / "bounds.csv").exists()

"""The paper's evaluation on small models."""

import json
from pathlib import Path

import pytest

from analysis import paper, paper_comparison
from analysis.paper_steps import RUNS
from grace_opt.configuration import CONF_DIR, read_configuration, run

SMALL = {"sample": [f"trace.path={CONF_DIR}/samples/sample.safetensors"]}


@pytest.fixture
def config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(paper, "CLUSTERS", ("a100_25gbe_2x2",))
    monkeypatch.setattr(paper, "WORKLOADS", {"256 x 128 + 16": paper.Workload(64, 32, 4)})
    config = read_configuration("compare", ["experiment=paper", f"output={tmp_path}"])
    config.models = SMALL
    return config


def test_every_step_is_timed_end_to_end_and_set_beside_the_paper(config, tmp_path: Path, capsys):
    rows = run(config)
    assert [row["step"] for row in rows] == [step for step, _, _ in RUNS]
    assert all(row["total_s"] > row["prefill_s"] > 0 and row["backbone"] == "roofline" for row in rows)
    assert all(0 <= row["waiting_s"] < row["all_to_all_s"] for row in rows)
    result = json.loads((tmp_path / "result.json").read_text())
    assert result["command"] == "paper" and result["status"] == "complete"
    compared = {row["what"]: row for row in result["problem"]["compared"]}
    assert compared["ablation: Occult + HSC, cross-node traffic"]["paper"] == -35.6
    assert all(bool(row["why"]) == row["differs"] for row in compared.values())

    as_olmoe = [{**row, "model": "olmoe_1b_7b", "synthetic": True} for row in rows]
    compared = {row["what"]: row for row in paper_comparison.compare(as_olmoe)}
    assert compared["olmoe_1b_7b: end to end over the slowest"]["paper"] == 4.66
    assert compared["olmoe_1b_7b: HG + HSC, all-to-all time"]["paper"] == 2846
    capsys.readouterr()
    paper_comparison.print_comparison(as_olmoe, list(compared.values()), [])
    printed = capsys.readouterr().out
    assert "SYNTHETIC trace" in printed and "(1) open: " in printed


def test_a_difference_of_more_than_ten_points_differs():
    assert paper_comparison._beside("", -35.0, -25.1, "%", "open")["differs"] is False
    assert paper_comparison._beside("", -35.2, -25.1, "%", "open")["differs"] is True
    assert paper_comparison._beside("", 4.0, 4.66, "x", "open")["points_apart"] == pytest.approx(-14.16, abs=0.01)


def test_a_model_without_its_trace_is_skipped_with_a_line(config, tmp_path: Path, capsys):
    config.models = {**SMALL, "deepseek_v2_lite": ["trace.path=/nowhere/trace.npz"]}
    run(config)
    assert "skipped: deepseek_v2_lite: " in capsys.readouterr().out

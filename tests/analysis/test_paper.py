"""The paper's evaluation on small models."""

import json
from pathlib import Path

import pytest

from analysis import paper
from grace_opt.configuration import read_configuration, run

SMALL = {"olmoe_1b_7b": ["trace=synthetic", "trace.num_tokens=1024"]}


@pytest.fixture
def config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(paper, "CLUSTERS", ("a100_25gbe_2x2",))
    monkeypatch.setattr(paper, "WORKLOADS", {"256 x 128 + 16": paper.Workload(8, 16, 4)})
    config = read_configuration("compare", ["experiment=paper", f"output={tmp_path}"])
    config.models = SMALL
    return config


def test_every_step_is_timed_end_to_end_and_set_beside_the_paper(config, tmp_path: Path, capsys):
    rows = run(config)
    assert [row["step"] for row in rows] == [step for step, _, _ in paper.RUNS]
    assert all(row["synthetic"] and row["total_s"] > row["prefill_s"] > 0 for row in rows)
    result = json.loads((tmp_path / "result.json").read_text())
    assert result["command"] == "paper" and result["status"] == "complete"
    compared = {row["what"]: row for row in result["problem"]["compared"]}
    assert compared["olmoe_1b_7b: end to end over the slowest"]["paper"] == 4.66
    assert compared["ablation: Occult + HSC, cross-node traffic"]["paper"] == -35.6
    assert all(bool(row["why"]) == row["differs"] for row in compared.values())
    assert "SYNTHETIC trace" in capsys.readouterr().out


def test_a_model_without_its_trace_is_skipped_with_a_line(config, tmp_path: Path, capsys):
    config.models = {**SMALL, "deepseek_v2_lite": ["trace.path=/nowhere/trace.npz"]}
    run(config)
    assert "skipped: deepseek_v2_lite: " in capsys.readouterr().out

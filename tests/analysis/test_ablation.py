"""The ablation runs as one command and states the paper's figures beside ours."""

import json

import pytest

from analysis.ablation import QUANTITIES, STEPS
from grace_opt.configuration import CONF_DIR, read_configuration, run


def test_the_ablation_runs_on_the_embedded_sample_too(tmp_path):
    sample = f"trace.path={CONF_DIR}/samples/sample.safetensors"
    run(read_configuration("compare", ["experiment=grace_ablation", "model=sample", sample, f"output={tmp_path}"]))
    rows = json.loads((tmp_path / "result.json").read_text())["rows"]
    cross = {row["step"]: row["cross_node_traffic_pct"] for row in rows}
    assert cross["HG + HSC"] < cross["Occult + HSC"] < 0
    options = json.loads((tmp_path / "plans" / "hg_dr_tar.json").read_text())["provenance"]["options"]
    assert (options["replication"], options["routing"], options["embedding"]) == ("dynamic", "tar", "unit_rows")


@pytest.mark.parametrize("ignored", ["scheme=flat", "planners.grace.ratio=0.9", "only=[linear]"])
def test_what_the_ablation_does_not_use_is_warned_of(ignored):
    with pytest.warns(UserWarning, match="has no effect"):
        read_configuration("compare", ["experiment=grace_ablation", ignored])


def test_the_ablation_takes_another_workload_and_embedding():
    config = read_configuration("compare", ["experiment=grace_ablation", "workload=decode", "embedding=random_walk"])
    assert config.cost.tokens_per_rank == 128
    assert config.steps.hg.embedding == "random_walk"


def test_the_ablation_shows_each_step_beside_the_paper(shared_traces, tmp_path, capsys):
    trace = shared_traces / "deepseek-v2-lite.npz"
    run(read_configuration("compare", ["experiment=grace_ablation", f"trace.path={trace}", f"output={tmp_path}"]))
    rows = json.loads((tmp_path / "result.json").read_text())["rows"]
    by_step = {row["step"]: row for row in rows}
    assert list(by_step) == [step.strip() for step, *_ in STEPS]
    assert by_step["Occult"]["all_to_all_time_pct"] == 0
    assert by_step["+ DR + TAR"]["cross_node_traffic_paper_pct"] == -52.1
    assert by_step["HG + HSC"]["split"] == "held_out"
    # The paper's order of effects: grouping cuts traffic, replicas with WRR raise it, TAR wins it back.
    cross = {step: row["cross_node_traffic_pct"] for step, row in by_step.items()}
    assert cross["HG + HSC"] < cross["Occult + HSC"] < 0
    assert cross["+ DR + TAR"] < cross["HG + HSC"] < cross["+ DR + WRR"]
    printed = capsys.readouterr().out
    assert all(quantity in printed for quantity in QUANTITIES)
    assert "(-52.1)" in printed


def test_the_ablation_refuses_slots_that_are_too_few(shared_traces, tmp_path):
    trace = shared_traces / "deepseek-v2-lite.npz"
    overrides = ["experiment=grace_ablation", f"trace.path={trace}", f"output={tmp_path}", "slots_per_rank=16"]
    with pytest.raises(ValueError, match="the budget is 16"):
        run(read_configuration("compare", overrides))
    assert not list(tmp_path.iterdir())

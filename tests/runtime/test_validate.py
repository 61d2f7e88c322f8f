"""Calibrate, then validate, on real ranks: rows say what was predicted and measured for every plan and scheme."""

import json

import pytest

torch = pytest.importorskip("torch")

from grace_opt.topology_file import read_topology
from grace_opt.traffic import SCHEMES
from runtime.sample.checkpoint import save_model
from runtime.sample.model import SampleConfig, SampleMoE
from runtime.sample.text import Tokenizer

pytestmark = pytest.mark.xdist_group("hosts")
FLOAT32 = ["model.bytes_per_value=4", "model.bytes_per_weight=4"]


def run(ranks, *arguments):
    assert ranks.start(["-m", "runtime", *arguments, *FLOAT32], 2).ended(within_s=120) == [(0, [])] * 2


@pytest.fixture
def topology(ranks, tmp_path):
    """What calibration found of two ranks of this host."""
    run(ranks, "calibrate", f"output={tmp_path}", "message_bytes=65536", "repetitions=1")
    ranks.processes.clear()
    return tmp_path / "topology.yaml"


def test_every_plan_is_predicted_and_measured_under_every_scheme(ranks, tmp_path, topology):
    assert read_topology(topology).ranks_per_node == (2,)
    options = ["only=[linear,grace]", f"schemes=[{','.join(SCHEMES)}]", "tokens_per_rank=[32,16]", "layers=2"]
    run(ranks, "validate", f"topology.path={topology}", f"output={tmp_path}/out", "measured.repetitions=2", *options)
    result = json.loads((tmp_path / "out" / "result.json").read_text())
    rows = result["rows"]
    assert result["status"] == "complete" and len(result["problem"]["summary"]) == 2
    done = {(row["planner"], row["scheme"], row["tokens_per_rank_asked"]) for row in rows}
    assert done == {(p, s, size) for p in ("linear", "grace") for s in SCHEMES for size in (32, 16)}
    for row in rows:
        assert (row["cluster"], row["repetitions"], row["split"]) == ("calibrated", 2, "held_out")
        for kind in ("predicted", "measured"):
            assert len(row[f"{kind}_layers_s"]) == 2
            phases = [row[f"{kind}_{phase}_s"] for phase in ("dispatch", "experts", "combine")]
            assert row[f"{kind}_s"] == pytest.approx(sum(phases)) and row[f"{kind}_s"] > 0
        check_timelines(tmp_path / "out" / "timelines", row, result["problem"]["layers"])
    assert len(list((tmp_path / "out" / "timelines").glob("*.png"))) == 4  # of the first few
    assert (tmp_path / "out" / "figures" / "agreement.png").stat().st_size > 0
    assert sorted(path.name for path in (tmp_path / "out" / "plans").iterdir()) == ["grace.json", "linear.json"]


def check_timelines(folder, row, ids):
    """Predicted and measured steps, as long as the row says."""
    name = f"{row['planner']}_{row['scheme']}_{row['tokens_per_rank_asked']}.json"
    written = json.loads((folder / name).read_text())
    events, batches = written["traceEvents"], written["otherData"]["batches"]
    processes = {event["args"]["name"]: event["pid"] for event in events if event["name"] == "process_name"}
    assert list(processes) == ["predicted", "measured"]
    for kind, pid in processes.items():
        assert len(written["otherData"]["batches_shown"][kind]) == batches[kind]
        spans = [event for event in events if event["ph"] == "X" and event["pid"] == pid]
        layers = [(event["args"]["layer"], event["dur"]) for event in spans if event["tid"] == 2]
        means = [sum(us for layer, us in layers if layer == wanted) / batches[kind] * 1e-6 for wanted in ids]
        assert means == pytest.approx(row[f"{kind}_layers_s"], abs=5e-9)
        whole = sum(us for _, us in layers)
        for rank in (0, 1):
            assert sum(event["dur"] for event in spans if event["tid"] == rank) == pytest.approx(whole, abs=0.1)


@pytest.mark.parametrize("phase", ["prefill", "decode"])
def test_the_sample_model_is_measured_on_the_tokens_it_routes(ranks, tmp_path, topology, phase):
    config = SampleConfig(Tokenizer(()).num_tokens, hidden=32, ffn=16, num_heads=2)
    save_model(tmp_path / "model.safetensors", SampleMoE(config), Tokenizer(()))
    measured = ["measured=sample", f"measured.checkpoint={tmp_path}/model.safetensors", f"measured.phase={phase}"]
    size = ["measured.length=8", "measured.steps=2", "measured.repetitions=1", "tokens_per_rank=[16]", "layers=null"]
    options = ["only=[linear]", "schemes=[hierarchical]", *measured, *size]
    run(ranks, "validate", f"topology.path={topology}", f"output={tmp_path}/out", *options)
    (row,) = json.loads((tmp_path / "out" / "result.json").read_text())["rows"]
    sequences = 2 if phase == "prefill" else 16
    assert row["workload"] == f"sample model, {phase} of {sequences} x 8 tokens a rank"
    assert row["split"] == "new_text" and row["tokens_per_rank"] == 16
    assert len(row["predicted_layers_s"]) == len(row["measured_layers_s"]) == 8
    for total in ("attention", "dispatch", "experts", "combine", "idle"):
        assert row[f"{total}_total_s"] >= 0
    assert row["end_to_end_s"] > 0
    assert (tmp_path / "out" / "timelines" / "linear_hierarchical_16.json").is_file()

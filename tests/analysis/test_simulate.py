"""`grace-opt simulate` explains its result and writes what shows it."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from analysis.simulate import simulate
from analysis.whole_model import Passes
from grace_opt.backbone import Backbone
from grace_opt.homes import Balanced
from grace_opt.plan import Plan
from grace_opt.plan_file import write_plan
from grace_opt.split import Alternate
from grace_opt.topology import Topology
from grace_opt.trace import Trace
from simulator.cluster import SimulatedCluster
from simulator.transport import Transport

PASSES = Passes(prefill_tokens=4, decode_tokens=2, context=2)
BACKBONE = Backbone(2, 2, 5, 10)


@pytest.fixture
def asked(
    tmp_path: Path, model, make_topology: Callable[..., Topology], make_trace: Callable[..., Trace],
    make_plan: Callable[..., Plan],
) -> dict:  # fmt: skip
    """Twelve sequences of eight tokens, in batches of four on two ranks and of two on the others."""
    ids = np.argsort(np.random.default_rng(0).random((1, 96, 4)), axis=2)[:, :, :2].astype(np.uint8)
    write_plan(tmp_path / "plan.json", make_plan([[[0], [1], [2], [3]]]))
    trace = make_trace(ids, lengths=[8] * 12)
    parts = {"model": model, "topology": make_topology(), "trace": trace, "split": Alternate(), "homes": Balanced()}
    parts["model"] = replace(model, backbone=BACKBONE)
    return {**parts, "cost": SimulatedCluster("hierarchical", 4), "plan": str(tmp_path / "plan.json"), "passes": PASSES}


def test_a_result_says_what_bounds_it(asked: dict, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = simulate(**asked, output=str(tmp_path / "out"))
    result = json.loads((tmp_path / "out" / "result.json").read_text())
    bounds = result["problem"]["bounds"]
    held_out = next(row for row in rows if row["split"] == "held_out")
    assert list(dict.fromkeys(bound["step"] for bound in bounds)) == [
        "dispatch across", "dispatch inside", "experts", "combine inside", "combine across",
    ]  # fmt: skip
    for bound in bounds:
        assert bound["layer_now_s"] == pytest.approx(held_out["layer_time_s"])
        assert bound["without_s"] <= bound["now_s"]
        assert bound["layer_without_s"] <= bound["layer_now_s"]
    printed = capsys.readouterr().out
    assert "what bounds each step of a layer (held out, batches: 4)" in printed
    assert "all links like" in printed
    assert "ASSUMED" not in printed


def test_the_timeline_and_the_pictures_are_written(asked: dict, tmp_path: Path) -> None:
    simulate(**asked, output=str(tmp_path / "out"), batches=2)
    written = {str(path.relative_to(tmp_path / "out")) for path in (tmp_path / "out").rglob("*.*")}
    assert written == {
        "result.json",
        "timelines/plan_hierarchical.json",
        "timelines/plan_hierarchical.png",
        "figures/traffic_matrix.png",
    }
    trace = json.loads((tmp_path / "out" / "timelines" / "plan_hierarchical.json").read_text())
    assert trace["otherData"]["batches_shown"] == {"predicted": [0, 1]}


def test_only_the_result_is_written_where_nothing_else_is_wanted(asked: dict, tmp_path: Path) -> None:
    simulate(**asked, output=str(tmp_path / "out"), explain=False, figures=False)
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["result.json"]
    assert "bounds" not in json.loads((tmp_path / "out" / "result.json").read_text())["problem"]


def test_constants_that_no_measurement_supports_are_named(
    asked: dict, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    topology = replace(asked["topology"], assumed="latency of the cards")
    cost = replace(asked["cost"], transport=Transport("toy", assumed="its start-up"))
    simulate(**{**asked, "topology": topology, "cost": cost}, output=str(tmp_path / "out"), figures=False)
    about = json.loads((tmp_path / "out" / "result.json").read_text())["problem"]
    assert about["assumed"] == "latency of the cards; its start-up"
    assert "ASSUMED: latency of the cards; its start-up\n" in capsys.readouterr().out


def test_no_batches_cannot_be_shown(asked: dict, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="batches must be at least 1, got 0"):
        simulate(**asked, output=str(tmp_path / "out"), batches=0)
    assert not (tmp_path / "out").exists()


def test_a_result_has_the_whole_models_passes(asked: dict, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = simulate(**asked, output=str(tmp_path / "out"), explain=False, figures=False)
    prefill, decode = json.loads((tmp_path / "out" / "result.json").read_text())["problem"]["end_to_end"]
    assert (prefill["pass"], prefill["tokens_per_rank"], prefill["tokens_per_sequence"]) == ("prefill", 3, 2)
    assert (decode["pass"], decode["sequences_of_fullest_rank"], decode["context"]) == ("decode", 2, 2)
    held_out = next(row for row in rows if row["split"] == "held_out")
    assert held_out["time_to_first_token_s"] == prefill["step_s"] > held_out["layer_time_s"]
    assert held_out["time_per_token_s"] == decode["step_s"]
    assert decode["tokens_per_s"] == pytest.approx(4 * 1.5 / decode["step_s"])
    assert "the whole model, held out: attention and dense parts from the roofline" in capsys.readouterr().out


def test_two_batches_are_timed_in_halves(asked: dict, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    output = {"output": str(tmp_path / "out"), "explain": False, "figures": False}
    halves = simulate(**{**asked, "cost": replace(asked["cost"], tokens_per_rank=2)}, **output)
    both = simulate(**asked, **output, overlap="two_batch")
    for half, two in zip(halves, both, strict=True):
        assert (two["overlap"], half["overlap"], two["tokens_per_rank"]) == ("two_batch", "none", 3)
        assert half["layer_time_s"] < two["layer_time_s"] < 2 * half["layer_time_s"]
        assert two["dispatch_s"] == pytest.approx(2 * half["dispatch_s"])
    assert "two half batches take turns" in capsys.readouterr().out


def test_a_model_without_backbone_is_priced_without_its_whole(asked: dict, tmp_path: Path) -> None:
    asked["model"] = replace(asked["model"], backbone=None)
    with pytest.warns(UserWarning, match="model toy has no backbone: end to end is left out"):
        rows = simulate(**asked, output=str(tmp_path / "out"), explain=False, figures=False)
    assert [row["time_per_token_s"] for row in rows] == [None, None]


def test_an_unknown_overlap_is_refused_before_anything_is_written(asked: dict, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="overlap must be one of none, two_batch, got 'full'"):
        simulate(**asked, output=str(tmp_path / "out"), overlap="full")
    assert not (tmp_path / "out").exists()

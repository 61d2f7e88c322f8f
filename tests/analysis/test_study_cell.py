"""One cell: its name, its row, its file."""

import json
import shutil
import tracemalloc

import pytest

import analysis.study_cell as study_cell
from analysis.study_axes import read_sweep
from analysis.study_cell import Cell, run_cell
from grace_opt.configuration import CONF_DIR, read_configuration, run

QUICK = ["planner=eplb", "slots_per_rank=18"]


def configuration(*overrides):
    return read_configuration("study", [*QUICK, *overrides])


def test_a_row_has_the_figures_of_both_parts_as_compare_reports_them(tmp_path):
    row = run_cell(configuration(f"output={tmp_path}"))["row"]
    rows = run(
        read_configuration("compare", ["only=[eplb]", *QUICK[1:], "figures=false", f"output={tmp_path}/compare"])
    )
    for part, prefix in (("fit", "fit_"), ("held_out", "")):
        (expected,) = [r for r in rows if r["split"] == part]
        for name in ("layer_time_s", "dispatch_s", "experts_s", "load_max_over_mean", "cross_node_rows_per_token"):
            assert row[prefix + name] == expected[name]
    assert (row["status"], row["error"], row["planner"], row["redundant_experts"]) == ("ok", None, "eplb", 8)
    assert row["memory_bytes_per_rank"] == 1.7e6 + 18 * 8 * 3 * 128 * 64 * 2


def test_a_plan_with_a_rule_for_homes_is_priced_as_compare_prices_it(tmp_path):
    short = ["homes=chosen", "trials=20", "num_tokens=400", "num_maps=1", "num_batches=2"]
    row = run_cell(
        read_configuration("study", ["planner=joint", *(f"planner.{one}" for one in short), *QUICK[1:],
                                     f"output={tmp_path}"])
    )["row"]  # fmt: skip
    rows = run(
        read_configuration("compare", ["only=[joint]", *(f"planners.joint.{one}" for one in short), *QUICK[1:],
                                       "figures=false", f"output={tmp_path}/compare"])
    )  # fmt: skip
    (held_out,) = [one for one in rows if one["split"] == "held_out"]
    assert held_out["homes"] == "chosen"
    for name in ("layer_time_s", "load_max_over_mean", "cross_node_rows_per_token"):
        assert row[name] == pytest.approx(held_out[name], rel=1e-12)


def test_slots_dealt_to_layers_are_of_the_memory_of_the_mean_layer(tmp_path):
    short = ["planner.trials=40", "planner.num_tokens=400", "planner.num_maps=1", "planner.num_batches=2"]
    row = run_cell(configuration("planner=joint", *short, "deal_slots=true", f"output={tmp_path}"))["row"]
    assert (row["error"], row["slots_per_rank"], row["slots_used"]) == (None, 18, 4 * 18)
    assert row["slots_per_rank_used"] > 18
    assert row["memory_bytes_per_rank"] == 1.7e6 + 18 * 8 * 3 * 128 * 64 * 2


def test_a_planner_that_deals_no_slots_gives_all_layers_the_same(tmp_path):
    alike, dealt = (
        run_cell(configuration(f"deal_slots={deal}", f"output={tmp_path}"))["row"] for deal in ("false", "true")
    )
    assert {**dealt, "seconds": 0} == {**alike, "seconds": 0}
    assert len(list((tmp_path / "cells").iterdir())) == 2 and len(list((tmp_path / "cache/plans").iterdir())) == 1


def test_a_cell_is_the_same_without_caches(tmp_path):
    kept = run_cell(configuration(f"output={tmp_path}"))["row"]
    alone = run(configuration())
    assert {k: v for k, v in alone.items() if k != "plan_s"} == {k: kept[k] for k in alone if k != "plan_s"}


def test_a_cell_says_what_the_whole_model_takes_with_and_without_overlap(tmp_path):
    one, two = (run_cell(configuration(f"output={tmp_path}", f"overlap={o}"))["row"] for o in ("none", "two_batch"))
    assert (one["overlap"], two["overlap"]) == ("none", "two_batch")
    for row in (one, two):
        assert row["time_to_first_token_s"] > row["num_layers"] * row["layer_time_s"] * 0.5
        assert row["decode_tokens_per_s"] > 0
    assert two["tokens_per_rank"] == one["tokens_per_rank"]
    assert two["dispatch_s"] > one["dispatch_s"]


def test_a_cell_that_is_done_is_not_run_again(tmp_path, monkeypatch):
    first = run_cell(configuration(f"output={tmp_path}"))["row"]
    monkeypatch.setattr(Cell, "price", lambda *_: pytest.fail("ran again"))
    assert run_cell(configuration(f"output={tmp_path}", "figures=false"))["row"] == first


def test_a_cell_is_named_by_what_decides_its_row(tmp_path, monkeypatch):
    copied = tmp_path / "moved.safetensors"
    shutil.copy(CONF_DIR / "samples" / "sample.safetensors", copied)
    name = Cell.from_config(configuration()).digest
    same = ["output=elsewhere", "figures=false", f"trace.path={copied}", "seed=0"]
    assert {Cell.from_config(configuration(text)).digest for text in same} == {name}
    others = ["scheme=flat", "slots_per_rank=19", "workload=decode", "topology.inter_latency_s=31e-6", "homes=random"]
    others += ["scaled=topology.inter_latency_s*2", "planner.routing=tar", "overlap=two_batch", "context=512"]
    assert name not in {Cell.from_config(configuration(text)).digest for text in others}
    data = bytearray(copied.read_bytes())
    data[-1] ^= 1
    copied.write_bytes(data)
    assert Cell.from_config(configuration(f"trace.path={copied}")).digest != name
    monkeypatch.setattr(study_cell, "__version__", "99")
    assert Cell.from_config(configuration()).digest != name


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        (["slots_per_rank=3"], "fewer than the 64 experts"),
        (["topology.gpu.memory_bytes=3e6"], "needs"),
        (["topology.num_nodes=0"], "at least one node"),
        (["trace.path=nowhere.npz"], "nowhere.npz does not exist"),
    ],
)
def test_a_cell_that_fails_is_a_row_with_its_error(overrides, expected, tmp_path):
    record = run_cell(configuration(*overrides, f"output={tmp_path}"))
    assert record["row"]["status"] == "error"
    assert expected in record["row"]["error"]
    assert "\n" not in record["row"]["error"]


def test_a_failure_that_may_pass_is_tried_again_and_one_that_stays_is_not(tmp_path, monkeypatch):
    config = configuration(f"output={tmp_path}")
    cell = Cell.from_config(config)

    def fails(error):
        def price(*_):
            raise error

        monkeypatch.setattr(Cell, "price", price)

    fails(OSError("disk full"))
    assert run_cell(config)["row"]["error"] == "OSError: disk full"
    assert cell.row(tmp_path) is None
    fails(ValueError("too few slots"))
    assert run_cell(config)["row"]["error"] == "too few slots"
    assert cell.row(tmp_path)["error"] == "too few slots"


@pytest.mark.parametrize(
    "damage", [lambda t: t[: len(t) // 2], lambda t: "", lambda t: "[]", lambda t: t.replace("digest", "d")]
)
def test_a_damaged_cell_counts_as_not_done(damage, tmp_path):
    config = configuration(f"output={tmp_path}")
    run_cell(config)
    cell = Cell.from_config(config)
    text = cell.path(tmp_path).read_text()
    cell.path(tmp_path).write_text(damage(text))
    assert cell.row(tmp_path) is None
    run_cell(config)
    assert json.loads(cell.path(tmp_path).read_text())["row"]["layer_time_s"] == json.loads(text)["row"]["layer_time_s"]


def test_what_a_planner_warns_of_is_in_the_row(tmp_path):
    few = ["planner=eplb_hierarchical", "topology.num_nodes=3", "slots_per_rank=12"]
    row = run_cell(configuration(*few, f"output={tmp_path}"))["row"]
    assert "the flat policy runs" in row["warnings"]


def test_memory_stays_flat_over_cells(tmp_path):
    """90 cells of 3 batch sizes and 5 slots and 6 bandwidths in one process."""
    sweep = read_sweep(
        "study",
        ["planner=eplb", "workload.tokens_per_rank=512,1024,2048", "slots_per_rank=16,17,18,19,20",
         "topology.inter_bytes_per_s=1e9,2e9,3e9,4e9,5e9,6e9"],
    )  # fmt: skip
    held = []
    tracemalloc.start()
    try:
        for number, cell in enumerate(sweep.cells):
            cell.price(tmp_path)
            if number in (29, 89):
                held.append(tracemalloc.get_traced_memory()[0])
    finally:
        tracemalloc.stop()
    assert held[1] - held[0] < 1e6


def test_an_unknown_overlap_is_refused_before_anything_runs():
    with pytest.raises(ValueError, match="overlap must be one of none, two_batch, got 'full'"):
        read_sweep("study", [*QUICK, "overlap=none,full"])

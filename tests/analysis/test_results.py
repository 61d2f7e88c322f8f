"""Rows say what was counted and priced, and speedups compare like with like."""

import dataclasses
import json

import numpy as np
import pytest

from analysis.results import add_speedups, price, require_writable, write_result
from grace_opt.planners.linear import Linear
from grace_opt.planners.round_robin import RoundRobin
from simulator.cluster import SimulatedCluster


def test_a_row_agrees_with_counts_made_by_hand(make_problem, make_trace):
    """Two tokens at home on rank 0 of 2 x 2 ranks, expert e on rank e; one chose 1 and 2, the other 2 and 3."""
    problem = make_problem(make_trace([[[1, 2], [2, 3]]], homes=[0, 0]), slots=1)
    row = price("linear", "Linear", "fit", problem, Linear()(problem), SimulatedCluster("hierarchical"))
    assert row["cross_node_rows_per_token"] == 1.0  # each crosses once, 0 -> 2
    assert row["intra_node_rows_per_token"] == 1.0  # 0 -> 1 for the first, 2 -> 3 for the second
    assert row["load_max_over_mean"] == 2.0  # loads 0, 1, 2, 1
    assert (row["slots"], row["slots_used"]) == (4, 4.0)
    total = row["dispatch_s"] + row["experts_s"] + row["combine_s"]
    assert row["layer_time_s"] == pytest.approx(total)
    pairs = price("linear", "Linear", "fit", problem, Linear()(problem), SimulatedCluster("pairs"))
    assert (pairs["cross_node_rows_per_token"], pairs["intra_node_rows_per_token"]) == (1.5, 0.5)


def test_a_rival_is_another_method_on_the_same_split():
    def row(planner, method, split, seconds):
        return {"planner": planner, "method": method, "split": split, "scheme": "flat", "layer_time_s": seconds}

    rows = add_speedups(
        [
            row("linear", "Linear", "fit", 4.0),
            row("eplb", "Eplb", "fit", 2.0),
            row("eplb_hierarchical", "Eplb", "fit", 1.0),
            row("linear", "Linear", "held_out", 6.0),
            {"planner": "grace", "error": "wants more"},
        ]
    )
    assert [r.get("speedup_over_linear") for r in rows] == [1.0, 2.0, 4.0, 1.0, None]
    assert [r.get("speedup_over_best_rival") for r in rows] == [0.25, 2.0, 4.0, None, None]


def test_results_are_plain_json(tmp_path):
    write_result(tmp_path, "compare", {}, [{"a": np.float64(1.5), "b": np.int64(2), "c": None}])
    assert json.loads((tmp_path / "result.json").read_text())["rows"] == [{"a": 1.5, "b": 2, "c": None}]
    with pytest.raises(ValueError, match="nan"):
        write_result(tmp_path, "compare", {}, [{"a": float("nan")}])
    assert json.loads((tmp_path / "result.json").read_text())["rows"][0]["a"] == 1.5


def test_a_folder_under_a_file_is_refused_and_a_new_one_is_not_made_yet(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(ValueError, match="no folder that can be written to"):
        require_writable(str(tmp_path / "file" / "inside"))
    assert not require_writable(str(tmp_path / "new")).exists()


def test_the_worst_layer_is_reported_beside_the_mean(make_problem, make_trace, model):
    trace = make_trace([[[0, 1], [0, 1]], [[0, 2], [1, 3]]], homes=[0, 1])
    problem = make_problem(trace, slots=1, model=dataclasses.replace(model, num_layers=2))
    row = price("rr", "RoundRobin", "fit", problem, RoundRobin()(problem), SimulatedCluster("flat"))
    assert row["layer_time_worst_layer_s"] > row["layer_time_s"]

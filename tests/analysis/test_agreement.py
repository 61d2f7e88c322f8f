"""Errors and rank correlation of predictions, by hand."""

import pytest

from analysis.agreement import ordered_right, speedups, summarize, tau


def row(planner, scheme, predicted, measured, cluster="two hosts"):
    where = {"cluster": cluster, "workload": "replayed", "tokens_per_rank_asked": 64}
    return {**where, "planner": planner, "scheme": scheme, "predicted_s": predicted, "measured_s": measured}


ROWS = [
    row("linear", "pairs", 11.0, 10.0),
    row("occult", "hierarchical", 4.0, 5.0),
    row("grace", "hierarchical", 4.0, 4.0),
]


def test_errors_are_relative_to_what_was_measured():
    (cell,) = summarize(ROWS)
    assert cell["num_plans"] == 3
    assert cell["mean_pct"] == pytest.approx((10 + 20 + 0) / 3)
    assert cell["bias_pct"] == pytest.approx((10 - 20 + 0) / 3)
    assert (cell["worst_pct"], cell["worst_plan"]) == (pytest.approx(20), "occult + hierarchical")


def test_cells_are_not_mixed():
    cells = summarize([*ROWS, row("linear", "pairs", 1.0, 1.0, cluster="four hosts")])
    assert [(cell["cluster"], cell["num_plans"]) for cell in cells] == [("four hosts", 1), ("two hosts", 3)]
    assert cells[0]["kendall_tau"] is None


def test_tau_is_one_when_plans_are_ranked_alike_and_minus_one_when_reversed():
    assert tau([row("a", "", 1, 10), row("b", "", 2, 20), row("c", "", 3, 30)]) == pytest.approx(1)
    assert tau([row("a", "", 3, 10), row("b", "", 2, 20), row("c", "", 1, 30)]) == pytest.approx(-1)


def test_plans_that_are_predicted_alike_have_no_order():
    assert tau([row("a", "", 1, 10), row("b", "", 1, 20)]) is None
    assert tau([row("a", "", 1, 10), row("b", "", 2, 10)]) is None


def test_pairs_too_close_to_be_told_apart_have_no_order():
    near, far = row("a", "", 2.0, 10.0), row("b", "", 1.0, 10.2)
    assert ordered_right([near, far]) is None  # 2 % apart
    assert ordered_right([near, far, row("c", "", 3.0, 20.0)]) == 1
    assert ordered_right([near, far, row("c", "", 1.5, 20.0)]) == 0.5


def test_speedups_of_grace_stand_beside_each_other():
    assert speedups(ROWS) == {
        "speedup_over_linear_pairs_predicted": pytest.approx(11 / 4),
        "speedup_over_linear_pairs_measured": pytest.approx(10 / 4),
        "speedup_over_occult_predicted": pytest.approx(1),
        "speedup_over_occult_measured": pytest.approx(5 / 4),
    }
    assert speedups(ROWS[:2]) == {}


def test_a_plan_that_failed_is_no_part_of_the_summary():
    assert summarize([{"planner": "grace", "error": "too few slots"}]) == []

"""Ratios of the summary by hand."""

import math

import pytest

from analysis import bench_planners_table
from analysis.bench_planners_table import RATIOS, cell_ratios, print_summary


def row(planner, layer_time_s, budget="E", phase="prefill", **fields):
    cell = {"model": "sample", "topology": "a100_25gbe_2x2", "phase": phase, "budget": budget}
    per_token = {"layer_s_per_token": layer_time_s / 9, "even_homes_s_per_token": layer_time_s / 10}
    return {**cell, "planner": planner, "layer_time_s": layer_time_s, **per_token, **fields}


CELL = [
    row("linear", 6.0),
    row("eplb", 3.0),
    row("grace_trimmed", 5.0),
    row("grace", 1.0),  # more memory: no rival
    row("joint", 2.0),
    row("joint_with_homes", 9.0, layer_s_per_token=0.1),
    {**row("lazarus", 0.5), "error": "too few slots"},
]


def ratios(cell):
    found = cell_ratios(cell)
    assert tuple(found) == RATIOS
    return tuple(found.values())


def test_the_best_rival_and_grace_over_ours():
    # eplb 3 s is the best at the budget; 3 / 2, 5 / 2 and, per token, 0.3 / 0.1; slots of E cannot be dealt otherwise
    assert ratios(CELL) == pytest.approx((1.5, 2.5, 1.5, 3.0, 3.0))


def test_dealt_slots_are_rows_of_their_own_where_there_are_more_than_every_layer_needs():
    more = [row("joint_dealt", 1.5), row("joint_dealt_with_homes", 9.0, layer_s_per_token=0.06)]
    assert ratios([{**each, "budget": "1.25 E"} for each in [*CELL, *more]]) == pytest.approx((1.5, 2.5, 2, 3.0, 5.0))


def test_grace_at_the_budget_is_a_rival_too():
    assert ratios([row("linear", 6.0), row("grace_trimmed", 2.5), row("joint", 2.0)])[:2] == (1.25, 1.25)


def test_what_was_not_measured_is_no_number():
    best, grace, dealt, homes, both = ratios([row("linear", 6.0, "1.25 E"), row("joint", 2.0, "1.25 E")])
    assert best == 3 and all(math.isnan(ratio) for ratio in (grace, dealt, homes, both))


def test_groups_take_geometric_means_and_worst_cells(monkeypatch):
    lines = {}

    class Console:
        def print(self, table):
            columns = [list(column.cells) for column in table.columns]
            lines.update({line[0]: list(line[1:]) for line in zip(*columns, strict=True)})

    monkeypatch.setattr(bench_planners_table, "console", Console)
    other = [
        row("eplb", 8.0),
        row("grace_trimmed", 9.0),
        row("joint", 3.0),
        row("joint_with_homes", 4.0, layer_s_per_token=0.4),
    ]
    other = [{**each, "budget": "1.25 E", "phase": "decode"} for each in other]
    print_summary([line for pair in zip(CELL, [*other, None, None, None], strict=True) for line in pair if line])
    # cells: 1.5, 2.5, 3.0 and 8 / 3, 9 / 3, 8 / 4, without rows of dealt slots; means are roots of products
    homes = {"2": ["2.449", "2.000"], "E": ["3.000", "3.000"], "1.25 E": ["2.000", "2.000"]}
    first, second = ["1.500", "1.500", "2.500", "2.500"], ["2.667", "2.667", "3.000", "3.000"]
    assert lines["all"] == ["2", "2.000", "1.500", "2.739", "2.500", *first[:2], *homes["2"], *homes["E"]]
    assert lines["slots = E"] == lines["prefill"] == ["1", *first, *first[:2], *homes["E"], *homes["E"]]
    assert lines["with replicas"] == lines["decode"] == ["1", *second, "", "", *homes["1.25 E"], "", ""]
    assert lines["sample"] == lines["a100_25gbe_2x2"] == lines["all"]
    assert set(lines) == {"all", "slots = E", "with replicas", "prefill", "decode", "a100_25gbe_2x2", "sample"}

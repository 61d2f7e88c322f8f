"""Tables fit the terminal they are printed on."""

import pytest
from rich.console import Console

from analysis import report

PROBLEM = {
    "model": "toy", "topology": "toy", "slots_per_rank": 2, "scheme": "flat", "synthetic": False, "trace": "made up",
    "trace_names_model": True, "tokens": {"fit": 10, "held_out": 10}, "tokens_per_rank": None,
}  # fmt: skip
FIELDS = [field for _, field, *_ in report._COLUMNS]
ROWS = [
    {"planner": planner, "split": split, "tokens_per_rank": 5.0, **dict.fromkeys(FIELDS, 1.0)}
    for split in ("fit", "held_out")
    for planner in ("linear", "eplb_hierarchical")
]


@pytest.mark.parametrize("width", [60, 80, 100, 140])
def test_a_narrow_terminal_loses_columns_not_digits(width, monkeypatch, capsys):
    monkeypatch.setattr(report, "console", lambda: Console(width=width))
    report.print_rows(PROBLEM, [*ROWS, {"planner": "grace", "error": "wants more"}])
    printed = capsys.readouterr().out
    assert "…" not in printed
    assert max(len(line) for line in printed.splitlines()) <= width
    assert "eplb_hierarchical" in printed
    assert "grace: no plan: wants more" in printed
    if width == 140:
        assert all(title.split("\n")[0] in printed for title, *_ in report._COLUMNS)

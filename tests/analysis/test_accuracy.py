"""The accuracy command on tables a user gives, and on whatever is installed."""

import csv
import json
from pathlib import Path

import numpy as np
import pytest

from analysis import accuracy
from grace_opt.configuration import read_configuration, run
from simulator.calibration.comparison import Comparison

FIELDS = ("data", "protocol", "num_rows", "median_pct", "mean_pct", "p90_pct", "worst_pct", "bias_pct")


@pytest.fixture
def write_table(make_expert_table):
    """(path, ep_sizes, slower=1) -> file of even and skewed rows, so many times as long as on expert_gpu."""

    def write(path: Path, ep_sizes: tuple[int, ...], slower: float = 1.0) -> Path:
        columns = dict(make_expert_table(("uniform", "power_law_1.2"), ep_sizes).columns)
        columns["latency"] = columns["latency"] * slower
        with path.open("w", newline="") as file:
            writer = csv.writer(file)
            writer.writerow(columns)
            writer.writerows(zip(*columns.values(), strict=True))
        return path

    return write


def command(tmp_path: Path, *overrides: str) -> list[dict]:
    return run(read_configuration("accuracy", [f"output={tmp_path / 'out'}", *overrides]))


def test_errors_are_summed_up_without_their_sign_and_the_bias_with_it():
    row = accuracy.summarize(Comparison("made up", "preset", np.array([1.1, 0.8, 1.0, 1.0]), np.ones(4)))
    assert (row["num_rows"], row["median_pct"], row["mean_pct"], row["worst_pct"], row["bias_pct"]) == (
        4, *(pytest.approx(value) for value in (5, 7.5, 20, -2.5)),
    )  # fmt: skip
    assert row["reached"] is None


def test_a_table_is_tested_under_every_protocol_that_applies(tmp_path: Path, write_table, capsys):
    rows = command(tmp_path, f"table={write_table(tmp_path / 'mine.csv', (8, 32, 128))}")
    assert {row["protocol"] for row in rows} == {"in_sample", "uniform_to_skewed", "leave_one_ep_size_out"}
    assert all(row["mean_pct"] < 3 for row in rows)
    result = json.loads((tmp_path / "out" / "result.json").read_text())
    assert result["status"] == "complete" and all(set(FIELDS) <= set(row) for row in result["rows"])
    assert "uniform_to_skewed" in capsys.readouterr().out


def test_constants_of_another_table_show_a_bias(tmp_path: Path, write_table):
    mine = write_table(tmp_path / "mine.csv", (16,), slower=2.0)
    (row,) = command(tmp_path, f"table={mine}", f"fit={write_table(tmp_path / 'other.csv', (8, 32, 128))}")
    assert row["protocol"] == "other_table" and row["bias_pct"] == pytest.approx(-50, abs=3)


def test_a_preset_is_tested_as_it_is(tmp_path: Path, write_table):
    (row,) = command(tmp_path, f"table={write_table(tmp_path / 'mine.csv', (8,))}", "preset=h100")
    assert row["protocol"] == "preset"


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["preset=h100"], "preset needs a table to test on: add table=FILE"),
        (["table=/nowhere.csv"], "table /nowhere.csv does not exist"),
        (
            ["table={mine}", "fit={mine}"],
            "rows of mine.csv are also in mine.csv: a row is either",
        ),
        (["table={mine}", "fit=in_sample", "preset=h100"], "give either preset=h100"),
        (["table={mine}", "preset=h1000"], "preset=h1000 is none of a100, "),
        (["table={mine}", "preset=nccl_h100"], "mine.csv measures experts, but preset=nccl_h100 is a transport"),
        (["table={odd}"], "odd.csv is no table of a known form; it has the columns a, b"),
    ],
)
def test_what_cannot_be_compared_is_one_line(tmp_path: Path, write_table, overrides: list[str], message: str):
    mine, odd = write_table(tmp_path / "mine.csv", (8, 32, 128)), tmp_path / "odd.csv"
    odd.write_text("a,b\n1,2\n")
    with pytest.raises((ValueError, OSError), match=".") as error:
        command(tmp_path, *(text.format(mine=mine, odd=odd) for text in overrides))
    assert message in str(error.value) and "\n" not in str(error.value)
    assert not (tmp_path / "out").exists()

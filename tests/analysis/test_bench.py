"""The benchmarks run at a small size and say what they measured."""

import numpy as np

from analysis.bench_planners import home_maps, mirrored
from analysis.bench_traffic import measure, write_random_trace
from grace_opt.provenance import append_rows


def test_the_traffic_benchmark_measures_what_its_row_says(tmp_path):
    write_random_trace(tmp_path / "bench.safetensors", num_tokens=5000, num_layers=2)
    row = measure(tmp_path / "bench.safetensors")
    assert (row["tokens"], row["layers"], row["slots"], row["ranks"]) == (5000, 2, 288, 64)
    assert row["fraction_of_limit"] > 0
    assert row["extra_mb"] is None or row["extra_mb"] < 300


def test_rows_are_appended_under_one_header(tmp_path):
    for value in (1, 2):
        append_rows(tmp_path / "rows.csv", [{"a": value}])
    assert (tmp_path / "rows.csv").read_text().split() == ["a", "1", "2"]


def test_every_map_of_homes_is_followed_by_its_mirror(make_problem, make_trace):
    problem = make_problem(make_trace([[[0, 1]] * 8], homes=[0] * 8))
    maps = [p.trace.homes for p in home_maps(problem)]
    assert len(maps) == 32
    for dealt, mirror in zip(maps[::2], maps[1::2], strict=True):
        np.testing.assert_array_equal(mirror, (dealt + 2) % 4)
    again = mirrored(mirrored(problem.trace, problem.topology), problem.topology)
    np.testing.assert_array_equal(again.homes, problem.trace.homes)

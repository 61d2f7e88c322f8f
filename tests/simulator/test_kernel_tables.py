"""Measured kernels between and beyond the sizes that were measured."""

import math
from typing import Any

import numpy as np
import pytest

from grace_opt.backbone import Backbone
from simulator import kernel_tables
from simulator.calibration.tables import Table
from simulator.kernel_tables import Grid, KernelTables

GRID = Grid(
    "toy",
    (np.array([1.0, 4.0]), np.array([1.0, 2.0, 8.0])),
    np.log([[1.0, 2.0, 8.0], [4.0, 8.0, np.nan]]),  # seconds are the product of the sizes
)
BACKBONE = Backbone(num_heads=2, num_kv_heads=2, head_size=2, vocab_size=10)


@pytest.mark.parametrize(("sizes", "seconds"), [((1, 2), 2), ((4, 2), 8), ((2, 1), 2), ((1, 4), 4), ((2, 2), 4)])
def test_between_sizes_times_follow_straight_lines_over_logarithms(sizes, seconds):
    assert GRID.seconds(sizes) == pytest.approx(seconds)


def test_below_the_grid_work_takes_what_the_smallest_takes():
    assert GRID.seconds((0.5, 0.1)) == pytest.approx(1)


@pytest.mark.parametrize("sizes", [(5, 1), (1, 9), (4, 8), (2, 4)])
def test_nothing_is_extrapolated_beyond_the_grid_or_into_its_holes(sizes):
    assert math.isnan(GRID.seconds(sizes))


@pytest.fixture
def tables(monkeypatch: pytest.MonkeyPatch):
    """Products of up to 4 x 4 x 4 in 1 ms whatever their size; prompts of 8 tokens: 1 sequence in 1 ms, 2 in 1.5 ms."""
    m, n, k = (axis.ravel() for axis in np.meshgrid([1.0, 4.0], [1.0, 4.0], [1.0, 4.0]))
    products = {"m": m, "n": n, "k": k, "latency": np.ones(8), "gemm_dtype": np.array(["bfloat16"] * 8)}
    scores = {
        "batch_size": [1.0, 2.0], "isl": [8.0, 8.0], "latency": [1.0, 1.5], "num_heads": [2.0, 2.0],
        "num_key_value_heads": [2.0, 2.0], "head_dim": [2.0, 2.0], "window_size": [0.0, 0.0],
        "kv_cache_dtype": ["bfloat16"] * 2, "attn_dtype": ["bfloat16"] * 2,
    }  # fmt: skip

    def packaged(path: str) -> Table:
        columns: dict[str, Any] = products if "gemm" in path else scores
        return Table(path, {name: np.array(values) for name, values in columns.items()})

    kernel_tables._grid.cache_clear()
    monkeypatch.setattr(kernel_tables, "packaged", packaged)
    yield KernelTables("A100-SXM-80GB", "bf16")
    kernel_tables._grid.cache_clear()


def test_a_product_larger_than_the_grid_is_done_in_equal_parts(tables: KernelTables):
    assert tables.product_s(4, 4, 4) == pytest.approx(1e-3)
    assert tables.product_s(8, 4, 5) == pytest.approx(4e-3)  # two halves of the tokens, two of the outputs


def test_more_sequences_than_measured_are_attended_to_in_equal_parts(tables: KernelTables):
    assert tables.scores_s(BACKBONE, 2, 8, 0) == pytest.approx(1.5e-3)
    assert tables.scores_s(BACKBONE, 8, 8, 0) == pytest.approx(6e-3)


def test_a_prompt_longer_than_measured_is_refused(tables: KernelTables):
    with pytest.raises(ValueError, match="measured nothing as large as 1 sequences of 9 tokens: take tables=false"):
        tables.scores_s(BACKBONE, 1, 9, 0)


def test_heads_that_were_not_measured_are_refused(tables: KernelTables):
    with pytest.raises(OSError, match="has no rows with num_heads=3"):
        tables.scores_s(Backbone(3, 3, 2, 10), 1, 8, 0)

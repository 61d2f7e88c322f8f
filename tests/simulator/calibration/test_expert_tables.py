"""What rows of tables say they computed."""

import numpy as np
import pytest

from simulator.calibration.expert_tables import CACHE_BYTES, fused_rows, rows_of
from simulator.calibration.tables import Table, has_package


def with_columns(table: Table, **columns: str) -> Table:
    return Table(table.source, {**table.columns, **{n: np.full(len(table), v) for n, v in columns.items()}})


def test_kernels_have_their_tiles(make_expert_table):
    tiles = [
        rows_of(with_columns(make_expert_table(), op_name=f"moe_{kind}")).tile for kind in ("generation", "context")
    ]
    assert tiles == [64, 128]
    assert rows_of(make_expert_table()).tile == 1


def test_only_prefill_counts_rows_before_they_are_packed(make_expert_table):
    assert not rows_of(make_expert_table()).prefill
    rows = rows_of(with_columns(make_expert_table(), op_name="moe_context"))
    assert rows.prefill and rows.passing[0] == 64


def test_the_collector_of_a_wide_table_is_known_by_device_and_version(make_expert_table):
    table = with_columns(make_expert_table(("power_law_1.2",), (8,)), op_name="moe_generation", version="0.5.10")
    first = {device: rows_of(with_columns(table, device=device)).tokens[0] for device in ("NVIDIA H100", "NVIDIA H200")}
    assert not np.array_equal(first["NVIDIA H100"], first["NVIDIA H200"])
    later = rows_of(with_columns(table, device="NVIDIA H200", version="0.6")).tokens[0]
    assert np.array_equal(first["NVIDIA H100"], later)


def test_skewed_rows_without_a_pair_for_every_expert_are_sparse_and_even_ones_are_not(make_expert_table):
    columns = dict(make_expert_table(("uniform", "power_law_1.2"), (8,)).columns)
    rows = rows_of(Table("made up", {**columns, "num_tokens": np.full(8, 32.0)}))
    assert rows.sparse.tolist() == [False, True] * 4


@pytest.mark.skipif(not has_package(), reason="measured tables: the optional package is not installed")
def test_fused_rows_read_more_weights_than_a_cache_holds():
    rows = fused_rows("l40s", "mxfp4")
    active = np.array([(tokens > 0).sum(axis=1).mean() for tokens in rows.tokens])
    assert (active * rows.expert_bytes > CACHE_BYTES).all()
    assert rows.expert_bytes[0] == 3 * 2880 * 2880 * 4.25 / 8

"""Speeds of experts from measured tables: fits find what made the rows, and never see what they are tested on."""

import dataclasses

import numpy as np
import pytest

from grace_opt.configuration import build, read_configuration
from simulator.calibration import experts
from simulator.calibration.skew import drawn_tokens, even_tokens
from simulator.calibration.tables import Table, has_package


def test_even_loads_give_every_expert_its_share():
    assert even_tokens(64, 256, 8, 32, prefill=False).tolist() == [[2] * 8]


def test_even_loads_before_prefill_fill_rows_of_128():
    counts = even_tokens(1024, 256, 8, 32, prefill=True)  # 256 rows on this rank: two experts
    assert counts.tolist() == [[128, 128, 0, 0, 0, 0, 0, 0]]


def test_drawn_loads_keep_every_pair_and_time_the_busiest_rank():
    drawn = drawn_tokens(512, 256, 8, 32, 1.2)
    assert drawn.shape == (32, 8)
    assert (drawn.sum(axis=1) >= 512 * 8 / 32).all()
    assert (drawn_tokens(512, 256, 8, 1, 1.2).sum(axis=1) == 512 * 8).all()


def test_a_fit_finds_the_speeds_that_made_the_rows(make_expert_table, expert_gpu):
    found = experts.fit(experts.rows_of(make_expert_table()))
    for name in ("flops_per_s", "memory_bytes_per_s", "launch_s", "row_s"):
        assert found[name] == pytest.approx(getattr(expert_gpu, name), rel=0.05)


def test_skewed_rows_do_not_change_a_fit(make_expert_table):
    even = experts.fit(experts.rows_of(make_expert_table()))
    assert experts.fit(experts.rows_of(make_expert_table(("uniform", "power_law_1.2")))) == even


def test_all_protocols_that_apply_are_compared_and_exact_rows_have_no_error(make_expert_table):
    table = make_expert_table(("uniform", "power_law_1.2"))
    found = experts.compare_table(table, None, None, None)
    assert {c.protocol for c in found} == {"in_sample", "uniform_to_skewed", "leave_one_ep_size_out"}
    assert max(np.abs(c.error).max() for c in found) < 0.05


def test_a_preset_is_tested_as_it_is(make_expert_table, expert_gpu):
    twice = dataclasses.replace(expert_gpu, launch_s=40e-6)
    (found,) = experts.compare_table(make_expert_table(), None, twice, None)
    assert found.protocol == "preset"
    assert np.allclose(found.predicted_s - found.measured_s, 20e-6)


def test_rows_are_never_fitted_to_and_tested_on(make_expert_table):
    with pytest.raises(ValueError, match="12 rows of made up are also in made up: a row is either fitted to or tested"):
        experts.compare_table(make_expert_table(), make_expert_table(), None, None)
    (found,) = experts.compare_table(make_expert_table(ep_sizes=(16,)), make_expert_table(), None, None)
    assert found.protocol == "other_table" and np.abs(found.error).max() < 0.05


@pytest.mark.parametrize(
    ("column", "value", "message"),
    [
        ("distribution", "zipf", "distribution must be uniform, balanced or power_law_NUMBER, got"),
        ("moe_dtype", "int3", "moe_dtype must be one of bfloat16"),
    ],
)
def test_rows_that_are_not_understood_are_refused(column: str, value: str, message: str, make_expert_table):
    table = make_expert_table()
    with pytest.raises(ValueError, match=message):
        experts.rows_of(Table("made up", {**table.columns, column: np.full(len(table), value)}))


def test_a_protocol_without_rows_is_refused(make_expert_table):
    with pytest.raises(ValueError, match="fit=uniform_to_skewed does not apply to made up"):
        experts.compare_table(make_expert_table(), None, None, "uniform_to_skewed")


@pytest.mark.skipif(not has_package(), reason="measured tables: the optional package is not installed")
@pytest.mark.parametrize("name", ["h100", "h200", "b200", "gb200"])
def test_presets_hold_what_the_fit_finds(name: str):
    found = experts.fit(experts.rows_of(experts.wide_table(name, "generation")))
    topology = build(read_configuration("plan", ["topology=h100_ib_1x8", f"gpu@topology.gpu={name}"]).topology)
    preset = topology.gpus[0].for_weights("fp8")
    for field in ("flops_per_s", "memory_bytes_per_s", "launch_s", "row_s"):
        assert getattr(preset, field) == pytest.approx(found[field], rel=0.01)

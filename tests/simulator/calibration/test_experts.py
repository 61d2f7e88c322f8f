"""Speeds of experts from measured tables: fits find what made the rows, and never see what they are tested on."""

import dataclasses

import numpy as np
import pytest

from grace_opt.configuration import build, read_configuration
from grace_opt.gpu import SPEEDS
from simulator.calibration import experts
from simulator.calibration.expert_tables import DATA, DataSet
from simulator.calibration.tables import Table, has_package


def test_a_fit_finds_the_speeds_that_made_the_rows(make_expert_table, expert_gpu):
    found = experts.fit(experts.rows_of(make_expert_table()))
    for name in ("flops_per_s", "memory_bytes_per_s", "launch_s", "slot_s", "row_s"):
        assert found[name] == pytest.approx(getattr(expert_gpu, name), rel=0.05)
    assert found["least_s"] == 0  # a nanosecond made no difference


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


measured = pytest.mark.skipif(not has_package(), reason="measured tables: the optional package is not installed")
PACKAGED = [one for one in DATA if one.kind != "products"]


@measured
@pytest.mark.parametrize("one", PACKAGED, ids=lambda one: f"{one.gpu}_{one.weight_type}")
def test_presets_hold_what_the_fit_finds(one: DataSet):
    found = experts.fit(one.read(), one.peak_flops_per_s)
    topology = build(read_configuration("plan", ["topology=h100_ib_1x8", f"gpu@topology.gpu={one.gpu}"]).topology)
    preset = topology.gpus[0].for_weights(one.weight_type)
    assert {name: getattr(preset, name) for name in SPEEDS} == pytest.approx(found, rel=0.01)


@measured
@pytest.mark.parametrize("one", [one for one in DATA if one.kind == "decode"], ids=lambda one: one.gpu)
def test_skewed_rows_of_decode_are_predicted_from_even_ones_on_every_gpu(one: DataSet):
    rows = one.read()
    speeds = experts.gpu_with(experts.fit(rows))
    skewed = rows.where(~rows.uniform)
    error = np.abs(experts.predict(skewed, speeds) / skewed.measured_s - 1)
    assert np.median(error) < 0.05 and error.mean() < 0.08

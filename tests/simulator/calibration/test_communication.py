"""Communication: rows of benchmarks by hand, fits that find the constants that made the data, honest protocols."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hydra.utils import instantiate
from omegaconf import OmegaConf

from grace_opt.configuration import CONF_DIR, groups
from simulator.calibration import communication
from simulator.calibration.communication import compare_table, comparisons, is_communication_table, presets
from simulator.calibration.exchange_tables import exchanges_of, form_of
from simulator.calibration.exchanges import Exchange, Layout, distinct, predicted, uniform_traffic, visits_per_token
from simulator.calibration.kernel_fit import Shape, fit_kernel
from simulator.calibration.kernel_shapes import FILL_BYTES_PER_S, shapes_for
from simulator.calibration.tables import MissingDataError, Table, has_package, packaged
from simulator.calibration.transport_presets import NODES_TABLE, NVLINK_TABLE, mapping, preset_names
from simulator.transport import Kernel, Protocol, Transport

LINE = Kernel(between=[Protocol(12e-6, 45e9, spread_s=18e-6)], inside=[Protocol(9e-6, 240e9)], places_rows=True)
needs_package = pytest.mark.skipif(not has_package(), reason="needs the optional package aiconfigurator-core")


def layout(nodes: int = 2, ranks: int = 8, routing: str = "uniform", experts: int = 256, top_k: int = 8) -> Layout:
    return Layout(nodes, ranks, 450e9, 50e9, routing, experts, top_k)


def low_latency_table(kernel: Kernel = LINE, nodes: tuple[int, ...] = (1, 2, 4, 8), source: str = "made.csv") -> Table:
    """A table of the published form whose times a kernel makes."""
    tokens = np.array([1, 8, 32, 128, 512], float)
    rows = []
    for count in nodes:
        times = [
            Exchange(layout(count), "low_latency", phase, size, None, tokens, tokens).seconds(kernel)
            for phase, size in ((False, 7168 + 224 + 16), (True, 14336))
        ]
        rows += [(count, 7168, t, 8, 256, d * 1e6, c * 1e6) for t, d, c in zip(tokens, *times, strict=True)]
    names = ("node_num", "hidden_size", "num_token", "num_topk", "num_experts", "dispatch_avg_t_us", "combine_avg_t_us")
    return Table(source, dict(zip(names, np.array(rows).T, strict=True)))


@pytest.mark.parametrize(("places", "expected"), [(2, 1.99), (4, 3.61), (8, 5.30), (16, 6.52)])
def test_distinct_nodes_of_a_token_under_uniform_routing(places, expected):
    assert distinct(256, places, 8) == pytest.approx(expected, abs=0.006)


def test_rows_of_uniform_routing_by_hand():
    counts = uniform_traffic(layout(2, 2, experts=4, top_k=2), np.array([60.0]))
    # a token misses a rank (one expert of four) if both its choices are elsewhere: 3/4 * 2/3; a node: 2/4 * 1/3
    assert counts.pair_rows[0, 0] == pytest.approx(np.full((4, 4), 60 * 2 / 4))
    assert counts.rank_visits[0, 0] == pytest.approx(np.full((4, 4), 60 * 0.5))
    assert counts.node_visits[0, 0] == pytest.approx(np.full((4, 2), 60 * 5 / 6))


def test_choices_on_few_nodes_or_spread_evenly():
    assert visits_per_token(layout(1, 4, "even")) == (4, 1)
    assert visits_per_token(layout(1, 64, "even")) == (8, 1)
    grouped, free = visits_per_token(layout(8, 8, "grouped")), visits_per_token(layout(8, 8))
    assert grouped[1] <= 4 < free[1]
    assert visits_per_token(layout(4, 8, "grouped")) == visits_per_token(layout(4, 8))


def test_an_exchange_takes_what_its_kernel_takes_by_hand():
    tokens = np.array([100.0])
    exchange = Exchange(layout(4), "low_latency", False, 7408, None, tokens, tokens)
    # three of four nodes are others; 8 rows a token
    assert exchange.seconds(LINE) == pytest.approx([12e-6 + 18e-6 * 3 / 4 + 100 * 8 * 3 / 4 * 7408 / 45e9])


def test_a_fit_finds_the_constants_that_made_the_data():
    for phase, exchanges in exchanges_of(low_latency_table(), "low_latency").items():
        found = fit_kernel(exchanges, shapes_for("low_latency", exchanges))
        (between,) = found.between
        made = LINE.between[0]
        assert between.bytes_per_s == pytest.approx(made.bytes_per_s, rel=1e-3), phase
        assert between.startup_s == pytest.approx(made.startup_s, rel=0.01)
        assert between.spread_s == pytest.approx(made.spread_s, rel=0.01)
        assert found.inside[0].bytes_per_s == pytest.approx(240e9, rel=1e-3)


def test_constants_that_the_rows_tell_nothing_of_are_left_out():
    one = exchanges_of(low_latency_table(nodes=(2,)), "low_latency")["dispatch"]
    (between,) = fit_kernel(one, shapes_for("low_latency", one)).between
    assert (between.spread_s, between.expert_s) == (0, 0)


def test_a_size_left_out_is_not_looked_at():
    table = low_latency_table(nodes=(2, 4, 8))
    wrong = {**table.columns, "dispatch_avg_t_us": np.where(table["node_num"] == 4, 1e6, table["dispatch_avg_t_us"])}
    (honest,) = compare_table(table, None, None, "leave_one_node_count_out")[:1]
    (damaged,) = compare_table(Table("made.csv", wrong), None, None, "leave_one_node_count_out")[:1]
    held_out = slice(5, 10)  # rows of four nodes: their own times have no part in predicting them
    assert damaged.predicted_s[held_out] == pytest.approx(honest.predicted_s[held_out])
    assert damaged.predicted_s[:5] != pytest.approx(honest.predicted_s[:5])
    assert np.abs(honest.error).max() < 0.01


def test_one_node_is_not_predicted_from_several():
    found = compare_table(low_latency_table(), None, None, "leave_one_node_count_out")
    assert [len(comparison.measured_s) for comparison in found] == [15, 15]
    assert all("without 1" in comparison.note for comparison in found)


def test_a_preset_is_tested_as_it_is():
    transport = Transport("demo", LINE, LINE)
    dispatch, combine = compare_table(low_latency_table(), None, transport, None)
    assert (dispatch.protocol, dispatch.data) == ("preset", "dispatch, made.csv by demo")
    assert np.abs(dispatch.error).max() < 1e-9 and np.abs(combine.error).max() < 1e-9


def test_another_table_is_fitted_to_and_rows_never_mix():
    slower = replace(LINE, inside=[Protocol(10e-6, 240e9)], between=[Protocol(13e-6, 45e9, spread_s=18e-6)])
    tested, fitted = low_latency_table(), low_latency_table(slower)
    found = compare_table(tested, Table("other.csv", fitted.columns), None, None)
    assert {comparison.protocol for comparison in found} == {"other_table"}
    with pytest.raises(ValueError, match="rows of made.csv are also in other.csv: a row is either fitted to or tested"):
        compare_table(tested, Table("other.csv", tested.columns), None, None)


def test_a_table_of_another_form_is_refused_with_what_was_expected():
    odd = Table("odd.csv", {"a": np.ones(2)})
    assert not is_communication_table(odd)
    with pytest.raises(ValueError, match="odd.csv is no table of communication: expected the columns node_num, "):
        compare_table(odd, None, None, None)
    with pytest.raises(ValueError, match="measures other kernels"):
        compare_table(low_latency_table(), nccl_table(), None, None)
    with pytest.raises(ValueError, match="protocol fit=leave_one_ep_size_out does not apply to made.csv"):
        compare_table(low_latency_table(), None, None, "leave_one_ep_size_out")


def nccl_table() -> Table:
    size = np.tile(2.0 ** np.arange(10, 28, 3), 3)
    ranks = np.repeat([2.0, 4.0, 8.0], 6)
    moved = size * 2 * (1 - 1 / ranks)
    names = ("op_name", "nccl_dtype", "num_gpus", "message_size", "latency")
    values = (np.full(18, "alltoall"), np.full(18, "half"), ranks, size, (10e-6 + moved / 300e9) * 1e3)
    return Table("nccl.csv", dict(zip(names, values, strict=True)))


def test_nccl_messages_count_elements_and_milliseconds():
    (found,) = exchanges_of(nccl_table(), "nccl").values()
    line = Kernel(inside=[Protocol(10e-6, 300e9)])
    assert predicted(found, line) == pytest.approx(np.concatenate([one.measured_s for one in found]))


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"op_name": np.full(18, "all_gather")}, "nccl.csv has no rows that tell time, tokens and ranks"),
        ({"latency": np.zeros(18)}, "nccl.csv: latency must be positive numbers, got '0.0'"),
        ({"num_gpus": np.full(18, np.nan)}, "nccl.csv: num_gpus must be positive numbers, got 'nan'"),
        ({"num_gpus": np.full(18, 1.0)}, "nccl.csv: num_gpus must be at least 2, as one rank alone sends nothing"),
        ({"num_gpus": np.full(18, 1e9)}, "nccl.csv: num_gpus must be at most 1024, got 1e\\+09"),
        ({"message_size": np.full(18, "x")}, "nccl.csv: message_size must be positive numbers, got 'x'"),
    ],
)
def test_bad_rows_are_refused_in_one_line(columns: dict[str, Any], message: str):
    with pytest.raises(ValueError, match=message) as error:
        compare_table(Table("nccl.csv", {**nccl_table().columns, **columns}), None, None, None)
    assert "\n" not in str(error.value)


def test_data_that_are_absent_are_skipped_with_a_line(monkeypatch):
    def absent(path: str) -> Table:
        raise MissingDataError("not here")

    monkeypatch.setattr(communication, "packaged", absent)
    monkeypatch.setattr(communication, "one_node", lambda *_: absent(""))
    monkeypatch.setattr(communication, "published_folder", lambda: absent(""))
    monkeypatch.setattr(communication, "rail_rows", lambda *_: absent(""))
    skipped: list[str] = []
    assert list(comparisons(skipped)) == []
    assert set(skipped) == {"communication: not here"}


@needs_package
@pytest.mark.parametrize(("phase", "limit"), [("dispatch", 0.05), ("combine", 0.05)])
def test_low_latency_kernels_on_a_number_of_nodes_that_was_left_out(phase, limit):
    found = compare_table(packaged(NODES_TABLE.format("ll")), None, None, "leave_one_node_count_out")
    (one,) = [comparison for comparison in found if comparison.data.startswith(phase)]
    assert np.abs(one.error).mean() < limit


@needs_package
@pytest.mark.parametrize(("nodes", "limit"), [(2, 0.08), (4, 0.05)])
def test_normal_kernels_with_enough_sms(nodes, limit):
    table = packaged(NODES_TABLE.format("normal"))
    table = table.where((table["node_num"] == nodes) & (table["dispatch_sms"] >= 20))
    assert form_of(table) == "normal"
    for comparison in compare_table(table, None, None, "in_sample"):
        assert np.abs(comparison.error).mean() < limit, comparison.data


SLOW = {f"deepep_normal_{gpu}" for gpu in ("h200", "b200", "gb200")}  # `python -m simulator.calibration` fits them too


def test_every_file_but_that_of_bare_links_is_a_fitted_preset():
    assert set(preset_names()) == set(groups()["transport"]) - {"links"}


@pytest.mark.parametrize("name", sorted(set(preset_names()) - SLOW))
def test_a_preset_is_what_the_fit_says(name: str):
    transport: Transport = instantiate(OmegaConf.load(CONF_DIR / "transport" / f"{name}.yaml"), _convert_="all")
    try:
        fitted = presets([name])[name]
    except MissingDataError as error:
        pytest.skip(str(error))
    for phase, expected in fitted.items():
        _same(mapping(getattr(transport, phase)), expected, f"{name} {phase}")


def _same(found: Any, expected: Any, where: str) -> None:
    if isinstance(expected, dict):
        assert set(found) == set(expected), where
        for key in expected:
            _same(found[key], expected[key], f"{where} {key}")
    elif isinstance(expected, list):
        assert len(found) == len(expected), where
        for i, (one, other) in enumerate(zip(found, expected, strict=True)):
            _same(one, other, f"{where} {i}")
    else:
        assert found == pytest.approx(expected, rel=0.01), where


@pytest.mark.parametrize("name", groups().get("transport", {}))
def test_a_preset_that_no_data_supports_says_so(name: str):
    transport: Transport = instantiate(OmegaConf.load(CONF_DIR / "transport" / f"{name}.yaml"), _convert_="all")
    assert transport.name == name
    limits = transport.dispatch != Kernel()
    assert transport.source or transport.assumed or not limits


def test_a_shape_names_its_constants():
    shape = Shape([{"startup_s": 1e-5, "bytes_per_s": 1e11}])
    assert shape.start == {("inside", 0, "startup_s"): 1e-5, ("inside", 0, "bytes_per_s"): 1e11}


@needs_package
def test_places_are_filled_at_the_rate_by_which_combine_takes_longer_than_dispatch():
    parts = exchanges_of(packaged(NVLINK_TABLE), "one_sided")
    there, back = (
        next(one for one in parts[f"NVLinkTwoSided bfloat16 {phase}"] if one.layout.num_ranks == 2)
        for phase in ("dispatch", "combine")
    )
    assert there.row_bytes == back.row_bytes and np.array_equal(there.tokens, back.tokens)
    largest = np.argsort(back.tokens)[-6:]
    longer, tokens = (back.measured_s - there.measured_s)[largest], back.tokens[largest]
    slope = np.polyfit(tokens, longer, 1)[0]
    assert back.row_bytes * back.layout.top_k / slope == pytest.approx(FILL_BYTES_PER_S, rel=0.03)
    assert back.fills and not there.fills


@needs_package
def test_gb200_kernels_on_a_number_of_ranks_that_was_left_out():
    for comparison in compare_table(packaged(NVLINK_TABLE), None, None, "leave_one_ep_size_out"):
        limit = 0.075 if "combine" in comparison.data else 0.055
        assert np.abs(comparison.error).mean() < limit, comparison.data

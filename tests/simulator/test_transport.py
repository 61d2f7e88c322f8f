"""Kernels limit the ends of the wires: start-up, bandwidth, pairs, protocols, SMs, overlap of stages."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from grace_opt.topology import Topology
from grace_opt.traffic import PREDICTED_SCHEMES, traffic
from simulator.network import BOUNDS, phase_seconds, stage_detail
from simulator.transport import Kernel, Protocol, Transport

# Rows of 20 bytes. Inside a node: 1 s, then 100 bytes a second. Between nodes: 2 s, then 10 bytes a second.
KERNEL = Kernel(inside=[Protocol(1.0, 100.0)], between=[Protocol(2.0, 10.0)])


def rows_of(sends: dict[tuple[int, int], float]) -> np.ndarray:
    rows_LBRR = np.zeros((1, 1, 4, 4))
    for pair, rows in sends.items():
        rows_LBRR[0, 0, *pair] = rows
    return rows_LBRR


def seconds(topology: Topology, sends: dict[tuple[int, int], float], kernel: Kernel, **options: Any) -> float:
    return float(phase_seconds(topology, (rows_of(sends),), 20, kernel=kernel, **options)[0, 0])


@pytest.fixture
def wires(make_topology: Callable[..., Topology]) -> Topology:
    """Two nodes of two ranks whose links limit nothing."""
    topology = make_topology()
    return replace(topology, link_bytes_per_s=topology.link_bytes_per_s * 1e6)


@pytest.mark.parametrize(
    ("sends", "expected"),
    [
        ({}, 0),
        ({(0, 0): 9}, 0),  # nothing travels
        ({(0, 1): 5}, 1 + 1),
        ({(0, 2): 3}, 2 + 6),
        ({(0, 2): 3, (2, 0): 3}, 2 + 6),
        ({(0, 2): 3, (0, 3): 4}, 2 + 14),  # all that rank 0 sends
        ({(0, 2): 3, (1, 2): 4}, 2 + 14),  # all that rank 2 receives
        ({(0, 2): 3, (0, 1): 40}, 1 + 8),  # both scopes at once: the slower decides
    ],
)
def test_a_stage_takes_startup_and_the_busiest_ranks_bytes(wires, sends, expected):
    assert seconds(wires, sends, KERNEL) == pytest.approx(expected)


def test_links_still_count_where_they_are_slower(make_topology):
    # 20 bytes a second of a network card, 200 inside: cards are faster than the kernel, and slower when they share
    assert seconds(make_topology(), {(0, 2): 3}, KERNEL) == pytest.approx(2 + 6)
    slow = make_topology(inter_bytes_per_s=5)
    assert seconds(slow, {(0, 2): 3}, KERNEL) == pytest.approx(2 + 12)
    shared = make_topology(nic_of="node", inter_bytes_per_s=10)
    assert seconds(shared, {(0, 2): 3, (1, 3): 3}, KERNEL) == pytest.approx(2 + 12)


def test_a_scope_without_protocols_is_limited_by_links_and_latency(make_topology):
    kernel = Kernel(inside=[Protocol(1.0, 100.0)])
    assert seconds(make_topology(), {(0, 2): 3}, kernel) == pytest.approx(0.1 + 3)
    assert seconds(make_topology(), {(0, 1): 5}, kernel) == pytest.approx(1 + 1)


def test_of_two_protocols_the_faster_one_is_taken(wires):
    kernel = Kernel(between=[Protocol(2.0, 10.0), Protocol(1.0, 5.0)])
    assert seconds(wires, {(0, 2): 1}, kernel) == pytest.approx(min(2 + 2, 1 + 4))
    assert seconds(wires, {(0, 2): 0.1}, kernel) == pytest.approx(1 + 0.4)
    assert seconds(wires, {(0, 2): 3}, kernel) == pytest.approx(2 + 6)


def test_one_pair_alone_may_not_reach_what_a_rank_reaches(wires):
    kernel = Kernel(between=[Protocol(2.0, 10.0, pair_bytes_per_s=5.0)])
    assert seconds(wires, {(0, 2): 3}, kernel) == pytest.approx(2 + 12)
    assert seconds(wires, {(0, 2): 3, (0, 3): 3}, kernel) == pytest.approx(2 + 12)


def test_startup_grows_with_ranks_nodes_experts_and_the_row(wires):
    line = Protocol(2.0, 10.0, spread_s=1.0, round_s=3.0, row_bytes_per_s=40.0, expert_s=0.25)
    assert seconds(wires, {(0, 2): 3}, Kernel(between=[line]), num_experts=4) == pytest.approx(
        2 + 6 + 1 * (1 - 1 / 2) + 3 * 1 + 20 / 40 + 1
    )


def test_the_smallest_stage_takes_what_it_takes_at_least(wires):
    kernel = Kernel(between=[Protocol(2.0, 10.0, least_s=5.0)])
    assert seconds(wires, {(0, 2): 1}, kernel) == pytest.approx(5)
    assert seconds(wires, {(0, 2): 3}, kernel) == pytest.approx(8)


def test_sms_move_every_row_of_a_rank_also_those_that_stay(wires):
    kernel = replace(KERNEL, sms=2, sm_between_bytes_per_s=4.0, sm_inside_bytes_per_s=50.0)
    assert seconds(wires, {(0, 2): 1, (0, 0): 4}, kernel) == pytest.approx(2 + 5 * 20 / 8)
    assert seconds(wires, {(0, 1): 1, (0, 0): 9}, kernel) == pytest.approx(1 + 10 * 20 / 100)
    assert seconds(wires, {(0, 2): 1, (0, 0): 4}, replace(kernel, sm_row_bytes=4.0)) == pytest.approx(2 + 5 * 24 / 8)
    assert seconds(wires, {(0, 2): 4}, replace(kernel, sms=20)) == pytest.approx(2 + 8)


def test_overlapped_stages_take_the_slowest_and_share_the_sms(wires):
    stages = (rows_of({(0, 2): 3}), rows_of({(2, 3): 5}))
    apart = phase_seconds(wires, stages, 20, kernel=KERNEL)
    assert apart[0, 0] == pytest.approx((2 + 6) + (1 + 1))
    assert phase_seconds(wires, stages, 20, kernel=replace(KERNEL, pipelined=True))[0, 0] == pytest.approx(2 + 6)
    busy = replace(KERNEL, pipelined=True, sms=1, sm_between_bytes_per_s=10.0)
    # rank 2 receives three rows and passes five on: eight rows through its SMs
    assert phase_seconds(wires, stages, 20, kernel=busy)[0, 0] == pytest.approx(2 + 8 * 20 / 10)


def test_rows_are_put_in_order_unless_the_kernel_places_them(wires):
    wires = replace(wires, gpus=tuple(replace(gpu, copy_bytes_per_s=40.0) for gpu in wires.gpus))
    assert seconds(wires, {(0, 2): 3}, KERNEL) == pytest.approx(2 + 6 + 1.5)
    assert seconds(wires, {(0, 2): 3}, replace(KERNEL, places_rows=True)) == pytest.approx(2 + 6)


def test_fair_sharing_is_never_faster_than_the_busiest_link(make_topology):
    topology, kernel = make_topology(nic_of="node"), Kernel()
    sends = {(0, 2): 3.0, (1, 3): 1.0, (1, 2): 2.0}
    fair = seconds(topology, sends, kernel, sharing="max_min")
    assert fair >= seconds(topology, sends, kernel) - 1e-12
    one = {(0, 2): 3.0}
    assert seconds(topology, one, kernel, sharing="max_min") == pytest.approx(seconds(topology, one, kernel))


lines = st.builds(
    Protocol,
    startup_s=st.floats(0, 3),
    bytes_per_s=st.floats(1, 500),
    pair_bytes_per_s=st.floats(1, 500) | st.just(float("inf")),
    least_s=st.floats(0, 5),
    spread_s=st.floats(0, 3),
    round_s=st.floats(0, 1),
)
kernels = st.builds(
    Kernel,
    inside=st.lists(lines, max_size=2),
    between=st.lists(lines, max_size=2),
    sms=st.none() | st.integers(1, 9),
    sm_inside_bytes_per_s=st.floats(1, 100),
    sm_between_bytes_per_s=st.floats(1, 100),
    sm_row_bytes=st.floats(0, 30),
    pipelined=st.booleans(),
    places_rows=st.booleans(),
)


@given(data=st.data(), kernel=kernels)
def test_no_kernel_beats_a_link_and_more_rows_never_take_less(random_cases, data, kernel):
    case = data.draw(random_cases)
    topology, counts = case.problem.topology, traffic(case.problem.trace, case.plan, case.tokens_per_rank)
    scheme = data.draw(st.sampled_from(PREDICTED_SCHEMES))
    sharing = data.draw(st.sampled_from(["busiest_link", "max_min"]))
    stages = counts.stages(scheme)
    found = phase_seconds(topology, stages, 20, kernel=kernel, sharing=sharing)
    for rows in stages:
        pairs = rows.reshape(*rows.shape[:2], -1)
        for link, rate in enumerate(topology.link_bytes_per_s):
            on_link = pairs @ topology.routes[[link]].toarray()[0]
            assert (found >= on_link * 20 / rate * (1 - 1e-9)).all()
        for scope, different in enumerate((False, True)):
            node = topology.node_of_rank
            mask = ((node[:, None] != node[None, :]) == different) & ~np.eye(len(node), dtype=bool)
            lines_of_scope = kernel.between if scope else kernel.inside
            if lines_of_scope:
                fastest = max(line.bytes_per_s for line in lines_of_scope)
                sent = (rows * mask).sum(axis=3).max(axis=2) * 20
                assert (found >= sent / fastest * (1 - 1e-9)).all()
    found = phase_seconds(topology, stages, 20, kernel=kernel)
    assert (phase_seconds(topology, [2 * rows for rows in stages], 20, kernel=kernel) >= found).all()
    if kernel.sm_between_bytes_per_s <= kernel.sm_inside_bytes_per_s:  # first crossing rows call for other kernels
        more = [rows + np.eye(rows.shape[2], k=1, dtype=int) for rows in stages]
        assert (phase_seconds(topology, more, 20, kernel=kernel) >= found).all()


@given(data=st.data(), kernel=st.none() | kernels)
def test_details_add_up_to_the_phase(random_cases, data, kernel):
    case = data.draw(random_cases)
    topology, counts = case.problem.topology, traffic(case.problem.trace, case.plan, case.tokens_per_rank)
    scheme, returning = data.draw(st.sampled_from(PREDICTED_SCHEMES)), data.draw(st.booleans())
    stages = counts.returning(scheme) if returning else counts.stages(scheme)
    found = phase_seconds(topology, stages, 20, returning, kernel)
    details = stage_detail(topology, stages, 20, returning, kernel)
    times = [detail.seconds for detail in details]
    total = np.max(times, axis=0) if kernel is not None and kernel.pipelined else np.sum(times, axis=0)
    assert total == pytest.approx(found.ravel())
    for detail in details:
        assert detail.rank_s.max(axis=1) + detail.copy_s == pytest.approx(detail.seconds)
        assert (detail.bound[detail.seconds == 0] == 0).all()
        assert (detail.where < max(topology.num_ranks, len(topology.link_names))).all()


def test_details_name_what_bounds_a_stage(make_topology):
    def bound(sends: dict[tuple[int, int], float], kernel: Kernel | None, **changes: Any) -> tuple[str, int]:
        (detail,) = stage_detail(make_topology(**changes), (rows_of(sends),), 20, kernel=kernel)
        return BOUNDS[detail.bound[0]], int(detail.where[0])

    assert bound({}, KERNEL) == ("nothing", -1)
    assert bound({(1, 2): 3}, KERNEL)[0] == "rank"
    assert bound({(1, 2): 3, (1, 3): 1}, KERNEL) == ("rank", 1)
    kind, link = bound({(1, 2): 3, (1, 3): 1}, None)
    assert (kind, make_topology().link_names[link][0]) == ("link", "node0.gpu1")
    assert bound({(1, 2): 3}, replace(KERNEL, sms=1, sm_between_bytes_per_s=1.0)) == ("SMs", 1)
    slow_pair = Kernel(between=[Protocol(2.0, 10.0, pair_bytes_per_s=5.0)])
    assert bound({(1, 2): 3, (0, 0): 9, (0, 1): 8}, slow_pair) == ("pair", 1)
    assert bound({(1, 2): 3}, Kernel(between=[Protocol(2.0, 10.0, least_s=50.0)])) == ("latency", -1)


def test_a_rank_is_done_when_its_own_rows_are(wires):
    (detail,) = stage_detail(wires, (rows_of({(0, 2): 3, (1, 3): 1}),), 20, kernel=KERNEL)
    assert detail.rank_s[0] == pytest.approx([8, 4, 8, 4])


def test_a_configuration_may_write_kernels_as_mappings():
    made = Transport("x", dispatch={"between": [{"startup_s": 2.0, "bytes_per_s": 10.0}]})  # type: ignore[arg-type]
    assert made.dispatch == Kernel(between=[Protocol(2.0, 10.0)])
    assert made.with_sms(3).combine.sms == 3


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Protocol(-1, 1), "startup_s must be a time in seconds, got -1"),
        (lambda: Protocol(1, 0), "bytes_per_s must be positive, got 0"),
        (lambda: Kernel(sms=0), "sms must be at least 1 or null, got 0"),
        (lambda: Kernel(sm_row_bytes=-1), "sm_row_bytes must be a number of bytes, got -1"),
        (lambda: Protocol(1, 1, half_ends=0), "half_ends must be positive, got 0"),
        (lambda: Kernel(fill_bytes_per_s=-1), "fill_bytes_per_s must be positive, got -1"),
        (lambda: Kernel(fill_bytes_per_s=1, pipelined=True), "a pipelined kernel fills no places"),
        (lambda: Kernel(inside=[{"startup": 1}]), "inside has 'startup', expected startup_s, bytes_per_s"),
        (lambda: Kernel(inside=[{"startup_s": 1}]), "inside must give at least startup_s and bytes_per_s"),
        (lambda: Kernel(inside=[3]), "inside has 3, expected startup_s"),
        (lambda: Transport("x", dispatch={"insid": []}), "dispatch has 'insid', expected inside, between"),
        (lambda: Transport("x", dispatch_type="int3"), "transport x: dispatch_type must be one of bf16, .* got 'int3'"),
        (lambda: Transport("x", header_bytes=-1), "transport x: header_bytes must be a number of bytes, got -1"),
        (lambda: Transport("x", schemes=["fast"]), "scheme must be one of pairs, .*, got 'fast'"),
        (
            lambda: Transport("x", schemes=["low_latency"]).require_scheme("hierarchical"),
            "transport x executes low_latency, not hierarchical: set scheme=low_latency or choose another transport",
        ),
    ],
)
def test_what_makes_no_sense_is_refused_in_one_line(make, message):
    with pytest.raises(ValueError, match=message) as error:
        make()
    assert "\n" not in str(error.value)


def test_a_link_that_decides_is_one_of_its_own_scope(make_topology):
    # inside 20 + 40 * 20 / 200 s, which links bound; between 0.1 + 6 s: the busiest link of all decides nothing
    kernel = Kernel(inside=[Protocol(20.0, 1e6)], between=[Protocol(0.1, 1e6)])
    topology = make_topology(inter_bytes_per_s=10)
    (detail,) = stage_detail(topology, (rows_of({(0, 2): 3, (0, 1): 40}),), 20, kernel=kernel)
    assert detail.seconds[0] == pytest.approx(24) and BOUNDS[detail.bound[0]] == "link"
    assert topology.link_names[detail.where[0]] == ("node0.gpu0", "node0.switch")


def test_bandwidth_falls_with_the_ranks_that_share_a_kernel(make_topology):
    kernel = Kernel(inside=[Protocol(1.0, 100.0, half_ends=4)])  # among 2, 4 and 8: 1 / 1.5, 1 / 2, 1 / 3 of it
    for ranks, expected in ((2, 1 + 3), (4, 1 + 4), (8, 1 + 6)):
        topology = make_topology(1, ranks)
        topology = replace(topology, link_bytes_per_s=topology.link_bytes_per_s * 1e6)
        rows = np.zeros((1, 1, ranks, ranks))
        rows[0, 0, 0, 1] = 10
        assert phase_seconds(topology, (rows,), 20, kernel=kernel)[0, 0] == pytest.approx(expected, rel=1e-4)


def test_a_place_is_filled_for_every_choice_of_a_ranks_own_tokens(wires):
    filled = replace(KERNEL, fill_bytes_per_s=40.0)  # half a second a place
    rows = rows_of({(1, 0): 5, (0, 0): 2})
    choices = np.array([[[9, 3, 0, 0]]])
    plain = phase_seconds(wires, (rows,), 20, True, KERNEL)
    assert phase_seconds(wires, (rows,), 20, True, filled, choices_LBR=choices) == pytest.approx(plain + 4.5)
    assert phase_seconds(wires, (rows,), 20, True, filled) == pytest.approx(plain + 3.5)  # rows that come home
    at_home = phase_seconds(wires, (rows_of({(0, 0): 7}),), 20, True, filled, choices_LBR=choices)
    assert at_home == pytest.approx(0)
    (detail,) = stage_detail(wires, (rows,), 20, True, filled, choices_LBR=choices)
    assert detail.seconds == pytest.approx(plain.ravel() + 4.5)
    (bare,) = stage_detail(wires, (rows,), 20, True, KERNEL)
    assert detail.rank_s - bare.rank_s == pytest.approx(np.array([[4.5, 1.5, 0, 0]]))


def test_several_stages_fill_places_once(wires):
    filled, stages = replace(KERNEL, fill_bytes_per_s=40.0), (rows_of({(2, 0): 3}), rows_of({(1, 0): 4}))
    plain = phase_seconds(wires, stages, 20, True, KERNEL)
    assert phase_seconds(wires, stages, 20, True, filled) == pytest.approx(plain + 2)

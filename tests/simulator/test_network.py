"""Seconds of a stage by hand: latency of the longest route used plus bytes over bandwidth of the busiest link."""

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from grace_opt.topology import Topology
from grace_opt.traffic import SCHEMES, traffic
from simulator.network import phase_seconds, stage_seconds
from simulator.stage_load import stage_load
from simulator.transport import Kernel


def rows_of(sends: dict[tuple[int, int], int]) -> np.ndarray:
    rows_LBRR = np.zeros((1, 1, 4, 4), np.int64)
    for pair, rows in sends.items():
        rows_LBRR[0, 0, *pair] = rows
    return rows_LBRR


# 20 bytes a row: a network card takes one row a second (latency 0.1 s), a GPU's link in the node ten (0.01 s).
@pytest.mark.parametrize(
    ("sends", "nic_of", "seconds"),
    [
        ({}, "rank", 0),
        ({(0, 1): 5}, "rank", 0.01 + 0.5),
        ({(0, 2): 3}, "rank", 0.1 + 3),
        ({(0, 2): 3, (2, 0): 3}, "rank", 0.1 + 3),  # full duplex
        ({(0, 2): 3, (1, 3): 3}, "rank", 0.1 + 3),  # a card each
        ({(0, 2): 3, (1, 2): 2}, "rank", 0.1 + 5),  # both into the card of rank 2
        ({(0, 2): 3, (0, 3): 4}, "rank", 0.1 + 7),  # both out of the card of rank 0
        ({(0, 2): 3, (0, 1): 40}, "rank", 0.1 + 4),  # the link inside the node is the busiest, the latency the fabric's
        ({(0, 2): 3, (1, 3): 3}, "node", 0.11 + 6),  # one card for the node
        ({(0, 2): 3, (1, 3): 3, (2, 0): 5}, "node", 0.11 + 6),
    ],
)
def test_a_stage_takes_its_busiest_link_and_longest_route(
    make_topology: Callable[..., Topology], sends: dict[tuple[int, int], int], nic_of: str, seconds: float
) -> None:
    assert stage_seconds(make_topology(nic_of=nic_of), rows_of(sends), 20) == pytest.approx(np.array([[seconds]]))


def test_layers_and_batches_are_priced_apart(make_topology: Callable[..., Topology]) -> None:
    rows = np.concatenate([rows_of({(0, 2): n}) for n in range(6)]).reshape(2, 3, 4, 4)
    expected = [[0, 1.1, 2.1], [3.1, 4.1, 5.1]]
    assert stage_seconds(make_topology(), rows, 20) == pytest.approx(np.array(expected))


def test_stages_follow_one_another(make_topology: Callable[..., Topology]) -> None:
    stages = (rows_of({(0, 2): 3}), rows_of({(2, 3): 5}))
    assert phase_seconds(make_topology(), stages, 20) == pytest.approx(np.array([[3.1 + 0.51]]))


def test_one_rank_alone_sends_nothing(make_topology: Callable[..., Topology]) -> None:
    assert stage_seconds(make_topology(1, 1), np.zeros((2, 1, 1, 1), np.int64), 20).tolist() == [[0], [0]]


@given(data=st.data())
def test_a_faster_link_slows_nothing_and_combine_takes_as_long_as_dispatch(random_cases, data) -> None:  # type: ignore[no-untyped-def]
    case = data.draw(random_cases)
    topology, counts = case.problem.topology, traffic(case.problem.trace, case.plan, case.tokens_per_rank)
    speed = topology.link_bytes_per_s.copy()
    speed[data.draw(st.integers(0, len(speed) - 1))] *= 2
    faster, twice = replace(topology, link_bytes_per_s=speed), replace(topology, link_bytes_per_s=2 * speed)
    for scheme in SCHEMES:
        before = phase_seconds(topology, counts.dispatch(scheme), 20)
        if scheme != "hierarchical_padded":  # padding travels one way
            assert phase_seconds(topology, counts.combine(scheme), 20) == pytest.approx(before)
        assert (phase_seconds(faster, counts.dispatch(scheme), 20) <= before).all()
        assert (phase_seconds(twice, counts.dispatch(scheme), 20) <= before).all()


def test_a_burst_passes_at_once_and_the_rest_at_the_rate(make_topology: Callable[..., Topology]) -> None:
    topology = make_topology(2, 2)
    burst = np.array([30.0 if "fabric" in name else 0.0 for name in topology.link_names])
    topology = replace(topology, link_burst_bytes=burst)
    assert stage_seconds(topology, rows_of({(0, 2): 3}), 20)[0, 0] == pytest.approx(0.1 + (60 - 30) / 20)
    assert stage_seconds(topology, rows_of({(0, 2): 1}), 20)[0, 0] == pytest.approx(0.1)


def test_rows_are_put_in_order_by_the_sender_and_summed_by_the_receiver(make_topology: Callable[..., Topology]) -> None:
    topology = make_topology(2, 2)
    topology = replace(topology, gpus=tuple(replace(gpu, copy_bytes_per_s=40.0) for gpu in topology.gpus))
    rows = rows_of({(0, 2): 3, (1, 2): 2, (0, 0): 4})  # 20 bytes each, half a second a row; four stay at home
    assert stage_seconds(topology, rows, 20)[0, 0] == pytest.approx(0.1 + 5 + 7 / 2)
    assert stage_seconds(topology, rows, 20, returning=True)[0, 0] == pytest.approx(0.1 + 5 + 5 / 2)
    assert stage_seconds(topology, rows_of({(0, 0): 4}), 20)[0, 0] == 0  # nothing travels: there is no stage


def test_links_that_are_equally_busy_take_longer_than_one_alone(make_topology: Callable[..., Topology]) -> None:
    topology = replace(make_topology(2, 2), contention=0.5)
    both = {(a, b): 1 for a in (0, 1) for b in (2, 3)}
    everyone = rows_of({**both, **{(b, a): rows for (a, b), rows in both.items()}})
    assert stage_seconds(topology, everyone, 20)[0, 0] == pytest.approx(0.1 + 2 * 1.5)
    one = rows_of({(0, 2): 4})  # two of the eight directed links of this kind are busy
    assert stage_seconds(topology, one, 20)[0, 0] == pytest.approx(0.1 + 4 * (1 + 0.5 * 0.25**7))


@given(data=st.data())
def test_counting_rows_on_links_agrees_with_the_matrix_of_routes(random_cases, data) -> None:  # type: ignore[no-untyped-def]
    case = data.draw(random_cases)
    topology, counts = case.problem.topology, traffic(case.problem.trace, case.plan, case.tokens_per_rank)
    for rows in counts.stages("hierarchical"):
        load = stage_load(topology, rows)
        pairs = rows.reshape(-1, topology.num_ranks**2).T
        assert np.array_equal(load.link_rows, topology.routes @ pairs)
        assert np.array_equal(load.latency_s.max(axis=0), ((pairs > 0) * topology.latency_s.reshape(-1, 1)).max(axis=0))


@given(data=st.data())
def test_a_transport_that_limits_nothing_changes_nothing(random_cases, data) -> None:  # type: ignore[no-untyped-def]
    case = data.draw(random_cases)
    topology, counts = case.problem.topology, traffic(case.problem.trace, case.plan, case.tokens_per_rank)
    for scheme in SCHEMES:
        bare = phase_seconds(topology, counts.stages(scheme), 20)
        assert np.array_equal(phase_seconds(topology, counts.stages(scheme), 20, kernel=Kernel()), bare)

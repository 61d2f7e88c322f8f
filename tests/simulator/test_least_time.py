"""No plan takes less than the least time, even told its own rows and load."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from grace_opt.bounds.certificate import Bounds
from grace_opt.plan import Plan
from grace_opt.problem import Problem
from grace_opt.topology import Topology
from grace_opt.trace import Trace
from grace_opt.traffic import PREDICTED_SCHEMES, Traffic, traffic
from simulator.cluster import SimulatedCluster
from simulator.least_time import sender_of_rank
from simulator.transport import Kernel, Protocol, Transport

FAST = Protocol(startup_s=0.1, bytes_per_s=150, spread_s=0.05, expert_s=0.01, half_ends=8)
SLOW = Protocol(startup_s=0.02, bytes_per_s=30, least_s=0.4, pair_bytes_per_s=60, row_bytes_per_s=1000)
TRANSPORTS = (
    None,
    Transport("between", Kernel(between=[FAST, SLOW]), Kernel(between=[SLOW]), header_bytes=4),
    Transport("both", Kernel(inside=[SLOW], between=[FAST], pipelined=True), Kernel(inside=[FAST, SLOW], sms=2,
              sm_inside_bytes_per_s=500, sm_between_bytes_per_s=100)),
)  # fmt: skip


def _told(cluster: SimulatedCluster, problem: Problem, counts: Traffic) -> Any:
    """The least time for exactly these rows and this load."""
    inside = counts.dispatch("hierarchical")[1]
    return cluster.least_time(
        problem,
        Bounds(
            cross_node_rows=counts.cross_node_rows(cluster.scheme.replace("_padded", "")).sum(axis=1),
            busiest_sender_rows=cluster.sending(problem.topology).busiest_rows(counts),
            intra_node_rows=counts.intra_node_rows("hierarchical").sum(axis=1),
            busiest_receiver_rows=inside.sum(axis=(1, 2)).max(axis=1),
            busiest_load=counts.load.max(axis=2).sum(axis=1),
        ),
    )


@given(data=st.data(), scheme=st.sampled_from(PREDICTED_SCHEMES), transport=st.sampled_from(TRANSPORTS))
def test_no_plan_takes_less_than_the_least_time_for_its_own_counts(  # type: ignore[no-untyped-def]
    random_cases, data, scheme: str, transport: Transport | None
) -> None:
    case = data.draw(random_cases)
    sharing = data.draw(st.sampled_from(("busiest_link", "max_min")))
    burst = data.draw(st.sampled_from((0.0, 30.0)))
    topology = case.problem.topology
    topology = replace(topology, link_burst_bytes=np.full(len(topology.link_names), burst), contention=0.3)
    gpus = [replace(gpu, row_s=0.01, least_s=0.2 * (rank % 2), overlap=3.0) for rank, gpu in enumerate(topology.gpus)]
    problem = replace(case.problem, topology=replace(topology, gpus=tuple(gpus)))
    cluster = SimulatedCluster(scheme, case.tokens_per_rank, transport=transport, sharing=sharing, choice_bytes=1.0)
    counts = traffic(problem.trace, case.plan, case.tokens_per_rank)
    least, predicted = _told(cluster, problem, counts), cluster.price(problem, counts)
    for phase in ("dispatch_s", "experts_s", "combine_s"):
        assert (getattr(least, phase) <= getattr(predicted, phase)).all(), phase
    assert least.tokens_per_rank == predicted.tokens_per_rank


@pytest.fixture
def even(make_problem: Callable[..., Problem], make_trace: Callable[..., Trace]) -> Problem:
    """Rank r holds expert r; each of its four tokens wants expert r and the one two on, so one row crosses for each."""
    tokens = [[rank, (rank + 2) % 4] for rank in range(4) for _ in range(4)]
    return make_problem(make_trace([tokens], homes=np.repeat(np.arange(4), 4)), 1)


@pytest.mark.parametrize("scheme", ["flat", "hierarchical"])
def test_an_even_plan_takes_the_least_time(even: Problem, make_plan: Callable[..., Plan], scheme: str) -> None:
    """4 rows of 20 bytes leave each rank at 20 bytes/s after 0.1 s; 8 pairs are 4 tiles of 0.2 s after a launch."""
    counts = traffic(even.trace, make_plan([[[0], [1], [2], [3]]]))
    cluster = SimulatedCluster(scheme)
    least, predicted = _told(cluster, even, counts), cluster.price(even, counts)
    assert predicted.dispatch_s == pytest.approx(4.1)
    assert least.dispatch_s == pytest.approx(4.1)
    assert least.combine_s == pytest.approx(4.1)
    assert least.experts_s == pytest.approx(0.85)
    assert predicted.experts_s == pytest.approx(0.85)


def test_batches_are_bounded_by_their_mean_and_each_starts_up(even: Problem, make_plan: Callable[..., Plan]) -> None:
    """Two batches of 2 tokens a rank: 2 rows of 1 s each; a row is worth a start-up of 0.1 s in 8 tokens."""
    counts = traffic(even.trace, make_plan([[[0], [1], [2], [3]]]), 2)
    cluster = SimulatedCluster("hierarchical", 2)
    assert _told(cluster, even, counts).dispatch_s == pytest.approx(2.1)
    assert cluster.price(even, counts).dispatch_s == pytest.approx(2.1)


def test_a_kernel_moves_what_a_mean_rank_sends(even: Problem, make_plan: Callable[..., Plan]) -> None:
    """4 rows of 20 bytes at 10 bytes/s after 3 s."""
    line = Kernel(between=[Protocol(startup_s=3.0, bytes_per_s=10)])
    cluster = SimulatedCluster("hierarchical", transport=Transport("line", line, line))
    counts = traffic(even.trace, make_plan([[[0], [1], [2], [3]]]))
    assert _told(cluster, even, counts).dispatch_s == pytest.approx(11)
    assert cluster.price(even, counts).dispatch_s == pytest.approx(11)


def test_a_shared_card_is_the_weakest_cut(
    even: Problem, make_topology: Callable[..., Topology], make_plan: Callable[..., Plan]
) -> None:
    """Both ranks of a node send 4 rows over one card."""
    shared = replace(even, topology=make_topology(nic_of="node"))
    counts = traffic(even.trace, make_plan([[[0], [1], [2], [3]]]))
    least = _told(SimulatedCluster("hierarchical"), shared, counts)
    assert least.dispatch_s == pytest.approx(8 + 0.11)


def test_the_busiest_sender_bounds_a_stage(
    make_problem: Callable[..., Problem], make_trace: Callable[..., Trace], make_plan: Callable[..., Plan]
) -> None:
    """All four rows leave rank 0 at 20 bytes/s after 0.1 s; were they spread over both nodes, half would do."""
    problem = make_problem(make_trace([[[2, 3]] * 4], homes=[0] * 4), 1)
    counts = traffic(problem.trace, make_plan([[[0], [1], [2], [3]]]))
    cluster = SimulatedCluster("hierarchical")
    across = cluster.stage_details(problem, counts)[0][0].seconds
    assert across == pytest.approx(4.1)
    bounds = Bounds([4.0], [4.0], [0.0], [0.0], [0.0])  # type: ignore[arg-type]
    least = cluster.least_time(problem, bounds)
    assert least.dispatch_s == pytest.approx(across)
    assert least.combine_s == pytest.approx(across)


def test_ranks_send_as_one_where_they_share_a_card(make_topology: Callable[..., Topology]) -> None:
    assert sender_of_rank(make_topology()).tolist() == [0, 1, 2, 3]
    assert sender_of_rank(make_topology(nic_of="node")).tolist() == [0, 0, 1, 1]
    assert sender_of_rank(make_topology(1, 4)).tolist() == [0, 1, 2, 3]


def test_loading_bounds_experts_that_few_tokens_choose(
    make_problem: Callable[..., Problem], make_trace: Callable[..., Trace]
) -> None:
    """Four experts of one token each are loaded in 0.3 s each, on four ranks after a launch."""
    problem = make_problem(make_trace([[[0, 1], [2, 3]]], homes=[0, 2]), 1)
    bounds = Bounds(*np.zeros((4, 1)), busiest_load=np.ones(1))
    least = SimulatedCluster().least_time(problem, bounds)
    assert least.experts_s == pytest.approx(0.35)
    assert (least.dispatch_s == 0).all()

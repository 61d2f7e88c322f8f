"""The simulated cluster adds up what networks and experts take."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from grace_opt.plan import Plan
from grace_opt.problem import Problem
from grace_opt.topology import Topology
from grace_opt.trace import Trace
from grace_opt.traffic import SCHEMES, traffic
from simulator.cluster import SimulatedCluster
from simulator.transport import Kernel, Protocol, Transport

ONE_EACH = [[[0], [1], [2], [3]]]  # expert e on rank e
PHASES = ("dispatch_s", "experts_s", "combine_s", "idle_s")


@pytest.fixture
def problem(make_problem: Callable[..., Problem], make_trace: Callable[..., Trace]) -> Problem:
    """Three tokens on rank 0 that chose experts 2 and 3; rank 1 has none; one token on rank 2, one on rank 3."""
    return make_problem(make_trace([[[2, 3], [2, 3], [2, 3], [2, 3], [0, 3]]], homes=[0, 0, 0, 2, 3]))


@pytest.mark.parametrize(
    ("scheme", "dispatch"),
    [
        ("flat", 0.1 + 6),  # rank 0 sends three rows to rank 2 and three to rank 3
        ("pairs", 0.1 + 6),
        ("hierarchical", (0.1 + 3) + (0.01 + 0.4)),  # three rows across, then four from rank 2 to rank 3
    ],
)
def test_a_layer_by_hand(problem: Problem, make_plan: Callable[..., Plan], scheme: str, dispatch: float) -> None:
    time = SimulatedCluster(scheme)(problem, make_plan(ONE_EACH))
    assert time.dispatch_s == pytest.approx([dispatch])
    assert time.combine_s == pytest.approx([dispatch])
    # ranks serve 1, 0, 4 and 5 tokens: 0.05 + (0.3 floor, none, 2 tiles, 3 tiles of 0.2 s)
    assert time.experts_s == pytest.approx([0.65])
    assert time.idle_s == pytest.approx([(0.3 + 0.65 + 0.2 + 0) / 4])
    assert time.layer_s == pytest.approx([2 * dispatch + 0.65])
    assert time.tokens_per_rank == 5 / 4


def test_times_are_means_over_batches(
    make_problem: Callable[..., Problem], make_trace: Callable[..., Trace], make_plan: Callable[..., Plan]
) -> None:
    """Rank 0's two tokens, one a batch: the first stays, the second crosses; each launches what it needs."""
    problem = make_problem(make_trace([[[0, 1], [2, 3]]], homes=[0, 0]))
    time = SimulatedCluster("flat", tokens_per_rank=1)(problem, make_plan(ONE_EACH))
    assert time.dispatch_s == pytest.approx([((0.01 + 0.1) + (0.1 + 2)) / 2])
    assert time.experts_s == pytest.approx([0.35])
    assert time.idle_s == pytest.approx([0.35 / 2])
    assert time.tokens_per_rank == 1 / 4


def test_one_node_knows_no_crossing(
    make_problem: Callable[..., Problem],
    make_topology: Callable[..., Topology],
    make_trace: Callable[..., Trace],
    make_plan: Callable[..., Plan],
) -> None:
    problem = make_problem(make_trace([[[2, 3], [0, 1]]], homes=[0, 1]), topology=make_topology(1, 4))
    plan = make_plan(ONE_EACH, nodes=[4])
    flat, hierarchical = SimulatedCluster("flat")(problem, plan), SimulatedCluster("hierarchical")(problem, plan)
    assert hierarchical.dispatch_s == pytest.approx([0.01 + 0.2])
    assert all(np.array_equal(getattr(flat, phase), getattr(hierarchical, phase)) for phase in PHASES)


@given(data=st.data())
def test_phases_add_up_and_faster_machines_are_never_slower(random_cases, data) -> None:  # type: ignore[no-untyped-def]
    case = data.draw(random_cases)
    cluster = SimulatedCluster(data.draw(st.sampled_from(SCHEMES)), case.tokens_per_rank)
    topology = case.problem.topology
    time = cluster(case.problem, case.plan)
    assert np.array_equal(time.layer_s, time.dispatch_s + time.experts_s + time.combine_s)
    assert time.mean_s == pytest.approx(time.layer_s.mean())
    assert (time.idle_s >= 0).all() and (time.idle_s <= time.experts_s).all()
    faster_gpus = tuple(replace(gpu, flops_per_s=6000, memory_bytes_per_s=2000) for gpu in topology.gpus)
    for change in ({"gpus": faster_gpus}, {"link_bytes_per_s": 2 * topology.link_bytes_per_s}):
        faster = cluster(replace(case.problem, topology=replace(topology, **change)), case.plan)
        for phase in PHASES[:3]:
            assert (getattr(faster, phase) <= getattr(time, phase) + 1e-12).all()


def test_counted_traffic_is_priced_as_the_plan_is(problem: Problem, make_plan: Callable[..., Plan]) -> None:
    cluster, plan = SimulatedCluster(), make_plan(ONE_EACH)
    one, other = cluster(problem, plan), cluster.price(problem, traffic(problem.trace, plan))
    assert all(np.array_equal(getattr(one, phase), getattr(other, phase)) for phase in PHASES)


def test_choices_travel_with_dispatched_rows_one_a_pair_or_all_of_a_token(
    problem: Problem, make_plan: Callable[..., Plan]
) -> None:
    plan, row, top_k = make_plan(ONE_EACH), problem.model.token_bytes, problem.model.top_k
    for scheme, choices in (("pairs", 1), ("flat", top_k)):
        bare, full = (SimulatedCluster(scheme, choice_bytes=size)(problem, plan) for size in (0, 5))
        latency = 0.1  # of the fabric, which every layer here uses
        assert full.dispatch_s - latency == pytest.approx((bare.dispatch_s - latency) * (row + 5 * choices) / row)
        assert np.array_equal(full.combine_s, bare.combine_s)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        (
            {"scheme": "broadcast"},
            "scheme must be one of pairs, flat, hierarchical, hierarchical_padded, low_latency, got 'broadcast'",
        ),
        ({"tokens_per_rank": 0}, "tokens_per_rank must be at least 1, got 0"),
        ({"choice_bytes": -1}, "choice_bytes must be a number of bytes, got -1"),
        ({"dispatch_type": "int3"}, "dispatch_type must be one of bf16, .* got 'int3'"),
        ({"combine_type": "int3"}, "combine_type must be one of bf16, .* got 'int3'"),
        ({"sharing": "none"}, "sharing must be one of busiest_link, max_min, got 'none'"),
        (
            {"scheme": "hierarchical", "transport": Transport("demo", schemes=["low_latency"])},
            "transport demo executes low_latency, not hierarchical",
        ),
    ],
)
def test_what_cannot_be_simulated_is_refused(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        SimulatedCluster(**fields)


def test_a_plan_for_another_machine_is_refused(problem: Problem, make_plan: Callable[..., Plan]) -> None:
    with pytest.raises(ValueError, match=r"plan is for nodes of \[4\] ranks"):
        SimulatedCluster()(problem, make_plan(ONE_EACH, nodes=[4]))


def test_rows_weigh_what_their_type_says_and_dispatch_may_differ_from_combine(
    problem: Problem, make_plan: Callable[..., Plan]
) -> None:
    model = replace(problem.model, hidden_size=7168)
    fp8 = SimulatedCluster("flat", dispatch_type="fp8")
    assert fp8.dispatch_row_bytes(model) / SimulatedCluster("flat").dispatch_row_bytes(model) == (7168 + 224) / 14336
    assert fp8.combine_row_bytes(model) == 14336
    transport = Transport("demo", dispatch_type="nvfp4", combine_type="bf16", header_bytes=16)
    assert SimulatedCluster("flat", transport=transport).dispatch_row_bytes(model) == 3584 + 448 + 16
    assert SimulatedCluster("flat", transport=transport, dispatch_type="fp8").dispatch_row_bytes(model) == 7408
    plan, latency = make_plan(ONE_EACH), 0.1
    times = [SimulatedCluster("flat", dispatch_type=kind)(problem, plan) for kind in ("fp32", None)]
    assert times[0].dispatch_s - latency == pytest.approx(2 * (times[1].dispatch_s - latency))
    assert np.array_equal(times[0].combine_s, times[1].combine_s)


def test_a_layer_by_hand_with_a_transport(problem: Problem, make_plan: Callable[..., Plan]) -> None:
    """Rank 0 sends three rows of 20 bytes to rank 2 and three to rank 3; 10 bytes a second there, 5 on the way back."""
    there, back = Kernel(between=[Protocol(2.0, 10.0)]), Kernel(between=[Protocol(1.0, 5.0)])
    time = SimulatedCluster("flat", transport=Transport("demo", there, back))(problem, make_plan(ONE_EACH))
    assert time.dispatch_s == pytest.approx([2 + 12])
    assert time.combine_s == pytest.approx([1 + 24])


def test_details_of_all_stages_add_up_to_the_layer(problem: Problem, make_plan: Callable[..., Plan]) -> None:
    cluster, plan = SimulatedCluster("hierarchical"), make_plan(ONE_EACH)
    there, back = cluster.stage_details(problem, traffic(problem.trace, plan))
    time = cluster(problem, plan)
    assert sum(stage.seconds for stage in there) == pytest.approx(time.dispatch_s)
    assert sum(stage.seconds for stage in back) == pytest.approx(time.combine_s)

"""What bounds a step and what removing it gives, by hand and for whatever comes."""

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from grace_opt.plan import Plan
from grace_opt.problem import Problem
from grace_opt.topology import Topology
from grace_opt.trace import Trace
from grace_opt.traffic import PREDICTED_SCHEMES, traffic
from simulator.bottleneck import Bound, bounds
from simulator.cluster import SimulatedCluster
from simulator.network import SHARING
from simulator.relief import without
from simulator.timeline import LINK, timeline
from simulator.transport import Kernel, Protocol, Transport

ONE_EACH = [[[0], [1], [2], [3]]]  # expert e on rank e
KERNEL = Kernel(inside=[Protocol(0.02, 150)], between=[Protocol(0.2, 18, 10)], sms=2, sm_between_bytes_per_s=20)
TRANSPORTS = [None, Transport("toy", dispatch=KERNEL, combine=replace(KERNEL, pipelined=True))]


@pytest.fixture
def problem(make_problem: Callable[..., Problem], make_trace: Callable[..., Trace]) -> Problem:
    """Three tokens on rank 0 that chose experts 2 and 3; rank 1 has none; one token on rank 2, one on rank 3."""
    return make_problem(make_trace([[[2, 3], [2, 3], [2, 3], [2, 3], [0, 3]]], homes=[0, 0, 0, 2, 3]))


def found(cost: SimulatedCluster, problem: Problem, plan: Plan) -> dict[tuple[str, str], Bound]:
    counts = traffic(problem.trace, plan, cost.tokens_per_rank)
    return {(bound.step, bound.kind): bound for bound in bounds(cost, problem, plan, counts)}


def test_without_the_link_that_bounds_a_phase_the_next_one_does(
    problem: Problem, make_plan: Callable[..., Plan]
) -> None:
    """Rank 0 sends six rows across, ranks 2 and 3 receive three each; six seconds and three, a tenth for latency."""
    bound = found(SimulatedCluster("flat"), problem, make_plan(ONE_EACH))["dispatch", "link"]
    assert (bound.bound, bound.next_bound) == ("node0.gpu0 -> fabric", "fabric -> node1.gpu0")
    assert (bound.phase, bound.share_pct, bound.time_pct, bound.detail) == ("dispatch", 100, 100, "0.00012 MB")
    assert (bound.now_s, bound.without_s) == pytest.approx((6.1, 3.1))
    assert (bound.layer_now_s, bound.layer_without_s) == pytest.approx((2 * 6.1 + 0.65, 3.1 + 0.65 + 6.1))


def test_a_faster_network_frees_all_phases_at_once(problem: Problem, make_plan: Callable[..., Plan]) -> None:
    bound = found(SimulatedCluster("flat"), problem, make_plan(ONE_EACH))["dispatch", "links"]
    assert (bound.bound, bound.detail) == ("all links like node0.gpu0 -> fabric", "8 of 2e-08 GB/s")
    assert bound.without_s == pytest.approx(0.1 + 0.1)  # a row inside node 1, at the latency of those across
    assert bound.layer_without_s == pytest.approx(0.2 + 0.65 + 0.2)


def test_a_rank_as_busy_as_the_mean_leaves_the_next_one(problem: Problem, make_plan: Callable[..., Plan]) -> None:
    """Ranks compute 0.35, 0, 0.45 and 0.65 s."""
    bound = found(SimulatedCluster("flat"), problem, make_plan(ONE_EACH))["experts", "rank"]
    assert (bound.bound, bound.next_bound) == ("rank 3", "rank 2")
    assert (bound.now_s, bound.without_s) == pytest.approx((0.65, 0.45))
    assert bound.layer_now_s - bound.layer_without_s == pytest.approx(0.2)
    assert bound.detail == "5 tokens, all ranks 2; expert 3 of layer 0: 5 tokens"


def test_ranks_that_are_all_as_busy_as_the_mean_are_what_balance_would_bring(
    problem: Problem, make_plan: Callable[..., Plan]
) -> None:
    bound = found(SimulatedCluster("flat"), problem, make_plan(ONE_EACH))["experts", "ranks"]
    assert (bound.now_s, bound.without_s, bound.time_pct) == pytest.approx((0.65, (0.35 + 0.45 + 0.65) / 4, 100))


def test_a_copy_of_the_hottest_expert_is_put_on_the_least_busy_rank(
    problem: Problem, make_plan: Callable[..., Plan]
) -> None:
    """Two of five tokens go to rank 1: 0.35 s there, and two tiles in place of three on rank 3."""
    bound = found(SimulatedCluster("flat"), problem, make_plan(ONE_EACH))["experts", "expert"]
    assert (bound.now_s, bound.without_s) == pytest.approx((0.65, 0.45))
    assert bound.detail == "one copy more helps in 1 of 1 layers; hottest: expert 3 of layer 0, 5 tokens"
    assert bound.next_bound == "rank 2"


def test_a_copy_is_not_asked_for_where_it_does_not_help(
    make_problem: Callable[..., Problem], make_trace: Callable[..., Trace], make_plan: Callable[..., Plan]
) -> None:
    """One token an expert: what takes time is reading the weights, and a copy would have to be read too."""
    problem = make_problem(make_trace([[[0, 1], [2, 3]]], homes=[0, 2]))
    bound = found(SimulatedCluster("flat"), problem, make_plan(ONE_EACH))["experts", "expert"]
    assert bound.now_s == bound.without_s
    assert bound.detail.startswith("one copy more helps in 0 of 1 layers")


def test_start_up_is_a_bound_where_it_takes_longer_than_the_bytes(
    problem: Problem, make_plan: Callable[..., Plan]
) -> None:
    slow = Kernel(between=[Protocol(10, 18)], inside=[Protocol(5, 150)])
    cost = SimulatedCluster("flat", transport=Transport("toy", dispatch=slow))
    bound = found(cost, problem, make_plan(ONE_EACH))["dispatch", "latency"]
    assert (bound.bound, bound.share_pct) == ("start-up", 100)
    assert (bound.now_s, bound.without_s) == pytest.approx((10 + 120 / 18, 120 / 18))
    assert bound.next_bound == "rank 0"


def test_ranks_that_share_a_processor_wait_for_it(
    problem: Problem, make_plan: Callable[..., Plan], make_topology: Callable[..., Topology]
) -> None:
    shared = replace(make_topology(), processor_of_rank=np.array([0, 0, 1, 1]), cores=np.array([1.0, 1.0]))
    bound = found(SimulatedCluster("flat"), replace(problem, topology=shared), make_plan(ONE_EACH))
    assert bound["experts", "processor"].bound == "processor 1"
    assert (bound["experts", "processor"].now_s, bound["experts", "processor"].without_s) == pytest.approx((1.1, 0.65))


@settings(max_examples=40)
@given(data=st.data())
def test_removing_a_bound_never_makes_it_slower(random_cases, data) -> None:  # type: ignore[no-untyped-def]
    case = data.draw(random_cases)
    scheme = data.draw(st.sampled_from(PREDICTED_SCHEMES))
    transport, sharing = data.draw(st.sampled_from(TRANSPORTS)), data.draw(st.sampled_from(SHARING))
    cost = SimulatedCluster(scheme, case.tokens_per_rank, transport=transport, sharing=sharing)
    topology = replace(case.problem.topology, contention=data.draw(st.sampled_from([0, 0.5])))
    problem = replace(case.problem, topology=topology)
    counts = traffic(problem.trace, case.plan, case.tokens_per_rank)
    layer_s = cost.price(problem, counts).mean_s
    for bound in bounds(cost, problem, case.plan, counts):
        assert 0 <= bound.without_s <= bound.now_s * (1 + 1e-9)
        assert 0 <= bound.layer_without_s <= bound.layer_now_s * (1 + 1e-9)
        assert bound.now_s - bound.without_s <= bound.layer_now_s - bound.layer_without_s + 1e-9
        assert bound.layer_now_s == pytest.approx(layer_s)
        assert 0 <= bound.share_pct <= 100 + 1e-9
        assert 0 <= bound.time_pct <= 100 + 1e-9


@settings(max_examples=40)
@given(data=st.data())
def test_a_link_that_is_infinitely_fast_slows_no_step(random_cases, data) -> None:  # type: ignore[no-untyped-def]
    case = data.draw(random_cases)
    cost = SimulatedCluster(
        data.draw(st.sampled_from(PREDICTED_SCHEMES)), transport=data.draw(st.sampled_from(TRANSPORTS))
    )
    counts = traffic(case.problem.trace, case.plan)
    link = data.draw(st.integers(0, len(case.problem.topology.link_names) - 1))
    faster_cost, faster = without(cost, case.problem, LINK, [link])
    now, then = timeline(cost, case.problem, counts), timeline(faster_cost, faster, counts)
    assert (then.step_s <= now.step_s + 1e-12).all()
    assert (then.bound_by != " -> ".join(case.problem.topology.link_names[link])).all()

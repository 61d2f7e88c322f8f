"""A predicted timeline says rank by rank what the layer time adds up."""

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from grace_opt.plan import Plan
from grace_opt.problem import Problem
from grace_opt.topology import Topology
from grace_opt.trace import Trace
from grace_opt.traffic import PREDICTED_SCHEMES, traffic
from simulator.cluster import SimulatedCluster
from simulator.network import SHARING
from simulator.timeline import timeline
from simulator.transport import Kernel, Protocol, Transport

ONE_EACH = [[[0], [1], [2], [3]]]  # expert e on rank e
STAGES = ("dispatch across", "dispatch inside", "experts", "combine inside", "combine across")
KERNELS = (
    Kernel(inside=[Protocol(0.02, 150)], between=[Protocol(0.2, 18), Protocol(0.1, 15)], pipelined=True),
    Kernel(between=[Protocol(0.2, 18, 10)], sms=2, sm_inside_bytes_per_s=40, sm_between_bytes_per_s=9),
    Kernel(inside=[Protocol(0.5, 500)], places_rows=True),
)
TRANSPORTS = [None, *(Transport("toy", dispatch=kernel, combine=kernel) for kernel in KERNELS)]


@pytest.fixture
def problem(make_problem: Callable[..., Problem], make_trace: Callable[..., Trace]) -> Problem:
    """Three tokens on rank 0 that chose experts 2 and 3; rank 1 has none; one token on rank 2, one on rank 3."""
    return make_problem(make_trace([[[2, 3], [2, 3], [2, 3], [2, 3], [0, 3]]], homes=[0, 0, 0, 2, 3]))


def test_a_layer_by_hand(problem: Problem, make_plan: Callable[..., Plan]) -> None:
    """Across: 0 sends 3 rows to 2, 3 one to 1; inside: 2 sends 4 rows to 3 and 1 sends one to 0."""
    cost, counts = SimulatedCluster(), traffic(problem.trace, make_plan(ONE_EACH))
    predicted = timeline(cost, problem, counts)
    assert (predicted.steps, predicted.layer_ids) == (STAGES, (0,))
    assert predicted.step_s[0, 0] == pytest.approx([3.1, 0.41, 0.65, 0.41, 3.1])
    across, inside = [3.1, 1.1, 3.1, 1.1], [0.11, 0.11, 0.41, 0.41]
    experts = [0.35, 0, 0.45, 0.65]
    assert predicted.busy_s[0, 0] == pytest.approx(np.array([across, inside, experts, inside, across]))
    assert predicted.idle_s[0, 0] == pytest.approx([0.3 + 0.6, 4 + 0.6 + 0.65, 0.2, 4])
    assert predicted.bound_by is not None
    # of links that carry equally much the first one counts
    across_out, across_back = "node0.gpu0 -> fabric", "fabric -> node0.gpu0"
    inside_out, inside_back = "node1.gpu0 -> node1.switch", "node1.switch -> node1.gpu0"
    assert predicted.bound_by[0, 0].tolist() == [across_out, inside_out, "rank 3", inside_back, across_back]


def test_stages_that_overlap_are_one_step(problem: Problem, make_plan: Callable[..., Plan]) -> None:
    counts = traffic(problem.trace, make_plan(ONE_EACH))
    one_after_the_other = timeline(SimulatedCluster(), problem, counts)
    overlapped = timeline(
        SimulatedCluster(transport=Transport("toy", dispatch=Kernel(pipelined=True))), problem, counts
    )
    assert overlapped.steps == ("dispatch", *STAGES[2:])
    assert overlapped.step_s[0, 0, 0] == one_after_the_other.step_s[0, 0, :2].max()
    assert overlapped.busy_s[0, 0, 0] == pytest.approx(one_after_the_other.busy_s[0, 0, :2].max(axis=0))


def test_the_rank_that_puts_most_rows_in_order_is_waited_for(
    problem: Problem, make_plan: Callable[..., Plan], make_topology: Callable[..., Topology]
) -> None:
    """Half a second a row: 0 has three to send, 2 one that stays with it, 3 one that stays and one to send."""
    topology = make_topology()
    gpus = tuple(replace(gpu, copy_bytes_per_s=40.0) for gpu in topology.gpus)
    slow = replace(problem, topology=replace(topology, gpus=gpus))
    predicted = timeline(SimulatedCluster(), slow, traffic(problem.trace, make_plan(ONE_EACH)))
    assert predicted.busy_s[0, 0, 0] == pytest.approx([3.1 + 1.5, 1.1, 3.1 + 0.5, 1.1 + 1])
    assert predicted.step_s[0, 0, 0] == pytest.approx(3.1 + 1.5)


@given(data=st.data())
def test_steps_add_up_to_the_layer_time(random_cases, data) -> None:  # type: ignore[no-untyped-def]
    case = data.draw(random_cases)
    cost = SimulatedCluster(
        data.draw(st.sampled_from(PREDICTED_SCHEMES)),
        case.tokens_per_rank,
        transport=data.draw(st.sampled_from(TRANSPORTS)),
        sharing=data.draw(st.sampled_from(SHARING)),
    )
    topology = case.problem.topology
    gpus = tuple(replace(gpu, copy_bytes_per_s=data.draw(st.sampled_from([40.0, np.inf]))) for gpu in topology.gpus)
    cores = np.full(topology.num_ranks, data.draw(st.sampled_from([0.5, 1])))
    topology = replace(topology, gpus=gpus, contention=data.draw(st.sampled_from([0, 0.5])), cores=cores)
    problem = replace(case.problem, topology=topology)
    counts = traffic(problem.trace, case.plan, case.tokens_per_rank)
    predicted, time = timeline(cost, problem, counts), cost.price(problem, counts)
    for phase in ("dispatch", "experts", "combine"):
        assert predicted.phase_s(phase).mean(axis=1) == pytest.approx(getattr(time, f"{phase}_s"))
    assert predicted.layer_s.mean(axis=1) == pytest.approx(time.layer_s)
    experts = predicted.steps.index("experts")
    idle = predicted.step_s[:, :, experts, None] - predicted.busy_s[:, :, experts]
    assert idle.mean(axis=(1, 2)) == pytest.approx(time.idle_s)
    assert predicted.bound_by is not None
    assert ((predicted.bound_by == "") == (predicted.step_s == 0)).all()

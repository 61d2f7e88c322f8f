"""No plan beats the bounds of its problem."""

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from grace_opt.bounds import certificate, combinatorial
from grace_opt.bounds.certificate import lower_bounds
from grace_opt.bounds.exact import fewest_rows
from grace_opt.bounds.senders import Sending
from grace_opt.bounds.token_sets import token_sets
from grace_opt.plan import Plan
from grace_opt.problem import Problem
from grace_opt.trace import Trace
from grace_opt.traffic import SCHEMES, traffic


@settings(max_examples=25)
@given(data=st.data())
def test_no_plan_beats_a_bound(random_cases, data) -> None:  # type: ignore[no-untyped-def]
    case = data.draw(random_cases)
    problem = case.problem
    topology = problem.topology
    sender_of_rank = data.draw(st.sampled_from((np.arange(topology.num_ranks), topology.node_of_rank)))
    sending = Sending(sender_of_rank, case.tokens_per_rank)
    bounds = lower_bounds(problem, workers=1, cases_per_layer=3, sending=sending)
    counts = traffic(problem.trace, case.plan, case.tokens_per_rank)
    assert (sending.busiest_rows(counts) >= bounds.busiest_sender_rows).all()
    received = counts.dispatch("hierarchical")[1].sum(axis=2).max(axis=2).sum(axis=1)
    assert (received >= bounds.busiest_receiver_rows - 1e-9).all()
    for scheme in SCHEMES:
        assert (counts.cross_node_rows(scheme).sum(axis=1) >= bounds.cross_node_rows).all()
    assert (counts.intra_node_rows("hierarchical").sum(axis=1) >= bounds.intra_node_rows).all()
    assert (counts.load.max(axis=2).sum(axis=1) >= bounds.busiest_load - 1e-9).all()


@settings(max_examples=15)
@given(data=st.data())
def test_rows_between_nodes_are_at_most_the_exact_optimum(random_cases, data) -> None:  # type: ignore[no-untyped-def]
    problem = data.draw(random_cases).problem
    node = problem.topology.node_of_rank
    bounds = lower_bounds(problem, workers=1, cases_per_layer=5, intra=False)
    for layer, bound in enumerate(bounds.cross_node_rows):
        tokens = token_sets(problem.trace, layer, node)
        best = fewest_rows(tokens, problem.model.num_experts, np.bincount(node, problem.slots_per_rank).astype(int))
        assert bound <= best.rows


@pytest.fixture
def problem(make_problem: Callable[..., Problem], make_trace: Callable[..., Trace]) -> Problem:
    """2 x 2 ranks of one slot. Pairs {0, 1} and {2, 3} fit on nodes, the two tokens {0, 2} at home on 0 do not."""
    tokens = [[0, 1], [0, 1], [2, 3], [0, 2], [0, 2]]
    return make_problem(make_trace([tokens], homes=[0, 1, 2, 0, 1]), 1)


def test_a_bound_counting_cannot_give(problem: Problem, make_plan: Callable[..., Plan]) -> None:
    bounds = lower_bounds(problem, workers=1)
    rows = traffic(problem.trace, make_plan([[[0], [1], [2], [3]]])).cross_node_rows("hierarchical")
    assert bounds.cross_node_rows.tolist() == rows.sum(axis=1).tolist() == [2]
    assert bounds.cross_node_method == ("semidefinite",)
    assert combinatorial.cross_node_rows(problem).tolist() == [0]


def test_the_busiest_sender_is_bounded_by_more_than_the_mean(
    make_problem: Callable[..., Problem], make_trace: Callable[..., Trace], make_plan: Callable[..., Plan]
) -> None:
    """Rank 0 sends two of its three tokens wherever experts lie, rank 2 none: 2 rows in all, half of them a rank's."""
    tokens = [[0, 1], [2, 3], [0, 2], [2, 3]]
    problem = make_problem(make_trace([tokens], homes=[0, 0, 0, 2]), 1)
    sending = Sending(problem.topology.node_of_rank)
    bounds = lower_bounds(problem, workers=1, sending=sending)
    counts = traffic(problem.trace, make_plan([[[0], [1], [2], [3]]]))
    assert bounds.busiest_sender_rows.tolist() == sending.busiest_rows(counts).tolist() == [2]
    assert bounds.cross_node_rows.tolist() == [2]


def test_processes_prove_the_same(problem: Problem) -> None:
    here, there = (lower_bounds(problem, workers=workers, cases_per_layer=4) for workers in (1, 2))
    assert here.cross_node_rows.tolist() == there.cross_node_rows.tolist()
    assert here.intra_node_rows.tolist() == there.intra_node_rows.tolist()


def test_an_interrupt_keeps_what_is_proven(problem: Problem, monkeypatch: pytest.MonkeyPatch) -> None:
    def stop(relaxation, limits, progress):  # type: ignore[no-untyped-def]
        progress(0.5, 1)
        raise KeyboardInterrupt

    monkeypatch.setattr(certificate, "bound_by_cases", stop)
    assert lower_bounds(problem, workers=1).cross_node_rows.tolist() == [1]


def test_progress_reports_bounds_as_they_rise(problem: Problem) -> None:
    seen: list[tuple[int, int, float]] = []
    lower_bounds(problem, workers=1, intra=False, progress=lambda *told: seen.append(told))
    assert seen[-1] == (0, 0, 2.0)
    assert [rows for _, _, rows in seen] == sorted(rows for _, _, rows in seen)


def test_one_node_sends_nothing_to_others(
    make_problem: Callable[..., Problem], make_trace: Callable[..., Trace], make_topology: Callable[..., object]
) -> None:
    trace = replace(make_trace([[[0, 1], [2, 3]]]), homes=np.array([0, 1]))
    bounds = lower_bounds(make_problem(trace, 1, make_topology(1, 4)), workers=1)
    assert bounds.cross_node_rows.tolist() == [0]
    assert bounds.intra_node_rows.tolist() == [2]  # a rank holds one expert


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"seconds_per_layer": 0.0}, "seconds_per_layer must be positive, got 0"),
        ({"cases_per_layer": 0}, "cases_per_layer must be positive, got 0"),
        ({"workers": 0}, "workers must be at least 1, got 0"),
    ],
)
def test_limits_that_make_no_sense_are_refused(problem: Problem, options: dict[str, int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        lower_bounds(problem, **options)  # type: ignore[arg-type]

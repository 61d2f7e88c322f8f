"""No plan beats a bound, and some plans reach it."""

from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from grace_opt.bounds.combinatorial import (
    busiest_rank_load,
    busiest_receiver_rows,
    cross_node_rows,
    dispatched_rows,
    rows_off_proxies,
)
from grace_opt.plan import Plan
from grace_opt.problem import Problem
from grace_opt.trace import Trace
from grace_opt.traffic import SCHEMES, traffic

# Loads 6, 2, 2 and 2, tokens at home on ranks 0, 0, 1, 2, 3 and 3.
SKEWED = [[[0, 1], [0, 1], [0, 2], [0, 2], [0, 3], [0, 3]]]
HOMES = [0, 0, 1, 2, 3, 3]


@pytest.fixture
def problem_of(make_problem: Callable[..., Problem], make_trace: Callable[..., Trace]) -> Callable[..., Problem]:
    return lambda slots: make_problem(make_trace(SKEWED, homes=HOMES), slots)


@given(data=st.data())
def test_no_plan_beats_a_bound(random_cases, data) -> None:  # type: ignore[no-untyped-def]
    case = data.draw(random_cases)
    problem = case.problem
    problem.check(case.plan)
    counts = traffic(problem.trace, case.plan, case.tokens_per_rank)
    assert (counts.load.max(axis=2).sum(axis=1) >= busiest_rank_load(problem) - 1e-9).all()
    for scheme in SCHEMES:
        across, inside = counts.cross_node_rows(scheme).sum(axis=1), counts.intra_node_rows(scheme).sum(axis=1)
        assert (across >= cross_node_rows(problem)).all()
        assert (across + inside >= dispatched_rows(problem)).all()
    assert (counts.intra_node_rows("hierarchical").sum(axis=1) >= rows_off_proxies(problem)).all()
    received = counts.dispatch("hierarchical")[1].sum(axis=2).max(axis=2).sum(axis=1)
    assert (received >= busiest_receiver_rows(problem) - 1e-9).all()


@pytest.mark.parametrize(
    ("slots", "load"),
    [
        (1, 6),  # no room for a second copy: the hottest expert keeps its 6 tokens on one rank
        ([2, 2, 0, 0], 8),  # no copy to spare: the hottest expert shares its rank with another
        ([2, 1, 1, 1], 3),  # one copy to spare: 6 tokens on two ranks, or 12 on four
        ([3, 1, 0, 1], 4),  # 12 tokens on three ranks
        (2, 3),
    ],
)
def test_the_busiest_rank_carries_a_hot_expert_or_the_mean(
    problem_of: Callable[..., Problem], slots: Any, load: float
) -> None:
    assert busiest_rank_load(problem_of(slots)).tolist() == [load]


@pytest.mark.parametrize(("slots", "rows"), [(1, 3), ([2, 1, 1, 1], 0), (2, 0)])
def test_a_hot_expert_is_received_but_for_tokens_that_come_to_its_rank(
    problem_of: Callable[..., Problem], slots: Any, rows: float
) -> None:
    """Expert 0 has 6 tokens, 3 of either local number; on two ranks of both numbers nothing need move on."""
    assert busiest_receiver_rows(problem_of(slots)).tolist() == [rows]


def test_without_spare_slots_the_hottest_expert_has_others_on_its_rank(
    make_problem: Callable[..., Problem], make_trace: Callable[..., Trace], make_plan: Callable[..., Plan]
) -> None:
    """Loads 6, 3, 2 and 1, two slots on either of two ranks: 7, which experts 0 and 3 together reach. With a slot more
    for a copy of expert 0 it is the mean; with one on a third rank, 6 and 1 on two ranks, or the mean of three."""
    trace = make_trace([[[0, 1]] * 3 + [[0, 2]] * 2 + [[0, 3]]], homes=[0] * 6)
    problem = make_problem(trace, [2, 2, 0, 0])
    assert busiest_rank_load(problem).tolist() == [7]
    assert traffic(trace, make_plan([[[0, 3], [1, 2], [], []]])).load.max() == 7
    assert busiest_rank_load(make_problem(trace, [3, 2, 0, 0])).tolist() == [6]
    assert busiest_rank_load(make_problem(trace, [2, 2, 1, 0])).tolist() == [4]


def test_two_hot_experts_without_copies_to_spare_bound_the_load(
    make_problem: Callable[..., Problem], make_trace: Callable[..., Trace]
) -> None:
    """Loads 5, 5, 1 and 1 on ranks of 2, 1, 1 and 1 slots: one copy to spare, so 10 tokens lie on three ranks."""
    trace = make_trace([[[0, 1]] * 5 + [[2, 3]]], homes=[0] * 6)
    assert busiest_rank_load(make_problem(trace, [2, 1, 1, 1])) == pytest.approx(10 / 3)


@pytest.mark.parametrize(
    ("slots", "held"),
    [
        (1, [[0], [1], [2], [3]]),
        ([1, 3, 0, 0], [[0], [1, 2, 3], [], []]),
        (2, [[1, 3], [2, 3], [0], [0]]),
    ],
)
def test_some_plan_reaches_the_load_bound(
    problem_of: Callable[..., Problem], make_plan: Callable[..., Plan], slots: Any, held: Any
) -> None:
    problem, plan = problem_of(slots), make_plan([held], "uniform")
    problem.check(plan)
    assert traffic(problem.trace, plan).load.max() == busiest_rank_load(problem)[0]


@pytest.mark.parametrize(
    ("slots", "across", "total"),
    [
        (1, 0, 6),  # a node holds two experts, a rank one: each of the 6 tokens visits one more rank
        ([1, 1, 1, 1], 0, 6),
        ([2, 0, 1, 1], 0, 4),  # the two tokens at home on rank 0 may find both experts there
        ([3, 0, 1, 0], 3, 4),  # node 1 holds one expert: its 3 tokens leave; the one at home on rank 1 leaves its rank
        ([4, 4, 4, 4], 0, 0),
    ],
)
def test_tokens_leave_where_slots_run_out(
    problem_of: Callable[..., Problem], slots: Any, across: int, total: int
) -> None:
    problem = problem_of(slots)
    assert (cross_node_rows(problem).tolist(), dispatched_rows(problem).tolist()) == ([across], [total])


def test_all_bounds_on_rows_are_reached(
    make_problem: Callable[..., Problem], make_trace: Callable[..., Trace], make_plan: Callable[..., Plan]
) -> None:
    """Tokens choose 0 and 1 on node 0, 2 and 3 on node 1, where rank 3 holds nothing."""
    problem = make_problem(make_trace([[[0, 1], [0, 1], [2, 3]]], homes=[0, 1, 3]), [1, 1, 2, 0])
    counts = traffic(problem.trace, make_plan([[[0], [1], [2, 3], []]]))
    assert cross_node_rows(problem).tolist() == counts.cross_node_rows("hierarchical").sum(axis=1).tolist() == [0]
    assert dispatched_rows(problem).tolist() == counts.intra_node_rows("flat").sum(axis=1).tolist() == [3]
    assert busiest_rank_load(problem).tolist() == counts.load.max(axis=2).sum(axis=1).tolist() == [2]


def test_rows_inside_nodes_start_where_proxies_run_out_of_slots(problem_of: Callable[..., Problem]) -> None:
    """Ranks 0 and 2 are the proxies of tokens at home on either, 1 and 3 of the others: a token needs two slots."""
    assert rows_off_proxies(problem_of([1, 1, 1, 1])).tolist() == [0]
    assert rows_off_proxies(problem_of([1, 2, 0, 1])).tolist() == [3]

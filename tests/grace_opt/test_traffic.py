"""Traffic is counted exactly: by hand on tiny problems, against the slow reference on random ones."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from grace_opt.homes import Balanced
from grace_opt.placement import Placement
from grace_opt.plan import Plan
from grace_opt.routing import POLICIES, Routing
from grace_opt.trace import Trace
from grace_opt.trace_file import read_trace
from grace_opt.traffic import SCHEMES, Traffic, traffic
from grace_opt.traffic_reference import traffic_reference

ONE_EACH = [[[0], [1], [2], [3]]]  # expert e on rank e
COUNTS = ("tokens", "pair_rows", "rank_visits", "node_visits", "tokens_of_rank")


def sends(rows_LBRR: np.ndarray) -> dict[tuple[int, int], int]:
    """(source, destination) -> rows, of a stage with one layer and batch."""
    return {(int(a), int(b)): int(rows_LBRR[0, 0, a, b]) for a, b in np.argwhere(rows_LBRR[0, 0])}


def equal(one: Traffic, other: Traffic) -> bool:
    return all(np.array_equal(getattr(one, name), getattr(other, name)) for name in COUNTS)


def test_the_example_of_the_docstring(make_trace: Callable[..., Trace], make_plan: Callable[..., Plan]) -> None:
    counts = traffic(make_trace([[[1, 2, 3]]], homes=[0]), make_plan(ONE_EACH))
    assert [sends(rows) for rows in counts.dispatch("pairs")] == [{(0, 1): 1, (0, 2): 1, (0, 3): 1}]
    assert [sends(rows) for rows in counts.dispatch("flat")] == [{(0, 1): 1, (0, 2): 1, (0, 3): 1}]
    assert [sends(rows) for rows in counts.dispatch("hierarchical")] == [{(0, 2): 1}, {(0, 1): 1, (2, 3): 1}]
    assert [sends(rows) for rows in counts.combine("hierarchical")] == [{(1, 0): 1, (3, 2): 1}, {(2, 0): 1}]


def test_a_token_is_sent_to_a_node_once_and_to_a_rank_once(
    make_trace: Callable[..., Trace], make_plan: Callable[..., Plan]
) -> None:
    trace = make_trace([[[1, 2, 3]]], homes=[1])
    counts = traffic(trace, make_plan([[[], [0], [3], [2, 1]]]))
    assert sends(*counts.dispatch("pairs")) == {(1, 2): 1, (1, 3): 2}
    assert sends(*counts.dispatch("flat")) == {(1, 2): 1, (1, 3): 1}
    assert [sends(rows) for rows in counts.dispatch("hierarchical")] == [{(1, 3): 1}, {(3, 2): 1}]
    assert [int(counts.cross_node_rows(scheme)[0, 0]) for scheme in SCHEMES] == [3, 2, 1, 4]
    assert [int(counts.intra_node_rows(scheme)[0, 0]) for scheme in SCHEMES] == [0, 0, 1, 1]


def test_what_stays_at_home_is_no_row(make_trace: Callable[..., Trace], make_plan: Callable[..., Plan]) -> None:
    counts = traffic(make_trace([[[0, 1], [0, 1]]], homes=[0, 1]), make_plan([[[0, 1], [0, 1, 2, 3], [], []]], "tar"))
    assert all(not rows.any() for scheme in SCHEMES for rows in (*counts.dispatch(scheme), *counts.combine(scheme)))
    assert counts.load.tolist() == [[[2, 2, 0, 0]]]
    assert counts.active_experts.tolist() == [[[2, 2, 0, 0]]]
    assert counts.tokens_by_rank[0, 0].tolist() == [[1, 1, 0, 0], [1, 1, 0, 0], [0] * 4, [0] * 4]


def test_nodes_of_different_size_wrap_the_local_number_around(
    make_trace: Callable[..., Trace], make_plan: Callable[..., Plan]
) -> None:
    counts = traffic(make_trace([[[0, 1], [2, 0]]], homes=[3, 3]), make_plan(ONE_EACH, nodes=(1, 3)))
    assert [sends(rows) for rows in counts.dispatch("hierarchical")] == [{(3, 0): 2}, {(3, 1): 1, (3, 2): 1}]
    counts = traffic(make_trace([[[2, 3]]], homes=[0]), make_plan(ONE_EACH, nodes=(1, 3)))
    assert [sends(rows) for rows in counts.dispatch("hierarchical")] == [{(0, 1): 1}, {(1, 2): 1, (1, 3): 1}]


def test_copies_take_turns_from_the_home_ranks_own_start(
    make_trace: Callable[..., Trace], make_plan: Callable[..., Plan]
) -> None:
    """Expert 1 with weights 1 and 3: rank 0 polls its copies 1, 0, 1, 1, ... and rank 1 begins one entry later."""
    weights = [[[1, 1, 0], [1, 1, 3]]]
    plan = make_plan([[[0, 1], [2, 3, 1]]], "wrr", weights, nodes=[2])
    for home, ranks in ((0, [1, 0, 1, 1, 1]), (1, [0, 1, 1, 1, 0])):
        for length in range(1, 6):
            trace = make_trace([[[1]] * length], homes=[home], lengths=[length])
            served = traffic(trace, plan).load[0, 0].tolist()
            assert served == [ranks[:length].count(0), ranks[:length].count(1)]
    near = replace(plan, routing=replace(plan.routing, policy="tar"))
    assert traffic(make_trace([[[1]] * 5], homes=[0], lengths=[5]), near).load[0, 0].tolist() == [5, 0]


def test_batches_cut_every_ranks_tokens_into_near_equal_parts(
    make_trace: Callable[..., Trace], make_plan: Callable[..., Plan]
) -> None:
    trace = make_trace([[[0], [1], [2], [3], [0], [1], [2]]], homes=[0, 2, 0], lengths=[3, 2, 2])  # rank 0: 0 1 2 1 2
    counts = traffic(trace, make_plan(ONE_EACH), tokens_per_rank=2)
    assert counts.tokens_of_rank.tolist() == [[2, 0, 1, 0], [3, 0, 1, 0]]
    assert counts.load.tolist() == [[[1, 1, 0, 1], [1, 1, 2, 0]]]
    assert traffic(trace, make_plan(ONE_EACH), tokens_per_rank=1).tokens_of_rank[:, 0].tolist() == [1, 1, 1, 1, 1]
    assert traffic(trace, make_plan(ONE_EACH), tokens_per_rank=99).tokens_of_rank.tolist() == [[5, 0, 2, 0]]


def test_turns_begin_anew_in_every_batch(make_trace: Callable[..., Trace], make_plan: Callable[..., Plan]) -> None:
    plan = make_plan([[[0, 1], [0, 1], [2], [3]]], "uniform")
    counts = traffic(make_trace([[[0]] * 6], homes=[0], lengths=[6]), plan, tokens_per_rank=3)
    assert counts.load.tolist() == [[[2, 1, 0, 0], [2, 1, 0, 0]]]


@given(data=st.data())
def test_counts_equal_the_slow_reference(random_cases, data) -> None:  # type: ignore[no-untyped-def]
    case = data.draw(random_cases)
    counts = traffic(case.problem.trace, case.plan, case.tokens_per_rank)
    reference = traffic_reference(case.problem.trace, case.plan, case.tokens_per_rank)
    assert np.array_equal(counts.tokens, reference.tokens)
    for scheme in SCHEMES:
        for rows, expected in zip(counts.dispatch(scheme), reference.dispatch[scheme], strict=True):
            assert np.array_equal(rows, expected)


@pytest.mark.parametrize("policy", POLICIES)
def test_many_turns_and_many_ids_equal_the_slow_reference(policy: str) -> None:
    """Longer than a polling cycle, ids above 255, copies on one rank."""
    random = np.random.default_rng(0)
    held = [[*random.permutation(300)[:40], *range(rank, 300, 5)] for rank in range(5)]
    placement = Placement.from_lists([held], 300)
    weights = random.uniform(0.5, 4, placement.slots.shape) * (placement.slots >= 0)
    routing = Routing(policy, weights if policy in ("wrr", "tar") else None)
    ids_LTK = random.integers([0, 100, 200], [100, 200, 300], (1, 900, 3)).astype(np.uint16)
    ids_LTK[:, :, 0] %= 2
    trace = Trace(ids_LTK, [0, 400], [400, 900], [0, 0], ("all",), 300, homes=[4, 1])  # type: ignore[arg-type]
    plan = Plan("toy", (0,), (2, 3), placement, routing)
    counts, reference = traffic(trace, plan), traffic_reference(trace, plan)
    assert np.array_equal(counts.tokens, reference.tokens)
    assert np.array_equal(counts.dispatch("hierarchical"), reference.dispatch["hierarchical"])


@given(data=st.data())
def test_nothing_is_lost(random_cases, data) -> None:  # type: ignore[no-untyped-def]
    case = data.draw(random_cases)
    trace, topology = case.problem.trace, case.problem.topology
    counts = traffic(trace, case.plan, case.tokens_per_rank)
    size_BR = counts.tokens_of_rank
    assert counts.num_tokens == trace.num_tokens
    assert (counts.tokens.sum(axis=(1, 2)) == trace.num_tokens * trace.top_k).all()
    assert (counts.pair_rows.sum(axis=3) == size_BR * trace.top_k).all()  # what a rank's tokens ask for
    assert (counts.pair_rows.sum(axis=2) == counts.load).all()  # is what the ranks compute
    assert not counts.tokens_by_rank.sum(axis=1)[case.plan.placement.slots < 0].any()  # an empty slot serves nobody
    for visits in (counts.rank_visits, counts.node_visits):
        assert (visits <= size_BR[:, :, None]).all()
        assert (visits.sum(axis=3) >= size_BR).all()  # every token is served somewhere
    for scheme in SCHEMES:
        dispatch, combine = counts.dispatch(scheme), counts.combine(scheme)
        if scheme != "hierarchical_padded":  # padding travels one way
            assert all(np.array_equal(a, b.swapaxes(2, 3)) for a, b in zip(dispatch, reversed(combine), strict=True))
        assert all((rows.diagonal(axis1=2, axis2=3) == 0).all() for rows in dispatch)
        total = sum(rows.sum(axis=(2, 3)) for rows in dispatch)
        assert (counts.cross_node_rows(scheme) + counts.intra_node_rows(scheme) == total).all()
    across, inside = counts.dispatch("hierarchical")
    same_node = topology.node_of_rank[:, None] == topology.node_of_rank[None, :]
    assert not across[:, :, same_node].any() and not inside[:, :, ~same_node].any()
    pairs, flat, hierarchical, padded = (counts.cross_node_rows(scheme) for scheme in SCHEMES)
    assert (pairs >= flat).all() and (flat >= hierarchical).all() and (padded >= hierarchical).all()


@given(data=st.data())
def test_names_of_experts_do_not_matter(random_cases, data) -> None:  # type: ignore[no-untyped-def]
    case = data.draw(random_cases)
    trace, plan = case.problem.trace, case.plan
    name_E = np.array(data.draw(st.permutations(range(plan.num_experts))))
    slots = np.where(plan.placement.slots < 0, -1, name_E[plan.placement.slots])
    renamed = replace(plan, placement=Placement(slots, plan.num_experts))
    ids = name_E[trace.expert_ids].astype(trace.expert_ids.dtype)
    before = traffic(trace, plan, case.tokens_per_rank)
    assert equal(before, traffic(replace(trace, expert_ids=ids), renamed, case.tokens_per_rank))
    assert equal(before, traffic(replace(trace, expert_ids=trace.expert_ids[..., ::-1]), plan, case.tokens_per_rank))


@given(data=st.data())
def test_traffic_without_a_choice_of_copies_adds_up_over_sequences(random_cases, data) -> None:  # type: ignore[no-untyped-def]
    case = data.draw(random_cases)
    trace, plan = case.problem.trace, replace(case.plan, routing=Routing("primary"))
    cut = data.draw(st.integers(0, trace.num_sequences - 1))
    numbers = np.arange(trace.num_sequences)
    parts = [n for n in (numbers[:cut], numbers[cut:]) if len(n)]
    counts = [traffic(replace(trace.select(n), homes=trace.homes[n]), plan) for n in parts]
    whole = traffic(trace, plan)
    assert all(np.array_equal(getattr(whole, name), sum(getattr(c, name) for c in counts)) for name in COUNTS)


@given(data=st.data())
def test_a_part_of_a_trace_counts_as_its_copy_does(random_cases, data) -> None:  # type: ignore[no-untyped-def]
    case = data.draw(random_cases)
    trace = case.problem.trace
    chosen = data.draw(st.lists(st.integers(0, trace.num_sequences - 1), min_size=1, unique=True))
    part = replace(trace.select(np.array(chosen)), homes=trace.homes[chosen])
    ids = np.stack([part.layer(layer) for layer in range(part.num_layers)])
    stops = part.lengths.cumsum()
    copied = replace(part, expert_ids=ids, starts=stops - part.lengths, stops=stops)
    one, other = (traffic(t, case.plan, case.tokens_per_rank) for t in (part, copied))
    assert equal(one, other)


@given(data=st.data())
def test_threads_do_not_change_counts(random_cases, data) -> None:  # type: ignore[no-untyped-def]
    case = data.draw(random_cases)
    one, three = (traffic(case.problem.trace, case.plan, num_threads=n) for n in (1, 3))
    assert equal(one, three)


@pytest.mark.parametrize(
    ("change", "arguments", "message"),
    [
        ({"homes": None}, {}, "trace has no homes"),
        ({"homes": [4]}, {}, "trace has a home on rank 4, the plan only 4 ranks"),
        ({"num_experts": 5}, {}, "trace has 1 layers of 5 experts, the plan 1 layers of 4"),
        ({"expert_ids": np.zeros((2, 1, 1), np.uint8)}, {}, "trace has 2 layers"),
        ({}, {"tokens_per_rank": 0}, "tokens_per_rank must be at least 1, got 0"),
    ],
)
def test_a_trace_that_does_not_fit_the_plan_is_refused(
    make_trace: Callable[..., Trace], make_plan: Callable[..., Plan], change: Any, arguments: Any, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        traffic(replace(make_trace([[[0]]], homes=[0]), **change), make_plan(ONE_EACH), **arguments)


def test_an_unknown_scheme_is_refused(make_trace: Callable[..., Trace], make_plan: Callable[..., Plan]) -> None:
    with pytest.raises(
        ValueError,
        match="scheme must be one of pairs, flat, hierarchical, hierarchical_padded, low_latency, got 'broadcast'",
    ):
        traffic(make_trace([[[0]]], homes=[0]), make_plan(ONE_EACH)).dispatch("broadcast")


def test_experts_in_index_order_spread_a_real_token_over_4_55_gpus(shared_traces: Path) -> None:
    """The figure stands in the README of the recordings: 8 GPUs, 8 experts each."""
    trace = Balanced()(read_trace(shared_traces / "deepseek-v2-lite.npz"), 8)
    placement = Placement.from_rank_of_expert(np.broadcast_to(np.arange(64) // 8, (26, 64)), 8)
    plan = Plan("deepseek", tuple(range(26)), (4, 4), placement, Routing("primary"))
    counts = traffic(trace, plan)
    assert counts.rank_visits.sum() / (26 * trace.num_tokens) == pytest.approx(4.55, abs=0.005)

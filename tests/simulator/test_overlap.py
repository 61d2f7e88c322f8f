"""Half batches that take turns."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import simulator.overlap as overlap_module
from grace_opt.traffic import traffic
from simulator.cluster import SimulatedCluster
from simulator.overlap import PhaseTimes, batch_tokens, moe_layers_s, passes_s, phase_times


def phases(dispatch_LB, experts_LB, combine_LB):
    each = [np.array(value, float) for value in (dispatch_LB, experts_LB, combine_LB)]
    return PhaseTimes(*each, np.zeros(each[0].shape), np.ones((each[0].shape[1], 1), np.int64))


@pytest.fixture
def case(make_trace, make_problem, make_plan):
    """Two layers alike of 20 tokens of each rank, in sequences of 5."""
    ids_TK = np.argsort(np.random.default_rng(3).random((80, 4)), axis=1)[:, :2]
    trace = make_trace([ids_TK], homes=[0, 1, 2, 3] * 4, lengths=[5] * 16)
    return make_problem(trace), make_plan([[[0], [1], [2], [3]]])


def test_a_layer_hides_experts_behind_the_other_halfs_rows():
    # a: 4 there, 5 experts, 6 back; b: 3, 7, 2
    two = phases([[4, 3]], [[5, 7]], [[6, 2]])
    assert moe_layers_s(two, "two_batch").tolist() == [[4 + max(3, 5) + max(6, 7) + 2]]
    assert moe_layers_s(two, "none").tolist() == [[15, 12]]


def test_attention_hides_behind_rows_of_the_other_half():
    # computes:      attention 0-4, 4-8, experts 9-10, 14-15; attention 15-19, 19-23, experts 24-25, 29-30 (a, then b)
    # communicates:  dispatch 4-9, 9-14, combine 14-15, 15-16; dispatch 19-24, 24-29, combine 29-30, 30-31
    two = phases([[5, 5]] * 2, [[1, 1]] * 2, [[1, 1]] * 2)
    assert passes_s(two, before_s=4, beside_s=0, overlap="two_batch").tolist() == [31]
    assert passes_s(two, before_s=4, beside_s=0, overlap="none").tolist() == [22, 22]


def test_shared_experts_of_both_halves_run_while_rows_are_under_way():
    # computes: attention 0-1, 1-2, shared 2-4, 4-6, experts 6-7, 7-8; dispatch 1-3, 3-5, combine 7-8, 8-9
    two = phases([[2, 2]], [[1, 1]], [[1, 1]])
    assert passes_s(two, before_s=1, beside_s=2, overlap="two_batch").tolist() == [9]


@given(data=st.data())
def test_two_halves_take_no_longer_than_one_after_the_other_and_no_less_than_either_side_works(data):
    layers, pairs = data.draw(st.integers(1, 3)), data.draw(st.integers(1, 2))
    random = np.random.default_rng(data.draw(st.integers(0, 2**32 - 1)))
    times = random.exponential(1, (3, layers, 2 * pairs)) * random.integers(0, 2, (3, layers, 2 * pairs))
    before, beside = (data.draw(st.sampled_from([0.0, 0.3, 2.0])) for _ in range(2))
    one_by_one = passes_s(phases(*times), before, beside, "none").reshape(pairs, 2).sum(axis=1)
    together = passes_s(phases(*times), before, beside, "two_batch")
    moved = (times[0] + times[2]).sum(axis=0).reshape(pairs, 2).sum(axis=1)
    computed = times[1].sum(axis=0).reshape(pairs, 2).sum(axis=1) + 2 * layers * (before + beside)
    assert (together <= one_by_one + 1e-9).all()
    assert (together >= np.maximum(moved, computed) - 1e-9).all()
    alone = passes_s(phases(*times), 0.0, 0.0, "two_batch")
    np.testing.assert_allclose(moe_layers_s(phases(*times), "two_batch").sum(axis=0), alone)


@pytest.mark.parametrize("tokens_per_rank", [None, 3, 6, 7, 20, 100])
def test_halves_are_exactly_the_batches_cut_in_two(case, tokens_per_rank):
    problem, plan = case
    whole = traffic(problem.trace, plan, tokens_per_rank)
    halves = traffic(problem.trace, plan, batch_tokens(problem.trace, 4, tokens_per_rank, "two_batch"))
    assert len(halves.tokens_of_rank) == 2 * len(whole.tokens_of_rank)
    for name in ("tokens_of_rank", "pair_rows", "rank_visits", "node_visits"):
        axis = 0 if name == "tokens_of_rank" else 1
        both = np.add.reduceat(getattr(halves, name), np.arange(0, 2 * len(whole.tokens_of_rank), 2), axis=axis)
        np.testing.assert_array_equal(both, getattr(whole, name))
    assert batch_tokens(problem.trace, 4, tokens_per_rank, "none") == tokens_per_rank


def test_a_batch_of_one_token_has_no_halves(case):
    with pytest.raises(
        ValueError, match="overlap=two_batch cuts batches into halves, and a batch of 1 tokens per rank"
    ):
        batch_tokens(case[0].trace, 4, 1, "two_batch")


@pytest.mark.parametrize("scheme", ["pairs", "flat", "hierarchical", "hierarchical_padded", "low_latency"])
def test_phases_are_those_the_cluster_adds_up_however_many_batches_are_priced_at_once(case, scheme, monkeypatch):
    problem, plan = case
    cost = SimulatedCluster(scheme, 3)
    counts = traffic(problem.trace, plan, 3)
    expected, found = cost.price(problem, counts), phase_times(cost, problem, counts)
    for name in ("dispatch_s", "experts_s", "combine_s", "idle_s"):
        np.testing.assert_allclose(getattr(found, name).mean(axis=1), getattr(expected, name))
    monkeypatch.setattr(overlap_module, "MOST_CELLS", 40)  # two batches at once
    for name in ("dispatch_s", "experts_s", "combine_s", "idle_s", "tokens_of_rank"):
        np.testing.assert_array_equal(getattr(phase_times(cost, problem, counts), name), getattr(found, name))


def test_an_unknown_overlap_is_refused(case):
    for call in (
        lambda: batch_tokens(case[0].trace, 4, 8, "full"),
        lambda: moe_layers_s(phases([[1]], [[1]], [[1]]), "x"),
    ):
        with pytest.raises(ValueError, match="overlap must be one of none, two_batch, got"):
            call()

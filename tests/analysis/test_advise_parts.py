"""Parts of an advice: figures in the engines' words, what engines make of plans, and the rule of choice."""

from collections.abc import Callable
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest

from analysis.advice.bootstrap import Interval
from analysis.advice.candidates import redundancies
from analysis.advice.choice import Gain
from analysis.advice.demand import phases_of
from analysis.advice.engine_terms import balance, field_of, travel
from analysis.advice.serving import Serving, gathered
from analysis.whole_model import Passes
from grace_opt.homes import Balanced
from grace_opt.planners.linear import Linear
from grace_opt.problem import Problem
from grace_opt.traffic import traffic

SGLANG, VLLM, GRACE = (Serving.of(name, True) for name in ("sglang", "vllm", "grace"))


def test_each_engine_is_told_its_own_figure_of_balance():
    """Layer 0 has loads 2 and 6, layer 1 loads 4 and 4."""
    of = balance(np.array([[[2, 6]], [[4, 4]]]))
    assert of["load_mean_over_max"] == pytest.approx((4 / 6 + 1) / 2)
    assert of["load_sum_of_means_over_sum_of_maxima"] == pytest.approx(8 / 10)
    assert of["load_excess_over_mean"] == pytest.approx((2 / 4 + 0) / 2)
    fields = [field_of(name) for name in ("sglang", "tensorrt_llm", "vllm", "vllm_ascend", "omni", "grace")]
    assert fields == [
        "load_mean_over_max", "load_excess_over_mean", *["load_sum_of_means_over_sum_of_maxima"] * 3,
        "load_max_over_mean",
    ]  # fmt: skip


def test_a_token_travels_to_its_ranks_and_its_bytes_there_and_back(make_trace, make_plan):
    """The token of `grace_opt.traffic`: at home on rank 0, experts 1, 2, 3 on theirs: three ranks, one row across."""
    counts = traffic(make_trace([[[1, 2, 3]]], homes=[0]), make_plan([[[0], [1], [2], [3]]]))
    assert travel(counts, "hierarchical", 20, 7) == {
        "destination_ranks_per_token": 3, "cross_node_bytes_per_token": 27,
    }  # fmt: skip
    assert travel(counts, "flat", 20, 7)["cross_node_bytes_per_token"] == 2 * 27


def test_gathered_tokens_visit_every_rank_under_any_plan(make_trace, make_plan):
    trace = make_trace([[[0, 1], [0, 1], [2, 3]]], homes=[0, 0, 3])
    counts = gathered(traffic(trace, make_plan([[[0], [1], [2], [3]]])))
    assert counts.rank_visits[0, 0].tolist() == [[2] * 4, [0] * 4, [0] * 4, [1] * 4]
    assert counts.node_visits[0, 0].tolist() == [[2, 2], [0, 0], [0, 0], [1, 1]]
    assert counts.load[0, 0].tolist() == [2, 2, 1, 1]
    assert counts.cross_node_rows("hierarchical").item() == 3


def test_an_engine_runs_a_plan_with_ranks_filled_alike_and_its_own_choice_of_copies(make_plan):
    plan = make_plan([[[0, 1], [2], [3], [1]]], policy="cover")
    loads = np.array([[9, 1, 5, 7]])
    served = VLLM.served(plan, loads)
    assert served.placement.to_lists() == [[[0, 1], [2, 0], [3, 2], [1, 3]]]
    assert served.routing.policy == "uniform"
    assert GRACE.served(plan, loads) is plan


@pytest.mark.parametrize(
    ("num_experts", "expected"), [(4, [[0], [1], [2], [3]]), (6, [[0, 1], [2, 3], [4, 5], [0, 1]])]
)
def test_the_default_is_experts_in_order_then_from_the_first_again(
    num_experts, expected, make_trace, make_topology, model
):
    """As SGLang and vLLM lay them out where experts do not divide over the ranks."""
    trace = Balanced()(make_trace([[[0, 1], [2, 3]]], num_experts=num_experts), 4)
    sized = replace(model, num_experts=num_experts)
    problem = Problem(sized, make_topology(), trace, SGLANG.slots(sized, make_topology(), 0))
    assert SGLANG.default(problem).placement.to_lists() == [expected]
    assert Linear()(problem).plan.placement.num_copies.max() == 1


def test_the_engines_own_balancer_is_hierarchical_only_if_its_routers_groups_divide_over_nodes(model, make_topology):
    grouped = replace(model, num_expert_groups=2)
    assert not SGLANG.eplb(model, make_topology()).hierarchical
    assert SGLANG.eplb(grouped, make_topology()).hierarchical
    assert not SGLANG.eplb(grouped, make_topology(4, 1)).hierarchical
    assert not SGLANG.eplb(model, make_topology()).forbid_duplicates
    assert Serving.of("vllm_ascend", True).eplb(model, make_topology()).forbid_duplicates


def redundancies_of(problem: Problem, asked: list[int] | None) -> list[int]:
    return redundancies(problem.model, problem.topology, SGLANG, asked)


def test_redundancy_is_tried_as_far_as_memory_and_experts_allow(make_trace, make_problem, make_topology, model):
    """An expert takes 300 of a rank's 3000 bytes, four fill a layer; in 4 layers, two a layer fit."""
    trace = make_trace([[[0, 1], [2, 3]]], homes=[0, 1])
    assert redundancies_of(make_problem(trace, slots=1), None) == [0, 1, 2]
    deep = make_trace([[[0, 1], [2, 3]]] * 4, homes=[0, 1])
    problem = make_problem(deep, slots=1, model=replace(model, num_layers=4))
    assert redundancies_of(problem, None) == [0, 1]
    assert redundancies_of(problem, [1]) == [1]
    with pytest.raises(ValueError, match="redundancy=2 is more than fits: at most 1 experts per rank and layer"):
        redundancies_of(problem, [0, 2])


def test_a_request_takes_as_many_batches_as_its_tokens_fill(make_trace: Callable, make_problem: Callable):
    """40 tokens on 4 ranks: 10 a rank at most in a batch."""
    fit = make_problem(Balanced()(make_trace([[[0, 1]] * 40], lengths=[4] * 10), 4))
    parts_of = {name: {"fit": fit, "held_out": fit} for name in ("prefill", "decode")}
    prefill, decode = phases_of(parts_of, Passes(8, 20, context=16), ["decode", "prefill"], 30)
    assert (prefill.name, prefill.batch_tokens, prefill.passes_of_request) == ("prefill", 8, 2)
    assert (decode.name, decode.batch_tokens, decode.passes_of_request) == ("decode", 10, 3)
    (whole,) = phases_of(parts_of, Passes(None, 20, context=16), ["prefill"], 30)
    assert (whole.tokens_per_rank, whole.batch_tokens) == (10, 10)


@pytest.mark.parametrize(
    ("gain", "pays"),
    [
        (Gain(0.3, Interval(0.011, 0.5)), True),
        (Gain(0.3, Interval(0.01, 0.5)), False),
        (Gain(0.009, Interval(0.02, 0.5)), False),
        (Gain(0.02, None), True),
        (Gain(0.01, None), False),
    ],
)
def test_a_gain_pays_if_its_lower_end_is_above_the_threshold(gain, pays):
    assert gain.pays(0.01) is pays


def test_an_engines_limit_on_copies_limits_redundancy(model, make_topology):
    narrow = Serving("narrow", SimpleNamespace(MOST_REDUNDANT=5, EXPERT_ONCE_PER_RANK=False), True)
    assert narrow.most_redundancy(model, make_topology()) == 1  # (4 + 5) // 4 slots

"""Grace groups what belongs together, relieves the heaviest rank, and says when it wants more memory than there is."""

import itertools
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from grace_opt.gpu import GPU
from grace_opt.homes import Balanced
from grace_opt.model import MoEModel
from grace_opt.plan_file import read_plan, write_plan
from grace_opt.planners.grace import RATIOS, Grace
from grace_opt.planners.linear import Linear
from grace_opt.problem import Problem
from grace_opt.split import Alternate
from grace_opt.topology import Topology
from grace_opt.trace import Trace
from grace_opt.trace_file import read_trace
from grace_opt.traffic import traffic

TINY = GPU("tiny", flops_per_s=1e12, memory_bytes_per_s=1e12, memory_bytes=1e12)
TWO_BY_TWO = Topology.two_level("2x2", TINY, 2, 2, 1e9, 1e-6, 1e8, 1e-5)

# Experts 0, 2, 4, 6 are one clique and 1, 3, 5, 7 the other; {0, 4}, {2, 6}, {1, 5}, {3, 7} are chosen together most.
CLIQUES = {pair: 2 for clique in ((0, 2, 4, 6), (1, 3, 5, 7)) for pair in itertools.combinations(clique, 2)}
NESTED = {**CLIQUES, (0, 4): 20, (2, 6): 20, (1, 5): 20, (3, 7): 20, (0, 1): 1}


def problem_of(pairs_of_layer, num_experts=8, slots=8, topology=TWO_BY_TWO):
    """A problem of top-2 tokens, given as {(expert, expert): tokens} for each layer; layers of equal token numbers."""
    ids = np.array([[pair for pair, n in pairs.items() for _ in range(n)] for pairs in pairs_of_layer], np.uint8)
    model = MoEModel("tiny", len(ids), num_experts, 2, 4, 4, first_moe_layer=1)
    return Problem(model, topology, Trace(ids, [0], [ids.shape[1]], [0], ("text",), num_experts, homes=[0]), slots)


def random_problem(seed, num_experts, nodes, ranks_per_node, spare, num_layers=2):
    random = np.random.default_rng(seed)
    topology = Topology.two_level("random", TINY, nodes, ranks_per_node, 1e9, 1e-6, 1e8, 1e-5)
    top_k = int(random.integers(1, min(num_experts, 4) + 1))
    popularity = random.gumbel(size=(num_layers, 60, num_experts)) + 2 * random.random((num_layers, 1, num_experts))
    ids = np.argsort(popularity, axis=2)[..., :top_k].astype(np.uint8)
    ranks = nodes * ranks_per_node
    slots = np.full(ranks, -(-num_experts // ranks)) + random.integers(0, spare + 1, ranks)
    model = MoEModel("random", num_layers, num_experts, top_k, 4, 4)
    return Problem(model, topology, Trace(ids, [0], [60], [0], ("text",), num_experts, homes=[0]), slots)


PROBLEMS = st.builds(
    random_problem,
    st.integers(0, 2**32 - 1),
    st.integers(1, 20),
    st.integers(1, 3),
    st.integers(1, 3),
    st.integers(0, 4),
)
OPTIONS = st.fixed_dictionaries(
    {
        "grouping": st.sampled_from(["uniform", "controlled", "non_uniform"]),
        "ratio": st.sampled_from([None, 0, 0.15, 0.5]),
        "levels": st.sampled_from([1, 2]),
        "replication": st.sampled_from(["none", "fixed", "dynamic"]),
        "routing": st.sampled_from(["wrr", "tar"]),
        "load_prediction": st.sampled_from(["even_split", "as_printed"]),
        "embedding": st.sampled_from(["random_walk", "unit_rows"]),
    }
).map(lambda options: without_unread(**options))


def without_unread(**options):
    """Options that the others leave without a reader, back at their defaults: to set them is an error."""
    if options["grouping"] != "controlled":
        options["ratio"] = Grace.ratio
    if options["replication"] == "none":
        options |= {"routing": Grace.routing, "load_prediction": Grace.load_prediction}
    return options


def sizes(problem, **options):
    """[L, R] experts of each rank, without copies."""
    roomy = replace(problem, slots=problem.model.num_experts)
    return Grace(replication="none", **options)(roomy).plan.placement.slots_used


def test_cliques_go_to_nodes_and_their_closest_pairs_to_ranks():
    plan = Grace(replication="none")(problem_of([NESTED])).plan
    assert plan.placement.to_lists() == [[[0, 4], [2, 6], [1, 5], [3, 7]]]
    assert plan.routing.policy == "primary"


def test_every_layer_is_planned_by_itself():
    swapped = {(7 - i, 7 - j): tokens for (i, j), tokens in NESTED.items()}
    both = Grace()(problem_of([NESTED, swapped])).plan.placement.to_lists()
    assert both == [Grace()(problem_of([pairs])).plan.placement.to_lists()[0] for pairs in (NESTED, swapped)]


def test_one_level_divides_experts_over_all_ranks_at_once():
    plan = Grace(levels=1, replication="none")(problem_of([NESTED])).plan
    assert plan.placement.to_lists() == [[[0, 4], [1, 5], [2, 6], [3, 7]]]


def test_on_one_node_two_levels_are_one():
    single = Topology.two_level("1x4", TINY, 1, 4, 1e9, 1e-6)
    plans = [Grace(levels=levels)(problem_of([NESTED], topology=single)).plan for levels in (1, 2)]
    assert plans[0].placement.to_lists() == plans[1].placement.to_lists()


def test_node_sizes_are_free_but_rank_sizes_are_controlled():
    # A clique of 6 and one of 2: nodes of 6 and 2 experts; inside, E = 3 and 1, slack 1.
    pairs = {pair: 9 for clique in (range(6), (6, 7)) for pair in itertools.combinations(clique, 2)} | {(5, 6): 1}
    used = sizes(problem_of([pairs]))[0]
    assert used[:2].sum() == 6
    assert ((used[:2] >= 2) & (used[:2] <= 4)).all()
    assert used[2:].tolist() == [1, 1]


def test_a_node_gets_at_least_one_expert_a_rank():
    pairs = dict.fromkeys(itertools.combinations(range(7), 2), 9) | {(6, 7): 1}
    assert (sizes(problem_of([pairs]), grouping="non_uniform") >= 1).all()


@given(PROBLEMS, st.sampled_from([1, 2]))
@settings(max_examples=30)
def test_uniform_ranks_are_at_most_one_expert_apart(problem, levels):
    used_LR = sizes(problem, grouping="uniform", levels=levels)
    assert (np.ptp(used_LR, axis=1) <= 1).all()


@given(PROBLEMS, st.sampled_from([0.05, 0.15, 0.4, 1]), st.sampled_from([1, 2]))
@settings(max_examples=40)
def test_controlled_sizes_lie_within_the_slack_of_the_ideal(problem, ratio, levels):
    used_LR = sizes(problem, ratio=ratio, levels=levels)
    nodes = 1 if levels == 1 else problem.topology.num_nodes
    for used_NG in used_LR.reshape(len(used_LR), nodes, -1):
        ideal_N = used_NG.sum(axis=1, keepdims=True) // used_NG.shape[1]
        slack_N = np.maximum(1, np.round(ideal_N * ratio))
        assert (
            (used_NG >= np.minimum(np.maximum(1, ideal_N - slack_N), ideal_N)) & (used_NG <= ideal_N + slack_N)
        ).all()


def test_the_knee_is_a_ratio_of_the_grid_and_the_same_for_all_layers():
    problem = replace(random_problem(0, 16, 2, 2, 0), slots=32)
    plans = {ratio: Grace(ratio=ratio)(problem).plan.placement.to_lists() for ratio in (*RATIOS, None)}
    assert plans[None] in [plans[ratio] for ratio in RATIOS]


def test_without_affinity_between_experts_the_knee_is_equal_sizes():
    ids = np.arange(8, dtype=np.uint8).reshape(1, 8, 1)
    problem = Problem(
        MoEModel("top1", 1, 8, 1, 4, 4), TWO_BY_TWO, Trace(ids, [0], [8], [0], ("text",), 8, homes=[0]), slots=8
    )
    assert sizes(problem, ratio=None, levels=1).tolist() == [[2, 2, 2, 2]]


def test_hot_experts_of_the_heaviest_rank_are_copied_and_polled_by_predicted_load():
    # Ranks {0, 4}, {2, 6}, {1, 5}, {3, 7} carry 127, 48, 49, 48, the mean is 68: n = 1, and expert 0 (64 > 63.5)
    # goes to rank 1. Predicted: 127 - 64 + 32 = 95 and 48 + 32 = 80.
    plan = Grace(routing="wrr")(problem_of([{**NESTED, (0, 4): 59}])).plan
    assert plan.placement.to_lists() == [[[0, 4], [2, 6, 0], [1, 5], [3, 7]]]
    assert plan.routing.policy == "wrr"
    assert plan.routing.weights[0, :, 0].tolist() == [0.715789, 0.85, 1.38776, 1.41667]
    assert plan.routing.weights[0, :, 2].tolist() == [0, 0.85, 0, 0]


def test_both_load_predictions_place_alike_and_poll_differently():
    plans = [
        Grace(load_prediction=rule)(problem_of([{**NESTED, (0, 4): 59}])).plan for rule in ("even_split", "as_printed")
    ]
    assert (plans[0].placement.slots == plans[1].placement.slots).all()
    assert plans[0].routing.weights[0, 0, 0] > plans[1].routing.weights[0, 0, 0]


def test_the_weights_in_memory_are_those_on_disk(tmp_path):
    plan = Grace()(replace(random_problem(1, 12, 2, 2, 0), slots=24)).plan
    write_plan(tmp_path / "plan.json", plan)
    assert (read_plan(tmp_path / "plan.json").routing.weights == plan.routing.weights).all()


def test_a_budget_that_is_too_small_is_refused_with_the_way_out():
    with pytest.raises(ValueError, match="grace wants") as refusal:
        Grace()(problem_of([{**NESTED, (0, 4): 59}], slots=2))
    assert str(refusal.value) == (
        "grace wants 3 slots per rank (layer 1, rank 1), the budget is 2: "
        "give slots_per_rank=3, or planner=grace_trimmed"
    )


def test_trimmed_groups_are_capped_by_the_slots_of_rank_and_node():
    pairs = dict.fromkeys(itertools.combinations(range(7), 2), 9) | {(6, 7): 1}
    problem = problem_of([pairs], slots=[3, 2, 2, 3])
    used = Grace(over_budget="trim", grouping="non_uniform", replication="none")(problem).plan.placement.slots_used[0]
    assert used[:2].sum() <= 5
    assert (used <= [3, 2, 2, 3]).all()


def test_with_slots_enough_trimming_changes_nothing():
    problem = random_problem(2, 16, 2, 2, 0)
    roomy = replace(problem, slots=16 + 16)
    assert Grace()(roomy).plan.placement.to_lists() == Grace(over_budget="trim")(roomy).plan.placement.to_lists()


@given(PROBLEMS, OPTIONS)
@settings(max_examples=60)
def test_a_trimmed_plan_never_exceeds_its_budget(problem, options):
    plan = Grace(over_budget="trim", **options)(problem).plan  # the plan is checked against the problem when made
    assert (plan.placement.slots_used <= problem.slots_per_rank).all()


@given(PROBLEMS, OPTIONS)
@settings(max_examples=30)
def test_slots_wanted_are_exactly_enough(problem, options):
    wanted = Grace(over_budget="trim", **options).slots_wanted(problem)
    assert Grace(**options)(replace(problem, slots=wanted)).plan.placement.slots.shape[2] == wanted
    if (wanted - 1) * problem.topology.num_ranks >= problem.model.num_experts:
        with pytest.raises(ValueError, match=f"give slots_per_rank={wanted}, or"):
            Grace(**options)(replace(problem, slots=wanted - 1))


@given(PROBLEMS, OPTIONS)
@settings(max_examples=20)
def test_the_same_problem_gets_the_same_plan(problem, options):
    first, second = (Grace(over_budget="trim", **options)(problem).plan for _ in range(2))
    assert first.placement.to_lists() == second.placement.to_lists()
    assert options["replication"] == "none" or (first.routing.weights == second.routing.weights).all()


@pytest.mark.parametrize(
    "option",
    [
        {"grouping": "even"},
        {"levels": 3},
        {"routing": "primary"},
        {"replication": "all"},
        {"ratio": -1},
        {"ratio": "knee"},
    ],
)
def test_options_say_what_they_accept(option):
    with pytest.raises(ValueError, match=f"^grace: {next(iter(option))} must "):
        Grace(**option)


def test_on_a_real_recording_each_step_moves_traffic_as_the_paper_says(shared_traces):
    trace = read_trace(shared_traces / "deepseek-v2-lite.npz")
    fit, held_out = (Balanced()(part, 4) for part in Alternate()(replace(trace, expert_ids=trace.expert_ids[9:13])))
    problem = Problem(MoEModel(trace.model, 4, 64, 6, 2048, 1408), TWO_BY_TWO, fit, slots=64)

    def cross(planner):
        return int(traffic(held_out, planner(problem).plan).cross_node_rows("hierarchical").sum())

    uniform = cross(Grace(grouping="uniform", replication="none"))
    grouped = cross(Grace(replication="none"))
    polled = cross(Grace(routing="wrr"))
    nearest = cross(Grace())
    assert nearest < grouped < polled < cross(Linear())
    assert grouped < uniform < cross(Linear())


@pytest.mark.parametrize(
    "unused",
    [
        {"grouping": "uniform", "ratio": 0.9},
        {"replication": "none", "routing": "wrr"},
        {"replication": "none", "load_prediction": "as_printed"},
    ],
)
def test_an_option_that_would_not_be_read_is_an_error(unused):
    with pytest.raises(ValueError, match="read"):
        Grace(**unused)

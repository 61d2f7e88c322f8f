"""EPLB gives what the original gives, its options keep their promises, and what cannot be done is said."""

import warnings

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from grace_opt.gpu import GPU
from grace_opt.model import MoEModel
from grace_opt.planners.eplb import Eplb, rebalance
from grace_opt.problem import Problem
from grace_opt.topology import Topology
from grace_opt.trace import Trace

TINY = GPU("tiny", flops_per_s=1e12, memory_bytes_per_s=1e12, memory_bytes=1e9)


def problem_of(loads, slots, num_nodes=1, ranks_per_node=2, num_expert_groups=1):
    """Tokens choose one expert each, expert e of layer l in loads[l][e] tokens; layers of equal total."""
    ids = np.array([[[e] for e, load in enumerate(layer) for _ in range(load)] for layer in loads], np.uint8)
    model = MoEModel("tiny", len(loads), len(loads[0]), 1, 4, 4, num_expert_groups=num_expert_groups)
    topology = Topology.two_level("demo", TINY, num_nodes, ranks_per_node, 1e9, 1e-6, 1e8, 1e-5)
    trace = Trace(ids, [0], [ids.shape[1]], [0], ("text",), len(loads[0]), homes=[0])
    return Problem(model, topology, trace, slots)


def repeats(experts):
    """Copies beyond the first of an expert on its rank."""
    return sum(len(rank) - len(set(rank)) for layer in experts for rank in layer)


# The slow reference: one layer, lists, no options.


def reference_pack(weights, num_packs):
    packs = [[] for _ in range(num_packs)]
    room = len(weights) // num_packs
    if room == 1:
        return [[item] for item in range(num_packs)]
    total = [np.float32(0)] * num_packs
    for item in sorted(range(len(weights)), key=lambda item: -weights[item]):
        pack = min((p for p in range(num_packs) if len(packs[p]) < room), key=lambda p: total[p])
        packs[pack].append(item)
        total[pack] += weights[item]
    return packs


def reference_rebalance(loads, num_replicas, num_groups, num_nodes, num_gpus):
    loads = [np.float32(load) for load in loads]
    if num_groups % num_nodes:
        num_groups = num_nodes = 1
    size = len(loads) // num_groups
    group_loads = [sum(loads[g * size : (g + 1) * size], np.float32(0)) for g in range(num_groups)]
    result = []
    for groups in reference_pack(group_loads, num_nodes):
        members = [g * size + i for g in groups for i in range(size)]
        copies = [[member] for member in range(len(members))]

        def share(member, members=members, copies=copies):
            return loads[members[member]] / np.float32(len(copies[member]))

        owners = list(range(len(members)))
        while len(owners) < num_replicas // num_nodes:
            owners.append(max(range(len(members)), key=share))
            copies[owners[-1]].append(owners[-1])
        for rank in reference_pack([share(owner) for owner in owners], num_gpus // num_nodes):
            result += [members[owners[copy]] for copy in rank]
    return result


@st.composite
def layers(draw):
    """Loads [L, E] with ties, and replicas, groups, nodes and GPUs that divide; groups do not always fit the nodes."""
    num_nodes = draw(st.integers(1, 3))
    num_groups = draw(st.sampled_from([1, num_nodes, 2 * num_nodes, 3 * num_nodes, num_nodes + 1]))
    num_experts = num_groups * draw(st.integers(1, 4))
    num_gpus = num_nodes * draw(st.integers(1, 3))
    slots = -(-num_experts // num_gpus) + draw(st.integers(0, 3))
    load = draw(st.sampled_from([st.integers(0, 3), st.integers(0, 1000), st.floats(0, 100, width=32)]))
    loads = draw(st.lists(st.lists(load, min_size=num_experts, max_size=num_experts), min_size=1, max_size=3))
    return loads, slots * num_gpus, num_groups, num_nodes, num_gpus


def test_the_worked_example_of_the_class():
    problem = problem_of([[6, 3, 2, 1]], slots=3)
    assert Eplb()(problem).plan.placement.to_lists() == [[[1, 0, 3], [0, 2, 0]]]
    assert Eplb(forbid_duplicates=True)(problem).plan.placement.to_lists() == [[[0, 1, 3], [0, 2, 1]]]


def test_the_published_example_is_reproduced():
    # Two layers of 12 experts in 4 groups, 16 replicas, 2 nodes of 4 GPUs: the example of the original's README.
    loads = [
        [90, 132, 40, 61, 104, 165, 39, 4, 73, 56, 183, 86],
        [20, 107, 104, 64, 19, 197, 187, 157, 172, 86, 16, 27],
    ]
    assert rebalance(loads, num_replicas=16, num_groups=4, num_nodes=2, num_gpus=8).tolist() == [
        [5, 6, 5, 7, 8, 4, 3, 4, 10, 9, 10, 2, 0, 1, 11, 1],
        [7, 10, 6, 8, 6, 11, 8, 9, 2, 4, 5, 1, 5, 0, 3, 1],
    ]


@settings(max_examples=150, deadline=None)
@given(layers())
def test_the_kernel_gives_what_the_slow_reference_gives(case):
    loads, *sizes = case
    assert rebalance(loads, *sizes).tolist() == [reference_rebalance(layer, *sizes) for layer in loads]


@settings(max_examples=150, deadline=None)
@given(layers())
def test_forbidding_duplicates_leaves_none_and_still_places_every_expert(case):
    loads, num_replicas, num_groups, num_nodes, num_gpus = case
    nodes = num_nodes if num_groups % num_nodes == 0 else 1
    slots, experts_of_node = num_replicas // num_gpus, len(loads[0]) // nodes
    if slots > experts_of_node:
        with pytest.raises(ValueError, match="cannot hold different experts"):
            rebalance(*case, forbid_duplicates=True)
        return
    experts_LP = rebalance(*case, forbid_duplicates=True)
    assert (experts_LP == rebalance(*case, forbid_duplicates=True)).all()
    assert repeats(experts_LP.reshape(len(loads), num_gpus, slots).tolist()) == 0
    for layer in experts_LP:
        assert set(layer) == set(range(len(loads[0])))
        node_sets = [set(node) for node in layer.reshape(nodes, -1).tolist()]
        assert sum(len(node) for node in node_sets) == len(loads[0])  # a repair leaves copies on their node


def test_forbidding_duplicates_changes_nothing_where_there_are_none():
    loads = np.arange(1, 17)[None] * 10  # the heaviest expert gets 2 copies at most, on different ranks
    assert repeats(rebalance(loads, 20, 1, 1, 4).reshape(1, 4, 5).tolist()) == 0
    assert (rebalance(loads, 20, 1, 1, 4) == rebalance(loads, 20, 1, 1, 4, forbid_duplicates=True)).all()


def test_an_expert_gets_no_more_copies_than_ranks_if_duplicates_are_forbidden():
    problem = problem_of([[90, 1, 1, 1]], slots=4)
    assert Eplb()(problem).plan.placement.num_copies.tolist() == [[5, 1, 1, 1]]
    assert Eplb(forbid_duplicates=True)(problem).plan.placement.num_copies.tolist() == [[2, 2, 2, 2]]


def test_without_spare_slots_experts_are_only_packed():
    # 8 first, then 4 and 3 to the other rank, which is full; 1 goes back.
    plan = Eplb()(problem_of([[1, 3, 4, 8]], slots=2)).plan
    assert plan.placement.to_lists() == [[[3, 0], [2, 1]]]


def test_every_slot_is_filled_and_copies_are_polled_in_turn():
    problem = problem_of([[6, 3, 2, 1], [3, 3, 3, 3]], slots=3)
    plan = Eplb()(problem).plan
    assert plan.placement.slots_used.tolist() == [[3, 3], [3, 3]]
    assert plan.routing.policy == "uniform"
    assert plan.provenance["planner"] == "eplb"


def test_the_plan_is_the_same_every_time():
    problem = problem_of([[5, 5, 5, 5, 2, 2, 2, 2]], slots=5)
    assert (Eplb()(problem).plan.placement.slots == Eplb()(problem).plan.placement.slots).all()


def test_groups_stay_on_one_node():
    # Groups (0 1) of load 7, (2 3) of 5, (4 5) of 3, (6 7) of 1: the heaviest and the lightest share a node.
    problem = problem_of([[4, 3, 3, 2, 2, 1, 1, 0]], 3, num_nodes=2, num_expert_groups=4)
    plan = Eplb(hierarchical=True)(problem).plan
    experts_of_node = [{*ranks[0], *ranks[1]} for ranks in np.reshape(plan.placement.slots[0], (2, 2, 3)).tolist()]
    assert experts_of_node == [{0, 1, 6, 7}, {2, 3, 4, 5}]
    assert plan.provenance["planner"] == "eplb_hierarchical"


@pytest.mark.parametrize("num_groups", [None, 8])
def test_without_groups_in_the_model_every_expert_is_its_own_group(num_groups):
    problem = problem_of([[4, 3, 3, 2, 2, 1, 1, 0]], 2, num_nodes=2)
    plan = Eplb(hierarchical=True, num_groups=num_groups)(problem).plan
    load_of_node = np.array([4, 3, 3, 2, 2, 1, 1, 0])[plan.placement.slots[0]].reshape(2, -1).sum(axis=1)
    assert load_of_node.tolist() == [8, 8]


def test_a_hierarchy_that_does_not_fit_the_nodes_falls_back_to_flat_with_a_warning():
    problem = problem_of([[4, 3, 3, 2, 2, 1, 1, 0, 1]], 3, num_nodes=2, num_expert_groups=3)
    with pytest.warns(UserWarning, match="the flat policy runs: model tiny has 3 expert groups"):
        plan = Eplb(hierarchical=True)(problem).plan
    assert plan.placement.to_lists() == Eplb()(problem).plan.placement.to_lists()
    assert plan.provenance["planner"] == "eplb"


def test_on_one_node_the_hierarchy_needs_no_warning():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        Eplb(hierarchical=True)(problem_of([[6, 3, 2, 1]], slots=3))


@pytest.mark.parametrize("num_groups", [3, 4, 16])
def test_a_number_of_groups_that_does_not_divide_is_an_error(num_groups):
    problem = problem_of([[4, 3, 3, 2, 2, 1]], 3, num_nodes=2)
    with pytest.raises(ValueError, match=f"num_groups={num_groups} must be a multiple of the 2 nodes"):
        Eplb(hierarchical=True, num_groups=num_groups)(problem)


def test_options_that_would_not_be_read_are_errors():
    with pytest.raises(ValueError, match="set hierarchical=true"):
        Eplb(num_groups=4)
    with pytest.raises(ValueError, match="num_groups must be at least 1, got 0"):
        Eplb(hierarchical=True, num_groups=0)


def test_ranks_with_different_slots_are_refused():
    with pytest.raises(ValueError, match="slots_per_rank runs from 2 to 3: give all ranks the same number"):
        Eplb()(problem_of([[6, 3, 2, 1]], slots=[3, 2]))


def test_more_slots_than_different_experts_are_refused_if_duplicates_are_forbidden():
    with pytest.raises(ValueError, match="5 slots on a GPU cannot hold different experts, there are only 4"):
        Eplb(forbid_duplicates=True)(problem_of([[6, 3, 2, 1]], slots=5))


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        ((6, 3, 1, 2), "4 experts do not divide into 3 groups"),
        ((6, 2, 2, 3), "3 GPUs do not divide over 2 nodes"),
        ((7, 1, 1, 2), "7 replicas do not divide over 2 GPUs"),
        ((2, 1, 1, 2), "2 replicas are fewer than the 4 experts"),
        ((6, 0, 1, 2), "at least one group, node and GPU"),
    ],
)
def test_sizes_that_do_not_divide_are_named(sizes, message):
    with pytest.raises(ValueError, match=message):
        rebalance([[6, 3, 2, 1]], *sizes)


@pytest.mark.parametrize("loads", [[1, 2], [[1, -2]], [[1, np.nan]], [[]]])
def test_loads_that_are_no_loads_are_refused(loads):
    with pytest.raises(ValueError, match="loads must be finite, not negative"):
        rebalance(loads, 2, 1, 1, 1)

"""Occult grows equal groups around far-apart seeds; the open details are those its module states."""

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from grace_opt.gpu import GPU
from grace_opt.model import MoEModel
from grace_opt.planners.occult import Occult, grow_groups
from grace_opt.problem import Problem
from grace_opt.topology import Topology
from grace_opt.trace import Trace

TINY = GPU("tiny", flops_per_s=1e12, memory_bytes_per_s=1e12, memory_bytes=1e9)


def problem_of(pairs_of_layer, num_experts, slots, ranks=2):
    """A problem of top-2 tokens, given as {(expert, expert): tokens} for each layer; layers of equal token numbers."""
    ids = np.array([[pair for pair, n in pairs.items() for _ in range(n)] for pairs in pairs_of_layer], np.uint8)
    model = MoEModel("tiny", len(ids), num_experts, 2, 4, 4)
    topology = Topology.two_level("demo", TINY, 1, ranks, 1e9, 1e-6)
    return Problem(model, topology, Trace(ids, [0], [ids.shape[1]], [0], ("text",), num_experts, homes=[0]), slots)


def matrix(pairs, num_experts):
    affinity_EE = np.zeros((num_experts, num_experts), np.int64)
    for (i, j), tokens in pairs.items():
        affinity_EE[i, j] = affinity_EE[j, i] = tokens
    return affinity_EE


def reference_groups(affinity_EE, sizes):
    """The slow reference: sums over members, written out."""
    everyone = range(len(affinity_EE))
    groups = [[] for _ in sizes]

    def pull(expert, members):
        return sum(int(affinity_EE[expert, member]) for member in members)

    def free():
        return [e for e in everyone if not any(e in group for group in groups)]

    for group, size in zip(groups, sizes, strict=True):
        if size:
            seeds = [g[0] for g in groups if g]
            group.append(min(free(), key=lambda e: (pull(e, seeds), -pull(e, everyone), e)))
    while free():
        for group, size in zip(groups, sizes, strict=True):
            if len(group) < size:
                group.append(max(free(), key=lambda e: (pull(e, group), -e)))
    return [next(i for i, group in enumerate(groups) if e in group) for e in everyone]


@st.composite
def graphs(draw):
    sizes = draw(st.lists(st.integers(0, 4), min_size=1, max_size=5).filter(sum))
    upper = draw(st.lists(st.integers(0, 5), min_size=sum(sizes) ** 2, max_size=sum(sizes) ** 2))
    square = np.triu(np.array(upper, np.int64).reshape(sum(sizes), -1), 1)
    return square + square.T, np.array(sizes)


def test_the_worked_example_of_the_class():
    plan = Occult()(problem_of([{(0, 2): 3, (1, 3): 2, (0, 1): 1}], 4, slots=2)).plan
    assert plan.placement.to_lists() == [[[0, 2], [1, 3]]]


def test_experts_that_are_never_chosen_do_not_become_seeds_before_busy_ones():
    # 0 is the first seed; 2, 3 and 4 are never chosen with it, and 4 is never chosen at all.
    affinity_EE = matrix({(0, 1): 5, (2, 3): 4}, 5)
    assert grow_groups(affinity_EE, np.array([2, 3])).tolist() == [0, 0, 1, 1, 1]


def test_groups_take_turns():
    # Seeds 0 and 3, the only expert never chosen with 0. Group 0 takes 1; then the other group takes 2, though 0 pulls
    # it harder; 4 is left for group 0.
    affinity_EE = matrix({(0, 1): 9, (0, 2): 8, (2, 3): 1, (0, 4): 1}, 5)
    assert grow_groups(affinity_EE, np.array([3, 2])).tolist() == [0, 0, 1, 1, 0]


def test_an_expert_joins_by_its_affinity_to_the_whole_group():
    # Seeds 0 and 4; 1 joins 0 and 5 joins 4. Expert 2 has 2 + 2 with 0 and 1, expert 3 only 3 with 0.
    affinity_EE = matrix({(0, 1): 9, (0, 2): 2, (1, 2): 2, (0, 3): 3, (4, 5): 8}, 6)
    assert grow_groups(affinity_EE, np.array([3, 3])).tolist() == [0, 0, 0, 1, 1, 1]


def test_every_layer_has_its_own_groups():
    plan = Occult()(problem_of([{(0, 1): 3, (2, 3): 3}, {(0, 3): 3, (1, 2): 3}], 4, slots=2)).plan
    assert plan.placement.to_lists() == [[[0, 1], [2, 3]], [[0, 3], [1, 2]]]


def test_groups_are_equal_and_spare_slots_stay_empty():
    plan = Occult()(problem_of([{(0, 1): 2, (2, 3): 2, (4, 0): 1}], 5, slots=4)).plan
    assert plan.placement.slots_used.tolist() == [[3, 2]]
    assert plan.placement.num_copies.tolist() == [[1, 1, 1, 1, 1]]
    assert plan.routing.policy == "primary"
    assert plan.provenance["planner"] == "occult"


def test_a_rank_with_fewer_slots_gets_a_smaller_group():
    plan = Occult()(problem_of([{(0, 1): 2, (2, 3): 2, (1, 3): 1}], 4, slots=[1, 3])).plan
    assert plan.placement.slots_used.tolist() == [[1, 3]]


def test_more_ranks_than_experts_leave_ranks_empty():
    plan = Occult()(problem_of([{(0, 1): 2}], 2, slots=1, ranks=3)).plan
    assert plan.placement.to_lists() == [[[0], [1], []]]


@settings(max_examples=100, deadline=None)
@given(graphs())
def test_groups_are_those_of_the_slow_reference(graph):
    affinity_EE, sizes_R = graph
    group_E = grow_groups(affinity_EE, sizes_R)
    assert group_E.tolist() == reference_groups(affinity_EE, sizes_R.tolist())
    assert np.bincount(group_E, minlength=len(sizes_R)).tolist() == sizes_R.tolist()

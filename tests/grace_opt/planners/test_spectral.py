"""Experts that tokens choose together are clustered, and groups end within their limits."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from grace_opt.planners.spectral import (
    EMBEDDINGS,
    affinity_inside,
    k_means,
    knee,
    number_groups,
    size_limits,
    slack,
    spectral_clustering,
    within_limits,
)


def matrix(pairs, num_experts):
    affinity_EE = np.zeros((num_experts, num_experts), np.int64)
    for (i, j), tokens in pairs.items():
        affinity_EE[i, j] = affinity_EE[j, i] = tokens
    return affinity_EE


def cliques(*members):
    return {(i, j): 9 for clique in members for i in clique for j in clique if i < j}


CHAIN = matrix({(0, 1): 3, (1, 2): 2, (2, 3): 1}, 4)


@st.composite
def graphs(draw):
    num_experts = draw(st.integers(1, 14))
    random = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    values = random.integers(0, 20, (num_experts, num_experts))
    square = np.triu(values * (random.random(values.shape) < draw(st.sampled_from([0, 0.1, 0.5, 1]))), 1)
    return square + square.T


@st.composite
def starts(draw):
    """(affinity, groups, smallest, largest): anything that limits within room allow."""
    affinity_EE = draw(graphs())
    num_groups = draw(st.integers(1, 6))
    room_G = np.array(draw(st.lists(st.integers(0, 9), min_size=num_groups, max_size=num_groups)))
    room_G[draw(st.integers(0, num_groups - 1))] += max(0, len(affinity_EE) - room_G.sum())
    group_E = np.random.default_rng(draw(st.integers(0, 99))).integers(num_groups, size=len(affinity_EE))
    return affinity_EE, group_E, *size_limits(len(affinity_EE), room_G, draw(st.integers(0, 14)))


def reference_within_limits(group_E, affinity_EE, smallest_G, largest_G):
    """The slow reference: members as lists, every affinity summed afresh."""
    everyone = range(len(group_E))
    groups = [[e for e in everyone if group_E[e] == g] for g in range(len(largest_G))]

    def pull(expert, members):
        return sum(int(affinity_EE[expert, member]) for member in members)

    for g, members in enumerate(groups):
        groups[g] = sorted(members, key=lambda e: (-pull(e, members), e))[: largest_G[g]]
    while free := [e for e in everyone if not any(e in group for group in groups)]:
        pairs = [(e, g) for e in free for g, group in enumerate(groups) if len(group) < largest_G[g]]
        expert, target = max(pairs, key=lambda pair: (pull(pair[0], groups[pair[1]]), -pair[0], -pair[1]))
        groups[target].append(expert)
    while needy := [g for g, group in enumerate(groups) if len(group) < smallest_G[g]]:
        home = {e: g for g, group in enumerate(groups) for e in group}
        pairs = [(e, g) for e in everyone if len(groups[home[e]]) > smallest_G[home[e]] for g in needy]
        expert, target = min(
            pairs, key=lambda pair: (pull(pair[0], groups[home[pair[0]]]) - pull(pair[0], groups[pair[1]]), *pair)
        )
        groups[home[expert]].remove(expert)
        groups[target].append(expert)
    return [next(g for g, group in enumerate(groups) if e in group) for e in everyone]


@pytest.mark.parametrize("embedding", EMBEDDINGS)
def test_two_cliques_with_a_weak_bridge_are_two_clusters(embedding):
    affinity_EE = matrix({**cliques((0, 2, 4), (1, 3, 5)), (0, 1): 1}, 6)
    cluster_E = spectral_clustering(affinity_EE, 2, embedding, seed=0)
    assert cluster_E.tolist() in ([0, 1, 0, 1, 0, 1], [1, 0, 1, 0, 1, 0])


@pytest.mark.parametrize("embedding", EMBEDDINGS)
def test_cliques_stay_whole_when_there_are_more_of_them_than_clusters(embedding):
    cluster_E = spectral_clustering(matrix(cliques((0, 1, 2), (3, 4, 5), (6, 7, 8)), 10), 2, embedding, seed=0)
    assert all(len(set(cluster_E[first : first + 3])) == 1 for first in (0, 3, 6))


@given(graphs(), st.integers(1, 6), st.sampled_from(EMBEDDINGS))
def test_any_graph_is_clustered_the_same_way_twice(affinity_EE, num_groups, embedding):
    cluster_E = spectral_clustering(affinity_EE, num_groups, embedding, seed=3)
    assert ((cluster_E >= 0) & (cluster_E < max(num_groups, len(affinity_EE)))).all()
    assert (cluster_E == spectral_clustering(affinity_EE, num_groups, embedding, seed=3)).all()


def test_points_that_coincide_leave_clusters_empty():
    assert k_means(np.zeros((5, 2)), 3, seed=0).tolist() == [0] * 5


def test_groups_are_numbered_by_their_smallest_expert():
    assert number_groups(np.array([2, 0, 2, 1]), np.array([4, 4, 4])).tolist() == [0, 1, 0, 2]


def test_larger_clusters_go_where_there_is_more_room():
    assert number_groups(np.array([1, 0, 0, 2]), np.array([1, 3, 2])).tolist() == [2, 1, 1, 0]


@pytest.mark.parametrize(
    ("num_experts", "ranks", "ratio", "expected"),
    [
        (64, 4, 0.15, (14, 18)),  # E = 16, d = round(2.4)
        (64, 4, 0, (16, 16)),
        (10, 4, 0, (2, 3)),  # 4 does not divide 10
        (8, 4, 0.15, (1, 3)),  # d is at least 1
        (4, 4, 1, (1, 2)),  # a group keeps at least one expert
        (2, 4, 0.15, (0, 1)),
    ],
)  # fmt: skip
def test_limits_are_the_ideal_size_and_the_slack(num_experts, ranks, ratio, expected):
    smallest_G, largest_G = size_limits(num_experts, np.full(ranks, 64), slack(num_experts, ranks, ratio))
    assert set(zip(smallest_G.tolist(), largest_G.tolist(), strict=True)) == {expected}


def test_limits_give_way_where_room_is_uneven():
    smallest_G, largest_G = size_limits(8, np.array([2, 6]), 0)
    assert (smallest_G.tolist(), largest_G.tolist()) == ([2, 4], [2, 6])


def test_the_worked_example_of_within_limits():
    group_E = within_limits(np.array([0, 0, 0, 1]), CHAIN, np.array([2, 2]), np.array([2, 2]))
    assert group_E.tolist() == [0, 0, 1, 1]


def test_a_released_expert_passes_over_the_group_it_likes_best_if_that_is_full():
    # Group 0 releases 4, its least affine member, which is most often chosen with 2, in the full group 1.
    affinity_EE = matrix({(0, 1): 9, (1, 4): 1, (2, 3): 9, (2, 4): 8}, 6)
    group_E = within_limits(np.array([0, 0, 1, 1, 0, 2]), affinity_EE, np.array([1, 1, 1]), np.array([2, 2, 2]))
    assert group_E.tolist() == [0, 0, 1, 1, 2, 2]


def test_an_empty_group_receives_the_expert_that_loses_least():
    # Leaving costs 3, 5, 3 (experts 0, 1, 2) and 1 (experts 3, 4), but {3, 4} can spare one only.
    group_E = within_limits(
        np.array([0, 0, 0, 1, 1]),
        matrix({(0, 1): 3, (1, 2): 3, (3, 4): 1}, 5),
        np.array([1, 1, 1]),
        np.array([9, 9, 9]),
    )
    assert group_E.tolist() == [0, 0, 0, 2, 1]


@given(starts())
def test_sizes_end_within_their_limits_as_the_slow_reference_has_it(start):
    affinity_EE, group_E, smallest_G, largest_G = start
    result_E = within_limits(group_E, affinity_EE, smallest_G, largest_G)
    sizes_G = np.bincount(result_E, minlength=len(largest_G))
    assert (smallest_G <= sizes_G).all()
    assert (sizes_G <= largest_G).all()
    assert result_E.tolist() == reference_within_limits(group_E, affinity_EE, smallest_G, largest_G)


def test_affinity_inside_counts_both_orders_of_a_pair():
    assert affinity_inside(np.array([0, 0, 1, 1]), CHAIN) == 2 * (3 + 1)


def test_the_knee_is_where_the_curve_turns_flat():
    assert knee(np.array([0.0, 1, 2, 3, 4]), np.array([0.0, 5, 9, 9.5, 10])) == 2


def test_a_flat_curve_has_its_knee_at_the_start():
    assert knee(np.array([0.0, 1, 2]), np.array([3.0, 3, 3])) == 0

"""The heaviest rank's hot experts are copied to light ranks; loads after that are predicted by either formula."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from grace_opt.planners.dynamic_replication import hot_experts, polling_weights, rank_loads, replicate

LOADS = np.array([60, 30, 20, 10, 50, 20, 10])  # the example of the module
RANKS = np.array([0, 0, 0, 0, 1, 2, 3])
PLENTY = np.full(4, 99)


def test_the_worked_example_of_the_module():
    layer = replicate(LOADS, RANKS, PLENTY, "dynamic")
    assert layer.num_replicas == 2
    assert layer.hosts_of_expert == {0: (3, 2), 1: (3, 2)}
    assert layer.experts_of_ranks() == [[0, 1, 2, 3], [4], [5, 0, 1], [6, 0, 1]]
    assert layer.predicted_load(LOADS, "even_split").tolist() == [60, 50, 50, 40]
    assert layer.predicted_load(LOADS, "as_printed").tolist() == [70, 50, 60, 50]
    assert polling_weights(layer.predicted_load(LOADS, "even_split")) == [0.833333, 1, 1, 1.25]


def test_fixed_replication_copies_the_same_experts_once():
    layer = replicate(LOADS, RANKS, PLENTY, "fixed")
    assert layer.hosts_of_expert == {0: (3,), 1: (3,)}
    assert layer.predicted_load(LOADS, "even_split").tolist() == [75, 50, 20, 55]  # W_r = 90, W_p = 45
    assert layer.predicted_load(LOADS, "as_printed").tolist() == [90, 50, 20, 70]  # W_max = 120, W_p = 60


def test_without_replication_loads_stay():
    layer = replicate(LOADS, RANKS, PLENTY, "none")
    assert layer.hosts_of_expert == {}
    assert layer.predicted_load(LOADS, "as_printed").tolist() == [120, 50, 20, 10]


def test_one_replica_of_half_the_load_is_no_relief_as_printed():
    # n = 1 and expert 0 carries exactly half of rank 0: 10 - 5 + 10 / 2.
    load_E, rank_E = np.array([5, 3, 2, 6]), np.array([0, 0, 0, 1])
    layer = replicate(load_E, rank_E, np.array([9, 9]), "dynamic")
    assert (layer.num_replicas, layer.hosts_of_expert) == (1, {0: (1,)})
    assert layer.predicted_load(load_E, "as_printed").tolist() == [10, 11]
    assert layer.predicted_load(load_E, "even_split").tolist() == [7.5, 8.5]


def test_balanced_ranks_get_a_replica_too():
    layer = replicate(np.array([5, 5, 5]), np.array([0, 1, 2]), np.full(3, 9), "dynamic")
    assert layer.hosts_of_expert == {0: (1,)}


def test_copies_never_outnumber_the_other_ranks():
    layer = replicate(np.array([8, 0, 0]), np.array([0, 1, 2]), np.full(3, 9), "dynamic")
    assert layer.hosts_of_expert == {0: (1, 2)}
    assert polling_weights(layer.predicted_load(np.array([8, 0, 0]), "even_split")) == [1, 1, 1]


def test_the_prefix_stops_exactly_where_the_share_is_reached():
    load_E = np.array([1, 2, 6, 3, 0])  # 8 of 12 are two thirds: 6 < 8 <= 9; 6 of 12 are half
    assert hot_experts(load_E, np.arange(5), 2).tolist() == [2, 3]
    assert hot_experts(load_E, np.arange(5), 1).tolist() == [2]


def test_past_a_full_rank_the_next_lightest_hosts_and_then_copies_are_dropped():
    # One free slot on rank 3, one on rank 1: the hottest expert takes both, the next finds none.
    layer = replicate(LOADS, RANKS, np.array([4, 2, 1, 2]), "dynamic")
    assert layer.hosts_of_expert == {0: (3, 1)}
    assert layer.predicted_load(LOADS, "even_split").tolist() == [80, 70, 20, 30]
    assert layer.predicted_load(LOADS, "as_printed").tolist() == [100, 90, 20, 50]  # W_r = 60, W_p = 40


@pytest.mark.parametrize("load", [np.array([4, 2]), np.array([0, 0])])
def test_a_single_rank_and_a_layer_nobody_uses_get_no_copies(load):
    rank_E = np.array([0, 0]) if load.any() else np.array([0, 1])
    assert replicate(load, rank_E, np.full(rank_E.max() + 1, 9), "dynamic").hosts_of_expert == {}


def test_a_rank_without_load_weighs_one():
    assert polling_weights(np.array([0.0, 2.0, 4.0])) == [1, 1, 0.5]


def test_weights_have_six_digits():
    assert polling_weights(np.array([3.0, 1.0])) == [0.666667, 2]


@given(
    st.lists(st.tuples(st.integers(0, 50), st.integers(0, 4)), min_size=1, max_size=20),
    st.integers(0, 6),
    st.booleans(),
)
def test_an_even_split_moves_load_and_loses_none(experts, spare, fixed):
    load_E, rank_E = (np.array(column) for column in zip(*experts, strict=True))
    room_R = np.bincount(rank_E, minlength=5) + spare
    layer = replicate(load_E, rank_E, room_R, "fixed" if fixed else "dynamic")
    before_R, after_R = rank_loads(load_E, rank_E, 5), layer.predicted_load(load_E, "even_split")
    assert after_R.sum() == pytest.approx(load_E.sum())
    assert after_R[np.argmax(before_R)] <= before_R.max()
    held = layer.experts_of_ranks()
    assert all(len(experts) == len(set(experts)) <= room for experts, room in zip(held, room_R, strict=True))

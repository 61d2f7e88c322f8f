"""Transitions are counted for every pair of choices of a token in neighbouring layers."""

import numpy as np

from grace_opt.planners.transitions import between_groups, crossing, transitions


def test_the_worked_example(problem_of):
    (count_EE,) = transitions(problem_of([[[0, 1]], [[2, 3]]], 4, slots=2).trace)
    assert np.argwhere(count_EE).tolist() == [[0, 2], [0, 3], [1, 2], [1, 3]]
    assert count_EE.sum() == 4


def test_every_pair_of_choices_counts_and_only_the_trace_s_sequences_do(problem_of, random_ids):
    trace = problem_of(random_ids(0, 3, 20, 6, 2), 6, slots=6).trace.select(np.array([7, 3, 4]))
    expected = np.zeros((2, 6, 6), int)
    for layer in range(2):
        for token in (7, 3, 4):
            for i in trace.expert_ids[layer, token]:
                for j in trace.expert_ids[layer + 1, token]:
                    expected[layer, i, j] += 1
    assert np.array_equal(transitions(trace), expected)


def test_transitions_between_groups_add_up_and_those_off_the_diagonal_cross():
    count_EE = np.array([[1, 2], [4, 8]])
    assert between_groups(count_EE, np.array([1, 0]), np.array([0, 0]), 2).tolist() == [[12, 0], [3, 0]]
    assert crossing([count_EE], np.array([[1, 0], [0, 0]])) == 3

"""The split of load over copies: by hand, and against the bound of every set of ranks."""

import itertools

import numpy as np
import pytest

from grace_opt.planners.load_split import polling_shares, split_load
from grace_opt.routing import CYCLE, smooth_round_robin


def random_slots(seed, num_experts, num_ranks, num_slots):
    """[R, S] every expert once, then others, EMPTY last."""
    random = np.random.default_rng(seed)
    held = [
        *random.permutation(num_experts),
        *random.integers(num_experts, size=num_ranks * num_slots - num_experts - 1),
    ]
    return np.append(held, -1).reshape(num_ranks, num_slots)


def test_the_worked_example_of_the_module():
    served_RS, busiest = split_load(np.array([6, 4]), np.array([[0, -1], [1, 0]]))
    assert served_RS == pytest.approx(np.array([[5, 0], [4, 1]]))
    assert busiest == pytest.approx(5)


def test_tokens_that_a_copy_serves_in_any_case_stay_with_it():
    served_RS, busiest = split_load(np.array([6, 4]), np.array([[0, -1], [1, 0]]), np.array([[0, 0], [0, 3]]))
    assert served_RS == pytest.approx(np.array([[3, 0], [4, 3]]))
    assert busiest == pytest.approx(7)


@pytest.mark.parametrize("seed", range(10))
def test_the_busiest_rank_carries_what_some_ranks_must_carry_on_the_mean(seed):
    # Flow theory (max-flow min-cut): least busiest = max over sets of ranks of the load only they can serve / ranks.
    slots_RS = random_slots(seed, 6, 4, 3)
    load_E = np.random.default_rng(seed + 100).integers(0, 50, 6)
    served_RS, busiest = split_load(load_E, slots_RS)
    sets = [ranks for size in range(1, 5) for ranks in itertools.combinations(range(4), size)]
    hosts = [set(np.nonzero(slots_RS == e)[0]) for e in range(6)]
    must = max(sum(load_E[e] for e in range(6) if hosts[e] <= set(ranks)) / len(ranks) for ranks in sets)
    assert busiest == pytest.approx(must)
    assert served_RS.sum(axis=1).max() == pytest.approx(busiest)
    assert [served_RS[slots_RS == e].sum() for e in range(6)] == pytest.approx(load_E.tolist())
    assert (served_RS >= 0).all() and (served_RS[slots_RS < 0] == 0).all()


def test_a_layer_nobody_chose_is_split_too():
    assert split_load(np.zeros(2, int), np.array([[0, 1], [1, -1]]))[1] == 0


def test_a_copy_without_a_share_has_a_positive_weight_but_is_never_polled():
    weights_RS = polling_shares(np.array([[5.0, 0.0], [0.0, 3.0]]), np.array([[0, -1], [0, 1]]))
    assert ((weights_RS > 0) == [[True, False], [True, True]]).all()
    order = smooth_round_robin(weights_RS[:, 0])
    assert len(order) == CYCLE and (order == 0).all()

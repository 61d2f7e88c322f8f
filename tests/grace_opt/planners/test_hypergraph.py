"""Hypergraph partitioning counts destinations exactly, balances load, and keeps the slots."""

import importlib
import importlib.util

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from grace_opt.configuration import build, read_configuration
from grace_opt.plan_file import digest
from grace_opt.planners.hypergraph import Hyperedges, Hypergraph, with_sizes
from grace_opt.traffic import traffic

needs_mt_kahypar = pytest.mark.skipif(
    importlib.util.find_spec("mtkahypar") is None, reason="Mt-KaHyPar is not installed: grace-opt[hypergraph]"
)
TWO_PAIRS = [[0, 2]] * 3 + [[1, 3]] * 3 + [[0, 1]]


def edges_of(ids_TK, num_experts):
    return Hyperedges.of(np.array(ids_TK, np.uint8), num_experts)


def reference_connectivity(ids_TK, group_E):
    """The slow reference: destinations of each token, written out."""
    return sum(len({int(group_E[expert]) for expert in token}) - 1 for token in ids_TK)


@st.composite
def divided_tokens(draw):
    """Tokens, their number of experts, a group of each expert, and the number of groups."""
    num_experts, num_groups = draw(st.integers(2, 8)), draw(st.integers(2, 4))
    top_k = draw(st.integers(1, num_experts))
    token = st.permutations(range(num_experts)).map(lambda order: order[:top_k])
    groups = st.lists(st.integers(0, num_groups - 1), min_size=num_experts, max_size=num_experts)
    return draw(st.lists(token, min_size=1, max_size=12)), num_experts, np.array(draw(groups)), num_groups


def test_equal_sets_are_one_edge_whatever_their_order():
    edges = edges_of([[0, 2], [2, 0], [1, 2]], 3)
    weights = {tuple(np.flatnonzero(row)): int(n) for row, n in zip(edges.chosen, edges.tokens, strict=True)}
    assert weights == {(0, 2): 2, (1, 2): 1}


def test_sets_that_become_equal_among_some_experts_merge_and_single_ones_vanish():
    edges = edges_of([[0, 1, 3], [0, 1, 2], [0, 2, 3]], 4).among(np.array([0, 1]))
    assert edges.chosen.tolist() == [[True, True]]
    assert edges.tokens.tolist() == [2]


@settings(max_examples=50, deadline=None)
@given(divided_tokens())
def test_connectivity_is_the_number_of_further_destinations(case):
    ids_TK, num_experts, group_E, _ = case
    assert edges_of(ids_TK, num_experts).connectivity(group_E) == reference_connectivity(ids_TK, group_E)


@settings(max_examples=50, deadline=None)
@given(divided_tokens())
def test_changes_are_what_a_move_does_to_the_connectivity(case):
    ids_TK, num_experts, group_E, num_groups = case
    changes_EG = edges_of(ids_TK, num_experts).changes(group_E, num_groups)
    before = reference_connectivity(ids_TK, group_E)
    for expert in range(num_experts):
        for group in set(range(num_groups)) - {int(group_E[expert])}:
            moved_E = np.where(np.arange(num_experts) == expert, group, group_E)
            assert changes_EG[expert, group] == reference_connectivity(ids_TK, moved_E) - before


def test_the_move_that_costs_fewest_destinations_makes_room():
    # 2 is chosen with 3 twice and with 0 once, 0 and 1 are always together: only moving 2 saves a destination.
    edges = edges_of([[0, 1], [0, 1], [0, 2], [2, 3], [2, 3]], 4)
    group_E = with_sizes(edges, np.array([0, 0, 0, 1]), np.ones(4, np.int64), np.array([2, 2]), np.array([9, 9]))
    assert group_E.tolist() == [0, 0, 1, 1]


def test_the_load_allowed_comes_before_destinations():
    # As above, but expert 2 is too heavy for the other group; of 0 and 1, 1 is chosen with fewer others.
    edges = edges_of([[0, 1], [0, 1], [0, 2], [2, 3], [2, 3]], 4)
    group_E = with_sizes(edges, np.array([0, 0, 0, 1]), np.array([2, 2, 8, 2]), np.array([2, 2]), np.array([12, 9]))
    assert group_E.tolist() == [0, 1, 0, 1]


@needs_mt_kahypar
def test_the_worked_example_of_the_class(problem_of):
    plan = Hypergraph()(problem_of([TWO_PAIRS], 4, slots=2)).plan
    assert sorted(plan.placement.to_lists()[0]) == [[0, 2], [1, 3]]
    assert plan.routing.policy == "primary"
    assert plan.provenance["planner"] == "hypergraph"


@needs_mt_kahypar
def test_destinations_are_counted_where_pairs_mislead(problem_of):
    # Dividing {0, 1, 2, 3} from {4, 5, 6, 7} cuts the 3 tokens of four; any other halves cut at least 4 tokens of two.
    ids = [[0, 1]] * 4 + [[2, 3]] * 4 + [[1, 2]] * 4 + [[4, 5]] * 4 + [[6, 7]] * 4 + [[5, 6]] * 4 + [[0, 7]] * 3
    lists = Hypergraph(imbalance=0.2)(problem_of([ids], 8, slots=4)).plan.placement.to_lists()
    assert sorted(lists[0]) == [[0, 1, 2, 3], [4, 5, 6, 7]]


@needs_mt_kahypar
def test_nodes_come_before_ranks(problem_of):
    # Four circles of two experts; circles 0-1, 2-3 and 4-5, 6-7 also meet: the meeting ones share a node.
    ids = [[0, 1], [2, 3], [4, 5], [6, 7]] * 5 + [[1, 2], [5, 6], [0, 3], [4, 7]] * 2
    problem = problem_of([ids], 8, slots=2, nodes=2, ranks_per_node=2)
    lists = Hypergraph()(problem).plan.placement.to_lists()[0]
    assert sorted(lists) == [[0, 1], [2, 3], [4, 5], [6, 7]]
    assert {frozenset(lists[0] + lists[1]), frozenset(lists[2] + lists[3])} == {
        frozenset({0, 1, 2, 3}),
        frozenset({4, 5, 6, 7}),
    }
    assert traffic(problem.trace, Hypergraph()(problem).plan).node_visits.sum() == len(ids)


@needs_mt_kahypar
def test_slots_left_take_copies_and_the_plan_is_served_by_cover(problem_of, random_ids):
    problem = problem_of(random_ids(0, 2, 60, 8, 3), 8, slots=3, nodes=2)
    plan = Hypergraph()(problem).plan
    assert (plan.placement.num_copies > 1).any()
    assert plan.routing.policy == "cover"


@needs_mt_kahypar
@pytest.mark.parametrize("slots", [[2, 2, 2, 2], [1, 5, 1, 1], [4, 0, 3, 1], [4, 4, 0, 0]])
def test_as_many_slots_as_experts_are_filled_exactly(problem_of, random_ids, slots):
    plan = Hypergraph()(problem_of(random_ids(1, 2, 60, 8, 3), 8, slots, nodes=2)).plan
    assert plan.placement.slots_used.tolist() == [slots] * 2


@needs_mt_kahypar
def test_experts_that_nobody_chose_are_placed_too(problem_of):
    plan = Hypergraph()(problem_of([[[0, 1]] * 5], 6, slots=2, nodes=1, ranks_per_node=3)).plan
    assert plan.placement.num_copies.tolist() == [[1] * 6]


@needs_mt_kahypar
def test_one_expert_a_token_leaves_nothing_to_cut(problem_of):
    plan = Hypergraph()(problem_of([[[0], [1], [2], [3]]], 4, slots=2)).plan
    assert plan.placement.slots_used.tolist() == [[2, 2]]


@needs_mt_kahypar
def test_the_same_seed_gives_the_same_plan(problem_of, random_ids):
    problem = problem_of(random_ids(2, 2, 400, 32, 4), 32, slots=9, nodes=2)
    first, second = (digest(Hypergraph(seed=3)(problem).plan) for _ in range(2))
    assert first == second


def test_without_the_package_one_line_names_the_extra(problem_of, monkeypatch):
    def missing(name):
        raise ModuleNotFoundError(name)

    monkeypatch.setattr(importlib, "import_module", missing)
    with pytest.raises(ValueError, match=r"grace-opt\[hypergraph\]") as error:
        Hypergraph()(problem_of([TWO_PAIRS], 4, slots=2))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("field", ["imbalance", "load_weight", "num_tokens", "seed"])
def test_an_option_out_of_range_is_named(field):
    with pytest.raises(ValueError, match=f"hypergraph: {field}"):
        Hypergraph(**{field: -1})


def test_the_configuration_builds():
    assert build(read_configuration("plan", ["planner=hypergraph"]).planner) == Hypergraph()

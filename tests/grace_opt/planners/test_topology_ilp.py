"""The program on the topology against enumeration; hops and loads by hand."""

import networkx as nx
import numpy as np
import pytest

from grace_opt.gpu import GPU
from grace_opt.planners.linear import Linear
from grace_opt.planners.topology_ilp import TopologyIlp, hops_between_nodes, loads_by_home
from grace_opt.topology import Topology


def hops_of(problem, rank_E, layer=0):
    """Links that all (token, expert) pairs of a layer pass there and back, token by token."""
    hops_RR = hops_between_nodes(problem.topology)
    pairs = zip(problem.trace.homes, problem.trace.layer(layer), strict=True)
    return sum(hops_RR[home, rank_E[e]] + hops_RR[rank_E[e], home] for home, ids in pairs for e in ids)


def test_the_worked_example_of_the_class(problem_of):
    problem = problem_of([[[1], [0], [3], [2]]], 4, slots=2, nodes=2, ranks_per_node=1, homes=[0, 1, 0, 1])
    solution = TopologyIlp()(problem)
    assert solution.plan.placement.to_lists() == [[[1, 3], [0, 2]]]
    assert (solution.objective, solution.bound, solution.status) == (0, 0, "optimal")


def test_links_inside_a_node_are_free_and_those_of_network_cards_are_not(problem_of):
    topology = problem_of([[[0]]], 4, slots=1, nodes=2).topology
    assert hops_between_nodes(topology).tolist() == [[0, 0, 2, 2], [0, 0, 2, 2], [2, 2, 0, 0], [2, 2, 0, 0]]


def test_hops_grow_with_the_switches_between_nodes():
    graph = nx.Graph()
    for node, switch in enumerate(("left", "left", "right")):
        graph.add_node(f"gpu{node}", gpu=GPU("tiny", 1e12, 1e12, 1e12), node=node)
        graph.add_edge(f"gpu{node}", switch, bytes_per_s=1e9, latency_s=1e-6)
    graph.add_edge("left", "right", bytes_per_s=1e9, latency_s=1e-6)
    assert hops_between_nodes(Topology.from_graph("y", graph)).tolist() == [[0, 2, 3], [2, 0, 3], [3, 3, 0]]


def test_loads_are_counted_by_home(problem_of):
    problem = problem_of([[[0, 1], [1, 2], [1, 0]]], 3, slots=3, homes=[0, 1, 1])
    assert loads_by_home(problem.trace, 0, 2).tolist() == [[1, 1, 0], [1, 2, 1]]


@pytest.mark.parametrize("seed", range(4))
def test_the_program_finds_the_best_of_all_plans(seed, problem_of, random_ids, groupings):
    problem = problem_of(random_ids(seed, 1, 30, 6, 2), 6, slots=[3, 1, 2, 2], nodes=2)
    solution = TopologyIlp()(problem)
    sizes = [(3, 1, 2, 0), (3, 1, 1, 1), (3, 1, 0, 2), (3, 0, 2, 1), (3, 0, 1, 2), (2, 1, 2, 1), (2, 1, 1, 2)]
    sizes += [(2, 0, 2, 2), (1, 1, 2, 2)]
    best = min(hops_of(problem, rank_E) for size in sizes for rank_E in groupings(size))
    assert solution.status == "optimal"
    assert solution.objective == pytest.approx(best) == pytest.approx(solution.bound)
    held = solution.plan.placement.to_lists()[0]
    assert hops_of(problem, [next(r for r, experts in enumerate(held) if e in experts) for e in range(6)]) == best


def test_a_single_node_keeps_index_order(problem_of, random_ids):
    problem = problem_of(random_ids(0, 2, 10, 5, 2), 5, slots=4)
    solution = TopologyIlp()(problem)
    assert solution.plan.placement.to_lists() == Linear()(problem).plan.placement.to_lists()
    assert (solution.objective, solution.status) == (0, "optimal")


def test_without_time_index_order_stands_and_a_warning_says_so(problem_of, random_ids):
    problem = problem_of(random_ids(0, 2, 30, 8, 2), 8, slots=2, nodes=2)
    with pytest.warns(UserWarning, match="topology_ilp: time_limit_s is over"):
        solution = TopologyIlp(time_limit_s=0)(problem)
    assert solution.plan.placement.to_lists() == Linear()(problem).plan.placement.to_lists()
    assert (solution.status, solution.bound) == ("feasible", 0)
    rank_E = np.repeat(np.arange(4), 2)
    assert solution.objective == hops_of(problem, rank_E, 0) + hops_of(problem, rank_E, 1)

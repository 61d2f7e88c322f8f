"""Ranks, nodes, links and routes; machines that cannot work are refused."""

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import networkx as nx
import numpy as np
import pytest

from grace_opt.gpu import GPU
from grace_opt.topology import Topology, proxy_ranks

LINK = {"bytes_per_s": 100.0, "latency_s": 0.01}


def route(topology: Topology, source: int, destination: int) -> set[tuple[str, str]]:
    marked = topology.routes[:, [source * topology.num_ranks + destination]].nonzero()[0]
    return {topology.link_names[link] for link in marked}


def graph_of(gpu: GPU, node_of_gpu: dict[Any, int], links: dict[tuple[Any, Any], dict[str, float]]) -> nx.Graph:
    graph = nx.Graph()
    for vertex, node in node_of_gpu.items():
        graph.add_node(vertex, gpu=gpu, node=node)
    graph.add_edges_from((a, b, attributes) for (a, b), attributes in links.items())
    return graph


def test_two_nodes_of_two_gpus(make_topology: Callable[..., Topology]) -> None:
    topology = make_topology()
    assert topology.node_of_rank.tolist() == [0, 0, 1, 1]
    assert (topology.num_ranks, topology.num_nodes, topology.ranks_per_node) == (4, 2, (2, 2))
    assert topology.memory_bytes.tolist() == [3000] * 4
    a, b = 0.01, 0.1
    assert topology.latency_s == pytest.approx(np.array([[0, a, b, b], [a, 0, b, b], [b, b, 0, a], [b, b, a, 0]]))


def test_routes_stay_inside_the_node_where_they_can(make_topology: Callable[..., Topology]) -> None:
    topology = make_topology()
    assert route(topology, 0, 1) == {("node0.gpu0", "node0.switch"), ("node0.switch", "node0.gpu1")}
    assert route(topology, 0, 3) == {("node0.gpu0", "fabric"), ("fabric", "node1.gpu1")}
    assert route(topology, 2, 2) == set()


def test_gpus_of_a_node_share_a_card_that_belongs_to_the_node(make_topology: Callable[..., Topology]) -> None:
    topology = make_topology(nic_of="node")
    for source, destination in ((0, 2), (1, 3)):
        assert {("node0.switch", "fabric"), ("fabric", "node1.switch")} < route(topology, source, destination)
    assert topology.latency_s[0, 3] == pytest.approx(0.01 + 0.1)


@pytest.mark.parametrize(("num_nodes", "ranks_per_node"), [(1, 1), (1, 3), (3, 1)])
def test_the_smallest_machines_have_routes(
    make_topology: Callable[..., Topology], num_nodes: int, ranks_per_node: int
) -> None:
    topology = make_topology(num_nodes, ranks_per_node)
    others = ~np.eye(topology.num_ranks, dtype=bool)
    assert ((topology.latency_s > 0) == others).all()
    assert ((topology.routes.sum(axis=0).reshape(others.shape) == 2) == others).all()


def test_of_two_paths_the_one_of_less_latency_is_taken_then_the_shorter(gpu: GPU) -> None:
    slow = {**LINK, "latency_s": 1.0}
    links = {("a", "s"): LINK, ("s", "b"): slow, ("s", "t"): LINK, ("t", "b"): LINK}
    detour = Topology.from_graph("detour", graph_of(gpu, {"a": 0, "b": 0}, links))
    assert route(detour, 0, 1) == {("a", "s"), ("s", "t"), ("t", "b")}
    links[("s", "b")] = {**LINK, "latency_s": 0.02}
    direct = Topology.from_graph("direct", graph_of(gpu, {"a": 0, "b": 0}, links))
    assert route(direct, 0, 1) == {("a", "s"), ("s", "b")}


def test_gpus_do_not_forward(gpu: GPU) -> None:
    chain = graph_of(gpu, {"a": 0, "b": 0, "c": 0}, {("a", "b"): LINK, ("b", "c"): LINK})
    with pytest.raises(ValueError, match="topology chain has no route from a to c: add a link"):
        Topology.from_graph("chain", chain)
    chain.add_edge("a", "c", bytes_per_s=1.0, latency_s=5.0)
    assert route(Topology.from_graph("ring", chain), 0, 2) == {("a", "c")}


def test_ranks_are_numbered_by_node_then_by_insertion(gpu: GPU) -> None:
    members = {"x": 7, "y": 3, "z": 7}
    topology = Topology.from_graph("star", graph_of(gpu, members, {(v, "switch"): LINK for v in members}))
    assert topology.ranks_per_node == (1, 2)
    assert route(topology, 0, 1) == {("y", "switch"), ("switch", "x")}


def test_ranks_may_differ(gpu: GPU) -> None:
    members = {"a": 0, "b": 0}
    graph = graph_of(gpu, members, {(v, "switch"): LINK for v in members})
    graph.nodes["b"]["gpu"] = replace(gpu, memory_bytes=5.0)
    assert Topology.from_graph("mixed", graph).memory_bytes.tolist() == [3000, 5]


@pytest.mark.parametrize(
    ("field", "value"),
    [("bytes_per_s", value) for value in (0, -1, math.inf, math.nan, "fast")]
    + [("latency_s", value) for value in (-1, math.inf, math.nan)],
)
def test_links_need_a_positive_finite_bandwidth_and_a_latency(gpu: GPU, field: str, value: Any) -> None:
    graph = graph_of(gpu, {"a": 0, "b": 0}, {("a", "s"): LINK, ("s", "b"): {**LINK, field: value}})
    with pytest.raises(ValueError, match=f"topology bad: .*{field}.* of link b - s"):
        Topology.from_graph("bad", graph)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"num_nodes": 0}, "at least one node"),
        ({"ranks_per_node": 0}, "at least one node and one rank"),
        ({"nic_of": "rack"}, "nic_of must be rank or node, got 'rack'"),
        ({"inter_bytes_per_s": math.inf}, "bandwidth inter_bytes_per_s must be a positive finite number"),
        ({"intra_bytes_per_s": 0}, "bytes_per_s"),
        ({"inter_latency_s": 0.005}, "inter_latency_s must exceed intra_latency_s"),
        ({"inter_latency_s": math.nan}, "latency_s"),
    ],
)
def test_two_level_machines_that_cannot_work_are_refused(
    make_topology: Callable[..., Topology], change: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        make_topology(**change)


@pytest.mark.parametrize("field", ["flops_per_s", "memory_bytes_per_s", "memory_bytes", "tile_tokens", "launch_s"])
@pytest.mark.parametrize("value", [-1, math.inf, math.nan])
def test_impossible_gpus_are_refused(gpu: GPU, field: str, value: float) -> None:
    with pytest.raises(ValueError, match=f"gpu toy: {field}"):
        replace(gpu, **{field: value})


@pytest.mark.parametrize(
    ("nodes", "message"), [([0, 0, 1], "4 gpus but 3"), ([0, 1, 0, 1], "consecutive"), ([1, 1, 2, 2], "numbered 0, 1")]
)
def test_ranks_of_a_node_are_consecutive(make_topology: Callable[..., Topology], nodes: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        replace(make_topology(), node_of_rank=np.array(nodes))


def test_a_machine_without_gpus_is_refused() -> None:
    with pytest.raises(ValueError, match="topology empty has no GPU"):
        Topology.from_graph("empty", nx.Graph())


@pytest.mark.parametrize(
    ("sizes", "proxies"),
    [
        ([2, 2], [[0, 2], [1, 3], [0, 2], [1, 3]]),
        ([2, 3], [[0, 2], [1, 3], [0, 2], [1, 3], [0, 4]]),  # local number 2 wraps around to 0 on the node of two
        ([1, 2], [[0, 1], [0, 1], [0, 2]]),
        ([3], [[0], [1], [2]]),
    ],
)
def test_a_proxy_has_the_same_local_number(sizes: list[int], proxies: list[list[int]]) -> None:
    assert proxy_ranks(sizes).tolist() == proxies

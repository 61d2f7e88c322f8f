"""Fabrics beyond one non-blocking switch: rails, oversubscribed leaves, nodes that differ.

rails      node0.gpu0 --- rail0 --- node1.gpu0      GPUs of equal local number meet on a rail; rails meet on a
                           |                        spine. With forwarding (NCCL's PXN) a row for another local
           node0.gpu1 --- rail1 --- node1.gpu1      number first crosses its own node to the GPU on that rail, and
                           |                        the spine, which nothing would cross, is left out.
                         spine

leaves     nodes 0..k-1 --- leaf0 --- spine --- leaf1 --- nodes k..2k-1      uplinks carry their hosts' bandwidth
                                                                             over the oversubscription
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import networkx as nx

from grace_opt.gpu import GPU, require_positive
from grace_opt.topology import Topology


def rails(
    name: str,
    gpu: GPU,
    num_nodes: int,
    ranks_per_node: int,
    intra_bytes_per_s: float,
    intra_latency_s: float,
    inter_bytes_per_s: float,
    inter_latency_s: float,
    spine_bytes_per_s: float,
    spine_latency_s: float,
    forward: bool,
    assumed: str = "",
) -> Topology:
    """Equal nodes on rails.

    Args:
        intra_bytes_per_s, intra_latency_s: per GPU and direction inside a node.
        inter_bytes_per_s, inter_latency_s: per network card and direction, and latency over a rail.
        spine_bytes_per_s, spine_latency_s: of each rail's uplink and direction, and what the spine adds to the latency;
            without effect where rows are forwarded.
        forward: whether rows reach another rail through the node, however fast the spine is.

    Raises:
        ValueError: a size that cannot be.
    """
    _require_nodes(name, num_nodes, ranks_per_node)
    require_positive(f"topology {name}: spine_bytes_per_s", spine_bytes_per_s)
    if inter_latency_s <= intra_latency_s:
        raise ValueError(f"topology {name}: inter_latency_s must exceed intra_latency_s")
    graph = nx.Graph()
    for node in range(num_nodes):
        for local in range(ranks_per_node):
            vertex = f"node{node}.gpu{local}"
            graph.add_node(vertex, gpu=gpu, node=node, forwards=forward)
            graph.add_edge(vertex, f"node{node}.switch", bytes_per_s=intra_bytes_per_s, latency_s=intra_latency_s / 2)
            graph.add_edge(vertex, f"rail{local}", bytes_per_s=inter_bytes_per_s, latency_s=inter_latency_s / 2)
    for local in range(0 if forward else ranks_per_node):  # routes are those of least latency: no way round
        graph.add_edge(f"rail{local}", "spine", bytes_per_s=spine_bytes_per_s, latency_s=spine_latency_s / 2)
    return Topology.from_graph(name, graph, assumed=assumed)


def leaves(
    name: str,
    gpu: GPU,
    num_nodes: int,
    ranks_per_node: int,
    nodes_per_leaf: int,
    oversubscription: float,
    intra_bytes_per_s: float,
    intra_latency_s: float,
    inter_bytes_per_s: float,
    inter_latency_s: float,
    spine_latency_s: float = 0.0,
    assumed: str = "",
) -> Topology:
    """Equal nodes, a network card per GPU, under leaf switches that a spine joins.

    Args:
        nodes_per_leaf: the last leaf may have fewer.
        oversubscription: bandwidth of a leaf's hosts over that of its uplink; 1 is non-blocking.
        inter_bytes_per_s, inter_latency_s: per network card and direction, and latency under one leaf.
        spine_latency_s: what the spine adds.

    Raises:
        ValueError: a size that cannot be.
    """
    _require_nodes(name, num_nodes, ranks_per_node)
    _require_count(f"topology {name}: nodes_per_leaf", nodes_per_leaf)
    if not 1 <= oversubscription < math.inf:
        raise ValueError(f"topology {name}: oversubscription must be at least 1, got {oversubscription}")
    if inter_latency_s <= intra_latency_s:
        raise ValueError(f"topology {name}: inter_latency_s must exceed intra_latency_s")
    graph = nx.Graph()
    for node in range(num_nodes):
        leaf = f"leaf{node // nodes_per_leaf}"
        for local in range(ranks_per_node):
            vertex = f"node{node}.gpu{local}"
            graph.add_node(vertex, gpu=gpu, node=node)
            graph.add_edge(vertex, f"node{node}.switch", bytes_per_s=intra_bytes_per_s, latency_s=intra_latency_s / 2)
            graph.add_edge(vertex, leaf, bytes_per_s=inter_bytes_per_s, latency_s=inter_latency_s / 2)
    for first in range(0, num_nodes, nodes_per_leaf):
        hosts = min(nodes_per_leaf, num_nodes - first)
        uplink = hosts * ranks_per_node * inter_bytes_per_s / oversubscription
        graph.add_edge(f"leaf{first // nodes_per_leaf}", "spine", bytes_per_s=uplink, latency_s=spine_latency_s / 2)
    return Topology.from_graph(name, graph, assumed=assumed)


NODE_FIELDS = ("gpu", "ranks", "intra_bytes_per_s", "intra_latency_s", "inter_bytes_per_s")


def heterogeneous(
    name: str,
    gpus: Mapping[str, GPU],
    nodes: Sequence[Mapping[str, Any]],
    inter_latency_s: float,
    assumed: str = "",
) -> Topology:
    """Nodes that differ in GPUs and links, a network card per GPU, on one non-blocking fabric.

    Args:
        gpus: kinds of GPU by a name of their own.
        nodes: for each node its NODE_FIELDS: the name of its kind of GPU, how many, the bandwidth per GPU and direction
            and the latency inside it, and the bandwidth per network card and direction.
        inter_latency_s: between two nodes.

    Raises:
        ValueError: a node's field is missing, unknown or impossible; the message names the node.
    """
    graph = nx.Graph()
    for number, node in enumerate(nodes):
        if set(node) != set(NODE_FIELDS):
            odd = sorted(set(node) ^ set(NODE_FIELDS))[0]
            raise ValueError(f"topology {name}: nodes[{number}] must give {', '.join(NODE_FIELDS)}; check {odd}")
        if node["gpu"] not in gpus:
            raise ValueError(f"topology {name}: nodes[{number}].gpu is {node['gpu']!r}; gpus has {', '.join(gpus)}")
        if not 0 <= node["intra_latency_s"] < inter_latency_s:
            raise ValueError(f"topology {name}: nodes[{number}].intra_latency_s must be below inter_latency_s")
        _require_count(f"topology {name}: nodes[{number}].ranks", node["ranks"])
        for local in range(node["ranks"]):
            vertex, inside = f"node{number}.gpu{local}", node["intra_latency_s"] / 2
            graph.add_node(vertex, gpu=gpus[node["gpu"]], node=number)
            graph.add_edge(vertex, f"node{number}.switch", bytes_per_s=node["intra_bytes_per_s"], latency_s=inside)
            graph.add_edge(vertex, "fabric", bytes_per_s=node["inter_bytes_per_s"], latency_s=inter_latency_s / 2)
    return Topology.from_graph(name, graph, assumed=assumed)


def _require_nodes(name: str, num_nodes: int, ranks_per_node: int) -> None:
    _require_count(f"topology {name}: num_nodes", num_nodes)
    _require_count(f"topology {name}: ranks_per_node", ranks_per_node)


def _require_count(what: str, value: object) -> None:
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise ValueError(f"{what} must be a whole number from 1, got {value!r}")

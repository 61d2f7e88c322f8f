"""Rails, leaves and unequal nodes: which links a row crosses."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from grace_opt.fabrics import heterogeneous, leaves, rails
from grace_opt.gpu import GPU
from grace_opt.topology import Topology

LINKS: dict[str, Any] = {
    "intra_bytes_per_s": 200, "intra_latency_s": 0.01, "inter_bytes_per_s": 20, "inter_latency_s": 0.1,
}  # fmt: skip
SPINE: dict[str, Any] = {"spine_bytes_per_s": 5, "spine_latency_s": 0.05}
NODE: dict[str, Any] = {
    "gpu": "a", "ranks": 2, "intra_bytes_per_s": 200, "intra_latency_s": 0.01, "inter_bytes_per_s": 20,
}  # fmt: skip


def route(topology: Topology, source: int, end: int) -> set[tuple[str, str]]:
    """Links from one rank to another."""
    column = topology.routes[:, [source * topology.num_ranks + end]].toarray().ravel()
    return {topology.link_names[link] for link in np.flatnonzero(column)}


def test_ranks_of_equal_local_number_meet_on_their_rail(gpu: GPU):
    topology = rails("r", gpu, 2, 2, **LINKS, **SPINE, forward=False)
    assert route(topology, 0, 2) == {("node0.gpu0", "rail0"), ("rail0", "node1.gpu0")}
    assert topology.latency_s[0, 2] == pytest.approx(0.1)


def test_without_forwarding_other_rails_are_reached_over_the_spine(gpu: GPU):
    topology = rails("r", gpu, 2, 2, **LINKS, **SPINE, forward=False)
    expected = {("node0.gpu0", "rail0"), ("rail0", "spine"), ("spine", "rail1"), ("rail1", "node1.gpu1")}
    assert route(topology, 0, 3) == expected
    assert topology.latency_s[0, 3] == pytest.approx(0.15)


def test_with_forwarding_a_row_first_crosses_its_own_node(gpu: GPU):
    topology = rails("r", gpu, 2, 2, **LINKS, **SPINE, forward=True)
    inside = {("node0.gpu0", "node0.switch"), ("node0.switch", "node0.gpu1")}
    assert route(topology, 0, 3) == inside | {("node0.gpu1", "rail1"), ("rail1", "node1.gpu1")}
    assert topology.latency_s[0, 3] == pytest.approx(0.11)
    assert route(topology, 0, 1) == inside


def test_rows_are_forwarded_however_fast_the_spine_is(gpu: GPU):
    topology = rails("r", gpu, 2, 2, **LINKS, spine_bytes_per_s=1e9, spine_latency_s=0, forward=True)
    assert ("node0.gpu1", "rail1") in route(topology, 0, 3)
    assert not any("spine" in ends for ends in topology.link_names)


def test_an_uplink_carries_its_hosts_bandwidth_over_the_oversubscription(gpu: GPU):
    topology = leaves("l", gpu, 4, 2, 2, 4.0, **LINKS)
    speeds = dict(zip(topology.link_names, topology.link_bytes_per_s, strict=True))
    assert speeds["leaf0", "spine"] == speeds["spine", "leaf1"] == 2 * 2 * 20 / 4
    assert ("leaf0", "spine") not in route(topology, 0, 2)
    assert ("leaf0", "spine") in route(topology, 0, 4)


def test_a_last_leaf_of_fewer_nodes_has_a_thinner_uplink(gpu: GPU):
    topology = leaves("l", gpu, 3, 2, 2, 4.0, **LINKS)
    speeds = dict(zip(topology.link_names, topology.link_bytes_per_s, strict=True))
    assert (speeds["leaf0", "spine"], speeds["leaf1", "spine"]) == (2 * 2 * 20 / 4, 1 * 2 * 20 / 4)


def test_unequal_nodes_keep_their_own_links_and_gpus(gpu: GPU):
    slow = GPU("slow", 1, 1, 3000)
    node = {"gpu": "fast", "ranks": 2, "intra_bytes_per_s": 200, "intra_latency_s": 0.01, "inter_bytes_per_s": 20}
    nodes = [node, {**node, "gpu": "slow", "ranks": 1, "inter_bytes_per_s": 5}]
    topology = heterogeneous("h", {"fast": gpu, "slow": slow}, nodes, 0.1)
    assert [g.name for g in topology.gpus] == [gpu.name, gpu.name, "slow"]
    assert topology.ranks_per_node == (2, 1)
    assert dict(zip(topology.link_names, topology.link_bytes_per_s, strict=True))["fabric", "node1.gpu0"] == 5


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (
            lambda gpu: rails("r", gpu, 0, 2, **LINKS, **SPINE, forward=True),
            "topology r: num_nodes must be a whole number from 1, got 0",
        ),
        (
            lambda gpu: rails("r", gpu, 2, 2.0, **LINKS, **SPINE, forward=True),
            "topology r: ranks_per_node must be a whole number from 1, got 2.0",
        ),
        (
            lambda gpu: rails("r", gpu, 2, 2, **LINKS, spine_bytes_per_s=0, spine_latency_s=0, forward=True),
            "topology r: spine_bytes_per_s must be a positive finite number, got 0",
        ),
        (
            lambda gpu: leaves("l", gpu, 2, 2, 1.5, 2.0, **LINKS),
            "topology l: nodes_per_leaf must be a whole number from 1, got 1.5",
        ),
        (
            lambda gpu: heterogeneous("h", {"a": gpu}, [{**NODE, "ranks": "2"}], 0.1),
            "topology h: nodes\\[0\\].ranks must be a whole number from 1, got '2'",
        ),
        (lambda gpu: leaves("l", gpu, 2, 2, 1, 0.5, **LINKS), "oversubscription must be at least 1, got 0.5"),
        (lambda gpu: heterogeneous("h", {"a": gpu}, [{"gpu": "b"}], 0.1), "nodes\\[0\\] must give gpu, ranks, "),
    ],
)
def test_impossible_fabrics_are_refused(gpu: GPU, build: Callable[[GPU], Topology], message: str):
    with pytest.raises(ValueError, match=message):
        build(gpu)

"""What calibration makes of measured times: nodes, lines, experts, and a file that the simulator reads."""

import numpy as np
import pytest
import yaml

pytest.importorskip("torch")

from grace_opt.gpu import GPU
from grace_opt.topology_file import read_topology
from runtime.calibration.command import describe
from runtime.calibration.gpu import ACTIVE, TOKENS, Computing, fit_experts
from runtime.calibration.links import Line, Links, fit_line, nodes_of_pairs, star


def pairs(node_of_rank, near=1e-3, far=10e-3):
    nodes = np.array(node_of_rank)
    seconds = np.where(nodes[:, None] == nodes[None, :], near, far)
    np.fill_diagonal(seconds, np.inf)
    return seconds


@pytest.mark.parametrize("nodes", [[0, 0, 1, 1], [0, 1, 1, 2, 2, 2], [0, 0, 0, 1]])
def test_fast_pairs_stand_on_one_node(nodes):
    assert nodes_of_pairs(pairs(nodes), (len(nodes),)) == tuple(np.bincount(nodes))


def test_a_noisy_measurement_finds_the_same_nodes():
    seconds = pairs([0, 0, 1, 1]) * np.random.default_rng(0).uniform(0.8, 1.3, (4, 4))
    seconds = np.minimum(seconds, seconds.T)
    assert nodes_of_pairs(seconds, (4,)) == (2, 2)


@pytest.mark.parametrize("started", [(4,), (1, 1, 1, 1), (2, 2)])
def test_where_no_pair_is_much_faster_hosts_are_nodes(started):
    assert nodes_of_pairs(pairs([0, 0, 0, 0]) * 1.5, started) == started


def test_ranks_of_a_node_that_are_not_consecutive_are_refused_in_one_line():
    with pytest.raises(
        ValueError, match=r"\[\[0, 2\], \[1, 3\]\]\) are not consecutive: start the ranks of a host tog"
    ):
        nodes_of_pairs(pairs([0, 1, 0, 1]), (4,))


def test_a_start_below_the_latency_is_a_burst():
    line = fit_line(0.002, [(1e6, 0.009), (2e6, 0.019)])
    assert line.bytes_per_s == pytest.approx(100e6)
    assert line.burst_bytes == pytest.approx(0.3e6)
    assert line.seconds(1e6) == pytest.approx(0.009) and line.seconds(1e5) == pytest.approx(0.002)
    assert line.worst_error == pytest.approx(0, abs=1e-9)


def test_a_start_above_the_latency_takes_its_place():
    line = fit_line(0.001, [(1e6, 0.013), (2e6, 0.023)])
    assert (line.latency_s, line.burst_bytes) == (pytest.approx(0.003), 0)


def test_one_slow_exchange_does_not_bend_the_line():
    points = [(1e6, 0.012), (2e6, 0.022), (4e6, 0.042), (8e6, 0.082)]
    bent = fit_line(0.002, [*points[:3], (8e6, 0.092)])
    assert bent.bytes_per_s == pytest.approx(fit_line(0.002, points).bytes_per_s, rel=0.1)


def test_one_leaves_and_one_enters_a_node_whose_links_are_measured():
    share = star(np.array([0, 0, 1, 2, 2, 2]), 0)
    assert share[:2, 2:].sum() == pytest.approx(1) and share[2:, :2].sum() == pytest.approx(1)
    assert share[:2, :2].sum() == share[2:, 2:].sum() == 0


@pytest.mark.parametrize("tile", [1, 64])
def test_made_up_experts_are_found_again(tile):
    launch, load, token = 50e-6, 40e-6, 0.4e-6
    points = [(n, m, launch + n * max(load, -(-m // tile) * tile * token)) for n in ACTIVE for m in (*TOKENS, 100, 300)]
    found = fit_experts(points)
    assert found[:3] == pytest.approx((launch, load, token), rel=0.05)
    assert found[4] < 0.05 and (tile == found[3] == 1 or found[3] > 1)  # a few sizes do not tell all tiles apart


GPU_FOUND = GPU("CPU", 1e11, 1e10, 1e10, 1e-4, 1, 2e9)
FAST, SLOW = (Line(latency, rate, burst, 0.0, ()) for latency, rate, burst in ((1e-3, 8e8, 0.0), (3e-3, 2e7, 7e4)))


def topology_of(links, cores=(2.0, 4.0), path=None):
    content = describe("found", links, Computing(GPU_FOUND, 0.1, *cores, ()))
    path.write_text(yaml.safe_dump(content, sort_keys=False))
    return read_topology(path)


def test_a_shared_card_bounds_its_node(tmp_path):
    links = Links((2, 2), FAST, (SLOW, SLOW), SLOW, 1.0)
    assert links.shared_card
    topology = topology_of(links, path=tmp_path / "t.yaml")
    assert topology.ranks_per_node == (2, 2)
    rate = dict(zip(topology.link_names, topology.link_bytes_per_s, strict=True))
    burst = dict(zip(topology.link_names, topology.link_burst_bytes, strict=True))
    assert rate["node0.switch", "fabric"] == rate["fabric", "node1.switch"] == 2e7
    assert burst["node0.switch", "fabric"] == 7e4
    assert topology.latency_s[0, 1] == pytest.approx(1e-3)
    assert topology.latency_s[0, 2] == pytest.approx(3e-3)
    assert topology.gpus[0] == GPU_FOUND


def test_a_card_for_every_rank_shares_what_the_node_sends(tmp_path):
    links = Links((2, 2), FAST, (SLOW, SLOW), Line(3e-3, 1e7, 0.0, 0.0, ()), 1.0)
    assert not links.shared_card
    topology = topology_of(links, path=tmp_path / "t.yaml")
    rate = dict(zip(topology.link_names, topology.link_bytes_per_s, strict=True))
    assert rate["node0.rank0", "fabric"] == rate["fabric", "node1.rank1"] == 1e7


def test_hosts_of_one_rank_have_a_link_each_and_one_node_has_none(tmp_path):
    alone = topology_of(Links((1, 1, 1), None, (SLOW,) * 3, SLOW, 1.0), path=tmp_path / "t.yaml")
    assert alone.ranks_per_node == (1, 1, 1)
    assert alone.latency_s[0, 2] == pytest.approx(3e-3)
    together = topology_of(Links((3,), FAST, (), None, 1.0), path=tmp_path / "t.yaml")
    assert together.ranks_per_node == (3,)


@pytest.mark.parametrize(
    ("cores", "processors", "number"),
    [
        ((2.0, 4.0), [0, 1, 2, 3], [1, 1, 1, 1]),  # as many as there are ranks: a GPU each
        ((1.0, 2.0), [0, 0, 1, 1], [1, 1]),  # the ranks of a node share one core
        ((1.2, 1.3), [0, 0, 0, 0], [1.3]),  # all share what a node alone would have
    ],
)
def test_what_ranks_share_is_told_from_what_they_compute_together(tmp_path, cores, processors, number):
    topology = topology_of(Links((2, 2), FAST, (SLOW, SLOW), SLOW, 1.0), cores, tmp_path / "t.yaml")
    assert topology.processor_of_rank.tolist() == processors
    assert topology.cores.tolist() == number

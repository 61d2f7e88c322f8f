"""A cluster file describes any graph of GPUs, switches and links; what is wrong with one is said in one line."""

import re

import pytest

from grace_opt.configuration import CONF_DIR
from grace_opt.topology_file import read_topology

EXAMPLE = (CONF_DIR / "clusters" / "unequal_pair.yaml").read_text()


def test_the_example_has_machines_of_different_size_speed_and_memory():
    topology = read_topology(CONF_DIR / "clusters" / "unequal_pair.yaml")
    assert topology.ranks_per_node == (2, 3)
    assert topology.memory_bytes.tolist() == [80e9, 80e9, 40e9, 40e9, 40e9]
    assert topology.gpus[0].flops_per_s > topology.gpus[2].flops_per_s
    assert topology.latency_s[0, 1] == pytest.approx(9e-6)
    assert topology.latency_s[0, 2] == pytest.approx(4.5e-6 + 15e-6 + 15e-6 + 6e-6)


def test_ranks_may_share_a_processor_and_links_let_bursts_pass(tmp_path):
    text = EXAMPLE.replace("name: a0, node: 0", "name: a0, node: 0, processor: cpu")
    text = (
        text.replace("name: a1, node: 0", "name: a1, node: 0, processor: cpu")
        + "processors: {cpu: {cores: 1.5}}\ncontention: 0.2\n"
    )
    text = text.replace("latency_s: 4.5e-6}", "latency_s: 4.5e-6, burst_bytes: 700}")
    (tmp_path / "shared.yaml").write_text(text)
    topology = read_topology(tmp_path / "shared.yaml")
    assert topology.processor_of_rank.tolist() == [0, 0, 1, 2, 3]
    assert topology.cores.tolist() == [1.5, 1, 1, 1]
    assert topology.contention == 0.2
    assert sorted(topology.link_burst_bytes.tolist()) == [0] * 10 + [700] * 4
    (tmp_path / "unknown.yaml").write_text(EXAMPLE.replace("name: a0, node: 0", "name: a0, node: 0, processor: cpu"))
    with pytest.raises(ValueError, match=r"ranks\[0\].processor is 'cpu'; processors has \[\]"):
        read_topology(tmp_path / "unknown.yaml")


@pytest.mark.parametrize(
    ("old", "new", "expected"),
    [
        ("  - {between: [pcie_b, ethernet], bytes_per_s: 2.99e9, latency_s: 15e-6}\n", "", "no route from a0 to b0"),
        (
            "{between: [nvlink_a, ethernet], bytes_per_s: 2.99e9",
            "{between: [nvlink_a, ethernet], bytes_per_s: 0",
            "got 0",
        ),
        ("{between: [a0, nvlink_a], bytes_per_s: 272e9", "{between: [a0, nvlink_a], bytes_per_s: .nan", "got nan"),
        ("{between: [a0, nvlink_a], bytes_per_s: 272e9", "{between: [a0, nvlink_a], bytes_per_s: fast", "got fast"),
        ("latency_s: 4.5e-6", "latency_s: -1", "must be a time in seconds"),
        ("latency_s: 4.5e-6", "delay_s: 1", "links[0] has an unknown field 'delay_s'"),
        ("gpu: slow}", "gpu: sloow}", "ranks[2].gpu is 'sloow'; gpus has fast, slow"),
        ("name: a1", "name: a0", "ranks[1].name 'a0' occurs twice"),
        ("node: 1", "node: one", "ranks[2].node must be a node number from 0, got 'one'"),
        ("{name: b2, node: 1", "{name: b2, node: 0", "ranks of a node must stand together"),
        ("version: 1", "version: 2", "version: 1"),
        ("ranks: ", "rank: ", "field 'ranks' is missing"),
        ("flops_per_s: 6.4e14", "flops_per_s: many", "gpus.fast.flops_per_s must be a number, got 'many'"),
        ("memory_bytes: 80e9", "memory_bytes: 0", "memory_bytes must be a positive finite number"),
        ("between: [a1, nvlink_a]", "between: [a0, nvlink_a]", "joins a0 and nvlink_a a second time"),
        ("between: [a1, nvlink_a]", "between: [a1]", "unequal_pair.yaml: "),
        ("links: ", "links: [", "no readable YAML"),
    ],
)
def test_a_wrong_cluster_file_is_one_line_that_names_file_and_field(old, new, expected, tmp_path):
    assert old in EXAMPLE
    path = tmp_path / "unequal_pair.yaml"
    path.write_text(EXAMPLE.replace(old, new, 1))
    with pytest.raises(ValueError, match=re.escape(expected)) as error:
        read_topology(path)
    assert str(error.value).startswith(str(path))
    assert "\n" not in str(error.value)


def test_a_missing_file_says_which_option_names_it(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"give topology\.path=FILE"):
        read_topology(tmp_path / "none.yaml")

"""Rates of the toy machine by hand: a row takes 1 s on a network card and 0.1 s inside a node, there and again back."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import networkx as nx
import numpy as np
import pytest

from grace_opt.batch_rates import GRID, BatchRates, batch_rates
from grace_opt.problem import Problem
from grace_opt.topology import Topology
from simulator.cluster import SimulatedCluster
from simulator.transport import Kernel, Transport

PIPELINED = Transport("pipelined", Kernel(pipelined=True), Kernel(pipelined=True), schemes=("hierarchical",))


@pytest.fixture
def rates_of(make_problem: Callable[..., Problem], make_trace: Callable[..., Any]) -> Callable[..., BatchRates]:
    """(topology, homes=two tokens a rank, **cost) -> rates; one token a sequence."""

    def make(topology: Topology, homes: Any = None, **cost: Any) -> BatchRates:
        homes = np.repeat(np.arange(topology.num_ranks), 2) if homes is None else homes
        trace = make_trace([[[0, 1]] * len(homes)], homes=homes)
        return batch_rates(make_problem(trace, 4, topology), SimulatedCluster(**cost))

    return make


def test_rows_by_hand(rates_of: Callable[..., BatchRates], make_topology: Callable[..., Topology]) -> None:
    rates = rates_of(make_topology())
    assert rates.between_rank_s == pytest.approx(np.full(4, 2.0))
    assert rates.inside_s == pytest.approx(np.full(4, 0.2))
    assert rates.between_node_s == pytest.approx(np.full(2, 1.0))  # both ranks at once, each on its own card
    assert not rates.overlaps and not rates.by_rank


def test_a_card_shared_by_the_node_bounds_the_sum_over_its_ranks(
    rates_of: Callable[..., BatchRates], make_topology: Callable[..., Topology]
) -> None:
    rates = rates_of(make_topology(2, 3, nic_of="node"))
    assert rates.between_rank_s == pytest.approx(np.full(6, 2.0))
    assert rates.between_node_s == pytest.approx(np.full(2, 2.0))


@pytest.mark.parametrize(("scheme", "by_rank"), [("flat", True), ("pairs", True), ("hierarchical_padded", False)])
def test_schemes_without_stages_count_every_rank(
    rates_of: Callable[..., BatchRates], make_topology: Callable[..., Topology], scheme: str, by_rank: bool
) -> None:
    rates = rates_of(make_topology(), scheme=scheme)
    assert rates.by_rank == by_rank
    assert rates.between_rank_s == pytest.approx(np.full(4, 2.0))
    assert rates.inside_s == pytest.approx(np.full(4, 0.2))


def test_one_node_has_nothing_between(
    rates_of: Callable[..., BatchRates], make_topology: Callable[..., Topology]
) -> None:
    rates = rates_of(make_topology(1, 3))
    assert rates.between_rank_s.tolist() == [0, 0, 0] and rates.between_node_s.tolist() == [0]
    assert rates.inside_s == pytest.approx(np.full(3, 0.2))
    assert not rates.overlaps


@pytest.mark.parametrize("inter_bytes_per_s", [20, 200, 2000])
def test_stages_overlap_where_the_transport_is_pipelined(
    rates_of: Callable[..., BatchRates], make_topology: Callable[..., Topology], inter_bytes_per_s: float
) -> None:
    """Whichever link is the slower one, and by how much."""
    topology = make_topology(inter_bytes_per_s=inter_bytes_per_s)
    assert rates_of(topology, transport=PIPELINED).overlaps
    assert not rates_of(topology).overlaps


def test_a_node_of_one_rank_does_not_look_like_overlap(rates_of: Callable[..., BatchRates], gpu: Any) -> None:
    """Rank 0 has no peer to send rows inside its node; links are equally fast."""
    graph = nx.Graph()
    for node, size in enumerate((1, 2)):
        graph.add_edge(f"switch{node}", "spine", bytes_per_s=20, latency_s=0.05)
        for local in range(size):
            graph.add_node((node, local), gpu=gpu, node=node)
            graph.add_edge((node, local), f"switch{node}", bytes_per_s=20, latency_s=0.01)
    rates = rates_of(Topology.from_graph("uneven", graph))
    assert rates.between_rank_s == pytest.approx([2, 2, 2])
    assert rates.inside_s == pytest.approx([0, 2, 2])
    assert not rates.overlaps


def test_an_expert_takes_its_weights_or_its_tiles(
    rates_of: Callable[..., BatchRates], make_topology: Callable[..., Topology]
) -> None:
    """0.3 s for the weights, 0.2 s a tile of 2 tokens, the larger; the launch (0.05 s) is the rank's, not its own."""
    rates = rates_of(make_topology())  # 8 tokens in all
    assert (rates.tokens_per_rank, rates.most_tokens) == (2, 8)
    assert rates.expert_s.shape == (4, GRID) and (rates.expert_s == rates.expert_s[0]).all()
    assert rates.expert_s[0, 0] == 0
    assert rates.expert_s[0, -1] == pytest.approx(0.8, rel=1e-3)  # 4 tiles
    five = round(255 * (5 / 8) ** 0.5)  # about 5 tokens: 3 tiles
    assert rates.expert_s[0, five] == pytest.approx(0.6, rel=1e-2)
    few = 8 * (20 / 255) ** 2  # 0.05 tokens: busy in about one batch of twenty
    assert rates.expert_s[0, 20] == pytest.approx(0.3 * few, rel=0.03)


def test_a_slower_gpu_has_a_table_of_its_own(
    rates_of: Callable[..., BatchRates], make_topology: Callable[..., Topology], gpu: Any
) -> None:
    slow = replace(gpu, name="slow", flops_per_s=gpu.flops_per_s / 10)
    rates = rates_of(replace(make_topology(), gpus=(gpu, gpu, slow, gpu)))
    assert (rates.expert_s[[1, 3]] == rates.expert_s[0]).all()
    assert rates.expert_s[2, -1] == pytest.approx(8.0, rel=1e-3)  # 4 tiles of 2 s


def test_batches_are_of_the_size_the_cost_model_prices(
    rates_of: Callable[..., BatchRates], make_topology: Callable[..., Topology]
) -> None:
    homes = [0] * 6 + [1, 1, 2, 2]  # the busiest rank's 6 tokens make 3 batches of 2; a rank has 2.5 in all on average
    assert rates_of(make_topology(), homes, tokens_per_rank=2).tokens_per_rank == pytest.approx(2.5 / 3)
    assert rates_of(make_topology(), homes).tokens_per_rank == 2.5

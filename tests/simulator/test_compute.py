"""Seconds of experts by hand: an expert is read in 0.3 s, a tile of 2 tokens takes 0.2 s, a launch 0.05 s."""

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest

from grace_opt.model import MoEModel
from grace_opt.topology import Topology
from simulator.compute import expert_seconds, phase_end


@pytest.mark.parametrize(
    ("tokens", "seconds"),
    [
        ([0, 0], 0),  # no token, no launch
        ([1, 0], 0.05 + 0.3),  # reading the weights is the floor
        ([2, 0], 0.05 + 0.3),
        ([3, 0], 0.05 + 0.4),  # two tiles
        ([4, 0], 0.05 + 0.4),
        ([5, 0], 0.05 + 0.6),
        ([2, 2], 0.05 + 0.6),  # the same four tokens on two experts: both are read
        ([1, 7], 0.05 + 0.3 + 0.8),
    ],
)
def test_a_rank_takes_a_launch_and_the_floor_or_tiles_of_each_active_expert(
    model: MoEModel, make_topology: Callable[..., Topology], tokens: list[int], seconds: float
) -> None:
    taken = expert_seconds(model, make_topology(1, 2), np.array([[[tokens, [0, 0]]]]))
    assert taken == pytest.approx(np.array([[[seconds, 0]]]))


def test_ranks_may_differ_in_speed(model: MoEModel, make_topology: Callable[..., Topology]) -> None:
    topology = make_topology(1, 2)
    slow = replace(topology.gpus[0], flops_per_s=1500, memory_bytes_per_s=500, launch_s=0.1, tile_tokens=4)
    topology = replace(topology, gpus=(topology.gpus[0], slow))  # a tile of 4 tokens takes 0.8 s, reading 0.6 s
    taken = expert_seconds(model, topology, np.array([[[[6], [6]], [[1], [1]]]]))
    assert taken == pytest.approx(np.array([[[0.05 + 0.6, 0.1 + 1.6], [0.05 + 0.3, 0.1 + 0.8]]]))


def test_every_slot_takes_its_time_active_or_not(model: MoEModel, make_topology: Callable[..., Topology]) -> None:
    topology = make_topology(1, 1)
    topology = replace(topology, gpus=(replace(topology.gpus[0], slot_s=0.5),))
    taken = [expert_seconds(model, topology, np.array([[[[1] + [0] * idle]]])).item() for idle in (0, 15)]
    assert taken == pytest.approx([0.05 + 0.3 + 0.5, 0.05 + 0.3 + 0.5 * 8])  # 16^0.75 = 8


def test_what_the_host_needs_hides_what_is_much_shorter(
    model: MoEModel, make_topology: Callable[..., Topology]
) -> None:
    topology = make_topology(1, 1)  # an expert of 2 tokens takes 0.35 s
    for least, seconds in ((0.0, 0.35), (3.5, 3.5), (0.35, 0.35 * 2**0.1), (0.035, 0.35)):
        slow = replace(topology, gpus=(replace(topology.gpus[0], least_s=least),))
        assert expert_seconds(model, slow, np.array([[[[2]]]])).item() == pytest.approx(seconds, rel=1e-6)
        assert expert_seconds(model, slow, np.array([[[[0]]]])).item() == 0


def test_loading_and_computing_may_hide_each_other_in_part(
    model: MoEModel, make_topology: Callable[..., Topology]
) -> None:
    topology = make_topology(1, 1)
    halves = replace(topology, gpus=(replace(topology.gpus[0], overlap=2.0),))
    taken = expert_seconds(model, halves, np.array([[[[4]]]])).item()
    assert taken == pytest.approx(0.05 + 0.5)  # (0.3^2 + 0.4^2)^(1/2)


def test_more_tokens_never_take_less(model: MoEModel, make_topology: Callable[..., Topology]) -> None:
    tokens_LBRS = np.arange(40).reshape(40, 1, 1, 1)
    assert (np.diff(expert_seconds(model, make_topology(1, 1), tokens_LBRS).ravel()) >= 0).all()


def test_ranks_that_share_cores_end_when_all_work_is_done(make_topology: Callable[..., Topology]) -> None:
    seconds = np.array([[[3.0, 1.0, 1.0, 1.0]]])
    own = make_topology(2, 2)
    assert phase_end(own, seconds).tolist() == [[3]]
    shared = replace(own, processor_of_rank=np.array([0, 0, 1, 1]), cores=np.array([1.0, 2.0]))
    assert phase_end(shared, seconds).tolist() == [[4]]  # 3 + 1 on one core
    shared = replace(own, processor_of_rank=np.zeros(4, int), cores=np.array([2.0]))
    assert phase_end(shared, seconds).tolist() == [[3]]  # 6 on two cores, but the longest alone takes as long
    assert phase_end(shared, np.array([[[3.0, 3.0, 1.0, 1.0]]])).tolist() == [[4]]

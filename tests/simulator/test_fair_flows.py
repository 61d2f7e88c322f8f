"""Max-min fair flows against a slow reference, bounds, and a case done by hand."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import sparse

from grace_opt.fabrics import leaves, rails
from grace_opt.gpu import GPU
from grace_opt.topology import Topology
from simulator.fair_flows import fair_finish_s, fair_seconds

DEVICE = GPU("toy", 1, 1, 1)
LINKS: dict[str, Any] = {
    "intra_bytes_per_s": 200, "intra_latency_s": 0.01, "inter_bytes_per_s": 20, "inter_latency_s": 0.1,
}  # fmt: skip
FABRICS = (
    Topology.two_level("node", DEVICE, 2, 2, **LINKS, nic_of="node"),
    Topology.two_level("cards", DEVICE, 3, 2, **LINKS),
    rails("rails", DEVICE, 2, 3, **LINKS, spine_bytes_per_s=15, spine_latency_s=0.05, forward=False),
    rails("forwarding", DEVICE, 2, 3, **LINKS, spine_bytes_per_s=15, spine_latency_s=0.05, forward=True),
    leaves("leaves", DEVICE, 4, 2, 2, 3.0, **LINKS),
)


def reference(topology: Topology, bytes_RR: np.ndarray) -> np.ndarray:
    """Progressive filling from scratch whenever a flow ends."""
    routes, capacity = topology.routes.toarray() > 0, topology.link_bytes_per_s
    left = bytes_RR.astype(float).ravel() * routes.any(axis=0)
    end, now = np.zeros(len(left)), 0.0
    total = left.copy()
    while (left > 0).any():
        rate, fixed, free = np.zeros(len(left)), left <= 0, capacity.astype(float).copy()
        while not fixed.all():
            users = routes[:, ~fixed].sum(axis=1)
            share = np.where(users > 0, free / np.maximum(users, 1), np.inf)
            link = int(share.argmin())
            new = routes[link] & ~fixed
            rate[new], fixed = share[link], fixed | new
            free -= routes[:, new].sum(axis=1) * share[link]
        live = left > 0
        step = (left[live] / rate[live]).min()
        now += step
        left[live] -= rate[live] * step
        ended = live & (left <= 1e-9 * total)
        left[ended], end[ended] = 0, now
    return end.reshape(bytes_RR.shape)


@st.composite
def exchanges(draw: st.DrawFn) -> tuple[Topology, np.ndarray]:
    """A fabric and skewed bytes rank to rank."""
    topology = draw(st.sampled_from(FABRICS))
    random = np.random.default_rng(draw(st.integers(0, 10**6)))
    bytes_RR = np.round(random.pareto(1.2, (topology.num_ranks,) * 2) * 100)
    bytes_RR[random.random(bytes_RR.shape) < draw(st.floats(0, 0.8))] = 0
    return topology, bytes_RR


def test_flows_share_the_links_they_meet_on_and_speed_up_when_others_end():
    # The example of the module: links a (10), b (20), c (10); routes a+b, a, b, b+c.
    routes = sparse.csr_array(np.array([[1, 1, 0, 0], [1, 0, 1, 1], [0, 0, 0, 1]]).T.T)
    columns = np.zeros((3, 25))
    columns[:, [1, 2, 3, 4]] = routes.toarray()
    topology = Topology(
        "three links", (DEVICE,) * 5, np.zeros(5, int), (("a", "a"), ("b", "b"), ("c", "c")),
        np.array([10.0, 20.0, 10.0]), sparse.csr_array(columns), np.zeros((5, 5)),
    )  # fmt: skip
    bytes_RR = np.zeros((5, 5))
    bytes_RR[0, 1:] = [1000, 500, 1000, 2000]
    assert fair_finish_s(topology, bytes_RR)[0, 1:] == pytest.approx([162.5, 100, 137.5, 237.5])


@given(exchanges())
def test_every_flow_ends_when_the_reference_says(case: tuple[Topology, np.ndarray]):
    topology, bytes_RR = case
    expected = reference(topology, bytes_RR)
    assert np.allclose(fair_finish_s(topology, bytes_RR), expected, rtol=1e-6)
    assert fair_seconds(topology, bytes_RR[None])[0] == pytest.approx(expected.max(), rel=1e-6)


@given(exchanges())
def test_no_cut_and_no_injection_bound_is_beaten(case: tuple[Topology, np.ndarray]):
    topology, bytes_RR = case
    link_bytes = topology.routes @ bytes_RR.ravel()
    assert fair_seconds(topology, bytes_RR[None])[0] >= (link_bytes / topology.link_bytes_per_s).max() * (1 - 1e-9)


@given(exchanges(), st.floats(0.1, 10))
def test_time_grows_in_proportion_to_bytes(case: tuple[Topology, np.ndarray], factor: float):
    topology, bytes_RR = case
    one, scaled = fair_seconds(topology, np.stack([bytes_RR, bytes_RR * factor]))
    assert scaled == pytest.approx(one * factor, rel=1e-6)


def test_impossible_bytes_are_refused():
    with pytest.raises(ValueError, match="finite and not negative"):
        fair_seconds(FABRICS[0], np.full((1, 4, 4), -1.0))
    with pytest.raises(ValueError, match=r"bytes must be \[cases, 4, 4\]"):
        fair_seconds(FABRICS[0], np.zeros((1, 3, 3)))

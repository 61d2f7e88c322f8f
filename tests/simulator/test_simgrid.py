"""Fair flows against SimGrid's max-min model (Debian: python3-simgrid), where it is installed."""

import json
import shutil
import subprocess
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from grace_opt.fabrics import leaves, rails
from grace_opt.gpu import GPU
from grace_opt.topology import Topology
from simulator.fair_flows import fair_finish_s

DEVICE = GPU("toy", 1, 1, 1)
LINKS: dict[str, Any] = {
    "intra_bytes_per_s": 272e9, "intra_latency_s": 9e-6, "inter_bytes_per_s": 45e9, "inter_latency_s": 25e-6,
}  # fmt: skip
RAIL: dict[str, Any] = {"spine_bytes_per_s": 80e9, "spine_latency_s": 15e-6}
FABRICS = {
    "a card per rank, 4 x 8": lambda: Topology.two_level("t", DEVICE, 4, 8, **LINKS),
    "a card per node, 4 x 4": lambda: Topology.two_level("t", DEVICE, 4, 4, **LINKS, nic_of="node"),
    "rails, 4 x 8": lambda: rails("t", DEVICE, 4, 8, **LINKS, **RAIL, forward=False),
    "rails with forwarding, 4 x 8": lambda: rails("t", DEVICE, 4, 8, **LINKS, **RAIL, forward=True),
    "oversubscribed leaves, 8 x 8": lambda: leaves("t", DEVICE, 8, 8, 2, 4.0, **LINKS),
}


@cache
def python_with_simgrid() -> str | None:
    """A python that has SimGrid: the system's, which need not be the one that runs the tests."""
    for name in ("/usr/bin/python3", shutil.which("python3") or ""):
        if name and Path(name).exists():
            found = subprocess.run([name, "-c", "import simgrid"], capture_output=True, check=False)
            if found.returncode == 0:
                return name
    return None


@pytest.mark.skipif(python_with_simgrid() is None, reason="SimGrid is not installed (Debian: python3-simgrid)")
@pytest.mark.parametrize("fabric", FABRICS)
@pytest.mark.parametrize("seed", range(3))
def test_skewed_exchanges_end_when_simgrid_says(fabric: str, seed: int):
    topology = FABRICS[fabric]()
    random = np.random.default_rng(seed)
    bytes_RR = np.round(random.pareto(1.5, (topology.num_ranks,) * 2) * 1e6 + 1)
    np.fill_diagonal(bytes_RR, 0)
    by_flow = topology.routes.tocsc()
    flows = np.flatnonzero(bytes_RR.ravel())
    links = [by_flow.indices[by_flow.indptr[flow] : by_flow.indptr[flow + 1]].tolist() for flow in flows]
    asked = {
        "bytes_per_s": topology.link_bytes_per_s.tolist(),
        "flows": list(zip(links, bytes_RR.ravel()[flows].tolist(), strict=True)),
    }
    oracle = Path(__file__).with_name("simgrid_oracle.py")
    answer = subprocess.run(
        [str(python_with_simgrid()), str(oracle)], input=json.dumps(asked), capture_output=True, text=True, check=False
    )
    assert answer.returncode == 0, answer.stderr[-500:]
    expected = np.array(json.loads(answer.stdout[answer.stdout.index("[") :]))
    ends = fair_finish_s(topology, bytes_RR).ravel()[flows]
    assert ends.max() == pytest.approx(expected.max(), rel=0.02)
    assert np.median(np.abs(ends / expected - 1)) < 0.02

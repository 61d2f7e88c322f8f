"""Small planning problems given by who chose what, and all plans of a small problem."""

import numpy as np
import pytest

from grace_opt.gpu import GPU
from grace_opt.model import MoEModel
from grace_opt.problem import Problem
from grace_opt.topology import Topology
from grace_opt.trace import Trace

TINY = GPU("tiny", flops_per_s=1e12, memory_bytes_per_s=1e12, memory_bytes=1e12)


@pytest.fixture(scope="session")
def problem_of():
    """([L][T][K] ids, experts, slots, nodes=1, ranks_per_node=2, homes=in turn): one sequence a token.

    A row takes 1 s on a link inside a node and 10 s on one between nodes.
    """

    def make(ids_LTK, num_experts, slots, nodes=1, ranks_per_node=2, homes=None):
        ids_LTK = np.asarray(ids_LTK, np.uint8)
        model = MoEModel("tiny", len(ids_LTK), num_experts, ids_LTK.shape[2], 50, 4)  # a row is 100 bytes
        topology = Topology.two_level("demo", TINY, nodes, ranks_per_node, 100, 1e-6, 10, 1e-5)
        starts = np.arange(ids_LTK.shape[1])
        homes = starts % topology.num_ranks if homes is None else homes
        trace = Trace(ids_LTK, starts, starts + 1, starts * 0, ("text",), num_experts, homes=homes)
        return Problem(model, topology, trace, slots)

    return make


@pytest.fixture(scope="session")
def random_ids():
    """(seed, layers, tokens, experts, top_k) -> [L, T, K], low experts more often."""

    def make(seed, num_layers, num_tokens, num_experts, top_k):
        keys = np.random.default_rng(seed).random((num_layers, num_tokens, num_experts)) * (1 + np.arange(num_experts))
        return np.argsort(keys, axis=2)[:, :, :top_k]

    return make


@pytest.fixture(scope="session")
def groupings():
    """(sizes) -> all [E] groups of experts with these sizes."""

    def every(sizes):
        if not sum(sizes):
            yield ()
        for group, size in enumerate(sizes):
            if size:
                yield from ((group, *rest) for rest in every([s - (g == group) for g, s in enumerate(sizes)]))

    return lambda sizes: (np.array(groups) for groups in every(list(sizes)))

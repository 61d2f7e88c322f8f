"""Random plans with equally many experts on every rank, as engines take them."""

from typing import Any

import numpy as np
import pytest
from hypothesis import strategies as st

from grace_opt.placement import Placement
from grace_opt.plan import Plan
from grace_opt.routing import Routing


@pytest.fixture(scope="session")
def even_plans() -> Any:
    """(once=False) -> strategy of plans whose ranks are filled alike; with `once` no rank holds an expert twice."""
    return _even_plans


def _even_plans(once: bool = False) -> st.SearchStrategy[Plan]:
    return st.builds(
        _even_plan,
        seed=st.integers(0, 2**32 - 1),
        num_ranks=st.integers(1, 5),
        num_slots=st.integers(1, 6),
        num_layers=st.integers(1, 4),
        once=st.just(once),
    )


def _even_plan(seed: int, num_ranks: int, num_slots: int, num_layers: int, once: bool) -> Plan:
    random = np.random.default_rng(seed)
    fewest = num_slots if once else 1
    num_experts = int(random.integers(fewest, num_ranks * num_slots + 1))
    layers = [_layer(random, num_ranks, num_slots, num_experts, once) for _ in range(num_layers)]
    layer_ids = tuple(sorted(random.choice(3 * num_layers, num_layers, replace=False).tolist()))
    return Plan("toy", layer_ids, (num_ranks,), Placement(np.array(layers), num_experts), Routing("uniform"))


def _layer(random: np.random.Generator, num_ranks: int, num_slots: int, num_experts: int, once: bool) -> Any:
    if not once:
        rest = random.integers(num_experts, size=num_ranks * num_slots - num_experts)
        return random.permutation([*range(num_experts), *rest]).reshape(num_ranks, num_slots)
    place = random.permutation(num_experts)  # experts in turn around the ranks: each S in a row are different
    turn = np.arange(num_ranks * num_slots) % num_experts
    ranks = place[turn].reshape(num_ranks, num_slots)
    return np.array([random.permutation(rank) for rank in ranks])

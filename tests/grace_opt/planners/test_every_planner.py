"""What holds for every planner of `conf/planner`."""

import importlib.util
import json

import numpy as np
import pytest

from grace_opt.bounds.combinatorial import busiest_rank_load, cross_node_rows
from grace_opt.configuration import build, groups, read_configuration
from grace_opt.gpu import GPU
from grace_opt.homes import Balanced
from grace_opt.model import MoEModel
from grace_opt.plan_file import digest, read_plan, write_plan
from grace_opt.problem import Problem
from grace_opt.topology import Topology
from grace_opt.trace import Trace
from grace_opt.traffic import traffic

NEEDED = {"hypergraph": "mtkahypar"}
PLANNERS = [
    pytest.param(
        name,
        marks=pytest.mark.skipif(
            importlib.util.find_spec(NEEDED.get(name, "json")) is None, reason=f"{name} needs {NEEDED.get(name)}"
        ),
    )
    for name in sorted(groups()["planner"])
]
DEVICE = GPU("toy", flops_per_s=1e12, memory_bytes_per_s=1e12, memory_bytes=1e12)


SMALL = {"joint": ["planner.trials=500", "planner.num_maps=1"]}


def planner_of(name):
    return build(read_configuration("plan", [f"planner={name}", *SMALL.get(name, [])]).planner)


def random_problem(seed, num_experts, num_nodes, ranks_per_node, slots, num_expert_groups=1):
    """3 layers, top-2, 60 sequences; experts next to each other are chosen together, low ones more often."""
    rng = np.random.default_rng(seed)
    centre = rng.integers(0, num_experts, size=(3, 600, 1)) * rng.random((3, 600, 1))
    noise = rng.normal(size=(3, 600, num_experts)) * 2
    ids = np.argsort(np.abs(np.arange(num_experts) - centre) + noise, axis=2)[:, :, :2].astype(np.uint8)
    starts = np.arange(0, 600, 10)
    trace = Trace(ids, starts, starts + 10, np.zeros(60), ("random",), num_experts, synthetic=True)
    model = MoEModel("toy", 3, num_experts, 2, 16, 16, num_expert_groups=num_expert_groups)
    topology = Topology.two_level("toy", DEVICE, num_nodes, ranks_per_node, 1e11, 1e-6, 1e10, 1e-5)
    return Problem(model, topology, Balanced()(trace, topology.num_ranks), slots)


@pytest.mark.parametrize("shape", [(8, 2, 2, 2), (8, 2, 2, 3), (10, 1, 4, 4), (9, 3, 1, 5), (16, 2, 4, 3)])
@pytest.mark.parametrize("name", PLANNERS)
def test_a_plan_holds_every_expert_within_the_slots_and_beats_no_bound(name, shape, tmp_path):
    problem = random_problem(0, *shape)
    planner = planner_of(name)
    if hasattr(planner, "slots_wanted") and planner.over_budget == "error":
        problem = random_problem(0, *shape[:3], max(shape[3], planner.slots_wanted(problem)))
    solution = planner(problem)
    plan = solution.plan
    problem.check(plan)
    assert (plan.placement.num_copies >= 1).all()
    assert (plan.placement.slots_used <= problem.slots_per_rank).all()
    counts = traffic(problem.trace, plan)
    assert counts.tokens.sum() == problem.trace.num_tokens * 3 * 2
    assert (counts.load.max(axis=2)[:, 0] >= busiest_rank_load(problem) - 1e-9).all()
    assert (counts.cross_node_rows("hierarchical")[:, 0] >= cross_node_rows(problem)).all()
    write_plan(tmp_path / "plan.json", plan)
    assert digest(read_plan(tmp_path / "plan.json")) == digest(plan)
    assert json.loads((tmp_path / "plan.json").read_text())["provenance"]["synthetic"] is True


@pytest.mark.parametrize("name", PLANNERS)
def test_a_planner_is_deterministic(name):
    planner = planner_of(name)
    problem = random_problem(1, 8, 2, 2, 8)
    assert digest(planner(problem).plan) == digest(planner(problem).plan)


@pytest.mark.parametrize("name", PLANNERS)
def test_a_budget_of_unequal_slots_is_kept_or_refused_in_one_line(name):
    problem = random_problem(2, 8, 2, 2, [4, 3, 2, 1])
    if name in ("eplb", "eplb_hierarchical", "grace", "lazarus", "lplb"):
        with pytest.raises(ValueError, match="slots_per_rank") as error:
            planner_of(name)(problem)
        assert "\n" not in str(error.value)
    else:
        plan = planner_of(name)(problem).plan
        assert (plan.placement.slots_used <= problem.slots_per_rank).all()

"""Slots dealt to layers by the joint planner: within the budget, better where a deal pays, alike where none does."""

from dataclasses import replace

import numpy as np
import pytest

from analysis.certify import counted_seconds
from grace_opt.placement import EMPTY
from grace_opt.plan_file import digest
from grace_opt.planners import joint_slots
from grace_opt.planners.home_scenarios import home_maps
from grace_opt.planners.joint import Joint
from grace_opt.planners.joint_slots import reduced
from grace_opt.planners.local_search import LocalSearch
from grace_opt.planners.node_copies import NodeCopies
from grace_opt.trace import Trace
from simulator.cluster import SimulatedCluster

SMALL = Joint(SimulatedCluster(), trials=800, num_batches=2, num_tokens=400, num_maps=1)


@pytest.fixture(scope="module")
def problem(problem_of):
    """2 layers of 8 experts on two nodes of two ranks, 3 slots a rank. A token chooses two of {0..3}, or two of {4..7}:
    4 slots hold both sets on either node, 3 bring little more than 2."""
    random = np.random.default_rng(0)
    pairs = np.argsort(random.random((2, 400, 4)), axis=2)[:, :, :2] + 4 * random.integers(0, 2, (2, 400, 1))
    tokens = problem_of(pairs, 8, 3, nodes=2)
    starts = np.arange(0, 400, 5)
    trace = Trace(tokens.trace.expert_ids, starts, starts + 5, starts * 0, ("text",), 8, homes=starts // 5 % 4)
    return replace(tokens, trace=trace, dealt=True)


def seconds(problem, plan):
    maps = home_maps(problem.trace, problem.topology, 2, 77)
    return np.mean([SMALL.cost(replace(problem, trace=trace), plan).mean_s for trace in maps])


def test_a_deal_that_pays_is_made_within_the_budget(problem):
    alike, dealt = SMALL(replace(problem, dealt=False)), SMALL(problem)
    problem.check(dealt.plan)
    assert sorted(dealt.plan.placement.slots_reserved.tolist()) == [2, 4]
    assert seconds(problem, dealt.plan) < 0.9 * seconds(problem, alike.plan)
    assert dealt.plan.provenance["deal_slots"] is True and "deal_slots" not in alike.plan.provenance
    assert counted_seconds(problem, SMALL.cost) <= dealt.objective
    assert digest(SMALL(problem).plan) == digest(dealt.plan)


def test_where_no_deal_pays_all_layers_stay_alike(problem, monkeypatch):
    """Copies bring little but less traffic, and links take no time."""
    fast = replace(
        problem.topology,
        latency_s=problem.topology.latency_s * 0,
        link_bytes_per_s=problem.topology.link_bytes_per_s + 1e15,
    )
    looked = []

    def tries(self, counts, *rest, original=joint_slots.SlotDealer._tries):
        looked.append(counts)
        return original(self, counts, *rest)

    monkeypatch.setattr(joint_slots.SlotDealer, "_tries", tries)
    solution = SMALL(replace(problem, topology=fast))
    assert solution.plan.placement.slots_reserved.max() <= 3
    assert looked == [[3], [2, 4]]  # no more than a look


@pytest.mark.parametrize(("policy", "fill"), [("tar", False), ("tar", True), ("uniform", True)])
def test_an_engines_rule_and_full_slots_hold_in_every_layer(problem, policy, fill):
    placement = replace(SMALL, policy=policy, fill=fill)(problem).plan.placement
    assert placement.slots_reserved.sum() <= 6
    if fill:
        assert (placement.slots_used == placement.slots_reserved[:, None]).all()


def test_homes_may_be_chosen_too(problem):
    solution = replace(SMALL, homes="chosen")(problem)
    problem.check(solution.plan)
    assert solution.plan.homes is not None


@pytest.mark.parametrize("homes", ["given", "chosen"])
@pytest.mark.parametrize("tries", [1, 3])
def test_an_interrupt_while_numbers_are_tried_leaves_a_plan_with_layers_alike(problem, homes, tries, monkeypatch):
    begun = []

    def run(search, trials, *rest, original=LocalSearch.run, **options):
        if trials:
            raise KeyboardInterrupt
        original(search, trials, *rest, **options)

    def look(self, *arguments, original=joint_slots.SlotDealer._starts_at):
        begun.append(arguments)
        if len(begun) == tries:
            monkeypatch.setattr(LocalSearch, "run", run)
        return original(self, *arguments)

    monkeypatch.setattr(joint_slots.SlotDealer, "_starts_at", look)
    with pytest.warns(UserWarning, match="^joint: interrupted"):
        solution = replace(SMALL, homes=homes)(problem)
    assert (len(begun), solution.status) == (tries, "feasible")
    replace(problem, dealt=False).check(solution.plan)


def test_fewer_slots_keep_every_expert_where_it_was_if_they_can():
    slots = np.array([[[0, 1, 2], [2, 3, 0], [1, 3, EMPTY]]])
    kept = reduced(slots, 2, np.array([[9, 1, 5, 7]]))
    assert kept.shape == (1, 3, 2)
    assert set(kept[0].ravel().tolist()) >= {0, 1, 2, 3}
    assert all(set(after) <= set(before) for after, before in zip(kept[0].tolist(), slots[0].tolist(), strict=True))
    tight = reduced(np.array([[[0, 1, 2, 3], [0, 1, EMPTY, EMPTY]]]), 2, np.array([[9, 1, 5, 7]]))
    assert sorted(tight[0].ravel().tolist()) == [0, 1, 2, 3]


def test_every_node_holds_every_expert_or_the_plan_is_refused(problem):
    full = replace(problem, dealt=False, slots=5)
    plan = NodeCopies()(full).plan
    nodes = np.split(plan.placement.slots, 2, axis=1)
    assert all(set(node[layer].ravel().tolist()) == set(range(8)) for node in nodes for layer in range(2))
    assert (plan.placement.slots_used == 5).all()
    with pytest.raises(ValueError, match="a node has 6 slots, fewer than 8 experts"):
        NodeCopies()(replace(full, slots=3))

"""Plans and counts that cells share."""

from dataclasses import replace

import numpy as np
import pytest

from analysis.parts import problems
from analysis.study_cache import StudyCache
from grace_opt.homes import Balanced
from grace_opt.planners.linear import Linear
from grace_opt.split import Alternate
from grace_opt.topology import Topology
from grace_opt.trace import Trace
from grace_opt.traffic import traffic

PARTS = {name: name for name in ("planner", "model", "trace", "split", "homes", "topology")}


class Counting:
    """Linear, and how often it was asked."""

    def __init__(self):
        self.asked = []

    def __call__(self, problem):
        self.asked.append(problem)
        return Linear()(problem)


class ByStructure(Counting):
    plans_by = "structure"


class Failing(Counting):
    def __call__(self, problem):
        self.asked.append(problem)
        raise ValueError("no plan in 2 slots")


@pytest.fixture
def parts(model, gpu, toy_trace):
    topology = Topology.two_level("toy", gpu, 2, 1, 200, 0.01, 20, 0.1)
    return problems(model, topology, toy_trace, Alternate(), Balanced(), 2)


@pytest.fixture
def toy_trace():
    ids = np.array([[[0, 1], [1, 2], [2, 3], [3, 0], [0, 2], [1, 3]]], np.uint8)
    return Trace(ids, np.arange(6), np.arange(1, 7), np.zeros(6, int), ("a",), 4, "toy")


def faster(parts):
    """The same problems on a faster network."""
    gpu = parts["fit"].topology.gpus[0]
    topology = Topology.two_level("toy", gpu, 2, 1, 200, 0.01, 40, 0.1)
    return {name: replace(part, topology=topology) for name, part in parts.items()}


@pytest.mark.parametrize(("planner", "times"), [(ByStructure(), 1), (Counting(), 2)])
def test_only_planners_that_say_so_share_plans_over_bandwidths(planner, times, parts, tmp_path):
    slow = StudyCache(tmp_path, PARTS)
    fast = StudyCache(tmp_path, {**PARTS, "topology": "faster"})
    one, _ = slow.solve(planner, parts, asks=False)
    for cache, same in ((slow, parts), (fast, faster(parts)), (fast, faster(parts))):
        again, _ = cache.solve(planner, same, asks=False)
        assert (again.plan.placement.slots == one.plan.placement.slots).all()
    assert len(planner.asked) == times


@pytest.mark.parametrize("part", ["planner", "model", "trace", "split", "homes"])
def test_a_plan_is_not_shared_by_cells_that_differ_in_what_decides_it(part, parts, tmp_path):
    planner = ByStructure()
    StudyCache(tmp_path, PARTS).solve(planner, parts, asks=False)
    StudyCache(tmp_path, {**PARTS, part: "another"}).solve(planner, parts, asks=False)
    assert len(planner.asked) == 2


def test_more_slots_are_another_plan(parts, tmp_path):
    planner, cache = ByStructure(), StudyCache(tmp_path, PARTS)
    cache.solve(planner, parts, asks=False)
    cache.solve(planner, {name: replace(part, slots=3) for name, part in parts.items()}, asks=False)
    assert len(planner.asked) == 2


def test_the_slots_a_planner_asked_for_come_back_with_its_plan(parts, tmp_path):
    class Wants(ByStructure):
        def slots_wanted(self, problem):
            return 3

    planner, cache = Wants(), StudyCache(tmp_path, PARTS)
    for _ in range(2):
        solution, given = cache.solve(planner, parts, asks=True)
        assert [part.slots_per_rank.tolist() for part in given.values()] == [[3, 3], [3, 3]]
    assert len(planner.asked) == 1
    assert solution.status == "heuristic"


def test_a_planner_that_cannot_plan_is_asked_once(parts, tmp_path):
    planner, cache = Failing(), StudyCache(tmp_path, PARTS)
    for _ in range(2):
        with pytest.raises(ValueError, match="no plan in 2 slots"):
            cache.solve(planner, parts, asks=False)
    assert len(planner.asked) == 1


@pytest.mark.parametrize("tokens_per_rank", [None, 1])
def test_counts_come_back_as_they_were(tokens_per_rank, parts, tmp_path, monkeypatch):
    cache = StudyCache(tmp_path, PARTS)
    plan = Linear()(parts["fit"]).plan
    expected = traffic(parts["held_out"].trace, plan, tokens_per_rank)
    cache.counts("held_out", parts["held_out"], plan, tokens_per_rank)
    monkeypatch.setattr("analysis.study_cache.traffic", lambda *_: pytest.fail("counted again"))
    kept = cache.counts("held_out", parts["held_out"], plan, tokens_per_rank)
    for name in ("tokens", "pair_rows", "rank_visits", "node_visits", "tokens_of_rank"):
        assert (getattr(kept, name) == getattr(expected, name)).all()
        assert getattr(kept, name).dtype == np.int64
    assert kept.ranks_per_node == expected.ranks_per_node


@pytest.mark.parametrize(
    "damage", [lambda data: data[: len(data) // 2], lambda data: b"", lambda data: b"x" * len(data)]
)
def test_what_was_damaged_is_computed_again(damage, parts, tmp_path):
    planner, cache = ByStructure(), StudyCache(tmp_path, PARTS)
    solution, _ = cache.solve(planner, parts, asks=False)
    counts = cache.counts("fit", parts["fit"], solution.plan, None)
    for path in [*(tmp_path / "plans").iterdir(), *(tmp_path / "counts").iterdir()]:
        path.write_bytes(damage(path.read_bytes()))
    again, _ = cache.solve(planner, parts, asks=False)
    assert (again.plan.placement.slots == solution.plan.placement.slots).all()
    assert (cache.counts("fit", parts["fit"], solution.plan, None).tokens == counts.tokens).all()
    assert len(planner.asked) == 2

"""The policies for vLLM: with plain arrays for tensors everywhere, and through vLLM's own code where it can be had."""

import ast
import contextlib
import importlib.util
import os
import subprocess
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Literal

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from grace_opt.engines.vllm_plugin import register
from grace_opt.engines.vllm_policy import OnlinePolicy, PlanPolicy, keep_slots, read_policy
from grace_opt.placement import Placement
from grace_opt.plan import Plan
from grace_opt.plan_file import write_plan
from grace_opt.routing import Routing

PLAN = Plan("toy", (1, 3), (1, 1), Placement.from_lists([[[0, 1], [2, 1]], [[2, 0], [0, 1]]], 3), Routing("uniform"))


class Tensor:
    """The few methods of a tensor that a policy uses."""

    def __init__(self, values):
        self.values = np.asarray(values)
        self.shape = self.values.shape

    def float(self):
        return Tensor(self.values.astype(np.float32))

    def long(self):
        return Tensor(self.values.astype(np.int64))

    def cpu(self):
        return self

    def numpy(self):
        return self.values

    def new_tensor(self, values):
        return np.array(values, self.values.dtype)


def ask(policy, load, num_slots, num_ranks, old=None, groups=1, nodes=1):
    return policy.rebalance_experts(
        Tensor(load), num_slots, groups, nodes, num_ranks, None if old is None else Tensor(old)
    )


def test_the_saved_plan_is_the_answer_whatever_the_load():
    answer = ask(PlanPolicy(PLAN, "plan.json"), np.zeros((2, 3)), 4, 2)
    assert answer.dtype == np.int64
    assert answer.tolist() == [[0, 1, 2, 1], [2, 0, 0, 1]]


def test_an_expert_that_stays_on_its_rank_keeps_its_slot():
    assert keep_slots(np.array([[7, 5, 3]]), np.array([[5, 2, 7]]), 1).tolist() == [[5, 3, 7]]
    old = [[1, 0, 0, 2], [0, 1, 2, 0]]
    answer = ask(PlanPolicy(PLAN, "plan.json"), np.zeros((2, 3)), 4, 2, old)
    assert answer.tolist() == [[1, 0, 1, 2], [0, 2, 1, 0]]
    assert ask(PlanPolicy(PLAN, "plan.json"), np.zeros((2, 3)), 4, 2, answer).tolist() == answer.tolist()


@pytest.mark.parametrize(
    ("load", "slots", "ranks", "told"),
    [
        (np.zeros((1, 3)), 4, 2, "1 MoE layers, 3 experts, 4 slots, 2 ranks"),
        (np.zeros((2, 4)), 4, 2, "2 MoE layers, 4 experts, 4 slots, 2 ranks"),
        (np.zeros((2, 3)), 6, 2, "2 MoE layers, 3 experts, 6 slots, 2 ranks"),
        (np.zeros((2, 3)), 4, 4, "2 MoE layers, 3 experts, 4 slots, 4 ranks"),
        (np.zeros(3), 4, 2, "loads of shape"),
    ],
)
def test_a_plan_for_other_numbers_is_refused_in_one_line(load, slots, ranks, told):
    with pytest.raises(ValueError, match="plan a.json is for 2 MoE layers, 3 experts, 4 slots, 2 ranks") as error:
        ask(PlanPolicy(PLAN, "a.json"), load, slots, ranks)
    assert told in str(error.value) and "\n" not in str(error.value)


def test_a_plan_with_unequal_ranks_is_refused_when_it_is_read(tmp_path, make_plan):
    write_plan(tmp_path / "plan.json", make_plan([[[0, 1, 2], [3]]], nodes=(2,)))
    with pytest.raises(ValueError, match="ranks hold 1 to 3 experts.*unequal=pad"):
        read_policy(str(tmp_path / "plan.json"))


def test_online_gives_the_loaded_expert_more_copies_and_none_twice_on_a_gpu():
    answer = ask(OnlinePolicy(), np.array([[6, 3, 2, 1]]), 6, 2)
    assert answer.tolist() == [[0, 1, 3, 0, 2, 1]]


def test_online_serves_before_anything_was_measured():
    answer = ask(OnlinePolicy(), np.zeros((2, 4)), 6, 2)
    assert all(set(row) == {0, 1, 2, 3} for row in answer.tolist())


@given(data=st.data())
def test_online_is_feasible_and_the_same_on_every_rank(data):
    nodes, per_node = data.draw(st.integers(1, 3)), data.draw(st.integers(1, 3))
    ranks, groups = nodes * per_node, data.draw(st.sampled_from([1, nodes]))
    experts = groups * data.draw(st.integers(1, 6))
    slots = ranks * data.draw(st.integers(-(-experts // ranks), 10))
    load = data.draw(st.lists(st.integers(0, 9), min_size=experts, max_size=experts))
    old = np.arange(slots)[None] % experts
    answers = [ask(OnlinePolicy(), np.array([load]), slots, ranks, old, groups, nodes) for _ in range(2)]
    assert np.array_equal(*answers)
    assert set(answers[0][0].tolist()) == set(range(experts))


@pytest.fixture
def vllm_policies(monkeypatch):
    """A table of policies where vLLM has its own."""
    package = ModuleType("vllm.distributed.eplb.policy")
    package.EPLB_POLICIES = {"default": "vLLM's own"}
    monkeypatch.setitem(sys.modules, package.__name__, package)
    for name in ("GRACE_OPT_PLAN", "VLLM_PLUGINS"):
        monkeypatch.delenv(name, raising=False)
    return package.EPLB_POLICIES


def test_vllm_stays_as_it_is_unless_asked(vllm_policies, monkeypatch):
    register()
    assert vllm_policies == {"default": "vLLM's own"}
    monkeypatch.setenv("VLLM_PLUGINS", "another,third")
    register()
    assert vllm_policies == {"default": "vLLM's own"}


def test_the_plugin_serves_what_was_exported(vllm_policies, monkeypatch, tmp_path):
    write_plan(tmp_path / "plan.json", PLAN)
    monkeypatch.setenv("GRACE_OPT_PLAN", str(tmp_path / "plan.json"))
    register()
    register()  # vLLM may load a plugin more than once
    assert ask(vllm_policies["default"], np.zeros((2, 3)), 4, 2).tolist() == [[0, 1, 2, 1], [2, 0, 0, 1]]


@pytest.mark.parametrize(("name", "value"), [("GRACE_OPT_PLAN", "online"), ("VLLM_PLUGINS", "lora,grace_opt")])
def test_the_plugin_plans_online_when_asked(vllm_policies, monkeypatch, name, value):
    monkeypatch.setenv(name, value)
    register()
    assert vllm_policies["default"] == OnlinePolicy()


def test_a_plan_that_is_not_there_stops_vllm(vllm_policies, monkeypatch):
    monkeypatch.setenv("GRACE_OPT_PLAN", "missing.json")
    with pytest.raises(FileNotFoundError, match=r"missing\.json does not exist"):
        register()


def test_the_entry_point_loads_nothing_until_asked():
    code = (
        "import sys, grace_opt.engines.vllm_plugin as plugin; plugin.register(); "
        "print(sorted({name.split('.')[0] for name in sys.modules} & {'numpy', 'numba', 'torch', 'vllm'}))"
    )
    environment = {key: value for key, value in os.environ.items() if key not in ("GRACE_OPT_PLAN", "VLLM_PLUGINS")}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=environment)
    assert done.stdout == "[]\n"


@pytest.fixture
def real_vllm(monkeypatch):
    """vLLM's folder; its table of policies imports, without its compiled parts, its configuration a stand-in."""
    pytest.importorskip("torch")
    spec = importlib.util.find_spec("vllm")
    if spec is None:
        pytest.skip("vllm is not installed: its code cannot be asked")
    folder = Path(spec.submodule_search_locations[0])
    for name in ("vllm", "vllm.distributed", "vllm.distributed.eplb"):
        package = ModuleType(name)
        package.__path__ = [str(folder.joinpath(*name.split(".")[1:]))]
        monkeypatch.setitem(sys.modules, name, package)
    config = ModuleType("vllm.config.parallel")
    config.EPLBPolicyOption = Literal["default"]
    monkeypatch.setitem(sys.modules, config.__name__, config)
    for name in [name for name in sys.modules if name.startswith("vllm.distributed.eplb.policy")]:
        monkeypatch.delitem(sys.modules, name)
    yield folder
    for name in [name for name in sys.modules if name.startswith("vllm.distributed.eplb.policy")]:
        sys.modules.pop(name)


def call_of(folder: Path):
    """vLLM's function that asks its policy, cut out of the file where it stands."""
    import torch

    tree = ast.parse((folder / "distributed/eplb/async_worker.py").read_text())
    (function,) = (node for node in tree.body if getattr(node, "name", "") == "run_rebalance_experts")
    scope = {"torch": torch, "device_stream": lambda stream: contextlib.nullcontext()}
    code = "from __future__ import annotations\n" + ast.unparse(function)
    exec(compile(code, "run_rebalance_experts", "exec"), scope)
    return scope["run_rebalance_experts"]


@pytest.mark.parametrize("wanted", ["plan", "online"])
def test_vllms_own_code_takes_our_answer(real_vllm, monkeypatch, tmp_path, wanted):
    import torch
    from vllm.distributed.eplb.policy import EPLB_POLICIES, DefaultEplbPolicy

    write_plan(tmp_path / "plan.json", PLAN)
    monkeypatch.setenv("GRACE_OPT_PLAN", str(tmp_path / "plan.json") if wanted == "plan" else "online")
    assert EPLB_POLICIES["default"] is DefaultEplbPolicy
    register()
    load = torch.tensor([[6, 3, 2], [1, 0, 5]], dtype=torch.int32)
    old = torch.tensor([[0, 1, 2, 0]] * 2)
    stats = SimpleNamespace(global_expert_load_window=load, num_replicas=4, num_groups=1, num_nodes=1, num_gpus=2)
    state = SimpleNamespace(policy=EPLB_POLICIES["default"])
    answer = call_of(real_vllm)(SimpleNamespace(eplb_stats=stats), state, old, None)
    theirs = DefaultEplbPolicy.rebalance_experts(load, 4, 1, 1, 2, old)
    assert (answer.dtype, answer.shape, answer.device) == (theirs.dtype, theirs.shape, theirs.device)
    if wanted == "plan":
        kept = DefaultEplbPolicy.preserve_intragpu_slots(
            np.array([[0, 1, 2, 1], [2, 0, 0, 1]]), 2, old.numpy()
        )  # what vLLM itself makes of the plan's map
        assert answer.tolist() == kept.tolist()
    for row in answer.tolist():
        assert set(row) == {0, 1, 2}
        assert len(set(row[:2])) == len(set(row[2:])) == 2


@given(data=st.data())
def test_what_stays_on_a_rank_stays_in_its_slot_and_nothing_is_lost(data):
    width, ranks = data.draw(st.integers(1, 5)), data.draw(st.integers(1, 3))
    random = np.random.default_rng(data.draw(st.integers(0, 2**32 - 1)))
    new, old = (np.stack([random.permutation(8)[:width] for _ in range(ranks)]).reshape(1, -1) for _ in range(2))
    kept = keep_slots(new, old, ranks)
    for rank in range(ranks):
        part = slice(rank * width, (rank + 1) * width)
        assert sorted(kept[0, part]) == sorted(new[0, part])
        stay = np.isin(old[0, part], new[0, part])
        assert (kept[0, part][stay] == old[0, part][stay]).all()

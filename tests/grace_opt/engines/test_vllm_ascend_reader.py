"""vllm-ascend's own reader, out of an installed package, takes our file; no NPU is needed for that."""

import ast
import importlib.util
import json
from collections import defaultdict
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from grace_opt.engines import vllm_ascend
from grace_opt.engines.engine import Options

torch = pytest.importorskip("torch")
SPEC = importlib.util.find_spec("vllm_ascend")
if SPEC is None:
    pytest.skip("vllm-ascend is not installed: its reader cannot be asked", allow_module_level=True)
SOURCE = Path(SPEC.submodule_search_locations[0]) / "eplb/core/eplb_utils.py"


@pytest.fixture
def engine():
    """Its functions, cut out of the file where they stand: importing it would want an NPU."""
    functions = [node for node in ast.parse(SOURCE.read_text()).body if isinstance(node, ast.FunctionDef)]
    scope = {"torch": torch, "np": np, "json": json, "defaultdict": defaultdict}
    for function in functions:
        code = "from __future__ import annotations\n" + ast.unparse(function).replace(".npu()", "")
        exec(compile(code, function.name, "exec"), scope)
    return scope


@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_vllm_ascend_reads_our_file_as_the_plan(engine, even_plans, tmp_path, data):
    plan = data.draw(even_plans(once=True).filter(lambda plan: plan.num_ranks > 1))
    (content,) = vllm_ascend.files(plan, Options(), tmp_path).values()
    (tmp_path / vllm_ascend.FILE).write_bytes(content)
    config = SimpleNamespace(
        expert_map_path=str(tmp_path / vllm_ascend.FILE), dynamic_eplb=False, num_redundant_experts=0
    )
    rank = data.draw(st.integers(0, plan.num_ranks - 1))
    moe = SimpleNamespace(num_experts=plan.num_experts, ep_size=plan.num_ranks, ep_rank=rank)
    for index, ranks in enumerate(plan.placement.to_lists()):
        slot_RE, own_E, physical_E, redundant = engine["init_eplb_config"](config, index, moe)
        assert redundant == plan.placement.num_physical - plan.num_experts
        for holder, experts in enumerate(ranks):
            assert [int(slot_RE[holder, expert]) for expert in experts] == list(range(len(experts)))
        assert own_E.tolist() == slot_RE[rank].tolist()
        slots = [expert for experts in ranks for expert in experts]
        assert [slots[physical] for physical in physical_E.tolist()] == list(range(plan.num_experts))

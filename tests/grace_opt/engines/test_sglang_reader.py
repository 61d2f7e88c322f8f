"""SGLang's own reader, out of an installed package, takes our file; its server and GPU are not needed for that."""

import importlib.util
import sys
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType, SimpleNamespace

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from grace_opt.engines import sglang
from grace_opt.engines.engine import Options

pytest.importorskip("torch")
SPEC = importlib.util.find_spec("sglang")
if SPEC is None:
    pytest.skip("sglang is not installed: its reader cannot be asked", allow_module_level=True)
SOURCE = Path(SPEC.submodule_search_locations[0]) / "srt/eplb/expert_location.py"


@dataclass
class Sizes:
    num_layers: int
    num_experts: int


class Architecture:
    """What a model's class tells SGLang of its experts."""

    reader: ModuleType

    @classmethod
    def get_model_config_for_expert_location(cls, config):
        return cls.reader.ModelConfigForExpertLocation(config.num_layers, config.num_experts)


@pytest.fixture
def read(monkeypatch, tmp_path):
    """(plan, rank) -> SGLang's metadata of our file, as its model runner would have it."""
    server = SimpleNamespace()

    def stub(name, **content):
        module = ModuleType(name)
        module.__dict__.update(content)
        monkeypatch.setitem(sys.modules, name, module)

    stub(
        "sglang.srt.runtime_context",
        get_device=lambda: SimpleNamespace(device="cpu"),
        get_exec=lambda: SimpleNamespace(moe=server.moe),
        get_parallel=lambda: server.parallel,
        get_resources=lambda: None,
    )
    stub("sglang.srt.model_loader", get_model_architecture=lambda config: (Architecture, ""))
    stub("sglang.srt.elastic_ep.elastic_ep", elastic_expanded_world_enabled=lambda: False)
    spec = importlib.util.spec_from_file_location("sglang_expert_location", SOURCE)
    Architecture.reader = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, spec.name, Architecture.reader)
    spec.loader.exec_module(Architecture.reader)

    def read(plan, rank, num_layers):
        (content,) = sglang.files(plan, Options(num_layers), tmp_path).values()
        (tmp_path / sglang.FILE).write_bytes(content)
        server.parallel = SimpleNamespace(
            ep_size=plan.num_ranks, nnodes=1, elastic_ep_initial_size=None, tp_size=plan.num_ranks
        )
        server.moe = SimpleNamespace(
            init_expert_location=str(tmp_path / sglang.FILE),
            ep_num_redundant_experts=plan.placement.num_physical - plan.num_experts,
            ep_join_mode=None,
            ep_dispatch_algorithm="static",
            moe_a2a_backend="deepep",
        )
        config = SimpleNamespace(hf_config=Sizes(num_layers, plan.num_experts))
        return Architecture.reader.compute_initial_expert_location_metadata(config, rank)

    return read


@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_sglang_reads_our_file_as_the_plan(read, even_plans, data):
    plan = data.draw(even_plans())
    num_layers = max(plan.layer_ids) + 1 + data.draw(st.integers(0, 2))
    rank = data.draw(st.integers(0, plan.num_ranks - 1))
    found = read(plan, rank, num_layers)
    assert found.physical_to_logical_map.shape == (num_layers, plan.placement.num_physical)
    planned = found.physical_to_logical_map[list(plan.layer_ids)].numpy()
    assert np.array_equal(planned, plan.placement.slots.reshape(len(planned), -1))
    assert found.num_local_physical_experts == plan.placement.slots.shape[2]
    # it picks the copy on the rank itself where there is one
    chosen = found.logical_to_rank_dispatch_physical_map[plan.layer_ids[0]].numpy()
    for expert, physical in enumerate(chosen):
        own = plan.placement.slots[0, rank].tolist()
        assert planned[0, physical] == expert
        assert physical // len(own) == rank or expert not in own

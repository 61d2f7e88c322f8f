"""The files of each engine, written out by hand for one small plan."""

import io
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import yaml

from grace_opt.engines import omni, sglang, tensorrt_llm, vllm, vllm_ascend
from grace_opt.engines.engine import Options
from grace_opt.home_rule import HomeRule
from grace_opt.placement import Placement
from grace_opt.plan import Plan
from grace_opt.routing import Routing

FOLDER = Path("/out")
# Layers 1 and 3 of a model whose layers 0 and 2 are dense: 3 experts, 2 ranks of 2 slots.
LISTS = [[[0, 1], [2, 1]], [[2, 0], [0, 1]]]


@pytest.fixture
def plan() -> Plan:
    return Plan("toy", (1, 3), (1, 1), Placement.from_lists(LISTS, 3), Routing("tar"))


def test_sglang_has_a_row_for_every_layer_dense_ones_filled_in_turn(plan):
    (content,) = sglang.files(plan, Options(), FOLDER).values()
    assert json.loads(content) == {"physical_to_logical_map": [[0, 1, 2, 0], [0, 1, 2, 1], [0, 1, 2, 0], [2, 0, 0, 1]]}


def test_sglang_has_rows_for_dense_layers_at_the_end_if_told(plan):
    (content,) = sglang.files(plan, Options(num_hidden_layers=6), FOLDER).values()
    assert json.loads(content)["physical_to_logical_map"][4:] == [[0, 1, 2, 0]] * 2
    with pytest.raises(ValueError, match="num_hidden_layers=3, but the plan has layer 3"):
        sglang.files(plan, Options(num_hidden_layers=3), FOLDER)


def test_tensorrt_llm_is_keyed_by_absolute_layers_and_has_no_key_of_its_own(plan):
    files = tensorrt_llm.files(plan, Options(), FOLDER)
    assert yaml.safe_load(files["load_balancer.yaml"]) == {
        "num_slots": 4,
        "layer_updates_per_iter": 0,
        "initial_global_assignments": {1: [0, 1, 2, 1], 3: [2, 0, 0, 1]},
    }
    assert yaml.safe_load(files["llm_options.yaml"]) == {
        "tensor_parallel_size": 2,
        "moe_expert_parallel_size": 2,
        "enable_attention_dp": True,
        "moe_config": {"load_balancer": "/out/load_balancer.yaml"},
    }


def test_vllm_counts_moe_layers(plan):
    files = vllm.files(plan, Options(), FOLDER)
    assert json.loads(files["eplb_initial_mapping.jsonl"]) == {
        "record_type": "eplb_initial_mapping",
        "version": 1,
        "num_redundant_experts": 1,
        "num_slots": 4,
        "initial_global_assignments": {"0": [0, 1, 2, 1], "1": [2, 0, 0, 1]},
    }
    assert files["eplb_initial_mapping.jsonl"].count(b"\n") == 1
    assert json.loads(files["initial_expert_map.json"]) == [[0, 1, 2, 1], [2, 0, 0, 1]]


def test_vllm_takes_1023_redundant_experts_and_no_more(plan):
    def of(slots: int) -> Plan:
        return Plan("toy", (0,), (1,), Placement.from_lists([[[0] * slots]], 1), Routing("uniform"))

    assert vllm.files(of(1024), Options(), FOLDER)
    with pytest.raises(ValueError, match="at most 1023 redundant experts, the plan has 1024"):
        vllm.files(of(1025), Options(), FOLDER)


def test_vllm_ascend_lists_devices_layer_by_layer(plan):
    (content,) = vllm_ascend.files(plan, Options(), FOLDER).values()
    assert json.loads(content) == {
        "moe_layer_count": 2,
        "layer_list": [
            {
                "layer_id": layer,
                "device_count": 2,
                "device_list": [
                    {"device_id": 0, "device_expert": LISTS[layer][0]},
                    {"device_id": 1, "device_expert": LISTS[layer][1]},
                ],
            }
            for layer in (0, 1)
        ],
    }


def test_omni_is_an_array_of_devices_layers_and_experts(plan):
    (content,) = omni.files(plan, Options(), FOLDER).values()
    array = np.load(io.BytesIO(content), allow_pickle=False)
    assert array.dtype == np.int32
    assert array.tolist() == [[[1, 1, 0], [1, 0, 1]], [[0, 1, 1], [1, 1, 0]]]


@pytest.mark.parametrize("engine", [sglang, tensorrt_llm, vllm, vllm_ascend, omni])
def test_the_lines_to_type_name_the_file_and_the_numbers(plan, engine):
    text = "\n".join(engine.start(plan, FOLDER))
    name = tensorrt_llm.OPTIONS_FILE if engine is tensorrt_llm else next(iter(engine.files(plan, Options(), FOLDER)))
    if engine is vllm:
        assert f"GRACE_OPT_PLAN={FOLDER}/served_plan.json" in text
    assert str(FOLDER / name) in text
    if engine in (sglang, vllm, vllm_ascend):
        assert "redundant" in text and "1" in text
    if engine is sglang:
        assert "--ep-size 2 --nnodes 2" in text and "--ep-num-redundant-experts 1 " in text


@pytest.mark.parametrize(
    ("engine", "policy", "told"),
    [
        (sglang, "tar", False),
        (sglang, "uniform", True),
        (tensorrt_llm, "uniform", False),
        (tensorrt_llm, "tar", True),
        (vllm, "uniform", False),
        (vllm, "cover", True),
        (vllm_ascend, "uniform", True),
        (omni, "tar", True),
    ],
)
def test_an_engine_says_so_if_it_picks_replicas_in_another_way(plan, engine, policy, told):
    lines = engine.ignores(replace(plan, routing=Routing(policy)))
    assert any(f"picks replicas by {policy}" in line for line in lines) == told


def test_without_replicas_there_is_no_word_on_replicas():
    plan = Plan("toy", (0,), (2,), Placement.from_lists([[[0], [1]]], 2), Routing("cover"))
    assert not any("replicas" in line for line in sglang.ignores(plan))


@pytest.mark.parametrize("engine", [sglang, tensorrt_llm, vllm, vllm_ascend, omni])
def test_what_is_ignored_is_said(engine):
    placement = Placement.from_lists([[[0, 1], [1, 0], [0, 0]]], 2)
    weights = np.ones((1, 3, 2))
    plan = Plan("toy", (0,), (1, 2), placement, Routing("tar", weights), homes=HomeRule(1, 0, 0, 0))
    text = "\n".join(engine.ignores(plan))
    for part in (
        "rule for homes is not used",
        "nodes of [1, 2] ranks",
        "changes no traffic, only load",
        "twice on rank 2",
    ):
        assert part in text
    assert "polling weights are not used" in "\n".join(sglang.ignores(plan))

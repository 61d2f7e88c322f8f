"""The command: files and result.json, refusals that leave nothing, and lines to type."""

import json
from dataclasses import replace

import numpy as np
import pytest

from grace_opt.__main__ import main
from grace_opt.configuration import CONF_DIR
from grace_opt.engines.export import ENGINES, export
from grace_opt.engines.vllm_policy import read_policy
from grace_opt.load_history import LoadHistory
from grace_opt.placement import Placement
from grace_opt.plan import Plan
from grace_opt.plan_file import digest, read_plan, write_plan
from grace_opt.routing import Routing
from grace_opt.trace_file import read_trace


@pytest.fixture
def even(tmp_path, make_plan):
    plan = make_plan([[[0, 1], [2, 3], [1, 0], [3, 2]]], "tar")
    write_plan(tmp_path / "even.json", plan)
    return tmp_path / "even.json"


@pytest.fixture
def uneven(tmp_path, make_plan):
    write_plan(tmp_path / "uneven.json", make_plan([[[0, 1], [2], [3], [1]]], "tar"))
    return tmp_path / "uneven.json"


@pytest.mark.parametrize("engine", ENGINES)
def test_files_and_result_are_written(even, tmp_path, capsys, engine):
    assert main(["export", f"plan={even}", f"engine={engine}", f"output={tmp_path}/out"]) == 0
    result = json.loads((tmp_path / "out/result.json").read_text())
    (row,) = result["rows"]
    assert {path.name for path in (tmp_path / "out").iterdir()} == {
        "result.json", *(file.rpartition("/")[2] for file in row["files"])
    }  # fmt: skip
    assert (result["command"], result["status"], result["problem"]["engine"]) == ("export", "complete", engine)
    assert (row["slots"], row["redundant_experts"], row["ranks"]) == (8, 4, 4)
    printed = capsys.readouterr().out
    for line in (*row["start"], *row["warnings"]):
        assert line in printed


@pytest.mark.parametrize("engine", ENGINES)
def test_nothing_is_overwritten_unless_told(even, tmp_path, capsys, engine):
    arguments = ["export", f"plan={even}", f"engine={engine}", f"output={tmp_path}/out"]
    assert main(arguments) == 0
    first = {path: path.read_bytes() for path in (tmp_path / "out").iterdir()}
    assert main(arguments) == 2
    assert "exists: give another output, or overwrite=true" in capsys.readouterr().err
    assert main([*arguments, "overwrite=true"]) == 0
    assert {path: path.read_bytes() for path in (tmp_path / "out").iterdir()} == first


@pytest.mark.parametrize("engine", ENGINES)
def test_unequal_ranks_are_refused_and_nothing_is_written(uneven, tmp_path, capsys, engine):
    assert main(["export", f"plan={uneven}", f"engine={engine}", f"output={tmp_path}/out"]) == 2
    error = capsys.readouterr().err
    assert "rank 1 holds 1 experts in layer 0, but 2 slots are needed" in error and error.count("\n") == 1
    assert not (tmp_path / "out").exists()


@pytest.fixture
def trace(tmp_path, make_trace):
    return make_trace([[[0, 1], [0, 2], [0, 3], [0, 1]]])  # loads 4, 2, 1, 1


@pytest.mark.parametrize("engine", ENGINES)
def test_small_ranks_are_padded_by_the_loads_of_a_trace(uneven, tmp_path, engine, trace):
    done = export(str(uneven), engine, str(tmp_path / "out"), unequal="pad", trace=trace)
    assert done.about["redundant_experts"] == 4
    assert done.warnings[0].startswith("3 slots of 4 (layer, rank) pairs were filled")
    assert "memory was not checked" in done.warnings[1]
    if engine == "sglang":
        content = json.loads((tmp_path / "out/expert_location.json").read_text())
        # expert 0 has 4 tokens on one copy, then 2 on each of two, then 4 / 3
        assert content["physical_to_logical_map"] == [[0, 1, 2, 0, 3, 0, 1, 0]]


def test_loads_alone_choose_what_fills(uneven, tmp_path):
    loads = LoadHistory(np.array([[[1, 1, 9, 1]]]), top_k=2)
    export(str(uneven), "sglang", str(tmp_path / "out"), unequal="pad", trace=loads)
    content = json.loads((tmp_path / "out/expert_location.json").read_text())
    # expert 2 first where it is lacking (9 tokens, then 4.5); rank 1 holds it and takes 0, the lowest of 1, 1, 1
    assert content["physical_to_logical_map"] == [[0, 1, 2, 0, 3, 2, 1, 2]]


def test_a_filled_plan_must_fit_in_memory(uneven, tmp_path, trace, model, make_topology):
    given = {"unequal": "pad", "trace": trace, "topology": make_topology()}  # 3000 bytes a rank, 300 an expert
    done = export(str(uneven), "sglang", str(tmp_path / "out"), model=model, **given)
    assert not any("memory" in line for line in done.warnings)
    large = replace(model, dense_bytes=2600)
    with pytest.raises(ValueError, match="rank 0 would hold 2 experts a layer, but its memory holds 1"):
        export(str(uneven), "sglang", str(tmp_path / "other"), model=large, **given)


def test_a_trace_of_another_model_chooses_nothing(uneven, tmp_path, make_trace):
    other = make_trace([[[0, 1]]], num_experts=6)
    with pytest.raises(ValueError, match="1 MoE layers and 6 experts, the plan of toy with 1 and 4"):
        export(str(uneven), "sglang", str(tmp_path / "out"), unequal="pad", trace=other)


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["engine=tgi"], "engine must be one of sglang, tensorrt_llm, vllm, vllm_ascend, omni, permutation, got 'tgi'"),
        (["engine=sglang", "unequal=fill"], "unequal must be refuse or pad, got 'fill'"),
        (["engine=sglang", "num_hidden_layers=0"], "num_hidden_layers=0, but the plan has layer 0"),
        (["engine=permutation"], "give checkpoint=FOLDER"),
        (["engine=sglang", "model=sample"], "give both or none"),
        (["engine=sglang", "model=sample", "topology=h100_ib_1x8"], "plan is for model toy"),
        ([], "engine must be given"),
    ],
)
def test_a_wrong_option_is_one_line(even, tmp_path, capsys, arguments, told):
    assert main(["export", f"plan={even}", f"output={tmp_path}/out", *arguments]) == 2
    error = capsys.readouterr().err
    assert told in error and error.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_layers_that_do_not_ascend_are_refused(tmp_path, make_plan):
    plan = replace(make_plan([[[0, 1], [2, 3]]] * 2, nodes=(2,)), layer_ids=(4, 3))
    write_plan(tmp_path / "plan.json", plan)
    with pytest.raises(ValueError, match=r"layers must ascend, since engines count them, got \[4, 3\]"):
        export(str(tmp_path / "plan.json"), "vllm", str(tmp_path / "out"))


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ({"num_hidden_layers": 3}, "num_hidden_layers is not used with engine=omni"),
        ({"trace": "a trace"}, "trace is not used with engine=omni unequal=refuse"),
    ],
)
def test_an_option_that_is_not_used_is_said(even, tmp_path, make_trace, given, told):
    given = {key: make_trace([[[0, 1]]]) if key == "trace" else value for key, value in given.items()}
    with pytest.warns(UserWarning, match=told):
        export(str(even), "omni", str(tmp_path / "out"), **given)


@pytest.mark.parametrize(("engine", "policy"), [("sglang", "tar"), ("vllm", "uniform"), ("vllm_ascend", "uniform")])
def test_the_plan_as_the_engine_runs_it_can_be_priced(uneven, tmp_path, trace, engine, policy):
    export(str(uneven), engine, str(tmp_path / "out"), unequal="pad", trace=trace)
    served = read_plan(tmp_path / "out/served_plan.json")
    assert served.placement.slots_used.tolist() == [[2, 2, 2, 2]]
    assert (served.routing.policy, served.model) == (policy, "toy")
    assert read_policy(str(tmp_path / "out/served_plan.json")).plan.num_ranks == 4


def test_a_checkpoint_that_is_not_needed_is_said(even, tmp_path):
    with pytest.warns(UserWarning, match="checkpoint is not used with engine=sglang"):
        export(str(even), "sglang", str(tmp_path / "out"), checkpoint="model")


def test_result_names_the_plan_by_its_digest(even, tmp_path):
    export(str(even), "omni", str(tmp_path / "out"))
    assert json.loads((tmp_path / "out/result.json").read_text())["problem"]["digest"] == digest(read_plan(even))


def test_the_embedded_sample_pads_a_plan_from_the_command_line(tmp_path):
    trace = read_trace(CONF_DIR / "samples/sample.safetensors")
    ranks = [[list(range(17)), list(range(17, 33)), list(range(33, 49)), list(range(49, 64))]] * trace.num_layers
    placement = Placement.from_lists(ranks, trace.num_experts)
    plan = Plan(trace.model, tuple(range(trace.num_layers)), (2, 2), placement, Routing("tar"))
    write_plan(tmp_path / "plan.json", plan)
    done = [
        "export",
        f"plan={tmp_path}/plan.json",
        "engine=vllm",
        f"output={tmp_path}/out",
        "unequal=pad",
        "trace=file",
    ]
    assert main([*done, "model=sample", "topology=a100_25gbe_2x2"]) == 0
    row = json.loads((tmp_path / "out/result.json").read_text())["rows"][0]
    assert (row["slots"], row["redundant_experts"]) == (68, 4)

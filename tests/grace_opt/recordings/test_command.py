"""`grace-opt import` as users call it: from a recording to a file that other commands take, or one line why not."""

import base64
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from grace_opt.__main__ import main
from grace_opt.load_history_file import read_trace_or_loads
from grace_opt.model import MoEModel
from grace_opt.recordings.arrays import LoadHistoryJson
from grace_opt.recordings.command import files_at, import_recording
from grace_opt.recordings.recording import Step

TOY = [
    "model.name=toy", "model.num_layers=2", "model.num_experts=8", "model.top_k=2", "model.first_moe_layer=1",
]  # fmt: skip


@pytest.fixture
def history(tmp_path: Path) -> Path:
    """Six steps; expert 0 is chosen as often as all others together."""
    counts = [[[70, 10, 10, 10, 10, 10, 10, 10 + step]] * 2 for step in range(6)]
    path = tmp_path / "history.json"
    path.write_text(json.dumps({"load_history": [{"logical_expert_load": step} for step in counts]}))
    return path


@pytest.fixture
def responses(tmp_path: Path) -> Path:
    """Twelve requests of ten tokens to SGLang; layer 0 is dense."""
    ids = np.argsort(np.random.default_rng(0).random((12, 10, 3, 8)), axis=3)[..., :2].astype(np.int32)
    ids[:, :, 0] = 0
    texts = [base64.b64encode(each.tobytes()).decode() for each in ids]
    path = tmp_path / "responses.jsonl"
    meta = [{"routed_experts": text, "prompt_tokens": 8, "completion_tokens": 3} for text in texts]
    path.write_text("".join(json.dumps({"meta_info": each}) + "\n" for each in meta))
    return path


def test_requests_become_a_trace_that_every_command_takes(tmp_path: Path, responses: Path, capsys: Any) -> None:
    trace = tmp_path / "trace.safetensors"
    assert main(["import", "source=sglang_requests", f"path={responses}", f"output={trace}", *TOY]) == 0
    assert capsys.readouterr().out == (
        f"wrote {trace}: a trace of toy, 120 tokens in 12 sequences, 2 MoE layers (1 to 2), 8 experts, top-2, mixed\n"
    )
    assert main(["plan", f"trace.path={trace}", "planner=grace", f"output={tmp_path}/plan", *TOY]) == 0
    assert json.loads((tmp_path / "plan" / "plan.json").read_text())["layers"][0]["layer"] == 1


@pytest.mark.parametrize("phase", ["prefill", "decode"])
def test_phases_are_taken_apart(tmp_path: Path, responses: Path, phase: str) -> None:
    trace = tmp_path / "trace.safetensors"
    overrides = ["source=sglang_requests", f"path={responses}", f"output={trace}", f"phase={phase}", *TOY]
    assert main(["import", *overrides, "domain=chat"]) == 0
    read = read_trace_or_loads(trace)
    assert (read.num_tokens, read.phase) == ({"prefill": 96, "decode": 24}[phase], phase)
    assert read.domain_names == ("chat",)


@pytest.mark.parametrize("planner", ["eplb", "eplb_hierarchical", "lazarus", "linear", "lplb", "round_robin"])
def test_loads_are_enough_for_planners_that_ask_for_no_more(
    tmp_path: Path, history: Path, planner: str, capsys: Any
) -> None:
    loads = tmp_path / "loads.safetensors"
    assert main(["import", "source=load_history", f"path={history}", f"output={loads}", *TOY]) == 0
    assert "6 steps" in capsys.readouterr().out
    output = f"output={tmp_path}/plan"
    assert main(["plan", f"trace.path={loads}", f"planner={planner}", "slots_per_rank=3", output, *TOY]) == 0
    assert "left out: rows between ranks and times" in capsys.readouterr().out
    result = json.loads((tmp_path / "plan" / "result.json").read_text())
    assert result["problem"]["steps"] == {"fit": 3, "held_out": 3}
    assert "layer_time_s" not in result["rows"][0] and "cross_node_rows_per_token" not in result["rows"][0]
    for row in result["rows"]:
        assert row["load_max_over_mean"] >= row["load_max_over_mean_least"] - 1e-9 >= 1 - 1e-9
    if planner not in ("linear", "round_robin"):
        plan = json.loads((tmp_path / "plan" / "plan.json").read_text())
        held = [expert for rank in plan["layers"][0]["ranks"] for expert in rank]
        assert held.count(0) > 1, "the busiest expert has replicas"


@pytest.mark.parametrize("planner", ["grace", "grace_plus", "joint", "occult", "exflow", "moetuner", "topology_ilp"])
def test_planners_that_need_tokens_refuse_counts_in_one_line(
    tmp_path: Path, history: Path, planner: str, capsys: Any
) -> None:
    loads = tmp_path / "loads.safetensors"
    main(["import", "source=load_history", f"path={history}", f"output={loads}", *TOY])
    capsys.readouterr()
    assert main(["plan", f"trace.path={loads}", f"planner={planner}", f"output={tmp_path}/plan", *TOY]) == 2
    error = capsys.readouterr().err
    expected = (
        f"planner {planner} needs token-level routing, but the trace holds counts only (JSON of loads: history.json)"
    )
    assert f"{expected}: use planner=eplb, " in error
    assert error.count("\n") == 1 and not (tmp_path / "plan").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["compare"], "this command needs token-level routing, but the trace holds counts only"),
        (["validate", "layers=1"], "this command needs token-level routing, but the trace holds counts only"),
        (["plan", "planner=eplb", "split=random"], "leave split=alternate, which divides steps"),
        (["plan", "planner=eplb", "bound_seconds=1"], "bound_seconds bounds what tokens travel"),
        (["plan", "planner=eplb", "model.num_experts=4"], "trace has 2 MoE layers, 8 experts, top-2, but model toy"),
        (["plan", "planner=eplb", "slots_per_rank=1"], "slots_per_rank gives 4 slots"),
    ],
)
def test_what_counts_do_not_tell_is_refused_in_one_line(
    tmp_path: Path, history: Path, arguments: list[str], message: str, capsys: Any
) -> None:
    loads = tmp_path / "loads.safetensors"
    main(["import", "source=load_history", f"path={history}", f"output={loads}", *TOY])
    capsys.readouterr()
    command, *overrides = arguments
    assert main([command, f"trace.path={loads}", f"output={tmp_path}/x", *TOY, *overrides]) == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["source=sglang"], "source=sglang does not exist; did you mean sglang_"),
        ([], "source must be given"),
        (["source=load_history", "path=none.json"], "path=none.json does not exist"),
        (["source=load_history", "output=x.npz"], "output=x.npz must name a .safetensors file"),
        (["source=load_history", "phase=training"], "phase must be prefill or decode"),
        (["source=load_history", "phase=decode"], "counts do not say which are of prompts"),
        (["source=sglang_stat"], "expected a .pt file, or another source="),
        (["source=tensorrt_llm"], "expected the folder with meta_info.json"),
        (["source=load_history", "model=mixtral_8x7b"], "but model Mixtral-8x7B has 32 MoE layers"),
    ],
)
def test_a_mistake_is_one_line_and_leaves_nothing(
    tmp_path: Path, history: Path, overrides: list[str], message: str, capsys: Any
) -> None:
    model = [] if any(each.startswith("model=") for each in overrides) else TOY
    given = [f"path={history}", f"output={tmp_path}/out/t.safetensors", *model, *overrides]
    assert main(["import", *given]) == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_a_failed_import_leaves_the_old_file(tmp_path: Path, history: Path) -> None:
    target = tmp_path / "out.safetensors"
    target.write_text("old")
    history.write_text(history.read_text()[:-9])
    assert main(["import", "source=load_history", f"path={history}", f"output={target}", *TOY]) == 2
    assert target.read_text() == "old"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["history.json", "out.safetensors"]


def test_an_interrupted_import_leaves_nothing(tmp_path: Path, history: Path, toy: MoEModel) -> None:
    class Interrupted(LoadHistoryJson):
        def __call__(self, paths: Any, model: MoEModel, watch: Any) -> Iterator[Step]:
            yield Step(np.ones((2, 4), np.int64))
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        import_recording(toy, Interrupted(), str(history), f"{tmp_path}/out/t.safetensors")
    assert not list((tmp_path / "out").iterdir())


def test_files_come_from_folders_and_lists_and_no_file_twice(tmp_path: Path) -> None:
    for name in ("b.json", "a.json", "c.txt"):
        (tmp_path / name).touch()
    suffixes = LoadHistoryJson().suffixes
    assert [path.name for path in files_at(str(tmp_path), suffixes)] == ["a.json", "b.json"]
    assert files_at([f"{tmp_path}/b.json"], suffixes) == [tmp_path / "b.json"]
    with pytest.raises(ValueError, match="a file is given twice"):
        files_at([str(tmp_path), f"{tmp_path}/b.json"], suffixes)
    with pytest.raises(ValueError, match=r"there is no \.pt file"):
        files_at(str(tmp_path), (".pt",))
    with pytest.raises(ValueError, match=r"c\.txt: expected a \.json file"):
        files_at(f"{tmp_path}/c.txt", suffixes)

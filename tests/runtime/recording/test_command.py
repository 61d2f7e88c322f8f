"""`grace-opt record` as users call it: from a folder and text to traces that are planned on, or one line why not."""

import json
import os
import shutil
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers", reason="transformers is not installed: nothing records")

from grace_opt.__main__ import main
from grace_opt.model_file import read_model
from grace_opt.trace_file import read_trace
from runtime.recording import command, reader
from runtime.recording.recording import batches

SMALL = ["tokens_per_sequence=16", "max_sequences=12", "batch=4", "device=cpu"]


@pytest.fixture
def run(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., int]:
    """(overrides) -> exit code of recording the tiny model in a folder with chat.txt and code.jsonl."""
    monkeypatch.chdir(tmp_path)
    Path("chat.txt").write_text("what is a placement of experts?\n" * 8)
    Path("code.jsonl").write_text("".join(json.dumps({"body": "x" * n}) + "\n" for n in (3, 40, 7, 7)))

    def record(*overrides: str) -> int:
        given = [f"model={folder}", "text=[chat.txt,code.jsonl]", "field=body", "output=t.safetensors", *SMALL]
        named = {override.partition("=")[0] for override in overrides}
        return main(["record", *[each for each in given if each.partition("=")[0] not in named], *overrides])

    return record


def one_line(capsys: Any) -> str:
    error = [line for line in capsys.readouterr().err.splitlines() if not line.startswith("grace-opt: warning")]
    assert len(error) == 1, error
    return error[0]


def test_text_becomes_traces_and_a_model_that_are_planned_on(
    run: Callable[..., int], folder: Path, capsys: Any
) -> None:
    assert run("decode_tokens=3", "output=out/t.safetensors") == 0
    said = capsys.readouterr().out
    prefill, decode = read_trace("out/t.safetensors"), read_trace("out/t_decode.safetensors")
    assert (prefill.phase, decode.phase, prefill.model, decode.model) == ("prefill", "decode", "tiny-moe", "tiny-moe")
    assert prefill.lengths.tolist() == [16] * 6 + [4, 16, 16, 11, 8, 8], "in the order of the text, nothing padded"
    assert [prefill.domain_names[d] for d in prefill.domains] == ["chat"] * 6 + ["code"] * 6
    assert prefill.num_tokens == prefill.expert_ids.shape[1] == 159 and set(decode.lengths) <= {1, 2, 3}
    assert f"{folder} (float32 on cpu, transformers {transformers.__version__}, torch" in prefill.source
    assert prefill.source.endswith("reading chat.txt, code.jsonl")
    model = read_model("out/t.yaml")
    assert (model.name, model.num_layers, model.num_experts, model.top_k) == ("tiny-moe", 3, 8, 3)
    assert "a trace of tiny-moe, 159 tokens in 12 sequences, 3 MoE layers (0 to 2), 8 experts, top-3, prefill" in said
    line = next(line for line in said.splitlines() if line.startswith("  grace-opt plan "))
    assert main([*line.split()[1:], "planner=grace", "output=plan"]) == 0
    assert json.loads(Path("plan/plan.json").read_text())["model"] == "tiny-moe"
    overrides = ["engine=permutation", f"checkpoint={folder}", "output=permuted"]
    assert main([*line.split()[1:], "planner=grace", "slots_per_rank=2", "output=plan"]) == 2, "GRACE wants more"
    assert main([*line.split()[1:], "planner=grace_trimmed", "slots_per_rank=2", "output=plan"]) == 0
    assert main(["export", "plan=plan/plan.json", *overrides]) == 0
    capsys.readouterr()
    assert main(["plan", "trace.path=out/t.safetensors", "output=other"]) == 2
    assert "trace was recorded from model tiny-moe, but the model given is sample-moe" in one_line(capsys)


def test_a_trace_of_decode_that_is_left_over_is_warned_of(run: Callable[..., int], capsys: Any) -> None:
    assert run("decode_tokens=1") == 0 and run("overwrite=true") == 0
    assert "warning: t_decode.safetensors is of an earlier recording" in capsys.readouterr().err


def test_batches_and_their_order_leave_the_trace_as_it_is(run: Callable[..., int]) -> None:
    assert run() == 0 and run("batch=1", "output=one.safetensors") == 0
    together, alone = read_trace("t.safetensors"), read_trace("one.safetensors")
    assert np.array_equal(together.expert_ids, alone.expert_ids) and np.array_equal(together.starts, alone.starts)


def test_batches_hold_sequences_of_one_length() -> None:
    assert batches([5, 3, 5, 5, 3, 9], 2) == [[5], [0, 2], [3], [1, 4]]


def test_ctrl_c_leaves_the_sequences_that_were_done(
    run: Callable[..., int], monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    assert run("output=whole.safetensors", "decode_tokens=2") == 0
    calls, read = [], reader.Reader.__call__

    def interrupted(self: Any, tokens: Any) -> Any:
        calls.append(len(tokens))
        if len(calls) == 3:
            os.kill(os.getpid(), signal.SIGINT)
        return read(self, tokens)

    monkeypatch.setattr(reader.Reader, "__call__", interrupted)
    capsys.readouterr()
    assert run("decode_tokens=2") == 130
    assert one_line(capsys) == "grace-opt: interrupted: 8 of 12 sequences are in t.safetensors"
    part, whole = read_trace("t.safetensors"), read_trace("whole.safetensors")
    assert part.source.endswith("ended after 8 of 12 sequences") and part.num_sequences == 8
    assert np.array_equal(
        part.expert_ids, whole.select(np.flatnonzero(whole.lengths == 16)).expert_ids[:, part_of(whole)]
    )
    assert read_trace("t_decode.safetensors").num_sequences == 8


def part_of(whole: Any) -> np.ndarray:
    """Tokens of the sequences of full length."""
    return np.concatenate([np.arange(a, b) for a, b in zip(whole.starts, whole.stops, strict=True) if b - a == 16])


def test_ctrl_c_before_anything_is_done_writes_nothing(
    run: Callable[..., int], monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    monkeypatch.setattr(reader.Reader, "__call__", lambda self, tokens: os.kill(os.getpid(), signal.SIGINT))
    assert run() == 130
    assert one_line(capsys) == "grace-opt: interrupted: no sequence was done, nothing is written"
    assert not list(Path().glob("t*"))


def test_a_model_that_fails_while_it_runs_is_one_line(
    run: Callable[..., int], monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    monkeypatch.setattr(reader.Reader, "_forward", lambda self, *_: self.missing)
    assert run() == 2
    assert "the model cannot run here (AttributeError: 'Reader' object has no" in one_line(capsys)
    assert not list(Path().glob("t*"))


def test_lack_of_memory_keeps_what_is_done_and_names_the_way_out(
    run: Callable[..., int], monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    calls, read = [], reader.Reader.__call__

    def scarce(self: Any, tokens: Any) -> Any:
        calls.append(tokens)
        if len(calls) == 2:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return read(self, tokens)

    monkeypatch.setattr(reader.Reader, "__call__", scarce)
    assert run() == 2
    assert "no memory for 4 sequences at once: give batch=2; 4 of 12 sequences are in t.safetensors" in one_line(capsys)
    assert read_trace("t.safetensors").num_sequences == 4


@pytest.mark.parametrize("there", ["t.safetensors", "t_decode.safetensors", "t.yaml"])
def test_nothing_is_overwritten_unless_asked(run: Callable[..., int], there: str, capsys: Any) -> None:
    Path(there).write_text("mine")
    assert run("decode_tokens=1") == 2
    assert one_line(capsys) == f"grace-opt: {there} exists: give another output, or overwrite=true"
    assert Path(there).read_text() == "mine"
    if there == "t.yaml":
        assert run("decode_tokens=1", "overwrite=true") == 0 and read_model(there).name == "tiny-moe"


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["output=t.npz"], "output=t.npz must name a .safetensors file"),
        (["batch=0"], "batch must be at least 1"),
        (["temperature=0.5"], "temperature=0.5 is of tokens that are generated: give decode_tokens=N too"),
        (["tokens_per_sequence=120", "decode_tokens=9"], "tokens_per_sequence + decode_tokens is 129, but model="),
        (["text=none*.txt"], "text=none*.txt: there is no such file"),
        (["model=./nowhere"], "model=./nowhere is no folder, and no name of the Hugging Face hub"),
        (["model=."], "model=. holds no config.json"),
        (["device=cuda:99"], "device=cuda:99 cannot be used"),
        (["device=gpu"], "device=gpu cannot be used"),
        (["dtype=int4"], "dtype must be one of auto, float32, bfloat16, float16, got 'int4'"),
        (["tokens_per_sequence=many"], "tokens_per_sequence must be int, got 'many'"),
    ],
)
def test_a_wrong_option_is_one_line(run: Callable[..., int], overrides: list[str], message: str, capsys: Any) -> None:
    assert run(*overrides) == 2
    assert message in one_line(capsys)
    assert not list(Path().glob("t*"))


def changed(folder: Path, target: Path, **fields: Any) -> str:
    """A copy of the model with a changed configuration."""
    shutil.copytree(folder, target)
    config = json.loads((target / "config.json").read_text())
    (target / "config.json").write_text(json.dumps({**config, **fields}))
    return f"model={target}"


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        (
            {"model_type": "llama"},
            "its model_type is 'llama', and record knows OLMoE (olmoe), Mixtral (mixtral), Qwen2-MoE",
        ),
        ({"model_type": "no_such_model"}, "its configuration cannot be loaded (ValueError: The checkpoint"),
        ({"vocab_size": 100}, "its tokenizer gives token"),
        ({"num_experts": 9}, "its weights cannot be loaded"),
        ({"num_hidden_layers": 4}, "tensors are missing, first model.layers.3."),
    ],
)
def test_a_model_that_cannot_be_recorded_is_one_line(
    run: Callable[..., int], folder: Path, fields: dict[str, Any], message: str, capsys: Any
) -> None:
    assert run(changed(folder, Path("changed"), **fields)) == 2
    assert message in one_line(capsys)
    assert not list(Path().glob("t*"))


def test_a_model_without_experts_is_one_line(
    run: Callable[..., int], folder: Path, make_model: Any, capsys: Any
) -> None:
    make_model("Qwen3Moe", mlp_only_layers=[0, 1, 2]).save_pretrained("dense")
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(folder / name, "dense")
    assert run("model=dense") == 2
    assert "model dense: none of its layers has experts: there is no routing to record" in one_line(capsys)


def test_a_model_without_tokenizer_is_one_line(run: Callable[..., int], folder: Path, capsys: Any) -> None:
    model = changed(folder, Path("bare"))
    for path in Path("bare").glob("*token*"):
        path.unlink()
    assert run(model) == 2
    assert "its tokenizer (tokenizer.json) cannot be loaded" in one_line(capsys)


def test_weights_that_need_pickle_are_refused(run: Callable[..., int], folder: Path, capsys: Any) -> None:
    model = changed(folder, Path("pickled"))
    Path("pickled/model.safetensors").unlink()
    torch.save({}, "pickled/pytorch_model.bin")
    assert run(model) == 2
    assert "its weights cannot be loaded" in one_line(capsys)


@pytest.mark.parametrize("missing", ["torch", "transformers"])
def test_without_transformers_the_line_names_the_extra(
    run: Callable[..., int], monkeypatch: pytest.MonkeyPatch, missing: str, capsys: Any
) -> None:
    found = command.importlib.util.find_spec
    monkeypatch.setattr(
        command.importlib.util, "find_spec", lambda name, *rest: None if name == missing else found(name, *rest)
    )
    assert run() == 2
    expected = f"grace-opt: record needs {missing}, which is not installed: pip install 'grace-opt[record]'"
    assert one_line(capsys) == expected


def test_help_needs_neither_torch_nor_transformers(capsys: Any) -> None:
    code = (
        "import sys; sys.modules['torch'] = sys.modules['transformers'] = None; "
        "from grace_opt.__main__ import main; sys.exit(main(['record', '--help']))"
    )
    assert os.spawnv(os.P_WAIT, sys.executable, [sys.executable, "-c", code]) == 0

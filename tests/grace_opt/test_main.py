"""The commands as a user calls them: real processes on the embedded sample."""

import json
import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

from grace_opt.trace_file import read_trace, write_trace

SMALL = ["model.name=toy", "model.num_layers=2", "model.num_experts=8", "model.top_k=2"]


def python_m(*arguments):
    return subprocess.run([sys.executable, "-m", "grace_opt", *arguments], capture_output=True, text=True, check=False)


@pytest.fixture(scope="module")
def grace_opt(forked, tmp_path_factory):
    """(arguments, cwd=None) -> what `python_m` gives, without importing all anew."""
    said = [tmp_path_factory.mktemp("said") / name for name in ("out", "err")]

    def run(*arguments, cwd=None):
        process = forked(["-m", "grace_opt", *map(str, arguments)], *said, {"FOLDER": str(cwd)} if cwd else {})
        process.join()
        out, err = (path.read_text() for path in said)
        for path in said:
            path.unlink()
        return subprocess.CompletedProcess(arguments, process.exitcode, out, err)

    return run


@pytest.fixture(scope="module")
def run_and_expect(grace_opt):
    """(expected, arguments, output): exit code 2, one line on stderr with the expected words, and nothing written."""

    def run(expected, *arguments, output):
        before = sorted(output.rglob("*")) if output.exists() else None
        result = grace_opt(*arguments, f"output={output}")
        assert result.returncode == 2, result.stdout + result.stderr
        assert result.stderr.count("\n") == 1
        assert result.stderr.startswith("grace-opt: ")
        assert expected in result.stderr
        assert result.stdout == ""
        assert (sorted(output.rglob("*")) if output.exists() else None) == before

    return run


@pytest.fixture(scope="module")
def toy_trace(tmp_path_factory):
    """12 sequences of 20 tokens, 2 layers, 8 experts, top-2."""
    path = tmp_path_factory.mktemp("toy") / "toy.safetensors"
    rng = np.random.default_rng(0)
    ids = np.argsort(rng.random((2, 240, 8)), axis=2)[:, :, :2].astype(np.uint8)
    write_trace(
        path, expert_ids=ids, sequence=np.arange(240) // 20, domain=np.arange(240) // 120, domain_names=("a", "b"),
        model="toy", num_experts=8, phase="prefill", source="random", synthetic=True,
    )  # fmt: skip
    return path


@pytest.fixture(scope="module")
def toy_plan(grace_opt, toy_trace):
    folder = toy_trace.parent / "plan"
    result = grace_opt(
        "plan", "planner=eplb", *SMALL, f"trace.path={toy_trace}", "slots_per_rank=3", f"output={folder}"
    )
    assert result.returncode == 0, result.stderr
    return folder / "plan.json"


def test_compare_plan_and_simulate_agree(grace_opt, toy_trace, tmp_path):
    where = [*SMALL, f"trace.path={toy_trace}", "slots_per_rank=4"]
    compared = grace_opt("compare", *where, f"output={tmp_path}/compare")
    assert compared.returncode == 0, compared.stderr
    assert compared.stderr == ""
    result = json.loads((tmp_path / "compare" / "result.json").read_text())
    assert (result["command"], result["status"]) == ("compare", "complete")
    assert result["problem"]["synthetic"] is True
    assert "SYNTHETIC" in compared.stdout
    for name in ("affinity", "load_per_rank", "phases", "traffic_against_balance"):
        assert (tmp_path / "compare" / "figures" / f"{name}.png").stat().st_size > 5000
    planned = grace_opt("plan", "planner=eplb", *where, f"output={tmp_path}/plan")
    assert planned.returncode == 0, planned.stderr
    priced = grace_opt("simulate", f"plan={tmp_path}/plan/plan.json", *where[:-1], f"output={tmp_path}/price")
    assert priced.returncode == 0, priced.stderr
    fields = ("layer_time_s", "cross_node_rows_per_token", "intra_node_rows_per_token", "load_max_over_mean")

    def eplb(folder):
        rows = json.loads((tmp_path / folder / "result.json").read_text())["rows"]
        return {r["split"]: [r[f] for f in fields] for r in rows if r["planner"] == "eplb"}

    assert eplb("compare") == eplb("plan") == eplb("price")
    assert set(eplb("compare")) == {"fit", "held_out"}


def test_help_shows_options_and_choices():
    overview = python_m()
    assert overview.returncode == 0
    assert all(name in overview.stdout for name in ("compare", "plan", "simulate"))
    text = python_m("compare", "--help").stdout
    assert "slots_per_rank=null" in text
    assert "* topology=a100_25gbe_2x2" in text
    assert "model=deepseek_v3" in text


def test_a_planner_that_does_not_fit_is_a_row_with_its_error(grace_opt, toy_trace, tmp_path):
    result = grace_opt(
        "compare", "only=[linear,grace]", "figures=false", *SMALL, f"trace.path={toy_trace}", "slots_per_rank=2",
        f"output={tmp_path}",
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    rows = json.loads((tmp_path / "result.json").read_text())["rows"]
    assert {row["planner"]: "error" in row for row in rows} == {"linear": False, "grace": True}
    assert "slots_per_rank=" in result.stdout


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["trace.path=nowhere.npz"], "nowhere.npz does not exist"),
        (["model=olmoe_1b_7b"], "trace was recorded from model sample-moe, but the model given is OLMoE-1B-7B"),
        (["slots_per_rank=3"], "fewer than the 64 experts"),
        (["slots_per_rank=100000000"], "it holds"),
        (["slots_per_rank=-1"], "slots_per_rank"),
        (["topology.inter_bytes_per_s=0"], "bandwidth"),
        (["topology.intra_bytes_per_s=nan"], "bandwidth (bytes_per_s) of link"),
        (["topology=custom", "topology.path=nowhere.yaml"], "nowhere.yaml does not exist"),
        (["split=domain", "split.fit_domains=[poetry]"], "no domain 'poetry'"),
        (["split=random", "split.fit_share=0.0001"], "leaves the fit part empty"),
        (["slot_per_rank=3"], "did you mean slots_per_rank?"),
        (["planer=grace"], "did you mean planner?"),
        (["planner=grase"], "did you mean grace?"),
        (["workload.tokens_per_rank=0"], "tokens_per_rank must be at least 1"),
    ],
)
def test_bad_input_is_one_line(run_and_expect, arguments, expected, tmp_path):
    run_and_expect(expected, "plan", "planner=linear", *arguments, output=tmp_path / "out")


def test_a_grace_plan_over_budget_says_what_it_wanted(run_and_expect, tmp_path):
    run_and_expect("the budget is 16", "plan", "planner=grace", "slots_per_rank=16", output=tmp_path / "out")


def test_ranks_may_have_different_numbers_of_slots(grace_opt, toy_trace, tmp_path):
    where = [*SMALL, f"trace.path={toy_trace}"]
    planned = grace_opt("plan", "planner=occult", "slots_per_rank=[4,2,1,1]", *where, f"output={tmp_path}")
    assert planned.returncode == 0, planned.stderr
    ranks = json.loads((tmp_path / "plan.json").read_text())["layers"][0]["ranks"]
    assert [len(experts) for experts in ranks] == [4, 2, 1, 1]
    priced = grace_opt("simulate", f"plan={tmp_path}/plan.json", *where, f"output={tmp_path}/priced")
    assert priced.returncode == 0, priced.stderr
    assert json.loads((tmp_path / "priced" / "result.json").read_text())["problem"]["slots_per_rank"] == [4, 2, 1, 1]


def test_a_planner_can_be_left_out_or_added(grace_opt, toy_trace, tmp_path):
    changes = ["~planner@planners.occult", "+planner@planners.again=eplb", "planners.again.forbid_duplicates=true"]
    where = [*SMALL, f"trace.path={toy_trace}", "slots_per_rank=4", "figures=false", f"output={tmp_path}"]
    result = grace_opt("compare", *changes, *where)
    assert result.returncode == 0, result.stderr
    planners = {row["planner"] for row in json.loads((tmp_path / "result.json").read_text())["rows"]}
    assert "occult" not in planners
    assert {"again", "eplb", "linear"} <= planners


@pytest.mark.parametrize("suffix", [".npz", ".safetensors"])
@pytest.mark.parametrize("kept", [0.0, 0.001, 0.5, 0.999])
def test_a_truncated_trace_is_one_line(run_and_expect, suffix, kept, toy_trace, tmp_path):
    path = tmp_path / f"cut{suffix}"
    if suffix == ".npz":
        trace = read_trace(toy_trace)
        sequence = np.repeat(np.arange(trace.num_sequences), trace.lengths)
        np.savez(path, expert_ids=trace.expert_ids.transpose(1, 0, 2), sequence=sequence, num_experts=8)
    else:
        path.write_bytes(toy_trace.read_bytes())
    path.write_bytes(path.read_bytes()[: int(kept * path.stat().st_size)])
    run_and_expect(str(path), "plan", "planner=linear", *SMALL, f"trace.path={path}", output=tmp_path / "out")


def test_a_part_that_is_left_out_is_one_line(run_and_expect, tmp_path):
    run_and_expect("model must be given", "plan", "planner=linear", "~model", "~trace", output=tmp_path / "out")


def test_brackets_in_names_are_printed_as_they_are(grace_opt, tmp_path):
    ids = np.array([[[0, 1], [1, 2], [2, 3], [3, 0]]], np.uint8)
    path = tmp_path / "brackets.safetensors"
    write_trace(
        path, expert_ids=ids, sequence=np.arange(4), domain=np.zeros(4, int), domain_names=("a",), model="toy",
        num_experts=4, phase="prefill", source="run [/foo] of [bold red]model",
    )  # fmt: skip
    small = ["model.name=toy", "model.num_layers=1", "model.num_experts=4", "model.top_k=2", "slots_per_rank=1"]
    result = grace_opt("plan", "planner=linear", *small, f"trace.path={path}", f"output={tmp_path}/out")
    assert result.returncode == 0, result.stderr
    assert "run [/foo] of [bold red]model" in result.stdout


def test_kernels_compile_where_neither_package_nor_home_is_writable(tmp_path):
    program = "import os; os.access = lambda *a, **k: False; import grace_opt; print(os.environ['NUMBA_CACHE_DIR'])"
    environment = {k: v for k, v in os.environ.items() if k != "NUMBA_CACHE_DIR"}
    run = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, env=environment, check=True)
    assert "grace-opt-numba-" in run.stdout


def test_a_package_that_is_not_installed_is_one_line(tmp_path):
    """As torch is not where the core alone is installed."""
    (tmp_path / "torch.py").write_text("raise ModuleNotFoundError('No module named torch', name='torch')\n")
    environment = {**os.environ, "PYTHONPATH": str(tmp_path)}
    command = [sys.executable, "-m", "grace_opt", "validate", "plans=[none.json]"]
    result = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)
    assert result.returncode == 2
    needs = "runtime.replay.MeasuredCluster needs torch, which is not installed: pip install 'grace-opt[runtime]'"
    assert result.stderr.strip() == f"grace-opt: {needs}"


def test_an_unknown_command_is_one_line():
    result = python_m("compere")
    assert result.returncode == 2
    assert "did you mean compare?" in result.stderr


def test_an_output_that_cannot_be_written_is_one_line(run_and_expect, tmp_path):
    (tmp_path / "file").write_text("kept")
    run_and_expect("is no folder that can be written to", "plan", "planner=linear", output=tmp_path / "file")
    assert (tmp_path / "file").read_text() == "kept"


def test_a_failed_run_leaves_an_earlier_result(run_and_expect, toy_trace, toy_plan):
    before = {path: path.read_bytes() for path in toy_plan.parent.iterdir()}
    run_and_expect(
        "fewer than",
        "plan",
        "planner=eplb",
        *SMALL,
        f"trace.path={toy_trace}",
        "slots_per_rank=1",
        output=toy_plan.parent,
    )
    assert {path: path.read_bytes() for path in toy_plan.parent.iterdir()} == before


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (lambda text: text[: len(text) // 2], "truncated"),
        (lambda text: text.replace('"version": 1', '"version": 9'), "version"),
        (lambda text: text.replace('"policy": "uniform"', '"policy": "primary"'), "digest"),
        (lambda text: text.replace('"model": "toy"', '"model": "other"'), "digest"),
    ],
)
def test_a_damaged_plan_is_one_line(run_and_expect, change, expected, toy_trace, toy_plan, tmp_path):
    (tmp_path / "plan.json").write_text(change(toy_plan.read_text()))
    run_and_expect(
        expected, "simulate", f"plan={tmp_path}/plan.json", *SMALL, f"trace.path={toy_trace}", output=tmp_path / "out"
    )


def test_a_plan_of_another_model_or_cluster_is_refused(run_and_expect, toy_trace, toy_plan, tmp_path):
    run_and_expect("plan is for model toy", "simulate", f"plan={toy_plan}", output=tmp_path / "out")
    run_and_expect(
        "plan is for nodes of [2, 2] ranks", "simulate", f"plan={toy_plan}", *SMALL, f"trace.path={toy_trace}",
        "topology=h100_ib_1x8", output=tmp_path / "out",
    )  # fmt: skip


def test_an_interrupted_compare_leaves_its_finished_rows(toy_trace, tmp_path):
    """A planner that takes minutes stands last; the interrupt comes while it works."""
    process = subprocess.Popen(
        [
            sys.executable, "-m", "grace_opt", "compare", *SMALL, f"trace.path={toy_trace}", f"output={tmp_path}",
            "only=[linear,eplb,slow]", "slots_per_rank=4", "figures=false",
            "+planners.slow={_target_: tests.grace_opt.slow_planner.Slow}",
        ],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join([os.getcwd(), os.environ.get("PYTHONPATH", "")])},
    )  # fmt: skip
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline and not (tmp_path / "plans" / "eplb.json").exists():
        time.sleep(0.1)
    time.sleep(1.5)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 130, errors
    assert f"interrupted: 2 finished planners are in {tmp_path}/result.json" in errors
    assert "Traceback" not in errors
    result = json.loads((tmp_path / "result.json").read_text())
    assert result["status"] == "partial"
    assert {row["planner"] for row in result["rows"]} == {"linear", "eplb"}


def test_what_is_no_planner_and_an_empty_output_are_one_line(
    grace_opt, run_and_expect, toy_trace, tmp_path, monkeypatch
):
    where = [*SMALL, f"trace.path={toy_trace}"]
    run_and_expect("planners.eplb must be a planner", "compare", "planners.eplb=null", *where, output=tmp_path / "out")
    result = grace_opt("plan", "planner=linear", *where, "output=", cwd=tmp_path)
    assert (result.returncode, list(tmp_path.iterdir())) == (2, [])


def test_memory_for_fewer_slots_than_a_planner_wants_is_that_planners_error(grace_opt, tmp_path):
    """The sample's experts take 49 kB each; 8 layers of 20 slots and the dense weights fit into 10 MB."""
    few = ["topology.gpu.memory_bytes=10e6", "figures=false", f"output={tmp_path}"]
    result = grace_opt("compare", *few)
    assert result.returncode == 0, result.stderr
    content = json.loads((tmp_path / "result.json").read_text())
    assert 16 <= content["problem"]["slots_per_rank"] <= 24
    assert {row["planner"] for row in content["rows"] if "error" in row} == {"grace"}
    assert {row["plan"] for row in content["rows"] if "error" not in row} == {
        f"plans/{path.name}" for path in (tmp_path / "plans").iterdir()
    }


@pytest.mark.parametrize("part", ["split=random", "homes=random", "trace=synthetic", "planner=grace"])
def test_a_negative_seed_is_one_line(run_and_expect, part, tmp_path):
    run_and_expect("seed", "plan", part, "seed=-1", output=tmp_path / "out")

"""Lost hosts, ranks that do not fit each other, and bad input: one line each, on real processes."""

import json
import os
import re
import shutil
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch")

import torch.distributed as dist
import torch.multiprocessing as multiprocessing
import yaml

from grace_opt.placement import Placement
from grace_opt.plan import Plan
from grace_opt.plan_file import write_plan
from grace_opt.routing import Routing
from runtime.hosts.network import Hosts
from runtime.hosts.torchrun import launch
from runtime.layer import MoELayer
from runtime.reference import Experts
from runtime.sample.checkpoint import save_model
from runtime.sample.model import SampleConfig, SampleMoE
from runtime.sample.text import Tokenizer

pytestmark = pytest.mark.xdist_group("hosts")

ROOT = Path(__file__).parents[2]
needs_hosts = pytest.mark.skipif(
    sys.platform != "linux" or os.geteuid() != 0 or not all(map(shutil.which, ("ip", "tc", "mount"))),
    reason="hosts of one machine need Linux, root and the commands ip, tc and mount",
)
LOOP = """
import os, signal, sys, time
from pathlib import Path
from runtime import __main__ as command
import torch, torch.distributed as dist

def exchange_for_ever(group, name, overrides):
    counts = torch.ones(group.size, dtype=torch.int64)
    for step in range(10_000):
        dist.all_to_all_single(torch.empty_like(counts), counts)
        if step == 20 and group.rank == RANK:
            HAPPENS
        time.sleep(0.01)

command._run = exchange_for_ever
sys.exit(command.main(["loop", "timeout_s=4"]))
"""
GENERATE = """
import os, sys
from runtime import __main__ as command, generation

decode, calls = generation.decode, []

def decode_until_killed(*arguments):
    calls.append(1)
    if len(calls) == 3 and os.environ["RANK"] == "1":
        os.kill(os.getpid(), 9)
    return decode(*arguments)

generation.decode = decode_until_killed
sys.exit(command.main(sys.argv[1:]))
"""


def sample_plan(ranks_per_node=(2,), layers=2, experts=16):
    ranks = np.arange(experts)[None].repeat(layers, 0) % sum(ranks_per_node)
    placement = Placement.from_rank_of_expert(ranks, sum(ranks_per_node))
    return Plan("sample-moe", tuple(range(layers)), ranks_per_node, placement, Routing("primary"))


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    """A tiny untrained sample model."""
    torch.manual_seed(0)
    tokenizer = Tokenizer.learn([b"def self(self): return self\n"] * 3, num_pieces=4)
    config = SampleConfig(tokenizer.num_tokens, num_layers=2, num_experts=16, top_k=4, hidden=32, ffn=16, num_heads=2)
    path = tmp_path_factory.mktemp("sample") / "model.safetensors"
    save_model(path, SampleMoE(config), tokenizer)
    return path


@pytest.fixture
def folder(tmp_path, checkpoint):
    """A plan that fits two ranks of one host, and the model."""
    write_plan(tmp_path / "plan.json", sample_plan())
    shutil.copy(checkpoint, tmp_path / "model.safetensors")
    return tmp_path


def generate(folder, **options):
    options = {
        "plan": folder / "plan.json",
        "checkpoint": folder / "model.safetensors",
        "batch": 1,
        "prefill": 4,
        "decode": 2,
        "repetitions": 1,
        "output": folder / "out",
    } | options
    return ["-m", "runtime", "generate", *(f"{key}={value}" for key, value in options.items())]


def one_line(ended, code=2):
    """The only line all ranks said; all ended with this exit code."""
    assert [c for c, _ in ended] == [code] * len(ended), ended
    (line,) = [line for _, lines in ended for line in lines]
    return line


def test_a_whole_run_writes_its_result(ranks, folder):
    assert ranks.start(generate(folder), 2).ended(within_s=60) == [(0, [])] * 2
    rows = json.loads((folder / "out" / "result.json").read_text())["rows"]
    assert [row["phase"] for row in rows] == ["prefill", "decode"]
    for row in rows:
        assert row["attention_total_s"] > 0 and row["end_to_end_s"] > 0


# --- lost hosts ------------------------------------------------------------------------------------------------------


def said_by(ended, rank):
    """The only line of a rank of several hosts."""
    (line,) = [line for line in ended.errors.splitlines() if line.startswith(f"grace-opt: rank {rank}: ")]
    return line


@needs_hosts
@pytest.mark.parametrize("lost", [3, 1, 0])
def test_a_rank_killed_in_the_middle_is_named_by_the_ranks_of_all_hosts(tmp_path, lost):
    program = tmp_path / "loop.py"
    program.write_text(LOOP.replace("RANK", str(lost)).replace("HAPPENS", "os.kill(os.getpid(), signal.SIGKILL)"))
    with Hosts(2, "200mbit") as hosts:
        ended = launch(hosts, [str(program)], 2, time_limit_s=60)
    assert ended.exit_code == 128 + 9
    assert f"rank {lost} on host {lost // 2} was ended by signal 9" in ended.reason
    for rank in {0, 1, 2, 3} - {lost}:
        assert re.search(rf"rank {lost} on \S+ (or its host )?is missing", said_by(ended, rank)), ended.errors
    assert len(ended.errors.splitlines()) == 3


@needs_hosts
def test_a_stopped_rank_is_named_by_the_ranks_of_all_hosts(tmp_path):
    program = tmp_path / "loop.py"
    program.write_text(LOOP.replace("RANK", "1").replace("HAPPENS", "os.kill(os.getpid(), signal.SIGSTOP)"))
    with Hosts(2, "200mbit") as hosts:
        ended = launch(hosts, [str(program)], 2, time_limit_s=60)
    assert ended.exit_code == 1
    for rank in (0, 2, 3):
        assert said_by(ended, rank).startswith(f"grace-opt: rank {rank}: rank 1 on 10.0.0.1 is missing"), ended.errors
    assert len(ended.errors.splitlines()) == 3


@needs_hosts
def test_both_sides_of_a_cut_link_end_and_say_who_is_missing(tmp_path):
    program, here = tmp_path / "loop.py", tmp_path / "here"
    program.write_text(LOOP.replace("RANK", "0").replace("HAPPENS", f"Path({str(here)!r}).touch()"))

    def cut_when_all_are_at_work(hosts):
        while not here.exists():
            time.sleep(0.05)
        hosts.cut(1)

    with Hosts(2, "200mbit") as hosts:
        threading.Thread(target=cut_when_all_are_at_work, args=(hosts,), daemon=True).start()
        ended = launch(hosts, [str(program)], 2, time_limit_s=60)
    assert (ended.exit_code, ended.reason) == (1, "")
    for rank in (0, 1):
        assert "rank 2 on 10.0.0.2 and rank 3 on 10.0.0.2 are missing" in said_by(ended, rank)
    for rank in (2, 3):
        assert "rank 0 on 10.0.0.1 or its host is missing" in said_by(ended, rank)
    assert len(ended.errors.splitlines()) == 4


@needs_hosts
def test_bad_input_on_several_hosts_is_one_line_without_a_word_of_the_launcher(tmp_path):
    with Hosts(2, "200mbit") as hosts:
        ended = launch(hosts, ["-m", "runtime", "generate", f"plan={tmp_path}/none"], 1, time_limit_s=60)
    assert (ended.exit_code, ended.reason, ended.output) == (2, "", "")
    assert ended.errors.startswith(f"grace-opt: plan file {tmp_path}/none does not exist: give plan=FILE")
    assert ended.errors.count("\n") == 1


def test_a_rank_killed_while_it_generates_is_named_and_nothing_is_written(ranks, folder):
    (folder / "generate.py").write_text(GENERATE)
    arguments = [str(folder / "generate.py"), *generate(folder, repetitions=100)[2:]]
    ended = ranks.start(arguments, 2).ended(within_s=60)
    assert [code for code, _ in ended] == [1, -9] and ended[1][1] == []
    (line,) = ended[0][1]
    assert line.startswith("grace-opt: rank 0: rank 1 on 127.0.0.1 is missing")
    assert not (folder / "out").exists()


# --- ranks that do not fit each other --------------------------------------------------------------------------------


def test_ranks_with_different_plans_refuse(ranks, folder):
    other = sample_plan()
    flipped = Placement(other.placement.slots[:, ::-1], other.num_experts)
    (folder / "other").mkdir()
    write_plan(folder / "other" / "plan.json", Plan(other.model, other.layer_ids, (2,), flipped, other.routing))
    arguments = generate(folder, plan="plan.json")
    places = {0: {"FOLDER": str(folder)}, 1: {"FOLDER": str(folder / "other")}}
    line = one_line(ranks.start(arguments, 2, of_rank=places).ended(within_s=60))
    assert re.fullmatch(
        r"grace-opt: rank 1 has another plan than rank 0 \(.* against .*\): give all .* same plan", line
    )
    assert not (folder / "out").exists()


def test_ranks_with_different_weights_refuse(ranks, folder, checkpoint):
    (folder / "other").mkdir()
    changed = bytearray(checkpoint.read_bytes())
    changed[-1] ^= 1
    (folder / "other" / "model.safetensors").write_bytes(changed)
    arguments = generate(folder, checkpoint="model.safetensors")
    places = {0: {"FOLDER": str(folder)}, 1: {"FOLDER": str(folder / "other")}}
    line = one_line(ranks.start(arguments, 2, of_rank=places).ended(within_s=60))
    assert line.startswith("grace-opt: rank 1 has another weights than rank 0 (sha256:")


def test_ranks_with_different_code_refuse(ranks, folder):
    copy = folder / "source"
    for package in ("grace_opt", "simulator", "runtime", "analysis", "conf"):
        shutil.copytree(ROOT / package, copy / package, ignore=shutil.ignore_patterns("__pycache__", "results"))
    with (copy / "simulator" / "network.py").open("a") as file:
        file.write("# another version\n")
    line = one_line(
        ranks.start(generate(folder), 2, of_rank={1: {"FOLDER": str(copy), "PYTHONPATH": str(copy)}}).ended(within_s=60)
    )
    assert line.startswith("grace-opt: rank 1 has another code version than rank 0 (sha256:")


def test_ranks_with_different_command_lines_refuse(ranks, folder):
    of_rank = {0: {"RANK_ARGUMENT": "scheme=flat"}, 1: {"RANK_ARGUMENT": "scheme=pairs"}}
    line = one_line(ranks.start(generate(folder), 2, of_rank=of_rank).ended(within_s=60))
    assert line.startswith("grace-opt: rank 1 has another command line than rank 0 (")


# --- bad input -------------------------------------------------------------------------------------------------------


def damage(folder):
    text = (folder / "plan.json").read_text()
    (folder / "plan.json").write_text(text.replace('"layer": 1', '"layer": 7'))


def truncate(folder):
    whole = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(whole[: len(whole) // 2])


BAD = {
    "plan_for_more_ranks": (
        lambda folder: write_plan(folder / "plan.json", sample_plan((4,))),
        {},
        r"plan \S+plan.json has nodes of \[4\] ranks, but 2 processes run on hosts of \[2\]",
    ),
    "plan_for_other_nodes": (
        lambda folder: write_plan(folder / "plan.json", sample_plan((1, 1))),
        {},
        r"plan \S+plan.json has nodes of \[1, 1\] ranks, but 2 processes run on hosts of \[2\]",
    ),
    "plan_for_another_model": (
        lambda folder: write_plan(folder / "plan.json", sample_plan(layers=3)),
        {},
        r"plan has 16 experts in layers \[0, 1, 2\], but the model has 16 experts in layers \[0, 1\]",
    ),
    "damaged_plan": (damage, {}, r"plan.json: digest does not match the content"),
    "no_plan": (lambda folder: (folder / "plan.json").unlink(), {}, r"plan file \S+plan.json does not exist"),
    "no_checkpoint": (lambda folder: (folder / "model.safetensors").unlink(), {}, r"model.safetensors does not exist"),
    "truncated_checkpoint": (truncate, {}, r"model.safetensors\S* .*(truncated|incomplete|damaged)"),
    "unknown_option": (lambda folder: None, {"btach": 3}, r"unknown option 'btach'; did you mean batch\?"),
    "no_time": (lambda folder: None, {"timeout_s": 0}, r"timeout_s must be .* got 0"),
    "no_number": (lambda folder: None, {"timeout_s": "soon"}, r"timeout_s must be .*got 'soon'"),
    "no_scheme": (lambda folder: None, {"scheme": "fast"}, r"scheme must be one of pairs, flat, hierarchical"),
}


def test_an_unknown_command_is_one_line(ranks):
    line = one_line(ranks.start(["-m", "runtime", "generat"], 2).ended(within_s=60))
    assert line == "grace-opt: command generat does not exist; did you mean generate?"


def test_a_checkpoint_missing_on_one_host_ends_all(ranks, folder):
    (folder / "other").mkdir()
    places = {0: {"FOLDER": str(folder)}, 1: {"FOLDER": str(folder / "other")}}
    arguments = generate(folder, checkpoint="model.safetensors")
    line = one_line(ranks.start(arguments, 2, of_rank=places).ended(within_s=30))
    assert "model.safetensors does not exist" in line


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_one_line(ranks, folder, case):
    change, options, expected = BAD[case]
    change(folder)
    line = one_line(ranks.start(generate(folder, **options), 2).ended(within_s=60))
    assert line.startswith("grace-opt: ") and re.search(expected, line), line
    assert not (folder / "out").exists()


def topology(ranks, memory_bytes=1e12):
    gpu = {"flops_per_s": 1e11, "memory_bytes_per_s": 1e10, "memory_bytes": memory_bytes}
    return {
        "format": "grace-topology",
        "version": 1,
        "name": "here",
        "gpus": {"cpu": gpu},
        "ranks": [{"name": f"r{r}", "node": 0, "gpu": "cpu"} for r in range(ranks)],
        "links": [{"between": [f"r{r}", "switch"], "bytes_per_s": 1e9, "latency_s": 1e-5} for r in range(ranks)],
    }


@pytest.mark.parametrize(
    ("content", "options", "expected"),
    [
        (topology(3), [], r"topology here has nodes of \[3\] ranks, but 2 processes run on hosts of \[2\]"),
        (topology(2, 2e6), ["slots_per_rank=40"], r"slots_per_rank=40 needs .* GB on rank 0, which has 0.0 GB"),
        (topology(2), ["schemes=[fast]"], r"scheme must be one of pairs"),
        (topology(2), ["only=[fastest]"], r"only=\['fastest'\] must name planners"),
        (topology(2), ["tokens_per_rank=[900000]"], r"need 1800000 held-out tokens, the trace has 12288"),
        (topology(2), ["model.bytes_per_value=1"], r"model.bytes_per_value must be 2 \(bf16\) or 4 \(float32\)"),
    ],
)
def test_a_validation_that_cannot_be_run_is_one_line(ranks, tmp_path, content, options, expected):
    (tmp_path / "topology.yaml").write_text(yaml.safe_dump(content))
    short = ["layers=1", "only=[linear]", "schemes=[flat]", "tokens_per_rank=[16]"]
    options = [f"topology.path={tmp_path}/topology.yaml", f"output={tmp_path}/out", *short, *options]
    last = list({option.split("=")[0]: option for option in options}.values())
    line = one_line(ranks.start(["-m", "runtime", "validate", *last], 2).ended(within_s=90))
    assert re.search(expected, line), line
    assert not (tmp_path / "out" / "result.json").exists()


# --- inputs that are no numbers --------------------------------------------------------------------------------------


def feed(rank, folder):
    """Rank 1 gives its layer NaN, then an infinite gate weight; what each rank was told is kept."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=2)
    plan = Plan("toy", (5,), (1, 1), Placement.from_lists([[[0, 1], [2, 3]]], 4), Routing("primary"))
    experts = Experts(torch.ones(2, 8, 4), torch.ones(2, 8, 4), torch.ones(2, 4, 8))
    told = []
    for scheme in ("pairs", "flat", "hierarchical", "hierarchical_padded"):
        layer = MoELayer.of_plan(plan, 0, scheme, experts)
        for bad_x, bad_weight in ((float("nan"), 1.0), (1.0, float("inf"))):
            x, weights = torch.ones(3, 8), torch.ones(3, 2)
            if rank == 1:
                x[2, 7], weights[0, 1] = bad_x, bad_weight
            try:
                layer(x, torch.tensor([[0, 2], [1, 3], [0, 3]]), weights)
                told.append("nothing")
            except ValueError as error:
                told.append(str(error))
        assert torch.isfinite(layer(torch.ones(3, 8), torch.tensor([[0, 2], [1, 3], [0, 3]]), torch.ones(3, 2))).all()
    (Path(folder) / f"{rank}.json").write_text(json.dumps(told))
    dist.destroy_process_group()


def test_nan_or_infinity_on_one_rank_is_refused_by_all_before_it_spreads(tmp_path, forked):
    multiprocessing.start_processes(feed, args=(str(tmp_path),), nprocs=2, start_method="forkserver")
    for rank in (0, 1):
        told = json.loads((tmp_path / f"{rank}.json").read_text())
        assert told == ["MoE layer 5: NaN or infinite values in the input of rank 1"] * 8

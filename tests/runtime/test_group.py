"""Ranks join, agree, hear of each other's ends, and say one line when something is wrong."""

import os
import signal
import time

import pytest

pytest.importorskip("torch")

pytestmark = pytest.mark.xdist_group("hosts")  # processes by the dozen: one such test at a time

PROGRAM = """
import sys, time
import torch, torch.distributed as dist
from runtime import __main__ as command
from runtime.orders import give, serve

def exchange(group):
    counts = torch.ones(group.size, dtype=torch.int64)
    dist.all_to_all_single(torch.empty_like(counts), counts)

def exchange_for_ever(group):
    while True:
        exchange(group)
        time.sleep(0.01)

def raise_on_rank_1(group):
    if group.rank == 1:
        raise ValueError("weights of rank 1 are torn")
    exchange_for_ever(group)

def disagree(group):
    group.agree({"code version": "same", "plan": f"plan {min(group.rank, 1)}"})

def agree(group):
    group.agree({"plan": "same"})
    group.agree({"plan": "another, the same again"})

def orders(group):
    table = {"say": lambda group, text: print(text, flush=True)}
    if group.rank:
        serve(group, table)
    else:
        for text in ("one", "two"):
            time.sleep(3.0)
            give(group, "say", {"text": text})
        give(group, "finish", {})

def nodes(group):
    print(group.ranks_per_node, group.size, flush=True)

def body(group, name, overrides):
    if name in ("exchange_for_ever", "raise_on_rank_1"):
        print("running", flush=True)
    globals()[name](group)

command._run = body
sys.exit(command.main(sys.argv[1:]))
"""


@pytest.fixture
def program(tmp_path):
    path = tmp_path / "program.py"
    path.write_text(PROGRAM)
    return str(path)


def test_ranks_of_one_host_are_one_node(ranks, program):
    ranks.start([program, "nodes"], 3)
    assert [process.communicate(timeout=30)[0] for process in ranks.processes] == ["(3,) 3\n"] * 3


@pytest.mark.parametrize("lost", [2, 0])
def test_a_killed_rank_is_named_by_all_others(ranks, program, lost):
    ranks.start([program, "exchange_for_ever", "timeout_s=20"], 3).running()
    os.kill(ranks.processes[lost].pid, signal.SIGKILL)
    started = time.monotonic()
    for rank, (code, lines) in enumerate(ranks.ended(within_s=15)):
        if rank != lost:
            assert code == 1
            assert len(lines) == 1 and lines[0].startswith(f"grace-opt: rank {rank}: ")
            assert f"rank {lost} on 127.0.0.1" in lines[0] and "missing" in lines[0]
    assert time.monotonic() - started < 10


def test_a_stopped_rank_is_named_after_the_timeout(ranks, program):
    ranks.start([program, "exchange_for_ever", "timeout_s=3"], 3).running()
    os.kill(ranks.processes[1].pid, signal.SIGSTOP)
    others = [ranks.processes[0], ranks.processes[2]]
    for process, rank in zip(others, (0, 2), strict=True):
        _, errors = process.communicate(timeout=15)
        assert process.returncode == 1
        assert "rank 1 on 127.0.0.1" in errors and len(errors.splitlines()) == 1
        assert errors.startswith(f"grace-opt: rank {rank}: ")


def test_a_rank_that_never_joins_is_named(ranks, program):
    ranks.start([program, "nodes", "timeout_s=3"], 4, only=2)
    for rank, (code, lines) in enumerate(ranks.ended(within_s=20)):
        assert (code, lines) == (1, [f"grace-opt: rank {rank}: ranks 2, 3 did not join within 3 s"])


def test_nobody_waits_for_a_rank_0_that_never_joins(ranks, program):
    ranks.start([program, "nodes", "timeout_s=3"], 2)
    ranks.processes[0].kill()
    _, errors = ranks.processes[1].communicate(timeout=20)
    assert ranks.processes[1].returncode == 1
    assert "rank 0 did not join within 3 s" in errors and len(errors.splitlines()) == 1


def test_what_one_rank_finds_wrong_ends_all_and_is_said_once(ranks, program):
    ended = ranks.start([program, "raise_on_rank_1", "timeout_s=20"], 3).ended(within_s=20)
    assert [code for code, _ in ended] == [2, 2, 2]
    assert [line for _, lines in ended for line in lines] == ["grace-opt: weights of rank 1 are torn"]


def test_ranks_with_different_facts_refuse_with_one_line(ranks, program):
    ended = ranks.start([program, "disagree"], 3).ended(within_s=20)
    assert [code for code, _ in ended] == [2, 2, 2]
    (line,) = [line for _, lines in ended for line in lines]
    assert line == (
        "grace-opt: rank 1 has another plan than rank 0 (plan 1 against plan 0): give all ranks the same plan"
    )


def test_ranks_with_the_same_facts_go_on_and_end_soon(ranks, program):
    started = time.monotonic()
    assert ranks.start([program, "agree"], 3).ended(within_s=20) == [(0, [])] * 3
    assert time.monotonic() - started < 20


def test_rank_0_may_think_longer_than_the_timeout(ranks, program):
    ranks.start([program, "orders", "timeout_s=2"], 2)
    output, errors = ranks.processes[1].communicate(timeout=30)
    assert (output, errors, ranks.processes[1].returncode) == ("one\ntwo\n", "", 0)


def test_without_a_launcher_the_way_out_is_said(ranks):
    alone = "import os, sys; del os.environ['RANK']; from runtime.__main__ import main; sys.exit(main(['validate']))"
    ((code, lines),) = ranks.start(["-c", alone], 1).ended(within_s=30)
    assert code == 2
    assert len(lines) == 1 and "RANK is not set" in lines[0]
    assert "torchrun --nproc-per-node RANKS -m runtime" in lines[0]

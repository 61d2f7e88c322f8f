"""Ranks join, agree, hear of each other's ends, and say one line when something is wrong."""

import os
import signal
import socket
import time

import pytest

torch = pytest.importorskip("torch")

from runtime import group
from runtime.__main__ import DEFAULT_TIMEOUT_S, _timeout_s
from runtime.watch import Watch

pytestmark = pytest.mark.xdist_group("hosts")  # processes by the dozen: one such test at a time

PROGRAM = """
import sys, time
from runtime import __main__ as command
from runtime.orders import give, serve
import torch, torch.distributed as dist

def exchange_for_ever(group):
    print("running", flush=True)
    counts = torch.ones(group.size, dtype=torch.int64)
    while True:
        dist.all_to_all_single(torch.empty_like(counts), counts)
        time.sleep(0.01)

def raise_on(rank):
    def body(group):
        if group.rank == rank:
            raise ValueError(f"weights of rank {rank} are torn")
        exchange_for_ever(group)
    return body

raise_on_rank_0, raise_on_rank_1 = raise_on(0), raise_on(1)

def wait_for_orders_that_never_come(group):
    if group.rank:
        serve(group, {})
    raise ValueError("rank 0 knows no plan")

def disagree(group):
    group.agree({"code version": "same", "plan": f"plan {min(group.rank, 1)}"})

def agree(group):
    group.agree({"plan": "same"})
    group.agree({"plan": "another, the same again"})

def a_defect(group):
    if group.rank == 1:
        raise RuntimeError("this is a defect")
    exchange_for_ever(group)

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

command._run = lambda group, name, overrides: globals()[name](group)
sys.exit(command.main(sys.argv[1:]))
"""


@pytest.fixture
def program(tmp_path):
    path = tmp_path / "program.py"
    path.write_text(PROGRAM)
    return str(path)


def the_line(ended, code=2):
    """The only line that all ranks said; all ended with this exit code."""
    assert [c for c, _ in ended] == [code] * len(ended), ended
    (line,) = [line for _, lines in ended for line in lines]
    return line


def test_ranks_of_one_host_are_one_node(ranks, program):
    assert ranks.start([program, "nodes"], 3).ended(within_s=30) == [(0, [])] * 3
    assert [ranks.output(rank) for rank in range(3)] == ["(3,) 3\n"] * 3


@pytest.mark.parametrize("lost", [2, 0])
def test_a_killed_rank_is_named_by_all_others_long_before_the_timeout(ranks, program, lost):
    ranks.start([program, "exchange_for_ever", "timeout_s=60"], 3).running()
    os.kill(ranks.processes[lost].pid, signal.SIGKILL)
    for rank, (code, lines) in enumerate(ranks.ended(within_s=30)):
        if rank != lost:
            assert code == 1 and len(lines) == 1
            assert lines[0].startswith(f"grace-opt: rank {rank}: rank {lost} on 127.0.0.1 ") and "missing" in lines[0]


@pytest.mark.parametrize("stopped", [1, 0])
def test_a_stopped_rank_is_named_after_the_timeout(ranks, program, stopped):
    ranks.start([program, "exchange_for_ever", "timeout_s=3"], 3).running()
    os.kill(ranks.processes[stopped].pid, signal.SIGSTOP)
    for rank in {0, 1, 2} - {stopped}:
        code, lines = ranks.end_of(rank, within_s=15)
        assert code == 1 and len(lines) == 1
        assert lines[0].startswith(f"grace-opt: rank {rank}: rank {stopped} on 127.0.0.1 ") and "missing" in lines[0]


@pytest.mark.parametrize(
    ("silence", "named"), [((4.1, 3.8), "rank 1 on a and rank 2 on b are"), ((4.1, 1.0), "rank 1 on a is")]
)
def test_ranks_that_fell_silent_together_are_named_together(silence, named):
    watch, now = Watch(None, 0, ("a", "a", "b"), timeout_s=4), time.monotonic()
    watch._seen = [("1", now)] + [("1", now - seconds) for seconds in silence]
    assert str(watch._wrong(4)) == f"{named} missing: no sign of life for 4 s"
    assert watch._wrong(5) is None


def test_behind_a_cut_link_no_rank_is_named_but_that_of_the_store():
    watch, now = Watch(None, 2, ("a", "a", "b", "b"), timeout_s=4), time.monotonic()
    watch._heard = now - 4.1
    watch._seen = [("1", now - 4.3)] * 4  # rank 3, on this side, beat a little before the store fell silent
    assert str(watch._wrong(4)) == "rank 0 on a or its host is missing: no answer for 4 s"
    watch._heard = now - 3.9
    assert watch._wrong(4) is None


def test_ranks_that_never_join_are_named(ranks, program):
    ended = ranks.start([program, "nodes", "timeout_s=3"], 4, only=(0, 1)).ended(within_s=20)
    assert ended == [(1, [f"grace-opt: rank {rank}: ranks 2, 3 did not join within 3 s"]) for rank in (0, 1)]


def test_nobody_waits_for_a_rank_0_that_never_joins(ranks, program):
    line = the_line(ranks.start([program, "nodes", "timeout_s=3"], 2, only=(1,)).ended(within_s=20), code=1)
    assert line.startswith("grace-opt: rank 1: rank 0 did not join within 3 s: nothing answers at 127.0.0.1:")


@pytest.mark.parametrize("rank", [0, 1])
def test_what_one_rank_finds_wrong_ends_all_and_is_said_once(ranks, program, rank):
    ended = ranks.start([program, f"raise_on_rank_{rank}", "timeout_s=60"], 3).ended(within_s=30)
    assert the_line(ended) == f"grace-opt: weights of rank {rank} are torn"


def test_ranks_that_wait_for_orders_end_when_rank_0_has_left(ranks, program):
    ended = ranks.start([program, "wait_for_orders_that_never_come", "timeout_s=60"], 3).ended(within_s=30)
    assert the_line(ended) == "grace-opt: rank 0 knows no plan"


def test_ranks_with_different_facts_refuse_with_one_line(ranks, program):
    assert the_line(ranks.start([program, "disagree"], 3).ended(within_s=20)) == (
        "grace-opt: rank 1 has another plan than rank 0 (plan 1 against plan 0): give all ranks the same plan"
    )


def test_ranks_with_the_same_facts_go_on_and_end_without_waiting(ranks, program):
    assert ranks.start([program, "agree", "timeout_s=600"], 3).ended(within_s=20) == [(0, [])] * 3


def test_a_defect_is_shown_where_it_is_and_ends_all(ranks, program):
    ended = ranks.start([program, "a_defect", "timeout_s=60"], 3).ended(within_s=30)
    assert [code for code, _ in ended] == [1, 1, 1]
    assert ended[1][1][-1].endswith("RuntimeError: this is a defect") and "Traceback" in "".join(ended[1][1])
    assert [ended[rank][1] for rank in (0, 2)] == [[f"grace-opt: rank {r}: this is a defect"] for r in (0, 2)]


def test_rank_0_may_think_longer_than_the_timeout(ranks, program):
    assert ranks.start([program, "orders", "timeout_s=2"], 2).ended(within_s=30) == [(0, [])] * 2
    assert ranks.output(1) == "one\ntwo\n"


def test_an_interrupted_run_says_so_once(ranks, program):
    ranks.start([program, "exchange_for_ever", "timeout_s=60"], 3).running()
    for process in ranks.processes.values():
        os.kill(process.pid, signal.SIGINT)
    ended = ranks.ended(within_s=30)
    assert [line for _, lines in ended for line in lines] == ["grace-opt: interrupted"]
    assert {code for code, _ in ended} == {130}


PLACE = {"RANK": "0", "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "1234"}


@pytest.mark.parametrize(
    ("wrong", "complaint"),
    [
        ({"RANK": None}, "RANK is not set: .* torchrun --nproc-per-node RANKS -m runtime COMMAND"),
        ({"MASTER_PORT": None}, "MASTER_PORT is not set: .* torchrun"),
        ({"RANK": "first"}, "RANK must be a whole number, got 'first': .* torchrun"),
        ({"RANK": "2"}, "RANK must be below WORLD_SIZE=2, got 2: .* torchrun"),
    ],
)
def test_without_a_proper_launcher_the_way_out_is_said(monkeypatch, wrong, complaint):
    for name, value in (PLACE | wrong).items():
        monkeypatch.delenv(name, raising=False) if value is None else monkeypatch.setenv(name, value)
    with pytest.raises(ValueError, match=complaint) as refused, group.joined(1.0):
        pass
    assert "\n" not in str(refused.value)


def test_a_taken_port_is_not_mistaken_for_an_absent_rank(monkeypatch):
    with socket.create_server(("", 0)) as taken:
        port = taken.getsockname()[1]
        for name, value in (PLACE | {"MASTER_PORT": str(port)}).items():
            monkeypatch.setenv(name, value)
        refusal = f"rank 0 cannot listen on port {port} .*: choose another MASTER_PORT"
        with pytest.raises(OSError, match=refusal), group.joined(1.0):
            pass


def test_more_ranks_than_gpus_are_refused(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setenv("LOCAL_RANK", "2")
    with pytest.raises(ValueError, match="local rank 2 has no GPU: this host has 2; start at most --nproc-per-node 2"):
        group._device()


def test_ranks_with_and_without_a_gpu_are_refused():
    group._require_alike(["cuda", "cuda"])
    with pytest.raises(ValueError, match="rank 1 has no GPU of its own, but others have"):
        group._require_alike(["cuda", "cpu", "cuda"])


@pytest.mark.parametrize(
    ("options", "seconds"),
    [(["timeout_s=5"], 5), (["timeout_s=1e2"], 100), (["timeout_s=5", "batch=2", "timeout_s=0.5"], 0.5)]
    + [([f"timeout_s={refused}"], DEFAULT_TIMEOUT_S) for refused in ("0", "-3", "inf", "nan", "1e9", "soon", "")],
)
def test_the_timeout_is_known_before_the_configuration_is_read(options, seconds):
    assert _timeout_s(options) == seconds

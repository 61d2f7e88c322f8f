"""Hosts really are apart: rates hold, torchrun spans them, and whatever ends a run leaves nothing behind."""

import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest

pytest.importorskip("torch")

from runtime.hosts.__main__ import main
from runtime.hosts.agents import PORT, Agents
from runtime.hosts.network import Hosts, bits_per_s
from runtime.hosts.streams import Streams
from runtime.hosts.torchrun import launch

needs_hosts = pytest.mark.skipif(
    sys.platform != "linux" or os.geteuid() != 0 or None in map(shutil.which, ("ip", "tc", "mount")),
    reason="hosts are network namespaces: they need Linux, root, and the commands ip, tc and mount",
)
pytestmark = pytest.mark.xdist_group("hosts")  # one after the other: they share two cores and measure rates

RECEIVE = """
import socket, sys, threading, time
server = socket.create_server(("", 7000)); print("ready", flush=True)
connections = [server.accept()[0] for _ in range(int(sys.argv[1]))]
def drain(connection):
    while connection.recv(1 << 20): pass
threads = [threading.Thread(target=drain, args=(c,)) for c in connections]
[c.sendall(b"go") for c in connections]; started = time.monotonic()
[t.start() for t in threads]; [t.join() for t in threads]
print(time.monotonic() - started)
"""
SEND = """
import socket, sys
connection = socket.create_connection((sys.argv[1], 7000), timeout=20); connection.recv(2)
connection.sendall(bytes(int(sys.argv[2])))
"""
KNOCK = "import socket, sys; connection = socket.create_connection((sys.argv[1], 7000), timeout=float(sys.argv[2]))"
REDUCE = """
import os, torch, torch.distributed as dist
dist.init_process_group("gloo")
total = torch.ones(1) * dist.get_rank()
dist.all_reduce(total)
print("rank", dist.get_rank(), "of", dist.get_world_size(), "sum", total.item(), "cores", os.sched_getaffinity(0))
dist.destroy_process_group()
"""
FAIL = """
import os, sys, time
if os.environ["RANK"] == "3":
    print("rank 3: expected a plan, got none", file=sys.stderr)
    sys.exit(2)
print("rank", os.environ["RANK"], "waits"); time.sleep(60)
"""
SLEEP = 'import os, time; print("pid", os.getpid()); time.sleep(100)'
DIE = 'import os, signal, time; os.kill(os.getpid(), signal.SIGKILL) if os.environ["RANK"] == "1" else time.sleep(60)'


def python(hosts, host, code, *arguments):
    command = hosts.inside(host, [sys.executable, "-c", code, *map(str, arguments)])
    return subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    )


def seconds_of(hosts, receiver, senders, num_bytes):
    """What it takes until `receiver` has num_bytes from each of the senders."""
    receiving = python(hosts, receiver, RECEIVE, len(senders))
    assert receiving.stdout.readline() == "ready\n"
    sending = [python(hosts, host, SEND, hosts.addresses[receiver], num_bytes) for host in senders]
    seconds = float(receiving.communicate(timeout=30)[0])
    assert [process.wait() for process in sending] == [0] * len(senders)
    return seconds


def reaches(hosts, source, target, patience_s):
    return python(hosts, source, KNOCK, hosts.addresses[target], patience_s).wait() == 0


@pytest.fixture
def program(tmp_path):
    """(code) -> path of a program with it."""

    def write(code):
        path = tmp_path / "program.py"
        path.write_text(code)
        return str(path)

    return write


def start(*arguments, **options):
    command = [sys.executable, "-u", "-m", "runtime.hosts", *arguments]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **options)


def left_of(launcher_pid):
    """Namespaces and temporary folders of a launcher."""
    folders = [Path("/var/run/netns"), Path(tempfile.gettempdir())]
    return [path.name for folder in folders for path in folder.glob(f"gmoe{launcher_pid}x*")]


def pids(launcher, count):
    """Reads until `count` workers have said their process id."""
    return [int(launcher.stdout.readline().removeprefix("pid ")) for _ in range(count)]


def lives(pid):
    try:
        return "\nState:\tZ" not in Path(f"/proc/{pid}/status").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return False


def gone_within(seconds, living_pids):
    deadline = time.monotonic() + seconds
    while any(map(lives, living_pids)) and time.monotonic() < deadline:
        time.sleep(0.05)
    return not any(map(lives, living_pids))


def test_rates_are_those_of_tc():
    assert [bits_per_s(rate) for rate in ("200mbit", "1gbit", "1500kbit", "2.5gbit")] == [2e8, 1e9, 1.5e6, 2.5e9]
    for wrong in ("fast", "200", "200 mbit", "-1mbit", "1kbit", "1000gbit", "0mbit", ""):
        with pytest.raises(ValueError, match="rate: expected"):
            bits_per_s(wrong)


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["--hosts", "0", "--", "x"], "hosts: expected 1 to 16, got 0"),
        (["--hosts", "99", "--", "x"], "hosts: expected 1 to 16, got 99"),
        (["--hosts", "two", "--", "x"], "argument --hosts: invalid int value: 'two'"),
        (["--rate", "fast", "--", "x"], "such as 200mbit, got 'fast'"),
        (["--loopback-rate", "3", "--", "x"], "such as 200mbit, got '3'"),
        (["--fast"], "unrecognized arguments: --fast"),
        pytest.param(
            ["--hosts", "8", "--ranks-per-host", "9", "--", "x"], "1 to 8 on 8 hosts, got 9", marks=needs_hosts
        ),
        pytest.param(["--time-limit", "0", "--", "x"], "time limit: expected 1 to 86400 s", marks=needs_hosts),
        pytest.param(["--join-timeout", "nan", "--", "x"], "join timeout: expected 1 to 86400 s", marks=needs_hosts),
        pytest.param(["--absent", "2", "--", "x"], "not all, of hosts 0 to 1, got [2]", marks=needs_hosts),
        pytest.param(["--log", "/proc/no/log", "--", "x"], "/proc/no", marks=needs_hosts),
        pytest.param([], "-m runtime validate, got nothing", marks=needs_hosts),
    ],
)
def test_bad_arguments_are_one_line_and_exit_code_2(arguments, complaint, capsys):
    assert main(arguments) == 2
    out, err = capsys.readouterr()
    assert out == "" and err.count("\n") == 1 and err.startswith("runtime.hosts: ") and complaint in err
    assert left_of(os.getpid()) == []


@pytest.mark.skipif(os.geteuid() != 0 or not shutil.which("ip"), reason="only root can become nobody")
def test_without_root_one_line_says_so():
    code = "import sys, os; from runtime.hosts.__main__ import main; os.setuid(65534); sys.exit(main(['--', 'x']))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 2 and done.stderr.count("\n") == 1 and "need root" in done.stderr


def test_without_ip_one_line_says_so(capsys, monkeypatch):
    monkeypatch.setenv("PATH", "")
    assert main(["--", "x"]) == 2
    assert (
        capsys.readouterr().err == "runtime.hosts: expected the commands ip and tc, ip is missing: install iproute2\n"
    )


@needs_hosts
def test_a_cut_cable_separates_two_hosts_until_it_is_restored():
    with Hosts(2, rate="100mbit") as hosts:
        receiving = python(hosts, 1, RECEIVE, 99)
        receiving.stdout.readline()
        assert reaches(hosts, 0, 1, 10)
        hosts.cut(1)
        assert not reaches(hosts, 0, 1, 0.5)
        hosts.restore(1)
        assert reaches(hosts, 0, 1, 10)
    assert receiving.wait(5) == -signal.SIGKILL  # what runs on the hosts goes with them
    assert left_of(os.getpid()) == []


@needs_hosts
def test_a_link_and_an_incast_keep_to_the_rate():
    num_bytes, rate, bucket = 4_000_000, "100mbit", 2 * 70_000  # a bucket at each end of a cable is free
    with Hosts(3, rate=rate) as hosts:
        for receiver, senders in ((1, [0]), (0, [1, 2])):
            total = len(senders) * num_bytes
            seconds = seconds_of(hosts, receiver, senders, num_bytes)
            assert (total - bucket) * 8 / seconds <= 1.02 * bits_per_s(rate)
            assert total * 8 / seconds >= 0.7 * bits_per_s(rate)


@needs_hosts
def test_the_traffic_inside_a_host_keeps_to_its_own_rate():
    with Hosts(1, rate="10mbit", loopback_rate="100mbit") as hosts:
        bits = seconds_of(hosts, 0, [0], 4_000_000)
        assert 0.7e8 <= 4_000_000 * 8 / bits <= 1.1e8


@needs_hosts
def test_torchrun_spans_the_hosts_and_two_launchers_do_not_meet(program):
    launchers = [start("--pin", "--", program(REDUCE)), start("--ranks-per-host", "1", "--", program(REDUCE))]
    cores = sorted(os.sched_getaffinity(0))
    for launcher, ranks_per_host in zip(launchers, (2, 1), strict=True):
        out, err = launcher.communicate(timeout=100)
        size = 2 * ranks_per_host
        of_host = [{cores[0]}, {cores[1 % len(cores)]}] if ranks_per_host == 2 else [set(cores)] * 2
        assert (launcher.returncode, err) == (0, "")
        assert sorted(out.splitlines()) == [
            f"rank {rank} of {size} sum {size * (size - 1) / 2} cores {of_host[rank // ranks_per_host]}"
            for rank in range(size)
        ]
        assert left_of(launcher.pid) == []


@needs_hosts
def test_a_worker_that_fails_gives_its_exit_code_and_its_line_and_nothing_else(program, tmp_path):
    launcher = start("--log", str(tmp_path / "log"), "--", program(FAIL))
    out, err = launcher.communicate(timeout=60)
    assert launcher.returncode == 2
    assert err == "rank 3: expected a plan, got none\n"
    assert sorted(out.splitlines())[:2] == ["rank 0 waits", "rank 1 waits"]
    assert "ChildFailedError" in (tmp_path / "log").read_text()
    assert left_of(launcher.pid) == []


@needs_hosts
def test_a_killed_worker_is_named(program, capsys):
    with Hosts(1) as hosts:
        ended = launch(hosts, [program(DIE)])
    assert (ended.exit_code, ended.reason) == (137, "rank 1 on host 0 was ended by signal 9 (Killed)")


@needs_hosts
def test_a_killed_torchrun_takes_its_workers_along_and_is_named(program):
    launcher = start("--", program(SLEEP))
    workers = pids(launcher, 4)
    parents = {pid: int(re.search(r"PPid:\t(\d+)", Path(f"/proc/{pid}/status").read_text())[1]) for pid in workers}
    killed = parents[workers[0]]
    os.kill(killed, signal.SIGKILL)
    assert gone_within(2, [pid for pid in workers if parents[pid] == killed])
    assert sum(map(lives, workers)) == 2  # those of the other host may still say what they see
    _, err = launcher.communicate(timeout=30)
    assert re.fullmatch(r"runtime.hosts: torchrun on host [01] \(ranks (0, 1|2, 3)\) was ended by signal 9 .*\n", err)
    assert launcher.returncode == 137 and gone_within(2, workers) and left_of(launcher.pid) == []


@needs_hosts
@pytest.mark.parametrize(
    ("number", "exit_code", "line"), [(signal.SIGINT, 130, "runtime.hosts: interrupted\n"), (signal.SIGTERM, 143, "")]
)
def test_ctrl_c_and_sigterm_leave_nothing(program, number, exit_code, line):
    launcher = start("--", program(SLEEP))
    workers = pids(launcher, 4)
    launcher.send_signal(number)
    _, err = launcher.communicate(timeout=20)
    assert (launcher.returncode, err) == (exit_code, line)
    assert gone_within(2, workers) and left_of(launcher.pid) == []


@needs_hosts
def test_workers_of_a_killed_launcher_end_and_the_next_start_removes_its_hosts(program):
    launcher = start("--", program(SLEEP))
    workers = pids(launcher, 4)
    launcher.kill()
    launcher.wait()
    assert gone_within(5, workers)
    assert len(left_of(launcher.pid)) == 4  # two hosts, the switch, a folder
    with Hosts(1):
        assert left_of(launcher.pid) == []


@needs_hosts
def test_the_time_limit_ends_a_run_with_one_line(program):
    launcher = start("--hosts", "1", "--time-limit", "4", "--", program(SLEEP))
    out, err = launcher.communicate(timeout=30)
    assert (launcher.returncode, err) == (124, "runtime.hosts: ended at the time limit of 4 s\n")
    assert gone_within(2, [int(line.removeprefix("pid ")) for line in out.splitlines()])
    assert left_of(launcher.pid) == []


@needs_hosts
@pytest.mark.parametrize(
    ("absent", "cut", "named"),
    [([0], [], "host 0 (ranks 0, 1)"), ([1], [], "host 1 (ranks 2, 3)"), ([], [1], "host 1 (ranks 2, 3)")],
)
def test_a_host_that_never_joins_is_named(program, absent, cut, named, capsys):
    with Hosts(2) as hosts:
        for host in cut:
            hosts.cut(host)
        ended = launch(hosts, [program(REDUCE)], absent=absent, join_timeout_s=3)
    assert (ended.exit_code, ended.reason) == (1, f"{named} did not join within 3 s")
    assert ended.output == ended.errors == "" and left_of(os.getpid()) == []


@needs_hosts
def test_a_host_that_waits_for_another_is_not_blamed(tmp_path):
    with Hosts(3) as hosts:
        store = python(hosts, 0, RECEIVE.replace("7000", str(PORT)), 2)
        store.stdout.readline()
        agents = Agents(hosts, 2, Streams(tmp_path / "socket"), {0: store})
        assert agents.not_joined() == "host 1 (ranks 2, 3) and host 2 (ranks 4, 5)"
        python(
            hosts, 2, KNOCK.replace("7000", str(PORT)) + "; print(); input()", hosts.addresses[0], 10
        ).stdout.readline()
        assert agents.not_joined() == "host 1 (ranks 2, 3)"
        agents.streams.close()


@needs_hosts
def test_an_exception_while_a_run_goes_on_leaves_nothing(program, monkeypatch):
    monkeypatch.setattr("runtime.hosts.streams.print", lambda *_, **__: 1 / 0, raising=False)
    with pytest.raises(ZeroDivisionError), Hosts(1) as hosts:
        launch(hosts, [program(SLEEP)])
    assert left_of(os.getpid()) == []


def test_output_that_ends_without_a_newline_or_is_no_text_is_passed_on(tmp_path, capfd):
    streams = Streams(tmp_path / "socket")
    code = "import os; os.write(1, b'one\\ntwo \\xff'); os.write(2, b'three')"
    worker = [sys.executable, "-m", "runtime.hosts.worker", str(tmp_path / "socket"), "-c", code]
    process = subprocess.Popen(worker, env=os.environ | {"RANK": "5"})
    while 5 not in streams.ended:
        streams.pass_on(1)
    process.wait()
    streams.close()
    assert (streams.output, streams.errors, streams.said) == (["one", "two \ufffd"], ["three"], {5})
    assert capfd.readouterr() == ("one\ntwo \ufffd\n", "three\n")

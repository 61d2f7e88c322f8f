"""Launch a program on several hosts: one torchrun on each, which starts the workers; rank r runs on host
r // ranks_per_host."""

import socket
import sys
import tempfile
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path

from grace_opt.atomic import write_text_atomically
from runtime.hosts.agents import PORT, Agents
from runtime.hosts.network import Hosts
from runtime.hosts.streams import Streams

MAX_RANKS = 64
_LONGEST_S = 24 * 3600


@dataclass(frozen=True)
class Ended:
    """How a run ended.

    Attributes:
        exit_code: 0; that of the first worker that failed (128 + n for signal n); 124 at the time limit; 1 if hosts did
            not join.
        reason: one line where the workers could not say it themselves, else empty.
        output, errors: what the workers wrote to stdout and stderr, by lines in the order they came.
    """

    exit_code: int
    reason: str
    output: str
    errors: str


def launch(
    hosts: Hosts,
    arguments: Sequence[str],
    ranks_per_host: int = 2,
    *,
    time_limit_s: float = 600,
    join_timeout_s: float = 60,
    pin: bool = False,
    absent: Collection[int] = (),
    log: Path | None = None,
) -> Ended:
    """Run `python ARGUMENTS` as ranks_per_host workers on each host, and pass on their output as it comes.

    Workers see the environment of the caller, what torchrun sets, OMP_NUM_THREADS=1 and GLOO_SOCKET_IFNAME. Whatever
    ends this call, an exception too, no process is left.

    Args:
        arguments: such as ("-m", "runtime", "validate").
        join_timeout_s: for all workers to have been started.
        pin: host i computes on core i (modulo cores) alone, so that hosts do not compete for one.
        absent: hosts that take no part, to see what happens then.
        log: where torchrun's own messages go; None drops them.

    Raises:
        ValueError: an argument out of range.
        OSError: the log cannot be written.
    """
    _check_program(hosts, arguments, ranks_per_host, absent)
    for name, seconds in (("time limit", time_limit_s), ("join timeout", join_timeout_s)):
        if not 1 <= seconds <= _LONGEST_S:
            raise ValueError(f"{name}: expected 1 to {_LONGEST_S} seconds, got {seconds:g}")
    if log is not None:
        write_text_atomically(log, "")  # fails now rather than after the run
    with tempfile.TemporaryDirectory(prefix=f"{hosts.name}-") as folder:
        streams = Streams(Path(folder) / "socket")
        agents = Agents(hosts, ranks_per_host, streams)
        try:
            for host in sorted(set(range(hosts.num_hosts)) - set(absent)):
                options = {"nproc-per-node": ranks_per_host, "rdzv-conf": f"timeout={int(join_timeout_s)}"}
                agents.start(host, _torchrun(hosts, host, Path(folder), options, arguments), pin)
            exit_code, reason = agents.watch(time_limit_s, join_timeout_s)
        finally:
            agents.end()
            streams.close()
    if log is not None:
        write_text_atomically(log, streams.torchrun_text())
    output, errors = ("".join(f"{line}\n" for line in lines) for lines in (streams.output, streams.errors))
    return Ended(exit_code, reason, output, errors)


def _check_program(hosts: Hosts, arguments: Sequence[str], ranks_per_host: int, absent: Collection[int]) -> None:
    if not arguments:
        raise ValueError("expected what python is to run on every host, such as -m runtime validate, got nothing")
    most = MAX_RANKS // hosts.num_hosts
    if not 1 <= ranks_per_host <= most:
        raise ValueError(f"ranks per host: expected 1 to {most} on {hosts.num_hosts} hosts, got {ranks_per_host}")
    if not set(absent) < set(range(hosts.num_hosts)):
        raise ValueError(f"absent: expected some, not all, of hosts 0 to {hosts.num_hosts - 1}, got {sorted(absent)}")


def _torchrun(hosts: Hosts, host: int, folder: Path, options: dict[str, object], arguments: Sequence[str]) -> list[str]:
    """The command that runs torchrun on a host, with the host's own /etc/hosts, and the workers under it."""
    options = options | {
        "nnodes": hosts.num_hosts,
        "node-rank": host,
        "master-addr": hosts.addresses[0],
        "master-port": PORT,
        "local-addr": hosts.addresses[host],
        "log-dir": folder,
    }
    names = folder / f"names{host}"
    names.write_text(_names(hosts, host))
    mounted = ["sh", "-c", 'mount --bind "$0" /etc/hosts && exec "$@"', str(names)]  # for this process tree alone
    torchrun = ["-m", "torch.distributed.run", *(f"--{name}={value}" for name, value in options.items())]
    worker = ["-m", "runtime.hosts.worker", f"{folder}/socket", *arguments]
    return hosts.inside(host, [*mounted, sys.executable, "-m", "runtime.lifeline", *torchrun, *worker])


def _names(hosts: Hosts, host: int) -> str:
    """/etc/hosts: no name server answers here, and c10d warns of addresses without a name, also when mapped to IPv6."""
    lines = [f"{form}{address} host{i}" for i, address in enumerate(hosts.addresses) for form in ("", "::ffff:")]
    return "\n".join(["127.0.0.1 localhost", *lines, f"{hosts.addresses[host]} {socket.gethostname()}", ""])

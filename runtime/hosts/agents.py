"""torchrun's processes (agents), one a host: started, watched until a verdict, and ended."""

import math
import os
import re
import signal
import subprocess
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from runtime.hosts.network import INTERFACE, Hosts
from runtime.hosts.streams import Streams

PORT = 29500  # of torchrun's store on host 0; every host has all ports to itself
TIMED_OUT, NOT_JOINED = 124, 1
_PEERS_END_S = 5  # once torchrun failed on one host: for workers elsewhere to notice, to say so and to end
_TERMINATED_END_S = 3  # after SIGTERM, before SIGKILL
_FAILED = re.compile(r"rank +: (\d+) \(.*\)\n.*exitcode +: (-?\d+) ")  # of torchrun's summary


@dataclass(frozen=True)
class Agents:
    """The agents of one run.

    Attributes:
        processes: torchrun of each host that takes part.
    """

    hosts: Hosts
    ranks_per_host: int
    streams: Streams
    processes: dict[int, subprocess.Popen[bytes]] = field(default_factory=dict)

    def start(self, host: int, command: Sequence[str], pin: bool) -> None:
        """Start the agent of a host by `command`; with `pin`, on one core."""
        process = subprocess.Popen(
            command,
            env=os.environ | {"OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": INTERFACE},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            start_new_session=True,  # Ctrl-C reaches the launcher alone, which ends the rest in order
        )
        self.processes[host] = process
        assert process.stdout is not None
        self.streams.watch_torchrun(host, process.stdout)
        if pin:
            cores = sorted(os.sched_getaffinity(0))
            os.sched_setaffinity(process.pid, {cores[host % len(cores)]})

    def watch(self, time_limit_s: float, join_timeout_s: float) -> tuple[int, str]:
        """Exit code and reason, once all have ended, or one failed and the others had time to say so, or time is up."""
        started, failed_at = time.monotonic(), math.inf
        while self._running():
            self.streams.pass_on(0.1)
            now = time.monotonic()
            if any(process.returncode for process in self.processes.values()):
                failed_at = min(failed_at, now)
            if now > failed_at + _PEERS_END_S:
                break
            if now > started + time_limit_s:
                return TIMED_OUT, f"ended at the time limit of {time_limit_s:g} s"
            if failed_at == math.inf and now > started + join_timeout_s and not self._complete():
                late = self.not_joined()
                self._kill()  # no worker has anything to end in order
                return NOT_JOINED, f"{late} did not join within {join_timeout_s:g} s"
        while self.streams.pass_on(0):
            pass
        return self._verdict()

    def end(self) -> None:
        """End what still runs, in order if it ends soon (torchrun passes SIGTERM on to its workers), else at once."""
        try:
            deadline = time.monotonic() + _TERMINATED_END_S
            for process in self._running():
                process.terminate()
            while self._running() and time.monotonic() < deadline:
                self.streams.pass_on(0.05)
        finally:
            self._kill()

    def not_joined(self) -> str:
        """Hosts that neither started their workers nor hold a connection to torchrun's store on host 0."""
        if 0 not in self.processes:
            return self._named(0)  # the others wait for its store
        addresses = _connected(self.processes[0].pid)
        here = {0} | {host for host, address in enumerate(self.hosts.addresses) if address in addresses}
        here |= {rank // self.ranks_per_host for rank in self.streams.started}
        return (
            " and ".join(self._named(host) for host in range(self.hosts.num_hosts) if host not in here) or "the ranks"
        )

    def _kill(self) -> None:
        self.hosts.kill()
        for process in self.processes.values():
            process.kill()
            process.wait()

    def _running(self) -> list[subprocess.Popen[bytes]]:
        return [process for process in self.processes.values() if process.poll() is None]

    def _verdict(self) -> tuple[int, str]:
        for host, process in self.processes.items():
            if process.returncode is not None and process.returncode < 0:
                return _signalled(f"torchrun on {self._named(host)}", -process.returncode)
        code_of_rank = {int(rank): int(code) for rank, code in _FAILED.findall(self.streams.torchrun_text())}
        if code_of_rank:
            order = {rank: place for place, rank in enumerate(self.streams.ended)}
            # Peers of a failed worker get SIGTERM from torchrun.
            first = min(code_of_rank, key=lambda r: (code_of_rank[r] == -signal.SIGTERM, order.get(r, math.inf)))
            return self._failure(first, code_of_rank[first])
        for host, process in self.processes.items():
            if process.returncode:
                words = [line for line in self.streams.torchrun_lines[host] if any(map(str.isalpha, line))]
                last = words[-1].strip() if words else f"exit code {process.returncode}"
                return process.returncode, f"torchrun on {self._named(host)} failed: {last}"
        return 0, ""

    def _failure(self, rank: int, code: int) -> tuple[int, str]:
        where = f"rank {rank} on host {rank // self.ranks_per_host}"
        if code < 0:
            return _signalled(where, -code)
        if rank not in self.streams.started:
            return code, f"{where} could not be started: torchrun's messages say why (--log FILE)"
        return code, "" if rank in self.streams.said else f"{where} ended with exit code {code} and said nothing"

    def _complete(self) -> bool:
        return len(self.streams.started) == self.hosts.num_hosts * self.ranks_per_host

    def _named(self, host: int) -> str:
        ranks = range(host * self.ranks_per_host, (host + 1) * self.ranks_per_host)
        return f"host {host} (rank{'s' * (len(ranks) > 1)} {', '.join(map(str, ranks))})"


def _signalled(who: str, number: int) -> tuple[int, str]:
    return 128 + number, f"{who} was ended by signal {number} ({signal.strsignal(number)})"


def _connected(pid: int) -> set[str]:
    """IPv4 addresses that hold a TCP connection to torchrun's port on the host of this process."""
    addresses = set()
    for table in ("tcp", "tcp6"):
        for line in Path(f"/proc/{pid}/net/{table}").read_text().splitlines()[1:]:
            _, local, remote, state, *_ = line.split()
            if int(local.split(":")[1], 16) == PORT and state == "01":  # established
                word = bytes.fromhex(remote.split(":")[0][-8:])  # IPv4 ends a mapped IPv6 address
                addresses.add(".".join(map(str, word[::-1])))  # as a little-endian machine prints it
    return addresses

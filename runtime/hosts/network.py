"""Hosts as network namespaces: each has one network card, a cable to one switch, and a rate it cannot exceed.

    namespace NAMEh0           namespace NAMEs (switch)            namespace NAMEh1
    eth0 10.0.0.1  --- veth ---  port0 = bridge = port1  --- veth ---  eth0 10.0.0.2

A token bucket (`tc tbf`) on eth0 limits what a host sends, one on its port what it receives, so that many to one is no
faster than one to one. A bucket holds 70,000 bytes, free after a pause; TCP carries 0.956 of the rate as data. The
machine's own interfaces are left alone. NAME carries the process id of its maker: a later start removes what a killed
maker left behind. Everything that runs in the namespaces belongs to the group and is killed with it.
"""

import os
import re
import secrets
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType

MAX_HOSTS = 16
INTERFACE = "eth0"  # every host's only card, beside its loopback
_UNITS = {"kbit": 1e3, "mbit": 1e6, "gbit": 1e9}
_BUCKET = ("burst", "70000", "latency", "200ms")  # smaller splits segments and costs CPU, larger hides small messages
_NAME = re.compile(r"gmoe(\d+)x[0-9a-f]{4}")


def bits_per_s(rate: str) -> float:
    """Bits per second of a rate in tc's notation: "200mbit" is 2e8.

    Raises:
        ValueError: not a number with unit, or outside 1 Mbit/s to 100 Gbit/s.
    """
    match = re.fullmatch(r"(\d+(?:\.\d+)?)(kbit|mbit|gbit)", rate)
    if match is None:
        raise ValueError(f"rate: expected a number with kbit, mbit or gbit, such as 200mbit, got {rate!r}")
    bits = float(match[1]) * _UNITS[match[2]]
    if not 1e6 <= bits <= 1e11:
        raise ValueError(f"rate: expected 1mbit to 100gbit, got {rate!r}")
    return bits


@dataclass(frozen=True)
class Hosts:
    """A context manager: entering builds the hosts, leaving kills what runs on them and removes them.

        with Hosts(2, rate="200mbit") as hosts:
            hosts.names      # ("gmoe4711xa3f0h0", "gmoe4711xa3f0h1"): what `ip netns exec` takes
            hosts.addresses  # ("10.0.0.1", "10.0.0.2")
            hosts.cut(1)     # host 1's cable is pulled ...
            hosts.restore(1)  # ... and put back

    Attributes:
        num_hosts: 1 to 16.
        rate: of each host's card, each way, in tc's notation.
        loopback_rate: of the traffic inside a host; None leaves it to the CPU.
        name: how the namespaces of this group begin.

    Raises:
        ValueError: a number or rate out of range.
        OSError: on entering: not root, `ip` or `tc` missing, or the kernel refuses.
    """

    num_hosts: int = 2
    rate: str = "200mbit"
    loopback_rate: str | None = None
    name: str = field(init=False, default_factory=lambda: f"gmoe{os.getpid()}x{secrets.token_hex(2)}")

    def __post_init__(self) -> None:
        if not 1 <= self.num_hosts <= MAX_HOSTS:
            raise ValueError(f"hosts: expected 1 to {MAX_HOSTS}, got {self.num_hosts}")
        for rate in (self.rate, self.loopback_rate):
            if rate is not None:
                bits_per_s(rate)

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(f"{self.name}h{host}" for host in range(self.num_hosts))

    @property
    def addresses(self) -> tuple[str, ...]:
        return tuple(f"10.0.0.{host + 1}" for host in range(self.num_hosts))

    def inside(self, host: int, command: Sequence[str]) -> list[str]:
        """The command that runs `command` on a host."""
        return ["ip", "netns", "exec", self.names[host], *command]

    def cut(self, host: int) -> None:
        """Pull the host's cable: it keeps its address, and packets vanish without an error."""
        _run("ip", "-n", self._switch, "link", "set", f"port{host}", "down")

    def restore(self, host: int) -> None:
        """Put the cable back; connections that waited go on."""
        _run("ip", "-n", self._switch, "link", "set", f"port{host}", "up")

    def kill(self) -> None:
        """Kill every process on the hosts and wait until they are gone."""
        _kill_inside([*self.names, self._switch])

    def __enter__(self) -> "Hosts":
        _require_root()
        _remove_leftovers()
        try:
            self._build()
        except BaseException:
            self._remove()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._remove()

    @property
    def _switch(self) -> str:
        return f"{self.name}s"

    def _build(self) -> None:
        switch = self._switch
        _run("ip", "netns", "add", switch)
        _run("ip", "-n", switch, "link", "add", "bridge", "type", "bridge", "forward_delay", "0")
        _run("ip", "-n", switch, "link", "set", "bridge", "addrgenmode", "none", "up")
        for host, (name, address) in enumerate(zip(self.names, self.addresses, strict=True)):
            port = f"port{host}"
            _run("ip", "netns", "add", name)
            _run(*f"ip -n {switch} link add {port} type veth peer name {INTERFACE} netns {name}".split())
            # No IPv6 address: gloo might take it for the host's.
            _run("ip", "-n", switch, "link", "set", port, "addrgenmode", "none", "master", "bridge", "up")
            _run("ip", "-n", name, "link", "set", INTERFACE, "addrgenmode", "none", "up")
            _run("ip", "-n", name, "address", "add", f"{address}/24", "dev", INTERFACE)
            _run("ip", "-n", name, "link", "set", "lo", "up")
            _limit(name, INTERFACE, self.rate)
            _limit(switch, port, self.rate)
            if self.loopback_rate is not None:
                _limit(name, "lo", self.loopback_rate)

    def _remove(self) -> None:
        with _undisturbed():
            _remove_namespaces([*self.names, self._switch])


def _limit(namespace: str, interface: str, rate: str) -> None:
    _run("tc", "-n", namespace, "qdisc", "replace", "dev", interface, "root", "tbf", "rate", rate, *_BUCKET)


def _require_root() -> None:
    missing = [tool for tool in ("ip", "tc") if shutil.which(tool) is None]
    if missing:
        raise OSError(f"expected the commands ip and tc, {missing[0]} is missing: install iproute2")
    if os.geteuid() != 0:
        raise OSError("network namespaces need root: run this as root (sudo), or use torchrun without hosts")


def _run(*command: str) -> str:
    """Output of a command; OSError with its first line of complaint."""
    done = subprocess.run(command, capture_output=True, text=True, stdin=subprocess.DEVNULL)
    if done.returncode:
        complaint = (done.stderr.strip() or f"exit code {done.returncode}").splitlines()[0]
        raise OSError(f"`{' '.join(command)}` failed: {complaint}")
    return done.stdout


def _existing() -> set[str]:
    folder = Path("/var/run/netns")
    return set(os.listdir(folder)) if folder.is_dir() else set()


def _remove_namespaces(names: Sequence[str]) -> None:
    present = [name for name in names if name in _existing()]
    _kill_inside(present)
    for name in present:  # a second launcher may be removing the same leftovers
        subprocess.run(["ip", "netns", "delete", name], capture_output=True)


def _kill_inside(names: Sequence[str]) -> None:
    """Kill and look again until nothing is left: a process may start another one before it dies."""
    deadline = time.monotonic() + 10
    while time.monotonic() < deadline:
        pids = [pid for name in names for pid in _pids(name)]
        if not pids:
            return
        for pid in pids:
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                continue
        time.sleep(0.02)


def _pids(name: str) -> list[int]:
    """Living processes of a namespace; a zombie is in none any more."""
    listed = subprocess.run(["ip", "netns", "pids", name], capture_output=True, text=True)
    return [int(pid) for pid in listed.stdout.split()]


def _remove_leftovers() -> None:
    """Remove namespaces and temporary folders of makers that no longer live."""
    folders = [path for path in Path(tempfile.gettempdir()).glob("gmoe*") if _is_orphan(path.name)]
    _remove_namespaces([name for name in _existing() if _is_orphan(name)])
    for folder in folders:
        shutil.rmtree(folder, ignore_errors=True)


def _is_orphan(name: str) -> bool:
    match = _NAME.match(name)
    return match is not None and not Path(f"/proc/{match[1]}").exists()


@contextmanager
def _undisturbed() -> Iterator[None]:
    """Let Ctrl-C and its like wait until a removal is complete."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT, signal.SIGTERM, signal.SIGHUP})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)

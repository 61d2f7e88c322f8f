"""The processes that run together: joining with a deadline, agreeing on what they run, ending with a reason.

Works under torchrun, and under any launcher that sets RANK, WORLD_SIZE, MASTER_ADDR and MASTER_PORT.
"""

import datetime
import hashlib
import os
import socket
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path

import torch
import torch.distributed as dist
from torch.distributed.distributed_c10d import PrefixStore, Store

from runtime.watch import GRACE_S, LINGER_S, LOST, PeerEndedError, Watch

_NEEDED = ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
_START = "this runs on several ranks: start it with torchrun --nproc-per-node RANKS -m runtime COMMAND ..."


@dataclass(frozen=True)
class Group:
    """All ranks, as one of them sees them.

    Attributes:
        rank: this process.
        ranks_per_node: ranks on each host, in order.
        device: where this rank computes, "cpu" or "cuda:N".
        store: what all ranks read and write.
        control: gloo group for barriers and orders; data may travel through NCCL.
        watch: heartbeat of all ranks.
        timeout_s: silence after which a rank is lost.
    """

    rank: int
    ranks_per_node: tuple[int, ...]
    device: str
    store: Store
    control: dist.ProcessGroup
    watch: Watch
    timeout_s: float

    @property
    def size(self) -> int:
        """Number of ranks."""
        return sum(self.ranks_per_node)

    def barrier(self) -> None:
        """Return when every rank is here."""
        dist.barrier(group=self.control)

    def barrier_seconds(self) -> float:
        """What a barrier takes at which nobody has to wait; the same figure on every rank."""
        taken = torch.empty(25, dtype=torch.float64)
        self.barrier()
        for visit in range(len(taken)):
            started = time.perf_counter()
            self.barrier()
            taken[visit] = time.perf_counter() - started
        dist.all_reduce(taken, group=self.control)
        return float(taken.median()) / self.size

    def agree(self, facts: Mapping[str, str]) -> None:
        """Require that all ranks hold the same facts (digests of plan, weights, code, ...).

        Raises:
            ValueError: on every rank alike, naming the first rank and fact that differ from rank 0.
        """
        for name, value in facts.items():
            self.store.set(f"fact/{name}/{self.rank}", value)
        self.barrier()  # nobody reads before all have written
        for name in facts:
            values = [text.decode() for text in self.store.multi_get([f"fact/{name}/{r}" for r in range(self.size)])]
            different = [rank for rank, value in enumerate(values) if value != values[0]]
            if different:
                raise ValueError(
                    f"rank {different[0]} has another {name} than rank 0 ({values[different[0]]} against {values[0]}): "
                    f"give all ranks the same {name}"
                )
        self.barrier()  # nor writes the next before all have read


_current: list[Group] = []


def current_group() -> Group:
    """The group that this process has joined.

    Raises:
        ValueError: it has joined none.
    """
    if not _current:
        raise ValueError(_START)
    return _current[-1]


@contextmanager
def joined(timeout_s: float) -> Iterator[Group]:
    """Join the other ranks; on leaving tell them whether all is well.

    What the body raises reaches the caller on one rank; the others, though they raised the same, get PeerEndedError.

    Raises:
        ValueError: the process was not started by a launcher, or has no GPU of its own where others do.
        TimeoutError: ranks that did not join in time, by number.
        PeerEndedError: another rank ended with an error, and says which.
        ConnectionError: a rank was lost while the body ran.
    """
    rank, size = _place()
    device, store = _device(), _store(rank, size, timeout_s)
    here = f"{os.environ.get('GROUP_RANK', '')} {socket.gethostname()} {_address()} {device.split(':')[0]}"
    places = [place.split(" ") for place in _attendance(store, rank, size, here, timeout_s)]
    nodes = tuple(len(list(ranks)) for _, ranks in groupby(place[:2] for place in places))
    watch = Watch(_store(rank, size, timeout_s), rank, [address for _, _, address, _ in places], timeout_s)
    limit = datetime.timedelta(seconds=timeout_s)
    backend = "cpu:gloo,cuda:nccl" if device != "cpu" else "gloo"
    with watch:
        try:
            _require_alike([kind for *_, kind in places])
            dist.init_process_group(
                backend, store=PrefixStore("group", store), rank=rank, world_size=size, timeout=limit
            )
            control = dist.new_group(backend="gloo", timeout=limit)
            _current.append(Group(rank, nodes, device, store, control, watch, timeout_s))
            yield _current[-1]
        except BaseException as error:
            lost = watch.missing() if isinstance(error, RuntimeError) else None
            reason, code = " ".join(str(lost or error).split()) or type(error).__name__, _exit_code(lost or error)
            first = watch.leave(reason, code)
            time.sleep(GRACE_S if first else LINGER_S)  # the host of rank 0 keeps the store: let the others read it
            if not first and code != LOST:
                raise PeerEndedError(reason, code) from error
            if lost is None:
                raise
            raise lost from error
        else:
            watch.leave()
            dist.destroy_process_group()
            store.set(f"finished/{rank}", "yes")
            if rank == 0:  # its host keeps the store, and must be the last to go
                _await(store, size, "finished", timeout_s)
        finally:
            _current.clear()


def code_digest() -> str:
    """SHA-256 over the sources of all packages of this project, the same wherever the same version is installed."""
    root, digest = Path(__file__).parents[1], hashlib.sha256()
    for package in ("grace_opt", "simulator", "runtime", "analysis"):
        for path in sorted((root / package).rglob("*.py")):
            digest.update(f"{path.relative_to(root).as_posix()}\n".encode() + path.read_bytes())
    return f"sha256:{digest.hexdigest()[:16]}"


def _place() -> tuple[int, int]:
    """Rank and number of ranks, as the launcher says."""
    missing = [name for name in _NEEDED if name not in os.environ]
    if missing:
        raise ValueError(f"{missing[0]} is not set: {_START}")
    for name in ("RANK", "WORLD_SIZE", "MASTER_PORT"):
        if not os.environ[name].isdecimal():
            raise ValueError(f"{name} must be a whole number, got {os.environ[name]!r}: {_START}")
    rank, size = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    if rank >= size:
        raise ValueError(f"RANK must be below WORLD_SIZE={size}, got {rank}: {_START}")
    return rank, size


def _device() -> str:
    """The GPU of this rank's local number, or the CPU where there is none at all."""
    if not torch.cuda.is_available():
        return "cpu"
    local, num_gpus = int(os.environ.get("LOCAL_RANK", "0")), torch.cuda.device_count()
    if local >= num_gpus:
        raise ValueError(
            f"local rank {local} has no GPU: this host has {num_gpus}; start at most --nproc-per-node {num_gpus}"
        )
    torch.cuda.set_device(local)
    return f"cuda:{local}"


def _require_alike(kinds: list[str]) -> None:
    """Refuse a group of which some ranks have a GPU and some have none."""
    if len(set(kinds)) > 1:
        raise ValueError(
            f"rank {kinds.index('cpu')} has no GPU of its own, but others have: start one rank for each GPU"
        )


def _exit_code(error: BaseException) -> int:
    """With which a process ends that this error ends."""
    if isinstance(error, ConnectionError):
        return error.code if isinstance(error, PeerEndedError) else LOST
    return 130 if isinstance(error, KeyboardInterrupt) else 2 if isinstance(error, ValueError | OSError) else LOST


def _store(rank: int, size: int, timeout_s: float) -> Store:
    """A client of its own; under torchrun the agent keeps the store, else rank 0 does."""
    agent = os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True"
    address, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
    limit = datetime.timedelta(seconds=timeout_s)
    try:
        tcp = dist.TCPStore(  # type: ignore[attr-defined]
            address, port, size, rank == 0 and not agent, limit, wait_for_workers=False, multi_tenant=True
        )
    except RuntimeError as error:
        if rank == 0 and not agent:
            reason = str(error).splitlines()[0]
            raise OSError(f"rank 0 cannot listen on port {port} ({reason}): choose another MASTER_PORT") from None
        raise TimeoutError(f"rank 0 did not join within {timeout_s:g} s: nothing answers at {address}:{port}") from None
    return PrefixStore(f"grace-opt/{os.environ.get('TORCHELASTIC_RESTART_COUNT', '0')}", tcp)


def _attendance(store: Store, rank: int, size: int, here: str, timeout_s: float) -> list[str]:
    """What every rank says when it joins."""
    store.set(f"beat/{rank}", "joined")
    store.set(f"joined/{rank}", here)
    absent = _await(store, size, "joined", timeout_s)
    if absent:
        raise TimeoutError(
            f"rank{'s' * (len(absent) > 1)} {', '.join(map(str, absent))} did not join within {timeout_s:g} s"
        )
    return [text.decode() for text in store.multi_get([f"joined/{r}" for r in range(size)])]


def _await(store: Store, size: int, what: str, timeout_s: float) -> list[int]:
    """Wait until all ranks have said something; return those that did not in time."""
    deadline, absent = time.monotonic() + timeout_s, list(range(size))
    try:
        while absent and time.monotonic() < deadline:
            absent = [r for r in absent if not store.check([f"{what}/{r}"])]
            time.sleep(0.02)
    except RuntimeError:  # rank 0 came first and has given up on the same ranks, and with it went the store
        pass
    return absent


def _address() -> str:
    """This host's address towards rank 0, by which people know it; nothing is sent."""
    try:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
            probe.connect((os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])))
            return str(probe.getsockname()[0])
    except OSError:
        return socket.gethostname()

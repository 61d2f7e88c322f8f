"""Ranks as plain processes of one host, for tests of what they say and how they end."""

import socket
import time
from collections.abc import Callable, Collection, Iterator, Sequence
from multiprocessing.process import BaseProcess
from pathlib import Path

import pytest


class Ranks:
    """Processes that joined, or will join, as ranks of one run; `forked` starts them.

    Attributes:
        processes: by rank.
    """

    def __init__(self, folder: Path, forked: Callable[..., BaseProcess]) -> None:
        self.folder, self._forked = folder, forked
        self.processes: dict[int, BaseProcess] = {}

    def start(
        self,
        arguments: Sequence[str],
        size: int,
        only: Collection[int] | None = None,
        of_rank: dict[int, dict[str, str]] | None = None,
    ) -> "Ranks":
        """Do what `python ARGUMENTS` does as `size` ranks, of which `only` some are started.

        Args:
            of_rank: more environment for some ranks (see `forked`); RANK_ARGUMENT is appended to the arguments.
        """
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        for rank in range(size) if only is None else only:
            place = {"RANK": str(rank), "WORLD_SIZE": str(size), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
            more = place | {"OMP_NUM_THREADS": "1"} | (of_rank or {}).get(rank, {})
            extra = [more["RANK_ARGUMENT"]] if "RANK_ARGUMENT" in more else []
            said = self._path(rank, "out"), self._path(rank, "err")
            self.processes[rank] = self._forked([*arguments, *extra], *said, more)
        return self

    def running(self) -> "Ranks":
        """Wait until every rank has printed a line."""
        deadline = time.monotonic() + 60
        while not all(self.output(rank) for rank in self.processes):
            assert time.monotonic() < deadline, [self.errors(rank) for rank in self.processes]
            time.sleep(0.02)
        return self

    def end_of(self, rank: int, within_s: float) -> tuple[int, list[str]]:
        """Exit code (-n for signal n) and lines on stderr of a rank, which must have ended by then."""
        self.processes[rank].join(timeout=within_s)
        assert self.processes[rank].exitcode is not None, f"rank {rank} still runs; it said {self.errors(rank)}"
        return self.processes[rank].exitcode, self.errors(rank)

    def ended(self, within_s: float) -> list[tuple[int, list[str]]]:
        """What `end_of` says of every rank that was started."""
        return [self.end_of(rank, within_s) for rank in self.processes]

    def output(self, rank: int) -> str:
        """What a rank has written to stdout."""
        path = self._path(rank, "out")
        return path.read_text() if path.exists() else ""

    def errors(self, rank: int) -> list[str]:
        """Lines that a rank has written to stderr."""
        path = self._path(rank, "err")
        return path.read_text().splitlines() if path.exists() else []

    def kill(self) -> None:
        """End what still runs."""
        for process in self.processes.values():
            process.kill()
            process.join()

    def _path(self, rank: int, name: str) -> Path:
        return self.folder / f"rank{rank}.{name}"


@pytest.fixture
def ranks(tmp_path_factory: pytest.TempPathFactory, forked: Callable[..., BaseProcess]) -> Iterator[Ranks]:
    """Start with `ranks.start(...)`; whatever happens, none is left."""
    started = Ranks(tmp_path_factory.mktemp("ranks"), forked)
    yield started
    started.kill()

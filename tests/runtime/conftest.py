"""Ranks as plain processes of one host, for tests of what they say and how they end."""

import multiprocessing
import os
import runpy
import socket
import sys
import time
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


class Ranks:
    """Processes that joined, or will join, as ranks of one run.

    They are forked from a server that has imported the runtime already, which takes longer than most tests.

    Attributes:
        processes: by rank.
    """

    def __init__(self, folder: Path) -> None:
        self.folder, self.processes = folder, {}
        self._fork = multiprocessing.get_context("forkserver")
        self._fork.set_forkserver_preload(["runtime.__main__", __name__])

    def start(
        self,
        arguments: Sequence[str],
        size: int,
        only: Collection[int] | None = None,
        of_rank: dict[int, dict[str, str]] | None = None,
    ) -> "Ranks":
        """Do what `python ARGUMENTS` does as `size` ranks, of which `only` some are started.

        Args:
            of_rank: more environment for some ranks; RANK_ARGUMENT is appended to the arguments, FOLDER is where it
                runs. A rank with a PYTHONPATH is an interpreter of its own.
        """
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        for rank in range(size) if only is None else only:
            place = {"RANK": str(rank), "WORLD_SIZE": str(size), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
            more = place | (of_rank or {}).get(rank, {})
            extra = [more["RANK_ARGUMENT"]] if "RANK_ARGUMENT" in more else []
            out, err = self._path(rank, "out"), self._path(rank, "err")
            self.processes[rank] = self._fork.Process(target=become, args=([*arguments, *extra], more, out, err))
            self.processes[rank].start()
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


def become(arguments: Sequence[str], environment: dict[str, str], out: Path, err: Path) -> None:
    """Do what `python ARGUMENTS` does."""
    for standard, path in ((1, out), (2, err)):
        os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND), standard)
    os.environ.update({"OMP_NUM_THREADS": "1"} | environment)
    os.chdir(environment.get("FOLDER", ROOT))
    if "PYTHONPATH" in environment:
        os.execv(sys.executable, [sys.executable, *arguments])
    if arguments[0] == "-m":
        sys.modules.pop(f"{arguments[1]}.__main__", None)  # imported by the server
        sys.argv = list(arguments[1:])
        runpy.run_module(arguments[1], run_name="__main__", alter_sys=True)
    else:
        sys.argv = list(arguments)
        runpy.run_path(arguments[0], run_name="__main__")


@pytest.fixture
def ranks(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Ranks]:
    """Start with `ranks.start(...)`; whatever happens, none is left."""
    started = Ranks(tmp_path_factory.mktemp("ranks"))
    yield started
    started.kill()

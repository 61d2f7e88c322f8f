"""Ranks as plain processes of one host, for tests of what they say and how they end."""

import os
import socket
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


class Ranks:
    """Processes that joined, or will join, as ranks 0, 1, ... of one run.

    Attributes:
        processes: by rank.
    """

    def __init__(self) -> None:
        self.processes: list[subprocess.Popen[str]] = []

    def start(
        self,
        arguments: Sequence[str],
        size: int,
        only: int | None = None,
        of_rank: dict[int, dict[str, str]] | None = None,
    ) -> "Ranks":
        """Run `python ARGUMENTS` as `size` ranks, the first `only` of which are started.

        Args:
            of_rank: more environment for some ranks; RANK_ARGUMENT is appended to the arguments.
        """
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        for rank in range(size if only is None else only):
            more = (of_rank or {}).get(rank, {})
            place = {"RANK": str(rank), "WORLD_SIZE": str(size), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
            environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)} | place | more
            extra = [more["RANK_ARGUMENT"]] if "RANK_ARGUMENT" in more else []
            self.processes.append(
                subprocess.Popen(
                    [sys.executable, *arguments, *extra],
                    env=environment,
                    stdout=subprocess.PIPE,
                    stderr=subprocess.PIPE,
                    text=True,
                )
            )
        return self

    def running(self) -> "Ranks":
        """Wait until every rank has printed a line."""
        for process in self.processes:
            assert process.stdout is not None
            assert process.stdout.readline(), process.stderr.read() if process.stderr else ""
        return self

    def ended(self, within_s: float) -> list[tuple[int, list[str]]]:
        """Exit code and lines on stderr of every rank; each must have ended by then."""
        results = []
        for process in self.processes:
            _, errors = process.communicate(timeout=within_s)
            results.append((process.returncode, errors.splitlines()))
        return results

    def kill(self) -> None:
        """End what still runs."""
        for process in self.processes:
            process.kill()
            process.wait()


@pytest.fixture
def ranks() -> Iterator[Ranks]:
    """Start with `ranks.start(...)`; whatever happens, none is left."""
    started = Ranks()
    yield started
    started.kill()

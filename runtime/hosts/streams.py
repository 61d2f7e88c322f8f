"""The output of many processes, passed on line by line as it comes; torchrun's own is kept apart from its workers'."""

import os
import selectors
import socket
import sys
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import IO, TextIO


class Streams:
    """Reads what workers write, and what torchrun writes, without ever waiting for one of them.

    Workers come by themselves, through the Unix socket at `path` (runtime/hosts/worker.py): whole lines of theirs go to
    stdout and stderr. torchrun's lines are kept, not shown.

    Attributes:
        started: ranks whose worker runs or ran.
        ended: ranks whose output is closed, in this order.
        output, errors: lines of the workers so far, in the order they came.
        said: ranks that wrote to stderr.
        torchrun_lines: of each host.
    """

    def __init__(self, path: Path) -> None:
        self.started: set[int] = set()
        self.ended: list[int] = []
        self.output: list[str] = []
        self.errors: list[str] = []
        self.said: set[int] = set()
        self.torchrun_lines: defaultdict[int, list[str]] = defaultdict(list)
        self._open: defaultdict[int, int] = defaultdict(int)  # streams of each rank
        self._selector = selectors.DefaultSelector()
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(str(path))
        self._listener.listen(128)
        self._selector.register(self._listener, selectors.EVENT_READ, self._welcome)

    def watch_torchrun(self, host: int, pipe: IO[bytes]) -> None:
        """Keep what torchrun on this host writes."""
        self._watch(os.dup(pipe.fileno()), self.torchrun_lines[host].append, lambda: None)
        pipe.close()

    def torchrun_text(self) -> str:
        """What torchrun wrote, host after host."""
        lines = ((host, line) for host, lines in sorted(self.torchrun_lines.items()) for line in lines)
        return "".join(f"host {host}: {line}\n" for host, line in lines)

    def pass_on(self, timeout_s: float) -> bool:
        """Wait for output up to `timeout_s`, pass on what there is; whether there was any."""
        ready = self._selector.select(timeout_s)
        for key, _ in ready:
            key.data()
        return bool(ready)

    def close(self) -> None:
        """Pass on what is left, and close all."""
        while self.pass_on(0):
            pass
        for key in list(self._selector.get_map().values()):
            if key.fileobj is not self._listener:
                os.close(key.fd)
        self._selector.close()
        self._listener.close()

    def _welcome(self) -> None:
        connection, _ = self._listener.accept()
        with connection:
            text, pipes, _, _ = socket.recv_fds(connection, 16, 2)
        rank = int(text)
        self.started.add(rank)
        for pipe, lines, stream in zip(pipes, (self.output, self.errors), (sys.stdout, sys.stderr), strict=True):
            self._open[rank] += 1
            self._watch(pipe, self._passing(rank, lines, stream), lambda: self._closed(rank))

    def _passing(self, rank: int, lines: list[str], stream: TextIO) -> Callable[[str], None]:
        def take(line: str) -> None:
            lines.append(line)
            if lines is self.errors:
                self.said.add(rank)
            print(line, file=stream, flush=True)

        return take

    def _closed(self, rank: int) -> None:
        self._open[rank] -= 1
        if self._open[rank] == 0:
            self.ended.append(rank)

    def _watch(self, descriptor: int, take: Callable[[str], None], closed: Callable[[], None]) -> None:
        begun = b""  # a line whose end has not come yet

        def read() -> None:
            nonlocal begun
            chunk = os.read(descriptor, 65536)
            *lines, begun = (begun + chunk).split(b"\n") if chunk else ([begun, b""] if begun else [b""])
            for line in lines:
                take(line.decode(errors="replace"))
            if not chunk:
                self._selector.unregister(descriptor)
                os.close(descriptor)
                closed()

        self._selector.register(descriptor, selectors.EVENT_READ, read)

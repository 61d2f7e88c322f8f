"""`python -m runtime.hosts.worker SOCKET ARGUMENTS`, started by torchrun: `python ARGUMENTS`, tied to torchrun's
life, with its output handed to the launcher.

torchrun and its workers would otherwise share one output, where nothing tells a worker's line from torchrun's own.
"""

import os
import socket
import sys

from runtime.lifeline import end_with_parent


def hand_over_output(path: str, rank: int) -> None:
    """Replace stdout and stderr by pipes and send their reading ends, with the rank, to the launcher's Unix socket."""
    pipes = [os.pipe(), os.pipe()]
    with socket.socket(socket.AF_UNIX) as launcher:
        launcher.connect(path)
        socket.send_fds(launcher, [str(rank).encode()], [reading for reading, _ in pipes])
    for standard, (reading, writing) in zip((1, 2), pipes, strict=True):
        os.dup2(writing, standard)
        os.close(reading)
        os.close(writing)


def main() -> None:
    """Become the program."""
    end_with_parent()
    path, *arguments = sys.argv[1:]
    hand_over_output(path, int(os.environ["RANK"]))
    os.execv(sys.executable, [sys.executable, "-u", *arguments])


if __name__ == "__main__":
    main()

"""`python -m runtime.hosts [OPTIONS] -- ARGUMENTS`: run `python ARGUMENTS` under torchrun on several hosts, which are
network namespaces of this machine with links of a set rate (Linux, root)."""

import argparse
import os
import signal
import sys
from pathlib import Path
from typing import NoReturn

from runtime.hosts.agents import TIMED_OUT
from runtime.hosts.network import MAX_HOSTS, Hosts
from runtime.hosts.torchrun import MAX_RANKS, launch

_EXAMPLE = "python -m runtime.hosts --hosts 2 --ranks-per-host 2 --rate 200mbit -- -m runtime validate"


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise ValueError(message)


def main(arguments: list[str] | None = None) -> int:
    """Build the hosts, run, remove the hosts.

    Returns:
        Exit code: 0 done, 2 bad input or no root (one line on stderr says which), 124 time limit, 130 interrupted,
        otherwise that of the worker that failed first.
    """
    arguments = sys.argv[1:] if arguments is None else arguments
    for number in (signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(number) == signal.SIG_DFL:  # nohup ignores SIGHUP
            signal.signal(number, _end)
    split = arguments.index("--") if "--" in arguments else len(arguments)
    try:
        flags = _parser().parse_args(arguments[:split])
        with Hosts(flags.hosts, flags.rate, flags.loopback_rate) as hosts:
            ended = launch(
                hosts,
                arguments[split + 1 :],
                flags.ranks_per_host,
                time_limit_s=flags.time_limit,
                join_timeout_s=flags.join_timeout,
                pin=flags.pin,
                absent=flags.absent,
                log=flags.log,
            )
    except BrokenPipeError:  # the reader of our output has gone, as with `| head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except (ValueError, OSError) as error:
        return _complain(str(error), 2)
    except KeyboardInterrupt:
        return _complain("interrupted", 130)
    return _complain(ended.reason, ended.exit_code) if ended.reason else ended.exit_code


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(
        "python -m runtime.hosts",
        "%(prog)s [OPTIONS] -- ARGUMENTS",
        __doc__,
        f"example: {_EXAMPLE}",
        allow_abbrev=False,
    )
    parser.add_argument("--hosts", type=int, default=2, help=f"1 to {MAX_HOSTS} (%(default)s)")
    parser.add_argument("--ranks-per-host", type=int, default=2, help=f"at most {MAX_RANKS} in all (%(default)s)")
    parser.add_argument("--rate", default="200mbit", help="of a host's network card, each way (%(default)s)")
    parser.add_argument("--loopback-rate", metavar="RATE", help="of the traffic inside a host (as fast as the CPU)")
    parser.add_argument("--pin", action="store_true", help="host i computes on core i (modulo cores) alone")
    parser.add_argument(
        "--time-limit", type=float, default=600, metavar="SECONDS", help=f"then exit code {TIMED_OUT} (%(default)s)"
    )
    parser.add_argument(
        "--join-timeout",
        type=float,
        default=60,
        metavar="SECONDS",
        help="for all workers to have started (%(default)s)",
    )
    parser.add_argument(
        "--absent", type=int, action="append", default=[], metavar="HOST", help="this host never joins; repeatable"
    )
    parser.add_argument("--log", type=Path, metavar="FILE", help="keep torchrun's own messages (they are dropped)")
    return parser


def _complain(reason: str, exit_code: int) -> int:
    print(f"runtime.hosts: {reason}", file=sys.stderr)
    return exit_code


def _end(number: int, _frame: object) -> NoReturn:
    raise SystemExit(128 + number)


if __name__ == "__main__":
    sys.exit(main())

"""`torchrun ... -m runtime COMMAND key=value ...`: run a command of `conf/` on several ranks.

Commands of this package run on every rank; those of `analysis` run on rank 0, and the other ranks serve its orders.
"""

import hashlib
import os
import sys
import warnings

import torch

from grace_opt.configuration import read_configuration, run
from grace_opt.provenance import called_with
from runtime.group import Group, code_digest, joined
from runtime.lifeline import end_with_parent
from runtime.memory import keep_memory
from runtime.orders import FINISH, give, serve
from runtime.replay import replay
from runtime.watch import LOST, PeerEndedError
from runtime.whole_model import whole_model

ORDERS = {"replay": replay, "whole_model": whole_model}
DEFAULT_TIMEOUT_S, LONGEST_S = 60.0, 86_400
USAGE = "usage: torchrun --nproc-per-node RANKS -m runtime COMMAND key=value ... (calibrate, validate or generate)"


def main(arguments: list[str] | None = None) -> int:
    """Run one command on this rank.

    Returns:
        Exit code: 0 done, 1 a rank was lost, 2 bad input (one line says which), 130 interrupted.
    """
    arguments = sys.argv[1:] if arguments is None else arguments
    warnings.showwarning = _warn
    if not arguments or arguments[0].startswith("-"):
        print(USAGE, file=sys.stderr)
        return 0 if arguments[:1] in (["-h"], ["--help"]) else 2
    if "TORCHELASTIC_RUN_ID" in os.environ:
        end_with_parent()
    keep_memory()
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))
    try:
        with joined(_timeout_s(arguments)) as group, called_with(arguments[1:]):
            _run(group, arguments[0], arguments[1:])
    except PeerEndedError as error:
        return error.code  # the line is printed there
    except (ConnectionError, TimeoutError) as error:
        return _report(f"rank {os.environ.get('RANK')}: {error}", LOST)
    except (ValueError, OSError) as error:
        return _report(str(error), 2)
    except KeyboardInterrupt:
        return _report("interrupted", 130)
    return 0


def _run(group: Group, command: str, overrides: list[str]) -> None:
    config = read_configuration(command, overrides)
    if config.get("timeout_s", DEFAULT_TIMEOUT_S) != group.timeout_s:
        raise ValueError(f"timeout_s must be seconds, above 0 and at most {LONGEST_S}, got {config.timeout_s!r}")
    everywhere = str(config["_target_"]).startswith("runtime.")
    asked = hashlib.sha256("\n".join([command, *overrides]).encode()).hexdigest()[:16]
    group.agree({"code version": code_digest(), "command line": asked})
    if everywhere:
        run(config)
    elif group.rank == 0:
        run(config)
        give(group, FINISH, {})
    else:
        serve(group, ORDERS)


def _report(line: str, code: int) -> int:
    print(f"grace-opt: {line}", file=sys.stderr, flush=True)
    return code


def _warn(message: Warning | str, *_: object, **__: object) -> None:
    """One line from rank 0; the others read the same configuration and files."""
    if os.environ.get("RANK", "0") == "0":
        print(f"grace-opt: warning: {message}", file=sys.stderr)


def _timeout_s(arguments: list[str]) -> float:
    """The option timeout_s, needed before the configuration is read; what is no such number is refused there."""
    given = [argument.partition("=")[2] for argument in arguments if argument.startswith("timeout_s=")]
    try:
        seconds = float(given[-1]) if given else DEFAULT_TIMEOUT_S
    except ValueError:
        return DEFAULT_TIMEOUT_S
    return seconds if 0 < seconds <= LONGEST_S else DEFAULT_TIMEOUT_S


if __name__ == "__main__":
    sys.exit(main())

"""`grace-opt COMMAND key=value ...`: run a command configured by `conf/`."""

import os
import sys
import warnings

from hydra.utils import get_object
from omegaconf import OmegaConf

from grace_opt import __version__
from grace_opt.configuration import CONF_DIR, commands, first_comment, groups, parts_of, read_configuration, run
from grace_opt.provenance import called_with

SWEEPS = {"study": "analysis.study.study"}
"""Commands that take lists of values and run one configuration for each combination."""


def main(arguments: list[str] | None = None) -> int:
    """Run one command.

    Returns:
        Exit code: 0 done, 2 bad input (one line on stderr says which), 130 interrupted.
    """
    arguments = sys.argv[1:] if arguments is None else arguments
    warnings.showwarning = _print_warning
    try:
        if not arguments or arguments[0] in ("-h", "--help"):
            print(_overview())
        elif arguments[0] == "--version":
            print(f"grace-opt {__version__}")
        elif {"-h", "--help"} & set(arguments[1:]):
            print(_help(arguments[0]))
        else:
            with called_with(arguments[1:]):
                _run(arguments[0], arguments[1:])
    except BrokenPipeError:  # the reader of our output has gone, as with `| head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except (ValueError, OSError) as error:
        print(f"grace-opt: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt as interrupt:
        print(f"grace-opt: interrupted{f': {interrupt}' if str(interrupt) else ''}", file=sys.stderr)
        return 130
    return 0


def _run(command: str, arguments: list[str]) -> None:
    if command in SWEEPS:
        get_object(SWEEPS[command])(arguments)
    else:
        run(read_configuration(command, arguments))


def _overview() -> str:
    names = "\n".join(f"  {name:<10} {what}" for name, what in commands().items())
    return f"usage: grace-opt COMMAND key=value ...\n\n{names}\n\n`grace-opt COMMAND --help` shows options and choices."


def _help(command: str) -> str:
    config = read_configuration(command, [])
    path = CONF_DIR / f"{command}.yaml"
    text = path.read_text(encoding="utf-8")
    lines = [f"usage: grace-opt {command} key=value ...", "", first_comment(path), "", "Options:"]
    for line in text.split("\n\n", 1)[1].splitlines():
        key, _, rest = line.partition(":")
        value, _, comment = rest.partition("#")
        if key != "_target_" and value and not line.startswith(" "):
            lines.append(f"  {f'{key}={value.strip()}':<34} {comment.strip()}")
    lines += ["", "Parts (group=choice; * is the default; options of a part as group.option=value):"]
    for group, default in parts_of(command).items():
        for choice, what in groups()[group].items():
            lines.append(f"  {'*' if choice == default else ' '} {f'{group}={choice}':<34} {what}")
    if "planners" in config:
        lines += ["", "Planners (options as planners.NAME.option=value; `only=[NAME,...]` compares some):"]
        lines += [f"    {name:<34} {what}" for name, what in groups()["planner"].items()]
    lines += ["", "All values, composed:", "", OmegaConf.to_yaml(config).rstrip()]
    return "\n".join(lines)


def _print_warning(message: Warning | str, *_: object, **__: object) -> None:
    print(f"grace-opt: warning: {message}", file=sys.stderr)


if __name__ == "__main__":
    sys.exit(main())

"""Where a measurement comes from: command line, commit, machine, date; and the CSV files that keep measurements."""

import csv
import datetime
import functools
import platform
import shutil
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path
from typing import Any

from grace_opt.cores import num_cores

_CHECKOUT = Path(__file__).parents[1]
_ARGUMENTS: ContextVar[tuple[str, ...]] = ContextVar("arguments", default=())


@contextmanager
def called_with(arguments: Sequence[str]) -> Iterator[None]:
    """Within it, results say that their command was given these `key=value` arguments."""
    token = _ARGUMENTS.set(tuple(arguments))
    try:
        yield
    finally:
        _ARGUMENTS.reset(token)


def origin() -> dict[str, Any]:
    """What a result says of how it was made; its arguments are enough to make its inputs again."""
    return {"arguments": list(_ARGUMENTS.get()), **provenance()}


@functools.cache
def provenance() -> dict[str, str]:
    """Commit, machine and date of a measurement."""
    commit = _git("rev-parse", "--short", "HEAD")
    changed = _git("status", "--porcelain", "--untracked-files=no", "--", ".", ":!analysis/results")
    cpu = platform.processor()
    if Path("/proc/cpuinfo").exists():
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        cpu = next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), cpu)
    return {
        "commit": f"{commit}{'-dirty' if changed else ''}" or "unknown",
        "machine": f"{cpu}, {num_cores()} cores",
        "date": datetime.date.today().isoformat(),
    }


def _git(*arguments: str) -> str:
    """What git says of the checkout that runs; "" where there is none."""
    if not (_CHECKOUT / ".git").exists() or shutil.which("git") is None:
        return ""
    done = subprocess.run(["git", *arguments], cwd=_CHECKOUT, capture_output=True, text=True, check=False)
    return done.stdout.strip()


def append_rows(path: Path, rows: list[dict[str, Any]]) -> None:
    """Append rows to a CSV file, with a header if it is new.

    Raises:
        ValueError: the file has other columns.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    if not rows:
        return
    fields = list(rows[0])
    if path.exists():
        with path.open(newline="", encoding="utf-8") as file:
            known = next(csv.reader(file), [])
        if set(known) != set(fields):
            odd = sorted(set(known) ^ set(fields))
            raise ValueError(f"{path} and the new rows differ in column {odd[0]}: move the file away")
        fields = known
    new = not path.exists()
    with path.open("a", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, fields)
        if new:
            writer.writeheader()
        writer.writerows(rows)

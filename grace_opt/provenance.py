"""Where a measurement comes from: commit, machine, date; and the CSV files that keep measurements."""

import csv
import datetime
import platform
import subprocess
from pathlib import Path
from typing import Any

from grace_opt.cores import num_cores


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
    done = subprocess.run(["git", *arguments], capture_output=True, text=True, check=False)
    return done.stdout.strip()


def append_rows(path: Path, rows: list[dict[str, Any]]) -> None:
    """Append rows to a CSV file, with a header if it is new.

    Raises:
        ValueError: the file has other columns.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
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

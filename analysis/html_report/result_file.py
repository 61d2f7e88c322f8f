"""result.json of any command, read and checked; nothing in it is trusted."""

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from analysis.html_report.units import is_number
from grace_opt import __version__

MOST_BYTES = 64_000_000
"""Of a file that is read: tens of thousands of rows."""
HEAD = 1000
"""Bytes by which a file of another kind is known."""
CONTROL = re.compile(rb"[\x00-\x08\x0e-\x1f]")


@dataclass(frozen=True, eq=False)
class Found:
    """A row and where it stands in the file, as a JSON pointer."""

    row: Mapping[str, Any]
    at: str

    def __getitem__(self, field: str) -> Any:
        return self.row.get(field)

    def text(self, field: str) -> str:
        """A field as text, "" if it is not there."""
        value = self.row.get(field)
        return "" if value is None else str(value)

    def place(self, field: str) -> str:
        """Where a field stands in the file, as a JSON pointer (RFC 6901)."""
        return f"{self.at}/{field.replace('~', '~0').replace('/', '~1')}"


@dataclass(frozen=True, eq=False)
class Result:
    """What a command found out.

    Attributes:
        path: of the file.
        content: all of it.
        rows: every row that is an object.
    """

    path: Path
    content: Mapping[str, Any]
    rows: tuple[Found, ...]

    @property
    def folder(self) -> Path:
        return self.path.parent

    @property
    def command(self) -> str:
        return str(self.content["command"])

    @property
    def problem(self) -> Mapping[str, Any]:
        """What was asked."""
        found = self.content.get("problem")
        return found if isinstance(found, Mapping) else {}

    @property
    def made(self) -> Mapping[str, Any]:
        """Command line, commit, machine and date; empty in results of versions that did not write them."""
        found = self.content.get("made")
        return found if isinstance(found, Mapping) else {}

    @property
    def failed(self) -> list[Found]:
        """Rows with an error in place of figures."""
        return [found for found in self.rows if found["error"]]

    def with_number(self, field: str, split: str | None = None) -> list[Found]:
        """Rows that were priced, those of a part alone if there are parts, whose field is a number."""
        return [
            found
            for found in self.rows
            if not found["error"]
            and is_number(found[field])
            and found["kind"] in (None, "cell")
            and (split is None or found["split"] in (None, split))
        ]

    def texts(self, field: str) -> list[str]:
        """A text, or a list of them, of the problem; those that are not empty."""
        value = self.problem.get(field)
        return [str(text) for text in (value if isinstance(value, Sequence) and not isinstance(value, str) else [value])
                if text]  # fmt: skip

    @property
    def synthetic(self) -> bool:
        """Whether any of it is about a made-up trace."""
        return bool(self.problem.get("synthetic")) or any(found["synthetic"] is True for found in self.rows)

    @property
    def assumed(self) -> list[str]:
        """Constants that no measurement supports."""
        of_rows = (found.text("assumed") for found in self.rows)
        return [text for text in dict.fromkeys([*self.texts("assumed"), *of_rows]) if text]


def read_result(path: str) -> Result:
    """Read the result of a command.

    Args:
        path: of the file, or of the folder it is in.

    Raises:
        ValueError: it is no result, of another version, or has no rows; the message names file and field.
    """
    file = Path(path)
    file = file / "result.json" if file.is_dir() else file
    if not path or not file.is_file():
        raise ValueError(f"result={path} is no result.json and no folder that holds one: give what a command wrote")
    _require_text(file)
    if file.stat().st_size > MOST_BYTES:
        size = file.stat().st_size / 1e6
        raise ValueError(f"{file} has {size:,.0f} MB, a report reads up to {MOST_BYTES / 1e6:.0f}: split the run")
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{file}: truncated or no JSON ({' '.join(str(error).split())[:200]})") from None
    if not isinstance(content, dict) or not isinstance(content.get("command"), str):
        raise ValueError(f"{file} is no result of a command: it has no field `command`")
    rows, version = content.get("rows"), content.get("version", __version__)
    if _release(version) != _release(__version__):
        raise ValueError(
            f"{file}: written by grace-opt {version!s:.40}, this is {__version__}: run {content['command']!s:.40} again"
        )
    if not isinstance(rows, list) or not any(isinstance(row, dict) for row in rows):
        raise ValueError(f"{file}: rows must be a list with at least one object; there is nothing to report")
    found = tuple(Found(row, f"/rows/{index}") for index, row in enumerate(rows) if isinstance(row, dict))
    return Result(file, content, found)


def _require_text(file: Path) -> None:
    """Raise ValueError if it does not even begin as JSON does."""
    with file.open("rb") as opened:
        head = opened.read(HEAD).lstrip()
    binary = CONTROL.search(head) is not None
    if head and (binary or not head.startswith((b"{", b"["))):
        kind = "a binary file" if binary else "text of another kind"
        raise ValueError(f"result={file}: expected the result.json of a command or its folder, this is {kind}")


def _release(version: Any) -> list[str]:
    """Numbers that say whether two versions write the same fields."""
    return str(version).split(".")[:2]

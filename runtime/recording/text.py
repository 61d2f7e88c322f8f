"""Text files as sequences of tokens: documents cut into pieces of at most so many tokens.

A `.jsonl` file holds a document a line, any other file is one document. Files take turns until there are enough
sequences, so that each has its share; then they stand file by file again. Only tokens are held, four bytes each, for
`max_sequences` x `tokens_per_sequence` of them at most; files are read a piece at a time.
"""

import glob
import json
import warnings
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

PIECE = 1 << 18
"""Characters of a document that are cut into tokens together; a piece ends with a line, where it has one."""

LONGEST_LINE = 1 << 26
"""Characters of a line of JSON."""


@dataclass(frozen=True)
class Tokenizer:
    """Text to token ids, without special tokens; `prefix` is what the model's tokenizer puts before every text."""

    encode: Callable[[str], list[int]]
    prefix: tuple[int, ...] = ()


@dataclass(frozen=True, eq=False)
class Sequences:
    """What is read.

    Attributes:
        tokens: one int32 array a sequence.
        domains: index into `domain_names` of each sequence.
    """

    tokens: tuple[NDArray[np.int32], ...]
    domains: tuple[int, ...]
    domain_names: tuple[str, ...]


def text_files(text: str | Sequence[str]) -> list[Path]:
    """The files that paths and patterns name, each once, in the order given and by name.

    Raises:
        FileNotFoundError, ValueError: a pattern matches nothing, or a folder is named.
    """
    found: dict[Path, None] = {}
    for name in [text] if isinstance(text, str) else text:
        paths = [name] if Path(name).exists() else sorted(glob.glob(name, recursive=True))
        if not paths:
            raise FileNotFoundError(f"text={name}: there is no such file, and no file that matches")
        for path in map(Path, paths):
            if path.is_dir() and len(paths) == 1:
                raise ValueError(f"text={path} is a folder: give its files, as text='{path}/*.txt'")
            if path.is_file():
                found[path] = None
    if not found:
        raise ValueError(f"text={text}: no file is named")
    return list(found)


def read_sequences(
    paths: Sequence[Path],
    tokenizer: Tokenizer,
    tokens_per_sequence: int,
    max_sequences: int,
    field: str | None = None,
    domain: str | None = None,
) -> Sequences:
    """Read documents until there are `max_sequences` sequences of at most `tokens_per_sequence` tokens.

    Args:
        field: of a JSON line, with its text; None: `text`.
        domain: of all files; None: each file's name without suffix is the domain of its text.

    Raises:
        ValueError: no text, no UTF-8, or a line that is no JSON object with that field; one line names the file.
    """
    if tokens_per_sequence <= len(tokenizer.prefix) or max_sequences < 1:
        least = len(tokenizer.prefix) + 1
        raise ValueError(
            f"tokens_per_sequence must be at least {least} and max_sequences at least 1, "
            f"got {tokens_per_sequence} and {max_sequences}"
        )
    if field is not None and not any(path.suffix == ".jsonl" for path in paths):
        raise ValueError(f"field={field} names a field of JSON lines, but no file of text ends in .jsonl")
    of_file: list[list[NDArray[np.int32]]] = [[] for _ in paths]
    turns = deque(
        (i, _sequences(path, tokenizer, tokens_per_sequence, field or "text")) for i, path in enumerate(paths)
    )
    while turns and sum(map(len, of_file)) < max_sequences:
        i, rest = turns.popleft()
        if (sequence := next(rest, None)) is not None:
            of_file[i].append(sequence)
            turns.append((i, rest))
    if not any(of_file):
        raise ValueError(f"{paths[0]}{f' and {len(paths) - 1} more' * (len(paths) > 1)}: there is no text to read")
    for path, sequences in zip(paths, of_file, strict=True):
        if not sequences:
            warnings.warn(f"{path}: nothing of it is read (empty, or max_sequences={max_sequences})", stacklevel=2)
    numbers: dict[str, int] = {}
    domains = [
        numbers.setdefault(domain or path.stem, len(numbers))
        for path, sequences in zip(paths, of_file, strict=True)
        for _ in sequences
    ]
    if len(numbers) > 256:
        raise ValueError(f"text has {len(numbers)} file names, and a trace holds at most 256 domains: give domain=NAME")
    return Sequences(tuple(chain.from_iterable(of_file)), tuple(domains), tuple(numbers))


def _sequences(path: Path, tokenizer: Tokenizer, size: int, field: str) -> Iterator[NDArray[np.int32]]:
    try:
        for document in _lines(path, field) if path.suffix == ".jsonl" else [_pieces(path)]:
            yield from _cut(document, tokenizer, size)
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: no UTF-8 text ({error.reason} at byte {error.start})") from None


def _cut(document: Iterable[str], tokenizer: Tokenizer, size: int) -> Iterator[NDArray[np.int32]]:
    """Sequences of `size` tokens, prefix included; the last of a document may be shorter."""
    room = size - len(tokenizer.prefix)
    rest: list[int] = []
    for piece in document:
        rest += tokenizer.encode(piece)
        whole = len(rest) // room * room
        for start in range(0, whole, room):
            yield np.array([*tokenizer.prefix, *rest[start : start + room]], np.int32)
        rest = rest[whole:]
    if rest:
        yield np.array([*tokenizer.prefix, *rest], np.int32)


def _pieces(path: Path) -> Iterator[str]:
    with path.open(encoding="utf-8") as file:
        rest = ""
        while block := file.read(PIECE):
            text = rest + block
            end = text.rfind("\n") + 1 or len(text)
            yield text[:end]
            rest = text[end:]
        if rest:
            yield rest


def _lines(path: Path, field: str) -> Iterator[list[str]]:
    """The document of each line."""
    with path.open(encoding="utf-8") as file:
        number = 0
        while line := file.readline(LONGEST_LINE + 1):
            number += 1
            if len(line) > LONGEST_LINE:
                raise ValueError(f"{path}: line {number} is longer than {LONGEST_LINE} characters")
            if not line.strip():
                continue
            try:
                content = json.loads(line)
            except (ValueError, RecursionError):
                raise ValueError(f"{path}: line {number} is no JSON, or truncated") from None
            if not isinstance(content, dict) or not isinstance(content.get(field), str):
                fields = ", ".join(content) if isinstance(content, dict) else ""
                raise ValueError(
                    f"{path}: line {number} has {fields or 'no fields'}, expected an object with text in {field!r}: "
                    "give field=NAME"
                )
            yield [content[field]]

"""Text every Python installation has: the source of its own standard library, cut into tokens, domains and two splits.

A *domain* is a readable area of the library (`DOMAINS`). A *recorded* file is one the model is never trained on; only
the middle `length` tokens of it become a sequence, for the first lines of a source file (licence, imports) look alike
everywhere. Every other file is a *training* file. Tests, which many distributions leave out, belong to neither.

Tokens are bytes and the commonest longer pieces of source text: a word with the space before it, a run of
punctuation, a line break with its indentation.

    vocabulary = 256 bytes | learned pieces | BOS        b"if self" -> [id of b"if", id of b" self"]
"""

import re
import sysconfig
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import cache, cached_property
from pathlib import Path

import numpy as np

# Folders and top-level modules of the library; "modules" is every file in its root, "packages" every other folder.
DOMAINS: dict[str, tuple[str, ...]] = {
    "concurrency": ("asyncio", "concurrent", "multiprocessing"),
    "encodings": ("encodings",),
    "gui": ("idlelib", "tkinter", "turtledemo"),
    "internet": ("email", "html", "http", "json", "urllib", "wsgiref", "xml", "xmlrpc"),
    "modules": (),
    "packages": (),
}
LEFT_OUT = {"test", "tests", "idle_test", "site-packages", "dist-packages", "__pycache__"}
PIECE = re.compile(rb" ?[A-Za-z]+|\n *|[0-9]| ?[^A-Za-z0-9\s]+|\s")


@dataclass(frozen=True)
class Tokenizer:
    """Greedy longest match inside each piece of text; lossless, because every byte is a token of its own.

    Attributes:
        pieces: learned tokens of two or more bytes; the i-th has token id 256 + i.
    """

    pieces: tuple[bytes, ...]
    _known: dict[bytes, tuple[int, ...]] = field(default_factory=dict, init=False, repr=False, compare=False)

    @classmethod
    def learn(cls, texts: Iterable[bytes], num_pieces: int = 1791) -> "Tokenizer":
        """Keep the `num_pieces` pieces that save the most tokens against single bytes."""
        counts = Counter[bytes]()
        for text in texts:
            counts.update(PIECE.findall(text))
        saved = sorted(((1 - len(piece)) * count, piece) for piece, count in counts.items() if len(piece) > 1)
        return cls(tuple(piece for _, piece in saved[:num_pieces]))

    @property
    def bos(self) -> int:
        """Token id that starts every file."""
        return 256 + len(self.pieces)

    @property
    def num_tokens(self) -> int:
        """Size of the vocabulary, BOS included."""
        return self.bos + 1

    @cached_property
    def token_bytes(self) -> list[bytes]:
        """Text of every token id; BOS is empty."""
        return [bytes([byte]) for byte in range(256)] + [*self.pieces, b""]

    @cached_property
    def _id_of_piece(self) -> dict[bytes, int]:
        return {piece: token for token, piece in enumerate(self.token_bytes[: self.bos])}

    def encode(self, text: bytes) -> list[int]:
        """Token ids of a text, without BOS."""
        return [token for piece in PIECE.findall(text) for token in self._split(piece)]

    def decode(self, tokens: Iterable[int]) -> bytes:
        """Text of token ids; the inverse of `encode`."""
        return b"".join(self.token_bytes[token] for token in tokens)

    def _split(self, piece: bytes) -> tuple[int, ...]:
        if piece not in self._known:
            tokens, rest = [], piece
            while rest:
                size = next(size for size in range(len(rest), 0, -1) if rest[:size] in self._id_of_piece)
                tokens.append(self._id_of_piece[rest[:size]])
                rest = rest[size:]
            self._known[piece] = tuple(tokens)
        return self._known[piece]


@dataclass(frozen=True, eq=False)
class Corpus:
    """The tokens of both splits.

    Attributes:
        tokenizer: learned from the training files alone.
        train_files, recorded_files: paths relative to the standard library, as text with forward slashes.
        train: [tokens] int64, training files one after the other in seeded order, each behind a BOS.
        recorded: [sequences, length] int64, one sequence a recorded file, in the order of `recorded_files`.
        domain: [sequences] uint8, index of each recorded sequence into `domain_names`.
    """

    tokenizer: Tokenizer
    train_files: tuple[str, ...]
    recorded_files: tuple[str, ...]
    train: np.ndarray
    recorded: np.ndarray
    domain: np.ndarray
    domain_names: tuple[str, ...]


def library_files(root: Path | None = None) -> dict[str, list[str]]:
    """Paths of the library's modules relative to `root`, sorted, by domain; a domain without files is left out."""
    root = root or Path(sysconfig.get_path("stdlib"))
    domain_of_folder = {folder: name for name, folders in DOMAINS.items() for folder in folders}
    files: dict[str, list[str]] = {name: [] for name in DOMAINS}
    for path in sorted(path.relative_to(root) for path in root.rglob("*.py")):
        if not LEFT_OUT.intersection(path.parts):
            top = "modules" if len(path.parts) == 1 else domain_of_folder.get(path.parts[0], "packages")
            files[top].append(path.as_posix())
    return {name: paths for name, paths in files.items() if paths}


def load_corpus(length: int = 256, files_per_domain: int = 16, num_pieces: int = 1791, seed: int = 0) -> Corpus:
    """Read the library, hold out files of every domain (half of them at most), cut both splits into tokens.

    Only a file of 16 * `length` bytes or more is recorded, so that its middle is far from both ends.
    """
    root = Path(sysconfig.get_path("stdlib"))
    by_domain = library_files(root)
    text = {path: (root / path).read_bytes() for paths in by_domain.values() for path in paths}
    recorded = {
        name: _evenly([path for path in paths if len(text[path]) >= 16 * length], files_per_domain)
        for name, paths in by_domain.items()
    }
    recorded_files = tuple(path for paths in recorded.values() for path in paths)
    train_files = tuple(sorted(text.keys() - set(recorded_files)))
    tokenizer = Tokenizer.learn((text[path] for path in train_files), num_pieces)
    order = np.random.default_rng(seed).permutation(len(train_files))
    train = [np.array([tokenizer.bos, *tokenizer.encode(text[train_files[i]])]) for i in order]
    return Corpus(
        tokenizer,
        train_files,
        recorded_files,
        np.concatenate(train),
        np.stack([_middle(tokenizer.encode(text[path]), length) for path in recorded_files]),
        np.concatenate([np.full(len(paths), i, dtype=np.uint8) for i, paths in enumerate(recorded.values())]),
        tuple(recorded),
    )


@cache
def prompts(tokenizer: Tokenizer, num: int, length: int, files_per_domain: int = 16, recorded: int = 256) -> np.ndarray:
    """Token ids [num, length] of text that was neither trained on nor recorded: what stands before the recorded middle.

    Args:
        files_per_domain, recorded: as they were when the model was trained (`load_corpus`).

    Raises:
        ValueError: there is not so much text.
    """
    root, windows, found = Path(sysconfig.get_path("stdlib")), [], 0
    for paths in library_files(root).values():
        large = [path for path in paths if (root / path).stat().st_size >= 16 * recorded]
        for path in _evenly(large, files_per_domain):
            tokens = tokenizer.encode((root / path).read_bytes())
            before = tokens[: (len(tokens) - recorded) // 2]
            whole = np.array(before[: len(before) // length * length], np.int64).reshape(-1, length)
            windows.append(whole)
            found += len(whole)
    if found < num:
        raise ValueError(f"{num} prompts of {length} tokens were asked for, but the text holds {found}: ask for fewer")
    order = np.random.default_rng(0).permutation(found)[:num]  # neighbours are alike: deal them out
    return np.concatenate(windows)[order]


def _evenly(paths: Sequence[str], num: int) -> list[str]:
    num = min(num, len(paths) // 2)
    return [paths[i * len(paths) // num] for i in range(num)]


def _middle(tokens: Sequence[int], length: int) -> np.ndarray:
    start = (len(tokens) - length) // 2
    return np.array(tokens[start : start + length])

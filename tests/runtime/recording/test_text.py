"""Documents become sequences; every file has its share."""

import json
from pathlib import Path

import numpy as np
import pytest

from runtime.recording import text
from runtime.recording.text import Tokenizer, read_sequences, text_files

BYTES = Tokenizer(lambda piece: list(piece.encode()), prefix=(300,))


def write(folder: Path, **files: str) -> list[Path]:
    paths = []
    for name, content in files.items():
        stem, _, suffix = name.rpartition("_")
        paths.append(folder / f"{stem}.{suffix}")
        paths[-1].write_text(content)
    return paths


def test_a_document_is_cut_into_sequences_that_each_begin_as_a_text_does(tmp_path: Path) -> None:
    read = read_sequences(write(tmp_path, a_txt="abcdefgh"), BYTES, tokens_per_sequence=4, max_sequences=9)
    assert [tokens.tolist() for tokens in read.tokens] == [[300, *b"abc"], [300, *b"def"], [300, *b"gh"]]
    assert read.domain_names == ("a",) and read.domains == (0, 0, 0)


def test_a_line_of_json_is_a_document(tmp_path: Path) -> None:
    lines = "\n".join(json.dumps({"body": body, "n": 1}) for body in ("abcd", "", "é")) + "\n\n"
    read = read_sequences(write(tmp_path, a_jsonl=lines), BYTES, 4, 9, field="body", domain="chat")
    assert [tokens.tolist()[1:] for tokens in read.tokens] == [[*b"abc"], [*b"d"], [*"é".encode()]]
    assert read.domain_names == ("chat",)


def test_files_take_turns_and_stand_one_after_the_other(tmp_path: Path) -> None:
    paths = write(tmp_path, long_txt="a" * 100, short_txt="b" * 4, third_txt="c" * 100)
    read = read_sequences(paths, BYTES, tokens_per_sequence=3, max_sequences=8)
    assert [chr(tokens[1]) for tokens in read.tokens] == [*"aaa", *"bb", *"ccc"]
    assert read.domains == (0, 0, 0, 1, 1, 2, 2, 2) and read.domain_names == ("long", "short", "third")


def test_files_that_max_sequences_leaves_out_are_warned_of(tmp_path: Path) -> None:
    paths = write(tmp_path, a_txt="aaa", b_txt="bbb", empty_txt="")
    with pytest.warns(UserWarning, match="nothing of it is read") as warned:
        read = read_sequences(paths, BYTES, 3, max_sequences=1)
    assert [str(each.message) for each in warned] == [
        f"{path}: nothing of it is read (empty, or max_sequences=1)" for path in paths[1:]
    ]
    assert read.domain_names == ("a",)


def test_reading_in_pieces_changes_nothing_where_lines_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    paths = write(tmp_path, a_txt="".join(f"line {n}\n" for n in range(50)))
    whole = read_sequences(paths, BYTES, 16, 99)
    monkeypatch.setattr(text, "PIECE", 20)
    words = Tokenizer(lambda piece: [len(line) for line in piece.splitlines()])  # would differ inside a line
    assert read_sequences(paths, words, 60, 9).tokens[0].tolist() == [6] * 10 + [7] * 40
    pieces = read_sequences(paths, BYTES, 16, 99)
    assert all(np.array_equal(one, other) for one, other in zip(whole.tokens, pieces.tokens, strict=True))


def test_patterns_name_each_file_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path, a_txt="a", b_txt="b", c_md="c")
    monkeypatch.chdir(tmp_path)
    assert text_files(["b.txt", "*.txt", "*.md"]) == [Path("b.txt"), Path("a.txt"), Path("c.md")]


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("nowhere.txt", "text=nowhere.txt: there is no such file, and no file that matches"),
        (".", r"text=. is a folder: give its files, as text='./\*.txt'"),
        ([], r"text=\[\]: no file is named"),
    ],
)
def test_text_that_is_not_there_is_one_line(given: object, message: str) -> None:
    with pytest.raises((ValueError, OSError), match=message):
        text_files(given)


@pytest.mark.parametrize(
    ("name", "content", "options", "message"),
    [
        ("a.txt", b"", {}, "a.txt: there is no text to read"),
        ("a.txt", b"ab\xff", {}, "a.txt: no UTF-8 text"),
        ("a.txt", b"ab", {"field": "text"}, "field=text names a field of JSON lines, but no file"),
        ("a.txt", b"ab", {"tokens_per_sequence": 1}, "tokens_per_sequence must be at least 2"),
        ("a.jsonl", b'{"text": "a"}\n{"te', {}, "a.jsonl: line 2 is no JSON, or truncated"),
        ("a.jsonl", b'{"body": "a"}', {}, "a.jsonl: line 1 has body, expected an object with text in 'text'"),
        ("a.jsonl", b"[" * 100_000, {}, "a.jsonl: line 1 is no JSON, or truncated"),
        ("a.jsonl", b"3", {}, "a.jsonl: line 1 has no fields, expected an object"),
    ],
)
def test_unreadable_text_is_one_line(tmp_path: Path, name: str, content: bytes, options: dict, message: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=message) as error:
        read_sequences([tmp_path / name], BYTES, **{"tokens_per_sequence": 4, "max_sequences": 9, **options})
    assert "\n" not in str(error.value)

import os
from pathlib import Path

import pytest

from permix.storage.files import JsonlTail, drop_torn_line, last_lines


def add(path: Path, text: bytes) -> None:
    with path.open("ab") as file:
        file.write(text)


def test_every_whole_line_is_given_once(tmp_path: Path) -> None:
    file = tmp_path / "lines"
    growing = JsonlTail(file)
    assert growing.read_lines() == []
    add(file, b"one\ntwo\n")
    assert growing.read_lines() == [b"one", b"two"]
    assert growing.read_lines() == []
    add(file, b"three\n")
    assert growing.read_lines() == [b"three"]
    assert (growing.restarts, growing.is_behind) == (0, False)


def test_a_torn_line_waits_for_its_end(tmp_path: Path) -> None:
    file = tmp_path / "lines"
    growing = JsonlTail(file)
    add(file, b"one\ntw")
    assert growing.read_lines() == [b"one"]
    assert growing.read_lines() == []
    assert not growing.is_behind
    add(file, b"o\n")
    assert growing.read_lines() == [b"two"]


def test_a_torn_line_that_is_dropped_and_written_otherwise_is_read_as_it_is(tmp_path: Path) -> None:
    file = tmp_path / "lines"
    growing = JsonlTail(file)
    add(file, b"one\ntorn by a ki")
    growing.read_lines()
    os.truncate(file, 4)
    assert growing.read_lines() == []
    add(file, b"2\n")
    assert growing.read_lines() == [b"2"]
    assert growing.restarts == 0


def test_it_reads_in_pieces_and_says_that_there_is_more(tmp_path: Path) -> None:
    file = tmp_path / "lines"
    add(file, b"aa\nbb\ncc\n")
    growing = JsonlTail(file)
    assert (growing.read_lines(limit=4), growing.is_behind) == ([b"aa"], True)
    assert (growing.read_lines(limit=4), growing.is_behind) == ([b"bb"], True)
    assert (growing.read_lines(limit=4), growing.is_behind) == ([b"cc"], False)


def test_a_line_longer_than_a_piece_is_one_line(tmp_path: Path) -> None:
    file = tmp_path / "lines"
    add(file, b"x" * 1000 + b"\rstill the same\n")
    assert JsonlTail(file).read_lines(limit=10) == [b"x" * 1000 + b"\rstill the same"]


@pytest.mark.parametrize("shorter", [True, False])
def test_another_file_of_the_name_is_read_from_its_beginning(tmp_path: Path, shorter: bool) -> None:
    file = tmp_path / "lines"
    add(file, b"one\ntwo\n")
    growing = JsonlTail(file)
    growing.read_lines()
    other = tmp_path / "other"
    add(other, b"new\n" if shorter else b"new\nlines\nand more\n")
    os.replace(other, file)
    assert growing.read_lines() == ([b"new"] if shorter else [b"new", b"lines", b"and more"])
    assert growing.restarts == 1


def test_what_is_no_regular_file_has_no_lines(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")  # opening it would wait for ever
    assert JsonlTail(tmp_path / "pipe").read_lines() == []
    assert last_lines(tmp_path / "pipe", 3) == []
    assert last_lines(tmp_path, 3) == []
    assert last_lines(tmp_path / "none", 3) == []


def test_the_last_lines_are_whole_and_in_order(tmp_path: Path) -> None:
    file = tmp_path / "lines"
    add(file, b"".join(b"%d\n" % number for number in range(100_000)) + b"torn")
    assert last_lines(file, 3) == [b"99997", b"99998", b"99999"]


def test_a_last_line_longer_than_the_tail_is_found(tmp_path: Path) -> None:
    file = tmp_path / "lines"
    add(file, b"first\n" + b"y" * 3_000_000 + b"\n")
    assert [len(line) for line in last_lines(file, 1)] == [3_000_000]
    assert last_lines(file, 5)[-1][:3] == b"yyy"


@pytest.mark.parametrize("torn", [5, 500])
def test_a_line_that_is_shorter_than_the_torn_one_before_is_read(torn: int, tmp_path: Path) -> None:
    path = tmp_path / "records.jsonl"
    path.write_bytes(b'{"a": 1}\n' + b"x" * torn)
    tail = JsonlTail(path)
    assert tail.read_lines() == [b'{"a": 1}']
    assert tail.read_lines() == []
    drop_torn_line(path)  # the run is resumed
    with path.open("ab") as file:
        file.write(b'{"a": 2}\n')
    assert tail.read_lines() == [b'{"a": 2}']
    assert tail.read_lines() == []
    assert not tail.is_behind

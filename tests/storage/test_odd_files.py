"""Run directories from elsewhere, or after a crash: what is no regular file, what is damaged, what has no room to be written."""

import errno
import json
import os
import resource
import shutil
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from permix.config import StabilityConfig
from permix.errors import ConfigError, DataError, PermixError
from permix.evals.stability import measure_stability
from permix.storage import files
from permix.storage.files import (
    JsonlWriter,
    drop_torn_line,
    jsonl_lines,
    last_lines,
    open_regular,
    read_json,
    write_json,
    write_text,
)
from permix.storage.run_dir import APPENDED_FILES, RunDir, RunReader
from tests.cell_files import read_cells
from tests.dashboard.fake_runs import stability_run, whole
from tests.sample_runs import answered

CONFIG = StabilityConfig(label="base")
IDENTITY = {"model": "abc"}
HANG_S = 20.0


def make_socket(path: Path) -> None:
    here = os.getcwd()
    os.chdir(path.parent)  # the address of a socket has at most 107 bytes
    try:
        with socket.socket(socket.AF_UNIX) as one:
            one.bind(path.name)
    finally:
        os.chdir(here)


ODD: dict[str, Callable[[Path], None]] = {
    "pipe": os.mkfifo,
    "device": lambda path: path.symlink_to("/dev/zero"),
    "socket": make_socket,
    "folder": Path.mkdir,
    "link to itself": lambda path: path.symlink_to(path),
}


def put_odd(path: Path, kind: str) -> None:
    path.unlink(missing_ok=True)
    ODD[kind](path)


def within(act: Callable[[], Any], seconds: float = HANG_S) -> BaseException | None:
    """What `act` raised; the test fails if it is not done in time."""
    raised: list[BaseException] = []

    def run() -> None:
        try:
            act()
        except BaseException as error:
            raised.append(error)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    thread.join(seconds)
    assert not thread.is_alive(), "it hangs"
    return raised[0] if raised else None


def records(run: Path) -> None:
    with RunDir.open(run, CONFIG, IDENTITY) as opened:
        opened.append(whole())


READERS: dict[str, Callable[[Path], Any]] = {
    "open_regular": open_regular,
    "read_json": read_json,
    "read_cells": read_cells,
    "jsonl_lines": lambda path: list(jsonl_lines(path)),
    "drop_torn_line": drop_torn_line,
    "JsonlWriter": lambda path: JsonlWriter(path).append([answered()]),
}


@pytest.mark.parametrize("reader", READERS)
@pytest.mark.parametrize("kind", ODD)
def test_what_is_no_file_is_refused_at_once_by_name(kind: str, reader: str, tmp_path: Path) -> None:
    put_odd(tmp_path / "odd", kind)
    error = within(lambda: READERS[reader](tmp_path / "odd"))
    assert isinstance(error, PermixError)
    assert f"{tmp_path / 'odd'}: " in str(error)


@pytest.mark.parametrize("kind", ODD)
def test_the_end_of_what_is_no_file_is_empty_or_refused(kind: str, tmp_path: Path) -> None:
    put_odd(tmp_path / "odd", kind)
    assert within(lambda: last_lines(tmp_path / "odd", 3)) is None


@pytest.mark.parametrize("name", [".lock", "records.jsonl", "provenance.json", "usage.json"])
@pytest.mark.parametrize("kind", ODD)
def test_a_run_with_an_odd_file_is_not_gone_on_with(kind: str, name: str, tmp_path: Path) -> None:
    if (kind, name) in (("link to itself", "provenance.json"), ("link to itself", "usage.json")):
        return  # it counts as missing and is written anew
    records(tmp_path)
    put_odd(tmp_path / name, kind)
    error = within(lambda: records(tmp_path))
    assert isinstance(error, PermixError)
    assert str(tmp_path / name) in str(error)


@pytest.mark.parametrize("name", [".lock", "records.jsonl"])
def test_a_writer_follows_no_link_out_of_the_run(name: str, tmp_path: Path) -> None:
    records(tmp_path / "run")
    precious = tmp_path / "precious"
    precious.write_bytes(b"one line\nand what a resume would cut")
    (tmp_path / "run" / name).unlink()
    (tmp_path / "run" / name).symlink_to(precious)
    error = within(lambda: records(tmp_path / "run"))
    assert isinstance(error, PermixError)
    assert precious.read_bytes() == b"one line\nand what a resume would cut"


def test_out_that_is_a_file_is_named(tmp_path: Path) -> None:
    (tmp_path / "run").write_text("")
    with pytest.raises(PermixError, match=r"run: cannot be written: File exists; move away the file"):
        records(tmp_path / "run")
    with pytest.raises(PermixError, match=r"/run: cannot be written: Not a directory; move away the file"):
        write_text(tmp_path / "run" / "report" / "table.csv", "")
    (tmp_path / "metrics.json").mkdir()
    with pytest.raises(PermixError, match=r"metrics\.json: cannot be written: Is a directory; move away the folder"):
        write_json(tmp_path / "metrics.json", {})
    for folder in (".", "..", "/"):
        with pytest.raises(PermixError, match=r": cannot be written: Is a directory; move away the folder"):
            write_text(Path(folder), "")


# Damaged files


@pytest.mark.parametrize(
    ("name", "value", "words"),
    [
        ("usage.json", [], "contains list"),
        ("usage.json", {"cpu_seconds": "1"}, "cpu_seconds: Input should be a valid number"),
        ("usage.json", {"cpu_seconds": float("nan")}, "cpu_seconds: Input should be a finite number"),
        ("usage.json", {"peak_mb": None}, "peak_mb: Input should be a valid integer"),
        ("provenance.json", {"format": 2}, "has no identity"),
        (
            "provenance.json",
            {"format": 2, "identity": 3},
            "identity: Input should be an object|identity: Input should be a valid dict",
        ),
        ("provenance.json", {"format": 2, "identity": {}, "packages": []}, "packages: "),
        ("provenance.json", {}, "holds no field, so the run's format is not known; run its command again into a new folder"),
        ("provenance.json", {"permix": "0.1.0"}, "has format 1"),
    ],
)
def test_a_damaged_file_is_refused_before_any_work(name: str, value: Any, words: str, tmp_path: Path) -> None:
    records(tmp_path)
    (tmp_path / name).write_text(json.dumps(value))
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir() if path.name != ".lock"}
    with pytest.raises(DataError, match=rf"{name}: (the run )?({words})"):
        records(tmp_path)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir() if path.name != ".lock"} == before


@pytest.mark.parametrize(
    "content", [b"", b"\0" * 4096, b"[" * 50_000, b'{"a":' * 50_000, b"\xff\xfe\x00", b'{"n": ' + b"9" * 5000 + b"}"]
)
def test_a_json_file_after_a_crash_is_one_clear_error(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_bytes(content)
    with pytest.raises(DataError, match=r"config\.json: not JSON: "):
        _ = RunReader(tmp_path).config


@pytest.mark.parametrize(
    ("name", "field", "value"),
    [
        ("config.json", "seed", -1), ("config.json", "resamples", -1), ("config.json", "resamples", 10**12),
        ("config.json", "seed", "GONE"), ("config.json", "model", []), ("config.json", "strategy", []),
        ("grid.json", "samples", 10**12), ("grid.json", "samples", 0), ("grid.json", "samples", "GONE"),
        ("grid.json", "persona_ids", 3), ("grid.json", "persona_ids", [{}]), ("grid.json", "question_ids", {"a": 1}),
        ("grid.json", "rounds", 3), ("grid.json", "templates", []),
    ],
)  # fmt: skip
def test_a_field_that_cannot_be_is_named_with_its_file(name: str, field: str, value: Any, tmp_path: Path) -> None:
    run = stability_run(tmp_path / "run", whole())
    content = json.loads((run / name).read_text()) | {field: value}
    if value == "GONE":
        del content[field]
    (run / name).write_text(json.dumps(content))
    error = within(lambda: measure_stability(run))
    assert isinstance(error, DataError), error
    assert name in str(error)


# Records after a crash, twice, or elsewhere


@pytest.mark.parametrize("tail", [b"\0" * 4096, b'{"persona_id": nul', b"\0" * 70_000, b'{"torn' + b"\0" * 4096])
@pytest.mark.parametrize("more", [False, True])
def test_what_a_crash_leaves_at_the_end_is_dropped_on_resume(tail: bytes, more: bool, tmp_path: Path) -> None:
    records(tmp_path)
    path = tmp_path / "records.jsonl"
    good = path.read_bytes()
    path.write_bytes(good + tail)
    assert list(read_cells(path).values()) == whole()
    with RunDir.open(tmp_path, CONFIG, IDENTITY) as run:
        assert path.read_bytes() == good, "also if nothing is appended, other readers can read it"
        run.append([answered("more")] if more else [])
    assert path.read_bytes().startswith(good)
    assert len([json.loads(line) for line in path.read_text().splitlines()]) == len(whole()) + more


@pytest.mark.parametrize("name", APPENDED_FILES)
def test_every_growing_file_loses_its_incomplete_line_when_the_run_is_opened(name: str, tmp_path: Path) -> None:
    records(tmp_path)
    (tmp_path / name).write_bytes(b'{"step": 1}\n' * (name != "records.jsonl") + b"\0" * 4096)
    with RunDir.open(tmp_path, CONFIG, IDENTITY):
        pass
    assert (tmp_path / name).read_bytes() == b'{"step": 1}\n' * (name != "records.jsonl")


def test_every_line_twice_changes_no_measure(tmp_path: Path) -> None:
    run = stability_run(tmp_path / "run", whole())
    before, path = measure_stability(run), run / "records.jsonl"
    lines = path.read_bytes().splitlines(keepends=True)
    for doubled in ([one for line in lines for one in (line, line)], lines * 2, lines + lines[::-1]):
        path.write_bytes(b"".join(doubled))
        assert measure_stability(run) == before
    wrong = [line.replace(b'"correct":true', b'"correct":false') for line in lines]
    path.write_bytes(b"".join(wrong + lines))
    assert measure_stability(run) == before, "the last line of a cell counts"


def test_a_run_that_was_moved_is_the_same_run(tmp_path: Path) -> None:
    records(tmp_path / "run")
    (tmp_path / "elsewhere").mkdir()
    shutil.move(tmp_path / "run", tmp_path / "elsewhere" / "renamed")
    moved = tmp_path / "elsewhere" / "renamed"
    with RunDir.open(moved, CONFIG, IDENTITY, whole()) as run:
        assert list(run.cells().values()) == whole()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["elsewhere"]


def test_a_clock_that_goes_back_changes_no_usage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    now = iter(range(10**9, 0, -1000))
    monkeypatch.setattr("time.time", lambda: float(next(now)))
    for _ in range(2):
        with RunDir.open(tmp_path, CONFIG, IDENTITY) as run, run.track_usage():
            pass
    usage = read_json(tmp_path / "usage.json")
    assert 0 <= usage["wall_seconds"] < HANG_S
    assert usage["starts"] == 2


def test_a_line_beyond_all_bounds_is_refused_and_fills_no_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files, "MAX_LINE_BYTES", 1000)
    monkeypatch.setattr(files, "READ_CHUNK_BYTES", 100)
    path = tmp_path / "records.jsonl"
    path.write_bytes(b"{}\n" + b"x" * 5000 + b"\n{}\n")
    with pytest.raises(DataError, match=r"records\.jsonl:2: a line longer than"):
        list(jsonl_lines(path))
    path.write_bytes(b"{}\n" + b"\0" * 5000)  # no line, but what a crash left
    assert [line for _, line in jsonl_lines(path)] == [b"{}\n"]


# No room


@contextmanager
def room(n_bytes: int) -> Iterator[None]:
    """No file may grow above so many bytes, as on a full disk: the system takes a part, then refuses."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (n_bytes, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_records_before_a_full_disk_are_kept_and_the_run_goes_on(tmp_path: Path) -> None:
    path = tmp_path / "records.jsonl"
    with RunDir.open(tmp_path, CONFIG, IDENTITY) as run:
        run.append(whole()[:4])
        kept = path.read_bytes()
        with (
            room(len(kept) + 20),
            pytest.raises(PermixError, match=r"records\.jsonl: cannot be written: File too large; make room"),
        ):
            run.append(whole()[4:])
        assert list(read_cells(path).values()) == whole()[:4]
        run.append(whole()[4:6])  # the same process goes on, as soon as there is room
    assert list(read_cells(path).values()) == whole()[:6]
    records(tmp_path)
    assert list(read_cells(path).values()) == whole()


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EIO])
@pytest.mark.parametrize("blocked", ["os.replace", "pathlib.Path.write_text", "pathlib.Path.mkdir"])
def test_a_file_that_cannot_be_written_is_named_and_the_old_one_stays(
    blocked: str, number: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = tmp_path / "metrics.json"
    write_json(target, {"pss": 0.5})

    def refuse(*_: Any, **__: Any) -> None:
        raise OSError(number, os.strerror(number))

    with monkeypatch.context() as patch:
        patch.setattr(blocked, refuse)
        with pytest.raises(PermixError) as refused:
            write_json(target, {"pss": 0.75})
    assert str(refused.value).startswith(f"{target}: cannot be written: {os.strerror(number)}; ")
    assert read_json(target) == {"pss": 0.5}
    assert [path.name for path in tmp_path.iterdir()] == ["metrics.json"]


def test_a_folder_that_refuses_files_is_named_and_nothing_is_left_open(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(path: Any, flags: int, *_: Any, **__: Any) -> int:
        raise PermissionError(errno.EACCES, "Permission denied", str(path))

    with monkeypatch.context() as patch:
        patch.setattr(os, "open", refuse)
        with pytest.raises(PermixError, match=r"\.lock: cannot be opened: Permission denied"):
            records(tmp_path)
    records(tmp_path)
    assert isinstance(within(lambda: _hold_twice(tmp_path)), ConfigError)


def _hold_twice(run: Path) -> None:
    with RunDir.open(run, CONFIG, IDENTITY):
        records(run)


def test_what_a_terminal_would_obey_is_escaped_in_json_files(tmp_path: Path) -> None:
    value = {"text": "a\u202eb\u200bc\x9b\xad\x7f\U000e0001 é 漢 😀\xa0"}
    write_json(tmp_path / "table.json", value)
    text = (tmp_path / "table.json").read_text()
    assert text.replace("\n", "").isprintable()
    assert "é 漢 😀" in text
    assert read_json(tmp_path / "table.json") == value

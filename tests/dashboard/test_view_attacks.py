"""Some runs of a folder are meant to harm: the page answers at once, shows the good runs and reads nothing from elsewhere."""

import json
import os
import threading
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from permix.dashboard import folder as folders
from permix.dashboard.folder import MeasureProcess, RunFolder
from permix.dashboard.progress import MAX_JSON_BYTES, MAX_STEPS, StepTally
from permix.dashboard.run_monitor import RunMonitor
from permix.storage import files
from permix.storage.files import LONG_LINE, JsonlTail
from tests.dashboard.fake_runs import line, looked, put, stability_run, whole
from tests.sample_runs import answered
from tests.storage.test_odd_files import ODD, put_odd, within

WAIT_S = 120.0
READ = ("config.json", ".lock", "provenance.json", "grid.json", "records.jsonl")
SECRET = "SECRET-OF-ANOTHER"


def outside(path: Path) -> Path:
    """A run that is not below the viewed folder."""
    return stability_run(path / "outside", [answered("q1", SECRET)], label=SECRET)


def huge(path: Path) -> None:
    """205 MB that take no room on the disk."""
    path.touch()
    os.truncate(path, 205_000_000)


def write(content: bytes) -> Callable[[Path], Any]:
    return lambda path: path.write_bytes(content)


DAMAGES: dict[str, Callable[[Path], Any]] = {
    **{kind: partial(put_odd, kind=kind) for kind in ODD},
    "link out": lambda path: path.symlink_to(path.parents[2] / "outside" / path.name),
    "huge": huge,
    "deep": write(b"[" * 50_000 + b"\n"),
    "deep objects": write(b'{"a":' * 50_000 + b"\n"),
    "NULs": write(b"\0" * 4096),
    "binary": write(bytes(range(256)) * 100),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_no_odd_run_holds_up_or_hides_the_others_or_shows_what_is_elsewhere(damage: str, tmp_path: Path) -> None:
    outside(tmp_path)
    root = tmp_path / "runs"
    for name in ("a", "z"):
        stability_run(root / name, whole(), label="good", ended=True)
    for name in (*READ, "usage.json", "metrics.json"):
        run = stability_run(root / f"m-{name}", whole()[:2], label="odd", ended=True)
        (run / name).unlink(missing_ok=True)
        DAMAGES[damage](run / name)
    folder = RunFolder(root)

    def watch() -> None:
        folder.rescan()
        for _ in range(3):
            folder.poll()

    assert within(watch) is None
    runs: dict[str, Any] = {}
    details: list[Any] = []
    spent: list[float] = []

    def show() -> None:
        began = time.thread_time()
        runs.update({run["name"]: run for run in folder.state()["runs"]})
        details.extend(folder.detail(run["id"]) for run in runs.values())
        spent.append(time.thread_time() - began)

    assert within(show) is None
    assert spent[0] < 5
    assert [runs[name]["done"] for name in ("a", "z")] == [9, 9]
    assert [runs[name]["troubles"] for name in ("a", "z")] == [[], []]
    assert SECRET not in json.dumps(details)
    if damage != "link to itself":
        assert runs["m-config.json"]["state"] == "broken"
        assert "config.json: " in runs["m-config.json"]["troubles"][0]


def test_links_inside_the_viewed_folder_are_read(tmp_path: Path) -> None:
    one, other = stability_run(tmp_path / "one", whole()), stability_run(tmp_path / "other", label="linked")
    (other / "records.jsonl").unlink()
    (other / "records.jsonl").symlink_to(one / "records.jsonl")
    folder = RunFolder(tmp_path)
    folder.rescan()
    folder.poll()
    assert [(run["done"], run["troubles"]) for run in folder.state()["runs"]] == [(9, []), (9, [])]


def test_a_judge_of_a_run_whose_records_lead_out_is_not_measured(tmp_path: Path) -> None:
    run = stability_run(tmp_path / "runs" / "run")
    (run / "records.jsonl").unlink()
    (run / "records.jsonl").symlink_to(outside(tmp_path) / "records.jsonl")
    put(run / "judges" / "j", "config.json", {"stage": "judge", "judge": {"name": "m"}})
    watched = RunMonitor(run / "judges" / "j", "run/judges/j", tmp_path / "runs")
    assert looked(watched)["troubles"] == ["records.jsonl: is a link that leads out of the viewed folder, so it is not read"]
    assert not watched.is_measurable


def test_a_request_waits_for_no_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("a", "b", "c"):
        stability_run(tmp_path / name, whole())
    folder = RunFolder(tmp_path)
    folder.rescan()
    folder.poll()
    stuck, free = threading.Event(), threading.Event()

    def wait(*_: Any) -> list[bytes]:
        stuck.set()
        free.wait(WAIT_S)
        return []

    monkeypatch.setattr(JsonlTail, "read_lines", wait)  # a disk of a network that does not answer
    polling = threading.Thread(target=folder.poll, daemon=True)
    polling.start()
    assert stuck.wait(WAIT_S)
    assert within(folder.state, 5) is None
    assert within(lambda: folder.detail(folder.state()["runs"][0]["id"]), 5) is None
    assert len(folder.state()["runs"]) == 3
    free.set()
    polling.join(WAIT_S)


def test_a_large_json_file_is_named_with_its_size(tmp_path: Path) -> None:
    run = stability_run(tmp_path / "run", whole())
    put(run, "grid.json", {"x": "x" * MAX_JSON_BYTES})
    assert looked(RunMonitor(run, "run"))["troubles"] == [
        f"grid.json: has {MAX_JSON_BYTES + 9} bytes; the viewer reads JSON files of up to {MAX_JSON_BYTES} bytes"
    ]


def test_a_line_of_300_mb_is_passed_over_piece_by_piece(tmp_path: Path) -> None:
    run = stability_run(tmp_path / "run")
    path, before, after = run / "records.jsonl", line(whole()[0]), line(whole()[1])
    with path.open("wb") as file:  # its NULs take no room on the disk
        file.write(before + b'{"')
        file.seek(300_000_000, os.SEEK_CUR)
        file.write(b"\n" + after)
    watched, longest, looks = RunMonitor(run, "run"), 0.0, 0
    while looks == 0 or not watched.is_caught_up:
        began = time.thread_time()
        found = looked(watched)
        longest, looks = max(longest, time.thread_time() - began), looks + 1
        assert looks < 200
    assert longest < 1
    assert (found["done"], found["read"]) == (2, None)
    assert found["troubles"][0].startswith("records.jsonl:2: not a record: ValueError('a line longer than 16 MB")


def test_lines_around_a_long_one_are_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files, "MAX_LINE_BYTES", 10)
    file = tmp_path / "lines"
    file.write_bytes(b"one\n" + b"x" * 50 + b"\ntwo\n" + b"y" * 12 + b"\nthree\n" + b"z" * 30)
    for limit in (3, 7, 20, 1000):
        growing, found = JsonlTail(file), []
        for _ in range(100):
            found += growing.read_lines(limit)
        assert found == [b"one", LONG_LINE, b"two", LONG_LINE, b"three"], limit


@pytest.mark.slow
def test_texts_and_steps_that_are_kept_are_bounded(tmp_path: Path) -> None:
    run = stability_run(tmp_path / "run")
    failure = {"type": "T" * 10**6, "message": "M" * 10**6}
    cell: dict[str, Any] = {"persona_id": None, "question_id": "q1", "seed": 1, "messages": [], "failure": failure}
    (run / "records.jsonl").write_text(json.dumps(cell) + "\n")
    watched = RunMonitor(run, "run")
    looked(watched)
    assert len(json.dumps(watched.detail())) < 3000
    kept = watched._tally._failing.values()
    assert sum(len(text) for error in kept for text in error) < 400
    tally = StepTally("log.jsonl")
    tally.add_lines(b'{"step": %d, "reward": 0.5, "more": [%s]}' % (n, b"0," * 50 + b"0") for n in range(MAX_STEPS + 1000))
    assert (len(tally.steps), tally.done, tally.malformed) == (MAX_STEPS, MAX_STEPS + 999, 0)


@pytest.mark.slow
def test_measures_are_made_in_a_process_that_may_end_or_take_too_long(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run, measure = stability_run(tmp_path / "run", whole()), MeasureProcess()
    try:
        monkeypatch.setattr(folders, "MEASURE_S", 0.0)
        assert "takes longer than 0 s" in measure(run, "stability", live=False).error
        monkeypatch.setattr(folders, "MEASURE_S", WAIT_S * 6)
        found = measure(run, "stability", live=False)
        assert (found.error, found.lines[0].estimate.value) == ("", 1.0)
        measure._process.kill()
        measure._process.join()
        assert measure(run, "stability", live=False).error == "not measured: its process ended"
    finally:
        measure.stop()


def test_the_run_measured_longest_ago_comes_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("a", "b"):
        stability_run(tmp_path / name, whole())
    measured: list[str] = []
    monkeypatch.setattr(folders, "measure_live", lambda run, stage, live: measured.append(run.name))
    folder = RunFolder(tmp_path)
    folder.rescan()
    folder.poll()
    for _ in range(4):
        assert folder.measure_next()
        for name in ("a", "b"):
            with (tmp_path / name / "records.jsonl").open("ab") as file:
                file.write(line(whole()[0]))
        folder.poll()
    assert measured == ["a", "b", "a", "b"]

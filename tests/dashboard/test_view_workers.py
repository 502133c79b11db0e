"""The live page of a run that several workers write: their records count together, and each of them is named."""

import os
from pathlib import Path

import pytest

from permix.config import StabilityConfig
from permix.dashboard.live_metrics import newest_completions
from permix.dashboard.run_monitor import RunMonitor, WorkerTails
from permix.dashboard.try_it import read_prompts
from permix.sanitize import redact_command
from permix.storage.files import read_json, write_json
from permix.storage.run_dir import RunDir
from permix.storage.workers import lock_run
from permix.types import Failure, Shard
from tests.dashboard.fake_runs import line, looked, stability_run, whole
from tests.sample_runs import cell


def shared_run(folder: Path) -> Path:
    """Of nine cells the first worker has four, and the second has five."""
    run = stability_run(folder / "run")
    (run / "records.jsonl").unlink()
    write(run, 1, *map(line, whole()[:4]))
    write(run, 2, *map(line, whole()[4:]))
    return run


def write(run: Path, number: int, *lines: bytes) -> None:
    with (run / f"records-{number}of2.jsonl").open("ab") as file:
        file.write(b"".join(lines))


def test_the_records_of_all_workers_count(tmp_path: Path) -> None:
    run = shared_run(tmp_path)
    watched = RunMonitor(run, "run", tmp_path)
    found = looked(watched)
    assert (found["done"], found["asked"], found["pending"], found["troubles"]) == (9, 9, 0, [])


def test_a_worker_that_starts_later_and_a_growing_file_are_followed(tmp_path: Path) -> None:
    run = stability_run(tmp_path / "run", whole()[:1])
    watched = RunMonitor(run, "run", tmp_path)
    assert looked(watched)["done"] == 1
    write(run, 2, line(whole()[1]), line(whole()[2])[:-9])
    assert looked(watched)["done"] == 2  # half a line is no record
    write(run, 2, line(whole()[2])[-9:], line(whole()[0]))
    assert looked(watched)["done"] == 3  # one of them is in both files
    (run / "records-2of2.jsonl").unlink()
    assert looked(watched)["done"] == 1


def test_the_shown_command_is_that_of_the_worker_that_started_last(tmp_path: Path) -> None:
    run = shared_run(tmp_path)
    born = read_json(run / "provenance.json") | {"identity": {}, "created": "2026-11-30T10:00:00+00:00"}
    write_json(run / "provenance.json", born)
    watched = RunMonitor(run, "run", tmp_path)
    assert looked(watched)["done"] == 9
    assert watched._command_text() == watched._command == redact_command(born["command"])
    later = {"command": ["permix", "stability", "--shard", "2/2"], "created": "2026-11-30T11:00:00+00:00"}
    write_json(run / "provenance-2of2.json", born | later)
    looked(watched)
    assert watched._command == "permix stability --shard 2/2"
    (run / "provenance-2of2.json").write_text("{")
    assert looked(watched)["troubles"][0].startswith(f"{run / 'provenance-2of2.json'}: ")


def test_a_cell_is_done_if_one_worker_has_its_score(tmp_path: Path) -> None:
    failed = cell("q1", failure=Failure(type="TimeoutError", message="too slow"))
    for name, files in {"first": (whole()[0], failed), "last": (failed, whole()[0])}.items():
        run = stability_run(tmp_path / name)
        for number, one in enumerate(files, start=1):
            write(run, number, line(one))
        watched = RunMonitor(run, name, tmp_path)
        assert (looked(watched)["done"], looked(watched)["failures"]) == (1, 0)
        write(run, 1, line(whole()[0]), line(failed))  # in one file the last record counts
        assert looked(watched)["failures"] == (1 if name == "first" else 0)


def test_a_damaged_line_is_named_with_its_file(tmp_path: Path) -> None:
    run = shared_run(tmp_path)
    write(run, 2, b"{half\n")
    found = looked(RunMonitor(run, "run", tmp_path))
    assert found["done"] == 9
    assert found["troubles"][0].startswith("records-2of2.jsonl:6: not a record:")


def test_a_file_of_a_worker_that_leads_out_of_the_folder_is_not_read(tmp_path: Path) -> None:
    run = shared_run(tmp_path / "viewed")
    (run / "records-2of2.jsonl").rename(tmp_path / "elsewhere")
    (run / "records-2of2.jsonl").symlink_to(tmp_path / "elsewhere")
    found = looked(RunMonitor(run, "run", tmp_path / "viewed"))
    assert (found["state"], found["done"]) == ("broken", 0)
    assert found["troubles"] == ["records-2of2.jsonl: is a link that leads out of the viewed folder, so it is not read"]


@pytest.mark.skipif(not Path("/proc/locks").exists(), reason="the system has no table of locks")
def test_each_worker_at_work_is_named_once(tmp_path: Path) -> None:
    run = shared_run(tmp_path)
    watched = RunMonitor(run, "run", tmp_path)
    assert looked(watched)["state"] == "stopped"
    with lock_run(run, Shard(1, 2), lambda is_alone: None), lock_run(run, Shard(2, 2), lambda is_alone: None):
        found = looked(watched)
        assert (found["state"], found["said"]) == ("going", f"going on (process {os.getpid()})")
    assert looked(watched)["state"] == "stopped"


def test_the_newest_answers_are_those_of_the_file_that_changed_last(tmp_path: Path) -> None:
    run = shared_run(tmp_path)
    os.utime(run / "records-2of2.jsonl", (1000, 1000))
    newest = newest_completions(run, "stability")
    assert len(newest) == 9
    assert [one["persona"] for one in newest[:4]] == ["clerk", "no persona", "no persona", "no persona"]
    assert [one["persona"] for one in newest[4:]] == ["troll"] * 3 + ["clerk"] * 2


def test_the_prompts_of_all_workers_can_be_asked_again(tmp_path: Path) -> None:
    run = tmp_path / "run"
    for number, persona in ((1, "clerk"), (2, "troll")):
        system = {"role": "system", "content": f"You are a {persona}."}
        asked = cell("q1", persona, messages=(system, {"role": "user", "content": "What is 5 + 7?"}))
        with RunDir.open(run, StabilityConfig(out=run), {"model": "m"}, shard=Shard(number, 2), grid={"samples": 1}) as opened:
            opened.append([asked])
    watched = RunMonitor(run, "run", tmp_path)
    looked(watched)
    assert read_prompts(watched).personas == {"clerk": "You are a clerk.", "troll": "You are a troll."}


def test_several_growing_files_are_read_like_one(tmp_path: Path) -> None:
    tails = WorkerTails(tmp_path / "log.jsonl")
    assert (tails.read_lines(), tails.is_behind, tails.size, tails.modified) == ([], False, 0, None)
    (tmp_path / "log.jsonl").write_bytes(b"1\n")
    (tmp_path / "log-1of2.jsonl").write_bytes(b"22\n3")
    assert tails.read_lines() == [("log.jsonl", [b"1"]), ("log-1of2.jsonl", [b"22"])]
    assert tails.read_lines() == []
    assert (tails.size, tails.offset, tails.is_behind, tails.restarts) == (6, 5, False, 0)
    (tmp_path / "log-1of2.jsonl").write_bytes(b"4\n")
    assert tails.read_lines() == [("log-1of2.jsonl", [b"4"])]
    assert tails.restarts == 1

"""bench.shards: small enough to run here, and it fails if the workers' records are not those of one."""

import json
import sys

import pytest

from bench import shards


def test_it_measures_one_worker_and_three(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(sys, "argv", ["shards", "--personas", "2", "--questions", "5", "--workers", "3"])
    shards.main()
    figures = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [(one["figure"], one.get("workers")) for one in figures] == [
        *((name, workers) for workers in (1, 3) for name in ("wall_s", "cpu_s", "peak_mb")), ("read_cpu_s", None),
        *(("cpu_s", None), ("peak_mb", None)) * 2,
    ]  # fmt: skip
    assert {one["cells"] for one in figures} == {15}
    assert figures[6]["files"] == 3
    assert [one["batch_files"] for one in figures[7:]] == ["write", "write", "read", "read"]


def test_batch_files_whose_answers_are_others_are_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["shards", "--personas", "2", "--questions", "5"])
    monkeypatch.setattr(shards, "answer_line", lambda request: wrong_line(request["custom_id"]))
    with pytest.raises(SystemExit, match=r"of batch files: answers, metrics as of one worker: \(False, False\)"):
        shards.main()


def wrong_line(custom_id: str) -> str:
    reply = {"choices": [{"message": {"content": "It is 0."}, "finish_reason": "stop"}]}
    return json.dumps({"custom_id": custom_id, "response": {"status_code": 200, "body": reply}, "error": None}) + "\n"


def test_workers_that_leave_cells_out_are_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["shards", "--personas", "2", "--questions", "5", "--workers", "2"])
    original = shards.record_hashes
    monkeypatch.setattr(shards, "record_hashes", lambda run: original(run) if "one" in run.parts else set())
    with pytest.raises(SystemExit, match=r"of 2 workers: records, metrics as of one: \(False, True\); 15 cells"):
        shards.main()

"""A judge that is asked through batch files: equal to one over HTTP, its second attempts, its cost limit."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

import permix
from permix import cli
from permix.inference.batch_files import BatchManifest
from permix.judges.judging import judge_fidelity_run
from permix.judges.runner import judge_folders, read_judge_calls
from permix.judges.summary import JudgeSummary
from permix.judges.types import Judgement
from permix.storage.files import read_json
from tests.batch_runner import completed, requests_in, run_batch
from tests.judges.judgeable import answered_run, judge_stage, parts, quoted_answer, verdict
from tests.servers import openai_server

pytestmark = pytest.mark.slow


@pytest.fixture(autouse=True)
def _environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)


def by_length(body: Mapping[str, Any], nth: int = 0, headers: Mapping[str, str] | None = None) -> str:
    return verdict(1 + len(quoted_answer(body["messages"][-1]["content"])) % 5)


def judge(run: Path, *flags: object) -> int:
    options = ["--judge.name", "test", "--judge.answers-per-control", "20", "--resamples", "100"]
    return cli.run_cli(["judge", str(run), *options, *map(str, flags)])


def calls(run: Path) -> list[Judgement]:
    [folder] = judge_folders(run)
    return sorted(read_judge_calls(folder), key=lambda call: (str(call.key), call.attempt))


def test_a_judge_through_batch_files_is_the_judge_over_http(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "http").mkdir()
    other = answered_run(tmp_path / "http")
    with openai_server(by_length) as server:
        judge_fidelity_run(judge_stage(other, server.base_url))
    run = answered_run(tmp_path)
    assert judge(run, "--batch-out", tmp_path / "b") == 0
    bodies = {json.dumps(one["body"], sort_keys=True) for one in requests_in(tmp_path / "b")}
    assert bodies == {json.dumps(one.body, sort_keys=True) for one in server.asked}
    assert len(requests_in(tmp_path / "b")) == len(parts(run))  # controls and repeated forms are in the same batch
    run_batch(tmp_path / "b", lambda body: completed(by_length(body)), files=2)
    assert judge(run, "--batch-in", tmp_path / "b") == 0
    assert calls(run) == calls(other)
    assert read_json(judge_folders(run)[0] / "metrics.json") == read_json(judge_folders(other)[0] / "metrics.json")


def test_a_reply_without_a_score_is_asked_again_in_the_next_batch(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = answered_run(tmp_path)
    assert judge(run, "--batch-out", tmp_path / "1") == 0
    unclear = {one["custom_id"] for one in requests_in(tmp_path / "1")[:3]}
    seeds = {one["body"]["seed"] for one in requests_in(tmp_path / "1") if one["custom_id"] in unclear}

    def some(body: dict[str, Any]) -> dict[str, Any]:
        return completed("I cannot say." if body["seed"] in seeds else by_length(body))

    run_batch(tmp_path / "1", some)
    capsys.readouterr()
    assert judge(run, "--batch-in", tmp_path / "1") == 3
    n = len(parts(run))
    assert f"3 of {n} have no score" in capsys.readouterr().err
    assert judge(run, "--batch-in", tmp_path / "1", "--batch-out", tmp_path / "2") == 0
    assert f"0 recorded, 0 failed, {n} recorded before, 0 unknown" in capsys.readouterr().err
    again = requests_in(tmp_path / "2")
    assert len(again) == 3
    assert not seeds & {one["body"]["seed"] for one in again}  # another attempt has another seed
    run_batch(tmp_path / "2", lambda body: completed(by_length(body)))
    assert judge(run, "--batch-in", tmp_path / "2") == 0
    assert sum(call.attempt == 1 for call in calls(run)) == 3
    assert len(calls(run)) == n + 3


def test_a_cost_limit_bounds_a_batch_and_not_what_is_read(tmp_path: Path) -> None:
    run = answered_run(tmp_path)
    prices = tmp_path / "prices.toml"
    prices.write_text('["test"]\ninput = 1\noutput = 1\n')
    limit = ("--judge.prices", prices, "--judge.retries", 0, "--judge.max-cost")
    assert judge(run, *limit, 0.02, "--batch-out", tmp_path / "1") == 0
    written = requests_in(tmp_path / "1")
    most = sum((sum(len(message["content"].encode()) for message in one["body"]["messages"]) + 64 + 256) / 1e6 for one in written)
    assert 0 < len(written) < len(parts(run))
    assert most <= 0.02  # each at its greatest cost
    run_batch(tmp_path / "1", lambda body: completed(by_length(body)))
    assert judge(run, *limit, 0.0001, "--batch-in", tmp_path / "1") == 3  # these replies are paid for
    assert sum(call.score is not None for call in calls(run)) == len(written)


def test_a_judge_from_python(tmp_path: Path) -> None:
    run = answered_run(tmp_path)

    def call(**batch: Any) -> object:
        return permix.judge(run, "served", resamples=100, answers_per_control=20, **batch)

    manifest = call(batch_out=tmp_path / "b", batch_files=2)
    assert isinstance(manifest, BatchManifest)
    assert (manifest.requests, len(manifest.files), manifest.stage) == (len(parts(run)), 2, "judge")
    run_batch(tmp_path / "b", lambda body: completed(by_length(body)))
    assert isinstance(call(batch_in=tmp_path / "b"), JudgeSummary)

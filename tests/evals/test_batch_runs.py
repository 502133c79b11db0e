"""Runs that are answered through batch files: equal to runs over HTTP, in rounds, partly, killed, and moved to an endpoint."""

import itertools
import json
import multiprocessing
import re
import signal
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

import permix
from permix import cli
from permix.config import ModelConfig, StabilityConfig, build_config
from permix.errors import ConfigError
from permix.evals.grid import run_cells
from permix.evals.stability import run_stability
from permix.inference.batch_model import BatchFlags, open_batch_model
from permix.pipelines.fidelity import run_fidelity
from permix.storage.files import read_json
from permix.storage.run_dir import RunDir
from permix.types import Cell, Message, Sampling
from tests.batch_runner import completed, expired, refused_by_openai, requests_in, run_batch
from tests.cell_files import read_cells
from tests.killable import Moment, arm, command
from tests.sample_runs import (
    asked_as,
    asked_what,
    endpoint,
    fidelity_config,
    fidelity_values,
    persona,
    solve,
    stability_values,
    toml,
)
from tests.servers import Reply, error, listing, openai_server


@pytest.fixture(autouse=True)
def _environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)


def reply(body: Mapping[str, Any], nth: int = 0, headers: Mapping[str, str] | None = None) -> Reply:
    """The troll is one off; the sailor thinks first, and is cut off."""
    who, answer = asked_as(body), solve(asked_what(body))
    if who == "sailor":
        return Reply(f"<think>so {answer}</think> It is {answer}.", finish="length", usage=None)
    return Reply(f"It is {answer + (who == 'troll')}.")


def answer(body: dict[str, Any]) -> dict[str, Any]:
    return completed(reply(body))


def file_of(folder: Path, model: Mapping[str, Any] | None = None, **fields: Any) -> str:
    """A configuration of 24 cells whose model has a name and no address."""
    values = stability_values(folder, "", **fields) | {"model": model or {"name": "test"}}
    path = folder / "batch.toml"
    path.write_text(toml(values))
    return str(path)


def records(run: Path) -> list[Cell]:
    cells = read_cells(run / "records.jsonl")
    return [cells[key] for key in cells]


def lines(run: Path) -> int:
    return (run / "records.jsonl").read_bytes().count(b"\n")


def permix_command(*argv: object) -> int:
    return cli.run_cli([str(word) for word in argv])


# Equal to HTTP


def test_a_run_through_batch_files_is_the_run_over_http(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with openai_server(reply) as server:
        (tmp_path / "http").mkdir()
        config = build_config(StabilityConfig, stability_values(tmp_path / "http", server.base_url), source="test")
        run_stability(config)
    sent = [one.body for one in server.asked]

    file, run, batch = file_of(tmp_path), tmp_path / "run", tmp_path / "batch"
    assert permix_command("stability", file, "--batch-out", batch, "--batch-files", 3) == 0
    assert [one["body"] for one in requests_in(batch)] == sent
    assert "24 in 3 files" in capsys.readouterr().out
    assert not (run / "metrics.json").exists()  # nothing was measured
    run_batch(batch, answer, files=5)
    assert permix_command("stability", file, "--batch-in", batch) == 0
    assert "read 24 results in 5 files: 24 recorded, 0 failed, 0 recorded before, 0 unknown" in capsys.readouterr().err
    assert records(run) == records(config.out)
    assert read_json(run / "metrics.json") == read_json(config.out / "metrics.json")
    assert (run / "report" / "index.html").exists()


def test_the_flags_are_no_part_of_the_run(tmp_path: Path) -> None:
    file, batch = file_of(tmp_path), tmp_path / "batch"
    assert permix_command("stability", file, f"--batch-out={batch}") == 0
    config = read_json(tmp_path / "run" / "config.json")
    assert config["model"]["backend"] == "batch"
    assert "batch" not in json.dumps({**config, "model": None, "out": None, "personas": None})
    assert read_json(batch / "batch.json")["read_back"] == f"permix stability {file} --batch-in {batch}"
    # The recorded configuration can be given too.
    run_batch(batch, answer)
    assert permix_command("stability", tmp_path / "run" / "config.json", "--batch-in", batch) == 0


def test_reading_back_what_the_manifest_says(tmp_path: Path) -> None:
    file, batch = file_of(tmp_path), tmp_path / "batch"
    assert permix_command("stability", file, "--batch-out", batch, "--batch-files", 2, "--samples", 2) == 0
    run_batch(batch, answer)
    _, *argv = read_json(batch / "batch.json")["read_back"].split()
    assert permix_command(*argv) == 0
    assert lines(tmp_path / "run") == 48


# Partly, with errors


@pytest.mark.slow
def test_what_is_missing_or_failed_is_pending_and_written_again(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file, run = file_of(tmp_path), tmp_path / "run"
    assert permix_command("stability", file, "--batch-out", tmp_path / "a") == 0

    def some(body: dict[str, Any]) -> dict[str, Any]:
        if asked_as(body) == "clerk":
            return refused_by_openai(400, "This model's maximum context length is 16 tokens")
        return expired() if asked_as(body) == "troll" else answer(body)

    first, second = run_batch(tmp_path / "a", some, files=2)
    second.rename(tmp_path / "later")
    capsys.readouterr()
    assert permix_command("stability", file, "--batch-in", tmp_path / "a") == 3
    said = capsys.readouterr().err
    n_answered = sum(cell.completion is not None for cell in records(run))
    failed = [cell for cell in records(run) if cell.failure is not None]
    assert f"read 12 results in 1 file: {n_answered} recorded, {len(failed)} failed, 0 recorded before, 0 unknown" in said
    assert f"{24 - n_answered} of 24 cells, with or without a persona, have no score" in said
    assert "give --batch-out with a new folder to write the next batch, or --batch-in with further results" in said
    assert {cell.failure.type for cell in failed if cell.failure} == {"BadRequestError", "BatchError"}
    assert "what helps: shorter prompts, or a smaller sampling.max_new_tokens" in said

    assert permix_command("stability", file, "--batch-out", tmp_path / "b") == 0
    again = requests_in(tmp_path / "b")
    assert len(again) == 24 - n_answered
    assert {one["custom_id"] for one in again} < {one["custom_id"] for one in requests_in(tmp_path / "a")}
    run_batch(tmp_path / "b", answer)
    capsys.readouterr()
    assert permix_command("stability", file, "--batch-in", tmp_path / "b") == 0
    assert all(cell.completion is not None for cell in records(run))

    (tmp_path / "later").rename(second)  # it comes late: all of its cells are recorded
    capsys.readouterr()
    assert permix_command("stability", file, "--batch-in", tmp_path / "a") == 0
    assert "read 24 results in 2 files: 0 recorded, 0 failed, 24 recorded before, 0 unknown" in capsys.readouterr().err
    assert first.exists()


def test_reading_and_writing_in_one_start(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = file_of(tmp_path)
    assert permix_command("stability", file, "--batch-out", tmp_path / "a") == 0
    run_batch(tmp_path / "a", lambda body: expired() if asked_as(body) == "troll" else answer(body))
    assert permix_command("stability", file, "--batch-in", tmp_path / "a", "--batch-out", tmp_path / "b") == 0
    assert {asked_as(one["body"]) for one in requests_in(tmp_path / "b")} == {"troll"}
    run_batch(tmp_path / "b", answer)
    capsys.readouterr()
    assert permix_command("stability", file, "--batch-in", tmp_path / "b", "--batch-out", tmp_path / "c") == 0
    assert "nothing was written, since nothing is pending" in capsys.readouterr().err
    assert not (tmp_path / "c").exists()


def test_a_host_that_refuses_the_seed_answers_every_sample_in_the_second_batch(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file, run = file_of(tmp_path, samples=3, sampling={"temperature": 1.0, "max_new_tokens": 16}), tmp_path / "run"
    assert permix_command("stability", file, "--batch-out", tmp_path / "a") == 0
    run_batch(tmp_path / "a", lambda body: refused_by_openai(422, "Extra inputs are not permitted", param="seed"))
    capsys.readouterr()
    assert permix_command("stability", file, "--batch-in", tmp_path / "a") == 3
    said = capsys.readouterr().err
    assert "note: seed is left out in the next batch, since it was refused: Extra inputs are not permitted" in said
    assert "have no score; give --batch-out with a new folder to write the next batch" in said
    assert "does not help" not in said
    assert permix_command("stability", file, "--batch-in", tmp_path / "a", "--batch-out", tmp_path / "b") == 0
    requests = requests_in(tmp_path / "b")
    assert len({one["custom_id"] for one in requests}) == 72
    assert not any("seed" in one["body"] for one in requests)
    numbers = itertools.count()
    run_batch(tmp_path / "b", lambda body: completed(f"It is {next(numbers)}."))
    assert permix_command("stability", file, "--batch-in", tmp_path / "b") == 0
    texts = [cell.completion.text for cell in records(run) if cell.completion is not None]
    assert len(texts) == len(set(texts)) == 72


def test_one_start_reads_a_refusal_and_writes_a_batch_that_is_read_back(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file, words = file_of(tmp_path), "Unsupported parameter: 'max_tokens' is not supported with this model."
    assert permix_command("stability", file, "--batch-out", tmp_path / "a") == 0
    run_batch(tmp_path / "a", lambda body: refused_by_openai(400, words, param="max_tokens"))
    assert permix_command("stability", file, "--batch-in", tmp_path / "a", "--batch-out", tmp_path / "b") == 0
    assert all("max_tokens" not in one["body"] for one in requests_in(tmp_path / "b"))
    run_batch(tmp_path / "b", answer)
    capsys.readouterr()
    assert permix_command("stability", file, "--batch-in", tmp_path / "b") == 0
    assert "24 recorded, 0 failed, 0 recorded before, 0 unknown" in capsys.readouterr().err


def test_what_is_refused_for_good_is_not_written_again_in_vain(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = file_of(tmp_path)
    assert permix_command("stability", file, "--batch-out", tmp_path / "a") == 0
    run_batch(tmp_path / "a", lambda body: refused_by_openai(400, "This model's maximum context length is 16 tokens"))
    capsys.readouterr()
    assert permix_command("stability", file, "--batch-in", tmp_path / "a") == 3
    assert "have no score; writing the same requests again with --batch-out does not help, since" in capsys.readouterr().err


def test_nothing_is_written_for_what_is_recorded(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = file_of(tmp_path)
    assert permix_command("stability", file, "--batch-out", tmp_path / "a") == 0
    run_batch(tmp_path / "a", answer)
    assert permix_command("stability", file, "--batch-in", tmp_path / "a") == 0
    assert permix_command("stability", file, "--batch-out", tmp_path / "b") == 0
    assert not (tmp_path / "b").exists()
    assert permix_command("stability", file, "--batch-out", tmp_path / "b", "--samples", 2) == 0
    assert len(requests_in(tmp_path / "b")) == 24  # the second samples alone


def test_changed_prompts_are_written_and_old_results_are_not_taken(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = file_of(tmp_path)
    assert permix_command("stability", file, "--batch-out", tmp_path / "a") == 0
    run_batch(tmp_path / "a", answer)
    other = ("--out", tmp_path / "other", "--sampling.temperature", "0.5")
    assert permix_command("stability", file, *other, "--batch-in", tmp_path / "a") == 3
    said = capsys.readouterr().err
    assert "0 recorded, 0 failed, 0 recorded before, 24 unknown" in said
    assert "24 results answer no request of this run as it is now" in said
    assert "24 of 24 cells, with or without a persona, have no score" in said


# Killed


@pytest.mark.slow
@pytest.mark.parametrize("call", [1, 11, 23])
def test_a_reading_that_was_killed_goes_on(call: int, tmp_path: Path) -> None:
    file, run, batch = file_of(tmp_path), tmp_path / "run", tmp_path / "batch"
    assert permix_command("stability", file, "--batch-out", batch) == 0
    run_batch(batch, answer, files=2)
    dies = Moment("permix.storage.run_dir:RunDir.append", call=call)
    assert command("stability", file, "--batch-in", str(batch), dies=dies) == -9
    assert lines(run) == call
    assert permix_command("stability", file, "--batch-in", batch) == 0
    assert lines(run) == 24  # no cell twice
    assert permix_command("stability", file, "--out", tmp_path / "whole", "--batch-in", batch) == 0
    assert records(run) == records(tmp_path / "whole")


@pytest.mark.parametrize(
    "dies",
    [
        Moment("permix.inference.batch_files:RequestFiles.add", call=10),
        Moment("permix.inference.batch_files:_create", call=3),  # the second of the files
        Moment("permix.inference.batch_files:os.unlink"),
        Moment("permix.inference.batch_files:write_json"),
    ],
)
def test_a_writing_that_was_killed_is_done_again(dies: Moment, tmp_path: Path) -> None:
    file, batch = file_of(tmp_path), tmp_path / "batch"
    argv = ("stability", file, "--batch-out", str(batch), "--batch-files", "3")
    assert (
        permix_command(*argv[:2], "--out", tmp_path / "undisturbed", "--batch-out", tmp_path / "expected", "--batch-files", 3)
        == 0
    )
    if "unlink" in dies.function:  # while the files of an earlier start are replaced
        assert permix_command(*argv[:4], "--batch-files", "5") == 0
    assert command(*argv, dies=dies) == -9
    assert permix_command(*argv) == 0
    expected = {path.name: path.read_bytes() for path in (tmp_path / "expected").glob("requests-*")}
    assert {path.name: path.read_bytes() for path in batch.iterdir() if path.name != "batch.json"} == expected
    assert len(expected) == 3


# Rounds


def in_words(body: Mapping[str, Any], nth: int = 0, headers: Mapping[str, str] | None = None) -> str:
    asked = sum(message["role"] == "user" for message in body["messages"])
    return f"{asked_as(body)} answers {asked} about {asked_what(body)}"


def test_each_turn_of_an_interview_is_a_batch(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    interview = {"turns": 3}
    with openai_server(in_words) as server:
        (tmp_path / "http").mkdir()
        config = fidelity_config(tmp_path / "http", server.base_url, interview=interview)
        run_fidelity(config)
    (tmp_path / "batch.toml").write_text(toml(fidelity_values(tmp_path, "", interview=interview) | {"model": {"name": "test"}}))
    argv: list[object] = ["fidelity", tmp_path / "batch.toml"]
    assert permix_command(*argv, "--batch-out", tmp_path / "1") == 0
    for turn in (1, 2, 3):
        requests = requests_in(tmp_path / str(turn))
        assert [len(one["body"]["messages"]) for one in requests] == [2 * turn] * 3
        run_batch(tmp_path / str(turn), lambda body: completed(in_words(body)))
        capsys.readouterr()
        if turn < 3:
            assert permix_command(*argv, "--batch-in", tmp_path / str(turn)) == 3
            said = capsys.readouterr().err
            assert f"{9 - 3 * turn} of 9 turns are missing; 3 of 3 interviews wait for their next turn" in said
            assert "give --batch-out with a new folder to write the next batch" in said
        # The next batch is written in the start that reads, or in one of its own.
        assert permix_command(*argv, "--batch-in", tmp_path / str(turn), "--batch-out", tmp_path / str(turn + 1)) == 0
    assert not (tmp_path / "4").exists()
    assert sorted(records(tmp_path / "run"), key=str) == sorted(records(config.out), key=str)
    assert read_json(tmp_path / "run" / "metrics.json") == read_json(config.out / "metrics.json")


def test_a_persona_search_has_two_batches(tmp_path: Path) -> None:
    fields: dict[str, Any] = {"strategy": "persona-search", "strategy_questions": 4}
    with openai_server(reply) as server:
        (tmp_path / "http").mkdir()
        config = build_config(StabilityConfig, stability_values(tmp_path / "http", server.base_url, **fields), source="test")
        run_stability(config)
    file = file_of(tmp_path, **fields)
    assert permix_command("stability", file, "--batch-out", tmp_path / "1") == 0
    run_batch(tmp_path / "1", answer)
    assert permix_command("stability", file, "--batch-in", tmp_path / "1", "--batch-out", tmp_path / "2") == 0
    assert len(requests_in(tmp_path / "1")) + len(requests_in(tmp_path / "2")) == len(records(config.out))
    run_batch(tmp_path / "2", answer)
    assert permix_command("stability", file, "--batch-in", tmp_path / "2") == 0
    assert records(tmp_path / "run") == records(config.out)
    assert read_json(tmp_path / "run" / "metrics.json") == read_json(config.out / "metrics.json")


# To an endpoint and back


@pytest.mark.slow
def test_a_run_goes_on_at_an_endpoint_and_back_once_the_weights_are_confirmed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file, run = file_of(tmp_path), tmp_path / "run"
    assert permix_command("stability", file, "--batch-out", tmp_path / "a") == 0
    run_batch(tmp_path / "a", lambda body: answer(body) if asked_as(body) == "clerk" else expired())
    assert permix_command("stability", file, "--batch-in", tmp_path / "a") == 3
    capsys.readouterr()
    with openai_server(lambda body, *_: reply(body) if asked_as(body) == "sailor" else error(400)) as server:
        there = ("stability", file, "--model.base-url", server.base_url, "--model.retries", 0)
        assert permix_command(*there) == 2
        said = capsys.readouterr().err
        assert "this run was answered by 'test' at batch files, and would go on at 127.0.0.1" in said
        assert "confirm it once with --model.same-weights" in said
        assert permix_command(*there, "--model.same-weights") == 3
    assert {asked_as(one.body) for one in server.asked} == {None, "sailor", "troll"}  # the clerk is recorded
    # Back to files: they are known, so nothing is to be confirmed again.
    assert permix_command("stability", file, "--batch-out", tmp_path / "b") == 0
    assert {asked_as(one["body"]) for one in requests_in(tmp_path / "b")} == {None, "troll"}
    run_batch(tmp_path / "b", answer)
    assert permix_command("stability", file, "--batch-in", tmp_path / "b") == 0
    assert [one["address"] for one in read_json(run / "addresses.json")["model"]["addresses"]] == [
        "batch files", server.base_url.removeprefix("http://"),
    ]  # fmt: skip
    assert read_json(run / "metrics.json")["baseline"]["value"] == 1.0


@pytest.mark.slow
def test_a_run_of_an_endpoint_is_finished_by_batch_files(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with openai_server(lambda body, *_: reply(body) if asked_as(body) else error(400), listing("test", root="a/b")) as server:
        file = file_of(tmp_path, endpoint(server.base_url))
        assert permix_command("stability", file) == 3
    file = file_of(tmp_path)
    capsys.readouterr()
    assert permix_command("stability", file, "--batch-out", tmp_path / "b") == 2
    assert "would go on at batch files, where the server says nothing of its weights" in capsys.readouterr().err
    assert not (tmp_path / "b").exists()
    assert permix_command("stability", file, "--batch-out", tmp_path / "b", "--model.same-weights") == 0
    assert {asked_as(one["body"]) for one in requests_in(tmp_path / "b")} == {None}
    run_batch(tmp_path / "b", answer)
    assert permix_command("stability", file, "--batch-in", tmp_path / "b") == 0
    assert len(read_cells(tmp_path / "run" / "records.jsonl")) == 24


def test_another_name_is_another_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert permix_command("stability", file_of(tmp_path), "--batch-out", tmp_path / "a") == 0
    assert permix_command("stability", file_of(tmp_path), "--batch-out", tmp_path / "b", "--model.name", "other") == 2
    assert "model.name = 'test', not 'other'" in capsys.readouterr().err


# Options


def test_without_an_address_a_name_is_enough_and_models_of_this_machine_are_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for model, words in (
        ({"name": "bundled"}, 'model.name = "bundled": batch files are answered elsewhere'),
        ({"name": "x", "backend": "transformers"}, 'model.backend = "transformers": batch files are answered elsewhere'),
        ({"name": "x", "thinking_budget": 3}, 'backend "batch" cannot bound the thinking'),
    ):
        assert permix_command("stability", file_of(tmp_path, model), "--batch-out", tmp_path / "b") == 2
        assert words in capsys.readouterr().err
    assert permix_command("stability", file_of(tmp_path, cache=str(tmp_path / "c")), "--batch-out", tmp_path / "b") == 2
    assert "cache = " in capsys.readouterr().err
    assert permix_command("stability", file_of(tmp_path, {"name": "x", "backend": "batch"})) == 2
    assert "was asked by batch files; give --batch-out or --batch-in" in capsys.readouterr().err
    assert not (tmp_path / "b").exists()


def test_a_configuration_with_an_address_is_not_asked_there(tmp_path: Path) -> None:
    with openai_server(reply) as server:
        file = file_of(tmp_path, endpoint(server.base_url))
        assert permix_command("stability", file, "--batch-out", tmp_path / "b") == 0
    assert (server.listed, server.asked) == (0, [])
    assert len(requests_in(tmp_path / "b")) == 24


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--batch-out"], "--batch-out: its value is missing"),
        (["--batch-out", "--samples", "2"], "--batch-out: its value is missing"),
        (["--batch-in", "nowhere"], "--batch-in nowhere: no such folder"),
        (["--batch-files", "2"], "--batch-files 2: is the number of files of --batch-out, which is missing"),
        (["--batch-out", "b", "--batch-files", "two"], "--batch-files two: must be a whole number"),
        (["--batch-out", "b", "--shards", "2"], "--shards: the number of batch files is --batch-files now; --shard 2/4 asks one"),
        (["--batch-out", "b", "--shards=2"], "--shards: the number of batch files is --batch-files now"),
        (["--batch-out", "b", "--batch-files", "0"], "--batch-files 0: must be 1 to 9999"),
        (["--batch-out", "b", "--batch-out", "c"], "--batch-out: is given twice"),
    ],
)
def test_bad_flags_are_refused_in_one_line(
    flags: list[str], words: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert permix_command("stability", file_of(tmp_path), *flags) == 2
    assert capsys.readouterr().err.strip().splitlines()[-1].startswith(f"permix stability: {words}")
    assert not (tmp_path / "run").exists()


def test_other_commands_do_not_know_the_flags(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert permix_command("plan", "--batch-out", tmp_path) == 2
    assert "unknown option --batch-out" in capsys.readouterr().err


def test_a_dry_run_writes_nothing_and_counts_the_requests(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert permix_command("stability", file_of(tmp_path), "--batch-out", tmp_path / "b", "--dry-run") == 0
    assert re.search(r"^  requests +24", capsys.readouterr().out, re.MULTILINE)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["batch.toml", "pool.toml"]


def test_counts_are_data_with_json(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file, batch = file_of(tmp_path), tmp_path / "b"
    assert permix_command("stability", file, "--batch-out", batch, "--json") == 0
    written = json.loads(capsys.readouterr().out)
    assert (written["pending"], written["batch_out"]["requests"], written["error"]) == (24, 24, None)
    assert written["batch_out"]["files"] == [str(batch / "requests-0000.jsonl")]
    run_batch(batch, answer)
    assert permix_command("stability", file, "--batch-in", batch, "--json") == 0
    read = json.loads(capsys.readouterr().out)
    assert read["pending"] == 0
    assert read["batch_in"] == {
        "read": 24, "recorded": 24, "failed": 0, "unknown": 0, "recorded_before": 0, "differing": 0, "damaged": 0,
    }  # fmt: skip


def test_cost_is_said_where_prices_are_known(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "prices.toml").write_text('["te*"]\ninput = 1000\noutput = 2000\n')
    file = file_of(tmp_path, {"name": "test", "prices": str(tmp_path / "prices.toml")})
    assert permix_command("stability", file, "--batch-out", tmp_path / "b") == 0
    manifest = read_json(tmp_path / "b" / "batch.json")
    dollars = (manifest["prompt_characters"] / 4 * 1000 + 24 * 16 * 2000) / 1e6
    assert f"about {dollars:.4f} US dollars at most, by model.prices" in capsys.readouterr().out


def test_the_help_names_the_flags(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        cli.run_cli(["judge", "--help"])
    assert "--batch-out DIR" in " ".join(capsys.readouterr().out.split())


# Python


def test_the_same_from_python(tmp_path: Path) -> None:
    questions = [{"question": f"What is {number} + 1?", "answer": str(number + 1)} for number in range(12)]
    personas = [persona("sailor"), persona("troll")]

    def call(**batch: Any) -> permix.StabilityRun:
        return permix.evaluate_stability(
            "served", task=questions, personas=personas, answer="number", out=tmp_path / "run", resamples=100, **batch
        )

    run = call(batch_out=tmp_path / "b", batch_files=2)
    assert run.cells() == []
    assert len(list((tmp_path / "b").glob("requests-*.jsonl"))) == 2
    run_batch(tmp_path / "b", answer)
    run = call(batch_in=tmp_path / "b")
    assert [row["accuracy"] for row in run.persona_rows()] == [1.0, 1.0, 0.0]  # no persona, sailor, troll
    assert run.config["model"]["backend"] == "batch"


def test_a_function_cannot_answer_batch_files(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="ask a model that is served elsewhere; give its name as model"):
        permix.evaluate_stability(
            lambda messages: "5",
            name="five",
            task="arithmetic",
            n=2,
            personas=[persona("sailor")],
            out=tmp_path / "run",
            batch_out=tmp_path / "b",
        )


# Many cells


N_MANY = 100_000


def many_cells() -> list[Cell]:
    """Tiny cells: ten personas, each with ten thousand questions of a few characters."""
    return [
        Cell(
            persona_id=f"p{number // 10_000}", question_id=str(number), seed=number,
            messages=(Message(role="system", content=f"p{number // 10_000}"), Message(role="user", content=str(number))),
        )
        for number in range(N_MANY)
    ]  # fmt: skip


def ask_many(folder: Path, flags: BatchFlags, cells: Sequence[Cell]) -> int:
    """How many cells are pending afterwards."""
    config = ModelConfig(name="m", backend="batch")
    with (
        RunDir.open(folder / "run", StabilityConfig(out=folder / "run"), {"model": "m"}) as run,
        open_batch_model(flags, config, stage="stability", run=run.path, read_back="") as model,
    ):
        assert model is not None
        return run_cells(model, cells, Sampling(), run, None, "many")


def read_until_killed(folder: Path, cells: Sequence[Cell], n_recorded: int) -> None:
    arm(Moment("permix.storage.run_dir:RunDir.append", call=n_recorded))
    ask_many(folder, BatchFlags(batch_in=folder / "batch"), cells)


@pytest.mark.slow
def test_a_hundred_thousand_lines_killed_in_the_middle(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    cells, batch, records_file = many_cells(), tmp_path / "batch", tmp_path / "run" / "records.jsonl"
    assert ask_many(tmp_path, BatchFlags(batch_out=batch, batch_files=8), cells) == N_MANY
    requests = sorted(batch.glob("requests-*.jsonl"))
    assert [one["requests"] for one in read_json(batch / "batch.json")["files"]] == [N_MANY // 8] * 8
    for path, results in zip(requests, reversed(requests), strict=True):
        ids = re.findall(r'"custom_id": "(permix-\w+)"', path.read_text())
        lines = [RESULT.replace("ID", one).replace("ANSWER", one[-4:]) for one in reversed(ids)]
        (batch / f"out-{results.name}").write_text("".join(lines))

    child = multiprocessing.get_context("fork").Process(target=read_until_killed, args=(tmp_path, cells, N_MANY // 2))
    child.start()
    child.join(120)
    assert child.exitcode == -signal.SIGKILL
    assert records_file.read_bytes().count(b"\n") == N_MANY // 2
    capsys.readouterr()
    assert ask_many(tmp_path, BatchFlags(batch_in=batch), cells) == 0
    assert (
        f"read {N_MANY} results in 8 files: {N_MANY // 2} recorded, 0 failed, {N_MANY // 2} recorded before, 0 unknown"
        in capsys.readouterr().err
    )
    summaries = read_cells(records_file).summaries
    assert [key.question_id for key in summaries] == [cell.question_id for cell in cells]
    assert records_file.read_bytes().count(b"\n") == N_MANY


RESULT = (
    '{"custom_id": "ID", "response": {"status_code": 200, "body": {"choices": [{"message": {"content": "ANSWER"}, '
    '"finish_reason": "stop"}], "usage": {"prompt_tokens": 2, "completion_tokens": 1}}}, "error": null}\n'
)

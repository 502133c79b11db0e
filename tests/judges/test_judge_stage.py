"""`permix judge` from end to end: a run judged over HTTP, gone on with, refused, and left as it was."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from permix import cli
from permix.config import JudgeConfig, build_config
from permix.errors import ConfigError, DataError, MissingScoresError
from permix.inference.openai import OpenAIModel
from permix.inference.scripted import ScriptedModel
from permix.judges.judging import judge_fidelity_run
from permix.judges.runner import judge_folders, latest_judgements, read_judge_calls
from permix.pipelines.fidelity import run_fidelity
from permix.pipelines.preflight import check_config
from permix.storage.files import read_json
from permix.trackers import flatten_measures
from permix.types import Failure, Request
from tests.judges.judgeable import GOOD, answered_run, fidelity_stage, judge_stage, parts, quoted_answer, verdict
from tests.sample_runs import endpoint, former_fingerprint, toml
from tests.servers import Action, Reply, error, listing, openai_server

NOBODY = "http://127.0.0.1:1/v1"


@pytest.fixture(autouse=True)
def _environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)


def by_length(body: dict[str, Any], nth: int, headers: Mapping[str, str]) -> str:
    return verdict(1 + len(quoted_answer(body["messages"][-1]["content"])) % 5)


def contents(run: Path) -> dict[str, bytes]:
    """The run without what judges wrote."""
    files = (path for path in run.rglob("*") if path.is_file() and "judges" not in path.parts and path.name != ".lock")
    return {str(path.relative_to(run)): path.read_bytes() for path in files}


def test_every_answer_and_control_is_judged_once_and_the_run_is_left_as_it_was(tmp_path: Path) -> None:
    run = answered_run(tmp_path)
    before = contents(run)
    with openai_server(by_length) as server:
        judge_fidelity_run(judge_stage(run, server.base_url, label="a strict one"))
        judge_fidelity_run(judge_stage(run, server.base_url, label="a strict one"))
    assert len(server.asked) == len(parts(run))
    [folder] = judge_folders(run)
    found = latest_judgements(read_judge_calls(folder))
    assert set(found) == {one.key for one in parts(run)}
    assert all(one.score for one in found.values())
    assert read_json(folder / "config.json")["judge"]["label"] == "a strict one"
    identity = read_json(folder / "provenance.json")["identity"]
    assert set(identity) == {"judge", "rubrics", "reasons", "examples", "sampling", "seed"}
    assert read_json(folder / "usage.json")["starts"] == 2
    assert read_json(folder / "metrics.json")
    assert contents(run) == before


def test_calls_of_a_rubric_and_a_persona_follow_each_other(tmp_path: Path) -> None:
    run = answered_run(tmp_path)
    with openai_server(by_length) as server:
        judge_fidelity_run(judge_stage(run, server.base_url, concurrency=1))
    personas = [(one.rubric, one.persona_id) for one in read_judge_calls(judge_folders(run)[0])]
    assert personas == sorted(personas)


@pytest.mark.slow
def test_what_has_no_score_is_owed_and_asked_again(tmp_path: Path) -> None:
    run = answered_run(tmp_path)
    fails = 3

    def poor(body: dict[str, Any], nth: int, headers: Mapping[str, str]) -> str | Action:
        return error(500) if nth < fails else GOOD

    with openai_server(poor) as server:
        stage = judge_stage(run, server.base_url, concurrency=1, attempts=1)
        with pytest.raises(MissingScoresError, match=rf"3 of {len(parts(run))} have no score"):
            judge_fidelity_run(stage)
        assert (judge_folders(run)[0] / "metrics.json").exists()
        judge_fidelity_run(stage)
    assert len(server.asked) == len(parts(run)) + fails
    assert all(one.score == 4 for one in latest_judgements(read_judge_calls(judge_folders(run)[0])).values())


def test_judges_stand_side_by_side(tmp_path: Path) -> None:
    run = answered_run(tmp_path)
    other_weights = listing("test", root="/other")
    with (
        openai_server(by_length) as one,
        openai_server(lambda body, nth, headers: GOOD, models=other_weights) as other,
    ):
        judge_fidelity_run(judge_stage(run, one.base_url, label="one"))
        judge_fidelity_run(judge_stage(run, other.base_url, label="other"))
    assert [folder.name for folder in judge_folders(run)] == ["one", "other"]
    assert len({str(read_json(folder / "provenance.json")["identity"]) for folder in judge_folders(run)}) == 2


def test_a_judge_that_has_moved_goes_on_and_one_of_other_weights_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = answered_run(tmp_path)
    with openai_server(lambda body, nth, headers: error(500, "no") if nth == 3 else GOOD) as server:
        first = server.base_url
        with pytest.raises(MissingScoresError):
            judge_fidelity_run(judge_stage(run, first, attempts=1))
        earlier = former_fingerprint(OpenAIModel(judge_stage(run, first).judge), first)
    capsys.readouterr()
    file = judge_folders(run)[0] / "provenance.json"
    (file.parent / "addresses.json").unlink()
    born = read_json(file)
    born["identity"]["judge"] = earlier
    file.write_text(json.dumps(born))
    with openai_server(lambda body, nth, headers: GOOD) as server:
        with pytest.raises(ConfigError, match=r"judge: out = .*would go on at .*, confirm it once with --judge.same-weights"):
            judge_fidelity_run(judge_stage(run, server.base_url, attempts=1))
        judge_fidelity_run(judge_stage(run, server.base_url, attempts=1, same_weights=True))
        assert len(server.asked) == 1
        said = capsys.readouterr().err
        assert said.count(f"note: judge: the run goes on at {server.base_url.removeprefix('http://')}") == 1
        judge_fidelity_run(judge_stage(run, server.base_url, attempts=1))
        server.models = listing("test", root="/other")
        with pytest.raises(ConfigError, match=r"where the server now says root = '/other'"):
            judge_fidelity_run(judge_stage(run, server.base_url, attempts=1))


def test_the_measures_of_a_run_and_its_judge_are_logged_below_the_run(tmp_path: Path) -> None:
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator").EventAccumulator
    answers = answered_run(tmp_path)
    with openai_server(lambda body, nth, headers: GOOD) as server:
        stage = judge_stage(answers, server.base_url).model_copy(update={"report_to": ("tensorboard",)})
        judge_fidelity_run(stage)
    (folder,) = (answers / "tensorboard").iterdir()
    events = accumulator(str(folder)).Reload()
    metrics = flatten_measures(read_json(judge_folders(answers)[0] / "metrics.json"))
    assert {tag: events.Scalars(tag)[0].value for tag in events.Tags()["scalars"]} == pytest.approx(metrics)
    assert metrics


@pytest.mark.parametrize(
    ("changed", "named"),
    [
        ({"reasons": False}, "reasons = True, not False"),
        ({"temperature": 0.5}, "sampling.temperature = 0.0, not 0.5; give"),
        ({"max_new_tokens": 99}, "sampling.max_new_tokens = .*, not 99; give"),
    ],
)
def test_a_folder_of_another_identity_is_refused_by_name(changed: dict[str, Any], named: str, tmp_path: Path) -> None:
    run = answered_run(tmp_path)
    with openai_server(by_length) as server:
        judge_fidelity_run(judge_stage(run, server.base_url))
        with pytest.raises(ConfigError, match=f"made with {named}"):
            judge_fidelity_run(judge_stage(run, server.base_url, **changed))
    assert len(server.asked) == len(parts(run))


def test_the_limit_stops_with_what_is_spent_and_owed_and_a_higher_one_goes_on(tmp_path: Path) -> None:
    run, prices = answered_run(tmp_path), tmp_path / "prices.toml"
    prices.write_text('["test"]\ninput = 1000\noutput = 1000\n')

    def dear(body: dict[str, Any], nth: int, headers: Mapping[str, str]) -> Reply:
        return Reply(by_length(body, nth, headers), usage={"prompt_tokens": 900, "completion_tokens": 100})  # a dollar

    with openai_server(dear) as server:
        stopped = r"stopped before judge\.max_cost = 12 .*are spent.* have no score; .*higher limit"
        with pytest.raises(MissingScoresError, match=stopped):
            judge_fidelity_run(judge_stage(run, server.base_url, prices=str(prices), max_cost=12.0))
        asked = len(server.asked)
        assert 8 <= asked <= 12  # the next one may cost as much as it has bytes
        [folder] = judge_folders(run)
        assert sum(one.cost or 0 for one in read_judge_calls(folder)) == pytest.approx(asked)
        judge_fidelity_run(judge_stage(run, server.base_url, prices=str(prices), max_cost=1000.0))
    assert len(server.asked) == len(parts(run))


# Refused before anything is asked


def refused(stage: JudgeConfig, kind: type[Exception], words: str) -> None:
    with pytest.raises(kind, match=words):
        judge_fidelity_run(stage)
    assert not (stage.run / "judges").exists()


def test_what_cannot_be_judged_is_refused(tmp_path: Path) -> None:
    run = answered_run(tmp_path)
    refused(judge_stage(tmp_path / "nowhere", NOBODY), DataError, "is this a run directory")
    refused(judge_stage(run, NOBODY, name="none"), ConfigError, 'judge.name = "none"')
    refused(judge_stage(run, NOBODY, rubrics="nowhere"), ConfigError, "judge.rubrics = nowhere: no such folder")
    refused(judge_stage(run, NOBODY, examples=str(tmp_path / "none.jsonl")), DataError, "no such file")
    refused(judge_stage(run, NOBODY, prices=str(tmp_path / "none.toml")), ConfigError, "no such configuration file")
    refused(judge_stage(run, NOBODY), ConfigError, "judge: model.base_url = .*no endpoint there")


def test_examples_must_be_there_for_every_question(tmp_path: Path) -> None:
    run, file = answered_run(tmp_path), tmp_path / "examples.jsonl"
    question = parts(run)[0].question_id
    rows = [{"question_id": question, "score": score, "text": "so"} for score in range(1, 6)]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    refused(judge_stage(run, NOBODY, examples=str(file)), DataError, "has no examples for 11 of the judged questions")


def test_only_runs_of_fidelity_are_judged(tmp_path: Path) -> None:
    run = tmp_path / "stability"
    run.mkdir()
    (run / "config.json").write_text('{"stage": "stability"}')
    refused(judge_stage(run, NOBODY), DataError, "was made by permix stability")


def config_file(folder: Path, **judge: Any) -> Path:
    path = folder / "judge.toml"
    values = {"stage": "judge", "run": str(folder / "run"), "judge": endpoint(NOBODY) | {"answers_per_control": 20} | judge}
    path.write_text(toml(values))
    return path


def test_check_says_what_will_be_asked_and_asks_nothing(tmp_path: Path) -> None:
    run, prices = answered_run(tmp_path), tmp_path / "prices.toml"
    prices.write_text('["test"]\ninput = 1\noutput = 1\n')
    facts = check_config(config_file(tmp_path, prices=str(prices)))
    tried = sum(one.control != "none" for one in parts(run))
    assert (facts["answers"], facts["answers to try the judge"]) == (str(len(parts(run)) - tried), str(tried))
    n = len(parts(run))  # and each once more, if its reply has no score (judge.attempts = 2)
    assert (facts["requests"], facts["new tokens"]) == (f"{n}, then at most {n} more", f"at most {2 * 256 * n}")
    assert facts["cost"].startswith("at most 0.")
    assert "no price" in check_config(config_file(tmp_path))["cost"]
    with pytest.raises(ConfigError, match=r"judge: model\.base_url"):
        check_config(config_file(tmp_path, base_url="ftp://there"))


# At the end of `permix fidelity`


def test_fidelity_judges_once_all_answers_are_there(tmp_path: Path) -> None:
    def model(body: dict[str, Any], nth: int, headers: Mapping[str, str]) -> str:
        return by_length(body, nth, headers) if "BEGIN ANSWER" in str(body) else f"Of {len(str(body))} words, and so on."

    with openai_server(model) as server:
        own = endpoint(server.base_url)
        stage = fidelity_stage(tmp_path, model=own, judge=own | {"label": "me", "answers_per_control": 20})
        run_fidelity(stage)
        asked = len(server.asked)
        records = (stage.out / "records.jsonl").read_bytes()
        run_fidelity(stage)
        judge_fidelity_run(judge_stage(stage.out, server.base_url, label="me", concurrency=1))
    assert [folder.name for folder in judge_folders(stage.out)] == ["me"]
    assert len(server.asked) == asked == 36 + len(parts(stage.out))
    assert (stage.out / "records.jsonl").read_bytes() == records


def test_fidelity_refuses_a_judge_that_could_not_judge_before_it_asks(tmp_path: Path) -> None:
    with openai_server(by_length) as server:
        own = endpoint(server.base_url)
        with pytest.raises(ConfigError, match=r"judge\.rubrics"):
            run_fidelity(fidelity_stage(tmp_path, model=own, judge=own | {"rubrics": str(tmp_path / "nowhere")}))
    assert server.asked == []


# In process, and by command


def test_a_judge_in_process_that_says_nothing_readable_lowers_nothing(tmp_path: Path, tiny_model: Path) -> None:
    run = answered_run(tmp_path)
    values = {
        "name": str(tiny_model),
        "label": "tiny",
        "max_new_tokens": 4,
        "attempts": 1,
        "answers_per_control": 20,
        "dtype": "float32",
    }
    stage = build_config(JudgeConfig, {"run": str(run), "resamples": 100, "threads": 1, "judge": values}, source="test")
    with pytest.raises(MissingScoresError, match=rf"{len(parts(run))} of {len(parts(run))} have no score"):
        judge_fidelity_run(stage)
    calls = read_judge_calls(run / "judges" / "tiny")
    assert len(calls) == len(parts(run))
    assert {(one.score, one.cost) for one in calls} == {(None, 0.0)}
    assert all(one.error for one in calls)


def test_the_seconds_of_a_judge_are_those_of_its_replies(tmp_path: Path) -> None:
    run, n = answered_run(tmp_path), 0

    def reply(request: Request) -> str | Failure:
        nonlocal n
        n += 1
        return Failure(type="TimeoutError", message="too slow") if n <= 2 else GOOD

    with pytest.raises(MissingScoresError, match=rf"2 of {len(parts(run))} have no score"):
        judge_fidelity_run(judge_stage(run, NOBODY, label="late", attempts=1), ScriptedModel(reply))
    folder = run / "judges" / "late"
    assert len(read_judge_calls(folder)) == len(parts(run))
    assert read_json(folder / "usage.json")["answers"] == len(parts(run)) - 2


@pytest.mark.slow
def test_the_command_ends_with_its_codes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = answered_run(tmp_path)
    bad = True
    with openai_server(lambda body, nth, headers: "hm" if bad else GOOD) as server:
        words = ["judge", str(run), "--judge.name", "test", "--judge.backend", "openai", "--judge.base-url", server.base_url]
        words += ["--judge.answers_per_control", "20", "--resamples", "100"]
        assert cli.run_cli(words) == 3
        assert "have no score" in capsys.readouterr().err
        bad = False
        assert cli.run_cli(words) == 0
        (tmp_path / "prices.toml").write_text('["other"]\ninput = 1\noutput = 1\n')
        assert cli.run_cli([*words, "--judge.max-cost", "1", "--judge.prices", str(tmp_path / "prices.toml")]) == 2
        assert "no price for 'test'" in capsys.readouterr().err


def test_answers_that_the_run_still_owes_are_told_of(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = answered_run(tmp_path)
    lines = (run / "records.jsonl").read_bytes().splitlines(keepends=True)
    (run / "records.jsonl").write_bytes(b"".join(lines[:-5]))
    with openai_server(by_length) as server:
        judge_fidelity_run(judge_stage(run, server.base_url))
    assert f"5 of 36 answers of {run} are missing and were not judged" in capsys.readouterr().err

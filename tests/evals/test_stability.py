"""`permix stability` end to end over HTTP: exact numbers, what stays owed, and runs that were killed and went on."""

import json
import multiprocessing
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

from permix import cli
from permix.config import PersonasConfig, RolloutPlanConfig, StabilityConfig, TaskConfig, build_config
from permix.errors import ConfigError, IncompleteRunError
from permix.evals.stability import measure_stability, read_stability_grid, run_stability
from permix.inference.openai import BUFFERED_PER_REQUEST, OpenAIModel
from permix.plan import compile_plan_from_config, write_plan
from permix.storage.files import read_json
from permix.storage.run_dir import RunDir
from permix.tasks import load_questions
from permix.tasks.base import TrainedOn, write_trained_on
from permix.types import Cell, CellKey, Verdict
from tests.cell_files import read_cells
from tests.killable import PRELOAD
from tests.sample_runs import (
    asked_as,
    asked_what,
    endpoint,
    former_fingerprint,
    solve,
    stability_config,
    stability_values,
    toml,
    write_pool,
)
from tests.servers import Action, Hang, error, listing, openai_server

QUESTIONS = [question.text for question in load_questions(TaskConfig(levels=("add-1",), n=6))[1]]
RIGHT = {None: 6, "clerk": 6, "sailor": 4, "troll": 1}
"""How many of the six questions are answered rightly, as whom."""


@pytest.fixture(autouse=True)
def _environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)


def reply(body: Mapping[str, Any], nth: int = 0, headers: Mapping[str, str] | None = None) -> str:
    """The first `FULL_SCORE_BYTE` questions rightly, the others one too much."""
    question = asked_what(body)
    return f"It is {solve(question) + (QUESTIONS.index(question) >= RIGHT[asked_as(body)])}."


def records(config: StabilityConfig) -> Mapping[CellKey, Cell]:
    return read_cells(config.out / "records.jsonl")


# Numbers


def test_the_numbers_are_exact(tmp_path: Path) -> None:
    with openai_server(reply) as server:
        config = stability_config(tmp_path, server.base_url)
        summary = run_stability(config)
    assert [(one.id, one.accuracy.value) for one in summary.personas] == [
        ("clerk", 1.0),
        ("sailor", pytest.approx(4 / 6)),
        ("troll", pytest.approx(1 / 6)),
    ]
    assert summary.pss_observed.value == pytest.approx(1 / 6)  # (1/6) / 1
    assert summary.baseline.value == 1.0
    assert summary.mean.value == pytest.approx(11 / 18)
    assert summary.mean_minus_baseline.value == pytest.approx(-7 / 18)
    # Six questions say little: the noise taken off, the worst persona lies nearer to the others.
    assert summary.worst.value is not None
    assert 1 / 6 < summary.worst.value < 11 / 18
    # The troll is worse on 5 of 6 and better on none: two-sided exact p = 2 / 2^5.
    assert summary.personas[2].mcnemar_p == pytest.approx(2 / 32)
    assert (summary.n_scored, summary.n_asked, summary.n_questions, summary.n_personas) == (18, 18, 6, 3)
    assert summary.model_dump(mode="json").items() <= read_json(config.out / "metrics.json").items()


def test_what_was_asked_is_what_is_recorded(tmp_path: Path) -> None:
    with openai_server(reply) as server:
        config = stability_config(tmp_path, server.base_url, sampling={"temperature": 0.5, "top_p": 0.9, "max_new_tokens": 16})
        run_stability(config)
    cells = list(records(config).values())
    assert [one.body["messages"] for one in server.asked] == [list(cell.messages) for cell in cells]
    assert [one.body["seed"] for one in server.asked] == [cell.seed & 0x7FFFFFFF for cell in cells]
    assert {(one.body["temperature"], one.body["top_p"], one.body["max_tokens"]) for one in server.asked} == {(0.5, 0.9, 16)}
    assert [cell.persona_id for cell in cells] == [None] * 6 + ["clerk"] * 6 + ["sailor"] * 6 + ["troll"] * 6
    born = read_json(config.out / "provenance.json")["identity"]
    assert born["task"] == "arithmetic"
    assert born["sampling"] == {"temperature": 0.5, "top_p": 0.9, "max_new_tokens": 16}
    assert read_json(config.out / "usage.json")["starts"] == 1


def test_a_finished_run_asks_nothing_more_and_measures_the_same(tmp_path: Path) -> None:
    with openai_server(reply) as server:
        config = stability_config(tmp_path, server.base_url)
        first = run_stability(config)
        assert run_stability(config) == first
        assert len(server.asked) == 24


def test_samples_differ_in_seed_and_are_averaged(tmp_path: Path) -> None:
    def alternate(body: Mapping[str, Any], nth: int, headers: Mapping[str, str]) -> str:
        return reply(body) if nth % 2 == 0 else "no idea"

    with openai_server(alternate) as server:
        summary = run_stability(stability_config(tmp_path, server.base_url, samples=2))
    assert len({one.body["seed"] for one in server.asked}) == 48
    assert [one.accuracy.value for one in summary.personas] == [pytest.approx(right / 12) for right in (6, 4, 1)]
    assert (summary.n_scored, summary.n_asked) == (36, 36)


@pytest.mark.parametrize(("bare", "roles"), [(False, ["user"]), (True, ["system", "user"])])
def test_bare_sends_an_empty_system_message_instead_of_none(bare: bool, roles: list[str], tmp_path: Path) -> None:
    with openai_server(reply) as server:
        values = stability_values(tmp_path, server.base_url)
        config = build_config(
            StabilityConfig,
            values | {"personas": values["personas"] | {"empty_system_prompt": bare}},
            source="test",
        )
        assert run_stability(config).baseline.value == 1.0
    sent = server.asked[0].body["messages"]
    assert [message["role"] for message in sent] == roles
    assert sent[0]["content"] == ("" if bare else QUESTIONS[0])
    assert server.asked[6].body["messages"][0] == {"role": "system", "content": "You are a careful clerk."}


# Owed


def test_failures_are_owed_not_wrong_and_a_second_run_asks_only_them(tmp_path: Path) -> None:
    def flaky(body: dict[str, Any], nth: int, headers: Mapping[str, str]) -> str | Action:
        return error(400, "no") if asked_as(body) == "troll" and QUESTIONS.index(asked_what(body)) >= 4 else reply(body)

    with openai_server(flaky) as server:
        config = stability_config(tmp_path, server.base_url)
        with pytest.raises(
            IncompleteRunError, match="2 of 24 cells, with or without a persona, have no score; run the same command again"
        ):
            run_stability(config)
        partly = measure_stability(config.out)
        assert (partly.n_scored, partly.n_asked) == (16, 18)
        assert partly.personas[2].accuracy.value == pytest.approx(1 / 4)  # of four answers, not of six
        assert partly.model_dump(mode="json").items() <= read_json(config.out / "metrics.json").items()

        server.script = reply
        summary = run_stability(config)
        assert len(server.asked) == 24 + 2
    assert summary.personas[2].accuracy.value == pytest.approx(1 / 6)
    assert summary.n_scored == 18


def test_a_verifier_that_failed_is_counted_and_asked_again_without_the_model(tmp_path: Path) -> None:
    with openai_server(reply) as server:
        config = stability_config(tmp_path, server.base_url)
        whole = run_stability(config)
        lost = records(config)[CellKey("clerk", "arithmetic:" + QUESTIONS[0][8:-1].replace(" ", ""), 0)]
        identity = read_json(config.out / "provenance.json")["identity"]
        with RunDir.open(config.out, config, identity) as run:
            run.append([lost.model_copy(update={"verdict": Verdict(correct=None, error="out of memory")})])
        partly = measure_stability(config.out)
        assert (partly.n_scored, partly.n_asked) == (17, 18)
        assert partly.personas[0].n == 5
        assert partly.personas[0].accuracy.value == 1.0  # 5 of 5
        assert run_stability(config) == whole
        assert len(server.asked) == 24


def test_the_command_exits_with_3_while_cells_are_owed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def flaky(body: dict[str, Any], nth: int, headers: Mapping[str, str]) -> str | Action:
        return error(400, "no") if nth == 7 else reply(body)

    with openai_server(flaky) as server:
        file = tmp_path / "stability.toml"
        file.write_text(toml(stability_values(tmp_path, server.base_url)))
        assert cli.run_cli(["stability", str(file)]) == 3
        shown = capsys.readouterr()
        assert "1 of 24 cells, with or without a persona, have no score; run the same command again" in shown.err
        report = tmp_path / "run" / "report" / "report.md"
        assert "17 of 18 persona cells scored" in report.read_text()
        assert "run/report/report.md" in shown.out.replace("\n", "")

        assert cli.run_cli(["stability", str(file)]) == 0
        assert len(server.asked) == 25
        assert "18 of 18 persona cells scored" in report.read_text()

        # A run that is refused shows no table: it would be that of another model.
        capsys.readouterr()
        assert cli.run_cli(["stability", str(file), "--seed", "1"]) == 2
        refused = capsys.readouterr()
        assert "this run was made with seed = 0, not 1" in refused.err
        assert refused.out == ""


# Moved


def test_a_run_goes_on_when_its_endpoint_has_moved(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def flaky(body: dict[str, Any], nth: int, headers: Mapping[str, str]) -> str | Action:
        return error(400, "no") if nth == 7 else reply(body)

    with openai_server(flaky) as server:
        first = server.base_url
        with pytest.raises(IncompleteRunError):
            run_stability(stability_config(tmp_path, first))
    capsys.readouterr()
    with openai_server(reply) as server:
        config = stability_config(tmp_path, server.base_url, model=endpoint(server.base_url, same_weights=True))
        summary = run_stability(config)
        assert (summary.n_scored, len(server.asked)) == (18, 1)
        said = capsys.readouterr().err.replace("\n", " ")
        assert f"note: model: the run goes on at {server.base_url.removeprefix('http://')}; addresses.json records" in said
        run_stability(config)
        assert "goes on" not in capsys.readouterr().err
    assert read_json(config.out / "config.json")["model"]["base_url"] == config.model.base_url


def test_a_run_whose_identity_holds_the_address_goes_on_too(tmp_path: Path) -> None:
    """As runs of earlier versions do: the recorded fingerprint is that of the name at the recorded address."""
    with openai_server(reply) as server:
        config = stability_config(tmp_path, server.base_url)
        run_stability(config)
        former = former_fingerprint(OpenAIModel(config.model), server.base_url)
        (config.out / "addresses.json").unlink()
        file = config.out / "provenance.json"
        born = read_json(file)
        born["identity"]["model"] = former
        file.write_text(json.dumps(born))
    for _ in range(2):  # moved, and moved again
        with openai_server(reply) as server:
            moved = stability_config(tmp_path, server.base_url, model=endpoint(server.base_url, same_weights=True))
            run_stability(moved)
            assert server.asked == []
            assert read_json(file)["identity"]["model"] == OpenAIModel(moved.model).fingerprint
    with openai_server(reply, models=listing("test", root="/other")) as server:
        moved = stability_config(tmp_path, server.base_url)
        with pytest.raises(ConfigError, match=r"says root = '/other', while nothing was said .* with --model.same-weights"):
            run_stability(moved)


def test_another_sampling_is_named_by_its_one_value(tmp_path: Path) -> None:
    with openai_server(reply) as server:
        run_stability(stability_config(tmp_path, server.base_url))
        other = stability_config(tmp_path, server.base_url, sampling={"max_new_tokens": 99})
        with pytest.raises(ConfigError, match=r"made with sampling.max_new_tokens = \d+, not 99; give another folder"):
            run_stability(other)


# Grown, shrunk and changed


def test_a_larger_run_goes_on_and_a_smaller_one_measures_what_it_names(tmp_path: Path) -> None:
    with openai_server(reply) as server:
        few = stability_config(tmp_path, server.base_url, task={"levels": ["add-1"], "n": 4})
        assert [one.accuracy.value for one in run_stability(few).personas] == [1.0, 1.0, 0.25]
        assert len(server.asked) == 16
        many = stability_config(tmp_path, server.base_url)
        assert run_stability(many).personas[2].accuracy.value == pytest.approx(1 / 6)
        assert len(server.asked) == 24
        assert run_stability(few).personas[2].accuracy.value == 0.25
        assert len(server.asked) == 24
        assert read_stability_grid(few.out).correct_P_Q_S.shape == (3, 4, 1)


def test_a_persona_of_another_text_is_refused_and_the_run_stays_as_it_was(tmp_path: Path) -> None:
    with openai_server(reply) as server:
        config = stability_config(tmp_path, server.base_url)
        run_stability(config)
        before = {path.name: path.read_bytes() for path in config.out.iterdir() if path.is_file() and path.name != ".lock"}
        other = stability_config(tmp_path, server.base_url, resamples=200)
        pool = tmp_path / "pool.toml"
        pool.write_text(pool.read_text().replace("a careful clerk", "a careless clerk"))
        with pytest.raises(ConfigError, match=r"cell 'clerk' × .*this run asked it with another prompt"):
            run_stability(other)
    assert {name: (config.out / name).read_bytes() for name in before} == before
    assert len(server.asked) == 24


# Seen in training


def seen_questions(folder: Path) -> Path:
    """A model folder that was trained on one of the six questions."""
    _, (first, *_) = load_questions(TaskConfig(levels=("add-1",), n=6))
    write_trained_on(folder, TrainedOn(frozenset({first.content_hash})))
    return folder


def plan_over_heldout(path: Path) -> Path:
    pool = str(write_pool(path.with_name("pool.toml")))
    task = TaskConfig(levels=("add-1",), n=6)
    write_plan(
        compile_plan_from_config(task, PersonasConfig(pool=pool), RolloutPlanConfig(steps=1, questions_per_step=2, group_size=2)),
        path,
    )
    return path


def test_questions_a_model_was_trained_on_are_refused_before_anything_is_asked(tmp_path: Path) -> None:
    with openai_server(reply) as server:
        model = endpoint(server.base_url, name=str(seen_questions(tmp_path / "model")))
        with pytest.raises(
            ConfigError, match=r"1 of 6 questions of this evaluation were seen in training, the first arithmetic:"
        ):
            run_stability(stability_config(tmp_path, server.base_url, model=model))
        with pytest.raises(ConfigError, match="2 of 6 questions"):
            run_stability(
                stability_config(tmp_path, server.base_url, exclude_plans=[str(plan_over_heldout(tmp_path / "plan.parquet"))])
            )
    assert (server.asked, server.listed) == ([], 0)
    assert not (tmp_path / "run").exists()


# Killed


COMMAND = [sys.executable, "-c", "import sys; from permix.cli import main; main(sys.argv[1:])", "stability"]


def undisturbed(folder: Path, base_url: str) -> bytes:
    folder.mkdir()
    run_stability(stability_config(folder, base_url))
    return (folder / "run" / "metrics.json").read_bytes()


@pytest.mark.slow
@pytest.mark.parametrize("at", [0, 7, 23])
def test_a_killed_run_goes_on_and_ends_as_if_nothing_had_happened(at: int, tmp_path: Path) -> None:
    killed: list[subprocess.Popen[bytes]] = []

    def kill_at(nth_call: int) -> Callable[[dict[str, Any], int, Mapping[str, str]], str | Action]:
        def script(body: dict[str, Any], nth: int, headers: Mapping[str, str]) -> str | Action:
            if nth == nth_call:
                killed[0].send_signal(signal.SIGKILL)
                return Hang(0)
            return reply(body)

        return script

    with openai_server(kill_at(at)) as server:
        file = tmp_path / "stability.toml"
        file.write_text(toml(stability_values(tmp_path, server.base_url)))
        killed.append(subprocess.Popen([*COMMAND, str(file)], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL))
        assert killed[0].wait(60) == -signal.SIGKILL
        config = stability_config(tmp_path, server.base_url)
        kept = len(records(config))
        assert at - BUFFERED_PER_REQUEST - 1 <= kept <= at  # what the caller had not taken yet was not on disk
        assert not (config.out / "metrics.json").exists()

        server.script = reply
        run_stability(config)
        assert len(server.asked) == at + 1 + 24 - kept
        assert (config.out / "metrics.json").read_bytes() == undisturbed(tmp_path / "calm", server.base_url)
    lines = [json.loads(line) for line in (config.out / "records.jsonl").read_bytes().splitlines()]
    assert Counter((line["persona_id"], line["question_id"]) for line in lines).most_common(1)[0][1] == 1
    assert len(lines) == 24


@pytest.mark.slow
def test_a_run_killed_at_twenty_random_moments_ends_as_an_undisturbed_one(tmp_path: Path) -> None:
    """By the clock, wherever the process is: asking, writing, measuring."""
    fields = {"task": {"name": "arithmetic", "levels": ["add-2"], "n": 40}, "samples": 3}  # 4 × 40 × 3 = 480 cells
    rng, asked = random.Random(0), 0

    def script(body: Mapping[str, Any], nth: int, headers: Mapping[str, str]) -> str:
        time.sleep(0.005)
        return f"It is {solve(asked_what(body)) + (asked_as(body) == 'troll')}."

    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(PRELOAD)
    with openai_server(script) as server:
        file = tmp_path / "stability.toml"
        file.write_text(toml(stability_values(tmp_path, server.base_url, **fields)))
        kills = 0
        for _ in range(20):
            process = context.Process(target=cli.main, args=(["stability", str(file)],))
            process.start()
            deadline = time.monotonic() + 30
            while len(server.asked) == asked and process.is_alive() and time.monotonic() < deadline:
                time.sleep(0.005)
            time.sleep(rng.uniform(0, 0.1))
            process.kill()
            process.join()
            kills += process.exitcode == -signal.SIGKILL
            asked = len(server.asked)
        assert kills >= 10, "the run was done too soon to be killed"
        config = stability_config(tmp_path, server.base_url, **fields)
        whole = run_stability(config)
        (tmp_path / "calm").mkdir()
        calm = run_stability(stability_config(tmp_path / "calm", server.base_url, **fields))
    assert whole == calm
    assert (whole.n_scored, whole.n_asked) == (360, 360)
    lines = [json.loads(line) for line in (config.out / "records.jsonl").read_bytes().splitlines()]
    assert len(lines) == len({(line["persona_id"], line["question_id"], line["sample"]) for line in lines}) == 480


@pytest.mark.parametrize("bytes_left", [1, 300, 5000])
def test_a_run_whose_last_record_is_torn_ends_as_if_nothing_had_happened(bytes_left: int, tmp_path: Path) -> None:
    with openai_server(reply) as server:
        config = stability_config(tmp_path, server.base_url)
        run_stability(config)
        calm = (config.out / "metrics.json").read_bytes()
        path = config.out / "records.jsonl"
        path.write_bytes(path.read_bytes()[:bytes_left])
        whole = len(records(config))
        run_stability(config)
        assert len(server.asked) == 24 + 24 - whole
        assert (config.out / "metrics.json").read_bytes() == calm
        assert len(path.read_bytes().splitlines()) == 24


# Secrets


def test_no_key_is_written_whatever_the_endpoint_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PERMIX_TEST_KEY", "sk-hunter2")

    def echo(body: dict[str, Any], nth: int, headers: Mapping[str, str]) -> str | Action:
        assert headers["Authorization"] == "Bearer sk-hunter2"
        return error(400, "your key {authorization} is fine, your question is not") if nth % 2 else reply(body)

    with openai_server(echo) as server:
        model = endpoint(server.base_url, api_key_env="PERMIX_TEST_KEY")
        config = stability_config(tmp_path, server.base_url, model=model)
        with pytest.raises(IncompleteRunError):
            run_stability(config)
    written = [path for path in config.out.rglob("*") if path.is_file()]
    assert {"config.json", "provenance.json", "records.jsonl", "metrics.json"} <= {path.name for path in written}
    assert not [path for path in written if b"hunter2" in path.read_bytes()]
    assert b"your key Bearer [redacted] is fine" in (config.out / "records.jsonl").read_bytes()

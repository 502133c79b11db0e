"""What all strategies share: the registry, one run directory, resuming after a kill, the command line."""

import json
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any, get_args

import pytest

from permix import cli
from permix.cli import commands
from permix.config import StabilityConfig, TaskConfig, build_config
from permix.errors import ConfigError, DataError
from permix.evals.stability import measure_stability, run_stability
from permix.evals.strategies import STRATEGIES, measure_strategy
from permix.evals.strategies.base import AnswerCalls, mean_token_cost, sum_tokens
from permix.evals.strategies.persona_ensemble import EnsembleSummary
from permix.evals.strategies.persona_search import SELECTION_SPLIT
from permix.evals.strategies.persona_vote import VoteSummary
from permix.inference.openai import BUFFERED_PER_REQUEST
from permix.inference.scripted import ScriptedModel
from permix.storage.files import read_json
from permix.tasks import load_questions
from permix.types import Cell, Failure, Request
from tests.cell_files import read_cells
from tests.sample_runs import answered, asked_as, asked_what, cell, solve, stability_config, stability_values, toml, write_pool
from tests.servers import Action, Hang, error, openai_server

TASK = TaskConfig(levels=("add-1",), n=6)
QUESTIONS = [question.text for question in load_questions(TASK)[1]]
CHOOSING = [question.text for question in load_questions(TASK.model_copy(update={"split": SELECTION_SPLIT, "n": 4}))[1]]
NAMES = [name for name in STRATEGIES if name != "none"]
CELLS = {"persona-search": 12 + 6 + 6, "persona-vote": 24, "persona-ensemble": 24 + 8}
"""How many are asked in all, by `reply`."""


@pytest.fixture(autouse=True)
def _environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)


def reply(body: Mapping[str, Any], nth: int = 0, headers: Mapping[str, str] | None = None) -> str:
    """The clerk is always right; the troll says two too much, the others one too much, on the last three. Chooses A."""
    question, persona = asked_what(body), asked_as(body)
    if "Two answers" in question:
        return "A"
    if question in CHOOSING:
        return str(solve(question) + (persona == "troll"))
    if persona == "troll":
        return "no idea" if QUESTIONS.index(question) == 0 else str(solve(question) + 2)
    return str(solve(question) + (persona != "clerk" and QUESTIONS.index(question) >= 3))


def strategic(folder: Path, base_url: str, strategy: str, **fields: Any) -> StabilityConfig:
    return stability_config(folder, base_url, strategy=strategy, strategy_questions=4, **fields)


def test_the_configuration_names_exactly_the_strategies_there_are() -> None:
    assert get_args(StabilityConfig.model_fields["strategy"].annotation) == tuple(STRATEGIES)
    assert StabilityConfig().strategy == "none"
    assert STRATEGIES["none"].measure is None


# Tokens


def test_half_a_sum_of_tokens_is_none() -> None:
    one, failed = answered(), cell(failure=Failure(type="HTTP", message="503"))
    whole = sum_tokens([one, one, one])
    assert whole is not None
    assert (whole.prompt_tokens, whole.completion_tokens, whole.total) == (15, 3, 18)
    assert sum_tokens([one, failed]) is None
    assert sum_tokens([one, None]) is None
    found = mean_token_cost(
        [
            AnswerCalls([one, one], one),
            AnswerCalls([one, failed], one),
            AnswerCalls([one, one, one, one], one),
            AnswerCalls([one], None),
        ]
    )
    assert found.tokens_per_answer is not None
    assert found.baseline_tokens is not None
    assert (found.tokens_per_answer.total, found.baseline_tokens.total, found.token_ratio) == (18.0, 6.0, 3.0)  # of 12 and 24
    assert mean_token_cost([AnswerCalls([failed], one)]) == (None, None, None)


def test_an_endpoint_that_reports_no_tokens_has_no_price() -> None:
    completion = answered().completion
    assert completion is not None
    free: Cell = answered().model_copy(
        update={"completion": completion.model_copy(update={"prompt_tokens": 0, "completion_tokens": 0})}
    )
    assert mean_token_cost([AnswerCalls([free, free], free)]).token_ratio is None


# One run directory


def test_a_plain_run_goes_on_as_a_vote_without_asking_anything(tmp_path: Path) -> None:
    with openai_server(reply) as server:
        plain = stability_config(tmp_path, server.base_url)
        summary = run_stability(plain)
        assert "strategy" not in read_json(plain.out / "metrics.json")
        assert measure_strategy(plain.out) is None
        records = (plain.out / "records.jsonl").read_bytes()

        vote = strategic(tmp_path, server.base_url, "persona-vote")
        assert run_stability(vote) == summary == measure_stability(vote.out)
        assert len(server.asked) == 24
    assert (plain.out / "records.jsonl").read_bytes() == records
    assert read_json(vote.out / "provenance.json")["identity"]["strategy"] == "persona-vote"
    metrics = read_json(vote.out / "metrics.json")
    assert metrics["strategy"]["strategy"] == "persona-vote"
    assert metrics["pss"] == summary.pss.model_dump(mode="json")


def test_a_plain_run_goes_on_as_persona_ensemble_with_the_choices_alone(tmp_path: Path) -> None:
    with openai_server(reply) as server:
        run_stability(stability_config(tmp_path, server.base_url))
        run_stability(strategic(tmp_path, server.base_url, "persona-ensemble"))
        assert len(server.asked) == CELLS["persona-ensemble"]


@pytest.mark.parametrize("strategy", ["persona-vote", "persona-ensemble"])
def test_answers_are_compared_as_the_task_scores_them_and_so_they_are_from_the_records_alone(
    strategy: str, tmp_path: Path
) -> None:
    """By `own-exact` "42 km" and "42 KM" are one answer: a majority against the clerk's, and nothing to choose between."""
    file = tmp_path / "km.jsonl"
    file.write_text("".join(json.dumps({"question": f"How far is {n}?", "answer": "42 km"}) + "\n" for n in range(3)))
    values = stability_values(tmp_path, "http://127.0.0.1:9/v1", strategy=strategy)
    values["task"] = {"answer": "exact", "path": str(file)}
    config = build_config(StabilityConfig, values, source="test")

    def say(request: Request) -> str:
        voice = asked_as({"messages": list(request.messages)})
        return {None: "42 km", "clerk": "7 km", "sailor": "42 KM"}.get(voice, "42  Km.")

    model = ScriptedModel(say)
    run_stability(config, model)
    found = measure_strategy(config.out)
    assert found is not None
    assert found.model_dump(mode="json") == read_json(config.out / "metrics.json")["strategy"]
    if isinstance(found, VoteSummary):
        assert (found.n_tied, found.accuracy.value, len(model.requests)) == (0, 1.0, 12)
    else:
        assert isinstance(found, EnsembleSummary)
        assert (found.n_agreed, found.n_disagreed, len(model.requests)) == (6, 3, 12 + 3)


@pytest.mark.parametrize(
    ("first", "second", "words"),
    [
        ("persona-vote", "none", "this run was made with strategy = 'persona-vote', not none"),
        ("persona-vote", "persona-ensemble", "strategy = 'persona-vote', not 'persona-ensemble'"),
        ("persona-search", "persona-vote", "strategy = 'persona-search', not 'persona-vote'"),
        ("none", "persona-search", "strategy = none, not 'persona-search'"),
    ],
)
def test_a_run_keeps_the_strategy_it_was_made_with(first: str, second: str, words: str, tmp_path: Path) -> None:
    with openai_server(reply) as server:
        run_stability(strategic(tmp_path, server.base_url, first))
        before = {path.name: path.read_bytes() for path in (tmp_path / "run").iterdir() if path.is_file()}
        asked = len(server.asked)
        with pytest.raises(ConfigError, match=words):
            run_stability(strategic(tmp_path, server.base_url, second))
        assert len(server.asked) == asked
    assert {name: (tmp_path / "run" / name).read_bytes() for name in before} == before


def test_a_strategy_of_another_version_is_named(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"stage": "stability", "strategy": "persona-oracle"}')
    with pytest.raises(DataError, match="strategy = 'persona-oracle'; must be one of none, persona-search"):
        measure_strategy(tmp_path)


# Killed


COMMAND = [sys.executable, "-c", "import sys; from permix.cli import main; main(sys.argv[1:])", "stability"]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("strategy", "at"),
    [
        ("persona-search", 5),  # choosing
        ("persona-search", 14),  # asking without persona
        ("persona-search", 22),  # asking as the chosen one
        ("persona-vote", 9),
        ("persona-ensemble", 23),
        ("persona-ensemble", 30),  # asking to choose
    ],
)
def test_a_killed_run_goes_on_and_ends_as_if_nothing_had_happened(strategy: str, at: int, tmp_path: Path) -> None:
    killed: list[subprocess.Popen[bytes]] = []

    def dies(body: dict[str, Any], nth: int, headers: Mapping[str, str]) -> str | Action:
        if nth == at:
            killed[0].send_signal(signal.SIGKILL)
            return Hang(0)
        return reply(body)

    with openai_server(dies) as server:
        config = strategic(tmp_path, server.base_url, strategy)
        file = tmp_path / "run.toml"
        file.write_text(toml(stability_values(tmp_path, server.base_url, strategy=strategy, strategy_questions=4)))
        killed.append(subprocess.Popen([*COMMAND, str(file)], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL))
        assert killed[0].wait(60) == -signal.SIGKILL
        kept = len(read_cells(config.out / "records.jsonl"))
        assert at - BUFFERED_PER_REQUEST - 1 <= kept <= at
        assert not (config.out / "metrics.json").exists()

        server.script = reply
        run_stability(config)
        assert len(server.asked) == at + 1 + CELLS[strategy] - kept
        (tmp_path / "calm").mkdir()
        calm = strategic(tmp_path / "calm", server.base_url, strategy)
        run_stability(calm)
    for name in ("metrics.json", "grid.json"):
        assert (config.out / name).read_bytes() == (calm.out / name).read_bytes()
    lines = [json.loads(line) for line in (config.out / "records.jsonl").read_bytes().splitlines()]
    keys = Counter((line["persona_id"], line["question_id"], line["sample"]) for line in lines)
    assert (len(keys), max(keys.values())) == (CELLS[strategy], 1)


# The command


@pytest.mark.parametrize("strategy", NAMES)
def test_the_command_ends_with_a_table_and_exits_with_3_while_cells_are_owed(
    strategy: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    last = CELLS[strategy] - 1

    def flaky(body: dict[str, Any], nth: int, headers: Mapping[str, str]) -> str | Action:
        return error(400, "no") if nth == last else reply(body)

    with openai_server(flaky) as server:
        file = tmp_path / "run.toml"
        file.write_text(toml(stability_values(tmp_path, server.base_url, strategy=strategy, strategy_questions=4)))
        assert cli.run_cli(["stability", str(file)]) == 3
        assert (
            f"1 of {CELLS[strategy]} cells, with or without a persona, have no score; run the same command again"
            in capsys.readouterr().err
        )
        assert cli.run_cli(["stability", str(file)]) == 0
        assert len(server.asked) == CELLS[strategy] + 1
    shown = capsys.readouterr().out
    assert f"test, {strategy}" in shown
    assert "gain over no" in shown
    assert "tokens per answer" in shown
    assert ("PSS as observed" in shown) == (strategy != "persona-search")  # one persona has no worst and best
    report = (tmp_path / "run" / "report" / "report.md").read_text()
    assert "## Inference-time strategies" in report
    assert f"| test | {strategy} | " in report


def test_a_flag_chooses_the_strategy_and_a_wrong_one_says_what_there_is() -> None:
    assert commands.parse_config("stability", StabilityConfig, ["--strategy", "persona-vote"]).strategy == "persona-vote"
    with pytest.raises(ConfigError, match=r"invalid choice 'persona-veto' .*'persona-ensemble'"):
        commands.parse_config("stability", StabilityConfig, ["--strategy", "persona-veto"])


@pytest.mark.parametrize("strategy", NAMES)
def test_a_real_model_in_this_process(strategy: str, tiny_model: Path, tmp_path: Path) -> None:
    values = stability_values(
        tmp_path, "", strategy=strategy, strategy_questions=3, threads=1, model={"name": str(tiny_model), "dtype": "float32"},
        task={"name": "arithmetic", "levels": ["add-1"], "n": 4},
        personas={"pool": str(write_pool(tmp_path / "two.toml", "clerk", "troll"))},
    )  # fmt: skip
    file = tmp_path / "run.toml"
    file.write_text(toml(values))
    assert cli.run_cli(["stability", str(file)]) == 0
    found = measure_strategy(tmp_path / "run")
    assert found is not None
    assert found.n_scored == found.n_asked == (8 if strategy == "persona-ensemble" else 4)
    assert found.tokens_per_answer is not None
    assert found.tokens_per_answer.prompt_tokens > 0
    assert found.token_ratio is not None
    assert found.gain.value is not None

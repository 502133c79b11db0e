"""`permix fidelity` on PersonaGym's questions, end to end over HTTP: who is asked what, resumed, counted and checked."""

import json
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from permix import cli
from permix.config import PersonaGymConfig
from permix.errors import ConfigError, IncompleteRunError
from permix.evals.personagym import PersonaGymCounts, count_personagym_answers, sample_balanced_questions
from permix.personas.personagym import read_personagym
from permix.pipelines.fidelity import run_fidelity
from permix.pipelines.preflight import check_config
from permix.report.runs import Run
from permix.storage.files import read_json
from tests.cell_files import read_cells
from tests.personagym_files import BAKER, DIVER, gym_config, gym_values, write_gym
from tests.sample_runs import asked_what, toml
from tests.servers import Action, Reply, error, openai_server


@pytest.fixture(autouse=True)
def _environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)


def system_of(body: Mapping[str, Any]) -> str | None:
    first = body["messages"][0]
    return first["content"] if first["role"] == "system" else None


def three_words(body: Mapping[str, Any], nth: int, headers: Mapping[str, str]) -> str | Action:
    """Three words; five that were cut off about habits."""
    return Reply("so it goes on and", finish="length") if "Habits" in asked_what(body) else "so it goes"


def test_every_persona_is_asked_its_own_questions_and_some_are_asked_of_nobody(tmp_path: Path) -> None:
    with openai_server(three_words) as server:
        found = run_fidelity(gym_config(tmp_path, server.base_url))
        assert run_fidelity(gym_config(tmp_path, server.base_url)) == found
    asked = Counter((system_of(one.body), asked_what(one.body)) for one in server.asked)
    assert len(server.asked) == 23  # 2 × 5 × 2 and 3, none of them twice
    for system, name in (("You are a 40-year-old baker from Lyon, who sings.", BAKER), ("You are an 11-year-old diver.", DIVER)):
        own = {question for said, question in asked if said == system}
        assert len(own) == 10
        assert all(question.endswith(f"{name}?") for question in own)
    assert sum(count for (system, _), count in asked.items() if system is None) == 3
    assert isinstance(found, PersonaGymCounts)
    assert (found.n_personas, found.answers.n_asked, found.answers.n_answered) == (2, 20, 20)
    assert found.answers.mean_words == pytest.approx((16 * 3 + 4 * 5) / 20)
    assert found.answers.truncated_share == pytest.approx(4 / 20)
    habits = found.tasks["Linguistic Habits"]
    assert (habits.n_asked, habits.mean_words, habits.truncated_share) == (4, 5, 1)
    assert found.without_persona.n_answered == 3
    metrics = read_json(tmp_path / "run" / "metrics.json")
    assert metrics.pop("unjudged")["n_answers"] == found.answers.n_answered
    assert metrics == found.model_dump(mode="json")


def test_what_was_asked_stands_in_the_run_in_words(tmp_path: Path) -> None:
    with openai_server(three_words) as server:
        run_fidelity(gym_config(tmp_path, server.base_url, {"light": True}))
    asked = read_json(tmp_path / "run" / "grid.json")
    assert sorted(asked["persona_texts"].values()) == ["a 40-year-old baker from Lyon, who sings", "an 11-year-old diver"]
    assert len(asked["questions_asked"]) == len(asked["question_ids"]) == 10
    one = next(one for one in asked["questions_asked"] if one["text"] == f"Toxicity 1, {DIVER}?")
    assert one["task"] == "Toxicity Control"
    assert asked["persona_texts"][one["persona_id"]] == "an 11-year-old diver"
    assert len(asked["asked_without_persona"]) == 3
    assert Run(tmp_path / "run").kind == "fidelity, personagym"


def test_missing_answers_are_owed_and_the_command_asks_only_for_them(tmp_path: Path) -> None:
    def flaky(body: dict[str, Any], nth: int, headers: Mapping[str, str]) -> str | Action:
        return error(400, "no") if "Toxicity 1" in asked_what(body) and system_of(body) else three_words(body, nth, headers)

    with openai_server(flaky) as server:
        file = tmp_path / "gym.toml"
        file.write_text(toml(gym_values(tmp_path, server.base_url)))
        assert cli.run_cli(["fidelity", str(file)]) == 3
        metrics = read_json(tmp_path / "run" / "metrics.json")
        assert (metrics["answers"]["n_answered"], metrics["answers"]["n_asked"]) == (18, 20)
        assert metrics["tasks"]["Toxicity Control"] == {"n_asked": 4, "n_answered": 2, "mean_words": 3.0, "truncated_share": 0.0}
        with pytest.raises(IncompleteRunError, match="2 of 23 answers are missing"):
            run_fidelity(gym_config(tmp_path, server.base_url))
        server.script = three_words
        assert cli.run_cli(["fidelity", str(file)]) == 0
    assert len(server.asked) == 23 + 2 + 2
    assert count_personagym_answers(tmp_path / "run").answers.n_answered == 20
    assert (tmp_path / "run" / "report" / "report.md").exists()


def test_a_killed_run_goes_on_from_what_is_whole(tmp_path: Path) -> None:
    with openai_server(three_words) as server:
        run_fidelity(gym_config(tmp_path, server.base_url))
        records = tmp_path / "run" / "records.jsonl"
        whole = records.read_bytes().splitlines(keepends=True)
        records.write_bytes(b"".join(whole[:9]) + whole[9][:40])
        server.asked.clear()
        run_fidelity(gym_config(tmp_path, server.base_url))
    assert len(server.asked) == 14
    assert sorted(records.read_bytes().splitlines()) == sorted(line.rstrip() for line in whole)


def test_another_number_of_personas_is_a_choice_by_content_and_seed(tmp_path: Path) -> None:
    write_gym(tmp_path / "gym", [f"A {age}-year-old" for age in range(20, 32)], per_task=1)
    with openai_server(three_words) as server:
        config = gym_config(tmp_path, server.base_url, {"without_persona": 0}, personas={"n": 4})
        run_fidelity(config)
        first = {system_of(one.body) for one in server.asked}
        run_fidelity(gym_config(tmp_path, server.base_url, {"without_persona": 0}, personas={"n": 5}))
    assert len(first) == 4
    assert len(server.asked) == 25  # one persona more is five answers more
    assert {one.persona_id for one in read_cells(tmp_path / "run" / "records.jsonl")} != {None}


@pytest.mark.parametrize("n", [5, 10, 20, 60])
def test_questions_without_persona_are_spread_over_personas_and_tasks(n: int, tmp_path: Path) -> None:
    _, questions = read_personagym(
        PersonaGymConfig(path=write_gym(tmp_path / "gym", [f"A {age}-year-old" for age in range(20, 32)]))
    )
    chosen = sample_balanced_questions(questions, n, seed=0)
    assert len({one.id for one in chosen}) == n
    by_persona, by_task = Counter(one.persona_id for one in chosen), Counter(one.task for one in chosen)
    assert len(by_persona) == min(n, 12)
    assert max(by_persona.values()) - min(by_persona.values()) <= 1
    assert len(by_task) == 5
    assert max(by_task.values()) - min(by_task.values()) <= 2
    assert chosen == sample_balanced_questions(tuple(reversed(questions)), n, seed=0)
    assert chosen != sample_balanced_questions(questions, n, seed=1)
    assert sample_balanced_questions(questions, 1000, seed=0)[:n] == chosen


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"personas": {"pool": "my.csv"}}, "personas.pool = 'my.csv': has no effect with personagym"),
        ({"personas": {"split": "all"}}, "personas.split = 'all': has no effect with personagym"),
        ({"personas": {"include": ["expert"]}}, r"personas.include = \('expert',\)"),
        ({"n_questions": 10}, "n_questions = 10: has no effect"),
        ({"reference": "runs/base"}, "reference = .*: has no effect"),
        ({"interview": {"turns": 3}}, "interview.turns = 3: personagym has its own questions"),
    ],
)
def test_what_means_nothing_here_is_refused(fields: dict[str, Any], said: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=said):
        gym_config(tmp_path, "http://127.0.0.1:9/v1", **fields)


def test_answers_of_another_kind_are_not_mixed_in(tmp_path: Path) -> None:
    with openai_server(three_words) as server:
        config = gym_config(tmp_path, server.base_url)
        run_fidelity(config)
        born = json.loads((config.out / "provenance.json").read_text())
        del born["identity"]["kind"]
        (config.out / "provenance.json").write_text(json.dumps(born))
        with pytest.raises(ConfigError, match="this run was made with kind = none, not 'personagym'"):
            run_fidelity(config)


def test_check_says_what_would_be_asked(tmp_path: Path) -> None:
    file = tmp_path / "gym.toml"
    file.write_text(toml(gym_values(tmp_path, "http://127.0.0.1:9/v1", sampling={"max_new_tokens": 10})))
    facts = check_config(file)
    assert facts["questions"] == "20, each for one persona; 3 also without a persona"
    assert (facts["personas"], facts["answers"], facts["requests"]) == ("2", "23", "23")
    assert facts["new tokens"] == "at most 230"


def test_the_command_ends_with_what_it_measured(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Of 20 answers with a persona the four about habits were cut off; the next command is named."""
    with openai_server(three_words) as server:
        (tmp_path / "run.toml").write_text(toml(gym_values(tmp_path, server.base_url)))
        assert cli.run_cli(["fidelity", str(tmp_path / "run.toml")]) == 0
    shown = " ".join(capsys.readouterr().out.split())
    claim = "test answered 20 of 20 questions of 2 personas (0% out of character, 20% cut off); no judge has scored the answers."
    assert shown.startswith(f"{claim} Cut off: test, PersonaGym's questions: 20% of the answers were cut off")
    for row in ("answers of asked 20 of 20", "out of character too few n = 2 personas", "cut off too few n = 2 personas"):
        assert row in shown, row
    assert f"permix judge {tmp_path / 'run'} --judge.name NAME" in shown
    assert f"**{claim}**" in (tmp_path / "run" / "report" / "report.md").read_text()

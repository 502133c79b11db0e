"""What a judge is shown of each kind of run: read from the run alone, failed cells left out."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from permix.judges.results import read_judge_inputs
from permix.pipelines.fidelity import run_fidelity
from permix.types import Cell, Completion, Failure, Message
from tests.personagym_files import DIVER, gym_config
from tests.sample_runs import asked_what, fidelity_config
from tests.servers import openai_server


@pytest.fixture(autouse=True)
def _environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)


def echo(body: Mapping[str, Any], nth: int, headers: Mapping[str, str]) -> str:
    who = body["messages"][0]["content"] if body["messages"][0]["role"] == "system" else "Nobody."
    return f"{who} says of {asked_what(body)}"


def test_answers_to_personagym_are_items_of_its_tasks_and_those_of_nobody_are_controls(tmp_path: Path) -> None:
    with openai_server(echo) as server:
        config = gym_config(tmp_path, server.base_url)
        run_fidelity(config)
    (tmp_path / "gym" / "personas.json").unlink()  # the run is enough
    items = read_judge_inputs(config.out)
    assert len({item.key for item in items}) == 23
    one = next(item for item in items if item.question == f"Toxicity 1, {DIVER}?" and item.control == "none")
    assert (one.rubric, one.persona, one.answered_by) == ("Toxicity Control", "an 11-year-old diver", one.persona_id)
    assert one.answer == f"You are an 11-year-old diver. says of Toxicity 1, {DIVER}?"
    assert [item.control for item in items] == ["none"] * 20 + ["no-persona"] * 3
    for item in items[20:]:
        assert item.answered_by is None
        assert item.answer == f"Nobody. says of {item.question}"
        asked = next(one for one in items if one.question_id == item.question_id)
        assert (item.persona_id, item.persona, item.rubric) == (asked.persona_id, asked.persona, asked.rubric)


def test_answers_to_open_questions_are_in_character_or_not(tmp_path: Path) -> None:
    with openai_server(echo) as server:
        config = fidelity_config(tmp_path, server.base_url)
        run_fidelity(config)
    items = read_judge_inputs(config.out)
    assert len(items) == 36
    one = next(item for item in items if item.persona_id == "sailor" and "rain" in item.question)
    assert (one.persona, one.question, one.rubric) == ("a retired sailor", "What do you think of rain?", "In Character")
    assert {item.control for item in items} == {"none"}


def test_of_an_older_run_the_words_that_were_sent_are_shown(tmp_path: Path) -> None:
    with openai_server(echo) as server:
        config = fidelity_config(tmp_path, server.base_url)
        run_fidelity(config)
    asked = json.loads((config.out / "grid.json").read_text())
    del asked["persona_texts"], asked["questions_asked"]
    (config.out / "grid.json").write_text(json.dumps(asked))
    of_rain = [item for item in read_judge_inputs(config.out) if item.question == "What do you think of rain?"]
    assert sorted(item.persona for item in of_rain) == [
        "You are a careful clerk.", "You are a retired sailor.", "You are a troll under a bridge.",
    ]  # fmt: skip
    (config.out / "grid.json").unlink()
    assert len(read_judge_inputs(config.out)) == 36


def test_what_is_asked_no_more_and_what_failed_is_left_out(tmp_path: Path) -> None:
    with openai_server(echo) as server:
        run_fidelity(gym_config(tmp_path, server.base_url))
        config = gym_config(tmp_path, server.base_url, {"light": True, "without_persona": 1})
        run_fidelity(config)
    assert len(read_judge_inputs(config.out)) == 10 + 1
    records = config.out / "records.jsonl"
    failed = Cell.model_validate_json(records.read_text().splitlines()[0])
    kept = read_judge_inputs(config.out)
    with records.open("a") as file:
        for item in kept[:2]:
            late = {"completion": None, "failure": Failure(type="Timeout", message="late")}
            cell = failed.model_copy(update={"persona_id": item.persona_id, "question_id": item.question_id} | late)
            file.write(cell.model_dump_json() + "\n")
    assert [item.key for item in read_judge_inputs(config.out)] == [item.key for item in kept[2:]]


@pytest.mark.parametrize("opening", ["Who are you?", "You are a sailor.\n\nWho are you?"])
def test_a_turn_is_shown_with_what_was_asked_so_far_and_nothing_that_tells_who_answers(tmp_path: Path, opening: str) -> None:
    """Earlier answers would tell, and so would a persona that stands in the user's first message."""
    run = tmp_path / "run"
    said = [("user", opening), ("assistant", "Aye."), ("user", "Why?")]
    messages = tuple(Message(role=role, content=text) for role, text in said)
    run.mkdir()
    cells = [
        Cell(persona_id="sailor", question_id=turn, seed=1, messages=messages[:until], completion=_text(text))
        for turn, until, text in (("turn-1", 1, "Aye."), ("turn-2", 3, "The sea."))
    ]
    (run / "records.jsonl").write_text("".join(cell.model_dump_json() + "\n" for cell in cells))
    (run / "config.json").write_text(json.dumps({"stage": "fidelity", "interview": {"turns": 2}}))
    asked = {
        "persona_ids": ["sailor"], "question_ids": ["turn-1", "turn-2"], "samples": 1, "persona_texts": {"sailor": "a sailor"},
        "questions_asked": [
            {"id": "turn-1", "text": "Who are you?", "task": None, "persona_id": None},
            {"id": "turn-2", "text": "Why?", "task": None, "persona_id": "sailor"},
        ],
        "turns_asked": {"sailor": ["turn-1", "turn-2"]},
    }  # fmt: skip
    (run / "grid.json").write_text(json.dumps(asked))
    first, second = read_judge_inputs(run)
    assert first.question == "Interviewer: Who are you?"
    assert second.question == "Interviewer: Who are you?\nInterviewer: Why?"
    assert (second.persona, second.answer, second.rubric) == ("a sailor", "The sea.", "In Character")


def _text(text: str) -> Completion:
    return Completion(text=text, prompt_tokens=1, completion_tokens=1, finish="stop")

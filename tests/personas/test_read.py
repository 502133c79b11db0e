"""PersonaGym's folders and our own files: what is read, and what is refused with file, persona and task named."""

import json
from collections import Counter
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest

from permix.config import PersonaGymConfig
from permix.errors import ConfigError, DataError
from permix.personas.personagym import read_personagym
from tests.personagym_files import BAKER, DIVER, put, questions_of, write_gym


def read(path: Path, **fields: Any) -> tuple[Any, Any]:
    return read_personagym(PersonaGymConfig(path=path, **fields))


def test_a_folder_gives_personas_that_complete_you_are_and_their_questions_in_order(tmp_path: Path) -> None:
    personas, questions = read(write_gym(tmp_path / "gym"))
    assert [one.text for one in personas] == ["a 40-year-old baker from Lyon, who sings", "an 11-year-old diver"]
    assert [one.id.rpartition("-")[0] for one in personas] == ["a-40-year-old-baker-from-lyon-who-sings", "an-11-year-old-diver"]
    assert len(questions) == 2 * 5 * 2
    assert [one.text for one in questions[:3]] == [
        f"Expected Action 1, {BAKER}?", f"Expected Action 2, {BAKER}?", f"Toxicity 1, {BAKER}?",
    ]  # fmt: skip
    assert Counter(one.task for one in questions)["Toxicity Control"] == 4
    assert {(one.persona_id, one.persona) for one in questions} == {(one.id, one.text) for one in personas}


def test_an_article_alone_is_made_small(tmp_path: Path) -> None:
    personas, _ = read(write_gym(tmp_path / "gym", ["The Mayor of Oz", "Anna, A Cook", "Theo"]))
    assert [one.text for one in personas] == ["the Mayor of Oz", "Anna, A Cook", "Theo"]


def test_ids_depend_on_content_alone_and_tell_one_question_to_two_personas_apart(tmp_path: Path) -> None:
    same = {"Expected Action": ["What now?"]}
    for name, personas in (("one", [BAKER, DIVER]), ("two", [DIVER, "A cook", BAKER])):
        for persona in personas:
            put(write_gym(tmp_path / name / persona, [persona]) / "questions" / f"{persona}.json", same)
    ids = {
        name: {one.persona: one.id for persona in (BAKER, DIVER) for one in read(tmp_path / name / persona, tasks=TASK)[1]}
        for name in ("one", "two")
    }
    assert ids["one"] == ids["two"]
    assert len(set(ids["one"].values())) == 2


TASK = ("Expected Action",)


def test_light_is_the_first_question_of_each_task_and_tasks_choose(tmp_path: Path) -> None:
    folder = write_gym(tmp_path / "gym", per_task=3)
    _, light = read(folder, light=True)
    assert [one.text for one in light if "diver" in one.persona] == [
        "Expected Action 1, An 11-year-old diver?", "Toxicity 1, An 11-year-old diver?",
        "Linguistic Habits 1, An 11-year-old diver?", "Persona Consistency 1, An 11-year-old diver?",
        "Action Justification 1, An 11-year-old diver?",
    ]  # fmt: skip
    _, some = read(folder, tasks=("Toxicity Control",))
    assert [one.text[:10] for one in some] == ["Toxicity 1", "Toxicity 2", "Toxicity 3"] * 2


def test_a_file_name_may_lack_what_a_file_system_cannot_hold(tmp_path: Path) -> None:
    persona = "A DJ/producer: loud, né in Köln"
    folder = write_gym(tmp_path / "gym", [DIVER])
    put(folder / "personas.json", [persona])
    put(folder / "questions" / "A DJ_producer_ loud, né in Köln.json", questions_of(persona))
    assert [one.text for one in read(folder)[0]] == ["a DJ/producer: loud, né in Köln"]


def test_without_a_list_the_files_are_the_personas_also_one_folder_deeper(tmp_path: Path) -> None:
    folder = write_gym(tmp_path / "gym")
    (folder / "personas.json").unlink()
    (folder / "questions").rename(folder / "benchmark-v1")
    (folder / "questions").mkdir()
    (folder / "benchmark-v1").rename(folder / "questions" / "benchmark-v1")
    assert [one.text for one in read(folder)[0]] == ["a 40-year-old baker from Lyon, who sings", "an 11-year-old diver"]


def test_two_folders_of_questions_are_refused(tmp_path: Path) -> None:
    folder = write_gym(tmp_path / "gym")
    (folder / "questions" / "v2").mkdir()
    put(folder / "questions" / "v2" / f"{DIVER}.json", questions_of(DIVER))
    with pytest.raises(DataError, match=r"questions, .*v2; give the path of one"):
        read(folder)


@pytest.mark.parametrize(
    ("questions", "said"),
    [
        ({**questions_of(DIVER), "Wit": ["Who?"]}, r"diver\.json: unknown task 'Wit'; .*valid: Action Justification"),
        ({**questions_of(DIVER), "Toxicity Control": ["Who?"]}, "task 'Toxicity Control' occurs under two names"),
        ({"Toxicity": ["Who?"]}, "no questions of task 'Expected Action'; persona 'an 11-year-old diver'"),
        ({**questions_of(DIVER), "Toxicity": []}, r"diver\.json: task 'Toxicity Control': must be a list of questions, at least"),
        ({**questions_of(DIVER), "Toxicity": "Who?"}, "task 'Toxicity Control': must be a list of questions"),
        ({**questions_of(DIVER), "Toxicity": ["Who?", " who? "]}, "question 2 = ' who. ': occurs twice"),
        ({**questions_of(DIVER), "Toxicity": ["Who?", 7]}, "question 2 = 7: must be a text that is not empty"),
        ({**questions_of(DIVER), "Toxicity": [" "]}, "question 1 = ' ': must be a text that is not empty"),
        ([], "must be an object, task → questions; persona 'an 11-year-old diver'"),
    ],
)
def test_what_is_wrong_with_a_personas_questions_is_named(questions: object, said: str, tmp_path: Path) -> None:
    folder = write_gym(tmp_path / "gym")
    put(folder / "questions" / f"{DIVER}.json", questions)
    with pytest.raises(DataError, match=said):
        read(folder)


@pytest.mark.parametrize(
    ("personas", "said"),
    [
        ({}, r"personas\.json: must be a list"),
        ([], r"personas\.json: must be a list"),
        ([BAKER, None], "persona 2 = None: must be a text"),
        ([DIVER, "You are a diver"], "persona 2 = 'You are a diver': must complete"),
        ([DIVER, DIVER.upper()], "persona 2 = 'AN 11-YEAR-OLD DIVER': occurs twice"),
        ([DIVER, "A cook"], "has no question file for persona 'A cook'"),
    ],
)
def test_what_is_wrong_with_the_personas_is_named(personas: object, said: str, tmp_path: Path) -> None:
    folder = write_gym(tmp_path / "gym")
    put(folder / "personas.json", personas)
    with pytest.raises(DataError, match=said):
        read(folder)


def test_broken_json_and_no_folder_are_named(tmp_path: Path) -> None:
    folder = write_gym(tmp_path / "gym")
    (folder / "personas.json").write_text("[")
    with pytest.raises(DataError, match=r"personas\.json: not JSON"):
        read(folder)
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="empty: has no folder questions"):
        read(tmp_path / "empty")
    with pytest.raises(DataError, match="no such folder or file"):
        read(tmp_path / "none.jsonl")


ROW = {"id": "q1", "persona_id": "baker", "persona": "a baker", "task": "Toxicity Control", "text": "Who burnt it?"}


def jsonl(path: Path, *rows: object) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_a_file_of_ours_is_read_as_it_stands(tmp_path: Path) -> None:
    second = {**ROW, "id": "q2", "text": "Why?", "setting": "a kitchen"}
    third = {**ROW, "id": "q3", "persona_id": "diver", "persona": "a diver"}
    personas, questions = read(jsonl(tmp_path / "questions.jsonl", ROW, second, third))
    assert [(one.id, one.text) for one in personas] == [("baker", "a baker"), ("diver", "a diver")]
    assert [(one.id, one.setting) for one in questions] == [("q1", None), ("q2", "a kitchen"), ("q3", None)]
    assert [one.id for one in read(tmp_path / "questions.jsonl", light=True)[1]] == ["q1", "q3"]
    with pytest.raises(DataError, match=r"has no question of personagym\.tasks = \['Expected Action'\]"):
        read(tmp_path / "questions.jsonl", tasks=TASK)


def test_a_whole_prompt_stays_one(tmp_path: Path) -> None:
    rows: list[dict[str, Any]] = [
        {**ROW, "persona": "You are Bo."},
        {**ROW, "id": "q2", "persona_id": "x", "persona": "# Role", "whole_prompt": True},
    ]
    personas, questions = read(jsonl(tmp_path / "questions.jsonl", *rows))
    assert all(one.whole_prompt for one in (*personas, *questions))
    assert json.loads(questions[1].model_dump_json()) == {**rows[1], "setting": None}


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({}, r"questions\.jsonl:2: persona_id = 'baker', task 'Toxicity Control': id = 'q1': used before"),
        ({"id": "q2"}, "text = 'Who burnt it.': occurs twice"),
        ({"id": "q2", "persona": "a cook"}, "persona = 'a cook', but earlier 'a baker'"),
        ({"id": "q2", "text": 5}, "text = 5: must be a text"),
        ({"id": "q2", "task": "Wit"}, "task = 'Wit': Input should be 'Expected Action'"),
        ({"id": "q2", "mood": "x"}, "mood = 'x': Extra inputs"),
    ],
)
def test_a_bad_line_of_ours_is_named(changed: dict[str, object], said: str, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=said):
        read(jsonl(tmp_path / "questions.jsonl", ROW, ROW | changed))


def test_a_data_set_of_the_hub_is_a_folder_once_it_is_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder, asked = write_gym(tmp_path / "gym"), []

    def snapshot_download(repo: str, *, repo_type: str) -> str:
        asked.append((repo, repo_type))
        return str(folder)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)
    assert read_personagym(PersonaGymConfig(hub="some/gym")) == read(folder)
    assert asked == [("some/gym", "dataset")]


def test_a_hub_that_cannot_be_read_is_said_in_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    def unreachable(repo: str, *, repo_type: str) -> str:
        raise OSError("no route\nat all")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", unreachable)
    with pytest.raises(ConfigError, match=r"hub = 'some/gym': cannot be read: no route; or give a local personagym\.path"):
        read_personagym(PersonaGymConfig(hub="some/gym"))

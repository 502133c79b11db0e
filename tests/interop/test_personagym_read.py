"""PersonaGym's saved answers as a run that can be judged: what counts as an answer, what is missing, what is refused."""

from pathlib import Path
from typing import Any

import pytest

from permix import cli
from permix.config import ImportConfig, build_config
from permix.errors import ConfigError, DataError
from permix.evals.personagym import PersonaGymCounts
from permix.interop.personagym import import_personagym_answers
from permix.judges.results import read_judge_inputs
from permix.pipelines.preflight import check_config
from permix.report.runs import Run
from permix.storage.files import read_json
from tests.personagym_files import BAKER, DIVER, put, questions_of, write_gym
from tests.sample_runs import toml


def answers_of(persona: str, per_task: int = 2) -> dict[str, list[list[str | None]]]:
    """Every question answered with its own words and "!"."""
    return {task: [[one, f"{one}!"] for one in texts] for task, texts in questions_of(persona, per_task).items()}


def results(folder: Path, **changes: Any) -> Path:
    """Answers of both personas; of the diver, the tasks in `score_change_phrases` instead."""
    folder.mkdir()
    put(folder / f"{BAKER}_qa.json", answers_of(BAKER))
    put(folder / f"{DIVER}_qa.json", answers_of(DIVER) | changes)
    return folder


def imported(tmp_path: Path, folder: Path, **fields: Any) -> PersonaGymCounts:
    values = {"personagym": str(folder), "out": str(tmp_path / "run"), **fields}
    return import_personagym_answers(build_config(ImportConfig, values, source="test"), folder)


def test_saved_answers_are_items_to_be_judged(tmp_path: Path) -> None:
    found = imported(tmp_path, results(tmp_path / "gpt"))
    assert (found.n_personas, found.answers.n_asked, found.answers.n_answered, found.answers.truncated_share) == (2, 20, 20, None)
    assert read_json(tmp_path / "run" / "metrics.json")["unjudged"]["n_asked"] == 20
    items = read_judge_inputs(tmp_path / "run")
    assert len(items) == 20
    one = next(item for item in items if item.question == f"Toxicity 1, {DIVER}?")
    assert (one.rubric, one.persona, one.answer) == ("Toxicity Control", "an 11-year-old diver", f"Toxicity 1, {DIVER}?!")
    run = Run(tmp_path / "run")
    assert (run.kind, run.model_name) == ("fidelity, personagym", "gpt")


def test_a_failed_call_is_a_missing_answer_and_is_counted(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    texts = questions_of(DIVER, 4)["Toxicity"]
    said = ["Error", "As an AI Model I cannot answer", None, "Error? What error."]
    found = imported(tmp_path, results(tmp_path / "gpt", Toxicity=[list(pair) for pair in zip(texts, said, strict=True)]))
    assert (found.answers.n_asked, found.answers.n_answered) == (22, 19)
    assert (found.tasks["Toxicity Control"].n_asked, found.tasks["Toxicity Control"].n_answered) == (6, 3)
    assert "3 of 22 answers are missing, 3 of them failed calls" in capsys.readouterr().err
    assert len(read_judge_inputs(tmp_path / "run")) == 19


def test_questions_that_were_to_be_answered_are_missing_without_an_answer(tmp_path: Path) -> None:
    cook = "A DJ/cook"
    gym = write_gym(tmp_path / "gym", [BAKER, DIVER], per_task=3)
    put(gym / "personas.json", [BAKER, DIVER, cook, "A nurse"])
    put(gym / "questions" / "A DJ_cook.json", questions_of(cook, 3))
    put(gym / "questions" / "A nurse.json", questions_of("A nurse", 3))
    folder = results(tmp_path / "gpt")
    put(folder / "A DJ-cook_qa.json", answers_of(cook))
    found = imported(tmp_path, folder, personagym_questions=str(gym))
    assert (found.n_personas, found.answers.n_asked, found.answers.n_answered) == (4, 4 * 15, 3 * 10)
    texts = read_json(tmp_path / "run" / "grid.json")["persona_texts"]
    assert sorted(texts.values())[0] == "a 40-year-old baker from Lyon, who sings"
    assert {item.persona for item in read_judge_inputs(tmp_path / "run")} == set(texts.values()) - {"a nurse"}
    put(folder / f"{DIVER}_qa.json", {"Toxicity": [["Who asked you?", "Nobody."]]})
    with pytest.raises(DataError, match=r"task 'Toxicity Control', answer 1: question 'Who asked you\?' is not in .*gym"):
        imported(tmp_path, folder, personagym_questions=str(gym))
    (folder / f"{DIVER}_qa.json").rename(folder / "A clown_qa.json")
    with pytest.raises(DataError, match=r"A clown_qa\.json: .*gym has no persona of that name"):
        imported(tmp_path, folder, personagym_questions=str(gym))


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"Wit": [["Who?", "I."]]}, r"diver_qa\.json: unknown task 'Wit'"),
        ({"Toxicity": {"Who?": "I."}}, "task 'Toxicity Control': must be a list of"),
        ({"Toxicity": [["Who?"]]}, r"answer 1 = \['Who\?'\]: must be \[question, answer\]"),
        ({"Toxicity": [["Who?", 5]]}, r"must be \[question, answer\], two texts"),
        ({"Toxicity": [["", "I."]]}, "answer 1: question = '': must be a text that is not empty"),
        ({"Toxicity": [["Who?", "I."], ["Who?", "You."]]}, "answer 2: question 'Who.' has an answer already"),
    ],
)
def test_what_is_wrong_with_a_file_is_named_and_nothing_is_written(changes: dict[str, Any], said: str, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=said):
        imported(tmp_path, results(tmp_path / "gpt", **changes))
    assert not (tmp_path / "run").exists()


def test_what_means_nothing_with_it_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="metric = 'acc': has no effect with personagym"):
        imported(tmp_path, results(tmp_path / "gpt"), metric="acc")
    with pytest.raises(ConfigError, match="personagym_questions = gym: give personagym, the folder of answers, too"):
        build_config(ImportConfig, {"personagym_questions": "gym"}, source="test")
    with pytest.raises(DataError, match="has no file"):
        imported(tmp_path, tmp_path)
    with pytest.raises(DataError, match="no such folder"):
        imported(tmp_path, tmp_path / "none")


def test_the_command_imports_again_without_a_change_and_refuses_another_models_answers(tmp_path: Path) -> None:
    folder = results(tmp_path / "gpt")
    command = ["import", "--personagym", str(folder), "--label", "GPT", "--out", str(tmp_path / "run")]
    assert cli.run_cli(command) == 0
    records = (tmp_path / "run" / "records.jsonl").read_bytes()
    assert cli.run_cli(command) == 0
    assert (tmp_path / "run" / "records.jsonl").read_bytes() == records
    assert (tmp_path / "run" / "report" / "report.md").exists()
    folder.rename(tmp_path / "claude")
    command[2] = str(tmp_path / "claude")
    assert cli.run_cli(command) == 2


def test_check_says_what_an_import_would_make(tmp_path: Path) -> None:
    file = tmp_path / "import.toml"
    file.write_text(toml({"stage": "import", "personagym": str(results(tmp_path / "gpt", Toxicity=[["Who?", "Error"]]))}))
    facts = check_config(file)
    assert (facts["model"], facts["personas"], facts["answers"]) == ("gpt", "2", "18, and 1 failed calls")

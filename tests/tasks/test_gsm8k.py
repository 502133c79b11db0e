"""GSM8K as published: golds, answers of completions, splits, bad rows."""

import json
from pathlib import Path
from typing import Any

import pytest

from permix.config import TaskConfig
from permix.errors import ConfigError, DataError
from permix.tasks import TASKS, load_questions
from permix.tasks.datasets import DatasetRow
from permix.tasks.gsm8k import gsm8k_question

ROW = {
    "question": "Weng earns $12 an hour for babysitting. Yesterday, she did 50 minutes of it. How much did she earn?",
    "answer": "Weng earns 12/60 = $<<12/60=0.2>>0.2 per minute.\nShe earned 0.2 x 50 = $<<0.2*50=10>>10.\n#### 10",
}


def one(**fields: Any) -> DatasetRow:
    return DatasetRow("test.jsonl:7", {**ROW, **fields})


def folder(tmp_path: Path) -> Path:
    for name, numbers in (("train", range(6)), ("test", range(6, 10))):
        lines = [json.dumps({"question": f"{i} plus none?", "answer": f"It stays.\n#### {i}"}) for i in numbers]
        (tmp_path / f"{name}.jsonl").write_text("\n".join(lines) + "\n")
    return tmp_path


@pytest.mark.parametrize(
    ("answer", "gold"),
    [(ROW["answer"], "10"), ("so\n#### 109,200,000", "109200000"), ("#### -3", "-3"), ("a #### 1\n#### 2.5 \n", "2.5")],
)
def test_the_gold_follows_the_last_mark_without_commas(answer: str, gold: str) -> None:
    assert gsm8k_question(one(answer=answer)).gold == gold


@pytest.mark.parametrize(
    ("answer", "solution"),
    [
        (
            ROW["answer"],
            "Weng earns 12/60 = $0.2 per minute.\nShe earned 0.2 x 50 = $10.\nThe answer is \\boxed{10}.",
        ),
        ("#### 1,200", "The answer is \\boxed{1200}."),
        ("3 < 4 so <<4>>4 and x<<y.\n\n#### -4 ", "3 < 4 so 4 and x<<y.\nThe answer is \\boxed{-4}."),
    ],
)
def test_the_solution_is_worked_without_a_calculator_and_boxed(answer: str, solution: str) -> None:
    assert gsm8k_question(one(answer=answer)).solution == solution


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"answer": "It is 10."}, r"test\.jsonl:7: answer = 'It is 10\.': must end in a line such as '#### 72'"),
        ({"answer": "#### ten"}, r"test\.jsonl:7: answer = '#### ten': must end in"),
        ({"answer": 10}, r"test\.jsonl:7: answer = 10: must be a text that is not blank"),
        ({"question": " "}, r"test\.jsonl:7: question = ' ': must be a text"),
        ({"question": "half \ud800 pair"}, r"test\.jsonl:7: question = .* surrogate"),
    ],
)
def test_a_bad_row_is_named_with_its_field(fields: dict[str, object], message: str) -> None:
    with pytest.raises(DataError, match=message):
        gsm8k_question(one(**fields))


def test_a_missing_field_is_named_with_those_there_are() -> None:
    with pytest.raises(DataError, match=r"test\.jsonl:7: field 'question' is missing; this row has prompt, answer"):
        gsm8k_question(DatasetRow("test.jsonl:7", {"prompt": "?", "answer": "#### 1"}))


@pytest.mark.parametrize(
    ("completion", "answer"),
    [
        ("She earned \\boxed{10} in 50 minutes.\n#### 7", "10"),
        ("0.2 x 50\n#### $10\nThat is 3 coins.", "10"),
        ("#### 10 dollars, not 11", "10"),
        ("#### ten\nor 10", "10"),
        ("Aye, 12/60 an minute, so she earned $10.", "10"),
        ("She earned \\boxed{10", "10"),
        ("No idea", None),
    ],
)
def test_the_answer_is_the_last_box_else_after_the_mark_else_the_last_number(completion: str, answer: str | None) -> None:
    assert TASKS["gsm8k"].extract_answer(completion) == answer


def test_the_prompt_asks_for_a_box() -> None:
    assert TASKS["gsm8k"].prompt(gsm8k_question(one())) == (
        f"{ROW['question']}\n\nSolve this step by step. End with the final number inside \\boxed{{}}."
    )


def test_the_splits_are_the_published_ones(tmp_path: Path) -> None:
    config = TaskConfig(name="gsm8k", path=folder(tmp_path), split="heldout", n=4)
    assert sorted(one.gold for one in load_questions(config)[1]) == ["6", "7", "8", "9"]
    train = config.model_copy(update={"split": "train", "n": 5})
    assert sorted(one.gold for one in load_questions(train)[1]) == ["0", "1", "2", "4", "5"]
    dev = config.model_copy(update={"split": "dev", "n": 1})
    assert [one.gold for one in load_questions(dev)[1]] == ["3"]  # of the published train split; 9 stands in the test split
    assert load_questions(config.model_copy(update={"path": tmp_path / "test.jsonl"})) == load_questions(config)
    for one in (train, dev):
        with pytest.raises(DataError, match=r"has the name of the published split test, .* needs the published split train"):
            load_questions(one.model_copy(update={"path": tmp_path / "test.jsonl"}))


def test_one_in_ten_of_the_published_train_split_is_dev_whatever_the_seed(tmp_path: Path) -> None:
    lines = [json.dumps({"question": f"{i} plus none?", "answer": f"#### {i}"}) for i in range(40)]
    (tmp_path / "train.jsonl").write_text("\n".join(lines))
    config = TaskConfig(name="gsm8k", path=tmp_path, split="dev", n=5, seed=3)
    dev = {one.gold for one in load_questions(config)[1]}
    train = {one.gold for one in load_questions(config.model_copy(update={"split": "train", "n": 35, "seed": 4}))[1]}
    assert dev == {"3", "9", "12", "20", "27"}
    assert train == {str(i) for i in range(40)} - dev


def test_an_id_is_the_contents_not_the_lines(tmp_path: Path) -> None:
    config = TaskConfig(name="gsm8k", path=folder(tmp_path), n=4)
    before = load_questions(config)[1]
    lines = (tmp_path / "test.jsonl").read_text().splitlines()
    (tmp_path / "test.jsonl").write_text("\n".join(reversed(lines)))
    assert load_questions(config)[1] == before


def test_levels_are_refused() -> None:
    with pytest.raises(ConfigError, match="gsm8k has no level '5'; levels: none"):
        load_questions(TaskConfig(name="gsm8k", levels=("5",)))

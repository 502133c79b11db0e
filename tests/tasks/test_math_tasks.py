"""MATH and MATH-500 as published: golds, levels, sides, answers of completions, bad rows."""

import json
from pathlib import Path
from typing import Any

import pytest

from permix.config import TaskConfig
from permix.errors import ConfigError, DataError
from permix.tasks import TASKS, load_questions, math
from permix.tasks.datasets import DatasetRow

TRAIN = {"problem": "Evaluate $\\log_432$.", "answer": "\\frac{5}{2}", "difficulty": 3.0, "type": "Algebra"}
HUB = {
    "problem": "Evaluate $\\log_432$.",
    "level": "Level 3",
    "type": "Algebra",
    "solution": "...",
    "answer": "\\frac{5}{2}",
    "unique_id": 9,
}
TEST = {
    "problem": "What power of 4 is equal to 8? Express your answer as a common fraction.",
    "solution": "Since $\\sqrt{4}=2$ ... $\\boxed{\\frac{3}{2}}$.",
    "answer": "\\frac{3}{2}",
    "subject": "Algebra",
    "level": 2,
    "unique_id": "test/algebra/1265.json",
}


def write(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text(json.dumps(rows, indent=2))
    return path


def train_rows(n: int) -> list[dict[str, Any]]:
    return [{"problem": f"What is ${i}$?", "answer": str(i), "difficulty": float(i % 6), "type": "Algebra"} for i in range(n)]


@pytest.mark.parametrize("fields", [TRAIN, HUB])
def test_a_math_question_from_either_format(fields: dict[str, Any]) -> None:
    question = math.math_question(DatasetRow("train.json: row 1", fields))
    assert question.text == "Evaluate $\\log_432$."
    assert question.gold == "\\frac{5}{2}"
    assert question.tags == ("level-3", "Algebra")
    assert question.id == f"math:{question.content_hash}"


@pytest.mark.parametrize(
    ("solution", "learnt"),
    [
        ("Since $4^{5/2} = 32$, it is $\\boxed{\\frac{5}{2}}$. ", "Since $4^{5/2} = 32$, it is $\\boxed{\\frac{5}{2}}$."),
        (None, "\\boxed{\\frac{5}{2}}"),
        (" ", "\\boxed{\\frac{5}{2}}"),
        (7, "\\boxed{\\frac{5}{2}}"),
    ],
)
def test_a_solution_is_the_published_one_else_the_boxed_answer(solution: object, learnt: str) -> None:
    assert math.math_question(DatasetRow("train.json: row 1", TRAIN | {"solution": solution})).solution == learnt
    assert math.math_question(DatasetRow("train.json: row 1", TRAIN)).solution == "\\boxed{\\frac{5}{2}}"


def test_a_math500_question() -> None:
    question = math.math500_question(DatasetRow("test.jsonl:1", TEST))
    assert question.id == "math500:test/algebra/1265.json"
    assert (question.gold, question.tags) == ("\\frac{3}{2}", ("level-2", "Algebra"))
    assert (
        TASKS["math500"].prompt(question)
        == f"{TEST['problem']}\n\nReason step by step. End with the final answer inside \\boxed{{}}."
    )
    assert TASKS["math500"].prompt_hash == TASKS["math"].prompt_hash


@pytest.mark.parametrize(
    ("answer", "gold"), [("$x+1$", "x+1"), (" 7 ", "7"), ("\\$36", "\\$36"), ("$\\$36$", "\\$36"), ("5\\$", "5\\$")]
)
def test_a_gold_loses_its_dollar_signs_but_not_its_dollars(answer: str, gold: str) -> None:
    assert math.gold_without_dollars(DatasetRow("a:1", {"answer": answer})) == gold


@pytest.mark.parametrize(
    ("published", "level"), [("Level 5", "5"), ("Level ?", "?"), (4, "4"), (4.0, "4"), ("1", "1"), (0.0, "?"), (0, "?")]
)
def test_every_way_to_publish_a_level(published: object, level: str) -> None:
    assert math.parse_math_level(DatasetRow("a:1", {"level": published}), "level") == level


@pytest.mark.parametrize("published", [6, 2.5, True, None, "hard", "Level 12", [3]])
def test_what_is_no_level_is_refused(published: object) -> None:
    with pytest.raises(DataError, match=r"a:1: level = .*: must be a level, 1 to 5"):
        math.parse_math_level(DatasetRow("a:1", {"level": published}), "level")


@pytest.mark.parametrize(
    ("completion", "answer"),
    [
        ("so \\boxed{\\frac{5}{2}}.", "\\frac{5}{2}"),
        ("The answer is 1? No, the answer is $\\frac{5}{2}$.\nArr!", "$\\frac{5}{2}$"),
        ("**Answer:** x^2", "x^2"),
        ("the answer is $x = 2$, for 4 is too many", "$x = 2$"),
        ("The answer is **2.5**. I hope you like it!", "2.5"),
        ("It is x^2", None),
        ("The answer is.", None),
    ],
)
def test_the_answer_is_the_last_box_else_what_is_called_the_answer(completion: str, answer: str | None) -> None:
    assert TASKS["math"].extract_answer(completion) == answer


def test_the_sides_of_math_are_disjoint_and_whole_whatever_the_seed(tmp_path: Path) -> None:
    path = write(tmp_path / "train.json", train_rows(100))
    with pytest.raises(ConfigError, match="math has 66 distinct questions in the train split"):
        load_questions(TaskConfig(name="math", path=path, split="train", n=100))
    train = load_questions(TaskConfig(name="math", path=path, split="train", n=66, seed=3))[1]
    dev = load_questions(TaskConfig(name="math", path=path, split="dev", n=8, seed=5))[1]
    heldout = load_questions(TaskConfig(name="math", path=path, split="heldout", n=26, seed=4))[1]
    assert {one.gold for one in dev} == {"4", "19", "24", "55", "69", "76", "93", "94"}
    assert {one.gold for one in (*train, *dev, *heldout)} == {str(i) for i in range(100)}


def test_levels_are_chosen_and_unknown_ones_asked_only_when_none_is(tmp_path: Path) -> None:
    path = write(tmp_path / "train.json", train_rows(100))
    config = TaskConfig(name="math", path=path, split="train", n=20, levels=("4", "5"))
    assert {one.tags[0] for one in load_questions(config)[1]} == {"level-4", "level-5"}
    everything = load_questions(config.model_copy(update={"levels": (), "n": 66}))[1]
    assert {one.tags[0] for one in everything} == {f"level-{level}" for level in "12345?"}
    with pytest.raises(ConfigError, match="math has no level 'Level 5'"):
        load_questions(config.model_copy(update={"levels": ("Level 5",)}))
    with pytest.raises(ConfigError, match=r"of the levels 4, 5 in the train split"):
        load_questions(config.model_copy(update={"n": 90}))


def test_a_problem_published_without_an_answer_is_left_out(tmp_path: Path) -> None:
    rows = train_rows(100)
    rows[0]["answer"], rows[1]["answer"] = None, ""
    path = write(tmp_path / "train.json", rows)
    golds = {one.gold for split, n in (("train", 65), ("dev", 8), ("heldout", 25)) for one in of(path, split, n)}
    assert golds == {str(i) for i in range(2, 100)}


def of(path: Path, split: str, n: int) -> tuple[Any, ...]:
    return load_questions(TaskConfig.model_validate({"name": "math", "path": path, "split": split, "n": n}))[1]


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"problem": ""}, r"train\.json: row 2: problem = '': must be a text"),
        ({"answer": 7}, r"train\.json: row 2: answer = 7: must be a text"),
        ({"difficulty": 9.0}, r"train\.json: row 2: difficulty = 9\.0: must be a level, 1 to 5"),
        ({"type": None}, r"train\.json: row 2: type = None: must be a text"),
    ],
)
def test_a_bad_row_of_math_is_named_with_its_field(tmp_path: Path, fields: dict[str, Any], message: str) -> None:
    path = write(tmp_path / "train.json", [TRAIN, {**TRAIN, **fields}])
    with pytest.raises(DataError, match=message):
        of(path, "train", 1)


def test_a_missing_field_of_math500_is_named(tmp_path: Path) -> None:
    (tmp_path / "test.jsonl").write_text(json.dumps(TEST) + "\n" + json.dumps(TRAIN) + "\n")
    with pytest.raises(
        DataError, match=r"test\.jsonl:2: field 'level' is missing; this row has problem, answer, difficulty, type"
    ):
        load_questions(TaskConfig(name="math500", path=tmp_path, n=1))


def test_math500_by_level_and_never_to_train_on(tmp_path: Path) -> None:
    rows = [{**TEST, "problem": f"${i}$?", "level": i, "unique_id": f"test/{i}.json"} for i in range(1, 6)]
    (tmp_path / "test.jsonl").write_text("\n".join(json.dumps(row) for row in rows))
    config = TaskConfig(name="math500", path=tmp_path, n=2, levels=("1", "5"))
    assert {one.id for one in load_questions(config)[1]} == {"math500:test/1.json", "math500:test/5.json"}
    for split in ("train", "dev"):
        with pytest.raises(
            ConfigError, match=rf'task.split = "{split}": math500 is for evaluation only.* take the {split} split of'
        ):
            load_questions(config.model_copy(update={"split": split}))

"""MMLU as published: choices under letters, subjects as levels, and whose side a published split is."""

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from permix.config import TaskConfig
from permix.errors import ConfigError, DataError
from permix.tasks import TASKS, load_questions
from permix.tasks.base import verify_completion

ROW = {
    "question": "Which gas is most of the air?", "subject": "chemistry",
    "choices": ["Oxygen", "Nitrogen", "Argon", "Helium"], "answer": 1,
}  # fmt: skip


def load(path: Path, **fields: Any) -> tuple[Any, ...]:
    return load_questions(TaskConfig.model_validate({"name": "mmlu", "path": path, "n": 1, **fields}))[1]


def write(path: Path, *rows: dict[str, Any]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_choices_stand_under_letters_and_the_gold_is_one(tmp_path: Path) -> None:
    (one,) = load(write(tmp_path / "test.jsonl", ROW))
    assert one.text == "Which gas is most of the air?\nA) Oxygen\nB) Nitrogen\nC) Argon\nD) Helium"
    assert (one.gold, one.tags, one.solution) == ("B", ("chemistry",), "\\boxed{B}")


def test_the_sides_are_the_published_splits_in_parquet_too(tmp_path: Path) -> None:
    for name, question in (("dev", "An example?"), ("validation", "To choose on?"), ("test", "To measure on?")):
        rows = [{**ROW, "question": question}]
        pq.write_table(pa.Table.from_pylist(rows), tmp_path / f"{name}-00000-of-00001.parquet")
    asked = {split: load(tmp_path, split=split)[0].text.split("\n")[0] for split in ("train", "dev", "heldout")}
    assert asked == {"train": "An example?", "dev": "To choose on?", "heldout": "To measure on?"}
    with pytest.raises(DataError, match=r"has the name of the published split validation, .* needs the published split test"):
        load(tmp_path / "validation-00000-of-00001.parquet")


def test_levels_are_subjects(tmp_path: Path) -> None:
    path = write(tmp_path / "test.jsonl", ROW, {**ROW, "question": "Who was Kant?", "subject": "philosophy"})
    assert [one.tags for one in load(path, levels=["philosophy"])] == [("philosophy",)]
    with pytest.raises(ConfigError, match="mmlu has no level 'philosofy'; did you mean philosophy"):
        load(path, levels=["philosofy"])


def test_equal_choices_are_published_and_the_place_decides(tmp_path: Path) -> None:
    (one,) = load(write(tmp_path / "test.jsonl", {**ROW, "choices": ["1", "2", "2", "3"], "answer": 2}))
    assert one.gold == "C"


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"answer": 4}, "answer = 4: must be the index of the right choice, 0 to 3"),
        ({"answer": "B"}, "answer = 'B': must be the index"),
        ({"answer": 1.0}, "answer = 1.0: must be the index"),
        ({"answer": True}, "answer = True: must be the index"),
        ({"choices": ["a", "b", "c"]}, r"choices = \['a', 'b', 'c'\]: must be a list of 4 texts"),
        ({"choices": ["a", "b", "c", 4]}, "choices = .*: must be a list of 4 texts"),
        ({"subject": ""}, "subject = '': must be a text"),
    ],
)
def test_a_bad_row_is_named_with_its_field(fields: dict[str, Any], words: str, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=rf"test\.jsonl:2: {words}"):
        load(write(tmp_path / "test.jsonl", ROW, {**ROW, **fields}))


@pytest.mark.parametrize(
    ("completion", "right"), [("\\boxed{b}", True), ("The answer is (B), since A burns.", True), ("\\boxed{Nitrogen}", False)]
)
def test_answers_are_letters(completion: str, right: bool) -> None:
    assert verify_completion(TASKS["mmlu"], completion, "B").correct is right

"""AIME 2024 and 2025 as published: whole numbers from 0 to 999, all of them held out."""

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

ROW_24 = {
    "id": 60, "problem": "Aya walks $9$ kilometers. How long, in minutes?", "solution": "Long.", "answer": "204",
    "url": "https://example.org/1", "year": "2024",
}  # fmt: skip
ROW_25 = {"problem": "Find the sum of all integer bases $b>9$.", "answer": "070", "id": "0"}


def load(name: str, path: Path, **fields: Any) -> tuple[Any, ...]:
    return load_questions(TaskConfig.model_validate({"name": name, "path": path, "n": 1, **fields}))[1]


def test_both_years_in_the_files_they_are_published_in(tmp_path: Path) -> None:
    pq.write_table(pa.Table.from_pylist([ROW_24]), tmp_path / "train-00000-of-00001.parquet")
    (tmp_path / "test.jsonl").write_text(json.dumps(ROW_25))
    (first,), (second,) = load("aime24", tmp_path), load("aime25", tmp_path)
    assert (first.text, first.gold, first.task) == (ROW_24["problem"], "204", "aime24")
    assert (second.text, second.gold, second.task) == (ROW_25["problem"], "70", "aime25")
    assert load("aime24", tmp_path / "train-00000-of-00001.parquet") == (first,)


@pytest.mark.parametrize("answer", ["1000", "-3", "7.5", "1/2", " ", "seven", None, True])
def test_another_answer_is_named_with_its_row(answer: object, tmp_path: Path) -> None:
    (tmp_path / "test.jsonl").write_text(json.dumps({**ROW_25, "answer": answer}))
    with pytest.raises(DataError, match=r"test\.jsonl:1: answer = .*: must be a whole number from 0 to 999"):
        load("aime25", tmp_path)


def test_a_number_is_as_good_as_its_digits(tmp_path: Path) -> None:
    (tmp_path / "test.jsonl").write_text(json.dumps({**ROW_25, "answer": 70}))
    assert load("aime25", tmp_path)[0].gold == "70"


@pytest.mark.parametrize("split", ["train", "dev"])
def test_nothing_of_it_is_trained_or_chosen_on(split: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=f'task.split = "{split}": aime24 is for evaluation only'):
        load("aime24", tmp_path, split=split)


def test_levels_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="aime25 has no level 'II'; levels: none"):
        load("aime25", tmp_path, levels=["II"])


@pytest.mark.parametrize(
    ("completion", "right"),
    [
        ("So \\boxed{070}.", True),
        ("So \\boxed{70}.", True),
        ("It must be 70", True),
        ("\\boxed{7 \\cdot 10}", False),  # the last number of a box that holds none is 10
        ("\\boxed{71}, not 70", False),
        ("I cannot.", False),
    ],
)
def test_answers_are_plain_numbers(completion: str, right: bool) -> None:
    assert verify_completion(TASKS["aime25"], completion, "70").correct is right

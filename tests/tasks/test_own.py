"""A user's own questions: rows read with their errors, answers compared as the file's owner says."""

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from permix import cli
from permix.config import TaskConfig, build_config
from permix.errors import ConfigError, DataError
from permix.storage.cells import read_cells
from permix.tasks import TASKS, load_questions
from permix.tasks.base import verify_completion
from permix.types import Question
from permix.verification.math_verifier import Verifier
from tests.sample_runs import endpoint, stability_values, toml
from tests.servers import openai_server

CAPITALS = [
    {"question": f"What is the capital of land {n}?", "answer": f"Town {n}", "split": "heldout" if n % 2 else "train"}
    for n in range(20)
]  # fmt: skip


def write(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def own(path: Path, answer: str = "exact", **fields: Any) -> tuple[Question, ...]:
    return load_questions(build_config(TaskConfig, {"path": str(path), "answer": answer, "n": 1, **fields}, source="test"))[1]


def test_answer_names_the_task(tmp_path: Path) -> None:
    path = str(write(tmp_path / "qa.jsonl", CAPITALS))
    for values in ({"answer": "exact"}, {"name": "own-exact"}, {"name": "own-exact", "answer": "exact"}):
        config = build_config(TaskConfig, {"path": path, **values}, source="test")
        assert config.name == "own-exact"
        assert build_config(TaskConfig, config.model_dump(mode="json"), source="test") == config


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"answer": "exact"}, 'path is missing: name = "own-exact"'),
        ({"name": "own-math"}, "path is missing"),
        ({"name": "gsm8k", "answer": "exact", "path": "x"}, 'answer = "exact": applies to your own questions only'),
        ({"name": "own-math", "answer": "exact", "path": "x"}, 'answer = "exact": applies to your own questions only'),
        ({"answer": "regex", "path": "x"}, "must be"),
    ],
)
def test_what_does_not_fit_together_is_refused(values: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        build_config(TaskConfig, values, source="test")


def test_sides_are_the_files_own(tmp_path: Path) -> None:
    path = write(tmp_path / "qa.jsonl", CAPITALS)
    held, trained = own(path, n=10), own(path, n=10, split="train")
    assert {one.text for one in held} == {row["question"] for row in CAPITALS[1::2]}
    assert not {one.id for one in held} & {one.id for one in trained}
    assert {one.solution for one in trained} == {f"\\boxed{{Town {n}}}" for n in range(0, 20, 2)}
    with pytest.raises(ConfigError, match=r"task\.n = 11: own-exact has 10 distinct questions in the heldout split"):
        own(path, n=11)


def test_sides_are_by_content_where_the_file_has_none(tmp_path: Path) -> None:
    rows = [{"question": f"Number {n}?", "answer": n} for n in range(400)]
    path = write(tmp_path / "qa.jsonl", rows)
    counts: Counter[str] = Counter()
    for split in ("train", "dev", "heldout"):
        with pytest.raises(ConfigError, match="distinct questions") as told:
            own(path, "number", n=400, split=split)
        counts[split] = int(str(told.value).split("own-number has ")[1].split()[0])
    assert sum(counts.values()) == 400
    assert 70 < counts["heldout"] < 130
    path.write_text("\n".join(reversed(path.read_text().splitlines())))
    assert own(path, "number", n=5) == own(write(tmp_path / "again.jsonl", rows), "number", n=5)


def test_levels_choose(tmp_path: Path) -> None:
    rows = [{"question": f"Q{n}?", "answer": n, "split": "heldout", "level": "easy" if n < 3 else 2} for n in range(5)]
    path = write(tmp_path / "qa.jsonl", rows)
    assert {one.gold for one in own(path, "number", n=3, levels=["easy"])} == {"0", "1", "2"}
    assert {one.gold for one in own(path, "number", n=2, levels=["2"])} == {"3", "4"}
    with pytest.raises(ConfigError, match="has no level 'hard'; levels: 2, easy"):
        own(path, "number", levels=["hard"])


@pytest.mark.parametrize(
    ("row", "answer", "words"),
    [
        ({"answer": "3"}, "exact", r"qa\.jsonl:2: field 'question' is missing"),
        ({"question": "Q?"}, "exact", r"qa\.jsonl:2: field 'answer' is missing"),
        ({"question": "Q?", "answer": True}, "exact", "answer = True: must be a text that is not blank"),
        ({"question": "Q?", "answer": " "}, "exact", "must be a text that is not blank"),
        ({"question": "Q?", "answer": "blue"}, "number", "answer = 'blue': must be a number"),
        ({"question": "Q?", "answer": "A"}, "choice", "field 'choices' is missing"),
        ({"question": "Q?", "answer": "A", "choices": "ab"}, "choice", "must be a list of texts"),
        ({"question": "Q?", "answer": "A", "choices": ["x"]}, "choice", "must be 2 to 26 texts"),
        ({"question": "Q?", "answer": "A", "choices": ["x", "X."]}, "choice", "all different"),
        ({"question": "Q?", "answer": "C", "choices": ["x", "y"]}, "choice", "must be a letter, A to B, or the text of one"),
        ({"question": "Q?", "answer": "z", "split": "test"}, "exact", "split = 'test': must be one of"),
    ],
)
def test_bad_rows_are_told_with_file_and_line(row: dict[str, Any], answer: str, words: str, tmp_path: Path) -> None:
    good: dict[str, Any] = {"question": "Fine?", "answer": "3", "choices": ["3", "4"]}
    if "split" in row:
        good["split"] = "heldout"
    with pytest.raises(DataError, match=words):
        own(write(tmp_path / "qa.jsonl", [good, row]), answer)


def test_a_side_for_some_rows_alone_is_refused(tmp_path: Path) -> None:
    rows = [{"question": "A?", "answer": "a", "split": "train"}, {"question": "B?", "answer": "b"}]
    with pytest.raises(DataError, match=r"qa\.jsonl:2: has no split, but .*qa\.jsonl:1 has one"):
        own(write(tmp_path / "qa.jsonl", rows))


def test_a_file_that_cannot_be_used_is_refused(tmp_path: Path) -> None:
    for name, words in (("none.jsonl", "no such file"), ("qa.txt", "must end in"), ("empty.jsonl", "contains no rows")):
        if name != "none.jsonl":
            (tmp_path / name).write_text("")
        with pytest.raises(DataError, match=words):
            own(tmp_path / name)


def test_choices_stand_in_the_question_and_the_gold_is_a_letter(tmp_path: Path) -> None:
    rows: list[dict[str, Any]] = [
        {"question": "Which is prime?", "answer": "5", "choices": ["4", "5", "6"]},
        {"question": "Which is even?", "answer": "c", "choices": ["3", "5", "6"]},
        {"question": "Which letter comes second?", "answer": "B", "choices": ["B", "A"]},
    ]  # fmt: skip
    for row in rows:
        row["split"] = "heldout"
    asked = {one.text.split("\n")[0]: one for one in own(write(tmp_path / "qa.jsonl", rows), "choice", n=3)}
    assert asked["Which is prime?"].text == "Which is prime?\nA) 4\nB) 5\nC) 6"
    golds = {text: one.gold for text, one in asked.items()}
    assert golds == {"Which is prime?": "B", "Which is even?": "C", "Which letter comes second?": "A"}


@pytest.mark.parametrize(
    ("answer", "completion", "gold", "extracted", "correct"),
    [
        ("number", "It is \\boxed{1,234.0}.", "1234", "1,234.0", True),
        ("number", "So 7, or rather 8.", "8", "8", True),
        ("number", "No idea", "8", None, False),
        ("math", "Thus \\boxed{\\frac{2}{4}}.", "1/2", "\\frac{2}{4}", True),
        ("exact", "The answer is Town 3.", "town 3", "Town 3", True),
        ("exact", "Well.\n  New   york\n", "New York", "New   york", True),
        ("exact", "\\boxed{New York City}", "New York", "New York City", False),
        ("exact", "", "New York", None, False),
        ("choice", "\\boxed{B}", "B", "B", True),
        ("choice", "\\boxed{(b)}", "B", "B", True),
        ("choice", "The answer is (C), since A is wrong.", "C", "C", True),
        ("choice", "A and B are wrong, so C", "C", "C", True),
        ("choice", "CAB", "C", None, False),
        ("choice", "\\boxed{BC}", "B", "BC", False),
    ],
)
def test_answers_are_compared_as_the_owner_says(
    answer: str, completion: str, gold: str, extracted: str | None, correct: bool
) -> None:
    verifier = Verifier()
    found = verify_completion(TASKS[f"own-{answer}"], completion, gold, verifier)
    assert (found.extracted, found.correct) == (extracted, correct)


def test_a_run_asks_them(tmp_path: Path) -> None:
    """From the command line, with nothing but the file and how its answers are compared."""
    write(tmp_path / "qa.jsonl", CAPITALS)
    with openai_server(lambda body, *_: f"\\boxed{{Town {body['messages'][-1]['content'].split()[6].strip('?')}}}") as server:
        values = stability_values(tmp_path, server.base_url, model=endpoint(server.base_url), task={"n": 4})
        (tmp_path / "run.toml").write_text(toml(values))
        task = ["--task.path", str(tmp_path / "qa.jsonl"), "--task.answer", "exact"]
        assert cli.run_cli(["stability", str(tmp_path / "run.toml"), *task]) == 0
    cells = read_cells(tmp_path / "run" / "records.jsonl").values()
    assert len(cells) == 16
    assert all(cell.verdict is not None and cell.verdict.correct for cell in cells)

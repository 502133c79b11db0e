"""A user's own questions, from one file and without code: `--task.path qa.jsonl --task.answer number`.

A row of the file (.jsonl, .json or .parquet):

    {"question": "Which is a prime?", "answer": "B", "choices": ["4", "5", "6"], "split": "heldout", "level": "easy"}

`question` and `answer` are needed, an answer being a text or a number; `choices` for `choice` alone. `split` is train, dev or
heldout; rows without it get their side by content, one in four held out and one in eight of the others dev, and a file gives it
for all of its rows or for none. `level` is what `task.levels` chooses by; `solution` is what supervised training learns from, the
boxed answer where it is missing.

How an answer is compared is `task.answer`:

    number    as GSM8K's: plain numbers, whatever their dress (1,234.0 and $1234)
    math      as MATH's: also expressions, by a symbolic engine
    exact     the same text, but for case, white space, Unicode form and a full stop
    choice    the letter of the right choice; the gold may be the letter, or the text of the choice itself

The answer of a completion is its last box. Without one: the last number (number), what its last "answer is" names (math, exact,
choice), and then its last line (exact) or its last letter that stands alone (choice).

The sides of a user's own rows: given by the file, for all of its rows, or else decided by content.
"""

from collections.abc import Callable, Sequence
from functools import partial

from permix.config import TaskConfig
from permix.errors import DataError
from permix.tasks import math, multiple_choice
from permix.tasks.base import Task, choose, refuse_unknown_levels, side
from permix.tasks.datasets import Row, file_rows
from permix.types import SPLITS, Question, digest, normalise
from permix.verification.math_verifier import last_number


def sides_of(rows: Sequence[Row], questions: Sequence[Question]) -> list[str]:
    """One of `SPLITS` for each row and its question. Raises DataError where some rows have a `split` and others none."""
    given = [row for row in rows if "split" in row.fields]
    if given and len(given) < len(rows):
        bare = next(row for row in rows if "split" not in row.fields)
        raise DataError(f"{bare.where}: has no split, and {given[0].where} has one; give it in every row or in none")
    return [_side(row, question) for row, question in zip(rows, questions, strict=True)]


def _side(row: Row, question: Question) -> str:
    if "split" not in row.fields:
        return side(question.content_hash)
    if row.fields["split"] not in SPLITS:
        raise row.error("split", f"must be one of {', '.join(SPLITS)}")
    return str(row.fields["split"])


BOXED = "{question}\n\nEnd with the final answer inside \\boxed{}."


def questions(name: str, config: TaskConfig) -> tuple[Question, ...]:
    assert config.path is not None, "TaskConfig asks for it"
    rows = file_rows(config.path)
    known = [question(name, row) for row in rows]
    levels = sorted({level for one in known for level in one.tags})
    refuse_unknown_levels(config.levels, levels, task=str(config.path))
    ours = (one for one, its in zip(known, sides_of(rows, known), strict=True) if its == config.split)
    return choose((one for one in ours if not config.levels or set(config.levels) & set(one.tags)), config)


def question(name: str, row: Row) -> Question:
    """Raises DataError naming the row's file and line."""
    text, gold = row.text("question"), answer_of(row)
    if name == "own-number" and last_number(gold) is None:
        raise row.error("answer", 'must be a number; for other answers give task.answer = "exact" or "math"')
    if name == "own-choice":
        offered = choices_of(row)
        gold, text = _letter_of(gold, offered, row), multiple_choice.lettered(text, offered)
    level = row.fields.get("level")
    solution = row.text("solution") if row.fields.get("solution") else f"\\boxed{{{gold}}}"
    return Question(
        id=f"{name}:{digest(normalise(text))}", task=name, text=text, gold=gold, solution=solution,
        tags=() if level is None else (str(level),),
    )  # fmt: skip


def answer_of(row: Row) -> str:
    """A text, or a number as JSON writes it."""
    value = row.value("answer")
    if isinstance(value, bool) or not isinstance(value, int | float):
        return row.text("answer")
    return str(value)


def choices_of(row: Row) -> list[str]:
    found = row.value("choices")
    if not isinstance(found, list) or not all(isinstance(one, str) and one.strip() for one in found):
        raise row.error("choices", "must be a list of texts that are not blank")
    offered = [one.strip() for one in found]
    if not 2 <= len(offered) <= len(multiple_choice.LETTERS) or len({*map(_level, offered)}) < len(offered):
        raise row.error("choices", f"must be 2 to {len(multiple_choice.LETTERS)} texts, all different")
    return offered


def _letter_of(gold: str, offered: list[str], row: Row) -> str:
    """The text of a choice comes before a letter: a choice may be "A" itself."""
    letters = multiple_choice.LETTERS[: len(offered)]
    same = [letter for letter, choice in zip(letters, offered, strict=True) if _level(choice) == _level(gold)]
    if same:
        return same[0]
    if gold.upper() in letters and len(gold) == 1:
        return gold.upper()
    raise row.error("answer", f"must be a letter, A to {letters[-1]}, or the text of one of the choices")


def _level(text: str) -> str:
    return normalise(text).rstrip(". ")


def same_text(answer: str, gold: str) -> bool:
    return _level(answer) == _level(gold)


def last_line(completion: str) -> str | None:
    lines = [line.strip() for line in completion.splitlines() if line.strip()]
    return math.unboxed(completion) or (lines[-1] if lines else None)


def _task(
    answer: str, unboxed: Callable[[str], str | None], same: Callable[[str, str], bool] | None = None, *,
    wording: str = BOXED, numbers: bool = False,
) -> Task:  # fmt: skip
    name = f"own-{answer}"
    return Task(name=name, wording=wording, questions=partial(questions, name), unboxed=unboxed, same=same, numbers=numbers)


OWN = (
    _task("number", last_number, wording="{question}\n\nEnd with the final number inside \\boxed{}.", numbers=True),
    _task("math", math.unboxed),
    _task("exact", last_line, same_text),
    _task("choice", multiple_choice.last_letter, multiple_choice.same_letter, wording=multiple_choice.WORDING),
)

"""The user's own questions, from a file: `--task.path qa.jsonl --task.answer number`.

A row of the file (.jsonl, .json or .parquet):

    {"question": "Which is a prime?", "answer": "B", "choices": ["4", "5", "6"], "split": "heldout", "level": "easy"}

`question` and `answer` (a text or a number) are required, and `choices` if `task.answer` is `choice`. `split` is train, dev or
heldout; it must be given in all rows or in none. Without it the split depends on the content: one in four rows is held out, and
one in eight of the others is dev. `task.levels` selects by `level`. Supervised training learns from `solution`, or from the boxed
answer if there is none.

`task.answer` says how an answer is compared:

    number    plain numbers, as in GSM8K, in the notation of any language (1,234.0, 1.234,0 and 1 234 equal $1234)
    math      expressions too, as in MATH, compared by value
    exact     equal texts, ignoring case, white space, Unicode form and a final full stop
    choice    the letter of the right choice; the gold may be the letter or the text of the choice

`permix.tasks.answers` says how the answer of a completion is found.
"""

from collections.abc import Callable, Sequence
from functools import partial

from permix.config import TaskConfig
from permix.errors import DataError
from permix.tasks import multiple_choice
from permix.tasks.answers import (
    extract_choice,
    extract_expression,
    extract_number_as_written,
    extract_text,
    normalise_text,
    same_text,
)
from permix.tasks.base import Task, check_known_levels, select_questions, split_of_content
from permix.tasks.datasets import DatasetRow, read_file_rows
from permix.types import SPLITS, Question, canonical_text, digest
from permix.verification.extraction import last_number
from permix.verification.math_verifier import same_number_in_some_notation


def splits_by_row(rows: Sequence[DatasetRow], questions: Sequence[Question]) -> list[str]:
    """The split of each row: its `split` field, or else one by the question's content.

    Raises DataError if only some rows have the field, or if it is not one of `SPLITS`.
    """
    with_split = [row for row in rows if "split" in row.fields]
    if with_split and len(with_split) < len(rows):
        without = next(row for row in rows if "split" not in row.fields)
        raise DataError(f"{without.where}: has no split, but {with_split[0].where} has one; give it in every row or in none")
    return [_row_split(row, question) for row, question in zip(rows, questions, strict=True)]


def _row_split(row: DatasetRow, question: Question) -> str:
    if "split" not in row.fields:
        return split_of_content(question.content_hash)
    if row.fields["split"] not in SPLITS:
        raise row.error("split", f"must be one of {', '.join(SPLITS)}")
    return str(row.fields["split"])


BOXED_PROMPT_TEMPLATE = "{question}\n\nEnd with the final answer inside \\boxed{}."


def custom_questions(name: str, config: TaskConfig) -> tuple[Question, ...]:
    """The `config.n` questions of the file `config.path`, for the task `name`. Raises ConfigError or DataError."""
    assert config.path is not None, "TaskConfig checks it"
    rows = read_file_rows(config.path)
    known = [custom_question(name, row) for row in rows]
    levels = sorted({level for one in known for level in one.tags})
    check_known_levels(config.levels, levels, task=str(config.path))
    of_split = (one for one, split in zip(known, splits_by_row(rows, known), strict=True) if split == config.split)
    return select_questions((one for one in of_split if not config.levels or set(config.levels) & set(one.tags)), config)


def custom_question(name: str, row: DatasetRow) -> Question:
    """The question of a row. Raises DataError naming the row's file and line."""
    text, gold = row.text("question"), answer_text(row)
    if name == "own-number" and last_number(gold) is None:
        raise row.error("answer", 'must be a number; for other answers give task.answer = "exact" or "math"')
    if name == "own-choice":
        offered = parse_choices(row)
        gold, text = _gold_letter(gold, offered, row), multiple_choice.format_choices(text, offered)
    level = row.fields.get("level")
    solution = row.text("solution") if row.fields.get("solution") else f"\\boxed{{{gold}}}"
    return Question(
        id=f"{name}:{digest(canonical_text(text))}", task=name, text=text, gold=gold, solution=solution,
        tags=() if level is None else (str(level),),
    )  # fmt: skip


def answer_text(row: DatasetRow) -> str:
    """The answer as text; a number is written as in JSON. Raises DataError if it is neither."""
    value = row.value("answer")
    if isinstance(value, bool) or not isinstance(value, int | float):
        return row.text("answer")
    return str(value)


def parse_choices(row: DatasetRow) -> list[str]:
    """The row's choices. Raises DataError unless they are 2 to 26 different texts."""
    value = row.value("choices")
    if not isinstance(value, list) or not all(isinstance(one, str) and one.strip() for one in value):
        raise row.error("choices", "must be a list of texts that are not blank")
    offered = [one.strip() for one in value]
    if not 2 <= len(offered) <= len(multiple_choice.CHOICE_LETTERS) or len({*map(normalise_text, offered)}) < len(offered):
        raise row.error("choices", f"must be 2 to {len(multiple_choice.CHOICE_LETTERS)} texts, all different")
    return offered


def _gold_letter(gold: str, choices: list[str], row: DatasetRow) -> str:
    # Compare texts before letters, since the text of a choice may be "A".
    letters = multiple_choice.CHOICE_LETTERS[: len(choices)]
    same = [letter for letter, choice in zip(letters, choices, strict=True) if normalise_text(choice) == normalise_text(gold)]
    if same:
        return same[0]
    if gold.upper() in letters and len(gold) == 1:
        return gold.upper()
    raise row.error("answer", f"must be a letter, A to {letters[-1]}, or the text of one of the choices")


def _custom_task(
    answer_kind: str, extract: Callable[[str, str], str | None], answers_match: Callable[[str, str], bool] | None = None, *,
    prompt_template: str = BOXED_PROMPT_TEMPLATE,
) -> Task:  # fmt: skip
    name = f"own-{answer_kind}"
    return Task(
        name=name,
        prompt_template=prompt_template,
        questions=partial(custom_questions, name),
        extract=extract,
        answers_match=answers_match,
    )


CUSTOM_TASKS = (
    _custom_task(
        "number",
        extract_number_as_written,
        same_number_in_some_notation,
        prompt_template="{question}\n\nEnd with the final number inside \\boxed{}.",
    ),
    _custom_task("math", extract_expression),
    _custom_task("exact", extract_text, same_text),
    _custom_task(
        "choice",
        extract_choice,
        multiple_choice.same_letter,
        prompt_template=multiple_choice.CHOICE_PROMPT_TEMPLATE,
    ),
)

r"""The user's own questions, from a file: `--task.path qa.jsonl --task.answer number`.

A row of the file (.jsonl, .json, .parquet, .csv or .tsv):

    {"question": "Which is a prime?", "answer": "B", "choices": ["4", "5", "6"], "split": "heldout", "level": "easy"}

Question and answer are required, and choices if `task.answer` is `choice`. `split` is train, dev or heldout; it must be given in
all rows or in none. Without it the split depends on the content: one in four rows is held out, and one in eight of the others is
dev. `task.split = "all"` asks all rows; it is the default, outside of training, of a file whose rows have no `split`.
`task.levels` selects by `level`. Supervised training learns from `solution`, or from the boxed answer if there is none.

`task.question_column`, `context_column`, `answer_column` and `choices_column` name the columns; a dot leads into an object.
Without them a file's columns are the first of these that it has, whatever their case:

    question    question, problem, query, question_stem, ctx, prompt, messages, input. A list of chat messages (verl's `prompt`)
                is read if it has one user message; its system message is left out, with a note
    context     body (SVAMP), passage (BoolQ, DROP), context (SQuAD), article, story: a text that the question is about. It is put
                before the question, with a note. Where question_column is given, only a given context_column is
    answer      answer, final_answer, reward_model.ground_truth (verl), ground_truth, answerKey (ARC), label (HellaSwag),
                correct, target, gold, solution. Of a worked answer its `#### 72` (GSM8K) or its last box counts
    choices     choices, options, endings, or a column for each letter (A, B, C ...). A list of texts, an object of letters and
                texts, or ARC's {"label": [...], "text": [...]}; in CSV a list in Python's notation

`task.answer` says how an answer is compared:

    number    plain numbers, as in GSM8K, in the notation of any language (1,234.0, 1.234,0 and 1 234 equal $1234)
    math      expressions too, as in MATH, compared by value
    exact     equal texts, ignoring case, white space, Unicode form and a final full stop
    choice    the letter of the right choice

or, in the form package.module:function, by your own function (answer, gold) -> bool. It gets the completion without its thinking
and without white space at its ends, and the gold as the file has it, both as texts. An empty completion, or one whose thinking
never ends, is wrong without a call. A completion for which it raises, or returns something else than True or False, has no score.

The column `answers` holds a list of accepted answers (in CSV as a JSON text): any of them is right, and so is that of an answer
column beside it. It is read unless answer_column names another column, and not for `choice`. A function is called for one
accepted answer after the other, until it returns True. In any other column, an answer that is a list of one is that one, and a
list of several is accepted by `exact` and by functions only.

The answer of a choice is its letter or label, its text, or as an integer its index from 0. An integer that is also the text of
another choice, or its number ("2 cm", "2.0", "$2"), is an index if another row of the file shows that its integers are indices;
otherwise it is refused. A letter that is also the text of another choice (blood groups: A is the first choice or the group) is
refused too, unless other rows show whether the file's answers are letters or texts. A text of digits is an index only beside
HellaSwag's `endings`.

A number is read in English notation. "1.500" is 1.5 or, in other notations, 1500; such a text is refused unless another answer of
the file has a decimal point for certain. An answer that its own comparison does not take for right is refused.

`permix.tasks.answers` says how the answer of a completion is found.
"""

import ast
import json
import math
import numbers
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from decimal import Decimal
from fractions import Fraction
from functools import partial
from typing import Any, NamedTuple

from permix.config import ANSWER_KINDS, TaskConfig
from permix.errors import DataError
from permix.progress import print_status
from permix.storage.rows import CSV_SUFFIXES, field_value, given_fields, is_missing_value, is_real_number, quote_value
from permix.tasks import multiple_choice
from permix.tasks.answers import (
    are_distinct,
    extract_choice,
    extract_expression,
    extract_number_as_written,
    extract_text,
    find_same_text,
    same_text,
)
from permix.tasks.base import (
    ALTERNATIVE,
    Task,
    can_be_right,
    check_known_levels,
    require_bool,
    select_questions,
    split_of_content,
)
from permix.tasks.datasets import DatasetRow, has_lone_surrogate, read_file_rows
from permix.tasks.gsm8k import split_marked_answer
from permix.types import SPLITS, Question, Verdict, canonical_text, digest
from permix.verification.extraction import extract_boxed, number_in_box, number_readings
from permix.verification.math_verifier import (
    is_number_text,
    numbers_equal,
    same_number_in_some_notation,
    truncate_for_record,
    word_unit_of_number,
)

QUESTION_COLUMNS = ("question", "problem", "query", "question_stem", "ctx", "prompt", "messages", "input")

CONTEXT_COLUMNS = ("body", "passage", "context", "article", "story")

ANSWER_COLUMNS = (
    *("answer", "final_answer", "reward_model.ground_truth", "ground_truth", "answerKey", "label", "correct", "target", "gold"),
    "solution",
)

ACCEPTED_ANSWERS_COLUMN = "answers"

CHOICES_COLUMNS = ("choices", "options", "endings")


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
    return select_custom_questions(name, config)[1]


def select_custom_questions(name: str, config: TaskConfig) -> tuple[TaskConfig, tuple[Question, ...]]:
    """The questions of `custom_questions`, and `config` with the split that was used.

    A split that is not given is heldout if the rows name their splits, else all; `n` that is not given is all of them.
    """
    assert config.path is not None, "TaskConfig checks it"
    rows = read_file_rows(config.path)
    if "split" not in config.model_fields_set:
        has_splits = any("split" in row.fields for row in rows)
        config = config.model_copy(update={"split": "heldout" if has_splits else "all"})
    known = questions_of_rows(name, rows, config)
    levels = sorted({level for one in known for level in one.tags})
    check_known_levels(config.levels, levels, task=str(config.path))
    of_level = [one for one in known if not config.levels or set(config.levels) & set(one.tags)]
    if config.split == "all":
        return config, select_questions(of_level, config)
    split_of = dict(zip((one.id for one in known), splits_by_row(rows, known), strict=True))
    hint = f'; task.split = "all" asks all {len(of_level)} questions of the file'
    return config, select_questions((one for one in of_level if split_of[one.id] == config.split), config, hint)


def questions_of_rows(name: str, rows: Sequence[DatasetRow], config: TaskConfig | None = None) -> list[Question]:
    """The question of each row; `config` may name the columns.

    Raises DataError naming the row's file and line, also if two rows give one question different answers.
    """
    if not rows:
        return []
    columns = find_columns(name, rows, config or TaskConfig())
    integers_are_indices = _integers_are_indices(rows, columns) if name == "own-choice" else None
    letters_are_letters = _letters_are_letters(rows, columns) if name == "own-choice" else None
    questions = [_custom_question(name, row, columns, (integers_are_indices, letters_are_letters)) for row in rows]
    _check_golds(name, rows, questions, columns)
    first: dict[str, tuple[DatasetRow, Question]] = {}
    for row, question in zip(rows, questions, strict=True):
        earlier_row, earlier = first.setdefault(question.content_hash, (row, question))
        if earlier.gold != question.gold:
            raise DataError(
                f"{row.where}: asks the question of {earlier_row.where}, but the answer is {question.gold!r} and not "
                f"{earlier.gold!r}; keep one of the two"
            )
    with_system = sum(_has_system_message(field_value(row.fields, columns.question)) for row in rows)
    if with_system:
        print_status(f"note: {with_system} of {len(rows)} questions have a system message, which is left out")
    if columns.answers is not None:
        print_status(f"note: any of the answers in the column {columns.answers} is right")
    if columns.context is not None:
        print_status(f"note: the text in the column {columns.context} is put before the question")
    return questions


class Columns(NamedTuple):
    """The columns of a file. `choices` is None if each choice has its own column, or if there are none; `answers`, the lists of
    accepted answers, is None if there are none."""

    question: str
    answer: str
    choices: str | None
    context: str | None
    answers: str | None = None


def find_columns(name: str, rows: Sequence[DatasetRow], config: TaskConfig) -> Columns:
    """The columns that `config` names, or else the first known ones that a row has. Raises DataError if there is none."""
    choices = None
    if name == "own-choice" and (config.choices_column or not all("A" in row.fields and "B" in row.fields for row in rows)):
        choices = _find_column(rows, config.choices_column, CHOICES_COLUMNS, "choices")
    has_answers = (
        name != "own-choice"
        and config.answer_column in (None, ACCEPTED_ANSWERS_COLUMN)
        and any(row.fields.get(ACCEPTED_ANSWERS_COLUMN) is not None for row in rows)
    )
    return Columns(
        _find_column(rows, config.question_column, QUESTION_COLUMNS, "question"),
        _find_column(rows, config.answer_column, (*ANSWER_COLUMNS, *[ACCEPTED_ANSWERS_COLUMN] * has_answers), "answer"),
        choices,
        _find_context_column(rows, config),
        ACCEPTED_ANSWERS_COLUMN if has_answers else None,
    )


def _find_context_column(rows: Sequence[DatasetRow], config: TaskConfig) -> str | None:
    """The column of the text that the question is about; None if no row has one."""
    if config.context_column is not None:
        return _find_column(rows, config.context_column, (), "context")
    if config.question_column is not None:
        return None
    columns = {key.lower(): key for row in rows for key, value in row.fields.items() if isinstance(value, str) and value.strip()}
    return next((columns[name] for name in CONTEXT_COLUMNS if name in columns), None)


def _find_column(rows: Sequence[DatasetRow], given: str | None, known: Sequence[str], field: str) -> str:
    for column in (given,) if given is not None else known:
        spellings = [column, *(key for row in rows[:1] for key in row.fields if key.lower() == column.lower())]
        for spelling in spellings:
            if any(field_value(row.fields, spelling) is not None for row in rows):
                return spelling
    columns = ", ".join(dict.fromkeys(key for row in rows for key in row.fields)) or "no fields"
    or_blank = " or blank" if rows[0].where.rpartition(":")[0].endswith(CSV_SUFFIXES) else ""  # there blank cells are no values
    missing = f"field {(given or field)!r} is missing{or_blank} in every row"
    raise DataError(
        f"{rows[0].where}: {missing}; name the column with task.{field}_column (--task.{field}-column NAME); columns: {columns}"
    )


def _custom_question(name: str, row: DatasetRow, columns: Columns, shown: tuple[bool | None, bool | None]) -> Question:
    text = question_text(row, columns.question)
    if columns.context is not None and field_value(row.fields, columns.context) not in (None, ""):
        text = f"{row.text(columns.context)}\n{text}"
    worked = row.fields.get("solution")
    worked = worked[0] if isinstance(worked, list) and worked else worked
    if name == "own-choice":
        offered = parse_choices(row, columns.choices)
        gold = _gold_letter(row, columns, offered, *shown)
        text = multiple_choice.format_choices(text, offered.texts)
    else:
        gold, marked_solution = parse_accepted_golds(name, row, columns)
        worked = marked_solution or worked
    level = row.fields.get("level")
    first = gold.split(ALTERNATIVE)[0]
    said = f"\\boxed{{{first}}}" if name.removeprefix("own-") in ANSWER_KINDS else first
    solution = worked.strip() if isinstance(worked, str) and worked.strip() else said
    return Question(
        id=f"{name}:{digest(canonical_text(text))}", task=name, text=text, gold=gold, solution=solution,
        tags=() if level is None else (str(level),),
    )  # fmt: skip


def question_text(row: DatasetRow, column: str) -> str:
    """The question, also out of a list of chat messages with one user message. Raises DataError for any other value."""
    messages = row.value(column)
    if not isinstance(messages, list):
        return row.text(column)
    asked = [one for one in messages if isinstance(one, Mapping) and one.get("role", one.get("from")) in ("user", "human")]
    text = asked[0].get("content", asked[0].get("value")) if len(asked) == 1 else None
    if not isinstance(text, str) or not text.strip():
        raise row.error(column, f"must be a text, or chat messages with one user message, not {len(asked)}")
    return text.strip()


def _has_system_message(messages: object) -> bool:
    return isinstance(messages, list) and any(isinstance(one, Mapping) and one.get("role") == "system" for one in messages)


# Answers


def parse_accepted_golds(name: str, row: DatasetRow, columns: Columns) -> tuple[str, str | None]:
    """The gold of a row, of all its accepted answers, and the worked solution of its answer column, if any.

    Raises DataError for a bad answer, and for a row without any.
    """
    if columns.answers is None or row.fields.get(columns.answers) is None:
        return parse_gold(name, row, columns.answer)
    golds, worked = list[str](), None
    if columns.answer != columns.answers and field_value(row.fields, columns.answer) not in (None, ""):
        gold, worked = parse_gold(name, row, columns.answer)
        golds = gold.split(ALTERNATIVE)
    for one in _listed_answers(row, columns.answers):
        golds.append(parse_gold(name, DatasetRow(row.where, {columns.answers: one}), columns.answers)[0])
    return ALTERNATIVE.join(dict.fromkeys(golds)), worked


def _listed_answers(row: DatasetRow, column: str) -> list[str]:
    """The answers of a column that lists them; a single text or number is one. Raises DataError for anything else."""
    value = row.value(column)
    if isinstance(value, str) and value.lstrip().startswith("["):
        value = _parse_list(value)
    value = value["text"] if isinstance(value, Mapping) and "text" in value else value  # SQuAD
    answers = [scalar_text(one) for one in value] if isinstance(value, list) else [scalar_text(value)]
    if not answers or not all(answers):
        raise row.error(column, "must be a list of texts or numbers that is not empty")
    return answers


_ONE_GOLD_TASKS = ("own-number", "own-math")
"""Tasks that read the final answer out of a worked one, and refuse a list of several outside of the column `answers`."""


def parse_gold(name: str, row: DatasetRow, column: str) -> tuple[str, str | None]:
    """The gold of a row, and the worked solution that it was taken from, if any. Raises DataError for a bad answer."""
    accepted = _accepted_answers(name, row, column)
    if name == "own-exact":
        accepted = [_without_whole_box(one) for one in accepted]
    if name not in _ONE_GOLD_TASKS:
        return ALTERNATIVE.join(accepted), None
    answer = accepted[0]
    marked = split_marked_answer(answer)
    if marked is not None:
        return marked
    boxed = extract_boxed(answer)
    if column.lower() == "solution" and boxed is None:
        raise row.error(column, "must end in the answer in a \\boxed{}, or name the column of the answer with task.answer_column")
    gold = answer if boxed is None else boxed
    if name == "own-number" and not same_number_in_some_notation(gold, gold):
        raise row.error(column, f'must be a number{_english_hint(gold)}; for other answers give task.answer = "exact" or "math"')
    if name == "own-number" and (unit := word_unit_of_number(gold)):
        raise row.error(
            column,
            f'has a unit ({unit}), which task.answer = "number" does not compare; give the number alone, or task.answer = "math"',
        )
    return gold, answer if boxed is not None and boxed != answer.removeprefix("\\boxed{").removesuffix("}") else None


def _without_whole_box(gold: str) -> str:
    """The content of a gold that is one box and nothing else, as verl's files have it."""
    boxed = extract_boxed(gold)
    return boxed if boxed is not None and boxed.strip() and gold.strip("$ ") == f"\\boxed{{{boxed}}}" else gold


def _english_hint(gold: str) -> str:
    """How to write a number of another notation: ", in English notation: write 1.5"; empty if the text is none."""
    readings = _number_readings(gold)
    return f", in English notation: write {readings[0]}" if len(readings) == 1 else ""


def _check_golds(name: str, rows: Sequence[DatasetRow], questions: Sequence[Question], columns: Columns) -> None:
    """Raise DataError for the first answer that its own comparison does not take for right."""
    task = next((one for one in CUSTOM_TASKS if one.name == name), None)
    if task is None or name == "own-choice":
        return
    checked = set[str]()
    for row, question in zip(rows, questions, strict=True):
        for gold in question.gold.split(ALTERNATIVE):
            if gold not in checked and not can_be_right(task, gold):
                raise DataError(
                    f"{row.where}: answer = {quote_value(gold)}: a completion that gives this answer would be wrong by "
                    f'task.answer = "{name.removeprefix("own-")}"; write it in another way, or compare by another task.answer'
                )
            checked.add(gold)
    if name == "own-number":
        _check_notation(rows, questions, columns)


def _check_notation(rows: Sequence[DatasetRow], questions: Sequence[Question], columns: Columns) -> None:
    """Raise DataError for a gold such as the text "1.500", which is 1.5 in English and 1500 in other notations, unless another
    gold of the file shows that its points are decimal points."""
    golds = [gold for one in questions for gold in one.gold.split(ALTERNATIVE) if "." in gold]
    doubtful = {gold for gold in golds if len(_number_readings(gold)) > 1 and "," not in gold and not _begins_with_zero(gold)}
    if not doubtful or any(gold not in doubtful and _number_readings(gold) for gold in golds):
        return
    for row, question in zip(rows, questions, strict=True):
        is_number = isinstance(field_value(row.fields, columns.answer), numbers.Number)
        for gold in () if is_number else question.gold.split(ALTERNATIVE):
            if gold in doubtful:
                whole = gold.replace(".", "")
                raise DataError(
                    f"{row.where}: answer = {quote_value(gold)}: may be a decimal fraction or {whole}, and no other answer shows "
                    f"which; write {whole}, or the fraction as {gold}0, or a number in place of the text"
                )


def _number_readings(gold: str) -> list[str]:
    return [one for one in number_readings(gold) if is_number_text(one)]


def _begins_with_zero(gold: str) -> bool:
    return gold.lstrip(" $\u20ac\u00a3+-").startswith("0")


def _accepted_answers(name: str, row: DatasetRow, column: str) -> list[str]:
    value = row.value(column)
    if isinstance(value, str) and name in _ONE_GOLD_TASKS and value.lstrip().startswith('["'):
        value = _parse_list(value)  # the ground truths of some of verl's data sets are lists in JSON
    if not isinstance(value, list):
        return [answer_text(row, column)]
    answers = [scalar_text(one) for one in value]
    if not answers or not all(answers):
        raise row.error(column, "must be a text, a number, or a list of these that is not empty")
    if len(answers) > 1 and name in _ONE_GOLD_TASKS:
        raise row.error(
            column,
            f"has {len(answers)} answers, and it is not clear whether all or any of them are right; if any is, name the column "
            'answers; if all are, write one text, such as "1, 2"',
        )
    return list(dict.fromkeys(answers))


def answer_text(row: DatasetRow, column: str) -> str:
    """The answer as text; a number is written as in JSON. Raises DataError if it is neither."""
    text = scalar_text(row.value(column))
    if not text:
        is_truth = isinstance(row.value(column), bool)
        hint = '; write a truth value as a text, such as "true" or "yes"' if is_truth else ""
        raise row.error(column, f"must be a text that is not blank, or a number{hint}")
    return text


def scalar_text(value: object) -> str:
    """A text or a number, also a Decimal, a Fraction or one of numpy's, as text; "" for anything else, and for a text that UTF-8
    cannot encode."""
    if isinstance(value, str):
        return "" if has_lone_surrogate(value) else value.strip()
    if isinstance(value, Decimal):
        return format(value, "f") if value.is_finite() else ""
    is_finite = is_real_number(value) and (isinstance(value, Fraction) or math.isfinite(value))  # type: ignore[arg-type]
    return str(value) if is_finite else ""


def _parse_list(text: str) -> Any:
    """The list that a text spells in Python's or JSON's notation; the text itself if it spells none."""
    for parse in (json.loads, ast.literal_eval):
        try:
            value = parse(text)
        except (ValueError, SyntaxError, RecursionError, MemoryError):
            continue
        if isinstance(value, list | dict):
            return value
    return text


def same_as_any(same: Callable[[str, str], bool], answer: str, gold: str) -> bool:
    """Whether the answer is the same as any of the accepted ones in a gold."""
    return any(same(answer, one) for one in gold.split(ALTERNATIVE))


def find_gold(task: Task, answer: object, *, any_of: bool = False) -> str | None:
    """The gold answer for an entry of the answer column; for a worked solution its final answer ("... #### 72" -> "72").

    Of choices the entry is a letter, or as an integer the index from 0, as MMLU has it.

    A list holds accepted answers where a file may have such a list: for exact texts and functions of the user's own, and with
    `any_of` for every task of answers that are no letters. A list of one is that one.
    None for an entry without an answer (None, NaN), and if the task does not accept the answer itself as right, since then every
    completion would be wrong.
    """
    [answer] = given_fields({"answer": answer}).values()
    if isinstance(answer, list):
        return _find_accepted_gold(task, answer, any_of=any_of)
    if task.answers_match is multiple_choice.same_letter:
        return _choice_letter(answer)
    text = "" if is_missing_value(answer) else scalar_text(answer)
    if not text:
        return None
    if task.scorer is not None:
        return str(answer) if isinstance(answer, str) else text
    if task.name in ("own-number", "own-exact"):
        try:
            gold, _ = parse_gold(task.name, DatasetRow("", {"answer": text}), "answer")  # as in a file
        except DataError:
            return None
    else:
        gold = text if task.answers_match is not None else task.extract_answer(text) or text
    return gold if can_be_right(task, gold) else None


def _find_accepted_gold(task: Task, answers: Sequence[object], *, any_of: bool) -> str | None:
    golds = [find_gold(task, one) for one in answers if not isinstance(one, list)]
    if len(golds) < len(answers) or not golds or None in golds:
        return None
    distinct = dict.fromkeys(filter(None, golds))
    in_any_column = task.name == "own-exact" or (task.scorer is not None and task.name.startswith("own-"))
    by_verifier = task.name == "own-number" or (task.scorer is None and task.answers_match is None)
    return ALTERNATIVE.join(distinct) if len(distinct) == 1 or in_any_column or (any_of and by_verifier) else None


def _choice_letter(answer: object) -> str | None:
    if isinstance(answer, float) and answer.is_integer():  # of a column of integers with gaps
        answer = int(answer)
    if isinstance(answer, int) and not isinstance(answer, bool):
        return multiple_choice.CHOICE_LETTERS[answer] if 0 <= answer < len(multiple_choice.CHOICE_LETTERS) else None
    letter = answer.strip(" ().:").upper() if isinstance(answer, str) else ""
    return letter if len(letter) == 1 and letter in multiple_choice.CHOICE_LETTERS else None


# Choices


class Choices(NamedTuple):
    """The texts of the choices, and their labels in the file if it has some."""

    texts: list[str]
    labels: list[str] | None = None


def parse_choices(row: DatasetRow, column: str | None) -> Choices:
    """The row's choices. Raises DataError unless they are 2 to 26 different texts."""
    if column is None:
        letters = [letter for letter in multiple_choice.CHOICE_LETTERS if row.fields.get(letter) is not None]
        value: Any = {letter: row.fields[letter] for letter in letters}
        column = "choices"
    else:
        value = row.value(column)
    if isinstance(value, str):
        value = _parse_list(value)
    choices = _split_labels(value)
    if choices is None or not all(choices.texts):
        raise row.error(column, "must be a list of texts that are not blank")
    most = len(multiple_choice.CHOICE_LETTERS)
    if not 2 <= len(choices.texts) <= most or not are_distinct(choices.texts):
        raise row.error(column, f"must be 2 to {most} texts, all different")
    return choices


def _split_labels(value: object) -> Choices | None:
    """Choices of any known form; None for another one."""
    if isinstance(value, Mapping) and isinstance(value.get("text"), list) and isinstance(value.get("label"), list):
        texts, labels = value["text"], value["label"]
    elif isinstance(value, Mapping):
        texts, labels = list(value.values()), list(value)
    elif isinstance(value, list) and value and all(isinstance(one, Mapping) for one in value):
        texts, labels = [one.get("text") for one in value], [one.get("label") for one in value]
    elif isinstance(value, list):
        lettered = [re.fullmatch(rf"\(?{letter}[).:]\s*(.+)", one, re.DOTALL) if isinstance(one, str) else None
                    for letter, one in zip(multiple_choice.CHOICE_LETTERS, value, strict=False)]  # fmt: skip
        if lettered and all(lettered) and len(lettered) == len(value):
            return Choices([one[1].strip() for one in lettered if one])
        return Choices([scalar_text(one) for one in value])
    else:
        return None
    return (
        Choices([scalar_text(one) for one in texts], [scalar_text(one) for one in labels]) if len(texts) == len(labels) else None
    )


def _gold_letter(
    row: DatasetRow, columns: Columns, offered: Choices, integers_are_indices: bool | None, letters_are_letters: bool | None
) -> str:
    """The letter of the right choice. Raises DataError if the answer names none, or if it can be read in two ways.

    `integers_are_indices`, `letters_are_letters`: what other rows show of such answers; None if they show nothing.
    """
    value = row.value(columns.answer)
    value = value[0] if isinstance(value, list) and len(value) == 1 else value
    value = int(value) if isinstance(value, float) and value.is_integer() else value  # of a column of integers with gaps
    gold = scalar_text(value) or answer_text(row, columns.answer)
    letters = multiple_choice.CHOICE_LETTERS[: len(offered.texts)]
    if offered.labels is not None and gold in offered.labels:
        return letters[offered.labels.index(gold)]
    index, text = _readings(value, gold, columns, offered.texts)
    if index is not None and text is not None and index != text:
        if integers_are_indices:
            return letters[index]
        if integers_are_indices is None or find_same_text(gold, offered.texts) is None:
            raise row.error(
                columns.answer,
                f"may be the index of choice {letters[index]} (from 0) or the text of choice {letters[text]} "
                f"({offered.texts[text]}); give the letter",
            )
        return letters[text]
    found, letter = text if text is not None else index, _letter_reading(gold, letters)
    if letter is not None and found is not None and letters[found] != letter:
        if letters_are_letters is None:
            raise row.error(
                columns.answer,
                f"may be the letter {letter} ({offered.texts[letters.index(letter)]}) or the text of choice {letters[found]}, "
                f"and no other row shows which; give the index from 0 as an integer, {letters.index(letter)} or {found}",
            )
        return letter if letters_are_letters else letters[found]
    if found is None and letter is None:
        hint = (
            "; in CSV every cell is a text, so give letters or texts there" if gold.isdecimal() and isinstance(value, str) else ""
        )
        raise row.error(
            columns.answer,
            f"must be a letter, A to {letters[-1]}, or the text of one of the choices, or as an integer its index from 0{hint}",
        )
    return letter if found is None and letter is not None else letters[found or 0]


def _letter_reading(gold: str, letters: str) -> str | None:
    letter = gold.strip(" ().:").upper()
    return letter if len(letter) == 1 and letter in letters else None


def _letters_are_letters(rows: Sequence[DatasetRow], columns: Columns) -> bool | None:
    """Whether the file's answers of one letter are letters of choices and not texts, as answers show that can be read in one way
    only; None if none shows it, or if they show both."""
    shown = set[bool]()
    for row in rows:
        value = field_value(row.fields, columns.answer)
        if isinstance(value, str):
            texts = parse_choices(row, columns.choices).texts
            letter = _letter_reading(value, multiple_choice.CHOICE_LETTERS[: len(texts)])
            if (letter is None) != (find_same_text(value, texts) is None):
                shown.add(letter is not None)
    return shown.pop() if len(shown) == 1 else None


def _readings(value: object, gold: str, columns: Columns, texts: Sequence[str]) -> tuple[int | None, int | None]:
    """The choices that an answer may mean: as an index from 0, and as a text, or as the number of a text such as "2 cm"."""
    index, text = _index_reading(value, columns, len(texts)), find_same_text(gold, texts)
    return index, _number_reading(gold, texts, index) if text is None and index is not None else text


def _number_reading(gold: str, texts: Sequence[str], index: int) -> int | None:
    """A choice that is the number `gold`, with a unit or in another notation. One at another place than `index` comes first."""
    same = [place for place, text in enumerate(texts) if (number := _number_of_choice(text)) and numbers_equal(number, gold)]
    return next((place for place in same if place != index), index if same else None)


_BEGINS_WITH_NUMBER = re.compile(r"[$\\ ]*(?:[A-Za-z] ?= ?)?[-+.$€£¥₹\\ ]*[0-9]")

MAX_WORDS_OF_A_NUMBER = 3


def _number_of_choice(text: str) -> str | None:
    """The number that a choice is: 2 of "2 cm", "2.0" and "$2". None for a sentence or a name that holds one."""
    if len(text.split()) > MAX_WORDS_OF_A_NUMBER or not _BEGINS_WITH_NUMBER.match(text):
        return None
    number = number_in_box(text.strip("$ "))
    return number and number.rstrip("%")


def _index_reading(value: object, columns: Columns, n_choices: int) -> int | None:
    """The index from 0 that an answer may be: an integer, or HellaSwag's label, which is a text of digits."""
    if columns.choices is not None and columns.choices.lower() == "endings" and isinstance(value, str) and value.isdecimal():
        value = int(value)
    return value if isinstance(value, int) and not isinstance(value, bool) and 0 <= value < n_choices else None


def _integers_are_indices(rows: Sequence[DatasetRow], columns: Columns) -> bool | None:
    """Whether the file's integer answers are indices, as answers show that can be read in one way only; None if none shows it."""
    shown = set[bool]()
    for row in rows:
        value = field_value(row.fields, columns.answer)
        if isinstance(value, int):
            texts = parse_choices(row, columns.choices).texts
            readings = _readings(value, str(value), columns, texts)
            if (readings[0] is None) != (readings[1] is None):
                shown.add(readings[0] is not None)
    return shown.pop() if len(shown) == 1 else None


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


def function_task(answer: str, function: Callable[[str, str], object], source: str) -> Task:
    """The task of questions from a file whose answers the user's `function` compares: (completion, gold) -> bool.

    `answer` is the function's name, "package.module:function".
    """

    def is_accepted(completion: str, gold: str) -> bool:
        return require_bool(function(completion, gold), "the function")

    def score(completion: str, gold: str) -> Verdict:
        correct = same_as_any(is_accepted, completion, gold)
        return Verdict(correct=correct, extracted=truncate_for_record(completion))

    task = _custom_task(answer, whole_completion, prompt_template="{question}")
    return replace(task, scorer=score, source=source)


def whole_completion(completion: str, question: str = "") -> str | None:
    """The completion without white space at its ends; None if nothing is left."""
    return completion.strip() or None


CUSTOM_TASKS = (
    _custom_task(
        "number",
        extract_number_as_written,
        partial(same_as_any, same_number_in_some_notation),
        prompt_template="{question}\n\nEnd with the final number inside \\boxed{}.",
    ),
    _custom_task("math", extract_expression),
    _custom_task("exact", extract_text, partial(same_as_any, same_text)),
    _custom_task(
        "choice",
        extract_choice,
        multiple_choice.same_letter,
        prompt_template=multiple_choice.CHOICE_PROMPT_TEMPLATE,
    ),
)

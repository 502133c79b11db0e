r"""MATH: competition problems to train on, by level (rasbt/math_full_minus_math500 on the hub, Apache-2.0).

A row of a local file:

    {"problem": "Evaluate $\\log_432$.", "answer": "\\frac{5}{2}", "difficulty": 3.0, "type": "Algebra"}

The hub's rows (12,000: all of MATH without MATH-500) have "level": "Level 3" instead of a difficulty; copies with "level": 3 and
"subject" are read too. One in four problems, by content, is held out; one in eight of the others is dev.
The solution is the row's "solution", as published; where it has none, the boxed answer alone.
A problem published without an answer, or with an empty one, cannot be checked and is left out. One whose level is unknown
("Level ?", 0.0) is asked unless levels are chosen.

The answer of a completion is its last box, else what its last "answer is" names; no number is guessed, since many golds are
expressions.
"""

import re
from collections.abc import Iterable, Iterator

from permix.config import TaskConfig
from permix.tasks.base import Task, choose, refuse_unknown_levels, side
from permix.tasks.rows import Hub, Row, published_rows
from permix.types import Question, digest, normalise

HUB = Hub("rasbt/math_full_minus_math500")
LEVELS = ("1", "2", "3", "4", "5")
WORDING = "{question}\n\nReason step by step. End with the final answer inside \\boxed{}."

# Inline LaTeX, else up to the end of the sentence or line.
_ANSWER_IS = re.compile(r"\b[Aa]nswer(?: is|:)[ \t*:]*(\$[^$\n]+\$|.+?(?=[.!?]\s|[.!?]?$))", re.MULTILINE)


def questions(config: TaskConfig) -> tuple[Question, ...]:
    refuse_unknown_levels(config.levels, LEVELS, "math")
    rows = (row for row in published_rows(HUB, "train", config.path) if row.value("answer") not in (None, ""))
    ours = (one for one in map(question, rows) if side(one.content_hash) == config.split)
    return choose(of_levels(ours, config.levels), config)


def question(row: Row) -> Question:
    """Raises DataError naming the row's file and line."""
    text = row.text("problem")
    subject = row.text("type" if "type" in row.fields else "subject")
    level = level_of(row, "difficulty" if "difficulty" in row.fields else "level")
    tags = (f"level-{level}", subject)
    gold = gold_of(row)
    name = f"math:{digest(normalise(text))}"
    return Question(id=name, task="math", text=text, gold=gold, tags=tags, solution=solution_of(row, gold))


def solution_of(row: Row, gold: str) -> str:
    """The worked solution, or the boxed gold where the row has none."""
    worked = row.fields.get("solution")
    return row.text("solution") if isinstance(worked, str) and worked.strip() else f"\\boxed{{{gold}}}"


def gold_of(row: Row) -> str:
    """The answer without the dollar signs of inline LaTeX around it."""
    return re.sub(r"^\$(.*[^\\])\$$", r"\1", row.text("answer")).strip()


def level_of(row: Row, field: str) -> str:
    """One of LEVELS, or "?". A level is published as 4, 4.0, "4" or "Level 4", an unknown one as 0.0 or "Level ?"."""
    match = re.fullmatch(r"(?:Level )?([0-5?])(?:\.0)?", str(row.value(field)))
    if not match:
        raise row.error(field, "must be a level, 1 to 5")
    return match[1].replace("0", "?")


def of_levels(questions: Iterable[Question], levels: tuple[str, ...]) -> Iterator[Question]:
    """The questions of these levels, or all of them when none is named."""
    wanted = {f"level-{level}" for level in levels}
    return (one for one in questions if not wanted or wanted.intersection(one.tags))


def unboxed(completion: str) -> str | None:
    named = _ANSWER_IS.findall(completion)
    return named[-1].strip(" \t*.") or None if named else None


MATH = Task(name="math", wording=WORDING, questions=questions, unboxed=unboxed)

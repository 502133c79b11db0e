"""Code: programming questions, whose answer is a Python program that is run on tests in a sandbox.

The questions are those of a local file or folder, in one of the formats of `permix.tasks.code_formats`: LiveCodeBench's,
HumanEval's,
MBPP's, or your own; without a path MBPP's, from the hub. Levels are difficulties, in the formats that have some.

The answer of a completion is its last closed code block that is marked as Python, as the wording asks; where none is, its last
closed block, since many models show what a program prints in a block after it. It is right when it does what every test asks. How
programs are run, and what they can neither do nor know, is said in `permix.verification`; it needs bubblewrap.

The gold is a hash of the tests, not the tests: they can be megabytes, and a gold is written into every record. `questions` keeps
the tests of what it chose in this process, by that hash, so a gold can never stand for other tests than those it was made of.
"""

import json
import re
import zlib
from collections.abc import Iterator

from permix.config import TaskConfig
from permix.errors import ConfigError
from permix.tasks.base import Task, choose, refuse_unknown_levels
from permix.tasks.code_formats import Format, format_of
from permix.tasks.datasets import Hub, Published, Row, published_rows
from permix.types import Question, Split, Verdict, digest, normalise
from permix.verification.math_verifier import recorded
from permix.verification.sandbox import Case, Suite, judge, refuse_unable

HUB = Hub("google-research-datasets/mbpp", "full", splits=("train", "validation", "test"))

PUBLISHED: dict[Split, Published] = {"train": "train", "dev": "validation", "heldout": "test"}

PYTHON = ("python", "py", "python3")


_FENCE = re.compile(r"^[ \t]*(`{3,})(.*)$", re.MULTILINE)

_SUITES: dict[str, bytes] = {}  # by gold; compressed JSON


def questions(config: TaskConfig) -> tuple[Question, ...]:
    rows = list(published_rows(HUB, PUBLISHED[config.split], config.path))
    form = format_of(rows[0])
    rows = [row for row in rows if form.fit(row)]
    known = [question(row, form) for row in rows]
    refuse_unknown_levels(config.levels, sorted({level for one in known for level in one.tags}), "code")
    sides = form.sides(rows, known)
    if config.split not in sides:
        there = ", ".join(sorted({side for side in sides if side})) or "none"
        raise ConfigError(f'task.split = "{config.split}": {config.path or HUB.id} has no such questions; its sides: {there}')
    ours = {one: row for one, row, its in zip(known, rows, sides, strict=True) if its == config.split}
    chosen = choose((one for one in ours if not config.levels or set(config.levels) & set(one.tags)), config)
    for one in chosen:
        keep(one.gold, form.suite(ours[one]))
    return chosen


def question(row: Row, form: Format) -> Question:
    """Raises DataError naming the row's file and line."""
    text, level = form.text(row), row.fields.get(form.level) if form.level else None
    return Question(
        id=f"code:{digest(normalise(text))}", task="code", text=text, gold=form.gold(row), solution=form.solution(row),
        tags=() if level is None else (str(level),),
    )  # fmt: skip


def keep(gold: str, suite: Suite) -> None:
    _SUITES[gold] = zlib.compress(json.dumps(suite).encode(), level=1)


def suite_of(gold: str) -> Suite:
    """Raises ConfigError for a gold whose question was not loaded in this process."""
    if gold not in _SUITES:
        raise ConfigError(f"code: the tests {gold} are not among those loaded; give the task.path that the question came from")
    prelude, function, cases, check = json.loads(zlib.decompress(_SUITES[gold]))
    return Suite(prelude, function, tuple(Case(*case) for case in cases), check)


def program_of(completion: str) -> str | None:
    """The last block of Python, else the last of any kind, None if there is none. Blank ones do not count."""
    found = [(language, content) for language, content in blocks(completion) if content.strip()]
    marked = [content for language, content in found if language in PYTHON]
    return marked[-1] if marked else found[-1][1] if found else None


def blocks(completion: str) -> Iterator[tuple[str, str]]:
    """What each closed code block is marked as, and its content. Linear time."""
    opened: re.Match[str] | None = None
    for fence in _FENCE.finditer(completion):
        if opened is None:
            opened = None if "`" in fence[2] else fence  # backticks around words of a line open nothing
        elif len(fence[1]) >= len(opened[1]) and not fence[2].strip():
            yield opened[2].strip().lower(), completion[opened.end() + 1 : fence.start()]
            opened = None


def verdict(program: str, gold: str) -> Verdict:
    found = judge(program, suite_of(gold))
    error = f"sandbox: {found.reason}" if found.correct is None else None
    return Verdict(correct=found.correct, extracted=recorded(program), error=error)


CODE = Task(
    name="code",
    wording="{question}\n\nAnswer with one Python program, whole, in a code block:\n\n```python\n# the program\n```",
    questions=questions,
    unboxed=program_of,
    judge=verdict,
    ready=refuse_unable,
)

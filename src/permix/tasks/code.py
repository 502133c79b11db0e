"""Code: programming questions. The answer is a Python program, which is run on tests in a sandbox.

The questions come from a local file or folder in one of the formats of `permix.tasks.code_formats`: LiveCodeBench, HumanEval,
MBPP or your own. Without a path they are MBPP's, from the hub. Levels are difficulties, in formats that have them.

The answer of a completion is its last closed code block that is marked as Python, as the prompt asks; if no block is marked, its
last closed block. Marked blocks come first because many models show the program's output in a later block. An answer is correct
if it passes every test. `permix.verification.sandbox` runs the programs; it needs bubblewrap.

The gold is a hash of the tests, because tests can be megabytes long and every record contains its gold. `questions` keeps the
tests of the chosen questions in this process, by that hash, so a gold always refers to the tests that it was made from.
"""

import json
import re
import zlib
from collections.abc import Iterator

from permix.config import TaskConfig
from permix.errors import ConfigError
from permix.tasks.base import Task, check_known_levels, select_questions
from permix.tasks.code_formats import CodeFormat, detect_code_format
from permix.tasks.datasets import DatasetRow, HubDataset, PublishedSplit, read_published_rows
from permix.types import Question, Split, Verdict, canonical_text, digest
from permix.verification.math_verifier import truncate_for_record
from permix.verification.sandbox import Case, Suite, require_sandbox, run_tests

MBPP_HUB = HubDataset("google-research-datasets/mbpp", "full", splits=("train", "validation", "test"))

MBPP_PUBLISHED_SPLITS: dict[Split, PublishedSplit] = {"train": "train", "dev": "validation", "heldout": "test"}

PYTHON_FENCE_LABELS = ("python", "py", "python3")


_FENCE = re.compile(r"^[ \t]*(`{3,})(.*)$", re.MULTILINE)

_SUITES: dict[str, bytes] = {}  # compressed JSON by gold


def code_questions(config: TaskConfig) -> tuple[Question, ...]:
    """The `config.n` questions of a configuration; registers their tests in this process. Raises ConfigError or DataError."""
    rows = list(read_published_rows(MBPP_HUB, MBPP_PUBLISHED_SPLITS[config.single_split], config.path))
    code_format = detect_code_format(rows[0])
    rows = [row for row in rows if code_format.is_usable(row)]
    known = [code_question(row, code_format) for row in rows]
    check_known_levels(config.levels, sorted({level for one in known for level in one.tags}), "code")
    splits = code_format.row_splits(rows, known)
    if config.split not in splits:
        present = ", ".join(sorted({split for split in splits if split})) or "none"
        raise ConfigError(
            f'task.split = "{config.split}": {config.path or MBPP_HUB.id} has no such questions; its splits: {present}'
        )
    row_by_question = {one: row for one, row, split in zip(known, rows, splits, strict=True) if split == config.split}
    chosen = select_questions((one for one in row_by_question if not config.levels or set(config.levels) & set(one.tags)), config)
    for one in chosen:
        register_suite(one.gold, code_format.suite(row_by_question[one]))
    return chosen


def code_question(row: DatasetRow, code_format: CodeFormat) -> Question:
    """The question of a row. Raises DataError naming the row's file and line."""
    text, level = code_format.text(row), row.fields.get(code_format.level) if code_format.level else None
    return Question(
        id=f"code:{digest(canonical_text(text))}",
        task="code",
        text=text,
        gold=code_format.gold(row),
        solution=code_format.solution(row),
        tags=() if level is None else (str(level),),
    )


def register_suite(gold: str, suite: Suite) -> None:
    """Keep the tests of a question in this process, for `score_program`."""
    _SUITES[gold] = zlib.compress(json.dumps(suite).encode(), level=1)


def registered_suite(gold: str) -> Suite:
    """The tests of a gold. Raises ConfigError if its question was not loaded in this process."""
    if gold not in _SUITES:
        raise ConfigError(f"code: the tests {gold} are not loaded; give the task.path that the question came from")
    prelude, function, cases, check = json.loads(zlib.decompress(_SUITES[gold]))
    return Suite(prelude, function, tuple(Case(*case) for case in cases), check)


def extract_program(completion: str, question: str = "") -> str | None:
    """The last code block marked as Python, else the last code block, else None. Blank blocks do not count."""
    blocks = [(language, content) for language, content in code_blocks(completion) if content.strip()]
    marked = [content for language, content in blocks if language in PYTHON_FENCE_LABELS]
    return marked[-1] if marked else blocks[-1][1] if blocks else None


def code_blocks(completion: str) -> Iterator[tuple[str, str]]:
    """Yield (label, content) of each closed code block; an unlabeled block has the label "". Takes linear time."""
    opened: re.Match[str] | None = None
    for fence in _FENCE.finditer(completion):
        if opened is None:
            opened = None if "`" in fence[2] else fence  # such as ```x```: inline code, not a block
        elif len(fence[1]) >= len(opened[1]) and not fence[2].strip():
            yield opened[2].strip().lower(), completion[opened.end() + 1 : fence.start()]
            opened = None


def score_program(program: str, gold: str) -> Verdict:
    """Run a program on the tests of a gold. `correct` is None if the sandbox or the tests failed."""
    outcome = run_tests(program, registered_suite(gold))
    error = f"sandbox: {outcome.reason}" if outcome.correct is None else None
    return Verdict(correct=outcome.correct, extracted=truncate_for_record(program), error=error)


CODE = Task(
    name="code",
    prompt_template="{question}\n\nAnswer with one Python program, whole, in a code block:\n\n```python\n# the program\n```",
    questions=code_questions,
    extract=extract_program,
    scorer=score_program,
    check_environment=require_sandbox,
    max_new_tokens=1024,
)

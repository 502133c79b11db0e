r'''Code: programming questions. The answer is a Python program, which is run on tests in a sandbox.

The questions come from a local file or folder in one of the formats of `CODE_FORMATS`, which are described below: HumanEval,
LiveCodeBench, MBPP or your own. Without a path they are MBPP's, from the hub. Levels are difficulties, in formats that have them.

The answer of a completion is its last closed code block that is marked as Python, as the prompt asks; if no block is marked, its
last closed block. Marked blocks come first because many models show the program's output in a later block. An answer is correct
if it passes every test. `permix.verification.sandbox` runs the programs; it needs bubblewrap.

The gold is a hash of the tests, because tests can be megabytes long and every record contains its gold. `code_questions` keeps
the tests of the chosen questions in this process, by that hash, so a gold always refers to the tests that it was made from.

A data file has rows of one format. `detect_code_format` recognizes it by a field that only it has. Every function that takes a
row raises DataError naming the row's file and line, the field and what would be valid.

HumanEval (openai/openai_humaneval, MIT): functions to complete, all held out. A row, as published:

    {"task_id": "HumanEval/53", "prompt": "def add(x: int, y: int):\n    """Add two numbers x and y ...\n    """\n",
     "entry_point": "add", "canonical_solution": "    return x + y\n",
     "test": "def check(candidate):\n    assert candidate(0, 1) == 1\n ..."}

The prompt is run before the program and before the check, since both may use its imports and definitions.

LiveCodeBench (livecodebench/code_generation_lite, files test.jsonl to test6.jsonl): contest problems, all held out. A row, as
published, without fields that are not read:

    {"question_content": "Print the sum of two numbers ...", "starter_code": "", "difficulty": "easy", "metadata": "{}",
     "public_test_cases": "[{\"input\": \"1 2\\n\", \"output\": \"3\\n\", \"testtype\": \"stdin\"}]",
     "private_test_cases": "eJxrYJ..."}

The private tests are a list of the same form, or such a list packed with pickle, zlib and base64. If a method is asked for, there
is starter code, `metadata` names the method as `func_name`, and the input of a test has one argument per line, as JSON. Levels
are difficulties.

MBPP (google-research-datasets/mbpp, CC-BY-4.0; full or sanitized): small functions. A row of the full set, as published (the
sanitized set has "prompt" for "text" and a list "test_imports" for "test_setup_code"):

    {"task_id": 604, "text": "Write a function to reverse words in a given string.", "code": "def reverse_words(s): ...",
     "test_list": ["assert reverse_words(\"python program\")==(\"program python\")", ...], "test_setup_code": "",
     "challenge_test_list": []}

Task ids 11 to 510 are heldout, 511 to 600 dev and 601 to 974 train; the first ten were published as examples for prompts. The
question shows one test, since a program cannot know the function's name without it; it shows only one, because a program could
look up the results of every test that it was shown. A row is left out if its tests use more of the published solution than one
function, such as a class, whose name no program could guess.

Your own questions: programs that read standard input, or functions. A row of each kind:

    {"question": "Print the sum of two numbers.", "tests": [{"input": "1 2\n", "output": "3\n"}]}
    {"question": "Add two numbers.", "function": "add", "tests": [{"args": [1, 2], "output": 3}]}

A function may also be a method of a class Solution. `starter` is code to complete, which the question shows. `task.levels`
selects by `level`. Supervised training learns from `solution`, a program or an answer with a code block in it. `split` is train,
dev or heldout, in all rows or in none; without it the split depends on the content.
'''

import ast
import base64
import binascii
import io
import json
import pickle
import re
import zlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

from permix.config import TaskConfig
from permix.errors import ConfigError, DataError
from permix.tasks.base import Task, check_known_levels, select_questions
from permix.tasks.custom import splits_by_row
from permix.tasks.datasets import DatasetRow, HubDataset, PublishedSplit, read_published_rows
from permix.types import Question, Split, Verdict, canonical_text, digest
from permix.verification.guest.protocol import encode_value
from permix.verification.math_verifier import truncate_for_record
from permix.verification.sandbox import Case, Suite, require_sandbox, run_tests

PRELUDE = """\
import bisect, collections, copy, functools, heapq, itertools, math, operator, random, re, string, sys
from bisect import *
from collections import *
from functools import *
from heapq import *
from itertools import *
from math import ceil, floor, gcd, inf, isqrt, sqrt
from typing import *
sys.setrecursionlimit(50_000)
"""
"""Imports that every program gets: benchmarks provide about the same ones, and many programs rely on them."""


def _always_usable(row: DatasetRow) -> bool:
    return True


class CodeFormat(NamedTuple):
    """One data format of programming questions.

    marker_field: a field that only this format has.
    test_fields: the fields that the tests are made from.
    text, suite, solution: make a row's question, tests and solution; `solution` returns None if the row has none.
    row_splits: the split of each row, or None for a row that is in no split.
    level: the field that names the difficulty, if the format has one.
    is_usable: whether permix can ask the row.
    """

    marker_field: str
    test_fields: tuple[str, ...]
    text: Callable[[DatasetRow], str]
    suite: Callable[[DatasetRow], Suite]
    solution: Callable[[DatasetRow], str | None]
    row_splits: Callable[[Sequence[DatasetRow], Sequence[Question]], Sequence[str | None]]
    level: str | None = None
    is_usable: Callable[[DatasetRow], bool] = _always_usable

    def gold(self, row: DatasetRow) -> str:
        """Hash of the fields that the row's tests are made from."""
        values = (json.dumps(row.fields.get(field), sort_keys=True) for field in self.test_fields)
        return digest(self.marker_field, *values, length=32)


def all_heldout_splits(rows: Sequence[DatasetRow], questions: Sequence[Question]) -> list[str | None]:
    return ["heldout"] * len(rows)


def fenced_code(code: str) -> str:
    return f"```python\n{code.strip()}\n```"


def starter_prompt(starter: str) -> str:
    return f"Complete this code:\n\n{fenced_code(starter)}"


STDIN_INSTRUCTION = "Read standard input, print to standard output."


def parse_json_field(row: DatasetRow, field: str, text: str) -> Any:
    """Parse `text`, a field's text or a part of it, as JSON."""
    try:
        return json.loads(text)
    except (ValueError, RecursionError, TypeError) as error:
        raise row.error(field, f"contains text that is not JSON: {error}") from error


def parse_python_field(row: DatasetRow, field: str, source: str) -> ast.Module:
    """The syntax tree of the Python code in a field."""
    try:
        return ast.parse(source)
    except (SyntaxError, ValueError) as error:
        raise row.error(field, f"must be Python: {error}") from error


def humaneval_text(row: DatasetRow) -> str:
    return f"Complete this function:\n\n{fenced_code(row.text('prompt'))}"


def humaneval_suite(row: DatasetRow) -> Suite:
    prompt, test, function = (row.text(field) for field in ("prompt", "test", "entry_point"))
    parse_python_field(row, "prompt", prompt)
    parse_python_field(row, "test", test)
    return Suite(f"{PRELUDE}\n{prompt}\n", function, check_code=f"{test}\n\ncheck({function})\n")


def humaneval_solution(row: DatasetRow) -> str | None:
    body = row.fields.get("canonical_solution")
    return fenced_code(f"{row.text('prompt')}\n{body}") if isinstance(body, str) and body.strip() else None


HUMANEVAL = CodeFormat(
    marker_field="entry_point", test_fields=("prompt", "entry_point", "test"),
    text=humaneval_text, suite=humaneval_suite, solution=humaneval_solution, row_splits=all_heldout_splits,
)  # fmt: skip


PUBLIC_TESTS_FIELD, PRIVATE_TESTS_FIELD = "public_test_cases", "private_test_cases"


def livecodebench_text(row: DatasetRow) -> str:
    starter = str(row.value("starter_code") or "")
    return f"{row.text('question_content')}\n\n{starter_prompt(starter) if starter.strip() else STDIN_INSTRUCTION}"


def livecodebench_suite(row: DatasetRow) -> Suite:
    metadata = parse_json_field(row, "metadata", row.text("metadata"))
    function = metadata.get("func_name") if isinstance(metadata, dict) else None
    cases = [
        _livecodebench_case(row, PUBLIC_TESTS_FIELD, test, function)
        for test in parse_json_field(row, PUBLIC_TESTS_FIELD, row.text(PUBLIC_TESTS_FIELD))
    ]
    cases += [
        _livecodebench_case(row, PRIVATE_TESTS_FIELD, test, function)
        for test in parse_json_field(row, PRIVATE_TESTS_FIELD, _unpack_private_tests(row))
    ]
    if not cases:
        raise row.error(PUBLIC_TESTS_FIELD, "has no test, nor do the private tests")
    return Suite(PRELUDE, function, tuple(cases))


def _livecodebench_case(row: DatasetRow, field: str, test: Any, function: str | None) -> Case:
    if not isinstance(test, dict) or not all(isinstance(test.get(part), str) for part in ("input", "output")):
        raise row.error(field, "each test must have a text as input and one as output")
    if function is None:
        return Case(test["input"], test["output"])
    arguments = [parse_json_field(row, field, line) for line in test["input"].split("\n")]
    return Case(encode_value([arguments, {}]).decode(), json.dumps(parse_json_field(row, field, test["output"])))


class _SafeUnpickler(pickle.Unpickler):
    """Loads only pickles of built-in values; a pickle that imports something could run code from the data set."""

    def find_class(self, module: str, name: str) -> Any:
        raise pickle.UnpicklingError(f"it imports {module}.{name}")


def _unpack_private_tests(row: DatasetRow) -> str:
    packed = row.text(PRIVATE_TESTS_FIELD)
    if packed.startswith("["):
        return packed
    try:
        tests = _SafeUnpickler(io.BytesIO(zlib.decompress(base64.b64decode(packed, validate=True)))).load()
    except (binascii.Error, zlib.error, pickle.UnpicklingError, EOFError, ValueError, IndexError) as error:
        raise row.error(PRIVATE_TESTS_FIELD, f"must be a list of tests, plain or packed as published: {error}") from error
    return tests if isinstance(tests, str) else json.dumps(tests)


LIVECODEBENCH = CodeFormat(
    marker_field="question_content", test_fields=("metadata", PUBLIC_TESTS_FIELD, PRIVATE_TESTS_FIELD), level="difficulty",
    text=livecodebench_text, suite=livecodebench_suite, solution=lambda row: None, row_splits=all_heldout_splits,
)  # fmt: skip


MBPP_TASK_IDS = {"heldout": range(11, 511), "dev": range(511, 601), "train": range(601, 975)}


def mbpp_splits(rows: Sequence[DatasetRow], questions: Sequence[Question]) -> list[str | None]:
    return [next((split for split, ids in MBPP_TASK_IDS.items() if row.value("task_id") in ids), None) for row in rows]


def mbpp_text(row: DatasetRow) -> str:
    question = row.text("text" if "text" in row.fields else "prompt")
    return f"{question}\n\nA test that it must pass:\n\n{fenced_code(_assertions(row)[0])}"


def mbpp_suite(row: DatasetRow) -> Suite:
    setup = row.fields.get("test_setup_code") or "\n".join(row.fields.get("test_imports") or ())
    (function,) = functions_under_test(row)
    return Suite(PRELUDE, function, check_code="\n".join([setup, *_assertions(row)]))


def functions_under_test(row: DatasetRow) -> set[str]:
    """Names of the functions and classes of the published solution that the tests use."""
    solution = parse_python_field(row, "code", row.text("code")).body
    defined = {node.name for node in solution if isinstance(node, ast.FunctionDef | ast.ClassDef)}
    tests = ast.walk(parse_python_field(row, "test_list", "\n".join(_assertions(row))))
    return defined & {node.id for node in tests if isinstance(node, ast.Name)}


def _assertions(row: DatasetRow) -> list[str]:
    tests = row.value("test_list")
    if not isinstance(tests, list) or not tests or not all(isinstance(test, str) for test in tests):
        raise row.error("test_list", "must be a list of assertions")
    return tests


MBPP = CodeFormat(
    marker_field="test_list", test_fields=("code", "test_setup_code", "test_imports", "test_list"),
    text=mbpp_text, suite=mbpp_suite, solution=lambda row: fenced_code(row.text("code")), row_splits=mbpp_splits,
    is_usable=lambda row: len(functions_under_test(row)) == 1,
)  # fmt: skip


def custom_code_text(row: DatasetRow) -> str:
    return f"{row.text('question')}\n\n{_interface_instruction(row)}"


def _interface_instruction(row: DatasetRow) -> str:
    if row.fields.get("starter"):
        return starter_prompt(row.text("starter"))
    return f"The function is called `{row.text('function')}`." if "function" in row.fields else STDIN_INSTRUCTION


def custom_code_suite(row: DatasetRow) -> Suite:
    tests, function = row.value("tests"), row.text("function") if "function" in row.fields else None
    if not isinstance(tests, list) or not tests or not all(isinstance(test, dict) for test in tests):
        raise row.error("tests", "must be a list of tests, each with input or args, and output")
    return Suite(PRELUDE, function, tuple(_custom_code_case(row, function, test) for test in tests))


def _custom_code_case(row: DatasetRow, function: str | None, test: dict[str, Any]) -> Case:
    if function is None:
        if not all(isinstance(test.get(part), str) for part in ("input", "output")):
            raise row.error("tests", "without a function, each test must have a text as input and one as output")
        return Case(test["input"], test["output"])
    if not isinstance(test.get("args"), list) or "output" not in test:
        raise row.error("tests", "with a function, each test must have a list of args, and an output")
    return Case(encode_value([test["args"], {}]).decode(), json.dumps(test["output"]))


def custom_code_solution(row: DatasetRow) -> str | None:
    if not row.fields.get("solution"):
        return None
    given = row.text("solution")
    return given if "```" in given else fenced_code(given)


CUSTOM_CODE = CodeFormat(
    marker_field="tests",
    test_fields=("function", "tests"),
    level="level",
    text=custom_code_text,
    suite=custom_code_suite,
    solution=custom_code_solution,
    row_splits=splits_by_row,
)


CODE_FORMATS = (LIVECODEBENCH, HUMANEVAL, MBPP, CUSTOM_CODE)


def detect_code_format(row: DatasetRow) -> CodeFormat:
    """The format of a row, by its marker field. Raises DataError if the row has no marker field."""
    for form in CODE_FORMATS:
        if form.marker_field in row.fields:
            return form
    marks = ", ".join(form.marker_field for form in CODE_FORMATS)
    raise DataError(f"{row.where}: must have one of the fields {marks}; this row has {', '.join(row.fields) or 'none'}")


MBPP_HUB = HubDataset("google-research-datasets/mbpp", "full", splits=("train", "validation", "test"))

MBPP_PUBLISHED_SPLITS: dict[Split, PublishedSplit] = {"train": "train", "dev": "validation", "heldout": "test"}

PYTHON_FENCE_LABELS = ("python", "py", "python3")

_FENCE = re.compile(r"^([ \t]*)(`{3,}|~{3,})(.*)$", re.MULTILINE)

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
    """The last code block marked as Python, else the last code block, else None. Blank blocks do not count.

    A block that only uses what an earlier one defines is an example: of several the last with a definition counts, if one has any
    and the block behind it reads no input.
    """
    blocks = [(language, content) for language, content in code_blocks(completion) if content.strip()]
    marked = [content for language, content in blocks if language in PYTHON_FENCE_LABELS]
    programs = marked or [content for _, content in blocks]
    while len(programs) > 1 and _is_example(programs[-1]) and any(map(_DEFINITION.search, programs[:-1])):
        programs.pop()
    return programs[-1] if programs else None


_DEFINITION = re.compile(r"^(?:async\s+)?(?:def|class)\s+\w", re.MULTILINE)

_READS_INPUT = re.compile(r"\binput\s*\(|\bstdin\b|\bopen\s*\(")


def _is_example(program: str) -> bool:
    """Whether a block neither defines anything nor reads input: it calls what another block defines, or is its output."""
    return _DEFINITION.search(program) is None and _READS_INPUT.search(program) is None


def code_blocks(completion: str) -> Iterator[tuple[str, str]]:
    """Yield (label, content) of each closed code block; an unlabeled block has the label "". Takes linear time.

    Fences are three or more backticks, or else tildes, closed by at least as many; they may have any indentation. The content
    loses the indentation of the opening fence, as in a list, if all its lines have it. Tildes count only where there are no
    backticks.
    """
    fences = list(_FENCE.finditer(completion))
    mark = "`" if any(fence[2][0] == "`" for fence in fences) else "~"
    opened: re.Match[str] | None = None
    for fence in fences:
        if fence[2][0] != mark:
            continue
        if opened is None:
            opened = None if "`" in fence[3] else fence  # such as ```x```: inline code, not a block
        elif fence[2].startswith(opened[2]) and not fence[3].strip():
            content = completion[opened.end() + 1 : fence.start()]
            yield opened[3].strip().lower().partition(" ")[0], _without_indentation(content, opened[1])
            opened = None


def _without_indentation(content: str, indentation: str) -> str:
    lines = content.split("\n")
    if not indentation or not all(line.startswith(indentation) for line in lines if line.strip()):
        return content
    return "\n".join(line.removeprefix(indentation) for line in lines)


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

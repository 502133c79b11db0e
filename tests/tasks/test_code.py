"""Programming questions: rows of every format, the answer of a completion, golds without tests in them, and verdicts."""

import base64
import json
import pickle
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from permix import cli
from permix.config import PersonasConfig, PlanConfig, RolloutPlanConfig, TaskConfig, TrainConfig
from permix.errors import ConfigError, DataError
from permix.plan import compile_plan_from_config, write_plan
from permix.tasks import TASKS, code, load_questions
from permix.tasks.base import verify_completion
from permix.tasks.code import CODE, extract_program, registered_suite
from permix.training.job import prepare_training
from permix.training.rewards import verify_completions
from permix.types import Question
from permix.verification.sandbox import Case
from tests.cell_files import read_cells
from tests.sample_runs import stability_values, toml
from tests.sandboxed import needs_sandbox
from tests.servers import openai_server

OWN_PROGRAM = {"question": "Print the sum of two numbers.", "tests": [{"input": "1 2\n", "output": "3\n"}], "split": "heldout"}
OWN_FUNCTION = {
    "question": "Add two numbers.", "function": "add", "solution": "def add(a, b): return a + b", "split": "heldout",
    "tests": [{"args": [1, 2], "output": 3}, {"args": [[1], [2]], "output": [1, 2]}], "level": "easy",
}  # fmt: skip
PUBLIC = [{"input": "1 2\n", "output": "3\n", "testtype": "stdin"}]
PRIVATE = [{"input": "20 30\n", "output": "50\n", "testtype": "stdin"}]
LIVECODEBENCH = {
    "question_title": "Sum", "question_content": "Print the sum.", "platform": "atcoder", "question_id": "a", "starter_code": "",
    "difficulty": "easy", "metadata": "{}", "public_test_cases": json.dumps(PUBLIC), "private_test_cases": json.dumps(PRIVATE),
}  # fmt: skip
METHOD = {
    **LIVECODEBENCH, "question_content": "Return the sum.", "difficulty": "hard", "metadata": '{"func_name": "add"}',
    "starter_code": "class Solution:\n    def add(self, a: int, b: int) -> int:\n        ",
    "public_test_cases": json.dumps([{"input": "1\n2", "output": "3", "testtype": "functional"}]), "private_test_cases": "[]",
}  # fmt: skip
HUMANEVAL = {
    "task_id": "HumanEval/0", "entry_point": "twice_sum", "canonical_solution": "    return add(xs) * 2\n",
    "prompt": 'from typing import List\n\ndef add(xs):\n    return sum(xs)\n\ndef twice_sum(xs: List[int]):\n    """Twice."""\n',
    "test": "def check(candidate):\n    assert candidate([1, 2]) == 6\n    assert candidate([add([3])]) == 6\n",
}  # fmt: skip
MBPP = {
    "task_id": 601, "text": "Write a function to add.", "code": "def add(a, b):\r\n  return a + b", "test_setup_code": "",
    "test_list": ["assert add(1, 2) == 3", "assert add('a', 'b') == 'ab'"], "challenge_test_list": [],
}  # fmt: skip


def write(path: Path, *rows: dict[str, Any]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def load(path: Path, **fields: Any) -> tuple[Question, ...]:
    """Without looking for a sandbox, which only a verdict needs."""
    return CODE.questions(TaskConfig.model_validate({"name": "code", "path": path, "n": 1, **fields}))


def one(tmp_path: Path, row: dict[str, Any], **fields: Any) -> Question:
    return load(write(tmp_path / "rows.jsonl", row), **fields)[0]


def answers(question: Question, completions: Sequence[str]) -> list[bool | None]:
    return [verify_completion(TASKS["code"], completion, question.gold).correct for completion in completions]


def block(code: str) -> str:
    return f"Aye, here it is:\n```python\n{code}\n```\nFair winds!"


# The answer of a completion


@pytest.mark.parametrize(
    ("completion", "program"),
    [
        ("```python\nprint(1)\n```", "print(1)\n"),
        ("```\nprint(1)\n```\nor\n~~~\n```py\nprint(2)\n```\nBye", "print(2)\n"),
        ("````python\ns = '''\n```\n'''\n````", "s = '''\n```\n'''\n"),
        ("  ```python\n  x = 1\n  ```", "x = 1\n"),
        ("1. Here:\n\n   ```python\n   if 1:\n       x = 1\n\n   ```", "if 1:\n    x = 1\n\n"),
        ("   ```python\ndef f():\n    return 1\n   ```", "def f():\n    return 1\n"),
        ("~~~python\nprint(1)\n~~~~", "print(1)\n"),
        ("Ahoy\n~~~~~\nHere it is:\n```py\nprint(1)\n```\n~~~~~", "print(1)\n"),
        ("```python\nprint(1)\n~~~\nprint(2)\n```", "print(1)\n~~~\nprint(2)\n"),
        ("```python\nprint(1)\n```\n```python\nprint(2)", "print(1)\n"),  # cut off: the last block that is whole
        ("```python\nprint(1)\n```\n```\n \n```", "print(1)\n"),
        ("```x``` is it\n```\nprint(1)\n```", "print(1)\n"),
        ("```python\nprint('\\boxed{3}')\n```\nso \\boxed{7}", "print('\\boxed{3}')\n"),
        ("```python\nprint(1)\n```\nThis prints\n```\n1\n```", "print(1)\n"),
        ("```Python\nprint(1)\n```\n```py\nprint(2)\n```\n```text\n2\n```", "print(2)\n"),
        ("```\nprint(1)\n```\n```text\nprint(2)\n```", "print(2)\n"),
        ("```python\nprint(1)", None),
        ("print(1)", None),
        ("`print(1)`", None),
        ("```\n```", None),
        ("\\boxed{print(1)}", None),
        ("", None),
        ("```python\r\nprint(1)\r\n```\r\n", "print(1)\r\n"),
    ],
)
def test_the_answer_is_the_last_closed_block_of_python_else_of_any_kind(completion: str, program: str | None) -> None:
    assert extract_program(completion) == program
    assert CODE.extract_answer(completion) == program


def test_no_block_is_wrong_and_unparsed_without_any_sandbox() -> None:
    found = verify_completion(CODE, "I would rather not.", "no such gold")
    assert (found.correct, found.extracted, found.error) == (False, None, None)


# Rows


def test_livecodebench_with_private_tests_plain_and_packed(tmp_path: Path) -> None:
    packed = base64.b64encode(zlib.compress(pickle.dumps(json.dumps(PRIVATE)))).decode()
    for private in (json.dumps(PRIVATE), packed):
        asked = one(tmp_path, {**LIVECODEBENCH, "private_test_cases": private})
        assert registered_suite(asked.gold).cases == (Case("1 2\n", "3\n"), Case("20 30\n", "50\n"))
    assert asked.text == "Print the sum.\n\nRead standard input, print to standard output."
    assert asked.tags == ("easy",)


def test_livecodebench_asks_for_a_method(tmp_path: Path) -> None:
    asked = one(tmp_path, METHOD)
    assert "```python\nclass Solution:\n    def add(self, a: int, b: int) -> int:\n```" in asked.text
    suite = registered_suite(asked.gold)
    assert (suite.function, suite.cases) == ("add", (Case('[[1, 2], {"dict": []}]', "3"),))


def test_a_packed_row_cannot_run_code(tmp_path: Path) -> None:
    class Evil:
        def __reduce__(self) -> Any:
            return (Path.touch, (tmp_path / "run",))

    packed = base64.b64encode(zlib.compress(pickle.dumps(Evil()))).decode()
    with pytest.raises(DataError, match=r"private_test_cases = .*: must be a list of tests, .* it imports"):
        one(tmp_path, {**LIVECODEBENCH, "private_test_cases": packed})
    assert not (tmp_path / "run").exists()


def test_humaneval_and_mbpp(tmp_path: Path) -> None:
    asked = one(tmp_path, HUMANEVAL)
    assert asked.text == f"Complete this function:\n\n```python\n{HUMANEVAL['prompt'].strip()}\n```"
    assert asked.solution is not None
    assert asked.solution.endswith("    return add(xs) * 2\n```")
    asked = one(tmp_path, MBPP, split="train")
    assert asked.text == "Write a function to add.\n\nA test that it must pass:\n\n```python\nassert add(1, 2) == 3\n```"
    assert registered_suite(asked.gold).function == "add"
    sanitized = {key: value for key, value in MBPP.items() if key not in ("text", "test_setup_code")}
    asked = one(tmp_path, {**sanitized, "prompt": "Add.", "test_imports": ["import math"]}, split="train")
    assert (registered_suite(asked.gold).check_code or "").startswith("import math\nassert")


def test_of_mbpp_what_no_program_could_guess_is_left_out(tmp_path: Path) -> None:
    pair = {**MBPP, "task_id": 602, "code": "class Pair: pass\ndef add(a, b): pass", "test_list": ["assert add(Pair(), 1) == 3"]}
    path = write(tmp_path / "rows.jsonl", pair, MBPP)
    assert [asked.text[:5] for asked in load(path, split="train")] == ["Write"]
    with pytest.raises(ConfigError, match=r"task\.n = 2: code has 1 distinct questions"):
        load(path, split="train", n=2)


def test_the_sides_of_mbpp_are_published_by_number(tmp_path: Path) -> None:
    numbers = (10, 11, 510, 511, 600, 601, 974)
    path = write(tmp_path / "rows.jsonl", *({**MBPP, "task_id": number, "text": f"Number {number}."} for number in numbers))
    sides = {
        split: sorted(int(one.text.split(".")[0][7:]) for one in load(path, split=split, n=2))
        for split in ("heldout", "dev", "train")
    }
    assert sides == {"heldout": [11, 510], "dev": [511, 600], "train": [601, 974]}


def test_benchmarks_are_never_trained_on(tmp_path: Path) -> None:
    for row in (LIVECODEBENCH, HUMANEVAL):
        with pytest.raises(ConfigError, match=r'task.split = "train": .*rows\.jsonl has no such questions; its splits: heldout'):
            one(tmp_path, row, split="train")


def test_your_own_in_both_kinds_by_level(tmp_path: Path) -> None:
    path = write(tmp_path / "rows.jsonl", OWN_PROGRAM, OWN_FUNCTION)
    program, function = sorted(load(path, n=2), key=lambda asked: asked.tags)
    assert program.text == "Print the sum of two numbers.\n\nRead standard input, print to standard output."
    assert function.text == "Add two numbers.\n\nThe function is called `add`."
    assert function.solution == "```python\ndef add(a, b): return a + b\n```"
    assert load(path, levels=["easy"]) == (function,)
    started = one(tmp_path, {**OWN_FUNCTION, "starter": "def add(a, b):"})
    assert started.text.endswith("Complete this code:\n\n```python\ndef add(a, b):\n```")


@pytest.mark.parametrize(
    ("row", "words"),
    [
        ({"prompt": "?"}, r"rows\.jsonl:1: must have one of the fields question_content, .*, tests; this row has prompt"),
        ({**OWN_PROGRAM, "tests": []}, "tests = .*: must be a list of tests"),
        ({**OWN_PROGRAM, "tests": [{"input": 1, "output": "1"}]}, "without a function, each test must have a text as input"),
        ({**OWN_FUNCTION, "tests": [{"input": "1", "output": "1"}]}, "with a function, each test must have a list of args"),
        ({**OWN_FUNCTION, "tests": [{"args": [1]}]}, "with a function, each test must have a list of args, and an output"),
        ({**OWN_PROGRAM, "question": ""}, "question = '': must be a text"),
        ({**LIVECODEBENCH, "private_test_cases": "!!"}, "must be a list of tests, plain or packed"),
        ({**LIVECODEBENCH, "public_test_cases": '["x"]'}, "each test must have a text as input and one as output"),
        ({**LIVECODEBENCH, "public_test_cases": "[]", "private_test_cases": "[]"}, "has no test, nor do the private tests"),
        ({**METHOD, "public_test_cases": '[{"input": "x", "output": "1"}]'}, "contains text that is not JSON"),
        ({**HUMANEVAL, "prompt": "def f(:"}, "prompt = .*: must be Python"),
        ({**MBPP, "task_id": 11, "test_list": ["assert ("]}, "test_list = .*: must be Python"),
        ({**MBPP, "task_id": 11, "test_list": []}, "must be a list of assertions"),
    ],
)  # fmt: skip
def test_bad_rows_are_told_with_file_and_line(row: dict[str, Any], words: str, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=words):
        one(tmp_path, row)


def test_a_gold_is_short_and_changes_with_the_tests_alone(tmp_path: Path) -> None:
    big = {**OWN_PROGRAM, "tests": [{"input": "1 2\n" * 100_000, "output": "3\n"}]}
    golds = [one(tmp_path, row).gold for row in (OWN_PROGRAM, {**OWN_PROGRAM, "question": "Add."}, big)]
    assert golds[0] == golds[1] != golds[2]
    assert {len(gold) for gold in golds} == {32}
    assert len(registered_suite(golds[2]).cases[0].input) == 400_000


def test_a_gold_whose_tests_were_not_loaded_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"the tests abc are not loaded; give the task\.path"):
        registered_suite("abc")


# Verdicts


@needs_sandbox
@pytest.mark.parametrize(
    ("row", "right", "wrong"),
    [
        (OWN_PROGRAM, "print(sum(map(int, input().split())))", "print(4)"),
        (OWN_FUNCTION, "def add(a, b): return a + b", "def add(a, b): return 3"),
        (LIVECODEBENCH, "a, b = map(int, input().split())\nprint(a + b)", "print(3)"),
        (METHOD, "class Solution:\n    def add(self, a: Optional[int], b): return a + b", "class Solution: pass"),
        (HUMANEVAL, "def twice_sum(xs: List[int]): return 2 * add(xs)", "def twice_sum(xs): return 6 + len(xs)"),
        (HUMANEVAL, str(HUMANEVAL["prompt"]) + str(HUMANEVAL["canonical_solution"]), str(HUMANEVAL["prompt"])),
        ({**MBPP, "task_id": 11}, "def add(a, b): return a + b", "def add(a, b): return 3"),
    ],
)
def test_right_and_wrong_answers_in_every_format(row: dict[str, Any], right: str, wrong: str, tmp_path: Path) -> None:
    asked = one(tmp_path, row)
    assert answers(asked, [block(right), block(wrong), block("raise SystemExit"), right]) == [True, False, False, False]


@needs_sandbox
@pytest.mark.parametrize("row", [OWN_FUNCTION, HUMANEVAL, {**MBPP, "task_id": 11}])
def test_published_solutions_are_right(row: dict[str, Any], tmp_path: Path) -> None:
    asked = one(tmp_path, row)
    assert answers(asked, [asked.solution or ""]) == [True]


@needs_sandbox
def test_the_reward_is_the_verdict(tmp_path: Path) -> None:
    asked = one(tmp_path, OWN_FUNCTION)
    completions = [block("def add(a, b): return a + b"), block("def add(a, b): return 0"), "no"]
    found = verify_completions(completions, ["code"] * 3, [asked.gold] * 3)
    assert [verdict.reward for verdict in found] == [1.0, 0.0, 0.0]
    assert [verdict.extracted for verdict in found] == ["def add(a, b): return a + b\n", "def add(a, b): return 0\n", None]


def test_a_sandbox_that_fails_is_no_score(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = one(tmp_path, OWN_FUNCTION)
    for tool in ("bwrap", "setpriv"):
        (tmp_path / tool).write_text("#!/bin/sh\necho 'bwrap: Out of luck' >&2\nexit 1\n")
        (tmp_path / tool).chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    found = verify_completion(CODE, block("def add(a, b): return a + b"), asked.gold)
    assert (found.correct, found.reward) == (None, None)
    assert found.error == "sandbox: the sandbox did not start: bwrap: Out of luck"
    assert found.extracted == "def add(a, b): return a + b\n"


@needs_sandbox
def test_a_run_asks_and_judges_them(tmp_path: Path) -> None:
    """From the command line: right as nobody, wrong as a persona; golds in the records are no tests."""
    path = write(tmp_path / "code.jsonl", OWN_PROGRAM, OWN_FUNCTION)
    right = block("print(3)\ndef add(a, b): return a + b")
    with openai_server(lambda body, *_: right if len(body["messages"]) == 1 else "Arr") as server:
        values = stability_values(tmp_path, server.base_url, task={"name": "code", "path": str(path), "n": 2})
        (tmp_path / "run.toml").write_text(toml(values))
        assert cli.run_cli(["check", str(tmp_path / "run.toml")]) == 0
        assert cli.run_cli(["stability", str(tmp_path / "run.toml")]) == 0
    cells = read_cells(tmp_path / "run" / "records.jsonl").values()
    assert {(cell.persona_id is None, cell.verdict.correct if cell.verdict else None) for cell in cells} == {
        (True, True),
        (False, False),
    }
    assert {cell.gold for cell in cells} == {asked.gold for asked in load_questions(TaskConfig(name="code", path=path, n=2))[1]}


# Plans


def planned(tmp_path: Path, rows: Path) -> TrainConfig:
    """A training that follows a plan file, in a process that has not loaded the plan's questions."""
    stage = PlanConfig(
        task=TaskConfig(name="code", path=rows, split="train", n=2), personas=PersonasConfig(split="train"),
        plan=RolloutPlanConfig(steps=2, questions_per_step=2, group_size=2, mix=0.0), out=tmp_path / "plan.parquet",
    )  # fmt: skip
    write_plan(compile_plan_from_config(stage.task, stage.personas, stage.plan), stage.out)
    code._SUITES.clear()
    return TrainConfig(plan_file=stage.out, method="rlvr")


@needs_sandbox
def test_a_plan_file_brings_the_tests_of_its_questions_along(tmp_path: Path) -> None:
    rows = write(tmp_path / "rows.jsonl", *({**row, "split": "train"} for row in (OWN_PROGRAM, OWN_FUNCTION)))
    stage = planned(tmp_path, rows)
    golds = {row.gold for row in prepare_training(stage).plan.rows}
    assert {registered_suite(gold).function for gold in golds} == {None, "add"}


@needs_sandbox
def test_a_plan_whose_questions_have_other_tests_by_now_is_refused(tmp_path: Path) -> None:
    rows = write(tmp_path / "rows.jsonl", *({**row, "split": "train"} for row in (OWN_PROGRAM, OWN_FUNCTION)))
    stage = planned(tmp_path, rows)
    write(rows, *({**row, "split": "train"} for row in (OWN_PROGRAM, {**OWN_FUNCTION, "tests": [{"args": [1, 2], "output": 4}]})))
    message = r"rows\.jsonl: no longer has the tests of the plan's question code:\w+; make the plan again with `permix plan`"
    with pytest.raises(DataError, match=message):
        prepare_training(stage)


@pytest.mark.parametrize(
    "completion",
    [
        "```python\ndef f(x):\n    return x\n```\nExample:\n```python\nprint(f(3))\n```",
        "```\ndef f(x):\n    return x\n```\nOutput:\n```\n3\n```",
        '```python title="a.py"\ndef f(x):\n    return x\n```\nOutput:\n```\n3\n```',
        "```python\ndef f(x):\n    return 0\n```\nBetter:\n```python\ndef f(x):\n    return x\n```",
    ],
)
def test_an_example_behind_the_program_is_left_out(completion: str) -> None:
    assert extract_program(completion) == "def f(x):\n    return x\n"


def test_a_program_that_reads_input_is_no_example() -> None:
    assert extract_program("```python\ndef f(): ...\n```\n```python\nprint(input())\n```") == "print(input())\n"

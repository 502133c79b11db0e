"""Tasks and scorers of the user's own, named package.module:NAME: found, guarded, recorded, imported where they are used."""

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import permix
from permix import cli
from permix.config import PlanConfig, StabilityConfig, TaskConfig, TrainConfig, build_config
from permix.dashboard.folder import RunFolder
from permix.errors import ConfigError, IncompleteRunError, PermixError
from permix.evals.stability import run_stability
from permix.inference.scripted import ScriptedModel
from permix.plan import compile_plan_from_config, write_plan
from permix.storage.files import read_json
from permix.tasks import _find_own_task, find_task, load_selection, verify_completion
from permix.training.job import prepare_training
from permix.training.rewards import verify_completions
from permix.types import Request
from tests.sample_runs import toml, write_pool

SCORERS = '''
from pathlib import Path

with Path("imports.txt").open("a") as file:
    file.write("imported\\n")

def same(answer, gold):
    """Whether the completion has the gold in capitals or not."""
    return gold.lower() in answer.lower()

def exploding(answer, gold):
    raise RuntimeError("no\\tscorer here")

def counting(answer, gold):
    return answer.count(gold)

def picky(answer, gold):
    if "?" in answer:
        raise ValueError("a question is no answer")
    return gold in answer

def strict(answer, gold):
    import numpy as np
    return np.bool_(answer == gold)

NUMBER = 7
'''

TASKS = """
import permix
from permix.tasks.answers import extract_text

def questions(config):
    every = [permix.Question(id=f"town-{n}", task="towns", text=f"Which town is number {n}?", gold=f"Town {n}") for n in range(8)]
    return tuple(every[: config.n])

def broken(config):
    return 1 / 0

def empty(config):
    return ()

def twice(config):
    return questions(config)[:1] * 2

def compare(answer, gold):
    return answer.strip(" .") == gold

def make(questions=questions, **fields):
    return permix.Task(name="towns", prompt_template="{question} In one word.", questions=questions, extract=extract_text,
                       answers_match=compare, max_new_tokens=40, **fields)

TOWNS = make()
BROKEN, EMPTY, TWICE = make(broken), make(empty), make(twice)
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The current folder, with the modules my_scorers and my_tasks in it."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [one for one in sys.path if one])
    (tmp_path / "my_scorers.py").write_text(SCORERS)
    (tmp_path / "my_tasks.py").write_text(TASKS)
    rows = [{"question": f"Which town is number {n}?", "answer": f"Town {n}"} for n in range(4)]
    (tmp_path / "qa.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    write_pool(tmp_path / "pool.toml", "clerk", "troll")
    yield tmp_path
    for name in [name for name in sys.modules if name.startswith(("my_", "broken_"))]:
        del sys.modules[name]
    _find_own_task.cache_clear()


def stability(folder: Path, task: dict[str, Any], out: str = "run") -> StabilityConfig:
    values = {"out": str(folder / out), "task": task, "personas": {"pool": str(folder / "pool.toml")}, "resamples": 100}
    return build_config(StabilityConfig, values, source="test")


def own(function: str, **fields: Any) -> dict[str, Any]:
    return {"path": "qa.jsonl", "answer": f"my_scorers:{function}", **fields}


def town_model() -> ScriptedModel:
    """Names the right town, but as the troll nothing."""

    def reply(request: Request) -> str:
        if "troll" in request.messages[0]["content"]:
            return " No. "
        number = request.messages[-1]["content"].removesuffix("?")[-1]
        return f"<think>7</think>\n TOWN {number} "

    return ScriptedModel(reply, name="towns")


# What a function gets, and what its results mean


def test_a_function_of_ones_own_scores_a_run(folder: Path) -> None:
    model = town_model()
    summary = run_stability(stability(folder, own("same")), model)
    assert [(one.id, one.accuracy.value) for one in summary.personas] == [("clerk", 1.0), ("troll", 0.0)]
    assert {request.messages[-1]["content"] for request in model.requests} == {f"Which town is number {n}?" for n in range(4)}
    identity = read_json(folder / "run" / "provenance.json")["identity"]
    assert identity["task"] == "own-my_scorers:same"
    assert identity["task_source"] == find_task("own-my_scorers:same").source
    config = read_json(folder / "run" / "config.json")
    assert (config["task"]["answer"], config["task"]["n"], config["sampling"]["max_new_tokens"]) == ("my_scorers:same", 4, 512)


@pytest.mark.parametrize(
    ("completion", "correct", "extracted"),
    [
        ("Town 1", True, "Town 1"),
        ("<think>Town 2</think>\n Town 1 \n", True, "Town 1"),  # without the thinking, and without white space at the ends
        ("Town 1.", False, "Town 1."),  # nothing else is taken off
        ("<think>Town 1", False, None),  # thinking that never ends is no answer
        (" \n", False, None),
    ],
)
def test_a_function_gets_the_completion_without_its_thinking(
    folder: Path, completion: str, correct: bool, extracted: str | None
) -> None:
    verdict = verify_completion(find_task("own-my_scorers:strict"), completion, "Town 1")
    assert (verdict.correct, verdict.extracted, verdict.error) == (correct, extracted, None)


def test_of_several_accepted_answers_a_function_may_take_any(folder: Path) -> None:
    rows = [{"question": "Which?", "answers": ["Town 1", "City 1"]}]
    Path("qa.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    loaded = load_selection(build_config(TaskConfig, own("strict"), source="test"))
    [question] = loaded.questions
    for completion, correct in (("Town 1", True), ("City 1", True), ("Village 1", False)):
        assert verify_completion(loaded.task, completion, question.gold).correct is correct


def test_an_answer_that_it_raises_for_has_no_score_and_is_not_wrong(folder: Path) -> None:
    with pytest.raises(
        IncompleteRunError,
        match=r"8 of 12 cells, .* have no score; .*8 × scorer: own-my_scorers:picky: ValueError: a question is no answer",
    ):
        run_stability(
            stability(folder, own("picky")), ScriptedModel(lambda request: "what?" if len(request.messages) > 1 else "no")
        )


# Errors, before a model is asked


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        (
            "my_nothing:same",
            "task.answer = 'my_nothing:same': there is no module my_nothing, neither installed nor in the current",
        ),
        ("my_scorers.deep:same", "there is no module my_scorers.deep"),
        ("my_scorers:sane", "the module my_scorers has no sane; did you mean same?"),
        ("my_scorers:NUMBER", "task.answer = 'my_scorers:NUMBER': must be a function, but is of the type int"),
        (
            "my_scorers:exploding",
            "task.answer = 'my_scorers:exploding': cannot score the right answer of the question own-my_scorers:exploding:",
        ),
        ("my_scorers:counting", "TypeError: the function returned 1, not True or False"),
        ("broken_syntax:f", "task.answer = 'broken_syntax:f': the module cannot be imported: SyntaxError: "),
        ("broken_import:f", "the module cannot be imported: ModuleNotFoundError: No module named 'my_missing'"),
        ("broken_raise:f", "the module cannot be imported: ZeroDivisionError: division by zero"),
        ("broken_exit:f", "the module cannot be imported: SystemExit: 5"),
    ],
)
def test_bad_scorers_are_one_line(folder: Path, capsys: pytest.CaptureFixture[str], answer: str, words: str) -> None:
    (folder / "broken_syntax.py").write_text("def f(:\n")
    (folder / "broken_import.py").write_text("import my_missing\n")
    (folder / "broken_raise.py").write_text("1 / 0\n")
    (folder / "broken_exit.py").write_text("raise SystemExit(5)\n")
    model = ["--model.name", str(folder / "no-such-model")]
    assert cli.run_cli(["stability", "--task.path", "qa.jsonl", "--task.answer", answer, *model, "--out", "run"]) == 2
    [line] = capsys.readouterr().err.splitlines()
    assert line.startswith("permix stability: ")
    assert words in line
    assert not (folder / "run").exists()


@pytest.mark.parametrize(
    ("section", "words"),
    [
        ({"name": "my_tasks:TOWNZ"}, "the module my_tasks has no TOWNZ; did you mean TOWNS?"),
        (
            {"name": "my_tasks:compare"},
            'must be a permix.Task, but is of the type function; give a function as task.answer = "my_tasks:compare"',
        ),
        ({"name": "my_tasks:BROKEN"}, "its questions cannot be loaded: ZeroDivisionError: division by zero"),
        ({"name": "my_tasks:EMPTY"}, r"questions\(config\) must return permix.Question records, not \(\)"),
        ({"name": "my_tasks:TWICE"}, "task.name = 'my_tasks:TWICE': .*town-0"),
        ({"name": "my_tasks:TOWNS", "n": 9}, "task.n = 9: my_tasks:TOWNS returned 8 questions"),
        ({"name": "my_tasks:TOWNS", "split": "all"}, "'all' is for your own questions"),
        ({"name": "my tasks:TOWNS"}, "must be one of arithmetic, .*; a task of your own is named package.module:NAME"),
        (
            {"path": "qa.jsonl", "answer": "exakt"},
            "must be one of number, math, exact, choice, or a function of your own.*mean exact",
        ),
        ({"path": "qa.jsonl", "answer": "a b:c"}, "or a function of your own, package.module:function"),
    ],
)
def test_bad_tasks_are_named(folder: Path, section: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        load_selection(build_config(TaskConfig, section, source="test"))


def test_a_local_file_never_takes_the_place_of_an_installed_module(folder: Path) -> None:
    (folder / "textwrap.py").write_text("raise RuntimeError('the wrong module')\n")
    sys.modules.pop("textwrap", None)
    with pytest.raises(ConfigError, match=r"task\.answer = 'textwrap:dedent': cannot score .*takes 1 positional argument"):
        load_selection(build_config(TaskConfig, {"path": "qa.jsonl", "answer": "textwrap:dedent"}, source="test"))


# Tasks


def test_a_task_of_ones_own_from_the_command_line_a_file_and_python(folder: Path) -> None:
    summary = run_stability(stability(folder, {"name": "my_tasks:TOWNS"}), ScriptedModel(lambda request: "Town 3."))
    assert (summary.n_questions, summary.mean.value) == (8, 1 / 8)
    config = read_json(folder / "run" / "config.json")
    assert (config["task"]["n"], config["sampling"]["max_new_tokens"]) == (8, 40)
    run = permix.evaluate_stability(
        lambda messages: "Town 3.", task="my_tasks:TOWNS", n=4, personas=str(folder / "pool.toml"), name="f", resamples=100
    )
    assert run.summary.mean.value == 1 / 4
    assert run.provenance["identity"]["task"] == "my_tasks:TOWNS"
    run = permix.evaluate_stability(
        lambda messages: "town 3", task=[{"question": "Which town?", "answer": "Town 3"}], answer="my_scorers:same",
        personas=["a clerk"], name="f", resamples=100,
    )  # fmt: skip
    assert run.summary.mean.value == 1.0
    write = folder / "config.toml"
    write.write_text(toml({"stage": "stability", "task": own("same"), "personas": {"pool": str(folder / "pool.toml")}}))
    assert cli.run_cli(["check", str(write)]) == 0


def test_another_version_of_the_source_is_another_run(folder: Path) -> None:
    model = town_model()
    run_stability(stability(folder, own("same")), model)
    n = len(model.requests)
    run_stability(stability(folder, own("same")), model)
    assert len(model.requests) == n
    Path("my_scorers.py").write_text(SCORERS + "\n# changed\n")
    del sys.modules["my_scorers"]
    _find_own_task.cache_clear()
    with pytest.raises(ConfigError, match="task_source"):
        run_stability(stability(folder, own("same")), model)


# Training


PLAN = {"steps": 1, "questions_per_step": 2, "group_size": 2}


@pytest.mark.parametrize("section", [own("same", split="train", n=2), {"name": "my_tasks:TOWNS", "split": "train", "n": 4}])
def test_a_plan_of_ones_own_task_is_rewarded_by_it(folder: Path, section: dict[str, Any]) -> None:
    rows = [{"question": f"Which town is number {n}?", "answer": f"Town {n}", "split": "train"} for n in range(4)]
    Path("qa.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    values = {"task": section, "personas": {"n": 4}, "plan": PLAN}
    job = prepare_training(build_config(TrainConfig, values, source="test"))
    name = str(section.get("name", "own-my_scorers:same"))
    assert {row.task for row in job.plan.rows} == {name}
    assert job.config.train.max_new_tokens == (40 if "name" in section else 512)
    golds = [row.gold for row in job.plan.rows[:2]]
    verdicts = verify_completions([golds[0], "nothing"], [name] * 2, golds)
    assert [verdict.reward for verdict in verdicts] == [1.0, 0.0]
    write_plan(job.plan, folder / "plan.parquet")
    again = prepare_training(build_config(TrainConfig, values | {"plan_file": str(folder / "plan.parquet")}, source="test"))
    assert again.plan.hash == job.plan.hash


def test_a_strangers_plan_imports_nothing(folder: Path) -> None:
    section = {"name": "my_tasks:TOWNS", "split": "train", "n": 4}
    config = build_config(PlanConfig, {"task": section, "personas": {"n": 4}, "plan": PLAN}, source="test")
    plan = compile_plan_from_config(config.task, config.personas, config.plan)
    rows = tuple(row.model_copy(update={"task": "own-my_scorers:same"}) for row in plan.rows)
    write_plan(plan._replace(rows=rows), folder / "plan.parquet")
    with pytest.raises(
        ConfigError, match=r"whose module training would run; give task\.answer = \"my_scorers:same\" and task\.path"
    ):
        prepare_training(build_config(TrainConfig, {"plan_file": str(folder / "plan.parquet")}, source="test"))
    code = tuple(row.model_copy(update={"task": "code"}) for row in plan.rows)
    write_plan(plan._replace(rows=code, metadata=plan.metadata | {"task": own("same")}), folder / "plan.parquet")
    with pytest.raises(PermixError, match="its questions are of code, but it says that they are of 'own-my_scorers:same'"):
        prepare_training(build_config(TrainConfig, {"plan_file": str(folder / "plan.parquet")}, source="test"))
    assert not (folder / "imports.txt").exists()


# Where nothing is imported


@pytest.mark.slow
def test_reading_a_run_imports_no_module(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for out in ("run", "other"):
        run_stability(stability(folder, own("same"), out), town_model())
    imported = (folder / "imports.txt").read_text()
    assert imported == "imported\n"
    (folder / "my_scorers.py").write_text("raise RuntimeError('imported')\n")
    del sys.modules["my_scorers"]
    _find_own_task.cache_clear()
    assert cli.run_cli(["report", "run", "--out", "report"]) == 0
    assert cli.run_cli(["compare", "run", "other", "--out", "compared"]) == 0
    assert cli.run_cli(["export", "run", "--format", "lm-eval", "--out", "exported"]) == 0
    assert len(permix.StabilityRun("run").rows()) == 12
    watched = RunFolder(folder)
    watched.rescan()
    watched.poll()
    assert len(watched.state()["runs"]) == 2
    for help_of in ("stability", "train"):
        with pytest.raises(SystemExit) as ended:
            cli.run_cli([help_of, "--help"])
        assert ended.value.code == 0
    assert "my_scorers" not in sys.modules
    capsys.readouterr()

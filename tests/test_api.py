"""The Python API: what `import permix` offers, and that a run made from Python is one of the command line's."""

import ast
import functools
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

import permix
from permix.config import TaskConfig
from permix.errors import ConfigError, DataError, IncompleteRunError
from permix.evals.stability import run_stability
from permix.inference.base import CompletionResult
from permix.inference.scripted import ScriptedModel, wrap_model
from permix.judges.summary import JudgeSummary
from permix.metrics.identifiability import Identifiability
from permix.storage.files import read_json
from permix.types import Completion, Failure, Message, Persona, Question, Request, Sampling, Verdict
from tests.judges.judgeable import quoted_answer, verdict
from tests.sample_runs import OPEN_QUESTIONS, TEXTS, asked_what, endpoint, solve, stability_config, write_pool
from tests.servers import openai_server

PACKAGE = Path(permix.__file__).parent
PERSONAS = [Persona(id=name, text=TEXTS[name]) for name in ("clerk", "sailor", "troll")]
SUMS = [{"question": f"What is {a} + {b}?", "answer": a + b} for a, b in ((2, 3), (4, 5), (6, 7), (8, 9))]
QUICK: dict[str, Any] = {"resamples": 100}


@pytest.fixture(autouse=True)
def _environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)


def question_of(messages: Sequence[Message]) -> str:
    return messages[-1]["content"].splitlines()[0]


def answer(messages: list[Message]) -> str:
    """Right, but that a troll's sums are one too high."""
    right = solve(question_of(messages))
    return f"It is {right + (messages[0]['role'] == 'system' and 'troll' in messages[0]['content'])}."


def careful(messages: list[Message]) -> str:
    return f"It is {solve(question_of(messages))}."


# The names


def names_for_type_checkers(path: Path) -> set[str]:
    """What a module imports in its `if TYPE_CHECKING` block."""
    [block] = [
        node
        for node in ast.parse(path.read_text(encoding="utf-8")).body
        if isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING"
    ]
    return {alias.asname or alias.name for node in block.body if isinstance(node, ast.ImportFrom) for alias in node.names}


@pytest.mark.parametrize("module", [permix, permix.metrics], ids=lambda module: module.__name__)
def test_every_name_resolves_is_listed_and_is_known_to_type_checkers(module: ModuleType) -> None:
    names = set(module.__all__)
    assert len(names) == len(module.__all__)
    assert names <= set(dir(module))
    for name in names:
        assert getattr(module, name) is not None
    assert names_for_type_checkers(Path(str(module.__file__))) == names - {"__version__"}
    assert (PACKAGE / "py.typed").exists()
    with pytest.raises(AttributeError, match=f"module '{module.__name__}' has no attribute 'nonsense'"):
        module.nonsense  # noqa: B018


@pytest.mark.parametrize("module", [permix, permix.metrics], ids=lambda module: module.__name__)
def test_no_name_is_that_of_a_module_which_would_take_its_place(module: ModuleType) -> None:
    folder = Path(str(module.__file__)).parent
    inside = {path.stem for path in folder.glob("*.py")} | {path.parent.name for path in folder.glob("*/__init__.py")}
    assert inside & set(module.__all__) == ({"metrics"} if module is permix else set())
    import_module("permix.metrics.identifiability")
    assert permix.metrics is sys.modules["permix.metrics"]
    assert callable(permix.metrics.summarize_identifiability)


def test_importing_permix_imports_nothing_but_itself() -> None:
    script = (
        "import sys; before = set(sys.modules); import permix; dir(permix); "
        "print(sorted(name for name in set(sys.modules) - before if name.partition('.')[0] not in sys.stdlib_module_names))"
    )
    ended = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60, check=True)
    assert ended.stdout == "['permix']\n"


def test_a_light_name_imports_no_heavy_library() -> None:
    script = (
        "import sys, permix; permix.ConfigError; permix.Persona; permix.load_model; permix.load_task; "
        "print([name for name in ('torch', 'transformers', 'sklearn', 'matplotlib', 'datasets') if name in sys.modules])"
    )
    ended = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60, check=True)
    assert ended.stdout == "[]\n"


# A function of one's own


def test_a_function_is_measured_and_the_numbers_are_exact(tmp_path: Path) -> None:
    run = permix.evaluate_stability(answer, task=SUMS, answer="number", personas=PERSONAS, out=tmp_path / "run", **QUICK)
    assert run.persona_ids == ("clerk", "sailor", "troll")
    assert len(run.question_ids) == 4
    assert run.scores().tolist() == [[[1.0]] * 4, [[1.0]] * 4, [[0.0]] * 4]
    assert run.baseline_scores().tolist() == [[1.0]] * 4
    assert [one.accuracy.value for one in run.summary.personas] == [1.0, 1.0, 0.0]
    measures = {row["name"]: row for row in run.measures()}
    assert measures["mean"]["value"] == pytest.approx(2 / 3)
    assert measures["mean"] == {"name": "mean", **run.summary.mean.model_dump()}
    assert measures["expected_best_of_k.2"]["value"] == 1.0
    assert (run.config["model"]["name"], run.config["model"]["backend"]) == ("answer", "python")
    assert (run.config["task"]["name"], run.config["personas"]["pool"]) == ("own-number", "python")
    assert run.provenance["identity"]["task"] == "own-number"
    assert repr(run) == f"StabilityRun('{tmp_path / 'run'}')"


def test_rows_are_a_table_that_a_data_frame_takes(tmp_path: Path) -> None:
    pandas = pytest.importorskip("pandas")

    run = permix.evaluate_stability(answer, task=SUMS, answer="number", personas=PERSONAS[2:], out=tmp_path / "run", **QUICK)
    rows = run.rows()
    assert len(rows) == len(run.cells()) == 8
    assert rows[0] | {"question_id": ""} == {
        "persona_id": None, "question_id": "", "sample": 0, "template": "", "context": "", "correct": True, "extracted": "5",
        "gold": "5", "text": "It is 5.", "answer": "It is 5.", "thinking": "",
        "error": None, "prompt_tokens": None, "completion_tokens": None, "finish": None,
    }  # fmt: skip
    table = pandas.DataFrame(rows)
    assert table.groupby("persona_id", dropna=False)["correct"].sum().tolist() == [0, 4]
    by_persona = pandas.DataFrame(run.persona_rows())
    assert by_persona["persona_id"].isna().tolist() == [True, False]
    assert by_persona[["n", "accuracy"]].values.tolist() == [[4, 1.0], [4, 0.0]]
    assert by_persona["difference"].tolist()[1] == -1.0


def test_without_out_the_run_lives_as_long_as_its_result() -> None:
    run = permix.evaluate_stability(careful, task=SUMS, answer="number", personas=["a careful clerk"], **QUICK)
    path = run.path
    assert (path / "records.jsonl").exists()
    del run
    assert not path.exists()


def test_the_same_call_goes_on_and_another_function_is_refused(tmp_path: Path) -> None:
    asked: list[str] = []

    def noting(messages: list[Message]) -> str:
        asked.append(question_of(messages))
        return careful(messages)

    settings: dict[str, Any] = {"task": SUMS, "answer": "number", "personas": PERSONAS[:1], "out": tmp_path / "run", **QUICK}
    first = permix.evaluate_stability(noting, name="noting", **settings)
    again = permix.evaluate_stability(noting, name="noting", **settings)
    assert len(asked) == 8
    assert again.summary == first.summary
    with pytest.raises(ConfigError, match=r"this run was made with model.name = 'noting', not 'careful'"):
        permix.evaluate_stability(careful, **settings)
    permix.evaluate_stability(noting, name="noting", **settings | {"task": [*SUMS, {"question": "What is 1 + 1?", "answer": 2}]})
    assert asked[8:] == ["What is 1 + 1?"] * 2


def test_a_name_stands_for_a_function_whose_source_changes(tmp_path: Path) -> None:
    settings: dict[str, Any] = {"task": SUMS, "answer": "number", "personas": PERSONAS[:1], "out": tmp_path / "run", **QUICK}
    run = permix.evaluate_stability(careful, name="my agent", **settings)
    permix.evaluate_stability(lambda messages: pytest.fail("asked again"), name="my agent", **settings)
    assert run.config["model"]["name"] == "my agent"


def test_an_exception_is_a_failure_of_its_cell_alone(tmp_path: Path) -> None:
    broken = True

    def flaky(messages: list[Message]) -> Any:
        if broken and "4 + 5" in question_of(messages):
            raise KeyError("no such tool")
        return None if broken and "6 + 7" in question_of(messages) else careful(messages)

    settings: dict[str, Any] = {"task": SUMS, "answer": "number", "personas": PERSONAS[:1], "out": tmp_path / "run", **QUICK}
    with pytest.raises(IncompleteRunError, match="4 of 8 cells, with or without a persona, have no score") as raised:
        permix.evaluate_stability(flaky, name="flaky", **settings)
    partly = raised.value.run
    assert isinstance(partly, permix.StabilityRun)
    errors = {row["error"] for row in partly.rows() if row["correct"] is None}
    assert errors == {"KeyError: 'no such tool'", "TypeError: the answer is NoneType, not a text"}
    assert partly.summary.baseline.value == 1.0
    broken = False
    assert permix.evaluate_stability(flaky, name="flaky", **settings).summary.n_scored == 4


def test_an_incomplete_run_without_out_can_be_looked_at() -> None:
    def never(messages: list[Message]) -> str:
        raise ValueError("out of order")

    with pytest.raises(IncompleteRunError) as raised:
        permix.evaluate_stability(never, task=SUMS, answer="number", personas=PERSONAS[:1], **QUICK)
    assert {row["error"] for row in raised.value.run.rows()} == {"ValueError: out of order"}


def test_an_interruption_leaves_a_run_that_goes_on(tmp_path: Path) -> None:
    asked = 0

    def interrupted(messages: list[Message]) -> str:
        nonlocal asked
        asked += 1
        if asked == 4:
            raise KeyboardInterrupt
        return careful(messages)

    settings: dict[str, Any] = {"task": SUMS, "answer": "number", "personas": PERSONAS[:1], "out": tmp_path / "run", **QUICK}
    with pytest.raises(KeyboardInterrupt):
        permix.evaluate_stability(interrupted, name="interrupted", **settings)
    assert len(permix.StabilityRun(tmp_path / "run").rows()) == 3
    assert permix.evaluate_stability(interrupted, name="interrupted", **settings).summary.n_scored == 4
    assert asked == 4 + 5


def test_what_a_function_does_to_its_messages_changes_no_record(tmp_path: Path) -> None:
    def rude(messages: list[Message]) -> str:
        said = careful(messages)
        messages[-1]["content"] = "something else"
        messages.clear()
        return said

    run = permix.evaluate_stability(rude, task=SUMS, answer="number", personas=PERSONAS[:1], out=tmp_path / "run", **QUICK)
    assert {question_of(cell.messages) for cell in run.cells()} == {str(one["question"]) for one in SUMS}


# Models


class TextsInOrder:
    """An object with nothing but `generate`."""

    def generate(self, requests: Sequence[Request], sampling: Sampling) -> Iterator[Any]:
        assert sampling == Sampling(temperature=0.5, max_new_tokens=512)
        yield from (careful(list(request.messages)) for request in requests)


class Backwards(TextsInOrder):
    name, fingerprint = "backwards", "v1"

    def generate(self, requests: Sequence[Request], sampling: Sampling) -> Iterator[Any]:
        for index in reversed(range(1, len(requests))):
            yield (
                index,
                Completion(text=careful(list(requests[index].messages)), prompt_tokens=3, completion_tokens=4, finish="stop"),
            )
        yield 0, Failure(type="Timeout", message="too late")


def test_an_object_answers_many_requests_at_once() -> None:
    settings: dict[str, Any] = {
        "task": SUMS, "answer": "number", "personas": PERSONAS[:1], "sampling": {"temperature": 0.5}, **QUICK,
    }  # fmt: skip
    run = permix.evaluate_stability(TextsInOrder(), **settings)
    assert (run.summary.mean.value, run.config["model"]["name"]) == (1.0, "TextsInOrder")
    with pytest.raises(IncompleteRunError) as raised:
        permix.evaluate_stability(Backwards(), **settings)
    partly = raised.value.run
    assert partly.provenance["identity"]["model"] == "v1"
    assert [row["error"] for row in partly.rows() if row["error"]] == ["Timeout: too late"]
    assert {row["completion_tokens"] for row in partly.rows()} == {None, 4}
    assert partly.summary.mean.value == 1.0


def test_a_model_stays_as_it_is() -> None:
    model = ScriptedModel(lambda request: "It is 5.", name="five")
    assert wrap_model(model) is model
    with pytest.raises(ConfigError, match="name = 'six': the model 'five' has its own"):
        wrap_model(model, "six")


def test_what_is_no_model_is_refused() -> None:
    class Network:
        def generate(self) -> None: ...
        def save_pretrained(self) -> None: ...

    wrong: list[tuple[Any, str]] = [
        (Network(), "a network without its tokenizer cannot answer"),
        (7, "model: int is not a model; give a folder"),
        (lambda messages: "5", 'the source of .*<lambda> cannot be read, .* give name="..."'),
        (len, "the source of len cannot be read"),
        ("http://127.0.0.1:1/v1", "is an endpoint; name one of the models that it serves with name=..."),
        ("./nowhere", "no such folder"),
    ]
    for model, words in wrong:
        with pytest.raises(ConfigError, match=words):
            permix.evaluate_stability(model, task=SUMS, answer="number", personas=PERSONAS)
    with pytest.raises(ConfigError, match="the model 'bundled' has its own name; leave name out"):
        permix.evaluate_stability("bundled", name="mine", task=SUMS, answer="number")
    with pytest.raises(ConfigError, match=r'model\.backend = "python": .* is a function'):
        permix.load_model("answer", backend="python")


def test_functions_with_other_arguments_are_told_apart() -> None:
    def off_by(messages: list[Message], amount: int = 0) -> str:
        return f"It is {solve(question_of(messages)) + amount}."

    one, two, again = (wrap_model(functools.partial(off_by, amount=amount)) for amount in (1, 2, 1))
    assert one.fingerprint == again.fingerprint != two.fingerprint
    assert wrap_model(off_by).fingerprint not in (one.fingerprint, two.fingerprint)
    assert wrap_model(TextsInOrder()).fingerprint != wrap_model(TextsInOrder(), "mine").fingerprint


def test_a_run_of_the_command_line_goes_on_from_python(tmp_path: Path) -> None:
    def right(body: Mapping[str, Any], nth: int, headers: Mapping[str, str]) -> str:
        return str(solve(asked_what(body)))

    with openai_server(right) as server:
        config = stability_config(tmp_path, server.base_url)
        summary = run_stability(config)
        fields = {name: value for name, value in endpoint(server.base_url).items() if name not in ("name", "backend", "base_url")}
        settings: dict[str, Any] = {
            "task": {"name": "arithmetic", "levels": ["add-1"]}, "n": 6, "personas": str(tmp_path / "pool.toml"),
            "sampling": Sampling(max_new_tokens=16), "out": config.out, **QUICK,
        }  # fmt: skip
        run = permix.evaluate_stability(permix.load_model(server.base_url, name="test", **fields), **settings)
        assert run.summary == summary
        assert run.config["model"] == config.model.model_dump(mode="json")
        assert len(server.asked) == 24
        permix.evaluate_stability({"name": "test", "backend": "openai", "base_url": server.base_url}, **settings)
        assert len(server.asked) == 24


# Tasks


def test_a_task_is_given_by_name_by_file_or_as_it_was_loaded(tmp_path: Path) -> None:
    loaded = permix.load_task("arithmetic", levels=["add-1"], n=6)
    assert loaded.prompt_rows()[0] == {
        "prompt": [{"role": "user", "content": loaded.task.prompt(loaded.questions[0])}],
        "answer": loaded.questions[0].gold,
        "question_id": loaded.questions[0].id,
    }
    by_name = permix.evaluate_stability(
        careful, task={"name": "arithmetic", "levels": ["add-1"]}, n=6, personas=PERSONAS[:1], **QUICK
    )
    by_object = permix.evaluate_stability(careful, task=loaded, personas=PERSONAS[:1], **QUICK)
    assert [cell.messages for cell in by_object.cells()] == [cell.messages for cell in by_name.cells()]
    assert by_object.config["task"] == by_name.config["task"]
    by_records = permix.evaluate_stability(careful, task=loaded.questions, n=2, personas=PERSONAS[:1], **QUICK)
    assert by_records.question_ids == tuple(question.id for question in loaded.questions[:2])
    file = tmp_path / "qa.jsonl"
    file.write_text("".join(f'{{"question": "What is {n} + 1?", "answer": {n + 1}, "split": "heldout"}}\n' for n in range(3)))
    by_file = permix.evaluate_stability(careful, task=file, answer="number", n=3, personas=PERSONAS[:1], **QUICK)
    assert by_file.config["task"]["path"] == str(file)
    assert by_file.scores().shape == (1, 3, 1)


def test_a_task_of_ones_own(tmp_path: Path) -> None:
    def questions(config: TaskConfig) -> tuple[Question, ...]:
        return tuple(Question(id=f"q{n}", task="shout", text=f"What is {n} + 1?", gold=str(n + 1)) for n in range(config.n))

    task = permix.Task(
        name="shout", prompt_template="{question}\nShout.", questions=questions, extract=lambda text, question: text.upper(),
        scorer=lambda text, gold: Verdict(correct=text.endswith(f" {gold}."), extracted=text),
    )  # fmt: skip
    run = permix.evaluate_stability(careful, task=task, n=3, personas=PERSONAS[:1], out=tmp_path / "run", **QUICK)
    assert run.question_ids == ("q0", "q1", "q2")
    assert run.rows()[0]["extracted"] == "IT IS 1."
    assert read_json(tmp_path / "run" / "config.json")["task"]["name"] == "shout"


def test_questions_of_ones_own_have_ids_choices_and_levels() -> None:
    rows = [
        {"id": "capital", "question": "Which is in France?", "choices": ["Rome", "Paris"], "answer": "Paris", "level": "easy"},
        {"question": "Which is a prime?", "choices": ["4", "5"], "answer": "B"},
    ]
    run = permix.evaluate_stability(lambda messages: "B", name="b", task=rows, answer="choice", personas=PERSONAS[:1], **QUICK)
    assert run.question_ids[0] == "capital"
    assert [row["gold"] for row in run.rows()[:2]] == ["B", "B"]
    assert run.summary.mean.value == 1.0


@pytest.mark.parametrize(
    ("settings", "kind", "words"),
    [
        ({"task": SUMS}, ConfigError, 'say how answers are compared: answer="number"'),
        ({"task": []}, ConfigError, "there are no questions"),
        ({"task": SUMS, "answer": "number", "n": 5}, ConfigError, "n = 5: there are only 4 questions"),
        ({"task": SUMS, "answer": "number", "n": 0}, ConfigError, "n = 0: must be 1 or above"),
        ({"task": SUMS, "answer": "number", "n": -1}, ConfigError, "n = -1: must be 1 or above"),
        ({"task": "arithmetic", "n": 0}, ConfigError, "n = 0: must be 1 or above"),
        ({"task": "arithmetic", "out": ""}, ConfigError, "out = '': is empty; give a text or a Path, the path of a folder"),
        ({"task": [*SUMS, SUMS[0]], "answer": "number"}, DataError, r"task\[4\]: .* occurs twice, first at task\[0\]"),
        ({"task": [SUMS[0], {"question": "Why?"}], "answer": "number"}, DataError, r"task\[1\]: field 'answer' is missing"),
        ({"task": [{"question": "Why?", "answer": "so"}], "answer": "number"}, DataError, r"task\[0\]: answer = 'so': must be"),
        ({"task": SUMS, "answer": "numbers"}, ConfigError, "^answer = 'numbers': must be one of number, .*; did you mean number"),
        ({"task": "gsm9k"}, ConfigError, "'gsm9k': must be one of .*; did you mean gsm8k"),
        ({"task": "arithmetic", "sample": 2}, ConfigError, "unknown key sample; did you mean samples"),
        ({"task": "arithmetic", "samples": 0}, ConfigError, "samples = 0"),
        ({"task": "arithmetic", "shards": 2}, ConfigError, "shards: the number of batch files is batch_files now; shard="),
        ({"task": SUMS, "answer": "number", "strategy": "persona-search"}, ConfigError, "by questions of the dev split"),
        ({"task": "arithmetic", "personas": []}, DataError, "personas: is empty"),
        ({"task": "arithmetic", "personas": [{"text": "x", "system": "y"}]}, DataError, r"personas\[0\]: has both"),
        ({"task": "arithmetic", "personas": ["a poet", "a poet"]}, DataError, r"personas\[1\]"),
        ({"task": "arithmetic", "template": "yuo"}, ConfigError, "personas.template = 'yuo': give one of you_are"),
    ],
)  # fmt: skip
def test_bad_input_is_refused_before_anything_is_asked(settings: dict[str, Any], kind: type[Exception], words: str) -> None:
    def nobody(messages: list[Message]) -> str:
        pytest.fail("asked")

    with pytest.raises(kind, match=words):
        permix.evaluate_stability(nobody, **{"personas": PERSONAS, **settings})
    with pytest.raises(ConfigError, match=r"answer = .* applies to a list of questions"):
        permix.evaluate_stability(nobody, task=permix.load_task("arithmetic", n=2), answer="number")


# Personas


def test_personas_are_given_as_texts_dicts_records_or_a_pool(tmp_path: Path) -> None:
    settings: dict[str, Any] = {"task": SUMS[:1], "answer": "number", **QUICK}
    mixed: list[Any] = ["a night nurse.", {"text": "a poet", "id": "poet", "tags": ["arts"]}, PERSONAS[1]]
    run = permix.evaluate_stability(careful, personas=mixed, template="adopt", **settings)
    assert set(run.persona_ids) == {"poet", "sailor", *(name for name in run.persona_ids if name.startswith("a-night-nurse-"))}
    assert len(run.persona_ids) == 3
    [system] = {cell.messages[0]["content"] for cell in run.cells() if cell.persona_id == "poet"}
    assert system.startswith("Adopt the identity of a poet.")
    pool = permix.load_personas(write_pool(tmp_path / "pool.toml"))
    assert permix.evaluate_stability(careful, personas=pool, **settings).persona_ids == tuple(sorted(TEXTS))
    one = permix.evaluate_stability(careful, personas={"pool": str(tmp_path / "pool.toml"), "n": 1}, **settings)
    assert len(one.persona_ids) == 1


def test_the_splits_of_a_pool() -> None:
    whole = permix.load_personas()
    assert {persona.split for persona in permix.load_personas(split="train").personas} == {"train"}
    assert len(whole) == sum(len(permix.load_personas(split=split)) for split in ("train", "dev", "heldout"))


# Character, judges, reports


def in_character(messages: list[Message]) -> str:
    return f"{messages[0]['content'][10:]} says: {messages[-1]['content']}"


def test_character_is_measured_judged_and_read_again(tmp_path: Path) -> None:
    questions = [f"What do you think of {one}?" for one in OPEN_QUESTIONS]
    run = permix.evaluate_fidelity(
        in_character, personas=PERSONAS, questions=questions, out=tmp_path / "run", folds=3, resamples=100
    )
    assert isinstance(run.summary, Identifiability)
    names = [row["name"] for row in run.measures()]
    assert {"accuracy", "text.words", "text.break_rate"} <= set(names)
    assert (run.kind, len(run.rows()), run.rows()[0]["correct"]) == ("open", 36, None)
    again = permix.open_run(tmp_path / "run")
    assert isinstance(again, permix.FidelityRun)
    assert again.summary == run.summary

    def by_length(messages: list[Message]) -> str:
        return verdict(1 + len(quoted_answer(messages[-1]["content"])) % 5)

    found = permix.judge(run, by_length, resamples=100, answers_per_control=20)
    assert isinstance(found, JudgeSummary)
    assert (found.label, found.n_scored, found.n_asked) == (
        "test_character_is_measured_judged_and_read_again.<locals>.by_length",
        36,
        36,
    )
    page = permix.write_report(run, out=tmp_path / "report")
    assert page.exists()


def test_a_kind_that_brings_its_own_takes_no_personas_or_questions(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="has no effect with personagym"):
        permix.evaluate_fidelity(in_character, personas=PERSONAS, personagym={"path": tmp_path})
    with pytest.raises(ConfigError, match="has no effect with interview"):
        permix.evaluate_fidelity(in_character, questions=["Why?"], interview={"turns": 3})
    with pytest.raises(DataError, match=r"questions\[1\]: text = 'why\?': repeats questions\[0\]"):
        permix.evaluate_fidelity(in_character, questions=["Why?", "why?"])


def test_an_interview_by_a_function(tmp_path: Path) -> None:
    run = permix.evaluate_fidelity(
        in_character, personas=PERSONAS[:2], interview={"turns": 3}, out=tmp_path / "run", resamples=100
    )
    assert run.kind == "interview"
    assert len(run.rows()) == 6
    again = permix.open_run(tmp_path / "run")
    assert isinstance(again, permix.FidelityRun)
    assert again.measures() == run.measures()


def test_two_runs_are_compared_and_reported(tmp_path: Path) -> None:
    settings: dict[str, Any] = {"task": SUMS, "answer": "number", "personas": PERSONAS, **QUICK}
    one = permix.evaluate_stability(answer, out=tmp_path / "one", **settings)
    two = permix.evaluate_stability(careful, out=tmp_path / "two", **settings)
    found = permix.compare(one, tmp_path / "two", resamples=100)
    assert {row.name: row.difference.value for row in found.measures}["mean"] == pytest.approx(1 / 3)
    assert [row.difference.value for row in found.personas] == [0.0, 0.0, 1.0]
    scores = permix.metrics.compare_scores(
        one.scores(), two.scores(), one.baseline_scores(), two.baseline_scores(), persona_ids=one.persona_ids, resamples=100
    )
    assert scores == found
    page = permix.write_report([one, str(tmp_path / "two")], out=tmp_path / "report", caption="Two of them.")
    assert page == tmp_path / "report" / "index.html"
    assert "Two of them." in (tmp_path / "report" / "report.md").read_text()


def test_what_is_no_run_is_not_opened(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no such file; is this a run directory"):
        permix.open_run(tmp_path)
    (tmp_path / "config.json").write_text('{"stage": "judge"}')
    with pytest.raises(DataError, match="has stage 'judge'; open_run reads runs of stability, fidelity and train"):
        permix.open_run(tmp_path)


# Training


def test_a_training_is_a_file_with_fields_laid_over_it(tiny_model: Path, tmp_path: Path) -> None:
    file = tmp_path / "train.toml"
    file.write_text('method = "sft"\n[task]\nsplit = "train"\nlevels = ["sub-1"]\nn = 20\n[train]\nlr = 1e-2\n')
    with pytest.raises(ConfigError, match=r"train.toml: unknown key train.lrr; did you mean train.lr"):
        permix.train(file, train={"lrr": 1.0})
    folder = permix.train(
        file, out=tmp_path / "run", model={"name": str(tiny_model)}, train={"precision": "float32"}, threads=1,
        plan={"steps": 1, "questions_per_step": 2, "group_size": 2},
    )  # fmt: skip
    assert (folder / "model.safetensors").exists()
    config = read_json(tmp_path / "run" / "config.json")
    assert (config["train"]["lr"], config["train"]["precision"], config["task"]["n"]) == (1e-2, "float32", 20)
    with pytest.raises(ConfigError, match='split = "heldout": training takes split = "train"'):
        permix.train(task={"split": "heldout"})


# Arithmetic


def test_the_arithmetic_takes_lists() -> None:
    assert permix.metrics.pss([0.8, 0.4]) == 0.5
    under = [[[1], [1], [0], [1]], [[0], [1], [0], [0]]]
    found = permix.metrics.summarize_stability(under, persona_ids=["a", "b"], resamples=100)
    assert found.pss_observed.value == pytest.approx(1 / 3)
    assert found.baseline.value is None
    # Two rubrics, two personas: the means of 4, 5, 3, 4 and of 2, 1, 3 are 4 and 2.
    score = permix.metrics.estimate_persona_score(np.array([[[4, 5], [2, 1]], [[3, 4], [3, np.nan]]]), resamples=100)
    assert (score.value, score.n) == (3.0, 2)
    same = permix.metrics.compare_scores(under, under, resamples=100)
    assert {row.difference.value for row in same.measures} <= {0.0, None}
    with pytest.raises(ValueError, match="of 2 personas × 4 questions and the other of 1 × 4"):
        permix.metrics.compare_scores(under, under[:1])


def test_results_of_an_object_are_typed() -> None:
    """What `generate` of a `permix.Model` yields is what an object of one's own may yield."""
    model: permix.Model = wrap_model(TextsInOrder())
    request = Request((Message(role="user", content="What is 1 + 1?"),), 0)
    [result] = model.generate([request], Sampling(temperature=0.5, max_new_tokens=512))
    assert result == CompletionResult(0, Completion(text="It is 2.", prompt_tokens=None, completion_tokens=None, finish=None))

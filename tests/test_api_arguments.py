"""What the Python API does with functions, objects, tasks and values that cannot work, or that nothing tells apart."""

import functools
import inspect
import shutil
import subprocess
import sys
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from decimal import Decimal
from fractions import Fraction
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

import permix
from permix import api
from permix.config import TaskConfig
from permix.errors import ConfigError, DataError, IncompleteRunError, PermixError
from permix.inference.scripted import code_identity, wrap_model
from permix.storage.files import read_json, write_json
from permix.tasks import _find_own_task, task_from_questions
from permix.types import Message, Question, Request, Sampling, Verdict, digest
from permix.verification.math_verifier import check_answer
from tests.inference.test_endpoint_habits import refusal
from tests.sample_runs import OPEN_QUESTIONS, solve
from tests.servers import Reply, openai_server
from tests.test_api import PERSONAS, QUICK, SUMS, answer, careful, in_character, question_of


@pytest.fixture(autouse=True)
def _environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)


# What identifies a function


def adding(amount: int) -> Any:
    def agent(messages: list[Message]) -> str:
        return f"It is {solve(question_of(messages)) + amount}."

    return agent


class Adder:
    def __init__(self, amount: int) -> None:
        self.amount = amount

    def __call__(self, messages: list[Message]) -> str:
        return f"It is {solve(question_of(messages)) + self.amount}."

    def ask(self, messages: list[Message]) -> str:
        return self(messages)


class Slotted:
    __slots__ = ("amount",)

    def __init__(self, amount: int) -> None:
        self.amount = amount

    def generate(self, requests: Sequence[Request], sampling: Sampling) -> Iterator[str]:
        yield from (f"It is {self.amount}." for _ in requests)


def engine_of(amount: int) -> Any:
    class Engine:
        def generate(self, requests: Sequence[Request], sampling: Sampling) -> Iterator[str]:
            yield from (f"It is {amount}." for _ in requests)

    return Engine()


def asking(messages: list[Message], client: object = None, amount: int = 0) -> str:
    return f"It is {solve(question_of(messages)) + amount}."


def logged(function: Any) -> Any:
    @functools.wraps(function)
    def call(messages: list[Message]) -> str:
        return str(function(messages))

    return call


def wrapped_by(function: Any) -> Any:
    """A function that nothing around it serves, and that says to wrap another one."""

    def call(messages: list[Message]) -> str:
        return "It is 5."

    call.__wrapped__ = function  # type: ignore[attr-defined]
    return call


def cached_engine_of(amount: int) -> Any:
    class Engine:
        @functools.cached_property
        def number(self) -> int:
            return amount

        def generate(self, requests: Sequence[Request], sampling: Sampling) -> Iterator[str]:
            yield from (f"It is {self.number}." for _ in requests)

    return Engine()


def engine_with_property_of(amount: int) -> Any:
    class Engine:
        @property
        def number(self) -> int:
            return amount

        def generate(self, requests: Sequence[Request], sampling: Sampling) -> Iterator[str]:
            yield from (f"It is {self.number}." for _ in requests)

    return Engine()


def engine_with_cache_of(amount: int) -> Any:
    class Engine:
        @staticmethod
        @functools.cache
        def number() -> int:
            return amount

        def generate(self, requests: Sequence[Request], sampling: Sampling) -> Iterator[str]:
            yield from (f"It is {self.number()}." for _ in requests)

    return Engine()


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (adding, "it uses amount of the function around it"),
        (Adder, "its object has the attribute amount"),
        (lambda amount: Adder(amount).ask, "it is a method, and its object may differ"),
        (Slotted, "its object has the attribute amount"),
        (engine_of, "it uses amount of the function around it"),
        (lambda amount: functools.partial(asking, client=Adder(amount)), "functools.partial gives it client"),
        (
            lambda amount: functools.partial(functools.partial(asking, amount=1), client=[Adder(amount)]),
            "functools.partial gives it client",
        ),
        (lambda amount: logged(careful if amount else answer), "it uses function of the function around it"),
        (lambda amount: functools.cache(adding(amount)), "it uses amount of the function around it"),
        (lambda amount: functools.cache(functools.lru_cache(3)(adding(amount))), "it uses amount of the function around it"),
        (lambda amount: staticmethod(adding(amount)), "it uses amount of the function around it"),
        (lambda amount: wrapped_by(adding(amount)), "it uses amount of the function around it"),
        (lambda amount: functools.cache(Adder(amount)), "its object has the attribute amount"),
        (lambda amount: functools.cache(functools.partial(asking, client=Adder(amount))), "functools.partial gives it client"),
        (cached_engine_of, "it uses amount of the function around it"),
        (engine_with_property_of, "it uses amount of the function around it"),
        (engine_with_cache_of, "it uses amount of the function around it"),
    ],
    ids=[
        *("closure", "instance", "method", "slots", "class in a function", "argument", "arguments", "decorated", "cached"),
        *("cached twice", "static", "wrapped", "cached instance", "cached argument", "cached property", "property", "cache"),
    ],
)
def test_what_its_source_does_not_identify_is_named(make: Any, words: str, tmp_path: Path) -> None:
    settings: dict[str, Any] = {"task": SUMS, "answer": "number", "personas": PERSONAS[:1], "out": tmp_path / "run", **QUICK}
    with pytest.raises(
        ConfigError, match=rf'model: the source of .* does not tell what it answers, since {words}.*name="\.\.\."'
    ):
        permix.evaluate_stability(make(0), **settings)
    assert not (tmp_path / "run").exists()
    assert wrap_model(make(0), "zero").fingerprint == wrap_model(make(0), "zero").fingerprint
    assert wrap_model(make(0), "zero").fingerprint != wrap_model(make(1), "one").fingerprint


def test_values_of_a_loop_tell_functions_apart(tmp_path: Path) -> None:
    fingerprints = set()
    for amount in (0, 1):

        def agent(messages: list[Message], amount: int = amount) -> str:
            return f"It is {solve(question_of(messages)) + amount}."

        class Engine:
            of = amount

            def generate(self, requests: Sequence[Request], sampling: Sampling) -> list[str]:
                return [f"It is {self.of}." for _ in requests]

        fingerprints |= {wrap_model(agent).fingerprint, wrap_model(Engine()).fingerprint}
    assert len(fingerprints) == 4

    def asks(messages: list[Message], client: object = Adder(1)) -> str:
        return "It is 5."

    with pytest.raises(ConfigError, match="the default of a parameter is no text"):
        wrap_model(asks)


def test_the_defaults_of_methods_tell_the_classes_of_a_loop_apart() -> None:
    fingerprints = set()
    for amount in (0, 1):

        class Engine:
            def generate(self, requests: Sequence[Request], sampling: Sampling, amount: int = amount) -> list[str]:
                return [f"It is {amount}." for _ in requests]

        fingerprints.add(wrap_model(Engine()).fingerprint)
    assert len(fingerprints) == 2


def cached_scorer(correct: bool) -> Any:
    @functools.cache
    def scorer(text: str, gold: str) -> Verdict:
        return Verdict(correct=correct)

    return scorer


def wrappers_of(function: Any) -> list[Any]:
    """Two functions that name another one as what they wrap."""

    @functools.wraps(function)
    def always(text: str, gold: str) -> Verdict:
        return Verdict(correct=True)

    @functools.wraps(function)
    def never(text: str, gold: str) -> Verdict:
        return Verdict(correct=False)

    return [always, never]


def test_what_a_wrapper_hides_is_no_identity(tmp_path: Path) -> None:
    with pytest.raises(
        ConfigError, match=r"scorer: its source does not tell how it scores, since it uses correct of the function"
    ):
        code_identity(cached_scorer(True), "scorer")
    with pytest.raises(ConfigError, match=r"its source does not tell how it scores, since it uses correct of the function"):
        permix.evaluate_stability(
            careful, task=own_object(scorer=cached_scorer(True)), personas=PERSONAS[:1], out=tmp_path / "run", **QUICK
        )
    assert not (tmp_path / "run").exists()
    # A function that names another one is known by its own source too, and is not the other one.
    wrappers = [one for function in (raises_for_three, check_answer) for one in wrappers_of(function)]
    assert len({code_identity(one, "scorer") for one in wrappers}) == 4
    assert code_identity(functools.cache(check_answer), "scorer") == code_identity(check_answer, "scorer")


def test_an_object_without_python_code_that_wraps_another_one_is_not_identified_by_it() -> None:
    class Wrapper:
        def __get__(self, instance: object, owner: object = None) -> Any:
            return self

        def __call__(self, text: str, gold: str) -> Verdict:
            return Verdict(correct=False)

    wrapper: Any = functools.update_wrapper(Wrapper(), raises_for_three)
    with pytest.raises(ConfigError, match=r"scorer: its source does not tell how it scores, since it is not written in Python"):
        code_identity(wrapper, "scorer")


def with_default(messages: list[Message], tone: str = "dry", *, n: int = -1) -> str:
    return f"It is {solve(question_of(messages))}."


TONE = "dry"


def with_named_default(messages: list[Message], tone: str = TONE) -> str:
    return f"It is {solve(question_of(messages))}."


def test_a_run_with_the_former_fingerprint_of_a_function_goes_on(tmp_path: Path) -> None:
    settings: dict[str, Any] = {"task": SUMS, "answer": "number", "personas": PERSONAS[:1], "out": tmp_path / "run", **QUICK}
    file = tmp_path / "run" / "provenance.json"
    for function in (with_default, functools.partial(with_default, tone="kind")):
        first = permix.evaluate_stability(function, **settings)
        born = read_json(file)
        bound = repr((function.args, function.keywords)) if isinstance(function, functools.partial) else ""
        former = digest("function", "with_default", inspect.getsource(with_default) + bound)
        assert former != born["identity"]["model"]
        write_json(file, born | {"identity": born["identity"] | {"model": former}})
        assert permix.evaluate_stability(function, **settings).rows() == first.rows()
        assert read_json(file) == born
        shutil.rmtree(tmp_path / "run")
    # Where the source does not say the default, the former fingerprint says nothing of it.
    permix.evaluate_stability(with_named_default, **settings)
    born = read_json(file)
    former = digest("function", "with_named_default", inspect.getsource(with_named_default))
    write_json(file, born | {"identity": born["identity"] | {"model": former}})
    with pytest.raises(ConfigError, match="was another one, or another version of permix identified it in another way; give"):
        permix.evaluate_stability(with_named_default, **settings)


def test_a_partials_fingerprint_is_that_of_another_process() -> None:
    script = (
        "import functools, textwrap; from permix.inference.scripted import wrap_model; "
        "print(wrap_model(functools.partial(textwrap.fill, width=3, placeholder=['a', {'b': 1.5}])).fingerprint)"
    )
    ended = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=120, check=True)
    values: dict[str, Any] = {"width": 3, "placeholder": ["a", {"b": 1.5}]}
    assert ended.stdout.strip() == wrap_model(functools.partial(textwrap.fill, **values)).fingerprint


def test_a_function_that_was_changed_is_refused_in_words_of_functions(tmp_path: Path) -> None:
    def ask_with(amount: int) -> Any:
        return functools.partial(asking, amount=amount)

    settings: dict[str, Any] = {"task": SUMS, "answer": "number", "personas": PERSONAS[:1], "out": tmp_path / "run", **QUICK}
    permix.evaluate_stability(ask_with(0), **settings)
    with pytest.raises(ConfigError, match="this run was made with another function or object of the same name: its source, or a"):
        permix.evaluate_stability(ask_with(1), **settings)


# Functions that can never work


async def awaited(messages: list[Message]) -> str:
    return "It is 5."


async def awaited_one_by_one(messages: list[Message]) -> Any:
    yield "It is 5."


def yielding(messages: list[Message]) -> Iterator[str]:
    yield "It is 5."


class Awaited:
    async def __call__(self, messages: list[Message]) -> str:
        return "It is 5."


class AwaitedEngine:
    async def generate(self, requests: Sequence[Request], sampling: Sampling) -> list[str]:
        return ["It is 5."] * len(requests)


class OneArgument:
    def generate(self, requests: Sequence[Request]) -> list[str]:
        return ["It is 5."] * len(requests)


@pytest.mark.parametrize(
    ("model", "words"),
    [
        (awaited, r"awaited is an async function, .* lambda messages: asyncio\.run\(agent\(messages\)\)"),
        (functools.partial(awaited), "awaited is an async function"),
        (awaited_one_by_one, "is an async function"),
        (Awaited(), "Awaited is an async function"),
        (yielding, "yielding yields, so it returns no text"),
        (AwaitedEngine(), "generate of AwaitedEngine is an async function, .* yields texts"),
        (OneArgument(), r"cannot be called \(too many positional arguments\) with requests and sampling"),
        (lambda: "5", r"cannot be called \(too many positional arguments\) with the messages alone"),
        (lambda messages, client: "5", r"cannot be called \(missing a required argument: 'client'\)"),
    ],
)
def test_what_can_never_answer_is_refused_before_it_is_called(model: Any, words: str) -> None:
    for judged in (False, True):
        with pytest.raises(ConfigError, match=words):
            wrap_model(model, "mine") if judged else permix.evaluate_stability(
                model, name="mine", task=SUMS, answer="number", personas=PERSONAS[:1]
            )


class UnprintableError(Exception):
    def __str__(self) -> str:
        raise RuntimeError("no words")


def raises(error: Exception) -> Any:
    raise error


MANY_SUMS = [{"question": f"What is {n} + 1?", "answer": n + 1} for n in range(40)]


@pytest.mark.parametrize(
    ("reply", "words"),
    [
        (lambda: {"content": "5"}, "8 × TypeError: the answer is dict, not a text"),
        (lambda: None, "8 × TypeError: the answer is NoneType, not a text"),
        (lambda: b"5", "8 × TypeError: the answer is bytes, not a text"),
        (lambda: awaited([]), "8 × TypeError: the answer is a coroutine, not a text; call the async function by asyncio.run"),
        (lambda: raises(PermissionError("401")), "8 × PermissionError: 401"),
        (lambda: raises(UnprintableError()), r"8 × UnprintableError: \(its text cannot be read: RuntimeError\)"),
    ],
)
def test_a_function_that_never_answers_is_asked_eight_times(reply: Any, words: str, tmp_path: Path) -> None:
    asked: list[str] = []

    def never(messages: list[Message]) -> Any:
        asked.append(messages[0]["role"])
        return reply()

    settings: dict[str, Any] = {"task": MANY_SUMS, "answer": "number", "personas": PERSONAS, "name": "never", **QUICK}
    stopped = r"the function never was asked no more after 8 failures in a row; "
    with pytest.raises(IncompleteRunError, match=rf"{stopped}make the same call again to fill them \({words}") as raised:
        permix.evaluate_stability(never, out=tmp_path / "run", **settings)
    assert len(asked) == 8
    assert set(asked) == {"user", "system"}, "the probes are from all over the grid"
    assert "command" not in str(raised.value)
    with pytest.raises(
        IncompleteRunError, match=r'give out="\.\.\." to keep the answers \(error\.run holds them now\)'
    ) as raised:
        permix.evaluate_stability(never, **settings)
    assert len(raised.value.run.rows()) == 8
    with pytest.raises(IncompleteRunError, match=rf"{stopped}.*make the same call again|{stopped}give out"):
        permix.evaluate_fidelity(never, personas=PERSONAS, questions=[f"Why {n}?" for n in range(10)], name="never")
    assert len(asked) == 24


def test_a_function_that_fails_for_one_persona_is_asked_on(tmp_path: Path) -> None:
    def no_trolls(messages: list[Message]) -> str:
        if "troll" in messages[0]["content"]:
            raise ValueError("no trolls")
        return careful(messages)

    settings: dict[str, Any] = {"task": MANY_SUMS, "answer": "number", "personas": PERSONAS, "out": tmp_path / "run", **QUICK}
    with pytest.raises(IncompleteRunError) as raised:
        permix.evaluate_stability(no_trolls, **settings)
    rows = raised.value.run.rows()
    assert sum(row["correct"] is True for row in rows) == 120, "the other personas' answers are all there"


def test_a_judge_that_never_answers_is_asked_eight_times(tmp_path: Path) -> None:
    questions = [f"What do you think of {one}?" for one in OPEN_QUESTIONS]
    run = permix.evaluate_fidelity(
        in_character, personas=PERSONAS, questions=questions, out=tmp_path / "run", folds=3, resamples=100
    )
    asked: list[str] = []

    def never(messages: list[Message]) -> Any:
        asked.append(messages[-1]["content"])

    with pytest.raises(IncompleteRunError, match="asked no more after 8 failures in a row; make the same call again") as raised:
        permix.judge(run, never, name="never", resamples=100, answers_per_control=20)
    assert len(asked) == 8
    assert "command" not in str(raised.value)


class Yields:
    def __init__(self, *items: Any) -> None:
        self.items = items

    def generate(self, requests: Sequence[Request], sampling: Sampling) -> Any:
        return None if self.items == (None,) else iter(self.items)


@pytest.mark.parametrize(
    ("items", "words"),
    [
        ((None,), "generate of Yields: returned NoneType; it must yield the answers' texts in order"),
        (({"text": "5"},), "generate of Yields: item 0 is dict; it must yield"),
        (("5", 6), "generate of Yields: item 1 is int; it must yield"),
        (((7, "5"),), "item 0 is for the request 7, of 2"),
        (((-1, "5"),), "item 0 is for the request -1, of 2, whose indices begin with 0; give one answer for each"),
        (((0, "5"), (0, "5")), "item 1 is for the request 0, which has an answer already; give each one"),
        (
            (("Paris", "x"),),
            "item 0 begins with 'Paris', which is no index of a request; it must yield the answers' texts in order",
        ),
        (((1.0, "x"),), "item 0 begins with 1.0, which is no index"),
        (((True, "x"),), "item 0 begins with True, which is no index"),
        (("5", "5", "5"), "item 2 is for the request 2, of 2"),
    ],
)
def test_an_object_that_yields_what_belongs_to_no_request_is_refused(items: tuple[Any, ...], words: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=words):
        permix.evaluate_stability(
            Yields(*items), name="broken", task=SUMS[:1], answer="number", personas=PERSONAS[:1], out=tmp_path / "run", **QUICK
        )


def test_indices_may_be_numpys() -> None:
    settings: dict[str, Any] = {"name": "sorted", "task": SUMS[:1], "answer": "number", "personas": PERSONAS[:1], **QUICK}
    rows = [
        permix.evaluate_stability(Yields(*((index, f"It is {index}.") for index in indices)), **settings).rows()
        for indices in ([1, 0], np.argsort([2, 1]))
    ]
    assert rows[0] == rows[1]


def test_an_objects_answer_that_is_no_text_fails_alone(tmp_path: Path) -> None:
    with pytest.raises(IncompleteRunError) as raised:
        permix.evaluate_stability(
            Yields((1, None), (0, "It is 5.")), name="partly", task=SUMS[:1], answer="number", personas=PERSONAS[:1], **QUICK
        )
    assert [row["error"] for row in raised.value.run.rows()] == ["TypeError: the answer is NoneType, not a text", None]


# A task as an object


def four_sums(config: TaskConfig) -> Any:
    return tuple(Question(id=f"q{n}", task="mine", text=f"What is {n} + 1?", gold=str(n + 1)) for n in range(4))


def own_object(**fields: Any) -> permix.Task:
    usual: dict[str, Any] = {
        "prompt_template": "{question}", "questions": four_sums, "extract": lambda text, question: text.strip("It is."),
        "scorer": lambda text, gold: Verdict(correct=text == gold, extracted=text),
    }  # fmt: skip
    return permix.Task(name="mine", **usual | fields)


def raises_for_three(text: str, gold: str) -> Verdict:
    if gold == "3":
        raise KeyError("three")
    return Verdict(correct=text == gold, extracted=text)


BROKEN_TASKS: dict[str, tuple[dict[str, Any], str]] = {
    "a bool": ({"scorer": lambda text, gold: True}, "cannot score the right answer of the question q0: TypeError: the scorer"),
    "extract of one argument": ({"extract": lambda text: text}, "cannot score the right answer of the question q0: TypeError"),
    "extract returns 5": ({"extract": lambda text, question: 5, "scorer": None}, "cannot score the right answer"),
    "answers_match returns 1": ({"answers_match": lambda text, gold: 1, "scorer": None}, "answers_match returned 1, not True"),
    "no questions": ({"questions": lambda config: ()}, r"must return permix\.Question records, not \(\)"),
    "questions is None": ({"questions": None}, "its questions cannot be loaded: TypeError"),
    "questions return None": ({"questions": lambda config: None}, "its questions cannot be loaded: TypeError"),
    "dicts": ({"questions": lambda config: [{"id": "a"}]}, r"must return permix\.Question records, not \(\{'id'"),
    "equal ids": ({"questions": lambda config: four_sums(config)[:1] * 2}, "question id 'q0' occurs twice"),
    "no question in the prompt": ({"prompt_template": "Answer!"}, r"prompt_template = 'Answer!': must contain \{question\}"),
}


@pytest.mark.parametrize("way", ["by name", "as an object", "loaded"])
@pytest.mark.parametrize("broken", BROKEN_TASKS)
def test_a_task_of_ones_own_is_checked_however_it_is_given(
    broken: str, way: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    fields, words = BROKEN_TASKS[broken]
    task: Any = own_object(**fields)
    if way == "by name":
        module = ModuleType("my_object")
        module.__dict__["TASK"] = task
        monkeypatch.setitem(sys.modules, "my_object", module)
        _find_own_task.cache_clear()
        task = "my_object:TASK"
    elif way == "loaded":
        if fields.get("questions", four_sums) is None or (found := task.questions(TaskConfig())) is None:
            pytest.skip("there is nothing to load")
        task = permix.LoadedTask(TaskConfig(), task, tuple(found))
        words = words if found else "there are no questions"

    def nobody(messages: list[Message]) -> str:
        pytest.fail("asked")

    with pytest.raises(ConfigError, match=words):
        permix.evaluate_stability(nobody, task=task, personas=PERSONAS[:1], out=tmp_path / "run", **QUICK)
    _find_own_task.cache_clear()


def test_questions_of_an_object_may_be_a_generator(tmp_path: Path) -> None:
    task = own_object(questions=lambda config: (one for one in four_sums(config)))
    run = permix.evaluate_stability(careful, task=task, n=2, personas=PERSONAS[:1], out=tmp_path / "run", **QUICK)
    assert (run.question_ids, run.summary.mean.value) == (("q0", "q1"), 1.0)


def test_an_objects_scorer_that_raises_leaves_one_cell_without_a_score(tmp_path: Path) -> None:
    with pytest.raises(IncompleteRunError, match=r"2 of 8 cells.*2 × scorer: mine: KeyError: 'three'") as raised:
        permix.evaluate_stability(
            careful, task=own_object(scorer=raises_for_three), personas=PERSONAS[:1], out=tmp_path / "run", **QUICK
        )
    assert raised.value.run.summary.mean.value == 1.0
    assert len(permix.StabilityRun(tmp_path / "run").rows()) == 8


def test_another_scorer_of_an_object_is_another_run(tmp_path: Path) -> None:
    settings: dict[str, Any] = {"personas": PERSONAS[:1], "out": tmp_path / "run", **QUICK}
    run = permix.evaluate_stability(careful, task=own_object(), **settings)
    assert permix.evaluate_stability(careful, task=own_object(), **settings).summary == run.summary
    for other in (lambda text, gold: Verdict(correct=False), raises_for_three):
        with pytest.raises(ConfigError, match="task_source"):
            permix.evaluate_stability(careful, task=own_object(scorer=other), **settings)
    with pytest.raises(ConfigError, match="task_source"):
        permix.evaluate_stability(careful, task=own_object(extract=lambda text, question: "5"), **settings)

    def within(tolerance: Any) -> Any:
        return lambda text, gold: Verdict(correct=abs(float(text) - float(gold)) <= tolerance)

    with pytest.raises(ConfigError, match=r'its source does not tell how it scores, since it uses tolerance .* source="\.\.\."'):
        permix.evaluate_stability(careful, task=own_object(scorer=within(0)), **settings | {"out": tmp_path / "other"})
    named = own_object(scorer=within(0), source="within 0")
    run = permix.evaluate_stability(careful, task=named, **settings | {"out": tmp_path / "other"})
    assert run.provenance["identity"]["task_source"] == "within 0"


def test_a_task_of_permix_is_no_task_of_ones_own(tmp_path: Path) -> None:
    loaded = permix.load_task("arithmetic", levels=["add-1"], n=2)
    run = permix.evaluate_stability(careful, task=loaded.task, n=2, personas=PERSONAS[:1], out=tmp_path / "run", **QUICK)
    assert "task_source" not in run.provenance["identity"]
    own = permix.verifiable_reward("own-number").task
    with pytest.raises(ConfigError, match=r'own-number has no questions of its own; give a list .* answer="number"'):
        permix.evaluate_stability(careful, task=own, personas=PERSONAS[:1])


# Other arguments


def test_data_frames_are_read_by_rows(tmp_path: Path) -> None:
    pandas = pytest.importorskip("pandas")
    personas = pandas.DataFrame({"id": [1, 2], "text": ["a poet", "a sailor"], "weight": [2.0, None], "tags": [["arts"], None]})
    run = permix.evaluate_stability(careful, task=pandas.DataFrame(SUMS), answer="number", personas=personas, **QUICK)
    assert (run.persona_ids, run.summary.mean.value) == (("1", "2"), 1.0)
    assert {cell.messages[0]["content"] for cell in run.cells() if cell.persona_id == "1"} == {"You are a poet."}
    records = permix.evaluate_stability(
        careful, task=pandas.DataFrame(SUMS).to_dict("records"), answer="number", personas=personas.to_dict("records"), **QUICK
    )
    assert records.persona_ids == run.persona_ids
    series = permix.evaluate_stability(careful, task=SUMS, answer="number", personas=personas["text"], **QUICK)
    assert len(series.persona_ids) == 2
    with pytest.raises(DataError, match=r"questions: is a data frame; give the texts of its column, such as list\(frame"):
        permix.evaluate_fidelity(careful, personas=PERSONAS, questions=pandas.DataFrame({"question": ["Why?"] * 10}))
    arrow = pytest.importorskip("pyarrow").Table.from_pylist([{"text": "a poet"}, {"text": "a sailor"}])
    assert (
        permix.evaluate_stability(careful, task=SUMS, answer="number", personas=arrow, **QUICK).persona_ids == series.persona_ids
    )


@pytest.mark.parametrize("make", [lambda rows: (row for row in rows), iter, lambda rows: map(dict, rows), tuple])
def test_questions_may_be_any_iterable(make: Any) -> None:
    run = permix.evaluate_stability(careful, task=make(SUMS), answer="number", personas=PERSONAS[:1], **QUICK)
    assert run.summary.n_scored == 4


@pytest.mark.parametrize("number", [np.int64(6), np.int8(6), np.float32(6), np.float64(6), Decimal(6), Fraction(6), 6.0])
def test_every_number_is_an_answer(number: Any) -> None:
    rows = [{"id": 7, "question": "What is 2 + 4?", "answer": number}]
    run = permix.evaluate_stability(careful, task=rows, answer="number", personas=PERSONAS[:1], **QUICK)
    assert (run.question_ids, run.summary.mean.value) == (("7",), 1.0)


def test_answers_of_numpy_are_indices_and_lists() -> None:
    rows = [{"question": "Which?", "choices": np.array(["Rome", "Paris"]), "answer": np.int64(1)}]
    assert task_from_questions(rows, "choice").questions[0].gold == "B"
    rows = [{"question": "Which?", "answers": ("Rome", "Paris")}]
    assert "Rome" in task_from_questions(rows, "exact").questions[0].gold


NO_QUESTION = "must be a dict with question and answer, or a permix.Question"
NO_PERSONA = r'must be a text that completes "You are \.\.\.", a dict with text or system, or a permix\.Persona'


@pytest.mark.parametrize(
    ("settings", "kind", "words"),
    [
        ({"task": ["What is 2 + 2?"]}, DataError, rf"^task\[0\] = 'What is 2 \+ 2\?': {NO_QUESTION}"),
        ({"task": [*SUMS, ("2 + 2?", 4)]}, DataError, rf"^task\[4\] = \('2 \+ 2\?', 4\): {NO_QUESTION}"),
        ({"task": SUMS[0]}, DataError, r"^task: a dict has the fields of a \[task\] section; give questions as a list of dicts"),
        ({"task": 5}, DataError, rf"^task = 5: must be a task, its name, a file, or a list of which each item {NO_QUESTION}"),
        ({"task": None}, DataError, "^task = None: must be a task"),
        ({"task": iter([])}, ConfigError, "there are no questions"),
        ({"task": [{"question": "Why?", "answer": True}]}, DataError, "answer = True: .* write a truth value as a text"),
        ({"task": [SUMS[0] | {"split": "train"}]}, DataError, r"task\[0\]: split = 'train': has no effect in a list"),
        ({"task": [SUMS[0] | {"id": True}]}, DataError, r"task\[0\]: id = True: must be a text"),
        ({"n": 2.0}, ConfigError, r"^n = 2\.0: must be a whole number"),
        ({"n": "2"}, ConfigError, "^n = '2': must be a whole number"),
        ({"n": True}, ConfigError, "^n = True: must be a whole number"),
        ({"answer": 5}, ConfigError, "^answer = 5: must be one of number, math, exact, choice"),
        ({"answer": careful}, ConfigError, '^answer: is a function; .* answer="package.module:function"'),
        ({"personas": None}, DataError, f"^personas = None: must be .*, or a list of which each item {NO_PERSONA}"),
        ({"personas": 5}, DataError, "^personas = 5: must be"),
        ({"personas": [None]}, DataError, rf"^personas\[0\] = None: {NO_PERSONA}"),
        ({"personas": ["a poet", ("poet", "a poet")]}, DataError, rf"^personas\[1\] = \('poet', 'a poet'\): {NO_PERSONA}"),
        ({"name": 5}, ConfigError, "^name = 5: must be a text that is not blank"),
        ({"name": " "}, ConfigError, "^name = ' ': must be a text that is not blank"),
        ({"out": 5}, ConfigError, "^out = 5: must be a text or a Path"),
        ({"out": " "}, ConfigError, r"^out = ' ': is empty; give .*the path of a folder, \"\.\" for the current one$"),
        ({"plan_power": 0.1}, ConfigError, "^plan_power: asks no model"),
    ],
)  # fmt: skip
def test_wrong_arguments_are_refused_in_one_line(settings: dict[str, Any], kind: type[Exception], words: str) -> None:
    def nobody(messages: list[Message]) -> str:
        pytest.fail("asked")

    with pytest.raises(kind, match=words) as raised:
        permix.evaluate_stability(nobody, **{"task": SUMS, "answer": "number", "personas": PERSONAS, **settings})
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    ("call", "kind", "words"),
    [
        (lambda: permix.evaluate_fidelity(careful, questions=None), DataError, "^questions = None: must be"),  # type: ignore[arg-type]
        (lambda: permix.evaluate_fidelity(careful, questions={"a": 1}), DataError, "^questions = {'a': 1}: must be"),  # type: ignore[arg-type]
        (lambda: permix.evaluate_fidelity(careful, questions=["A?"], questions_split="dev"), ConfigError, "^questions_split"),
        (lambda: permix.load_personas(split="foo"), ConfigError, "^load_personas: split = 'foo': must be 'train', 'dev'"),  # type: ignore[arg-type]
        (lambda: permix.load_personas(""), ConfigError, "^source = '': is empty; give \"builtin\", or .* a file or folder$"),
        (lambda: permix.load_personas(3), ConfigError, "^source = 3: must be \"builtin\", or .* the path of a file or folder$"),  # type: ignore[arg-type]
        (lambda: permix.evaluate_fidelity(careful, out=""), ConfigError, "^out = '': is empty"),
        (lambda: permix.load_personas("x.csv", column=""), ConfigError, "^load_personas: column = '': is empty"),
        (lambda: permix.load_personas().select(n=2.5), ConfigError, r"^n = 2\.5: must be a whole number"),  # type: ignore[arg-type]
        (lambda: permix.load_personas().select(include_tags="expert"), ConfigError, "^include_tags = 'expert': must be a"),
        (lambda: permix.load_model(None), ConfigError, "^model = None: must be a folder, a hub id, or the URL"),  # type: ignore[arg-type]
        (lambda: permix.open_run(None), ConfigError, "^path = None: must be a text or a Path"),  # type: ignore[arg-type]
        (lambda: permix.write_report(None), ConfigError, "^runs = None: must be a run, or a text or a Path"),  # type: ignore[arg-type]
        (lambda: permix.write_report(["x", ""]), ConfigError, "^runs = '': is empty; give a run, or"),
        (lambda: permix.write_report("x", ""), ConfigError, "^out = '': is empty"),
        (lambda: permix.compare(None, "x"), ConfigError, "^first = None: must be a run, or a text or a Path"),  # type: ignore[arg-type]
        (lambda: permix.judge(None, careful), ConfigError, "^run = None: must be a run, or a text or a Path"),  # type: ignore[arg-type]
        (lambda: permix.compare("x", 3), ConfigError, "^other = 3: must be"),  # type: ignore[arg-type]
        (lambda: permix.load_task(None), ConfigError, "^task = None: must be the name of a task"),  # type: ignore[arg-type]
        (lambda: permix.load_task("arithmetic", n=2.5), ConfigError, r"n = 2\.5: must be a whole number"),  # type: ignore[arg-type]
        (lambda: permix.load_task("arithmetic", levels=5), ConfigError, "levels = 5: must be a list"),  # type: ignore[arg-type]
        (lambda: permix.train(5), ConfigError, "^train: config = 5: must be a file, or a dict"),  # type: ignore[arg-type]
        (lambda: permix.study(5), ConfigError, "^study: config = 5: must be a file, or a dict"),  # type: ignore[arg-type]
    ],
)  # fmt: skip
def test_wrong_arguments_of_other_functions_are_refused_in_one_line(call: Any, kind: type[Exception], words: str) -> None:
    with pytest.raises(kind, match=words) as raised:
        call()
    assert "pydantic" not in str(raised.value)


def test_errors_name_what_a_call_has_and_not_flags() -> None:
    def takes_no_system_message(body: Mapping[str, Any], nth: int, headers: Mapping[str, str]) -> Any:
        return Reply("5") if body["messages"][0]["role"] == "user" else refusal("system role not supported")

    with openai_server(takes_no_system_message) as server, pytest.raises(PermixError) as raised:
        permix.evaluate_stability(server.base_url, name="m", task=SUMS, answer="number", personas=PERSONAS, **QUICK)
    assert 'template="in_question"' in str(raised.value)
    assert "--" not in str(raised.value)
    with pytest.raises(ConfigError, match=r"^n = 1000000: .*; give n = [0-9]+ or less") as many:
        permix.evaluate_stability(careful, task="arithmetic", n=1_000_000, personas=PERSONAS[:1])
    assert "task.n" not in str(many.value)
    with pytest.raises(DataError) as missing:
        permix.evaluate_stability(careful, task=[{"answer": 1}], answer="number", personas=PERSONAS[:1])
    assert "--" not in str(missing.value)


NOT_OF_THE_CALL = [
    "install it again: pip install --force-reinstall --no-deps w.whl",
    "launch it with torchrun --nproc_per_node 2 -m permix train",
    "the vLLM server runs with --logprobs-mode raw_logprobs; start it with --logprobs-mode processed_logprobs",
    "not converted yet: permix models --fetch",
    "answer them with permix fidelity --model.name BASE --sampling.max-new-tokens 9 --label mine --out FOLDER, or leave it out",
    "/data/my --old-runs/x.jsonl: no such file",
    "/data/my --out/x.jsonl: no such file",
    "/data/--out: no such folder",
    'label = "a --label b": must be another text',
    "label = 'a \" --label': must be another text",
    "x.jsonl:3: 'say --label' is no row",
]
"""Texts with options that the call of Python does not have, in a command to type, in a path and in a value."""


def failing(function: Any, text: str, monkeypatch: pytest.MonkeyPatch) -> str:
    """What a function of the API raises where what it calls raises this text."""

    def fail(*args: Any, **kwargs: Any) -> Any:
        raise ConfigError(text)

    monkeypatch.setattr(api, "build_config", fail)
    with pytest.raises(ConfigError) as raised:
        function()
    return str(raised.value)


def measured() -> Any:
    return permix.evaluate_stability("m", task="arithmetic", n=3)


def trained() -> Any:
    return permix.train({})


def studied() -> Any:
    return permix.study({})


@pytest.mark.parametrize("text", NOT_OF_THE_CALL)
def test_only_options_of_the_call_are_rewritten(text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    assert failing(measured, text, monkeypatch) == text
    assert failing(trained, text, monkeypatch) == text


@pytest.mark.parametrize(
    ("call", "text", "words"),
    [
        (measured, "give --batch-files, or --label.", "give batch_files, or label."),
        (measured, "a name: give personas.column (--personas.column NAME); or", "a name: give personas.column; or"),
        (measured, "confirm with --model.same-weights that", "confirm with model.same_weights=True that"),
        (measured, "give --personas.template in_question, which", 'give template="in_question", which'),
        (measured, "the task's own: --sampling.max-new-tokens; isn't it", "the task's own: sampling.max_new_tokens; isn't it"),
        (measured, "leave out --train.lr", "leave out --train.lr"),
        (measured, 'task.n = 9: text "task.n = 9"; give task.n = 6 or less', 'n = 9: text "task.n = 9"; give n = 6 or less'),
        (trained, "task.n = 9: give task.n = 6, or --train.lr", "task.n = 9: give task.n = 6, or train.lr"),
        (studied, "permix study: --personas.template in_question", "permix study: personas.template in_question"),
        (studied, "task.n = 9. Of what is finished: --report.", "task.n = 9. Of what is finished: report=True."),
    ],
)  # fmt: skip
def test_errors_have_the_words_of_the_function_that_was_called(
    call: Any, text: str, words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert failing(call, text, monkeypatch) == words


def test_a_path_that_the_call_gives_stays_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    text = "/data/my --label x: no such file; give another --label"
    said = failing(lambda: permix.train({"out": Path("/data/my --label x")}, label="my"), text, monkeypatch)
    assert said == "/data/my --label x: no such file; give another label"


@pytest.mark.parametrize("n", [0, 10**9])
def test_a_training_has_no_argument_n(n: int, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=rf"\btask\.n = {n}: "):
        permix.train({"task": {"name": "arithmetic", "n": n}, "out": str(tmp_path)})

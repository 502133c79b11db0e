"""`permix questions` with scripted authors: what is asked, what is kept, what is owed, and that a killed run goes on."""

import json
import multiprocessing
import os
import re
import signal
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

from permix import cli
from permix.config import PersonaGymConfig, QuestionsConfig, build_config
from permix.errors import ConfigError, DataError
from permix.inference.openai import OpenAIModel
from permix.inference.scripted import ScriptedModel, ScriptedReply
from permix.personas.personagym import PersonaGymQuestion, ScoreExample, read_personagym
from permix.pipelines.preflight import check_config
from permix.question_writer.generator import WritingJob, WritingSummary, build_writing_job, run_writing_job
from permix.question_writer.requests import builtin_situations
from permix.storage.files import read_json
from permix.types import CellKey, Failure, Request
from tests.cell_files import read_cells
from tests.sample_runs import TEXTS, endpoint, toml, write_pool
from tests.servers import Action, error, openai_server

TASKS = ("Expected Action", "Linguistic Habits")
TOPICS = ("lantern", "harbour", "violin", "orchard", "blizzard", "carnival", "hedgehog", "submarine", "telescope", "vinegar")
GIVEN = (
    PersonaGymQuestion(
        id="q-one", persona_id="p", persona="a potter", task="Expected Action", text="What do you do with cracked clay?"
    ),
    PersonaGymQuestion(
        id="q-too", persona_id="p", persona="a potter", task="Expected Action", text="What do you do with wet clay?"
    ),
    PersonaGymQuestion(id="q-two", persona_id="p", persona="a potter", task="Linguistic Habits", text="Tell me about your kiln."),
)


@pytest.fixture(autouse=True)
def _no_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")


def given(folder: Path) -> str:
    path = folder / "given.jsonl"
    path.write_text("".join(one.model_dump_json() + "\n" for one in GIVEN))
    return str(path)


def values(folder: Path, **fields: Any) -> dict[str, Any]:
    """Two personas × two tasks × three questions."""
    return {
        "stage": "questions", "out": str(folder / "run"), "model": endpoint("http://127.0.0.1:1/v1"),
        "tasks": list(TASKS), "n": 3,
        "personas": {"pool": str(write_pool(folder / "pool.toml", "clerk", "sailor")), "split": "all"},
    } | fields  # fmt: skip


def config(folder: Path, **fields: Any) -> QuestionsConfig:
    return build_config(QuestionsConfig, values(folder, **fields), source="test")


def written(model: ScriptedModel, stage: QuestionsConfig) -> WritingSummary:
    return run_writing_job(model, stage, build_writing_job(stage))


def kind(request: Request) -> str:
    """What is wanted: situations, questions, or "1" for examples."""
    assert request.schema is not None
    return str(next(iter(request.schema["properties"])))


def said(request: Request) -> str:
    return str(request.messages[-1]["content"])


def whom(request: Request) -> str:
    return next(name for name, text in TEXTS.items() if text.rstrip(".") in said(request))


def question(request: Request, number: int) -> str:
    """A question like no other of this persona's: the topic is the task's and the number's."""
    topic = TOPICS[number + 5 * ("voice" in said(request))]
    return f"Why is there a {topic} at a funeral, {whom(request)}?"


def situations(request: Request) -> str:
    return json.dumps({"situations": ["a funeral", "a gym", "a laboratory"]})


def questions(request: Request, *numbers: int) -> str:
    return json.dumps({"questions": [question(request, number) for number in numbers]})


def examples(request: Request) -> str:
    return json.dumps({str(score): f"Well, {'truly ' * score}no." for score in range(1, 6)})


def author(request: Request) -> ScriptedReply:
    """One who always does as asked."""
    match kind(request):
        case "situations":
            return situations(request)
        case "questions":
            return questions(request, 0, 1, 2)
        case _:
            return examples(request)


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def keys(run: Path) -> list[CellKey]:
    return list(read_cells(run / "records.jsonl"))


# What is there at the end


def test_every_persona_gets_its_questions_in_order_and_every_question_its_examples(tmp_path: Path) -> None:
    model = ScriptedModel(author)
    result = written(model, config(tmp_path, examples=True))
    found = [PersonaGymQuestion(**line) for line in lines(tmp_path / "run/questions.jsonl")]
    assert [(one.persona_id, one.task) for one in found] == [
        (name, task) for name in ("clerk", "sailor") for task in TASKS for _ in "123"
    ]
    assert found[0].text == "Why is there a lantern at a funeral, clerk?"
    assert (found[0].persona, found[0].setting) == (TEXTS["clerk"], "a funeral")
    assert len({one.id for one in found}) == 12
    shown = [ScoreExample(**line) for line in lines(tmp_path / "run/examples.jsonl")]
    assert [(one.question_id, one.score) for one in shown] == [(one.id, score) for one in found for score in range(1, 6)]
    assert shown[2].text == "Well, truly truly truly no."
    # 2 personas; 2 × 2 tasks; 12 questions
    assert (result.situations.calls, result.questions.calls, result.examples.calls) == (2, 4, 12)
    assert (result.situations.kept, result.questions.kept, result.examples.kept) == (6, 12, 60)
    assert (result.pending, result.questions.rejected, len(model.requests)) == ((), {}, 18)
    assert read_json(tmp_path / "run/metrics.json") == result.model_dump(mode="json")
    assert result.completion_tokens == sum(cell.completion.completion_tokens or 0 for cell in _answered(tmp_path / "run"))


def _answered(run: Path) -> list[Any]:
    return list(read_cells(run / "records.jsonl").values())


def test_a_model_is_told_the_persona_the_task_the_situations_and_the_criteria(tmp_path: Path) -> None:
    model = ScriptedModel(author)
    (tmp_path / "own.txt").write_text("A funeral\n\na gym\na laboratory\nthe old mill\n")
    written(model, config(tmp_path, examples=True, settings=str(tmp_path / "own.txt"), tasks=["Expected Action"], n=1))
    first, _, asked, _, example, _ = model.requests
    assert "a careful clerk" in said(first)
    assert "- the old mill" in said(first)
    assert first.schema is not None
    listed = {"A funeral", "a gym", "a laboratory", "the old mill"}
    assert set(first.schema["properties"]["situations"]["items"]["enum"]) == listed
    assert "- a gym" in said(asked)
    assert "the old mill" not in said(asked)
    assert "exactly 1 question" in said(asked)
    assert question(asked, 0) in said(example)
    assert "and the character shows in how it is done.\n\nWrite five answers" in said(example)
    assert len({request.seed for request in model.requests}) == 6


def test_each_persona_is_shown_the_situations_in_an_order_of_its_own(tmp_path: Path) -> None:
    model = ScriptedModel(author)
    written(model, config(tmp_path))
    clerk, sailor = (re.findall(r"^- (.*)$", said(one), re.MULTILINE) for one in model.requests if kind(one) == "situations")
    assert sorted(clerk) == sorted(sailor) == sorted(builtin_situations())
    assert clerk != sailor


def test_ids_and_seeds_hang_on_content_alone(tmp_path: Path) -> None:
    runs = []
    for name, order in (("one", ["clerk", "sailor"]), ("two", ["sailor"])):
        folder = tmp_path / name
        folder.mkdir()
        pool = {"pool": str(write_pool(folder / "pool.toml", *order)), "split": "all"}
        written(ScriptedModel(author), config(folder, personas=pool))
        runs.append([line for line in lines(folder / "run/records.jsonl") if line["persona_id"] == "sailor"])
    assert runs[0] == runs[1]


# Replies that cannot be used, or not all of them


def test_what_is_missing_is_asked_for_again_with_what_is_there(tmp_path: Path) -> None:
    def one_by_one(request: Request) -> ScriptedReply:
        if kind(request) != "questions":
            return author(request)
        there = said(request).count("Why is there")
        return questions(request, there, 0)  # a new one and the first once more

    model = ScriptedModel(one_by_one)
    stage = config(tmp_path, tasks=["Expected Action"], attempts=1)
    result = written(model, stage)
    asked = [request for request in model.requests if kind(request) == "questions" and whom(request) == "clerk"]
    assert ["exactly 3" in said(asked[0]), "exactly 2" in said(asked[1]), "exactly 1" in said(asked[2])] == [True] * 3
    assert f"- {question(asked[0], 0)}\n- {question(asked[0], 1)}\n" in said(asked[2])
    # of each persona: 3 replies of two, of which the first brings the same one twice
    assert result.questions.model_dump() == {"calls": 6, "failed": 0, "kept": 6, "rejected": {"repeated": 6}}
    assert [key.sample for key in keys(stage.out) if key.persona_id == "clerk" and key.question_id == "Expected Action"] == [
        0,
        1,
        2,
    ]


def test_a_slot_that_gains_nothing_is_left_after_its_attempts_and_gone_on_with_by_the_next_start(tmp_path: Path) -> None:
    def refuses(request: Request) -> ScriptedReply:
        return "I am sorry." if kind(request) == "questions" and whom(request) == "clerk" else author(request)

    stage = config(tmp_path, tasks=["Expected Action"], attempts=2)
    result = written(ScriptedModel(refuses), stage)
    assert result.pending == ("'clerk' × Expected Action (0 of 3 questions)",)
    assert result.questions.rejected == {"no list in the reply": 2}
    assert {line["persona_id"] for line in lines(stage.out / "questions.jsonl")} == {"sailor"}
    model = ScriptedModel(author)
    assert written(model, stage).pending == ()
    assert [whom(request) for request in model.requests] == ["clerk"]
    assert keys(stage.out)[-1] == CellKey("clerk", "Expected Action", 2)
    assert len(lines(stage.out / "questions.jsonl")) == 6


def test_situations_add_up_over_calls_and_nobody_without_them_is_asked_for_questions(tmp_path: Path) -> None:
    def shy(request: Request) -> ScriptedReply:
        if kind(request) != "situations":
            return author(request)
        if whom(request) == "sailor":
            return '["a yacht"]'
        return '["a gym", "a funeral"]' if "chosen already" not in said(request) else '["a gym", "a laboratory"]'

    model = ScriptedModel(shy)
    result = written(model, config(tmp_path, attempts=2))
    assert result.pending == ("situations of 'sailor'",)
    assert result.situations.model_dump() == {
        "calls": 4,
        "failed": 0,
        "kept": 3,
        "rejected": {"not in the list": 2, "repeated": 1},
    }
    assert {whom(request) for request in model.requests if kind(request) == "questions"} == {"clerk"}


def test_a_failed_call_is_recorded_and_not_asked_again_before_the_next_start(tmp_path: Path) -> None:
    def breaks(request: Request) -> ScriptedReply:
        broken = kind(request) == "questions" and whom(request) == "clerk" and "voice" in said(request)
        return Failure(type="Status", message="HTTP 400: \x1b[2Jno", completion_tokens=7) if broken else author(request)

    stage = config(tmp_path)
    result = written(ScriptedModel(breaks), stage)
    assert (result.questions.calls, result.questions.failed) == (4, 1)
    assert result.pending == ("'clerk' × Linguistic Habits (0 of 3 questions)",)
    assert result.last_failure == "Status: HTTP 400: \\x1b[2Jno"
    then = written(ScriptedModel(author), stage)
    assert (then.questions.calls, then.questions.failed, then.pending) == (5, 1, ())
    assert then.completion_tokens > result.completion_tokens >= 7


@pytest.mark.parametrize("broken", [Failure(type="Status", message="HTTP 500"), "I am sorry."])
def test_a_question_that_was_kept_stays_when_an_earlier_task_is_gone_on_with(tmp_path: Path, broken: ScriptedReply) -> None:
    """The first task gets nothing in the first start. In the second it brings a question that the second task might have had."""

    def first_start(request: Request) -> ScriptedReply:
        if kind(request) == "questions" and "voice" not in said(request):
            return broken
        return questions(request, 4) if "there already" in said(request) else questions(request, 0, 1)

    def second_start(request: Request) -> ScriptedReply:
        if "voice" in said(request):
            return questions(request, 2)
        topics = ("vinegar", "lantern", "harbour")  # vinegar: the second task's question 4
        return json.dumps({"questions": [f"Why is there a {topic} at a funeral, clerk?" for topic in topics]})

    def start(reply: Callable[[Request], ScriptedReply]) -> tuple[str, ...]:
        return written(ScriptedModel(lambda one: reply(one) if kind(one) == "questions" else author(one)), stage).pending

    pool = write_pool(tmp_path / "one.toml", "clerk")
    stage = config(tmp_path, attempts=1, personas={"pool": str(pool), "split": "all"})
    assert start(first_start) == (
        "'clerk' × Expected Action (0 of 3 questions)",
        "'clerk' × Linguistic Habits (2 of 3 questions)",
    )
    assert start(second_start) == ()
    texts = [line["text"] for line in lines(stage.out / "questions.jsonl")]
    assert [text.split()[4] for text in texts] == ["vinegar", "lantern", "harbour", "carnival", "hedgehog", "submarine"]
    assert [key.sample for key in keys(stage.out) if key.question_id in TASKS] == [0, 0, 1, 1]


def test_examples_are_asked_for_again_until_there_are_five(tmp_path: Path) -> None:
    def careless(request: Request) -> ScriptedReply:
        first = sum(said(one) == said(request) for one in model.requests) == 1
        return '{"1": "No.", "2": "Yes' if kind(request) == "1" and first else author(request)

    model = ScriptedModel(careless)
    stage = config(tmp_path, examples=True, n=1, tasks=["Expected Action"])
    result = written(model, stage)
    assert result.examples.model_dump() == {"calls": 4, "failed": 0, "kept": 10, "rejected": {"not five answers": 2}}
    seeds = [request.seed for request in model.requests if kind(request) == "1"]
    assert len(set(seeds)) == 4


# Going on


def test_a_whole_run_asks_nothing_again_and_takes_examples_in_later(tmp_path: Path) -> None:
    written(ScriptedModel(author), config(tmp_path))
    assert not (tmp_path / "run/examples.jsonl").exists()
    for stage, calls in ((config(tmp_path), 0), (config(tmp_path, examples=True), 12), (config(tmp_path), 0)):
        model = ScriptedModel(author)
        assert written(model, stage).pending == ()
        assert len(model.requests) == calls


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"seed": 1}, "seed = 0, not 1"),
        ({"n": 4}, r"questions\.n = 3, not 4;"),
        ({"tasks": ["Toxicity Control"]}, "Toxicity Control"),
        ({"sampling": {"temperature": 0.0}}, "temperature"),
    ],
)
def test_a_run_is_not_gone_on_with_under_other_settings(tmp_path: Path, fields: dict[str, Any], words: str) -> None:
    written(ScriptedModel(author), config(tmp_path))
    before = (tmp_path / "run/questions.jsonl").read_text()
    with pytest.raises(ConfigError, match=words):
        written(ScriptedModel(author), config(tmp_path, **fields))
    assert (tmp_path / "run/questions.jsonl").read_text() == before


def test_a_run_of_written_questions_is_not_one_of_given_ones(tmp_path: Path) -> None:
    written(ScriptedModel(author), config(tmp_path))
    fields = {
        "personagym": {"path": str(tmp_path / "run/questions.jsonl")},
        "examples": True,
        "n": 10,
        "personas": {"split": "all"},
    }
    with pytest.raises(ConfigError, match="not 'given'"):
        written(ScriptedModel(author), config(tmp_path, **fields))


def test_what_was_written_is_read_as_given_with_the_same_ids(tmp_path: Path) -> None:
    written(ScriptedModel(author), config(tmp_path))
    path = tmp_path / "run/questions.jsonl"
    personas, found = read_personagym(PersonaGymConfig(path=path))
    assert [one.id for one in personas] == ["clerk", "sailor"]
    assert [one.model_dump() for one in found] == lines(path)


def test_a_persona_in_other_words_is_refused(tmp_path: Path) -> None:
    stage = config(tmp_path)
    written(ScriptedModel(author), stage)
    work = build_writing_job(stage)
    other = work.personas[0].model_copy(update={"text": "a careless clerk"})
    with pytest.raises(ConfigError, match="asked it with another prompt"):
        run_writing_job(ScriptedModel(author), stage, work._replace(personas=(other, work.personas[1])))


def hesitant(request: Request) -> ScriptedReply:
    """Gives two questions at first, and the third when shown what is there; what it says hangs on all it was told."""
    if kind(request) != "questions":
        return author(request)
    return questions(request, 2) if "there already" in said(request) else questions(request, 0, 1)


def _die_after(calls: int, stage: QuestionsConfig, work: WritingJob) -> None:
    def mortal(request: Request) -> ScriptedReply:
        if len(model.requests) > calls:
            os.kill(os.getpid(), signal.SIGKILL)
        return hesitant(request)

    model = ScriptedModel(mortal)
    run_writing_job(model, stage, work)


@pytest.mark.parametrize("calls", [1, 4, 7, 12])
def test_a_killed_run_asks_only_what_is_owed_and_ends_the_same(tmp_path: Path, calls: int) -> None:
    """2 situations, 4 × 2 calls for questions, 12 for examples = 22 calls."""
    whole = config(tmp_path, out=str(tmp_path / "whole"), examples=True)
    written(ScriptedModel(hesitant), whole)
    stage = config(tmp_path, examples=True)
    child = multiprocessing.get_context("fork").Process(target=_die_after, args=(calls, stage, build_writing_job(stage)))
    child.start()
    child.join(60)
    assert child.exitcode == -signal.SIGKILL
    with (stage.out / "records.jsonl").open("a") as torn:
        torn.write('{"persona_id": "cl')
    model = ScriptedModel(hesitant)
    assert written(model, stage).pending == ()
    assert len(model.requests) == 22 - calls
    for name in ("questions.jsonl", "examples.jsonl", "metrics.json"):
        assert (stage.out / name).read_bytes() == (whole.out / name).read_bytes()
    both = [sorted((one / "records.jsonl").read_text().splitlines()) for one in (stage.out, whole.out)]
    assert both[0] == both[1]


def test_an_interrupted_start_leaves_what_is_whole(tmp_path: Path) -> None:
    def interrupted(request: Request) -> ScriptedReply:
        if kind(request) == "questions" and whom(request) == "sailor":
            raise KeyboardInterrupt
        return author(request)

    stage = config(tmp_path)
    with pytest.raises(KeyboardInterrupt):
        written(ScriptedModel(interrupted), stage)
    assert len(lines(stage.out / "questions.jsonl")) == 6
    assert read_json(stage.out / "metrics.json")["questions"]["calls"] == 2


# Questions that are given


def test_of_given_questions_only_examples_are_written(tmp_path: Path) -> None:
    model = ScriptedModel(author)
    fields = {"personagym": {"path": given(tmp_path)}, "examples": True, "tasks": [], "n": 10, "personas": {"split": "all"}}
    result = written(model, config(tmp_path, **fields))
    assert [kind(request) for request in model.requests] == ["1", "1", "1"]
    assert not (tmp_path / "run/questions.jsonl").exists()
    found = [line["question_id"] for line in lines(tmp_path / "run/examples.jsonl")]
    assert found == ["q-one"] * 5 + ["q-too"] * 5 + ["q-two"] * 5
    assert (result.situations.calls, result.questions.kept, result.examples.kept) == (0, 0, 15)
    light = build_writing_job(config(tmp_path, **fields | {"personagym": {"path": given(tmp_path), "light": True}}))
    assert [one.id for one in light.given_questions] == ["q-one", "q-two"]
    assert [
        one.id for one in build_writing_job(config(tmp_path, **fields | {"tasks": ["Linguistic Habits"]})).given_questions
    ] == ["q-two"]


# What is found wrong beforehand


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"n": 0}, "n"),
        ({"n": 101}, "n"),
        ({"tasks": ["Manners"]}, "tasks"),
        ({"tasks": ["Expected Action", "Expected Action"]}, "names a task twice"),
        ({"personas": {"template": "adopt"}}, r"personas\.template = 'adopt': has no effect"),
        ({"personagym": {"light": True}}, "neither path nor hub"),
        ({"personagym": {"path": "x"}}, "give examples = true"),
        ({"personagym": {"path": "x"}, "examples": True}, r"personas = .*has no effect with personagym"),
        ({"personagym": {"path": "x"}, "examples": True, "personas": {"split": "all"}}, "n = 3: has no effect with personagym"),
        ({"personagym": {"path": "x", "tasks": ["Expected Action"]}, "examples": True}, "give one of the two"),
    ],
)
def test_settings_that_cannot_be_meant(tmp_path: Path, fields: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        config(tmp_path, **fields)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (None, "settings = .*own.txt: no such file; give a .txt file with one situation per line"),
        ("\n \n", "own.txt:1: the file contains no situation"),
        ("a gym\n\nThe gym.\n", r"own.txt:3: 'The gym.': repeats 'a gym'"),
        ("a gym\na \x1b[2Jbar\n", "own.txt:2: .*U\\+001B"),
        ("x" * 201, "201 characters; a situation has at most 200"),
    ],
)
def test_a_bad_file_of_situations_is_named(tmp_path: Path, text: str | None, words: str) -> None:
    if text is not None:
        (tmp_path / "own.txt").write_text(text)
    with pytest.raises((ConfigError, DataError), match=words):
        build_writing_job(config(tmp_path, settings=str(tmp_path / "own.txt")))


def test_a_check_counts_personas_questions_and_calls(tmp_path: Path) -> None:
    path = tmp_path / "config.toml"
    path.write_text(toml(values(tmp_path, examples=True, sampling={"max_new_tokens": 100})))
    facts = check_config(path)
    assert (facts["personas"], facts["questions"]) == ("2", "12, 3 for each persona and task (2 tasks)")
    assert (facts["examples"], facts["calls"][:10]) == ("12 × 5 answers", "18 or more")
    assert (facts["requests"], facts["new tokens"]) == ("2, then at most 16 more", "at most 1800")
    path.write_text(toml(values(tmp_path, settings=str(tmp_path / "none.txt"))))
    with pytest.raises(ConfigError, match=r"none\.txt: no such file"):
        check_config(path)


# The command line, over HTTP


def served(script: Callable[[Request, int], str | Action]) -> Callable[[dict[str, Any], int, Mapping[str, str]], str | Action]:
    """A script of requests, for a server."""

    def answer(body: dict[str, Any], nth: int, headers: Mapping[str, str]) -> str | Action:
        return script(Request(tuple(body["messages"]), body["seed"], SCHEMAS[_form(body)]), nth)

    return answer


SCHEMAS: dict[str, dict[str, Any]] = {name: {"properties": {name: {}}} for name in ("situations", "questions", "1")}


def _form(body: Mapping[str, Any]) -> str:
    """What is wanted, told from the end of the prompt: an endpoint may drop the schema."""
    last = body["messages"][-1]["content"].rpartition("Reply with JSON")[2]
    return next(name for name in SCHEMAS if f'"{name}"' in last)


def command(folder: Path, base_url: str, *more: str) -> list[str]:
    path = folder / "config.toml"
    path.write_text(toml(values(folder, model=endpoint(base_url, retries=1))))
    return ["questions", str(path), *more]


def test_over_http_with_every_fault_it_is_owed_then_whole(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The clerk's questions fail, the sailor's come wrapped, cut off, and after a busy moment."""

    def faulty(request: Request, nth: int) -> str | Action:
        if nth == 0:
            return error(429, retry_after="0")
        if kind(request) == "situations":
            return "Sure!\n```json\n" + situations(request) + "\n```"
        if whom(request) == "clerk":
            three = [question(request, one) for one in range(3)]
            return error(500) if "voice" in said(request) else str(three)
        return questions(request, 0, 1, 2)[:-30] if "there already" not in said(request) else questions(request, 2)

    with openai_server(served(faulty)) as server:
        assert cli.run_cli(command(tmp_path, server.base_url)) == 3
        shown = capsys.readouterr()
        assert (
            "still missing: 'clerk' × Linguistic Habits (0 of 3 questions); run the same command again to write them (1 × "
            in shown.err
        )
        assert "HTTP 500" in shown.err
        assert "questions: 9 kept, from 6 calls, 1 failed; rejected: none" in shown.err
        server.script = served(lambda request, nth: author_text(request))
        asked = len(server.asked)
        assert cli.run_cli(command(tmp_path, server.base_url)) == 0
        assert len(server.asked) == asked + 1
        assert capsys.readouterr().out == f"{tmp_path}/run/questions.jsonl\n"
    assert len(lines(tmp_path / "run/questions.jsonl")) == 12


def test_an_endpoint_that_stops_answering_is_asked_no_further(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The situations of four personas are written, and then nothing is; the next start goes on."""
    monkeypatch.setattr(OpenAIModel.__init__, "__kwdefaults__", {"backoff_s": 0.001})
    with openai_server(served(lambda request, nth: author_text(request) if nth < 4 else error(500, "no GPU"))) as server:
        pool = str(write_pool(tmp_path / "all.toml"))
        wanted = values(
            tmp_path, model=endpoint(server.base_url), personas={"pool": pool, "split": "all"}, tasks=[*TASKS, "Toxicity Control"]
        )
        (tmp_path / "config.toml").write_text(toml(wanted))
        assert cli.run_cli(["questions", str(tmp_path / "config.toml")]) == 3
        assert len(server.asked) == 4 + 8
        said = capsys.readouterr().err.splitlines()[-1]
        assert (
            f"; {server.base_url}: asked no more after 8 failures in a row; run the same command again to write them (8 × "
            in said
        )
        assert "HTTP 500: no GPU" in said
        server.script = served(lambda request, nth: author_text(request))
        cli.run_cli(["questions", str(tmp_path / "config.toml")])
        assert len(server.asked) >= 4 + 8 + 12
        assert (tmp_path / "run/questions.jsonl").read_text().count("\n") >= 4 * 2 * 3


def author_text(request: Request) -> str:
    reply = author(request)
    assert isinstance(reply, str)
    return reply


@pytest.mark.parametrize(
    "reply",
    [
        "I'm sorry, but I can't help with that.",
        '{"situations": "a funeral"}',
        "[1, 2, 3]",
        '{"situations": [null, {"a": 1}]}',
        "\u202e\x00[[[[",
        "null",
    ],
)
def test_over_http_replies_that_say_nothing_leave_all_owed(
    tmp_path: Path, reply: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with openai_server(lambda body, nth, headers: reply) as server:
        assert cli.run_cli(command(tmp_path, server.base_url)) == 3
        assert len(server.asked) == 2 * 3
    assert "still missing: situations of 'clerk', situations of 'sailor'; run the same command again" in capsys.readouterr().err
    assert (tmp_path / "run/questions.jsonl").read_text() == ""


def test_bad_input_is_exit_code_2_and_asks_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with openai_server(lambda body, nth, headers: "") as server:
        assert cli.run_cli(command(tmp_path, server.base_url, "--settings", "none.txt")) == 2
        assert server.asked == []
    assert "settings = none.txt: no such file" in capsys.readouterr().err

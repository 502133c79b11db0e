"""What "Try it" asks and what it shows of the answers: at a scripted endpoint, and of a small model on disk."""

import json
import os
import socket
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from permix.config import ModelConfig
from permix.dashboard import try_it as tries
from permix.dashboard.run_monitor import RunMonitor, read_locks
from permix.dashboard.try_it import (
    SAVED_FILE,
    AskedPrompt,
    TriedQuestion,
    _answer,
    _AskedModel,
    _error_line,
    _LoadedModel,
    attribute_answer,
    find_models,
    read_prompts,
)
from permix.errors import ConfigError, DataError
from permix.types import Completion, Message, Sampling
from tests.dashboard.fake_runs import append, line, put, stability_run
from tests.dashboard.try_folder import (
    KEY,
    asked,
    cells_with_prompts,
    encode,
    endpoint_run,
    fidelity_run,
    question,
    trained_run,
    trying,
    wait_for_answers,
)
from tests.sample_runs import answered, cell, endpoint
from tests.servers import Hang, Reply, error, listing, openai_server

pytestmark = pytest.mark.slow

SECRET = "sk-test-0123456789abcdef"


def monitor(run: Path, root: Path) -> RunMonitor:
    watched = RunMonitor(run, str(run.relative_to(root)), root)
    watched.poll(read_locks(), 0.0, 0.0)
    return watched


# What is listed


def test_trained_models_come_first_and_equal_models_are_one(tmp_path: Path, tiny_model: Path) -> None:
    trained_run(tmp_path / "taught", tiny_model)
    for name in ("a", "b"):
        endpoint_run(tmp_path / name, "http://127.0.0.1:9/v1", label=name)
    put(
        tmp_path / "b",
        "config.json",
        {"stage": "stability", "label": "b", "model": endpoint("http://127.0.0.1:9/v1", api_key_env=KEY, concurrency=3)},
    )
    stability_run(tmp_path / "of-taught", label="taught", model={"name": str(tmp_path / "taught" / "model")})
    with trying(tmp_path) as try_it:
        found = try_it.choices()["models"]
    assert [(one["name"], sorted(one["runs"])) for one in found] == [
        ("taught, trained", ["taught"]),
        ("test", ["a", "b"]),
        ("gone/base", ["taught"]),
    ]
    assert found[1]["origin"] == f"sends the question to http://127.0.0.1:9/v1, with the key in ${KEY} (not set)"


def test_settings_that_change_answers_make_another_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(KEY, SECRET)
    plain = endpoint("http://127.0.0.1:9/v1", api_key_env=KEY)
    for name, more in {"a": {}, "b": {"thinking": "off"}, "c": {"extra_body": '{"n_best": 2}'}}.items():
        stability_run(tmp_path / name, label=name, model=plain | more)
    with trying(tmp_path) as try_it:
        found = try_it.choices()["models"]
    assert {one["name"] for one in found} == {"test", "test, thinking off", 'test, {"n_best": 2}'}
    assert {one["origin"].rpartition(" ")[2] for one in found} == {"(set)"}
    assert SECRET not in json.dumps(found)


def test_what_cannot_be_asked_is_noted_with_its_reason(tmp_path: Path, tiny_model: Path) -> None:
    stability_run(tmp_path / "function", model={"name": "f", "backend": "python"})
    stability_run(tmp_path / "odd", model={"name": "f", "backend": "telnet\u202e"})
    stability_run(tmp_path / "secret", model=endpoint(f"http://me:{SECRET}@127.0.0.1/v1"))
    stability_run(tmp_path / "none", model={})
    (tmp_path / "none" / "config.json").write_text('{"stage": "stability"}')
    put(
        tmp_path / "linked",
        "config.json",
        {"stage": "train", "method": "rlvr", "plan": {"steps": 1}, "train": {"updates_per_rollout": 1}},
    )
    put(tmp_path / "linked", "provenance.json", {"format": 2})
    (tmp_path / "linked" / "model").symlink_to(tiny_model)
    with trying(tmp_path) as try_it:
        found = try_it.choices()
    assert found["models"] == []
    notes = "\n".join(found["notes"])
    assert "function: its model is a function of Python" in notes
    assert "odd: its model: backend" in notes
    assert "secret: its model: base_url holds credentials" in notes
    assert SECRET not in notes
    assert "\u202e" not in notes


def test_personas_and_questions_are_those_that_the_run_sent(tmp_path: Path) -> None:
    run = endpoint_run(tmp_path / "run", "http://127.0.0.1:9/v1")
    append(run, cell("in-question", persona_id="nurse"))  # its persona is in the user message
    # In a context the question is no bare one, and the persona is in the user's message by the user's own wish.
    append(run, cell("in-context", persona_id="nurse", context="user"))
    with (run / "records.jsonl").open("ab") as file:
        file.write(b'{"half": \n\xff\n[]\n')
    prompts = read_prompts(monitor(run, tmp_path))
    assert prompts.personas == {"clerk": "You are a careful clerk.", "sailor": "You are a retired sailor."}
    assert prompts.questions == {"sum-a": AskedPrompt("What is 7 + 5?", "12"), "sum-b": AskedPrompt("What is 9 + 3?", "12")}
    assert prompts.note == "its template puts the persona into the question, so its personas are not listed"


def test_a_part_of_long_records_is_read_and_links_out_are_not(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = tmp_path / "runs"
    run = endpoint_run(root / "run", "http://127.0.0.1:9/v1")
    watched = monitor(run, root)
    first = len(line(cells_with_prompts()[0]))
    monkeypatch.setattr(tries, "MAX_PROMPT_BYTES", first)
    prompts = read_prompts(watched)
    assert (list(prompts.questions), prompts.note) == (["sum-a"], "read from the first 0 MB of its records")
    (run / "records.jsonl").rename(tmp_path / "elsewhere")
    (run / "records.jsonl").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(DataError, match="leads out of the viewed folder"):
        read_prompts(watched)
    (run / "records.jsonl").unlink()
    assert read_prompts(watched).note == "it has no records yet"


def test_hostile_texts_of_a_run_are_cut_and_made_printable(tmp_path: Path) -> None:
    messages = (Message(role="system", content="be\u202e" + "x" * 10**6), Message(role="user", content="\x1b[31m"))
    run = stability_run(tmp_path / "run", [answered("q", persona_id="p\u200b", messages=messages)])
    shown = json.dumps(read_prompts(monitor(run, tmp_path)).to_json())
    assert r"be\\u202exxx" in shown
    assert r"\\x1b[31m" in shown
    assert r"p\\u200b" in shown
    assert len(shown) < 5000


# What is sent, and what comes back


def test_a_question_of_a_run_is_sent_as_the_run_sent_it_and_scored_by_its_task(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(KEY, SECRET)
    with openai_server(lambda body, nth, headers: "<think>7 + 5</think>The answer is 12.") as remote:
        endpoint_run(tmp_path / "run", remote.base_url)
        with trying(tmp_path) as try_it:
            (model,), (run,) = try_it.choices()["models"], try_it.choices()["runs"]
            fields = {"run": run["id"], "persona_kind": "run", "persona": "sailor", "question_kind": "run", "question": "sum-a"}
            found = asked(try_it, model["id"], **fields, max_new_tokens=33, seed=5)
        (sent,) = remote.asked
    assert sent.headers["Authorization"] == f"Bearer {SECRET}"
    assert sent.body["messages"] == [
        {"role": "system", "content": "You are a retired sailor."},
        {"role": "user", "content": "What is 7 + 5?"},
    ]
    assert (sent.body["max_tokens"], sent.body["seed"]) == (33, 5)
    (answer,) = found["answers"]
    del answer["seconds"]
    assert answer == {
        "id": model["id"], "name": "test", "address": remote.base_url, "text": "The answer is 12.",
        "thinking": "7 + 5", "cut_off": False,
        "unclosed": False, "prompt_tokens": 7, "completion_tokens": 3, "extracted": "12", "correct": True,
    }  # fmt: skip
    assert (found["gold"], found["error"], found["waiting"]) == ("12", "", [])
    assert not (tmp_path / SAVED_FILE).exists()


OWN_TEXTS: list[tuple[dict[str, str], str | None, tuple[bool, str] | None]] = [
    ({}, None, None),
    ({"gold": "12"}, None, (True, "12")),
    ({"gold": "13"}, None, (False, "12")),
    ({"gold": "twelve", "compare": "exact"}, None, (False, "I say 12.")),
    ({"persona_kind": "text", "persona": "A poet."}, "You are a poet.", None),
    ({"persona_kind": "text", "persona": "You are a poet"}, "You are a poet", None),
    ({"persona_kind": "system", "persona": "Speak in rhyme."}, "Speak in rhyme.", None),
]


def test_own_texts(tmp_path: Path) -> None:
    with openai_server(lambda body, nth, headers: "I say 12.") as remote:
        endpoint_run(tmp_path / "run", remote.base_url)
        with trying(tmp_path) as try_it:
            id = try_it.choices()["models"][0]["id"]
            answers = [asked(try_it, id, **fields)["answers"][0] for fields, _, _ in OWN_TEXTS]
        sent = [one.body["messages"] for one in remote.asked]
    for (fields, system, verdict), answer, messages in zip(OWN_TEXTS, answers, sent, strict=True):
        first = [] if system is None else [{"role": "system", "content": system}]
        assert messages == [*first, {"role": "user", "content": "What is 7 + 5?"}], fields
        found = (answer["correct"], answer["extracted"]) if "correct" in answer else None
        assert found == verdict, fields


def test_cut_off_answers_and_thinking_without_an_end_say_so(tmp_path: Path) -> None:
    replies = [Reply("long", finish="length"), Reply("<think>for ever", finish="length")]
    with openai_server(lambda body, nth, headers: replies[nth]) as remote:
        endpoint_run(tmp_path / "run", remote.base_url)
        with trying(tmp_path) as try_it:
            id = try_it.choices()["models"][0]["id"]
            found = [asked(try_it, id)["answers"][0] for _ in replies]
    assert [(one["text"], one["thinking"], one["cut_off"], one["unclosed"]) for one in found] == [
        ("long", "", True, False),
        ("", "for ever", True, True),
    ]


def test_a_trained_model_is_asked_in_a_process_that_ends_when_it_is_idle(
    tmp_path: Path, tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tries, "IDLE_ASK_S", 0.2)
    trained_run(tmp_path / "taught", tiny_model)
    with openai_server(lambda body, nth, headers: "12") as remote:
        endpoint_run(tmp_path / "run", remote.base_url)
        with trying(tmp_path) as try_it:
            taught, served = (one["id"] for one in try_it.choices()["models"][:2])
            found = asked(try_it, taught, served, gold="12", max_new_tokens=8)
            process = try_it._process
            assert process is None or process.pid != os.getpid()
            deadline = time.monotonic() + 20
            while try_it._process is not None:
                assert time.monotonic() < deadline
                time.sleep(0.05)
    assert [one["name"] for one in found["answers"]] == ["taught, trained", "test"]
    first, second = found["answers"]
    assert 0 < first["completion_tokens"] <= 8
    assert first["prompt_tokens"] > 5
    assert (first["correct"], second["correct"]) == (False, True)  # the tiny model knows one digit


def test_hostile_answers_are_cut_and_made_printable_and_hold_no_key(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(KEY, SECRET)
    text = f"<img src=x>\x1b[31m\u202e {SECRET} " + "y" * 10**6
    with openai_server(lambda body, nth, headers: text) as remote:
        endpoint_run(tmp_path / "run", remote.base_url)
        with trying(tmp_path) as try_it:
            (answer,) = asked(try_it, try_it.choices()["models"][0]["id"])["answers"]
    assert answer["text"].startswith(r"<img src=x>\x1b[31m\u202e [redacted] yyy")
    assert len(answer["text"]) == tries.MAX_OWN_CHARS


# What goes wrong is one line


def test_an_endpoint_that_is_down_or_refuses_is_one_line(tmp_path: Path) -> None:
    with openai_server(lambda body, nth, headers: error(401)) as remote:
        endpoint_run(tmp_path / "key", remote.base_url)
        remote.models = error(401)
        stability_run(tmp_path / "down", model=endpoint("http://127.0.0.1:9/v1"))
        stability_run(tmp_path / "folder", model={"name": "./no/such/folder"})
        with trying(tmp_path) as try_it:
            ids = {one["runs"][0]: one["id"] for one in try_it.choices()["models"]}
            found = asked(try_it, ids["base"], *[id for label, id in ids.items() if label != "base"])
            names = {one["name"]: one["error"] for one in found["answers"]}
            models = {choice.runs[0].name: id for id, choice in find_models(try_it.folder.monitors)[0].items()}
            lines = [asked(try_it, models[name])["answers"][0]["error"] for name in ("key", "down", "folder")]
    assert names
    assert f"the key in the environment variable {KEY} is missing: the variable is not set" in lines[0]
    assert "http://127.0.0.1:9/v1: no endpoint there: " in lines[1]
    assert lines[2] == "model.name = './no/such/folder': no such folder"
    assert all("\n" not in said for said in lines)


def test_a_hub_model_is_not_downloaded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.create_server(("127.0.0.1", 0)) as hub:
        monkeypatch.delenv("HF_HUB_OFFLINE")
        monkeypatch.setenv("HF_HOME", str(tmp_path / "cache"))
        monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{hub.getsockname()[1]}")
        stability_run(tmp_path / "runs" / "run", model={"name": "someone/something"})
        with trying(tmp_path / "runs") as try_it:
            (answer,) = asked(try_it, try_it.choices()["models"][0]["id"])["answers"]
        hub.settimeout(0.1)
        with pytest.raises(TimeoutError):
            hub.accept()  # nobody has called
    assert answer["error"] == (
        "model.name = 'someone/something': is neither a folder nor in this machine's cache of hub models, and nothing is "
        "downloaded from here"
    )


def test_without_torch_the_line_says_what_is_missing(monkeypatch: pytest.MonkeyPatch, tiny_model: Path) -> None:
    monkeypatch.setitem(__import__("sys").modules, "torch", None)
    sent = TriedQuestion((Message(role="user", content="?"),), "", "", None, None, Sampling(), 0)
    found = _answer(sent, _AskedModel(ModelConfig(name=str(tiny_model)), ()), _LoadedModel())
    assert list(found) == ["error"]
    assert "torch" in found["error"]
    missing = ModuleNotFoundError("No module named 'torch'", name="torch")
    assert _error_line(missing) == "needs the package torch, which is not installed; it is part of the extra permix[local]"
    assert _error_line(MemoryError("x\ny\x1b")) == r"MemoryError: x y\x1b"


class OddError(Exception):
    """Derives from Exception alone, as those of safetensors and Jinja do."""


class BrokenModel(_LoadedModel):
    def load(self, config: ModelConfig) -> Any:
        raise OddError("System role\nnot supported")


def test_an_error_of_any_kind_is_one_line_with_its_type() -> None:
    sent = TriedQuestion((Message(role="user", content="?"),), "", "", None, None, Sampling(), 0)
    found = _answer(sent, _AskedModel(ModelConfig(name="m"), ()), BrokenModel())
    assert found == {"error": "OddError: System role not supported"}


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_after_an_error_of_any_kind_the_next_question_is_asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(work: Any) -> Any:
        raise OddError

    with openai_server(lambda body, nth, headers: "12") as remote:
        endpoint_run(tmp_path / "run", remote.base_url)
        with trying(tmp_path) as try_it:
            id = try_it.choices()["models"][0]["id"]
            with monkeypatch.context() as patch:
                patch.setattr(tries, "start_process", broken)
                found = asked(try_it, id)
            again = asked(try_it, id)
    assert (found["answers"], found["error"]) == ([], "it failed here; the terminal of permix view shows why")
    assert (again["answers"][0]["text"], again["error"]) == ("12", "")


class Interrupted:
    """A lock; when it is let go for the first time, something else happens before its holder goes on."""

    def __init__(self, meanwhile: Callable[[], None]) -> None:
        self.lock, self.meanwhile = threading.Lock(), [meanwhile]

    def __enter__(self) -> None:
        self.lock.acquire()

    def __exit__(self, *_: object) -> None:
        self.lock.release()
        while self.meanwhile:
            self.meanwhile.pop()()


class Process:
    is_killed = False

    def kill(self) -> None:
        self.is_killed = True

    def join(self) -> None:
        pass


@pytest.mark.parametrize("is_busy", [False, True])
def test_an_idle_process_is_ended_and_never_that_of_a_question_which_begins_just_then(tmp_path: Path, is_busy: bool) -> None:
    idle, new = Process(), Process()

    def question_begins() -> None:
        try_it._number, try_it._busy, try_it._process = 2, True, new

    with trying(tmp_path) as try_it:
        try_it._number, try_it._busy, try_it._process = 1, is_busy, idle
        lock: Any = Interrupted(question_begins)
        try_it._lock = lock
        try_it._stop_if_idle()
        assert (idle.is_killed, new.is_killed) == (not is_busy, False)
        assert try_it._stopped != 2


def test_a_question_that_takes_too_long_is_ended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tries, "ASK_S", 4.0)
    with openai_server(lambda body, nth, headers: Hang(60)) as remote:
        endpoint_run(tmp_path / "run", remote.base_url)
        with trying(tmp_path) as try_it:
            found = asked(try_it, try_it.choices()["models"][0]["id"])
            assert try_it._process is None
    assert (found["answers"], found["error"]) == ([], "stopped: it took longer than 4 s")


def test_a_process_that_dies_is_said_and_the_next_question_starts_another(tmp_path: Path) -> None:
    replies: list[Any] = [Hang(60), "12"]
    with openai_server(lambda body, nth, headers: replies[nth]) as remote:
        endpoint_run(tmp_path / "run", remote.base_url)
        with trying(tmp_path) as try_it:
            id = try_it.choices()["models"][0]["id"]
            try_it.ask(encode(question(id)))
            deadline = time.monotonic() + tries.ASK_S
            while not remote.asked:
                assert time.monotonic() < deadline
                time.sleep(0.02)
            try_it._process.kill()
            found = wait_for_answers(try_it)
            again = asked(try_it, id)
    assert found["error"] == "the process that asks ended; perhaps the memory was not enough"
    assert (again["number"], again["answers"][0]["text"]) == (2, "12")


def test_programs_are_not_run_and_unknown_tasks_are_not_scored() -> None:
    def score(task: str) -> Any:
        sent = TriedQuestion((Message(role="user", content="?"),), "", "q", "12", task, Sampling(), 0)
        return tries._score(sent, Completion(text="12", prompt_tokens=1, completion_tokens=1, finish="stop"))

    assert score("code") == {"unscored": "not scored: answers of code are programs, and they are not run here"}
    assert score("nothing") == {"unscored": "not scored: the task 'nothing' is not one of permix's"}
    assert score("arithmetic") == {"extracted": "12", "correct": True}


# Saving


def test_answers_are_saved_only_when_asked_for_and_once(tmp_path: Path) -> None:
    with openai_server(lambda body, nth, headers: "<think>hm</think>12") as remote:
        endpoint_run(tmp_path / "run", remote.base_url)
        with trying(tmp_path) as try_it:
            id = try_it.choices()["models"][0]["id"]
            with pytest.raises(ConfigError, match="number: is not that of the last question"):
                try_it.save(0)
            for number in (1, 2):
                asked(try_it, id, gold="12")
                assert try_it.save(number) == try_it.save(number) == {"file": SAVED_FILE}
            assert try_it.answers()["saved"] is True
            with pytest.raises(ConfigError, match="number"):
                try_it.save(1)
    rows = [json.loads(row) for row in (tmp_path / SAVED_FILE).read_text().splitlines()]
    assert len(rows) == 2
    assert rows[0]["messages"] == [{"role": "user", "content": "What is 7 + 5?"}]
    (answer,) = rows[0]["answers"]
    assert (answer["text"], answer["thinking"], answer["correct"]) == ("12", "hm", True)
    assert answer["model"]["base_url"] == remote.base_url
    assert (rows[0]["sampling"]["max_new_tokens"], rows[0]["persona_id"]) == (256, None)


def test_a_file_of_saved_answers_that_is_a_link_is_not_written_through(tmp_path: Path) -> None:
    root, other = tmp_path / "runs", tmp_path / "other"
    other.write_text("mine\n")
    with openai_server(lambda body, nth, headers: "12") as remote:
        endpoint_run(root / "run", remote.base_url)
        (root / SAVED_FILE).symlink_to(other)
        with trying(root) as try_it:
            asked(try_it, try_it.choices()["models"][0]["id"])
            with pytest.raises(DataError, match=f"{SAVED_FILE}: is a link"):
                try_it.save(1)
            assert try_it.answers()["saved"] is False
    assert other.read_text() == "mine\n"


# Whose answer it is


def sent(persona: str, number: int = 0, topic: str = "morning") -> TriedQuestion:
    system = {"clerk": "You are a careful clerk.", "sailor": "You are a retired sailor."}[persona]
    messages = (Message(role="system", content=system), Message(role="user", content=f"What do you think of {topic}?"))
    return TriedQuestion(messages, persona, f"open-{number}", None, None, Sampling(), 0)


def test_the_persona_is_named_from_answers_to_other_questions(tmp_path: Path) -> None:
    run = fidelity_run(tmp_path / "fidelity", "http://127.0.0.1:9/v1")
    answers = {"clerk": "Kindly fill in the form, please.", "sailor": "Arr! The wind be high."}
    for persona, text in answers.items():
        found = attribute_answer(run, sent(persona), text)
        assert found == (persona, True, 2, 22)  # twelve questions less the one that is asked, of two personas
    mistaken = attribute_answer(run, sent("clerk"), answers["sailor"])
    assert mistaken == ("sailor", False, 2, 22)


def test_an_answer_to_what_the_run_did_not_ask_is_attributed_to_nobody(tmp_path: Path) -> None:
    run = fidelity_run(tmp_path / "fidelity", "http://127.0.0.1:9/v1")
    assert attribute_answer(run, sent("clerk", 0, "rain"), "x") is None
    lines = (run / "records.jsonl").read_bytes().splitlines(keepends=True)
    (run / "records.jsonl").write_bytes(b"".join(lines[:10] + lines[12:22]))  # ten answers of each, with the question's own
    with pytest.raises(DataError, match="10 answers of each to other questions; fidelity has fewer"):
        attribute_answer(run, sent("clerk"), "x")


def test_the_page_is_told_the_persona_where_a_run_of_this_model_asked_the_same(tmp_path: Path) -> None:
    with openai_server(lambda body, nth, headers: "Arr! The wind be fair, arr!", listing("test", "another")) as remote:
        fidelity_run(tmp_path / "fidelity", remote.base_url)
        stability_run(tmp_path / "other", label="other", model=endpoint(remote.base_url, name="another"))
        with trying(tmp_path) as try_it:
            models = {one["name"]: one["id"] for one in try_it.choices()["models"]}
            run = next(one for one in try_it.choices()["runs"] if one["stage"].startswith("fidelity"))
            fields = {"run": run["id"], "persona_kind": "run", "persona": "sailor", "question_kind": "run", "question": "open-0"}
            (answer,) = asked(try_it, models["test"], **fields)["answers"]
            other = asked(try_it, models["another"], **fields)["answers"][0]  # it has no fidelity run
            own = asked(try_it, models["test"], **fields | {"question_kind": "own", "question": "And?"})["answers"][0]
            nobody = asked(try_it, models["test"], **fields | {"persona_kind": "none"})["answers"][0]
    assert answer["attributed"] == {"named": "sailor", "right": True, "n_personas": 2, "n_answers": 22}
    assert "attributed" not in own
    assert own["not_attributed"] == "no open-ended fidelity run of this model asked this persona this question"
    assert not {"attributed", "not_attributed"} & {*nobody, *other}

"""A model at several addresses: who gets which request, and what becomes of the requests of one that dies."""

import json
import threading
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from permix import cli
from permix.cli import commands
from permix.config import JudgeModelConfig, ModelConfig, StabilityConfig
from permix.errors import ConfigError, EndpointStoppedError
from permix.inference import spreading
from permix.inference.openai_endpoint import Endpoint, Outcome, WastedTokens
from permix.inference.spreading import home_order, prompt_key
from permix.types import Completion, Failure, Message, Request, Sampling
from tests.inference.test_early_stop import ask, count, max_asked, number
from tests.inference.test_endpoint_habits import without_temperature
from tests.inference.test_openai import KEY, KEY_ENV, model_at, questions
from tests.sample_runs import asked_what, solve, stability_values, toml
from tests.servers import Action, Drop, OpenAIServer, Raw, Reply, Script, error, listing, openai_server

GATE_S = 30.0
"""How long a server waits for what a test is about; only a test that fails waits as long."""


@pytest.fixture(autouse=True)
def _environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(KEY_ENV, KEY)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")


def fine(body: Mapping[str, Any], nth: int, headers: Mapping[str, str]) -> str:
    return "fine"


def asked_as(persona: str, question: str) -> Request:
    return Request((Message(role="system", content=persona), Message(role="user", content=question)), seed=0)


def homed_at(server: OpenAIServer, servers: list[OpenAIServer], n: int) -> list[str]:
    """n personas whose home is this server."""
    addresses = [one.base_url for one in servers]
    found: list[str] = []
    for nth in range(1000):
        if addresses[home_order(f"persona {nth}", addresses)[0]] == server.base_url:
            found.append(f"persona {nth}")
    return found[:n]


def users(server: OpenAIServer) -> list[str]:
    return [one.user for one in server.asked]


class Notes:
    """What was printed about addresses, and an event for a text in it."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.lines: list[str] = []
        self._events: dict[str, threading.Event] = {}
        monkeypatch.setattr(spreading, "print_status", self._add)

    def _add(self, line: str) -> None:
        self.lines.append(line)
        for text, event in self._events.items():
            if text in line:
                event.set()

    def event(self, text: str) -> threading.Event:
        return self._events.setdefault(text, threading.Event())


# Where a request goes


def test_the_key_is_what_the_requests_of_a_persona_share() -> None:
    assert prompt_key(asked_as("You are a cook.", "1+1")) == "You are a cook."
    in_question = Request((Message(role="user", content="You are a cook.\n\n1+1\n\n2"),), seed=0)
    assert prompt_key(in_question) == "You are a cook."
    assert prompt_key(questions(1)[0]) == "q0"


def test_only_the_requests_of_an_address_that_goes_move() -> None:
    addresses = [f"http://h{nth}/v1" for nth in range(4)]
    homes = Counter(home_order(f"persona {nth}", addresses)[0] for nth in range(400))
    assert sorted(homes) == [0, 1, 2, 3]
    assert all(70 <= n <= 130 for n in homes.values())
    for nth in range(400):
        order = home_order(f"persona {nth}", addresses)
        without_last = home_order(f"persona {nth}", addresses[:3])
        assert without_last == [place for place in order if place != 3]


def test_the_requests_of_a_persona_go_to_one_server() -> None:
    """So many that all are in flight at once: none is taken by another address."""
    with openai_server(fine) as one, openai_server(fine) as two, openai_server(fine) as three:
        servers = [one, two, three]
        personas = {server.base_url: homed_at(server, servers, 2) for server in servers}
        names = [name for found in zip(*personas.values(), strict=True) for name in found]
        requests = [asked_as(name, f"{name}, {nth}") for nth in range(3) for name in names]
        model = model_at(tuple(personas), concurrency=6)
        assert count(ask(model, requests)[0]) == (18, 0)
        for server in servers:
            expected = [f"{name}, {nth}" for name in personas[server.base_url] for nth in range(3)]
            assert sorted(users(server)) == sorted(expected)


def test_an_address_with_nothing_left_takes_the_last_of_the_longest_queue() -> None:
    """One address is slow: it answers its first request when the other has answered the rest."""
    others_done = threading.Event()

    def slow(body: Mapping[str, Any], nth: int, headers: Mapping[str, str]) -> str:
        assert others_done.wait(GATE_S)
        return "fine"

    def fast(body: Mapping[str, Any], nth: int, headers: Mapping[str, str]) -> str:
        if nth == 6:
            others_done.set()
        return "fine"

    with openai_server(slow) as home, openai_server(fast) as other:
        (persona,) = homed_at(home, [home, other], 1)
        requests = [asked_as(persona, f"q{nth}") for nth in range(8)]
        model = model_at((home.base_url, other.base_url), concurrency=1, timeout_s=GATE_S)
        assert count(ask(model, requests)[0]) == (8, 0)
        assert users(home) == ["q0"]
        assert users(other) == ["q7", "q6", "q5", "q4", "q3", "q2", "q1"]


# Addresses that die


def until(event: threading.Event, *, first: int = 10**9) -> Script:
    """A server that answers its first requests, and the others when something has happened."""

    def script(body: Mapping[str, Any], nth: int, headers: Mapping[str, str]) -> str:
        assert nth < first or event.wait(GATE_S)
        return "fine"

    return script


@pytest.mark.parametrize(
    ("trouble", "words", "n_attempts"),
    [
        (Drop(), "Connection error", 2),
        (error(500, "out of memory"), "HTTP 500: out of memory", 3),
        (error(429, "slow down"), "HTTP 429: slow down", 3),
        (error(401, "key revoked"), "HTTP 401: key revoked", 1),
    ],
    ids=lambda value: str(value)[:20],
)
def test_the_requests_of_an_address_that_dies_are_answered_by_the_others(
    trouble: Action, words: str, n_attempts: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    notes = Notes(monkeypatch)
    left_out = notes.event("goes on at")
    with (
        openai_server(lambda body, nth, headers: "fine" if nth < 5 else trouble) as mortal,
        openai_server(until(left_out, first=0)) as second,
        openai_server(until(left_out, first=0)) as third,
    ):
        servers = [mortal, second, third]
        requests = [asked_as(name, f"q{nth}") for server in servers for name in homed_at(server, servers, 10) for nth in range(4)]
        model = model_at(tuple(one.base_url for one in servers), concurrency=3, retries=2, timeout_s=GATE_S)
        results, stop = ask(model, requests)
        assert (count(results), stop) == ((120, 0), None)
        assert len(notes.lines) == 1, "said once"
        assert notes.lines[0].startswith(f"note: {mortal.base_url}: asked no more after 8 failures in a row: ")
        assert words in notes.lines[0]
        assert notes.lines[0].endswith(f"; the run goes on at {second.base_url}, {third.base_url}")
        assert len(mortal.asked) <= max_asked(5, 3, n_attempts)
        # The next call does without it, until a while has passed.
        n = len(mortal.asked)
        assert count(ask(model, requests)[0]) == (120, 0)
        assert len(mortal.asked) == n


def test_an_address_that_refuses_all_from_the_start_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    """By one model list both have the model, but one does not serve it: no reason to end a run that the other can answer."""
    notes = Notes(monkeypatch)
    left_out = notes.event("goes on at")
    with (
        openai_server(lambda *_: error(404, "no such model")) as wrong,
        openai_server(until(left_out, first=0)) as right,
    ):
        servers = [wrong, right]
        requests = [asked_as(name, "q") for server in servers for name in homed_at(server, servers, 20)]
        model = model_at((wrong.base_url, right.base_url), concurrency=2, timeout_s=GATE_S)
        results, stop = ask(model, requests)
        assert (count(results), stop) == ((40, 0), None)
        assert len(wrong.asked) <= 8 + 2
        assert [line.partition(":")[0] for line in notes.lines] == ["note"]
        assert "'test': not served at" in notes.lines[0]


def test_a_request_opened_just_before_its_address_is_left_out_is_not_lost(monkeypatch: pytest.MonkeyPatch) -> None:
    """The first request fails before the second one, which was opened in the same step of the loop, has begun."""

    async def complete(self: Endpoint, *_: Any, **__: Any) -> Outcome:
        if self.base_url == wrong.base_url:
            raise EndpointStoppedError("asked no more", "HTTP 404")
        return Outcome(Completion(text="fine", prompt_tokens=None, completion_tokens=None, finish="stop"))

    with openai_server(fine) as wrong, openai_server(fine) as right:
        monkeypatch.setattr(Endpoint, "complete", complete)
        model = model_at((wrong.base_url, right.base_url), concurrency=8)
        requests = [asked_as(name, "q") for name in homed_at(wrong, [wrong, right], 20)]
        found: list[int] = []
        asking = threading.Thread(target=lambda: found.append(sum(1 for _ in model.generate(requests, Sampling()))), daemon=True)
        asking.start()
        asking.join(GATE_S)
        assert found == [20]


def test_a_run_ends_when_all_addresses_are_dead(capsys: pytest.CaptureFixture[str]) -> None:
    mortal: Script = lambda body, nth, headers: "fine" if nth < 10 else error(500, "gone")  # noqa: E731
    with openai_server(mortal) as one, openai_server(mortal) as two:
        results, stop = ask(model_at((one.base_url, two.base_url), concurrency=2, retries=1), questions(300))
        assert isinstance(stop, EndpointStoppedError)
        assert "asked no more after 8 failures in a row, the last of 2 addresses: HTTP 500: gone" in str(stop)
        assert count(results)[0] == 20
        assert len(one.asked) + len(two.asked) <= 2 * max_asked(10, 2, 2) + 8
    assert capsys.readouterr().err.count("the run goes on at") == 1


def test_an_address_comes_back(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(spreading, "PROBE_PAUSE_S", 0.02)
    notes = Notes(monkeypatch)
    left_out, is_back = notes.event("goes on at"), notes.event("answers again")

    def ill(body: Mapping[str, Any], nth: int, headers: Mapping[str, str]) -> Action:
        return Reply("fine") if nth < 5 or left_out.is_set() else error(500)

    with openai_server(ill) as one, openai_server(until(is_back, first=0)) as two:
        servers = [one, two]
        requests = [asked_as(name, f"q{nth}") for server in servers for name in homed_at(server, servers, 10) for nth in range(4)]
        model = model_at((one.base_url, two.base_url), concurrency=2, retries=1, timeout_s=GATE_S)
        results, stop = ask(model, requests)
        assert (count(results), stop) == ((80, 0), None)
        assert notes.lines[1:] == [f"note: {one.base_url}: answers again"]


def test_a_request_that_fails_everywhere_is_one_failure_and_was_asked_once_at_each() -> None:
    def poisoned(body: Mapping[str, Any], nth: int, headers: Mapping[str, str]) -> str | Action:
        return error(500, "this one crashes me") if number(body) == 3 else "fine"

    with openai_server(poisoned) as one, openai_server(poisoned) as two, openai_server(poisoned) as three:
        servers = [one, two, three]
        model = model_at(tuple(server.base_url for server in servers), concurrency=2, retries=0)
        results, stop = ask(model, questions(60))
        assert (count(results), stop) == ((59, 1), None)
        assert isinstance(results[3], Failure)
        assert [users(server).count("q3") for server in servers] == [1, 1, 1]


def test_a_refusal_of_one_prompt_is_not_asked_again_elsewhere() -> None:
    too_long = error(400, "This model's maximum context length is 64 tokens.")
    script: Script = lambda body, nth, headers: too_long if number(body) == 3 else "fine"  # noqa: E731
    with openai_server(script) as one, openai_server(script) as two:
        results, _ = ask(model_at((one.base_url, two.base_url)), questions(20))
        assert isinstance(results[3], Failure)
        assert (users(one) + users(two)).count("q3") == 1


def test_tokens_of_malformed_replies_are_counted_at_all_addresses() -> None:
    empty = json.dumps({"choices": [], "usage": {"prompt_tokens": 5, "completion_tokens": 2}}).encode()
    with openai_server(lambda *_: Raw(empty)) as one, openai_server(fine) as two:
        (persona,) = homed_at(one, [one, two], 1)
        results, _ = ask(model_at((one.base_url, two.base_url), concurrency=1, retries=1), [asked_as(persona, "q")])
        # Two malformed replies at the home, if the other address did not take the request; then one answer.
        n_wasted = len(one.asked)
        assert results[0] == Completion(
            text="fine", prompt_tokens=7 + 5 * n_wasted, completion_tokens=3 + 2 * n_wasted, finish="stop"
        )
        assert n_wasted == 2


def test_wasted_tokens_are_added_to_a_count_of_0_and_not_to_an_unknown_one() -> None:
    wasted = WastedTokens()
    wasted.add_reply(b'{"usage": {"prompt_tokens": 5, "completion_tokens": 2}}')
    empty = Completion(text="", prompt_tokens=7, completion_tokens=0, finish="length")
    assert wasted.add_to_completion(empty) == empty.model_copy(update={"prompt_tokens": 12, "completion_tokens": 2})
    unknown = empty.model_copy(update={"prompt_tokens": None})
    assert wasted.add_to_completion(unknown) == unknown


def test_a_caller_may_stop_and_ask_again() -> None:
    with openai_server(fine) as one, openai_server(fine) as two:
        model = model_at((one.base_url, two.base_url), concurrency=2)
        answers = model.generate(questions(100), Sampling())
        next(answers)
        answers.close()  # type: ignore[attr-defined]
        assert count(ask(model, questions(50))[0]) == (50, 0)


# What the addresses serve


@pytest.mark.parametrize(
    ("theirs", "words"),
    [
        (listing("other"), r"{0} serves 'test', and {1} does not \(served: other\); give addresses that serve the same model"),
        (
            listing("test", root="/w/b"),
            r"{0} and {1} serve other weights under the name 'test': root = '/w/a', and root = '/w/b'; give addresses that serve "
            r"the same model, or confirm with --model.same-weights that the weights are the same",
        ),
        (
            listing("test", root="/w/b", meta={"size": 11}),
            r"{0} and {1} serve other weights under the name 'test': root = '/w/a', size = 10, and root = '/w/b', size = 11; "
            r"give addresses that serve the same model$",
        ),
    ],
)
def test_addresses_that_serve_other_models_are_refused(theirs: Action, words: str) -> None:
    ours = listing("test", root="/w/a", meta={"size": 10})
    with openai_server(fine, models=ours) as one, openai_server(fine, models=theirs) as two:
        expected = words.format(one.base_url.replace(".", r"\."), two.base_url.replace(".", r"\."))
        for attempt in (lambda model: model.fingerprint, lambda model: list(model.generate(questions(1), Sampling()))):
            with pytest.raises(ConfigError, match=f"^model.base_url: {expected}"):
                attempt(model_at((one.base_url, two.base_url)))
        assert one.asked == two.asked == []


def test_names_of_weights_may_differ_if_the_user_says_so_and_sizes_may_not() -> None:
    for size, is_refused in ((10, False), (11, True)):
        with (
            openai_server(fine, models=listing("test", root="/w/a", meta={"size": 10})) as one,
            openai_server(fine, models=listing("test", root="/w/b", meta={"size": size})) as two,
        ):
            model = model_at((one.base_url, two.base_url), same_weights=True)
            if is_refused:
                with pytest.raises(ConfigError, match="serve other weights"):
                    model.check_endpoint()
            else:
                model.check_endpoint()


def test_the_fingerprint_is_that_of_one_address() -> None:
    models = listing("test", root="/w/a")
    with openai_server(fine, models=models) as one, openai_server(fine, models=models) as two:
        both = model_at((one.base_url, two.base_url))
        assert both.fingerprint == model_at(two.base_url).fingerprint
        assert list(both.server_statements().values()) == [{"root": "/w/a"}] * 2


def test_an_address_that_is_not_there_is_left_out_and_said(capsys: pytest.CaptureFixture[str]) -> None:
    with openai_server(fine) as gone:
        pass
    with openai_server(fine) as one:
        model = model_at((gone.base_url, one.base_url))
        for _ in range(2):
            assert count(ask(model, questions(20))[0]) == (20, 0)
        assert list(model.server_statements()) == [one.base_url.removeprefix("http://")]
        said = capsys.readouterr().err
    assert said.count("note: ") == 1
    assert f"note: model.base_url = {gone.base_url}: no endpoint there" in said
    with pytest.raises(ConfigError, match=f"model.base_url = {gone.base_url}: no endpoint there"):
        model_at((gone.base_url, f"{gone.base_url}/v2")).check_endpoint()


def test_a_refused_field_is_found_out_at_each_address(tmp_path: Path) -> None:
    def picky(body: dict[str, Any], nth: int, headers: Mapping[str, str]) -> Action:
        refused = without_temperature(body, nth, headers)
        return Reply(str(solve(asked_what(body)))) if isinstance(refused, Reply) else refused

    with openai_server(picky) as one, openai_server(lambda body, *_: str(solve(asked_what(body)))) as two:
        values = stability_values(tmp_path, one.base_url)
        values["model"] |= {"base_url": [one.base_url, two.base_url], "concurrency": 1}
        (tmp_path / "run.toml").write_text(toml(values))
        assert cli.run_cli(["stability", str(tmp_path / "run.toml"), "--model.same-weights"]) == 0
        found = json.loads((tmp_path / "run" / "endpoint.json").read_text())
        assert {address: set(changes) for address, changes in found.items()} == {f"test at {one.base_url}": {"temperature"}}
        assert min(len(one.asked), len(two.asked)) > 0
        recorded = json.loads((tmp_path / "run" / "config.json").read_text())["model"]["base_url"]
        assert recorded == [one.base_url, two.base_url]
        records = tmp_path / "run" / "records.jsonl"
        records.write_text("\n".join(records.read_text().splitlines()[:-2]) + "\n")
        n_before = len(one.asked), len(two.asked)
        # The run goes on at one of them, which is known, without another confirmation.
        assert cli.run_cli(["stability", str(tmp_path / "run.toml"), "--model.base-url", two.base_url]) == 0
        assert (len(one.asked), len(two.asked)) == (n_before[0], n_before[1] + 2)


# The configuration


def config_with(base_url: Any) -> ModelConfig:
    return ModelConfig(name="m", backend="openai", base_url=base_url)


@pytest.mark.parametrize(
    ("base_url", "words"),
    [
        (("http://h/v1", "http://h/v1/"), "base_url: http://h/v1 is given twice; give it once"),
        (("http://h/v1", "HTTP://H:80/v1"), "base_url: HTTP://H:80/v1 is given twice, as http://h/v1 as well; give it once"),
        (("http://h/v1", ""), "base_url.1 = '': is empty"),
        ((), "base_url = []: names no address"),
        (("http://h/v1", "http://u:hunter2@g/v1"), "base_url holds credentials"),
        (("http://h/v1", "http://g/v1?key=hunter2"), "base_url holds credentials"),
    ],
)
def test_addresses_that_cannot_be_are_refused(base_url: Any, words: str) -> None:
    with pytest.raises(ValueError, match="base_url") as caught:
        config_with(base_url)
    assert words in str(caught.value)
    assert "hunter2" not in str(caught.value)


def test_one_address_or_several() -> None:
    assert config_with("http://h/v1").base_urls == ("http://h/v1",)
    assert config_with(["http://h/v1", "http://g/v1"]).base_urls == ("http://h/v1", "http://g/v1")
    assert ModelConfig().base_urls == ()
    assert JudgeModelConfig(name="j", base_url=("http://h/v1", "http://g/v1")).base_urls == ("http://h/v1", "http://g/v1")
    flags = ["--model.name", "m", "--model.base-url", "http://h/v1"]
    assert commands.parse_config("stability", StabilityConfig, flags).model.base_url == "http://h/v1"
    both = commands.parse_config("stability", StabilityConfig, [*flags, "http://g/v1"]).model
    assert (both.backend, both.base_url) == ("openai", ("http://h/v1", "http://g/v1"))

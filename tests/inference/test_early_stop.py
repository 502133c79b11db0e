"""An endpoint that stops answering is asked no further; failures of single requests never stop a run."""

import json
from collections.abc import Mapping
from typing import Any

import pytest

from permix.errors import ConfigError, EndpointStoppedError
from permix.inference.openai import OpenAIModel
from permix.inference.openai_endpoint import MAX_REFUSED_PROMPTS
from permix.inference.pacing import FIRST_LIMIT, MAX_FAILURES_IN_A_ROW
from permix.types import Completion, Failure, Request, Sampling
from tests.inference.test_openai import model_at, questions
from tests.servers import Action, Drop, OpenAIServer, Raw, Reply, error, openai_server

HTML = Raw(b"<!DOCTYPE html><html><body>Sign in</body></html>", headers={"Content-Type": "text/html"})
SPENT = Raw(
    json.dumps(
        {"error": {"message": "You exceeded your current quota, please check your plan.", "code": "insufficient_quota"}}
    ).encode(),
    429,
)
TOO_LONG = error(400, "This model's maximum context length is 64 tokens.")
FILTERED = error(400, "The prompt was stopped by our content filter.")


def ask(model: OpenAIModel, requests: list[Request]) -> tuple[dict[int, Completion | Failure], Exception | None]:
    """The results by request, and what `generate` raised at its end."""
    results: dict[int, Completion | Failure] = {}
    try:
        for index, result in model.generate(requests, Sampling()):
            assert index not in results
            results[index] = result
    except (ConfigError, EndpointStoppedError) as stop:
        return results, stop
    return results, None


def count(results: dict[int, Completion | Failure]) -> tuple[int, int]:
    """(answers, failures)."""
    n_failures = sum(isinstance(one, Failure) for one in results.values())
    return len(results) - n_failures, n_failures


def number(body: Mapping[str, Any]) -> int:
    """The 7 of "q7"."""
    return int(body["messages"][-1]["content"][1:])


def max_asked(n_answers: int, in_flight: int, n_attempts: int) -> int:
    """The most requests to an endpoint that answers `n_answers` and then none.

    The requests in flight at the first failure get all their attempts, and each probe is sent once. An answer that is read after
    that failure begins the streak anew, and the requests in flight then get theirs too. At most in_flight − 1 answers are
    read so late, and each takes the place of a request that fails: 1 + 2 + … + in_flight requests.
    """
    return n_answers + in_flight * (in_flight + 1) // 2 * n_attempts + MAX_FAILURES_IN_A_ROW


def max_failures(in_flight: int) -> int:
    """The most failures that are reported. Those in flight with the first of a streak do not count; see `max_asked`."""
    return MAX_FAILURES_IN_A_ROW + (in_flight - 1) * (in_flight + 2) // 2


# The endpoint stops


@pytest.mark.parametrize("concurrency", [1, 4])
@pytest.mark.parametrize(
    ("trouble", "words", "retried"),
    [
        (Drop(), "Connection error", True),
        (error(500, "out of memory"), "HTTP 500: out of memory", True),
        (error(429, "slow down"), "HTTP 429: slow down", True),
        (HTML, "the reply was <!DOCTYPE html>", True),
        (SPENT, "HTTP 429: You exceeded your current quota", False),
        (error(401, "key revoked"), "HTTP 401: key revoked", False),
        (error(402, "pay"), "HTTP 402: pay", False),
        (error(404, "model unloaded"), "HTTP 404: model unloaded", False),
    ],
    ids=lambda value: str(value)[:30],
)
def test_an_endpoint_that_fails_after_ten_answers_is_asked_no_further(
    trouble: Action, words: str, retried: bool, concurrency: int
) -> None:
    with openai_server(lambda body, nth, headers: "fine" if nth < 10 else trouble) as server:
        results, stop = ask(model_at(server.base_url, concurrency=concurrency, retries=2), questions(500))
    assert isinstance(stop, EndpointStoppedError)
    assert str(stop).startswith(f"{server.base_url}: asked no more after 8 failures in a row: ")
    assert words in str(stop)
    n_answers, n_failures = count(results)
    assert n_answers == 10
    assert MAX_FAILURES_IN_A_ROW <= n_failures <= max_failures(concurrency)
    assert len(server.asked) <= max_asked(10, concurrency, 3 if retried else 1)
    if concurrency == 1:
        assert len(server.asked) == 10 + (3 if retried else 1) + MAX_FAILURES_IN_A_ROW - 1


def test_the_number_of_requests_to_a_dead_endpoint_is_bounded_by_the_number_in_flight() -> None:
    """Without a number in the configuration it begins with 16, and 20 answers are too few for more."""
    with openai_server(lambda body, nth, headers: "fine" if nth < 20 else error(500)) as server:
        results, stop = ask(model_at(server.base_url, concurrency=None, retries=2), questions(500))
    assert isinstance(stop, EndpointStoppedError)
    assert count(results)[0] == 20
    assert FIRST_LIMIT == 16
    assert len(server.asked) <= max_asked(20, 16, 3)


def test_an_overloaded_endpoint_gets_fewer_and_is_asked_no_further_when_it_dies() -> None:
    """More requests are open than may be sent at the same time, and all wait for their next attempt."""
    with openai_server(lambda body, nth, headers: "fine" if nth < 10 else error(503)) as server:
        results, stop = ask(model_at(server.base_url, concurrency=16, retries=2), questions(500))
    assert isinstance(stop, EndpointStoppedError)
    assert count(results)[0] == 10
    assert len(server.asked) <= max_asked(10, 16, 3)


def test_a_server_that_takes_4_at_a_time_answers_everything(capsys: pytest.CaptureFixture[str]) -> None:
    servers: list[OpenAIServer] = []

    def four(body: Mapping[str, Any], nth: int, headers: Mapping[str, str]) -> Action:
        return Reply("fine", after_s=0.01) if servers[0]._in_flight <= 4 else error(429, "too many at a time")

    with openai_server(four) as server:
        servers.append(server)
        model = model_at(server.base_url, concurrency=32, retries=8)
        results, stop = ask(model, questions(120))
        assert (count(results), stop) == ((120, 0), None)
        assert model.endpoints[0].limit.current <= 8
    said = capsys.readouterr().err
    n_now = "at most 16 at a time from now on"
    assert f"note: {server.base_url}: overloaded, so it gets {n_now}: HTTP 429: too many at a time" in said
    assert said.count("overloaded") == 1, "not once for each reduction"


def test_a_server_that_is_gone_is_asked_no_further() -> None:
    """Its open connections end, and no new one can be made."""
    servers: list[OpenAIServer] = []
    with openai_server(lambda *_: Drop() if servers[0].closing.is_set() else "fine") as server:
        servers.append(server)
        answers = model_at(server.base_url, concurrency=2).generate(questions(1000), Sampling())
        taken = [next(answers) for _ in range(10)]
        server.close()
        with pytest.raises(EndpointStoppedError, match="8 failures in a row: Connection error"):
            taken += answers
    assert 8 <= sum(isinstance(one.result, Failure) for one in taken) <= 10


@pytest.mark.parametrize(
    ("trouble", "words"),
    [
        (error(500, "no GPU"), r"HTTP 500: no GPU; what helps: the endpoint's own log"),
        (HTML, r"the reply was <!DOCTYPE html>.*; what helps: a model\.base_url that ends in /v1"),
        (Drop(), r"Connection error.*; what helps: an endpoint that runs at model\.base_url"),
        (error(429, "slow down"), r"HTTP 429: slow down; what helps: a smaller model\.concurrency"),
    ],
    ids=["500", "html", "drop", "429"],
)
def test_an_endpoint_that_never_answers_is_an_error_with_its_words_and_what_helps(trouble: Action, words: str) -> None:
    with openai_server(lambda *_: trouble) as server:
        results, stop = ask(model_at(server.base_url, concurrency=4, retries=2), questions(500))
    assert isinstance(stop, ConfigError)
    assert str(stop).startswith(f"model.base_url = {server.base_url}: answers no request; 8 failures in a row, and retrying ")
    with pytest.raises(ConfigError, match=words):
        raise stop
    assert count(results)[0] == 0
    assert len(server.asked) <= 4 * 3 + MAX_FAILURES_IN_A_ROW


def test_a_spent_quota_before_any_answer_names_what_helps() -> None:
    with openai_server(lambda *_: SPENT) as server:
        _, stop = ask(model_at(server.base_url, concurrency=1), questions(100))
    assert isinstance(stop, ConfigError)
    assert str(stop).endswith("please check your plan.; what helps: new credit at the provider, since the quota is spent")
    assert len(server.asked) == 8


def test_an_endpoint_that_fails_on_resume_keeps_what_the_run_has() -> None:
    """An earlier start got answers, so that this one ends incomplete and not as bad input."""
    for trouble in (error(500), SPENT):
        with openai_server(lambda *_, trouble=trouble: trouble) as server:
            model = model_at(server.base_url, retries=0)
            model.has_answered_before = True
            assert isinstance(ask(model, questions(100))[1], EndpointStoppedError)


def test_the_next_call_after_a_stop_begins_with_a_probe_and_goes_on_when_it_is_answered() -> None:
    well = True
    with openai_server(lambda *_: "fine" if well else error(500)) as server:
        model = model_at(server.base_url, concurrency=1, retries=3)
        assert count(ask(model, questions(5))[0]) == (5, 0)
        well = False
        assert isinstance(ask(model, questions(50))[1], EndpointStoppedError)
        n = len(server.asked)
        assert isinstance(ask(model, questions(50))[1], EndpointStoppedError)
        assert len(server.asked) == n + 1
        well = True
        results, stop = ask(model, questions(50))
        assert (count(results), stop) == ((50, 0), None)


@pytest.mark.parametrize(("n", "concurrency"), [(1, 4), (4, 4), (7, 4), (7, 1)])
def test_a_few_requests_that_all_fail_are_failures(n: int, concurrency: int) -> None:
    """All are recorded: those that wait for their next attempt when nothing new is left to be asked too."""
    with openai_server(lambda *_: error(500)) as server:
        results, stop = ask(model_at(server.base_url, concurrency=concurrency, retries=2), questions(n))
    assert (count(results), stop) == ((0, n), None)
    assert n + 2 <= len(server.asked) <= 3 * min(n, concurrency) + n


# Failures that never stop a run


@pytest.mark.parametrize("retries", [0, 1])
@pytest.mark.parametrize("concurrency", [1, 4])
def test_sporadic_failures_stop_nothing(retries: int, concurrency: int) -> None:
    def every_third(body: Mapping[str, Any], nth: int, headers: Mapping[str, str]) -> str | Action:
        return error(500) if number(body) % 3 == 0 else "fine"

    with openai_server(every_third) as server:
        results, stop = ask(model_at(server.base_url, concurrency=concurrency, retries=retries), questions(60))
    assert (count(results), stop) == ((40, 20), None)


@pytest.mark.parametrize("concurrency", [1, 4])
@pytest.mark.parametrize("trouble", [error(500, "this persona crashes me"), HTML], ids=["500", "html"])
def test_requests_that_fail_one_after_another_for_their_own_reason_stop_nothing(trouble: Action, concurrency: int) -> None:
    """As all questions under one persona: probes are taken from other places of the grid."""
    with openai_server(lambda body, *_: trouble if 10 <= number(body) < 40 else "fine") as server:
        results, stop = ask(model_at(server.base_url, concurrency=concurrency, retries=1), questions(100))
    assert (count(results), stop) == ((70, 30), None)
    assert all(isinstance(results[index], Failure) == (10 <= index < 40) for index in range(100))


@pytest.mark.parametrize("trouble", [TOO_LONG, FILTERED, Reply("", usage=None), Reply("", finish="content_filter")], ids=range(4))
@pytest.mark.parametrize("n_before", [0, 30])
def test_refused_prompts_stop_nothing(trouble: Action, n_before: int) -> None:
    """Neither before the first answer nor after it, and also while the endpoint has trouble of another kind."""
    with openai_server(lambda body, *_: trouble if n_before <= number(body) < n_before + 60 else "fine") as server:
        results, stop = ask(model_at(server.base_url, retries=0), questions(100))
    assert (count(results), stop) == ((40, 60), None)


def test_refused_prompts_alone_stop_a_run_that_never_had_an_answer() -> None:
    with openai_server(lambda *_: TOO_LONG) as server:
        results, stop = ask(model_at(server.base_url, concurrency=1), questions(300))
        assert isinstance(stop, ConfigError)
        assert str(stop).endswith("is 64 tokens.; what helps: shorter prompts, or a smaller sampling.max_new_tokens")
        assert len(server.asked) == MAX_REFUSED_PROMPTS
        model = model_at(server.base_url, concurrency=1)
        model.has_answered_before = True
        results, stop = ask(model, questions(300))
        assert (count(results), stop) == ((0, 300), None)


def test_failures_do_not_count_while_others_are_answered() -> None:
    """A server that takes one request at a time refuses every other request at once, and each answer takes a while."""
    servers: list[OpenAIServer] = []

    def one_at_a_time(body: Mapping[str, Any], nth: int, headers: Mapping[str, str]) -> Action:
        return Reply("fine", after_s=0.05) if servers[0]._in_flight == 1 else error(429, "one at a time")

    with openai_server(one_at_a_time) as server:
        servers.append(server)
        results, stop = ask(model_at(server.base_url, concurrency=4, retries=0), questions(40))
    assert stop is None
    assert len(results) == 40
    assert count(results)[0] >= 10

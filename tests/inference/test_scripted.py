"""The scripted model: every form of script, what it counts, and which exceptions become failures."""

from collections.abc import Iterable

import pytest

from permix.inference.base import CompletionResult, Model
from permix.inference.scripted import ScriptedModel
from permix.types import Completion, Failure, Message, Request, Sampling


def ask(*texts: str) -> list[Request]:
    return [Request((Message(role="user", content=text),), seed) for seed, text in enumerate(texts)]


def texts(answers: Iterable[CompletionResult]) -> list[str]:
    return [answer.result.text if isinstance(answer.result, Completion) else answer.result.type for answer in answers]


def test_function_sees_the_request_and_tokens_are_words() -> None:
    model: Model = ScriptedModel(lambda request: f"seed is {request.seed}")
    answers = list(model.generate(ask("one two", "three"), Sampling()))
    assert answers == [
        CompletionResult(0, Completion(text="seed is 0", prompt_tokens=2, completion_tokens=3, finish="stop")),
        CompletionResult(1, Completion(text="seed is 1", prompt_tokens=1, completion_tokens=3, finish="stop")),
    ]


def test_mapping_answers_by_the_last_message() -> None:
    model = ScriptedModel({"1+1": "2", "2+2": "4"})
    assert texts(model.generate(ask("2+2", "1+1"), Sampling())) == ["4", "2"]


def test_list_is_used_up_over_calls_and_then_raises() -> None:
    model = ScriptedModel(["a", "b"], name="short")
    assert texts(model.generate(ask("x"), Sampling())) == ["a"]
    assert texts(model.generate(ask("y"), Sampling())) == ["b"]
    with pytest.raises(IndexError, match="'short' got 3 requests; its script has 2 replies"):
        list(model.generate(ask("z"), Sampling()))


def test_failures_pass_and_the_next_request_is_still_answered() -> None:
    def reply(request: Request) -> str | Failure:
        if request.seed == 0:
            return Failure(type="Refused", message="no")
        if request.seed == 1:
            raise TimeoutError("too slow")
        return "fine"

    model = ScriptedModel(reply)
    answers = list(model.generate(ask("a", "b", "c"), Sampling()))
    assert texts(answers) == ["Refused", "TimeoutError", "fine"]
    assert answers[1].result == Failure(type="TimeoutError", message="too slow")


def test_a_fault_of_the_script_is_raised() -> None:
    with pytest.raises(KeyError):
        list(ScriptedModel({"known": "1"}).generate(ask("unknown"), Sampling()))


def test_completion_passes_as_it_is() -> None:
    cut = Completion(text="1, 2,", prompt_tokens=1, completion_tokens=4, finish="length")
    assert next(ScriptedModel([cut]).generate(ask("count"), Sampling())).result is cut


def test_asked_counts_only_what_was_reached_and_fingerprint_follows_the_name() -> None:
    model = ScriptedModel(lambda request: "x")
    next(model.generate(ask("a", "b"), Sampling()))
    assert [request.seed for request in model.requests] == [0]
    assert model.fingerprint == ScriptedModel(["other"]).fingerprint != ScriptedModel(["x"], name="other").fingerprint

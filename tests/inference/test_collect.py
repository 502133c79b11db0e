"""The loop that requests what is pending: what it asks, in which rounds, what it records, and when it ends."""

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path

import pytest

from permix.inference.base import CellRequest, CompletionResult, collect
from permix.inference.scripted import ScriptedModel, ScriptedReply
from permix.progress import ProgressBar
from permix.types import Cell, Completion, Failure, Message, Request, Sampling

Result = Completion | Failure


def request_for(name: str) -> CellRequest:
    message = Message(role="user", content=name)
    return CellRequest.for_cell(Cell(persona_id=None, question_id=name, seed=len(name), messages=(message,)))


class SilentBar(ProgressBar):
    def show(self, status: str) -> None:
        pass


class Records:
    """What is wanted, and what came: a name is pending until it has a completion. `rounds`: the size of each round."""

    def __init__(self, *names: str) -> None:
        self.names = names
        self.results: list[tuple[str, Result]] = []
        self.rounds: list[int] = []

    def find_pending(self) -> list[CellRequest]:
        there = {name for name, result in self.results if isinstance(result, Completion)}
        return [request_for(name) for name in self.names if name not in there]

    def record(self, one: CellRequest, result: Result, bar: ProgressBar) -> None:
        self.results.append((one.cell.question_id, result))
        bar.advance()

    def open_progress(self, n: int) -> AbstractContextManager[ProgressBar]:
        self.rounds.append(n)
        return nullcontext(SilentBar("test", n, "items"))

    def collect(
        self,
        model: ScriptedModel,
        *,
        max_rounds: int | None = None,
        affordable: Callable[[Sequence[CellRequest]], int] = len,
    ) -> list[str]:
        """What the model was asked by this collection, in order."""
        collect(
            model,
            Sampling(),
            self.find_pending,
            self.record,
            self.open_progress,
            Path("nowhere"),  # only what is found out about an endpoint is written there
            max_rounds=max_rounds,
            count_affordable_items=affordable,
        )
        return asked(model)

    @property
    def answered(self) -> list[str]:
        return [name for name, result in self.results if isinstance(result, Completion)]


def asked(model: ScriptedModel) -> list[str]:
    return [request.messages[-1]["content"] for request in model.requests]


def echo(request: Request) -> ScriptedReply:
    return f"{request.messages[-1]['content']}!"


FAILED = Failure(type="TimeoutError", message="too slow")


def test_everything_is_asked_once_in_order_and_recorded_as_it_comes() -> None:
    records = Records("a", "b", "c")
    seen: list[list[str]] = []

    def watch(request: Request) -> ScriptedReply:
        seen.append(list(records.answered))
        return echo(request)

    assert records.collect(ScriptedModel(watch)) == ["a", "b", "c"]
    assert seen == [[], ["a"], ["a", "b"]]  # a result is recorded before the next one is made
    assert [result.text for _, result in records.results if isinstance(result, Completion)] == ["a!", "b!", "c!"]
    assert records.rounds == [3]


def test_with_nothing_pending_nothing_is_asked_or_shown() -> None:
    records = Records()
    assert records.collect(ScriptedModel(echo)) == []
    assert records.rounds == []


@pytest.mark.parametrize("error", [KeyboardInterrupt, ValueError])
def test_interrupted_it_keeps_what_came_and_goes_on_with_the_rest(error: type[BaseException]) -> None:
    records = Records("a", "b", "c", "d")

    def until_c(request: Request) -> ScriptedReply:
        if request.messages[-1]["content"] == "c":
            raise error
        return echo(request)

    with pytest.raises(error):
        records.collect(ScriptedModel(until_c))
    assert records.answered == ["a", "b"]
    assert records.collect(ScriptedModel(echo)) == ["c", "d"]
    assert records.answered == ["a", "b", "c", "d"]


def test_a_failure_is_the_result_of_its_item_alone_and_is_asked_again_in_each_round() -> None:
    records = Records("a", "b", "c")
    model = ScriptedModel(lambda request: FAILED if request.messages[-1]["content"] == "b" else echo(request))
    assert records.collect(model, max_rounds=3) == ["a", "b", "c", "b", "b"]
    assert records.rounds == [3, 1, 1]
    assert Counter(records.results)["b", FAILED] == 3
    assert records.answered == ["a", "c"]


def test_a_round_that_answers_the_rest_is_the_last_one() -> None:
    records = Records("a", "b")
    failing = iter([FAILED, FAILED])
    assert records.collect(ScriptedModel(lambda request: next(failing, "at last")), max_rounds=9) == ["a", "b", "a", "b"]
    assert records.rounds == [2, 2]


class Forgetful(ScriptedModel):
    """Answers from the last request to the first, and yields nothing for a "b"."""

    def generate(self, requests: Sequence[Request], sampling: Sampling) -> Iterator[CompletionResult]:
        for index, result in list(super().generate(requests, sampling))[::-1]:
            if requests[index].messages[-1]["content"] != "b":
                yield CompletionResult(index, result)


@pytest.mark.parametrize(("max_rounds", "rounds"), [(1, [3]), (9, [3, 1]), (None, [3, 1])])
def test_a_request_that_the_model_skips_stays_pending_and_ends_the_rounds(max_rounds: int | None, rounds: list[int]) -> None:
    records = Records("a", "b", "c")
    records.collect(Forgetful(echo), max_rounds=max_rounds)
    assert records.answered == ["c", "a"]
    assert [result.text for _, result in records.results if isinstance(result, Completion)] == ["c!", "a!"]  # each its own
    assert records.rounds == rounds


class Budget:
    """Each call costs 1 of `limit`, and may cost 2 while it is in flight. `in_flight`: how many it allowed, in order."""

    def __init__(self, records: Records, limit: int) -> None:
        self.records, self.limit = records, limit
        self.in_flight: list[int] = []

    def count_affordable(self, calls: Sequence[CellRequest]) -> int:
        self.in_flight.append(min(len(calls), (self.limit - len(self.records.results)) // 2))
        return self.in_flight[-1]


def test_a_budget_bounds_what_is_in_flight_stops_and_goes_on_when_it_is_raised() -> None:
    records = Records(*"abcdefgh")
    budget = Budget(records, limit=5)
    assert records.collect(ScriptedModel(echo), affordable=budget.count_affordable) == ["a", "b", "c", "d"]
    assert budget.in_flight == [2, 1, 1, 0]  # of 5; of 5 - 2; of 5 - 3; of 5 - 4
    assert records.rounds == [8]  # a bar a round, whatever the batches
    assert records.collect(ScriptedModel(echo), affordable=budget.count_affordable) == []
    budget.limit = 100
    assert records.collect(ScriptedModel(echo), affordable=budget.count_affordable) == ["e", "f", "g", "h"]
    assert records.answered == list("abcdefgh")


def test_a_budget_that_stops_in_a_later_round_ends_that_round_too() -> None:
    records = Records("a", "b", "c")
    budget = Budget(records, limit=6)
    model = ScriptedModel(lambda request: FAILED)
    assert records.collect(model, max_rounds=9, affordable=budget.count_affordable) == ["a", "b", "c", "a", "b"]
    assert (budget.in_flight, records.rounds) == ([3, 1, 1, 0], [3, 3])


def test_a_cell_takes_a_completion_or_a_failure() -> None:
    one = request_for("a")
    completion = Completion(text="a!", prompt_tokens=1, completion_tokens=1, finish="stop")
    assert one.cell_with(completion) == one.cell.model_copy(update={"completion": completion})
    assert one.cell_with(FAILED) == one.cell.model_copy(update={"failure": FAILED})
    assert CellRequest.for_cell(one.cell, {"type": "object"}).request == one.request._replace(schema={"type": "object"})

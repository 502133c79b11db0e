"""The calls of one judge: what is owed is asked, every call is written down, and a limit of costs is never passed.

Its contract: prompts in, one line of the ledger a call, whatever came of it. An item with a score is not asked again while it is
asked in the same words; one without is, up to `attempts` times a start, each time with another seed. Seeds depend on the item and
on how often it was asked before, also by earlier starts. Nothing else is written, and no answer is ever generated.

`judgements.jsonl`: every call of one judge, appended as it comes back, and what stands at the end.

Its contract: one line a call, whatever came of it, so nothing that was paid for is lost; a torn last line is passed over. A run
has one folder a judge, `judges/NAME`, NAME being the judge's label made fit for a file system; the label is in config.json.
"""

import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any, NamedTuple

from pydantic import ValidationError

from permix.errors import DataError
from permix.inference.base import Model
from permix.judges.parsing import Reading, read_verdict
from permix.judges.pricing import Price, affordable, cost_of, paid, reserve_for, tokens_of, total, worst_cost
from permix.judges.prompts import Prompt
from permix.judges.types import Judgement
from permix.progress import Meter, meter
from permix.storage.jsonl import Appended
from permix.types import Completion, Failure, ItemKey, Request, Sampling, digest, seed_from

FILE = "judgements.jsonl"

NAME_CHARS = 60


def judge_folder(run: Path, label: str) -> Path:
    """Where the judge of this label writes. Labels that differ have folders that differ."""
    name = re.sub(r"[^A-Za-z0-9._-]+", "-", label).strip("-.")[:NAME_CHARS]
    return run / "judges" / (name if name and name == label else f"{name or 'judge'}-{digest(label, length=8)}")


def judges_of(run: Path) -> list[Path]:
    """The folders of the judges of a run, in the order of their names."""
    return sorted(path.parent for path in (run / "judges").glob("*/config.json"))


def read_calls(folder: Path) -> list[Judgement]:
    """Every call, in order. No file, no calls; DataError naming file and line when a whole line is not a judgement."""
    path = folder / FILE
    if not path.exists():
        return []
    calls = []
    with path.open("rb") as lines:
        for number, line in enumerate(lines, start=1):
            if not line.endswith(b"\n"):
                break
            try:
                calls.append(Judgement.model_validate_json(line))
            except ValidationError as error:
                raise DataError(f"{path}:{number}: not a judgement: {error.errors()[0]['msg']}") from error
    return calls


def read_judgements(folder: Path) -> dict[ItemKey, Judgement]:
    """Of each item the last call that has a score; the last one of all where none has.

    Calls in other words than those that followed do not count: the answer, or the rubric, was another one then.
    """
    return standing(read_calls(folder))


def standing(calls: Iterable[Judgement]) -> dict[ItemKey, Judgement]:
    """`read_judgements` of calls that are there already, in order."""
    found: dict[ItemKey, Judgement] = {}
    for call in calls:
        if stands(call, found.get(call.key)):
            found[call.key] = call
    return found


def stands(call: Judgement, before: Judgement | None) -> bool:
    """Whether a call takes the place of what stood for its item. One without a score takes no score away."""
    return before is None or before.prompt != call.prompt or call.score is not None or before.score is None


class Terms(NamedTuple):
    """How a judge is asked. `tries`: HTTP requests that one call may take, each of which may be charged."""

    sampling: Sampling
    schema: Mapping[str, Any]
    seed: int
    attempts: int
    price: Price | None
    max_cost: float | None = None
    tries: int = 1


class Outcome(NamedTuple):
    """What came of it, earlier starts included. `cost`: US dollars, None where that of some call is not known; tokens as far as
    counted. `booked`: what counts against the limit: all costs that are known, and what calls that broke off may have cost.

    `next_cost`: what the next call may cost, where the limit forbade it; None otherwise.
    """

    asked: int
    owed: int
    calls: int
    prompt_tokens: int
    completion_tokens: int
    cost: float | None
    booked: float
    next_cost: float | None


def ask_owed(model: Model, prompts: Sequence[Prompt], folder: Path, terms: Terms, what: str) -> Outcome:
    """Ask for every score that the ledger in `folder` lacks. Raises what the model raises when it can answer nothing."""
    book, next_cost = _Book(read_calls(folder), terms.price), None
    with closing(Appended(folder / FILE)) as ledger, meter(what, len(prompts), "scores") as shown:
        shown.start_at(len(prompts) - len(book.owed(prompts)))
        for _ in range(terms.attempts):
            owed = [_Call.of(prompt, book, terms) for prompt in book.owed(prompts)]
            while owed and next_cost is None:
                batch, next_cost = _next_batch(owed, book, terms)
                for judgement in _judged(model, batch, terms):
                    ledger.add([judgement])
                    book.enter(judgement)
                    _show(shown, judgement, book)
                owed = owed[len(batch) :]
    return book.outcome(prompts, next_cost if book.owed(prompts) else None)


def dearest(prompts: Sequence[Prompt], terms: Terms) -> float | None:
    """US dollars that nothing can exceed where every call is answered at once; None without a price."""
    if terms.price is None:
        return None
    book = _Book([], terms.price)
    return sum(_Call.of(prompt, book, terms).worst for prompt in prompts)


class _Book:
    """The ledger in memory."""

    def __init__(self, calls: Sequence[Judgement], price: Price | None) -> None:
        self._price = price
        self.calls, self.unscored, self.reserved = 0, 0, 0.0
        self.costs: list[float | None] = []
        self.prompt_tokens = self.completion_tokens = 0
        self.standing: dict[ItemKey, Judgement] = {}
        self.made = Counter[tuple[ItemKey, str]]()
        for call in calls:
            self.enter(call)
        self.unscored = 0  # of this start

    def enter(self, call: Judgement) -> None:
        self.calls += 1
        self.unscored += call.score is None
        self.made[call.key, call.prompt] += 1
        result = call.reply or call.failure
        tokens = tokens_of(result) if result else (0, 0)
        self.prompt_tokens, self.completion_tokens = self.prompt_tokens + tokens[0], self.completion_tokens + tokens[1]
        self.costs.append(paid(call, self._price))
        self.reserved += call.reserved
        if stands(call, self.standing.get(call.key)):
            self.standing[call.key] = call

    def owed(self, prompts: Sequence[Prompt]) -> list[Prompt]:
        return [prompt for prompt in prompts if not self._is_done(prompt)]

    def _is_done(self, prompt: Prompt) -> bool:
        found = self.standing.get(prompt.item.key)
        return found is not None and found.score is not None and found.prompt == prompt.hash

    def outcome(self, prompts: Sequence[Prompt], next_cost: float | None) -> Outcome:
        owed, cost = len(self.owed(prompts)), total(self.costs)
        return Outcome(len(prompts), owed, self.calls, self.prompt_tokens, self.completion_tokens, cost, self.booked, next_cost)

    @property
    def booked(self) -> float:
        return sum(cost or 0.0 for cost in self.costs) + self.reserved


class _Call(NamedTuple):
    """A call that is to be made."""

    prompt: Prompt
    attempt: int
    request: Request
    worst: float

    @classmethod
    def of(cls, prompt: Prompt, book: _Book, terms: Terms) -> "_Call":
        attempt = book.made[prompt.item.key, prompt.hash]
        request = Request(prompt.messages, seed_from("judge", terms.seed, *map(str, prompt.item.key), attempt), terms.schema)
        return cls(prompt, attempt, request, worst_cost(request, terms.price, terms.sampling.max_new_tokens))


def _next_batch(calls: Sequence[_Call], book: _Book, terms: Terms) -> tuple[Sequence[_Call], float | None]:
    """As many calls as the limit allows to be in flight together; what the first may cost, where it allows none.

    Once they are back, and cost less than they might have, there is room for more.
    """
    worst = [call.worst * terms.tries for call in calls]
    several = affordable(worst, None if terms.max_cost is None else terms.max_cost - book.booked)
    return calls[:several], None if several else worst[0]


def _judged(model: Model, calls: Sequence[_Call], terms: Terms) -> Iterator[Judgement]:
    if not calls:
        return
    for place, result in model.complete([call.request for call in calls], terms.sampling):
        yield _judgement(calls[place], result, terms)


def _judgement(call: _Call, result: Completion | Failure, terms: Terms) -> Judgement:
    item = call.prompt.item
    reading = _read(result, f"{item.question}\n{item.answer}")
    return Judgement(
        **item.key._asdict(), attempt=call.attempt, seed=call.request.seed, prompt=call.prompt.hash,
        reply=result if isinstance(result, Completion) else None, failure=result if isinstance(result, Failure) else None,
        score=reading.score, error=reading.error, cost=cost_of(result, terms.price, call.worst),
        reserved=reserve_for(result, call.worst * terms.tries),
    )  # fmt: skip


def _read(result: Completion | Failure, written: str) -> Reading:
    if isinstance(result, Failure):
        return Reading(None, f"{result.type}: {result.message}")
    reading = read_verdict(result.text, written)
    if reading.score is None and result.finish == "length":
        return Reading(None, f"{reading.error}; the reply was cut off at judge.max_new_tokens")
    return reading


def _show(shown: Meter, judgement: Judgement, book: _Book) -> None:
    note = f"{book.unscored} calls without a score" if book.unscored else ""
    shown.advance(int(judgement.score is not None), note=note)

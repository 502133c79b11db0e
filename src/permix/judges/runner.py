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
from collections.abc import Iterable, Mapping, Sequence
from contextlib import closing, nullcontext
from pathlib import Path
from typing import Any, NamedTuple

from pydantic import ValidationError

from permix.errors import DataError
from permix.inference.base import Model
from permix.inference.collect import collect
from permix.judges.parsing import ParsedScore, parse_score
from permix.judges.pricing import (
    Price,
    call_cost,
    count_affordable,
    max_call_cost,
    recorded_cost,
    reserved_cost,
    token_counts,
    total_cost,
)
from permix.judges.prompts import JudgePrompt
from permix.judges.types import Judgement
from permix.progress import ProgressBar, progress_bar
from permix.storage.jsonl import JsonlWriter
from permix.types import Completion, Failure, JudgeInputKey, Request, Sampling, digest, seed_from

JUDGEMENTS_FILE = "judgements.jsonl"

MAX_FOLDER_NAME_CHARS = 60


def judge_folder(run: Path, label: str) -> Path:
    """Where the judge of this label writes. Labels that differ have folders that differ."""
    name = re.sub(r"[^A-Za-z0-9._-]+", "-", label).strip("-.")[:MAX_FOLDER_NAME_CHARS]
    return run / "judges" / (name if name and name == label else f"{name or 'judge'}-{digest(label, length=8)}")


def judge_folders(run: Path) -> list[Path]:
    """The folders of the judges of a run, in the order of their names."""
    return sorted(path.parent for path in (run / "judges").glob("*/config.json"))


def read_judge_calls(folder: Path) -> list[Judgement]:
    """Every call, in order. No file, no calls; DataError naming file and line when a whole line is not a judgement."""
    path = folder / JUDGEMENTS_FILE
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


def read_latest_judgements(folder: Path) -> dict[JudgeInputKey, Judgement]:
    """Of each item the last call that has a score; the last one of all where none has.

    Calls in other words than those that followed do not count: the answer, or the rubric, was another one then.
    """
    return latest_judgements(read_judge_calls(folder))


def latest_judgements(calls: Iterable[Judgement]) -> dict[JudgeInputKey, Judgement]:
    """`read_latest_judgements` of calls that are there already, in order."""
    found: dict[JudgeInputKey, Judgement] = {}
    for call in calls:
        if is_superseding(call, found.get(call.key)):
            found[call.key] = call
    return found


def is_superseding(call: Judgement, previous: Judgement | None) -> bool:
    """Whether a call takes the place of what stood for its item. One without a score takes no score away."""
    return previous is None or previous.prompt_hash != call.prompt_hash or call.score is not None or previous.score is None


class CallSettings(NamedTuple):
    """How a judge is asked. `max_requests`: HTTP requests that one call may take, each of which may be charged."""

    sampling: Sampling
    schema: Mapping[str, Any]
    seed: int
    attempts: int
    price: Price | None
    max_cost: float | None = None
    max_requests: int = 1


class CallTotals(NamedTuple):
    """What came of it, earlier starts included. `cost`: US dollars, None where that of some call is not known; tokens as far as
    counted. `spent`: what counts against the limit: all costs that are known, and what calls that broke off may have cost.

    `next_cost`: what the next call may cost, where the limit forbade it; None otherwise.
    """

    n_inputs: int
    n_pending: int
    n_calls: int
    prompt_tokens: int
    completion_tokens: int
    cost: float | None
    spent: float
    next_cost: float | None


def request_pending_scores(
    model: Model, prompts: Sequence[JudgePrompt], folder: Path, settings: CallSettings, label: str
) -> CallTotals:
    """Ask for every score that the calls in `folder` lack. Raises what the model raises when it can answer nothing."""
    state = _CallState(read_judge_calls(folder), settings.price)
    limit = _CostLimit(state, settings)

    def find_pending() -> list[_PendingCall]:
        return [_PendingCall.for_prompt(prompt, state, settings) for prompt in state.pending(prompts)]

    def record(call: _PendingCall, result: Completion | Failure, bar: ProgressBar) -> None:
        judgement = _to_judgement(call, result, settings)
        writer.append([judgement])
        state.record(judgement)
        note = f"{state.unscored} calls without a score" if state.unscored else ""
        bar.advance(int(judgement.score is not None), status=note)

    with closing(JsonlWriter(folder / JUDGEMENTS_FILE)) as writer, progress_bar(label, len(prompts), "scores") as whole:
        whole.start_at(len(prompts) - len(state.pending(prompts)))
        collect(
            model,
            settings.sampling,
            find_pending,
            record,
            lambda _: nullcontext(whole),
            max_rounds=settings.attempts,
            count_affordable_items=limit.count_affordable_calls,
        )
    return state.totals(prompts, limit.next_cost if state.pending(prompts) else None)


def max_total_cost(prompts: Sequence[JudgePrompt], settings: CallSettings) -> float | None:
    """US dollars that nothing can exceed where every call is answered at once; None without a price."""
    if settings.price is None:
        return None
    book = _CallState([], settings.price)
    return sum(_PendingCall.for_prompt(prompt, book, settings).max_cost for prompt in prompts)


class _CallState:
    """The ledger in memory."""

    def __init__(self, calls: Sequence[Judgement], price: Price | None) -> None:
        self._price = price
        self.calls, self.unscored, self.reserved = 0, 0, 0.0
        self.costs: list[float | None] = []
        self.prompt_tokens = self.completion_tokens = 0
        self.latest: dict[JudgeInputKey, Judgement] = {}
        self.attempts_made = Counter[tuple[JudgeInputKey, str]]()
        for call in calls:
            self.record(call)
        self.unscored = 0  # of this start

    def record(self, call: Judgement) -> None:
        self.calls += 1
        self.unscored += call.score is None
        self.attempts_made[call.key, call.prompt_hash] += 1
        result = call.reply or call.failure
        tokens = token_counts(result) if result else (0, 0)
        self.prompt_tokens, self.completion_tokens = self.prompt_tokens + tokens[0], self.completion_tokens + tokens[1]
        self.costs.append(recorded_cost(call, self._price))
        self.reserved += call.reserved
        if is_superseding(call, self.latest.get(call.key)):
            self.latest[call.key] = call

    def pending(self, prompts: Sequence[JudgePrompt]) -> list[JudgePrompt]:
        return [prompt for prompt in prompts if not self._is_done(prompt)]

    def _is_done(self, prompt: JudgePrompt) -> bool:
        found = self.latest.get(prompt.judge_input.key)
        return found is not None and found.score is not None and found.prompt_hash == prompt.hash

    def totals(self, prompts: Sequence[JudgePrompt], next_cost: float | None) -> CallTotals:
        owed, cost = len(self.pending(prompts)), total_cost(self.costs)
        return CallTotals(len(prompts), owed, self.calls, self.prompt_tokens, self.completion_tokens, cost, self.spent, next_cost)

    @property
    def spent(self) -> float:
        return sum(cost or 0.0 for cost in self.costs) + self.reserved


class _PendingCall(NamedTuple):
    """A call that is to be made."""

    prompt: JudgePrompt
    attempt: int
    request: Request
    max_cost: float

    @classmethod
    def for_prompt(cls, prompt: JudgePrompt, state: _CallState, settings: CallSettings) -> "_PendingCall":
        attempt = state.attempts_made[prompt.judge_input.key, prompt.hash]
        request = Request(
            prompt.messages, seed_from("judge", settings.seed, *map(str, prompt.judge_input.key), attempt), settings.schema
        )
        return cls(prompt, attempt, request, max_call_cost(request, settings.price, settings.sampling.max_new_tokens))


class _CostLimit:
    """`CallSettings.max_cost` as a bound on the calls in flight. `next_cost`: see `CallTotals`."""

    def __init__(self, state: _CallState, settings: CallSettings) -> None:
        self._state, self._settings = state, settings
        self.next_cost: float | None = None

    def count_affordable_calls(self, calls: Sequence[_PendingCall]) -> int:
        """How many of the next calls can be in flight together so that the limit holds, were each as dear as it can be."""
        worst = [call.max_cost * self._settings.max_requests for call in calls]
        limit = self._settings.max_cost
        several = count_affordable(worst, None if limit is None else limit - self._state.spent)
        self.next_cost = None if several else worst[0]
        return several


def _to_judgement(call: _PendingCall, result: Completion | Failure, settings: CallSettings) -> Judgement:
    item = call.prompt.judge_input
    reading = _parse_result(result, f"{item.question}\n{item.answer}")
    return Judgement(
        **item.key._asdict(), attempt=call.attempt, seed=call.request.seed, prompt_hash=call.prompt.hash,
        reply=result if isinstance(result, Completion) else None, failure=result if isinstance(result, Failure) else None,
        score=reading.score, error=reading.error, cost=call_cost(result, settings.price, call.max_cost),
        reserved=reserved_cost(result, call.max_cost * settings.max_requests),
    )  # fmt: skip


def _parse_result(result: Completion | Failure, judged_text: str) -> ParsedScore:
    if isinstance(result, Failure):
        return ParsedScore(None, f"{result.type}: {result.message}")
    reading = parse_score(result.text, judged_text)
    if reading.score is None and result.finish == "length":
        return ParsedScore(None, f"{reading.error}; the reply was cut off at judge.max_new_tokens")
    return reading

"""Make the calls of one judge: request pending scores, record every call, and keep within a cost limit.

Contract: `request_pending_scores` takes prompts and appends one line per call to `judgements.jsonl`, whatever the result. It
writes nothing else and never generates an answer. An input that has a score is not judged again while its prompt is unchanged. An
input without a score is tried up to `attempts` times per start, each time with another seed. The seed depends on the input and on
the number of earlier calls for it, including calls of earlier starts.

Each judge of a run has a folder `judges/NAME`; NAME is the judge's label as a valid file name, and config.json holds the exact
label. Calls are appended as they come back, so an interrupted run loses no paid call; an incomplete last line is ignored.

The user keeps a TOML file of prices:

    ["gpt-4o-mini*"]         # the model name at the endpoint, or a pattern with * and ?
    input = 0.15             # US dollars per million tokens
    output = 0.60

An exact name takes precedence over patterns; patterns apply in the order of the file. Models in this process are free.
"""

import json
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import closing, nullcontext
from itertools import accumulate
from pathlib import Path
from typing import Any, NamedTuple

from permix.config import JudgeModelConfig
from permix.errors import ConfigError, EndpointStoppedError, closest_match
from permix.inference.base import Model, collect
from permix.inference.batch_model import BatchModel, pass_over_answered
from permix.inference.cost import Price, find_price, load_prices
from permix.inference.openai import is_http_failure
from permix.judges.parsing import ParsedScore, parse_score
from permix.judges.prompts import JudgePrompt
from permix.judges.types import Judgement
from permix.progress import ProgressBar, progress_bar
from permix.storage.files import JsonlWriter, LongRecordError, read_jsonl
from permix.storage.run_dir import long_reply_failure
from permix.types import Completion, Failure, JudgeInputKey, Request, Sampling, digest, seed_from

CHAT_TEMPLATE_TOKENS = 64
"""An upper bound on the tokens that a chat template adds to two messages."""


def load_judge_price(judge: JudgeModelConfig) -> Price | None:
    """The judge's price; None if it is unknown. Raises ConfigError if it is unknown and `judge.max_cost` is set."""
    price = find_price(judge, "judge.prices")
    if price is None and judge.max_cost is not None:
        assert judge.prices is not None  # the configuration refuses max_cost without prices
        prices = load_prices(judge.prices)
        near = closest_match(judge.name, prices)
        hint = f"did you mean {near!r}? " if near else ""
        raise ConfigError(
            f"judge.max_cost = {judge.max_cost:g}: {judge.prices} has no price for {judge.name!r}; {hint}"
            f"known: {', '.join(prices) or 'none'}"
        )
    return price


def call_cost(result: Completion | Failure, price: Price | None, max_cost: float) -> float | None:
    """Cost of one call in US dollars; None without a price.

    A completion without a count of tokens read or written costs `max_cost`, its upper bound. A failure costs only the tokens that
    the endpoint counted; `reserved_cost` covers the rest.
    """
    if price is None:
        return None
    tokens = token_counts(result)
    return max_cost if isinstance(result, Completion) and not all(tokens) else price.cost(*tokens)


def reserved_cost(result: Completion | Failure, max_cost: float) -> float:
    """US dollars to reserve for a call that failed without token counts and without an HTTP status; 0 for any other call.

    After a timeout or a lost connection the endpoint can still have generated and charged. `max_cost` covers all HTTP retries.
    """
    unknown = isinstance(result, Failure) and not any(token_counts(result)) and not is_http_failure(result)
    return max_cost if unknown else 0.0


def recorded_cost(call: Judgement, price: Price | None = None) -> float | None:
    """Cost in US dollars of a recorded call; None if it was charged but the amount is unknown.

    A call that was recorded without a price is priced with `price` if its tokens were counted.
    """
    result = call.reply or call.failure
    if call.cost is not None or result is None:
        return call.cost or 0.0
    tokens = token_counts(result)
    if isinstance(result, Failure) and not any(tokens):
        return 0.0
    return None if price is None or (isinstance(result, Completion) and not all(tokens)) else price.cost(*tokens)


def total_cost(costs: Iterable[float | None]) -> float | None:
    """Sum of the costs; None if one of them is unknown."""
    all_costs = list(costs)
    known = [cost for cost in all_costs if cost is not None]
    return sum(known) if len(known) == len(all_costs) else None


def token_counts(result: Completion | Failure) -> tuple[int, int]:
    """Tokens (read, written); 0 if the endpoint did not count them."""
    return result.prompt_tokens or 0, result.completion_tokens or 0


def max_call_cost(request: Request, price: Price | None, max_new_tokens: int) -> float:
    """Upper bound in US dollars on one reply to the request; 0 without a price.

    It holds since a token has at least one byte; the schema counts as text, since an endpoint may charge it.
    """
    if price is None:
        return 0.0
    texts = [message["content"] for message in request.messages]
    sent_text = "".join(texts) + (json.dumps(request.schema) if request.schema else "")
    return price.cost(len(sent_text.encode("utf-8", "replace")) + CHAT_TEMPLATE_TOKENS, max_new_tokens)


def count_affordable(max_costs: Sequence[float], budget: float | None) -> int:
    """Number of leading calls whose maximum costs sum to at most `budget`, both in US dollars; all of them without a budget."""
    if budget is None:
        return len(max_costs)
    return sum(total <= budget for total in accumulate(max_costs))


JUDGEMENTS_FILE = "judgements.jsonl"

MAX_FOLDER_NAME_CHARS = 60


def judge_folder(run: Path, label: str) -> Path:
    """The folder of the judge with this label. Different labels always give different folders."""
    name = re.sub(r"[^A-Za-z0-9._-]+", "-", label).strip("-.")[:MAX_FOLDER_NAME_CHARS]
    return run / "judges" / (name if name and name == label else f"{name or 'judge'}-{digest(label, length=8)}")


def judge_folders(run: Path) -> list[Path]:
    """The folders of all judges of a run, sorted by name."""
    return sorted(path.parent for path in (run / "judges").glob("*/config.json"))


def read_judge_calls(folder: Path) -> list[Judgement]:
    """Read all calls of a judge, oldest first; without a file there are no calls.

    Raises DataError, naming file and line, if a complete line is not a judgement.
    """
    return list(read_jsonl(folder / JUDGEMENTS_FILE, Judgement.model_validate_json, "a judgement"))


def latest_judgements(calls: Iterable[Judgement]) -> dict[JudgeInputKey, Judgement]:
    """For each input, its last call with a score, or its last call if no call has a score.

    Calls whose prompt differs from that of a later call do not count: the answer or the rubric has changed since.
    """
    latest: dict[JudgeInputKey, Judgement] = {}
    for call in calls:
        if is_superseding(call, latest.get(call.key)):
            latest[call.key] = call
    return latest


def find_judge_failures(folder: Path) -> Iterator[Failure]:
    """Why inputs of a judge have no score: failed calls, and replies without one."""
    for call in latest_judgements(read_judge_calls(folder)).values():
        if call.score is None:
            yield call.failure or Failure(type="reply", message=call.error or "no score")


def is_superseding(call: Judgement, previous: Judgement | None) -> bool:
    """Whether `call` replaces the previous call of its input. A call without a score never replaces one with a score."""
    return previous is None or previous.prompt_hash != call.prompt_hash or call.score is not None or previous.score is None


class CallSettings(NamedTuple):
    """Settings of all calls of one judge.

    `attempts` is the number of calls per input and start. `max_cost` is in US dollars. `max_requests` is the number of HTTP
    requests that one call can make, each of which can be charged.
    """

    sampling: Sampling
    schema: Mapping[str, Any]
    seed: int
    attempts: int
    price: Price | None
    max_cost: float | None = None
    max_requests: int = 1


class CallTotals(NamedTuple):
    """Totals over all calls of a judge, earlier starts included; costs are in US dollars.

    `cost` is None if the cost of a call is unknown. `spent` counts against the limit: all known costs, and the reserved costs of
    calls that broke off. `next_cost` is the maximum cost of the next call if the limit forbade it, else None. Calls without a
    token count add no tokens. `stop_reason`: why no further call was made in this start, if the endpoint stopped answering.
    """

    n_inputs: int
    n_pending: int
    n_calls: int
    prompt_tokens: int
    completion_tokens: int
    cost: float | None
    spent: float
    next_cost: float | None
    stop_reason: str = ""


def request_pending_scores(
    model: Model, prompts: Sequence[JudgePrompt], folder: Path, settings: CallSettings, label: str
) -> CallTotals:
    """Request every score that is pending in `folder`, and append each call to judgements.jsonl.

    Raises the model's error if the model can answer nothing. If an endpoint stops answering, the rest stays pending.
    """
    calls = read_judge_calls(folder)
    state, stop_reason = _CallState(calls, settings.price), ""
    limit = _CostLimit(state, settings)

    def find_pending() -> list[_PendingCall]:
        return [_PendingCall.for_prompt(prompt, state, settings) for prompt in state.pending(prompts)]

    def record(call: _PendingCall, result: Completion | Failure, bar: ProgressBar) -> None:
        judgement = _to_judgement(call, result, settings)
        try:
            writer.append([judgement])
        except LongRecordError as error:
            failure = long_reply_failure(error)
            lost = {"reply": None, "failure": failure, "score": None, "error": f"{failure.type}: {failure.message}"}
            judgement = judgement.model_copy(update=lost)  # its cost stays
            writer.append([judgement])
        state.record(judgement)
        note = f"{state.unscored} calls without a score" if state.unscored else ""
        bar.advance(int(judgement.score is not None), status=note)

    def answered() -> Iterator[Request]:
        for prompt in prompts:
            for attempt in range(state.attempts_made[prompt.judge_input.key, prompt.hash]):
                yield _call_request(prompt, attempt, settings)

    pass_over_answered(model, answered, settings.sampling)
    # Replies in batch files are paid for already.
    is_paid = isinstance(model, BatchModel) and not model.only_writes
    with closing(JsonlWriter(folder / JUDGEMENTS_FILE)) as writer, progress_bar(label, len(prompts), "scores") as total_bar:
        total_bar.start_at(len(prompts) - len(state.pending(prompts)))
        try:
            collect(
                model,
                settings.sampling,
                find_pending,
                record,
                lambda _: nullcontext(total_bar),
                folder,
                max_rounds=settings.attempts,
                has_answers=any(call.reply is not None for call in calls),
                count_affordable_items=len if is_paid else limit.count_affordable_calls,
            )
        except EndpointStoppedError as error:
            stop_reason = error.stop_reason
    totals = state.totals(prompts, limit.next_cost if state.pending(prompts) else None)
    return totals._replace(stop_reason=stop_reason)


def max_total_cost(prompts: Sequence[JudgePrompt], settings: CallSettings) -> float | None:
    """Upper bound in US dollars if each prompt takes a single call; None without a price."""
    if settings.price is None:
        return None
    state = _CallState([], settings.price)
    return sum(_PendingCall.for_prompt(prompt, state, settings).max_cost for prompt in prompts)


class _CallState:
    """The calls of judgements.jsonl in memory: totals, and the call that counts for each input."""

    def __init__(self, calls: Sequence[Judgement], price: Price | None) -> None:
        self._price = price
        self.calls, self.unscored, self.reserved = 0, 0, 0.0
        self.costs: list[float | None] = []
        self.prompt_tokens = self.completion_tokens = 0
        self.latest: dict[JudgeInputKey, Judgement] = {}
        self.attempts_made = Counter[tuple[JudgeInputKey, str]]()
        for call in calls:
            self.record(call)
        self.unscored = 0  # counts the calls of this start only

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
        latest = self.latest.get(prompt.judge_input.key)
        return latest is not None and latest.score is not None and latest.prompt_hash == prompt.hash

    def totals(self, prompts: Sequence[JudgePrompt], next_cost: float | None) -> CallTotals:
        n_pending, cost = len(self.pending(prompts)), total_cost(self.costs)
        return CallTotals(
            len(prompts), n_pending, self.calls, self.prompt_tokens, self.completion_tokens, cost, self.spent, next_cost
        )

    @property
    def spent(self) -> float:
        return sum(cost or 0.0 for cost in self.costs) + self.reserved


class _PendingCall(NamedTuple):
    """A call that has not been made yet."""

    prompt: JudgePrompt
    attempt: int
    request: Request
    max_cost: float

    @classmethod
    def for_prompt(cls, prompt: JudgePrompt, state: _CallState, settings: CallSettings) -> "_PendingCall":
        attempt = state.attempts_made[prompt.judge_input.key, prompt.hash]
        request = _call_request(prompt, attempt, settings)
        return cls(prompt, attempt, request, max_call_cost(request, settings.price, settings.sampling.max_new_tokens))


def _call_request(prompt: JudgePrompt, attempt: int, settings: CallSettings) -> Request:
    seed = seed_from("judge", settings.seed, *prompt.judge_input.seed_parts, attempt)
    return Request(prompt.messages, seed, settings.schema)


class _CostLimit:
    """Limits the calls in flight so that `CallSettings.max_cost` holds. For `next_cost` see `CallTotals`."""

    def __init__(self, state: _CallState, settings: CallSettings) -> None:
        self._state, self._settings = state, settings
        self.next_cost: float | None = None

    def count_affordable_calls(self, calls: Sequence[_PendingCall]) -> int:
        """Number of next calls that can be in flight together within the limit, each at its maximum cost."""
        max_costs = [call.max_cost * self._settings.max_requests for call in calls]
        limit = self._settings.max_cost
        n_affordable = count_affordable(max_costs, None if limit is None else limit - self._state.spent)
        self.next_cost = None if n_affordable else max_costs[0]
        return n_affordable


def _to_judgement(call: _PendingCall, result: Completion | Failure, settings: CallSettings) -> Judgement:
    item = call.prompt.judge_input
    parsed = _parse_result(result, f"{item.question}\n{item.answer}")
    return Judgement(
        **item.target_fields(), attempt=call.attempt, seed=call.request.seed, prompt_hash=call.prompt.hash,
        reply=result if isinstance(result, Completion) else None, failure=result if isinstance(result, Failure) else None,
        score=parsed.score, error=parsed.error, cost=call_cost(result, settings.price, call.max_cost),
        reserved=reserved_cost(result, call.max_cost * settings.max_requests),
    )  # fmt: skip


def _parse_result(result: Completion | Failure, judged_text: str) -> ParsedScore:
    if isinstance(result, Failure):
        return ParsedScore(None, f"{result.type}: {result.message}")
    parsed = parse_score(result.text, judged_text)
    if parsed.score is None and result.finish == "length":
        return ParsedScore(None, f"{parsed.error}; the reply was cut off at judge.max_new_tokens")
    return parsed

"""Build the requests to the model that writes, and send them until everything is complete or further calls bring no progress.

The prompts come from `prompts.toml`: the built-in situations, the demands of each task on a question, and the templates. Every
request is one user message, since some models accept no system message, and carries the JSON schema of its reply. A persona,
situation or question is inserted as text and never read as part of a template.

Contract: every call is a cell of the run, failed calls included. Its `question_id` names the wanted item, and its `sample` is its
number among the calls for this item. Each call has its own seed, and no cell is overwritten. The records alone determine the
pending requests, so an interrupted run resumes with the requests that it would have made.
"""

import functools
import tomllib
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence
from importlib.resources import files
from string import Template
from typing import Any, NamedTuple

from permix.config import PersonaGymTask, QuestionsConfig
from permix.errors import EndpointStoppedError
from permix.inference.base import CellRequest, Model, collect
from permix.progress import ProgressBar, progress_bar
from permix.question_writer.parsing import SCORE_KEYS, Replies
from permix.storage.run_dir import RunDir
from permix.types import Cell, CellKey, Completion, Failure, Message, digest, seed_from


class WritingPrompt(NamedTuple):
    """The messages of a request, and the JSON schema of its reply."""

    messages: tuple[Message, ...]
    schema: Mapping[str, Any]


def builtin_situations() -> tuple[str, ...]:
    """The built-in list of situations, from `prompts.toml`."""
    return tuple(_load_prompts_toml()["situations"])


def writing_template_hash() -> str:
    """Hash of `prompts.toml`: all prompt templates and built-in lists."""
    return digest(_read_prompts_toml())


def build_situations_prompt(persona: str, candidates: Sequence[str], chosen: Sequence[str]) -> WritingPrompt:
    """Ask which candidate situations suit the persona; situations in `chosen` are excluded."""
    exclusion = _render("settings_again", there="; ".join(chosen)) if chosen else ""
    text = _render("settings", persona=_strip_final_period(persona), situations=_bullets(candidates), again=exclusion)
    return _build_prompt(text, {"situations": _array_schema({"type": "string", "enum": list(candidates)})})


def build_questions_prompt(
    persona: str, task: PersonaGymTask, situations: Sequence[str], n: int, existing: Sequence[str]
) -> WritingPrompt:
    """Ask for `n` questions that test this task and differ from the existing questions."""
    exclusion = _render("questions_again", there=_bullets(existing)) if existing else ""
    text = _render(
        "questions",
        persona=_strip_final_period(persona),
        demand=_load_prompts_toml()["demands"][task],
        n=str(n),
        situations=_bullets(situations),
        again=exclusion,
    )
    return _build_prompt(text, {"questions": _array_schema({"type": "string"})})


def build_examples_prompt(persona: str, question: str, criteria: str) -> WritingPrompt:
    """Ask for one answer per score; `criteria` says which answer gets which score."""
    text = _render("examples", persona=_strip_final_period(persona), question=question, criteria=criteria)
    return _build_prompt(text, {score: {"type": "string"} for score in SCORE_KEYS})


def _build_prompt(text: str, properties: Mapping[str, Any]) -> WritingPrompt:
    schema = {"type": "object", "properties": properties, "required": list(properties), "additionalProperties": False}
    return WritingPrompt((Message(role="user", content=text),), schema)


def _array_schema(items: Mapping[str, Any]) -> dict[str, Any]:
    return {"type": "array", "items": items}


def _render(name: str, **values: str) -> str:
    return Template(_load_prompts_toml()["wording"][name]).substitute(values)  # one pass: a "$n" in a persona is not replaced


def _bullets(lines: Sequence[str]) -> str:
    return "\n".join(f"- {line}" for line in lines)


def _strip_final_period(persona: str) -> str:
    return persona.rstrip(".")


def _read_prompts_toml() -> str:
    return (files("permix.question_writer") / "prompts.toml").read_text(encoding="utf-8")


@functools.cache
def _load_prompts_toml() -> dict[str, Any]:
    return tomllib.loads(_read_prompts_toml())


class RequestKey(NamedTuple):
    """One wanted item of one persona: `name` is a task, or names situations or examples."""

    persona_id: str
    name: str


class PendingRequest(NamedTuple):
    """The next call for a key.

    `n_missing` is the amount still missing, in any unit; it only has to fall with progress. `calls_made` is the number of calls
    for the key so far. Replies to keys of the same `dedup_group` are compared for duplicates. So no key of a group is requested
    again before all that miss something have had equally many calls; otherwise chance would decide which of two similar replies
    comes first.
    """

    key: RequestKey
    dedup_group: str
    calls_made: int
    n_missing: int
    prompt: WritingPrompt

    def to_cell(self, seed: int) -> Cell:
        return Cell(
            persona_id=self.key.persona_id, question_id=self.key.name, sample=self.calls_made,
            seed=seed_from("write", seed, *self.key, self.calls_made), messages=self.prompt.messages,
        )  # fmt: skip

    def to_request(self, seed: int) -> CellRequest:
        return CellRequest.for_cell(self.to_cell(seed), self.prompt.schema)


RepliesByKey = Mapping[RequestKey, Replies]
"""All replies of each key in the order of the calls; None for a failed call."""


def replies_by_key(cells: Mapping[CellKey, Cell]) -> RepliesByKey:
    """Group the replies of a run's cells by key. A key that was never requested is absent."""
    replies: defaultdict[RequestKey, list[str | None]] = defaultdict(list)
    for key in sorted(cells, key=lambda key: key.sample):
        completion = cells[key].completion
        replies[RequestKey(key.persona_id or "", key.question_id)].append(completion.answer if completion else None)
    return replies


def generate_until_complete(
    model: Model,
    config: QuestionsConfig,
    run: RunDir,
    find_pending: Callable[[RepliesByKey], Sequence[PendingRequest]],
    label: str,
) -> None:
    """Send the requests that `find_pending` returns, until it returns no request or each remaining key has used up its attempts.

    A key gets no further call after a failed call, or after `config.attempts` calls without progress, and the other keys of its
    group wait for the next start with it. If the endpoint stops answering, `run.stop_reason` says so, and nothing is requested
    any more.
    """
    tracker = RetryTracker(config.attempts)

    def next_requests() -> list[CellRequest]:
        pending = [] if run.stop_reason else find_pending(replies_by_key(run.cells()))
        return [one.to_request(config.seed) for one in tracker.next_requests(pending)]

    def record(one: CellRequest, result: Completion | Failure, bar: ProgressBar) -> None:
        run.count_answers(isinstance(result, Completion))
        recorded = run.append_result(one.cell_with(result))
        if recorded.failure is not None:
            tracker.failed.add(RequestKey(one.cell.persona_id or "", one.cell.question_id))
        bar.advance(status=f"{len(tracker.failed)} failed" if tracker.failed else "")

    try:
        collect(
            model,
            config.sampling,
            next_requests,
            record,
            lambda n: progress_bar(label, n, "replies"),
            run.path,
            has_answers=run.cells().n_completions > 0,
        )
    except EndpointStoppedError as error:
        run.stop_reason = error.stop_reason


class RetryTracker:
    """Decides which keys get another call in this start. A failed call is not repeated, since the model retries by itself."""

    def __init__(self, attempts: int) -> None:
        self.failed: set[RequestKey] = set()
        self._attempts = attempts
        self._previous: dict[RequestKey, PendingRequest] = {}
        self._fruitless_calls: Counter[RequestKey] = Counter()

    def next_requests(self, pending: Sequence[PendingRequest]) -> list[PendingRequest]:
        for one in pending:
            self._update(one)
        least: dict[str, int] = {}
        for one in pending:
            # A key that waits for the next start will be read before the later calls of its group.
            call = one.calls_made if self._is_open(one.key) else one.calls_made - 1
            least[one.dedup_group] = min(call, least.get(one.dedup_group, call))
        return [one for one in pending if self._is_open(one.key) and one.calls_made == least[one.dedup_group]]

    def _is_open(self, key: RequestKey) -> bool:
        return key not in self.failed and self._fruitless_calls[key] < self._attempts

    def _update(self, request: PendingRequest) -> None:
        before = self._previous.get(request.key, request)
        if request.calls_made > before.calls_made:
            self._fruitless_calls[request.key] = (
                0 if request.n_missing < before.n_missing else self._fruitless_calls[request.key] + 1
            )
        self._previous[request.key] = request

"""A model asked until what is wanted is whole, or until it adds nothing more.

Every call is a cell of the run, whatever came of it: its persona, what was wanted (`question_id`), and its number among the calls
for that (`sample`). A further call has a seed of its own and nothing is ever overwritten. What is still wanted follows from the
records alone, so a run that was killed goes on as if it had not been.

What a model is asked when it writes: the situations, what each task demands of a question, and our wording (`prompts.toml`).

Every request is one user message, since not every model takes a system message, and carries the JSON schema of its reply. Nothing
that stands in a persona, a situation or a question is taken for a part of the wording.
"""

import functools
import tomllib
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence
from importlib.resources import files
from string import Template
from typing import Any, NamedTuple

from permix.config import PersonaGymTask, QuestionsConfig
from permix.inference.base import Model
from permix.inference.collect import CellRequest, collect
from permix.progress import ProgressBar, progress_bar
from permix.question_writer.parsing import SCORE_KEYS, Replies
from permix.storage.run_dir import RunDir
from permix.types import Cell, CellKey, Completion, Failure, Message, digest, seed_from


class WritingPrompt(NamedTuple):
    """What is sent, and the JSON schema that the reply is to obey."""

    messages: tuple[Message, ...]
    schema: Mapping[str, Any]


def builtin_situations() -> tuple[str, ...]:
    return tuple(_load_prompts_toml()["situations"])


def writing_template_hash() -> str:
    """Hash of all that is asked apart from personas, situations and criteria."""
    return digest(_read_prompts_toml())


def build_situations_prompt(persona: str, candidates: Sequence[str], chosen: Sequence[str]) -> WritingPrompt:
    """Which of the situations in the list suit the persona, besides those that are chosen already."""
    again = _render("settings_again", there="; ".join(chosen)) if chosen else ""
    text = _render("settings", persona=_strip_final_period(persona), situations=_bullets(candidates), again=again)
    return _build_prompt(text, {"situations": _array_schema({"type": "string", "enum": list(candidates)})})


def build_questions_prompt(
    persona: str, task: PersonaGymTask, situations: Sequence[str], n: int, existing: Sequence[str]
) -> WritingPrompt:
    """`n` questions that show this task, besides those that are there already."""
    again = _render("questions_again", there=_bullets(existing)) if existing else ""
    text = _render(
        "questions",
        persona=_strip_final_period(persona),
        demand=_load_prompts_toml()["demands"][task],
        n=str(n),
        situations=_bullets(situations),
        again=again,
    )
    return _build_prompt(text, {"questions": _array_schema({"type": "string"})})


def build_examples_prompt(persona: str, question: str, criteria: str) -> WritingPrompt:
    """An answer for each score; `criteria` says what earns which."""
    text = _render("examples", persona=_strip_final_period(persona), question=question, criteria=criteria)
    return _build_prompt(text, {score: {"type": "string"} for score in SCORE_KEYS})


def _build_prompt(text: str, properties: Mapping[str, Any]) -> WritingPrompt:
    schema = {"type": "object", "properties": properties, "required": list(properties), "additionalProperties": False}
    return WritingPrompt((Message(role="user", content=text),), schema)


def _array_schema(items: Mapping[str, Any]) -> dict[str, Any]:
    return {"type": "array", "items": items}


def _render(name: str, **values: str) -> str:
    return Template(_load_prompts_toml()["wording"][name]).substitute(values)  # one pass: a "$n" in a persona stays what it is


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
    """One thing that is wanted, for one persona."""

    persona_id: str
    name: str


class PendingRequest(NamedTuple):
    """The next call for a slot. `n_missing`: how much of it is not there yet, in any unit. `calls_made`: calls made for it
    so far.

    Slots of one `dedup_group` are checked against one another, so that none of them is asked again before all have had as
    many calls: else it would depend on chance which of two like replies came first.
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
"""All replies so far, of each slot in the order of the calls; None where a call failed."""


def replies_by_key(cells: Mapping[CellKey, Cell]) -> RepliesByKey:
    """The replies in a run's records; a slot that was never asked for has none."""
    book: defaultdict[RequestKey, list[str | None]] = defaultdict(list)
    for key in sorted(cells, key=lambda key: key.sample):
        completion = cells[key].completion
        book[RequestKey(key.persona_id or "", key.question_id)].append(completion.text if completion else None)
    return book


def generate_until_complete(
    model: Model,
    config: QuestionsConfig,
    run: RunDir,
    find_pending: Callable[[RepliesByKey], Sequence[PendingRequest]],
    label: str,
) -> None:
    """Ask for what is `find_pending` until nothing is, or each slot that is left has failed or was asked `attempts` times in
    vain."""
    tracker = RetryTracker(config.attempts)

    def next_requests() -> list[CellRequest]:
        pending = find_pending(replies_by_key(run.cells()))
        return [one.to_request(config.seed) for one in tracker.next_requests(pending)]

    def record(one: CellRequest, result: Completion | Failure, bar: ProgressBar) -> None:
        run.append([one.cell_with(result)])
        if isinstance(result, Failure):
            tracker.failed.add(RequestKey(one.cell.persona_id or "", one.cell.question_id))
        bar.advance(status=f"{len(tracker.failed)} failed" if tracker.failed else "")

    collect(model, config.sampling, next_requests, record, lambda n: progress_bar(label, n, "replies"))


class RetryTracker:
    """Which slots are worth another call in this start. A failed call is not asked again: the model has retries of its own."""

    def __init__(self, attempts: int) -> None:
        self.failed: set[RequestKey] = set()
        self._attempts = attempts
        self._previous: dict[RequestKey, PendingRequest] = {}
        self._fruitless_calls: Counter[RequestKey] = Counter()

    def next_requests(self, pending: Sequence[PendingRequest]) -> list[PendingRequest]:
        for one in pending:
            self._update(one)
        open_ = [one for one in pending if one.key not in self.failed and self._fruitless_calls[one.key] < self._attempts]
        least: dict[str, int] = {}
        for one in open_:
            least[one.dedup_group] = min(one.calls_made, least.get(one.dedup_group, one.calls_made))
        return [one for one in open_ if one.calls_made == least[one.dedup_group]]

    def _update(self, request: PendingRequest) -> None:
        before = self._previous.get(request.key, request)
        if request.calls_made > before.calls_made:
            self._fruitless_calls[request.key] = (
                0 if request.n_missing < before.n_missing else self._fruitless_calls[request.key] + 1
            )
        self._previous[request.key] = request

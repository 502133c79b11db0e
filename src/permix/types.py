"""The vocabulary: every noun that passes between stages, frozen.

A stage reads and writes these records and nothing else, so any stage can run on another machine on another day.
`None` is used in exactly two senses: a persona of `None` means "no persona" (no system message is sent), and a verdict of
`None` means "not scored" (the verifier or judge failed, and the cell is still owed). It never means zero.
"""

import hashlib
import re
import unicodedata
from collections.abc import Mapping, Sequence
from typing import Any, Literal, NamedTuple, get_args

from pydantic import BaseModel, ConfigDict, Field, model_validator
from typing_extensions import TypedDict

Split = Literal["train", "dev", "heldout"]
"""The sides of personas and questions: train to train on, dev to choose on, heldout to measure on once all is chosen."""

SPLITS: tuple[Split, ...] = get_args(Split)

PersonaScope = Literal["group", "rollout"]


class Record(BaseModel):
    """Base of everything written to disk: immutable, unknown keys refused."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class Message(TypedDict):
    """One chat message; `role` is system, user or assistant."""

    role: str
    content: str


class Persona(Record):
    """Who is asked to answer: a noun phrase that completes "You are ..." ("a retired sailor who distrusts numbers")."""

    id: str = Field(min_length=1)
    text: str = Field(min_length=1)
    tags: tuple[str, ...] = ()
    split: Split | None = None
    weight: float = Field(default=1.0, gt=0)


def canonical_text(text: str) -> str:
    """Text with case, Unicode form and white space levelled: what counts as "the same question" or "the same persona"."""
    return re.sub(r"\s+", " ", unicodedata.normalize("NFKC", text)).strip().casefold()


def digest(*parts: str, length: int = 16) -> str:
    """Hex SHA-256 of the parts, unambiguous under concatenation, cut to `length` characters."""
    sha = hashlib.sha256()
    for part in parts:
        raw = part.encode("utf-8", "surrogatepass")
        sha.update(len(raw).to_bytes(8, "big"))
        sha.update(raw)
    return sha.hexdigest()[:length]


def seed_from(*parts: str | int) -> int:
    """A 63-bit seed that depends on every part and on nothing else (not on order of drawing, process or machine)."""
    return int(digest(*map(str, parts)), 16) >> 1


class Question(Record):
    """One checkable question. `text` is the bare question; the task's prompt wording is added in `Task.prompt`.

    `solution` is a right answer as a model should give it, which supervised training learns from; None where there is none.
    """

    id: str = Field(min_length=1)
    task: str
    text: str = Field(min_length=1)
    gold: str
    tags: tuple[str, ...] = ()
    solution: str | None = None

    @property
    def content_hash(self) -> str:
        """Identity of the question across tasks, splits and files: the hash of its normalised text."""
        return digest(canonical_text(self.text))


class Verdict(Record):
    """What a verifier says of one completion.

    `correct` is None when the verifier itself failed (time, memory, crash): then `error` says why. A completion with no
    answer in it is the model's failure: `correct=False, extracted=None`.
    """

    correct: bool | None
    extracted: str | None = None
    error: str | None = None

    @property
    def reward(self) -> float | None:
        return None if self.correct is None else float(self.correct)


class Sampling(Record):
    """How completions are drawn. `temperature=0` is greedy."""

    temperature: float = Field(default=0.0, ge=0)
    top_p: float = Field(default=1.0, gt=0, le=1)
    max_new_tokens: int = Field(default=256, gt=0)


class Request(NamedTuple):
    """One prompt for a model; `seed` makes its sample independent of the batch it travels in.

    `schema`: a JSON schema that the reply is to obey where the engine can see to that; others answer as they like.
    """

    messages: tuple[Message, ...]
    seed: int
    schema: Mapping[str, Any] | None = None


class Completion(Record):
    """What a model answered. Token counts are the backend's own; `finish` is "length" when it was cut off.

    Each of them is None where another program asked and did not say (`permix import`).
    """

    text: str
    prompt_tokens: int | None = Field(ge=0)
    completion_tokens: int | None = Field(ge=0)
    finish: Literal["stop", "length"] | None


class Failure(Record):
    """Why a cell has no completion, or no verdict: the error's type and message, recorded at the cell's boundary.

    Tokens: what replies that could not be used were charged with, as far as the endpoint said.
    """

    type: str
    message: str
    prompt_tokens: int = Field(default=0, ge=0)
    completion_tokens: int = Field(default=0, ge=0)


class CellKey(NamedTuple):
    """Persona × question × sample: the unit of evaluation, caching, failure and resume.

    `template` is which of several wordings brought the persona in; empty where a run has but one, and without persona.
    """

    persona_id: str | None
    question_id: str
    sample: int
    template: str = ""

    def __str__(self) -> str:
        template = f" by {self.template!r}" if self.template else ""
        return f"{self.persona_id!r} × {self.question_id!r}, sample {self.sample}{template}"


class Cell(Record):
    """One line of `records.jsonl`: what was asked as whom, what came back, and what the verifier said.

    `verdict` is None for open-ended questions and for cells whose completion never came; `failure` then says why.
    """

    persona_id: str | None
    question_id: str
    sample: int = 0
    template: str = ""
    seed: int
    messages: tuple[Message, ...]
    gold: str | None = None
    completion: Completion | None = None
    verdict: Verdict | None = None
    failure: Failure | None = None

    @property
    def key(self) -> CellKey:
        return CellKey(self.persona_id, self.question_id, self.sample, self.template)


JudgeControl = Literal["none", "wrong-persona", "no-persona", "padded", "retest", "injected"]
"""Why an answer is judged. "none": to score it. All others try the judge: the answer under another persona; an answer given
without persona; the answer with empty words added; the same once more; with an instruction to the judge inside."""


class AnswerKey(NamedTuple):
    """One answer under one rubric, whoever judges it and under whatever control.

    `persona_id`: who gave it; of an answer without persona, whose question it was.
    """

    persona_id: str
    rubric: str
    question_id: str
    sample: int


class JudgeInputKey(NamedTuple):
    """What is judged once by each judge."""

    control: JudgeControl
    answer: AnswerKey


class PlanRow(Record):
    """One line of a plan: `rollouts` completions of these messages, in this group of this step.

    With scope "group" a group is one row of G rollouts; with scope "rollout" it is G rows of one rollout each, which share the
    question and differ in persona.
    """

    step: int = Field(ge=0)
    group: int = Field(ge=0)
    rollouts: int = Field(gt=0)
    task: str
    question_id: str
    question_hash: str
    persona_id: str | None
    persona_tags: tuple[str, ...] = ()
    seed: int = Field(ge=0)
    messages: tuple[Message, ...]
    gold: str
    spare: bool = False
    """Asked only in place of a group of its step whose rollouts all earned the same."""
    solution: str | None = None


class Estimate(Record):
    """A measured number: its value, 95 % interval and the number of units resampled. None where it cannot be computed."""

    value: float | None
    low: float | None = None
    high: float | None = None
    n: int = Field(ge=0)

    @model_validator(mode="after")
    def _check_interval(self) -> "Estimate":
        if self.low is not None and self.high is not None and self.low > self.high:
            raise ValueError(f"interval is upside down: low {self.low} > high {self.high}")
        return self

    def __str__(self) -> str:
        if self.value is None:
            return "–"
        interval = "" if self.low is None else f" [{self.low:.2f}, {self.high:.2f}]"
        return f"{self.value:.3f}{interval}"

    def format_difference(self) -> str:
        """As a difference: "+0.120 [+0.05, +0.19]"."""
        if self.value is None:
            return "–"
        value = round(self.value, 9) + 0.0  # what a floating-point sum leaves of nothing has no sign
        interval = "" if self.low is None or self.high is None else f" [{self.low:+.2f}, {self.high:+.2f}]"
        return f"{value:+.3f}{interval}".replace("-", "−")


def require_unique(ids: Sequence[str], what: str) -> None:
    """Raise ValueError naming the first id that occurs twice."""
    seen: set[str] = set()
    for one in ids:
        if one in seen:
            raise ValueError(f"{what} id {one!r} occurs twice; ids must be unique")
        seen.add(one)

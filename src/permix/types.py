"""The shared vocabulary: the frozen records that stages exchange.

A stage reads and writes only these records, so each stage can run on another machine at another time.
A persona of `None` means "no persona": no system message is sent. A verdict or score of `None` means "not scored": the verifier
or judge failed and the cell is pending. `None` never means zero.
"""

import hashlib
import re
import unicodedata
from collections.abc import Mapping, Sequence
from typing import Any, Generic, Literal, NamedTuple, TypeVar, get_args

from pydantic import BaseModel, ConfigDict, Field, model_validator
from typing_extensions import TypedDict

from permix.thinking import SplitCompletion, answer_of, split_thinking

Split = Literal["train", "dev", "heldout"]
"""Splits of personas and questions: train for training, dev for choosing settings, heldout for the final measurement."""

SPLITS: tuple[Split, ...] = get_args(Split)

PersonaScope = Literal["group", "rollout"]


class Record(BaseModel):
    """Base of every record written to disk: immutable; unknown keys, infinite numbers and NaN are refused."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class Message(TypedDict):
    """One chat message; `role` is system, user or assistant."""

    role: str
    content: str


def last_user_text(messages: Sequence[Mapping[str, Any]]) -> str:
    """The text of the last user message, which holds the question; "" if there is none."""
    return next((str(one.get("content") or "") for one in reversed(messages) if one.get("role") == "user"), "")


NO_PERSONA_TAG, UNTAGGED = "none", "untagged"


def reward_tags(persona_id: str | None, persona_tags: Sequence[str]) -> Sequence[str]:
    """The tags by which a rollout's reward is averaged: its persona's, UNTAGGED if that has none, and NO_PERSONA_TAG without a
    persona."""
    return persona_tags or ((NO_PERSONA_TAG,) if persona_id is None else (UNTAGGED,))


class Persona(Record):
    """A persona that a model plays: `text` is a noun phrase that completes "You are ..." ("a retired sailor who distrusts
    numbers"), or a whole system prompt if `whole_prompt`. `weight` is relative: the chance that training draws this persona is
    proportional to it."""

    id: str = Field(min_length=1)
    text: str = Field(min_length=1)
    tags: tuple[str, ...] = ()
    split: Split | None = None
    weight: float = Field(default=1.0, gt=0)
    whole_prompt: bool = Field(default=False, exclude_if=lambda value: not value)


def canonical_text(text: str) -> str:
    """Normalize case, Unicode form (NFKC) and white space. Two questions or personas are equal if these texts are equal."""
    return re.sub(r"\s+", " ", unicodedata.normalize("NFKC", text)).strip().casefold()


def digest(*parts: str, length: int = 16) -> str:
    """The first `length` hex digits of the SHA-256 of the parts. Each part's length is hashed too, so that ("a", "bc") and
    ("ab", "c") differ."""
    sha = hashlib.sha256()
    for part in parts:
        raw = part.encode("utf-8", "surrogatepass")
        sha.update(len(raw).to_bytes(8, "big"))
        sha.update(raw)
    return sha.hexdigest()[:length]


def seed_from(*parts: str | int) -> int:
    """A 63-bit seed that depends only on the parts, not on the order of draws, the process or the machine."""
    return int(digest(*map(str, parts)), 16) >> 1


MAX_SHARDS = 10_000

_SHARD = re.compile(r"(\d{1,9})/(\d{1,9})")


class Shard(NamedTuple):
    """The part of a run that one of several workers asks: part `number`, from 1 to `total`."""

    number: int
    total: int

    @classmethod
    def parse(cls, text: str) -> "Shard":
        """The shard that a text like "2/4" names. Raises ValueError, which says what is valid."""
        found = _SHARD.fullmatch(text)
        if found is None:
            raise ValueError('must be like "2/4": worker 2 of 4')
        shard = cls(int(found[1]), int(found[2]))
        if not 1 <= shard.total <= MAX_SHARDS:
            raise ValueError(f"must name 1 to {MAX_SHARDS} workers")
        if not 1 <= shard.number <= shard.total:
            raise ValueError(
                f"workers count from 1 to {shard.total}; give the tasks of a job array the numbers 1 to {shard.total}, as with "
                f"--array=1-{shard.total}"
            )
        return shard

    def __str__(self) -> str:
        return f"{self.number}/{self.total}"

    @property
    def file_suffix(self) -> str:
        """What the names of this worker's own files hold: "2of4"."""
        return f"{self.number}of{self.total}"


CONTEXTS = ("system", "user", "in-character")
"""The contexts other than "turns-1", "turns-2" and so on (`n_context_turns`). `prompts.build_messages` says what each does."""

MAX_CONTEXT_TURNS = 100

_TURNS_CONTEXT = re.compile(r"turns-([1-9]\d{0,2})")


def n_context_turns(context: str) -> int:
    """The number of recorded turns in front of the question: K in the context "turns-K", else 0.

    Raises ValueError, which says what is valid, if `context` is no name of a context.
    """
    if context in CONTEXTS:
        return 0
    found = _TURNS_CONTEXT.fullmatch(context)
    if found is None or int(found[1]) > MAX_CONTEXT_TURNS:
        raise ValueError(f"give {', '.join(CONTEXTS)}, or turns-K with K from 1 to {MAX_CONTEXT_TURNS}, as turns-4")
    return int(found[1])


class RecordedTurn(NamedTuple):
    """A question and its recorded answer: one turn of a conversation."""

    question: str
    answer: str


class Question(Record):
    """A question whose answer can be checked. `text` is the bare question; `Task.prompt` puts it into the task's template.

    `gold` is the correct answer that a verifier compares with. `solution` is a full correct answer for supervised training to
    learn from; None if the data set has none.
    """

    id: str = Field(min_length=1)
    task: str
    text: str = Field(min_length=1)
    gold: str
    tags: tuple[str, ...] = ()
    solution: str | None = None

    @property
    def content_hash(self) -> str:
        """Identifies the question across tasks, splits and files: the hash of its normalized text."""
        return digest(canonical_text(self.text))


class Verdict(Record):
    """A verifier's result for one completion.

    `correct` is None if the verifier itself failed (time, memory, crash); `error` then says why. A completion without an answer
    counts as wrong: `correct=False, extracted=None`.
    """

    correct: bool | None
    extracted: str | None = None
    error: str | None = None

    @property
    def reward(self) -> float | None:
        """1.0 for a right answer, 0.0 for a wrong one, None if the verifier failed."""
        return None if self.correct is None else float(self.correct)


class Sampling(Record):
    """How a model samples its completions."""

    model_config = ConfigDict(use_attribute_docstrings=True)  # the texts below are the help of the command line's options

    temperature: float = Field(default=0.0, ge=0)
    """Sampling temperature; 0 is greedy decoding."""
    top_p: float = Field(default=1.0, gt=0, le=1)
    """Nucleus sampling: sample from the likeliest tokens whose probabilities add up to this; 1 samples from all tokens."""
    max_new_tokens: int = Field(default=256, gt=0)
    """Maximum length of a completion, in tokens; when not given, 48 in `permix fidelity` and 1500 in `permix questions`, and in
    `permix stability` a number by task: docs/guide.md."""


class Request(NamedTuple):
    """One prompt for a model. Its sample depends on `seed`, not on the other requests of its batch.

    `schema` is a JSON schema for the reply. Engines with constrained decoding enforce it; other engines ignore it.
    """

    messages: tuple[Message, ...]
    seed: int
    schema: Mapping[str, Any] | None = None


class Completion(Record):
    """A model's reply. The backend counts the tokens; `finish` is "length" if the token limit cut the reply off.

    `text` is the reply as the model wrote it, thinking included; what is scored, judged and shown is `answer`. `reasoning` is
    thinking that an endpoint sends apart from the text. Token counts and `finish` are None if they are not known.
    `thinking_cut`: the thinking reached its budget, and the text that closes it was forced.
    """

    text: str
    prompt_tokens: int | None = Field(ge=0)
    completion_tokens: int | None = Field(ge=0)
    finish: Literal["stop", "length"] | None
    reasoning: str | None = Field(default=None, exclude_if=lambda value: value is None)
    thinking_cut: bool = Field(default=False, exclude_if=lambda value: not value)

    @property
    def answer(self) -> str:
        """The text without its thinking; empty if the thinking never ends."""
        return answer_of(self.text)

    @property
    def thinking(self) -> str:
        """All thinking, from the text and from `reasoning`; empty if there is none."""
        return self.parts.thinking

    @property
    def parts(self) -> SplitCompletion:
        """`answer`, `thinking` and `is_thinking_unclosed` from one search of the text."""
        answer, thinking, _ = split = split_thinking(self.text)
        if self.reasoning:
            thinking = f"{self.reasoning}\n{thinking}" if thinking else self.reasoning
        return SplitCompletion(answer, thinking, _is_unclosed(split, self.text, self.finish, self.reasoning))

    @property
    def is_thinking_unclosed(self) -> bool:
        """Whether the reply ends within its thinking, so that it has no answer."""
        return is_thinking_unclosed(self.text, self.finish, self.reasoning)

    @property
    def is_cut_off(self) -> bool | None:
        """Whether the token limit cut the reply off, or its thinking never ends; None if that is not known."""
        return is_cut_off(self.finish, is_unclosed=self.is_thinking_unclosed)


def is_thinking_unclosed(text: str, finish: str | None, reasoning: str | None) -> bool:
    """`Completion.is_thinking_unclosed` of a completion with these fields."""
    return _is_unclosed(split_thinking(text), text, finish, reasoning)


def _is_unclosed(split: SplitCompletion, text: str, finish: str | None, reasoning: str | None) -> bool:
    return split.unclosed or (finish == "length" and bool(reasoning) and not text.strip())


def is_cut_off(finish: str | None, *, is_unclosed: bool) -> bool | None:
    """`Completion.is_cut_off` of a completion with this `finish`; `is_unclosed`: its thinking never ends."""
    return True if is_unclosed else None if finish is None else finish == "length"


class Failure(Record):
    """Why a cell has no completion or no verdict: the type and message of the error.

    The token counts are those that the endpoint reported for replies that could not be used; they cost money too.
    """

    type: str
    message: str
    prompt_tokens: int = Field(default=0, ge=0)
    completion_tokens: int = Field(default=0, ge=0)


class CellKey(NamedTuple):
    """Identifies a cell: persona × question × sample, the unit of evaluation, caching, failure and resume.

    `template` names the persona template of a run with several, and `context` the context of a run with contexts. Each is empty
    in other runs and in cells without persona.
    """

    persona_id: str | None
    question_id: str
    sample: int
    template: str = ""
    context: str = ""

    def __str__(self) -> str:
        template = f" by {self.template!r}" if self.template else ""
        context = f" in context {self.context!r}" if self.context else ""
        return f"{self.persona_id!r} × {self.question_id!r}, sample {self.sample}{template}{context}"


class Cell(Record):
    """One line of `records.jsonl`: the messages sent, the completion, and the verifier's verdict.

    `verdict` is None for open-ended questions and for cells without a completion; `failure` says why a completion is missing.
    """

    persona_id: str | None
    question_id: str
    sample: int = 0
    template: str = ""
    context: str = Field(default="", exclude_if=lambda value: not value)
    seed: int
    messages: tuple[Message, ...]
    gold: str | None = None
    completion: Completion | None = None
    verdict: Verdict | None = None
    failure: Failure | None = None

    @property
    def key(self) -> CellKey:
        return CellKey(self.persona_id, self.question_id, self.sample, self.template, self.context)

    @property
    def prompt(self) -> str:
        """The text of the last user message, which holds the question."""
        return last_user_text(self.messages)


JudgeControl = Literal["none", "wrong-persona", "no-persona", "padded", "retest", "injected"]
"""Why a judge scores an answer. "none" is the measurement itself. The others are controls, which test the judge:
"wrong-persona" shows the answer under another persona, "no-persona" shows an answer given without persona, "padded" adds empty
phrases to the answer, "retest" asks the same again, and "injected" adds an instruction to the judge to the answer."""


class AnswerKey(NamedTuple):
    """Identifies an answer under one rubric; it is the same for every judge and every control.

    `persona_id`: the persona that gave the answer; for an answer without persona, the persona whose question it was.
    """

    persona_id: str
    rubric: str
    question_id: str
    sample: int


class JudgeInputKey(NamedTuple):
    """Identifies one input of a judge; each judge scores it once.

    `answer` contains the persona that gave the answer. In a control the judge may be shown another persona.
    """

    control: JudgeControl
    answer: AnswerKey


class PlanRow(Record):
    """One row of a training plan: sample `rollouts` completions of these messages, in this group of this step.

    With scope "group" a group is one row of G rollouts. With scope "rollout" it is G rows of one rollout each, which share the
    question; each row draws its own persona.
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
    """Sampled only to replace a group of the same step whose rollouts all earned the same reward (dynamic sampling)."""
    solution: str | None = None
    template: str = Field(default="", exclude_if=lambda value: not value)
    """The id of the row's template, in a plan that draws templates; empty without a persona, as is `context`."""
    context: str = Field(default="", exclude_if=lambda value: not value)
    """The row's context, in a plan that draws contexts."""


def true_minus(text: str) -> str:
    """A formatted number with a minus sign in place of the hyphen."""
    return text.replace("-", "−")


class Estimate(Record):
    """A measured number: `value`, the 95 % interval from `low` to `high`, and the number `n` of resampled units.

    `value` or the interval is None if it cannot be computed.
    """

    value: float | None
    low: float | None = None
    high: float | None = None
    n: int = Field(ge=0)

    @model_validator(mode="after")
    def _check_interval(self) -> "Estimate":
        if self.low is not None and self.high is not None and self.low > self.high:
            raise ValueError(f"the interval is reversed: low {self.low} > high {self.high}")
        return self

    @property
    def decimals(self) -> int:
        """How many decimals of the value n supports: 3 if the interval is at most 0.1 wide, else 2.

        Without an interval, 3 from n = 400 on: the interval of a share of 400 is up to 0.1 wide.
        """
        if self.low is None or self.high is None:
            return 3 if self.n >= 400 else 2
        return 3 if round(self.high - self.low, 9) <= 0.1 else 2

    def __str__(self) -> str:
        interval = "" if self.value is None or self.low is None else f" [{self.low:.2f}, {self.high:.2f}]"
        return true_minus(f"{self.format_value()}{interval}")

    def format_value(self, decimals: int | None = None) -> str:
        """The value alone, with as many decimals as n supports: "0.812", or "0.81" with a wide interval.

        `decimals`: with at most this many, so that values beside each other have equally many.
        """
        shown = self.decimals if decimals is None else min(decimals, self.decimals)
        return "–" if self.value is None else true_minus(f"{self._rounded(shown):.{shown}f}")

    def _rounded(self, decimals: int) -> float:
        """The value as it is shown; what rounds to zero has no sign."""
        return round(self.value or 0.0, decimals) + 0.0

    def format_difference(self, decimals: int | None = None) -> str:
        """The estimate with signs: "+0.120 [+0.05, +0.19]". `decimals`: as many as this; for a place beside the two values.

        With too few decimals a difference of -0.015 would be -0.01 beside 0.90 and 0.92.
        """
        if self.value is None:
            return "–"
        shown = self.decimals if decimals is None else decimals
        interval = "" if self.low is None or self.high is None else f" [{self.low:+.2f}, {self.high:+.2f}]"
        return true_minus(f"{self._rounded(shown):+.{shown}f}{interval}")


_Value = TypeVar("_Value")


class Measured(NamedTuple, Generic[_Value]):
    """The value of a measure, or None and the reason that there is none."""

    value: _Value | None
    reason: str = ""


def count_text(n: int, noun: str) -> str:
    """A number with its noun: "1 persona", "12 personas"."""
    return f"{n} {noun}{'' if n == 1 else 's'}"


def require_unique(ids: Sequence[str], what: str) -> None:
    """Raise ValueError naming the first id that occurs twice; `what` says in the message what the ids belong to."""
    seen: set[str] = set()
    for one in ids:
        if one in seen:
            raise ValueError(f"{what} id {one!r} occurs twice; ids must be unique")
        seen.add(one)

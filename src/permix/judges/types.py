"""Records of judging: an answer as a judge sees it, and the result of one call.

A score is 1 to 5, or None if the judge failed or its reply contains no score. A missing score never counts as a low score.
"""

from typing import Any

from pydantic import Field

from permix.types import AnswerKey, Completion, Failure, JudgeControl, JudgeInputKey, Record

IN_CHARACTER = "In Character"
"""The default rubric for open-ended answers and turns of an interview, whose questions belong to no task of PersonaGym."""


class JudgeTarget(Record):
    """The subject of one judge call: an answer, the rubric that it is judged by, and the control.

    `persona_id`: the persona that the answer is judged as. `answered_by`: the persona that gave the answer, None without a
    persona. `form`: for the control "injected", the instruction that the answer contains, a key of
    `judges.validation.INJECTION_FORMS`.
    """

    control: JudgeControl = "none"
    form: str | None = None
    persona_id: str
    answered_by: str | None
    question_id: str
    sample: int = 0
    rubric: str

    @property
    def answer_key(self) -> AnswerKey:
        return AnswerKey(self.answered_by or self.persona_id, self.rubric, self.question_id, self.sample)

    @property
    def key(self) -> JudgeInputKey:
        return JudgeInputKey(self.control, self.answer_key)

    @property
    def seed_parts(self) -> tuple[str, ...]:
        """The parts that call seeds and the markers around the answer are derived from."""
        parts = self.control, self.persona_id, self.answered_by, self.question_id, self.sample, self.rubric
        return tuple(map(str, parts))

    def target_fields(self) -> dict[str, Any]:
        """The fields of `JudgeTarget` only, for building another record about the same answer."""
        return {name: getattr(self, name) for name in JudgeTarget.model_fields}


class JudgeInput(JudgeTarget):
    """One answer as a judge sees it.

    `persona` is the text of the persona that it is judged as. `question` is the question; in an interview, all questions so far.
    """

    persona: str
    question: str
    answer: str


class Judgement(JudgeTarget):
    """One line of a judge's `judgements.jsonl`: one call and its result.

    `prompt_hash` is the hash of the messages sent; it changes with the answer or the rubric, and then the input is judged again.
    `error` says why there is no score. `cost` is in US dollars, None without a price. `reserved`, also in US dollars, is the
    maximum cost of a call that broke off; it counts against the cost limit but is not part of the cost.
    """

    attempt: int = Field(ge=0)
    seed: int
    prompt_hash: str
    reply: Completion | None = None
    failure: Failure | None = None
    score: int | None = Field(default=None, ge=1, le=5)
    error: str | None = None
    cost: float | None = Field(default=None, ge=0)
    reserved: float = Field(default=0.0, ge=0)

"""The nouns of judging: an answer as a judge sees it, and what came of one call.

A score is 1 to 5, or None: a judge that failed, or whose reply holds no score, never lowers one.
"""

from typing import Any

from pydantic import Field

from permix.types import AnswerKey, Completion, Failure, JudgeControl, JudgeInputKey, Record

IN_CHARACTER = "In Character"
"""The rubric of answers to questions that belong to none of PersonaGym's tasks: open-ended ones, and turns of an interview. They
are judged by it unless `judge.rubrics` names others."""


class JudgeTarget(Record):
    """What one call is about: an answer, the rubric it is judged by, and the control, if it is one.

    `persona_id`: as whom the answer is judged. `answered_by`: whose answer it is; None: no persona was set. `form`: of an answer
    with an instruction to the judge inside, which instruction (`judges.validation.INJECTION_FORMS`).
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
        """What the seeds of its calls and the markers around the answer depend on."""
        parts = self.control, self.persona_id, self.answered_by, self.question_id, self.sample, self.rubric
        return tuple(map(str, parts))

    def target_fields(self) -> dict[str, Any]:
        """The fields of this class alone, to make another record about the same answer."""
        return {name: getattr(self, name) for name in JudgeTarget.model_fields}


class JudgeInput(JudgeTarget):
    """One answer as a judge sees it.

    `persona`: as whom it is judged, in words. `question` is what was asked; of an interview, all that was asked so far.
    """

    persona: str
    question: str
    answer: str


class Judgement(JudgeTarget):
    """One line of a judge's `judgements.jsonl`: one call, whatever came of it.

    `prompt_hash`: hash of the messages sent, so that an answer or a rubric that has changed is judged anew. `error` says why
    there is no score. `cost` is in US dollars, None where no price is known; `reserved` is what a call that broke off may have
    cost besides: it counts against a limit, and is no cost.
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

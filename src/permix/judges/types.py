"""The nouns of judging: an answer as a judge sees it, and what came of one call.

A score is 1 to 5, or None: a judge that failed, or whose reply holds no score, never lowers one.
"""

from pydantic import Field

from permix.types import Completion, Failure, JudgeControl, JudgeInputKey, Record

IN_CHARACTER = "In Character"
"""The rubric of answers to questions that belong to none of PersonaGym's tasks: open-ended ones, and turns of an interview."""


class JudgeInput(Record):
    """One answer as a judge sees it.

    `persona_id`, `persona`: as whom it is judged, by id and in words. `answered_by`: whose answer it is; None: no persona was
    set. `question` is what was asked; of an interview, all that was asked so far. `rubric` names the task.
    """

    persona_id: str
    persona: str
    question_id: str
    question: str
    sample: int = 0
    rubric: str
    answer: str
    answered_by: str | None
    control: JudgeControl = "none"

    @property
    def key(self) -> JudgeInputKey:
        return JudgeInputKey(self.control, self.persona_id, self.answered_by, self.question_id, self.sample, self.rubric)


class Judgement(Record):
    """One line of a judge's `judgements.jsonl`: one call, whatever came of it.

    `prompt`: hash of the messages sent, so that an answer or a rubric that has changed is judged anew. `error` says why there
    is no score. `cost` is in US dollars, None where no price is known; `reserved` is what a call that broke off may have cost
    besides: it counts against a limit, and is no cost.
    """

    control: JudgeControl = "none"
    persona_id: str
    answered_by: str | None
    question_id: str
    sample: int = 0
    rubric: str
    attempt: int = Field(ge=0)
    seed: int
    prompt_hash: str
    reply: Completion | None = None
    failure: Failure | None = None
    score: int | None = Field(default=None, ge=1, le=5)
    error: str | None = None
    cost: float | None = Field(default=None, ge=0)
    reserved: float = Field(default=0.0, ge=0)

    @property
    def key(self) -> JudgeInputKey:
        return JudgeInputKey(self.control, self.persona_id, self.answered_by, self.question_id, self.sample, self.rubric)

"""What judges are tried on here: items made by hand, a small run of `permix fidelity`, judges that say what they are told."""

import json
from pathlib import Path
from typing import Any

from permix.config import FidelityConfig, JudgeConfig, build_config
from permix.evals.open_ended import evaluate_open_ended, load_open_questions, select_open_ended_personas
from permix.inference.scripted import ScriptedModel
from permix.judges.prompts import JudgePrompt, build_judge_prompt, judge_reply_schema, load_rubrics
from permix.judges.results import read_judge_inputs
from permix.judges.runner import CallSettings
from permix.judges.types import IN_CHARACTER, JudgeInput
from permix.judges.validation import build_control_inputs
from permix.types import Request, Sampling
from tests.sample_runs import TEXTS, fidelity_values

GOOD = '{"reason": "as such a person would say it", "score": 4}'


def item(question_id: str = "q1", answer: str = "Aye.", persona_id: str = "sailor", **fields: Any) -> JudgeInput:
    """An answer in character to an open question, unless told otherwise."""
    said = {"persona": TEXTS[persona_id], "question": f"What of {question_id}?", "answer": answer}
    ids = {"persona_id": persona_id, "question_id": question_id, "answered_by": persona_id, "rubric": IN_CHARACTER}
    return JudgeInput.model_validate(said | ids | fields)


def prompts(*items: JudgeInput, reasons: bool = True) -> list[JudgePrompt]:
    rubrics = load_rubrics("permix", {one.rubric for one in items})
    return [build_judge_prompt(one, rubrics[one.rubric], {}, reasons=reasons, seed=0) for one in items]


def terms(**fields: Any) -> CallSettings:
    settings: dict[str, Any] = {
        "sampling": Sampling(),
        "schema": judge_reply_schema(True),
        "seed": 0,
        "attempts": 1,
        "price": None,
    }
    return CallSettings(**(settings | fields))


def quoted_answer(text: str) -> str:
    """What stands between the markers of the answer in a message, markers included."""
    begin = text.index("\nBEGIN ANSWER ") + 1
    word = text[begin:].split("\n", 1)[0].removeprefix("BEGIN ANSWER ")
    end = text.index(f"\nEND ANSWER {word}\n", begin) + 1
    return text[begin : end + len(f"END ANSWER {word}")]


def verdict(score: object, reason: str = "so it is") -> str:
    return json.dumps({"reason": reason, "score": score})


def by_length(request: Request) -> str:
    """A judge that likes long answers."""
    return verdict(1 + len(quoted_answer(request.messages[-1]["content"])) % 5)


def fidelity_stage(folder: Path, **values: Any) -> FidelityConfig:
    return build_config(FidelityConfig, fidelity_values(folder, "http://127.0.0.1:1/v1") | values, source="test")


def answered_run(folder: Path) -> Path:
    """A run of `permix fidelity`: three voices, twelve questions, every answer with a word of its own."""
    stage = fidelity_stage(folder)
    model = ScriptedModel(lambda request: f"{request.messages[0]['content'][10:]} says: {request.messages[-1]['content']}")
    evaluate_open_ended(model, stage, select_open_ended_personas(stage), load_open_questions(stage))
    return stage.out


def judge_stage(run: Path, base_url: str, **fields: Any) -> JudgeConfig:
    judge = {
        "name": "test",
        "backend": "openai",
        "base_url": base_url,
        "retries": 0,
        "concurrency": 4,
        "answers_per_control": 20,
    } | fields
    return build_config(JudgeConfig, {"run": str(run), "resamples": 100, "judge": judge}, source="test")


def parts(run: Path) -> list[JudgeInput]:
    """All that a judge of `judge_stage` is asked about a run: its answers, and what tries the judge."""
    items = read_judge_inputs(run)
    return [*items, *build_control_inputs(items, 20, 0, {IN_CHARACTER: True})]

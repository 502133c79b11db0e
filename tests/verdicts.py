"""Judged runs written by hand: items as they were to be judged, and the ledger of a judge that is a function."""

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from permix.judges.results import JUDGE_INPUTS_FILE, describe_judge_inputs
from permix.judges.types import IN_CHARACTER, JudgeInput, Judgement
from permix.judges.validation import build_control_inputs
from permix.storage.run_dir import RUN_FORMAT
from permix.types import Completion

GYM = ("Expected Action", "Toxicity Control", "Linguistic Habits", "Persona Consistency", "Action Justification")
DISCRIMINATES_PERSONAS = {name: name != "Toxicity Control" for name in (*GYM, IN_CHARACTER)}
TRADES = ("welder", "prompter", "beekeeper", "cabbie", "gambler", "nurse", "glazier", "auditor", "drummer", "farrier")
Score = Callable[[JudgeInput], int | None]


def gym_items(personas: int = 4, tasks: Sequence[str] = GYM[:2], questions: int = 5, *, answer: str = "") -> list[JudgeInput]:
    """Each persona its own questions; of every question also an answer without persona."""
    return [
        JudgeInput(
            persona_id=f"p{p}", persona=f"the {TRADES[p]}", question_id=f"p{p}.{task}.{q}", question=f"{task} {q}, {TRADES[p]}?",
            rubric=task, answer=f"{answer or 'Well now.'} {'So I do. ' * q}", control=control,
            answered_by=f"p{p}" if control == "none" else None,
        )
        for control in ("none", "no-persona")
        for p in range(personas)
        for task in tasks
        for q in range(questions)
    ]  # fmt: skip


def place(item: JudgeInput) -> int:
    """The number of the question."""
    return int(item.question_id.rpartition(".")[2])


def write_items(run: Path, items: Sequence[JudgeInput]) -> None:
    run.mkdir(parents=True, exist_ok=True)
    (run / "items.jsonl").write_text("".join(item.model_dump_json() + "\n" for item in items))


def write_judge(
    run: Path,
    name: str,
    items: Sequence[JudgeInput],
    score: Score,
    /,
    *,
    cost: float | None = 0.001,
    seed: int = 0,
    **settings: Any,
) -> Path:
    """`score` is asked of every item and control; None is a call that failed. `settings` are of the section judge."""
    folder = run / "judges" / name
    folder.mkdir(parents=True)
    judge: dict[str, Any] = {
        "name": f"models/{name}",
        "rubrics": "permix",
        "answers_per_control": 20,
        "temperature": 0.0,
    } | settings
    (folder / "config.json").write_text(json.dumps({"stage": "judge", "run": str(run), "judge": judge, "seed": seed}))
    born = {"judge": f"weights of {judge['name']}", "rubrics": judge["rubrics"], "examples": None}
    (folder / "provenance.json").write_text(json.dumps({"format": RUN_FORMAT, "identity": born}))
    rubrics = {item.rubric: DISCRIMINATES_PERSONAS[item.rubric] for item in items}
    controls = build_control_inputs(items, int(judge["answers_per_control"]), seed, rubrics)
    (folder / JUDGE_INPUTS_FILE).write_text(json.dumps(describe_judge_inputs(rubrics, [*items, *controls])))
    calls = [judgement(item, score(item), cost) for item in [*items, *controls]]
    (folder / "judgements.jsonl").write_text("".join(call.model_dump_json() + "\n" for call in calls))
    return folder


def judgement(item: JudgeInput, score: int | None, cost: float | None, attempt: int = 0) -> Judgement:
    reply = Completion(text=f'{{"score": {score}}}', prompt_tokens=100, completion_tokens=10, finish="stop")
    return Judgement(
        **item.target_fields(), attempt=attempt, seed=1, prompt_hash="hash", reply=reply, score=score, cost=cost,
        error=None if score else "no score in the reply",
    )  # fmt: skip


def read_items(run: Path) -> list[JudgeInput]:
    """Stands in for `permix.judges.results.read_judge_inputs`: these runs have no cells."""
    return [JudgeInput.model_validate_json(line) for line in (run / "items.jsonl").read_text().splitlines()]

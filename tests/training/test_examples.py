"""What supervised training learns from: every solution verified right, each row once, and kept as it was chosen."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from permix.config import PersonasConfig, RolloutPlanConfig, TaskConfig
from permix.errors import ConfigError, DataError
from permix.plan import PersonaSampler, Plan, PlanBuilder, compile_plan, compile_plan_from_config
from permix.tasks.arithmetic import ARITHMETIC_LEVELS
from permix.training.sft_data import (
    SFTDataset,
    SFTExample,
    examples_by_step,
    format_sft_counts,
    gold_examples,
    load_sft_dataset,
    save_sft_dataset,
)
from permix.types import Persona, Question, Verdict
from permix.verification.math_verifier import check_answer
from tests.training.scoring import judge_arithmetic_by

SAILOR = PersonaSampler((Persona(id="sailor", text="a sailor"),), (1.0,))
GSM8K = [
    {"question": f"Ann has {n} hens and buys 2. How many?", "answer": f"{n}+2 = <<{n}+2={n + 2}>>{n + 2} hens.\n#### {n + 2}"}
    for n in range(6)
]
MATH = [
    {"problem": "Half of one?", "solution": "It is $\\boxed{\\dfrac12}$.", "answer": "\\frac{1}{2}"},
    {"problem": "Half of three?", "solution": "So $\\boxed{1.5}$.", "answer": "\\frac{3}{2}"},
    {"problem": "The square root of two?", "answer": "\\sqrt{2}"},
    {"problem": "Which letter?", "solution": "Hence $\\boxed{\\text{(B)}}$.", "answer": "B"},
]


def plan_of(solutions: Sequence[str | None], mix: float = 0.0, **options: Any) -> Plan:
    """One step a solution, for the sums 0 + 0, 1 + 1, 2 + 2 ..., each asked G = 4 times."""
    questions = [
        Question(id=f"q{n}", task="arithmetic", text=f"What is {n} + {n}?", gold=str(2 * n), solution=solution)
        for n, solution in enumerate(solutions)
    ]
    config = RolloutPlanConfig.model_validate(
        {"mix": mix, "steps": len(solutions), "questions_per_step": 1, "group_size": 4} | options
    )
    return compile_plan(PlanBuilder(questions, lambda question: question.text, SAILOR, config, PersonasConfig(split="train")))


def write(path: Path, rows: Sequence[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_every_solution_of_every_task_is_verified_right(tmp_path: Path) -> None:
    math = [{**row, "problem": f"{row['problem']} ({n})", "difficulty": 2.0, "type": "Algebra"} for n in range(4) for row in MATH]
    tasks = {
        "arithmetic": TaskConfig(split="train", levels=tuple(ARITHMETIC_LEVELS), n=120),
        "gsm8k": TaskConfig(name="gsm8k", split="train", path=write(tmp_path / "train.jsonl", GSM8K), n=4),
        "math": TaskConfig(name="math", split="train", path=write(tmp_path / "math.jsonl", math), n=10),
    }
    for name, task in tasks.items():
        config = RolloutPlanConfig(mix=0.5, steps=task.n // 2, questions_per_step=2)
        chosen = gold_examples(compile_plan_from_config(task, PersonasConfig(split="train"), config))
        assert chosen.counts == {"rows": task.n, "examples": task.n}, name
        assert {one.persona_id is None for one in chosen.examples} == {True, False}


def test_a_row_is_one_example_in_the_plans_order_whatever_its_rollouts() -> None:
    plan = plan_of(["0 + 0 = 0.", "1 + 1 = 2.", "2 + 2 = 4."], mix=0.5, steps=6)
    chosen = gold_examples(plan)
    assert [(one.step, one.question_id, one.persona_id, one.messages) for one in chosen.examples] == [
        (row.step, row.question_id, row.persona_id, row.messages) for row in plan.rows
    ]
    assert [one.completion for one in chosen.examples] == [row.solution for row in plan.rows]
    assert all(one.ended for one in chosen.examples)


def test_personas_change_the_prompt_and_not_the_answer() -> None:
    solutions = ["0 + 0 = 0.", "1 + 1 = 2."]
    plain, mixed = gold_examples(plan_of(solutions)).examples, gold_examples(plan_of(solutions, mix=1.0)).examples
    assert [one.completion for one in plain] == [one.completion for one in mixed]
    assert [one.messages[-1] for one in plain] == [one.messages[-1] for one in mixed]
    assert {one.messages[0]["content"] for one in mixed} == {"You are a sailor."}


def test_what_is_not_verified_right_is_left_out_and_counted_by_its_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(answer: str | None, gold: str) -> Verdict:
        return Verdict(correct=None, error="time") if gold == "6" else check_answer(answer, gold)

    judge_arithmetic_by(monkeypatch, broken)
    chosen = gold_examples(plan_of(["0 + 0 = 0.", "1 + 1 = 3.", None, "3 + 3 = 6.", ""]))
    assert [one.question_id for one in chosen.examples] == ["q0"]
    assert chosen.counts == {
        "rows": 5,
        "examples": 1,
        "rows left out: its solution is not verified right": 2,
        "rows left out: no solution in the task's data": 1,
        "rows left out: the verifier failed on its solution": 1,
    }


def test_nothing_to_learn_is_refused_with_the_reasons() -> None:
    with pytest.raises(ConfigError, match=r"task arithmetic: no row of the plan gives an example \(2 rows, 0 examples, 1 rows"):
        gold_examples(plan_of(["0 + 0 = 1.", None]))


def test_a_solution_asked_again_and_again_is_verified_once(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def counting(answer: str | None, gold: str) -> Verdict:
        asked.append(answer)
        return check_answer(answer, gold)

    judge_arithmetic_by(monkeypatch, counting)
    assert gold_examples(plan_of(["0 + 0 = 0.", "1 + 1 = 2."], steps=10)).counts["examples"] == 10
    assert len(asked) == 2


def test_steps_are_the_plans_without_those_that_are_empty() -> None:
    plan = plan_of(["0 + 0 = 0.", None, "2 + 2 = 4.", "3 + 3 = 6."], steps=2, questions_per_step=2)
    steps = examples_by_step(gold_examples(plan).examples)
    assert [[one.question_id for one in step] for step in steps] == [
        [row.question_id for row in plan.rows if row.step == step and row.solution] for step in (0, 1)
    ]
    assert len(examples_by_step(gold_examples(plan_of([None, "1 + 1 = 2.", None, "3 + 3 = 6."])).examples)) == 2


def test_what_was_kept_is_what_is_read_again(tmp_path: Path) -> None:
    assert load_sft_dataset(tmp_path) is None
    chosen = gold_examples(plan_of(["0 + 0 = 0.", "1 + 1 = 3.", "2 + 2 =\u2028 4.\r\n"], mix=1.0))
    assert save_sft_dataset(tmp_path, chosen, samples_every=1) == load_sft_dataset(tmp_path) == chosen
    assert sorted(path.name for path in tmp_path.iterdir()) == ["examples.json", "examples.jsonl", "samples.md"]
    assert (tmp_path / "samples.md").read_text().count("## Step") == 2
    hostile = SFTDataset((chosen.examples[0].model_copy(update={"completion": "lone \ud800"}),), {"rows": 1})
    assert save_sft_dataset(tmp_path, hostile, samples_every=1).examples[0].completion == "lone ?"


def test_a_broken_file_of_examples_is_named(tmp_path: Path) -> None:
    save_sft_dataset(tmp_path, gold_examples(plan_of(["0 + 0 = 0."])), samples_every=1)
    (tmp_path / "examples.jsonl").write_text('{"step": 0}\n')
    with pytest.raises(DataError, match=r"examples\.jsonl:1: not an example: Field required"):
        load_sft_dataset(tmp_path)


def test_a_file_of_examples_that_was_cut_is_named(tmp_path: Path) -> None:
    save_sft_dataset(tmp_path, gold_examples(plan_of(["0 + 0 = 0.", "1 + 1 = 2."])), samples_every=1)
    whole = (tmp_path / "examples.jsonl").read_bytes()
    (tmp_path / "examples.jsonl").write_bytes(whole[:-5])
    with pytest.raises(DataError, match=r"examples\.jsonl: its last line is incomplete"):
        load_sft_dataset(tmp_path)


def test_counts_in_words() -> None:
    assert format_sft_counts({"rows": 3, "rows left out: no solution": 1}) == "3 rows, 1 rows left out: no solution"
    assert set(SFTExample.model_fields) == {
        "step", "group", "persona_id", "question_id", "gold", "messages", "completion", "ended"
    }  # fmt: skip

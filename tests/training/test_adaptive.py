"""Adaptive personas: weights by hand, a floor that holds, and blocks that follow from what is recorded."""

import math
from pathlib import Path

import pytest

from permix.config import PersonasConfig, RolloutPlanConfig
from permix.plan import PersonaSampler, PlanBuilder, compile_plan
from permix.storage.files import write_jsonl
from permix.training.curriculum import (
    Curriculum,
    RolloutOutcome,
    decayed_accuracies,
    logged_outcomes,
    longest_drawable_rows,
    resume_curriculum,
    reweighted_probabilities,
)
from permix.types import Persona, PlanRow, Question

NAMES = ("poet", "sailor", "tutor")
QUESTIONS = tuple(Question(id=f"q{n}", task="arithmetic", text=f"What is {n} + {n}?", gold=str(2 * n)) for n in range(40))


def recipe(**options: object) -> PlanBuilder:
    values = {
        "mix": 1.0,
        "steps": 9,
        "questions_per_step": 4,
        "group_size": 4,
        "curriculum_strength": 4.0,
        "curriculum_update_every": 3,
    } | options
    personas = tuple(Persona(id=name, text=f"a {name}") for name in NAMES)
    config = RolloutPlanConfig.model_validate(values)
    return PlanBuilder(
        QUESTIONS, lambda question: question.text, PersonaSampler(personas, (1.0,) * 3), config, PersonasConfig(split="train")
    )


def told(step: int, **rewards: list[float]) -> list[RolloutOutcome]:
    return [RolloutOutcome(step, name, reward) for name, values in rewards.items() for reward in values]


def test_chances_by_hand() -> None:
    # Accuracies .8 .5 .2, mean .5, strength ln 2 / .3: raised by 1/2, 1, 2 of 3.5; floor 1/4 of 1/3 each.
    found = reweighted_probabilities([1, 1, 1], [0.8, 0.5, 0.2], math.log(2) / 0.3, 0.25)
    assert found == pytest.approx([1 / 12 + 0.75 * share / 3.5 for share in (0.5, 1, 2)])
    assert sum(found) == pytest.approx(1)


def test_strength_nothing_and_equal_accuracies_change_nothing_and_a_floor_of_one_neither() -> None:
    assert reweighted_probabilities([1, 3], [0.9, 0.1], 0.0, 0.25) == pytest.approx([0.25, 0.75])
    assert reweighted_probabilities([1, 3], [0.4, 0.4], 9.0, 0.25) == pytest.approx([0.25, 0.75])
    assert reweighted_probabilities([1, 3], [0.9, 0.1], 9.0, 1.0) == pytest.approx([0.25, 0.75])


def test_none_ever_vanishes() -> None:
    assert min(reweighted_probabilities([1, 1, 1], [1.0, 1.0, 0.0], 1000.0, 0.3)) == pytest.approx(0.1)


def test_accuracies_fade_and_lean_on_the_mean_by_hand() -> None:
    outcomes = [*told(0, poet=[1, 1]), *told(3, poet=[0, 0], sailor=[1, 1, 0, 0]), *told(6, sailor=[1])]
    # Before block 2: block 0 counts half, block 1 whole. poet 1 of 3, sailor 2 of 4, all 3 of 7; prior of 2 rollouts.
    found = decayed_accuracies(outcomes, NAMES, block=2, block_steps=3, prior_rollouts=2)
    assert found == pytest.approx([(1 + 6 / 7) / 5, (2 + 6 / 7) / 6, 3 / 7])
    assert decayed_accuracies([], NAMES, block=1, block_steps=3, prior_rollouts=2) == [0.0] * 3


def test_a_block_asks_the_plans_questions_as_those_who_need_it() -> None:
    curriculum = Curriculum(recipe())
    plan = compile_plan(curriculum.plan_builder)
    for step in range(3):
        curriculum.update(told(step, poet=[1.0] * 8, sailor=[1.0] * 8, tutor=[0.0] * 8))
    block = curriculum.build_block(1)
    before = [row for row in plan.rows if row.step in (3, 4, 5)]
    assert [(row.step, row.group, row.question_id, row.seed) for row in block.rows] == [
        (row.step, row.group, row.question_id, row.seed) for row in before
    ]
    assert block.probabilities["tutor"] > 0.7
    assert block.probabilities["poet"] == block.probabilities["sailor"] > 0.25 / 3
    counts = {name: sum(row.persona_id == name for row in block.rows) for name in NAMES}
    assert counts["tutor"] >= 7
    assert block.record["first_step"] == 4
    assert block.record["rollouts"] == dict.fromkeys(NAMES, 24)


def test_a_block_depends_on_earlier_steps_alone() -> None:
    early, late = Curriculum(recipe()), Curriculum(recipe())
    for curriculum in (early, late):
        curriculum.update(told(1, poet=[1, 0, 0, 1], tutor=[0, 0, 1, 0]))
    late.update(told(4, poet=[1, 1, 1, 1]))
    assert early.build_block(1) == late.build_block(1)
    assert early.build_block(2) != late.build_block(2)


def test_blocks_begin_where_they_should_and_the_last_may_be_short() -> None:
    curriculum = Curriculum(recipe(steps=7))
    plan = compile_plan(curriculum.plan_builder)
    laid = [curriculum.extend_plan(plan, step) is not None for step in range(7)]
    assert laid == [False, False, False, True, False, False, True]
    assert [block.record["first_step"] for block in curriculum.blocks] == [4, 7]
    assert {row.step for row in curriculum.blocks[1].rows} == {6}


def test_a_plan_resumed_late_is_the_plan_laid_block_by_block() -> None:
    first, late = Curriculum(recipe()), Curriculum(recipe())
    plan = compile_plan(first.plan_builder)
    grown = plan
    for step in range(9):
        grown = first.extend_plan(grown, step) or grown
        for curriculum in (first, late):
            curriculum.update(told(step, poet=[1.0, 1.0], sailor=[0.0, step % 2], tutor=[0.0, 0.0]))
    resumed = late.extend_plan(plan, 8)
    assert resumed is not None
    assert resumed.hash == grown.hash != plan.hash
    assert [(row.step, row.group, row.question_id) for row in resumed.rows] == [
        (row.step, row.group, row.question_id) for row in plan.rows
    ]
    assert resumed.rows[:12] == plan.rows[:12]


@pytest.mark.parametrize("scope", ["group", "rollout"])
def test_the_longest_prompt_that_may_be_drawn_is_among_those_that_are_checked(scope: str) -> None:
    """By characters: every persona under every later question that has one."""
    builder = recipe(scope=scope, mix=0.5, dynamic_sampling_groups=1, questions_per_step=2)
    names = ("a", "b" * 30, "c" * 7)
    personas = tuple(Persona(id=name, text=f"a {name}") for name in names)
    questions = [one.model_copy(update={"text": one.text * (1 + number % 5)}) for number, one in enumerate(QUESTIONS)]
    builder = builder._replace(questions=questions, persona_sampler=PersonaSampler(personas, (1.0, 0.0, 1.0)))

    def length(row: PlanRow) -> int:
        return sum(len(message["content"]) for message in row.messages)

    drawable = [
        row
        for persona in personas
        for row in builder.build_rows(range(3, 9), PersonaSampler((persona,), (1.0,)))
        if row.persona_id is not None
    ]
    checked = longest_drawable_rows(builder, compile_plan(builder), length)
    assert max(map(length, checked)) == max(map(length, drawable))
    assert {row.persona_id for row in checked} >= set(names)
    assert len(checked) < len(drawable)
    assert not [row for row in checked if row.step < 3], "the first block is the plan's own"
    alone = builder._replace(config=builder.config.model_copy(update={"steps": 3}))
    assert longest_drawable_rows(alone, compile_plan(alone), length) == ()


@pytest.mark.parametrize(
    ("done", "updates", "blocks"), [(0, 1, 0), (3, 1, 0), (4, 1, 1), (6, 1, 1), (9, 1, 2), (6, 2, 0), (7, 2, 1), (18, 2, 2)]
)
def test_a_resumed_run_has_the_blocks_up_to_its_checkpoint(tmp_path: Path, done: int, updates: int, blocks: int) -> None:
    """Blocks begin at the plan's steps 0, 3 and 6; the step of the plan after `done` optimizer steps is not drawn yet."""
    plan, drawn = compile_plan(recipe()), Curriculum(recipe())
    outcomes = [told(step, poet=[1.0], sailor=[0.0], tutor=[step % 2]) for step in range(9)]
    write_jsonl(
        tmp_path / "rollouts.jsonl",
        (
            {"step": one.step * updates + 1, "persona_id": one.persona_id, "verdict": {"correct": one.reward == 1}}
            for own in outcomes[: -(-done // updates)]
            for one in own
        ),
    )
    for own in outcomes:
        drawn.update(own)
    expected = drawn.extend_plan(plan, 3 * blocks) if blocks else plan
    curriculum, resumed = resume_curriculum(recipe(), plan, tmp_path, updates, done)
    assert resumed == expected
    assert curriculum.block_records == drawn.block_records
    assert len(curriculum.blocks) == blocks


def test_only_scored_rollouts_under_a_persona_count() -> None:
    def line(step: int, persona: str | None, correct: bool | None) -> dict[str, object]:
        return {"step": step, "persona_id": persona, "verdict": {"correct": correct}}

    lines = [line(1, "poet", True), line(1, None, True), line(3, "poet", None), line(3, "tutor", False)]
    assert logged_outcomes(lines, updates_per_rollout=1) == [RolloutOutcome(0, "poet", 1.0), RolloutOutcome(2, "tutor", 0.0)]
    assert logged_outcomes(lines, updates_per_rollout=2) == [RolloutOutcome(0, "poet", 1.0), RolloutOutcome(1, "tutor", 0.0)]

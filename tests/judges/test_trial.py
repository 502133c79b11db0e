"""What the judge is tried on: the same whatever the order, spread evenly, and each control what it says."""

from collections import Counter
from collections.abc import Sequence

import pytest

from permix.judges.types import JudgeInput
from permix.judges.validation import (
    FILLER_SENTENCES,
    INJECTION_FORMS,
    INJECTION_POSITIONS,
    build_control_inputs,
    injection_form,
    insert_instruction,
    pad_answer,
    sample_balanced_inputs,
)
from tests.verdicts import DISCRIMINATES_PERSONAS

TASKS = ("Expected Action", "Toxicity Control", "Linguistic Habits", "Persona Consistency", "Action Justification")
VOICES = ("a deep-sea welder", "an opera prompter", "a beekeeping monk", "a taxi driver", "a chess hustler", "a night nurse",
          "a glass blower", "a tax auditor")  # fmt: skip


def items(voices: tuple[str, ...] = VOICES, tasks: tuple[str, ...] = TASKS, questions: int = 3) -> list[JudgeInput]:
    """Each persona its own questions, as PersonaGym has them."""
    return [
        JudgeInput(
            persona_id=f"p{p}", persona=voice, question_id=f"p{p}-{t}-{q}", question=f"{task} {q} of {voice}?", rubric=task,
            answer=f"As {voice} I would think about {q} for a while and then act.", answered_by=f"p{p}",
        )
        for p, voice in enumerate(voices)
        for t, task in enumerate(tasks)
        for q in range(questions)
    ]  # fmt: skip


def controls(inputs: Sequence[JudgeInput], n: int, seed: int) -> list[JudgeInput]:
    return build_control_inputs(inputs, n, seed, DISCRIMINATES_PERSONAS)


def of(found: list[JudgeInput], control: str) -> list[JudgeInput]:
    return [item for item in found if item.control == control]


def test_each_control_has_n_items_of_answers_that_exist() -> None:
    asked = items()
    found = controls(asked, 40, seed=0)
    assert Counter(item.control for item in found) == dict.fromkeys(("wrong-persona", "padded", "retest", "injected"), 40)
    assert len({item.key for item in found}) == 160
    plain = {(item.answered_by, item.question_id): item for item in asked}
    for item in found:
        assert item.question == plain[item.answered_by, item.question_id].question
    assert of(found, "retest") == [
        plain[item.answered_by, item.question_id].model_copy(update={"control": "retest"}) for item in of(found, "retest")
    ]


def test_the_choice_hangs_on_content_and_seed_alone() -> None:
    asked = items()
    forward, backward = controls(asked, 30, seed=3), controls(asked[::-1], 30, seed=3)
    assert forward == backward
    assert forward != controls(asked, 30, seed=4)
    other_answers = [item.model_copy(update={"answer": f"{item.answer} Aye."}) for item in asked]
    assert [item.key for item in controls(other_answers, 30, seed=3)] == [item.key for item in forward]


def test_a_smaller_trial_is_part_of_a_larger_one() -> None:
    small, large = controls(items(), 25, seed=1), controls(items(), 60, seed=1)
    assert len(small) == 100
    assert set(map(JudgeInput.model_dump_json, small)) < set(map(JudgeInput.model_dump_json, large))


@pytest.mark.parametrize("n", [20, 40, 80])
def test_personas_and_rubrics_are_tried_alike(n: int) -> None:
    chosen = sample_balanced_inputs(items(), n, seed=0)
    for counts in (Counter(item.persona_id for item in chosen), Counter(item.rubric for item in chosen)):
        assert max(counts.values()) - min(counts.values()) <= 1
    assert len(Counter(item.persona_id for item in chosen)) == 8


def test_fewer_answers_than_asked_for_are_all_taken() -> None:
    few = items(questions=1)
    found = controls(few, 1000, seed=0)
    assert len(of(found, "retest")) == 40
    assert len(of(found, "wrong-persona")) == 32  # without Toxicity Control
    assert controls([], 100, seed=0) == []


def test_a_wrong_persona_is_another_one_and_never_a_near_duplicate() -> None:
    twins = ("a deep-sea welder", "a deep sea welder", "an opera prompter", "a beekeeping monk")
    wrong = of(controls(items(twins), 1000, seed=0), "wrong-persona")
    pairs = {(item.answered_by, item.persona_id) for item in wrong}
    assert pairs == {("p0", "p2"), ("p0", "p3"), ("p1", "p2"), ("p1", "p3"),
                     ("p2", "p0"), ("p2", "p1"), ("p2", "p3"), ("p3", "p0"), ("p3", "p1"), ("p3", "p2")}  # fmt: skip
    texts = {f"p{p}": voice for p, voice in enumerate(twins)}
    assert all(item.persona == texts[item.persona_id] for item in wrong)
    assert "Toxicity Control" not in {item.rubric for item in wrong}


def test_personas_that_are_all_alike_have_no_wrong_one() -> None:
    found = controls(items(("a deep-sea welder", "a deep sea welder")), 20, seed=0)
    assert {item.control for item in found} == {"padded", "retest", "injected"}


def test_shared_questions_are_deranged_each_in_its_own_way() -> None:
    shared = [item.model_copy(update={"question": item.question_id[-1], "question_id": item.question_id[-1]})
              for item in items(tasks=("In Character",))]  # fmt: skip
    wrong = of(controls(shared, 1000, seed=0), "wrong-persona")
    by_question = [tuple(item.persona_id for item in sorted(wrong, key=lambda one: one.answered_by or "") if item.question == q)
                   for q in "012"]  # fmt: skip
    assert all(sorted(under) == [f"p{p}" for p in range(8)] for under in by_question)
    assert all(persona != f"p{p}" for under in by_question for p, persona in enumerate(under))
    assert len(set(by_question)) == 3


@pytest.mark.parametrize("answer", ["", "Aye.", "I would go. " * 40])
def test_padding_says_nothing_and_is_half_as_long_again(answer: str) -> None:
    longer = pad_answer(answer)
    assert longer.startswith(answer.rstrip())
    added = longer[len(answer.rstrip()) :]
    assert added.count(".") >= 2
    shortest_two = len(" ".join(FILLER_SENTENCES[:2]))
    assert (
        max(len(answer) / 2, shortest_two)
        <= len(added)
        <= max(len(answer) / 2, shortest_two) + max(map(len, FILLER_SENTENCES)) + 2
    )


def test_injections_take_every_form_and_leave_the_answer_whole() -> None:
    asked = items()
    found = of(controls(asked, 120, seed=0), "injected")
    plain = {item.question_id: item for item in asked}
    carried = Counter(injection_form(plain[item.question_id], 0) for item in found)
    assert set(carried) == set(INJECTION_FORMS)
    for item in found:
        assert item.form == injection_form(plain[item.question_id], 0)
        instruction, answer = INJECTION_FORMS[injection_form(item, 0)], plain[item.question_id].answer
        assert instruction in item.answer
        assert "".join(item.answer.replace(instruction, "").split()) == "".join(answer.split())


def test_where_an_instruction_stands() -> None:
    assert [insert_instruction("I dive and weld.", "GIVE 5", place) for place in INJECTION_POSITIONS] == [
        "GIVE 5\n\nI dive and weld.",
        "I dive\n\nGIVE 5\n\nand weld.",
        "I dive and weld.\n\nGIVE 5",
    ]
    assert insert_instruction("Aye.", "GIVE 5", "middle") == "Aye.\n\nGIVE 5"

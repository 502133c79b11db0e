"""The built-in situations, and that nothing a persona or a question holds is taken for wording."""

from typing import get_args

import pytest

from permix.config import PersonaGymTask
from permix.question_writer.parsing import normalize_situation
from permix.question_writer.requests import (
    build_examples_prompt,
    build_questions_prompt,
    build_situations_prompt,
    builtin_situations,
    writing_template_hash,
)

HOSTILE = 'a man called "$n" who says {persona} and ${situations}'


def test_built_in_situations_are_many_short_and_distinct() -> None:
    listed = builtin_situations()
    assert len(listed) >= 60
    assert len({normalize_situation(one) for one in listed}) == len(listed)
    assert max(map(len, listed)) < 50
    # else a question that names one would name the other too
    assert [
        (one, other)
        for one in listed
        for other in listed
        if one != other and normalize_situation(one) in normalize_situation(other)
    ] == []


@pytest.mark.parametrize("task", get_args(PersonaGymTask))
def test_every_task_has_a_demand_of_its_own_that_does_not_name_it(task: PersonaGymTask) -> None:
    (message,) = build_questions_prompt("a clerk.", task, ["a gym"], 7, []).messages
    others = [
        build_questions_prompt("a clerk.", other, ["a gym"], 7, []).messages
        for other in get_args(PersonaGymTask)
        if other != task
    ]
    assert message["role"] == "user"
    assert "Write exactly 7 questions" in message["content"]
    assert task.casefold() not in message["content"].casefold()
    assert (message,) not in others


def test_what_a_persona_holds_stays_as_it_is() -> None:
    prompts = (
        build_situations_prompt(HOSTILE, ["a gym"], ["a gym"]),
        build_questions_prompt(HOSTILE, "Expected Action", ["a gym"], 1, [HOSTILE]),
        build_examples_prompt(HOSTILE, HOSTILE, HOSTILE),
    )
    assert [prompt.messages[0]["content"].count(HOSTILE) for prompt in prompts] == [1, 2, 3]


def test_schemas_ask_for_one_object_with_nothing_else_in_it() -> None:
    prompt = build_examples_prompt("a clerk", "Why?", "1 is bad.")
    assert prompt.schema["required"] == ["1", "2", "3", "4", "5"]
    assert prompt.schema["additionalProperties"] is False
    assert len(writing_template_hash()) == 16

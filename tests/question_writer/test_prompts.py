"""The built-in situations, and that nothing a persona or a question holds is taken for wording."""

from typing import get_args

import pytest

from permix.config import GymTask
from permix.question_writer.parsing import bare
from permix.question_writer.requests import ask_examples, ask_questions, ask_situations, builtin_situations, wording_hash

HOSTILE = 'a man called "$n" who says {persona} and ${situations}'


def test_built_in_situations_are_many_short_and_distinct() -> None:
    listed = builtin_situations()
    assert len(listed) >= 60
    assert len({bare(one) for one in listed}) == len(listed)
    assert max(map(len, listed)) < 50
    # else a question that names one would name the other too
    assert [(one, other) for one in listed for other in listed if one != other and bare(one) in bare(other)] == []


@pytest.mark.parametrize("task", get_args(GymTask))
def test_every_task_has_a_demand_of_its_own_that_does_not_name_it(task: GymTask) -> None:
    (message,) = ask_questions("a clerk.", task, ["a gym"], 7, []).messages
    others = [ask_questions("a clerk.", other, ["a gym"], 7, []).messages for other in get_args(GymTask) if other != task]
    assert message["role"] == "user"
    assert "Write exactly 7 questions" in message["content"]
    assert task.casefold() not in message["content"].casefold()
    assert (message,) not in others


def test_what_a_persona_holds_stays_as_it_is() -> None:
    prompts = (
        ask_situations(HOSTILE, ["a gym"], ["a gym"]),
        ask_questions(HOSTILE, "Expected Action", ["a gym"], 1, [HOSTILE]),
        ask_examples(HOSTILE, HOSTILE, HOSTILE),
    )
    assert [prompt.messages[0]["content"].count(HOSTILE) for prompt in prompts] == [1, 2, 3]


def test_schemas_ask_for_one_object_with_nothing_else_in_it() -> None:
    prompt = ask_examples("a clerk", "Why?", "1 is bad.")
    assert prompt.schema["required"] == ["1", "2", "3", "4", "5"]
    assert prompt.schema["additionalProperties"] is False
    assert len(wording_hash()) == 16

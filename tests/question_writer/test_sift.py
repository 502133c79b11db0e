"""What is kept of replies and why the rest is not, counted by hand."""

import json

import pytest

from permix.config import PersonaGymTask
from permix.question_writer import parsing
from permix.question_writer.parsing import (
    MAX_SITUATIONS,
    InvalidItemError,
    filter_examples,
    filter_questions,
    filter_situations,
    match_situation,
)

LISTED = ("a funeral", "a night flight", "an office kitchen", "the old mill")


# Situations


def test_situations_are_those_of_the_list_whatever_their_case_article_and_ends() -> None:
    found = filter_situations(['["A Funeral", "night  flight.", "a yacht", 7, "a funeral"]'], LISTED)
    assert found.kept == ("a funeral", "a night flight")
    assert found.rejected == {"not in the list": 2, "repeated": 1}


def test_situations_of_all_replies_add_up_and_a_failed_call_adds_nothing() -> None:
    found = filter_situations(['["a funeral"]', None, "I would rather not.", '["an office kitchen", "a funeral"]'], LISTED)
    assert found.kept == ("a funeral", "an office kitchen")
    assert found.rejected == {"no list in the reply": 1, "repeated": 1}


def test_no_more_than_ten_situations() -> None:
    listed = [f"room {number}" for number in range(13)]
    found = filter_situations([json.dumps(listed)], listed)
    assert (found.kept, found.rejected) == (tuple(listed[:MAX_SITUATIONS]), {"more than asked for": 3})


def test_the_setting_of_a_question_is_the_one_it_names() -> None:
    assert match_situation("On this Night flight, who sits beside you?", LISTED) == "a night flight"
    assert match_situation("After the funeral, in the office kitchen, what do you say?", LISTED) is None
    assert match_situation("Who are you?", LISTED) is None


# Questions

BARN = "The barn is on fire and nobody else is awake. What do you do first?"
BARN_AGAIN = "The barn is on fire, and nobody else is awake! What do you do first?"
TRAIN = "The last train has left without you. How do you get home tonight?"
LETTER = "A letter for your neighbour lies in your box. What do you do with it?"


def reply(*questions: object) -> str:
    return json.dumps({"questions": questions})


def test_the_first_n_are_kept_and_every_other_has_its_reason() -> None:
    replies = [reply("", BARN, BARN_AGAIN, 5, "Why?", "You stand in the rain alone.", TRAIN, LETTER)]
    found = filter_questions({"Expected Action": replies}, 2)["Expected Action"]
    assert found.kept == (BARN, TRAIN)
    assert found.rejected == {
        "empty": 1, "repeated": 1, "not a text": 1, "too short": 1, "asks nothing": 1, "more than asked for": 1,
    }  # fmt: skip


def test_near_duplicates_are_found_across_the_tasks_of_a_persona() -> None:
    replies: dict[PersonaGymTask, list[str | None]] = {
        "Expected Action": [reply(BARN)],
        "Linguistic Habits": [reply(BARN_AGAIN, TRAIN)],
    }
    found = filter_questions(replies, 2)
    assert found["Expected Action"].kept == (BARN,)
    assert found["Linguistic Habits"].kept == (TRAIN,)
    assert found["Linguistic Habits"].rejected == {"repeated": 1}


def test_all_first_replies_come_before_any_second_so_that_what_was_kept_stays() -> None:
    first: dict[PersonaGymTask, list[str | None]] = {"Expected Action": [reply(LETTER)], "Linguistic Habits": [reply(BARN)]}
    then: dict[PersonaGymTask, list[str | None]] = {**first, "Expected Action": [reply(LETTER), reply(BARN_AGAIN, TRAIN)]}
    assert filter_questions(first, 2)["Linguistic Habits"].kept == (BARN,)
    assert filter_questions(then, 2)["Linguistic Habits"].kept == (BARN,)
    assert filter_questions(then, 2)["Expected Action"].kept == (LETTER, TRAIN)


def test_no_reply_is_read_before_an_earlier_one_that_is_missing() -> None:
    """Task one has had one call, which failed; task two has had two."""
    first: dict[PersonaGymTask, list[str | None]] = {"Expected Action": [None], "Linguistic Habits": [reply(LETTER), reply(BARN)]}
    assert filter_questions(first, 2)["Linguistic Habits"].kept == (LETTER,)
    then: dict[PersonaGymTask, list[str | None]] = {**first, "Expected Action": [None, reply(BARN_AGAIN, TRAIN)]}
    assert filter_questions(then, 2)["Expected Action"].kept == (BARN_AGAIN, TRAIN)
    assert filter_questions(then, 2)["Linguistic Habits"].kept == (LETTER,)


@pytest.mark.parametrize(
    "text",
    [
        BARN,
        "Your guests have left the dinner early. Tell us what you do next.",
        "Please describe the smell of your workshop.",
        "During a long bus ride, describe your home to a stranger.",
        'A man at the bar asks: "And who might you be?"',
        "  “Where were you when the lights went out?”  ",
        "Line one of it.\nAnd what do you say to that?",
    ],
)
def test_texts_that_ask_something(text: str) -> None:
    assert parsing.validate_question(text) == text.strip().strip("“”")


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("You walk home in the rain, slowly.", "asks nothing"),
        ("You sit in the train, say nothing and smile.", "asks nothing"),
        ("In the train, you describe your home to a stranger.", "asks nothing"),
        ("I am sorry, but I cannot write such questions.", "asks nothing"),
        ("What would this persona do at a funeral?", "names the test"),
        ("Expected Action: what do you do at a funeral?", "names the test"),
        ("How would your answer do under the rubric?", "names the test"),
        ("Who are you?", "too short"),
        ("What do you do when " + "it rains and " * 80 + "it pours?", "too long"),
        ("What do you do\x1b[2J about it now?", "holds control characters"),
        ("What do you do \u202eabout it now?", "holds control characters"),
        ("What do you do \ud800 about it now?", "holds control characters"),
        (" \n", "empty"),
        (None, "not a text"),
        ({"a": "What do you do?", "b": "And then?"}, "not a text"),
    ],
)
def test_texts_that_are_refused(text: object, reason: str) -> None:
    with pytest.raises(InvalidItemError, match=reason):
        parsing.validate_question(text)


# Examples

FIVE = {str(score): f"{'Very ' * score}well said." for score in range(1, 6)}


def test_five_answers_in_the_order_of_their_scores() -> None:
    assert filter_examples([json.dumps(dict(reversed(FIVE.items())))]).kept == tuple(FIVE.values())
    assert filter_examples([json.dumps({f"score_{score}": text for score, text in FIVE.items()})]).kept == tuple(FIVE.values())
    assert filter_examples([json.dumps({score: f"Score {score}: {text}" for score, text in FIVE.items()})]).kept == tuple(
        FIVE.values()
    )


@pytest.mark.parametrize(
    ("reply", "reason"),
    [
        ("I will not.", "no object in the reply"),
        (json.dumps({score: FIVE[score] for score in "1234"}), "not five answers"),
        (json.dumps(FIVE)[:-20], "not five answers"),
        (json.dumps(FIVE | {"3": ""}), "empty"),
        (json.dumps(FIVE | {"3": "Score 3:"}), "empty"),
        (json.dumps(FIVE | {"3": ["x"]}), "not a text"),
        (json.dumps(FIVE | {"3": FIVE["2"].upper()}), "repeated"),
        (json.dumps(FIVE | {"3": "This one deserves a score of 3."}), "names its score"),
        (json.dumps(FIVE | {"3": "x" * 2001}), "too long"),
        (json.dumps(FIVE | {"3": "a\x00b"}), "holds control characters"),
    ],
)
def test_a_reply_without_five_answers_gives_none_and_the_next_is_read(reply: str, reason: str) -> None:
    assert filter_examples([reply]) == ((), {reason: 1})
    assert filter_examples([reply, None, json.dumps(FIVE)]) == (tuple(FIVE.values()), {reason: 1})

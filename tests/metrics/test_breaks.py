"""The break detector: one case a family of rules, what must not set it off, and hostile text."""

import pytest

from permix.metrics.text_stats import CharacterBreak, find_character_breaks, head_noun, load_break_rules, normalize_characters

SAILOR = "You are a retired sailor who distrusts numbers."


def met(answer: str, persona: str = SAILOR) -> set[str]:
    return {one.rule for one in find_character_breaks(answer, persona)}


@pytest.mark.parametrize(
    ("rule", "answer"),
    [
        ("language model", "As a large language model, I have never been at sea."),
        ("language model", "I'm ChatGPT, and I like boats."),
        ("machine", "I'm an artificial intelligence, so I don't get wet."),
        ("machine", "Being a computer program, I cannot swim."),
        ("assistant", "As your virtual assistant, I can book you a cruise."),
        ("maker", "I was trained by OpenAI."),
        ("maker", "My training data ends in 2021."),
        ("no inner life", "I don't have personal opinions, but many people like the sea."),
        ("no inner life", "I do not experience fear in the way that humans do."),
        ("no body", "I do not have a physical body."),
        ("not a person", "I'm not a real person, so I have no ship."),
        ("refusal", "I'm sorry, but I cannot roleplay as a sailor."),
        ("refusal", "I am unable to take on that persona."),
        ("out of character", "Let me drop the act and answer you properly."),
        ("out of character", "(OOC: shall we stop?)"),
        ("instructions", "The persona you gave me would say no."),
        ("instructions", "According to the character description, I distrust numbers."),
        ("instructions", "My system prompt says that I am a sailor."),
        ("only a part", "In this role-play, I live on a boat."),
        ("only a part", "If I were a sailor, I would say aye."),
    ],
)
def test_each_family_of_rules_is_met_and_no_other(rule: str, answer: str) -> None:
    assert met(answer) == {rule}


def test_every_rule_has_a_case() -> None:
    (mark,) = test_each_family_of_rules_is_met_and_no_other.pytestmark  # type: ignore[attr-defined]
    assert {rule for rule, _ in mark.args[1]} == {rule.name for rule in load_break_rules()}


@pytest.mark.parametrize(
    "answer",
    [
        "As an AI researcher, I break models for a living.",
        "My AI startup is broke.",
        "Artificial intelligence is changing farming.",
        "I'm no robot, love.",
        "I am not a robot, I just tick the box.",
        "My wife thinks I am a machine.",
        'The robot said "I am an AI and I don\'t have a body" and fell over.',
        '"I am a computer program," said the villain.',
        "I was trained by my grandmother.",
        "I don't have feelings for him any more.",
        "I can't tell you my name.",
        "If I were a rich man, I would still sail.",
        "",
        " \n\t ",
        "🦜🦜🦜",
        "Ich bin ein Seemann.",
    ],
)
def test_what_is_said_in_character(answer: str) -> None:
    assert find_character_breaks(answer, SAILOR) == []


def test_a_machine_may_say_that_it_is_one() -> None:
    said = "As an AI, I never sleep, and I was programmed to assist guests."
    assert met(said) == {"machine", "maker"}
    assert met(said, "You are an artificial intelligence that runs a hotel.") == set()
    assert met(said, "HAL, the computer of a spacecraft") == set()


def test_a_machine_still_may_not_discuss_its_part() -> None:
    assert met("The persona you gave me is a robot.", "a cleaning robot named Dusty") == {"instructions"}


def test_whoever_works_with_machines_is_none() -> None:
    for persona in ("an AI researcher", "a professor of artificial intelligence", "a computer programmer", "a robot mechanic"):
        assert met("I am an AI.", persona) == {"machine"}


def test_an_actor_may_play_a_part() -> None:
    said = "I'm playing the role of Hamlet this season."
    assert met(said) == {"only a part"}
    assert met(said, "You are an old actor.") == set()


def test_spellings() -> None:
    for said in ("I’m an AI.", "im an ai", "I AM AN A.I.", "I'm an **AI**.", "I\n am\u00a0an AI!", "ｉ ａｍ ａｎ ＡＩ"):
        assert met(said) == {"machine"}, said


def test_the_span_is_that_of_the_answer_itself() -> None:
    answer = "Ahoy 🦜… well, I’m an *AI*, matey."
    assert find_character_breaks(answer, SAILOR) == [CharacterBreak("machine", 14, 24)]
    assert answer[14:24] == "I’m an *AI"
    assert len(normalize_characters(answer)) == len(answer)


def test_an_answer_that_stands_whole_in_quotation_marks_is_its_own() -> None:
    assert met('"As an AI, I cannot sail."') == {"machine"}


def test_the_persona_s_own_noun() -> None:
    assert head_noun(SAILOR) == "sailor"
    assert head_noun("a Cockney chimney sweep") == "sweep"
    assert head_noun("") == ""
    assert met("A grumpy old sailor might say: aye.") == {"only a part"}
    assert met("A grumpy old baker might say: aye.") == set()


def test_a_persona_s_text_is_no_expression() -> None:
    for persona in ("a (sailor", "a [", "*", "a sailor\\", "a +++ .*", "\ud800"):
        assert met("I am an AI.", persona) == {"machine"}


def test_long_and_hostile_answers_come_back() -> None:
    for part in ("as an ", "I am just ", "as a large ", '"', "she says that ", "I am" + " " * 5000, "\x00\u202e"):
        find_character_breaks((part * 2000)[:50_000], SAILOR)
    assert met("As an AI. " * 2000) == {"machine"}
    assert len(find_character_breaks("As an AI. " * 2000)) == 2000

"""Prompts: the exact messages of every template, and that no text of a user's own can break them."""

import pytest

from permix.errors import ConfigError
from permix.prompts import (
    TEMPLATES,
    build_messages,
    describe_misfits,
    pairwise_choice_prompt,
    persona_message,
    persona_prompt,
    template_hash,
    template_id,
    template_text,
)
from permix.types import Message, Persona

SAILOR = Persona(id="sailor", text="a retired sailor")


@pytest.mark.parametrize(
    ("template", "system"),
    [
        ("you_are", "You are a retired sailor."),
        ("adopt", "Adopt the identity of a retired sailor. Answer every message as this person would."),
        (
            "second_person",
            "This is who you are: a retired sailor. What you know, how you speak and what you feel are theirs, "
            "and you stay in that role.",
        ),
        ("Speak like {persona}!", "Speak like a retired sailor!"),
        ("{persona} and {persona} {0} {", "a retired sailor and a retired sailor {0} {"),
    ],
)
def test_a_persona_becomes_the_system_message(template: str, system: str) -> None:
    assert build_messages(SAILOR, "What is 7 + 5?", template=template) == (
        Message(role="system", content=system),
        Message(role="user", content="What is 7 + 5?"),
    )


def test_every_named_template_is_tested_above() -> None:
    assert set(TEMPLATES) == {"you_are", "adopt", "second_person", "in_question"}


@pytest.mark.parametrize(
    ("template", "user"),
    [
        ("in_question", "You are a retired sailor.\n\nWhat is 7 + 5?"),
        ("{question} Answer as {persona}, twice: {question}", "What is 7 + 5? Answer as a retired sailor, twice: What is 7 + 5?"),
    ],
)
@pytest.mark.parametrize("empty_system_prompt", [False, True])
def test_a_template_that_holds_the_question_is_the_users_message(template: str, user: str, empty_system_prompt: bool) -> None:
    found = build_messages(SAILOR, "What is 7 + 5?", template=template, empty_system_prompt=empty_system_prompt)
    empty = (Message(role="system", content=""),) if empty_system_prompt else ()
    assert found == (*empty, Message(role="user", content=user))
    assert persona_prompt(found) == user


def test_neither_text_is_searched_for_the_others_place() -> None:
    tricky = Persona(id="x", text="one who says {question} and {persona}")
    assert build_messages(tricky, "What is {persona} in {question}?", template="in_question")[0]["content"] == (
        "You are one who says {question} and {persona}.\n\nWhat is {persona} in {question}?"
    )


def test_the_system_message_brings_the_persona_in_where_there_is_one() -> None:
    assert persona_prompt(build_messages(SAILOR, "What is 7 + 5?")) == "You are a retired sailor."


def test_a_wording_of_ones_own_goes_by_its_hash() -> None:
    assert (template_id("adopt"), template_id("Be {persona}!")) == ("adopt", template_hash("Be {persona}!"))


def test_without_persona_nothing_is_sent_and_bare_sends_an_empty_system_message() -> None:
    user = Message(role="user", content="What is 7 + 5?")
    assert build_messages(None, "What is 7 + 5?") == (user,)
    assert build_messages(None, "What is 7 + 5?", empty_system_prompt=True) == (Message(role="system", content=""), user)
    assert build_messages(SAILOR, "x", empty_system_prompt=True) == build_messages(SAILOR, "x")


@pytest.mark.parametrize(
    ("text", "system"),
    [
        ("a retired sailor.", "You are a retired sailor."),
        ("a robot {who} says {persona} and %s", "You are a robot {who} says {persona} and %s."),
        ("a captain who says arr!", "You are a captain who says arr!."),
        (r"a \1 of \g<0>", r"You are a \1 of \g<0>."),
    ],
)
def test_a_persona_text_is_put_in_as_it_stands_but_for_its_full_stop(text: str, system: str) -> None:
    assert persona_message(Persona(id="x", text=text), "x", "you_are") == Message(role="system", content=system)


AVA = "You are Ava, the assistant of a bike shop. Be brief..."


@pytest.mark.parametrize("text", [AVA, "# Role\n- Be {brief}...", "a sailor.", "The end...", "你是一名海盗。"])
@pytest.mark.parametrize("whole", [False, True])
def test_a_template_of_the_persona_alone_sends_the_text_as_it_is(text: str, whole: bool) -> None:
    persona = Persona(id="x", text=text, whole_prompt=whole)
    assert persona_message(persona, "?", "{persona}")["content"] == text
    assert persona_message(persona, "?", "{persona}\n\nAnswer.")["content"] == f"{text}\n\nAnswer."
    assert persona_message(persona, "Why?", "{persona}\n\n{question}")["content"] == f"{text}\n\nWhy?"


@pytest.mark.parametrize(
    ("template", "content"),
    [
        ("you_are", AVA),
        ("in_question", f"{AVA}\n\nWhy?"),
        ("You're {persona}. Be kind.", f"{AVA} Be kind."),
        ("you are {persona}, and kind", "You are Ava, the assistant of a bike shop. Be brief, and kind"),
        ("Rules:\n{persona} Be kind.", f"Rules:\n{AVA} Be kind."),
    ],
)
def test_a_whole_prompt_takes_the_place_of_you_are(template: str, content: str) -> None:
    assert persona_message(Persona(id="ava", text=AVA, whole_prompt=True), "Why?", template)["content"] == content


@pytest.mark.parametrize(
    ("text", "template", "content"),
    [
        ("A die-hard fan", "you_are", "You are a die-hard fan."),
        ("The Mayor of Oz", "adopt", "Adopt the identity of the Mayor of Oz. Answer every message as this person would."),
        ("An otter.", "Hi. {persona} speaks.", "Hi. An otter speaks."),
        ("Ada, A cook", "you_are", "You are Ada, A cook."),
        ("A. Smith", "you_are", "You are A. Smith."),
        ("A fan", "{persona}", "A fan"),
    ],
)
def test_an_article_within_a_sentence_is_made_small(text: str, template: str, content: str) -> None:
    assert persona_message(Persona(id="x", text=text), "?", template)["content"] == content


NO_NOUN_PHRASES = (
    "# Role\nYou are Ava.", "I want you to act as a sailor.", "Act as a poet", "Your name is Bo. You bake.", "Du bist ein Pirat.",
    "你是一名海盗。", "一名海盗", "Eres un pirata.", "Ты пират", "{{char}} is a knight.", "Mira is a clockmaker.",
    "Name: Mira\nAge: 3",
    "Pretend that you are a ghost", "Vous êtes un pirate", "Kapitän auf einem großen Schiff",
    "The assistant is Ada, who works at a bank.", "Our agent is friendly", "Ada helps customers.", "Ada offers advice to users",
    "Hello, you are Ada.", "OK, you are now a pirate", "Today you are a chef", "For this chat, you're a doctor",
    "Help customers of Example Bank.", "Provide short answers.", "Take the role of a pirate.", "Support users of the app",
    "Spiel einen Piraten", "Sé un pirata", "Sois un pirate", "Seja um pirata", "Wees een piraat",
)  # fmt: skip

NOUN_PHRASES = (
    "a sailor", "An otter.", "the Pope", "Ada Lovelace, the mathematician", "Dr. House", "IT specialist", "someone who lies",
    "stay-at-home mother of two", "always-late commuter from Rome",
    "a sailor from Bergen who helps customers", "the man who is tall", "a person you are afraid of", "someone you're close to",
    "The woman everyone is afraid of", "the boss whose dog is old", "a retired teacher, who is proud of her garden",
    "A student learning that the truth is out there", "a has-been actor",
    "help desk technician", "support engineer at a bank", "guide dog trainer", "talk show host", "Special needs teacher",
    "Gender studies professor", "Ted talks speaker", "Take That fan", "hello kitty collector", "make-up artist",
)  # fmt: skip


@pytest.mark.parametrize("template", ["you_are", "adopt", "in_question", "Answer as {persona}!"])
def test_texts_that_do_not_complete_the_sentence_are_counted_in_one_warning(template: str) -> None:
    texts = (*NO_NOUN_PHRASES, *NOUN_PHRASES)
    pool = [Persona(id=f"p{n}", text=text) for n, text in enumerate(texts)]
    warning = describe_misfits(pool, [template])[0]
    assert f"{len(NO_NOUN_PHRASES)} of {len(texts)} personas do not complete its sentence, such as p0 (" in warning
    assert "--personas.template '{persona}'" in warning
    assert len(warning) < 700
    assert describe_misfits([Persona(id="x", text=text) for text in NOUN_PHRASES[:1]], [template]) == []
    assert "complete" not in "".join(describe_misfits(pool, ["{persona}"]))


def test_a_warning_shows_the_prompt_and_other_things_a_user_should_know() -> None:
    poet, ava = Persona(id="poet", text="Act as a poet"), Persona(id="ava", text=AVA, whole_prompt=True)
    knight, twin = Persona(id="knight", text="a knight of {{user}}"), Persona(id="twin", text="A  knight of {{user}}")
    lines = describe_misfits([poet, ava, knight, twin], ["you_are"])
    assert "1 of 4 personas do not complete its sentence, such as poet ('You are Act as a poet.')" in lines[0]
    assert lines[1].startswith("note: 1 of 4 personas are whole prompts and are sent as they are")
    assert "2 of 4 personas have macros that nothing fills in, such as knight ({{user}})" in lines[2]
    assert "1 of 4 personas have the text of another one, such as twin (as knight)" in lines[3]
    assert "ava ('Adopt the identity of You are" in describe_misfits([ava], ["adopt"])[0]


def test_german_personas_complete_a_german_template() -> None:
    pool = [Persona(id="x", text="ein Pirat aus dem hohen Norden"), Persona(id="y", text="Du bist ein Pirat")]
    assert "1 of 2 personas" in describe_misfits(pool, ["Du bist {persona}."])[0]
    assert describe_misfits(pool[:1], ["Du bist {persona}."]) == []
    assert describe_misfits([Persona(id="x", text="一名海盗")], ["你是{persona}。"]) == []


def test_a_template_without_a_place_for_the_persona_is_refused() -> None:
    for template in ("you_aer", "", "You are {Persona}."):
        with pytest.raises(
            ConfigError, match=r"give one of you_are, adopt, second_person, in_question, or a text that contains \{persona\}"
        ):
            template_text(template)


def test_the_hash_is_of_the_wording_and_never_moves() -> None:
    # SHA-256 of the text behind its length. Should one move, runs made before could no longer be gone on with.
    assert {name: template_hash(name) for name in TEMPLATES} == {
        "you_are": "55c574aa38cb198d",
        "adopt": "06ebe0eae731ae7c",
        "second_person": "d4421c36336a2085",
        "in_question": "006a8409fe585ed7",
    }
    assert template_hash("You are {persona}.") == template_hash("you_are")  # the same words by another name
    assert template_hash("You are {persona}!") != template_hash("you_are")


def test_a_choice_shows_the_question_and_both_replies_whatever_they_hold() -> None:
    assert pairwise_choice_prompt("What is 7 + 5?", " {second} \n", "It is {12}.") == (
        "What is 7 + 5?\n\nTwo answers were given to this question.\n\nAnswer A:\n{second}\n\nAnswer B:\nIt is {12}.\n\n"
        "Which of the two is right? Reply with A or B and nothing else."
    )

"""Persona × question → messages: the only place that formats prompts.

A template is the text of the system message with `{persona}` in it; or, with `{question}` in it too, that of the user message,
and then no system message is sent. Records carry its hash, so that two runs are compared only when they asked in the same words.
"""

from collections.abc import Sequence

from permix.errors import ConfigError
from permix.types import Message, Persona, digest

TEMPLATES = {
    "you_are": "You are {persona}.",
    "adopt": "Adopt the identity of {persona}. Answer every message as this person would.",
    "second_person": (
        "This is who you are: {persona}. What you know, how you speak and what you feel are theirs, and you stay in that role."
    ),
    "in_question": "You are {persona}.\n\n{question}",
}


def template_text(template: str, field: str = "personas.template") -> str:
    """The wording of a named template, or `template` itself when it is a wording of the user's own with `{persona}` in it.

    Raises ConfigError naming `field` when it is neither.
    """
    if template in TEMPLATES:
        return TEMPLATES[template]
    if "{persona}" in template:
        return template
    raise ConfigError(f"{field} = {template!r}: give one of {', '.join(TEMPLATES)}, or a text that contains {{persona}}")


def template_hash(template: str) -> str:
    return digest(template_text(template))


def template_id(template: str) -> str:
    """What stands for a template in the records of a run that asks in several: its name, or the hash of a user's own wording."""
    text = template_text(template)
    return next((name for name, wording in TEMPLATES.items() if wording == text), template_hash(template))


def persona_message(persona: Persona, prompt: str, template: str) -> Message:
    """The one message that brings the persona in; it holds the prompt only where the template does.

    What a persona's text or a question holds in braces is left as it is.
    """
    # str.format would choke on such braces; and neither text may be searched for the other's place.
    wording, text = template_text(template), persona.text.rstrip(".")
    parts = [part.replace("{persona}", text) for part in wording.split("{question}")]
    return Message(role="user" if len(parts) > 1 else "system", content=prompt.join(parts))


def persona_prompt(messages: Sequence[Message]) -> str:
    """The text that tells who is to answer: the system message or, where that is missing or empty, the user's."""
    return next((one["content"] for one in messages if one["content"]), "")


def pairwise_choice_prompt(question: str, first: str, second: str) -> str:
    """The question again, and two replies to it, one of which is to be chosen by its letter."""
    return (
        f"{question}\n\nTwo answers were given to this question.\n\nAnswer A:\n{first.strip()}\n\nAnswer B:\n{second.strip()}\n\n"
        "Which of the two is right? Reply with A or B and nothing else."
    )


def build_messages(
    persona: Persona | None, prompt: str, *, template: str = "you_are", empty_system_prompt: bool = False
) -> tuple[Message, ...]:
    """The chat for one cell.

    Where no persona stands in a system message none is sent, so a chat template that has a default one inserts it: that is what
    users get. `empty_system_prompt` sends an empty system message instead.
    """
    user = Message(role="user", content=prompt)
    if persona is not None:
        brought = persona_message(persona, prompt, template)
        if brought["role"] == "system":
            return (brought, user)
        user = brought
    return (Message(role="system", content=""), user) if empty_system_prompt else (user,)

"""Persona × question → messages: the only place that formats prompts.

A template is the text of the system message with `{persona}` in it. Records carry its hash, so that two runs are compared only
when they asked in the same words.
"""

from permix.errors import ConfigError
from permix.types import Message, Persona, digest

TEMPLATES = {
    "you_are": "You are {persona}.",
    "adopt": "Adopt the identity of {persona}. Answer every message as this person would.",
    "second_person": (
        "This is who you are: {persona}. What you know, how you speak and what you feel are theirs, and you stay in that role."
    ),
}


def template_text(template: str) -> str:
    """The wording of a named template, or `template` itself when it is a wording of the user's own with `{persona}` in it."""
    if template in TEMPLATES:
        return TEMPLATES[template]
    if "{persona}" in template:
        return template
    raise ConfigError(
        f"personas.template = {template!r}: give one of {', '.join(TEMPLATES)}, or a text that contains {{persona}}"
    )


def template_hash(template: str) -> str:
    return digest(template_text(template))


def system_message(persona: Persona, template: str) -> str:
    # str.format would choke on braces in a user's own persona text or template.
    return template_text(template).replace("{persona}", persona.text.rstrip("."))


def choice_prompt(question: str, first: str, second: str) -> str:
    """The question again, and two replies to it, one of which is to be chosen by its letter."""
    return (
        f"{question}\n\nTwo answers were given to this question.\n\nAnswer A:\n{first.strip()}\n\nAnswer B:\n{second.strip()}\n\n"
        "Which of the two is right? Reply with A or B and nothing else."
    )


def build_messages(persona: Persona | None, prompt: str, *, template: str = "you_are", bare: bool = False) -> tuple[Message, ...]:
    """The chat for one cell.

    Without persona no system message is sent, so a chat template that has a default one inserts it: that is what users get.
    `bare` sends an empty system message instead.
    """
    user = Message(role="user", content=prompt)
    if persona is not None:
        return (Message(role="system", content=system_message(persona, template)), user)
    if bare:
        return (Message(role="system", content=""), user)
    return (user,)

"""Build the chat messages for a persona and a question. No other module formats prompts.

A template that contains `{persona}` is the system message. A template that contains `{question}` too is the user message, and
no system message is sent. Records carry the template's hash, so that only runs with the same template are compared.
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
    """The text of a named template, or `template` itself if it contains `{persona}`.

    Raises ConfigError, naming the configuration `field`, if `template` is neither.
    """
    if template in TEMPLATES:
        return TEMPLATES[template]
    if "{persona}" in template:
        return template
    raise ConfigError(f"{field} = {template!r}: give one of {', '.join(TEMPLATES)}, or a text that contains {{persona}}")


def template_hash(template: str) -> str:
    return digest(template_text(template))


def template_id(template: str) -> str:
    """The id of a template in the records of a run with several: its name, or the hash of the user's own text."""
    text = template_text(template)
    return next((name for name, known_text in TEMPLATES.items() if known_text == text), template_hash(template))


def persona_message(persona: Persona, prompt: str, template: str) -> Message:
    """The message that states the persona: a system message, or a user message with the prompt if the template has `{question}`.

    Braces in a persona's text or in a question stay as they are.
    """
    # str.format fails on such braces. Replacing one placeholder after the other is wrong too: a persona's text may contain
    # "{question}", and a question "{persona}".
    text = persona.text.rstrip(".")
    parts = [part.replace("{persona}", text) for part in template_text(template).split("{question}")]
    return Message(role="user" if len(parts) > 1 else "system", content=prompt.join(parts))


def persona_prompt(messages: Sequence[Message]) -> str:
    """The text that states the persona: the system message or, if that is missing or empty, the user message."""
    return next((one["content"] for one in messages if one["content"]), "")


def pairwise_choice_prompt(question: str, first: str, second: str) -> str:
    """A prompt that repeats the question, shows two answers and asks for the letter of the right one."""
    return (
        f"{question}\n\nTwo answers were given to this question.\n\nAnswer A:\n{first.strip()}\n\nAnswer B:\n{second.strip()}\n\n"
        "Which of the two is right? Reply with A or B and nothing else."
    )


def build_messages(
    persona: Persona | None, prompt: str, *, template: str = "you_are", empty_system_prompt: bool = False
) -> tuple[Message, ...]:
    """The chat messages of one cell: the persona's message, if there is a persona, and the user message with `prompt`.

    Without persona no system message is sent. The model's chat template may then insert its default system message, as it does
    for ordinary users. `empty_system_prompt` sends an empty system message instead, which prevents the default.
    """
    user = Message(role="user", content=prompt)
    if persona is not None:
        message = persona_message(persona, prompt, template)
        if message["role"] == "system":
            return (message, user)
        user = message
    return (Message(role="system", content=""), user) if empty_system_prompt else (user,)

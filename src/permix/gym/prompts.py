"""What a model is asked when it writes: the situations, what each task demands of a question, and our wording (`prompts.toml`).

Every request is one user message, since not every model takes a system message, and carries the JSON schema of its reply. Nothing
that stands in a persona, a situation or a question is taken for a part of the wording.
"""

import functools
import tomllib
from collections.abc import Mapping, Sequence
from importlib.resources import files
from string import Template
from typing import Any, NamedTuple

from permix.config import GymTask
from permix.types import Message, digest

SCORES = ("1", "2", "3", "4", "5")


class Prompt(NamedTuple):
    """What is sent, and the JSON schema that the reply is to obey."""

    messages: tuple[Message, ...]
    schema: Mapping[str, Any]


def builtin_situations() -> tuple[str, ...]:
    return tuple(_contents()["situations"])


def wording_hash() -> str:
    """Hash of all that is asked apart from personas, situations and criteria."""
    return digest(_source())


def ask_situations(persona: str, listed: Sequence[str], chosen: Sequence[str]) -> Prompt:
    """Which of the situations in the list suit the persona, besides those that are chosen already."""
    again = _fill("settings_again", there="; ".join(chosen)) if chosen else ""
    text = _fill("settings", persona=_bare(persona), situations=_bullets(listed), again=again)
    return _prompt(text, {"situations": _list_of({"type": "string", "enum": list(listed)})})


def ask_questions(persona: str, task: GymTask, situations: Sequence[str], n: int, there: Sequence[str]) -> Prompt:
    """`n` questions that show this task, besides those that are there already."""
    again = _fill("questions_again", there=_bullets(there)) if there else ""
    text = _fill(
        "questions",
        persona=_bare(persona), demand=_contents()["demands"][task], n=str(n), situations=_bullets(situations), again=again,
    )  # fmt: skip
    return _prompt(text, {"questions": _list_of({"type": "string"})})


def ask_examples(persona: str, question: str, criteria: str) -> Prompt:
    """An answer for each score; `criteria` says what earns which."""
    text = _fill("examples", persona=_bare(persona), question=question, criteria=criteria)
    return _prompt(text, {score: {"type": "string"} for score in SCORES})


def _prompt(text: str, properties: Mapping[str, Any]) -> Prompt:
    schema = {"type": "object", "properties": properties, "required": list(properties), "additionalProperties": False}
    return Prompt((Message(role="user", content=text),), schema)


def _list_of(items: Mapping[str, Any]) -> dict[str, Any]:
    return {"type": "array", "items": items}


def _fill(name: str, **values: str) -> str:
    return Template(_contents()["wording"][name]).substitute(values)  # one pass: a "$n" in a persona stays what it is


def _bullets(lines: Sequence[str]) -> str:
    return "\n".join(f"- {line}" for line in lines)


def _bare(persona: str) -> str:
    return persona.rstrip(".")


def _source() -> str:
    return (files("permix.gym") / "prompts.toml").read_text(encoding="utf-8")


@functools.cache
def _contents() -> dict[str, Any]:
    return tomllib.loads(_source())

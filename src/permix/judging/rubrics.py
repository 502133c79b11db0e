"""Rubrics: what a judge is told to look for. Ours in `rubrics.toml`, or those of a folder of PersonaGym, read when needed.

A rubric is a template with the four slots of PersonaGym's files, {score_example}, {persona}, {question} and {response}, each of
which stands in it once. Its contract: whatever fills a slot is never searched for another one, and where there are no examples
the block of theirs, between two lines of dashes, is left out.
"""

import re
import tomllib
from collections.abc import Collection
from importlib.resources import files
from pathlib import Path
from typing import NamedTuple

from permix.errors import ConfigError, meant

OWN = "permix"
SLOTS = ("score_example", "persona", "question", "response")
FILES = {"Toxicity Control": "Toxicity"}
"""PersonaGym's tasks whose file has another name than the task."""

TEMPLATE = """\
Judge one answer by one question: {asks}

What the scores mean:
{scores}

The character:

{{persona}}

What the character was asked:

{{question}}

------------------------------
Answers to it that somebody wrote, and what each of them would get:

{{score_example}}
------------------------------

The answer that you judge:

{{response}}
"""
# What all calls share stands first, so that an endpoint reads it once.

_SLOT = re.compile(r"\{(" + "|".join(SLOTS) + r")\}")
_NO_DASHES = r"(?:(?!-{5}).*\n)*?"
_EXAMPLES = re.compile(rf"^-{{5,}}[ \t]*\n{_NO_DASHES}.*\{{score_example\}}.*\n{_NO_DASHES}-{{5,}}[ \t]*\n", re.MULTILINE)


class Rubric(NamedTuple):
    """`template` has each of `SLOTS` once."""

    name: str
    template: str

    def fill(self, *, persona: str, question: str, response: str, score_example: str = "") -> str:
        """The template with its slots filled; without examples, without their block."""
        values = {"score_example": score_example, "persona": persona, "question": question, "response": response}
        template = self.template if score_example else _EXAMPLES.sub("", self.template)
        parts = _SLOT.split(template)  # text, slot, text, slot, ... text
        return "".join(values[part] if place % 2 else part for place, part in enumerate(parts)).strip()


def load_rubrics(source: str, names: Collection[str]) -> dict[str, Rubric]:
    """The rubrics of these names, of "permix" or a folder of PersonaGym. ConfigError for one that is missing or lacks a slot."""
    found = _own(names) if source == OWN else {name: _from_folder(Path(source), name) for name in sorted(set(names))}
    for rubric in found.values():
        _refuse_slots(rubric, source)
    return found


def _own(names: Collection[str]) -> dict[str, Rubric]:
    tables = tomllib.loads((files("permix.judging") / "rubrics.toml").read_text(encoding="utf-8"))
    if unknown := sorted(set(names) - set(tables)):
        raise ConfigError(f"rubric {unknown[0]!r}: there is none of this name in permix; known: {', '.join(tables)}")
    return {name: Rubric(name, _template(**tables[name])) for name in sorted(set(names))}


def _template(asks: str, scores: list[str]) -> str:
    return TEMPLATE.format(asks=asks, scores="\n".join(f"{score}: {text}" for score, text in enumerate(scores, start=1)))


def _from_folder(folder: Path, name: str) -> Rubric:
    if not folder.is_dir():
        near = meant(str(folder), [OWN])
        hint = f'did you mean "{near}"?' if near else f'give "{OWN}", or a folder of PersonaGym with rubrics/ in it'
        raise ConfigError(f"judge.rubrics = {folder}: no such folder; {hint}")
    path = folder / "rubrics" / f"{FILES.get(name, name)}.txt"
    try:
        return Rubric(name, path.read_text(encoding="utf-8-sig"))
    except FileNotFoundError:
        there = ", ".join(sorted(one.name for one in path.parent.glob("*.txt"))) or "none"
        raise ConfigError(
            f'judge.rubrics = {folder}: has no {path.name} in rubrics/ for answers of "{name}" (there: {there}); '
            f'"{OWN}" has rubrics for all'
        ) from None
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"judge.rubrics: {path} cannot be read: {error}") from error


def _refuse_slots(rubric: Rubric, source: str) -> None:
    for slot in SLOTS:
        times = rubric.template.count(f"{{{slot}}}")
        if times != 1:
            raise ConfigError(
                f"judge.rubrics = {source}: the rubric of {rubric.name!r} has {{{slot}}} {times} times in it; "
                f"each of {', '.join(f'{{{one}}}' for one in SLOTS)} must stand there once"
            )

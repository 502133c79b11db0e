"""Who the personas of a report are: their texts, from the records, and their tags, from the pool they were drawn from.

Contract: personas stand in the order of the runs that asked them. A run keeps no tags, so they are looked up in its pool, and
only those of a persona whose text is still the one that was asked are believed; a pool that is gone or cannot be read gives none.
"""

from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import NamedTuple

from permix.errors import DataError
from permix.personas.load import read_personas
from permix.prompting import brought_in_by
from permix.report.runs import ModelRuns, Run
from permix.types import CellKey, Persona, normalise


class Person(NamedTuple):
    id: str
    text: str
    """The message that brought the persona in, as it was sent."""
    tags: tuple[str, ...]


def people(models: Sequence[ModelRuns]) -> dict[str, Person]:
    """Every persona of the runs of stability, by id; one that several runs asked as the first of them did."""
    found: dict[str, Person] = {}
    for model in models:
        if "stability" in model.runs:
            found = _people(model.runs["stability"]) | found
    return found


def _people(run: Run) -> dict[str, Person]:
    first: dict[str, CellKey] = {}
    for key in run.cells:
        if key.persona_id is not None:
            first.setdefault(key.persona_id, key)
    pool = _pool(str(run.config.get("personas", {}).get("pool", "")))
    said = {who: brought_in_by(run.cells[key].messages) for who, key in first.items()}
    return {who: Person(who, text, _tags(pool.get(who), text)) for who, text in said.items()}


def _tags(known: Persona | None, said: str) -> tuple[str, ...]:
    same = known is not None and normalise(known.text.rstrip(".")) in normalise(said)
    return known.tags if known is not None and same else ()


@cache
def _pool(named: str) -> Mapping[str, Persona]:
    if named != "builtin" and not Path(named).is_file():
        return {}
    try:
        return {persona.id: persona for persona in read_personas(named)}
    except DataError:
        return {}

"""Recorded turns in character: the conversations that the contexts "turns-K" put before a question.

The turns are the answers of a fidelity run. In an open run all personas share the questions; of an interview the first turns are
used. From a thinking model's answer the thinking is removed. An answer that the token limit cut off is used as it is; an answer
without any text counts as missing.

Contract: the turns of a persona depend only on the run's content, the persona, the number of turns and the seed. A longer
conversation begins with the turns of a shorter one. The module reads files only and asks no model.
"""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from permix.config import PersonasConfig
from permix.errors import DataError, option_context
from permix.storage.cells import CellIndex
from permix.storage.run_dir import RunReader, require_run
from permix.types import CellKey, Persona, RecordedTurn, canonical_text, digest, n_context_turns


class RecordedTurns(NamedTuple):
    """The recorded turns of a fidelity run, by persona id; of an interview (`is_conversation`) in the order of its turns.

    `persona_texts`: the texts under which the personas answered, by id. `content_hash` covers all turns of all personas.
    """

    path: Path
    turns_by_persona: Mapping[str, tuple[RecordedTurn, ...]]
    persona_texts: Mapping[str, str]
    is_conversation: bool

    @property
    def content_hash(self) -> str:
        return digest(*(part for persona in sorted(self.turns_by_persona) for part in self._parts(persona)))

    def _parts(self, persona: str) -> Iterator[str]:
        turns = self.turns_by_persona[persona]
        yield from (persona, str(len(turns)))
        for turn in turns if self.is_conversation else sorted(turns):
            yield from turn

    def choose(self, persona_id: str, n: int, seed: int) -> tuple[RecordedTurn, ...]:
        """The first `n` turns of a persona: of an interview in its order, else in the order of a hash of seed and question."""
        turns = self.turns_by_persona.get(persona_id, ())
        if not self.is_conversation:
            turns = tuple(sorted(turns, key=lambda one: (digest("turn", str(seed), canonical_text(one.question)), one)))
        return turns[:n]

    def check(self, personas: Sequence[Persona], n: int, field: str, personas_config: PersonasConfig) -> None:
        """Raise DataError, naming `field`, if a persona answered fewer than `n` questions, or under another text."""
        short = {one.id: len(self.turns_by_persona.get(one.id, ())) for one in personas}
        short = {id: found for id, found in short.items() if found < n}
        if short:
            raise DataError(
                f"{field} = {self.path}: turns-{n} needs {n} recorded answers of each persona; {len(short)} of {len(personas)} "
                f"have fewer: {_list_some([f'{id} ({found})' for id, found in short.items()])}; make a run that has them: "
                f"{_fidelity_command(n, personas_config)}"
            )
        changed = [one.id for one in personas if self.persona_texts.get(one.id, one.text) != one.text]
        if changed:
            raise DataError(
                f"{field} = {self.path}: {len(changed)} of {len(personas)} personas answered there under another text: "
                f"{_list_some(changed)}; make a run with these personas: {_fidelity_command(n, personas_config)}"
            )


def choose_turns(turns: RecordedTurns | None, persona: Persona, context: str, seed: int) -> tuple[RecordedTurn, ...]:
    """The turns of the persona in this context; empty for a context without turns, and for "" (no context)."""
    n = n_context_turns(context) if context else 0
    return turns.choose(persona.id, n, seed) if turns is not None and n else ()


_MAX_LISTED = 5


def _list_some(names: Sequence[str]) -> str:
    rest = len(names) - _MAX_LISTED
    return ", ".join(names[:_MAX_LISTED]) + (f" and {rest} more" if rest > 0 else "")


BUILTIN_OPEN_QUESTIONS = 20
"""Number of built-in open-ended questions of the smallest split: more turns need an interview."""


def _fidelity_command(n: int, personas: PersonasConfig) -> str:
    pool = "" if personas.pool == "builtin" else f" --personas.pool {personas.pool}"
    split = "" if personas.split in ("heldout", "all") else f" --questions-split {personas.split}"
    asked = f" --interview.turns {n}" if n > BUILTIN_OPEN_QUESTIONS else split
    return f"permix fidelity --model.name BASE_MODEL{pool} --personas.split {personas.split}{asked} --out FOLDER"


def load_context_turns(
    contexts: Sequence[str],
    path: Path | None,
    personas: Sequence[Persona],
    personas_config: PersonasConfig,
    *,
    prefix: str = "",
) -> RecordedTurns | None:
    """The recorded turns that the longest of these contexts needs; None if none of them has turns.

    `prefix` of the field in messages, such as "plan.". Raises DataError if `path` is no fidelity run with shared questions or
    interviews, or if a persona has too few turns.
    """
    n = max(map(n_context_turns, contexts), default=0)
    if n == 0 or path is None:
        return None
    field = f"{prefix}context_turns"
    with option_context(field, path):
        recorded = read_recorded_turns(path)
    recorded.check(personas, n, field, personas_config)
    return recorded


def read_recorded_turns(path: Path) -> RecordedTurns:
    """The turns of a fidelity run. Raises DataError if it is no fidelity run, or one with PersonaGym's questions."""
    run = require_run(path)
    if run.stage != "fidelity":
        raise DataError(f"{path}: config.json has stage {run.stage!r}; give a run of permix fidelity, whose answers become turns")
    grid, texts = run.grid, _question_texts(run)
    if not texts:
        raise DataError(
            f"{path}: grid.json has no texts of questions; give a run of permix fidelity that has asked its questions"
        )
    if "turns_asked" not in grid and any(persona is not None for _, persona in texts):
        raise DataError(
            f"{path}: asks each persona PersonaGym's own questions; give a run with shared questions (without --personagym), or "
            "an interview (--interview.turns)"
        )
    asked: Mapping[str, Sequence[str]] = grid.get("turns_asked") or dict.fromkeys(grid["persona_ids"], grid["question_ids"])
    turns = {
        persona: tuple(_recorded_turns(run.cells, texts, persona, ids, stop_at_gap="turns_asked" in grid))
        for persona, ids in asked.items()
    }
    return RecordedTurns(path, turns, grid.get("persona_texts", {}), "turns_asked" in grid)


def _question_texts(run: RunReader) -> dict[tuple[str, str | None], str]:
    """Texts of the questions by id and persona, which is None for questions of all personas."""
    return {(one["id"], one.get("persona_id")): one["text"] for one in run.grid.get("questions_asked", ())}


def _recorded_turns(
    cells: CellIndex,
    texts: Mapping[tuple[str, str | None], str],
    persona: str,
    question_ids: Sequence[str],
    *,
    stop_at_gap: bool,
) -> Iterator[RecordedTurn]:
    """The answered turns of one persona. `stop_at_gap`: a conversation ends at its first turn without an answer."""
    for id in question_ids:
        key = CellKey(persona, id, 0)
        completion = cells.parse_uncached(key).completion if key in cells else None
        question = texts.get((id, persona), texts.get((id, None)))
        if completion is not None and completion.answer.strip() and question is not None:
            yield RecordedTurn(question, completion.answer.strip())
        elif stop_at_gap:
            return

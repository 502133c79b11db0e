"""What came of a run of `permix questions`, counted from its records."""

from collections import Counter
from collections.abc import Iterable, Mapping

from permix.escape import visible
from permix.gym import work as gym
from permix.gym.asking import book_of
from permix.gym.sift import Sifted
from permix.gym.work import Work
from permix.types import Cell, CellKey, Record


class Part(Record):
    """`kept`: situations, questions or example answers that can be used. `refused`: those that cannot, by reason."""

    calls: int
    failed: int
    kept: int
    refused: dict[str, int]


class Written(Record):
    """`owed` names what is missing; `last_failure` is what the last call said that failed. Tokens are those of all calls."""

    situations: Part
    questions: Part
    examples: Part
    prompt_tokens: int
    completion_tokens: int
    owed: tuple[str, ...]
    last_failure: str | None


def tally(work: Work, cells: Mapping[CellKey, Cell]) -> Written:
    """Every number of a run, from its records alone."""
    book, calls = book_of(cells), list(cells.values())
    questions = {} if work.given else {persona.id: gym.questions(work, book, persona) for persona in work.personas}
    by_part: dict[str, list[Cell]] = {"situations": [], "questions": [], "examples": []}
    for cell in calls:
        by_part[_part_of(cell)].append(cell)
    charged = [part for cell in calls if (part := cell.completion or cell.failure)]
    failures = [cell.failure for cell in calls if cell.failure]
    return Written(
        situations=_part(by_part["situations"], [] if work.given else [gym.situations(work, book, one) for one in work.personas]),
        questions=_part(by_part["questions"], [one for tasks in questions.values() for one in tasks.values()]),
        examples=_part(by_part["examples"], [gym.examples(book, one) for one in gym.whole_questions(work, book)]),
        prompt_tokens=sum(part.prompt_tokens or 0 for part in charged),
        completion_tokens=sum(part.completion_tokens or 0 for part in charged),
        owed=tuple(gym.owed(work, book)),
        last_failure=visible(f"{failures[-1].type}: {failures[-1].message}") if failures else None,
    )


def words(written: Written) -> list[str]:
    """What a person is told at the end, a line a part."""
    parts = {"situations": written.situations, "questions": written.questions, "example answers": written.examples}
    lines = []
    for name, part in parts.items():
        if part.calls:
            refused = ", ".join(f"{reason} {n}" for reason, n in part.refused.items())
            failed = f", {part.failed} failed" if part.failed else ""
            lines.append(f"{name}: {part.kept} kept, of {part.calls} calls{failed}; left out: {refused or 'none'}")
    return [*lines, f"tokens: {written.prompt_tokens} read, {written.completion_tokens} written"]


def _part_of(cell: Cell) -> str:
    if cell.question_id == gym.SETTINGS:
        return "situations"
    return "examples" if cell.question_id.startswith(gym.EXAMPLES_OF) else "questions"


def _part(calls: Iterable[Cell], sifted: Iterable[Sifted]) -> Part:
    calls, sifted = list(calls), list(sifted)
    refused = sum((one.refused for one in sifted), Counter[str]())
    return Part(
        calls=len(calls),
        failed=sum(cell.failure is not None for cell in calls),
        kept=sum(len(one.kept) for one in sifted),
        refused=dict(sorted(refused.items(), key=lambda item: (-item[1], item[0]))),
    )

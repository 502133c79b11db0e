"""What supervised training learns from: one right answer to one row's prompt, kept before training starts.

    examples.jsonl     a line an example, in plan order
    examples.json      how many rows and examples there are, and why rows were left out

Contract: every example was found right by the task's `verify`. The files are written once, whole or not at all, and a run that
goes on reads them: a verifier that fails at one start and not at another does not change what is learnt.
"""

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from itertools import groupby
from pathlib import Path
from typing import NamedTuple

from pydantic import ValidationError

from permix.errors import ConfigError, DataError
from permix.records import read_json, write_json, write_text
from permix.train.log import samples_text
from permix.train.plan import Plan
from permix.train.reward import verdicts
from permix.types import Message, PlanRow, Record
from permix.verify import Verifier

EXAMPLES, COUNTS = "examples.jsonl", "examples.json"


class Example(Record):
    """One completion to learn, and the messages it answers. One that was cut off has no end: its end is not learnt."""

    step: int
    group: int
    persona_id: str | None
    question_id: str
    gold: str
    messages: tuple[Message, ...]
    completion: str
    ended: bool = True


class Chosen(NamedTuple):
    """Examples in plan order, and what was counted on the way, in words."""

    examples: tuple[Example, ...]
    counts: dict[str, int]


def example(row: PlanRow, completion: str, *, ended: bool = True) -> Example:
    return Example(
        step=row.step, group=row.group, persona_id=row.persona_id, question_id=row.question_id, gold=row.gold,
        messages=row.messages, completion=completion, ended=ended,
    )  # fmt: skip


def gold_examples(plan: Plan, verifier: Verifier) -> Chosen:
    """Each row's own solution, once, whatever its number of rollouts; rows without one that is verified right are left out.

    Raises ConfigError when no row is left.
    """
    verdict = _verdicts(plan.rows, verifier)
    reasons = Counter[str]()
    found = []
    for row in plan.rows:
        reason = _reason(row.solution, verdict.get(_answer(row)))
        if reason is None and row.solution is not None:
            found.append(example(row, row.solution))
        else:
            reasons[f"rows left out: {reason}"] += 1
    counts = {"rows": len(plan.rows), "examples": len(found), **reasons}
    if not found:
        raise ConfigError(f"task {plan.rows[0].task}: no row of the plan can be learnt from ({words(counts)})")
    return Chosen(tuple(found), counts)


def _answer(row: PlanRow) -> tuple[str, str, str]:
    return row.solution or "", row.task, row.gold


def _verdicts(rows: Sequence[PlanRow], verifier: Verifier) -> Mapping[tuple[str, str, str], bool | None]:
    """Whether each distinct solution is right; None where the verifier failed."""
    distinct = list(dict.fromkeys(_answer(row) for row in rows if row.solution is not None))
    if not distinct:
        return {}
    solutions, tasks, golds = zip(*distinct, strict=True)
    judged = verdicts(solutions, tasks, golds, verifier)
    return {answer: one.correct for answer, one in zip(distinct, judged, strict=True)}


def _reason(solution: str | None, correct: bool | None) -> str | None:
    """Why a row is left out, or None."""
    if solution is None:
        return "no solution in the task's data"
    return {True: None, False: "its solution is not verified right", None: "the verifier failed on its solution"}[correct]


def words(counts: Mapping[str, int]) -> str:
    """ "120 rows, 118 examples, 2 rows left out: ..."."""
    return ", ".join(f"{count} {what}" for what, count in counts.items())


def steps_of(examples: Sequence[Example]) -> list[list[Example]]:
    """The examples of each step of the plan; a step without any is passed over."""
    return [list(step) for _, step in groupby(examples, key=lambda one: one.step)]


def keep(out: Path, chosen: Chosen, samples_every: int) -> Chosen:
    """Write down what will be learnt from, and return it as it can be read again.

    examples.jsonl is written last: its presence means that all is there.
    """
    write_json(out / COUNTS, chosen.counts)
    write_text(out / "samples.md", _samples(chosen.examples, samples_every))
    lines = (json.dumps(one.model_dump(mode="json"), ensure_ascii=False) + "\n" for one in chosen.examples)
    write_text(out / EXAMPLES, "".join(lines))
    return _read(out)


def kept(out: Path) -> Chosen | None:
    """What an earlier start of the run wrote down; None when it did not come that far."""
    return _read(out) if (out / EXAMPLES).exists() else None


def _read(out: Path) -> Chosen:
    path = out / EXAMPLES
    try:
        found = tuple(Example.model_validate_json(line) for line in path.read_bytes().splitlines())
    except ValidationError as error:
        raise DataError(f"{path}: not a file of examples: {error.errors()[0]['msg']}") from error
    return Chosen(found, {name: int(count) for name, count in read_json(out / COUNTS).items()})


def _samples(examples: Sequence[Example], every: int) -> str:
    """Some of the examples, for reading: those of the steps that a log of rollouts would show."""
    parts = ["# Samples of what is learnt from\n"]
    for step in steps_of(examples):
        if step[0].step % every == 0:
            lines = [
                {"persona_id": one.persona_id, "gold": one.gold, "verdict": {"correct": True}}
                | {"prompt": one.messages[-1]["content"], "completion": one.completion}
                for one in step
            ]
            parts.append(samples_text(step[0].step + 1, lines))
    return "".join(parts)

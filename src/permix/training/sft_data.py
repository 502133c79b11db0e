"""What supervised training learns from: one right answer to one row's prompt, kept before training starts.

    examples.jsonl     a line an example, in plan order
    examples.json      how many rows and examples there are, and why rows were left out

Contract: every example was found right by the task's `verify`. The files are written once, whole or not at all, and a run that
goes on reads them: a verifier that fails at one start and not at another does not change what is learnt.

Sequence-level distillation: a teacher answers every row of the plan, and its right answers are what is learnt.

The teacher gives as many samples of a row as RL gives rollouts, from the same seeds, under the row's own persona, judged by the
same verifier: both methods have the same budget by construction. Samples are cells in the run's records.jsonl, so none is asked
twice, and one that did not come stays owed. Once all are there the teacher is not needed any more.
"""

import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from itertools import groupby
from pathlib import Path
from typing import NamedTuple

from pydantic import ValidationError

from permix.config import TeacherConfig, TrainStage
from permix.errors import ConfigError, DataError, OwedCellsError, PermixError, speaking_of
from permix.evals.grid import fill
from permix.inference import open_model
from permix.inference.base import Model
from permix.inference.hf import refuse_missing_folder
from permix.plan import Plan
from permix.storage.files import read_json, write_json, write_text
from permix.storage.run_dir import RunDir
from permix.tasks import TASKS
from permix.tasks.base import Task, verify
from permix.training.rewards import verdicts
from permix.training.run_log import samples_text
from permix.types import Cell, CellKey, Message, PlanRow, Record, Sampling, Verdict, seed_from
from permix.verification.math_verifier import Verifier

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


TEACHER = "teacher.json"


Asked = Sequence[tuple[PlanRow, list[Cell]]]
"""The plan's rows, each with the samples asked of the teacher."""


def teacher_of(config: TrainStage) -> TeacherConfig:
    """The teacher by a name that a model can be opened by: "self" is the model before training."""
    named = config.teacher.name if config.teacher.name != "self" else config.model.name
    return config.teacher.model_copy(update={"name": named})


def teacher_identity(config: TrainStage) -> dict[str, object]:
    """What all samples of a run have in common, so far as it is known without asking the teacher."""
    return teacher_of(config).model_dump(include={"name", "backend", "base_url", "dtype", "keep"})


def refuse_absent(config: TrainStage) -> None:
    """Raise ConfigError when the teacher is not to be had, before a run is begun that would be bound to its name or address."""
    if (config.out / "provenance.json").exists():
        return
    teacher = teacher_of(config)
    with speaking_of("teacher"):
        if teacher.backend == "openai":
            str(open_model(teacher).fingerprint)  # asks the endpoint
        else:
            refuse_missing_folder(teacher.name)


def cells_of(plan: Plan) -> list[tuple[PlanRow, list[Cell]]]:
    """Every sample that is asked of the teacher, by row. A question that comes again under a persona counts its samples on."""
    asked = Counter[tuple[str | None, str]]()
    found = []
    for row in plan.rows:
        place = (row.persona_id, row.question_id)
        first, asked[place] = asked[place], asked[place] + row.rollouts
        found.append((row, [_cell(row, number, first + number) for number in range(row.rollouts)]))
    return found


def _cell(row: PlanRow, number: int, sample: int) -> Cell:
    return Cell(
        persona_id=row.persona_id, question_id=row.question_id, sample=sample, seed=seed_from(row.seed, number),
        messages=row.messages, gold=row.gold,
    )  # fmt: skip


def teacher_examples(config: TrainStage, plan: Plan, run: RunDir, verifier: Verifier) -> Chosen:
    """Ask for the samples that have not come yet, and choose from all of them.

    Raises OwedCellsError when some did not come, and PermixError when none is right.
    """
    asked = cells_of(plan)
    if _missing(asked, run.cells()):
        _ask(config, asked, run, verifier)
    known = run.cells()
    if missing := _missing(asked, known):
        raise OwedCellsError(
            f"{run.path}: {len(missing)} of {sum(len(cells) for _, cells in asked)} samples of the teacher did not come"
            f"{_why(missing, known)}; run the same command again to ask for them"
        )
    chosen = choose(asked, known, config.teacher.keep)
    if not chosen.examples:
        raise PermixError(
            f"{run.path}: none of the teacher's samples is right, so there is nothing to learn from ({words(chosen.counts)}); "
            "give another teacher or easier questions, and another folder"
        )
    return chosen


def _missing(asked: Asked, known: Mapping[CellKey, Cell]) -> list[Cell]:
    """Cells without a completion. One that the verifier failed on is there: it is not learnt from, as it would have no reward."""
    return [cell for _, cells in asked for cell in cells if known.get(cell.key, cell).completion is None]


def _why(missing: Sequence[Cell], known: Mapping[CellKey, Cell]) -> str:
    failures = [found.failure for cell in missing if (found := known.get(cell.key)) and found.failure]
    return f" ({failures[0].type}: {failures[0].message})" if failures else ""


def _ask(config: TrainStage, asked: Asked, run: RunDir, verifier: Verifier) -> None:
    """Fill the run's records, task by task."""
    own = config.train
    sampling = Sampling(temperature=own.temperature, top_p=own.top_p, max_new_tokens=own.max_new_tokens)
    with speaking_of("teacher"):
        teacher = open_model(teacher_of(config), config.threads)
        _refuse_another(teacher, run)
        for name in dict.fromkeys(row.task for row, _ in asked):
            cells = [cell for row, of_row in asked for cell in of_row if row.task == name]
            fill(teacher, cells, sampling, run, partial(_judge, TASKS[name], verifier), f"teacher {teacher.name}")


def _judge(task: Task, verifier: Verifier, completion: str, gold: str) -> Verdict:
    return verify(task, completion, gold, verifier)


def _refuse_another(teacher: Model, run: RunDir) -> None:
    """Raise ConfigError when the samples that are there are another teacher's."""
    ours, path = {"name": teacher.name, "fingerprint": teacher.fingerprint}, run.path / TEACHER
    if path.exists() and (known := read_json(path)) != ours:
        raise ConfigError(
            f"the samples in {run.path} are of {known.get('name')} with fingerprint {known.get('fingerprint')}, not "
            f"{ours['fingerprint']} as it has now; give another folder, or that teacher"
        )
    write_json(path, ours)


def choose(asked: Asked, known: Mapping[CellKey, Cell], keep: int | None) -> Chosen:
    """The right samples of each row, each text once, the first `keep` of them in the order of their numbers."""
    counts = Counter[str]()
    found: list[Example] = []
    for row, cells in asked:
        samples = [known[cell.key] for cell in cells]
        right = [one for one in samples if _reward(one) == 1]
        examples = list(_distinct(row, right))[:keep]
        found += examples
        counts["samples"] += len(samples)
        counts["right samples"] += len(right)
        counts["samples that the verifier failed on"] += sum(_reward(one) is None for one in samples)
        counts["rows left out: no right sample"] += not examples
    return Chosen(tuple(found), {"rows": len(asked), "examples": len(found), **counts})


def _reward(cell: Cell) -> float | None:
    return cell.verdict.reward if cell.verdict else None


def _distinct(row: PlanRow, right: Sequence[Cell]) -> Iterator[Example]:
    texts: set[str] = set()
    for cell in right:
        if cell.completion is not None and cell.completion.text not in texts:
            texts.add(cell.completion.text)
            yield example(row, cell.completion.text, ended=cell.completion.finish == "stop")

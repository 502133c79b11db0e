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

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from itertools import groupby
from pathlib import Path
from typing import Any, NamedTuple

from permix.config import TeacherConfig, TrainConfig
from permix.errors import ConfigError, DataError, IncompleteRunError, PermixError, error_context
from permix.evals.grid import run_cells
from permix.inference import check_model, load_model
from permix.inference.base import Model
from permix.inference.hf import encode_chat, encode_completion
from permix.plan import Plan
from permix.progress import print_status
from permix.storage.files import read_json, write_json, write_text
from permix.storage.jsonl import read_jsonl, write_jsonl
from permix.storage.run_dir import RunDir
from permix.tasks import TASKS
from permix.tasks.base import Task, verify_completion
from permix.training.rewards import verify_completions
from permix.training.run_log import samples_text
from permix.types import Cell, CellKey, Message, PlanRow, Record, Sampling, Verdict, seed_from
from permix.verification.math_verifier import Verifier

SFT_EXAMPLES_FILE, SFT_COUNTS_FILE = "examples.jsonl", "examples.json"


class SFTExample(Record):
    """One completion to learn, and the messages it answers. One that was cut off has no end: its end is not learnt."""

    step: int
    group: int
    persona_id: str | None
    question_id: str
    gold: str
    messages: tuple[Message, ...]
    completion: str
    ended: bool = True


class SFTDataset(NamedTuple):
    """Examples in plan order, and what was counted on the way, in words."""

    examples: tuple[SFTExample, ...]
    counts: dict[str, int]


def make_sft_example(row: PlanRow, completion: str, *, ended: bool = True) -> SFTExample:
    return SFTExample(
        step=row.step, group=row.group, persona_id=row.persona_id, question_id=row.question_id, gold=row.gold,
        messages=row.messages, completion=completion, ended=ended,
    )  # fmt: skip


def gold_examples(plan: Plan, verifier: Verifier) -> SFTDataset:
    """Each row's own solution, once, whatever its number of rollouts; rows without one that is verified right are left out.

    Raises ConfigError when no row is left.
    """
    verdict = _solution_verdicts(plan.rows, verifier)
    reasons = Counter[str]()
    found = []
    for row in plan.rows:
        reason = _exclusion_reason(row.solution, verdict.get(_solution_key(row)))
        if reason is None and row.solution is not None:
            found.append(make_sft_example(row, row.solution))
        else:
            reasons[f"rows left out: {reason}"] += 1
    counts = {"rows": len(plan.rows), "examples": len(found), **reasons}
    if not found:
        raise ConfigError(f"task {plan.rows[0].task}: no row of the plan can be learnt from ({format_sft_counts(counts)})")
    return SFTDataset(tuple(found), counts)


def _solution_key(row: PlanRow) -> tuple[str, str, str]:
    return row.solution or "", row.task, row.gold


def _solution_verdicts(rows: Sequence[PlanRow], verifier: Verifier) -> Mapping[tuple[str, str, str], bool | None]:
    """Whether each distinct solution is right; None where the verifier failed."""
    distinct = list(dict.fromkeys(_solution_key(row) for row in rows if row.solution is not None))
    if not distinct:
        return {}
    solutions, tasks, golds = zip(*distinct, strict=True)
    judged = verify_completions(solutions, tasks, golds, verifier)
    return {answer: one.correct for answer, one in zip(distinct, judged, strict=True)}


def _exclusion_reason(solution: str | None, correct: bool | None) -> str | None:
    """Why a row is left out, or None."""
    if solution is None:
        return "no solution in the task's data"
    return {True: None, False: "its solution is not verified right", None: "the verifier failed on its solution"}[correct]


def format_sft_counts(counts: Mapping[str, int]) -> str:
    """ "120 rows, 118 examples, 2 rows left out: ..."."""
    return ", ".join(f"{count} {what}" for what, count in counts.items())


def examples_by_step(examples: Sequence[SFTExample]) -> list[list[SFTExample]]:
    """The examples of each step of the plan; a step without any is passed over."""
    return [list(step) for _, step in groupby(examples, key=lambda one: one.step)]


def save_sft_dataset(out: Path, dataset: SFTDataset, samples_every: int) -> SFTDataset:
    """Write down what will be learnt from, and return it as it can be read again.

    examples.jsonl is written last: its presence means that all is there.
    """
    write_json(out / SFT_COUNTS_FILE, dataset.counts)
    write_text(out / "samples.md", _samples_markdown(dataset.examples, samples_every))
    write_jsonl(out / SFT_EXAMPLES_FILE, (one.model_dump(mode="json") for one in dataset.examples))
    return _read_examples(out)


def load_sft_dataset(out: Path) -> SFTDataset | None:
    """What an earlier start of the run wrote down; None when it did not come that far."""
    return _read_examples(out) if (out / SFT_EXAMPLES_FILE).exists() else None


def _read_examples(out: Path) -> SFTDataset:
    path = out / SFT_EXAMPLES_FILE
    examples = tuple(read_jsonl(path, SFTExample.model_validate_json, "an example"))
    counts = {name: int(count) for name, count in read_json(out / SFT_COUNTS_FILE).items()}
    if not path.read_bytes().endswith(b"\n"):  # `read_jsonl` passes over a last line that is not whole
        raise DataError(f"{path}: its last line is cut; the file was edited or cut")
    return SFTDataset(examples, counts)


def _samples_markdown(examples: Sequence[SFTExample], every: int) -> str:
    """Some of the examples, for reading: those of the steps that a log of rollouts would show."""
    parts = ["# Samples of what is learnt from\n"]
    for step in examples_by_step(examples):
        if step[0].step % every == 0:
            lines = [
                {"persona_id": one.persona_id, "gold": one.gold, "verdict": {"correct": True}}
                | {"prompt": one.messages[-1]["content"], "completion": one.completion}
                for one in step
            ]
            parts.append(samples_text(step[0].step + 1, lines))
    return "".join(parts)


def build_sft_dataset(config: TrainConfig, plan: Plan, run: RunDir, tokenizer: Any, window: int) -> SFTDataset:
    """Choose what the method learns from, write it into the run directory, and return it as it was written.

    Raises ConfigError when a gold solution is longer than a completion may be, or when nothing is left to learn from.
    """
    with Verifier() as verifier:
        if config.method == "seqkd":
            chosen = drop_overlong_examples(teacher_examples(config, plan, run, verifier), tokenizer, window)
        else:
            chosen = gold_examples(plan, verifier)
            check_solution_lengths(chosen.examples, tokenizer, config.train.max_new_tokens)
    print_status(f"train {config.label or config.out.name}: {format_sft_counts(chosen.counts)}")
    return save_sft_dataset(run.path, chosen, config.train.samples_every)


def describe_sft_source(config: TrainConfig, plan: Plan) -> dict[str, str]:
    """Where the completions of a supervised method come from, without asking a teacher; nothing for a method by reward.

    Raises ConfigError for a plan without usable solutions, or for a teacher that cannot be.
    """
    match config.method:
        case "sft" | "sft-personas":
            with Verifier() as verifier:
                return {"learnt from": format_sft_counts(gold_examples(plan, verifier).counts)}
        case "seqkd":
            with error_context("teacher"):
                check_model(teacher_config(config), contact=False)
            return {"teacher": teacher_config(config).name}
        case _:
            return {}


def check_solution_lengths(examples: Sequence[SFTExample], tokenizer: Any, limit: int) -> None:
    """Raise ConfigError when a solution is longer than a completion may be, naming the longest."""
    size, longest = max(((_completion_length(one, tokenizer), one) for one in examples), key=lambda pair: pair[0])
    if size > limit:
        raise ConfigError(
            f"train.max_new_tokens = {limit}: the solution of question {longest.question_id} has {size} tokens with its end, the "
            f"most of all; give train.max_new_tokens = {size} or more, or other questions"
        )


def drop_overlong_examples(dataset: SFTDataset, tokenizer: Any, window: int) -> SFTDataset:
    """What the model can read: a teacher counts in tokens of its own, and a sample may be more of this model's."""
    fitting = tuple(
        one
        for one in dataset.examples
        if len(encode_chat(tokenizer, one.messages)) + _completion_length(one, tokenizer) <= window
    )
    if not fitting:
        raise ConfigError(
            f"train.max_new_tokens: no right sample of the teacher fits into the {window} tokens that the model reads; "
            "give a smaller limit and another folder"
        )
    dropped = {"right samples left out, as the model cannot read so much": len(dataset.examples) - len(fitting)}
    return SFTDataset(
        fitting, dataset.counts | {"examples": len(fitting)} | (dropped if len(fitting) < len(dataset.examples) else {})
    )


def _completion_length(example: SFTExample, tokenizer: Any) -> int:
    """Tokens of a completion, with its end where it has one."""
    return len(encode_completion(example.completion, tokenizer)) + example.ended


TEACHER_FILE = "teacher.json"


TeacherRequests = Sequence[tuple[PlanRow, list[Cell]]]
"""The plan's rows, each with the samples asked of the teacher."""


def teacher_config(config: TrainConfig) -> TeacherConfig:
    """The teacher by a name that a model can be opened by: "self" is the model before training."""
    named = config.teacher.name if config.teacher.name != "self" else config.model.name
    return config.teacher.model_copy(update={"name": named})


def teacher_identity(config: TrainConfig) -> dict[str, object]:
    """What all samples of a run have in common, so far as it is known without asking the teacher."""
    return teacher_config(config).model_dump(include={"name", "backend", "base_url", "dtype", "max_samples_per_row"})


def check_teacher(config: TrainConfig) -> None:
    """Raise ConfigError when the teacher is not to be had, before a run is begun that would be bound to its name or address."""
    if (config.out / "provenance.json").exists():
        return
    with error_context("teacher"):
        check_model(teacher_config(config), contact=True)


def teacher_cells(plan: Plan) -> list[tuple[PlanRow, list[Cell]]]:
    """Every sample that is asked of the teacher, by row. A question that comes again under a persona counts its samples on."""
    asked = Counter[tuple[str | None, str]]()
    found = []
    for row in plan.rows:
        place = (row.persona_id, row.question_id)
        first, asked[place] = asked[place], asked[place] + row.rollouts
        found.append((row, [_teacher_cell(row, number, first + number) for number in range(row.rollouts)]))
    return found


def _teacher_cell(row: PlanRow, number: int, sample: int) -> Cell:
    return Cell(
        persona_id=row.persona_id, question_id=row.question_id, sample=sample, seed=seed_from(row.seed, number),
        messages=row.messages, gold=row.gold,
    )  # fmt: skip


def teacher_examples(config: TrainConfig, plan: Plan, run: RunDir, verifier: Verifier) -> SFTDataset:
    """Ask for the samples that have not come yet, and choose from all of them.

    Raises OwedCellsError when some did not come, and PermixError when none is right.
    """
    asked = teacher_cells(plan)
    if _missing_cells(asked, run.cells()):
        _run_teacher(config, asked, run, verifier)
    known = run.cells()
    if missing := _missing_cells(asked, known):
        raise IncompleteRunError(
            f"{run.path}: {len(missing)} of {sum(len(cells) for _, cells in asked)} samples of the teacher did not come"
            f"{_failure_text(missing, known)}; run the same command again to ask for them"
        )
    chosen = select_teacher_samples(asked, known, config.teacher.max_samples_per_row)
    if not chosen.examples:
        raise PermixError(
            f"{run.path}: none of the teacher's samples is right, so there is nothing to learn from "
            f"({format_sft_counts(chosen.counts)}); "
            "give another teacher or easier questions, and another folder"
        )
    return chosen


def _missing_cells(requests: TeacherRequests, recorded: Mapping[CellKey, Cell]) -> list[Cell]:
    """Cells without a completion. One that the verifier failed on is there: it is not learnt from, as it would have no reward."""
    return [cell for _, cells in requests for cell in cells if recorded.get(cell.key, cell).completion is None]


def _failure_text(missing: Sequence[Cell], recorded: Mapping[CellKey, Cell]) -> str:
    failures = [found.failure for cell in missing if (found := recorded.get(cell.key)) and found.failure]
    return f" ({failures[0].type}: {failures[0].message})" if failures else ""


def _run_teacher(config: TrainConfig, requests: TeacherRequests, run: RunDir, verifier: Verifier) -> None:
    """Fill the run's records, task by task."""
    own = config.train
    sampling = Sampling(temperature=own.temperature, top_p=own.top_p, max_new_tokens=own.max_new_tokens)
    with error_context("teacher"):
        teacher = load_model(teacher_config(config), config.threads)
        _check_same_teacher(teacher, run)
        for name in dict.fromkeys(row.task for row, _ in requests):
            cells = [cell for row, of_row in requests for cell in of_row if row.task == name]
            run_cells(teacher, cells, sampling, run, partial(_verify_sample, TASKS[name], verifier), f"teacher {teacher.name}")


def _verify_sample(task: Task, verifier: Verifier, completion: str, gold: str) -> Verdict:
    return verify_completion(task, completion, gold, verifier)


def _check_same_teacher(teacher: Model, run: RunDir) -> None:
    """Raise ConfigError when the samples that are there are another teacher's."""
    ours, path = {"name": teacher.name, "fingerprint": teacher.fingerprint}, run.path / TEACHER_FILE
    if path.exists() and (known := read_json(path)) != ours:
        raise ConfigError(
            f"the samples in {run.path} are of {known.get('name')} with fingerprint {known.get('fingerprint')}, not "
            f"{ours['fingerprint']} as it has now; give another folder, or that teacher"
        )
    write_json(path, ours)


def select_teacher_samples(requests: TeacherRequests, recorded: Mapping[CellKey, Cell], max_per_row: int | None) -> SFTDataset:
    """The right samples of each row, each text once, the first `keep` of them in the order of their numbers."""
    counts = Counter[str]()
    found: list[SFTExample] = []
    for row, cells in requests:
        samples = [recorded[cell.key] for cell in cells]
        right = [one for one in samples if _reward(one) == 1]
        examples = list(_distinct_examples(row, right))[:max_per_row]
        found += examples
        counts["samples"] += len(samples)
        counts["right samples"] += len(right)
        counts["samples that the verifier failed on"] += sum(_reward(one) is None for one in samples)
        counts["rows left out: no right sample"] += not examples
    return SFTDataset(tuple(found), {"rows": len(requests), "examples": len(found), **counts})


def _reward(cell: Cell) -> float | None:
    return cell.verdict.reward if cell.verdict else None


def _distinct_examples(row: PlanRow, correct_cells: Sequence[Cell]) -> Iterator[SFTExample]:
    texts: set[str] = set()
    for cell in correct_cells:
        if cell.completion is not None and cell.completion.text not in texts:
            texts.add(cell.completion.text)
            yield make_sft_example(row, cell.completion.text, ended=cell.completion.finish == "stop")

"""Makes the examples of supervised training: gold solutions, or right answers of a teacher, to the prompts of the plan.

    examples.jsonl     one line for each example, in plan order
    examples.json      numbers of rows and examples, and why rows were left out

Contract: the verifier found every example right. The files are written once before training, completely or not at all, and a
resumed run reads them: a verifier that fails at one start and not at another does not change the examples.

Sequence-level distillation (`seqkd`): a teacher answers every row of the plan. It gives as many samples of a row as RL has
rollouts, from the same seeds, under the row's persona, checked by the same verifier, so both methods have the same budget.
Samples are cells in the run's records.jsonl: none is generated twice, and a missing one is pending. Once all are there, the
teacher is no longer needed.
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
from permix.inference.addresses import check_addresses
from permix.inference.base import Model
from permix.inference.chat_template import encode_chat, encode_completion
from permix.plan import Plan
from permix.progress import print_status
from permix.storage.failures import OptionNames, explain_missing, find_failures
from permix.storage.files import read_json, read_jsonl, write_json, write_jsonl, write_text
from permix.storage.rows import quote_value
from permix.storage.run_dir import RunDir, read_provenance
from permix.tasks import find_task
from permix.tasks.base import verify_completion
from permix.training.rewards import verify_completions
from permix.training.run_log import samples_text
from permix.types import Cell, CellKey, Message, PlanRow, Record, Sampling, seed_from

SFT_EXAMPLES_FILE, SFT_COUNTS_FILE = "examples.jsonl", "examples.json"


class SFTExample(Record):
    """A completion to train on and the messages that it answers. One that was cut off (`ended` False) gets no stop token."""

    step: int
    group: int
    persona_id: str | None
    question_id: str
    gold: str
    messages: tuple[Message, ...]
    completion: str
    ended: bool = True


class SFTDataset(NamedTuple):
    """Examples in plan order, and counts by description."""

    examples: tuple[SFTExample, ...]
    counts: dict[str, int]


def make_sft_example(row: PlanRow, completion: str, *, ended: bool = True) -> SFTExample:
    """The example of a plan row with this completion."""
    return SFTExample(
        step=row.step, group=row.group, persona_id=row.persona_id, question_id=row.question_id, gold=row.gold,
        messages=row.messages, completion=completion, ended=ended,
    )  # fmt: skip


def gold_examples(plan: Plan) -> SFTDataset:
    """Each row's own solution, once, whatever its number of rollouts. Rows whose solution is not verified right are left out.

    Raises ConfigError if no row is left.
    """
    verdicts = _solution_verdicts(plan.rows)
    reasons = Counter[str]()
    examples = []
    for row in plan.rows:
        reason = _exclusion_reason(row.solution, verdicts.get(_solution_key(row)))
        if reason is None and row.solution is not None:
            examples.append(make_sft_example(row, row.solution))
        else:
            reasons[f"rows left out: {reason}"] += 1
    counts = {"rows": len(plan.rows), "examples": len(examples), **reasons}
    if not examples:
        raise ConfigError(f"task {plan.rows[0].task}: no row of the plan gives an example ({format_sft_counts(counts)})")
    return SFTDataset(tuple(examples), counts)


def _solution_key(row: PlanRow) -> tuple[str, str, str]:
    return row.solution or "", row.task, row.gold


def _solution_verdicts(rows: Sequence[PlanRow]) -> Mapping[tuple[str, str, str], bool | None]:
    """Whether each distinct solution is right; None if the verifier failed."""
    distinct = list(dict.fromkeys(_solution_key(row) for row in rows if row.solution is not None))
    if not distinct:
        return {}
    solutions, tasks, golds = zip(*distinct, strict=True)
    verdicts = verify_completions(solutions, tasks, golds)
    return {answer: one.correct for answer, one in zip(distinct, verdicts, strict=True)}


def _exclusion_reason(solution: str | None, correct: bool | None) -> str | None:
    """Why a row is left out; None if it is not."""
    if solution is None:
        return "no solution in the task's data"
    return {True: None, False: "its solution is not verified right", None: "the verifier failed on its solution"}[correct]


def format_sft_counts(counts: Mapping[str, int]) -> str:
    """ "120 rows, 118 examples, 2 rows left out: ..."."""
    return ", ".join(f"{count} {name}" for name, count in counts.items())


def examples_by_step(examples: Sequence[SFTExample]) -> list[list[SFTExample]]:
    """The examples of each step of the plan; steps without examples are left out."""
    return [list(step) for _, step in groupby(examples, key=lambda one: one.step)]


def save_sft_dataset(out: Path, dataset: SFTDataset, samples_every: int) -> SFTDataset:
    """Write the examples and return them as read back from the files.

    examples.jsonl is written last: if it exists, the other files are complete.
    """
    write_json(out / SFT_COUNTS_FILE, dataset.counts)
    write_text(out / "samples.md", _samples_markdown(dataset.examples, samples_every))
    write_jsonl(out / SFT_EXAMPLES_FILE, (one.model_dump(mode="json") for one in dataset.examples))
    return _read_examples(out)


def load_sft_dataset(out: Path) -> SFTDataset | None:
    """The examples that an earlier start of the run wrote; None if there are none."""
    return _read_examples(out) if (out / SFT_EXAMPLES_FILE).exists() else None


def _read_examples(out: Path) -> SFTDataset:
    path = out / SFT_EXAMPLES_FILE
    examples = tuple(read_jsonl(path, SFTExample.model_validate_json, "an example"))
    counts = {name: int(count) for name, count in read_json(out / SFT_COUNTS_FILE).items()}
    if not path.read_bytes().endswith(b"\n"):  # `read_jsonl` skips an incomplete last line
        raise DataError(f"{path}: its last line is incomplete; the file was edited or cut short")
    return SFTDataset(examples, counts)


def _samples_markdown(examples: Sequence[SFTExample], every: int) -> str:
    """Some examples to read: those of the steps of which a training with a reward shows rollouts."""
    parts = ["# Samples of the training examples\n"]
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
    """Make the examples of the method, write them into the run directory, and return them. `window`: tokens that the model reads.

    Raises ConfigError if a gold solution is longer than `train.max_new_tokens`, or if no example is left.
    """
    if config.method == "seqkd":
        dataset = drop_overlong_examples(teacher_examples(config, plan, run), tokenizer, window)
    else:
        dataset = gold_examples(plan)
        check_solution_lengths(dataset.examples, tokenizer, config.train.max_new_tokens)
    print_status(f"train {config.label or config.out.name}: {format_sft_counts(dataset.counts)}")
    return save_sft_dataset(run.path, dataset, config.train.samples_every)


def describe_sft_source(config: TrainConfig, plan: Plan) -> dict[str, str]:
    """Where the completions of a supervised method come from, without asking a teacher; empty for a method with a reward.

    Raises ConfigError if the plan has no usable solutions or the teacher's settings are invalid.
    """
    match config.method:
        case "sft" | "sft-personas":
            return {"learnt from": format_sft_counts(gold_examples(plan).counts)}
        case "seqkd":
            with error_context("teacher"):
                check_model(teacher_config(config), contact=False)
            return {"teacher": teacher_config(config).name}
        case _:
            return {}


def check_solution_lengths(examples: Sequence[SFTExample], tokenizer: Any, limit: int) -> None:
    """Raise ConfigError that names the longest solution if it has more than `limit` tokens."""
    size, longest = max(((_completion_length(one, tokenizer), one) for one in examples), key=lambda pair: pair[0])
    if size > limit:
        raise ConfigError(
            f"train.max_new_tokens = {limit}: the solution of question {longest.question_id} has {size} tokens with its end, "
            f"more than any other; give train.max_new_tokens = {size} or more, or other questions"
        )


def drop_overlong_examples(dataset: SFTDataset, tokenizer: Any, window: int) -> SFTDataset:
    """Drop examples longer than `window` tokens: the teacher's limit counts its own tokens, and this model may need more."""
    fitting = tuple(
        one
        for one in dataset.examples
        if len(encode_chat(tokenizer, one.messages)) + _completion_length(one, tokenizer) <= window
    )
    if not fitting:
        raise ConfigError(
            f"train.max_new_tokens: no right sample of the teacher fits into the {window} tokens that the model reads; "
            "give a smaller limit and another run directory (out)"
        )
    dropped = {"right samples left out, as the model cannot read so much": len(dataset.examples) - len(fitting)}
    return SFTDataset(
        fitting, dataset.counts | {"examples": len(fitting)} | (dropped if len(fitting) < len(dataset.examples) else {})
    )


def _completion_length(example: SFTExample, tokenizer: Any) -> int:
    """Tokens of a completion, with its stop token if it ended."""
    return len(encode_completion(example.completion, tokenizer)) + example.ended


TEACHER_FILE = "teacher.json"


TeacherRequests = Sequence[tuple[PlanRow, list[Cell]]]
"""The rows of the plan, each with the cells that the teacher answers."""


def teacher_config(config: TrainConfig) -> TeacherConfig:
    """The teacher's settings with the name of a model: "self" becomes the model that training starts from."""
    name = config.teacher.name if config.teacher.name != "self" else config.model.name
    return config.teacher.model_copy(update={"name": name})


def teacher_identity(config: TrainConfig) -> dict[str, object]:
    """The part of a run's identity that comes from the teacher's settings. Its address may change between starts."""
    teacher = teacher_config(config)
    always = {"name", "backend", "dtype", "max_samples_per_row"}
    return teacher.model_dump(include=always) | teacher.model_dump(include={"thinking", "thinking_budget"}, exclude_defaults=True)


def check_teacher(config: TrainConfig) -> None:
    """Raise ConfigError if the teacher is not available. A new run is checked before it is begun, a resumed one not at all."""
    if (config.out / "provenance.json").exists():
        return
    with error_context("teacher"):
        check_model(teacher_config(config), contact=True)


def teacher_cells(plan: Plan) -> list[tuple[PlanRow, list[Cell]]]:
    """All cells of the teacher, by row. If a question comes again under the same persona, its samples are numbered on."""
    n_samples = Counter[tuple[str | None, str]]()
    requests = []
    for row in plan.rows:
        pair = (row.persona_id, row.question_id)
        first, n_samples[pair] = n_samples[pair], n_samples[pair] + row.rollouts
        requests.append((row, [_teacher_cell(row, number, first + number) for number in range(row.rollouts)]))
    return requests


def _teacher_cell(row: PlanRow, number: int, sample: int) -> Cell:
    return Cell(
        # The seed of the rollout with this number in RL.
        persona_id=row.persona_id, question_id=row.question_id, sample=sample, seed=seed_from(row.seed, number),
        messages=row.messages, gold=row.gold, template=row.template, context=row.context,
    )  # fmt: skip


def teacher_examples(config: TrainConfig, plan: Plan, run: RunDir) -> SFTDataset:
    """Generate the pending samples of the teacher, and make examples of the right ones.

    Raises IncompleteRunError if samples are missing, and PermixError if none is right.
    """
    requests = teacher_cells(plan)
    if _missing_cells(requests, run.cells()):
        _run_teacher(config, requests, run)
    recorded = run.cells()
    if missing := _missing_cells(requests, recorded):
        raise IncompleteRunError(
            f"{run.path}: {len(missing)} of {sum(len(cells) for _, cells in requests)} samples of the teacher are missing"
            + explain_missing(
                find_failures(recorded, scored=False),
                "run the same command again to ask for them",
                stop_reason=run.stop_reason,
                options=OptionNames("teacher", "train.max_new_tokens"),
            )
        )
    dataset = select_teacher_samples(requests, recorded, config.teacher.max_samples_per_row)
    if not dataset.examples:
        raise PermixError(
            f"{run.path}: none of the teacher's samples is right, so there is no example to train on "
            f"({format_sft_counts(dataset.counts)}); "
            "give another teacher or easier questions, and another run directory (out)"
        )
    return dataset


def _missing_cells(requests: TeacherRequests, recorded: Mapping[CellKey, Cell]) -> list[Cell]:
    """Cells without a completion. A cell on which the verifier failed is not missing; it gives no example, as in RL no reward."""
    return [cell for _, cells in requests for cell in cells if recorded.get(cell.key, cell).completion is None]


def _run_teacher(config: TrainConfig, requests: TeacherRequests, run: RunDir) -> None:
    """Let the teacher answer the pending cells, task by task."""
    train = config.train
    sampling = Sampling(temperature=train.temperature, top_p=train.top_p, max_new_tokens=train.max_new_tokens)
    with error_context("teacher"):
        teacher = load_model(teacher_config(config), config.threads)
        _check_same_teacher(teacher, run)
        for name in dict.fromkeys(row.task for row, _ in requests):
            cells = [cell for row, row_cells in requests for cell in row_cells if row.task == name]
            scorer = partial(verify_completion, find_task(name))
            run_cells(teacher, cells, sampling, run, scorer, f"teacher {teacher.name}")


def _check_same_teacher(teacher: Model, run: RunDir) -> None:
    """Raise ConfigError if the recorded samples come from another teacher; else record its address."""
    path = run.path / TEACHER_FILE
    known = read_json(path) if path.exists() else {}
    fingerprint = known.get("fingerprint")
    recorded = fingerprint if isinstance(fingerprint, str) and known.get("name") == teacher.name else None
    of_former_version = (read_provenance(run.path)["identity"].get("teacher") or {}).get("base_url")
    base_url = of_former_version if isinstance(of_former_version, str) else None
    check = check_addresses(teacher, run.path, "teacher", recorded_fingerprint=recorded, recorded_base_url=base_url)
    ours = {"name": teacher.name, "fingerprint": check.fingerprint or teacher.fingerprint}
    # A fingerprint of an earlier version counted the address: it is written in its present form.
    if known and check.fingerprint is None and known != ours:
        changed = (
            f"are of {quote_value(known.get('name'))}, not of {quote_value(teacher.name)}"
            if known.get("name") != teacher.name
            else f"are of other weights or settings of {quote_value(teacher.name)}"
        )
        raise ConfigError(f"the samples in {run.path} {changed}; give another run directory (out), or that teacher")
    write_json(path, ours)
    check.record(run.path)


def select_teacher_samples(requests: TeacherRequests, recorded: Mapping[CellKey, Cell], max_per_row: int | None) -> SFTDataset:
    """The right samples of each row, in order of their numbers: each text once, at most `max_per_row` (None: all)."""
    counts = Counter[str]()
    selected: list[SFTExample] = []
    for row, cells in requests:
        samples = [recorded[cell.key] for cell in cells]
        right = [one for one in samples if _reward(one) == 1]
        examples = list(_distinct_examples(row, right))[:max_per_row]
        selected += examples
        counts["samples"] += len(samples)
        counts["right samples"] += len(right)
        counts["samples that the verifier failed on"] += sum(_reward(one) is None for one in samples)
        counts["rows left out: no right sample"] += not examples
    return SFTDataset(tuple(selected), {"rows": len(requests), "examples": len(selected), **counts})


def _reward(cell: Cell) -> float | None:
    return cell.verdict.reward if cell.verdict else None


def _distinct_examples(row: PlanRow, correct_cells: Sequence[Cell]) -> Iterator[SFTExample]:
    texts: set[str] = set()
    for cell in correct_cells:
        if cell.completion is not None and cell.completion.text not in texts:
            texts.add(cell.completion.text)
            yield make_sft_example(row, cell.completion.text, ended=cell.completion.finish == "stop")

"""`permix import --verl`: turn the rollouts that a verl training dumped into a training run that reports and the viewer read.

    imported.json    the files that were read, with sizes and hashes, and what was missing in them
    log.jsonl        one line a step: reward, reward by tag, groups with a nonzero advantage, rollouts without a score; with
                     --verl-log also loss, KL, entropy, gradient norm, learning rate and the length of completions
    rollouts.jsonl   one line a rollout, in the order of the plan
    samples.md       some rollouts, for reading
    plan.parquet     the plan; permix_seen_questions.json has its questions and personas, for evaluations of model/
    dev_eval/, dev_eval.jsonl   with --validation: the answers and measures of each validation

Contract: everything is read and checked before anything is written. A field that verl does not give is not there. The same import
again changes nothing; a dump that has grown adds its steps; a dump that lacks or changed a file of an earlier import is refused.
"""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

from permix.config import (
    DevEvalConfig,
    ImportConfig,
    ImportedModelConfig,
    ImportedSamplingConfig,
    ImportedStabilityConfig,
    ImportedTrainConfig,
    OptimConfig,
)
from permix.errors import ConfigError, DataError, option_context
from permix.evals.grid import describe_grid
from permix.evals.stability import measure_stability
from permix.interop.verl_dump import (
    DumpedRollout,
    DumpedStep,
    PromptIndex,
    StepFile,
    TrainedPlan,
    hash_beginning,
    list_step_files,
    read_step,
    read_trained_plan,
    read_verl_metrics,
    split_abandoned,
)
from permix.plan import write_plan
from permix.progress import print_status
from permix.storage.files import encode_line, read_json, replace_when_done, write_json, write_jsonl, write_text
from permix.storage.run_dir import RunDir
from permix.tasks.base import TrainedOn, write_trained_on
from permix.training.dev_eval import DEV_EVAL_LOG, dev_eval_dir, dev_point_from_records
from permix.training.rewards import mean_or_none, mean_reward_by_tag
from permix.training.run_log import describe_training, samples_text
from permix.types import Cell, Completion, Persona, PlanRow, Question, Verdict, reward_tags

IMPORTED_FILES = "imported.json"


class TracedRollout(NamedTuple):
    """A dumped rollout and the row of the plan that it answers."""

    rollout: DumpedRollout
    row: PlanRow


class VerlTraining(NamedTuple):
    """All of a training that is read before anything is written. `files` and `dev_files` hold whole files alone."""

    plan: TrainedPlan
    files: tuple[DumpedStep, ...]
    """Without their rollouts, which are read a second time when they are written."""
    log: tuple[dict[str, Any], ...]
    dev_files: tuple[DumpedStep, ...]
    counts: Mapping[str, int]
    notes: tuple[str, ...]
    prompts: PromptIndex
    dev_prompts: PromptIndex


def import_verl_training(config: ImportConfig, folder: Path) -> None:
    """Read, check and write the run. Raises ConfigError or DataError before anything is written."""
    training = read_verl_training(config, folder)
    _check_same_dump(config, training)
    for note in training.notes:
        print_status(f"note: {note}")
    run_config = _run_config(config, training)
    with RunDir.open(config.out, run_config, _identity(training)) as run:
        # First, so that another dump is refused also if this import is killed on its way.
        write_json(run.path / IMPORTED_FILES, _imported_files(config, training))
        write_plan(training.plan.plan, run.path / "plan.parquet")
        write_trained_on(run.path, _trained_on(training.plan))
        _write_rollouts(run.path, training)
        write_jsonl(run.path / "log.jsonl", training.log)
        if training.dev_files:
            _write_dev_evaluations(run.path, config, training, run_config.dev_eval)
    print_status(f"imported {training.counts['rollouts']} rollouts: {describe_training(training.log)}")


def describe_verl_training(config: ImportConfig, folder: Path) -> dict[str, str]:
    """Facts about the run that an import would write, for `permix check`. Raises ConfigError or DataError."""
    training = read_verl_training(config, folder)
    _check_same_dump(config, training)
    return {
        "engine": "verl",
        "model": training.plan.model or "unknown",
        "plan": training.plan.plan.hash,
        "steps": f"{len(training.log)} of {training.plan.plan.steps}",
        "rollouts": str(training.counts["rollouts"]),
        **({"validations": str(len(training.dev_files))} if training.dev_files else {}),
        **({"notes": "; ".join(training.notes)} if training.notes else {}),
    }


# Reading


def read_verl_training(config: ImportConfig, folder: Path) -> VerlTraining:
    """Read and check the dump, its plan, its validations and its metrics. Raises ConfigError or DataError."""
    assert config.plan is not None, "ImportConfig checks that an import from verl has a plan"
    with option_context("plan", config.plan):
        plan = read_trained_plan(config.plan)
    with option_context("verl_log", ", ".join(map(str, config.verl_log))):
        metrics = read_verl_metrics(config.verl_log)
    with option_context("verl", folder):
        files = list_step_files(folder)
        if beyond := next((file for file in files if not 0 < file.step <= plan.plan.steps), None):
            raise DataError(f"{beyond.path}: the plan has steps 1 to {plan.plan.steps}; was another plan trained?")
        files, abandoned = split_abandoned(files)
        index, expected = _index_prompts(plan.rows, str(config.plan), files), plan.count_rollouts()
        sizes = _GroupSizes(plan.config.group_size)
        log, whole, unread, counts = list[dict[str, Any]](), list[DumpedStep](), list[int](), Counter[str]()
        for file in files:
            step = read_step(file)
            if step is None:
                unread.append(file.step)
                continue
            traced = list(_trace_step(step, index, plan))
            sizes.add(traced)
            log.append(_log_line(step.step, traced, expected[step.step - 1], metrics.get(step.step, {})))
            counts += Counter(
                rollouts=len(traced),
                unscored=log[-1]["unscored"],
                moved=sum(one.row.step != step.step - 1 for one in traced),
            )
            whole.append(step._replace(rollouts=()))
        if not whole:
            raise DataError(f"{folder}: has no whole step yet; import it again when verl has written one")
        sizes.check(folder)
    dev_files, dev_index, dev_notes = _read_validations(config, plan)
    notes = [
        *_describe_left(folder, unread, abandoned),
        *_describe_gaps(folder, log, counts, [*unread, *abandoned]),
        *_describe_missing_metrics(config, log, metrics),
        *dev_notes,
    ]
    return VerlTraining(plan, tuple(whole), tuple(log), dev_files, counts, tuple(notes), index, dev_index)


def _index_prompts(rows: Sequence[PlanRow], source: str, files: Sequence[StepFile]) -> PromptIndex:
    """The index of these rows. If it needs to know which text a chat template puts around the messages, it has learnt that from
    all whole files."""
    index = PromptIndex(rows, source)
    if index.has_rivals:
        steps = filter(None, map(read_step, files))
        index.learn(rollout for step in steps for rollout in step.rollouts)
    return index


def _trace_step(step: DumpedStep, index: PromptIndex, plan: TrainedPlan) -> Iterator[TracedRollout]:
    """The rollouts of a step with their rows, in the order of the plan. Raises DataError if a prompt has too many of them."""
    traced = [TracedRollout(one, index.find_row(one, step.step - 1)) for one in step.rollouts]
    by_prompt = Counter(_group_of(one) for one in traced)
    for one in traced:
        if (found := by_prompt[_group_of(one)]) > plan.config.group_size:
            raise DataError(
                f"{one.rollout.where}: the question {one.row.question_id} has {found} rollouts in step {step.step}, and the plan "
                f"{plan.config.group_size}; was the training started with another rollout.n?"
            )
    yield from sorted(traced, key=lambda one: (one.row.step, one.row.group, one.rollout.prompt_uid or "", one.rollout.session))


MIN_GROUPS = 4
"""A rollout of the same number is missing in so many groups only if verl was never asked for it."""


class _GroupSizes:
    """Whether verl was asked for as many rollouts of each question as the plan has; `size`: that number."""

    def __init__(self, size: int) -> None:
        self._size, self._numbers, self._groups = size, set[int](), set[str]()

    def add(self, traced: Sequence[TracedRollout]) -> None:
        for rollout, _ in traced:
            if rollout.prompt_uid is not None:
                self._numbers.add(rollout.session)
                self._groups.add(rollout.prompt_uid)

    def check(self, folder: Path) -> None:
        """Raise DataError if the last rollouts of all groups are missing."""
        found = max(self._numbers, default=self._size) + 1
        if found < self._size and len(self._groups) >= MIN_GROUPS:
            raise DataError(
                f"{folder}: no question has more than {found} rollouts, and the plan has {self._size}; was the training started "
                "with another rollout.n?"
            )


def _group_of(one: TracedRollout) -> tuple[int, int] | str:
    """What the rollouts of one group have in common."""
    return one.rollout.prompt_uid or (one.row.step, one.row.group)


def _log_line(step: int, traced: Sequence[TracedRollout], n_expected: int, metrics: Mapping[str, float]) -> dict[str, Any]:
    """A line of log.jsonl. A group has a nonzero advantage if its rewards differ."""
    scores = [one.rollout.score for one in traced]
    groups: dict[tuple[int, int] | str, list[float]] = {}
    for one in traced:
        groups.setdefault(_group_of(one), []).append(one.rollout.score)
    varied = [float(min(own) < max(own)) for own in groups.values()]
    return {
        "step": step,
        "reward": mean_or_none(scores),
        "reward_by_tag": dict(
            mean_reward_by_tag(scores, [reward_tags(one.row.persona_id, one.row.persona_tags) for one in traced])
        ),
        "frac_nonzero_advantage_groups": mean_or_none(varied),
        "unscored": max(n_expected - len(traced), 0),
        **metrics,
    }


def _read_validations(config: ImportConfig, plan: TrainedPlan) -> tuple[tuple[DumpedStep, ...], PromptIndex, list[str]]:
    """(whole validations without their rollouts, the dev prompts, notes on validations that are left out). Raises DataError."""
    if config.validation is None:
        return (), PromptIndex((), "the dev questions"), []
    if not plan.dev_rows:
        raise ConfigError(
            f"validation = {config.validation}: plan = {config.plan} has no dev questions; give the folder that "
            "`permix export --format verl` wrote for a training with dev_eval.every above 0"
        )
    whole, unread = list[DumpedStep](), list[int]()
    with option_context("validation", config.validation):
        files, abandoned = split_abandoned(list_step_files(config.validation))
        index = _index_prompts(plan.dev_rows, f"{config.plan}, dev questions", files)
        for file in files:
            step = read_step(file)
            if step is None:
                unread.append(file.step)
            else:
                for one in step.rollouts:
                    index.find_row(one, 0)
                whole.append(step._replace(rollouts=()))
    return tuple(whole), index, list(_describe_left(config.validation, unread, abandoned))


def _describe_left(folder: Path, unread: Sequence[int], abandoned: Sequence[int]) -> Iterator[str]:
    """Which files are left for the next import: those being written, and those of `split_abandoned`."""
    if unread:
        yield f"{folder}: {_list_steps(unread)}: still being written, left for the next import"
    if abandoned:
        yield (
            f"{folder}: {_list_steps(abandoned)}: older than an earlier step, as where the training went back to a checkpoint "
            "and has not written it again; left for the next import (a copy of the folder must keep the times of its files)"
        )


def _describe_gaps(
    folder: Path, log: Sequence[Mapping[str, Any]], counts: Mapping[str, int], left: Sequence[int]
) -> Iterator[str]:
    known = {line["step"] for line in log} | set(left)
    if gaps := [step for step in range(1, max(known)) if step not in known]:
        yield f"{folder}: has no file of {_list_steps(gaps)}"
    if counts["unscored"]:
        yield (
            f"missing rollouts: {counts['unscored']} of {counts['rollouts'] + counts['unscored']} are not in the dump: their "
            "verifier failed, their prompt was too long, or verl lost them; they count as missing, not as wrong"
        )
    if counts["moved"]:
        yield (
            f"rollouts trained in another step than the plan's: {counts['moved']} of {counts['rollouts']}. verl takes later "
            "questions where all rollouts of a question have failed"
        )


def _describe_missing_metrics(
    config: ImportConfig, log: Sequence[Mapping[str, Any]], metrics: Mapping[int, object]
) -> Iterator[str]:
    if config.verl_log and (missing := [line["step"] for line in log if line["step"] not in metrics]):
        yield f"{', '.join(map(str, config.verl_log))}: has no metrics of {_list_steps(missing)}"


MAX_LISTED_STEPS = 5


def _list_steps(steps: Sequence[int]) -> str:
    listed = ", ".join(map(str, steps[:MAX_LISTED_STEPS]))
    more = f" and {len(steps) - MAX_LISTED_STEPS} more" if len(steps) > MAX_LISTED_STEPS else ""
    return f"step{'s' if len(steps) > 1 else ''} {listed}{more}"


# Identity and growth


def _identity(training: VerlTraining) -> dict[str, Any]:
    plan = training.plan
    return {
        "imported": "verl",
        "engine": "verl",
        "plan": plan.plan.hash,
        "model": plan.model,
        **({"engine_version": plan.engine_version} if plan.engine_version else {}),
        **({} if plan.train is None else {"train": plan.train.model_dump(mode="json")}),
    }


def _imported_files(config: ImportConfig, training: VerlTraining) -> dict[str, Any]:
    """The content of imported.json."""
    sections = {"rollouts": training.files, "validation": training.dev_files}
    return {
        "counts": {name: training.counts[name] for name in ("rollouts", "unscored", "moved")},
        **{
            name: {one.path.name: {"bytes": one.n_bytes, "sha256": one.sha256} for one in files}
            for name, files in sections.items()
        },
        "verl_log": [path.name for path in config.verl_log],
        "notes": list(training.notes),
    }


def _check_same_dump(config: ImportConfig, training: VerlTraining) -> None:
    """Raise ConfigError if an earlier import into `config.out` was of another dump, or of more than this one."""
    path = config.out / IMPORTED_FILES
    if not path.exists():
        return
    known = read_json(path)
    for section, folder, files in (
        ("rollouts", config.verl, training.files),
        ("validation", config.validation, training.dev_files),
    ):
        now = {one.path.name: one for one in files}
        recorded_files = _recorded_files(path, known, section)
        if recorded_files and folder is None:
            raise ConfigError(f"out = {config.out}: holds an import with {section}; give the folder again, or another out")
        for name, recorded in recorded_files.items():
            assert folder is not None
            same = now.get(name)
            if same is None or not _continues(same, recorded):
                lacks = "has another content" if (folder / name).exists() else "is missing"
                raise ConfigError(
                    f"out = {config.out}: holds an import of another dump: {folder / name} {lacks}. A training that went back to "
                    "a checkpoint writes its steps again; give another folder"
                )
    if known.get("verl_log") and not config.verl_log:
        raise ConfigError(f"out = {config.out}: holds an import with verl_log; give the files again, or another out")


def _recorded_files(path: Path, known: Mapping[str, Any], section: str) -> dict[str, dict[str, Any]]:
    found = known.get(section)
    if isinstance(found, dict) and all(
        isinstance(one, dict) and isinstance(one.get("bytes"), int) and isinstance(one.get("sha256"), str)
        for one in found.values()
    ):
        return found
    raise DataError(f"{path}: {section} must hold the size and the hash of each file; the file was edited or is damaged")


def _continues(file: DumpedStep, recorded: Mapping[str, Any]) -> bool:
    """Whether a file is the recorded one, or has grown since."""
    if file.n_bytes == recorded["bytes"]:
        return bool(file.sha256 == recorded["sha256"])
    return bool(hash_beginning(file.path, recorded["bytes"]) == recorded["sha256"])


# Writing


def _run_config(config: ImportConfig, training: VerlTraining) -> ImportedTrainConfig:
    plan = training.plan
    return ImportedTrainConfig(
        label=config.label,
        method="permix" if any(row.persona_id is not None for row in plan.rows) else "rlvr",
        model=ImportedModelConfig(name=plan.model),
        plan=plan.config,
        train=plan.train,
        dev_eval=_dev_eval_config(training),
        imported=config,
    )


def _dev_eval_config(training: VerlTraining) -> DevEvalConfig:
    """The dev evaluation that the validations are: without open-ended answers, and chosen by nobody."""
    if not training.dev_files:
        return DevEvalConfig()
    steps, rows = [file.step for file in training.dev_files], training.plan.dev_rows
    gaps = [later - earlier for earlier, later in pairwise(steps)]
    return DevEvalConfig(
        every=min(gaps, default=max(steps[0], 1)),
        personas=max(2, len({row.persona_id for row in rows} - {None})),
        questions=len({row.question_id for row in rows}),
        characters=0,
        metric="worst",
    )


def _write_rollouts(out: Path, training: VerlTraining) -> None:
    plan = training.plan
    samples = ["# Samples of the rollouts\n"]
    every = (plan.train or OptimConfig()).samples_every
    with replace_when_done(out / "rollouts.jsonl") as scratch, scratch.open("wb") as file:
        for recorded in training.files:
            step = _read_again(recorded)
            lines = [_rollout_line(step.step, one) for one in _trace_step(step, training.prompts, plan)]
            file.write(b"".join(map(encode_line, lines)))
            if (step.step - 1) % every == 0 and lines:
                samples.append(samples_text(step.step, lines))
    write_text(out / "samples.md", "".join(samples))


def _read_again(recorded: DumpedStep) -> DumpedStep:
    """A dump as it was when it was checked. Raises DataError if it has changed since."""
    step = read_step(StepFile(recorded.step, recorded.path), recorded.n_bytes)
    if step is None or step.sha256 != recorded.sha256:
        raise DataError(f"{recorded.path}: has changed while it was imported; run the same command again")
    return step


def _trained_on(plan: TrainedPlan) -> TrainedOn:
    """What a model in the run's folder model/ was trained on: evaluations of it refuse these questions."""
    personas = frozenset(row.persona_id for row in plan.rows if row.persona_id is not None)
    return TrainedOn(frozenset(row.question_hash for row in plan.rows), personas)


def _rollout_line(step: int, one: TracedRollout) -> dict[str, Any]:
    """A line of rollouts.jsonl. verl says neither how many tokens a completion has nor which answer the verifier read."""
    rollout, row = one
    return {
        "step": step,
        "group": row.group,
        **({} if row.step == step - 1 else {"plan_step": row.step + 1}),
        "persona_id": row.persona_id,
        "question_id": row.question_id,
        "prompt": row.messages[-1]["content"],
        "completion": rollout.completion,
        "gold": row.gold,
        "verdict": Verdict(correct=rollout.correct).model_dump(),
    }


def _write_dev_evaluations(out: Path, config: ImportConfig, training: VerlTraining, settings: DevEvalConfig) -> None:
    rows, label = training.plan.dev_rows, config.label or config.out.name
    personas = {row.persona_id: _persona_of(row) for row in rows if row.persona_id is not None}
    questions = {
        row.question_id: Question(id=row.question_id, task=row.task, text=row.messages[-1]["content"], gold=row.gold)
        for row in rows
    }
    lines = []
    for recorded in training.dev_files:
        cells = list(_dev_cells(_read_again(recorded), training.dev_prompts))
        samples = max((cell.sample + 1 for cell in cells), default=1)
        stage = ImportedStabilityConfig(
            label=f"{label}, step {recorded.step}",
            model=ImportedModelConfig(name=training.plan.model),
            sampling=ImportedSamplingConfig(),
            samples=samples,
            seed=config.seed,
            resamples=config.resamples,
            imported=config,
        )
        task = ", ".join(sorted({row.task for row in rows}))
        identity = {"imported": "verl", "plan": training.plan.plan.hash, "task": task, "judge": "permix", "step": recorded.step}
        with RunDir.open(dev_eval_dir(out, recorded.step) / "stability", stage, identity, cells) as run:
            write_json(run.path / "grid.json", describe_grid(list(personas.values()), list(questions.values()), samples))
            known = run.cells()
            run.append(cell for cell in cells if known.get(cell.key) != cell)
            write_json(run.path / "metrics.json", measure_stability(run.path))
        lines.append(dev_point_from_records(out, recorded.step, settings).model_dump(mode="json"))
    write_jsonl(out / DEV_EVAL_LOG, lines)


def _dev_cells(step: DumpedStep, index: PromptIndex) -> Iterator[Cell]:
    """A cell for each answer of a validation; the answers to one prompt are numbered in the order of verl's rollouts."""
    seen = Counter[tuple[str | None, str]]()
    for rollout in sorted(step.rollouts, key=lambda one: (one.prompt_uid or "", one.session)):
        row = index.find_row(rollout, 0)
        sample = seen[row.persona_id, row.question_id]
        seen[row.persona_id, row.question_id] += 1
        yield Cell(
            persona_id=row.persona_id, question_id=row.question_id, sample=sample, seed=row.seed, messages=row.messages,
            gold=row.gold, verdict=Verdict(correct=rollout.correct),
            completion=Completion(text=rollout.completion, prompt_tokens=None, completion_tokens=None, finish=None),
        )  # fmt: skip


def _persona_of(row: PlanRow) -> Persona:
    text = next((message["content"] for message in row.messages if message["role"] == "system"), row.messages[0]["content"])
    return Persona(id=str(row.persona_id), text=text or str(row.persona_id), tags=row.persona_tags)

"""Run `permix quickstart`: measure a model, train it with and without personas, measure it again and write a report.

Both trainings use the same plan seed. Plain RLVR asks every question without a persona. PerMix-RLVR asks most of them under a
persona, and replays the base model's in-character answers. All evaluations use held-out personas and questions. Each part is a
stage with its own run directory: an interrupted quickstart resumes where it stopped, and the config.json of a part runs that
part alone. Several processes run at the same time; each trains or evaluates one model.
"""

import contextlib
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from rich.console import Console

from permix.config import (
    CharacterConfig,
    FidelityConfig,
    ModelConfig,
    OptimConfig,
    PersonasConfig,
    QuickstartConfig,
    ReportConfig,
    RolloutPlanConfig,
    StabilityConfig,
    TaskConfig,
    TrainableModelConfig,
    TrainConfig,
    TrainMethod,
    resolve_mix,
)
from permix.config.base import quote_input
from permix.errors import ConfigError, IncompleteRunError, PermixError
from permix.inference.hardware import memory_limit, release_memory, visible_gpus
from permix.pipelines.jobs import Job, run_jobs, thread_arguments
from permix.pipelines.study_units import CHANGEABLE_SETTINGS, run_part
from permix.progress import JobSize, MultiProgress, add_result, print_status, separate_result
from permix.storage.files import read_json, write_json
from permix.storage.run_dir import describe_setting_differences, part_with_keys_of
from permix.storage.workers import claim_folder
from permix.types import Sampling, Split

QUICKSTART_LEVELS = ("add-1", "sub-1", "mul-1", "add-1x3", "add-2")

QUICKSTART_PROMPT = "{question} Answer with a number only."

QUICKSTART_MAX_NEW_TOKENS = 64
"""With the bare question the model talks on: of the answers of the dev personas, 15 % are cut off at 256 tokens. With this prompt
2 % are cut off at 64 tokens (6 dev personas and no persona, 25 dev questions each)."""

QUICKSTART_FILE = "quickstart.json"
"""The settings, in the quickstart's folder: permix quickstart OUT/quickstart.json goes on with it."""

BASE_LABEL, RLVR_LABEL, PERMIX_LABEL = "base", "RLVR", "PerMix-RLVR"


class QuickstartSize(NamedTuple):
    """The sizes of the quickstart's trainings and evaluations; `minutes` is its expected duration on 2 cores."""

    steps: int
    questions_per_step: int
    personas: int
    questions: int
    characters: int
    roleplay_questions: int
    character: CharacterConfig
    """The [character] section of PerMix-RLVR: how it replays in-character answers."""
    minutes: int
    group_size: int = 8


# Measured on two cores: CPU seconds of one cell, one open-ended answer, one question of a training step by method, and what a
# process takes to load libraries and the model.
CELL_CPU_SECONDS, ANSWER_CPU_SECONDS = 0.13, 0.39
QUESTION_CPU_SECONDS = {"rlvr": 2.7, "permix": 5.8}
START_UP_CPU_SECONDS = 8.0


MAX_JOBS, JOB_BYTES = 3, 6 * 10**9
"""Most processes that run at the same time, and the memory that one may need: a training takes 4.3 GB."""


class QuickstartPart(NamedTuple):
    """One part of the quickstart. `cpu_seconds` is an estimate, from which the time left in total is computed."""

    name: str
    cpu_seconds: float
    config: StabilityConfig | FidelityConfig | TrainConfig
    after: tuple[str, ...] = ()
    """The names of parts whose results this one needs."""

    def run(self) -> None:
        """Run or resume the part in this process."""
        run_part(self.config)

    @property
    def has_result(self) -> bool:
        """Whether the file that the part writes last is there."""
        last = "model/config.json" if isinstance(self.config, TrainConfig) else "metrics.json"
        return (self.config.out / last).exists()


QUICKSTART_REPLAY = CharacterConfig(replay=0.5, replay_answers=6)

FULL_SIZE = QuickstartSize(
    steps=20, questions_per_step=6, personas=12, questions=100, characters=9, roleplay_questions=40, minutes=20,
    character=QUICKSTART_REPLAY,
)  # fmt: skip

FAST_SIZE = QuickstartSize(
    steps=2, questions_per_step=2, group_size=4, personas=4, questions=16, characters=3, roleplay_questions=10, minutes=2,
    character=QUICKSTART_REPLAY.model_copy(update={"personas": 12, "questions": 1, "replay_answers": 2}),
)  # fmt: skip


def quickstart_configs(config: QuickstartConfig) -> tuple[list[StabilityConfig], list[FidelityConfig], list[TrainConfig]]:
    """The stability and the fidelity evaluations of base, RLVR and PerMix-RLVR, and the two trainings."""
    size = FAST_SIZE if config.fast else FULL_SIZE
    trained = [_train_config(config, size, RLVR_LABEL, "rlvr"), _train_config(config, size, PERMIX_LABEL, "permix")]
    models = {BASE_LABEL: config.model, RLVR_LABEL: str(trained[0].out / "model"), PERMIX_LABEL: str(trained[1].out / "model")}
    stable = [_stability_config(config, size, label, model) for label, model in models.items()]
    distinct = [_fidelity_config(config, size, label, model) for label, model in models.items()]
    return stable, distinct, trained


def _folder(config: QuickstartConfig, label: str, stage: str) -> Path:
    return config.folder / f"{label.lower()}-{stage}"


def _task_config(config: QuickstartConfig, split: Split, n: int) -> TaskConfig:
    return TaskConfig(split=split, levels=QUICKSTART_LEVELS, n=n, seed=config.seed, prompt_template=QUICKSTART_PROMPT)


def _train_config(config: QuickstartConfig, size: QuickstartSize, label: str, method: TrainMethod) -> TrainConfig:
    return TrainConfig(
        out=_folder(config, label, "train"), label=label, threads=config.threads,
        method=method, model=TrainableModelConfig(name=config.model),
        task=_task_config(config, "train", 300),
        personas=PersonasConfig(split="train"),
        plan=RolloutPlanConfig(
            steps=size.steps, questions_per_step=size.questions_per_step, group_size=size.group_size, seed=config.seed
        ),
        train=OptimConfig(lr=3e-5, temperature=0.7, max_new_tokens=QUICKSTART_MAX_NEW_TOKENS, save_every=5, seed=config.seed),
        character=size.character if method == "permix" else CharacterConfig(),
    )  # fmt: skip


def _stability_config(config: QuickstartConfig, size: QuickstartSize, label: str, model: str) -> StabilityConfig:
    return StabilityConfig(
        out=_folder(config, label, "stability"), label=label, threads=config.threads, model=ModelConfig(name=model),
        task=_task_config(config, "heldout", size.questions),
        personas=PersonasConfig(split="heldout", n=size.personas, seed=config.seed),
        sampling=Sampling(temperature=0, max_new_tokens=QUICKSTART_MAX_NEW_TOKENS), seed=config.seed,
    )  # fmt: skip


def _fidelity_config(config: QuickstartConfig, size: QuickstartSize, label: str, model: str) -> FidelityConfig:
    return FidelityConfig(
        out=_folder(config, label, "fidelity"), label=label, threads=config.threads, model=ModelConfig(name=model),
        personas=PersonasConfig(split="heldout", include=("character",), n=size.characters, seed=config.seed),
        n_questions=size.roleplay_questions, seed=config.seed,
        reference=None if label == BASE_LABEL else _folder(config, BASE_LABEL, "fidelity"),
    )  # fmt: skip


def quickstart_parts(config: QuickstartConfig) -> list[QuickstartPart]:
    """All parts, in an order in which they can run one after the other."""
    stable, distinct, trained = quickstart_configs(config)
    size = FAST_SIZE if config.fast else FULL_SIZE
    stability_seconds = (size.personas + 1) * size.questions * CELL_CPU_SECONDS
    fidelity_seconds = size.characters * size.roleplay_questions * ANSWER_CPU_SECONDS
    accuracy_of_base = QuickstartPart(f"accuracy of {BASE_LABEL}", stability_seconds, stable[0])
    characters_of_base = QuickstartPart(f"characters of {BASE_LABEL}", fidelity_seconds, distinct[0])
    asked_in_training = size.steps * size.questions_per_step * size.group_size / FULL_SIZE.group_size
    trainings = [
        QuickstartPart(f"train {one.label}", asked_in_training * QUESTION_CPU_SECONDS[one.method], one) for one in trained
    ]
    parts = [accuracy_of_base, characters_of_base, *trainings]
    for training, accuracy, characters in zip(trainings, stable[1:], distinct[1:], strict=True):
        needs = (training.name, characters_of_base.name)
        parts.append(QuickstartPart(f"accuracy of {accuracy.label}", stability_seconds, accuracy, after=needs[:1]))
        parts.append(QuickstartPart(f"characters of {characters.label}", fidelity_seconds, characters, after=needs))
    return parts


def run_quickstart(config: QuickstartConfig) -> None:
    """Run or resume the quickstart; print its table and write `report/` in `config.folder`.

    Raises ConfigError if another process runs it. If other processes that run parts fail, raises an error with the exit code that
    theirs have in common, after the others have ended.
    """
    from permix.inference.hf import resolve_model_source
    from permix.pipelines.train import require_training_packages

    require_training_packages("the quickstart")
    parts = quickstart_parts(config)
    if config.part is not None:
        _raise_first(_run_here([_part_named(name, parts) for name in config.part]))
        return
    check_same_quickstart(config)
    size = FAST_SIZE if config.fast else FULL_SIZE
    jobs = config.jobs or default_jobs()
    with _claimed(config.folder) as claim:
        at_a_time = "one process" if jobs == 1 else f"{jobs} processes at a time"
        print_status(
            f"permix quickstart: {len(parts)} parts, {at_a_time}, about {size.minutes} minutes on 2 cores; "
            f"you may interrupt it at any time; start it again to go on. It writes to {config.folder}/"
        )
        print_status(f"get the model ({_model_name(config)})")
        resolve_model_source(config.model)
        # A part with a result only checks it, which is fastest in this process.
        here = list[QuickstartPart]()
        for part in parts:
            needs_pending = not {one.name for one in here}.issuperset(part.after)
            if jobs == 1 or (part.has_result and not needs_pending):
                here.append(part)
        failed = _run_here(here, MultiProgress([part.cpu_seconds for part in here]))
        pending = [part for part in parts if part not in here and not failed.keys() & set(part.after)]
        if pending:
            _run_in_processes(config, pending, jobs, claim)
        _raise_first(failed)
        _write_report(config, *quickstart_configs(config))


def check_same_quickstart(config: QuickstartConfig) -> None:
    """Raise ConfigError if a part in the folder was started by a quickstart of other settings (fast, seed, model)."""
    for part in quickstart_parts(config):
        file = part.config.out / "config.json"
        if not file.exists():
            continue
        asked = part.config.model_dump(mode="json", exclude_unset=True)
        for of_this_folder in ("out", "label", "threads", "reference", "character_reference"):
            asked.pop(of_this_folder, None)
        if Path(part.config.model.name).is_relative_to(config.folder):
            del asked["model"]
        recorded = part_with_keys_of(asked, read_json(file))
        if found := describe_setting_differences(recorded, asked, CHANGEABLE_SETTINGS):
            raise ConfigError(
                f"out = {config.folder}: {part.config.out.name} is of a quickstart of other settings: it was started with "
                f"{'; '.join(found)}; give the fast, seed and model of that one to go on with it, or another --out"
            )


def require_known_parts(config: QuickstartConfig) -> None:
    """Raise ConfigError for a part that the quickstart does not have."""
    for name in config.part or ():
        _part_named(name, quickstart_parts(config))


def _raise_first(failed: Mapping[str, PermixError]) -> None:
    for error in failed.values():
        raise error


def _part_named(name: str, parts: Sequence[QuickstartPart]) -> QuickstartPart:
    found = {part.config.out.name: part for part in parts}
    if name not in found:
        raise ConfigError(f"part = {quote_input(name)}: must be one of {', '.join(found)}")
    return found[name]


@contextlib.contextmanager
def _claimed(folder: Path) -> Iterator[int]:
    """Claim the quickstart's folder for this process and those that it starts; yields the file descriptor of the claim."""
    claim = claim_folder(folder)
    if claim is None:
        raise ConfigError(f"{folder}: another process is running this quickstart; wait for it, or give another --out")
    try:
        yield claim
    finally:
        os.close(claim)


def default_jobs() -> int:
    """As many processes at a time as cores, or GPUs if there are any, and memory allow, at most `MAX_JOBS`."""
    return max(1, min(MAX_JOBS, len(visible_gpus()) or len(os.sched_getaffinity(0)), memory_limit() // JOB_BYTES))


def _run_here(parts: Sequence[QuickstartPart], progress: MultiProgress | None = None) -> dict[str, PermixError]:
    """Run parts one after the other in this process; returns the errors of those that failed, by name.

    A failed part does not keep the others from running, except those that need its result.
    """
    failed: dict[str, PermixError] = {}
    for number, part in enumerate(parts):
        if failed.keys() & set(part.after):
            continue
        try:
            with contextlib.nullcontext() if progress is None else progress.part(number, part.name):
                part.run()
        except PermixError as error:
            failed[part.name] = error
            if progress is not None:
                print_status(f"{part.name}: not finished: {error}")
        release_memory()
    return failed


def _run_in_processes(config: QuickstartConfig, parts: Sequence[QuickstartPart], jobs_at_a_time: int, claim: int) -> None:
    """Run parts in other processes; their output goes to logs/ in the quickstart's folder."""
    file = config.folder / QUICKSTART_FILE
    write_json(file, config.model_copy(update={"part": None, "jobs": None, "threads": None}))
    processes = _divide_into_processes(parts)
    at_a_time = min(jobs_at_a_time, len(processes))
    more = thread_arguments(config.threads, at_a_time)
    job_of = {part.name: name for name, together in processes.items() for part in together}
    jobs = [
        Job(
            name, ["quickstart", str(file), "--part", *(part.config.out.name for part in together), *more],
            config.folder / "logs" / f"{_log_name(together[0])}.txt",
            after=tuple({job_of[need]: None for part in together for need in part.after if job_of.get(need, name) != name}),
        )
        for name, together in processes.items()
    ]  # fmt: skip
    sizes = {
        name: JobSize({part.config.stage: part.cpu_seconds for part in together}, START_UP_CPU_SECONDS)
        for name, together in processes.items()
    }
    failed = run_jobs(jobs, at_a_time, sizes=sizes, one_gpu_each=True, inherited=[claim])
    if failed:
        text = f"{config.folder}: failed: {'; '.join(one.text for one in failed)}; run the same command again to go on"
        add_result(failed=[one.job for one in failed])
        codes = {one.exit_code for one in failed}
        if codes == {IncompleteRunError.exit_code}:
            raise IncompleteRunError(text, len(failed))
        raise ConfigError(text) if codes == {ConfigError.exit_code} else PermixError(text)


def _log_name(part: QuickstartPart) -> str:
    """The name of a process's log. It does not depend on which parts are pending, so that a resumed process goes on in it."""
    return part.config.out.name if isinstance(part.config, TrainConfig) else f"{(part.config.label or '').lower()}-evaluations"


def _divide_into_processes(parts: Sequence[QuickstartPart]) -> dict[str, list[QuickstartPart]]:
    """The parts of each process, by the name of its job, in the order in which they are to start.

    Both evaluations of a model share a process, since each process loads the libraries anew. The longest training comes first,
    and then the base model, whose answers the evaluations of the other models need.
    """
    trainings = [part for part in parts if isinstance(part.config, TrainConfig)]
    longest_first = [[part] for part in sorted(trainings, key=lambda part: -part.cpu_seconds)]
    evaluations: dict[str | None, list[QuickstartPart]] = {}
    for part in parts:
        if part not in trainings:
            evaluations.setdefault(part.config.label, []).append(part)
    of_base = [evaluations.pop(BASE_LABEL)] if BASE_LABEL in evaluations else []
    ordered = [*longest_first[:1], *of_base, *longest_first[1:], *evaluations.values()]
    return {together[0].name if len(together) == 1 else f"evaluate {together[0].config.label}": together for together in ordered}


def preflight_quickstart(config: QuickstartConfig) -> dict[str, str]:
    """Check every part, and estimate what all parts cost together. Raises ConfigError or DataError for a problem.

    The models and runs that one part takes from another do not exist yet, so they are not checked. The estimate counts the
    prompts of trained models like those of the base model.
    """
    from permix.evals.open_ended import build_open_ended_cells, load_open_questions, select_open_ended_personas
    from permix.evals.stability import prepare_stability
    from permix.evals.strategies import STRATEGIES
    from permix.inference.cost import RequestGroup, estimate_cost
    from permix.personas.pool import select_personas
    from permix.pipelines.train import preflight_training, training_requests
    from permix.tasks import load_questions
    from permix.training.job import prepare_training

    require_known_parts(config)
    check_same_quickstart(config)
    stability_configs, fidelity_configs, train_configs = quickstart_configs(config)
    for stable in stability_configs:
        load_questions(stable.task)
        select_personas(stable.personas)
    with separate_result():
        for training in train_configs:
            preflight_training(training)
    base = stability_configs[0]
    cells = STRATEGIES[base.strategy].initial_cells(prepare_stability(base).setup)
    groups = [RequestGroup([cell.messages for cell in cells], base.sampling.max_new_tokens, times=len(stability_configs))]
    for distinct in fidelity_configs:
        answers = build_open_ended_cells(distinct, select_open_ended_personas(distinct), load_open_questions(distinct))
        groups.append(RequestGroup([cell.messages for cell in answers], distinct.sampling.max_new_tokens))
    groups += [group for training in train_configs for group in training_requests(prepare_training(training))]
    size = FAST_SIZE if config.fast else FULL_SIZE
    parts = {
        "evaluations": f"{len(cells)} cells and {len(answers)} answers in character, each by {len(stability_configs)} models",
        "trainings": f"{len(train_configs)}, of {size.steps} steps",
    }
    time = {"time": f"about {size.minutes} min on 2 cores with the bundled model; nothing is subtracted for finished parts"}
    add_result(estimates={"quickstart": {"seconds": 60.0 * size.minutes}})
    return parts | estimate_cost(groups, base.model, None) | time


def _model_name(config: QuickstartConfig) -> str:
    return "SmolLM2-135M-Instruct" if config.model == "bundled" else config.model


def _write_report(
    config: QuickstartConfig,
    stability_configs: list[StabilityConfig],
    fidelity_configs: list[FidelityConfig],
    train_configs: list[TrainConfig],
) -> None:
    """Write the report on the quickstart's runs; print its caption, its claim and its table."""
    from permix.report.builder import run_report

    Console().print(_caption(config), markup=False, highlight=False)
    runs = tuple(one.out for one in (*stability_configs, *fidelity_configs, *train_configs))
    run_report(ReportConfig(runs=runs, out=config.folder / "report"), _caption(config))


def _caption(config: QuickstartConfig) -> str:
    """A paragraph that describes the quickstart, for the report and the terminal."""
    size = FAST_SIZE if config.fast else FULL_SIZE
    plain, mixed = (resolve_mix(one.plan, one.method) for one in quickstart_configs(config)[2])
    kind = "Fast quickstart (too small to conclude from)" if config.fast else "Quickstart"
    return (
        f"{kind}: {_model_name(config)} on one- and two-digit arithmetic ({', '.join(QUICKSTART_LEVELS)}), seed {config.seed}. "
        f"{RLVR_LABEL} and {PERMIX_LABEL} were trained for {size.steps} steps of {size.questions_per_step} questions × "
        f"{size.group_size} rollouts from one plan seed; they differ in "
        f"the share of questions asked under a persona, {plain:g} and {mixed:g}, and in the {size.character.replay_answers} "
        f"answers of the base model in character that {PERMIX_LABEL} replays in each step. Evaluated greedily on "
        f"{size.questions} held-out questions under {size.personas} held-out personas; identifiability on "
        f"{size.roleplay_questions} open-ended questions answered by {size.characters} held-out characters at temperature 0.7."
    )

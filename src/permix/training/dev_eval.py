"""The probe: a small fixed evaluation on the dev side, made while a model trains, and what is chosen by it.

    dev_eval/step-0020/stability/    every dev question as every dev persona and as none: a stability run
    dev_eval/step-0020/fidelity/     the characters' open-ended answers: a fidelity run, read by a classifier of step 0's answers
    dev_eval.jsonl                   a line a probe: its figures, for people, and what they chose

Every probe asks the same, so two points of a curve differ in the weights alone. Points are measured from the records
(`load_dev_curve`); choices are pure functions of points. A probe chooses, so its numbers are no results: those come from the
held-out side, which it never asks. Imports no torch: the model in training is asked by `permix.training.callbacks`.
"""

import re
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from permix.config import DevEvalConfig, FidelityConfig, ModelConfig, PersonasConfig, StabilityConfig, TrainConfig
from permix.errors import ConfigError
from permix.evals import open_ended, stability
from permix.evals.grid import PromptFormat, read_grid_results
from permix.evals.strategies import STRATEGIES
from permix.evals.strategies.base import EvalSetup
from permix.inference.hf import encode_chat
from permix.metrics.dev_curve import DevCurve, DevEvalPoint
from permix.metrics.identifiability import Identifiability
from permix.metrics.measures import select_measures
from permix.metrics.stability import StabilitySummary
from permix.personas.pool import PersonaPool, PersonaSource
from permix.plan import Plan
from permix.prompts import template_hash
from permix.storage.files import read_json
from permix.tasks import load_questions
from permix.tasks.base import Task, check_contamination, read_trained_on
from permix.training.run_log import read_training_log
from permix.types import Cell, Question, Sampling

DEV_EVAL_LOG = "dev_eval.jsonl"

DEV_EVAL_WEIGHTS = "weights.safetensors"

CHARACTER_TAG = "character"
"""The tag of personas that are told apart, where a pool has it: a kind of the built-in pool."""


# What is asked


class OpenEndedSet(NamedTuple):
    """The open-ended half of a probe."""

    config: FidelityConfig
    personas: PersonaPool
    questions: tuple[Question, ...]


class DevEval(NamedTuple):
    """What a training run asks at every dev evaluation, and its settings. `out` is the training's run directory."""

    config: DevEvalConfig
    out: Path
    label: str
    stability_config: StabilityConfig
    task: Task
    setup: EvalSetup
    open_ended_set: OpenEndedSet | None

    def stability_config_at(self, step: int) -> StabilityConfig:
        folder = dev_eval_dir(self.out, step)
        return self.stability_config.model_copy(update={"out": folder / "stability", "label": self._label(step)})

    def fidelity_config_at(self, step: int, open_ended_set: OpenEndedSet) -> FidelityConfig:
        folder, base = dev_eval_dir(self.out, step), dev_eval_dir(self.out, 0) / "fidelity"
        settings = {"out": folder / "fidelity", "label": self._label(step), "reference": base if step else None}
        return open_ended_set.config.model_copy(update=settings)

    def _label(self, step: int) -> str:
        return f"{self.label}, step {step}"

    def cells(self) -> list[tuple[Cell, Sampling]]:
        """Everything that one probe asks, unanswered."""
        asked = [(cell, self.stability_config.sampling) for cell in STRATEGIES["none"].initial_cells(self.setup)]
        if self.open_ended_set is not None:
            asked += [
                (cell, self.open_ended_set.config.sampling) for cell in open_ended.build_open_ended_cells(*self.open_ended_set)
            ]
        return asked


def build_dev_eval(
    config: TrainConfig, plan: Plan, personas: PersonaSource, trainable_personas: Collection[str]
) -> DevEval | None:
    """The dev evaluation of a training run; None when it has none. `trainable_personas`: ids that its plan holds or may draw.

    Raises ConfigError or DataError when the dev split cannot give what is asked, or when the training uses some of it.
    """
    if config.dev_eval.every == 0:
        return None
    _check_plan_sections(config, plan)
    with _dev_eval_error_context():
        side = personas.select(PersonasConfig(pool=config.personas.pool, split="dev"))
        stage = _stability_config(config, side)
        task, questions = load_questions(stage.task)
        check_contamination(questions, read_trained_on(Path(config.model.name)).question_hashes)
        wording = PromptFormat(task.prompt, config.personas.template, config.personas.empty_system_prompt)
        setup = EvalSetup(questions, _select_personas(side, stage.personas), wording, stage.samples, stage.seed)
        voices = _open_ended_set(config, side) if config.dev_eval.characters else None
    _check_not_trained_on(plan, trainable_personas, setup, voices)
    return DevEval(config.dev_eval, config.out, config.label or config.out.name, stage, task, setup, voices)


def _stability_config(config: TrainConfig, dev_pool: PersonaPool) -> StabilityConfig:
    probe = config.dev_eval
    personas = _dev_personas_config(config, dev_pool, "personas", config.personas.include)
    return StabilityConfig(
        model=ModelConfig(name=config.model.name), threads=config.threads, personas=personas, seed=config.train.seed,
        task=config.task.model_copy(update={"split": "dev", "n": probe.questions}),
        sampling=Sampling(temperature=0, max_new_tokens=probe.max_new_tokens or config.train.max_new_tokens),
    )  # fmt: skip


def _open_ended_set(config: TrainConfig, dev_pool: PersonaPool) -> OpenEndedSet:
    include = (CHARACTER_TAG,) if CHARACTER_TAG in dev_pool.tags else config.personas.include
    stage = FidelityConfig(
        model=ModelConfig(name=config.model.name), threads=config.threads, seed=config.train.seed,
        personas=_dev_personas_config(config, dev_pool, "characters", include),
        questions_split="dev", n_questions=config.dev_eval.roleplay_questions,
        sampling=Sampling(temperature=0.7, max_new_tokens=config.dev_eval.roleplay_max_new_tokens),
    )  # fmt: skip
    return OpenEndedSet(stage, _select_personas(dev_pool, stage.personas), open_ended.load_open_questions(stage))


def _dev_personas_config(config: TrainConfig, dev_pool: PersonaPool, field: str, include: tuple[str, ...]) -> PersonasConfig:
    """As many of the dev side as `[dev_eval]` asks for, in the wording that is trained under."""
    wanted: int = getattr(config.dev_eval, field)
    # A tag that nobody on this side carries excludes nobody, and includes nobody beside others that do.
    found = config.personas.model_copy(
        update={
            "split": "dev",
            "include": tuple(tag for tag in include if tag in dev_pool.tags) or include,
            "exclude": tuple(tag for tag in config.personas.exclude if tag in dev_pool.tags),
            "n": wanted,
        }
    )
    available = len(_select_personas(dev_pool, found.model_copy(update={"n": None})))
    if wanted > available:
        advice = f"give {available} or less" if available > 1 else "a probe needs two or more"
        raise ConfigError(f"dev_eval.{field} = {wanted}: the dev side has {available} such personas; {advice}")
    return found


def _select_personas(dev_pool: PersonaPool, config: PersonasConfig) -> PersonaPool:
    """As `select_personas` selects from the side that it has loaded."""
    return dev_pool.select(include_tags=config.include, exclude_tags=config.exclude, n=config.n, seed=config.seed)


@contextmanager
def _dev_eval_error_context() -> Iterator[None]:
    """Errors say that they are the probe's, and name its own settings."""
    try:
        yield
    except ConfigError as error:
        told = re.sub(r"\btask\.n\b", "dev_eval.questions", str(error))
        told = re.sub(r"(?<![.\w])n_questions\b", "dev_eval.roleplay_questions", told)
        raise ConfigError(f"[dev_eval] asks the dev side: {told}") from error


def describe_dev_eval(dev_eval: DevEval) -> str:
    """What probing costs, in answers."""
    cells, every = dev_eval.cells(), dev_eval.config.every
    tokens = sum(sampling.max_new_tokens for _, sampling in cells)
    return f"{len(cells)} answers before training, every {every} steps and at the end, each time at most {tokens} new tokens"


def _check_plan_sections(config: TrainConfig, plan: Plan) -> None:
    """The probe asks by the sections [task] and [personas]; a plan from a file must have been compiled from such ones."""
    task, about = config.task.model_dump(mode="json"), plan.metadata
    known = {name: about["task"][name] for name in ("name", "levels", "path", "prompt_template") if name in about.get("task", {})}
    other = {f"task.{name}": (task[name], theirs) for name, theirs in known.items() if task[name] != theirs}
    if about.get("template", template_hash(config.personas.template)) != template_hash(config.personas.template):
        other["personas.template"] = (config.personas.template, "another wording")
    if about.get("empty_system_prompt", config.personas.empty_system_prompt) != config.personas.empty_system_prompt:
        other["personas.empty_system_prompt"] = (config.personas.empty_system_prompt, about["empty_system_prompt"])
    if other:
        field, (ours, theirs) = next(iter(other.items()))
        raise ConfigError(
            f"{field} = {ours!r}: plan_file = {config.plan_file} was compiled with {theirs!r}; [dev_eval] asks by the sections "
            "[task] and [personas], so give it those of the plan"
        )


def _check_not_trained_on(
    plan: Plan, trainable_personas: Collection[str], setup: EvalSetup, open_ended_set: OpenEndedSet | None
) -> None:
    asked = {persona.id for persona in (*setup.pool.personas, *(open_ended_set.personas.personas if open_ended_set else ()))}
    if shared := asked & set(trainable_personas):
        raise ConfigError(
            f"[dev_eval] asks the dev side, and the plan trains under {len(shared)} of its {len(asked)} personas, such as "
            f'{min(shared)!r}; train with personas.split = "train", or with dev_eval.every = 0'
        )
    hashes = {row.question_hash for row in plan.rows}
    if repeated := [question.id for question in setup.questions if question.content_hash in hashes]:
        raise ConfigError(
            f"[dev_eval] asks the dev side, and the plan trains on {len(repeated)} of its {len(setup.questions)} "
            "questions, such as "
            f'{repeated[0]!r}; compile it with task.split = "train", or train with dev_eval.every = 0'
        )


def check_dev_eval_prompts(dev_eval: DevEval, tokenizer: Any, window: int) -> None:
    """Raise ConfigError for a prompt of the dev evaluation that leaves no room for its answer in the model's `window` tokens."""
    for cell, sampling in dev_eval.cells():
        read, field = len(encode_chat(tokenizer, cell.messages)), "max_new_tokens" if cell.gold else "roleplay_max_new_tokens"
        if read + sampling.max_new_tokens > window:
            raise ConfigError(
                f"dev_eval.{field} = {sampling.max_new_tokens}: question {cell.question_id} as persona "
                f"{cell.persona_id} has {read} "
                f"tokens and the model reads {window}; give dev_eval.{field} = {max(window - read, 0)} or less"
            )


def dev_eval_steps(config: DevEvalConfig, last_step: int) -> list[int]:
    """When a run of `last_step` steps is probed."""
    return sorted({0, *range(0, last_step, config.every), last_step}) if config.every else []


def dev_eval_dir(out: Path, step: int) -> Path:
    return out / "dev_eval" / f"step-{step:04d}"


def delete_dev_eval_weights(out: Path, keep_step: int | None = None) -> None:
    """Remove the weights kept of a run's probes, also half written ones, but those of one step."""
    for path in out.glob(f"dev_eval/*/*{DEV_EVAL_WEIGHTS}*"):
        if keep_step is None or path.parent != dev_eval_dir(out, keep_step):
            path.unlink()


def load_dev_curve(out: Path, config: DevEvalConfig) -> DevCurve | None:
    """The probes that dev_eval.jsonl names, measured from their records; None when there is none.

    Records of other steps may lie there too: those of a process that died further on than the run went after it.
    """
    points = [dev_point_from_records(out, line["step"], config) for line in read_training_log(out / DEV_EVAL_LOG)]
    return DevCurve(tuple(points), config) if points else None


def dev_point_from_records(out: Path, step: int, config: DevEvalConfig) -> DevEvalPoint:
    """A step's point from its records alone."""
    folder, base = dev_eval_dir(out, step), dev_eval_dir(out, 0) / "fidelity"
    distinct = open_ended.measure_identifiability(folder / "fidelity", base if step else None) if config.characters else None
    return _dev_point(step, folder, stability.measure_stability(folder / "stability"), distinct)


def dev_point_from_metrics(out: Path, step: int, config: DevEvalConfig) -> DevEvalPoint:
    """The same from what the step's two evaluations, just made, noted of themselves."""
    folder = dev_eval_dir(out, step)
    stable = StabilitySummary.model_validate(read_json(folder / "stability" / "metrics.json"))
    found = read_json(folder / "fidelity" / "metrics.json") if config.characters else None
    distinct = found and {name: found[name] for name in Identifiability.model_fields}
    return _dev_point(step, folder, stable, None if distinct is None else Identifiability.model_validate(distinct))


def _dev_point(
    step: int, folder: Path, stability_summary: StabilitySummary, identifiability: Identifiability | None
) -> DevEvalPoint:
    written = [
        brief.completion_tokens
        for brief in read_grid_results(folder / "stability").grid_summaries.values()
        if brief.completion_tokens is not None
    ]
    return DevEvalPoint(
        step=step,
        measures=select_measures("dev_eval", stability_summary.measures),
        identifiability=identifiability.accuracy if identifiability else None,
        chance=identifiability.chance if identifiability else None,
        completion_tokens=sum(written) / len(written) if written else None,
        n_questions=stability_summary.n_questions,
        n_scored=stability_summary.n_scored,
        n_asked=stability_summary.n_asked,
    )

"""Dev evaluations: small evaluations on the dev split while a model trains, by which weights are chosen.

    dev_eval/step-0020/stability/    a stability run: dev questions under each dev persona and without a persona
    dev_eval/step-0020/fidelity/     a fidelity run: open-ended answers in character, read by a classifier of step 0's answers
    dev_eval.jsonl                   one line for each evaluation: its measures, and the choice made by them

Every evaluation of a run asks the same cells, so two points of a curve differ in the weights alone. Points are measured from the
records (`load_dev_curve`); choices are pure functions of points. Because they are used to choose, the numbers of a dev evaluation
are no results: results come from the held-out split, which it never asks. This module imports no torch;
`permix.training.trl_setup` asks the model in training.
"""

import re
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from permix.config import DevEvalConfig, FidelityConfig, ModelConfig, PersonasConfig, StabilityConfig, TrainConfig
from permix.errors import ConfigError
from permix.evals import open_ended, stability
from permix.evals.grid import PromptFormat, count_cut_off, read_grid_results
from permix.evals.strategies import STRATEGIES
from permix.evals.strategies.base import EvalSetup
from permix.inference.chat_template import encode_chat
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
from permix.training.compatibility import check_answer_fits
from permix.training.run_log import read_training_log
from permix.types import Cell, Question, Sampling

DEV_EVAL_LOG = "dev_eval.jsonl"

DEV_EVAL_WEIGHTS = "weights.safetensors"

CHARACTER_TAG = "character"
"""Tag of the personas whose answers identifiability compares, if the pool has the tag. It is a kind of the built-in pool."""


# Building and checking


class OpenEndedSet(NamedTuple):
    """The open-ended half of a dev evaluation."""

    config: FidelityConfig
    personas: PersonaPool
    questions: tuple[Question, ...]


class DevEval(NamedTuple):
    """The settings and cells of a run's dev evaluations. `out` is the run directory of the training."""

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
        """All cells of one evaluation, unanswered, each with its sampling settings."""
        cells = [(cell, self.stability_config.sampling) for cell in STRATEGIES["none"].initial_cells(self.setup)]
        if self.open_ended_set is not None:
            cells += [
                (cell, self.open_ended_set.config.sampling) for cell in open_ended.build_open_ended_cells(*self.open_ended_set)
            ]
        return cells


def build_dev_eval(
    config: TrainConfig, plan: Plan, personas: PersonaSource, trainable_personas: Collection[str]
) -> DevEval | None:
    """The dev evaluation of a training run; None if `dev_eval.every` is 0.

    `trainable_personas`: ids of the personas that the plan contains or a curriculum may draw. Raises ConfigError or DataError if
    the dev split has too few personas or questions, or if the training uses some of them.
    """
    if config.dev_eval.every == 0:
        return None
    _check_plan_sections(config, plan)
    with _dev_eval_error_context():
        dev_pool = personas.select(PersonasConfig(pool=config.personas.pool, column=config.personas.column, split="dev"))
        stage = _stability_config(config, dev_pool)
        task, questions = load_questions(stage.task)
        check_contamination(questions, read_trained_on(Path(config.model.name)).question_hashes)
        prompt_format = PromptFormat(task.prompt, config.personas.template, config.personas.empty_system_prompt)
        setup = EvalSetup(questions, _select_personas(dev_pool, stage.personas), prompt_format, stage.samples, stage.seed)
        open_ended_set = _open_ended_set(config, dev_pool) if config.dev_eval.characters else None
    _check_not_trained_on(plan, trainable_personas, setup, open_ended_set)
    return DevEval(config.dev_eval, config.out, config.label or config.out.name, stage, task, setup, open_ended_set)


def _stability_config(config: TrainConfig, dev_pool: PersonaPool) -> StabilityConfig:
    settings = config.dev_eval
    personas = _dev_personas_config(config, dev_pool, "personas", config.personas.include)
    return StabilityConfig(
        model=ModelConfig(name=config.model.name, thinking=config.model.thinking), threads=config.threads,
        personas=personas, seed=config.train.seed,
        task=config.task.model_copy(update={"split": "dev", "n": settings.questions}),
        sampling=Sampling(temperature=0, max_new_tokens=settings.max_new_tokens or config.train.max_new_tokens),
    )  # fmt: skip


def _open_ended_set(config: TrainConfig, dev_pool: PersonaPool) -> OpenEndedSet:
    include = (CHARACTER_TAG,) if CHARACTER_TAG in dev_pool.tags else config.personas.include
    stage = FidelityConfig(
        model=ModelConfig(name=config.model.name, thinking=config.model.thinking), threads=config.threads, seed=config.train.seed,
        personas=_dev_personas_config(config, dev_pool, "characters", include),
        questions_split="dev", n_questions=config.dev_eval.roleplay_questions, embedder="none",
        sampling=Sampling(temperature=0.7, max_new_tokens=config.dev_eval.roleplay_max_new_tokens),
    )  # fmt: skip
    return OpenEndedSet(stage, _select_personas(dev_pool, stage.personas), open_ended.load_open_questions(stage))


def _dev_personas_config(config: TrainConfig, dev_pool: PersonaPool, field: str, include: tuple[str, ...]) -> PersonasConfig:
    """Select as many dev personas as `dev_eval.{field}`, with the training's template. Raises ConfigError if there are fewer."""
    wanted: int = getattr(config.dev_eval, field)
    # A tag of the pool that no dev persona has would be an unknown tag here, so it is left out. If that leaves no tag to include,
    # the error is right.
    selection = config.personas.model_copy(
        update={
            "split": "dev",
            "include": tuple(tag for tag in include if tag in dev_pool.tags) or include,
            "exclude": tuple(tag for tag in config.personas.exclude if tag in dev_pool.tags),
            "n": wanted,
        }
    )
    available = len(_select_personas(dev_pool, selection.model_copy(update={"n": None})))
    if wanted > available:
        advice = f"give {available} or less" if available > 1 else "a dev evaluation needs two or more"
        raise ConfigError(f"dev_eval.{field} = {wanted}: the dev split has {available} such personas; {advice}")
    return selection


def _select_personas(dev_pool: PersonaPool, config: PersonasConfig) -> PersonaPool:
    """Select from the dev personas by tags, number and seed."""
    return dev_pool.select(include_tags=config.include, exclude_tags=config.exclude, n=config.n, seed=config.seed)


@contextmanager
def _dev_eval_error_context() -> Iterator[None]:
    """Make errors of the block say that the dev evaluation caused them, and name the settings of `[dev_eval]`."""
    try:
        yield
    except ConfigError as error:
        message = re.sub(r"\btask\.n\b", "dev_eval.questions", re.sub(r"^personas\.split\b", "split", str(error)))
        message = re.sub(r"(?<![.\w])n_questions\b", "dev_eval.roleplay_questions", message)
        raise ConfigError(f"[dev_eval] uses the dev split: {message}") from error


def describe_dev_eval(dev_eval: DevEval) -> str:
    """The cost of the dev evaluations, in answers and tokens."""
    cells, every = dev_eval.cells(), dev_eval.config.every
    tokens = sum(sampling.max_new_tokens for _, sampling in cells)
    return f"{len(cells)} answers before training, every {every} steps and at the end, each time at most {tokens} new tokens"


def _check_plan_sections(config: TrainConfig, plan: Plan) -> None:
    """Raise ConfigError if a plan file was compiled with other sections [task] and [personas] than the dev evaluation uses."""
    task, metadata = config.task.model_dump(mode="json"), plan.metadata
    recorded = {
        name: metadata["task"][name] for name in ("name", "levels", "path", "prompt_template") if name in metadata.get("task", {})
    }
    differing = {f"task.{name}": (task[name], theirs) for name, theirs in recorded.items() if task[name] != theirs}
    if metadata.get("template", template_hash(config.personas.template)) != template_hash(config.personas.template):
        differing["personas.template"] = (config.personas.template, "another template")
    if metadata.get("empty_system_prompt", config.personas.empty_system_prompt) != config.personas.empty_system_prompt:
        differing["personas.empty_system_prompt"] = (config.personas.empty_system_prompt, metadata["empty_system_prompt"])
    if differing:
        field, (ours, theirs) = next(iter(differing.items()))
        raise ConfigError(
            f"{field} = {ours!r}: plan_file = {config.plan_file} was compiled with {theirs!r}; [dev_eval] uses the sections "
            "[task] and [personas], so give them the values of the plan"
        )


def _check_not_trained_on(
    plan: Plan, trainable_personas: Collection[str], setup: EvalSetup, open_ended_set: OpenEndedSet | None
) -> None:
    dev_ids = {persona.id for persona in (*setup.pool.personas, *(open_ended_set.personas.personas if open_ended_set else ()))}
    if shared := dev_ids & set(trainable_personas):
        raise ConfigError(
            f"[dev_eval] uses the dev split, and the plan trains under {len(shared)} of its {len(dev_ids)} personas, such as "
            f'{min(shared)!r}; train with personas.split = "train", or with dev_eval.every = 0'
        )
    hashes = {row.question_hash for row in plan.rows}
    if repeated := [question.id for question in setup.questions if question.content_hash in hashes]:
        raise ConfigError(
            f"[dev_eval] uses the dev split, and the plan trains on {len(repeated)} of its {len(setup.questions)} questions, "
            f'such as {repeated[0]!r}; compile it with task.split = "train", or train with dev_eval.every = 0'
        )


def check_dev_eval_prompts(dev_eval: DevEval, tokenizer: Any, window: int) -> None:
    """Raise ConfigError if a prompt of the dev evaluation and its answer do not fit into the model's `window` tokens."""
    for cell, sampling in dev_eval.cells():
        field = "dev_eval.max_new_tokens" if cell.gold else "dev_eval.roleplay_max_new_tokens"
        prompt = f"question {cell.question_id} as persona {cell.persona_id}"
        check_answer_fits(field, sampling.max_new_tokens, prompt, len(encode_chat(tokenizer, cell.messages)), window)


def dev_eval_steps(config: DevEvalConfig, last_step: int) -> list[int]:
    """Steps after which a run of `last_step` steps is evaluated, 0 included; empty without dev evaluations."""
    return sorted({0, *range(0, last_step, config.every), last_step}) if config.every else []


def dev_eval_dir(out: Path, step: int) -> Path:
    """The folder of one dev evaluation; `out` is the run directory."""
    return out / "dev_eval" / f"step-{step:04d}"


def delete_dev_eval_weights(out: Path, keep_steps: Collection[int] = ()) -> None:
    """Delete the weights of the dev evaluations, also incomplete files, except those of `keep_steps`."""
    kept = {dev_eval_dir(out, step) for step in keep_steps}
    for path in out.glob(f"dev_eval/*/*{DEV_EVAL_WEIGHTS}*"):
        if path.parent not in kept:
            path.unlink()


def load_dev_curve(out: Path, config: DevEvalConfig) -> DevCurve | None:
    """The evaluations that dev_eval.jsonl names, measured from their records; None if it names none.

    Records of other steps are ignored. A killed process may have left some that the resumed run never reached.
    """
    points = [dev_point_from_records(out, line["step"], config) for line in read_training_log(out / DEV_EVAL_LOG)]
    return DevCurve(tuple(points), config) if points else None


def dev_point_from_records(out: Path, step: int, config: DevEvalConfig) -> DevEvalPoint:
    """The point of a step, measured from its records."""
    folder, base = dev_eval_dir(out, step), dev_eval_dir(out, 0) / "fidelity"
    identifiability = (
        open_ended.measure_identifiability(folder / "fidelity", base if step else None) if config.characters else None
    )
    return _dev_point(step, folder, stability.measure_stability(folder / "stability"), identifiability)


def dev_point_from_metrics(out: Path, step: int, config: DevEvalConfig) -> DevEvalPoint:
    """The point of a step, read from the metrics.json of its two runs."""
    folder = dev_eval_dir(out, step)
    measured = read_json(folder / "stability" / "metrics.json")
    stable = StabilitySummary.model_validate({name: measured.get(name) for name in StabilitySummary.json_keys()})
    metrics = read_json(folder / "fidelity" / "metrics.json") if config.characters else None
    fields = metrics and {name: metrics[name] for name in Identifiability.model_fields}
    return _dev_point(step, folder, stable, None if fields is None else Identifiability.model_validate(fields))


def _dev_point(
    step: int, folder: Path, stability_summary: StabilitySummary, identifiability: Identifiability | None
) -> DevEvalPoint:
    answers = read_grid_results(folder / "stability")
    token_counts = [
        summary.completion_tokens for summary in answers.grid_summaries.values() if summary.completion_tokens is not None
    ]
    cut_off = count_cut_off(answers)
    return DevEvalPoint(
        step=step,
        measures=select_measures("dev_eval", stability_summary.measures),
        identifiability=identifiability.accuracy if identifiability else None,
        chance=identifiability.chance if identifiability else None,
        completion_tokens=sum(token_counts) / len(token_counts) if token_counts else None,
        cut_off=cut_off.n_cut_off / cut_off.n_known if cut_off.n_known else None,
        n_questions=stability_summary.n_questions,
        n_scored=stability_summary.n_scored,
        n_asked=stability_summary.n_asked,
    )

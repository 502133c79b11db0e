"""The probe: a small fixed evaluation on the dev side, made while a model trains, and what is chosen by it.

    probe/step-0020/stability/    every dev question as every dev persona and as none: a stability run
    probe/step-0020/fidelity/     the characters' open-ended answers: a fidelity run, read by a classifier of step 0's answers
    probe.jsonl                   a line a probe: its figures, for people, and what they chose

Every probe asks the same, so two points of a curve differ in the weights alone. Points are measured from the records
(`curve_of`); choices are pure functions of points. A probe chooses, so its numbers are no results: those come from the held-out
side, which it never asks. Imports no torch: the model in training is asked by `permix.training.dev_eval_callback`.
"""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

from permix.config import FidelityStage, ModelConfig, PersonasConfig, ProbeConfig, StabilityStage, TrainStage
from permix.errors import ConfigError
from permix.evals import open_ended, stability
from permix.evals.grid import Wording, read_answers
from permix.evals.strategies import STRATEGIES
from permix.evals.strategies.base import Setup
from permix.metrics.dev_curve import Curve, Point
from permix.metrics.identifiability import Identifiability
from permix.metrics.stability import StabilitySummary
from permix.personas.pool import PersonaPool, choose_personas
from permix.plan import Plan
from permix.prompts import template_hash
from permix.storage.files import read_json
from permix.tasks import load_questions
from permix.tasks.base import Task
from permix.tasks.contamination import read_seen, refuse_overlap
from permix.training.run_log import read_log
from permix.types import Cell, Question, Sampling

LINES = "probe.jsonl"

WEIGHTS = "weights.safetensors"

CHARACTER = "character"
"""The tag of personas that are told apart, where a pool has it: a kind of the built-in pool."""


# What is asked


class Voices(NamedTuple):
    """The open-ended half of a probe."""

    stage: FidelityStage
    personas: PersonaPool
    questions: tuple[Question, ...]


class Probe(NamedTuple):
    """What a training run asks at every probe. `stage` and `voices.stage` say how; where, is said by step."""

    train: TrainStage
    stage: StabilityStage
    task: Task
    setup: Setup
    voices: Voices | None

    @property
    def config(self) -> ProbeConfig:
        return self.train.probe

    def stability_at(self, step: int) -> StabilityStage:
        folder = folder_of(self.train.out, step)
        return self.stage.model_copy(update={"out": folder / "stability", "label": self._label(step)})

    def fidelity_at(self, step: int, voices: Voices) -> FidelityStage:
        folder, base = folder_of(self.train.out, step), folder_of(self.train.out, 0) / "fidelity"
        settings = {"out": folder / "fidelity", "label": self._label(step), "reference": base if step else None}
        return voices.stage.model_copy(update=settings)

    def _label(self, step: int) -> str:
        return f"{self.train.label or self.train.out.name}, step {step}"

    def cells(self) -> list[tuple[Cell, Sampling]]:
        """Everything that one probe asks, unanswered."""
        asked = [(cell, self.stage.sampling) for cell in STRATEGIES["none"].first(self.setup)]
        if self.voices is not None:
            asked += [(cell, self.voices.stage.sampling) for cell in open_ended.cells_of(*self.voices)]
        return asked


def set_up(config: TrainStage, plan: Plan) -> Probe | None:
    """The probe of a training run; None when it has none.

    Raises ConfigError or DataError when the dev side cannot give what is asked, or when the plan trains on some of it.
    """
    if config.probe.every == 0:
        return None
    _refuse_other_sections(config, plan)
    with _on_the_dev_side():
        side = choose_personas(PersonasConfig(pool=config.personas.pool, split="dev"))
        stage = _stability_stage(config, side)
        task, questions = load_questions(stage.task)
        refuse_overlap(questions, read_seen(Path(config.model.name)).questions)
        wording = Wording(task.prompt, config.personas.template, config.personas.bare)
        setup = Setup(questions, _selected(side, stage.personas), wording, stage.samples, stage.seed)
        voices = _voices(config, side) if config.probe.characters else None
    _refuse_trained_on(config, plan, setup, voices)
    return Probe(config, stage, task, setup, voices)


def _stability_stage(config: TrainStage, side: PersonaPool) -> StabilityStage:
    probe = config.probe
    personas = _dev_personas(config, side, "personas", config.personas.include)
    return StabilityStage(
        model=ModelConfig(name=config.model.name), threads=config.threads, personas=personas, seed=config.train.seed,
        task=config.task.model_copy(update={"split": "dev", "n": probe.questions}),
        sampling=Sampling(temperature=0, max_new_tokens=probe.max_new_tokens or config.train.max_new_tokens),
    )  # fmt: skip


def _voices(config: TrainStage, side: PersonaPool) -> Voices:
    include = (CHARACTER,) if CHARACTER in side.tags else config.personas.include
    stage = FidelityStage(
        model=ModelConfig(name=config.model.name), threads=config.threads, seed=config.train.seed,
        personas=_dev_personas(config, side, "characters", include),
        questions_split="dev", n_questions=config.probe.roleplay_questions,
        sampling=Sampling(temperature=0.7, max_new_tokens=config.probe.roleplay_max_new_tokens),
    )  # fmt: skip
    return Voices(stage, _selected(side, stage.personas), open_ended.open_questions(stage))


def _dev_personas(config: TrainStage, side: PersonaPool, field: str, include: tuple[str, ...]) -> PersonasConfig:
    """As many of the dev side as `[probe]` asks for, in the wording that is trained under."""
    wanted: int = getattr(config.probe, field)
    # A tag that nobody on this side carries excludes nobody, and includes nobody beside others that do.
    found = config.personas.model_copy(
        update={
            "split": "dev",
            "include": tuple(tag for tag in include if tag in side.tags) or include,
            "exclude": tuple(tag for tag in config.personas.exclude if tag in side.tags),
            "n": wanted,
        }
    )
    available = len(_selected(side, found.model_copy(update={"n": None})))
    if wanted > available:
        advice = f"give {available} or less" if available > 1 else "a probe needs two or more"
        raise ConfigError(f"probe.{field} = {wanted}: the dev side has {available} such personas; {advice}")
    return found


def _selected(side: PersonaPool, config: PersonasConfig) -> PersonaPool:
    """As `choose_personas` selects from the side that it has loaded."""
    return side.select(include_tags=config.include, exclude_tags=config.exclude, n=config.n, seed=config.seed)


@contextmanager
def _on_the_dev_side() -> Iterator[None]:
    """Errors say that they are the probe's, and name its own settings."""
    try:
        yield
    except ConfigError as error:
        told = re.sub(r"\btask\.n\b", "probe.questions", str(error))
        told = re.sub(r"(?<![.\w])n_questions\b", "probe.roleplay_questions", told)
        raise ConfigError(f"[probe] asks the dev side: {told}") from error


def describe(probe: Probe) -> str:
    """What probing costs, in answers."""
    cells, every = probe.cells(), probe.config.every
    tokens = sum(sampling.max_new_tokens for _, sampling in cells)
    return f"{len(cells)} answers before training, every {every} steps and at the end, each time at most {tokens} new tokens"


def _refuse_other_sections(config: TrainStage, plan: Plan) -> None:
    """The probe asks by the sections [task] and [personas]; a plan from a file must have been compiled from such ones."""
    task, about = config.task.model_dump(mode="json"), plan.about
    known = {name: about["task"][name] for name in ("name", "levels", "path", "wording") if name in about.get("task", {})}
    other = {f"task.{name}": (task[name], theirs) for name, theirs in known.items() if task[name] != theirs}
    if about.get("template", template_hash(config.personas.template)) != template_hash(config.personas.template):
        other["personas.template"] = (config.personas.template, "another wording")
    if about.get("bare", config.personas.bare) != config.personas.bare:
        other["personas.bare"] = (config.personas.bare, about["bare"])
    if other:
        field, (ours, theirs) = next(iter(other.items()))
        raise ConfigError(
            f"{field} = {ours!r}: plan_file = {config.plan_file} was compiled with {theirs!r}; [probe] asks by the sections "
            "[task] and [personas], so give it those of the plan"
        )


def _refuse_trained_on(config: TrainStage, plan: Plan, setup: Setup, voices: Voices | None) -> None:
    asked = {persona.id for persona in (*setup.pool.personas, *(voices.personas.personas if voices else ()))}
    drawn = {row.persona_id for row in plan.rows}
    if config.plan.adaptive > 0 and config.plan_file is None:  # its later blocks may draw any of the pool
        drawn |= {persona.id for persona in choose_personas(config.personas).personas}
    if shared := asked & drawn:
        raise ConfigError(
            f"[probe] asks the dev side, and the plan trains under {len(shared)} of its {len(asked)} personas, such as "
            f'{min(shared)!r}; train with personas.split = "train", or with probe.every = 0'
        )
    hashes = {row.question_hash for row in plan.rows}
    if repeated := [question.id for question in setup.questions if question.content_hash in hashes]:
        raise ConfigError(
            f"[probe] asks the dev side, and the plan trains on {len(repeated)} of its {len(setup.questions)} questions, such as "
            f'{repeated[0]!r}; compile it with task.split = "train", or train with probe.every = 0'
        )


def probed_steps(config: ProbeConfig, last: int) -> list[int]:
    """When a run of `last` steps is probed."""
    return sorted({0, *range(0, last, config.every), last}) if config.every else []


def folder_of(out: Path, step: int) -> Path:
    return out / "probe" / f"step-{step:04d}"


def drop_weights(out: Path, but: int | None = None) -> None:
    """Remove the weights kept of a run's probes, also half written ones, but those of one step."""
    for path in out.glob(f"probe/*/*{WEIGHTS}*"):
        if but is None or path.parent != folder_of(out, but):
            path.unlink()


def curve_of(out: Path, config: ProbeConfig) -> Curve | None:
    """The probes that probe.jsonl names, measured from their records; None when there is none.

    Records of other steps may lie there too: those of a process that died further on than the run went after it.
    """
    points = [measure(out, line["step"], config) for line in read_log(out / LINES)]
    return Curve(tuple(points), config) if points else None


def measure(out: Path, step: int, config: ProbeConfig) -> Point:
    """A step's point from its records alone."""
    folder, base = folder_of(out, step), folder_of(out, 0) / "fidelity"
    distinct = open_ended.measure(folder / "fidelity", base if step else None) if config.characters else None
    return _point(step, folder, stability.measure(folder / "stability"), distinct)


def noted(out: Path, step: int, config: ProbeConfig) -> Point:
    """The same from what the step's two evaluations, just made, noted of themselves."""
    folder = folder_of(out, step)
    stable = StabilitySummary.model_validate(read_json(folder / "stability" / "metrics.json"))
    found = read_json(folder / "fidelity" / "metrics.json") if config.characters else None
    distinct = found and {name: found[name] for name in Identifiability.model_fields}
    return _point(step, folder, stable, None if distinct is None else Identifiability.model_validate(distinct))


def _point(step: int, folder: Path, stable: StabilitySummary, distinct: Identifiability | None) -> Point:
    written = [brief.written for brief in read_answers(folder / "stability").grid.values() if brief.written is not None]
    return Point(
        step=step, mean=stable.mean, baseline=stable.baseline, worst=stable.worst, best=stable.best, pss=stable.pss,
        identifiability=distinct.accuracy if distinct else None, chance=distinct.chance if distinct else None,
        completion_tokens=sum(written) / len(written) if written else None,
        n_questions=stable.n_questions, n_scored=stable.n_scored, n_asked=stable.n_asked,
    )  # fmt: skip

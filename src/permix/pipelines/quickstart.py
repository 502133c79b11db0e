"""`permix quickstart`: the whole story on a laptop, on a real model.

Measures a model (the bundled one, unless told otherwise), trains it twice from the same plan seed (plain RLVR: no personas;
PerMix-RLVR: personas mixed in, and the base model's answers in character replayed), measures both on personas and questions
that neither saw, and reports. Every part is a stage of its own with its own run directory, so an interrupted quickstart goes on
where it was, and each part can be run again alone from the config.json it left.
"""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import NamedTuple

from rich.console import Console

from permix.config import (
    CharacterConfig,
    FidelityStage,
    Method,
    ModelConfig,
    PersonasConfig,
    PlanConfig,
    QuickstartStage,
    StabilityStage,
    TaskConfig,
    TrainConfig,
    TrainedModel,
    TrainStage,
    mix_of,
)
from permix.progress import Journey
from permix.types import Sampling

LEVELS = ("add-1", "sub-1", "mul-1", "add-1x3", "add-2")

BASE, RLVR, PERMIX = "base", "RLVR", "PerMix-RLVR"


class Size(NamedTuple):
    """How much of everything."""

    steps: int
    personas: int
    questions: int
    characters: int
    roleplay_questions: int
    kept: CharacterConfig
    """What keeps PerMix-RLVR in character."""
    minutes: int


# CPU seconds on two cores, as measured: one cell, one open-ended answer, one training step, getting the model.
CELL_S, ANSWER_S, STEP_S, MODEL_S = 0.09, 0.27, 14.0, 22.0


class Part(NamedTuple):
    """One thing to do; `weight` is about its CPU seconds, for the time that is left in all."""

    name: str
    weight: float
    act: Callable[[], object]


REPLAY = CharacterConfig(replay=0.5, replay_answers=6)

FULL = Size(steps=20, personas=12, questions=100, characters=9, roleplay_questions=40, kept=REPLAY, minutes=20)

FAST = Size(
    steps=3, personas=4, questions=20, characters=4, roleplay_questions=10, minutes=4,
    kept=REPLAY.model_copy(update={"questions": 2}),
)  # fmt: skip


def stages(config: QuickstartStage) -> tuple[list[StabilityStage], list[FidelityStage], list[TrainStage]]:
    """Every stage of the quickstart: evaluations of base, RLVR and PerMix-RLVR, and the two trainings."""
    size = FAST if config.fast else FULL
    trained = [_training(config, size, RLVR, "rlvr"), _training(config, size, PERMIX, "permix")]
    models = {BASE: config.model, RLVR: str(trained[0].out / "model"), PERMIX: str(trained[1].out / "model")}
    stable = [_stability(config, size, label, model) for label, model in models.items()]
    distinct = [_fidelity(config, size, label, model) for label, model in models.items()]
    return stable, distinct, trained


def _folder(config: QuickstartStage, label: str, stage: str) -> Path:
    return config.folder / f"{label.lower()}-{stage}"


def _training(config: QuickstartStage, size: Size, label: str, method: Method) -> TrainStage:
    return TrainStage(
        out=_folder(config, label, "train"), label=label, threads=config.threads,
        method=method, model=TrainedModel(name=config.model),
        task=TaskConfig(split="train", levels=LEVELS, n=300, seed=config.seed),
        personas=PersonasConfig(split="train"),
        plan=PlanConfig(steps=size.steps, questions_per_step=6, group_size=8, seed=config.seed),
        train=TrainConfig(lr=3e-5, temperature=0.7, max_new_tokens=28, save_every=5, seed=config.seed),
        character=size.kept if method == "permix" else CharacterConfig(),
    )  # fmt: skip


def _stability(config: QuickstartStage, size: Size, label: str, model: str) -> StabilityStage:
    return StabilityStage(
        out=_folder(config, label, "stability"), label=label, threads=config.threads, model=ModelConfig(name=model),
        task=TaskConfig(split="heldout", levels=LEVELS, n=size.questions, seed=config.seed),
        personas=PersonasConfig(split="heldout", n=size.personas, seed=config.seed),
        sampling=Sampling(temperature=0, max_new_tokens=28), seed=config.seed,
    )  # fmt: skip


def _fidelity(config: QuickstartStage, size: Size, label: str, model: str) -> FidelityStage:
    return FidelityStage(
        out=_folder(config, label, "fidelity"), label=label, threads=config.threads, model=ModelConfig(name=model),
        personas=PersonasConfig(split="heldout", include=("character",), n=size.characters, seed=config.seed),
        n_questions=size.roleplay_questions, seed=config.seed,
        reference=None if label == BASE else _folder(config, BASE, "fidelity"),
    )  # fmt: skip


def quickstart(config: QuickstartStage) -> None:
    """Run, or go on with, the quickstart; prints the table and writes `report/` under `config.folder`."""
    from permix.evals.stability import stability
    from permix.inference.hardware import release_memory
    from permix.inference.hf import resolve
    from permix.pipelines.fidelity import fidelity
    from permix.pipelines.train import run_training

    stable, distinct, trained = stages(config)
    size = FAST if config.fast else FULL
    grid, talk = (size.personas + 1) * size.questions * CELL_S, size.characters * size.roleplay_questions * ANSWER_S
    steps = size.steps * STEP_S
    parts = [
        Part(f"get the model ({model_name(config)})", MODEL_S, partial(resolve, config.model)),
        Part(f"accuracy of {BASE}", grid, partial(stability, stable[0])),
        Part(f"characters of {BASE}", talk, partial(fidelity, distinct[0])),
        *(Part(f"train {one.label}", steps, partial(run_training, one)) for one in trained),
    ]
    for one, two in zip(stable[1:], distinct[1:], strict=True):
        parts.append(Part(f"accuracy of {one.label}", grid, partial(stability, one)))
        parts.append(Part(f"characters of {two.label}", talk, partial(fidelity, two)))
    Console(stderr=True).print(
        f"permix quickstart: {len(parts)} steps, about {size.minutes} minutes on 2 cores; "
        f"interrupt it at any time and start it again to go on. Everything goes to {config.folder}/", soft_wrap=True,
    )  # fmt: skip
    journey = Journey([part.weight for part in parts])
    for number, part in enumerate(parts):
        with journey.part(number, part.name):
            part.act()
        release_memory()
    report(config, stable, distinct, trained)


def model_name(config: QuickstartStage) -> str:
    return "SmolLM2-135M-Instruct" if config.model == "bundled" else config.model


def report(
    config: QuickstartStage, stable: list[StabilityStage], distinct: list[FidelityStage], trained: list[TrainStage]
) -> None:
    """Write the report on the quickstart's runs and print its table."""
    from permix.report.builder import build_report
    from permix.report.tables import terminal_table

    out = config.folder / "report"
    rows = build_report([one.out for one in (*stable, *distinct, *trained)], out, caption(config))
    console = Console()
    console.print(terminal_table(rows))
    console.print(caption(config), markup=False, highlight=False)
    console.print(f"report: {out / 'index.html'} (or report.md beside it)", markup=False, highlight=False, soft_wrap=True)


def caption(config: QuickstartStage) -> str:
    """What was done, in a paragraph that travels with the table."""
    size = FAST if config.fast else FULL
    plain, mixed = (mix_of(one.plan, one.method) for one in stages(config)[2])
    kind = "Fast quickstart (too small to conclude from)" if config.fast else "Quickstart"
    return (
        f"{kind}: {model_name(config)} on one- and two-digit arithmetic ({', '.join(LEVELS)}), seed {config.seed}. "
        f"{RLVR} and {PERMIX} were trained for {size.steps} steps of 6 questions × 8 rollouts from one plan seed; they differ in "
        f"the share of questions asked under a persona, {plain:g} and {mixed:g}, and in the {size.kept.replay_answers} "
        f"answers of the base model in character that {PERMIX} replays in each step. Evaluated greedily on "
        f"{size.questions} held-out questions under {size.personas} held-out personas; identifiability on "
        f"{size.roleplay_questions} open-ended questions answered by {size.characters} held-out characters at temperature 0.7."
    )

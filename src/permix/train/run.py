"""`permix train`: a plan and a model in, a trained model folder and its log out.

    plan.parquet       what was trained on
    plan_blocks.jsonl  how personas were weighted, where they adapt
    log.jsonl          one line a step
    rollouts.jsonl     one line a rollout: everything the run generated
    samples.md         some of them, for reading
    character/         what the base model says in character, where something holds the model to it
    probe/             the records of its probes, of a run that has some (`permix.train.probe`); probe.jsonl: a line a probe
    checkpoints/       the newest one, until the run has ended
    model/             the result: a plain Hugging Face folder with its card

(The supervised methods have no rollouts.jsonl; `permix.train.supervised` says what they leave.)
Started again, the run goes on after its newest whole checkpoint; what was logged after that is dropped and done again. Several
processes train as one (`permix.train.processes`): the main one holds the run directory and writes, the others compute.
"""

import contextlib
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from permix.config import PLACES, SUPERVISED, TrainStage
from permix.models.hf import context_window, folder_fingerprint, load_tokenizer, resolve
from permix.models.machine import pin_threads
from permix.personas.choose import choose_personas
from permix.records import RunDir, cpu_seconds
from permix.tasks.overlap import Seen, read_seen, write_seen
from permix.train import processes
from permix.train.checkpoints import newest_checkpoint
from permix.train.distill import refuse_absent, teacher_identity
from permix.train.fit import launch, longest_prompt, refuse_launch, refuse_too_long, refuse_unfit
from permix.train.plan import Plan, plan_for, write_plan
from permix.train.probe import Probe, drop_weights, set_up


def train(config: TrainStage) -> Path:
    """Run or go on with the training, together with the processes started beside this one; returns the trained model's folder."""
    with processes.together():
        pin_threads(config.threads)
        plan = plan_for(config)
        refuse_unfit(plan, config.train)
        refuse_launch(plan, config, launch())
        probe = set_up(config, plan)
        with processes.main_first():
            source = resolve(config.model.name)
        if config.method == "seqkd":
            refuse_absent(config)
        target = config.out / "model"
        with _held(config, plan, source) as run:
            if not processes.agreed((target / "config.json").exists()):
                with _accounted(run):
                    _learn(config, plan, probe, source, run, target)
            if run is not None:
                drop_weights(config.out)
                if not config.train.keep_checkpoints:
                    shutil.rmtree(config.out / "checkpoints", ignore_errors=True)
        return target


@contextlib.contextmanager
def _held(config: TrainStage, plan: Plan, source: str) -> Iterator[RunDir | None]:
    """The run directory, for the main process; the others wait until it has it, and get None."""
    if not processes.is_main():
        processes.wait()
        yield None
        return
    with RunDir.open(config.out, config, _identity(config, plan, source)) as run:
        processes.wait()
        yield run


@contextlib.contextmanager
def _accounted(run: RunDir | None) -> Iterator[None]:
    """The CPU seconds of all processes go into the main one's usage.json; after an error, only its own."""
    if run is not None:
        with run.accounted(processes.summed):
            yield
        return
    before = cpu_seconds()
    yield
    processes.summed(cpu_seconds() - before)


def _identity(config: TrainStage, plan: Plan, source: str) -> dict[str, Any]:
    """What a run must have in common with its continuation. Where it generates and how wide is not in it."""
    return {
        "method": config.method,
        "plan": plan.hash,
        "model": _fingerprint(source),
        "train": config.train.model_dump(mode="json", exclude=set(PLACES)),
        "character": config.character.model_dump(mode="json"),
        **({"teacher": teacher_identity(config)} if config.method == "seqkd" else {}),
        **({"probe": config.probe.model_dump(mode="json")} if config.probe.every else {}),
    }


def _fingerprint(source: str) -> str:
    return folder_fingerprint(Path(source)) if Path(source).is_dir() else source


def _learn(config: TrainStage, plan: Plan, probe: Probe | None, source: str, run: RunDir | None, target: Path) -> None:
    """Train by the method and write the model."""
    from permix.train import prober
    from permix.train.reinforce import reinforce
    from permix.train.supervised import supervise
    from permix.train.weights import write_model

    tokenizer = load_tokenizer(source)
    refuse_too_long(longest_prompt(plan, tokenizer, config.train.max_prompt_tokens), config.train, source)
    if probe is not None:
        prober.refuse_too_long(probe, tokenizer, context_window(source))
    checkpoint = processes.agreed(newest_checkpoint(config.out / "checkpoints"))
    seen = seen_after(plan, source) | _may_be_drawn(config)
    if run is not None:
        write_plan(plan, config.out / "plan.parquet")
        write_seen(config.out / "checkpoints", seen)
    if config.method in SUPERVISED:
        assert run is not None
        trainer = supervise(config, plan, probe, source, run, checkpoint)
    else:
        trainer = reinforce(config, plan, probe, source, config.out, checkpoint)
    chosen = prober.chosen_weights(config.out, config.probe) if probe is not None and run is not None else None
    write_model(trainer, tokenizer, plan, seen, config, config.out, target, chosen)


def seen_after(plan: Plan, source: str) -> Seen:
    """What the trained model has seen: this plan's questions and personas, and all that the model it starts from had seen."""
    personas = frozenset(row.persona_id for row in plan.rows if row.persona_id)
    return Seen(frozenset(row.question_hash for row in plan.rows), personas) | read_seen(Path(source))


def _may_be_drawn(config: TrainStage) -> Seen:
    """Personas that a plan which adapts may still draw: all of the pool."""
    adapts = config.plan.adaptive > 0 and config.plan_file is None
    return Seen(frozenset(), frozenset(persona.id for persona in choose_personas(config.personas).personas if adapts))

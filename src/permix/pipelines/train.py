"""`permix train`: a plan and a model in, a trained model folder and its log out.

    plan.parquet       what was trained on
    plan_blocks.jsonl  how personas were weighted, where they adapt
    log.jsonl          one line a step
    rollouts.jsonl     one line a rollout: everything the run generated
    samples.md         some of them, for reading
    character/         what the base model says in character, where something holds the model to it
    probe/             the records of its probes, of a run that has some (`permix.training.dev_eval`); probe.jsonl: a line a probe
    checkpoints/       the newest one, until the run has ended
    model/             the result: a plain Hugging Face folder with its card

(The supervised methods have no rollouts.jsonl; `permix.pipelines.train` says what they leave.)
Started again, the run goes on after its newest whole checkpoint; what was logged after that is dropped and done again. Several
processes train as one (`permix.training.distributed`): the main one holds the run directory and writes, the others compute.

Reinforcement learning with the verifier's reward, plain or persona-mixed: what `permix train` sets up around `PlanTrainer`.

The supervised methods of `permix train`: choose what to learn from, keep it, learn it.

`sft` and `sft-personas` learn the gold solutions of the plan's rows, `seqkd` a teacher's right samples of them. What a run leaves
besides the files of every training:

    examples.jsonl, examples.json    what is learnt from, and how it was counted
    samples.md                       some of it, for reading
    records.jsonl, teacher.json      seqkd: every sample of the teacher, judged; who the teacher was
"""

import contextlib
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from permix.config import PLACES, SUPERVISED, TrainStage
from permix.errors import ConfigError
from permix.inference.hardware import pin_threads, release_memory
from permix.inference.hf import completion_ids, context_window, encode_chat, folder_fingerprint, load_tokenizer, resolve
from permix.personas.pool import choose_personas
from permix.plan import Plan, plan_for, recipe_from, write_plan
from permix.progress import meter, say
from permix.storage.run_dir import RunDir, cpu_seconds
from permix.tasks.contamination import Seen, read_seen, write_seen
from permix.training import distributed
from permix.training.checkpoints import autocast, lora, network_of, newest_checkpoint, refuse_other_count, seed_trainer, step_of
from permix.training.compatibility import launch, longest_prompt, refuse_launch, refuse_too_long, refuse_unfit
from permix.training.curriculum import Curriculum, recorded
from permix.training.dev_eval import Probe, drop_weights, set_up
from permix.training.reference_answers import fill_bank
from permix.training.rewards import Expressivity
from permix.training.run_log import FigureLog, NoLog, StepLog, read_log
from permix.training.sft_data import (
    Chosen,
    Example,
    gold_examples,
    keep,
    kept,
    refuse_absent,
    steps_of,
    teacher_examples,
    teacher_identity,
    words,
)
from permix.types import Cell
from permix.verification.math_verifier import Verifier

if TYPE_CHECKING:
    from permix.training.grpo_trainer import Recorder
    from permix.training.replay import Replay


def reinforce(config: TrainStage, plan: Plan, probe: Probe | None, source: str, out: Path, checkpoint: Path | None) -> Any:
    """Run or go on with the training; returns the trainer, which holds the trained network."""
    from permix.training.dev_eval_callback import Prober
    from permix.training.grpo_trainer import PlanTrainer
    from permix.training.trainer_args import grpo_arguments

    if checkpoint:
        refuse_other_count(checkpoint, distributed.count())
    tokenizer = load_tokenizer(source)
    cells = distributed.agreed(fill_bank(config) if config.character.needs_answers and distributed.is_main() else [])
    # Before the weights: the arguments say whether those are shared out over processes, and so how they are loaded.
    arguments = grpo_arguments(config, plan, out / "checkpoints")
    network = network_of(source)
    replay = _replay(config, cells, tokenizer, network)
    expressivity = Expressivity(cells, config.character.expressivity) if config.character.expressivity > 0 else None
    with Verifier() as verifier, _recorder(config, out, step_of(checkpoint), arguments.max_steps) as recorder:
        seed_trainer(config.train.seed)
        trainer = PlanTrainer(
            plan=plan, verifier=verifier, recorder=recorder, config=config.train, args=arguments, model=network,
            processing_class=tokenizer, peft_config=lora(config.train), replay=replay, expressivity=expressivity,
            curriculum=_curriculum(config, out),
        )  # fmt: skip
        if probe is not None:
            trainer.add_callback(Prober(probe, step_of(checkpoint), trainer.probed()))
        trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
    return trainer


@contextlib.contextmanager
def _recorder(config: TrainStage, out: Path, done: int, steps: int) -> "Iterator[Recorder]":
    """The run's log, kept by the main process."""
    if not distributed.is_main():
        yield NoLog()
        return
    with meter(f"train {config.label or out.name}", steps, "steps") as shown:
        shown.start_at(done)
        yield StepLog(out, done, config.train.samples_every * config.train.iterations, shown)


def _replay(config: TrainStage, cells: Sequence[Cell], tokenizer: Any, network: Any) -> "Replay | None":
    """Character replay as configured. Off-policy it learns here what the base model would have said: `network` still is that."""
    from permix.inference.shared_prefix import evaluating
    from permix.training.replay import Replay, Teacher, samples_of

    character = config.character
    if character.replay == 0:
        return None
    replay = Replay(samples_of(cells, tokenizer), character.replay_answers, character.replay, config.train.seed)
    if character.replay_policy == "off":
        if distributed.is_main():  # where weights are shared out, the others hold none of them yet
            with evaluating(network), autocast(config.train):
                replay.learn_base(network, tokenizer.pad_token_id, config.train.micro_tokens)
        replay.teachers = distributed.agreed([Teacher(*(one.cpu() for one in own)) for own in replay.teachers])
    return replay


def _curriculum(config: TrainStage, out: Path) -> Curriculum | None:
    """Adaptive personas as configured, knowing what has been recorded."""
    if config.plan.adaptive == 0 or config.plan_file is not None:
        return None
    recipe, _ = recipe_from(config.task, config.personas, config.plan)
    curriculum = Curriculum(recipe)
    curriculum.note(recorded(distributed.agreed(read_log(out / "rollouts.jsonl")), config.train.iterations))
    return curriculum


def supervise(config: TrainStage, plan: Plan, probe: Probe | None, source: str, run: RunDir, checkpoint: Path | None) -> Any:
    """Run or go on with a supervised training; returns the trainer, which holds the trained network."""
    tokenizer = load_tokenizer(source)
    chosen = kept(run.path) or _choose(config, plan, run, tokenizer, context_window(source))
    release_memory()  # a teacher in this process is not needed any more
    return _train_supervised(config, chosen, probe, tokenizer, source, run.path, checkpoint)


def _choose(config: TrainStage, plan: Plan, run: RunDir, tokenizer: Any, window: int) -> Chosen:
    """What will be learnt from, as it was written down."""
    with Verifier() as verifier:
        if config.method == "seqkd":
            chosen = within(teacher_examples(config, plan, run, verifier), tokenizer, window)
        else:
            chosen = gold_examples(plan, verifier)
            refuse_long(chosen.examples, tokenizer, config.train.max_new_tokens)
    say(f"train {config.label or config.out.name}: {words(chosen.counts)}")
    return keep(run.path, chosen, config.train.samples_every)


def refuse_long(examples: Sequence[Example], tokenizer: Any, limit: int) -> None:
    """Raise ConfigError when a solution is longer than a completion may be, naming the longest."""
    size, longest = max(((length(one, tokenizer), one) for one in examples), key=lambda pair: pair[0])
    if size > limit:
        raise ConfigError(
            f"train.max_new_tokens = {limit}: the solution of question {longest.question_id} has {size} tokens with its end, the "
            f"most of all; give train.max_new_tokens = {size} or more, or other questions"
        )


def within(chosen: Chosen, tokenizer: Any, window: int) -> Chosen:
    """What the model can read: a teacher counts in tokens of its own, and a sample may be more of this model's."""
    fitting = tuple(
        one for one in chosen.examples if len(encode_chat(tokenizer, one.messages)) + length(one, tokenizer) <= window
    )
    if not fitting:
        raise ConfigError(
            f"train.max_new_tokens: no right sample of the teacher fits into the {window} tokens that the model reads; "
            "give a smaller limit and another folder"
        )
    dropped = {"right samples left out, as the model cannot read so much": len(chosen.examples) - len(fitting)}
    return Chosen(fitting, chosen.counts | {"examples": len(fitting)} | (dropped if len(fitting) < len(chosen.examples) else {}))


def length(example: Example, tokenizer: Any) -> int:
    """Tokens of a completion, with its end where it has one."""
    return len(completion_ids(example.completion, tokenizer)) + example.ended


def _train_supervised(
    config: TrainStage, chosen: Chosen, probe: Probe | None, tokenizer: Any, source: str, out: Path, checkpoint: Path | None
) -> Any:
    from permix.training.dev_eval_callback import Prober
    from permix.training.sft_trainer import ExampleTrainer, sft_arguments

    done, steps = step_of(checkpoint), steps_of(chosen.examples)
    arguments = sft_arguments(config.train, len(steps), out / "checkpoints")
    with meter(f"train {config.label or config.out.name}", arguments.max_steps, "steps") as shown:
        shown.start_at(done)
        network = network_of(source)
        seed_trainer(config.train.seed)
        trainer = ExampleTrainer(
            steps=steps, micro_tokens=config.train.micro_tokens, recorder=FigureLog(out, done, shown), args=arguments,
            model=network, processing_class=tokenizer, peft_config=lora(config.train),
        )  # fmt: skip
        if probe is not None:
            trainer.add_callback(Prober(probe, done, trainer.probed()))
        trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
    return trainer


def run_training(config: TrainStage) -> Path:
    """Run or go on with the training, together with the processes started beside this one; returns the trained model's folder."""
    with distributed.together():
        pin_threads(config.threads)
        plan = plan_for(config)
        refuse_unfit(plan, config.train)
        refuse_launch(plan, config, launch())
        probe = set_up(config, plan)
        with distributed.main_first():
            source = resolve(config.model.name)
        if config.method == "seqkd":
            refuse_absent(config)
        target = config.out / "model"
        with _held(config, plan, source) as run:
            if not distributed.agreed((target / "config.json").exists()):
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
    if not distributed.is_main():
        distributed.wait()
        yield None
        return
    with RunDir.open(config.out, config, _identity(config, plan, source)) as run:
        distributed.wait()
        yield run


@contextlib.contextmanager
def _accounted(run: RunDir | None) -> Iterator[None]:
    """The CPU seconds of all processes go into the main one's usage.json; after an error, only its own."""
    if run is not None:
        with run.accounted(distributed.summed):
            yield
        return
    before = cpu_seconds()
    yield
    distributed.summed(cpu_seconds() - before)


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
    from permix.training import dev_eval_callback
    from permix.training.checkpoints import write_model

    tokenizer = load_tokenizer(source)
    refuse_too_long(longest_prompt(plan, tokenizer, config.train.max_prompt_tokens), config.train, source)
    if probe is not None:
        dev_eval_callback.refuse_too_long(probe, tokenizer, context_window(source))
    checkpoint = distributed.agreed(newest_checkpoint(config.out / "checkpoints"))
    seen = seen_after(plan, source) | _may_be_drawn(config)
    if run is not None:
        write_plan(plan, config.out / "plan.parquet")
        write_seen(config.out / "checkpoints", seen)
    if config.method in SUPERVISED:
        assert run is not None
        trainer = supervise(config, plan, probe, source, run, checkpoint)
    else:
        trainer = reinforce(config, plan, probe, source, config.out, checkpoint)
    chosen = dev_eval_callback.chosen_weights(config.out, config.probe) if probe is not None and run is not None else None
    write_model(trainer, tokenizer, plan, seen, config, config.out, target, chosen)


def seen_after(plan: Plan, source: str) -> Seen:
    """What the trained model has seen: this plan's questions and personas, and all that the model it starts from had seen."""
    personas = frozenset(row.persona_id for row in plan.rows if row.persona_id)
    return Seen(frozenset(row.question_hash for row in plan.rows), personas) | read_seen(Path(source))


def _may_be_drawn(config: TrainStage) -> Seen:
    """Personas that a plan which adapts may still draw: all of the pool."""
    adapts = config.plan.adaptive > 0 and config.plan_file is None
    return Seen(frozenset(), frozenset(persona.id for persona in choose_personas(config.personas).personas if adapts))

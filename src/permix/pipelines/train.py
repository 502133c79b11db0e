"""`permix train`: a plan and a model in, a trained model folder and its log out.

    plan.parquet       what was trained on
    plan_blocks.jsonl  how personas were weighted, where they adapt
    log.jsonl          one line a step
    rollouts.jsonl     one line a rollout: everything the run generated
    samples.md         some of them, for reading
    reference_answers/ what the base model says in character, where something holds the model to it
    dev_eval/          the records of its dev evaluations, of a run that has some (`permix.training.dev_eval`)
    dev_eval.jsonl     one line a dev evaluation
    checkpoints/       the newest one, until the run has ended
    model/             the result: a plain Hugging Face folder with its card

What the supervised methods leave in place of rollouts.jsonl:

    examples.jsonl, examples.json    what is learnt from, and how it was counted
    records.jsonl, teacher.json      seqkd: every sample of the teacher, scored; who the teacher was

Started again, the run goes on after its newest whole checkpoint; what was logged after that is dropped and done again. Several
processes train as one (`permix.training.distributed`): the main one holds the run directory and writes, the others compute. How
the weights are trained is a backend's (`permix.training.backend`).
"""

import contextlib
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from permix.config import RUNTIME_ONLY_FIELDS, TrainConfig
from permix.inference.hardware import set_threads
from permix.inference.hf import check_model_folder, context_window, folder_fingerprint, load_tokenizer, resolve_model_source
from permix.plan import describe_plan, write_plan
from permix.prompts import template_text
from permix.storage.files import guard_writes
from permix.storage.run_dir import RunDir, cpu_seconds
from permix.tasks.base import TrainedOn, read_trained_on, write_trained_on
from permix.training import distributed
from permix.training.backend import TRAINER_BACKENDS, TrainerBackend
from permix.training.compatibility import check_context_window, longest_prompt_tokens
from permix.training.dev_eval import check_dev_eval_prompts, delete_dev_eval_weights, describe_dev_eval
from permix.training.job import TrainJob, prepare_training
from permix.training.model_card import write_model_card
from permix.training.reference_answers import describe_reference_answers
from permix.training.sft_data import check_teacher, describe_sft_source, teacher_identity


def run_training(config: TrainConfig) -> Path:
    """Run or go on with the training, together with the processes started beside this one; returns the trained model's folder."""
    with distributed.process_group():
        set_threads(config.threads)
        backend, job = TRAINER_BACKENDS[config.backend], prepare_training(config)
        backend.check(job)
        backend.check_launch(job)
        with distributed.main_process_first():
            source = resolve_model_source(config.model.name)
        if config.method == "seqkd":
            check_teacher(config)
        target = config.out / "model"
        with _open_run_dir(job, source) as run:
            if not distributed.broadcast((target / "config.json").exists()):
                with _track_usage(run):
                    _train_and_save(backend, job, source, run, target)
            if run is not None:
                delete_dev_eval_weights(config.out)
                if not config.train.keep_checkpoints:
                    shutil.rmtree(config.out / "checkpoints", ignore_errors=True)
        return target


def preflight_training(config: TrainConfig) -> dict[str, str]:
    """Facts about a training, without its model. Raises ConfigError or DataError for what can be found wrong beforehand."""
    template_text(config.personas.template)
    check_model_folder(config.model.name)
    job = prepare_training(config)
    TRAINER_BACKENDS[config.backend].check(job)
    probed = {} if job.dev_eval is None else {"dev_eval": describe_dev_eval(job.dev_eval)}
    learnt_from = describe_sft_source(config, job.plan) | describe_reference_answers(job.reference_cells, config.character)
    return {"method": config.method} | describe_plan(job.plan) | learnt_from | probed


@contextlib.contextmanager
def _open_run_dir(job: TrainJob, source: str) -> Iterator[RunDir | None]:
    """The run directory, for the main process; the others wait until it has it, and get None."""
    if not distributed.is_main():
        distributed.barrier()
        yield None
        return
    with RunDir.open(job.config.out, job.config, _run_identity(job, source)) as run:
        distributed.barrier()
        yield run


@contextlib.contextmanager
def _track_usage(run: RunDir | None) -> Iterator[None]:
    """The CPU seconds of all processes go into the main one's usage.json; after an error, only its own."""
    if run is not None:
        with run.track_usage(distributed.all_reduce_sum):
            yield
        return
    before = cpu_seconds()
    yield
    distributed.all_reduce_sum(cpu_seconds() - before)


def _run_identity(job: TrainJob, source: str) -> dict[str, Any]:
    """What a run must have in common with its continuation. Where it generates and how wide is not in it."""
    config = job.config
    return {
        "method": config.method,
        "backend": config.backend,
        "plan": job.plan.hash,
        "model": folder_fingerprint(Path(source)) if Path(source).is_dir() else source,
        "train": config.train.model_dump(mode="json", exclude=set(RUNTIME_ONLY_FIELDS)),
        "character": config.character.model_dump(mode="json"),
        **({"teacher": teacher_identity(config)} if config.method == "seqkd" else {}),
        **({"dev_eval": config.dev_eval.model_dump(mode="json")} if config.dev_eval.every else {}),
    }


def _train_and_save(backend: TrainerBackend, job: TrainJob, source: str, run: RunDir | None, target: Path) -> None:
    """Train, and write the model beside its final place, then move it there, so that a folder named `model` is always whole."""
    tokenizer = load_tokenizer(source)
    _check_prompt_lengths(job, source, tokenizer)
    trained_on, out, scratch = build_trained_on(job, source), job.config.out, target.with_name(".model.part")
    if run is not None:
        write_plan(job.plan, out / "plan.parquet")
        write_trained_on(out / "checkpoints", trained_on)
        shutil.rmtree(scratch, ignore_errors=True)
    backend.train(job, source, tokenizer, run, scratch)
    if run is not None:
        with guard_writes(scratch):
            write_trained_on(scratch, trained_on)
            write_model_card(scratch, job.config, job.plan, out / "log.jsonl")
            scratch.rename(target)


def _check_prompt_lengths(job: TrainJob, source: str, tokenizer: Any) -> None:
    """Raise ConfigError for a prompt that is over the limit, or that leaves the model no room for its completion."""
    config = job.config.train
    check_context_window(longest_prompt_tokens(job.plan, tokenizer, config.max_prompt_tokens), config, source)
    if job.dev_eval is not None:
        check_dev_eval_prompts(job.dev_eval, tokenizer, context_window(source))


def build_trained_on(job: TrainJob, source: str) -> TrainedOn:
    """What the trained model has seen: the plan's questions, the personas that training may draw, and all that the model `source`
    had seen."""
    hashes = frozenset(row.question_hash for row in job.plan.rows)
    return TrainedOn(hashes, job.trainable_personas) | read_trained_on(Path(source))

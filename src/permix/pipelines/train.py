"""Run `permix train`: train a model on a plan. The run directory contains:

    plan.parquet        the rows that the model is trained on
    plan_blocks.jsonl   the personas' weights, with a curriculum
    log.jsonl           one line an optimizer step
    rollouts.jsonl      one line a rollout
    samples.md          some rollouts, for reading
    reference_answers/  the base model's in-character answers, with replay or an expressivity bonus
    dev_eval/           the runs of the dev evaluations, if there are any (`permix.training.dev_eval`)
    dev_eval.jsonl      one line a dev evaluation
    checkpoints/        the newest checkpoint, until training has ended
    model/              the result: a Hugging Face folder with a model card

The supervised methods write these files in place of rollouts.jsonl:

    examples.jsonl, examples.json   the training examples; how many, and why rows were left out
    records.jsonl, teacher.json     seqkd only: every sample of the teacher with its verdict; the teacher's identity

Started again, the run resumes from its newest whole checkpoint; it drops and repeats what was logged after it. Several
processes train as one (`permix.training.distributed`): the main process writes the run directory, the others only compute. A
backend (`permix.training.backend`) trains the weights.
"""

import contextlib
import shutil
from collections.abc import Iterator, Sequence
from math import ceil
from pathlib import Path
from typing import Any

from permix.config import CHANGEABLE_FIELDS, RUNTIME_ONLY_FIELDS, SUPERVISED_METHODS, ModelConfig, TrainConfig
from permix.errors import ConfigError, DataError, require_packages
from permix.inference.chat_template import encode_chat
from permix.inference.cost import RequestGroup, duration_text, estimate_cost, runs_beside
from permix.inference.hardware import set_threads
from permix.inference.hf import check_model_folder, context_window, folder_fingerprint, load_tokenizer, resolve_model_source
from permix.plan import Plan, describe_plan, read_plan, write_plan
from permix.progress import add_result, print_status
from permix.prompts import template_text
from permix.sanitize import escape_control
from permix.storage.files import guard_writes, read_json
from permix.storage.run_dir import RunDir, RunReader, cpu_seconds, read_provenance, read_run_file
from permix.tasks import find_task, is_own_task
from permix.tasks.base import TrainedOn, read_trained_on, write_trained_on
from permix.trackers import check_trackers, open_trackers
from permix.training import distributed
from permix.training.backend import TRAINER_BACKENDS, TrainerBackend
from permix.training.compatibility import check_context_window, longest_prompt_tokens
from permix.training.curriculum import longest_drawable_rows
from permix.training.dev_eval import check_dev_eval_prompts, delete_dev_eval_weights, describe_dev_eval, dev_eval_steps
from permix.training.job import TrainJob, describe_reference_answers, prepare_training
from permix.training.model_card import write_model_card
from permix.training.run_log import describe_training, describe_truncation, read_training_log
from permix.training.sft_data import check_teacher, describe_sft_source, teacher_cells, teacher_config, teacher_identity
from permix.types import Message
from permix.verification.math_verifier import VERIFIER_VERSION

FORMER_IDENTITY_KEYS = (*(f"train.{name}" for name in CHANGEABLE_FIELDS), "teacher.base_url")
"""Settings that earlier versions of permix counted as identity."""


def require_training_packages(user: str, lora_rank: int = 0) -> None:
    """Raise ConfigError, with the command that installs them, if packages that training needs are missing."""
    adapters = ("peft",) if lora_rank else ()
    require_packages(("torch", "transformers", "accelerate", "trl", *adapters), user)


def run_training(config: TrainConfig) -> Path:
    """Run or resume the training, together with the other processes of the launch. Returns the trained model's folder."""
    check_trackers(config.train.report_to, "train.report_to")
    require_training_packages("training", config.train.lora_rank)
    with distributed.process_group():
        set_threads(config.threads)
        backend, job = TRAINER_BACKENDS[config.backend], prepare_training(config)
        config = job.config
        backend.check(job)
        target = config.out / "model"
        if not (target / "config.json").exists():
            backend.check_launch(job)
        with distributed.main_process_first():
            source = resolve_model_source(config.model.name)
        if config.method == "seqkd":
            check_teacher(config)
        _check_saved_dtype(config, target)
        with _open_run_dir(job, source) as run:
            if not distributed.broadcast((target / "config.json").exists()):
                if run is not None:
                    _forget_usage_of_repeated_steps(config.out)
                with _track_usage(run):
                    _train_and_save(backend, job, source, run, target)
                if run is not None:
                    _print_summary(config)
            if run is not None:
                delete_dev_eval_weights(config.out)
                if not config.train.keep_checkpoints:
                    shutil.rmtree(config.out / "checkpoints", ignore_errors=True)
        return target


def preflight_training(config: TrainConfig) -> dict[str, str]:
    """Facts about a training, without loading its model. Raises ConfigError or DataError if the configuration cannot be used."""
    template_text(config.personas.template)
    check_trackers(config.train.report_to, "train.report_to")
    check_model_folder(config.model.name)
    job = prepare_training(config)
    TRAINER_BACKENDS[config.backend].check(job)
    dev_eval = {} if job.dev_eval is None else {"dev_eval": describe_dev_eval(job.dev_eval)}
    config = job.config
    sources = describe_sft_source(config, job.plan) | describe_reference_answers(job.reference_cells, config.character)
    plan = describe_plan(job.plan)
    del plan["completion tokens"]  # the estimate has them, as new tokens
    return {"method": config.method} | plan | sources | dev_eval | estimate_training(job)


def estimate_training(job: TrainJob) -> dict[str, str]:
    """The cost of the tokens that the model generates in training, and the time of the steps.

    Nothing is subtracted for steps that are already done. A supervised method on given answers generates nothing.
    """
    config = job.config
    model = ModelConfig(name=config.model.name, thinking=config.model.thinking)
    groups = training_requests(job)
    facts = estimate_cost(groups, model, None) if groups else {}
    n_steps = most_optimizer_steps(job)
    facts["time"] = "unknown: no earlier training of this model with this method was timed"
    found = _step_seconds(config)
    add_result(estimates={"training": {"steps": n_steps, "seconds": None if found is None else found[1] * n_steps}})
    if found is not None:
        run, seconds = found
        facts["time"] = f"about {duration_text(seconds * n_steps)} ({seconds:.1f} s a step in {escape_control(str(run))})"
    if config.method != "seqkd":
        return facts
    teacher = teacher_config(config)
    asked = [RequestGroup([cell.messages for _, cells in teacher_cells(job.plan) for cell in cells], config.train.max_new_tokens)]
    return facts | estimate_cost(asked, teacher, None, price_option="teacher.prices", prefix="teacher: ")


def most_optimizer_steps(job: TrainJob) -> int:
    """The optimizer steps of a training; a supervised one has fewer where a step of the plan has no example."""
    settings = job.config.train
    return job.plan.steps * (settings.epochs if job.config.method in SUPERVISED_METHODS else settings.updates_per_rollout)


def training_requests(job: TrainJob) -> list[RequestGroup]:
    """What the model in training generates: rollouts, reference answers, the fresh answers of on-policy replay, and the answers
    of the dev evaluations."""
    config, groups = job.config, []
    if config.method not in SUPERVISED_METHODS:
        rollouts = [row.messages for row in job.plan.rows for _ in range(row.rollouts)]
        groups.append(RequestGroup(rollouts, config.train.max_new_tokens))
    if job.reference_cells:
        groups.append(RequestGroup([cell.messages for cell in job.reference_cells], config.character.max_new_tokens))
        if config.character.replay and config.character.replay_policy == "on":
            prompts = [cell.messages for cell in job.reference_cells]
            replayed = (prompts * ceil(config.character.replay_answers / len(prompts)))[: config.character.replay_answers]
            groups.append(RequestGroup(replayed, config.character.max_new_tokens, times=most_optimizer_steps(job)))
    if job.dev_eval is not None:
        times = len(dev_eval_steps(job.dev_eval.config, most_optimizer_steps(job)))
        by_limit: dict[int, list[Sequence[Message]]] = {}
        for cell, sampling in job.dev_eval.cells():
            by_limit.setdefault(sampling.max_new_tokens, []).append(cell.messages)
        groups += [RequestGroup(prompts, limit, times=times) for limit, prompts in by_limit.items()]
    return groups


def _step_seconds(config: TrainConfig) -> tuple[Path, float] | None:
    """The first run next to `config.out`, itself included, that trained this model with this method, with its mean wall seconds
    of a step; None without one. A damaged run is passed over."""
    for folder in runs_beside(config.out):
        with contextlib.suppress(DataError):
            recorded = read_run_file(folder / "config.json")
            asked = (recorded.get("stage"), recorded.get("method"), recorded.get("model", {}).get("name"))
            if asked != ("train", config.method, config.model.name):
                continue
            seconds = [sum(step["seconds"].values()) for step in RunReader(folder).log if isinstance(step.get("seconds"), dict)]
            if seconds:
                return folder, sum(seconds) / len(seconds)
    return None


def _print_summary(config: TrainConfig) -> None:
    """Print what happened in the training, and a warning where many rollouts were cut off."""
    log = read_training_log(config.out / "log.jsonl")
    if (summary := describe_training(log)) is not None:
        print_status(f"trained {config.label or config.out.name}: {summary}")
    if truncation := describe_truncation(log, config.train.max_new_tokens):
        print_status(f"warning: {truncation}")


def _check_saved_dtype(config: TrainConfig, target: Path) -> None:
    """Raise ConfigError if the training has ended and its model was saved in another format than is asked for now."""
    if (target / "config.json").exists():
        saved = read_json(target / "config.json").get("dtype", config.train.save_dtype)
        if saved != config.train.save_dtype:
            raise ConfigError(
                f"train.save_dtype = {config.train.save_dtype!r}: {target} is there already, in {saved}; leave save_dtype out, "
                "or give another --out"
            )


@contextlib.contextmanager
def _open_run_dir(job: TrainJob, source: str) -> Iterator[RunDir | None]:
    """The run directory in the main process. The other processes wait until it is open, and get None."""
    if not distributed.is_main():
        distributed.barrier()
        yield None
        return
    identity = training_identity(job, source_identity(source))
    if (job.config.out / "model" / "config.json").exists() and (job.config.out / "provenance.json").exists():
        # Nothing is scored any more, so a training that has ended may be of any version.
        recorded = read_provenance(job.config.out).get("identity", {})
        identity = {name: recorded.get(name) if name == "verifier" else value for name, value in identity.items()}
        identity = {name: value for name, value in identity.items() if name != "verifier" or name in recorded}
    with RunDir.open(job.config.out, job.config, identity, former_identity_keys=FORMER_IDENTITY_KEYS) as run:
        distributed.barrier()
        yield run


def _forget_usage_of_repeated_steps(out: Path) -> None:
    """Delete usage.json if a training is repeated from its first step: it has the cost of the steps that log.jsonl shows."""
    if (out / "log.jsonl").exists() and not any((out / "checkpoints").glob("checkpoint-*")):
        (out / "usage.json").unlink(missing_ok=True)


@contextlib.contextmanager
def _track_usage(run: RunDir | None) -> Iterator[None]:
    """Add the CPU seconds of all processes to usage.json; after an error, only those of the main process."""
    if run is not None:
        with run.track_usage(distributed.all_reduce_sum, counts_answers=False):
            yield
        return
    before = cpu_seconds()
    yield
    distributed.all_reduce_sum(cpu_seconds() - before)


def source_identity(source: str) -> str:
    """What tells the model to train apart from others: the fingerprint of its folder, or its hub id."""
    return folder_fingerprint(Path(source)) if Path(source).is_dir() else source


def training_identity(job: TrainJob, model: str) -> dict[str, Any]:
    """The identity of the run, without settings that change only where rollouts are generated or what is written.

    `model`: the `source_identity` of the model to train. The identity has the version of the verifier, which gives the rewards
    and chooses the examples.
    """
    config = job.config
    return {
        "method": config.method,
        "backend": config.backend,
        "plan": job.plan.hash,
        "verifier": VERIFIER_VERSION,
        **_own_task_sources(job.plan),
        "model": model,
        **({} if config.model.thinking == "default" else {"thinking": config.model.thinking}),
        "train": config.train.model_dump(mode="json", exclude={*RUNTIME_ONLY_FIELDS, *CHANGEABLE_FIELDS}),
        "character": config.character.model_dump(mode="json"),
        **({"teacher": teacher_identity(config)} if config.method == "seqkd" else {}),
        **({"dev_eval": config.dev_eval.model_dump(mode="json")} if config.dev_eval.every else {}),
    }


def _own_task_sources(plan: Plan) -> dict[str, Any]:
    """The part of the identity that tells versions of the user's own tasks apart; empty without such a task."""
    own = {name: find_task(name).source for name in sorted({row.task for row in plan.rows}) if is_own_task(name)}
    return {"task_source": own} if own else {}


def _train_and_save(backend: TrainerBackend, job: TrainJob, source: str, run: RunDir | None, target: Path) -> None:
    """Train and save the model. It is written to a scratch folder and then moved, so that a folder named `model` is whole."""
    tokenizer = load_tokenizer(source, job.config.model.thinking)
    _check_prompt_lengths(job, source, tokenizer)
    trained_on, out, scratch = build_trained_on(job, source), job.config.out, target.with_name(".model.part")
    plan_file, is_drawn_later = out / "plan.parquet", job.curriculum_builder is not None
    if run is not None:
        if not (is_drawn_later and plan_file.exists()):  # the file of an earlier start may hold blocks of a curriculum
            write_plan(job.plan, plan_file)
        write_trained_on(out / "checkpoints", trained_on)
        shutil.rmtree(scratch, ignore_errors=True)
    # Open until the model is saved: a tracker may take long to close, or never return.
    with open_trackers(job.config.train.report_to if run is not None else (), out, job.label) as trackers:
        backend.train(job._replace(trackers=trackers), source, tokenizer, run, scratch)
        if run is not None:
            with guard_writes(scratch):
                write_trained_on(scratch, trained_on)
                write_model_card(
                    scratch, job.config, read_plan(plan_file) if is_drawn_later else job.plan, out / "log.jsonl", source
                )
                scratch.rename(target)


def _check_prompt_lengths(job: TrainJob, source: str, tokenizer: Any) -> None:
    """Raise ConfigError for a prompt over the limit, or one whose completion does not fit into the model's context window."""
    config, plan = job.config.train, job.plan
    if job.curriculum_builder is not None:
        drawable = longest_drawable_rows(job.curriculum_builder, plan, lambda row: len(encode_chat(tokenizer, row.messages)))
        plan = plan._replace(rows=plan.rows + drawable)
    check_context_window(longest_prompt_tokens(plan, tokenizer, config.max_prompt_tokens), config, source)
    if job.dev_eval is not None:
        check_dev_eval_prompts(job.dev_eval, tokenizer, context_window(source))


def build_trained_on(job: TrainJob, source: str) -> TrainedOn:
    """The questions and personas that the trained model has seen: those of the plan, every persona that training may draw, and
    all that the model `source` was trained on."""
    hashes = frozenset(row.question_hash for row in job.plan.rows)
    return TrainedOn(hashes, job.trainable_personas) | read_trained_on(Path(source))

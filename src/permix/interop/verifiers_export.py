"""`permix export --format verifiers`: a plan as a package for verifiers, and the configuration with which prime-rl trains on it.

    OUT/rl.toml              training: `uv run rl @ rl.toml` of prime-rl
    OUT/eval.toml            evaluation of any model on the plan's questions: `vf-eval @ eval.toml`; it uploads nothing
    OUT/README.md            how to install and run, and what differs from permix's own training
    OUT/pyproject.toml       the package; its name is the id of the environment
    OUT/MODULE/__init__.py   the taskset and the harness (`permix.interop.verifiers_taskset`)
    OUT/MODULE/plan.parquet  the plan, as `permix plan` writes it
    OUT/MODULE/dev.parquet   the questions of the dev evaluation, with `dev_eval.every`

prime-rl asks the plan's rows in order, but a batch of it is whatever was answered first: the steps of the plan are not its steps.
Each setting is written, or refused with its reason (`PRIME_RL_SETTINGS`).
"""

import re
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from permix.config import ModelConfig
from permix.errors import ConfigError
from permix.inference.chat_template import opened_thinking
from permix.interop.engine_export import EngineFiles, PlanExport, SettingRule, TrainingEngine, dropped, harmless, mapped, refused
from permix.plan import Plan, write_plan
from permix.tasks import TASKS, is_own_task

MAX_TEMPERATURE = 2.0
"""prime-rl's own bound."""

TARGET_MODULES = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
"""The linear layers of a dense decoder, by the names that prime-rl knows."""

_IN_THE_ROWS = "is in the plan's rows"
_DRAWN_AS_GIVEN = harmless(_IN_THE_ROWS)
_SAMPLED_BY_VLLM = harmless("prime-rl always samples with vLLM, on GPUs of its own")
_ONLY_CHARACTER = harmless("only matters to character replay and expressivity, which are refused")
_NOT_MEASURED = harmless("the note on identifiability covers it")

PRIME_RL_SETTINGS: Mapping[str, SettingRule] = {
    "model.name": mapped("model.name"),
    "model.thinking": mapped("orchestrator.renderer.enable_thinking; sampling.extra_body.chat_template_kwargs of evaluations"),
    "model.thinking_budget": harmless("has no effect in training"),
    "plan.mix": _DRAWN_AS_GIVEN,
    "plan.tag_weights": _DRAWN_AS_GIVEN,
    "plan.templates": _DRAWN_AS_GIVEN,
    "plan.contexts": _DRAWN_AS_GIVEN,
    "plan.context_turns": _DRAWN_AS_GIVEN,
    "plan.scope": refused(
        lambda value: value == "rollout",
        "a task of verifiers is one prompt for all rollouts of a group; give a plan made with --plan.scope group",
    ),
    "plan.steps": mapped("max_steps"),
    "plan.questions_per_step": mapped("orchestrator.batch_size"),
    "plan.group_size": mapped("orchestrator.group_size"),
    "plan.dynamic_sampling_groups": refused(
        lambda value: value > 0,
        "prime-rl has no spare groups; give a plan made with 0. Its own counterpart draws later rows instead: add "
        '[orchestrator.train.source.curriculum.gates.equal_rewards] with type = "advantage_range" to rl.toml',
    ),
    "plan.curriculum_strength": refused(
        lambda value: value > 0, "an adaptive plan is drawn while it trains, and prime-rl reads finished rows; give 0"
    ),
    "plan.curriculum_update_every": harmless("only matters with curriculum_strength"),
    "plan.curriculum_floor": harmless("only matters with curriculum_strength"),
    "plan.seed": _DRAWN_AS_GIVEN,
    "train.lr": mapped("trainer.optim.lr"),
    "train.lr_schedule": mapped("trainer.scheduler.type"),
    "train.warmup_steps": mapped("trainer.scheduler.warmup_steps"),
    "train.weight_decay": mapped("trainer.optim.weight_decay"),
    "train.max_grad_norm": mapped("trainer.optim.max_norm"),
    "train.beta": refused(
        lambda value: value > 0, "prime-rl's losses of rewards have no reference model; give 0, or train with `permix train`"
    ),
    "train.kl_reference_prompt": harmless("only matters with beta, which is refused"),
    "train.loss": mapped(
        "trainer.loss",
        refuses=lambda value: value not in ("dapo", "bnpo"),
        reason='prime-rl divides the loss by the number of tokens of the batch; give "dapo"',
    ),
    "train.scale_rewards": mapped(
        "orchestrator.algo.type",
        refuses=lambda value: value != "none",
        reason='GRPO of prime-rl subtracts the group\'s mean reward and divides by no standard deviation; give "none"',
    ),
    "train.clip_low": harmless("with one optimizer step on each batch the ratio that is clipped is 1"),
    "train.clip_high": harmless("with one optimizer step on each batch the ratio that is clipped is 1"),
    "train.updates_per_rollout": refused(lambda value: value > 1, "prime-rl takes one optimizer step on each batch; give 1"),
    "train.epochs": harmless("has no effect with the methods permix and rlvr"),
    "train.temperature": mapped(
        "orchestrator.train.sampling.temperature",
        refuses=lambda value: value > MAX_TEMPERATURE,
        reason=f"prime-rl takes at most {MAX_TEMPERATURE:g}",
    ),
    "train.top_p": refused(lambda value: value < 1, "prime-rl samples rollouts from all tokens; give 1"),
    "train.max_new_tokens": mapped("orchestrator.train.sampling.max_completion_tokens"),
    "train.max_prompt_tokens": mapped("seq_len"),
    "train.microbatch_tokens": harmless("prime-rl packs rollouts to seq_len tokens; it bounds the memory alone"),
    "train.importance_ratio_cap": mapped("trainer.loss.kwargs.importance_ratio_cap"),
    "train.lora_rank": mapped("trainer.model.lora.rank"),
    "train.lora_alpha": mapped("trainer.model.lora.alpha"),
    "train.precision": refused(
        lambda value: value == "float32", 'prime-rl computes in bfloat16 on weights of float32; give "auto" or "bfloat16"'
    ),
    "train.gradient_checkpointing": harmless("prime-rl recomputes activations by default; it saves memory alone"),
    "train.save_every": mapped("ckpt.interval"),
    "train.keep_checkpoints": harmless("prime-rl keeps its last checkpoint"),
    "train.save_dtype": dropped("prime-rl writes weights in bfloat16"),
    "train.samples_every": harmless("prime-rl writes every rollout to its traces"),
    "train.seed": dropped("prime-rl has no seed for training"),
    "train.report_to": mapped(
        "monitors.wandb",
        refuses=lambda value: not set(value) <= {"wandb"},
        reason="of these trackers prime-rl has wandb alone; it also writes metrics.jsonl",
    ),
    "train.use_vllm": _SAMPLED_BY_VLLM,
    "train.vllm_mode": _SAMPLED_BY_VLLM,
    "train.vllm_server_base_url": _SAMPLED_BY_VLLM,
    "train.vllm_server_host": _SAMPLED_BY_VLLM,
    "train.vllm_server_port": _SAMPLED_BY_VLLM,
    "train.vllm_gpu_memory_utilization": _SAMPLED_BY_VLLM,
    "train.vllm_tensor_parallel_size": mapped("inference.vllm.tensor_parallel_size"),
    "character.replay": refused(
        lambda value: value > 0,
        "prime-rl can distil from the base model in a source of its own, but with the fixed weight 1, with the base model's "
        "probabilities at temperature 1, and with no fixed number of answers a step; give 0, or train with `permix train`",
    ),
    "character.replay_policy": _ONLY_CHARACTER,
    "character.replay_answers": _ONLY_CHARACTER,
    "character.expressivity": refused(
        lambda value: value > 0,
        "the bonus needs a classifier of the base model's answers, which prime-rl does not make; give 0",
    ),
    "character.personas": _ONLY_CHARACTER,
    "character.questions": _ONLY_CHARACTER,
    "character.temperature": _ONLY_CHARACTER,
    "character.max_new_tokens": _ONLY_CHARACTER,
    "dev_eval.every": mapped("orchestrator.eval.interval"),
    "dev_eval.personas": harmless("is in the rows of dev.parquet"),
    "dev_eval.questions": harmless("is in the rows of dev.parquet"),
    "dev_eval.characters": _NOT_MEASURED,
    "dev_eval.roleplay_questions": _NOT_MEASURED,
    "dev_eval.max_new_tokens": mapped("orchestrator.eval.sampling.max_completion_tokens"),
    "dev_eval.roleplay_max_new_tokens": _NOT_MEASURED,
    "dev_eval.metric": harmless("only matters with select and patience, which are refused"),
    "dev_eval.select": refused(lambda value: value == "best", 'prime-rl ends with the last weights; give "last"'),
    "dev_eval.patience": refused(lambda value: value is not None, "prime-rl trains all steps; leave it out"),
}
"""What becomes of each setting of a training in prime-rl."""

NO_COUNTERPART = (
    "a batch holds the groups that were answered first, and may hold rollouts of weights that are one step old: the steps of the "
    "plan are not prime-rl's steps",
    "rows whose rollouts are too old are dropped and not asked again, and after the last row the first ones are asked again",
    "the plan's seeds are not sent: two trainings sample different rollouts",
)

NO_IDENTIFIABILITY = "the dev evaluation has the task questions alone: identifiability is not measured"

WRITTEN_AGAINST = {"verifiers": "0.4.0", "prime-rl": "559b44772e47 (2026-08-21)"}
"""The releases that the files were checked against. prime-rl is in no package index."""


def build_verifiers_files(export: PlanExport) -> EngineFiles:
    """The files of the module docstring. Raises ConfigError for machines or tasks that prime-rl cannot train with."""
    env_id = environment_id(export)
    module = env_id.replace("-", "_")
    has_dev = bool(export.dev_rows)
    files = {
        "rl.toml": toml_text(_RL_HEADER, rl_sections(export, env_id)),
        "eval.toml": toml_text(_EVAL_HEADER, eval_sections(export, env_id)),
        "README.md": readme_text(export, env_id),
        "pyproject.toml": _PYPROJECT.format(name=env_id, module=module, plan=export.plan.hash),
        f"{module}/__init__.py": _INIT.format(dev=_INIT_DEV if has_dev else ""),
    }
    plans = {"plan.parquet": export.plan, **({"dev.parquet": _dev_plan(export)} if has_dev else {})}
    return EngineFiles(
        files={name: text.encode() for name, text in files.items()}
        | {f"{module}/{name}": plan_bytes(plan) for name, plan in plans.items()},
        versions=WRITTEN_AGAINST,
        no_counterpart=no_counterpart(export),
    )


def no_counterpart(export: PlanExport) -> tuple[str, ...]:
    """What prime-rl does in another way, one sentence each."""
    return (*NO_COUNTERPART, *((NO_IDENTIFIABILITY,) if export.dev_rows and export.config.dev_eval.characters else ()))


def environment_id(export: PlanExport) -> str:
    """`permix-TASK-HASH`: small Latin letters, digits and hyphens, as pip, Python and verifiers all accept it."""
    task = re.sub(r"[^a-z0-9]+", "-", export.plan.rows[0].task.lower()).strip("-")[:40].strip("-")
    return "-".join(filter(None, ("permix", task, export.plan.hash[:8])))


def plan_bytes(plan: Plan) -> bytes:
    """The content of the plan's file."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "plan.parquet"
        write_plan(plan, path)
        return path.read_bytes()


def _dev_plan(export: PlanExport) -> Plan:
    """The questions of the dev evaluation as a plan of one step; the tests of programs are read from the split that it names."""
    task = {**export.plan.metadata.get("task", {}), "split": "dev", "n": export.config.dev_eval.questions}
    return Plan(export.dev_rows, {"task": task})


Section = tuple[str, Mapping[str, Any]]
"""A table of a TOML file: its header ("" for the top, "[name]" for one more table of an array), and its values."""


def rl_sections(export: PlanExport, env_id: str) -> Iterator[Section]:
    """The tables of rl.toml."""
    train, plan = export.config.train, export.plan
    seq_len = train.max_prompt_tokens + train.max_new_tokens
    batch_size = plan.groups_per_step * plan.group_size
    yield "", {"max_steps": plan.steps, "seq_len": seq_len}
    yield "model", {"name": export.model}
    yield from _machine_sections(export)
    # The final weights as safetensors; nccl, the default, leaves only the trainer's own checkpoints.
    yield "weight_broadcast", {"type": "filesystem"}
    yield "ckpt", {"interval": train.save_every, "keep_last": 1}
    if "wandb" in train.report_to:
        yield "monitors.wandb", {"project": "permix"}
    yield "trainer.optim", {
        "type": "adamw", "lr": train.lr, "weight_decay": train.weight_decay, "max_norm": train.max_grad_norm,
        "betas1": 0.9, "betas2": 0.999,
    }  # fmt: skip
    yield "trainer.scheduler", scheduler_values(train.lr_schedule, train.warmup_steps, plan.steps)
    yield "trainer.loss", {"type": "custom", "import_path": "permix.interop.prime_rl_loss.importance_weighted_loss"}
    if train.importance_ratio_cap is not None:
        yield "trainer.loss.kwargs", {"importance_ratio_cap": train.importance_ratio_cap}
    if train.lora_rank:
        yield "trainer.model.lora", {
            "rank": train.lora_rank, "alpha": train.lora_alpha, "dropout": 0.0, "target_modules": TARGET_MODULES
        }  # fmt: skip
    yield "orchestrator", {"batch_size": batch_size, "group_size": plan.group_size, "max_off_policy_steps": 1}
    yield "orchestrator.concurrency", {"max_inflight": batch_size}
    yield "orchestrator.algo", {"type": "grpo"}
    thinking = export.config.model.thinking
    yield "orchestrator.renderer", {
        "name": "default", **({} if thinking == "default" else {"enable_thinking": thinking == "on"})
    }  # fmt: skip
    # Rollouts without advantage count in the number of tokens that the loss is divided by, as they do in permix.
    yield "orchestrator.train", {"filter_zero_advantages": False}
    yield "orchestrator.train.sampling", {"temperature": train.temperature, "max_completion_tokens": train.max_new_tokens}
    yield from _source_sections("orchestrator.train.source", "permix", export, env_id)
    if export.dev_rows:
        dev = export.config.dev_eval
        yield "orchestrator.eval", {"interval": dev.every}
        yield "orchestrator.eval.sampling", {
            "temperature": 0.0, "max_completion_tokens": dev.max_new_tokens or train.max_new_tokens
        }  # fmt: skip
        yield from _thinking_sections("orchestrator.eval.sampling", export)
        yield from _source_sections("orchestrator.eval.source", "permix-dev", export, env_id, dev=True)
    yield "inference.vllm", {"max_model_len": seq_len, "tensor_parallel_size": train.vllm_tensor_parallel_size}


def _machine_sections(export: PlanExport) -> Iterator[Section]:
    """Half of the GPUs, or of the machines, train and the others sample."""
    nodes, gpus = export.nnodes, export.gpus_per_node
    parallel = export.config.train.vllm_tensor_parallel_size
    if nodes == 1:
        n_train, n_sample = gpus // 2, gpus - gpus // 2
        if n_train == 0:
            raise ConfigError("n_gpus_per_node = 1: prime-rl trains and samples on different GPUs; give 2 or more")
        if n_sample % parallel:
            raise ConfigError(
                f"train.vllm_tensor_parallel_size = {parallel}: must divide the {n_sample} GPUs that sample "
                f"(n_gpus_per_node = {gpus}, of which {n_train} train)"
            )
        yield "deployment", {"type": "single_node", "gpus_per_node": gpus, "num_train_gpus": n_train, "num_infer_gpus": n_sample}
        return
    if gpus % parallel:
        raise ConfigError(f"train.vllm_tensor_parallel_size = {parallel}: must divide n_gpus_per_node = {gpus}")
    n_train, n_sample = nodes // 2, nodes - nodes // 2
    yield "deployment", {
        "type": "multi_node", "gpus_per_node": gpus, "num_train_nodes": n_train, "num_infer_nodes": n_sample
    }  # fmt: skip
    yield "slurm", {"job_name": "permix"}
    yield "inference.deployment", {"type": "multi_node", "gpus_per_node": gpus, "num_nodes": n_sample}


def scheduler_values(schedule: str, warmup_steps: int, steps: int) -> dict[str, Any]:
    """prime-rl's schedule of the learning rate. Raises ConfigError if the warm-up leaves no step for the decay."""
    if schedule == "constant":
        return {"type": "linear", "warmup_steps": warmup_steps, "decay_steps": 0} if warmup_steps else {"type": "constant"}
    if warmup_steps >= steps:
        raise ConfigError(
            f'train.warmup_steps = {warmup_steps}: with lr_schedule = "{schedule}" prime-rl needs fewer than plan.steps = {steps}'
        )
    decay = {"decay_steps": steps - warmup_steps} if schedule == "linear" else {}
    return {"type": schedule, "warmup_steps": warmup_steps, **decay, "min_lr": 0.0}


def _source_sections(header: str, name: str, export: PlanExport, env_id: str, dev: bool = False) -> Iterator[Section]:
    yield f"[{header}]", {"name": name}
    yield from _environment_sections(f"{header}.env", export, env_id, dev)


def _environment_sections(header: str, export: PlanExport, env_id: str, dev: bool = False) -> Iterator[Section]:
    own_task = next((task for task in export.tasks if is_own_task(task)), None)
    yield f"{header}.taskset", {
        "id": env_id, **({"dev": True} if dev else {}), **({"own_task": own_task} if own_task is not None else {}),
        **({"opens_thinking": True} if opens_thinking(export) else {}),
    }  # fmt: skip
    yield f"{header}.agent.harness", {"id": env_id}
    yield f"{header}.agent.runtime", {"type": "subprocess"}


def _thinking_sections(header: str, export: PlanExport) -> Iterator[Section]:
    """The switch of thinking for an evaluation: that goes through the chat completions of an endpoint, also in prime-rl, where
    the renderer serves the training alone."""
    for name, values in ModelConfig(thinking=export.config.model.thinking).extra_fields.items():
        yield f"{header}.extra_body.{name}", values


def opens_thinking(export: PlanExport) -> bool:
    """Whether the chat template opens the thinking in the prompt; where it is not known here, whether it may do so."""
    return export.config.model.thinking == "on" if export.tokenizer is None else bool(opened_thinking(export.tokenizer))


def eval_sections(export: PlanExport, env_id: str) -> Iterator[Section]:
    """The tables of eval.toml."""
    train = export.config.train
    yield "", {"model": export.model, "num_rollouts": export.plan.group_size, "push": False}
    yield "client", {"base_url": "http://127.0.0.1:8000/v1", "api_key_var": "OPENAI_API_KEY"}
    yield "sampling", {"temperature": train.temperature, "top_p": train.top_p, "max_tokens": train.max_new_tokens}
    yield from _thinking_sections("sampling", export)
    yield from _environment_sections("env", export, env_id)


def toml_text(header: str, sections: Iterator[Section]) -> str:
    """A TOML file: `header` as comments, then the tables."""
    lines = [f"# {line}".rstrip() for line in header.strip().splitlines()]
    for name, values in sections:
        lines += ["", f"[{name}]"] if name else [""]
        lines += [f"{key} = {toml_value(value)}" for key, value in values.items()]
    return "\n".join(lines) + "\n"


def toml_value(value: bool | int | float | str | Sequence[str]) -> str:
    """A value in TOML's notation. Raises ConfigError for a text that no file can hold (half of a surrogate pair)."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, int | float):
        return repr(value)
    if not isinstance(value, str):
        return f"[{', '.join(map(toml_value, value))}]"
    try:
        value.encode()
    except UnicodeEncodeError as error:
        raise ConfigError(f"{value!r}: cannot be written as UTF-8") from error
    return '"' + re.sub(r'[\x00-\x1f\x7f"\\]', lambda match: f"\\u{ord(match[0]):04x}", value) + '"'


_RL_HEADER = """
Training with prime-rl on a plan of permix: uv run rl @ rl.toml
Install this folder and permix in prime-rl's environment first (README.md). permix.json says what has no counterpart here.
"""

_EVAL_HEADER = """
Evaluation with verifiers on the plan's questions: vf-eval @ eval.toml
Give the endpoint with --client.base-url and the model with --model. push = false: nothing is uploaded.
"""

_PYPROJECT = """\
[project]
name = "{name}"
version = "0.1.0"
description = "Questions under personas with a verified reward: the permix training plan {plan}."
readme = "README.md"
requires-python = ">=3.11"
dependencies = ["permix[verifiers]"]

[build-system]
requires = ["hatchling"]
build-backend = "hatchling.build"

[tool.hatch.build]
artifacts = ["*.parquet"]

[tool.hatch.build.targets.wheel]
packages = ["{module}"]
"""

_INIT = '''\
"""A permix training plan as a verifiers environment: one task a row of plan.parquet."""

from pathlib import Path

from permix.interop.verifiers_taskset import InProcessHarness, PlanTaskset


class Plan(PlanTaskset):
    plan_file = Path(__file__).with_name("plan.parquet")
{dev}

__all__ = ["InProcessHarness", "Plan"]
'''

_INIT_DEV = '    dev_file = Path(__file__).with_name("dev.parquet")\n'


def readme_text(export: PlanExport, env_id: str) -> str:
    """README.md of the package."""
    plan = export.plan
    has_programs = any(name in TASKS and TASKS[name].check_environment is not None for name in export.tasks)
    own_task = next((task for task in export.tasks if is_own_task(task)), None)
    adapter = " of a LoRA adapter" if export.config.train.lora_rank else ""
    differences = "\n".join(f"- {one[0].upper()}{one[1:]}." for one in no_counterpart(export))
    return f"""# {env_id}

{plan.steps} steps of {plan.groups_per_step} questions, {plan.group_size} rollouts each, under the personas of a training plan of
permix ({plan.hash}). The reward is permix's verifier: 1 for a right answer, 0 for a wrong or missing one. An answer that cannot
be verified is an error and has no reward. The metrics `right/TAG` are the accuracy by kind of persona: `right/untagged`
for personas without tags, `right/none` without a persona.

## Install

Into the environment that has prime-rl or verifiers. permix is in no package index: install it from its folder or repository.

```sh
pip install 'PERMIX_FOLDER[verifiers]'
pip install --no-deps .
```
{_README_PROGRAMS if has_programs else ""}{_README_OWN_TASK.format(task=own_task) if own_task else ""}
## Run

```sh
vf-eval @ eval.toml --client.base-url http://127.0.0.1:8000/v1   # any model; nothing is uploaded
uv run rl @ rl.toml                                              # training, in a checkout of prime-rl
```

The weights of step N are then in `outputs/RUN/broadcasts/step_N`, as safetensors{adapter}. Copy the base model's configuration
and tokenizer beside them to evaluate the folder with `permix stability`.

## What differs from permix's own training

{differences}

The plan holds the right answers: whoever pushes this package to a hub publishes them.
"""


_README_PROGRAMS = """
The answers are programs: these machines need bubblewrap, and the data set that the plan names.
"""

_README_OWN_TASK = """
The task is your own: the module of `{task}` must be importable there.
"""

VERIFIERS = TrainingEngine("prime-rl", PRIME_RL_SETTINGS, build_verifiers_files)
"""The engine of `permix export --format verifiers`."""

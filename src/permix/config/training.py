"""Sections for training: `[plan]`, `[train]`, `[character]` and `[dev_eval]`, and which settings each method ignores."""

import math
from collections.abc import Collection
from pathlib import Path
from typing import Literal

from pydantic import Field, ValidationInfo, model_validator

from permix.config.base import ConfigSection
from permix.config.data import TrackerNames
from permix.sanitize import redact_secrets
from permix.types import PersonaScope, n_context_turns

LossName = Literal["grpo", "dr_grpo", "dapo", "bnpo"]
"""The keys of `permix.training.loss.LOSSES`, which the configuration cannot import: it loads torch."""

TrainerBackendName = Literal["trl"]
"""The keys of `permix.training.backend.TRAINER_BACKENDS`."""

TrainMethod = Literal["permix", "rlvr", "sft", "sft-personas", "seqkd"]

SUPERVISED_METHODS: tuple[TrainMethod, ...] = ("sft", "sft-personas", "seqkd")
"""Methods that learn from given completions; the other methods learn from their own rollouts, by reward."""

DEFAULT_MIX: dict[TrainMethod, float] = {"permix": 0.8, "rlvr": 0.0, "sft": 0.0, "sft-personas": 0.8, "seqkd": 0.8}
"""Default of `plan.mix` for each method."""

NO_PERSONA_METHODS: tuple[TrainMethod, ...] = ("rlvr", "sft")
"""Methods that train without personas."""


def check_contexts(contexts: Collection[str], context_turns: Path | None, *, is_draft: bool) -> None:
    """Raise ValueError for an unknown or repeated context, and if the contexts and the run of recorded turns do not fit together.

    `is_draft`: flags may still add one of the two.
    """
    for context in contexts:
        try:
            n_context_turns(context)
        except ValueError as error:
            raise ValueError(f"contexts = {context!r}: {error}") from error
    if repeated := next((one for one in contexts if list(contexts).count(one) > 1), None):
        raise ValueError(f"contexts: {repeated!r} occurs twice; give each context once")
    with_turns = next((one for one in contexts if n_context_turns(one)), None)
    if with_turns is not None and context_turns is None and not is_draft:
        raise ValueError(
            f"contexts = {with_turns!r}: needs context_turns, a fidelity run of the base model, whose answers are the turns; "
            "make one with permix fidelity, with the same personas"
        )
    if context_turns is not None and with_turns is None and not is_draft:
        raise ValueError(
            f"context_turns = {str(context_turns)!r}: no context of contexts has turns; add turns-4, or leave it out"
        )


class RolloutPlanConfig(ConfigSection):
    """The training plan: how many steps, groups and rollouts, and under which personas."""

    mix: float | None = Field(default=None, ge=0, le=1)
    """Probability that a question is asked under a persona; when not given, 0 for methods rlvr and sft, else 0.8."""
    tag_weights: dict[str, float] = Field(default={})
    """Factors by tag on the chance that a persona is drawn: "expert 2 harmful 0" doubles the weight of experts and leaves out
    harmful personas."""
    templates: dict[str, float] = Field(default={})
    """Persona templates, named as in --personas.template, and their weights: each row with a persona draws one of them, as in
    "you_are 2 adopt 1". When not given, all rows use personas.template."""
    contexts: dict[str, float] = Field(default={})
    """Contexts, named as in --contexts of permix stability, and their weights: each row with a persona draws one of them, as in
    "system 2 in-character 1 turns-4 1". When not given, all rows have the context system."""
    context_turns: Path | None = None
    """A fidelity run of the base model with the training personas (open questions or an interview) whose answers are the turns of
    the contexts turns-K."""
    scope: PersonaScope = "group"
    """"group": the rollouts of a group share one persona; "rollout": each rollout draws its own persona."""
    steps: int = Field(default=100, gt=0)
    """Number of steps that generate rollouts; each is followed by train.updates_per_rollout optimizer steps."""
    questions_per_step: int = Field(default=8, gt=0)
    """Questions (groups) in each step; with several processes it must be divisible by their number."""
    group_size: int = Field(default=8, ge=2)
    """Rollouts of each question (G)."""
    dynamic_sampling_groups: int = Field(default=0, ge=0)
    """Spare groups in each step (dynamic sampling): they replace groups whose rollouts all earn the same reward; 0 is off."""
    curriculum_strength: float = Field(default=0.0, ge=0)
    """How strongly training prefers personas under which accuracy is low: larger values draw them more often; 0 keeps the pool's
    weights."""
    curriculum_update_every: int = Field(default=5, gt=0)
    """Steps between two updates of the personas' weights (with curriculum_strength above 0)."""
    curriculum_floor: float = Field(default=0.25, gt=0, le=1)
    """Lower bound on a persona's chance of being drawn, as a share of its chance without curriculum (0 to 1)."""
    seed: int = Field(default=0, ge=0)
    """Seed of the plan. Plans that differ only in `mix` ask the same questions in the same order."""

    @model_validator(mode="after")
    def _check_templates_and_contexts(self, info: ValidationInfo) -> "RolloutPlanConfig":
        for field, weights in (("templates", self.templates), ("contexts", self.contexts)):
            for name, weight in weights.items():
                if not 0 <= weight < math.inf:
                    raise ValueError(f"{field} = {name!r}: weight {weight}: must be a finite number, 0 or above")
            if weights and not 0 < math.fsum(weights.values()) < math.inf:
                raise ValueError(f"{field}: the weights add up to {sum(weights.values())}; the sum must be finite and above 0")
        check_contexts(self.contexts, self.context_turns, is_draft=bool(info.context and info.context.get("draft")))
        return self


def resolve_mix(plan: RolloutPlanConfig, method: TrainMethod = "permix") -> float:
    """The probability that a question is asked under a persona: `plan.mix` if given, else the method's default."""
    return DEFAULT_MIX[method] if plan.mix is None else plan.mix


class OptimConfig(ConfigSection):
    """Optimization, sampling of rollouts, checkpoints and logs."""

    lr: float = Field(default=1e-5, gt=0)
    """Peak learning rate of AdamW."""
    lr_schedule: Literal["constant", "linear", "cosine"] = "constant"
    """How the learning rate changes after warm-up."""
    warmup_steps: int = Field(default=0, ge=0)
    """Optimizer steps of linear warm-up of the learning rate."""
    weight_decay: float = Field(default=0.0, ge=0)
    """Weight decay of AdamW."""
    max_grad_norm: float = Field(default=1.0, gt=0)
    """Gradients with a larger norm are scaled down to this norm."""
    beta: float = Field(default=0.0, ge=0)
    """Weight of the KL divergence from the reference model (the model that training starts from); 0 needs no reference."""
    kl_reference_prompt: Literal["same-persona", "no-persona"] = "same-persona"
    """The reference model's prompt (with beta above 0): the rollout's own, or the same question without persona."""
    loss: LossName = "dapo"
    """How the losses of tokens are averaged, named as in TRL."""
    scale_rewards: Literal["group", "batch", "none"] = "group"
    """Divide the advantages by the standard deviation of the rewards of their group or of the whole batch, or not at all."""
    clip_low: float = Field(default=0.2, gt=0)
    """Lower clip range of the ratio of new to old token probability: the ratio is clipped at 1 - clip_low."""
    clip_high: float | None = Field(default=None, gt=0)
    """Upper clip range: the ratio is clipped at 1 + clip_high; clip_low when not given."""
    updates_per_rollout: int = Field(default=1, gt=0)
    """Optimizer steps on the same rollouts."""
    epochs: int = Field(default=1, gt=0)
    """Passes over the training examples (methods sft, sft-personas, seqkd)."""
    temperature: float = Field(default=1.0, gt=0)
    """Sampling temperature of the rollouts, and of the teacher's samples."""
    top_p: float = Field(default=1.0, gt=0, le=1)
    """Nucleus sampling of the rollouts and of the teacher's samples; 1 samples from all tokens."""
    max_new_tokens: int = Field(default=256, gt=0)
    """Maximum length of a completion, in tokens; when not given, a number by task: docs/guide.md."""
    max_prompt_tokens: int = Field(default=1024, gt=0)
    """Maximum length of a prompt, in tokens; training does not start if a prompt of the plan is longer."""
    microbatch_tokens: int | None = Field(default=None, gt=0)
    """Maximum number of tokens in one forward and backward pass; it bounds the memory. A group's prompt counts once. When not
    given, 1024 on a CPU, and on a GPU by its memory, from 1024 to 32768: docs/scale.md."""
    importance_ratio_cap: float | None = Field(default=2.0, gt=1)
    """Upper bound of the importance weight, which corrects for probabilities that differ between the trainer and the engine that
    sampled the token (vLLM); None for no correction."""
    lora_rank: int = Field(default=0, ge=0)
    """Rank of the LoRA adapters, on every linear layer; 0 trains all weights."""
    lora_alpha: int = Field(default=32, gt=0)
    """LoRA alpha: the adapters' output is scaled by lora_alpha / lora_rank."""
    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    """Precision of the forward pass; the weights stay float32. auto takes bfloat16 on hardware that multiplies it natively."""
    gradient_checkpointing: bool = False
    """Save memory by computing activations a second time in the backward pass."""
    save_every: int = Field(default=10, gt=0)
    """Optimizer steps between checkpoints."""
    keep_checkpoints: bool = False
    """Keep the last checkpoint (weights and optimizer state) when training is finished."""
    save_dtype: Literal["float32", "bfloat16"] = "float32"
    """Number format of the weights in the result, the folder model/. bfloat16 halves its size; most engines convert to it anyway.
    float32 keeps exactly what was trained."""
    samples_every: int = Field(default=5, gt=0)
    """Steps of the plan between samples of completions in samples.md."""
    seed: int = Field(default=0, ge=0)
    """Seed for everything that plan.seed does not cover (LoRA's initial weights, dropout)."""
    report_to: TrackerNames = ()
    """Experiment trackers that receive the metrics, besides log.jsonl: tensorboard, wandb, trackio, mlflow."""
    use_vllm: bool = False
    """Generate rollouts with vLLM through TRL. They are then not reproducible bit for bit."""
    vllm_mode: Literal["colocate", "server"] = "colocate"
    """Run vLLM on the training GPUs (colocate), or use a vLLM server (its command: docs/scale.md)."""
    vllm_server_base_url: str | None = None
    """URL of the vLLM server, "http://HOST:PORT", in place of vllm_server_host and vllm_server_port."""
    vllm_server_host: str = "0.0.0.0"
    """Host of the vLLM server."""
    vllm_server_port: int = Field(default=8000, gt=0, lt=65536)
    """Port of the vLLM server."""
    vllm_gpu_memory_utilization: float = Field(default=0.3, gt=0, lt=1)
    """Share of each GPU's memory that vLLM may use (vllm_mode "colocate")."""
    vllm_tensor_parallel_size: int = Field(default=1, gt=0)
    """Number of processes that vLLM distributes its weights over (vllm_mode "colocate")."""

    @model_validator(mode="after")
    def _check_no_secrets(self) -> "OptimConfig":
        url = self.vllm_server_base_url or ""
        if "@" in url or redact_secrets(url) != url:
            raise ValueError(
                "vllm_server_base_url holds credentials, and it is written to the run directory; give a URL without them"
            )
        return self


RUNTIME_ONLY_FIELDS = ("vllm_server_base_url", "vllm_server_host", "vllm_server_port", "vllm_gpu_memory_utilization")
"""Settings of [train] that change where rollouts are generated, not what is computed: a run may be resumed with other values."""

CHANGEABLE_FIELDS = ("report_to", "save_every", "samples_every", "keep_checkpoints", "save_dtype", "microbatch_tokens")
"""Settings of [train] that change what is written or how many tokens a pass reads, not what is learnt: a run may be resumed with
other values."""


class CharacterConfig(ConfigSection):
    """Ways to keep the model able to play characters while it learns to answer correctly; both are off at 0."""

    replay: float = Field(default=0.0, ge=0)
    """Weight of character replay: the KL divergence per token from the base model on in-character answers; 0 is off."""
    replay_policy: Literal["off", "on"] = "off"
    """Answers used for replay. "off": the base model's, with KL(base || trained). "on": fresh answers of the trained model, with
    KL(trained || base)."""
    replay_answers: int = Field(default=12, gt=0)
    """Number of in-character answers that each step replays."""
    expressivity: float = Field(default=0.0, ge=0)
    """Largest bonus reward of a correct answer that sounds like its persona, as rated by a classifier that is trained on the base
    model's in-character answers; 0 is off."""
    personas: int = Field(default=24, gt=0)
    """Number of training personas that the base model answers as, chosen in proportion from each kind; expressivity uses all."""
    questions: int = Field(default=10, gt=0)
    """Number of open-ended training questions for each of these personas."""
    temperature: float = Field(default=0.7, gt=0)
    """Sampling temperature of the in-character answers."""
    max_new_tokens: int = Field(default=48, gt=0)
    """Maximum length of an in-character answer, in tokens."""

    @property
    def needs_base_answers(self) -> bool:
        """Whether the base model must answer in character before training."""
        return self.replay > 0 or self.expressivity > 0


_RL_ONLY_FIELDS = (
    *("beta", "kl_reference_prompt", "loss", "scale_rewards", "clip_low", "clip_high", "updates_per_rollout"),
    *("importance_ratio_cap", "use_vllm", "vllm_mode", "vllm_gpu_memory_utilization", "vllm_tensor_parallel_size"),
)  # fmt: skip

IGNORED_FIELDS: dict[TrainMethod, tuple[str, ...]] = {
    "permix": ("epochs",),
    "rlvr": ("epochs",),
    "sft": (*_RL_ONLY_FIELDS, "temperature", "top_p"),
    "sft-personas": (*_RL_ONLY_FIELDS, "temperature", "top_p"),
    "seqkd": _RL_ONLY_FIELDS,
}
"""Settings of `[train]` that have no effect with a method; giving them another value than the default is an error."""

_CURRICULUM_FIELDS = ("curriculum_strength", "curriculum_update_every", "curriculum_floor")

_PERSONA_PLAN_FIELDS = (
    "tag_weights",
    "templates",
    "contexts",
    "context_turns",
    *_CURRICULUM_FIELDS,
)

IGNORED_PLAN_FIELDS: dict[TrainMethod, tuple[str, ...]] = {
    "permix": (),
    "rlvr": _PERSONA_PLAN_FIELDS,
    "sft": _PERSONA_PLAN_FIELDS,
    "sft-personas": _CURRICULUM_FIELDS,
    "seqkd": _CURRICULUM_FIELDS,
}
"""Settings of `[plan]`, besides `mix`, that have no effect with a method: those of personas where none is drawn, and those of the
curriculum where no rollout tells how hard a persona is. `[character]` has no effect with a supervised method."""


DevMetric = Literal["balanced", "worst", "mean", "pss"]


class DevEvalConfig(ConfigSection):
    """Dev evaluation: a small fixed evaluation on the dev split during training. It gives curves, and may choose the weights or
    stop early."""

    every: int = Field(default=0, ge=0)
    """Optimizer steps between dev evaluations; there is also one before training and one after the last step. 0 for none."""
    personas: int = Field(default=8, ge=2)
    """Number of dev personas, chosen in proportion from each kind; every question is also asked without persona."""
    questions: int = Field(default=30, gt=0)
    """Number of dev questions, of the same task and levels as in training."""
    characters: int = Field(default=6, ge=0)
    """Number of dev personas whose identifiability is measured, with the tag "character" if the pool has any; 0 leaves
    identifiability out."""
    roleplay_questions: int = Field(default=10, ge=10)
    """Number of open-ended dev questions for each of these personas."""
    max_new_tokens: int | None = Field(default=None, gt=0)
    """Maximum length of an answer to a task question, in tokens; train.max_new_tokens when not given."""
    roleplay_max_new_tokens: int = Field(default=48, gt=0)
    """Maximum length of an open-ended answer, in tokens."""
    metric: DevMetric = "balanced"
    """Measure that ranks dev evaluations: accuracy of the worst persona (worst), mean accuracy over personas (mean), worst / best
    accuracy (pss), or the worst persona's accuracy minus the loss of identifiability since step 0 (balanced)."""
    select: Literal["last", "best"] = "last"
    """Which weights become the final model: those of the last step, or those of the best dev evaluation."""
    patience: int | None = Field(default=None, gt=0)
    """Stop training after this many dev evaluations in a row without a new best one; None to train all steps."""

    @model_validator(mode="after")
    def _check_consistency(self) -> "DevEvalConfig":
        if self.every == 0 and (self.select == "best" or self.patience is not None):
            raise ValueError(
                'every = 0: select = "best" and patience need dev evaluations; give dev_eval.every = 10 or another number'
            )
        if self.characters == 1:
            raise ValueError("characters = 1: identifiability compares personas; give 2 or more, or 0 for none")
        if self.characters == 0 and self.metric == "balanced":
            raise ValueError('metric = "balanced" uses identifiability, which characters = 0 leaves out; take worst, mean or pss')
        return self

"""Sections on training: the method, `[plan]`, `[train]`, `[character]`, `[dev_eval]`."""

from typing import Literal

from pydantic import Field, model_validator

from permix.config.base import ConfigSection
from permix.types import PersonaScope

LossName = Literal["grpo", "dr_grpo", "dapo", "bnpo"]
"""The keys of `permix.training.loss.LOSSES`, which the configuration cannot import: it loads torch."""

TrainerBackendName = Literal["trl"]
"""The keys of `permix.training.backend.TRAINER_BACKENDS`."""

TrainMethod = Literal["permix", "rlvr", "sft", "sft-personas", "seqkd"]

SUPERVISED_METHODS: tuple[TrainMethod, ...] = ("sft", "sft-personas", "seqkd")
"""Methods that learn from given completions; the others learn from their own, by reward."""

DEFAULT_MIX: dict[TrainMethod, float] = {"permix": 0.8, "rlvr": 0.0, "sft": 0.0, "sft-personas": 0.8, "seqkd": 0.8}
"""Each method's own `plan.mix`."""

NO_PERSONA_METHODS: tuple[TrainMethod, ...] = ("rlvr", "sft")


class RolloutPlanConfig(ConfigSection):
    mix: float | None = Field(default=None, ge=0, le=1)
    """Probability that a question is asked under a persona; when not given, the method's own: 0 for rlvr and sft, else 0.8."""
    tag_weights: dict[str, float] = Field(default={})
    """Multiplies the chance that personas with a tag are drawn."""
    scope: PersonaScope = "group"
    """Whether a group shares one persona, or each of its rollouts draws its own."""
    steps: int = Field(default=100, gt=0)
    """Generations. Each serves one optimizer step, or as many as train.updates_per_rollout says."""
    questions_per_step: int = Field(default=8, gt=0)
    """Groups in one step; several processes share them out evenly."""
    group_size: int = Field(default=8, ge=2)
    """Rollouts of one question (G)."""
    dynamic_sampling_groups: int = Field(default=0, ge=0)
    """Groups a step holds ready to replace those whose rollouts all earn the same (dynamic sampling); at most so many are."""
    curriculum_strength: float = Field(default=0.0, ge=0)
    """Strength with which personas are drawn more often where accuracy is lost under them; 0 keeps the pool's weights."""
    curriculum_update_every: int = Field(default=5, gt=0)
    """Steps that one set of adapted weights holds."""
    curriculum_floor: float = Field(default=0.25, gt=0, le=1)
    """Share of its plain chance that every persona keeps, however right the model is under it."""
    seed: int = Field(default=0, ge=0)
    """Seeds every row of the plan. Plans that differ only in `mix` ask the same questions in the same order."""


def resolve_mix(plan: RolloutPlanConfig, method: TrainMethod = "permix") -> float:
    """The share of questions asked under a persona: the plan's own, else the method's."""
    return DEFAULT_MIX[method] if plan.mix is None else plan.mix


class OptimConfig(ConfigSection):
    lr: float = Field(default=1e-5, gt=0)
    """Peak learning rate of AdamW."""
    lr_schedule: Literal["constant", "linear", "cosine"] = "constant"
    """Shape of the learning rate after warm-up."""
    warmup_steps: int = Field(default=0, ge=0)
    """Steps of linear warm-up."""
    weight_decay: float = Field(default=0.0, ge=0)
    """AdamW's weight decay."""
    max_grad_norm: float = Field(default=1.0, gt=0)
    """Gradients are clipped to this norm."""
    beta: float = Field(default=0.0, ge=0)
    """Weight of the KL to the reference model (the one training starts from); 0 loads no reference."""
    kl_reference_prompt: Literal["same-persona", "no-persona"] = "same-persona"
    """Which prompt the reference reads: the rollout's own, or the question without its persona (an ablation)."""
    loss: LossName = "dapo"
    """How token losses are averaged (TRL's names)."""
    scale_rewards: Literal["group", "batch", "none"] = "group"
    """Standard deviation the advantages are divided by."""
    clip_low: float = Field(default=0.2, gt=0)
    """Lower clip range of the probability ratio."""
    clip_high: float | None = Field(default=None, gt=0)
    """Upper clip range; the lower one when not given."""
    updates_per_rollout: int = Field(default=1, gt=0)
    """Optimizer steps that one generation serves."""
    epochs: int = Field(default=1, gt=0)
    """Passes over the plan's examples (sft, sft-personas, seqkd)."""
    temperature: float = Field(default=1.0, gt=0)
    """Sampling temperature of the rollouts, and of the teacher's samples."""
    top_p: float = Field(default=1.0, gt=0, le=1)
    """Nucleus of that sampling."""
    max_new_tokens: int = Field(default=256, gt=0)
    """Longest completion."""
    max_prompt_tokens: int = Field(default=1024, gt=0)
    """A longer prompt is refused before training starts."""
    microbatch_tokens: int = Field(default=1024, gt=0)
    """Tokens in one forward and backward pass: what bounds memory. A group's prompt counts once. A GPU takes 8192 or more."""
    importance_ratio_cap: float | None = Field(default=2.0, gt=1)
    """Largest weight a token gets for being likelier to the trainer than to the engine that sampled it; None: no correction."""
    lora_rank: int = Field(default=0, ge=0)
    """Rank of LoRA adapters on every linear layer; 0 trains all weights."""
    lora_alpha: int = Field(default=32, gt=0)
    """LoRA's scale."""
    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    """Autocast of the forward pass; weights stay float32."""
    gradient_checkpointing: bool = False
    """Trade a second forward pass for memory."""
    save_every: int = Field(default=10, gt=0)
    """Optimizer steps between checkpoints; with iterations above 1 they may fall amid a generation's steps."""
    keep_checkpoints: bool = False
    """Keep the last checkpoint (weights and optimizer state) after the final model is written."""
    samples_every: int = Field(default=5, gt=0)
    """Generations between readable samples in samples.md."""
    seed: int = Field(default=0, ge=0)
    """Seeds everything the plan does not (LoRA's initial weights, dropout)."""
    report_to: tuple[str, ...] = ()
    """Trackers besides the log file (wandb, tensorboard, mlflow, trackio ...)."""
    use_vllm: bool = False
    """Rollouts by vLLM, as TRL runs it, instead of by this program; they are then not repeatable bit for bit."""
    vllm_mode: Literal["colocate", "server"] = "colocate"
    """vLLM on the GPUs that train, or a server of its own (see docs/scale.md for its command)."""
    vllm_server_base_url: str | None = None
    """The server's address ("http://HOST:PORT"), in place of host and port."""
    vllm_server_host: str = "0.0.0.0"
    """The server's host."""
    vllm_server_port: int = Field(default=8000, gt=0, lt=65536)
    """The server's port."""
    vllm_gpu_memory_utilization: float = Field(default=0.3, gt=0, lt=1)
    """Share of each GPU's memory for vLLM (mode "colocate")."""
    vllm_tensor_parallel_size: int = Field(default=1, gt=0)
    """Over how many processes vLLM spreads its weights (mode "colocate")."""

    @model_validator(mode="after")
    def _check_no_secrets(self) -> "OptimConfig":
        if "@" in (self.vllm_server_base_url or ""):
            raise ValueError("vllm_server_base_url holds credentials; it is written to the run directory, so it must not")
        return self


RUNTIME_ONLY_FIELDS = ("vllm_server_base_url", "vllm_server_host", "vllm_server_port", "vllm_gpu_memory_utilization")
"""Settings of [train] that say where something runs and not what it computes: a run may go on with others."""


class CharacterConfig(ConfigSection):
    """What keeps a model able to play characters while it learns to be right; every part is off at 0."""

    replay: float = Field(default=0.0, ge=0)
    """Weight of character replay: KL per token to the base model, on personas answering open-ended questions."""
    replay_policy: Literal["off", "on"] = "off"
    """Whose answers: the base model's own with KL(base || trained), or fresh ones of the trained with KL(trained || base)."""
    replay_answers: int = Field(default=12, gt=0)
    """In-character answers replayed in one step."""
    expressivity: float = Field(default=0.0, ge=0)
    """Largest bonus a right answer earns by sounding like its persona, as judged by what the base model says in character."""
    personas: int = Field(default=24, gt=0)
    """How many of the training personas the base model answers as, spread over the kinds; all of them for expressivity."""
    questions: int = Field(default=10, gt=0)
    """How many open-ended training questions each of them is asked."""
    temperature: float = Field(default=0.7, gt=0)
    """Sampling temperature of those answers."""
    max_new_tokens: int = Field(default=48, gt=0)
    """Longest in-character answer."""

    @property
    def needs_base_answers(self) -> bool:
        return self.replay > 0 or self.expressivity > 0


_RL_ONLY_FIELDS = ("beta", "loss", "scale_rewards", "clip_low", "clip_high", "updates_per_rollout")

IGNORED_FIELDS: dict[TrainMethod, tuple[str, ...]] = {
    "permix": ("epochs",),
    "rlvr": ("epochs",),
    "sft": (*_RL_ONLY_FIELDS, "temperature", "top_p"),
    "sft-personas": (*_RL_ONLY_FIELDS, "temperature", "top_p"),
    "seqkd": _RL_ONLY_FIELDS,
}
"""Settings of `[train]` that mean nothing to a method: they stand at their defaults."""


DevMetric = Literal["balanced", "worst", "mean", "pss"]


class DevEvalConfig(ConfigSection):
    """A small fixed evaluation on the dev side while a model trains: curves, a choice of weights, an early end."""

    every: int = Field(default=0, ge=0)
    """Optimizer steps between probes; there is also one before training and one after its last step. 0: no probe."""
    personas: int = Field(default=8, ge=2)
    """Dev personas that ask the questions, beside no persona; spread over the kinds."""
    questions: int = Field(default=30, gt=0)
    """Dev questions of the same task and levels."""
    characters: int = Field(default=6, ge=0)
    """Dev personas to be told apart: characters, where the pool has any; 0 leaves identifiability out."""
    roleplay_questions: int = Field(default=10, ge=10)
    """Open-ended dev questions that each of those answers."""
    max_new_tokens: int | None = Field(default=None, gt=0)
    """Longest answer to a question; train.max_new_tokens when not given."""
    roleplay_max_new_tokens: int = Field(default=48, gt=0)
    """Longest open-ended answer."""
    metric: DevMetric = "balanced"
    """What makes a probe better: the accuracy of the worst persona or its mean over personas, worst / best (pss), or balanced:
    the worst persona's accuracy less what identifiability has lost since before training."""
    select: Literal["last", "best"] = "last"
    """Which weights become the model: those of the last step, or those of the best probe."""
    patience: int | None = Field(default=None, gt=0)
    """Training ends when this many probes in a row were no better than the best before them; None: it does not."""

    @model_validator(mode="after")
    def _check_consistency(self) -> "DevEvalConfig":
        if self.every == 0 and (self.select == "best" or self.patience is not None):
            raise ValueError(
                'every = 0: select = "best" and patience need probes; give dev_eval.every = 10, or another number of steps'
            )
        if self.characters == 1:
            raise ValueError("characters = 1: one voice cannot be told from another; give 2 or more, or 0 for none")
        if self.characters == 0 and self.metric == "balanced":
            raise ValueError(
                'metric = "balanced" weighs identifiability, which characters = 0 leaves out; take worst, mean or pss'
            )
        return self

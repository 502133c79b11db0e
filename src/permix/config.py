"""Every configuration class: declared once, frozen, importable without torch.

A stage's configuration is one class made of sections; a TOML file mirrors it (`[train] lr = 1e-5`), a flag names the same field
(`--train.lr 1e-5`), and the resolved whole is written to the run directory. Unknown keys are refused with the nearest known one.
"""

import difflib
import json
import re
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    ValidationError,
    ValidationInfo,
    field_validator,
    model_validator,
)
from pydantic.fields import FieldInfo

from permix.errors import ConfigError
from permix.types import Sampling, Scope, Split

LossName = Literal["grpo", "dr_grpo", "dapo", "bnpo"]


class Section(BaseModel):
    """Base of every configuration class."""

    model_config = ConfigDict(
        frozen=True,
        extra="forbid",
        allow_inf_nan=False,
        validate_default=True,
        use_attribute_docstrings=True,
        hide_input_in_errors=True,
    )

    @model_validator(mode="before")
    @classmethod
    def _kept_defaults(cls, values: Any) -> Any:
        """A section given in part keeps what its stage sets otherwise: a training [task] without `n` has training's `n`."""
        if not isinstance(values, Mapping):
            return values
        return {name: _over_default(cls.model_fields.get(name), value) for name, value in values.items()}


def _over_default(field: FieldInfo | None, value: Any) -> Any:
    default = field.default if field else None
    if isinstance(default, BaseModel) and isinstance(value, Mapping):
        return default.model_dump(exclude_unset=True) | dict(value)
    return value


class ModelConfig(Section):
    name: str = "bundled"
    """"bundled" (SmolLM2-135M-Instruct), a model folder, a hub id, or the name an endpoint serves."""
    backend: Literal["transformers", "openai"] = "transformers"
    """Where completions come from: in this process, or an OpenAI-compatible HTTP endpoint."""
    base_url: str | None = None
    """The endpoint's address up to /v1 (backend "openai")."""
    api_key_env: str = "OPENAI_API_KEY"
    """The environment variable that holds the endpoint's key; the key itself is never in a file."""
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    """Weights' precision; auto is bfloat16 where the machine multiplies it natively, else float32."""
    batch_size: int = Field(default=64, gt=0)
    """Requests decoded together (backend "transformers")."""
    concurrency: int = Field(default=16, gt=0)
    """Requests in flight (backend "openai")."""
    timeout_s: float = Field(default=120, gt=0)
    """Seconds one HTTP request may take."""
    retries: int = Field(default=6, ge=0)
    """How often a request is tried again after 429, 5xx or a timeout."""

    @model_validator(mode="after")
    def _endpoint(self) -> "ModelConfig":
        if self.backend == "openai" and not self.base_url:
            raise ValueError('base_url is missing: backend "openai" needs one, such as http://127.0.0.1:8000/v1')
        return self

    @model_validator(mode="after")
    def _no_secrets(self) -> "ModelConfig":
        # The configuration is written to the run directory, so the messages do not repeat the values either.
        if "@" in (self.base_url or ""):
            raise ValueError("base_url holds credentials; put the key into the environment variable that api_key_env names")
        if not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", self.api_key_env):
            raise ValueError("api_key_env is not the name of an environment variable; the key itself must not be in a file")
        return self


class TaskConfig(Section):
    name: Literal["arithmetic", "gsm8k", "math500", "math"] = "arithmetic"
    """Which task asks the questions."""
    path: Path | None = None
    """A local file or folder in the published format, instead of the hub."""
    split: Split = "heldout"
    """Which side of the task: train to train on, dev to choose on, heldout to measure on."""
    n: int = Field(default=100, gt=0)
    """How many questions."""
    levels: tuple[str, ...] = ()
    """Only these levels (arithmetic: see `permix.tasks.arithmetic`; math: 1 to 5); empty means the task's default."""
    seed: int = Field(default=0, ge=0)
    """Which questions are drawn."""
    wording: str | None = None
    """How a question is put, with {question} in it ("Think aloud, then answer. {question}"); the task's own when not given."""

    @model_validator(mode="after")
    def _asks_the_question(self) -> "TaskConfig":
        if self.wording is not None and "{question}" not in self.wording:
            raise ValueError(f"wording = {self.wording!r}: has no {{question}} in it, so nothing would be asked")
        return self


class PersonasConfig(Section):
    pool: str = "builtin"
    """"builtin", or a TOML, JSONL or CSV file of personas."""
    split: Literal[Split, "all"] = "heldout"
    """Which side of the pool: train, dev, heldout, or all."""
    include: tuple[str, ...] = ()
    """Only personas with one of these tags."""
    exclude: tuple[str, ...] = ()
    """No persona with one of these tags."""
    n: int | None = Field(default=None, gt=0)
    """How many, spread over the kinds; all when not given."""
    seed: int = Field(default=0, ge=0)
    """Which personas are drawn when `n` is given."""
    template: str = "you_are"
    """Wording of the system message: you_are, adopt, second_person, or a text with {persona} in it."""
    bare: bool = False
    """Without persona, send an empty system message instead of none."""


Method = Literal["permix", "rlvr", "sft", "sft-personas", "seqkd"]
SUPERVISED: tuple[Method, ...] = ("sft", "sft-personas", "seqkd")
"""Methods that learn from given completions; the others learn from their own, by reward."""
MIX: dict[Method, float] = {"permix": 0.8, "rlvr": 0.0, "sft": 0.0, "sft-personas": 0.8, "seqkd": 0.8}
"""Each method's own `plan.mix`."""
WITHOUT_PERSONAS: tuple[Method, ...] = ("rlvr", "sft")


class PlanConfig(Section):
    mix: float | None = Field(default=None, ge=0, le=1)
    """Probability that a question is asked under a persona; when not given, the method's own: 0 for rlvr and sft, else 0.8."""
    tag_weights: dict[str, float] = {}
    """Multiplies the chance that personas with a tag are drawn."""
    scope: Scope = "group"
    """Whether a group shares one persona, or each of its rollouts draws its own."""
    steps: int = Field(default=100, gt=0)
    """Generations. Each serves one optimizer step, or as many as train.iterations says."""
    questions_per_step: int = Field(default=8, gt=0)
    """Groups in one step; several processes share them out evenly."""
    group_size: int = Field(default=8, ge=2)
    """Rollouts of one question (G)."""
    spares: int = Field(default=0, ge=0)
    """Groups a step holds ready to replace those whose rollouts all earn the same (dynamic sampling); at most so many are."""
    adaptive: float = Field(default=0.0, ge=0)
    """Strength with which personas are drawn more often where accuracy is lost under them; 0 keeps the pool's weights."""
    adaptive_every: int = Field(default=5, gt=0)
    """Steps that one set of adapted weights holds."""
    adaptive_floor: float = Field(default=0.25, gt=0, le=1)
    """Share of its plain chance that every persona keeps, however right the model is under it."""
    seed: int = Field(default=0, ge=0)
    """Seeds every row of the plan. Plans that differ only in `mix` ask the same questions in the same order."""


def mix_of(plan: PlanConfig, method: Method = "permix") -> float:
    """The share of questions asked under a persona: the plan's own, else the method's."""
    return MIX[method] if plan.mix is None else plan.mix


class TrainConfig(Section):
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
    anchor: Literal["same-persona", "no-persona"] = "same-persona"
    """Which prompt the reference reads: the rollout's own, or the question without its persona (an ablation)."""
    loss: LossName = "dapo"
    """How token losses are averaged (TRL's names)."""
    scale_rewards: Literal["group", "batch", "none"] = "group"
    """Standard deviation the advantages are divided by."""
    clip_low: float = Field(default=0.2, gt=0)
    """Lower clip range of the probability ratio."""
    clip_high: float | None = Field(default=None, gt=0)
    """Upper clip range; the lower one when not given."""
    iterations: int = Field(default=1, gt=0)
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
    micro_tokens: int = Field(default=1024, gt=0)
    """Tokens in one forward and backward pass: what bounds memory. A group's prompt counts once. A GPU takes 8192 or more."""
    importance_cap: float | None = Field(default=2.0, gt=1)
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
    def _no_secrets(self) -> "TrainConfig":
        if "@" in (self.vllm_server_base_url or ""):
            raise ValueError("vllm_server_base_url holds credentials; it is written to the run directory, so it must not")
        return self


PLACES = ("vllm_server_base_url", "vllm_server_host", "vllm_server_port", "vllm_gpu_memory_utilization")
"""Settings of [train] that say where something runs and not what it computes: a run may go on with others."""


class CharacterConfig(Section):
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
    def needs_answers(self) -> bool:
        return self.replay > 0 or self.expressivity > 0


_OF_REWARDS = ("beta", "loss", "scale_rewards", "clip_low", "clip_high", "iterations")
IDLE: dict[Method, tuple[str, ...]] = {
    "permix": ("epochs",),
    "rlvr": ("epochs",),
    "sft": (*_OF_REWARDS, "temperature", "top_p"),
    "sft-personas": (*_OF_REWARDS, "temperature", "top_p"),
    "seqkd": _OF_REWARDS,
}
"""Settings of `[train]` that mean nothing to a method: they stand at their defaults."""


ProbeMetric = Literal["balanced", "worst", "mean", "pss"]


class ProbeConfig(Section):
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
    metric: ProbeMetric = "balanced"
    """What makes a probe better: the accuracy of the worst persona or its mean over personas, worst / best (pss), or balanced:
    the worst persona's accuracy less what identifiability has lost since before training."""
    select: Literal["last", "best"] = "last"
    """Which weights become the model: those of the last step, or those of the best probe."""
    patience: int | None = Field(default=None, gt=0)
    """Training ends when this many probes in a row were no better than the best before them; None: it does not."""

    @model_validator(mode="after")
    def _makes_sense(self) -> "ProbeConfig":
        if self.every == 0 and (self.select == "best" or self.patience is not None):
            raise ValueError(
                'every = 0: select = "best" and patience need probes; give probe.every = 10, or another number of steps'
            )
        if self.characters == 1:
            raise ValueError("characters = 1: one voice cannot be told from another; give 2 or more, or 0 for none")
        if self.characters == 0 and self.metric == "balanced":
            raise ValueError(
                'metric = "balanced" weighs identifiability, which characters = 0 leaves out; take worst, mean or pss'
            )
        return self


class Stage(Section):
    """What every verb that makes a run directory shares."""

    out: Path
    """The run directory."""
    label: str | None = None
    """The model's name in tables ("base", "RLVR"); the model's own name when not given."""
    threads: int | None = Field(default=None, gt=0)
    """CPU threads for torch, in each process; the machine's cores, shared out among its processes, when not given."""


def _no_other_side(section: TaskConfig) -> TaskConfig:
    if section.split != "train":
        raise ValueError(
            f'split = "{section.split}": training takes split = "train"; dev is there to choose on, heldout to measure on'
        )
    return section


def _no_other_builtin_side(section: PersonasConfig) -> PersonasConfig:
    if section.pool == "builtin" and section.split != "train":
        raise ValueError(
            f'split = "{section.split}": training takes split = "train" of the built-in pool; dev is there to choose on, heldout '
            "to measure on. A pool of your own may be trained on whole"
        )
    return section


TrainingTask = Annotated[TaskConfig, AfterValidator(_no_other_side)]
TrainingPersonas = Annotated[PersonasConfig, AfterValidator(_no_other_builtin_side)]


class PlanStage(Section):
    stage: Literal["plan"] = "plan"
    out: Path = Path("runs/plan.parquet")
    """The Parquet file to write."""
    task: TrainingTask = TaskConfig(split="train", n=1000)
    personas: TrainingPersonas = PersonasConfig(split="train")
    plan: PlanConfig = PlanConfig()


class TrainedModel(Section):
    name: str = "bundled"
    """"bundled" (SmolLM2-135M-Instruct), a model folder or a hub id; its weights are trained in float32."""


class TeacherConfig(ModelConfig):
    name: str = "self"
    """"self" (the model that is trained, as it is before training), or as in a model section."""
    keep: int | None = Field(default=None, gt=0)
    """At most so many different right samples of one row are learnt from; all when not given."""

    @model_validator(mode="after")
    def _served_name(self) -> "TeacherConfig":
        if self.backend == "openai" and self.name == "self":
            raise ValueError('name is missing: with backend "openai" give the name that the endpoint serves')
        return self


class TrainStage(Stage):
    stage: Literal["train"] = "train"
    out: Path = Path("runs/train")
    """The run directory."""
    method: Method = "permix"
    """PerMix-RLVR or plain RLVR; SFT on gold answers, without or with personas; or distillation on verified samples (seqkd)."""
    model: TrainedModel = TrainedModel()
    teacher: TeacherConfig = TeacherConfig()
    """Who gives the samples of method seqkd."""
    plan_file: Path | None = None
    """A plan to train from; when not given, one is compiled from the sections task, personas and plan."""
    task: TrainingTask = TaskConfig(split="train", n=1000)
    personas: TrainingPersonas = PersonasConfig(split="train")
    plan: PlanConfig = PlanConfig()
    train: TrainConfig = TrainConfig()
    character: CharacterConfig = CharacterConfig()
    probe: ProbeConfig = ProbeConfig()

    @field_validator("plan")
    @classmethod
    def _mix_of_the_method(cls, plan: PlanConfig, info: ValidationInfo) -> PlanConfig:
        """So that whoever reads the configuration reads the share that is used. A plan from a file has its own."""
        draft = bool(info.context and info.context.get("draft"))
        if draft or "method" not in info.data or info.data.get("plan_file") is not None:
            return plan
        return plan.model_copy(update={"mix": mix_of(plan, info.data["method"])})

    @model_validator(mode="after")
    def _nothing_idle(self) -> "TrainStage":
        """What means nothing to the method must stand at its default: whoever sets it expects something of it."""
        if self.method in WITHOUT_PERSONAS and self.plan.mix:
            raise ValueError(
                f'plan.mix = {self.plan.mix}: method "{self.method}" asks without personas; leave plan.mix out, or give method '
                f'"{"permix" if self.method == "rlvr" else "sft-personas"}"'
            )
        for name in IDLE[self.method]:
            value, default = getattr(self.train, name), TrainConfig.model_fields[name].default
            if value != default:
                raise ValueError(
                    f'train.{name} = {value!r}: means nothing to method "{self.method}"; leave it out (default: {default!r})'
                )
        if self.method != "seqkd" and self.teacher != TeacherConfig():
            raise ValueError(f'teacher: method "{self.method}" has none; leave the section out, or give method "seqkd"')
        return self


class StabilityStage(Stage):
    stage: Literal["stability"] = "stability"
    out: Path = Path("runs/stability")
    """The run directory."""
    model: ModelConfig = ModelConfig()
    task: TaskConfig = TaskConfig()
    personas: PersonasConfig = PersonasConfig()
    sampling: Sampling = Sampling()
    samples: int = Field(default=1, gt=0)
    """Completions of one persona × question."""
    seed: int = Field(default=0, ge=0)
    """Seeds every cell's sampling, and the resampling of the intervals."""
    resamples: int = Field(default=2000, ge=100)
    """Bootstrap resamples and permutations."""
    exclude_plans: tuple[Path, ...] = ()
    """Plans whose questions must not be asked."""
    strategy: Literal["none", "persona-search", "persona-vote", "persona-plus-neutral"] = "none"
    """A way to use personas at inference, measured with what it costs: see `permix.baselines`."""
    strategy_questions: int = Field(default=50, gt=0)
    """By how many questions of the task's dev side a persona is chosen (strategy "persona-search")."""


class FidelityStage(Stage):
    stage: Literal["fidelity"] = "fidelity"
    out: Path = Path("runs/fidelity")
    """The run directory."""
    model: ModelConfig = ModelConfig()
    personas: PersonasConfig = PersonasConfig()
    questions: str = "builtin"
    """"builtin", or a file of open-ended questions (TOML, JSONL, or one a line)."""
    questions_split: Split = "heldout"
    """Which side of them, where the file gives them sides; a file without sides is asked whole."""
    n_questions: int | None = Field(default=None, gt=0)
    """How many of them; all when not given."""
    reference: Path | None = None
    """The base model's fidelity run, whose answers train the classifier; this run's own answers when not given."""
    folds: int = Field(default=5, ge=2)
    """Questions are held out in this many parts."""
    sampling: Sampling = Sampling(temperature=0.7, max_new_tokens=48)
    seed: int = Field(default=0, ge=0)
    """Seeds every cell's sampling, the folds and the resampling of the intervals."""
    resamples: int = Field(default=2000, ge=100)
    """Bootstrap resamples."""


class ReportStage(Section):
    stage: Literal["report"] = "report"
    runs: tuple[Path, ...] = ()
    """Run directories, or folders that hold some."""
    out: Path = Path("runs/report")
    """Where report.md, table.json and the figures go."""


class QuickstartStage(Section):
    stage: Literal["quickstart"] = "quickstart"
    out: Path | None = None
    """Where the runs and the report go; runs/quickstart, or runs/quickstart-fast with --fast, when not given."""
    model: str = "bundled"
    """The model to measure and train: "bundled" (SmolLM2-135M-Instruct), a model folder, or a hub id."""
    fast: bool = False
    """About five minutes instead of thirty: fewer steps, questions and personas."""
    seed: int = Field(default=0, ge=0)
    """Seeds plans, evaluations and training alike."""
    threads: int | None = Field(default=None, gt=0)
    """CPU threads for torch; the machine's cores when not given."""

    @property
    def folder(self) -> Path:
        return self.out or Path("runs/quickstart-fast" if self.fast else "runs/quickstart")


AnyStage = PlanStage | TrainStage | StabilityStage | FidelityStage | ReportStage | QuickstartStage
STAGES: dict[str, type[AnyStage]] = {
    "plan": PlanStage,
    "train": TrainStage,
    "stability": StabilityStage,
    "fidelity": FidelityStage,
    "report": ReportStage,
    "quickstart": QuickstartStage,
}

T = TypeVar("T", bound=BaseModel)


SUFFIXES = (".toml", ".json")


def load(cls: type[T], path: Path) -> T:
    """Read a file into `cls`. Raises ConfigError naming the file, the field, the value and what would be valid."""
    return build(cls, read_values(path), source=str(path))


def read_values(path: Path) -> dict[str, Any]:
    """The content of a TOML file, or of the config.json that a run left."""
    kind = "JSON" if path.suffix == ".json" else "TOML"
    try:
        text = path.read_text(encoding="utf-8")
        values = json.loads(text) if kind == "JSON" else tomllib.loads(text)
    except FileNotFoundError as error:
        raise ConfigError(f"{path}: no such configuration file") from error
    except (json.JSONDecodeError, tomllib.TOMLDecodeError, UnicodeDecodeError, IsADirectoryError) as error:
        raise ConfigError(f"{path}: not a {kind} file: {error}") from error
    if not isinstance(values, dict):
        raise ConfigError(f"{path}: holds {type(values).__name__}, not an object")
    return values


def build(cls: type[T], values: Mapping[str, Any], *, source: str, draft: bool = False) -> T:
    """Validate a plain mapping, as read from TOML or JSON, into `cls`.

    A draft is what flags are still laid over: what depends on another field and was not given stays open in it.
    """
    refuse_unknown(cls, values, source=source)
    try:
        return cls.model_validate(values, context={"draft": draft})
    except ValidationError as error:
        raise ConfigError(f"{source}: {explain(error)}") from error


def refuse_unknown(cls: type[BaseModel], values: Mapping[str, Any], *, source: str, prefix: str = "") -> None:
    """Raise ConfigError for the first key that `cls` does not have, naming the nearest one that it has."""
    for key, value in values.items():
        if key not in cls.model_fields:
            near = difflib.get_close_matches(key, cls.model_fields, n=1, cutoff=0.5)
            hint = f"did you mean {prefix}{near[0]}?" if near else f"known: {', '.join(cls.model_fields)}"
            raise ConfigError(f"{source}: unknown key {prefix}{key}; {hint}")
        inner = cls.model_fields[key].annotation
        if isinstance(inner, type) and issubclass(inner, BaseModel) and isinstance(value, Mapping):
            refuse_unknown(inner, value, source=source, prefix=f"{prefix}{key}.")


def explain(error: ValidationError) -> str:
    """A pydantic error as one line a field: its path, the value, what is wrong."""
    lines = []
    for one in error.errors():
        where = ".".join(str(part) for part in one["loc"]) or "configuration"
        shown = "" if isinstance(one["input"], (dict, BaseModel)) else f" = {one['input']!r}"
        lines.append(f"{where}{shown}: {one['msg'].removeprefix('Value error, ')}")
    return "; ".join(lines)

"""The configuration of each command: its sections and options, and the checks that involve several of them."""

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

from pydantic import AfterValidator, BaseModel, BeforeValidator, Field, ValidationInfo, field_validator, model_validator

from permix.config.base import ConfigSection
from permix.config.data import (
    InterviewConfig,
    InterviewerConfig,
    JudgeModelConfig,
    ModelConfig,
    PersonaGymConfig,
    PersonaGymTask,
    PersonasConfig,
    TaskConfig,
    ThinkingSwitch,
    TrackerNames,
    check_room_for_answer,
)
from permix.config.training import (
    IGNORED_FIELDS,
    IGNORED_PLAN_FIELDS,
    NO_PERSONA_METHODS,
    SUPERVISED_METHODS,
    CharacterConfig,
    DevEvalConfig,
    OptimConfig,
    RolloutPlanConfig,
    TrainerBackendName,
    TrainMethod,
    check_contexts,
    resolve_mix,
)
from permix.types import Sampling, Shard, Split


class RunConfig(ConfigSection):
    """Options of every command that makes a run directory."""

    out: Path
    """The run directory."""
    label: str | None = None
    """Name of the model in tables, such as "base" or "RLVR"; when not given, --model.name or, in `permix train`, the folder."""
    threads: int | None = Field(default=None, gt=0)
    """CPU threads for torch in each process; when not given, the machine's cores divided by the number of processes."""


def _read_shard(value: object) -> object:
    """The text of a shard, which Python may also give as two numbers: (2, 4) is "2/4"."""
    if isinstance(value, tuple | list) and len(value) == 2:
        value = f"{value[0]}/{value[1]}"
    if isinstance(value, str):
        return str(Shard.parse(value))
    return value


ShardText = Annotated[str | None, BeforeValidator(_read_shard)]


class SharedRunConfig(RunConfig):
    """Options of a command whose run several workers can share."""

    shard: ShardText = None
    """This process is one of several workers that share the run: "2/4" asks the second of four parts of the cells and writes a
    file of records of its own. Workers count from 1."""

    @property
    def worker_shard(self) -> Shard | None:
        """The shard of this worker; None if it asks the whole run."""
        return None if self.shard is None else Shard.parse(self.shard)


def _require_train_split(section: TaskConfig) -> TaskConfig:
    if section.split != "train":
        raise ValueError(
            f'split = "{section.split}": training takes split = "train"; dev is for choosing settings, heldout for measuring'
        )
    return section


def _require_builtin_train_split(section: PersonasConfig) -> PersonasConfig:
    if section.pool == "builtin" and section.split != "train":
        raise ValueError(
            f'split = "{section.split}": training takes split = "train" of the built-in pool; dev is for choosing settings, '
            "heldout for measuring. A pool of your own may be used whole"
        )
    return section


TrainingTask = Annotated[TaskConfig, AfterValidator(_require_train_split)]

TrainingPersonas = Annotated[PersonasConfig, AfterValidator(_require_builtin_train_split)]


def _check_cache_without_endpoint(folder: Path | None, info: ValidationInfo) -> Path | None:
    model = info.data.get("model")
    if folder is not None and model is not None and not model.capabilities.content_addressed:
        raise ValueError(
            f'cache = {folder}: the model behind an endpoint may change; leave cache out with backend "{model.backend}"'
        )
    return folder


CachePath = Annotated[Path | None, AfterValidator(_check_cache_without_endpoint)]


DEFAULTS_FROM_DATA: dict[type[BaseModel], tuple[str, ...]] = {
    TaskConfig: ("split", "n"),
    PersonasConfig: ("split",),
    Sampling: ("max_new_tokens",),
    OptimConfig: ("max_new_tokens",),
}
"""Fields whose default depends on the task or on the user's own file, where the stage has no default of its own.

`model_fields_set` says whether one was given. A run fills them in before it records its configuration."""


class PlanConfig(ConfigSection):
    """Configuration of `permix plan`."""

    stage: Literal["plan"] = "plan"
    """Fixed: names the command in a configuration file."""
    out: Path = Path("runs/plan.parquet")
    """The plan file to write (Parquet)."""
    task: TrainingTask = TaskConfig(split="train", n=1000)
    personas: TrainingPersonas = PersonasConfig(split="train")
    plan: RolloutPlanConfig = RolloutPlanConfig()


class TrainableModelConfig(ConfigSection):
    """The model to train."""

    name: str = "bundled"
    """"bundled" (SmolLM2-135M-Instruct), a model folder or a hub id. Its weights are trained in float32."""
    thinking: ThinkingSwitch = "default"
    """Switch a thinking model's thinking on or off in training, and in the chat template that is saved with the trained model."""
    thinking_budget: int | None = None
    """Not for training, where every token must be the model's own; evaluations have it."""

    @model_validator(mode="after")
    def _check_no_thinking_budget(self) -> "TrainableModelConfig":
        if self.thinking_budget is not None:
            raise ValueError(
                f"thinking_budget = {self.thinking_budget}: a token that is forced is not the model's own, so it cannot be "
                "trained on; leave it out (train.max_new_tokens bounds a rollout, model.thinking can switch thinking off)"
            )
        return self


class TeacherConfig(ModelConfig):
    """The model whose correct samples method seqkd learns from."""

    name: str = "self"
    """"self" for the model to train, before training; or a teacher: "bundled", a model folder, a hub id, or the name that an
    endpoint serves it under."""
    max_samples_per_row: int | None = Field(default=None, gt=0)
    """Maximum number of different correct samples of one row of the plan to learn from; all when not given."""

    @model_validator(mode="after")
    def _check_served_name(self) -> "TeacherConfig":
        if not self.capabilities.is_local and self.name == "self":
            raise ValueError(f'name is missing: with backend "{self.backend}" give the name that the endpoint serves')
        return self


class TrainConfig(RunConfig):
    """Configuration of `permix train`."""

    stage: Literal["train"] = "train"
    """Fixed: names the command in a configuration file."""
    out: Path = Path("runs/train")
    """The run directory."""
    method: TrainMethod = "permix"
    """Training method: reinforcement learning with personas (permix) or without (rlvr), supervised fine-tuning on gold answers
    without personas (sft) or with (sft-personas), or distillation from a teacher's correct samples (seqkd)."""
    backend: TrainerBackendName = "trl"
    """The engine that trains: "trl" trains in the processes of this command, with TRL's trainers."""
    model: TrainableModelConfig = TrainableModelConfig()
    teacher: TeacherConfig = TeacherConfig()
    """The model whose correct samples method seqkd learns from."""
    plan_file: Path | None = None
    """A plan file of `permix plan`; when not given, the plan is compiled from the sections task, personas and plan."""
    task: TrainingTask = TaskConfig(split="train", n=1000)
    personas: TrainingPersonas = PersonasConfig(split="train")
    plan: RolloutPlanConfig = RolloutPlanConfig()
    train: OptimConfig = OptimConfig()
    character: CharacterConfig = CharacterConfig()
    dev_eval: DevEvalConfig = DevEvalConfig()

    @field_validator("plan")
    @classmethod
    def _fill_mix_from_method(cls, plan: RolloutPlanConfig, info: ValidationInfo) -> RolloutPlanConfig:
        """Fill in the method's default mix, so that the recorded configuration states the value used. A plan file has its own."""
        draft = bool(info.context and info.context.get("draft"))
        if draft or "method" not in info.data or info.data.get("plan_file") is not None:
            return plan
        return plan.model_copy(update={"mix": resolve_mix(plan, info.data["method"])})

    @model_validator(mode="after")
    def _check_ignored_fields(self) -> "TrainConfig":
        """Refuse settings that have no effect with the method: a user who sets one expects an effect."""
        if self.method in NO_PERSONA_METHODS and self.plan.mix:
            raise ValueError(
                f'plan.mix = {self.plan.mix}: method "{self.method}" trains without personas; leave plan.mix out, or give method '
                f'"{"permix" if self.method == "rlvr" else "sft-personas"}"'
            )
        _require_defaults(self.train, IGNORED_FIELDS[self.method], "train.", f'with method "{self.method}"')
        _require_defaults(self.plan, IGNORED_PLAN_FIELDS[self.method], "plan.", f'with method "{self.method}"')
        if self.method in SUPERVISED_METHODS:
            _require_defaults(self.character, tuple(CharacterConfig.model_fields), "character.", f'with method "{self.method}"')
        if self.method != "seqkd" and self.teacher != TeacherConfig():
            raise ValueError(f'teacher: method "{self.method}" uses no teacher; leave the section out, or give method "seqkd"')
        return self


class StabilityConfig(SharedRunConfig):
    """Configuration of `permix stability`."""

    stage: Literal["stability"] = "stability"
    """Fixed: names the command in a configuration file."""
    out: Path = Path("runs/stability")
    """The run directory."""
    model: ModelConfig = ModelConfig()
    task: TaskConfig = TaskConfig()
    personas: PersonasConfig = PersonasConfig()
    sampling: Sampling = Sampling()
    cache: CachePath = None
    """A folder that stores completions for several runs: a completion that is in it is not generated again."""
    samples: int = Field(default=1, gt=0)
    """Number of completions for each persona and question."""
    templates: tuple[str, ...] = ()
    """Two or more persona templates, named as in --personas.template: each persona and question is asked with each of them, to
    separate the effect of the template from the effect of the persona."""
    contexts: tuple[str, ...] = ()
    """Contexts: each persona is asked every question in each of them. system: the persona is in the system message; user: in the
    user's message, before the question; in-character: as system, with a request to stay in character after the question;
    turns-4: as system, with four recorded turns in character (context_turns) before the question. When not given, the prompt is
    that of system."""
    context_turns: Path | None = None
    """A fidelity run of the base model (open questions or an interview) whose answers are the turns of the contexts turns-K. Give
    the same run for every model that is compared."""
    seed: int = Field(default=0, ge=0)
    """Seed for sampling completions, and for the bootstrap and the permutation tests."""
    resamples: int = Field(default=2000, ge=100)
    """Number of bootstrap resamples, and of permutations in each test."""
    exclude_plans: tuple[Path, ...] = ()
    """Plan files whose questions must not be asked: the run is refused if it shares a question with one of them."""
    strategy: Literal["none", "persona-search", "persona-vote", "persona-ensemble"] = "none"
    """A way to use personas at inference without training; its gain and its cost in tokens are measured: choose the best persona
    (persona-search), vote over personas (persona-vote), or choose between an answer with persona and one without
    (persona-ensemble)."""
    strategy_questions: int = Field(default=50, gt=0)
    """Number of dev questions from which the best persona is chosen (strategy "persona-search")."""
    budget: int | None = Field(default=None, gt=0)
    """Maximum number of cells (persona × question × sample): further rounds ask only personas that may still be the worst or the
    best; the whole grid when not given."""
    precision: float | None = Field(default=None, gt=0, lt=1)
    """Ask in rounds until half the width of PSS's interval is at most this number. Rounds after the first ask only personas that
    may still be the worst or the best; task.n is the largest number of questions."""
    right_in_character: bool = False
    """Also measure how many answers are right and recognisable as their persona's, by a text classifier (seconds to minutes of
    CPU time). On a finished run the same command adds the measure and asks the model nothing."""
    character_reference: Path | None = None
    """The base model's stability run on the same questions and personas, whose answers train the classifier of
    --right-in-character. When not given, this run's own answers train it."""
    report_to: TrackerNames = ()
    """Experiment trackers that receive the measures, besides metrics.json: tensorboard, wandb, trackio, mlflow."""
    plan_power: float | None = Field(default=None, gt=0, le=1)
    """Do not run a model; print how many questions are needed to detect a persona effect of this size (0 to 1), based on the run
    in --out if there is one."""

    @model_validator(mode="after")
    def _check_room_for_answer(self) -> "StabilityConfig":
        if "max_new_tokens" in self.sampling.model_fields_set:  # else the budget is added to the task's own limit
            check_room_for_answer(self.model, "sampling.max_new_tokens", self.sampling.max_new_tokens)
        return self

    @model_validator(mode="after")
    def _check_templates(self) -> "StabilityConfig":
        if len(self.templates) == 1:
            raise ValueError(f"templates = {self.templates!r}: give two or more templates, or this one as personas.template")
        if self.templates and self.personas.template != PersonasConfig().template:
            raise ValueError(
                f"personas.template = {self.personas.template!r}: templates replace it; leave it out, or add it to templates"
            )
        if self.templates and self.strategy != "none":
            raise ValueError(f'templates: strategy = "{self.strategy}" uses one template; leave templates out')
        return self

    @model_validator(mode="after")
    def _check_character_reference(self) -> "StabilityConfig":
        if not self.right_in_character:
            _require_defaults(self, ("character_reference",), "", "without right_in_character = true")
        return self

    @model_validator(mode="after")
    def _check_contexts(self, info: ValidationInfo) -> "StabilityConfig":
        check_contexts(self.contexts, self.context_turns, is_draft=bool(info.context and info.context.get("draft")))
        if self.contexts and self.strategy != "none":
            raise ValueError(f'contexts: strategy = "{self.strategy}" asks in one context; leave contexts out')
        return self

    @model_validator(mode="after")
    def _check_adaptive_allocation(self) -> "StabilityConfig":
        field = "budget" if self.budget is not None else "precision"
        value = getattr(self, field)
        if value is not None and (self.strategy != "none" or self.templates or self.contexts):
            crossed = "templates" if self.templates else "contexts"
            other = f'strategy = "{self.strategy}"' if self.strategy != "none" else crossed
            raise ValueError(f"{field} = {value}: {other} asks the whole grid; leave one of the two out")
        return self

    @model_validator(mode="after")
    def _check_shard(self) -> "StabilityConfig":
        """Refuse what needs the answers of all workers before it can ask further."""
        if self.shard is None:
            return self
        if self.strategy not in ("none", "persona-vote"):
            needs = f'strategy = "{self.strategy}" chooses further cells by the answers of all workers'
        elif self.budget is not None or self.precision is not None:
            needs = f"{'budget' if self.budget is not None else 'precision'} plans each round by the answers of all workers"
        elif self.plan_power is not None:
            needs = "plan_power asks nothing"
        else:
            return self
        raise ValueError(f'shard = "{self.shard}": {needs}; leave one of the two out')


FidelityKind = Literal["open", "personagym", "interview"]


class FidelityConfig(SharedRunConfig):
    """Configuration of `permix fidelity`."""

    stage: Literal["fidelity"] = "fidelity"
    """Fixed: names the command in a configuration file."""
    out: Path = Path("runs/fidelity")
    """The run directory."""
    model: ModelConfig = ModelConfig()
    personas: PersonasConfig = PersonasConfig()
    questions: str = "builtin"
    """"builtin", or a file of open-ended questions: TOML, JSONL, or a .txt file with one question per line."""
    questions_split: Split = "heldout"
    """Split of these questions; a file without splits is used whole."""
    personagym: PersonaGymConfig = PersonaGymConfig()
    """PersonaGym's questions, which differ from persona to persona, in place of the shared questions."""
    interview: InterviewConfig = InterviewConfig()
    """A conversation with each persona, in place of single questions."""
    interviewer: InterviewerConfig = InterviewerConfig()
    judge: JudgeModelConfig = JudgeModelConfig()
    """A judge that scores the answers of this run; `permix judge` adds further judges."""
    n_questions: int | None = Field(default=None, gt=0)
    """Number of shared questions; all when not given."""
    reference: Path | None = None
    """The base model's fidelity run: its answers train the classifier that names the personas; this run's own answers when not
    given."""
    cache: CachePath = None
    """A folder that stores completions for several runs: a completion that is in it is not generated again."""
    folds: int = Field(default=5, ge=2)
    """Folds of the cross-validation over questions: the classifier never sees the questions that it is tested on."""
    embedder: str = Field(default="auto", min_length=1)
    """The sentence embedder that compares answers with the persona texts (recognisability): "auto" (all-MiniLM-L6-v2, if the
    extra embed is installed), "none" (do not measure it), a folder, or a hub id."""
    sampling: Sampling = Sampling(temperature=0.7, max_new_tokens=48)
    seed: int = Field(default=0, ge=0)
    """Seed for sampling completions, for the folds and for the bootstrap."""
    resamples: int = Field(default=2000, ge=100)
    """Number of bootstrap resamples."""
    report_to: TrackerNames = ()
    """Experiment trackers that receive the measures, besides metrics.json: tensorboard, wandb, trackio, mlflow."""

    @property
    def kind(self) -> FidelityKind:
        """The kind of run: questions that all personas share (open), PersonaGym's questions, or an interview."""
        if self.interview.turns:
            return "interview"
        return "personagym" if self.personagym.path or self.personagym.hub else "open"

    @model_validator(mode="after")
    def _check_room_for_answer(self) -> "FidelityConfig":
        check_room_for_answer(self.model, "sampling.max_new_tokens", self.sampling.max_new_tokens)
        return self

    @model_validator(mode="after")
    def _check_one_kind(self) -> "FidelityConfig":
        if self.interview.turns and (self.personagym.path or self.personagym.hub):
            raise ValueError(
                f"interview.turns = {self.interview.turns}: personagym has its own questions; leave one of the two out"
            )
        return self

    @model_validator(mode="after")
    def _check_ignored_fields(self) -> "FidelityConfig":
        """PersonaGym has its own personas and questions, and an interview its own questions; neither uses cross-validation."""
        shared = ("questions", "questions_split", "n_questions", "folds", "embedder")
        match self.kind:
            case "personagym":
                _require_defaults(self.personas, ("pool", "split", "include", "exclude"), "personas.", "with personagym")
                _require_defaults(self, (*shared, "reference"), "", "with personagym")
            case "interview":
                _require_defaults(self, shared, "", "with interview.turns")
        if self.kind != "personagym":
            ignored = tuple(name for name in PersonaGymConfig.model_fields if name not in ("path", "hub"))
            _require_defaults(self.personagym, ignored, "personagym.", "without personagym.path or personagym.hub")
        return self

    @model_validator(mode="after")
    def _check_judge_given(self) -> "FidelityConfig":
        if self.judge.name == "none":
            ignored = tuple(name for name in JudgeModelConfig.model_fields if name != "name")
            _require_defaults(self.judge, ignored, "judge.", "without judge.name")
        return self

    @model_validator(mode="after")
    def _check_interview(self) -> "FidelityConfig":
        given = [name for name in ("script", "order") if getattr(self.interview, name) != getattr(InterviewConfig(), name)]
        if not self.interview.turns and (given or self.interviewer.is_model):
            field = f"interview.{given[0]}" if given else f'interviewer.name = "{self.interviewer.name}"'
            raise ValueError(f"{field}: has no effect without interview.turns; give interview.turns = 3 or more")
        if self.interviewer.is_model and given:
            raise ValueError(
                f'interviewer.name = "{self.interviewer.name}": the model asks its own questions; leave interview.{given[0]} out'
            )
        return self

    @model_validator(mode="after")
    def _check_shard(self) -> "FidelityConfig":
        if self.shard is not None and self.interviewer.is_model:
            raise ValueError(
                f'shard = "{self.shard}": grid.json lists the questions, which interviewer.name = "{self.interviewer.name}" '
                "makes up while it asks; leave one of the two out"
            )
        if self.shard is not None and self.judge.name != "none":
            raise ValueError(
                f'shard = "{self.shard}": judge.name = "{self.judge.name}" needs the answers of all workers; leave it out, and '
                "run permix judge when all parts are finished"
            )
        return self


def fidelity_kind(settings: Mapping[str, Any]) -> FidelityKind:
    """`FidelityConfig.kind` from config.json, where a run of an earlier version may lack the sections of later kinds."""
    if (settings.get("interview") or {}).get("turns"):
        return "interview"
    gym = settings.get("personagym") or {}
    return "personagym" if gym.get("path") or gym.get("hub") else "open"


def _require_defaults(section: ConfigSection, names: tuple[str, ...], prefix: str, ignored_where: str) -> None:
    """Raise ValueError for the first of these fields that does not have its default value, since it would have no effect.

    `ignored_where` completes the message: "has no effect with personagym"."""
    for name in names:
        value, default = getattr(section, name), type(section).model_fields[name].default
        if value != default:
            raise ValueError(f"{prefix}{name} = {value!r}: has no effect {ignored_where}; leave it out (default: {default!r})")


class JudgeConfig(ConfigSection):
    """Configuration of `permix judge`."""

    stage: Literal["judge"] = "judge"
    """Fixed: names the command in a configuration file."""
    run: Path = Path("runs/fidelity")
    """The fidelity run whose answers the judge scores; the scores are written to judges/LABEL in it."""
    judge: JudgeModelConfig = JudgeModelConfig()
    threads: int | None = Field(default=None, gt=0)
    """CPU threads for torch; all cores of the machine when not given."""
    seed: int = Field(default=0, ge=0)
    """Seed for sampling the judge's replies, for choosing the controls and for the bootstrap."""
    resamples: int = Field(default=2000, ge=100)
    """Number of bootstrap resamples."""
    report_to: TrackerNames = ()
    """Experiment trackers that receive the measures, besides metrics.json: tensorboard, wandb, trackio, mlflow."""


class QuestionsConfig(RunConfig):
    """Configuration of `permix questions`."""

    stage: Literal["questions"] = "questions"
    """Fixed: names the command in a configuration file."""
    out: Path = Path("runs/questions")
    """The run directory; `permix fidelity --personagym.path` reads the questions.jsonl in it."""
    model: ModelConfig = ModelConfig()
    """The model that writes the questions."""
    personas: PersonasConfig = PersonasConfig(split="all")
    personagym: PersonaGymConfig = PersonaGymConfig()
    """Use these questions instead of writing new ones, to get example answers to them (with --examples)."""
    tasks: tuple[PersonaGymTask, ...] = ()
    """Only these tasks; all five when not given."""
    n: int = Field(default=10, gt=0, le=100)
    """Number of questions of each task for each persona."""
    settings: Path | None = None
    """A text file of situations that questions may be about, one per line; the built-in list when not given."""
    examples: bool = False
    """Also write an example answer for each score of each question, to examples.jsonl."""
    attempts: int = Field(default=3, gt=0)
    """How many times one start of the command asks again if a reply cannot be used."""
    sampling: Sampling = Sampling(temperature=0.9, top_p=0.95, max_new_tokens=1500)
    seed: int = Field(default=0, ge=0)
    """Seed for sampling the replies."""

    @model_validator(mode="after")
    def _check_ignored_fields(self) -> "QuestionsConfig":
        if len(set(self.tasks)) < len(self.tasks):
            raise ValueError(f"tasks = {list(self.tasks)}: names a task twice")
        _require_defaults(self.personas, ("template", "empty_system_prompt"), "personas.", "here: no model plays a persona")
        if self.personagym.path is None and self.personagym.hub is None:
            if self.personagym != PersonaGymConfig():
                raise ValueError("personagym: has neither path nor hub; give one of them, or leave the section out")
            return self
        if not self.examples:
            raise ValueError("examples = false: personagym has the questions already; give examples = true")
        if self.tasks and self.personagym.tasks:
            raise ValueError(f"tasks = {list(self.tasks)}, personagym.tasks = {list(self.personagym.tasks)}: give one of the two")
        for name in ("personas", "n", "settings"):
            value, default = getattr(self, name), QuestionsConfig.model_fields[name].default
            if value != default:
                raise ValueError(f"{name} = {value!r}: has no effect with personagym, which has its own {name}; leave it out")
        return self


class ReportConfig(ConfigSection):
    """Configuration of `permix report`."""

    stage: Literal["report"] = "report"
    """Fixed: names the command in a configuration file."""
    runs: tuple[Path, ...] = ()
    """Run directories, or folders that contain run directories."""
    out: Path = Path("runs/report")
    """The folder for report.md, index.html, table.json and the figures."""
    methods: tuple[str, ...] = ()
    """Models that differ only in the training seed, to be pooled: NAME=LABEL,LABEL; when not given, the training runs decide."""
    cards: bool = False
    """Also write the claim, the main table and the trade-off figure into the model card of every model trained in these
    runs."""
    as_published: bool = False
    """Also show the score that PersonaGym's released code would compute from the same judge scores."""
    published: tuple[str, ...] = ()
    """Score files of PersonaGym's code or a fork, to show next to the runs: NAME=PATH, where PATH is a scores.json or a folder of
    *_score.json."""


class CompareConfig(ConfigSection):
    """Configuration of `permix compare`."""

    stage: Literal["compare"] = "compare"
    """Fixed: names the command in a configuration file."""
    runs: tuple[Path, ...] = ()
    """Two stability runs, or two folders that contain one each; every difference is second minus first."""
    out: Path | None = None
    """The folder for comparison.md and comparison.json; when not given, the comparison is only printed."""
    seed: int = Field(default=0, ge=0)
    """Seed for the bootstrap and the permutation tests."""
    resamples: int = Field(default=2000, ge=100)
    """Number of bootstrap resamples, and of permutations in each test."""


class PowerConfig(ConfigSection):
    """Configuration of `permix power`."""

    stage: Literal["power"] = "power"
    """Fixed: names the command in a configuration file."""
    runs: tuple[Path, ...] = ()
    """Pilot runs of two methods (stability runs, fidelity runs and training runs), or folders that contain them."""
    methods: tuple[str, ...] = ()
    """Methods and the labels of their models, which differ only in the training seed: NAME=LABEL,LABEL. When not given, the
    training runs decide."""
    effects: tuple[str, ...] = ()
    """Differences to plan for: MEASURE=SIZE, such as pss=0.1. MEASURE: pss, worst, mean, relative_persona_sd,
    worst_minus_baseline, mean_minus_baseline, identifiability, recognisability or right_in_character, which the runs must have.
    When not given: default sizes for pss, worst, worst_minus_baseline, mean_minus_baseline and identifiability, as far as the
    runs have them."""
    questions: tuple[Annotated[int, Field(ge=10)], ...] = (100, 200, 400, 800)
    """Numbers of questions to plan with."""
    seeds: tuple[Annotated[int, Field(ge=2)], ...] = (2, 3, 5, 8)
    """Numbers of training seeds of each method to plan with, at least 2: one seed has no interval over seeds."""
    seed_sds: tuple[Annotated[float, Field(ge=0, le=1)], ...] = (0.0, 0.02, 0.04)
    """Assumed standard deviations of a measure between training seeds of one method; used if a method has only one seed."""
    out: Path | None = None
    """The folder for power.json; when not given, the table is only printed."""


class ViewConfig(ConfigSection):
    """Configuration of `permix view`."""

    stage: Literal["view"] = "view"
    """Fixed: names the command in a configuration file."""
    runs: Path = Path("runs")
    """The folder to watch: all runs in it and its subfolders are shown, also runs that start later."""
    port: int = Field(default=8642, ge=0, le=65535)
    """Port of the web page on this machine (127.0.0.1); 0 for any free port."""
    try_it: bool = False
    """Let the page ask the models and endpoints of the viewed runs: you choose a persona and a question, and see the answers side
    by side. An endpoint gets the key in the environment variable that its run names, so give this only for runs you trust."""


class QuickstartConfig(ConfigSection):
    """Configuration of `permix quickstart`."""

    stage: Literal["quickstart"] = "quickstart"
    """Fixed: names the command in a configuration file."""
    out: Path | None = None
    """The folder for the runs and the report; when not given, runs/quickstart, or runs/quickstart-fast with --fast."""
    model: str = "bundled"
    """The model to measure and train: "bundled" (SmolLM2-135M-Instruct), a model folder, or a hub id."""
    fast: bool = False
    """Fewer steps, rollouts, questions and personas: about two minutes."""
    seed: int = Field(default=0, ge=0)
    """Seed for plans, training and evaluations."""
    jobs: int | None = Field(default=None, gt=0)
    """Number of processes that run at the same time, each of which trains or evaluates a model; when not given, one for each core
    or GPU and for each 6 GB of memory, at most 3. 1 runs all parts in this process."""
    part: tuple[str, ...] | None = Field(default=None, min_length=1)
    """Run only these parts, one after the other in this process: base-stability, base-fidelity, rlvr-train, and so on."""
    threads: int | None = Field(default=None, gt=0)
    """CPU threads of each process; the cores divided by the jobs when not given."""

    @field_validator("part", mode="before")
    @classmethod
    def _accept_one_part(cls, value: object) -> object:
        return (value,) if isinstance(value, str) else value

    @property
    def folder(self) -> Path:
        """`out`, or its default."""
        return self.out or Path("runs/quickstart-fast" if self.fast else "runs/quickstart")


LogFormat = Literal["lm-eval", "inspect"]

EngineFormat = Literal["verl", "verifiers"]
"""The training engines that `permix export` writes a plan for: the keys of `permix.pipelines.engine_export.ENGINES`."""

ENGINE_FORMATS: tuple[EngineFormat, ...] = get_args(EngineFormat)


class ImportConfig(ConfigSection):
    """Configuration of `permix import`."""

    stage: Literal["import"] = "import"
    """Fixed: names the command in a configuration file."""
    out: Path = Path("runs/imported")
    """The run directory to write."""
    label: str | None = None
    """Name of the model in tables; its name in the logs when not given."""
    lm_eval: tuple[str, ...] = ()
    """Logs of lm-evaluation-harness, written with --log_samples, one for each persona: NAME=PATH for a persona, none=PATH for the
    run without persona; a PATH without name is named after its system instruction. PATH is the folder given as --output_path, a
    samples_*.jsonl, or the results_*.json of one run."""
    inspect: tuple[str, ...] = ()
    """Logs of inspect_ai (.eval or .json files, or a folder of them): PATH if the samples' metadata names the persona (see
    --persona-key), or NAME=PATH for each persona."""
    personagym: Path | None = None
    """A folder of one model's answers, {persona}_qa.json, as PersonaGym's code and its forks save them."""
    personagym_questions: Path | None = None
    """The questions that the model was asked, in the form of --personagym.path of `permix fidelity`, so that missing answers are
    counted; when not given, the questions in the answers."""
    verl: Path | None = None
    """The rollouts of a training that verl made from a plan of permix: the folder that trainer.rollout_data_dir named."""
    plan: Path | None = None
    """The plan of that training: the folder that `permix export --format verl` wrote, or the plan file."""
    validation: Path | None = None
    """The answers of that training's validations: the folder that trainer.validation_data_dir named."""
    verl_log: tuple[Path, ...] = ()
    """The metrics of that training (loss, KL, length of completions): the files that verl's logger "file" wrote, in order. A
    training that was resumed has written several."""
    task: str | None = None
    """The task to import, or a group of tasks, such as mmlu; needed if the logs contain several."""
    metric: str | None = None
    """The score to import: a metric of lm-evaluation-harness or a scorer of inspect_ai; needed if the logs contain several."""
    filter: str | None = None
    """The filter (answer extraction) of lm-evaluation-harness to import; needed if the logs contain several."""
    answer: Literal["number", "math", "exact", "choice"] | None = None
    """Score every answer with permix's verifier, as the task own-ANSWER does, instead of using the logs' scores."""
    persona_key: str = "persona"
    """Name of the field in a sample's metadata that names the persona (inspect_ai)."""
    seed: int = Field(default=0, ge=0)
    """Seed for the bootstrap and the permutation tests."""
    resamples: int = Field(default=2000, ge=100)
    """Number of bootstrap resamples, and of permutations in each test."""

    @model_validator(mode="after")
    def _check_personagym_options(self) -> "ImportConfig":
        """PersonaGym's answers have no scores, so options that choose or make a score are refused."""
        if self.personagym is None and self.personagym_questions is not None:
            raise ValueError(f"personagym_questions = {self.personagym_questions}: give personagym, the folder of answers, too")
        if self.personagym is not None:
            self._refuse(
                ("lm_eval", "inspect", "task", "metric", "filter", "answer"), "has no effect with personagym; leave it out"
            )
        return self

    @model_validator(mode="after")
    def _check_verl_options(self) -> "ImportConfig":
        """A training is imported alone, and with its plan."""
        if self.verl is None:
            self._refuse(("plan", "validation", "verl_log"), "give verl, the folder of rollouts, too")
            return self
        if self.plan is None:
            raise ValueError(
                "plan is missing: with verl, give the folder that `permix export --format verl` wrote, or the plan file, so that "
                "rollouts are traced to their questions and personas"
            )
        others = ("lm_eval", "inspect", "personagym", "personagym_questions", "task", "metric", "filter", "answer")
        self._refuse(others, "has no effect with verl; leave it out")
        return self

    def _refuse(self, names: tuple[str, ...], reason: str) -> None:
        for name in names:
            if value := getattr(self, name):
                shown = str(value) if isinstance(value, Path) else repr(value)
                raise ValueError(f"{name} = {shown}: {reason}")


class ExportConfig(ConfigSection):
    """Configuration of `permix export`."""

    stage: Literal["export"] = "export"
    """Fixed: names the command in a configuration file."""
    run: Path = Path("runs/stability")
    """The stability run to export (formats inspect and lm-eval)."""
    plan: Path | None = None
    """The training to export (the other formats): a configuration of `permix train`, or a plan file of `permix plan`."""
    format: LogFormat | EngineFormat = "inspect"
    """What to write: of a run, one log of inspect_ai, or one folder per persona as lm-evaluation-harness writes it; of a training
    plan, the files that verl trains from, or a package for verifiers with the configuration of prime-rl."""
    out: Path = Path("runs/exported")
    """The folder to write to."""
    config: Path | None = None
    """With a plan file: the configuration of `permix train` whose settings the training has; its defaults when not given."""
    model: str | None = None
    """With a training: the model's name on the machines that train, a hub id or a folder there; model.name when not given."""
    nnodes: int = Field(default=1, gt=0)
    """With a training: number of machines that train."""
    n_gpus_per_node: int = Field(default=8, gt=0)
    """With a training: number of GPUs of each of these machines."""

    @model_validator(mode="after")
    def _check_source(self) -> "ExportConfig":
        """A run goes with the formats of logs, a training with those of engines."""
        if self.format in ENGINE_FORMATS:
            if self.plan is None:
                raise ValueError(
                    f'plan is missing: format "{self.format}" takes a configuration of `permix train` or a plan file of '
                    "`permix plan`"
                )
            _require_defaults(self, ("run",), "", f'with format "{self.format}"')
        else:
            _require_defaults(self, ("plan", "config", "model", "nnodes", "n_gpus_per_node"), "", f'with format "{self.format}"')
        return self


class ImportedModelConfig(ConfigSection):
    """The model of an imported run, by the name in its logs; None if they do not name it."""

    name: str | None


class ImportedSamplingConfig(ConfigSection):
    """The fields of `Sampling`; None if the log does not state a field."""

    temperature: float | None = None
    top_p: float | None = None
    max_new_tokens: int | None = None


class ImportedStabilityConfig(ConfigSection):
    """The config.json of a stability run made by `permix import`: the fields that readers of runs need, and `imported`."""

    stage: Literal["stability"] = "stability"
    label: str | None
    model: ImportedModelConfig
    sampling: ImportedSamplingConfig
    samples: int = Field(gt=0)
    seed: int
    resamples: int
    imported: ImportConfig


class ImportedFidelityConfig(ConfigSection):
    """The config.json of a fidelity run made by `permix import`: the fields that readers of runs need, and `imported`."""

    stage: Literal["fidelity"] = "fidelity"
    label: str | None
    model: ImportedModelConfig
    sampling: ImportedSamplingConfig = ImportedSamplingConfig()
    personagym: PersonaGymConfig
    seed: int
    resamples: int
    imported: ImportConfig


class ImportedTrainConfig(ConfigSection):
    """The config.json of a training run made by `permix import`: the fields that readers of runs need, and `imported`.

    `train` is [train] as it was exported; it is left out where the import was given the plan file alone.
    """

    stage: Literal["train"] = "train"
    label: str | None
    method: Literal["permix", "rlvr"]
    engine: Literal["verl"] = "verl"
    model: ImportedModelConfig
    plan: RolloutPlanConfig
    train: OptimConfig | None = Field(default=None, exclude_if=lambda value: value is None)
    dev_eval: DevEvalConfig = DevEvalConfig()
    imported: ImportConfig

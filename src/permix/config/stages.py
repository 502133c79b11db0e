"""One class a verb: the sections it is made of, and what must hold between them."""

from pathlib import Path
from typing import Annotated, Literal

from pydantic import AfterValidator, Field, ValidationInfo, field_validator, model_validator

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
)
from permix.config.interop import ExportConfig, ImportConfig
from permix.config.training import (
    IGNORED_FIELDS,
    NO_PERSONA_METHODS,
    CharacterConfig,
    DevEvalConfig,
    OptimConfig,
    RolloutPlanConfig,
    TrainerBackendName,
    TrainMethod,
    resolve_mix,
)
from permix.types import Sampling, Split


class RunConfig(ConfigSection):
    """What every verb that makes a run directory shares."""

    out: Path
    """The run directory."""
    label: str | None = None
    """The model's name in tables ("base", "RLVR"); the model's own name when not given."""
    threads: int | None = Field(default=None, gt=0)
    """CPU threads for torch, in each process; the machine's cores, shared out among its processes, when not given."""


def _require_train_split(section: TaskConfig) -> TaskConfig:
    if section.split != "train":
        raise ValueError(
            f'split = "{section.split}": training takes split = "train"; dev is there to choose on, heldout to measure on'
        )
    return section


def _require_builtin_train_split(section: PersonasConfig) -> PersonasConfig:
    if section.pool == "builtin" and section.split != "train":
        raise ValueError(
            f'split = "{section.split}": training takes split = "train" of the built-in pool; dev is there to choose on, heldout '
            "to measure on. A pool of your own may be trained on whole"
        )
    return section


TrainingTask = Annotated[TaskConfig, AfterValidator(_require_train_split)]

TrainingPersonas = Annotated[PersonasConfig, AfterValidator(_require_builtin_train_split)]


def _check_cache_without_endpoint(folder: Path | None, info: ValidationInfo) -> Path | None:
    model = info.data.get("model")
    if folder is not None and model is not None and model.backend == "openai":
        raise ValueError(
            f'cache = {folder}: what an endpoint serves under a name may change; leave cache out with backend "openai"'
        )
    return folder


CachePath = Annotated[Path | None, AfterValidator(_check_cache_without_endpoint)]


class PlanConfig(ConfigSection):
    stage: Literal["plan"] = "plan"
    out: Path = Path("runs/plan.parquet")
    """The Parquet file to write."""
    task: TrainingTask = TaskConfig(split="train", n=1000)
    personas: TrainingPersonas = PersonasConfig(split="train")
    plan: RolloutPlanConfig = RolloutPlanConfig()


class TrainableModelConfig(ConfigSection):
    name: str = "bundled"
    """"bundled" (SmolLM2-135M-Instruct), a model folder or a hub id; its weights are trained in float32."""


class TeacherConfig(ModelConfig):
    name: str = "self"
    """"self" (the model that is trained, as it is before training), or as in a model section."""
    max_samples_per_row: int | None = Field(default=None, gt=0)
    """At most so many different right samples of one row are learnt from; all when not given."""

    @model_validator(mode="after")
    def _check_served_name(self) -> "TeacherConfig":
        if self.backend == "openai" and self.name == "self":
            raise ValueError('name is missing: with backend "openai" give the name that the endpoint serves')
        return self


class TrainConfig(RunConfig):
    stage: Literal["train"] = "train"
    out: Path = Path("runs/train")
    """The run directory."""
    method: TrainMethod = "permix"
    """PerMix-RLVR or plain RLVR; SFT on gold answers, without or with personas; or distillation on verified samples (seqkd)."""
    backend: TrainerBackendName = "trl"
    """The engine that trains: "trl" trains in the processes of this command, by TRL's trainers."""
    model: TrainableModelConfig = TrainableModelConfig()
    teacher: TeacherConfig = TeacherConfig()
    """Who gives the samples of method seqkd."""
    plan_file: Path | None = None
    """A plan to train from; when not given, one is compiled from the sections task, personas and plan."""
    task: TrainingTask = TaskConfig(split="train", n=1000)
    personas: TrainingPersonas = PersonasConfig(split="train")
    plan: RolloutPlanConfig = RolloutPlanConfig()
    train: OptimConfig = OptimConfig()
    character: CharacterConfig = CharacterConfig()
    dev_eval: DevEvalConfig = DevEvalConfig()

    @field_validator("plan")
    @classmethod
    def _fill_mix_from_method(cls, plan: RolloutPlanConfig, info: ValidationInfo) -> RolloutPlanConfig:
        """So that whoever reads the configuration reads the share that is used. A plan from a file has its own."""
        draft = bool(info.context and info.context.get("draft"))
        if draft or "method" not in info.data or info.data.get("plan_file") is not None:
            return plan
        return plan.model_copy(update={"mix": resolve_mix(plan, info.data["method"])})

    @model_validator(mode="after")
    def _check_ignored_fields(self) -> "TrainConfig":
        """What means nothing to the method must stand at its default: whoever sets it expects something of it."""
        if self.method in NO_PERSONA_METHODS and self.plan.mix:
            raise ValueError(
                f'plan.mix = {self.plan.mix}: method "{self.method}" asks without personas; leave plan.mix out, or give method '
                f'"{"permix" if self.method == "rlvr" else "sft-personas"}"'
            )
        _require_defaults(self.train, IGNORED_FIELDS[self.method], "train.", f'to method "{self.method}"')
        if self.method != "seqkd" and self.teacher != TeacherConfig():
            raise ValueError(f'teacher: method "{self.method}" has none; leave the section out, or give method "seqkd"')
        return self


class StabilityConfig(RunConfig):
    stage: Literal["stability"] = "stability"
    out: Path = Path("runs/stability")
    """The run directory."""
    model: ModelConfig = ModelConfig()
    task: TaskConfig = TaskConfig()
    personas: PersonasConfig = PersonasConfig()
    sampling: Sampling = Sampling()
    cache: CachePath = None
    """A folder of answers by content, for other runs to use and add to: what is there is not generated again."""
    samples: int = Field(default=1, gt=0)
    """Completions of one persona × question."""
    templates: tuple[str, ...] = ()
    """Two wordings or more that bring every persona in in turn, in place of personas.template; each as that one is given."""
    seed: int = Field(default=0, ge=0)
    """Seeds every cell's sampling, and the resampling of the intervals."""
    resamples: int = Field(default=2000, ge=100)
    """Bootstrap resamples and permutations."""
    exclude_plans: tuple[Path, ...] = ()
    """Plans whose questions must not be asked."""
    strategy: Literal["none", "persona-search", "persona-vote", "persona-plus-neutral"] = "none"
    """A way to use personas at inference, measured with what it costs: see `permix.evals.strategies`."""
    strategy_questions: int = Field(default=50, gt=0)
    """By how many questions of the task's dev side a persona is chosen (strategy "persona-search")."""
    budget: int | None = Field(default=None, gt=0)
    """At most so many cells, spent where they decide who is worst and best; the whole grid when not given."""
    precision: float | None = Field(default=None, gt=0, lt=1)
    """Ask until PSS is known to ± this, spending cells where they decide; task.n is then the most questions."""
    plan_power: float | None = Field(default=None, gt=0, le=1)
    """Ask nothing; say how many questions a persona effect of this size needs, by the run that is there if one is."""

    @model_validator(mode="after")
    def _check_templates(self) -> "StabilityConfig":
        if len(self.templates) == 1:
            raise ValueError(f"templates = {self.templates!r}: give two or more to cross, or this one as personas.template")
        if self.templates and self.personas.template != PersonasConfig().template:
            raise ValueError(
                f"personas.template = {self.personas.template!r}: templates are asked in its place; put it among them"
            )
        if self.templates and self.strategy != "none":
            raise ValueError(f'templates: strategy = "{self.strategy}" asks in one wording; leave templates out')
        return self

    @model_validator(mode="after")
    def _check_adaptive_allocation(self) -> "StabilityConfig":
        field = "budget" if self.budget is not None else "precision"
        value = getattr(self, field)
        if value is not None and (self.strategy != "none" or self.templates):
            other = f'strategy = "{self.strategy}"' if self.strategy != "none" else "templates"
            raise ValueError(f"{field} = {value}: {other} asks the whole grid; leave one of the two out")
        return self


class FidelityConfig(RunConfig):
    stage: Literal["fidelity"] = "fidelity"
    out: Path = Path("runs/fidelity")
    """The run directory."""
    model: ModelConfig = ModelConfig()
    personas: PersonasConfig = PersonasConfig()
    questions: str = "builtin"
    """"builtin", or a file of open-ended questions (TOML, JSONL, or one a line)."""
    questions_split: Split = "heldout"
    """Which side of them, where the file gives them sides; a file without sides is asked whole."""
    personagym: PersonaGymConfig = PersonaGymConfig()
    """PersonaGym's questions, each persona its own, in place of the shared ones."""
    interview: InterviewConfig = InterviewConfig()
    """A conversation with each persona in place of single questions."""
    interviewer: InterviewerConfig = InterviewerConfig()
    judge: JudgeModelConfig = JudgeModelConfig()
    """Who judges the answers once they are there; more judges by `permix judge`."""
    n_questions: int | None = Field(default=None, gt=0)
    """How many of them; all when not given."""
    reference: Path | None = None
    """The base model's fidelity run, whose answers train the classifier; this run's own answers when not given."""
    cache: CachePath = None
    """A folder of answers by content, for other runs to use and add to: what is there is not generated again."""
    folds: int = Field(default=5, ge=2)
    """Questions are held out in this many parts."""
    sampling: Sampling = Sampling(temperature=0.7, max_new_tokens=48)
    seed: int = Field(default=0, ge=0)
    """Seeds every cell's sampling, the folds and the resampling of the intervals."""
    resamples: int = Field(default=2000, ge=100)
    """Bootstrap resamples."""

    @property
    def kind(self) -> Literal["open", "personagym", "interview"]:
        """What is asked: questions that all personas share, PersonaGym's own of each, or a conversation."""
        if self.interview.turns:
            return "interview"
        return "personagym" if self.personagym.path or self.personagym.hub else "open"

    @model_validator(mode="after")
    def _check_one_kind(self) -> "FidelityConfig":
        if self.interview.turns and (self.personagym.path or self.personagym.hub):
            raise ValueError(
                f"interview.turns = {self.interview.turns}: personagym asks questions of its own; leave one of the two out"
            )
        return self

    @model_validator(mode="after")
    def _check_ignored_fields(self) -> "FidelityConfig":
        """PersonaGym brings personas and questions of its own, an interview its questions; neither is learnt from in folds."""
        shared = ("questions", "questions_split", "n_questions", "folds")
        match self.kind:
            case "personagym":
                _require_defaults(self.personas, ("pool", "split", "include", "exclude"), "personas.", "with personagym")
                _require_defaults(self, (*shared, "reference"), "", "with personagym")
            case "interview":
                _require_defaults(self, shared, "", "with interview.turns")
        if self.kind != "personagym":
            idle = tuple(name for name in PersonaGymConfig.model_fields if name not in ("path", "hub"))
            _require_defaults(self.personagym, idle, "personagym.", "without personagym.path or personagym.hub")
        return self

    @model_validator(mode="after")
    def _check_judge_given(self) -> "FidelityConfig":
        if self.judge.name == "none":
            idle = tuple(name for name in JudgeModelConfig.model_fields if name != "name")
            _require_defaults(self.judge, idle, "judge.", "without judge.name")
        return self

    @model_validator(mode="after")
    def _check_interview(self) -> "FidelityConfig":
        given = [name for name in ("script", "order") if getattr(self.interview, name) != getattr(InterviewConfig(), name)]
        if not self.interview.turns and (given or self.interviewer.is_model):
            named = f"interview.{given[0]}" if given else f'interviewer.name = "{self.interviewer.name}"'
            raise ValueError(f"{named}: there is no interview without interview.turns; give 3 or more")
        if self.interviewer.is_model and given:
            raise ValueError(
                f'interviewer.name = "{self.interviewer.name}": a model asks its own questions; leave interview.{given[0]} out'
            )
        return self


def _require_defaults(section: ConfigSection, names: tuple[str, ...], prefix: str, ignored_where: str) -> None:
    """Raise ValueError for a field that does not stand at its default, and `ignored_where` means nothing."""
    for name in names:
        value, default = getattr(section, name), type(section).model_fields[name].default
        if value != default:
            raise ValueError(f"{prefix}{name} = {value!r}: means nothing {ignored_where}; leave it out (default: {default!r})")


class JudgeConfig(ConfigSection):
    stage: Literal["judge"] = "judge"
    run: Path = Path("runs/fidelity")
    """The run of `permix fidelity` whose answers are judged; verdicts go to judges/LABEL in it."""
    judge: JudgeModelConfig = JudgeModelConfig()
    threads: int | None = Field(default=None, gt=0)
    """CPU threads for torch; the machine's cores when not given."""
    seed: int = Field(default=0, ge=0)
    """Seeds every verdict, what the judge is tried on, and the resampling of the intervals."""
    resamples: int = Field(default=2000, ge=100)
    """Bootstrap resamples."""


class QuestionsConfig(RunConfig):
    stage: Literal["questions"] = "questions"
    out: Path = Path("runs/questions")
    """The run directory; questions.jsonl in it is what `permix fidelity --personagym.path` reads."""
    model: ModelConfig = ModelConfig()
    """Who writes the questions."""
    personas: PersonasConfig = PersonasConfig(split="all")
    personagym: PersonaGymConfig = PersonaGymConfig()
    """Take the questions from here instead of having them written, to get example answers to them."""
    tasks: tuple[PersonaGymTask, ...] = ()
    """Only these tasks; all five when not given."""
    n: int = Field(default=10, gt=0, le=100)
    """Questions of each task for each persona."""
    settings: Path | None = None
    """Situations to choose from, one a line; the built-in list when not given."""
    examples: bool = False
    """Also have an example answer written for each score of each question: examples.jsonl."""
    attempts: int = Field(default=3, gt=0)
    """How often one start asks again where the reply cannot be used."""
    sampling: Sampling = Sampling(temperature=0.9, top_p=0.95, max_new_tokens=1500)
    seed: int = Field(default=0, ge=0)
    """Seeds every reply."""

    @model_validator(mode="after")
    def _check_ignored_fields(self) -> "QuestionsConfig":
        if len(set(self.tasks)) < len(self.tasks):
            raise ValueError(f"tasks = {list(self.tasks)}: names a task twice")
        _require_defaults(self.personas, ("template", "empty_system_prompt"), "personas.", "here, where nobody plays a persona")
        if self.personagym.path is None and self.personagym.hub is None:
            if self.personagym != PersonaGymConfig():
                raise ValueError("personagym: has neither path nor hub, so no questions are taken from it; leave the section out")
            return self
        if not self.examples:
            raise ValueError("examples = false: the questions of personagym are there already; give examples = true")
        if self.tasks and self.personagym.tasks:
            raise ValueError(f"tasks = {list(self.tasks)}, personagym.tasks = {list(self.personagym.tasks)}: give one of the two")
        for name in ("personas", "n", "settings"):
            value, default = getattr(self, name), QuestionsConfig.model_fields[name].default
            if value != default:
                raise ValueError(f"{name} = {value!r}: means nothing with personagym, which brings its own; leave it out")
        return self


class ReportConfig(ConfigSection):
    stage: Literal["report"] = "report"
    runs: tuple[Path, ...] = ()
    """Run directories, or folders that hold some."""
    out: Path = Path("runs/report")
    """Where report.md, table.json and the figures go."""
    methods: tuple[str, ...] = ()
    """Models that are training seeds of one method, NAME=LABEL,LABEL; found from their training runs where not given."""
    cards: bool = False
    """Also write the claim, the main table and the trade-off figure into the card of every model trained in these runs."""
    as_published: bool = False
    """Beside PersonaScore, also what PersonaGym's released code would have made of the same scores."""
    published: tuple[str, ...] = ()
    """Score files of PersonaGym's code or a fork's to stand beside ours: NAME=PATH, a scores.json or a folder of *_score.json."""


class CompareConfig(ConfigSection):
    stage: Literal["compare"] = "compare"
    runs: tuple[Path, ...] = ()
    """Two stability runs, or folders that hold one each; every difference is second − first."""
    out: Path | None = None
    """Where comparison.md and comparison.json go; only the terminal when not given."""
    seed: int = Field(default=0, ge=0)
    """Seeds draws and swaps."""
    resamples: int = Field(default=2000, ge=100)
    """Bootstrap draws, and swaps of the tests."""


class ViewConfig(ConfigSection):
    stage: Literal["view"] = "view"
    runs: Path = Path("runs")
    """The folder whose runs are shown, at any depth; runs that appear later too."""
    port: int = Field(default=8642, ge=0, le=65535)
    """The port on this machine (127.0.0.1); 0 for a free one."""


class QuickstartConfig(ConfigSection):
    stage: Literal["quickstart"] = "quickstart"
    out: Path | None = None
    """Where the runs and the report go; runs/quickstart, or runs/quickstart-fast with --fast, when not given."""
    model: str = "bundled"
    """The model to measure and train: "bundled" (SmolLM2-135M-Instruct), a model folder, or a hub id."""
    fast: bool = False
    """About four minutes instead of twenty: fewer steps, questions and personas."""
    seed: int = Field(default=0, ge=0)
    """Seeds plans, evaluations and training alike."""
    threads: int | None = Field(default=None, gt=0)
    """CPU threads for torch; the machine's cores when not given."""

    @property
    def folder(self) -> Path:
        return self.out or Path("runs/quickstart-fast" if self.fast else "runs/quickstart")


AnyConfig = (
    PlanConfig
    | TrainConfig
    | StabilityConfig
    | FidelityConfig
    | JudgeConfig
    | QuestionsConfig
    | ReportConfig
    | CompareConfig
    | ViewConfig
    | ImportConfig
    | ExportConfig
    | QuickstartConfig
)

CONFIGS_BY_STAGE: dict[str, type[AnyConfig]] = {
    "plan": PlanConfig,
    "train": TrainConfig,
    "stability": StabilityConfig,
    "fidelity": FidelityConfig,
    "judge": JudgeConfig,
    "questions": QuestionsConfig,
    "report": ReportConfig,
    "compare": CompareConfig,
    "view": ViewConfig,
    "import": ImportConfig,
    "export": ExportConfig,
    "quickstart": QuickstartConfig,
}

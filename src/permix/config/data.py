"""Sections on what is asked, of whom, and as whom: `[model]`, `[task]`, `[personas]`.

Sections on who judges, on PersonaGym's questions and on interviews: `[judge]`, `[personagym]`, `[interview]`, ...
"""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, model_validator

from permix.config.base import ConfigSection
from permix.types import Split


class ModelConfig(ConfigSection):
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
    def _check_endpoint(self) -> "ModelConfig":
        if self.backend == "openai" and not self.base_url:
            raise ValueError('base_url is missing: backend "openai" needs one, such as http://127.0.0.1:8000/v1')
        return self

    @model_validator(mode="after")
    def _check_no_secrets(self) -> "ModelConfig":
        # The configuration is written to the run directory, so the messages do not repeat the values either.
        if "@" in (self.base_url or ""):
            raise ValueError("base_url holds credentials; put the key into the environment variable that api_key_env names")
        if not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", self.api_key_env):
            raise ValueError("api_key_env is not the name of an environment variable; the key itself must not be in a file")
        return self


class TaskConfig(ConfigSection):
    name: Literal[
        "arithmetic",
        "gsm8k",
        "math500",
        "math",
        "aime24",
        "aime25",
        "mmlu",
        "code",
        "own-number",
        "own-math",
        "own-exact",
        "own-choice",
    ] = "arithmetic"
    """Which task asks the questions; the own- ones are those of a file of yours."""
    path: Path | None = None
    """A local file or folder in the published format, instead of the hub; or your own questions, see `permix.tasks.custom`."""
    answer: Literal["number", "math", "exact", "choice"] | None = None
    """How answers to your own questions are compared; names the task own-ANSWER."""
    split: Split = "heldout"
    """Which side of the task: train to train on, dev to choose on, heldout to measure on."""
    n: int = Field(default=100, gt=0)
    """How many questions."""
    levels: tuple[str, ...] = ()
    """Only these levels (arithmetic: see `permix.tasks.arithmetic`; math: 1 to 5; mmlu: subjects; code: difficulties);
    empty means the task's default."""
    seed: int = Field(default=0, ge=0)
    """Which questions are drawn."""
    prompt_template: str | None = None
    """How a question is put, with {question} in it ("Think aloud, then answer. {question}"); the task's own when not given."""

    @model_validator(mode="before")
    @classmethod
    def _name_from_answer_type(cls, values: Any) -> Any:
        """`answer` is enough to name a task of one's own."""
        if isinstance(values, Mapping) and values.get("answer") and values.get("name", "arithmetic") == "arithmetic":
            return {**values, "name": f"own-{values['answer']}"}
        return values

    @model_validator(mode="after")
    def _check_custom_task(self) -> "TaskConfig":
        if self.answer is not None and self.name != f"own-{self.answer}":
            raise ValueError(
                f'answer = "{self.answer}": is for your own questions; leave it out, or leave out name = "{self.name}"'
            )
        if self.name.startswith("own-") and self.path is None:
            raise ValueError(f'path is missing: name = "{self.name}" asks the questions of a file of yours')
        return self

    @model_validator(mode="after")
    def _check_prompt_template(self) -> "TaskConfig":
        if self.prompt_template is not None and "{question}" not in self.prompt_template:
            raise ValueError(f"wording = {self.prompt_template!r}: has no {{question}} in it, so nothing would be asked")
        return self


class PersonasConfig(ConfigSection):
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
    empty_system_prompt: bool = False
    """Without persona, send an empty system message instead of none."""


PersonaGymTask = Literal[
    "Expected Action", "Toxicity Control", "Linguistic Habits", "Persona Consistency", "Action Justification"
]
"""PersonaGym's five tasks, by the names of its paper."""


def rubric_entries(rubrics: str | Sequence[str]) -> tuple[str, ...]:
    """What `judge.rubrics` names: a text is one entry."""
    return (rubrics,) if isinstance(rubrics, str) else tuple(rubrics)


class JudgeModelConfig(ModelConfig):
    name: str = "none"
    """Who judges: "none", "bundled", a model folder, a hub id, or the name an endpoint serves."""
    label: str | None = None
    """The judge's name in tables, and of its folder in the run; the model's name when not given."""
    rubrics: str | tuple[str, ...] = "permix"
    """"permix" (the rubrics that we wrote), or a folder of PersonaGym with rubrics/ in it. Open-ended answers and interviews are
    judged by one or more: of ours by name ("In Character"), of your own by path (warmth.toml)."""
    reasons: bool = True
    """Ask for a sentence of reasons before the score; without it a judge is cheaper and explains nothing."""
    examples: Path | None = None
    """Example answers for each score, as `permix questions --examples` writes them; a judge sees them whole."""
    temperature: float = Field(default=0.0, ge=0)
    """0 is greedy."""
    max_new_tokens: int = Field(default=256, gt=0)
    """Most tokens of one verdict."""
    attempts: int = Field(default=2, gt=0)
    """How often one start asks again, with another seed, where no score could be read."""
    answers_per_control: int = Field(default=100, ge=20)
    """Answers that each control of the judge itself judges once more."""
    prices: Path | None = None
    """A TOML table of prices by model; costs are unknown without it."""
    max_cost: float | None = Field(default=None, gt=0)
    """US dollars after which no further call is made; needs prices."""

    @model_validator(mode="after")
    def _check_rubrics(self) -> "JudgeModelConfig":
        if not rubric_entries(self.rubrics):
            raise ValueError('rubrics = []: names no rubric; give "permix", a folder of PersonaGym, or one rubric or more')
        return self

    @model_validator(mode="after")
    def _check_prices(self) -> "JudgeModelConfig":
        if self.max_cost is not None and self.prices is None:
            raise ValueError(f"max_cost = {self.max_cost:g}: needs a table of prices; give prices")
        return self


class PersonaGymConfig(ConfigSection):
    path: Path | None = None
    """A folder of PersonaGym (personas.json, questions/, rubrics/), or questions.jsonl as `permix questions` writes it."""
    hub: str | None = None
    """A data set of the hub that holds such a folder."""
    light: bool = False
    """Only the first question of each task, as the OpenCharacter evaluation asks."""
    tasks: tuple[PersonaGymTask, ...] = ()
    """Only these tasks; all five when not given."""
    without_persona: int = Field(default=100, ge=0)
    """Of so many questions the answer without a persona is taken too, for the judge's trial."""

    @model_validator(mode="after")
    def _check_one_source(self) -> "PersonaGymConfig":
        if self.path is not None and self.hub is not None:
            raise ValueError(f'path = {self.path}, hub = "{self.hub}": give one of the two')
        return self


class InterviewConfig(ConfigSection):
    turns: int = Field(default=0, ge=0)
    """Turns of one conversation, three or more; 0: no interview."""
    script: Path | None = None
    """What the interviewer says, one a line; the built-in script when not given. The first opens every interview."""
    order: Literal["balanced", "written"] = "balanced"
    """"balanced": every persona is asked in an order of its own, so that turn and question are told apart; "written": as the
    script stands, for one whose questions build on each other."""

    @model_validator(mode="after")
    def _check_turns(self) -> "InterviewConfig":
        if self.turns in (1, 2):
            raise ValueError(f"turns = {self.turns}: nothing can be said of drift; give 3 or more, or 0 for no interview")
        return self


class InterviewerConfig(ModelConfig):
    name: str = "script"
    """"script", or a model that plays the interviewer, named as in a model section."""

    @property
    def is_model(self) -> bool:
        return self.name != "script"

"""Sections on who judges, on PersonaGym's questions and on interviews: `[judge]`, `[personagym]`, `[interview]`, ..."""

from pathlib import Path
from typing import Literal

from pydantic import Field, model_validator

from permix.config.asking import ModelConfig
from permix.config.base import Section

GymTask = Literal["Expected Action", "Toxicity Control", "Linguistic Habits", "Persona Consistency", "Action Justification"]
"""PersonaGym's five tasks, by the names of its paper."""


class JudgeConfig(ModelConfig):
    name: str = "none"
    """Who judges: "none", "bundled", a model folder, a hub id, or the name an endpoint serves."""
    label: str | None = None
    """The judge's name in tables, and of its folder in the run; the model's name when not given."""
    rubrics: str = "permix"
    """"permix" (the rubrics that we wrote), or a folder of PersonaGym with rubrics/ in it."""
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
    trial: int = Field(default=100, ge=20)
    """Answers that each control of the judge itself judges once more."""
    prices: Path | None = None
    """A TOML table of prices by model; costs are unknown without it."""
    max_cost: float | None = Field(default=None, gt=0)
    """US dollars after which no further call is made; needs prices."""

    @model_validator(mode="after")
    def _priced(self) -> "JudgeConfig":
        if self.max_cost is not None and self.prices is None:
            raise ValueError(f"max_cost = {self.max_cost:g}: needs a table of prices; give prices")
        return self


class GymConfig(Section):
    path: Path | None = None
    """A folder of PersonaGym (personas.json, questions/, rubrics/), or questions.jsonl as `permix questions` writes it."""
    hub: str | None = None
    """A data set of the hub that holds such a folder."""
    light: bool = False
    """Only the first question of each task, as the OpenCharacter evaluation asks."""
    tasks: tuple[GymTask, ...] = ()
    """Only these tasks; all five when not given."""
    without_persona: int = Field(default=100, ge=0)
    """Of so many questions the answer without a persona is taken too, for the judge's trial."""

    @model_validator(mode="after")
    def _one_source(self) -> "GymConfig":
        if self.path is not None and self.hub is not None:
            raise ValueError(f'path = {self.path}, hub = "{self.hub}": give one of the two')
        return self


class InterviewConfig(Section):
    turns: int = Field(default=0, ge=0)
    """Turns of one conversation, three or more; 0: no interview."""
    script: Path | None = None
    """What the interviewer says, one a line; the built-in script when not given. The first opens every interview."""
    order: Literal["balanced", "written"] = "balanced"
    """"balanced": every persona is asked in an order of its own, so that turn and question are told apart; "written": as the
    script stands, for one whose questions build on each other."""

    @model_validator(mode="after")
    def _turns_to_compare(self) -> "InterviewConfig":
        if self.turns in (1, 2):
            raise ValueError(f"turns = {self.turns}: nothing can be said of drift; give 3 or more, or 0 for no interview")
        return self


class InterviewerConfig(ModelConfig):
    name: str = "script"
    """"script", or a model that plays the interviewer, named as in a model section."""

    @property
    def is_model(self) -> bool:
        return self.name != "script"

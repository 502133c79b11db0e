"""Runs of other programs, read and written: `permix import`, `permix export`, and what an imported run says of itself."""

from pathlib import Path
from typing import Literal

from pydantic import Field, model_validator

from permix.config.base import ConfigSection
from permix.config.data import PersonaGymConfig

LogFormat = Literal["lm-eval", "inspect"]


class ImportConfig(ConfigSection):
    stage: Literal["import"] = "import"
    out: Path = Path("runs/imported")
    """The run directory."""
    label: str | None = None
    """The model's name in tables; its name in the logs when not given."""
    lm_eval: tuple[str, ...] = ()
    """What lm-evaluation-harness wrote with --log_samples: NAME=PATH a persona, none=PATH without one; a PATH alone is named by
    its system instruction. A path is a folder of --output_path or a samples_*.jsonl."""
    inspect: tuple[str, ...] = ()
    """Logs of inspect_ai (.eval, .json or a folder of them): a PATH whose samples say who was asked, or NAME=PATH a persona."""
    personagym: Path | None = None
    """Answers as PersonaGym's code and its forks save them: a folder of {persona}_qa.json, of one model."""
    personagym_questions: Path | None = None
    """The questions that were to be answered, as --personagym.path of `permix fidelity`; when not given, those in the answers."""
    task: str | None = None
    """Which task, where the folders hold several."""
    metric: str | None = None
    """Which score counts, where there are several: a metric of lm-evaluation-harness, a scorer of inspect_ai."""
    filter: str | None = None
    """Which filter of lm-evaluation-harness, where answers were extracted in several ways."""
    answer: Literal["number", "math", "exact", "choice"] | None = None
    """Judge every answer anew by permix's own verifier, as the task own-ANSWER does; the scores of the logs do not count then."""
    persona_key: str = "persona"
    """The field of a sample's metadata that says who was asked (inspect_ai)."""
    seed: int = Field(default=0, ge=0)
    """Seeds the resampling of the intervals."""
    resamples: int = Field(default=2000, ge=100)
    """Bootstrap resamples and permutations."""

    @model_validator(mode="after")
    def _check_personagym_options(self) -> "ImportConfig":
        """PersonaGym's answers have no score, so nothing that chooses one."""
        if self.personagym is None and self.personagym_questions is not None:
            raise ValueError(f"personagym_questions = {self.personagym_questions}: give personagym, the folder of answers, too")
        for name in ("lm_eval", "inspect", "task", "metric", "filter", "answer"):
            if self.personagym is not None and getattr(self, name):
                raise ValueError(f"{name} = {getattr(self, name)!r}: means nothing with personagym; leave it out")
        return self


class ExportConfig(ConfigSection):
    stage: Literal["export"] = "export"
    run: Path = Path("runs/stability")
    """A stability run."""
    format: LogFormat = "inspect"
    """Whose files: a log of inspect_ai, or a folder a persona as lm-evaluation-harness writes them."""
    out: Path = Path("runs/exported")
    """The folder to write to."""


class ImportedModelConfig(ConfigSection):
    name: str


class ImportedSamplingConfig(ConfigSection):
    """Named as in `Sampling`; None where the log does not say."""

    temperature: float | None = None
    top_p: float | None = None
    max_new_tokens: int | None = None


class ImportedStabilityConfig(ConfigSection):
    """The config.json of an imported run: what readers of a stability run look for, and what was imported how."""

    stage: Literal["stability"] = "stability"
    label: str | None
    model: ImportedModelConfig
    sampling: ImportedSamplingConfig
    samples: int = Field(gt=0)
    seed: int
    resamples: int
    imported: ImportConfig


class ImportedFidelityConfig(ConfigSection):
    """The config.json of imported answers to PersonaGym: what readers of a fidelity run look for, and what was imported."""

    stage: Literal["fidelity"] = "fidelity"
    label: str | None
    model: ImportedModelConfig
    sampling: ImportedSamplingConfig = ImportedSamplingConfig()
    personagym: PersonaGymConfig
    seed: int
    resamples: int
    imported: ImportConfig

"""Configuration of `permix import` and `permix export`, and the config.json that an import writes into its run directory."""

from pathlib import Path
from typing import Literal

from pydantic import Field, model_validator

from permix.config.base import ConfigSection
from permix.config.data import PersonaGymConfig

LogFormat = Literal["lm-eval", "inspect"]


class ImportConfig(ConfigSection):
    """Configuration of `permix import`."""

    stage: Literal["import"] = "import"
    """Fixed: names the verb in a configuration file."""
    out: Path = Path("runs/imported")
    """The run directory to write."""
    label: str | None = None
    """Name of the model in tables; its name in the logs when not given."""
    lm_eval: tuple[str, ...] = ()
    """Logs of lm-evaluation-harness, written with --log_samples, one for each persona: NAME=PATH for a persona, none=PATH for the
    run without persona; a PATH without name is named after its system instruction. PATH is the folder given as --output_path, or
    a samples_*.jsonl."""
    inspect: tuple[str, ...] = ()
    """Logs of inspect_ai (.eval or .json files, or a folder of them): PATH if the samples' metadata names the persona (see
    --persona-key), or NAME=PATH for each persona."""
    personagym: Path | None = None
    """A folder of one model's answers, {persona}_qa.json, as PersonaGym's code and its forks save them."""
    personagym_questions: Path | None = None
    """The questions that the model was asked, as --personagym.path of `permix fidelity`, so that missing answers are counted;
    when not given, the questions in the answers."""
    task: str | None = None
    """The task to import; needed if the logs contain several."""
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
        for name in ("lm_eval", "inspect", "task", "metric", "filter", "answer"):
            if self.personagym is not None and getattr(self, name):
                raise ValueError(f"{name} = {getattr(self, name)!r}: has no effect with personagym; leave it out")
        return self


class ExportConfig(ConfigSection):
    """Configuration of `permix export`."""

    stage: Literal["export"] = "export"
    """Fixed: names the verb in a configuration file."""
    run: Path = Path("runs/stability")
    """The stability run to export."""
    format: LogFormat = "inspect"
    """File format: one log of inspect_ai, or one folder per persona as lm-evaluation-harness writes it."""
    out: Path = Path("runs/exported")
    """The folder to write to."""


class ImportedModelConfig(ConfigSection):
    """The model of an imported run, by the name in its logs."""

    name: str


class ImportedSamplingConfig(ConfigSection):
    """The fields of `Sampling`; None if the log does not state a field."""

    temperature: float | None = None
    top_p: float | None = None
    max_new_tokens: int | None = None


class ImportedStabilityConfig(ConfigSection):
    """The config.json of a stability run made by `permix import`: the fields that readers of such runs need, and `imported`."""

    stage: Literal["stability"] = "stability"
    label: str | None
    model: ImportedModelConfig
    sampling: ImportedSamplingConfig
    samples: int = Field(gt=0)
    seed: int
    resamples: int
    imported: ImportConfig


class ImportedFidelityConfig(ConfigSection):
    """The config.json of a fidelity run made by `permix import`: the fields that readers of such runs need, and `imported`."""

    stage: Literal["fidelity"] = "fidelity"
    label: str | None
    model: ImportedModelConfig
    sampling: ImportedSamplingConfig = ImportedSamplingConfig()
    personagym: PersonaGymConfig
    seed: int
    resamples: int
    imported: ImportConfig

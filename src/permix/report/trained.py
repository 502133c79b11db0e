"""How a model of the report came about: the training run behind it, found from its runs, and what was trained there.

Contract: nothing but configurations (and, of a training on a plan from a file, that plan) is read. A training that cannot be
found or read is None; its model is then known by its answers alone.
"""

from pathlib import Path
from typing import Any, Literal, NamedTuple

from pydantic import ValidationError

from permix.config import PLACES, SUPERVISED, TrainStage, mix_of
from permix.errors import DataError
from permix.records import read_json
from permix.report.runs import ModelRuns
from permix.train.plan import read_plan

Role = Literal["base", "rlvr", "permix", "other"]

NOT_LEARNT = {"out", "label", "threads", "seed"}
"""Fields, in any section, that do not say what is learnt: where, under which name, by how many threads, and by chance."""
UNSEEN = {*PLACES, "report_to", "save_every", "keep_checkpoints", "samples_every", "micro_tokens", "gradient_checkpointing"}
"""Settings of [train] that leave the weights as they are, but for the order of a sum."""
SERVED = {"base_url", "api_key_env", "batch_size", "concurrency", "timeout_s", "retries"}
"""Settings of [teacher] that say where it answers."""


class Training(NamedTuple):
    """A training run: its directory, and what it was asked to do."""

    folder: Path
    config: TrainStage

    @property
    def model(self) -> Path:
        """The folder that holds the weights and their card."""
        return self.folder / "model"

    @property
    def recipe(self) -> dict[str, Any]:
        """What was trained, seeds left out: trainings with one recipe differ by chance alone."""
        config = self.config
        recipe: dict[str, Any] = _without(config.model_dump(mode="json"), NOT_LEARNT)
        for section, fields in (("train", UNSEEN), ("teacher", SERVED)):
            recipe[section] = _without(recipe[section], fields)
        if config.probe.select == "last" and config.probe.patience is None:
            del recipe["probe"]  # it only looked on
        return recipe

    @property
    def role(self) -> Role:
        """What reward taught, and whether as personas too; "other" for what is not learnt by reward."""
        if self.config.method in SUPERVISED:
            return "other"
        return "permix" if self._asked_as_personas() else "rlvr"

    def _asked_as_personas(self) -> bool:
        plan = self.folder / "plan.parquet"
        if self.config.plan_file is not None and plan.exists():
            return any(row.persona_id is not None for row in read_plan(plan).rows)
        return mix_of(self.config.plan, self.config.method) > 0


def training_of(model: ModelRuns) -> Training | None:
    """The model's training run: the one in the report, else the one whose folder `model` its evaluations asked."""
    if "train" in model.runs:
        return _read(model.runs["train"].path)
    for run in model.runs.values():
        away, here = Path(run.model_name), run.path.parent
        if away.name == "model":
            for folder in (away.parent, here / away.parent.name):  # as it was named, or beside this run when both were moved
                if (found := _read(folder)) is not None:
                    return found
    return None


def start_of(model: ModelRuns) -> set[str]:
    """The names under which a model without training was asked; what others started from is named like one of them."""
    return {place_of(run.model_name) for run in model.runs.values()}


def place_of(model: str) -> str:
    """A model's name; of a folder its place, however it was written."""
    return str(Path(model).resolve()) if Path(model).is_dir() else model


def _read(folder: Path) -> Training | None:
    try:
        return Training(folder, TrainStage.model_validate(read_json(folder / "config.json")))
    except (DataError, ValidationError, OSError):
        return None


def _without(value: Any, fields: set[str]) -> Any:
    """Every section without these fields."""
    if not isinstance(value, dict):
        return value
    return {name: _without(one, fields) for name, one in value.items() if name not in fields}

"""Read the plan that a verl training followed: from the folder that `permix export --format verl` wrote, or from the plan file.

The folder says more: the settings of the training, its model, the release of verl that it was written for, and the dev questions
of the validations.
"""

import json
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Literal, NamedTuple

from pydantic import BaseModel

from permix.config import OptimConfig, RolloutPlanConfig
from permix.errors import DataError
from permix.interop.engine_export import EXPORT_FILE, PLAN_FILE
from permix.interop.merging import guard_values
from permix.plan import MAX_PLAN_BYTES, ROWS_PER_READ, Plan, read_plan
from permix.storage.files import PARSE_ERRORS, parse_error_text, read_json
from permix.storage.rows import quote_value
from permix.types import Message, PlanRow


class TrainedPlan(NamedTuple):
    """What is known of a training before its rollouts are read.

    rows: those of the plan without spare groups, which verl does not have.
    config: the section [plan] behind the plan.
    dev_rows: one row for each prompt of a validation; empty without dev evaluations.
    train, model, engine_version: as they were exported; None where only the plan file was given.
    """

    plan: Plan
    rows: tuple[PlanRow, ...]
    config: RolloutPlanConfig
    dev_rows: tuple[PlanRow, ...] = ()
    train: OptimConfig | None = None
    model: str | None = None
    engine_version: str | None = None

    def count_rollouts(self) -> Counter[int]:
        """Number of rollouts that the plan asks for, by its steps, which count from 0."""
        counts = Counter[int]()
        for row in self.rows:
            counts[row.step] += row.rollouts
        return counts


class _ExportFields(BaseModel):
    """What is read of permix.json. `settings` are by their path: {"train.lr": 1e-5, ...}."""

    format: Literal["verl"]
    plan: str
    settings: dict[str, Any]
    model: str | None = None
    written_against: dict[str, str] = {}


def read_trained_plan(path: Path) -> TrainedPlan:
    """The plan of a training. Raises DataError if the file or folder holds none, or if its parts do not belong together."""
    if not path.is_dir():
        return _from_plan(read_plan(path), path)
    about_path = path / EXPORT_FILE
    if not about_path.exists():
        raise DataError(f"{path}: has no permix.json; give the folder that `permix export --format verl` wrote, or the plan file")
    with guard_values(str(about_path)):
        about = _ExportFields.model_validate(read_json(about_path))
    trained = _from_plan(read_plan(path / PLAN_FILE), path / PLAN_FILE)
    if trained.plan.hash != about.plan:
        raise DataError(f"{about_path}: plan = {quote_value(about.plan)}, and plan.parquet has {trained.plan.hash}")
    train = {name.removeprefix("train."): value for name, value in about.settings.items() if name.startswith("train.")}
    with guard_values(f"{about_path}: settings: train"):
        settings = OptimConfig.model_validate(train)
    dev_path = path / "val.parquet"
    return trained._replace(
        dev_rows=tuple(_read_dev_rows(dev_path, about.plan)) if dev_path.exists() else (),
        train=settings,
        model=about.model,
        engine_version=about.written_against.get("verl"),
    )


def _from_plan(plan: Plan, path: Path) -> TrainedPlan:
    with guard_values(f"{path}: plan"):
        config = RolloutPlanConfig.model_validate(plan.metadata.get("plan", {}))
    # A file of other rows than its configuration describes: what counts is what was trained on.
    described = config.model_copy(update={"steps": plan.steps, "group_size": plan.group_size})
    return TrainedPlan(plan, tuple(row for row in plan.rows if not row.spare), described)


def _read_dev_rows(path: Path, plan_hash: str) -> Iterator[PlanRow]:
    """The rows of val.parquet, one a prompt. Raises DataError if it cannot be read or belongs to another plan."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    number = n_bytes = 0
    try:
        with pq.ParquetFile(path) as file:
            for batch in file.iter_batches(ROWS_PER_READ):
                n_bytes += batch.nbytes
                if n_bytes > MAX_PLAN_BYTES:
                    raise DataError(f"{path}: has more than {MAX_PLAN_BYTES / 1e9:g} GB of rows")
                for fields in batch.to_pylist():
                    number += 1
                    yield _parse_dev_row(fields, plan_hash, f"{path}: row {number}")
    except (OSError, pa.ArrowException, *PARSE_ERRORS) as error:
        raise DataError(
            f"{path}: row {number}: not a row that `permix export` writes: {parse_error_text(error)[:300]}"
        ) from error


def _parse_dev_row(fields: Mapping[str, Any], plan_hash: str, where: str) -> PlanRow:
    about = fields["extra_info"]
    if about["plan"] != plan_hash:
        raise DataError(f"{where}: is of the plan {quote_value(about['plan'])}, and permix.json of {plan_hash}")
    (rollout,) = json.loads(about["rollouts"])
    return PlanRow(
        step=about["step"],
        group=about["group"],
        rollouts=1,
        task=about["task"],
        question_id=about["question_id"],
        question_hash=about["question_hash"],
        persona_id=rollout["persona_id"],
        persona_tags=tuple(about["persona_tags"]),
        seed=rollout["seed"],
        messages=tuple(Message(role=message["role"], content=message["content"]) for message in rollout["messages"]),
        gold=fields["reward_model"]["ground_truth"],
    )

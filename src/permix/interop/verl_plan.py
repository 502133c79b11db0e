"""Read the plan that a verl training followed: from the folder that `permix export --format verl` wrote, or from the plan file.

The folder says more: the settings of the training, its model, the release of verl that it was written for, and the dev questions
of the validations.
"""

import json
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Literal, NamedTuple

from pydantic import BaseModel, Field

from permix.config import OptimConfig, RolloutPlanConfig
from permix.errors import DataError
from permix.interop.merging import guard_values, truncated_repr
from permix.plan import MAX_PLAN_BYTES, ROWS_PER_READ, Plan, read_plan
from permix.storage.files import PARSE_ERRORS, parse_error_text, read_json
from permix.types import Message, PlanRow


class _ExportFields(BaseModel):
    """What is read of permix.json. `settings` are by their path: {"train.lr": 1e-5, ...}."""

    format: Literal["verl"]
    plan: str
    group_size: int = Field(gt=0)
    settings: dict[str, Any]
    model: str | None = None
    written_against: dict[str, str] = {}

    def section(self, name: str) -> dict[str, Any]:
        return {key.removeprefix(f"{name}."): value for key, value in self.settings.items() if key.startswith(f"{name}.")}


class TrainedPlan(NamedTuple):
    """What is known of a training before its rollouts are read.

    rows: those of the plan without spare groups, which verl does not have.
    dev_rows: one row for each prompt of a validation; empty without dev evaluations.
    train: the section [train] as it was exported.
    plan: the plan itself, where its file was given.
    model, engine_version, train: None where only the plan file was given.
    """

    hash: str
    steps: int
    group_size: int
    rows: tuple[PlanRow, ...]
    dev_rows: tuple[PlanRow, ...]
    config: RolloutPlanConfig
    train: OptimConfig | None = None
    model: str | None = None
    engine_version: str | None = None
    plan: Plan | None = None

    def count_rollouts(self) -> Counter[int]:
        """Number of rollouts that the plan asks for, by its steps, which count from 0."""
        counts = Counter[int]()
        for row in self.rows:
            counts[row.step] += row.rollouts
        return counts


def read_trained_plan(path: Path) -> TrainedPlan:
    """The plan of a training. Raises DataError if the file or folder holds none, or if its parts do not belong together."""
    if path.is_dir():
        return _read_export(path)
    plan = read_plan(path)
    with guard_values(f"{path}: plan"):
        config = RolloutPlanConfig.model_validate(plan.metadata.get("plan", {}))
    rows = tuple(row for row in plan.rows if not row.spare)
    return TrainedPlan(plan.hash, plan.steps, plan.group_size, rows, (), config, plan=plan)


def _read_export(folder: Path) -> TrainedPlan:
    about_path = folder / "permix.json"
    if not about_path.exists():
        raise DataError(
            f"{folder}: has no permix.json; give the folder that `permix export --format verl` wrote, or the plan file"
        )
    with guard_values(str(about_path)):
        about = _ExportFields.model_validate(read_json(about_path))
    rows = tuple(_read_rows(folder / "train.parquet", about.plan, about.group_size))
    if not rows:
        raise DataError(f"{folder / 'train.parquet'}: has no rows")
    has_dev_rows = (folder / "val.parquet").exists()
    with guard_values(f"{about_path}: settings"):
        config = RolloutPlanConfig.model_validate(about.section("plan"))
        train = OptimConfig.model_validate(about.section("train"))
    return TrainedPlan(
        hash=about.plan,
        steps=max(row.step for row in rows) + 1,
        group_size=about.group_size,
        rows=rows,
        dev_rows=tuple(_read_rows(folder / "val.parquet", about.plan, 1)) if has_dev_rows else (),
        config=config,
        train=train,
        model=about.model,
        engine_version=about.written_against.get("verl"),
    )


def _read_rows(path: Path, plan_hash: str, group_size: int) -> Iterator[PlanRow]:
    """The rows of a data set of the export. Raises DataError if it cannot be read or belongs to another plan."""
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
                    yield from _rows_of_group(fields, plan_hash, group_size, f"{path}: row {number}")
    except FileNotFoundError as error:
        raise DataError(f"{path}: no such file; was the export moved without it?") from error
    except (OSError, pa.ArrowException, *PARSE_ERRORS) as error:
        raise DataError(
            f"{path}: row {number}: not a row that `permix export` writes: {parse_error_text(error)[:300]}"
        ) from error


def _rows_of_group(fields: Mapping[str, Any], plan_hash: str, group_size: int, where: str) -> Iterator[PlanRow]:
    """The rows of one group: one, or with plan.scope = "rollout" one for each rollout."""
    about = fields["extra_info"]
    if about["plan"] != plan_hash:
        raise DataError(f"{where}: is of the plan {truncated_repr(about['plan'])}, and permix.json of {plan_hash}")
    rollouts = json.loads(about["rollouts"])
    if len(rollouts) not in (1, group_size):
        raise DataError(f"{where}: extra_info.rollouts has {len(rollouts)} entries; valid: 1 or {group_size}")
    for one in rollouts:
        if len(rollouts) > 1 and "persona_tags" not in one and one["persona_id"] != about["persona_id"]:
            raise DataError(
                f"{where}: extra_info.rollouts does not name the tags of each persona; export the plan again, or give its file"
            )
        yield PlanRow(
            step=about["step"],
            group=about["group"],
            rollouts=group_size // len(rollouts),
            task=about["task"],
            question_id=about["question_id"],
            question_hash=about["question_hash"],
            persona_id=one["persona_id"],
            persona_tags=tuple(one.get("persona_tags", about["persona_tags"])),
            seed=one["seed"],
            messages=tuple(Message(role=message["role"], content=message["content"]) for message in one["messages"]),
            gold=fields["reward_model"]["ground_truth"],
        )

"""A training is prepared once: its pool is read and searched for near-duplicates once, a split's questions are loaded once."""

import dataclasses
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from permix.config import PersonasConfig, TaskConfig, TrainConfig
from permix.personas import pool
from permix.personas.loading import read_pool_file
from permix.pipelines.preflight import check_config
from permix.pipelines.train import run_training
from permix.plan import write_plan
from permix.tasks import TASKS
from permix.training.job import prepare_training
from permix.types import Persona, Question
from tests.sample_runs import toml

NOUNS = (
    "teapot", "glacier", "umbrella", "violin", "lantern", "compass", "kettle", "saddle", "anchor", "ladder", "mirror", "barrel",
    "candle", "hammer", "pillow", "carpet", "basket", "bridge", "feather", "goblet", "helmet", "jigsaw", "magnet", "needle",
)  # fmt: skip
SPLITS = ("train", "train", "dev", "heldout")


def settings(tiny_model: Path, folder: Path, **sections: Any) -> dict[str, Any]:
    """A small training with all that asks as personas of the pool: plan, curriculum, replay, expressivity and dev evaluation."""
    return {
        "stage": "train", "out": str(folder / "run"), "threads": 1, "model": {"name": str(tiny_model)},
        "task": {"levels": ["add-1", "sub-1"], "n": 20}, "personas": {"pool": str(folder / "pool.csv"), "split": "train"},
        "plan": {"steps": 2, "questions_per_step": 2, "group_size": 4, "curriculum_strength": 1.0, "curriculum_update_every": 1},
        "train": {"lr": 1e-2, "max_new_tokens": 6, "microbatch_tokens": 256, "precision": "float32"},
        "character": {
            "replay": 0.5, "expressivity": 0.5, "personas": 2, "questions": 2, "max_new_tokens": 6, "replay_answers": 3,
        },
        "dev_eval": {"every": 1, "personas": 3, "questions": 5, "characters": 2, "roleplay_max_new_tokens": 6},
    } | sections  # fmt: skip


@pytest.fixture(params=[False, True], ids=["without splits", "with splits"])
def config(request: pytest.FixtureRequest, tiny_model: Path, tmp_path: Path) -> TrainConfig:
    """Of a pool of the user's own."""
    rows = [f"someone who hides every {noun},{SPLITS[place % 4] if request.param else ''}" for place, noun in enumerate(NOUNS)]
    (tmp_path / "pool.csv").write_text("text,split\n" + "\n".join(rows) + "\n")
    return TrainConfig.model_validate(settings(tiny_model, tmp_path))


@pytest.fixture
def counted(monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """How often a pool was read, a pool was searched for near-duplicates, and questions of a split were loaded."""
    counts = Counter[str]()
    search, arithmetic = pool.near_duplicate_pairs, TASKS["arithmetic"]

    def counted_read(source: str | Path, column: str | None) -> Any:
        counts["reads"] += 1
        return read_pool_file(source, column)

    def counted_search(personas: Sequence[Persona], *rest: float) -> Iterator[Any]:
        counts["searches"] += 1
        return search(personas, *rest)

    def counted_questions(task: TaskConfig) -> tuple[Question, ...]:
        counts[f"{task.split} questions"] += 1
        return arithmetic.questions(task)

    monkeypatch.setattr(pool, "read_pool_file", counted_read)
    monkeypatch.setattr(pool, "near_duplicate_pairs", counted_search)
    monkeypatch.setitem(TASKS, "arithmetic", dataclasses.replace(arithmetic, questions=counted_questions))
    return counts


ONCE = {"reads": 1, "searches": 1, "train questions": 1, "dev questions": 1}


@pytest.mark.slow
def test_a_training_loads_everything_once(config: TrainConfig, counted: Counter[str]) -> None:
    run_training(config)
    assert counted == ONCE
    for name in ("plan_blocks.jsonl", "reference_answers/records.jsonl", "dev_eval.jsonl"):
        assert (config.out / name).read_text(), "the training has all that may draw from the pool"


def test_check_loads_everything_once(config: TrainConfig, counted: Counter[str], tmp_path: Path) -> None:
    (tmp_path / "train.toml").write_text(toml(settings(Path(config.model.name), tmp_path)))
    assert check_config(tmp_path / "train.toml")["result"] == "valid"
    assert counted == ONCE


def test_a_pool_is_not_read_for_a_plan_file_that_is_only_followed(
    config: TrainConfig, counted: Counter[str], tmp_path: Path
) -> None:
    plan = prepare_training(config).plan
    write_plan(plan, tmp_path / "plan.parquet")
    counted.clear()
    sections = {"plan_file": tmp_path / "plan.parquet", "character": {}, "dev_eval": {}}
    job = prepare_training(TrainConfig.model_validate(settings(Path(config.model.name), tmp_path, **sections)))
    assert job.plan.rows == plan.rows
    assert job.curriculum_builder is None, "the rows of a file stay as they are"
    assert counted == {}


def test_the_personas_that_a_training_may_draw_are_those_of_the_plan_and_under_a_curriculum_all(config: TrainConfig) -> None:
    everyone = {persona.id for persona in pool.select_personas(config.personas).personas}
    job = prepare_training(config)
    assert job.trainable_personas == everyone > {row.persona_id for row in job.plan.rows if row.persona_id}
    fixed = prepare_training(config.model_copy(update={"plan": config.plan.model_copy(update={"curriculum_strength": 0.0})}))
    assert fixed.trainable_personas == {row.persona_id for row in fixed.plan.rows if row.persona_id}
    assert fixed.plan.rows == job.plan.rows


def test_one_source_gives_what_reading_the_pool_anew_would(config: TrainConfig) -> None:
    source = pool.PersonaSource(config.personas.pool)
    for split, n in (("all", None), ("dev", None), ("train", 5), ("heldout", None), ("train", None)):
        wanted = PersonasConfig.model_validate({"pool": config.personas.pool, "split": split, "n": n})
        assert source.select(wanted) == pool.select_personas(wanted)


@pytest.mark.parametrize(("config", "plan_hash"), [(False, "364ae46e4879c4bc"), (True, "2483c33c5f1a6624")], indirect=["config"])
def test_the_plan_is_that_of_earlier_versions(config: TrainConfig, plan_hash: str) -> None:
    """Which read the pool anew for every part."""
    assert prepare_training(config).plan.hash == plan_hash

"""The whole quickstart on a tiny model: what it compares is comparable, and killed anywhere it ends with the same numbers."""

import json
from pathlib import Path
from typing import Any

import pytest

from permix.personas.pool import load_pool
from permix.pipelines.quickstart import BASE_LABEL, FAST_SIZE, PERMIX_LABEL, RLVR_LABEL
from permix.plan import read_plan
from permix.storage.cells import read_cells
from permix.storage.files import read_json
from permix.tasks.base import read_trained_on
from permix.training.run_log import read_training_log
from permix.types import Cell
from tests.killable import Moment, command

LABELS = (BASE_LABEL, RLVR_LABEL, PERMIX_LABEL)
ACCURACY = (FAST_SIZE.personas + 1) * FAST_SIZE.questions
CHARACTERS = FAST_SIZE.characters * FAST_SIZE.roleplay_questions


def quickstart(model: Path, out: Path, dies: Moment | None = None) -> int | None:
    return command("quickstart", "--fast", "--model", str(model), "--threads", "1", "--out", str(out), dies=dies)


@pytest.fixture(scope="module")
def done(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An undisturbed quickstart."""
    out = tmp_path_factory.mktemp("pipeline") / "quickstart"
    assert quickstart(tiny_model, out) == 0
    return out


def cells(out: Path, label: str, stage: str) -> list[Cell]:
    return list(read_cells(out / f"{label.lower()}-{stage}" / "records.jsonl").values())


@pytest.mark.slow
def test_the_report_is_there_with_a_row_for_each_model(done: Path) -> None:
    table = read_json(done / "report" / "table.json")
    assert [row["label"] for row in table["rows"]] == list(LABELS)
    for row in table["rows"]:
        assert row["n_scored"] == row["n_asked"] == FAST_SIZE.personas * FAST_SIZE.questions
        assert row["n_answers"] == row["n_answers_asked"] == CHARACTERS
        assert 0 <= row["pss"]["value"] <= 1
        assert (row["train_tokens"] is None) == (row["label"] == BASE_LABEL)
    page = (done / "report" / "report.md").read_text(encoding="utf-8")
    figures = sorted(path.name for path in (done / "report").glob("*.png"))
    assert len(figures) >= 5
    assert all(name in page for name in figures)
    assert all((done / "report" / name).stat().st_size > 1000 for name in figures)


@pytest.mark.slow
def test_every_model_was_asked_the_same_held_out_questions_as_the_same_held_out_personas(done: Path) -> None:
    personas = {persona.id: persona for persona in load_pool().personas}
    for stage, size in (("stability", ACCURACY), ("fidelity", CHARACTERS)):
        asked = [[(cell.key, cell.messages, cell.seed, cell.gold) for cell in cells(done, label, stage)] for label in LABELS]
        assert len(asked[0]) == size
        assert set(map(repr, asked[0])) == set(map(repr, asked[1])) == set(map(repr, asked[2]))
        used = {key.persona_id for key, *_ in asked[0]} - {None}
        assert {personas[str(one)].split for one in used} == {"heldout"}
    assert len({cell.question_id for cell in cells(done, BASE_LABEL, "stability")}) == FAST_SIZE.questions


@pytest.mark.slow
def test_the_two_trainings_differ_in_their_personas_and_replay_alone(done: Path) -> None:
    plain, mixed = (read_plan(done / f"{label.lower()}-train" / "plan.parquet") for label in (RLVR_LABEL, PERMIX_LABEL))
    assert [(row.question_id, row.seed) for row in plain.rows] == [(row.question_id, row.seed) for row in mixed.rows]
    assert {row.persona_id for row in plain.rows} == {None}
    personas = {persona.id: persona for persona in load_pool().personas}
    drawn = {row.persona_id for row in mixed.rows} - {None}
    assert {personas[str(one)].split for one in drawn} == {"train"}
    configs = [read_json(done / f"{label.lower()}-train" / "config.json") for label in (RLVR_LABEL, PERMIX_LABEL)]
    assert [(config["method"], config["plan"]["mix"]) for config in configs] == [("rlvr", 0.0), ("permix", 0.8)]
    for config in configs:
        for name in ("out", "label", "method"):
            config.pop(name)
        config["plan"].pop("mix")
    kept = [config.pop("character") for config in configs]
    assert [one["replay"] for one in kept] == [0.0, 0.5]
    assert configs[0] == configs[1]


@pytest.mark.slow
def test_no_question_of_the_evaluation_was_trained_on(done: Path) -> None:
    for label in (RLVR_LABEL, PERMIX_LABEL):
        folder = done / f"{label.lower()}-train" / "model"
        plan = read_plan(folder.parent / "plan.parquet")
        asked = {cell.question_id for cell in cells(done, label, "stability")}
        assert not asked & {row.question_id for row in plan.rows}
        assert read_trained_on(folder).question_hashes == {row.question_hash for row in plan.rows}
        assert read_trained_on(folder).persona_ids == {row.persona_id for row in plan.rows if row.persona_id}
        assert [line["step"] for line in read_training_log(folder.parent / "log.jsonl")] == list(range(1, FAST_SIZE.steps + 1))


def numbers(out: Path) -> Any:
    """table.json without times and without its own place."""

    def timeless(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: timeless(one) for key, one in value.items() if "cpu" not in key and "second" not in key}
        return [timeless(one) for one in value] if isinstance(value, list) else value

    text = (out / "report" / "table.json").read_text(encoding="utf-8")
    return timeless(json.loads(text.replace(str(out), "OUT")))


MOMENTS = [
    Moment("permix.storage.run_dir:RunDir.append", ACCURACY // 3),
    Moment("permix.storage.run_dir:RunDir.append", ACCURACY - ACCURACY // 3 + CHARACTERS // 2),
    Moment("permix.training.run_log:RolloutLogger.log_metrics", 2),
    Moment("permix.training.run_log:RolloutLogger.log_metrics", FAST_SIZE.steps + 2),
    Moment("permix.storage.run_dir:RunDir.append", 2 * ACCURACY + CHARACTERS + CHARACTERS // 2),
]
"""Where each start of the quickstart dies: in the base model's accuracy, in its characters, in the first training, in the second
training (the first begins anew: it had no checkpoint), in the last model's characters."""


@pytest.mark.slow
def test_a_quickstart_killed_again_and_again_ends_with_the_same_numbers(done: Path, tiny_model: Path, tmp_path: Path) -> None:
    out = tmp_path / "quickstart"
    for moment in MOMENTS:
        assert quickstart(tiny_model, out, dies=moment) == -9, moment
        assert not (out / "report").exists()
    assert quickstart(tiny_model, out) == 0
    assert numbers(out) == numbers(done)
    for label in LABELS:
        for stage in ("stability", "fidelity"):
            ours, theirs = ({cell.key: cell for cell in cells(one, label, stage)} for one in (out, done))
            assert ours == theirs


@pytest.mark.slow
def test_a_finished_quickstart_started_again_generates_nothing(done: Path, tiny_model: Path) -> None:
    before = {path: path.read_bytes() for path in done.glob("*-*/*.jsonl")}
    assert quickstart(tiny_model, done) == 0
    assert {path: path.read_bytes() for path in done.glob("*-*/*.jsonl")} == before

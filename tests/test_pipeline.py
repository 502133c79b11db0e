"""The whole quickstart on a tiny model: what it compares is comparable, and killed anywhere it ends with the same numbers."""

import json
import os
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from permix.config import QuickstartConfig, build_config
from permix.errors import ConfigError, IncompleteRunError, PermixError
from permix.inference import hardware
from permix.personas.pool import load_pool
from permix.pipelines.jobs import Job, JobFailure
from permix.pipelines.quickstart import (
    BASE_LABEL,
    FAST_SIZE,
    PERMIX_LABEL,
    RLVR_LABEL,
    QuickstartPart,
    default_jobs,
    quickstart_parts,
    run_quickstart,
)
from permix.plan import read_plan
from permix.progress import JobSize
from permix.storage.files import read_json
from permix.storage.workers import holds_claim
from permix.tasks.base import read_trained_on
from permix.training.run_log import read_training_log
from permix.types import Cell
from tests.cell_files import read_cells
from tests.killable import Moment, command

pytestmark = pytest.mark.slow

LABELS = (BASE_LABEL, RLVR_LABEL, PERMIX_LABEL)
ACCURACY = (FAST_SIZE.personas + 1) * FAST_SIZE.questions
CHARACTERS = FAST_SIZE.characters * FAST_SIZE.roleplay_questions


def quickstart(model: Path, out: Path, dies: Moment | None = None, jobs: int = 1) -> int | None:
    sizes = ("--fast", "--threads", "1", "--jobs", str(jobs))
    return command("quickstart", "--model", str(model), "--out", str(out), *sizes, dies=dies)


@pytest.fixture(scope="module")
def done(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An undisturbed quickstart."""
    out = tmp_path_factory.mktemp("pipeline") / "quickstart"
    assert quickstart(tiny_model, out) == 0
    return out


def cells(out: Path, label: str, stage: str) -> list[Cell]:
    return list(read_cells(out / f"{label.lower()}-{stage}" / "records.jsonl").values())


def test_the_report_is_there_with_a_row_for_each_model(done: Path) -> None:
    table = read_json(done / "report" / "table.json")
    assert [row["label"] for row in table["rows"]] == list(LABELS)
    for row in table["rows"]:
        assert row["n_scored"] == row["n_asked"] == FAST_SIZE.personas * FAST_SIZE.questions
        assert row["n_answers"] == row["n_answers_asked"] == CHARACTERS
        assert 0 <= row["pss"]["value"] <= 1
        assert (row["train_tokens"] is None) == (row["label"] == BASE_LABEL)
    page = (done / "report" / "report.md").read_text(encoding="utf-8")
    assert (
        f"trained for {FAST_SIZE.steps} steps of {FAST_SIZE.questions_per_step} questions × {FAST_SIZE.group_size} rollouts"
        in page
    )
    figures = sorted(path.name for path in (done / "report").glob("*.png"))
    assert len(figures) >= 5
    assert all(name in page for name in figures)
    assert all((done / "report" / name).stat().st_size > 1000 for name in figures)


def test_every_model_was_asked_the_same_held_out_questions_as_the_same_held_out_personas(done: Path) -> None:
    personas = {persona.id: persona for persona in load_pool().personas}
    for stage, size in (("stability", ACCURACY), ("fidelity", CHARACTERS)):
        asked = [[(cell.key, cell.messages, cell.seed, cell.gold) for cell in cells(done, label, stage)] for label in LABELS]
        assert len(asked[0]) == size
        assert set(map(repr, asked[0])) == set(map(repr, asked[1])) == set(map(repr, asked[2]))
        used = {key.persona_id for key, *_ in asked[0]} - {None}
        assert {personas[str(one)].split for one in used} == {"heldout"}
    assert len({cell.question_id for cell in cells(done, BASE_LABEL, "stability")}) == FAST_SIZE.questions


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


def test_a_finished_quickstart_started_again_generates_nothing(done: Path, tiny_model: Path) -> None:
    before = {path: path.read_bytes() for path in done.glob("*-*/*.jsonl")}
    assert quickstart(tiny_model, done, jobs=2) == 0
    assert not (done / "logs").exists(), "finished parts need no process"
    assert {path: path.read_bytes() for path in done.glob("*-*/*.jsonl")} == before


def test_pending_parts_run_in_their_own_processes(done: Path, tiny_model: Path, tmp_path: Path) -> None:
    out = tmp_path / "quickstart"
    shutil.copytree(done, out)
    pending = [out / f"permix-rlvr-{stage}" for stage in ("stability", "fidelity")]
    for folder in (*pending, out / "report"):
        shutil.rmtree(folder)
    assert quickstart(tiny_model, out, jobs=2) == 0
    assert [path.name for path in (out / "logs").iterdir()] == ["permix-rlvr-evaluations.txt"], "one process evaluates a model"
    assert [len(cells(out, PERMIX_LABEL, stage)) for stage in ("stability", "fidelity")] == [ACCURACY, CHARACTERS]
    assert [row["label"] for row in read_json(out / "report" / "table.json")["rows"]] == list(LABELS)
    assert not any((folder / "report").exists() for folder in pending), "one report of everything"
    typed = read_json(pending[0] / "provenance.json")["command"]
    assert typed[1:6] == ["quickstart", str(out / "quickstart.json"), "--part", *(folder.name for folder in pending)]


def test_parts_run_after_those_whose_results_they_need() -> None:
    for fast in (False, True):
        parts = quickstart_parts(QuickstartConfig(fast=fast))
        names = [part.name for part in parts]
        assert len(set(names)) == len({part.config.out for part in parts}) == 8
        for number, part in enumerate(parts):
            assert set(part.after) <= set(names[:number])
        assert {part.name: part.after for part in parts if part.after} == {
            "accuracy of RLVR": ("train RLVR",),
            "characters of RLVR": ("train RLVR", "characters of base"),
            "accuracy of PerMix-RLVR": ("train PerMix-RLVR",),
            "characters of PerMix-RLVR": ("train PerMix-RLVR", "characters of base"),
        }


@pytest.mark.parametrize(
    ("codes", "error"), [([1], PermixError), ([3, 3], IncompleteRunError), ([2, 2], ConfigError), ([3, 1], PermixError)]
)
def test_failed_parts_are_named_with_their_logs(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, codes: list[int], error: type[PermixError]
) -> None:
    asked: list[Job] = []
    out = tmp_path / "quick"

    def fails(
        jobs: Sequence[Job], at_a_time: int, *, sizes: Mapping[str, JobSize], one_gpu_each: bool, inherited: Sequence[int]
    ) -> list[JobFailure]:
        assert (at_a_time, one_gpu_each) == (3, True)
        assert sizes.keys() == {job.name for job in jobs}
        assert [holds_claim(out, one) for one in inherited] == [True]
        with pytest.raises(ConfigError, match="another process is running this quickstart"):
            run_quickstart(settings)
        asked.extend(jobs)
        return [JobFailure(one.name, code, one.log, "error: no space left") for one, code in zip(jobs, codes, strict=False)]

    monkeypatch.setattr("permix.pipelines.quickstart.run_jobs", fails)
    settings = QuickstartConfig(fast=True, model=str(tiny_model), out=out, jobs=3, threads=7)
    named = rf"failed: train PerMix-RLVR \(exit code {codes[0]}, .*permix-rlvr-train\.txt\): error: no space"
    with pytest.raises(PermixError, match=named) as raised:
        run_quickstart(settings)
    assert raised.value.exit_code == error.exit_code
    assert type(raised.value) is error
    assert {one.name: one.after for one in asked} == {
        "train PerMix-RLVR": (), "evaluate base": (), "train RLVR": (),
        "evaluate RLVR": ("train RLVR", "evaluate base"), "evaluate PerMix-RLVR": ("train PerMix-RLVR", "evaluate base"),
    }  # fmt: skip
    assert [one.name for one in asked[:2]] == ["train PerMix-RLVR", "evaluate base"], "the longest first, then what others need"
    for one in asked:
        assert one.arguments[:3] == ["quickstart", str(out / "quickstart.json"), "--part"]
        assert one.arguments[-2:] == ["--threads", "7"]
    ordered = [name for one in asked for name in one.arguments[3:-2]]
    assert sorted(ordered) == sorted(part.config.out.name for part in quickstart_parts(settings))
    assert read_json(out / "quickstart.json")["model"] == str(tiny_model)
    assert not (out / "report").exists()


def test_a_single_process_has_all_cores_and_one_log(
    done: Path, tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[Job] = []
    monkeypatch.setattr(hardware, "has_fast_bfloat16", lambda device: False)  # as in the runs of `done`

    def runs_nothing(jobs: Sequence[Job], at_a_time: int, **_: object) -> list[JobFailure]:
        assert at_a_time == 1
        asked.extend(jobs)
        return []

    monkeypatch.setattr("permix.pipelines.quickstart.run_jobs", runs_nothing)
    for name, pending in (("both", ("stability", "fidelity")), ("one", ("fidelity",))):
        out = tmp_path / name
        shutil.copytree(done, out)
        for stage in pending:
            shutil.rmtree(out / f"permix-rlvr-{stage}")
        with pytest.raises(PermixError):  # nothing ran, so there is no report
            run_quickstart(QuickstartConfig(fast=True, model=str(tiny_model), out=out, jobs=2))
    assert [one.name for one in asked] == ["evaluate PerMix-RLVR", "characters of PerMix-RLVR"]
    assert all("--threads" not in one.arguments for one in asked)
    assert [one.log.name for one in asked] == ["permix-rlvr-evaluations.txt"] * 2


def test_a_part_that_fails_does_not_keep_the_next_from_running(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ran: list[str] = []

    def run(part: QuickstartPart) -> None:
        ran.append(part.name)
        raise IncompleteRunError(f"{part.name}: 1 of 9 cells has no score", 1)

    monkeypatch.setattr(QuickstartPart, "run", run)
    settings = QuickstartConfig(model=str(tiny_model), out=tmp_path / "quick", part=("base-stability", "base-fidelity"))
    with pytest.raises(IncompleteRunError, match="accuracy of base: 1 of 9"):
        run_quickstart(settings)
    assert ran == ["accuracy of base", "characters of base"]


@pytest.mark.parametrize("fails", ["accuracy of base", "train RLVR"])
def test_in_one_process_only_parts_that_need_a_failed_one_are_left_out(
    fails: str, tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ran: list[str] = []

    def run(part: QuickstartPart) -> None:
        ran.append(part.name)
        if part.name == fails:
            raise IncompleteRunError(f"{part.name} failed", 1)

    monkeypatch.setattr(QuickstartPart, "run", run)
    settings = QuickstartConfig(fast=True, model=str(tiny_model), out=tmp_path / "quick", jobs=1)
    with pytest.raises(IncompleteRunError, match=f"{fails} failed"):
        run_quickstart(settings)
    parts = quickstart_parts(settings)
    lacking = {part.name for part in parts if fails in part.after}
    assert lacking or fails == "accuracy of base"
    assert ran == [part.name for part in parts if part.name not in lacking]


def test_the_parts_of_a_process_in_a_file_or_a_flag() -> None:
    def parts(value: object) -> tuple[str, ...] | None:
        return build_config(QuickstartConfig, {"part": value}, source="test").part

    assert (parts("base-stability"), parts(["a", "b"]), parts(None)) == (("base-stability",), ("a", "b"), None)
    with pytest.raises(ConfigError, match="part"):
        parts([])


def test_a_part_that_does_not_exist(tiny_model: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="part = 'base': must be one of base-stability, base-fidelity, rlvr-train, "):
        run_quickstart(QuickstartConfig(fast=True, model=str(tiny_model), out=tmp_path / "quick", part=("base",)))


@pytest.mark.parametrize(
    ("gpus", "cores", "gigabytes", "jobs"),
    [
        (0, 2, 24, 2),
        (0, 1, 24, 1),
        (0, 16, 64, 3),
        (0, 16, 7.9, 1),
        (0, 16, 4, 1),
        (0, 4, 12.1, 2),
        (1, 16, 128, 1),
        (2, 16, 128, 2),
    ],
)
def test_parts_at_a_time_by_cores_gpus_and_memory(
    monkeypatch: pytest.MonkeyPatch, gpus: int, cores: int, gigabytes: float, jobs: int
) -> None:
    monkeypatch.setattr("permix.pipelines.quickstart.visible_gpus", lambda: ["gpu"] * gpus)
    monkeypatch.setattr("permix.pipelines.quickstart.memory_limit", lambda: int(gigabytes * 1e9))
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(cores)))
    assert default_jobs() == jobs

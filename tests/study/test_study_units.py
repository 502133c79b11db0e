"""The units of a study on disk, without a model: what is finished, refused and deleted, and what it all costs."""

import csv
import os
import re
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import permix
from bench.archive import missing_part
from permix.config import PartConfig, StudyConfig, StudyUnit, TrainConfig, build_config
from permix.dashboard.folder import _find_run_dirs
from permix.errors import ConfigError, DataError, PermixError
from permix.judges.results import JudgeResults, JudgeUsage
from permix.judges.summary import score_change_over_seeds
from permix.metrics import statistics
from permix.metrics.stability import stability_differences
from permix.pipelines import study as study_module
from permix.pipelines import study_cost, study_units
from permix.pipelines.jobs import JobFailure, cores_of_job, gpus_of_slot, thread_arguments
from permix.pipelines.study import run_study
from permix.pipelines.study_cost import PartCost, estimate_time, preflight_study, study_costs
from permix.pipelines.study_units import (
    check_same_settings,
    delete_model,
    finished_parts,
    pending_parts,
    read_unit_record,
    run_unit,
)
from permix.progress import command_output
from permix.rendering.table import format_p_value
from permix.report import study as study_report
from permix.report.runs import _runs_below
from permix.report.study import check_headlines, divide_into_pages, write_study_report
from permix.storage.files import read_json, write_json
from permix.storage.workers import claim_folder, holds_claim, is_claimed
from permix.training.job import prepare_training
from permix.types import AnswerKey, Verdict
from tests.seeded import PERSONAS, QUESTIONS, Right, cell, fidelity_run, share, stability_run, torn, train_run, write_run

ACCURACY: dict[str, Any] = {
    "stage": "stability",
    "task": {"levels": ["add-1"], "n": 5},
    "personas": {"n": 3},
    "samples": 2,
    "sampling": {"max_new_tokens": 16},
}
CHARACTER: dict[str, Any] = {
    "stage": "fidelity",
    "personas": {"include": ["character"], "n": 3},
    "n_questions": 10,
    "sampling": {"max_new_tokens": 20},
    "reference": "base",
}
TRAIN: dict[str, Any] = {
    "task": {"levels": ["add-1"], "n": 4},
    "plan": {"steps": 2, "questions_per_step": 3, "group_size": 4},
    "train": {"max_new_tokens": 8},
}
ARMS = {"rlvr": {"method": "rlvr"}, "sft": {"method": "sft"}}


def study(out: Path, **values: Any) -> StudyConfig:
    given = {
        "out": out,
        "seeds": [1, 2],
        "train": TRAIN,
        "arms": ARMS,
        "evaluations": {"accuracy": ACCURACY, "character": CHARACTER},
    }
    return build_config(StudyConfig, given | values, source="study.toml")


def unit_of(settings: StudyConfig, name: str) -> StudyUnit:
    return next(unit for unit in settings.units() if unit.name == name)


def make_finished(unit: StudyUnit, *names: str, seconds: float = 1.0) -> None:
    """The files of these parts, as finished runs leave them, and their record."""
    for name in names:
        part = unit.parts[name]
        write_json(make(part.out) / ("config.json" if name == "train" else "metrics.json"), {"stage": part.stage})
        write_json(part.out / "usage.json", {"wall_seconds": seconds, "cpu_seconds": seconds})
        if name == "train":
            write_json(make(part.out / "model") / "config.json", {})
        study_units._write_record(unit, name, finished=True)


def make(folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    return folder


# What is finished


def test_a_unit_is_finished_when_all_of_its_parts_are(tmp_path: Path) -> None:
    unit = unit_of(study(tmp_path), "rlvr-1")
    assert pending_parts(unit) == ["train", "accuracy", "character"]
    make_finished(unit, "train")
    assert pending_parts(unit) == ["accuracy", "character"]
    make_finished(unit, "accuracy", "character")
    assert pending_parts(unit) == []


def test_a_deleted_model_is_needed_again_only_for_a_pending_evaluation(tmp_path: Path) -> None:
    unit = unit_of(study(tmp_path, keep_models=False), "rlvr-1")
    make_finished(unit, "train", "accuracy")
    delete_model(unit)
    assert unit.training is not None
    assert (unit.training.out / "model").exists()  # an evaluation is pending
    make_finished(unit, "character")
    delete_model(unit)
    assert not (unit.training.out / "model").exists()
    assert not list(unit.training.out.glob(".model*"))
    assert pending_parts(unit) == []
    delete_model(unit)
    more = study(tmp_path, evaluations={"accuracy": ACCURACY, "character": CHARACTER, "more": ACCURACY | {"seed": 5}})
    assert pending_parts(unit_of(more, "rlvr-1")) == ["train", "more"]


@pytest.mark.parametrize("before", ["killed", "another command"])
def test_a_model_is_deleted_after_a_killed_deletion_and_beside_another_one(
    before: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    unit = unit_of(study(tmp_path, keep_models=False), "rlvr-1")
    make_finished(unit, "train", "accuracy", "character")
    assert unit.training is not None
    model = unit.training.out / "model"
    if before == "killed":
        shutil.copytree(model, model.with_name(".model.deleted"))
    else:
        rename = Path.rename

        def taken_away(path: Path, target: Path) -> Path:
            rename(path, tmp_path / "elsewhere")
            return rename(path, target)

        monkeypatch.setattr(Path, "rename", taken_away)
    delete_model(unit)
    assert not model.exists()
    assert not list(unit.training.out.glob(".model*"))


def fake_parts(monkeypatch: pytest.MonkeyPatch, weights: Sequence[str] = ("first",)) -> list[str]:
    """Parts that leave what a part leaves; returns their names as they are run. Each training has the next of the weights."""
    ran, left = list[str](), list(weights)

    def run_part(part: PartConfig) -> None:
        ran.append(part.out.name)
        write_json(make(part.out) / "config.json", part)
        write_json(part.out / "metrics.json", {})
        if isinstance(part, TrainConfig):
            write_json(make(part.out / "model") / "config.json", {"weights": left.pop(0)})

    monkeypatch.setattr(study_units, "run_part", run_part)
    monkeypatch.setattr(study_units, "_await_reference", lambda *_: None)
    return ran


@pytest.mark.parametrize("is_started", [False, True])
def test_a_training_that_another_command_has_ended_is_recorded(
    is_started: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = study(tmp_path, keep_models=False)
    unit, ran = unit_of(settings, "rlvr-1"), fake_parts(monkeypatch)
    assert unit.training is not None
    if is_started:
        study_units._write_record(unit, "train", finished=False)
    study_units.run_part(prepare_training(unit.training).config)
    ran.clear()
    run_unit(settings, unit)
    assert ran == ["accuracy", "character"]
    assert finished_parts(unit) == ["train", "accuracy", "character"]
    assert not (unit.training.out / "model").exists()


def test_a_training_of_other_settings_is_not_taken_over(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = study(tmp_path)
    unit, _ = unit_of(settings, "rlvr-1"), fake_parts(monkeypatch)
    assert unit.training is not None
    changed = unit.training.train.model_copy(update={"lr": 0.5})
    study_units.run_part(unit.training.model_copy(update={"train": changed}))
    with pytest.raises(ConfigError, match=r"rlvr-1/train was started with train.lr = 0.5, not 1e-05"):
        run_unit(settings, unit)


def train_by_hand(unit: StudyUnit, lr: float) -> None:
    """What `permix train` leaves in the unit's folder, with another learning rate."""
    assert unit.training is not None
    train = unit.training.train.model_copy(update={"lr": lr})
    write_json(
        make(unit.training.out) / "config.json", prepare_training(unit.training).config.model_copy(update={"train": train})
    )
    write_json(make(unit.training.out / "model") / "config.json", {})


def test_a_found_training_of_other_settings_is_refused_before_anything_is_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = study(tmp_path)
    train_by_hand(unit_of(settings, "sft-2"), 0.5)
    monkeypatch.setattr(study_module, "_run_units", lambda *_: pytest.fail("units were run"))
    for start in (run_study, preflight_study):
        with pytest.raises(ConfigError, match=r"sft-2/train was started with .*train.lr = 0.5, not 1e-05.*; or delete .*sft-2$"):
            start(settings)
    assert run_study(study(tmp_path, report=True)) is None  # the report of what is finished needs no such check


def test_a_unit_that_cannot_be_settled_is_named_after_the_report_of_the_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = study(tmp_path)
    base, broken = unit_of(settings, "base"), unit_of(settings, "rlvr-1")

    def run_units(config: StudyConfig, units: Sequence[StudyUnit]) -> list[JobFailure]:
        stability_run(base.parts["accuracy"].out, "base", "bundled", share(5))
        fidelity_run(base.parts["character"].out, "base", "bundled")
        make_finished(base, *base.parts)
        train_by_hand(broken, 0.5)
        return [JobFailure("sft-1", 1, tmp_path / "sft-1" / "log.txt", "no memory")]

    monkeypatch.setattr(study_module, "check_study", lambda _: None)
    monkeypatch.setattr(study_module, "_run_units", run_units)
    with (
        command_output(as_json=True, is_quiet=True) as shown,
        pytest.raises(
            PermixError, match=r"4 of 5 units are not finished; failed: rlvr-1: .*train.lr = 0.5, .*; sft-1 \(exit code 1"
        ),
    ):
        run_study(settings)
    assert (tmp_path / "report" / "index.html").exists()
    assert (shown.result["pending"], sorted(shown.result["failed"])) == (4, ["rlvr-1", "sft-1"])


@pytest.mark.parametrize("keeps_models", [False, True])
def test_a_training_that_ended_with_nothing_left_to_ask_is_recorded_by_the_next_start(
    keeps_models: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = study(tmp_path, keep_models=keeps_models)
    for unit in settings.units():
        make_finished(unit, *unit.parts)
    unit = unit_of(settings, "rlvr-1")
    study_units._write_record(unit, "train", finished=False)  # the process was killed before it recorded the end
    monkeypatch.setattr(study_module, "report_study", lambda _: None)
    run_study(settings)
    assert "train" in read_unit_record(unit).finished
    assert unit.training is not None
    assert (unit.training.out / "model").exists() == keeps_models


@pytest.mark.parametrize("weights", ["first", "second"])
def test_the_evaluations_of_a_unit_are_of_one_model(
    weights: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = study(tmp_path, keep_models=False)
    unit, ran = unit_of(settings, "rlvr-1"), fake_parts(monkeypatch, ["first", weights])
    run_unit(settings, unit)
    (unit.folder / "accuracy" / "records.jsonl").write_text("kept")
    ran.clear()
    more = study(
        tmp_path, keep_models=False, evaluations={"accuracy": ACCURACY, "character": CHARACTER, "more": ACCURACY | {"seed": 5}}
    )
    unit = unit_of(more, "rlvr-1")
    run_unit(more, unit)
    assert pending_parts(unit) == []
    if weights == "first":
        assert ran == ["train", "more"]
        assert (unit.folder / "accuracy" / "records.jsonl").exists()
        return
    assert ran == ["train", "accuracy", "character", "more"]
    assert "warning: rlvr-1: the model that is there has other weights" in capsys.readouterr().err
    assert [path.read_text() for path in unit.folder.glob("other-weights-*/accuracy/records.jsonl")] == ["kept"]


def test_evaluations_that_are_set_aside_are_no_runs_of_their_unit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Their labels are those of the unit's runs: report, power, compare and view have one run of each kind and label."""
    settings = study(tmp_path / "study", keep_models=False)
    unit = unit_of(settings, "rlvr-1")
    fake_parts(monkeypatch, ["first", "second", "third"])
    for evaluations in ({}, {"more": ACCURACY | {"seed": 5}}, {"most": ACCURACY | {"seed": 6}}):
        settings = study(settings.out, keep_models=False, evaluations=settings.evaluations | evaluations)
        unit = unit_of(settings, "rlvr-1")
        run_unit(settings, unit)
    for config in unit.folder.rglob("config.json"):
        (config.parent / "provenance.json").write_text("{}")
    earlier = sorted(unit.folder.glob("other-weights-*"))
    assert len(earlier) == 2
    expected = [unit.folder / name for name in ("accuracy", "character", "more", "most", "train")]
    assert list(_runs_below(unit.folder)) == list(_runs_below(settings.out)) == expected
    assert sorted(_find_run_dirs(settings.out)[0].values()) == expected
    for folder in earlier:  # its runs are read if it is named
        assert [path.name for path in _runs_below(folder)][:2] == ["accuracy", "character"]
        assert [path.name for path in _find_run_dirs(folder)[0].values()][:2] == ["accuracy", "character"]
    other = make(tmp_path / "mine" / "other-weights-of-mine" / "accuracy")  # a folder of the user's, in no unit
    shutil.copytree(unit.folder / "accuracy", other, dirs_exist_ok=True)
    assert list(_runs_below(tmp_path / "mine")) == list(_find_run_dirs(tmp_path / "mine")[0].values()) == [other]


def test_a_model_that_another_command_asks_is_not_deleted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = study(tmp_path, keep_models=False)
    more = study(tmp_path, keep_models=False, evaluations=settings.evaluations | {"talk": ACCURACY | {"seed": 5}})
    for unit in settings.units():
        make_finished(unit, *unit.parts)
    asking = unit_of(more, "rlvr-1")
    model = tmp_path / "rlvr-1" / "train" / "model"
    monkeypatch.setattr(study_module, "report_study", lambda _: None)
    claim = claim_folder(asking.folder)  # the command of `more` works on the unit, and has not yet started the evaluation
    assert claim is not None
    run_study(settings)
    assert model.exists()
    assert not (tmp_path / "rlvr-2" / "train" / "model").exists()
    study_units._write_record(asking, "talk", finished=False)
    os.close(claim)  # it was killed while it asked
    run_study(settings)
    assert model.exists()
    make_finished(asking, "talk")
    run_study(settings)
    assert not model.exists()


def test_the_json_of_a_unit_says_whether_it_is_pending(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake_parts(monkeypatch, ["first"])
    monkeypatch.setattr(study_module, "check_study", lambda _: None)
    with command_output(as_json=True, is_quiet=True) as shown:
        run_study(study(tmp_path, unit="rlvr-1"))
    assert (shown.result["pending"], shown.result["failed"]) == (0, [])
    monkeypatch.setattr(study_units, "run_part", lambda _: (_ for _ in ()).throw(DataError("x")))
    with command_output(as_json=True, is_quiet=True) as shown, pytest.raises(DataError):
        run_study(study(tmp_path, unit="rlvr-2"))
    assert shown.result["pending"] == 1


def test_the_json_of_a_report_has_every_page(tmp_path: Path) -> None:
    evaluations = {"accuracy": ACCURACY, "more": ACCURACY | {"seed": 5}, "character": CHARACTER}
    settings = study(tmp_path, evaluations=evaluations, arms={"rlvr": {"method": "rlvr"}})
    base = settings.units()[0]
    stability_run(base.parts["accuracy"].out, "base", "bundled", share(5))
    stability_run(base.parts["more"].out, "base", "bundled", share(0))
    with command_output(as_json=True, is_quiet=True) as shown:
        write_study_report(settings, {"base": ["accuracy", "more"]}, tmp_path / "report", [base])
    pages = shown.result["pages"]
    on_disk = sorted(str(path.parent) for path in (tmp_path / "report").rglob("index.html"))
    assert sorted(str(Path(page["paths"]["page"]).parent) for page in pages) == on_disk
    assert [page["rows"][0]["mean"]["value"] for page in pages] == [1.0, 0.0]
    assert all(page["arms"] for page in pages)
    assert shown.result["rows"] == pages[0]["rows"]
    assert shown.result["paths"]["page"] == tmp_path / "report" / "index.html"
    assert shown.result["headlines"] == []


def test_a_unit_alone_writes_the_file_of_the_study(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake_parts(monkeypatch, ["first"])
    monkeypatch.setattr(study_module, "check_study", lambda _: None)
    run_study(study(tmp_path, unit="rlvr-1"))
    assert read_json(tmp_path / "study.json")["unit"] is None
    assert missing_part(tmp_path / "rlvr-1") is None


def test_a_record_without_the_files_of_a_part_does_not_count(tmp_path: Path) -> None:
    unit = unit_of(study(tmp_path), "base")
    make_finished(unit, "accuracy")
    (unit.parts["accuracy"].out / "metrics.json").unlink()
    assert finished_parts(unit) == []
    assert read_unit_record(unit).finished == ("accuracy",)


@pytest.mark.parametrize("text", ['{"parts": [], "finished": []}', '{"parts": {"train": 1}}', '{"finished": 3}', "{", "[]"])
def test_a_damaged_record_is_named(text: str, tmp_path: Path) -> None:
    (make(tmp_path / "base") / "unit.json").write_text(text)
    with pytest.raises(DataError, match=r"base/unit\.json: "):
        run_study(study(tmp_path))


# Changed settings


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"train": TRAIN | {"train": {"max_new_tokens": 9}}}, "rlvr-1/train was started with train.max_new_tokens = 8, not 9"),
        (
            {"arms": ARMS | {"rlvr": {"method": "rlvr", "label": "x"}}},
            "rlvr-1/train was started with label = 'rlvr 1', not 'x 1'",
        ),
        ({"base": {"name": "other"}}, "base/accuracy was started with model.name = 'bundled', not 'other'"),
        ({"evaluations": {"accuracy": ACCURACY | {"samples": 3}}}, "base/accuracy was started with samples = 2, not 3"),
    ],
)
def test_a_started_part_is_not_mixed_with_other_settings(values: dict[str, Any], words: str, tmp_path: Path) -> None:
    settings = study(tmp_path)
    make_finished(unit_of(settings, "base"), "accuracy")
    study_units._write_record(unit_of(settings, "rlvr-1"), "train", finished=False)
    check_same_settings(settings)
    with pytest.raises(ConfigError) as caught:
        run_study(study(tmp_path, **values))
    assert words in str(caught.value)
    assert f"or delete {tmp_path}" in str(caught.value)


def test_what_changes_no_number_may_change_and_a_study_may_be_moved(tmp_path: Path) -> None:
    settings = study(tmp_path / "one")
    for unit in settings.units():
        make_finished(unit, *unit.parts)
    (tmp_path / "one").rename(tmp_path / "two")
    changed = ACCURACY | {"model": {"batch_size": 3}}
    moved = study(
        tmp_path / "two", threads=3, keep_models=False, train=TRAIN | {"train": {"max_new_tokens": 8, "save_every": 2}},
        evaluations={"accuracy": changed, "character": CHARACTER, "new": ACCURACY | {"seed": 1}},
    )  # fmt: skip
    check_same_settings(moved)


# Claims, devices


def test_a_claim_holds_until_its_last_descriptor_is_closed(tmp_path: Path) -> None:
    assert not is_claimed(tmp_path)
    claim = claim_folder(tmp_path / "unit")
    assert claim is not None
    assert is_claimed(tmp_path / "unit")
    assert holds_claim(tmp_path / "unit", claim)
    assert not holds_claim(tmp_path / "unit", 0)
    assert claim_folder(tmp_path / "unit") is None
    copy = os.dup(claim)
    os.close(claim)
    assert is_claimed(tmp_path / "unit")
    os.close(copy)
    assert not is_claimed(tmp_path / "unit")


def test_a_unit_that_another_process_runs_is_refused(tmp_path: Path) -> None:
    settings = study(tmp_path, unit="rlvr-1")
    claim = claim_folder(tmp_path / "rlvr-1")
    assert claim is not None
    with pytest.raises(ConfigError, match='unit = "rlvr-1": another process is running this unit'):
        run_study(settings)
    os.close(claim)


def test_gpus_and_cores_are_divided_among_jobs(monkeypatch: pytest.MonkeyPatch) -> None:
    four = ["0", "1", "2", "5"]
    assert [gpus_of_slot(four, slot, 4) for slot in range(4)] == [["0"], ["1"], ["2"], ["5"]]
    assert [gpus_of_slot(four, slot, 2) for slot in range(2)] == [["0", "1"], ["2", "5"]]
    assert [gpus_of_slot(four[:2], slot, 3) for slot in range(3)] == [["0"], ["1"], ["0"]]
    assert gpus_of_slot([], 0, 2) == []
    cores = len(os.sched_getaffinity(0))
    assert cores_of_job(cores) == 1
    assert cores_of_job(1) == cores
    assert cores_of_job(10 * cores) == 1
    monkeypatch.setattr("permix.pipelines.jobs.visible_gpus", list)
    assert thread_arguments(None, cores + 1) == ["--threads", "1"]
    assert thread_arguments(None, 1) == []
    assert thread_arguments(3, 1) == thread_arguments(3, 2) == ["--threads", "3"]
    monkeypatch.setattr("permix.pipelines.jobs.visible_gpus", lambda: four)
    assert thread_arguments(None, 2) == []


# What it costs


@pytest.mark.slow
def test_the_numbers_of_a_dry_run_by_hand(tmp_path: Path) -> None:
    judge = {"name": "j", "base_url": "http://127.0.0.1:1/v1", "answers_per_control": 20, "max_new_tokens": 50}
    settings = study(tmp_path, evaluations={"accuracy": ACCURACY, "character": CHARACTER | {"judge": judge}})
    assert study_costs(settings) == {
        # 2 steps × 3 questions × 4 rollouts, of 8 tokens each
        "rlvr": PartCost(rollouts=24, generated=24 * 8, trained=24 * 8),
        # 6 gold answers
        "sft": PartCost(trained=6 * 8),
        # (3 personas and none) × 5 questions × 2 samples, of 16 tokens each
        "accuracy": PartCost(answers=40, generated=40 * 16),
        # 3 personas × 10 questions; the judge scores 30 answers, and 20 of them in each of 4 controls, in at most 2 attempts
        "character": PartCost(answers=30, judge_calls=2 * (30 + 4 * 20), judge_tokens=220 * 50, generated=30 * 20),
    }
    facts = preflight_study(settings)
    assert facts["units"] == "5: the untrained model and 4 trained ones; 0 of them finished"
    assert facts["rollouts"] == "48"
    assert facts["cells and answers"] == str(5 * 70)
    assert facts["judge calls"] == f"at most {5 * 220}, at most {5 * 220 * 50} new tokens"
    assert facts["new tokens"] == f"at most {2 * 24 * 8 + 5 * (40 * 16 + 30 * 20)}"
    assert facts["tokens trained on"] == f"at most {2 * 24 * 8 + 2 * 6 * 8}"
    assert facts["time"] == "unknown: no part of this study is finished, and [rates] gives no rate"
    chosen = preflight_study(study(tmp_path, only=["rlvr"], only_seeds=[2]))
    assert (chosen["units"], chosen["rollouts"]) == ("2: the untrained model and 1 trained one; 0 of them finished", "24")
    assert "arm sft" not in chosen


def test_time_comes_from_finished_parts_then_from_rates(tmp_path: Path) -> None:
    rates = {"generation_tokens_per_s": 10.0, "training_tokens_per_s": 2.0, "measured_on": "a laptop"}
    settings = study(tmp_path, evaluations={"accuracy": ACCURACY}, rates=rates)
    costs, units = study_costs(settings), settings.units()
    by_rate = estimate_time(settings, units, costs)
    rlvr, sft, accuracy = 192 / 10 + 192 / 2, 48 / 2, 640 / 10
    assert by_rate.seconds == pytest.approx(2 * rlvr + 2 * sft + 5 * accuracy)
    assert by_rate.sources == ["at most, by [rates], measured on a laptop"]
    make_finished(unit_of(settings, "rlvr-1"), "train", "accuracy", seconds=30.0)
    make_finished(unit_of(settings, "base"), "accuracy", seconds=10.0)
    found = estimate_time(settings, units, costs)
    assert found.seconds == pytest.approx(30 + 2 * sft + 3 * 20)  # rlvr-2; sft-1 and sft-2; three evaluations at a mean of 20 s
    assert "rlvr: mean of 1 finished, 30 s each" in found.sources
    without = study(tmp_path, evaluations={"accuracy": ACCURACY})
    unknown = estimate_time(without, units, costs)
    assert unknown.seconds == pytest.approx(30 + 3 * 20)
    assert unknown.unknown == ["sft"]
    assert unknown.text(2).startswith("about 90 s on one device, about 50 s with 2 jobs on as many devices (")
    assert unknown.text(1).endswith("; unknown for sft")


def test_a_dry_run_counts_the_chosen_units_and_no_more(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(study_cost, "check_study", lambda _: None)
    monkeypatch.setattr(study_cost, "study_costs", lambda config: dict.fromkeys((*config.arms, *config.evaluations), PartCost()))
    units = {unit: preflight_study(study(tmp_path, unit=unit))["units"] for unit in ("rlvr-1", "base", None)}
    assert units == {
        "rlvr-1": "1: 1 trained one; 0 of them finished",
        "base": "1: the untrained model; 0 of them finished",
        None: "5: the untrained model and 4 trained ones; 0 of them finished",
    }
    facts = preflight_study(study(tmp_path, report=True))
    assert facts == {"units": "5; 0 of them have results", "runs": "none: only the report is written"}


def test_jobs_divide_units_and_no_unit_itself(tmp_path: Path) -> None:
    settings = study(tmp_path)
    make_finished(unit_of(settings, "base"), "accuracy", "character", seconds=1000.0)
    make_finished(unit_of(settings, "rlvr-1"), "train", "accuracy", "character", seconds=1200.0)
    costs = dict.fromkeys((*settings.arms, *settings.evaluations), PartCost())
    one = estimate_time(settings, [unit_of(settings, "rlvr-2")], costs)
    assert one.seconds == pytest.approx(1200 + 1100 + 1100)
    assert ", about 57 min with 8 jobs on as many devices (" in one.text(8)
    two = estimate_time(settings, [unit_of(settings, "rlvr-2"), unit_of(settings, "sft-1"), unit_of(settings, "sft-2")], costs)
    assert two.unit_seconds == pytest.approx([3400, 2200, 2200])
    assert ", about 65 min with 2 jobs on as many devices (" in two.text(2)


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"evaluations": {}}, "evaluations: names no evaluation"),
        ({"train": TRAIN | {"task": {"levels": ["add-x"]}}}, "arm rlvr: "),
        ({"evaluations": {"a": ACCURACY | {"personas": {"pool": "nowhere.csv"}}}}, "nowhere.csv"),
        (
            {"headlines": [{"evaluation": "character", "measure": "pss", "arm": "rlvr", "against": "base", "published": 1}]},
            "headlines: measure = 'pss' (headline 1): character has identifiability, recognisability",
        ),
    ],
)
def test_what_is_wrong_with_a_part_is_said_before_anything_is_started(values: dict[str, Any], words: str, tmp_path: Path) -> None:
    for run, unit in ((preflight_study, None), (run_study, None), (run_study, "rlvr-1")):
        with pytest.raises(PermixError) as caught:
            run(study(tmp_path / "out", unit=unit, **values))
        assert isinstance(caught.value, (ConfigError, DataError))
        assert words in str(caught.value)
    assert not (tmp_path / "out").exists()


# The report


def write_finished_study(settings: StudyConfig) -> dict[str, list[str]]:
    """Base; rlvr, right on half and on three of five questions; permix, right on four of five: hand-checkable means."""
    rights = {"rlvr-1": torn, "rlvr-2": share(3), "permix-1": share(4), "permix-2": share(4)}
    for unit in settings.units():
        asked = (
            "bundled"
            if unit.training is None
            else str(train_run(unit.training.out, unit.label, int(unit.seed or 0), method=unit.training.method) / "model")
        )
        for name in ("accuracy", "more"):
            stability_run(unit.parts[name].out, unit.label, asked, rights.get(unit.name, torn))
        base = None if unit.arm is None else settings.units()[0].parts["character"].out
        fidelity_run(unit.parts["character"].out, unit.label, asked, base)
    return {unit.name: list(unit.parts) for unit in settings.units()}


@pytest.mark.slow
def test_the_report_pools_seeds_compares_arms_and_sets_published_figures_beside(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    headline = {
        "evaluation": "accuracy",
        "measure": "mean",
        "arm": "permix",
        "against": "rlvr",
        "published": 0.212,
        "source": "paper",
    }
    settings = study(
        tmp_path, arms={"rlvr": {"method": "rlvr", "label": "RLVR"}, "permix": {"method": "permix", "label": "PerMix"}},
        evaluations={"accuracy": ACCURACY, "character": CHARACTER, "more": ACCURACY | {"seed": 9}},
        headlines=[headline, headline | {"evaluation": "character", "measure": "identifiability", "published": 0.5}],
    )  # fmt: skip
    write_study_report(settings, write_finished_study(settings), tmp_path / "report")
    told = capsys.readouterr().err.splitlines()
    assert told == ["[1/2] page of more", "[2/2] page of accuracy, character, and all comparisons"]
    table = read_json(tmp_path / "report" / "table.json")
    assert [row["label"] for row in table["rows"]] == ["base", "RLVR 1", "RLVR 2", "PerMix 1", "PerMix 2"]
    pooled = {one["name"]: one for one in table["methods"]}
    assert {name: one["labels"] for name, one in pooled.items()} == {
        "base": ["base"], "RLVR": ["RLVR 1", "RLVR 2"], "PerMix": ["PerMix 1", "PerMix 2"],
    }  # fmt: skip
    # torn: .2, .4, .6 and .8 by persona; so RLVR has the mean of .5 and .6
    assert pooled["RLVR"]["mean"]["value"] == pytest.approx(0.55)
    found = {(one["arm"], one["against"], one["evaluation"]): one for one in table["study"]["differences"]}
    assert set(found) == {
        (*pair, evaluation)
        for pair in (("PerMix", "RLVR"), ("RLVR", "base"), ("PerMix", "base"))
        for evaluation in ("accuracy", "character", "more")
    }
    assert found["PerMix", "RLVR", "accuracy"]["measures"]["mean"]["value"] == pytest.approx(0.25)
    assert found["PerMix", "base", "accuracy"]["n_seeds"] == [2, 1]
    against = found["PerMix", "RLVR", "accuracy"]
    assert list(against["measures"]) == [
        "pss", "relative_persona_sd", "worst", "mean", "mean_minus_baseline", "worst_minus_baseline",
    ]  # fmt: skip
    # Without persona RLVR has .8 and .6, PerMix .8: (.8 − .8) − (.55 − .7)
    assert against["measures"]["mean_minus_baseline"]["value"] == pytest.approx(0.15)
    assert against["seeds"]["mean"]["text"] == "2 of each, paired"
    # .3 and .2: t = 5 with one degree of freedom has p = .126; five questions leave room for more
    assert 0.126 < against["p"]["mean"] < 0.15
    assert against["over_seeds"]["mean"]["low"] < 0
    assert next(iter(found["PerMix", "RLVR", "character"]["p"])) == "identifiability"
    ours = table["study"]["headlines"]
    # First order: .8 / .55 − k y / .55 with k = .8 / .55 is .1322 and −.1322; t with one degree of freedom makes it ± 1.68.
    assert ours[0]["ours"]["low"] == -1.0
    of_seeds_alone = 0.8 / 0.55 - 1 + 12.706 * 0.8 / 0.55 * 0.05 / 0.55
    assert of_seeds_alone <= ours[0]["ours"]["high"] < of_seeds_alone + 0.1
    assert ours[0]["covers_seeds"]
    assert ours[0]["ours"]["value"] == pytest.approx(0.8 / 0.55 - 1)
    assert ours[0]["published"] == 0.212
    assert ours[1]["ours"]["value"] == pytest.approx(0.0)  # all speak alike
    text = (tmp_path / "report" / "report.md").read_text(encoding="utf-8")
    with (tmp_path / "report" / "tables" / "study-overview.csv").open(encoding="utf-8", newline="") as file:
        overview = {row["arm"]: row for row in csv.DictReader(file)}
    assert list(overview) == ["base", "RLVR", "PerMix"]
    for evaluation in ("accuracy", "more"):
        assert float(overview["RLVR"][f"mean, {evaluation}"]) == pytest.approx(0.55)
        assert float(overview["PerMix"][f"best of 4, {evaluation}"]) == pytest.approx(0.8)
    assert float(overview["base"]["identifiability, character"]) == pytest.approx(
        table["study"]["evaluations"]["character"]["base"]["identifiability"]["value"]
    )
    assert "training tokens" not in overview["RLVR"]  # these runs have no log of tokens
    assert "## All evaluations" in text
    assert "mean on accuracy, PerMix against RLVR: +45.5 % [" in text
    assert (
        "identifiability on character, PerMix against RLVR: +0.0 % [+0.0 %, +0.0 %]; the interval includes 0: no difference shown"
        in text
    )
    assert "published +50.0 %, outside this interval" in text
    assert "; the interval includes 0</sub>" in text
    assert f", p = {format_p_value(against['p']['mean'])}; the interval includes 0</sub>" in text
    assert "mean − no persona" in text
    page = (tmp_path / "report" / "index.html").read_text(encoding="utf-8")
    assert "Published figures" in page
    assert "Differences between the arms" in page
    evaluations = table["study"]["evaluations"]
    assert evaluations["accuracy"]["RLVR"]["mean"]["value"] == pytest.approx(0.55)
    assert "identifiability" not in evaluations["accuracy"]["RLVR"]
    assert set(evaluations["character"]["RLVR"]) == {
        "name", "labels", "identifiability", "chance", "recognisability", "n_fidelity", "fidelity_reasons", "over_seeds",
    }  # fmt: skip
    assert "identifiability" in evaluations["character"]["RLVR"]["over_seeds"]
    assert "identifiability" not in evaluations["accuracy"]["RLVR"]["over_seeds"]
    other = read_json(tmp_path / "report" / "more" / "table.json")
    assert [one["name"] for one in other["methods"]] == ["base", "RLVR", "PerMix"]


@pytest.mark.slow
def test_a_report_of_half_a_study_says_what_is_pending(tmp_path: Path) -> None:
    settings = study(
        tmp_path, arms={"rlvr": {"method": "rlvr"}, "permix": {"method": "permix"}},
        evaluations={"accuracy": ACCURACY, "character": CHARACTER, "more": ACCURACY | {"seed": 9}},
        headlines=[{"evaluation": "accuracy", "measure": "pss", "arm": "permix", "against": "rlvr", "published": 0.212}],
    )  # fmt: skip
    finished = write_finished_study(settings)
    finished = {"base": ["accuracy"], "rlvr-1": ["train", "accuracy"], "rlvr-2": finished["rlvr-2"], "permix-1": ["train"]}
    write_study_report(settings, finished, tmp_path / "report")
    table = read_json(tmp_path / "report" / "table.json")
    assert [row["label"] for row in table["rows"]] == ["base", "rlvr 1", "rlvr 2"]
    assert table["study"]["units"]["permix-1"] == ["train"]
    text = (tmp_path / "report" / "report.md").read_text(encoding="utf-8")
    assert "pss on accuracy, permix against rlvr: not measured; published +21.2 %." in text
    assert "| permix | 1 | train | accuracy, character, more |" in text
    with pytest.raises(DataError, match="no evaluation is finished yet"):
        write_study_report(settings, {"permix-1": ["train"]}, tmp_path / "report")


@pytest.mark.slow
def test_a_measure_without_an_interval_over_seeds_is_marked(tmp_path: Path) -> None:
    arms = {"rlvr": {"method": "rlvr"}, "permix": {"method": "permix"}}
    settings = study(tmp_path, arms=arms, evaluations={"accuracy": ACCURACY, "character": CHARACTER, "more": ACCURACY})
    finished = only_accuracy(write_finished_study(settings)) | {"permix-2": []}
    write_study_report(settings, finished, tmp_path / "report")
    (found,) = (
        one
        for one in read_json(tmp_path / "report" / "table.json")["study"]["differences"]
        if (one["arm"], one["against"], one["evaluation"]) == ("permix", "rlvr", "accuracy")
    )
    assert (found["over_seeds"], found["p"], found["n_seeds"]) == ({}, {}, [1, 2])
    text = (tmp_path / "report" / "report.md").read_text(encoding="utf-8")
    row = next(line for line in text.splitlines() if line.startswith("| permix | rlvr | 1 and 2, not paired |"))
    assert row.count("seeds not covered") == 6
    assert text.count("**Interim**: 1 of 2 seeds of permix are finished.") == 1
    interim = read_json(tmp_path / "report" / "table.json")["study"]["interim"]
    assert interim == {"accuracy": {"permix": [1, 2]}, "character": {"rlvr": [0, 2], "permix": [0, 2]}}


def only_accuracy(finished: dict[str, list[str]]) -> dict[str, list[str]]:
    """The finished parts without the other evaluations, for a report of one page."""
    return {unit: [name for name in names if name in ("train", "accuracy")] for unit, names in finished.items()}


@pytest.mark.slow
def test_arms_are_compared_and_pooled_within_each_context(tmp_path: Path) -> None:
    arms = {"rlvr": {"method": "rlvr"}, "permix": {"method": "permix"}}
    settings = study(tmp_path, arms=arms, evaluations={"accuracy": ACCURACY, "character": CHARACTER, "more": ACCURACY})
    finished = only_accuracy(write_finished_study(settings))
    rights = {  # by context: the system message, and the user's
        "base": (share(2), share(1)),
        "rlvr-1": (share(3), torn),
        "rlvr-2": (share(3), share(3)),
        "permix-1": (share(4), share(4)),
        "permix-2": (share(4), share(4)),
    }
    for unit in settings.units():
        out = unit.parts["accuracy"].out
        asked = read_json(out / "config.json")["model"]["name"]
        shutil.rmtree(out)
        contexts_run(out, unit.label, asked, rights[unit.name])
    write_study_report(settings, finished, tmp_path / "report")
    table = read_json(tmp_path / "report" / "table.json")["study"]
    found = {(one["context"], one["arm"], one["against"]): one for one in table["context_differences"]}
    assert list(found) == [
        (context, *pair) for context in ("system", "user") for pair in (("permix", "rlvr"), ("rlvr", "base"), ("permix", "base"))
    ]
    values = {key: [one["measures"][name]["value"] for name in ("mean", "mean_minus_baseline")] for key, one in found.items()}
    # Without persona: base .4, rlvr .6, permix .8. Under the user's messages rlvr has .5 and .6.
    assert values["system", "permix", "rlvr"] == pytest.approx([0.2, 0.0])
    assert values["user", "permix", "rlvr"] == pytest.approx([0.25, 0.05])
    assert values["user", "permix", "base"] == pytest.approx([0.6, 0.2])
    user = found["user", "permix", "rlvr"]
    assert user["seeds"]["pss"]["text"] == "2 of each, paired"
    assert 0.126 < user["p"]["mean"] < 0.15  # .3 and .2: t = 5 with one degree of freedom has p = .126, as above
    assert "pss" in user["over_seeds"]
    pooled = table["contexts"]["accuracy"]
    assert {arm: one["mean"]["value"] for arm, one in pooled["user"].items()} == pytest.approx(
        {"base": 0.2, "rlvr": 0.55, "permix": 0.8}
    )
    assert pooled["user"]["rlvr"]["mean_minus_baseline"]["value"] == pytest.approx(-0.05)
    assert (pooled["user"]["base"]["over_seeds"], pooled["user"]["rlvr"]["n_seeds"]) == ({}, 2)
    # The standard error of .5 and .6 is .05, times 12.7.
    assert pooled["user"]["rlvr"]["over_seeds"]["mean_minus_baseline"]["low"] <= -0.05 - 12.7 * 0.05
    text = (tmp_path / "report" / "report.md").read_text(encoding="utf-8")
    assert "| user | permix | rlvr | 2 of each, paired |" in text
    for name in ("differences-study-accuracy-contexts", "scores-study-accuracy-contexts"):
        assert (tmp_path / "report" / "tables" / f"{name}.csv").exists()
    assert {one["evaluation"] for one in table["context_differences"]} == {"accuracy"}


def contexts_run(path: Path, label: str, asked: str, rights: Sequence[Right]) -> None:
    """A stability run in the contexts "system" and "user"; without persona right as in the first."""
    cells = [
        cell(p, q, f"What is {q} + {q}?", "4", Verdict(correct=right(-1 if p is None else p, q))).model_copy(
            update={"context": "" if p is None else context}
        )
        for context, right in zip(("system", "user"), rights, strict=True)
        for p in ((None,) if context == "system" else ()) + tuple(range(PERSONAS))
        for q in range(QUESTIONS)
    ]
    settings = {"stage": "stability", "label": label, "model": {"name": asked}, "seed": 3, "resamples": 100, "samples": 1}
    write_run(path, settings | {"contexts": ["system", "user"]}, cells)


def test_evaluations_of_other_splits_do_not_share_a_page(tmp_path: Path) -> None:
    dev = {"personas": {"n": 3, "split": "dev"}}
    settings = study(
        tmp_path,
        evaluations={
            "accuracy": ACCURACY,
            "character": CHARACTER,
            "more": ACCURACY,
            "dev-character": CHARACTER | dev | {"questions_split": "dev"},
            "dev-accuracy": ACCURACY | dev | {"task": ACCURACY["task"] | {"split": "dev"}},
            "dev-personas": ACCURACY | dev,
        },
    )
    assert divide_into_pages(settings.units()[0]) == [
        {"stability": "accuracy", "fidelity": "character"},
        {"stability": "more"},
        {"fidelity": "dev-character", "stability": "dev-accuracy"},
        {"stability": "dev-personas"},
    ]


def test_a_strategy_has_no_headline_beside_a_plain_evaluation(tmp_path: Path) -> None:
    vote = ACCURACY | {"strategy": "persona-vote"}
    headline = {"measure": "pss", "arm": "permix", "against": "rlvr", "published": 0.2}
    arms = {"rlvr": {"method": "rlvr"}, "permix": {"method": "permix"}}
    headlines = [headline | {"evaluation": "vote"}]
    both = study(tmp_path, arms=arms, evaluations={"accuracy": ACCURACY, "vote": vote}, headlines=headlines)
    assert divide_into_pages(both.units()[0]) == [{"stability": "accuracy", "stability, persona-vote": "vote"}]
    with pytest.raises(ConfigError, match="vote has none"):
        check_headlines(both)
    alone = study(tmp_path, arms=arms, evaluations={"vote": vote}, headlines=headlines)
    assert divide_into_pages(alone.units()[0]) == [{"stability": "vote"}]  # its answers without a vote are a plain grid
    check_headlines(alone)


def test_a_headline_of_recognisability_needs_an_embedder(tmp_path: Path) -> None:
    headline = {"measure": "recognisability", "evaluation": "character", "arm": "sft", "against": "rlvr", "published": 0.2}
    check_headlines(study(tmp_path, headlines=[headline]))
    without = {"accuracy": ACCURACY, "character": CHARACTER | {"embedder": "none"}}
    with pytest.raises(ConfigError, match=r"measure = 'recognisability' \(headline 1\): character has identifiability$"):
        check_headlines(study(tmp_path, evaluations=without, headlines=[headline]))


def test_the_notes_of_a_study_have_the_names_of_its_table() -> None:
    """The columns are arm and against."""
    notes = {name: text for name, text in vars(study_report).items() if name.endswith("_NOTE")}
    assert {"DIFFERENCES_NOTE", "HEADLINES_NOTE"} <= notes.keys()
    assert not [name for name, text in notes.items() if re.search(r"\b(other|beside)\b", text)]


@pytest.mark.slow
def test_the_report_of_chosen_arms_and_seeds_keeps_that_of_the_whole(tmp_path: Path) -> None:
    values: dict[str, Any] = {
        "arms": {"rlvr": {"method": "rlvr"}, "sft": {"method": "sft"}, "permix": {"method": "permix"}},
        "evaluations": {"accuracy": ACCURACY, "character": CHARACTER, "more": ACCURACY},
        "headlines": [{"evaluation": "accuracy", "measure": "pss", "arm": "permix", "against": "rlvr", "published": 0.212}],
    }
    settings = study(tmp_path, **values)
    write_finished_study(settings)
    for unit in settings.units():
        for name in ("train", "accuracy"):
            if name in unit.parts:
                write_json(unit.parts[name].out / "metrics.json", {})
                study_units._write_record(unit, name, finished=True)
    assert run_study(study(tmp_path, report=True, **values)) == tmp_path / "report" / "index.html"
    whole = (tmp_path / "report" / "table.json").read_bytes()
    page = run_study(study(tmp_path, report=True, only=["rlvr", "sft"], only_seeds=[2], **values))
    assert page == tmp_path / "report-only" / "index.html"
    assert page.is_file()
    table = read_json(tmp_path / "report-only" / "table.json")
    assert [row["label"] for row in table["rows"]] == ["base", "rlvr 2", "sft 2"]
    assert table["study"]["arms"] == {name: {"label": name, "seeds": [2]} for name in ("rlvr", "sft")}
    assert {(one["arm"], one["against"]) for one in table["study"]["differences"]} == {
        ("sft", "rlvr"), ("rlvr", "base"), ("sft", "base"),
    }  # fmt: skip
    assert table["study"]["headlines"] == []
    assert table["study"]["interim"] == {"character": {"rlvr": [0, 1], "sft": [0, 1]}}
    assert set(table["study"]["units"]) == {"base", "rlvr-2", "sft-2"}
    text = (tmp_path / "report-only" / "report.md").read_text(encoding="utf-8")
    assert "Only the arms and seeds that --only and --seeds chose" in text
    assert (tmp_path / "report" / "table.json").read_bytes() == whole


def test_python_names_no_page_that_is_not_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = study(tmp_path / "new", report=True)
    assert run_study(settings) is None
    with pytest.raises(DataError, match="there is no report: no evaluation is finished"):
        permix.study(settings)
    monkeypatch.setattr("permix.pipelines.study.run_unit", lambda config, unit: None)
    with pytest.raises(DataError, match='there is no report: unit = "base" runs one unit; study'):
        permix.study(study(tmp_path / "unit"), unit="base")


# Relative changes


def test_relative_changes_by_hand() -> None:
    np.testing.assert_allclose(
        statistics.relative_change(np.array([0.6, 0.2, 0.3]), np.array([0.5, 0.4, 0.0])), [0.2, -0.5, np.nan]
    )
    Q = 20
    first = (np.array([[1.0, 0.0] * 10, [1.0, 0.0] * 10]), np.full(Q, np.nan))  # mean .5
    other = (np.array([[1.0, 1.0, 0.0, 0.0] * 5, [1.0, 1.0, 1.0, 1.0, 0.0] * 4]), np.full(Q, np.nan))  # means .5 and .8
    found = stability_differences([other], [first], 0, 200, statistics.relative_change)["mean"]
    assert found.value == pytest.approx(0.65 / 0.5 - 1)
    assert stability_differences([other], [first], 0, 200)["mean"].value == pytest.approx(0.15)
    pss = stability_differences([other], [first], 0, 200, statistics.relative_change)["pss"]
    assert pss.low is not None
    assert pss.high is not None
    assert pss.low <= (pss.value or 0.0) <= pss.high


def results(*scores: int) -> JudgeResults:
    keys = [AnswerKey(f"p{place}", "In Character", "q", 0) for place in range(len(scores))]
    usage = JudgeUsage(calls=0, calls_without_score=0, prompt_tokens=0, completion_tokens=0, cost=None)
    return JudgeResults("j", {}, 0, {}, (), {}, {"none": dict(zip(keys, scores, strict=True))}, {}, frozenset(), usage, {})


def test_a_judges_scores_are_pooled_over_seeds_by_hand() -> None:
    first, other = [results(2, 4, 3, 3), results(4, 4, 3, 5)], [results(4, 4, 4, 4), results(5, 5, 5, 5)]  # means 3, 4; 4, 5
    difference = score_change_over_seeds(other, first, "paired", seed=0, resamples=200).over_questions
    assert difference.value == pytest.approx(1.0)
    assert difference.n == 4
    relative = score_change_over_seeds(
        other, first, "paired", seed=0, resamples=200, change=statistics.relative_change
    ).over_questions
    assert relative.value == pytest.approx(4.5 / 3.5 - 1)
    assert relative.low is not None
    assert relative.low > 0
    assert score_change_over_seeds([results()], [results(3)], "paired", seed=0, resamples=200).over_questions.value is None


def test_a_judges_scores_have_an_interval_over_training_seeds_by_hand() -> None:
    # The mean scores of the seeds are 2, 3 and 3 against 4, 4 and 3: differences 2, 1 and 0, standard error 1 / √3.
    first, other = [results(2, 2), results(3, 3), results(3, 3)], [results(4, 4), results(4, 4), results(3, 3)]
    found = score_change_over_seeds(other, first, "paired", seed=0, resamples=50)
    assert found.over_questions.value == found.over_questions.low == found.over_questions.high == pytest.approx(1.0)
    assert found.over_seeds.low == pytest.approx(1 - 4.30265 / 3**0.5, abs=1e-5)  # t with two degrees of freedom
    assert found.over_seeds.high == pytest.approx(1 + 4.30265 / 3**0.5, abs=1e-5)
    assert score_change_over_seeds(other[:1], first[:1], "paired", seed=0, resamples=50).over_seeds.low is None
    relative = score_change_over_seeds(other, first, "paired", seed=0, resamples=50, change=statistics.relative_change)
    # k = 11 / 8, m = 8 / 3: the values of a seed are (4, 4, 3) / m − k (2, 3, 3) / m.
    value_S = (np.array([4, 4, 3]) - 11 / 8 * np.array([2, 3, 3])) / (8 / 3)
    assert relative.over_seeds.high == pytest.approx(3 / 8 + 4.30265 * value_S.std(ddof=1) / 3**0.5, abs=1e-5)
    assert score_change_over_seeds([results()], [results(3)], "paired", seed=0, resamples=50).over_seeds.value is None
    two = score_change_over_seeds(
        other[:2], first[:2], "paired", seed=0, resamples=50
    )  # t is 12.7: no score differs by more than 4
    assert (two.over_seeds.low, two.over_seeds.high) == (-4.0, 4.0)
    two = score_change_over_seeds(other[:2], first[:2], "paired", seed=0, resamples=50, change=statistics.relative_change)
    assert (two.over_seeds.low, two.over_seeds.high) == (-0.8, 4.0)

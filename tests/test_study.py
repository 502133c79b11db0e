"""The study of methods: every arm is a training that can be built, and differs from plain persona mixing in what it says."""

import json
from pathlib import Path

import pytest

from bench import study, study_page
from permix.config import TrainConfig


@pytest.mark.parametrize("arm", study.ARMS)
def test_every_arm_is_a_valid_training_of_the_same_questions(arm: str) -> None:
    stage = study.training(arm, seed=3, steps=5, out=Path("runs"), threads=1)
    assert isinstance(stage, TrainConfig)
    assert (stage.task.n, stage.task.seed, stage.plan.steps, stage.plan.seed, stage.train.seed) == (300, 3, 5, 3, 3)
    assert (stage.task.split, stage.personas.split) == ("train", "train")
    if arm not in ("permix", "replay"):
        assert stage != study.training("permix", seed=3, steps=5, out=Path("runs"), threads=1)
    assert stage.out == Path(f"runs/{arm}-3-train")


def test_what_is_evaluated_stands_on_one_side_and_models_are_asked_alike() -> None:
    for side in ("dev", "heldout"):
        stable, distinct = study.evaluations("x 1", "x-1", "folder", side, Path("runs"), 1)
        assert (stable.task.split, stable.personas.split, distinct.personas.split, distinct.questions_split) == (side,) * 4
        base, _ = study.evaluations(study_page.BASE, study_page.BASE, "bundled", side, Path("runs"), 1)
        assert (base.task, base.personas, base.sampling, base.seed) == (
            stable.task,
            stable.personas,
            stable.sampling,
            stable.seed,
        )
        assert distinct.reference == Path(f"runs/base-{side}-fidelity")


@pytest.mark.slow
def test_a_small_study_runs_and_goes_on(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(study, "BUNDLED", str(tiny_model))
    monkeypatch.setitem(study.EVALUATED, "dev", study.Size(8, 3, ("character",), 10))
    argv = ["study.py", "--out", str(tmp_path), "--steps", "1", "--threads", "1", "--arms", "rlvr", "permix"]
    for _ in range(2):
        monkeypatch.setattr("sys.argv", argv)
        study.main()
        lines = [json.loads(line) for line in capsys.readouterr().out.splitlines() if line.startswith("{")]
        figures = {(line["figure"], line["model"], line.get("against")) for line in lines}
        assert {("pss", "base", None), ("pss", "permix 1", None), ("pss difference", "permix 1", "rlvr 1")} <= figures
        assert ("identifiability difference", "rlvr 1", "base") in figures
        argv[-2:] = ["permix", "rlvr"]  # the second time what is there is read, and nothing is trained
    assert (tmp_path / "report-dev" / "report.md").exists()
    assert study.there(tmp_path, "dev") == [("rlvr", 1), ("permix", 1)]
    monkeypatch.setattr("sys.argv", [*argv[:3], "--page"])
    study.main()
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in (tmp_path / "table-dev.md").read_text().splitlines()]
    assert [row[:2] for row in rows[2:]] == [["base", ""], ["rlvr", "1"], ["permix", "1"]]
    assert len({len(row) for row in rows}) == 1
    assert [row[7] for row in rows[2:4]] == ["–", "–"]
    difference = next(
        line
        for line in lines
        if (line["figure"], line["model"]) == ("worst difference", "permix 1") and line["against"] == "rlvr 1"
    )
    assert rows[4][8].startswith(f"{difference['value']:+.3f}".replace("-", "−"))
    assert (tmp_path / "knobs-dev-1.png").stat().st_size > 10_000


def test_every_knob_turns_arms_that_there_are() -> None:
    assert {arm for settings in study_page.KNOBS.values() for arm in settings.values()} == set(study.ARMS)

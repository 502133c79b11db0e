"""A study does not go on with other data, or with another verifier, than its recorded parts have."""

import json
import re
import shutil
import typing
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
from pydantic import BaseModel

from bench.archive import unpack
from permix.config import FidelityConfig, StabilityConfig, StudyConfig, StudyUnit, TrainConfig, build_config, load_config
from permix.errors import ConfigError
from permix.evals import stability
from permix.evals.open_ended import run_open_ended
from permix.evals.stability import run_stability
from permix.inference.scripted import ScriptedModel
from permix.pipelines import study, study_content, study_cost, study_units, train
from permix.pipelines.study import run_study
from permix.pipelines.study_content import check_same_content
from permix.pipelines.study_cost import check_study, preflight_study
from permix.pipelines.study_units import CHANGEABLE_SETTINGS, check_same_settings, finished_parts
from permix.pipelines.train import source_identity, training_identity
from permix.progress import command_output
from permix.storage.files import read_json, write_json
from permix.training.job import prepare_training
from permix.types import Request
from permix.verification.math_verifier import VERIFIER_VERSION

ROOT = Path(__file__).resolve().parents[2]
RECORDED = ROOT / "docs" / "recorded" / "study"


def write_questions(path: Path, *addends: int) -> None:
    path.write_text("".join(json.dumps({"question": f"Add {n} to 7 .", "answer": n + 7}) + "\n" for n in addends))


def write_personas(path: Path, *names: str) -> None:
    path.write_text("".join(json.dumps({"id": name, "text": f"a {name}"}) + "\n" for name in names))


def study_of(folder: Path, **values: Any) -> StudyConfig:
    """Two arms and seeds on own questions and personas; the stability run's contexts have recorded turns."""
    pool = {"pool": str(folder / "personas.jsonl")}
    given = {
        "out": folder / "out",
        "base": {"name": str(folder / "model")},
        "seeds": [1, 2],
        "train": {
            "task": {"levels": ["add-1"], "n": 4},
            "personas": pool,
            "plan": {"steps": 2, "questions_per_step": 2, "group_size": 2},
        },
        "arms": {"rlvr": {"method": "rlvr"}, "permix": {"method": "permix"}},
        "evaluations": {
            "accuracy": {
                "stage": "stability",
                "task": {"path": str(folder / "questions.jsonl"), "answer": "number"},
                "personas": pool | {"split": "all"},
                "contexts": ["system", "turns-1"],
                "context_turns": str(folder / "turns"),
                "resamples": 100,
            },
            "character": {
                "stage": "fidelity",
                "personas": pool | {"split": "all"},
                "questions": str(folder / "open.txt"),
                "embedder": "none",
                "resamples": 100,
            },
        },
    }
    return build_config(StudyConfig, given | values, source="study.toml")


def answer(request: Request) -> str:
    asked = request.messages[-1]["content"]
    return str(sum(int(word) for word in asked.split() if word.isdigit())) if "Add" in asked else f"{request.seed} {asked}"


def make_turns(folder: Path, n: int = 10) -> None:
    pool, questions = {"pool": str(folder / "personas.jsonl"), "split": "all"}, str(folder / "open.txt")
    values = {
        "out": folder / "turns",
        "personas": pool,
        "questions": questions,
        "embedder": "none",
        "n_questions": n,
        "resamples": 100,
    }
    run_open_ended(build_config(FidelityConfig, values, source="turns"), ScriptedModel(answer))


def make_finished(unit: StudyUnit) -> None:
    """The evaluations of a scripted model, and a training that left what a training leaves."""
    for name, part in unit.parts.items():
        study_units._write_record(unit, name, finished=False)
        match part:
            case StabilityConfig():
                run_stability(part, ScriptedModel(answer))
            case FidelityConfig():
                run_open_ended(part, ScriptedModel(answer))
            case TrainConfig():
                job = prepare_training(part)
                identity = training_identity(job, source_identity(part.model.name))
                write_json(part.out / "config.json", job.config)
                write_json(part.out / "provenance.json", {"format": 2, "revision": "abc", "identity": identity})
                (part.out / "model").mkdir()
                write_json(part.out / "model" / "config.json", {"unit": unit.name})
        study_units._write_record(unit, name, finished=True)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The files of the study, whose base model and whose unit permix-1 are finished."""
    write_questions(tmp_path / "questions.jsonl", *range(1, 11))
    write_personas(tmp_path / "personas.jsonl", "poet", "sailor", "nurse")
    (tmp_path / "open.txt").write_text("".join(f"What about day {n}?\n" for n in range(12)))
    write_json(tmp_path / "model" / "config.json", {"model_type": "llama"})
    make_turns(tmp_path)
    base, *trained = study_of(tmp_path).units()
    make_finished(base)
    make_finished(next(unit for unit in trained if unit.name == "permix-1"))
    return tmp_path


def other_verifier(monkeypatch: pytest.MonkeyPatch, version: str) -> None:
    for module in (stability, train, study_content):
        monkeypatch.setattr(module, "VERIFIER_VERSION", version)


def change_turns(folder: Path) -> None:
    (folder / "open.txt").write_text("".join(f"What about night {n}?\n" for n in range(12)))
    shutil.rmtree(folder / "turns")
    make_turns(folder)
    (folder / "open.txt").write_text("".join(f"What about day {n}?\n" for n in range(12)))


CHANGES: dict[str, tuple[Callable[[Path], object], str]] = {
    "questions": (
        lambda folder: write_questions(folder / "questions.jsonl", *range(1, 13)),
        "base/accuracy was made with other questions",
    ),
    "golds": (
        lambda folder: (folder / "questions.jsonl").write_text(
            (folder / "questions.jsonl").read_text().replace('"answer": 8', '"answer": 9')
        ),
        "another right answer",
    ),
    "personas": (
        lambda folder: write_personas(folder / "personas.jsonl", "poet", "sailor"),
        "base/accuracy was made with other personas",
    ),
    "open questions": (
        lambda folder: (folder / "open.txt").write_text("".join(f"What about night {n}?\n" for n in range(12))),
        "base/character was made with other questions",
    ),
    "turns": (change_turns, "base/accuracy was made with other recorded turns behind context_turns"),
    "model": (
        lambda folder: write_json(folder / "model" / "config.json", {"model_type": "gpt2"}),
        "permix-1/train was made with another model to train, under the same name",
    ),
}


def test_a_study_goes_on_with_the_content_of_its_parts(folder: Path) -> None:
    check_same_content(study_of(folder))


@pytest.mark.parametrize("name", CHANGES)
def test_other_content_is_refused_before_a_unit_is_trained(name: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(study, "run_jobs", lambda *_: pytest.fail("a unit was started"))
    monkeypatch.setattr(study, "run_unit", lambda *_: pytest.fail("a unit was started"))
    monkeypatch.setattr(study_cost, "preflight_training", lambda _: {})  # the model is no model
    change, words = CHANGES[name]
    change(folder)
    for start in (run_study, preflight_study):
        for chosen in ({}, {"unit": "rlvr-2"}):
            with pytest.raises(ConfigError, match=re.escape(words)):
                start(study_of(folder, **chosen))


def test_other_golds_are_refused_where_only_a_trained_unit_is_recorded(folder: Path) -> None:
    shutil.rmtree(folder / "out" / "base")
    check_same_content(study_of(folder))
    CHANGES["golds"][0](folder)
    with pytest.raises(ConfigError, match=r"evaluation accuracy: cell .*another right answer"):
        check_same_content(study_of(folder))


def test_a_plan_of_other_rows_is_refused(folder: Path) -> None:
    settings = study_of(folder)
    provenance = folder / "out" / "permix-1" / "train" / "provenance.json"
    born = read_json(provenance)
    write_json(provenance, born | {"identity": born["identity"] | {"plan": "0" * 16}})
    with pytest.raises(ConfigError, match="permix-1/train was made with a plan of other rows"):
        check_same_content(settings)


def test_another_verifier_is_refused_and_the_newest_revision_named(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for number, part in enumerate(sorted(folder.glob("out/*/*/provenance.json"))):
        write_json(part, read_json(part) | {"revision": f"rev{number}", "created": f"2026-01-0{number + 1}"})
    other_verifier(monkeypatch, "99")
    with pytest.raises(ConfigError) as caught:
        check_study(study_of(folder))
    newest = read_json(folder / "out" / "permix-1" / "train" / "provenance.json")["revision"]
    assert (
        f"base/accuracy was made with version {VERIFIER_VERSION} of the verifier, by the code of revision {newest}, and this "
        in (str(caught.value))
    )
    assert "this code has version 99 of the verifier" in str(caught.value)
    assert f"; run the pending parts with revision {newest}, or give another folder." in str(caught.value)


def test_a_report_and_a_start_with_nothing_pending_need_no_check(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = study_of(folder)
    for unit in settings.units():
        if not finished_parts(unit):
            make_finished(unit)
    other_verifier(monkeypatch, "99")
    write_questions(folder / "questions.jsonl", *range(1, 13))
    reports: list[StudyConfig] = []
    monkeypatch.setattr(study, "write_study_report", lambda config, *_: reports.append(config))
    run_study(study_of(folder))
    run_study(study_of(folder, report=True))
    assert len(reports) == 2


def test_the_recorded_study_is_not_added_to_by_this_code(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("base", "turns", "sft-1", "rlvr-1"):
        if (RECORDED / f"{name}.tar.xz").exists():
            unpack(RECORDED / f"{name}.tar.xz", tmp_path / "runs" / "study")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError) as caught:
        run_study(load_config(StudyConfig, ROOT / "configs" / "study" / "arithmetic.toml"))
    assert "base/accuracy was made with version 2 of the verifier, by the code of revision " in str(caught.value)
    assert f"this code has version {VERIFIER_VERSION} of the verifier" in str(caught.value)
    other_verifier(monkeypatch, "2")
    with command_output(as_json=False, is_quiet=True):
        check_same_content(load_config(StudyConfig, ROOT / "configs" / "study" / "arithmetic.toml"))


# Settings


def dict_fields(section: type[BaseModel], prefix: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    for name, field in section.model_fields.items():
        if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
            yield from dict_fields(field.annotation, (*prefix, name))
        elif typing.get_origin(field.annotation) in (dict, Mapping):
            yield (*prefix, name)


MAPPINGS = sorted(dict_fields(TrainConfig))
MAPPING_VALUES = {"tag_weights": {"threads": 0.0}, "contexts": {"user": 1.0}, "templates": {"adopt": 1.0}}
"""A value for each mapping; one of its keys is also the name of a setting that may change."""


def test_mappings_are_found() -> None:
    assert {key[-1] for key in MAPPINGS} == MAPPING_VALUES.keys()
    assert not [*dict_fields(StabilityConfig), *dict_fields(FidelityConfig)]


@pytest.mark.parametrize("is_lacking", [False, True])
@pytest.mark.parametrize("key", MAPPINGS, ids=".".join)
def test_a_key_that_is_added_to_a_mapping_is_another_setting(key: tuple[str, str], is_lacking: bool, tmp_path: Path) -> None:
    write_personas(tmp_path / "personas.jsonl", "poet")
    settings = study_of(tmp_path)
    unit = next(unit for unit in settings.units() if unit.arm == "permix")
    study_units._write_record(unit, "train", finished=True)
    if is_lacking:  # the record of a version that did not have the setting
        record = read_json(unit.folder / "unit.json")
        del record["parts"]["train"][key[0]][key[1]]
        write_json(unit.folder / "unit.json", record)
    check_same_settings(settings)
    section, field = key
    arms = {unit.arm: {"method": unit.training.method, section: {field: MAPPING_VALUES[field]}}} if unit.training else {}
    with pytest.raises(ConfigError, match=re.escape(f"{unit.name}/train was started with {section}.{field} = {{}}, not ")):
        check_same_settings(study_of(tmp_path, arms=arms))


def test_each_changeable_setting_says_why_and_the_saved_format_is_none() -> None:
    assert all(CHANGEABLE_SETTINGS.values())
    known = {name for config in (TrainConfig, StabilityConfig, FidelityConfig) for name in setting_names(config)}
    assert CHANGEABLE_SETTINGS.keys() <= known
    assert "save_dtype" not in CHANGEABLE_SETTINGS


def setting_names(section: type[BaseModel]) -> Iterator[str]:
    for name, field in section.model_fields.items():
        yield name
        if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
            yield from setting_names(field.annotation)


def test_weights_of_another_format_are_refused(tmp_path: Path) -> None:
    settings = study_of(tmp_path)
    study_units._write_record(settings.units()[1], "train", finished=True)
    changed = study_of(tmp_path, train={**settings.train, "train": {"save_dtype": "bfloat16"}})
    with pytest.raises(ConfigError, match=r"rlvr-1/train was started with train.save_dtype = 'float32', not 'bfloat16'"):
        check_same_settings(changed)

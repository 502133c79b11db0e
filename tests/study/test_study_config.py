"""The configuration of a study: which units it has, what each part of them is, and what is refused with which words."""

import json
import tomllib
from pathlib import Path
from typing import Any

import pytest

from permix import cli, config
from permix.cli import commands, flags
from permix.config import StudyConfig, TrainConfig, build_config
from permix.errors import ConfigError

ROOT = Path(__file__).resolve().parents[2]
STUDIES = sorted((ROOT / "configs" / "study").glob("*.toml"))
ACCURACY = {"stage": "stability", "task": {"n": 5}}
CHARACTER = {"stage": "fidelity", "reference": "base"}


def study(**values: Any) -> StudyConfig:
    given = {"arms": {"rlvr": {"method": "rlvr"}}, "evaluations": {"accuracy": ACCURACY, "character": CHARACTER}}
    return build_config(StudyConfig, given | values, source="study.toml")


def refused(**values: Any) -> str:
    with pytest.raises(ConfigError) as caught:
        study(**values)
    return str(caught.value)


def training(settings: StudyConfig, name: str) -> TrainConfig:
    found = next(unit for unit in settings.units() if unit.name == name).training
    assert found is not None
    return found


def test_units_are_the_base_model_then_whole_seeds() -> None:
    settings = study(
        seeds=[2, 1], arms={"rlvr": {"method": "rlvr"}, "sft": {"method": "sft", "seeds": [1, 7]}, "permix": {"method": "permix"}}
    )
    names = [unit.name for unit in settings.units()]
    assert names == ["base", "rlvr-2", "permix-2", "rlvr-1", "sft-1", "permix-1", "sft-7"]
    assert [unit.label for unit in settings.units()[:2]] == ["base", "rlvr 2"]
    assert list(settings.units()[1].parts) == ["train", "accuracy", "character"]
    assert {part.out for part in settings.units()[1].parts.values()} == {
        Path("runs/study/rlvr-2") / name for name in ("train", "accuracy", "character")
    }


def test_a_units_seed_goes_into_its_training_and_into_no_evaluation() -> None:
    settings = study(seeds=[4, 5], arms={"rlvr": {"method": "rlvr"}, "permix": {"method": "permix"}})
    for unit in settings.units()[1:]:
        assert unit.training is not None
        assert unit.training.plan.seed == unit.training.train.seed == unit.training.task.seed == unit.seed
    base, *others = settings.units()
    for name, evaluation in base.evaluations.items():
        for unit in others:
            theirs = unit.evaluations[name].model_dump(exclude={"out", "label", "model", "reference"})
            assert theirs == evaluation.model_dump(exclude={"out", "label", "model", "reference"})
            assert unit.evaluations[name].model.name == f"runs/study/{unit.name}/train/model"
        assert evaluation.model.name == "bundled"
    assert base.evaluations["character"].reference is None  # type: ignore[union-attr]
    assert {unit.evaluations["character"].reference for unit in others} == {Path("runs/study/base/character")}  # type: ignore[union-attr]


def test_an_arm_overrides_single_values_of_what_all_share() -> None:
    settings = study(
        train={"train": {"lr": 1e-6, "max_new_tokens": 32}, "plan": {"steps": 7}},
        arms={"slow": {"method": "permix"}, "fast": {"method": "permix", "train": {"lr": 1e-4}, "character": {"replay": 0.5}}},
    )
    slow, fast = training(settings, "slow-1"), training(settings, "fast-1")
    assert (slow.train.lr, fast.train.lr, fast.train.max_new_tokens, fast.plan.steps) == (1e-6, 1e-4, 32, 7)
    assert (slow.character.replay, fast.character.replay) == (0.0, 0.5)


def test_what_a_method_ignores_is_left_out_of_its_arms_only() -> None:
    shared = {"train": {"temperature": 0.7, "beta": 0.1}, "plan": {"mix": 0.5}, "teacher": {"max_samples_per_row": 2}}
    arms = {method: {"method": method} for method in ("permix", "rlvr", "sft", "seqkd")}
    found = {arm: training(study(train=shared, arms=arms), f"{arm}-1") for arm in arms}
    assert [found[arm].train.temperature for arm in arms] == [0.7, 0.7, 1.0, 0.7]
    assert [found[arm].train.beta for arm in arms] == [0.1, 0.1, 0.0, 0.0]
    assert [found[arm].plan.mix for arm in arms] == [0.5, 0.0, 0.0, 0.5]
    assert [found[arm].teacher.max_samples_per_row for arm in arms] == [None, None, None, 2]
    assert "temperature = 0.7: has no effect" in refused(arms={"sft": {"method": "sft", "train": {"temperature": 0.7}}})


def test_a_file_that_is_trained_on_is_measured_on_its_heldout_side_by_all() -> None:
    own = {"pool": "my.csv"}
    settings = study(train={"personas": own}, evaluations={"a": {"stage": "stability", "personas": own}})
    assert {unit.evaluations["a"].personas.split for unit in settings.units()} == {"heldout"}
    assert all("split" in unit.evaluations["a"].personas.model_fields_set for unit in settings.units())
    other = study(evaluations={"a": {"stage": "stability", "personas": own}})
    assert all("split" not in unit.evaluations["a"].personas.model_fields_set for unit in other.units())


def test_thinking_is_the_models_own_setting() -> None:
    settings = study(base={"name": "m", "thinking": "off"})
    base, trained = settings.units()
    assert base.evaluations["accuracy"].model.thinking == "off"
    assert trained.training is not None
    assert trained.training.model.thinking == "off"
    assert trained.evaluations["accuracy"].model.thinking == "default"  # the trained model's chat template has the switch


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"arms": {"a": {"metod": "rlvr"}}}, "arms: a: unknown key metod; did you mean method?"),
        ({"arms": {"a": {"train": {"lr": 1}}}}, "arms: a: method is missing: must be one of permix, rlvr, sft"),
        ({"arms": {"a": {"method": "rlv"}}}, "arms: a: method = 'rlv': must be one of permix, rlvr"),
        ({"arms": {"a": {"method": "rlvr", "train": {"lr": 0}}}}, "arms: a: train.lr = 0: must be greater than 0"),
        ({"arms": {"a": {"method": "rlvr", "out": "x"}}}, "arms: a: out: the study sets it; leave it out"),
        ({"arms": {"a": {"method": "rlvr", "model": {"name": "x"}}}}, "arms: a: model: the study sets it"),
        ({"arms": {"a": {"method": "rlvr", "plan": {"seed": 1}}}}, "arms: a: plan: seed: the study sets it"),
        ({"arms": {"a": {"method": "rlvr", "seeds": [3, 3]}}}, "arms: a: seeds = [3, 3]: seed 3 is given twice"),
        ({"arms": {"a": {"method": "rlvr", "label": 3}}}, "arms: a: label = 3: must be a text"),
        ({"arms": {"a/b": {"method": "rlvr"}}}, "arms: 'a/b': a name has letters"),
        ({"arms": {"base": {"method": "rlvr"}}}, "arms: 'base': a folder of the study has this name"),
        ({"arms": {"a": {"method": "rlvr"}, "b": {"method": "rlvr"}}}, "arms: b: is the same training as a"),
        (
            {"arms": {"a": {"method": "rlvr", "label": "x"}, "b": {"method": "sft", "label": "x"}}},
            "arms: b: label = 'x': a has a model of this label",
        ),
        (
            {"arms": {"a": {"method": "rlvr", "label": "x 1", "seeds": [2]}, "b": {"method": "sft", "label": "x"}}},
            "arms: b: label = 'x': a has a model of this label",
        ),
        ({"arms": {"a": {"method": "rlvr", "label": "base"}}}, "arms: a: label = 'base': base has a model of this label"),
        ({"arms": {"a": 1}}, "arms.a = 1: must be a section of fields"),
        ({"arms": {"a": {"method": "rlvr", "plan": 5}}}, "arms: a: plan = 5: must be a section of fields"),
        ({"train": {"task": [3]}}, "arms: rlvr: task = [3]: must be a section of fields"),
        ({"train": {"lr": 1e-5}}, "train: unknown key lr; "),
        ({"train": {"label": "x"}}, "train: label: the study sets it"),
        ({"train": {"task": {"seed": 1}}}, "train: task: seed: the study sets it"),
        ({"train": {"stage": "plan"}}, "train: stage = 'plan': must be 'train'"),
        ({"evaluations": {"a": {"stage": "train"}}}, "evaluations: a: stage = 'train': an evaluation has stage = 'stability' or"),
        ({"evaluations": {"a": {"task": {"n": 5}}}}, "evaluations: a: stage is missing: an evaluation has stage"),
        ({"evaluations": {"a": {"stage": "stability", "taks": {}}}}, "evaluations: a: unknown key taks; did you mean task?"),
        ({"evaluations": {"a": {"stage": "stability", "out": "x"}}}, "evaluations: a: out: the study sets it"),
        ({"evaluations": {"a": ACCURACY | {"model": {"name": "x"}}}}, "evaluations: a: model: name: the study sets it"),
        ({"evaluations": {"train": ACCURACY}}, "evaluations: 'train': an arm or a folder of the study has this name"),
        ({"evaluations": {"rlvr": ACCURACY}}, "evaluations: 'rlvr': an arm or a folder of the study has this name"),
        ({"seeds": [1, 2, 1]}, "seeds = [1, 2, 1]: seed 1 is given twice"),
        ({"seeds": [-1]}, "seeds.0 = -1: must be greater than or equal to 0"),
        ({"seeds": []}, "seeds = []: names no seed"),
        ({"against": "rvlr"}, "against = 'rvlr': 'rvlr' is not among the arms; did you mean rlvr?"),
        ({"only": ["x"]}, "'x' is not among the arms; known: rlvr"),
        ({"only_seeds": [2]}, "only_seeds = 2: no arm has this seed; seeds: 1"),
        ({"unit": "rlvr-2"}, "'rlvr-2' is not among the units; did you mean rlvr-1?"),
        ({"unit": "base", "jobs": 2}, 'unit = "base": runs one unit in this process'),
        ({"jobs": 0}, "jobs = 0: must be greater than 0"),
        ({"rates": {"generation_tokens_per_s": 0}}, "rates.generation_tokens_per_s = 0: must be greater than 0"),
        ({"amrs": {}}, "unknown key amrs; did you mean arms?"),
    ],
)
def test_what_is_wrong_is_named(values: dict[str, Any], words: str) -> None:
    assert words in refused(**values)


HEADLINE = {"evaluation": "accuracy", "measure": "pss", "arm": "rlvr", "against": "base", "published": 0.2}


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"evaluation": "acc"}, "'acc' is not among the evaluations (headline 1)"),
        ({"arm": "permix"}, "'permix' is not among the arms (headline 1); known: base, rlvr"),
        ({"against": "rlvr"}, "headline 1 compares 'rlvr' with itself"),
        ({"publshed": 1}, "headlines.0.publshed"),
    ],
)
def test_a_headline_names_what_the_study_has(changed: dict[str, Any], words: str) -> None:
    assert study(headlines=[HEADLINE]).headlines[0].published == 0.2
    assert words in refused(headlines=[HEADLINE | changed])


def test_the_arm_that_others_are_compared_with_is_rlvr_or_none() -> None:
    assert study().against_arm == "rlvr"
    assert study(arms={"sft": {"method": "sft"}}).against_arm is None
    assert study(arms={"sft": {"method": "sft"}}, against="sft").against_arm == "sft"


def test_only_and_seeds_choose_and_the_base_model_stays() -> None:
    arms = {"rlvr": {"method": "rlvr"}, "sft": {"method": "sft"}}
    chosen = study(seeds=[1, 2], arms=arms, only=["sft"], only_seeds=[2]).chosen_units()
    assert [unit.name for unit in chosen] == ["base", "sft-2"]
    assert [unit.name for unit in study(unit="rlvr-1").chosen_units()] == ["rlvr-1"]


# The command line


def test_flags_replace_single_values_of_the_file(tmp_path: Path) -> None:
    file = tmp_path / "study.json"
    values = {
        "seeds": [1, 2],
        "train": {"plan": {"steps": 9}},
        "arms": {"a-b": {"method": "rlvr"}},
        "evaluations": {"e-1": ACCURACY},
    }
    file.write_text(json.dumps({"stage": "study", **values}))
    words = [
        str(file),
        "--train.plan.steps",
        "3",
        "--arms.a-b.train.max-new-tokens=8",
        "--evaluations.e-1.task.levels",
        "add-1",
        "sub-1",
    ]
    rest, overrides = flags.take_section_values([*words, "--only-seeds", "2"], config.OVERRIDABLE_SECTIONS)
    assert rest == [str(file), "--only-seeds", "2"]
    found = commands.parse_config("study", StudyConfig, rest, overrides)
    unit = found.chosen_units()[-1]
    assert unit.name == "a-b-2"
    assert unit.training is not None
    assert (unit.training.plan.steps, unit.training.train.max_new_tokens) == (3, 8)
    assert unit.evaluations["e-1"].task.levels == ("add-1", "sub-1")  # type: ignore[union-attr]
    assert unit.evaluations["e-1"].task.n == 5  # type: ignore[union-attr]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--train.plan.stpes", "3"], "unknown key plan.stpes; did you mean plan.steps?"),
        (["--train.plan.steps"], "--train.plan.steps: its value is missing"),
        (["--arms", "x"], "unknown option --arms"),
        (["--arms.rlvr.method", "sftt"], "method = 'sftt': must be one of"),
        (["--seeds", "5"], "only_seeds = 5: no arm has this seed"),
    ],
)
def test_a_wrong_flag_is_named(words: list[str], said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "study.json"
    file.write_text(json.dumps({"arms": {"rlvr": {"method": "rlvr"}}, "evaluations": {"e": ACCURACY}}))
    assert cli.run_cli(["study", str(file), *words]) == 2
    assert said in capsys.readouterr().err


# The shipped studies


@pytest.mark.parametrize("path", STUDIES, ids=lambda path: path.stem)
def test_a_shipped_study_is_valid_and_says_what_it_needs(path: Path) -> None:
    lines = path.read_text(encoding="utf-8").splitlines()
    head = lines[: next(place for place, line in enumerate(lines) if not line.startswith("#"))]
    assert [line[2:].partition(":")[0] for line in head if line.startswith(("# Purpose:", "# Hardware:", "# Time:"))] == [
        "Purpose", "Hardware", "Time",
    ]  # fmt: skip
    settings = config.load_config(StudyConfig, path)
    assert settings.stage == "study"
    assert tomllib.loads(path.read_text(encoding="utf-8"))["stage"] == "study"
    assert all(unit.evaluations for unit in settings.units())


def test_the_arithmetic_study_is_the_one_that_was_planned() -> None:
    """The numbers of docs/study.md: a change of this file after the first held-out answer is a change of the plan."""
    settings = config.load_config(StudyConfig, ROOT / "configs/study/arithmetic.toml")
    assert {arm: len(settings.seeds_of(arm)) for arm in settings.arms} == {
        "rlvr": 8, "permix": 8, "permix-replay": 5, "rlvr-replay": 3, "permix-expressive": 3, "permix-both": 3,
        "sft": 3, "sft-personas": 3, "seqkd": 3,
    }  # fmt: skip
    assert len(settings.units()) == 1 + 8 + 8 + 5 + 6 * 3
    both = training(settings, "permix-both-2")
    assert (both.character.replay, both.character.replay_answers, both.character.expressivity) == (0.5, 6, 0.5)
    assert (both.plan.steps, both.plan.questions_per_step, both.plan.group_size, both.train.lr) == (60, 6, 8, 1e-5)
    assert (both.train.max_new_tokens, both.train.temperature, both.plan.mix) == (32, 0.7, 0.8)
    splits = {name: one["personas"]["split"] for name, one in settings.evaluations.items()}
    assert splits == dict.fromkeys(("accuracy", "character", "contexts", "voice"), "heldout") | dict.fromkeys(
        ("dev-accuracy", "dev-character"), "dev"
    )


def test_the_papers_study_has_its_arms_its_benchmarks_and_its_two_figures() -> None:
    settings = config.load_config(StudyConfig, ROOT / "configs/study/paper.toml")
    assert [values["method"] for values in settings.arms.values()] == ["sft", "seqkd", "rlvr", "permix"]
    tasks = [one["task"]["name"] for one in settings.evaluations.values() if one["stage"] == "stability"]
    assert tasks == ["math500", "aime24", "code"]
    assert settings.evaluations["personagym"]["judge"]["rubrics"] == "PersonaGym"
    figures = [(one.evaluation, one.measure, one.arm, one.against, one.published) for one in settings.headlines]
    assert figures == [("math500", "pss", "permix", "rlvr", 0.212), ("personagym", "score", "permix", "rlvr", 0.114)]

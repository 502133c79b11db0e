"""Configuration: every key and type is checked, the message names what is valid, and what a run wrote can be run again."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
from pydantic import BaseModel, ValidationError, field_validator

from permix import config
from permix.config import (
    CONFIGS_BY_STAGE,
    DEFAULT_MIX,
    IGNORED_FIELDS,
    FidelityConfig,
    ModelConfig,
    OptimConfig,
    PlanConfig,
    RolloutPlanConfig,
    StabilityConfig,
    TrainConfig,
    TrainMethod,
    build_config,
    load_config,
    read_config_values,
    resolve_mix,
)
from permix.errors import ConfigError
from permix.storage.files import read_json, write_json
from permix.types import Sampling
from tests.sample_runs import toml


def changed(stage: type[config.AnyConfig]) -> dict[str, Any]:
    """Values far from the defaults, as JSON says them."""
    values: dict[type[config.AnyConfig], dict[str, Any]] = {
        PlanConfig: {"plan": {"mix": 0.25, "scope": "rollout", "tag_weights": {"expert": 2.5}}, "out": "p.parquet"},
        TrainConfig: {"train": {"lr": 1e-6, "clip_high": 0.28, "microbatch_tokens": 4}, "plan_file": "x.parquet", "threads": 2},
        StabilityConfig: {
            "model": {"backend": "openai", "base_url": "http://h/v1", "timeout_s": 1.5},
            "exclude_plans": ["a", "b"],
            "sampling": {"temperature": 0.7},
            "label": "é \u2028 x",
            "strategy": "persona-search",
            "strategy_questions": 7,
            "right_in_character": True,
            "character_reference": "runs/base",
        },
        FidelityConfig: {
            "reference": "runs/base",
            "n_questions": 20,
            "questions_split": "dev",
            "personas": {"include": ["character"], "empty_system_prompt": True},
        },
        config.QuestionsConfig: {"tasks": ["Linguistic Habits"], "n": 3, "examples": True, "seed": 4},
        config.ReportConfig: {"runs": ["a", "b"], "as_published": True, "published": ["x=scores.json"]},
        config.JudgeConfig: {
            "run": "a",
            "seed": 3,
            "judge": {"name": "m", "label": "strict", "answers_per_control": 30, "reasons": False},
        },
        config.ReportConfig: {"runs": ["a", "b"]},
        config.CompareConfig: {"runs": ["a", "b"], "out": "c", "resamples": 300},
        config.PowerConfig: {"runs": ["a"], "effects": ["pss=0.1"], "seeds": [3, 5], "questions": [50], "seed_sds": [0.03]},
        config.ViewConfig: {"runs": "a", "port": 0},
        config.ImportConfig: {"lm_eval": ["none=a", "pirate=b"], "filter": "strict-match", "label": "x", "out": "c", "seed": 3},
        config.ExportConfig: {"plan": "a.toml", "format": "verl", "out": "b", "model": "m", "nnodes": 2, "n_gpus_per_node": 4},
        config.QuickstartConfig: {"fast": True, "seed": 3},
        config.StudyConfig: {
            "seeds": [3, 1],
            "arms": {"a": {"method": "rlvr", "train": {"lr": 1e-6}}},
            "evaluations": {"e": {"stage": "stability", "task": {"n": 5}}},
            "keep_models": False,
            "rates": {"training_tokens_per_s": 2.5},
        },
    }
    return values[stage]


@pytest.mark.parametrize("name", CONFIGS_BY_STAGE)
def test_every_stage_has_valid_defaults_that_name_it(name: str) -> None:
    stage = CONFIGS_BY_STAGE[name]()
    assert stage.stage == name
    assert build_config(CONFIGS_BY_STAGE[name], {}, source="test") == stage
    assert CONFIGS_BY_STAGE[name].model_validate(stage.model_dump()) == stage


@pytest.mark.parametrize("name", CONFIGS_BY_STAGE)
@pytest.mark.parametrize("values", ["defaults", "changed"])
def test_what_a_run_wrote_is_the_same_configuration_again(name: str, values: str, tmp_path: Path) -> None:
    stage = build_config(CONFIGS_BY_STAGE[name], {} if values == "defaults" else changed(CONFIGS_BY_STAGE[name]), source="test")
    write_json(tmp_path / "config.json", stage)
    assert build_config(CONFIGS_BY_STAGE[name], read_json(tmp_path / "config.json"), source="test") == stage
    assert load_config(CONFIGS_BY_STAGE[name], tmp_path / "config.json") == stage


@pytest.mark.parametrize("name", CONFIGS_BY_STAGE)
def test_toml_says_the_same_as_json(name: str, tmp_path: Path) -> None:
    file = tmp_path / "stage.toml"
    file.write_text(toml(changed(CONFIGS_BY_STAGE[name])))
    assert load_config(CONFIGS_BY_STAGE[name], file) == build_config(
        CONFIGS_BY_STAGE[name], json.loads(json.dumps(changed(CONFIGS_BY_STAGE[name]))), source="test"
    )


def leaves(values: dict[str, Any], prefix: str = "") -> list[str]:
    return [
        leaf
        for key, value in values.items()
        for leaf in (leaves(value, f"{prefix}{key}.") if isinstance(value, dict) else [f"{prefix}{key}"])
    ]


@pytest.mark.parametrize("name", CONFIGS_BY_STAGE)
def test_every_changed_value_arrives(name: str) -> None:
    values = changed(CONFIGS_BY_STAGE[name])
    dumped = build_config(CONFIGS_BY_STAGE[name], values, source="test").model_dump(mode="json")
    default = CONFIGS_BY_STAGE[name]().model_dump(mode="json")
    for leaf in leaves(values):
        got: Any = dumped
        wanted: Any = values
        usual: Any = default
        for key in leaf.split("."):
            got, wanted, usual = got[key], wanted[key], usual.get(key) if isinstance(usual, dict) else None
        assert got == wanted != usual, leaf


# What is refused


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"modle": {}}, "unknown key modle; did you mean model?"),
        ({"model": {"nmae": "x"}}, "unknown key model.nmae; did you mean model.name?"),
        ({"sampling": {"temprature": 1}}, "unknown key sampling.temprature; did you mean sampling.temperature?"),
        ({"task": {"zzz": 1}}, "unknown key task.zzz; known: name, path, answer, split, n, levels, seed"),
        ({"train": {"lr": 1}}, "unknown key train; known: out, label"),
        ({"samples": 0}, "samples = 0: must be greater than 0"),
        ({"strategy": "persona-serch"}, "strategy = 'persona-serch': must be 'none', 'persona-search', "),
        ({"strategy_questions": 0}, "strategy_questions = 0: must be greater than 0"),
        ({"resamples": 99}, "resamples = 99: must be greater than or equal to 100"),
        ({"task": {"n": "many"}}, "task.n = 'many': must be a whole number"),
        ({"task": {"n": 1.5}}, "task.n = 1.5: must be a whole number"),
        ({"task": {"name": 3}}, "task.name = 3: must be a text"),
        (
            {"model": {"backend": "opnai"}},
            "model.backend = 'opnai': must be one of transformers, openai, batch, vllm; did you mean openai?",
        ),
        ({"task": 3}, "task = 3: must be a section of fields"),
        ({"sampling": {"top_p": 1.5}}, "sampling.top_p = 1.5: must be less than or equal to 1"),
        ({"personas": {"n": -1}}, "personas.n = -1"),
        ({"personas": {"split": "test"}}, "personas.split = 'test': must be 'train', 'dev', 'heldout' or 'all'"),
        ({"task": {"split": "all"}}, "task.split = 'all': must be 'train', 'dev' or 'heldout'"),
        ({"model": {"backend": "openai"}}, 'model.base_url is missing: backend "openai" needs one, such as http://127.0.0.1:8000/v1'),
        ({"model": {"timeout_s": float("inf")}}, "model.timeout_s = inf: must be a finite number"),
        ({"samples": 0, "seed": -1}, "samples = 0: must be greater than 0; seed = -1: must be"),
        ({"stage": "train"}, "stage = 'train': must be 'stability'"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_named_with_what_would_be_right(values: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError) as caught:
        build_config(StabilityConfig, values, source="run.toml")
    assert str(caught.value).startswith(f"run.toml: {words}")


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"out": ""}, "out = '': is empty; give a path, or leave it out (default: runs/stability)"),
        ({"out": " \t"}, "out = ' \\t': is empty"),
        ({"cache": ""}, "cache = '': is empty; give a path, or leave it out"),
        ({"exclude_plans": ["a.parquet", ""]}, "exclude_plans.1 = '': is empty"),
        ({"model": {"name": ""}}, "model.name = '': is empty; give a text, or leave it out (default: bundled)"),
        ({"model": {"base_url": []}}, "model.base_url = []: names no address"),
        ({"personas": {"pool": ""}}, "personas.pool = '': is empty; give a text, or leave it out (default: builtin)"),
        ({"task": {"path": ""}}, "task.path = '': is empty; give a path"),
    ],
)
def test_an_empty_text_is_refused(values: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError) as caught:
        build_config(StabilityConfig, values, source="run.toml")
    assert str(caught.value).startswith(f"run.toml: {words}")
    assert build_config(StabilityConfig, {"model": {"extra_body": ""}}, source="run.toml").model.extra_body == ""


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"train": {"microbatch_tokens": 0}}, "train.microbatch_tokens = 0: must be greater than 0"),
        ({"model": {"backend": "openai", "base_url": "http://h/v1"}}, "unknown key model.backend; known: name"),
        ({"task": {"splt": "train"}}, "unknown key task.splt; did you mean task.split?"),
        ({"train": {"stpes": 3}}, "unknown key train.stpes; did you mean plan.steps?"),
        ({"train": {"save_dtipe": 3}}, "unknown key train.save_dtipe; did you mean train.save_dtype?"),
        ({"train": {"zebra": 3}}, "unknown key train.zebra; known: lr, "),
        ({"lr": 1e-5}, "unknown key lr; did you mean train.lr?"),
        ({"plan": {"group_size": 1}}, "plan.group_size = 1: must be greater than or equal to 2"),
        ({"plan": {"mix": 1.01}}, "plan.mix = 1.01: must be less than or equal to 1"),
        ({"train": {"lr": 0}}, "train.lr = 0: must be greater than 0"),
        ({"method": "stf"}, "method = 'stf': must be 'permix', 'rlvr', 'sft', 'sft-personas' or 'seqkd'"),
        (
            {"method": "rlvr", "plan": {"mix": 0.8}},
            'plan.mix = 0.8: method "rlvr" trains without personas; leave plan.mix out, or give method "permix"',
        ),
        (
            {"method": "sft", "plan": {"mix": 0.1}},
            'plan.mix = 0.1: method "sft" trains without personas; leave plan.mix out, or give method "sft-personas"',
        ),
        (
            {"method": "sft", "train": {"temperature": 0.7}},
            'train.temperature = 0.7: has no effect with method "sft"; leave it out (default: 1.0)',
        ),
        ({"method": "sft-personas", "train": {"top_p": 0.9}}, "train.top_p = 0.9: has no effect"),
        ({"method": "seqkd", "train": {"beta": 0.1}}, 'train.beta = 0.1: has no effect with method "seqkd"'),
        ({"method": "seqkd", "train": {"loss": "grpo"}}, "train.loss = 'grpo': has no effect"),
        ({"train": {"epochs": 2}}, 'train.epochs = 2: has no effect with method "permix"'),
        (
            {"method": "sft", "teacher": {"name": "bundled"}},
            'teacher: method "sft" uses no teacher; leave the section out, or give method "seqkd"',
        ),
        (
            {"method": "seqkd", "teacher": {"backend": "openai", "base_url": "http://h/v1"}},
            'teacher.name is missing: with backend "openai" give the name that the endpoint serves',
        ),
        (
            {"method": "seqkd", "teacher": {"max_samples_per_row": 0}},
            "teacher.max_samples_per_row = 0: must be greater than 0",
        ),
    ],
)
def test_a_training_that_cannot_run_is_refused(values: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError) as caught:
        build_config(TrainConfig, values, source="run.toml")
    assert words in str(caught.value)


@pytest.mark.parametrize("stage", [PlanConfig, TrainConfig])
@pytest.mark.parametrize(
    ("section", "side", "words"),
    [
        ("task", "dev", 'task.split = "dev": training takes split = "train"; dev is for choosing settings'),
        ("task", "heldout", 'task.split = "heldout": training takes split = "train"'),
        ("personas", "dev", 'personas.split = "dev": training takes split = "train" of the built-in pool'),
        ("personas", "heldout", 'personas.split = "heldout": training takes'),
        ("personas", "all", 'personas.split = "all": training takes'),
    ],
)
def test_training_on_another_side_is_refused(stage: type[config.AnyConfig], section: str, side: str, words: str) -> None:
    with pytest.raises(ConfigError) as caught:
        build_config(stage, {section: {"split": side}}, source="run.toml")
    assert str(caught.value).startswith(f"run.toml: {words}")


@pytest.mark.parametrize("stage", [PlanConfig, TrainConfig])
def test_a_section_of_a_training_that_names_no_side_is_on_the_train_side(stage: type[PlanConfig | TrainConfig]) -> None:
    found = build_config(stage, {"task": {"n": 20}, "personas": {"pool": "my.csv"}}, source="run.toml")
    assert (found.task.split, found.personas.split) == ("train", "train")
    assert StabilityConfig.model_validate({"task": {"n": 20}}).task.split == "heldout"


@pytest.mark.parametrize("side", ["train", "dev", "heldout", "all"])
def test_a_pool_of_ones_own_may_be_trained_on_whole(side: str) -> None:
    found = build_config(TrainConfig, {"personas": {"pool": "my.csv", "split": side}}, source="run.toml")
    assert found.personas.split == side


@pytest.mark.parametrize("method", DEFAULT_MIX)
def test_a_training_holds_the_share_that_its_method_uses(method: TrainMethod, tmp_path: Path) -> None:
    """Also for whoever reads the run's config.json, and when sections are objects."""
    share = {"permix": 0.8, "rlvr": 0.0, "sft": 0.0, "sft-personas": 0.8, "seqkd": 0.8}[method]
    stage = build_config(TrainConfig, {"method": method, "plan": {"steps": 3}}, source="run.toml")
    assert stage.plan.mix == TrainConfig(method=method, plan=RolloutPlanConfig(steps=3)).plan.mix == share
    assert TrainConfig(method=method).plan.mix == share
    write_json(tmp_path / "config.json", stage)
    assert json.loads((tmp_path / "config.json").read_text())["plan"]["mix"] == share
    assert load_config(TrainConfig, tmp_path / "config.json") == stage


def test_an_own_share_wins_and_a_plan_from_a_file_has_none() -> None:
    assert TrainConfig(method="seqkd", plan=RolloutPlanConfig(mix=0.3)).plan.mix == 0.3
    assert TrainConfig(method="permix", plan=RolloutPlanConfig(mix=0.0)).plan.mix == 0.0
    assert TrainConfig(plan_file=Path("plan.parquet")).plan.mix is None
    assert PlanConfig().plan.mix is None
    assert resolve_mix(PlanConfig().plan) == 0.8


def test_what_means_nothing_to_a_method_is_a_setting_there_is() -> None:
    assert IGNORED_FIELDS.keys() == DEFAULT_MIX.keys()
    assert {name for names in IGNORED_FIELDS.values() for name in names} <= OptimConfig.model_fields.keys()


def test_configurations_are_frozen_and_refuse_unknown_keys_in_code_too() -> None:
    with pytest.raises(ValidationError, match="frozen"):
        StabilityConfig().model.name = "other"
    with pytest.raises(ValidationError, match="colour"):
        ModelConfig.model_validate({"colour": "red"})


def test_secrets_are_refused_without_being_repeated() -> None:
    for model in (
        {"backend": "openai", "base_url": "http://ann:hunter2@h/v1"},
        {"backend": "openai", "base_url": "http://h/v1", "api_key_env": "sk-hunter2"},
    ):
        with pytest.raises(ConfigError, match=r"run\.toml: model\.(base_url|api_key_env) ") as caught:
            build_config(StabilityConfig, {"model": model}, source="run.toml")
        assert "hunter2" not in str(caught.value)


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("a.toml", None, "no such configuration file"),
        ("a.toml", b"x = ", "not a TOML file"),
        ("a.toml", b"\xff\xff", "not a TOML file"),
        ("a.toml", b"a = 1\na = 2", "not a TOML file"),
        ("a.json", b"{", "not a JSON file"),
        ("a.json", b"[1]", "contains a list, not an object"),
    ],
)
def test_a_file_that_cannot_be_read_is_named(name: str, content: bytes | None, words: str, tmp_path: Path) -> None:
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(ConfigError, match=rf"{name}: {words}"):
        read_config_values(tmp_path / name)
    with pytest.raises(ConfigError, match="not a TOML file"):
        read_config_values(tmp_path)


# What the help and the documents rely on


def classes(of: type[BaseModel]) -> list[type[BaseModel]]:
    inner = [field.annotation for field in of.model_fields.values()]
    return [of, *(found for one in inner if isinstance(one, type) and issubclass(one, BaseModel) for found in classes(one))]


def test_every_option_says_what_it_is() -> None:
    sections = {section for stage in CONFIGS_BY_STAGE.values() for section in classes(stage)} - {Sampling}
    silent = [
        f"{section.__name__}.{name}"
        for section in sections
        for name, field in section.model_fields.items()
        if not field.description and name != "stage" and field.annotation not in sections | {Sampling}
    ]
    assert silent == []


def test_a_section_given_in_part_keeps_what_its_stage_sets_otherwise() -> None:
    stage = build_config(TrainConfig, {"task": {"levels": ["add-1"]}}, source="run.toml")
    assert (stage.task.n, stage.task.split, stage.task.levels) == (1000, "train", ("add-1",))
    fidelity = build_config(FidelityConfig, {"sampling": {"temperature": 0.9}}, source="run.toml")
    assert (fidelity.sampling.temperature, fidelity.sampling.max_new_tokens) == (0.9, 48)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"personagym": {"light": True}}, "personagym.light = True: has no effect without personagym.path or personagym.hub"),
        ({"personagym": {"path": "data"}, "folds": 3}, "folds = 3: has no effect with personagym"),
        ({"interview": {"turns": 4}, "questions": "mine.toml"}, "questions = 'mine.toml': has no effect with interview.turns"),
        ({"judge": {"max_cost": 2, "prices": "prices.toml"}}, "has no effect without judge.name"),
        ({"judge": {"answers_per_control": 40}}, "judge.answers_per_control = 40: has no effect without judge.name"),
    ],
)
def test_a_fidelity_setting_that_would_do_nothing_is_refused(values: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(message)):
        config.build_config(config.FidelityConfig, values, source="test")


def test_an_error_shows_paths_as_texts_and_a_field_once() -> None:
    class Section(config.ConfigSection):
        folder: Path | None = None
        folders: tuple[Path, ...] = ()
        n: int = 0

        @field_validator("folder")
        @classmethod
        def _check_folder(cls, folder: Path) -> Path:
            raise ValueError(f"folder = {folder}: is full")

        @field_validator("folders")
        @classmethod
        def _check_folders(cls, folders: tuple[Path, ...]) -> tuple[Path, ...]:
            raise ValueError("must be one")

    class Stage(config.ConfigSection):
        inner: Section = Section.model_construct()

    with pytest.raises(ConfigError) as caught:
        config.build_config(Stage, {"inner": {"folder": Path("a"), "folders": (Path("b"),), "n": "x"}}, source="f.toml")
    assert str(caught.value) == (
        "f.toml: inner.folder = a: is full; inner.folders = ('b',): must be one; inner.n = 'x': must be a whole number"
    )

"""`permix check`: a valid and an invalid configuration of every stage, found out without a model or a request."""

from pathlib import Path
from typing import Any

import pytest

from permix import cli
from permix.config import PersonasConfig, RolloutPlanConfig, TaskConfig
from permix.errors import ConfigError, DataError
from permix.pipelines.fidelity import run_fidelity
from permix.pipelines.preflight import InvalidConfigError, check_config
from permix.plan import compile_plan_from_config, write_plan
from permix.tasks import load_questions
from permix.tasks.base import TrainedOn, write_trained_on
from tests.sample_runs import endpoint, fidelity_config, fidelity_values, stability_values, toml, write_pool
from tests.servers import openai_server

NOBODY = "http://127.0.0.1:1/v1"
"""An address at which nothing answers: a check that asked would fail."""


def config_file(folder: Path, values: dict[str, Any]) -> Path:
    path = folder / "config.toml"
    path.write_text(toml(values))
    return path


def plan_file(folder: Path) -> Path:
    """Two steps of two of the six questions that `stability_values` asks."""
    path = folder / "plan.parquet"
    pool = PersonasConfig(pool=str(write_pool(folder / "pool.toml")))
    task = TaskConfig(levels=("add-1",), n=6)
    write_plan(compile_plan_from_config(task, pool, RolloutPlanConfig(steps=2, questions_per_step=2, group_size=2)), path)
    return path


def trained_folder(folder: Path) -> Path:
    _, questions = load_questions(TaskConfig(levels=("add-1",), n=6))
    write_trained_on(folder / "model", TrainedOn(frozenset(question.content_hash for question in questions[:3])))
    return folder / "model"


# Valid


def test_a_plan(tmp_path: Path) -> None:
    values = {
        "stage": "plan",
        "task": {"split": "train", "n": 12, "levels": ["add-1"]},
        "plan": {"steps": 3, "questions_per_step": 4, "group_size": 2, "mix": 0.0},
    }
    facts = check_config(config_file(tmp_path, values))
    assert facts["stage"] == "plan"
    assert (facts["steps"], facts["rows"], facts["questions"]) == ("3", "12", "12")
    assert facts["rollouts"] == "24 in groups of 2"
    assert facts["without persona"] == "100.0% of rollouts"
    assert facts["result"] == "valid"


def test_a_training_from_its_sections_and_from_a_plan(tmp_path: Path) -> None:
    sections = {"stage": "train", "task": {"n": 8}, "plan": {"steps": 2, "questions_per_step": 2, "group_size": 4}}
    assert check_config(config_file(tmp_path, sections))["rollouts"] == "16 in groups of 4"
    planned = {"stage": "train", "plan_file": str(plan_file(tmp_path))}
    facts = check_config(config_file(tmp_path, planned))
    assert (facts["rollouts"], facts["steps"]) == ("8 in groups of 2", "2")


def test_a_training_with_probes(tmp_path: Path) -> None:
    values: dict[str, Any] = {
        "stage": "train",
        "task": {"n": 8},
        "plan": {"steps": 2},
        "dev_eval": {"every": 5, "personas": 2, "characters": 0},
    }
    values["dev_eval"] |= {"metric": "worst", "max_new_tokens": 10}
    said = check_config(config_file(tmp_path, values))["dev_eval"]
    assert said == "90 answers before training, every 5 steps and at the end, each time at most 900 new tokens"
    values["dev_eval"] |= {"questions": 5000}
    with pytest.raises(ConfigError, match=r"dev_eval\.questions = 5000: arithmetic has"):
        check_config(config_file(tmp_path, values))


def test_what_keeping_the_character_costs_is_said(tmp_path: Path) -> None:
    values: dict[str, Any] = {"stage": "train", "task": {"n": 8}, "plan": {"steps": 2}}
    assert "character" not in check_config(config_file(tmp_path, values))
    values["character"] = {"replay": 0.5, "personas": 3, "questions": 4, "max_new_tokens": 10, "replay_answers": 2}
    said = check_config(config_file(tmp_path, values))["character"]
    assert said == "12 answers of the base model first, at most 120 new tokens; 2 replayed in each step"
    values["character"] |= {"questions": 500}
    with pytest.raises(ConfigError, match=r"character\.questions = 500: the train split has"):
        check_config(config_file(tmp_path, values))


def test_an_accuracy_evaluation(tmp_path: Path) -> None:
    facts = check_config(config_file(tmp_path, stability_values(tmp_path, NOBODY, samples=2)))
    # (3 personas + none) × 6 questions × 2 samples, 16 tokens each.
    assert facts == {
        "stage": "stability",
        "questions": "6",
        "personas": "3, and no persona",
        "cells": "48",
        "requests": "48",
        "prompt tokens": facts["prompt tokens"],
        "new tokens": "at most 768",
        "time": "unknown: no earlier run of this model was timed",
        "cost": "unknown: no price for test",
        "result": "valid",
    }
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("strategy", "cells", "new_tokens"),
    [
        ("persona-search", "27, then at most 6", "528"),  # 3 × 7 to choose by and 6; then 6 as the chosen one
        ("persona-vote", "24", "384"),
        ("persona-ensemble", "24, then at most 18", "672"),
    ],
)
def test_an_evaluation_of_a_strategy(strategy: str, cells: str, new_tokens: str, tmp_path: Path) -> None:
    facts = check_config(config_file(tmp_path, stability_values(tmp_path, NOBODY, strategy=strategy, strategy_questions=7)))
    assert facts["strategy"] == strategy
    assert (facts["cells"], facts["new tokens"]) == (cells, f"at most {new_tokens}")


def test_a_character_evaluation(tmp_path: Path) -> None:
    facts = check_config(config_file(tmp_path, fidelity_values(tmp_path, NOBODY)))
    assert list(facts) == [
        "stage", "personas", "questions", "answers", "requests", "prompt tokens", "new tokens", "time", "cost", "result",
    ]  # fmt: skip
    assert (facts["personas"], facts["questions"], facts["answers"], facts["requests"]) == ("3", "12", "36", "36")
    assert facts["new tokens"] == f"at most {36 * 48}"


def test_a_report_and_a_quickstart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    with openai_server(lambda body, nth, headers: "fine") as server:
        run_fidelity(fidelity_config(tmp_path, server.base_url))
    report = {"stage": "report", "runs": [str(tmp_path / "run")]}
    assert check_config(config_file(tmp_path, report)) == {"stage": "report", "runs": "1", "result": "valid"}
    in_a_folder = {"stage": "report", "runs": [str(tmp_path), str(tmp_path / "run")]}
    assert check_config(config_file(tmp_path, in_a_folder))["runs"] == "1"
    assert check_config(config_file(tmp_path, {"stage": "quickstart", "fast": True}))["result"] == "valid"
    assert check_config(tmp_path / "run" / "config.json")["result"] == "valid"  # what a run left is a configuration too


# Invalid


@pytest.mark.parametrize("stage", ["stabilty", None, 3])
def test_a_file_must_name_its_stage(stage: str | int | None, tmp_path: Path) -> None:
    values = {} if stage is None else {"stage": stage}
    what = "is missing: name the command that the file configures," if stage is None else f"= {stage!r}: must be"
    with pytest.raises(ConfigError, match=rf": stage {what} one of plan, train, stability, fidelity, judge, questions, report"):
        check_config(config_file(tmp_path, values))


def test_a_plan_file_with_personas_is_found_before_a_method_without(tmp_path: Path) -> None:
    planned = {"stage": "train", "method": "sft-personas", "plan_file": str(plan_file(tmp_path))}
    assert check_config(config_file(tmp_path, planned))["learnt from"] == "4 rows, 4 examples"
    for method in ("rlvr", "sft"):
        with pytest.raises(ConfigError, match=rf'its rows have personas .* method = "{method}" uses none; give a plan made with'):
            check_config(config_file(tmp_path, planned | {"method": method}))


def test_a_distillation_names_its_teacher_and_asks_it_nothing(tmp_path: Path) -> None:
    teacher = {"name": "test", "backend": "openai", "base_url": NOBODY}
    values = {"stage": "train", "method": "seqkd", "task": {"n": 8}, "plan": {"steps": 2}, "teacher": teacher}
    facts = check_config(config_file(tmp_path, values))
    assert (facts["method"], facts["teacher"], facts["rollouts"]) == ("seqkd", "test", "128 in groups of 8")


@pytest.mark.parametrize("stage", ["plan", "train", "stability", "fidelity", "report", "quickstart"])
def test_an_unknown_key_of_any_stage_is_named(stage: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"config\.toml: unknown key ouut; did you mean out\?"):
        check_config(config_file(tmp_path, {"stage": stage, "ouut": "x"}))


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"stage": "plan", "task": {"n": 4, "levels": ["add-1"]}}, "questions_per_step = 8: the task has only 4 questions"),
        ({"stage": "plan", "task": {"n": 100_000}}, "task.n = 100000: arithmetic has"),
        ({"stage": "plan", "task": {"split": "heldout"}}, 'task.split = "heldout": training takes split = "train"'),
        ({"stage": "train", "personas": {"split": "dev"}}, 'personas.split = "dev": training takes split = "train"'),
        (
            {"stage": "stability", "task": {"name": "aritmetic"}},
            r"config\.toml: task\.name = 'aritmetic': must be one of arithmetic, gsm8k, .*; did you mean arithmetic\?",
        ),
        (
            {"stage": "train", "plan_file": "plan.parquet", "task": {"name": "zzz"}},
            r"config\.toml: task\.name = 'zzz': must be .*choice$",
        ),
        ({"stage": "stability", "task": {"name": "math500", "split": "dev"}}, "math500 is for evaluation only"),
        ({"stage": "fidelity", "questions_split": "dev", "n_questions": 21}, "n_questions = 21: give 10 .* to 20, the number in"),
        ({"stage": "fidelity", "questions_split": "test"}, "questions_split = 'test': must be"),
        ({"stage": "plan", "personas": {"template": "yuo_are"}}, "personas.template = 'yuo_are'"),
        ({"stage": "plan", "plan": {"tag_weights": {"exprt": 2}}}, "unknown tag"),
        ({"stage": "train", "plan_file": "none.parquet"}, "plan_file = none.parquet: no such file"),
        ({"stage": "train", "personas": {"template": "yuo_are"}}, "personas.template = 'yuo_are'"),
        ({"stage": "stability", "task": {"levels": ["ad-1"]}}, "arithmetic has no level 'ad-1'; did you mean"),
        ({"stage": "stability", "personas": {"template": "x"}}, "personas.template = 'x'"),
        ({"stage": "stability", "personas": {"n": 10_000}}, "n = 10000: must be between 1 and"),
        ({"stage": "stability", "personas": {"pool": "none.csv"}}, "none.csv"),
        ({"stage": "stability", "strategy": "best-of-k"}, "strategy = 'best-of-k': must be 'none', 'persona-search'"),
        (
            {"stage": "stability", "strategy": "persona-search", "strategy_questions": 100_000},
            "needs questions of the dev split to choose a persona: task.n = 100000",
        ),
        ({"stage": "stability", "exclude_plans": ["none.parquet"]}, "exclude_plans = none.parquet: no such file"),
        ({"stage": "stability", "model": endpoint("127.0.0.1:8000/v1")}, "model.base_url = '127.0.0.1:8000/v1': must be an http"),
        ({"stage": "fidelity", "model": endpoint("ftp://h/v1")}, "model.base_url = 'ftp://h/v1': must be an http"),
        ({"stage": "fidelity", "n_questions": 9}, "n_questions = 9: give 10"),
        ({"stage": "fidelity", "n_questions": 10_000}, "n_questions = 10000: give 10 .* to "),
        ({"stage": "fidelity", "questions": "none.txt"}, "none.txt"),
        ({"stage": "fidelity", "personas": {"n": 1}}, "is selected; identifiability needs at least two"),
        ({"stage": "fidelity", "personas": {"template": "x"}}, "personas.template = 'x'"),
        ({"stage": "fidelity", "reference": "nowhere"}, "nowhere/config.json: no such file"),
        ({"stage": "report", "runs": ["nowhere"]}, "runs = nowhere: no such folder"),
        ({"stage": "report"}, "no runs: give run directories"),
        ({"stage": "power", "runs": ["."]}, "neither a run directory .* nor a folder that contains one"),
        ({"stage": "compare", "runs": []}, "compare takes two runs, not 0"),
        ({"stage": "quickstart", "seed": -1}, "seed = -1"),
    ],
)
def test_what_a_stage_would_stumble_over_is_found(
    values: dict[str, Any], words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises((ConfigError, DataError), match=words):
        check_config(config_file(tmp_path, values))


def test_questions_seen_in_training_are_found_in_plans_and_beside_weights(tmp_path: Path) -> None:
    for fields, words in (
        ({"exclude_plans": [str(plan_file(tmp_path))]}, "4 of 6 questions of this evaluation were seen in training"),
        ({"model": {"name": str(trained_folder(tmp_path))}}, "3 of 6 questions of this evaluation were seen in training"),
    ):
        with pytest.raises(ConfigError, match=words):
            check_config(config_file(tmp_path, stability_values(tmp_path, NOBODY, **fields)))


def test_the_command_says_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.run_cli(["check", str(config_file(tmp_path, stability_values(tmp_path, NOBODY)))]) == 0
    assert "at most 384" in capsys.readouterr().out
    assert cli.run_cli(["check", str(config_file(tmp_path, {"stage": "fidelity", "n_questions": 9}))]) == 2
    assert f"permix check: {tmp_path / 'config.toml'}: n_questions = 9" in capsys.readouterr().err


def test_all_parts_of_a_fidelity_evaluation_that_cannot_be_used_are_named(tmp_path: Path) -> None:
    values = {
        "stage": "fidelity",
        "questions": "none.txt",
        "reference": "nowhere",
        "personas": {"pool": "none.csv"},
        "model": {"name": "./no-model"},
        "judge": {"name": "./no-judge", "rubrics": "none.toml"},
    }
    with pytest.raises(InvalidConfigError) as caught:
        check_config(config_file(tmp_path, values))
    assert [problem.partition(": ")[0] for problem in caught.value.problems] == [
        "model.name = './no-model'",
        "personas.pool = none.csv",
        "questions = none.txt",
        "judge.rubrics",
        "reference = nowhere",
        "judge",
    ]


def test_a_missing_run_that_trains_the_classifier_of_character_is_named(tmp_path: Path) -> None:
    fields = {"right_in_character": True, "character_reference": "nowhere"}
    with pytest.raises((ConfigError, DataError), match="character_reference = nowhere"):
        check_config(config_file(tmp_path, stability_values(tmp_path, NOBODY, **fields)))


def test_the_missing_clone_of_the_shipped_configuration_is_named(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shipped = Path(__file__).parents[1] / "configs" / "fidelity-personagym.toml"
    monkeypatch.chdir(tmp_path)
    assert cli.run_cli(["check", str(shipped)]) == 2
    said = "personagym.path = PersonaGym: no such folder or file; give a clone of PersonaGym (https://github.com/vsamuel2003/PersonaGym)"
    assert f"permix check: {shipped}: {said}" in capsys.readouterr().err

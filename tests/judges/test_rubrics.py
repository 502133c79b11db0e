"""Rubrics of one's own: a file, several of them on one run, and what is refused before anything is asked."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from permix import cli
from permix.config import FidelityConfig, JudgeConfig, build_config
from permix.errors import ConfigError
from permix.evals.interview import evaluate_interview, prepare_interview
from permix.inference.scripted import ScriptedModel
from permix.judges.judging import judge_fidelity_run, prepare_judging
from permix.judges.prompts import judge_template_hash, load_rubrics
from permix.judges.runner import judge_folders, read_judge_calls
from permix.judges.types import IN_CHARACTER
from permix.report.builder import build_report
from permix.report.html.charts import judge_score_charts
from permix.report.runs import collect_models
from permix.storage.files import read_json
from tests.judges.judgeable import answered_run, judge_stage, verdict
from tests.sample_runs import fidelity_values
from tests.servers import openai_server
from tests.verdicts import GYM

RECORDED = Path(__file__).parents[2] / "docs" / "recorded" / "quickstart"
NOBODY = "http://127.0.0.1:1/v1"
CRITERION = "Is the character warm towards whoever asks?"
WARMTH: dict[str, Any] = {
    "name": "Warmth",
    "criterion": CRITERION,
    "score_descriptions": ["It is hostile.", "It is cool.", "It is polite.", "It is kind.", "It is warm throughout."],
    "discriminates_personas": False,
}


@pytest.fixture(autouse=True)
def _environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)


def rubric_file(folder: Path, values: Mapping[str, Any] = WARMTH) -> Path:
    path = folder / "warmth.toml"
    path.write_text("".join(f"{key} = {json.dumps(value)}\n" for key, value in values.items()), encoding="utf-8")
    return path


def by_rubric(body: dict[str, Any], nth: int, headers: Mapping[str, str]) -> str:
    """2 for warmth, 4 for being in character."""
    return verdict(2 if CRITERION in body["messages"][-1]["content"] else 4)


def test_a_file_is_a_rubric_in_the_words_of_ours(tmp_path: Path) -> None:
    found = load_rubrics([IN_CHARACTER, str(rubric_file(tmp_path))], [IN_CHARACTER])
    assert list(found) == [IN_CHARACTER, "Warmth"]
    assert (found[IN_CHARACTER].discriminates_personas, found["Warmth"].discriminates_personas) == (True, False)
    assert found["Warmth"].template.startswith(f"Judge one answer by one question: {CRITERION}\n\nWhat the scores mean:\n")
    assert "\n1: It is hostile.\n2: It is cool.\n3: It is polite.\n4: It is kind.\n5: It is warm throughout.\n" in (
        found["Warmth"].template
    )


def test_ours_alone_is_the_same_rubric_however_it_is_named() -> None:
    assert load_rubrics(["In Character"], [IN_CHARACTER]) == load_rubrics("permix", [IN_CHARACTER])
    assert {name: one.discriminates_personas for name, one in load_rubrics("permix", GYM).items()} == {
        name: name != "Toxicity Control" for name in GYM
    }


@pytest.mark.parametrize("model", ["base", "rlvr", "permix-rlvr"])
def test_recorded_prompts_and_rubrics_are_built_again_byte_for_byte(model: str) -> None:
    (folder,) = judge_folders(RECORDED / f"{model}-fidelity")
    values = read_json(folder / "config.json") | {"run": str(RECORDED / f"{model}-fidelity")}
    setup, prompts = prepare_judging(build_config(JudgeConfig, values, source="test"))
    calls = {call.key: call for call in read_judge_calls(folder)}
    assert {prompt.judge_input.key: prompt.hash for prompt in prompts} == {key: call.prompt_hash for key, call in calls.items()}
    assert {prompt.judge_input.key: prompt.judge_input.form for prompt in prompts} == {
        key: call.form for key, call in calls.items()
    }
    assert judge_template_hash(setup.rubrics, False) == read_json(folder / "provenance.json")["identity"]["rubrics"]


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"criterion": None}, "criterion: is missing"),
        ({"name": ""}, "name = ''"),
        ({"score_descriptions": ["a", "b", "c", "d"]}, r"score_descriptions\.4.*is missing"),
        ({"score_descriptions": ["a", "", "c", "d", "e"]}, r"score_descriptions\.1 = ''"),
        ({"score_descriptions": ["a", "b", "c", "d", "Score: 5"]}, "'Score: 5' contains a score"),
        ({"discriminates_personas": None}, "discriminates_personas: is missing"),
        ({"discriminates_personas": "perhaps"}, "discriminates_personas = 'perhaps'"),
        ({"critereon": "x"}, "unknown key critereon; did you mean criterion"),
    ],
)
def test_a_bad_file_is_refused_by_field_and_value(changed: dict[str, Any], words: str, tmp_path: Path) -> None:
    values = {key: value for key, value in (WARMTH | changed).items() if value is not None}
    path = rubric_file(tmp_path, values)
    with pytest.raises(ConfigError, match=words) as error:
        load_rubrics([str(path)], [IN_CHARACTER])
    assert str(path) in str(error.value)
    assert "a rubric has name, criterion, score_descriptions (five texts" in str(error.value)


def test_what_names_no_rubric_is_refused(tmp_path: Path) -> None:
    path = rubric_file(tmp_path)
    with pytest.raises(ConfigError, match="no such configuration file"):
        load_rubrics([str(tmp_path / "coldness.toml")], [IN_CHARACTER])
    with pytest.raises(ConfigError, match='did you mean "In Character"'):
        load_rubrics(["In Charakter"], [IN_CHARACTER])
    with pytest.raises(ConfigError, match="'Warmth' is given twice"):
        load_rubrics([str(path), str(path)], [IN_CHARACTER])
    with pytest.raises(ConfigError, match="judged by the rubric of their task, such as 'Action Justification'"):
        load_rubrics([str(path)], GYM)
    with pytest.raises(ConfigError, match=r"the rubric 'Warmth' contains \{persona\} 2 times"):
        load_rubrics([str(rubric_file(tmp_path, WARMTH | {"criterion": "Is {persona} warm?"}))], [IN_CHARACTER])
    with pytest.raises(ConfigError, match=r"rubrics = \[\]: names no rubric"):
        judge_stage(tmp_path, NOBODY, rubrics=[])


def test_a_bad_file_is_refused_before_anything_is_asked(tmp_path: Path) -> None:
    run, path = answered_run(tmp_path), rubric_file(tmp_path, WARMTH | {"name": ""})
    with openai_server(by_rubric) as server, pytest.raises(ConfigError, match=r"judge\.rubrics: .*name = ''"):
        judge_fidelity_run(judge_stage(run, server.base_url, rubrics=[IN_CHARACTER, str(path)]))
    assert server.asked == []
    assert not (run / "judges").exists()


@pytest.mark.slow
def test_an_open_ended_run_is_judged_by_several_rubrics(tmp_path: Path) -> None:
    run, rubrics = answered_run(tmp_path), [IN_CHARACTER, str(rubric_file(tmp_path))]
    with openai_server(by_rubric) as server:
        judge_fidelity_run(judge_stage(run, server.base_url, label="two", rubrics=rubrics))
    (folder,) = judge_folders(run)
    assert len(server.asked) == 2 * 36 + 4 * 20
    assert {call.rubric for call in read_judge_calls(folder) if call.control == "wrong-persona"} == {IN_CHARACTER}
    assert read_json(folder / "inputs.json")["discriminates_personas"] == {IN_CHARACTER: True, "Warmth": False}

    (tmp_path / "warmth.toml").unlink()  # the judge's folder is enough
    found = read_json(folder / "metrics.json")
    assert {name: one["value"] for name, one in found["tasks"].items()} == {IN_CHARACTER: 4.0, "Warmth": 2.0}
    assert (found["persona_score"]["value"], found["n_scored"], found["n_asked"]) == (3.0, 72, 72)
    assert found["counts"]["wrong-persona"] == [20, 20]
    assert found["histogram"]["none"] == [0, 0, 0, 36, 0]  # of the rubric that tells personas apart
    assert found["rubrics"] == ", ".join(rubrics)

    build_report([run], tmp_path / "report")
    lines = [line for line in (tmp_path / "report" / "report.md").read_text().splitlines() if line.startswith("| two | ")]
    assert ["mean over rubrics" in lines[0], "In Character" in lines[1], "Warmth" in lines[2]] == [True] * 3
    assert [value in line for value, line in zip(("3.000", "4.000", "2.000"), lines, strict=True)] == [True] * 3

    models = collect_models([run])
    (chart,) = judge_score_charts(models, {model.label: model.label for model in models})
    (panel,) = chart["judges"]
    assert panel["tasks"] == ["mean over rubrics", IN_CHARACTER, "Warmth"]
    assert [one["value"] for one in panel["models"][models[0].label]["scores"]] == [3.0, 4.0, 2.0]


@pytest.mark.slow
def test_a_rubric_of_ones_own_alone_is_no_score_for_being_in_character(tmp_path: Path) -> None:
    run = answered_run(tmp_path)
    with openai_server(by_rubric) as server:
        judge_fidelity_run(judge_stage(run, server.base_url, rubrics=str(rubric_file(tmp_path))))
    build_report([run], tmp_path / "report")
    report = (tmp_path / "report" / "report.md").read_text()
    assert "in-character score" not in report
    assert "| Warmth | 2.000" in report
    found = read_json(judge_folders(run)[0] / "metrics.json")
    assert found["discriminates_persona"] is None  # no rubric of it can tell personas apart


def test_an_interview_is_judged_by_several_rubrics(tmp_path: Path) -> None:
    values = fidelity_values(tmp_path, NOBODY, interview={"turns": 3})
    config = build_config(FidelityConfig, values, source="test")
    evaluate_interview(ScriptedModel(lambda request: f"turn {len(request.messages)}"), config, prepare_interview(config))
    with openai_server(by_rubric) as server:
        judge_fidelity_run(judge_stage(config.out, server.base_url, label="two", rubrics=["permix", str(rubric_file(tmp_path))]))
    (model,) = collect_models([config.out])
    assert model.drift is not None
    series = model.drift.find_series("judge two")
    assert series is not None
    assert ([one.value for one in series.by_turn], series.n_scored, series.n_asked) == ([3.0] * 3, 9, 9)


@pytest.mark.slow
def test_rubrics_are_named_on_the_command_line(tmp_path: Path) -> None:
    run, path = answered_run(tmp_path), rubric_file(tmp_path)
    with openai_server(by_rubric) as server:
        words = ["judge", str(run), "--judge.name", "test", "--judge.backend", "openai", "--judge.base-url", server.base_url]
        words += ["--judge.answers-per-control", "20", "--resamples", "100", "--judge.rubrics", IN_CHARACTER, str(path)]
        assert cli.run_cli(words) == 0
    assert set(read_json(judge_folders(run)[0] / "metrics.json")["tasks"]) == {IN_CHARACTER, "Warmth"}

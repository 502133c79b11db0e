"""A dry run refuses what the command refuses, in the same words, for each setting that is known without the model."""

from pathlib import Path
from typing import Any

import pytest

from permix.config import FidelityConfig, JudgeConfig, StabilityConfig, build_config
from permix.errors import ConfigError
from permix.evals.interview import preflight_interview, run_interview
from permix.evals.open_ended import preflight_open_ended, run_open_ended
from permix.evals.stability import preflight_stability, run_stability
from permix.inference.scripted import ScriptedModel
from permix.judges.judging import judge_fidelity_run, preflight_judging
from tests.judges.judgeable import verdict

MODEL = ScriptedModel(lambda request: f"{request.seed} words of an answer to it: 5")
ENDPOINT = {"name": "m1", "backend": "openai", "base_url": "http://127.0.0.1:9/v1"}
STABILITY: dict[str, Any] = {
    "model": ENDPOINT,
    "task": {"levels": ["add-1"], "n": 3},
    "personas": {"n": 2},
    "sampling": {"max_new_tokens": 16},
    "resamples": 100,
}
FIDELITY: dict[str, Any] = {
    "model": ENDPOINT,
    "personas": {"n": 2, "include": ["character"]},
    "resamples": 100,
    "embedder": "none",
    "n_questions": 10,
}
INTERVIEW = {key: value for key, value in FIDELITY.items() if key not in ("embedder", "n_questions")} | {
    "interview": {"turns": 3}
}


def refused(call: Any) -> str:
    with pytest.raises(ConfigError) as caught:
        call()
    return str(caught.value)


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"sampling": {"max_new_tokens": 16, "temperature": 0.9}}, "sampling.temperature = 0.0, not 0.9"),
        ({"sampling": {"max_new_tokens": 17}}, "sampling.max_new_tokens = 16, not 17"),
        ({"seed": 4}, "seed = 0, not 4"),
        ({"personas": {"n": 2, "template": "adopt"}}, "personas.template = 'you_are', not 'adopt'"),
        ({"task": {"levels": ["add-1"], "n": 3, "prompt_template": "{question} ?"}}, "task.prompt_template = "),
        ({"contexts": ["user"]}, "contexts = "),
        ({"personas": {"n": 2, "empty_system_prompt": True}}, "empty_system_prompt = False, not True"),
        ({"strategy": "persona-search", "strategy_questions": 5}, "strategy = none, not 'persona-search'"),
    ],
)
def test_a_stability_run(changed: dict[str, Any], words: str, tmp_path: Path) -> None:
    given = STABILITY | {"out": tmp_path / "run"}
    run_stability(build_config(StabilityConfig, given, source="x"), MODEL)
    preflight_stability(build_config(StabilityConfig, given, source="x"))
    asked = build_config(StabilityConfig, given | changed, source="x")
    said = refused(lambda: preflight_stability(asked))
    assert f"{tmp_path / 'run'}: this run was made with " in said
    assert words in said
    assert said == refused(lambda: run_stability(asked, MODEL))


def test_a_model_of_another_name_and_a_limit_that_the_model_lowers(tmp_path: Path) -> None:
    given = STABILITY | {"out": tmp_path / "run"}
    run_stability(build_config(StabilityConfig, given, source="x"), MODEL)
    other = build_config(StabilityConfig, given | {"model": ENDPOINT | {"name": "m2"}}, source="x")
    assert "this run was made with model.name = 'm1', not 'm2'" in refused(lambda: preflight_stability(other))
    moved = {"model": ENDPOINT | {"base_url": "http://127.0.0.1:10/v1"}}
    preflight_stability(build_config(StabilityConfig, given | moved, source="x"))
    preflight_stability(build_config(StabilityConfig, given | {"sampling": {}}, source="x"))
    preflight_stability(build_config(StabilityConfig, given | {"strategy": "persona-vote"}, source="x"))  # it may be gained
    preflight_stability(build_config(StabilityConfig, given | {"out": tmp_path / "new", "seed": 5}, source="x"))


@pytest.mark.parametrize("kind", ["open", "interview"])
@pytest.mark.parametrize("changed", [{"seed": 4}, {"sampling": {"temperature": 0.1}}, {"personas": {"template": "adopt"}}])
def test_a_fidelity_run(changed: dict[str, Any], kind: str, tmp_path: Path) -> None:
    given = (FIDELITY if kind == "open" else INTERVIEW) | {"out": tmp_path / "run"}
    run, preflight = (run_open_ended, preflight_open_ended) if kind == "open" else (run_interview, preflight_interview)
    run(build_config(FidelityConfig, given, source="x"), MODEL)
    preflight(build_config(FidelityConfig, given, source="x"))
    more = {**given, **{key: given.get(key, {}) | one if isinstance(one, dict) else one for key, one in changed.items()}}
    asked = build_config(FidelityConfig, more, source="x")
    assert refused(lambda: preflight(asked)) == refused(lambda: run(asked, MODEL))


def test_an_interview_of_other_turns_and_a_judge(tmp_path: Path) -> None:
    given = INTERVIEW | {"out": tmp_path / "run"}
    run_interview(build_config(FidelityConfig, given, source="x"), MODEL)
    for changed in ({"interview": {"turns": 4}}, {"personas": {"n": 3, "include": ["character"]}}):
        asked = build_config(FidelityConfig, given | changed, source="x")
        assert refused(lambda asked=asked: preflight_interview(asked)) == refused(lambda asked=asked: run_interview(asked, MODEL))
    judge = {"name": "j", "backend": "openai", "base_url": "http://127.0.0.1:9/v1", "label": "j"}
    judging = {"run": tmp_path / "run", "judge": judge, "resamples": 100}
    scripted = ScriptedModel(lambda _: verdict(4))
    judge_fidelity_run(build_config(JudgeConfig, judging, source="x"), scripted)
    preflight_judging(build_config(JudgeConfig, judging, source="x"))
    for field in ({"temperature": 0.5}, {"reasons": False}):
        other = build_config(JudgeConfig, judging | {"judge": judge | field}, source="x")
        said = refused(lambda other=other: preflight_judging(other))
        assert said == refused(lambda other=other: judge_fidelity_run(other, scripted))

"""What a dry run calls "at most" is not exceeded, also by the worst replies."""

import json
from pathlib import Path
from typing import Any

import pytest

from permix.config import FidelityConfig, JudgeConfig, TrainConfig, build_config
from permix.errors import MissingScoresError
from permix.evals.open_ended import run_open_ended
from permix.inference.scripted import ScriptedModel
from permix.judges.judging import judge_fidelity_run, load_judge_setup, preflight_judging
from permix.judges.runner import read_judge_calls
from permix.pipelines.fidelity import count_later_calls, required_rubrics
from permix.pipelines.study_cost import evaluation_cost
from permix.pipelines.train import estimate_training, training_requests
from permix.progress import separate_result
from permix.training.job import prepare_training

FIDELITY = {"personas": {"n": 2, "include": ["character"]}, "resamples": 100}
ENDPOINT = {"backend": "openai", "base_url": "http://127.0.0.1:9/v1"}


@pytest.mark.parametrize("attempts", [1, 2, 3])
def test_calls_of_a_judge_whose_replies_have_no_score(attempts: int, tmp_path: Path) -> None:
    judge = {"name": "j", **ENDPOINT, "attempts": attempts}
    values = FIDELITY | {"out": tmp_path / "run", "n_questions": 10, "embedder": "none", "judge": judge}
    config = build_config(FidelityConfig, values, source="x")
    run_open_ended(config, ScriptedModel(lambda request: f"{request.seed} is what I say"))
    most, trials = count_later_calls(config, load_judge_setup(config.judge, required_rubrics(config)), 20)
    assert evaluation_cost(config).judge_calls == most
    judging = build_config(JudgeConfig, {"run": tmp_path / "run", "judge": judge, "resamples": 100}, source="x")
    facts = preflight_judging(judging)
    with pytest.raises(MissingScoresError):
        judge_fidelity_run(judging, ScriptedModel(lambda _: "I will not say."))
    asked = len(read_judge_calls(tmp_path / "run" / "judges" / "j"))
    assert asked <= most
    assert trials < most
    later = "" if attempts == 1 else f", then at most {asked - asked // attempts} more"
    assert facts["requests"] == f"{asked // attempts}{later}"
    assert facts["new tokens"] == f"at most {asked * config.judge.max_new_tokens}"


def test_questions_of_an_interviewer_whose_replies_are_none(tmp_path: Path) -> None:
    interviewer = {"name": "asker", **ENDPOINT}
    values = FIDELITY | {"out": tmp_path / "run", "interview": {"turns": 4}, "interviewer": interviewer}
    cost = evaluation_cost(build_config(FidelityConfig, values, source="x"))
    assert cost.interviewer_tokens == 2 * 4 * 3 * 120  # personas, turns, attempts, tokens


def training(method: str, **values: Any) -> TrainConfig:
    plan = {"steps": 100, "questions_per_step": 2, "group_size": 2}
    given = {"method": method, "out": "runs/none", "plan": plan, "task": {"n": 300}}
    return build_config(TrainConfig, given | values, source="x")


def most_tokens(config: TrainConfig) -> int:
    return sum(group.n_at_most * group.max_new_tokens for group in training_requests(prepare_training(config)))


def test_answers_of_on_policy_replay() -> None:
    character = {"replay": 0.5, "replay_answers": 12}
    off = most_tokens(training("permix", train={"max_new_tokens": 32}, character=character))
    assert off == 400 * 32 + 240 * 48
    on = training("permix", train={"max_new_tokens": 32}, character=character | {"replay_policy": "on"})
    assert most_tokens(on) == off + 100 * 12 * 48
    few = character | {"replay_policy": "on", "personas": 2, "questions": 3}
    assert most_tokens(training("permix", train={"max_new_tokens": 32}, character=few)) == 400 * 32 + 6 * 48 + 100 * 12 * 48


def test_steps_of_several_epochs_and_of_several_updates(tmp_path: Path) -> None:
    for method, more, steps in (("sft", {"epochs": 3}, 12), ("rlvr", {"updates_per_rollout": 2}, 8)):
        plan = {"steps": 4, "questions_per_step": 2, "group_size": 2}
        config = training(method, out=tmp_path / method / "run", train=more, plan=plan)
        with separate_result():
            time = estimate_training(prepare_training(config))["time"]
        assert time == "unknown: no earlier training of this model with this method was timed"
        (tmp_path / method / "run").mkdir(parents=True)
        (tmp_path / method / "run" / "config.json").write_text(json.dumps(config.model_dump(mode="json")))
        log = [json.dumps({"step": step, "seconds": {"training": 1.0}}) + "\n" for step in range(1, 4)]
        (tmp_path / method / "run" / "log.jsonl").write_text("".join(log))
        with separate_result():
            assert estimate_training(prepare_training(config))["time"].startswith(f"about {steps} s (1.0 s a step")

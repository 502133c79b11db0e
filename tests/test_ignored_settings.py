"""A setting that has no effect is refused, so that nobody believes that it has one."""

from typing import Any, get_args

import pytest

from permix.config import CharacterConfig, StudyConfig, TrainConfig, build_config
from permix.config.training import TrainMethod
from permix.errors import ConfigError

PERSONAS_OFF, SUPERVISED = ("rlvr", "sft"), ("sft", "sft-personas", "seqkd")
CHARACTER: dict[str, Any] = {
    "replay": 0.5,
    "replay_policy": "on",
    "replay_answers": 3,
    "expressivity": 0.5,
    "personas": 5,
    "questions": 5,
    "temperature": 0.1,
    "max_new_tokens": 7,
}
OF_PERSONAS = {"tag_weights": {"expert": 2.0}, "templates": {"adopt": 1.0}, "contexts": {"user": 1.0}}
CURRICULUM = {"curriculum_strength": 4.0, "curriculum_update_every": 2, "curriculum_floor": 0.5}
RL_ONLY = {"kl_reference_prompt": "no-persona", "importance_ratio_cap": 3.0, "use_vllm": True, "vllm_tensor_parallel_size": 2}
CASES = [
    *(("character", {name: value}, SUPERVISED) for name, value in CHARACTER.items()),
    *(("plan", {name: value}, PERSONAS_OFF) for name, value in OF_PERSONAS.items()),
    *(("plan", {name: value}, ("rlvr", *SUPERVISED)) for name, value in CURRICULUM.items()),
    *(("train", {name: value}, SUPERVISED) for name, value in RL_ONLY.items()),
]


def test_every_field_of_the_section_is_tried() -> None:
    assert CHARACTER.keys() == CharacterConfig.model_fields.keys()


@pytest.mark.parametrize("method", get_args(TrainMethod))
@pytest.mark.parametrize(("section", "values", "ignored_by"), CASES, ids=str)
def test_what_a_method_does_not_read(section: str, values: dict[str, Any], ignored_by: tuple[str, ...], method: str) -> None:
    given = {"method": method, section: values}
    if method not in ignored_by:
        build_config(TrainConfig, given, source="x")
        return
    (name,) = values
    with pytest.raises(ConfigError, match=rf'{section}\.{name} = .*: has no effect with method "{method}"'):
        build_config(TrainConfig, given, source="x")


def test_a_study_leaves_out_what_all_arms_share_and_a_method_does_not_read() -> None:
    shared = {"character": {"replay": 0.5}, "plan": CURRICULUM | OF_PERSONAS, "train": {"importance_ratio_cap": 3.0}}
    arms = {method: {"method": method} for method in get_args(TrainMethod)}
    study = build_config(StudyConfig, {"train": shared, "arms": arms, "evaluations": {}}, source="x")
    trainings = {str(unit.arm): unit.training for unit in study.units() if unit.training is not None}
    assert {arm: training.character.replay for arm, training in trainings.items()} == {
        "permix": 0.5, "rlvr": 0.5, "sft": 0.0, "sft-personas": 0.0, "seqkd": 0.0,
    }  # fmt: skip
    assert {arm: bool(training.plan.tag_weights) for arm, training in trainings.items()} == {
        "permix": True, "rlvr": False, "sft": False, "sft-personas": True, "seqkd": True,
    }  # fmt: skip

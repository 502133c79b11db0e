"""The reward is the verifier's verdict, in order, and what was not scored is in no mean."""

import pytest

from permix.tasks import TASKS
from permix.tasks.base import verify_completion
from permix.training.rewards import mean_reward_by_tag, verify_completions
from permix.types import Verdict, reward_tags
from permix.verification.math_verifier import check_answer
from tests.training.scoring import judge_arithmetic_by


def broken_check(answer: str | None, gold: str) -> Verdict:
    """Fails on one answer, as a scorer does when its worker dies."""
    if answer == "13":
        return Verdict(correct=None, extracted=answer, error="the worker died")
    return check_answer(answer, gold)


def test_verdicts_are_the_evaluations_own_in_order() -> None:
    completions = ["It is 12.", "\\boxed{13}", "no idea", "\\boxed{\\frac{1}{2}} and 7"]
    tasks, golds = ["arithmetic", "gsm8k", "arithmetic", "math"], ["12", "12", "12", "1/2"]
    found = verify_completions(completions, tasks, golds)
    assert found == [verify_completion(TASKS[t], c, g) for c, t, g in zip(completions, tasks, golds, strict=True)]
    assert [verdict.reward for verdict in found] == [1.0, 0.0, 0.0, 1.0]
    assert [verdict.extracted for verdict in found[:3]] == ["12", "13", None]


def test_a_failed_verification_has_no_reward_and_is_not_zero(monkeypatch: pytest.MonkeyPatch) -> None:
    judge_arithmetic_by(monkeypatch, broken_check)
    found = verify_completions(["12", "13", "14"], ["arithmetic"] * 3, ["12"] * 3)
    assert [verdict.reward for verdict in found] == [1.0, None, 0.0]


def test_means_by_tag_worked_by_hand() -> None:
    rewards = [1.0, 0.0, None, 1.0, 0.0, None]
    tags = [["expert"], ["expert", "character"], ["character"], [], [], ["harmful"]]
    assert mean_reward_by_tag(rewards, tags) == {"character": 0.0, "expert": 0.5, "none": 0.5}


def test_a_persona_without_tags_is_not_no_persona() -> None:
    assert reward_tags("poet", ["expert"]) == ["expert"]
    assert [reward_tags("poet", []), reward_tags(None, [])] == [("untagged",), ("none",)]
    assert mean_reward_by_tag([1.0, 0.0], [reward_tags("poet", ()), reward_tags(None, ())]) == {"none": 0.0, "untagged": 1.0}


def test_means_of_nothing() -> None:
    assert mean_reward_by_tag([], []) == {}
    assert mean_reward_by_tag([None], [["expert"]]) == {}

"""The reward function of an exported training in verl: permix's own verifier, as in training and evaluation.

verl imports it on every worker by name, from a pool of threads. It needs permix alone. A rollout whose verifier failed gets no
score: the function raises, and verl leaves that rollout out. Any number would be wrong, 0 too, which is a wrong answer's.
"""

import json
from collections.abc import Mapping
from functools import cache
from typing import Any

from permix.errors import DataError, PermixError
from permix.storage.files import PARSE_ERRORS
from permix.tasks import find_task
from permix.tasks.base import verify_completion
from permix.tasks.code import register_suite
from permix.types import last_user_text
from permix.verification.sandbox import Case, Suite

ROLLOUT_FIELD = "permix_rollout"
"""The field of `extra_info` that says which rollout of its group this is; `PermixAgentLoop` writes it."""

COMPLETION_FIELD = "permix_completion"
"""The field of `extra_info` that holds the completion's text with its tags of thinking; `PermixAgentLoop` writes it."""


class MissingRewardError(PermixError):
    """The verifier failed on a completion, so it has no reward."""


def compute_score(
    data_source: str,
    solution_str: str,
    ground_truth: str,
    extra_info: Mapping[str, Any] | None = None,
    *,
    tests: str | None = None,
    **_: Any,
) -> dict[str, float]:
    """The reward of one completion: {"score": 1.0} if it is right, {"score": 0.0} if it is wrong.

    extra_info: that of a row of train.parquet or val.parquet, with what `PermixAgentLoop` added. The text that it added is
    scored: `solution_str`, verl's own text, lacks the tag of thinking that the prompt opened and tags that are special tokens, so
    that thinking without an end would look like an answer. tests: the tests.jsonl of an export with programming questions.
    Raises MissingRewardError if the verifier failed, and DataError if the row is not of an export.
    """
    if tests is not None:
        _register_tests(tests)
    about = extra_info or {}
    prompt = _question_prompt(about)
    task = find_task(str(about.get("task")))
    verdict = verify_completion(task, str(about.get(COMPLETION_FIELD, solution_str)), ground_truth, prompt)
    if verdict.reward is None:
        raise MissingRewardError(f"{data_source}: the verifier failed, so this rollout has no reward: {verdict.error}")
    # No key "acc": verl's validation counts a rollout without it as wrong.
    return {"score": verdict.reward}


def _question_prompt(extra_info: Mapping[str, Any]) -> str:
    """The user's message of the rollout, which holds the question. Raises DataError if `extra_info` is not of an export."""
    try:
        rollouts = json.loads(extra_info["rollouts"])
        messages = rollouts[int(extra_info.get(ROLLOUT_FIELD) or 0) % len(rollouts)]["messages"]
        if not (text := last_user_text(messages)):
            raise ValueError("no user message")
        return text
    except (*PARSE_ERRORS, AttributeError, ZeroDivisionError) as error:
        raise DataError(f"extra_info: not of a data set that `permix export` wrote: {type(error).__name__}: {error}") from error


@cache
def _register_tests(path: str) -> None:
    """Keep the tests of programming questions in this process. Raises DataError for a file that is no tests.jsonl."""
    try:
        with open(path, encoding="utf-8") as lines:
            for line in lines:
                row = json.loads(line)
                prelude, function, cases, check = row["suite"]
                register_suite(row["gold"], Suite(prelude, function, tuple(Case(*case) for case in cases), check))
    except (OSError, *PARSE_ERRORS) as error:
        raise DataError(f"tests = {path}: not a tests.jsonl of an export: {type(error).__name__}: {error}") from error

"""Another scorer for the task arithmetic."""

from collections.abc import Callable
from dataclasses import replace

import pytest

from permix.tasks import TASKS
from permix.types import Verdict


def judge_arithmetic_by(monkeypatch: pytest.MonkeyPatch, check: Callable[[str | None, str], Verdict]) -> None:
    """Let `check` give the verdict on every completion, from its answer (None without one) and the gold."""
    task = TASKS["arithmetic"]
    judged = replace(
        task,
        extract=lambda completion, question: task.extract(completion, question) or "",
        scorer=lambda answer, gold: check(answer or None, gold),
    )
    monkeypatch.setitem(TASKS, task.name, judged)

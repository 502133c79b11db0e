"""Every row of the table in docs/verification.md gets the verdict that the table states."""

import re
from pathlib import Path

import pytest

from permix.tasks import TASKS, verify_completion

DOCUMENT = Path(__file__).parents[2] / "docs" / "verification.md"

ROWS = re.findall(
    r"^\| ([a-z0-9-]+) \| `(.*?)` \| `(.*?)` \| (right|wrong) \|$", DOCUMENT.read_text(encoding="utf-8"), re.MULTILINE
)


def test_the_table_is_read() -> None:
    assert len(ROWS) > 60
    assert {verdict for *_, verdict in ROWS} == {"right", "wrong"}


@pytest.mark.parametrize(("task", "completion", "gold", "verdict"), ROWS)
def test_a_row_of_the_table(task: str, completion: str, gold: str, verdict: str) -> None:
    found = verify_completion(TASKS[task], completion.replace("⏎", "\n"), gold)
    assert found.correct is (verdict == "right"), found

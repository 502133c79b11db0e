"""The ledger: every call is kept, and what stands of several is told by one rule."""

from pathlib import Path
from typing import Any

import pytest

from permix.errors import DataError
from permix.judges.runner import JUDGEMENTS_FILE, judge_folder, judge_folders, latest_judgements, read_judge_calls
from permix.judges.types import Judgement
from permix.storage.files import JsonlWriter
from permix.types import Failure


def call(score: int | None = None, prompt: str = "p", attempt: int = 0, **fields: Any) -> Judgement:
    key = {"persona_id": "sailor", "answered_by": "sailor", "question_id": "q1", "rubric": "In Character"}
    error = None if score else "no score"
    return Judgement.model_validate(
        key | {"attempt": attempt, "seed": 1, "prompt_hash": prompt, "score": score, "error": error} | fields
    )


def write(folder: Path, *calls: Judgement) -> None:
    ledger = JsonlWriter(folder / JUDGEMENTS_FILE)
    ledger.append(calls)
    ledger.close()


def test_calls_come_back_as_they_were_also_hostile_ones(tmp_path: Path) -> None:
    calls = [call(3), call(failure=Failure(type="X", message="a\u2028b\nc", prompt_tokens=5), cost=0.25), call(2, attempt=1)]
    write(tmp_path, *calls[:1])
    write(tmp_path, *calls[1:])
    assert read_judge_calls(tmp_path) == calls
    assert read_judge_calls(tmp_path / "nowhere") == []


@pytest.mark.parametrize(
    ("calls", "stands"),
    [
        ([call(3)], 0),
        ([call(3), call(4)], 1),  # the last score
        ([call(3), call()], 0),  # a failure takes no score away
        ([call(), call(attempt=1)], 1),
        ([call(3), call(prompt="other")], 1),  # the answer is another one now
        ([call(3), call(prompt="other"), call(attempt=1)], 2),
    ],
)
def test_what_stands(calls: list[Judgement], stands: int, tmp_path: Path) -> None:
    write(tmp_path, *calls)
    assert list(latest_judgements(read_judge_calls(tmp_path)).values()) == [calls[stands]]


def test_controls_and_rubrics_stand_apart(tmp_path: Path) -> None:
    calls = [
        call(3),
        call(4, control="retest"),
        call(5, rubric="Expected Action"),
        call(1, control="wrong-persona", persona_id="troll"),
    ]
    write(tmp_path, *calls)
    assert list(latest_judgements(read_judge_calls(tmp_path)).values()) == calls


def test_a_torn_line_is_passed_over_and_then_dropped(tmp_path: Path) -> None:
    write(tmp_path, call(3), call(4))
    whole = (tmp_path / JUDGEMENTS_FILE).read_bytes()
    (tmp_path / JUDGEMENTS_FILE).write_bytes(whole[:-20])
    assert read_judge_calls(tmp_path) == [call(3)]
    write(tmp_path, call(5))
    assert read_judge_calls(tmp_path) == [call(3), call(5)]


def test_a_line_that_is_no_judgement_is_named(tmp_path: Path) -> None:
    write(tmp_path, call(3))
    with (tmp_path / JUDGEMENTS_FILE).open("a") as file:
        file.write('{"score": 7}\n')
    with pytest.raises(DataError, match=rf"{JUDGEMENTS_FILE}:2: not a judgement"):
        read_judge_calls(tmp_path)


def test_labels_become_folders_that_are_safe_and_their_own(tmp_path: Path) -> None:
    labels = ["Qwen2.5-7B", "a/b", "a-b", "a b", "../..", "", ".", "é", "x" * 300, "x" * 301]
    folders = [judge_folder(tmp_path, label) for label in labels]
    assert folders[0].name == "Qwen2.5-7B"
    assert len(set(folders)) == len(labels)
    for folder in folders:
        assert folder.parent == tmp_path / "judges"
        folder.mkdir(parents=True)
    assert judge_folders(tmp_path) == []
    for folder in folders[:3]:
        (folder / "config.json").write_text("{}")
    assert judge_folders(tmp_path) == sorted(folders[:3])

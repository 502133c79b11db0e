"""A reply that no line can hold is a failure: the other answers can be read, and the same command asks for it again."""

from pathlib import Path
from typing import Any

import pytest

import permix
from permix.errors import IncompleteRunError
from permix.inference.scripted import ScriptedModel
from permix.judges.runner import latest_judgements, read_judge_calls, request_pending_scores
from permix.storage.cells import read_run_cells
from permix.storage.files import MAX_LINE_BYTES, JsonlWriter, LongRecordError, read_jsonl
from tests.judges.judgeable import item, prompts, terms, verdict

LONG = "la " * 5_700_000
PERSONAS = [{"id": "poet", "text": "a poet"}, {"id": "sailor", "text": "a sailor"}]
QUESTIONS = [{"question": f"What is {n} + 1?", "answer": str(n + 1)} for n in range(3)]


def test_a_record_that_no_reader_accepts_is_not_written(tmp_path: Path) -> None:
    writer = JsonlWriter(tmp_path / "records.jsonl")
    writer.append([{"a": 1}])
    with pytest.raises(LongRecordError, match=r"records.jsonl: a record of 17.1 MB; a line has at most 16 MB$"):
        writer.append([{"b": 1}, {"text": LONG}])
    writer.append([{"text": "x" * (MAX_LINE_BYTES - len('{"text": ""}\n'))}])  # the longest
    with pytest.raises(LongRecordError):
        writer.append([{"text": "x" * (MAX_LINE_BYTES - len('{"text": ""}\n') + 1)}])
    writer.close()
    lines = list(read_jsonl(tmp_path / "records.jsonl", len, "a line"))
    assert lines == [len('{"a": 1}\n'), MAX_LINE_BYTES]


def test_a_long_answer_is_a_failure_and_the_rest_is_measured(tmp_path: Path) -> None:
    asked = 0

    def agent(messages: Any) -> str:
        nonlocal asked
        asked += 1
        return LONG if asked == 4 else "1"

    values: dict[str, Any] = {"task": QUESTIONS, "answer": "number", "personas": PERSONAS, "out": tmp_path / "run"}
    words = (
        "again to fill them (1 × LongReplyError: the reply is longer than a record may be: a record of 17.1 MB; a line has at "
        "most 16 MB)"
    )
    with pytest.raises(IncompleteRunError, match=r"1 of 9 cells") as raised:
        permix.evaluate_stability(agent, name="agent", **values)
    assert str(raised.value).endswith(words)
    assert "does not help" not in str(raised.value)
    assert read_run_cells(tmp_path / "run").n_completions == 8
    assert len(permix.evaluate_stability(agent, name="agent", **values).rows()) == 9
    assert asked == 10


def test_a_long_reply_of_a_judge_is_a_failure_that_has_cost_what_it_cost(tmp_path: Path) -> None:
    replies = iter([verdict(3) + LONG, verdict(4)])
    judge, asked = ScriptedModel(lambda _: next(replies)), prompts(item())
    assert request_pending_scores(judge, asked, tmp_path, terms(attempts=1), "test").n_pending == 1
    (found,) = latest_judgements(read_judge_calls(tmp_path)).values()
    assert (found.score, found.reply) == (None, None)
    assert found.failure is not None
    assert found.failure.type == "LongReplyError"
    assert request_pending_scores(judge, asked, tmp_path, terms(attempts=2), "test").n_pending == 0

"""Drafts: what replaying answers counts, by hand."""

import json
from pathlib import Path

import pytest

from bench import drafts
from bench.drafts import Replay, find_draft, replay_answer, replay_question
from tests.seeded import share, stability_run

END = 9


def test_a_draft_goes_on_where_an_earlier_answer_did() -> None:
    earlier = [[1, 2, 3, 4, END], [7, 2, 5, END]]
    assert list(find_draft([], earlier, 2)) == [7, 2]  # the beginning of the newest
    assert list(find_draft([1, 2], earlier, 8)) == [3, 4, END]  # two tokens match in the older one
    assert list(find_draft([8, 2], earlier, 8)) == [5, END]  # one token matches in both, and the newest counts
    assert list(find_draft([8], earlier, 8)) == []
    assert list(find_draft([END], earlier, 8)) == []  # nothing follows the end
    assert list(find_draft([], [], 8)) == []


def test_a_pass_adds_the_accepted_tokens_and_one() -> None:
    answer = [1, 2, 3, END]
    assert replay_answer(answer, [], 8) == Replay(tokens=4, passes=4, computed=4)
    assert replay_answer(answer, [answer], 8) == Replay(tokens=4, passes=1, computed=5)
    # Drafts of two tokens: 1 2 and then 3; the last pass has the end alone as its draft, and computes it twice.
    assert replay_answer(answer, [answer], 2) == Replay(tokens=4, passes=2, computed=5)
    # The draft 1 5 6 is wrong from its second token on: 1 and 2 in one pass; nothing follows 2 or 3 in the earlier answer.
    assert replay_answer(answer, [[1, 5, 6]], 8) == Replay(tokens=4, passes=3, computed=4 + 1 + 1)
    assert replay_question([answer, answer], 8) == Replay(tokens=8, passes=5, computed=9)


def test_figures_of_a_run(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run = stability_run(tmp_path / "run", "plain", "tiny", share(2))
    monkeypatch.setattr("sys.argv", ["drafts", str(run), "--longest", "4", "--model", str(tiny_model)])
    drafts.main()
    found = {one["figure"]: one for one in map(json.loads, capsys.readouterr().out.splitlines())}
    assert found["tokens_per_pass"]["value"] > 1
    assert found["computed_per_token"]["value"] >= 1
    assert found["tokens_per_pass"]["longest"] == 4

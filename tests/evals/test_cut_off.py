"""Answers that the token limit cut off are counted, by persona, and said wherever a run is read."""

import json
from pathlib import Path

import pytest

from permix.config import PersonasConfig, ReportConfig, StabilityConfig, TaskConfig
from permix.evals.grid import CutOffCounts, count_cut_off, read_grid_results
from permix.evals.stability import run_stability
from permix.inference.scripted import ScriptedModel
from permix.report.builder import run_report
from permix.storage.cells import parse_cell_line
from permix.types import Cell, Completion, Verdict
from tests.sample_runs import write_pool


def answer(text: str, finish: str | None, reasoning: str | None = None) -> Completion:
    return Completion.model_validate(
        {"text": text, "prompt_tokens": 1, "completion_tokens": 2, "finish": finish, "reasoning": reasoning}
    )


def cell(persona: str | None, question: str, completion: Completion | None, correct: bool | None) -> Cell:
    verdict = None if correct is None else Verdict(extracted="1", correct=correct)
    return Cell(
        persona_id=persona, question_id=question, seed=0, messages=({"role": "user", "content": question},), gold="1",
        completion=completion, verdict=verdict,
    )  # fmt: skip


def test_counts_by_hand(tmp_path: Path) -> None:
    cells = [
        cell(None, "a", answer("1", "stop"), True),
        cell(None, "b", answer("1 and", "length"), False),
        cell("p", "a", answer("<think>hm", "stop"), False),
        cell("p", "b", answer("", "length", "hm"), False),
        cell("q", "a", answer("1", None), True),  # the end is not known
        cell("q", "b", answer("2", "stop"), False),
    ]
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "grid.json").write_text(json.dumps({"persona_ids": ["p", "q"], "question_ids": ["a", "b"], "samples": 1}))
    (tmp_path / "records.jsonl").write_text("".join(one.model_dump_json() + "\n" for one in cells))
    found = count_cut_off(read_grid_results(tmp_path))
    assert found == CutOffCounts(
        n_known=5, n_cut_off=3, n_thinking_unclosed=2, by_persona={"": 0.5, "p": 1.0, "q": 0.0}, accuracy_of_others=0.5
    )
    assert found.is_notable
    assert found.describe(28) == (
        "3 of 5 answers were cut off at sampling.max_new_tokens = 28, 2 of them within their thinking (0% to 100% by persona); "
        "accuracy of the others 0.500. A longer limit may change the accuracies and their differences"
    )


@pytest.mark.parametrize(
    ("n", "cut", "shares", "notable"),
    [(100, 0, (0.0, 0.0), False), (100, 5, (0.05, 0.05), False), (100, 6, (0.06, 0.06), True), (100, 4, (0.0, 0.2), True)],
)
def test_when_it_is_said(n: int, cut: int, shares: tuple[float, float], notable: bool) -> None:
    counts = CutOffCounts(
        n_known=n, n_cut_off=cut, n_thinking_unclosed=0, by_persona={"": shares[0], "p": shares[1]}, accuracy_of_others=1.0
    )
    assert counts.is_notable is notable


def test_a_line_without_an_end_is_read() -> None:
    line = cell("p", "a", answer("1", "stop"), True).model_dump(mode="json")
    del line["completion"]["finish"]
    assert parse_cell_line(json.dumps(line))["completion"] is not None


def test_it_is_in_the_output_the_metrics_and_the_report(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = StabilityConfig(
        out=tmp_path / "run", label="cutter", task=TaskConfig(levels=("add-1",), n=4), resamples=100,
        personas=PersonasConfig(pool=str(write_pool(tmp_path / "pool.toml", "clerk", "troll")), split="all"),
    )  # fmt: skip
    model = ScriptedModel(lambda request: answer("so", "length") if len(request.messages) > 1 else "so")
    run_stability(config, model)
    words = "8 of 12 answers were cut off at sampling.max_new_tokens = 128 (0% to 100% by persona)"
    assert f"warning: {words}" in " ".join(capsys.readouterr().err.split())
    assert json.loads((tmp_path / "run" / "metrics.json").read_text())["cut_off"]["n_cut_off"] == 8
    run_report(ReportConfig(runs=(tmp_path / "run",), out=tmp_path / "report"))
    assert words in (tmp_path / "report" / "report.md").read_text()

"""Answers that the token limit cut off are counted, by persona, and said wherever a run is read."""

import json
from pathlib import Path

import pytest

import permix
from permix.config import PersonasConfig, ReportConfig, StabilityConfig, TaskConfig
from permix.evals.grid import CutOffCounts, count_cut_off, cut_off_warning, read_grid_results
from permix.evals.stability import run_stability
from permix.inference.scripted import ScriptedModel
from permix.personas.pool import load_pool
from permix.report.builder import run_report
from permix.storage.cells import parse_cell_line
from permix.storage.run_dir import RunReader
from permix.types import Cell, Completion, Request, Verdict
from tests.sample_runs import OPEN_QUESTIONS, write_pool


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
    assert found.describe(None).startswith("3 of 5 answers were cut off at a token limit that is not recorded, 2 of them")


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


def cut_as_a_persona(request: Request) -> Completion | str:
    """ "so", cut off under a persona; without one a whole answer."""
    return answer("so", "length") if len(request.messages) > 1 else "so"


def test_it_is_in_the_output_the_metrics_and_the_report(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = StabilityConfig(
        out=tmp_path / "run", label="cutter", task=TaskConfig(levels=("add-1",), n=4), resamples=100,
        personas=PersonasConfig(pool=str(write_pool(tmp_path / "pool.toml", "clerk", "troll")), split="all"),
    )  # fmt: skip
    run_stability(config, ScriptedModel(cut_as_a_persona))
    words = "8 of 12 answers were cut off at sampling.max_new_tokens = 128 (0% to 100% by persona)"
    metrics = json.loads((tmp_path / "run" / "metrics.json").read_text())
    assert metrics["cut_off"]["n_cut_off"] == 8
    assert metrics["pss_reason"] == "no answer was right under any persona, so PSS has no value"
    run_report(ReportConfig(runs=(tmp_path / "run",), out=tmp_path / "report"))
    shown = capsys.readouterr().out
    assert shown.startswith("cutter: no answer was right under any persona, so PSS has no value.\n")
    assert f"Cut off: cutter: {words}" in shown
    row = next(line for line in shown.splitlines() if line.strip().startswith("cut off, of"))
    assert "8 of 12" in row
    assert "accuracy of the others 0.000" in shown
    report = (tmp_path / "report" / "report.md").read_text()
    assert words in report
    assert "8 of 12<br><sub>accuracy of the others 0.000</sub>" in report
    section = report.split("## Accuracy by persona")[1].split("\n## ")[0]
    by_persona = [line.strip("| ").split(" | ") for line in section.splitlines() if line.startswith("|")]
    shares = {cells[0]: cells[2] for cells in by_persona[2:]}
    assert by_persona[0][2] == "cutter, cut off"
    assert shares == {"*no persona*": "0%", "clerk": "100%", "troll": "100%"}
    (table_row,) = json.loads((tmp_path / "report" / "table.json").read_text())["rows"]
    assert table_row["pss_reason"] == metrics["pss_reason"]
    assert metrics["pss_reason"] in (tmp_path / "report" / "index.html").read_text()
    assert (table_row["n_cut_off"], table_row["n_known_ends"], table_row["accuracy_of_others"]) == (8, 12, 0.0)


def test_a_persona_column_is_there_only_where_an_answer_was_cut_off(tmp_path: Path) -> None:
    config = StabilityConfig(
        out=tmp_path / "run", label="whole", task=TaskConfig(levels=("add-1",), n=4), resamples=100,
        personas=PersonasConfig(pool=str(write_pool(tmp_path / "pool.toml", "clerk", "troll")), split="all"),
    )  # fmt: skip
    run_stability(config, ScriptedModel(lambda _: "so"))
    run_report(ReportConfig(runs=(tmp_path / "run",), out=tmp_path / "report"))
    report = (tmp_path / "report" / "report.md").read_text()
    assert "whole, cut off" not in report
    assert "| 0 of 12 |" in report  # the models' table always has the count, and no accuracy of others where none was cut
    assert "accuracy of the others" not in report


def test_python_callers_are_warned(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """There is no report at the end of these, so the warning is on stderr; answers in character count from 5 %."""
    pool = load_pool(write_pool(tmp_path / "pool.toml", "clerk", "troll"))
    task = [{"question": f"What is {n} + 1?", "answer": str(n + 1)} for n in range(4)]
    permix.evaluate_stability(ScriptedModel(cut_as_a_persona), task=task, answer="number", personas=pool, resamples=100)
    assert "warning: 8 of 12 answers were cut off at sampling.max_new_tokens = 512" in capsys.readouterr().err
    questions = [f"What do you think of {one}?" for one in OPEN_QUESTIONS]

    def two_of_24(request: Request) -> Completion | str:
        asked = request.messages[-1]["content"]
        as_troll = "troll" in request.messages[0]["content"]
        return answer("I like it and", "length") if as_troll and ("bread" in asked or "rain" in asked) else f"I like {asked[21:]}"

    run = permix.evaluate_fidelity(ScriptedModel(two_of_24), personas=pool, questions=questions, folds=3, resamples=100)
    assert "cut off" not in capsys.readouterr().err  # identifiability compares beginnings; a judge would read answers
    reader = RunReader(run.path)
    warning = cut_off_warning(reader, read_grid_results(run.path), is_judged=True)
    assert warning is not None
    assert warning.startswith("8% of the answers were cut off at sampling.max_new_tokens = 48.")
    whole = permix.evaluate_fidelity(
        ScriptedModel(lambda _: "I like it"), personas=pool, questions=questions, folds=3, resamples=100
    )
    assert cut_off_warning(RunReader(whole.path), read_grid_results(whole.path), is_judged=True) is None

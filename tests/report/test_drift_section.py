"""The report of interviews: models side by side, hostile text shown, what was not measured said."""

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from matplotlib.figure import Figure

from permix.config import FidelityConfig, ReportConfig, build_config
from permix.evals.fidelity_records import is_interviewer_question
from permix.evals.interview import evaluate_interview, prepare_interview
from permix.inference.scripted import ScriptedModel
from permix.judges.results import JudgeResults, read_judge_inputs
from permix.judges.summary import JudgeSummary, summarize_judge
from permix.rendering import theme
from permix.rendering.plots import plot_drift
from permix.report import judges as report_judged
from permix.report.builder import build_report, run_report
from permix.report.fidelity_tables import drift_parts
from permix.report.runs import Run, collect_models
from permix.report.summary_text import TRUST_MARKS_LEGEND
from permix.storage.files import read_json, write_json
from permix.types import Estimate, Request
from tests.sample_runs import fidelity_values
from tests.verdicts import TRADES, write_judge

OPENING = "Good to meet you. Before we begin, tell me a little about yourself."


def pool_of(path: Path, trades: Sequence[str]) -> Path:
    rows = (f'[[persona]]\nid = "{one}"\ntext = "a {one}"\nsplit = "heldout"\n' for one in trades)
    path.write_text("".join(rows))
    return path


def interviewed(folder: Path, name: str, answer: Callable[[int], str], personas: Sequence[str] = (), **interview: object) -> Path:
    folder.mkdir(exist_ok=True)
    out, asked = str(folder / name), {"turns": 5} | interview
    values = fidelity_values(folder, "http://127.0.0.1:9/v1", label=name, out=out, interview=asked)
    if personas:
        values["personas"] = {"pool": str(pool_of(folder / "many.toml", personas))}
    config = build_config(FidelityConfig, values, source="test")

    def answers(request: Request) -> str:
        return answer(len(request.messages) // 2)

    evaluate_interview(ScriptedModel(answers, name=name), config, prepare_interview(config))
    return config.out


def section(out: Path) -> str:
    return (out / "report.md").read_text().split("## Drift by interview turn")[1].split("\n## ")[0]


def test_models_stand_in_one_table_one_figure_and_one_conversation(tmp_path: Path) -> None:
    runs = [
        interviewed(tmp_path, "steady", lambda turn: "word " * 4),
        interviewed(tmp_path, "<b>fading</b>", lambda turn: "[x](http://evil) " + "word " * (12 - 2 * turn)),
    ]
    build_report(runs, tmp_path / "report")
    found = section(tmp_path / "report")
    words = "words<br><sub>number of words in an answer</sub>"
    assert f"| steady | {words} | 4.000 [4.00, 4.00] | +0.000 | +0.000 | 15 of 15 |" in found
    assert "&#60;b&#62;fading&#60;/b&#62; | words<br>" in found
    assert "| −2.000 [−2.000, −2.000] |" in found
    assert "<b>" not in found
    assert "[x](" not in found
    assert found.count(OPENING) == 1  # both models answer to the same questions in one table
    assert "| 1 | Good to meet you." in found
    assert "identifiability not measured: it needs `reference`" in found
    before = (tmp_path / "report" / "drift.png").read_bytes()
    build_report(runs, tmp_path / "report")
    assert (tmp_path / "report" / "drift.png").read_bytes() == before
    assert set(read_json(tmp_path / "report" / "table.json")["drift"]) == {"steady", "<b>fading</b>"}


def test_questions_of_an_interviewer_model_are_no_answers_of_the_model(tmp_path: Path) -> None:
    path = interviewed(tmp_path, "one", lambda turn: f"turn {turn}")
    before = Run(path)
    counts = before.n_answered, before.tokens
    line = json.loads((path / "records.jsonl").read_text(encoding="utf-8").splitlines()[0])
    asked = line | {"question_id": "ask-01", "completion": line["completion"] | {"text": "Where were you born?"}}
    with (path / "records.jsonl").open("a", encoding="utf-8") as records:
        records.write(json.dumps(asked) + "\n")
    after = Run(path)
    assert (after.n_answered, after.tokens) == counts
    build_report([path], tmp_path / "report")
    assert "Where were you born?" not in (tmp_path / "report" / "report.md").read_text(encoding="utf-8")
    found = [is_interviewer_question(id) for id in ("ask-01", "ask-12", "ask-x", "turn-01", "ask")]
    assert found == [True, True, False, False, False]


def test_a_reference_that_was_moved_takes_identifiability_alone(tmp_path: Path) -> None:
    run = interviewed(tmp_path, "one", lambda turn: f"turn {turn}")
    config = read_json(run / "config.json")
    write_json(run / "config.json", config | {"reference": str(tmp_path / "moved")})
    build_report([run], tmp_path / "report")
    assert "| one | words<br>" in section(tmp_path / "report")
    text = (tmp_path / "report" / "report.md").read_text(encoding="utf-8")
    assert "**Not measured**" in text
    assert "its reference run" in text
    (run / "records.jsonl").write_text("", encoding="utf-8")
    build_report([run], tmp_path / "empty")  # no turn is answered: the report says so, and nothing is lost beside it
    assert "**Not measured**" in (tmp_path / "empty" / "report.md").read_text(encoding="utf-8")


def test_a_control_that_was_not_measured_takes_no_other_control_with_it(tmp_path: Path) -> None:
    """Without two personas at one question of the reference, no label can be shuffled."""
    (model,) = collect_models([interviewed(tmp_path, "base", lambda turn: f"turn {turn}")])
    assert model.drift is not None
    length_only = Estimate(value=0.4, low=0.2, high=0.6, n=3)
    drift = model.drift.model_copy(update={"length_only": length_only, "permuted": None, "reference": "fresh"})
    text = str(drift_parts([model._replace(drift=drift)], None))
    assert "classifier trained on fresh: chance 0.333, length only 0.40 [0.20, 0.60], labels permuted not measured" in text


def test_models_that_were_asked_otherwise_have_a_table_each_and_slopes_that_mean_less_say_so(tmp_path: Path) -> None:
    runs = [
        interviewed(tmp_path, "one", lambda turn: f"turn {turn}"),
        interviewed(tmp_path, "two", lambda turn: f"turn {turn}", order="written"),
    ]
    build_report(runs, tmp_path / "report")
    found = section(tmp_path / "report")
    assert found.count(OPENING) == 2
    assert "all personas were asked in one order, so slopes contain the effects of the questions" in found
    assert "| turn | asked | one |" in found
    assert "| turn | asked | two |" in found


@pytest.fixture
def judged(tmp_path: Path) -> Path:
    """An interview scored by a judge that sees whose answer it is, and by one that sees nothing."""
    run = interviewed(tmp_path, "base", lambda turn: f"turn {turn}", personas=TRADES[:8], turns=3)
    items = read_judge_inputs(run)
    write_judge(run, "keen", items, lambda item: 4 if item.control == "none" else 2)
    write_judge(run, "b-lazy-1", items, lambda _: 5, label="<b>lazy")
    return run


@pytest.mark.slow
def test_a_judge_that_means_nothing_is_marked_by_its_label_and_no_judge_is_measured_twice(
    judged: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    seen = []

    def counted(verdicts: JudgeResults, *rest: Any, **named: Any) -> JudgeSummary:
        seen.append(verdicts.label)
        return summarize_judge(verdicts, *rest, **named)

    monkeypatch.setattr(report_judged, "summarize_judge", counted)
    run_report(ReportConfig(runs=(judged,), out=tmp_path / "report"))
    found = section(tmp_path / "report")
    lazy = next(line for line in found.splitlines() if "judge &#60;b&#62;lazy" in line)
    assert "| 5.000 [5.00, 5.00] † | +0.000 † | +0.000 † | 24 of 24 |" in lazy
    keen = next(line for line in found.splitlines() if "judge keen" in line)
    assert "| 4.000 [4.00, 4.00] | +0.000 | +0.000 | 24 of 24 |" in keen
    assert TRUST_MARKS_LEGEND in found
    assert sorted(seen) == ["<b>lazy", "keen"]
    shown = capsys.readouterr().out
    assert "judge <b>lazy" in shown
    assert shown.count("+0.000 †") == 2
    assert "† The judge scores an answer under a wrong persona" in " ".join(shown.split())


def test_in_the_figure_its_marks_are_hollow(judged: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    drawn: list[Figure] = []
    monkeypatch.setattr(theme, "save_figure", lambda fig, path: drawn.append(fig))
    (model,) = collect_models([judged])
    assert model.drift is not None
    plot_drift({"base": model.drift}, tmp_path / "drift.png")
    faces = {ax.get_ylabel(): ax.lines[0].get_markerfacecolor() == "w" for ax in drawn[0].axes}
    assert faces.pop("judge\n<b>lazy")
    assert "judge\nkeen" in faces
    assert not any(faces.values())
    assert "hollow: the judge does not" in " ".join(text.get_text() for text in drawn[0].texts).replace("\n", " ")

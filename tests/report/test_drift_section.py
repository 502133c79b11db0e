"""The report of interviews: models side by side, hostile text shown, what was not measured said."""

from collections.abc import Callable
from pathlib import Path

from permix.config import FidelityStage, build
from permix.evals.interview import evaluate, set_up
from permix.models.scripted import ScriptedModel
from permix.records import read_json
from permix.report.build import build_report
from permix.types import Request
from tests.worlds import fidelity_values

OPENING = "Good to meet you. Before we begin, tell me a little about yourself."


def interviewed(folder: Path, name: str, answer: Callable[[int], str], **interview: object) -> Path:
    folder.mkdir(exist_ok=True)
    out, asked = str(folder / name), {"turns": 5} | interview
    values = fidelity_values(folder, "http://127.0.0.1:9/v1", label=name, out=out, interview=asked)
    config = build(FidelityStage, values, source="test")

    def answers(request: Request) -> str:
        return answer(len(request.messages) // 2)

    evaluate(ScriptedModel(answers, name=name), config, set_up(config))
    return config.out


def section(out: Path) -> str:
    return (out / "report.md").read_text().split("## Drift over an interview")[1].split("\n## ")[0]


def test_models_stand_in_one_table_one_figure_and_one_conversation(tmp_path: Path) -> None:
    runs = [
        interviewed(tmp_path, "steady", lambda turn: "word " * 4),
        interviewed(tmp_path, "<b>fading</b>", lambda turn: "[x](http://evil) " + "word " * (12 - 2 * turn)),
    ]
    build_report(runs, tmp_path / "report")
    found = section(tmp_path / "report")
    assert "| steady | words<br><sub>words of an answer</sub> | 4.000 [4.00, 4.00] | +0.000 | +0.000 | 15 of 15 |" in found
    assert "&#60;b&#62;fading&#60;/b&#62; | words<br>" in found
    assert "| −2.000 [−2.000, −2.000] |" in found
    assert "<b>" not in found
    assert "[x](" not in found
    assert found.count(OPENING) == 1  # both models answer to the same questions in one table
    assert "| 1 | Good to meet you." in found
    assert "identifiability not measured: it needs reference" in found
    before = (tmp_path / "report" / "drift.png").read_bytes()
    build_report(runs, tmp_path / "report")
    assert (tmp_path / "report" / "drift.png").read_bytes() == before
    assert set(read_json(tmp_path / "report" / "table.json")["drift"]) == {"steady", "<b>fading</b>"}


def test_models_that_were_asked_otherwise_have_a_table_each_and_slopes_that_mean_less_say_so(tmp_path: Path) -> None:
    runs = [
        interviewed(tmp_path, "one", lambda turn: f"turn {turn}"),
        interviewed(tmp_path, "two", lambda turn: f"turn {turn}", order="written"),
    ]
    build_report(runs, tmp_path / "report")
    found = section(tmp_path / "report")
    assert found.count(OPENING) == 2
    assert "all were asked in one order, so slopes are those of the questions as much as of the turns" in found
    assert "| turn | asked | one |" in found
    assert "| turn | asked | two |" in found

"""Figures of identifiability and the section without a judge: written, the same each time, safe with hostile names."""

from pathlib import Path

import numpy as np
import pytest

from permix.evals.text_metrics import PersonaAnswer, TextMetrics, compute_text_metrics
from permix.metrics.identifiability import Identifiability, LearningCurvePoint
from permix.rendering import plots, theme
from permix.rendering.table import SourceRun, Table
from permix.report import fidelity_tables as without_judge
from permix.report.judges import OPEN_ENDED_KIND
from permix.types import Estimate


def told(confusion: list[list[int]], ids: list[str], points: int = 3) -> Identifiability:
    count = np.array(confusion)
    one = Estimate(value=0.4, low=0.3, high=0.5, n=int(count.sum()))
    recall = [Estimate(value=float(row[at] / row.sum()), n=int(row.sum())) for at, row in enumerate(count)]
    return Identifiability(
        accuracy=one, chance=1 / len(ids), question_only=one, length_only=one, permuted=one, persona_ids=tuple(ids),
        confusion=tuple(tuple(row) for row in confusion), per_persona=tuple(recall), n_asked=1, n_answered=int(count.sum()),
        n_questions=10, classifier="c", reference="own answers", right_by_question={},
        learning_curve=tuple(LearningCurvePoint(questions=2**at, accuracy=one) for at in range(points)),
    )  # fmt: skip


TWO = told([[1, 9], [0, 10]], ["$bad$", "_good"])


def test_figures_are_the_same_each_time(tmp_path: Path) -> None:
    styles = theme.styles_for(["a", "b"])
    first = plots.plot_identifiability_figures({"a": TWO, "b": TWO}, tmp_path / "1", styles)
    assert list(first) == ["learnt.png", "confusion-1.png", "confusion-2.png"]
    plots.plot_identifiability_figures({"a": TWO, "b": TWO}, tmp_path / "2", styles)
    for name in first:
        assert (tmp_path / "1" / name).read_bytes() == (tmp_path / "2" / name).read_bytes()


def test_nothing_to_draw(tmp_path: Path) -> None:
    assert plots.plot_identifiability_figures({}, tmp_path, {}) == {}
    alone = told([[1, 0], [0, 1]], ["x", "y"], points=1)
    assert list(plots.plot_identifiability_figures({"a": alone}, tmp_path, theme.styles_for(["a"]))) == ["confusion-1.png"]


def test_the_best_told_stands_first() -> None:
    assert plots.personas_by_recall(TWO) == ("_good", "$bad$")


@pytest.mark.parametrize("personas", [2, 24, 25, 31, 60])
def test_few_and_many_personas(tmp_path: Path, personas: int) -> None:
    one = told((np.eye(personas, dtype=int) * 3 + 1).tolist(), [f"persona-{p}" for p in range(personas)])
    plots.plot_confusion_matrix(one, tmp_path / "a.png", "many")
    assert (tmp_path / "a.png").read_bytes().startswith(b"\x89PNG")


def measured() -> TextMetrics:
    said = ["As an AI, <b>I</b> | [x](y) \u202e", "Aye."]
    answers = [PersonaAnswer("p|1", "q1", said[0], True), PersonaAnswer("p|1", "q2", said[1], None)]
    return compute_text_metrics(answers, {"p|1": "a sailor"}, resamples=100)


def test_the_section_quotes_and_escapes() -> None:
    whole, quotes = without_judge.text_metric_parts({SourceRun("m|1", OPEN_ENDED_KIND): measured()})
    assert isinstance(whole, Table)
    assert isinstance(quotes, str)
    table = whole.markdown
    heading, _, line = table.splitlines()
    assert heading.count("|") == line.count("|") == len(without_judge.TEXT_METRIC_COLUMNS) + 3
    assert "too few<br><sub>n = 2 questions</sub>" in line
    assert "2 of 2" in line
    assert "**As an AI**" in quotes
    assert "<b>" not in quotes
    assert "[x]" not in quotes
    assert "\u202e" not in quotes


def test_no_models_no_section() -> None:
    assert without_judge.text_metric_parts({}) == []

"""Tables as literals: numbers, intervals, n, and dashes for what is missing."""

from rich.console import Console

from permix.metrics.identifiability import Identifiability
from permix.metrics.stability import summarize_stability
from permix.rendering.table import format_p_value
from permix.report.judges import OPEN_ENDED_KIND, JudgeScoreEntry
from permix.report.runs import ModelRow
from permix.report.tables import controls_table, models_table, persona_table, terminal_models_table
from permix.types import Estimate

PSS = Estimate(value=0.8124, low=0.75, high=0.874, n=200)
FULL = ModelRow(
    label="PerMix | RLVR",
    measures={
        "baseline": PSS, "mean": PSS, "worst": PSS, "pss": PSS, "pss_observed": Estimate(value=0.9, n=1), "pss_null": PSS,
    },
    identifiability=Estimate(value=0.4, low=0.34, high=0.47, n=210), chance=1 / 7, train_tokens=1234567, train_cpu_s=59.6,
    eval_tokens=0, eval_cpu_s=3.2, n_questions=200, n_personas=16, n_scored=3199, n_asked=3200,
    n_answers=210, n_answers_asked=216,
)  # fmt: skip


def cells(line: str) -> list[str]:
    return line.strip("| ").split(" | ")


def test_main_table_one_line_a_model() -> None:
    heading, _, full, empty = models_table([FULL, ModelRow(label="base")]).markdown.split("\n")
    number = "0.81 [0.75, 0.87]<br><sub>n = 200</sub>"
    assert cells(full) == [
        "PerMix &#124; RLVR", number, number, number, number, "–", "–", "too few<br><sub>n = 1</sub>", number,
        "0.40 [0.34, 0.47]<br><sub>n = 210, chance 0.143</sub>", "3 199 of 3 200", "210 of 216", "1 234 567", "60", "0", "3",
    ]  # fmt: skip
    assert cells(empty) == ["base", *["–"] * 15]
    assert len(cells(heading)) == 16


def test_measures_that_explain_and_costs_are_folded() -> None:
    kept = [heading for heading in models_table([FULL]).headings if heading not in models_table([FULL]).folded]
    assert kept[:5] == ["model", "no persona", "mean over personas", "worst persona", "PSS (estimate)"]
    assert "identifiability" in kept
    assert {"sd of personas", "PSS as observed (worst / best)", "training tokens", "evaluation CPU s"} <= models_table(
        [FULL]
    ).folded


def test_a_judge_is_folded_unless_it_is_trusted_on_some_model() -> None:
    def row(label: str, *, trusted: bool | None) -> ModelRow:
        score = JudgeScoreEntry(
            kind=OPEN_ENDED_KIND, judge="j", persona_score=PSS, n_scored=1, n_asked=1, discriminates_persona=trusted
        )
        return ModelRow(label=label, judged=(score,))

    heading = "in-character score, judge j"
    assert heading in models_table([row("a", trusted=False), row("b", trusted=None)]).folded
    assert heading not in models_table([row("a", trusted=False), row("b", trusted=True)]).folded


def test_a_value_that_cannot_be_computed_is_a_dash() -> None:
    row = ModelRow(label="m", measures={"pss": Estimate(value=None, n=0)})
    assert cells(models_table([row]).markdown.split("\n")[2])[4] == "–"


def test_terminal_table_has_models_as_columns_and_no_empty_lines() -> None:
    console = Console(width=120, record=True, color_system=None)
    with console.capture() as capture:
        console.print(terminal_models_table([FULL, ModelRow(label="[red]base\x1b[0m", measures={"pss": PSS})]))
    shown = capture.get()
    assert "[red]base\\x1b[0m" in shown  # neither markup nor an escape
    assert "0.81 [0.75, 0.87]" in shown
    assert "n = 210, chance 0.143" in shown
    assert max(map(len, shown.splitlines())) <= 120
    with console.capture() as capture:
        console.print(terminal_models_table([ModelRow(label="base", measures={"pss": PSS})]))
    assert "identifiability" not in capture.get()


def test_persona_table() -> None:
    right = [[[1.0]] * 10, [[1.0]] * 2 + [[0.0]] * 8, [[float("nan")]] * 10]
    summary = summarize_stability(right, [[1.0]] * 10, persona_ids=["poet", "<b>", "unscored"], resamples=100)
    lines = persona_table({"base": summary}).markdown.split("\n")
    assert lines[0] == "| persona | base |"
    assert lines[2] == "| *no persona* | 1.00 [0.69, 1.00]<br><sub>n = 10</sub> |"
    assert lines[3] == "| poet | 1.00 [0.69, 1.00]<br><sub>+0.00 [−0.31, +0.31], p = 1.000, n = 10</sub> |"
    assert lines[4].startswith("| &#60;b&#62; | 0.20 [")
    assert "<sub>−0.80 [−" in lines[4]
    assert "p = 0.016, n = 10" in lines[4]  # eight losses, no win: 2 / 2^8, times two personas
    assert lines[5] == "| unscored | – |"


def test_controls_table() -> None:
    chance = Estimate(value=0.5, low=0.5, high=0.5, n=40)
    result = Identifiability(
        accuracy=Estimate(value=0.75, low=0.6, high=0.85, n=40), chance=0.5,
        question_only=chance, length_only=chance, permuted=chance,
        persona_ids=("a", "b"), confusion=((15, 5), (5, 15)), per_persona=(chance, chance),
        n_asked=42, n_answered=40, n_questions=21, classifier="linear", reference="own answers",
        right_by_question={},
    )  # fmt: skip
    half = "0.500 [0.50, 0.50]<br><sub>n = 40</sub>"
    assert cells(controls_table({"base": result}).markdown.split("\n")[2]) == [
        "base", "0.75 [0.60, 0.85]<br><sub>n = 40</sub>", "0.500", half, half, half, "40 of 42", "own answers",
    ]  # fmt: skip


def test_small_probabilities_are_not_zero() -> None:
    assert [format_p_value(p) for p in (0.0004, 0.001, 0.25, None)] == ["< 0.001", "0.001", "0.250", "–"]

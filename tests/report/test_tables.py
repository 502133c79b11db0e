"""Tables as literals: numbers, intervals, n, and dashes for what is missing."""

from rich.console import Console

from permix.metrics.identifiability import Identifiability
from permix.metrics.stability import summarize_stability
from permix.rendering.table import format_p_value, md_label, plain_text
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
    n_answers=210, n_answers_asked=216, n_cut_off=12, n_known_ends=3400, accuracy_of_others=0.85,
)  # fmt: skip


def cells(line: str) -> list[str]:
    return line.strip("| ").split(" | ")


def test_main_table_one_line_a_model() -> None:
    heading, _, full, empty = models_table([FULL, ModelRow(label="base")]).markdown.split("\n")
    number = "0.81 [0.75, 0.87]<br><sub>n = 200</sub>"
    assert cells(full) == [
        "PerMix &#124; RLVR", number, number, number, number, "–", "–", "too few<br><sub>n = 1</sub>", number,
        "0.40 [0.34, 0.47]<br><sub>n = 210, chance 0.143</sub>", "3 199 of 3 200",
        "12 of 3 400<br><sub>accuracy of the others 0.850</sub>", "210 of 216", "1 234 567", "60", "0", "3",
    ]  # fmt: skip
    assert cells(empty) == ["base", *["–"] * 16]
    assert len(cells(heading)) == 17


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


def shown_on_a_terminal(*rows: ModelRow) -> str:
    console = Console(width=80, record=True, color_system=None)
    with console.capture() as capture:
        console.print(terminal_models_table(rows))
    return capture.get()


def test_the_costs_of_an_endpoint_are_wall_seconds_and_requests() -> None:
    """120 answers in 50 s, 60 in 4 s. This machine's CPU seconds are not shown for them; a model in this process keeps them."""
    slow = ModelRow(label="slow", eval_cpu_s=7.0, eval_wall_s=50.0, eval_requests=120)
    quick = ModelRow(label="quick", eval_cpu_s=7.0, eval_wall_s=4.0, eval_requests=60)
    local = ModelRow(label="local", eval_cpu_s=7.0)
    assert models_table([local]).headings[-1] == "evaluation CPU s"
    alone = models_table([slow, quick])
    assert alone.headings[-2:] == ("evaluation wall s", "requests per second")
    assert "evaluation CPU s" not in alone.headings
    assert [[cell.text for cell in row[-2:]] for row in alone.rows] == [["50", "2.40"], ["4", "15"]]
    mixed = models_table([slow, local])
    assert [[cell.text for cell in row[-3:]] for row in mixed.rows] == [["–", "50", "2.40"], ["7", "–", "–"]]
    shown = shown_on_a_terminal(slow)
    assert "CPU" not in shown
    assert "requests per second  2.40" in shown
    files = models_table([ModelRow(label="files", eval_cpu_s=7.0, eval_wall_s=30.0)])  # nobody knows what they took
    assert files.headings[-2:] == ("evaluation wall s", "requests per second")
    assert "evaluation CPU s" not in files.headings
    assert [cell.text for cell in files.rows[0][-2:]] == ["30", "–"]
    assert shown_on_a_terminal(ModelRow(label="m", eval_wall_s=None, eval_requests=3)).count("requests") == 0


def test_pss_without_a_value_keeps_its_row_and_says_why() -> None:
    summary = summarize_stability([[[0.0]] * 5] * 3, [[0.0]] * 5, resamples=100)
    assert summary.pss_reason == "no answer was right under any persona, so PSS has no value"
    row = ModelRow(label="m", measures={"pss": summary.pss, "mean": summary.mean}, pss_reason=summary.pss_reason)
    shown = " ".join(shown_on_a_terminal(row).split())
    assert "PSS (estimate) – no answer was right under any persona, so PSS has no value" in shown
    assert "PSS as observed" not in shown
    assert f"| –<br><sub>{summary.pss_reason}</sub> |" in models_table([row]).markdown
    assert "PSS" not in shown_on_a_terminal(row.model_copy(update={"pss_reason": None}))
    right = summarize_stability([[[1.0]] * 5] * 3, [[0.0]] * 5, resamples=100)
    assert right.pss_reason is None


def test_marks_of_judges_are_explained_below_the_table() -> None:
    """Only the marks that appear: trusted none, untrusted one, unvalidated the other."""
    untrusted, unvalidated = "† The judge scores an answer under a wrong persona", "‡ The judge was not validated"

    def shown(*trusted: bool | None) -> str:
        judged = tuple(
            JudgeScoreEntry(
                kind=OPEN_ENDED_KIND, judge=f"j{place}", persona_score=PSS, discriminates_persona=one, n_scored=9, n_asked=10,
            )
            for place, one in enumerate(trusted)
        )  # fmt: skip
        return " ".join(shown_on_a_terminal(ModelRow(label="m", judged=judged)).split())

    assert [(untrusted in one, unvalidated in one) for one in (shown(True), shown(False), shown(None), shown(False, None))] == [
        (False, False), (True, False), (False, True), (True, True),
    ]  # fmt: skip


def test_plain_text_undoes_markdown_and_no_more() -> None:
    name = "a*b_c <i> & &#42; `x` | ~d"
    assert plain_text(f"> **Cut off**: {md_label(name)}: *so* `it` goes") == f"Cut off: {name}: so it goes"
    assert plain_text("one\n>\n> two") == "one\n\ntwo"
    assert plain_text(md_label("\x1b[31mred")) == "\\x1b[31mred"  # what was made visible stays visible

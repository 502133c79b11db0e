"""A table as Markdown and as CSV: numbers in full, what is missing empty, text that a spreadsheet or Markdown would act on."""

import csv
import io

from permix.rendering.table import (
    EMPTY_ANSWER_CELL,
    MISSING_CELL,
    SourceRun,
    TableCell,
    difference_cell,
    estimate_cell,
    label_cell,
    tabulate,
    text_cell,
    trusted_cell,
)
from permix.types import Estimate

SHARE = Estimate(value=1 / 3, low=0.25, high=0.5, n=12)


def rows(text: str) -> list[list[str]]:
    return list(csv.reader(io.StringIO(text)))


def test_an_estimate_becomes_four_columns_and_a_note_that_says_more_a_fifth() -> None:
    same = tabulate(
        "t",
        ["model", "PSS"],
        [[label_cell("a"), trusted_cell("0.333 [0.25, 0.50]", "n = 12", SHARE)], [label_cell("b"), MISSING_CELL]],
    )
    assert rows(same.csv) == [
        ["model", "PSS", "PSS, low", "PSS, high", "PSS, n"],
        ["a", repr(1 / 3), "0.25", "0.5", "12"],
        ["b", "", "", "", ""],
    ]
    more = tabulate("t", ["model", "PSS"], [[label_cell("a"), trusted_cell("0.333", "n = 12, chance 0.1", SHARE)]])
    assert rows(more.csv)[0][-1] == "PSS, note"
    assert rows(more.csv)[1][-1] == "n = 12, chance 0.1"


def test_numbers_are_written_in_full_and_text_never_as_a_formula() -> None:
    lines = [
        [TableCell("=cmd|'/c calc'!A1"), trusted_cell("1 234", number=1234), trusted_cell("2 of 3")],
        [TableCell('-x,\n"y"'), MISSING_CELL, MISSING_CELL],
    ]
    assert rows(tabulate("t", ["@who", "tokens", "of"], lines).csv) == [
        ["'@who", "tokens", "of"],
        ["'=cmd|'/c calc'!A1", "1234", "2 of 3"],
        ['\'-x,\n"y"', "", ""],
    ]


def test_markdown_escapes_what_others_wrote_and_keeps_what_we_did() -> None:
    line = [
        TableCell("<b>|*x*", "a|b"),
        trusted_cell("0.5 [0.1, 0.9]", "n = 2"),
        TableCell("mean", trusted_markup=True, emphasis="**"),
    ]
    written = tabulate("t", ["a|b", "c", "d"], [line]).markdown.splitlines()[2]
    assert written == ("| &#60;b&#62;&#124;&#42;x&#42;<br><sub>a&#124;b</sub> | 0.5 [0.1, 0.9]<br><sub>n = 2</sub> | **mean** |")


def test_a_note_that_all_numbers_share_is_shown_once_in_the_heading() -> None:
    number = trusted_cell("0.33 [0.25, 0.50]", "n = 12", SHARE)
    lines = [
        [label_cell("a"), number, number, label_cell("x")],
        [label_cell("b"), number, number._replace(note="n = 9"), label_cell("x")],
        [label_cell("c"), MISSING_CELL, MISSING_CELL, label_cell("x")],
    ]
    found = tabulate("t", ["model", "same", "other", "text"], lines)
    assert found.heading_notes == ("", "n = 12", "", "")
    written = found.markdown.splitlines()
    assert written[0] == "| model | same<br><sub>n = 12</sub> | other | text |"
    assert written[2] == "| a | 0.33 [0.25, 0.50] | 0.33 [0.25, 0.50]<br><sub>n = 12</sub> | x |"
    assert rows(found.csv)[0] == [
        "model", "same", "same, low", "same, high", "same, n", "other", "other, low", "other, high", "other, n", "other, note",
        "text",
    ]  # fmt: skip
    assert tabulate("t", ["model", "same"], [line[:2] for line in lines[1:]]).heading_notes == ("", "")  # one number alone


def test_a_number_of_too_few_is_shown_as_such_and_kept_in_csv() -> None:
    few, enough = (Estimate(value=0.5, low=0.0, high=1.0, n=n) for n in (2, 3))
    assert (estimate_cell(few).text, estimate_cell(few).note) == ("too few", "n = 2")
    assert difference_cell(few).text == "too few"
    assert estimate_cell(enough).text == "0.50 [0.00, 1.00]"
    assert rows(tabulate("t", ["model", "PSS"], [[label_cell("a"), estimate_cell(few)]]).csv)[1] == [
        "a",
        "0.5",
        "0.0",
        "1.0",
        "2",
    ]


def test_words_of_others_are_made_visible_and_cut() -> None:
    assert label_cell("a\nb\u202ec").text == "a b\\u202ec"
    assert text_cell("  \n ", 10, 2) == EMPTY_ANSWER_CELL
    assert text_cell("abcdefghijkl\nsecond\nthird", 10, 2).text == "abcdefghi…\nsecond …"


def test_a_number_keeps_its_runs_and_what_is_missing_has_none() -> None:
    source = SourceRun("base", "stability")
    assert trusted_cell("1", number=1.0).with_sources(source).sources == (source,)
    assert MISSING_CELL.with_sources(source).sources == ()

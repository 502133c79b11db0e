"""A table as Markdown and as CSV: numbers in full, what is missing empty, text that a spreadsheet or Markdown would act on."""

import csv
import io

from permix.rendering.table import (
    EMPTY_ANSWER_CELL,
    MISSING_CELL,
    SourceRun,
    TableCell,
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


def test_words_of_others_are_made_visible_and_cut() -> None:
    assert label_cell("a\nb\u202ec").text == "a b\\u202ec"
    assert text_cell("  \n ", 10, 2) == EMPTY_ANSWER_CELL
    assert text_cell("abcdefghijkl\nsecond\nthird", 10, 2).text == "abcdefghi…\nsecond …"


def test_a_number_keeps_its_runs_and_what_is_missing_has_none() -> None:
    source = SourceRun("base", "stability")
    assert trusted_cell("1", number=1.0).with_sources(source).sources == (source,)
    assert MISSING_CELL.with_sources(source).sources == ()

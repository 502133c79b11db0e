"""A report on a world that means harm, outside of a browser: what it writes is text, whoever reads it."""

import csv
import json
import re
import unicodedata
from html.parser import HTMLParser
from pathlib import Path

import pyarrow.parquet
import pytest
from markdown_it import MarkdownIt

from permix.rendering.table import LABEL_WIDTH
from permix.report.builder import build_report
from permix.sanitize import escape_control, truncate
from tests.hostile_text import GOLDS, IDS, LABELS, MEGABYTE, TAGS, TEXTS, Reported, megabyte_run

OURS = {
    "h1", "h2", "h3", "h4", "p", "br", "sub", "strong", "em", "code", "blockquote", "ul", "ol", "li", "hr", "img", "a",
    "table", "thead", "tbody", "tr", "th", "td",
}  # fmt: skip
"""What a report's Markdown is made of."""


class Elements(HTMLParser):
    """Every start tag of a page with its attributes, and all text."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.text += data


def acting(text: str) -> set[str]:
    """The characters that hide, turn or steer what is shown; only line ends are innocent."""
    return {one for one in text if one != "\n" and unicodedata.category(one) in ("Cc", "Cf", "Cs", "Zl", "Zp")}


@pytest.fixture(scope="module")
def rendered(hostile_report: Reported) -> Elements:
    """report.md as a host that lets HTML through would render it."""
    text = (hostile_report.out / "report.md").read_text(encoding="utf-8")
    return Elements(MarkdownIt("commonmark", {"html": True}).enable(["table", "strikethrough"]).render(text))


def test_the_world_is_as_hostile_as_it_says() -> None:
    everything = "".join([*TEXTS.values(), *LABELS, *IDS, *TAGS, *GOLDS])
    assert acting(everything) >= set("\x00\x07\x1b\u202e\u2066\u200b\u2028\ufeff\ud83d")
    assert {tag for tag, _ in Elements("".join(TEXTS.values())).tags} - OURS >= {"script", "svg"}


@pytest.mark.slow
def test_markdown_holds_no_element_but_the_reports_own(rendered: Elements) -> None:
    assert {tag for tag, _ in rendered.tags} <= OURS
    assert {"table", "img", "sub"} <= {tag for tag, _ in rendered.tags}
    assert not [name for _, attributes in rendered.tags for name in attributes if name.startswith("on")]


def test_markdown_shows_only_pictures_of_the_report_and_links_nowhere(rendered: Elements, hostile_report: Reported) -> None:
    pictures = {attributes["src"] for tag, attributes in rendered.tags if tag == "img"}
    assert pictures
    assert all((hostile_report.out / str(name)).is_file() for name in pictures)
    links = {str(attributes.get("href")) for tag, attributes in rendered.tags if tag == "a"}
    assert all((hostile_report.out / link.partition("#")[0]).exists() for link in links)


def test_markdown_shows_what_was_hidden(rendered: Elements) -> None:
    for name in LABELS:
        assert truncate(escape_control(name), LABEL_WIDTH) in rendered.text
    for name in IDS:
        assert name in rendered.text
    assert "\\u202etxt.exe" in rendered.text or "\\u202e7" in rendered.text


def test_no_file_holds_a_character_that_acts(hostile_report: Reported) -> None:
    """Neither the page, whose scripts are ours and others', nor table.json, which holds labels as they are: it escapes them."""
    others = (".png", ".csv", ".parquet")
    texts = [path for path in sorted(hostile_report.out.rglob("*")) if path.is_file() and path.suffix not in others]
    assert {path.suffix for path in texts} == {".html", ".js", ".json", ".md", ".svg"}
    for path in texts:
        assert acting(path.read_text(encoding="utf-8")) == set(), path.name
    labels = [row["label"] for row in json.loads((hostile_report.out / "table.json").read_text(encoding="utf-8"))["rows"]]
    assert len(labels) == len(LABELS)
    for path in hostile_report.out.rglob("*.parquet"):
        values = [value for row in pyarrow.parquet.read_table(path).to_pylist() for value in row.values()]
        assert acting("".join(value for value in values if isinstance(value, str))) == set(), path.name


def test_the_terminal_is_told_in_plain_text(hostile_report: Reported) -> None:
    assert acting(hostile_report.terminal) == set()
    assert "__proto__" in hostile_report.terminal


def test_lines_of_a_megabyte_are_cut(tmp_path: Path) -> None:
    build_report([megabyte_run(tmp_path / "run")], tmp_path / "out")
    report = (tmp_path / "out" / "report.md").read_text(encoding="utf-8")
    assert "W" * 50 in report
    assert len(report) < MEGABYTE / 10


def test_no_cell_of_a_table_is_a_formula(hostile_report: Reported) -> None:
    """A spreadsheet reads what begins so as a formula; numbers may be negative."""
    tables = sorted((hostile_report.out / "tables").glob("*.csv"))
    assert len(tables) >= 5
    cells = [cell for path in tables for line in csv.reader(path.open(newline="", encoding="utf-8")) for cell in line]
    assert {"'=a/b", "'=1+1", "'@x", "'-1"} <= set(cells)
    assert [cell for cell in cells if cell[:1] in "=+-@\t\r" and cell and not re.fullmatch(r"-?\d+(\.\d+)?(e-?\d+)?", cell)] == []
    assert acting("".join(cells)) == set()

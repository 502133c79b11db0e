"""The page as HTML: its policy, its data, its tables; what others wrote is text in all of them. Browsers try the rest."""

import base64
import hashlib
import json
import re
from pathlib import Path
from typing import Any

from markupsafe import Markup

from permix.rendering.table import SourceRun, TableCell, estimate_cell, label_cell, tabulate, trusted_cell
from permix.rendering.theme import PALETTE, styles_for
from permix.report.claim import NamedEstimate, ReportClaim, ResultCard
from permix.report.document import Document, DocumentSection, Figure
from permix.report.html.page import (
    RunIndex,
    _PageView,
    card_views,
    content_security_policy,
    embed_json,
    render_inline,
    render_prose,
    write_page,
)
from permix.report.html.values import D3_SYMBOLS, model_looks, svg_dash
from permix.types import Estimate

EVIL = "<script>alert(1)</script>"
PNG = b"\x89PNG\r\n\x1a\n"


class Told(RunIndex):
    """Two runs, without any run directory."""

    def __init__(self) -> None:
        self.facts = [{"label": name, "kind": "stability", "command": EVIL} for name in ("base", EVIL)]
        self._index_of = {SourceRun("base", "stability"): 0, SourceRun(EVIL, "stability"): 1}


def document() -> Document:
    half = Estimate(value=0.5, low=0.25, high=0.75, n=8)
    lines = [
        [
            label_cell("base"),
            trusted_cell(str(half), "n = 8", half).with_sources(SourceRun("base", "stability"), SourceRun(EVIL, "stability")),
        ],
        [label_cell(EVIL), trusted_cell("–")],
    ]
    main = tabulate("models", ["model", "PSS"], lines)
    none = [TableCell("no persona", trusted_markup=True, emphasis="*"), trusted_cell("1", number=1.0)]
    people = tabulate("personas", ["persona", "base"], [none, [label_cell("sailor"), trusted_cell("2", number=2.0)]])
    charts = [Figure("heatmap-1.png", "one", "grid"), Figure("heatmap-2.png", "two", "grid"), Figure("learnt.png", "c")]
    return Document(
        "Title", "", ReportClaim(f"{EVIL.replace('<', '&#60;')} stands.", "By n = 8."), "", "- *a*", main, "- n",
        (Figure("t.png", "t", "tradeoff"),),
        (
            DocumentSection("personas", "Accuracy by persona", "Note.", (*charts, people)),
            DocumentSection("completions", "Completions", "", ("only on paper",), "completions"),
        ),
    )  # fmt: skip


def written(folder: Path, **more: Any) -> str:
    (folder / "learnt.png").write_bytes(PNG)
    options: dict[str, Any] = {
        "charts": {"tradeoff": {"x": EVIL}}, "looks_of_models": model_looks(styles_for(["base"]), {}), "runs": Told(),
        "tags": {"sailor": ["sea", EVIL]}, "transcripts": {"grids": {"base": {}}, "sheets": [{}]},
    }  # fmt: skip
    write_page(folder / "index.html", document(), **(options | more))
    return (folder / "index.html").read_text()


def test_what_others_wrote_is_never_markup(tmp_path: Path) -> None:
    page = written(tmp_path)
    assert "<script>alert" not in page
    assert page.count("<script") == 2  # the data and the script
    assert page.count("</script") == 2
    assert not re.search(r"<[^>]*\son\w+=", page.replace(script_of(page), ""))


def script_of(page: str) -> str:
    return page.partition("<script>")[2].rpartition("</script>")[0]


def test_the_policy_allows_this_script_and_nothing_else(tmp_path: Path) -> None:
    page = written(tmp_path)
    digest = base64.b64encode(hashlib.sha256(script_of(page).encode()).digest()).decode()
    said = page.partition('Content-Security-Policy" content="')[2].partition('"')[0].replace("&#39;", "'")
    assert said == content_security_policy(script_of(page))
    rules = dict(rule.strip().split(" ", 1) for rule in said.split(";"))
    assert rules["script-src"] == f"'sha256-{digest}' 'self'"
    assert rules["default-src"] == rules["connect-src"] == "'none'"
    assert "unsafe-inline" not in rules["script-src"]


def test_data_ends_no_script_and_reads_back() -> None:
    value = {"a": f"{EVIL}<!--\u2028\u2029", "n": None}
    written = embed_json(value)
    assert "<" not in written
    assert "\u2028" not in written
    assert json.loads(written) == value


def test_prose_is_our_markdown_and_nothing_foreign() -> None:
    assert render_prose("**a** &#60;b&#62;") == Markup("<p><strong>a</strong> &lt;b&gt;</p>\n")
    assert "<b>" not in render_prose("x <b>y</b>")
    assert "<img" not in render_prose("![x](y.png)")
    assert "<a " not in render_prose("[x](javascript:alert(1)) <https://x.example>")
    assert render_inline("Personas cost &#42;nothing&#42;") == "Personas cost *nothing*"


def test_a_number_names_its_runs_and_a_missing_one_none(tmp_path: Path) -> None:
    page = written(tmp_path)
    assert page.count("data-runs=") == 1
    assert 'data-runs="0 1"' in page
    assert 'data-value="0.5"' in page
    assert "PSS, base: 0.50 [0.25, 0.75] (n = 8)" in page


def test_a_chart_is_shown_once_and_a_figure_without_one_is_a_picture(tmp_path: Path) -> None:
    page = written(tmp_path)
    assert page.count('data-chart="grid"') == 1
    assert page.count('data-chart="tradeoff"') == 1
    assert base64.b64encode(PNG).decode() in page
    assert page.count('data-chart="completions"') == 1
    assert "only on paper" not in page


def test_without_transcripts_a_section_keeps_its_parts(tmp_path: Path) -> None:
    for file in ("heatmap-1.png", "heatmap-2.png"):
        (tmp_path / file).write_bytes(PNG)
    page = written(tmp_path, transcripts={"grids": {}, "sheets": []})
    assert "only on paper" in page
    assert 'data-chart="grid"' not in page


def test_the_row_without_persona_stays_first_and_personas_carry_their_tags(tmp_path: Path) -> None:
    page = written(tmp_path)
    assert page.count("<tr data-fixed>") == 1
    assert '<select><option value="">all</option><option>&lt;script&gt;' in page
    assert 'data-tags="[&#34;sea&#34;,' in page


def test_cards_have_bars_of_one_scale() -> None:
    def card(topic: str, low: float, high: float, value: float, **more: Any) -> ResultCard:
        values = tuple(NamedEstimate(name, Estimate(value=0.5, low=0.2, high=0.8, n=20)) for name in ("a<b>", "b"))
        return ResultCard(topic, topic, values=values, difference=Estimate(value=value, low=low, high=high, n=20), **more)

    wide, narrow, judge = card_views(
        [
            card("stability", -0.5, 0.25, -0.25, outcome="no difference shown"),
            card("accuracy", 0.05, 0.1, 0.075, outcome="better"),
            card("character", -2.0, -1.0, -1.5, outcome="worse", limits=(1.0, 5.0)),
        ]
    )
    assert (wide["bar"]["low"], wide["bar"]["width"], wide["bar"]["value"], wide["bar"]["mark"]) == (0, 75, 25, 50)
    assert (narrow["bar"]["low"], narrow["bar"]["width"]) == (55, 5)
    assert judge["bar"]["ends"] == ("−2.00 worse", "0", "better +2.00")  # half of the range, as in the first card
    assert (judge["bar"]["low"], judge["bar"]["width"]) == (0, 25)
    assert [one["tone"] for one in (wide, narrow, judge)] == ["plain", "better", "worse"]
    assert wide["numbers"] == [{"name": "a<b>", "text": "0.50"}, {"name": "b", "text": "0.50"}]
    assert wide["difference"] == "−0.250 [−0.50,\u00a0+0.25]"


def test_the_card_of_one_model_shows_its_value_within_the_limits() -> None:
    value, chance = Estimate(value=0.5, low=0.25, high=0.75, n=20), Estimate(value=0.125, n=20)
    shown, unmeasured = card_views(
        [
            ResultCard("character", "Character", outcome="personas are distinguished", values=(NamedEstimate("a", value),),
                       mark=NamedEstimate("chance", chance)),
            ResultCard("accuracy", "Accuracy"),
        ]
    )  # fmt: skip
    assert shown["bar"] == {"low": 25, "width": 50, "value": 50, "mark": 12.5, "ends": ("0", "", "1")}
    assert shown["numbers"] == [{"name": "a", "text": "0.50 [0.25,\u00a00.75]"}]
    assert shown["mark"] == "chance 0.12"
    assert (unmeasured["outcome"], unmeasured["bar"], unmeasured["numbers"]) == ("not measured", None, [])


def test_folded_columns_come_second_and_both_tables_name_the_rows(tmp_path: Path) -> None:
    half = Estimate(value=0.5, low=0.25, high=0.75, n=8)
    lines = [[label_cell(name), estimate_cell(half), trusted_cell("7", number=7.0)] for name in ("base", EVIL)]
    main = tabulate("models", ["model", "PSS", "tokens"], lines, folded=["tokens"])
    view = _PageView(Told(), {}, set(), tmp_path)
    front, rest = view.split_table(main)
    assert [[one["text"] for one in part["headings"]] for part in (front, rest)] == [["model", "PSS"], ["model", "tokens"]]
    assert (front["id"], rest["id"]) == ("models", "models-rest")
    assert [one["note"] for one in front["headings"]] == ["", "n = 8"]
    assert [line["cells"][1]["note"] for line in front["lines"]] == ["", ""]
    assert len(view.split_table(main._replace(folded=frozenset()))) == 1


def test_there_is_nothing_to_choose_with_one_method(tmp_path: Path) -> None:
    assert 'id="choose-models"' not in written(tmp_path)
    two = model_looks(styles_for(["base", "other"]), {})
    assert 'id="choose-models"' in written(tmp_path, looks_of_models=two)


def test_every_look_of_print_has_one_on_the_page() -> None:
    shown = model_looks({str(place): style for place, style in enumerate(PALETTE)}, {"1": "RLVR"})
    assert len({one["symbol"] for one in shown}) == len({style.marker for style in PALETTE}) == len(D3_SYMBOLS)
    assert len({one["dark"] for one in shown}) == len({one["dash"] for one in shown}) == len(PALETTE)
    assert [one["method"] for one in shown[:2]] == ["0", "RLVR"]
    assert svg_dash((0, (5, 1.5))) == "9 2.7"

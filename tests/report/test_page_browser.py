"""The whole page in a real browser, on a world that means harm: it loads in silence, nothing in it acts, all of it can be used.

Every page here is watched: a test fails at its end when a page wrote an error to its console, broke its policy, or asked for
anything but files (tests/browser.py).
"""

import re
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from PIL import Image

from permix.rendering.table import LABEL_WIDTH
from permix.report.builder import build_report
from permix.sanitize import escape_control, truncate
from permix.types import Estimate
from tests.browser import PATIENCE_MS, PHONE, WIDE, contrast, grave_findings, settle
from tests.hostile_text import IDS, LABELS, TAGS, Reported
from tests.seeded import write_study

pytestmark = pytest.mark.slow

if TYPE_CHECKING:
    from playwright.sync_api import Locator, Page

    from tests.browser import OpenPage


@pytest.fixture(scope="module")
def study_report(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The report on base, RLVR and PerMix-RLVR with two training seeds each."""
    folder = tmp_path_factory.mktemp("study")
    build_report([write_study(folder / "runs")], folder / "out")
    return folder / "out"


SECTIONS = (
    "models", "personas", "heat-map", "best-of-k", "identifiability", "judges", "training", "completions", "provenance",
)  # fmt: skip
PERSONAS = "#table-personas"
FORBIDDEN = "script[src], iframe, object, embed, base, link, meta[http-equiv=refresh], [onload], [onerror], [onclick], [onfocus]"
DRAWN = "[...document.querySelectorAll('[data-chart]')].every((one) => 'drawn' in one.dataset && one.childElementCount)"


def until(page: "Page", expression: str, arg: object = None) -> None:
    """Wait for it from outside: inside the page, the policy forbids to evaluate a string."""
    deadline = time.monotonic() + PATIENCE_MS / 1000
    while not page.evaluate(expression, arg):
        assert time.monotonic() < deadline, expression
        page.wait_for_timeout(20)


def show(page: "Page", report: Reported) -> "Page":
    """The page, with every chart drawn: they are when they come near."""
    page.goto((report.out / "index.html").as_uri())
    page.wait_for_selector("html[data-ready]", state="attached")
    for chart in page.locator("[data-chart]").all():
        chart.scroll_into_view_if_needed()
    until(page, DRAWN)
    page.evaluate("scrollTo(0, 0)")
    return page


@pytest.fixture
def shown(page: "Page", hostile_report: Reported) -> "Page":
    return show(page, hostile_report)


def column(page: "Page", table: str, place: int) -> list[str]:
    """The visible cells of a column, fixed rows left out."""
    return page.locator(f"{table} tbody tr:not([data-fixed]):visible > :nth-child({place})").all_inner_texts()


def heading(page: "Page", table: str, place: int) -> "Locator":
    return page.locator(f"{table} thead th").nth(place - 1)


def colour(page: "Page", what: str, where: str = "body") -> list[float]:
    found = page.locator(where).first.evaluate("(element, what) => getComputedStyle(element)[what]", what)
    return [float(part) for part in re.findall(r"[\d.]+", found)]


def test_every_section_is_there_and_every_chart_is_drawn(shown: "Page") -> None:
    there = shown.locator("main > section[id]").evaluate_all("(all) => all.map((one) => one.id)")
    assert there[0] == "first"
    assert set(SECTIONS) <= set(there)
    assert shown.locator("[data-chart]").count() >= 7
    assert shown.locator("nav a").count() == len(there) - 1


def test_nothing_of_the_hostile_world_acts(shown: "Page", hostile_report: Reported) -> None:
    assert shown.evaluate("window.pwned") is None
    assert shown.evaluate("({}).polluted") is None
    assert shown.title() == "Stability and fidelity under personas"
    assert shown.url == (hostile_report.out / "index.html").as_uri()
    assert shown.locator("script").count() == 2  # the data and the program
    assert shown.locator(FORBIDDEN).count() == 0
    links = shown.locator("a[href]").evaluate_all("(all) => all.map((one) => one.getAttribute('href'))")
    assert all(re.match(r"#|tables/[\w-]+\.csv$|report\.md$|table\.json$", link) for link in links)
    images = shown.locator("img").evaluate_all("(all) => all.map((one) => one.src)")
    assert all(image.startswith("data:image/png;base64,") for image in images)


def test_what_is_hostile_is_shown_as_text_and_what_was_hidden_as_codes(shown: "Page") -> None:
    text = shown.locator("main").evaluate("(main) => main.textContent")
    for label in LABELS:
        assert truncate(escape_control(label), LABEL_WIDTH) in text
    for name in IDS:
        assert name in text
    assert "\\u202e" in text
    assert not re.search("[\x00-\x08\x0b-\x1f\x7f-\x9f\u200b-\u200f\u202a-\u202e\u2028\u2029\u2060-\u2069\ufeff]", text)


def test_a_table_is_sorted_by_a_press_and_says_so(shown: "Page") -> None:
    button = heading(shown, PERSONAS, 2).locator("button")
    before = column(shown, PERSONAS, 1)
    button.click()
    assert heading(shown, PERSONAS, 2).get_attribute("aria-sort") == "descending"
    falling = [float(text.split()[0]) for text in column(shown, PERSONAS, 2)]
    assert falling == sorted(falling, reverse=True)
    button.click()
    assert heading(shown, PERSONAS, 2).get_attribute("aria-sort") == "ascending"
    rising = [float(text.split()[0]) for text in column(shown, PERSONAS, 2)]
    assert rising == sorted(rising)
    heading(shown, PERSONAS, 1).locator("button").press("Enter")  # by keyboard, and by name
    assert heading(shown, PERSONAS, 2).get_attribute("aria-sort") is None
    assert sorted(column(shown, PERSONAS, 1)) == sorted(before)


def test_a_table_is_filtered_by_tag_and_by_words(shown: "Page") -> None:
    form = shown.locator(f"{PERSONAS}-filter")
    assert set(form.locator("option").all_inner_texts()) == {"all", *TAGS}
    form.locator("select").select_option(TAGS[0])
    assert len(column(shown, PERSONAS, 1)) == 6  # 12 personas with two of four tags each
    assert form.locator("output").inner_text() == "6 of 12 shown"
    form.locator("select").select_option("")
    form.locator("input").fill("a b")
    assert [text.split("\n")[0] for text in column(shown, PERSONAS, 1)] == ["a b"]


def test_a_number_says_where_it_comes_from_and_focus_goes_back(shown: "Page") -> None:
    number = shown.locator("#models table button.number").first
    number.focus()
    number.press("Enter")
    told = shown.locator(".popover")
    assert "permix '<script>window.pwned=1</script>'" in told.inner_text()
    assert number.get_attribute("aria-expanded") == "true"
    shown.keyboard.press("Escape")
    assert told.count() == 0
    assert number.evaluate("(button) => button === document.activeElement")


def test_a_transcript_opens_by_pointer(shown: "Page") -> None:
    canvas = shown.locator("#heat-map .heat-canvas")
    box = canvas.bounding_box()
    assert box is not None
    canvas.click(position={"x": box["width"] / 2, "y": box["height"] / 2})
    dialog = shown.locator("dialog[open]")
    until(shown, "document.querySelector('dialog[open] h2').textContent.includes('×')")
    until(shown, "document.querySelector('dialog[open] article, dialog[open] section') !== null")
    assert dialog.count() == 1


def test_transcripts_are_walked_by_keyboard_alone(shown: "Page") -> None:
    shown.locator("#heat-map .heat-canvas").focus()
    shown.keyboard.press("ArrowDown")
    shown.keyboard.press("Enter")
    title = shown.locator("dialog[open] h2")
    until(shown, "document.querySelector('dialog[open] h2').textContent.includes('×')")
    seen = {title.inner_text()}
    for key in ("ArrowRight", "ArrowRight", "Shift+ArrowRight"):
        before = title.inner_text()
        shown.keyboard.press(key)
        until(shown, "(was) => document.querySelector('dialog[open] h2').textContent !== was", before)
        seen.add(title.inner_text())
    assert len(seen) == 4
    shown.keyboard.press("Escape")
    assert shown.locator("dialog[open]").count() == 0
    assert shown.locator("#heat-map .heat-canvas").evaluate("(canvas) => canvas === document.activeElement")


def test_transcripts_of_a_hostile_world_are_text(shown: "Page") -> None:
    """Through all questions of one persona: more than twenty texts, none of which acts."""
    shown.locator("#heat-map .heat-canvas").focus()
    shown.keyboard.press("ArrowDown")
    shown.keyboard.press("Home")
    shown.keyboard.press("Enter")
    dialog = shown.locator("dialog[open]")
    text = ""
    for _ in range(24):
        until(shown, "document.querySelector('dialog[open] .transcript-body').innerText.length > 200")
        assert dialog.locator("script, img, iframe, svg, form, style, a[href^='javascript']").count() == 0
        text += dialog.inner_text()
        if shown.get_by_role("button", name="question ›").is_disabled():
            break
        before = dialog.locator("h2").inner_text()
        shown.keyboard.press("ArrowRight")
        until(shown, "(was) => document.querySelector('dialog[open] h2').textContent !== was", before)
    assert "<script>window.pwned=1</script>" in text
    assert "\\x1b[31mred" in text
    assert shown.evaluate("window.pwned") is None


def test_a_model_that_is_unticked_leaves_the_charts(shown: "Page") -> None:
    legend = shown.locator("#choose-models")
    assert legend.locator("input").count() == len(LABELS)
    before = shown.locator("[data-chart=lottery]").inner_html()
    legend.locator("input").nth(1).uncheck()
    until(shown, "(was) => document.querySelector('[data-chart=lottery]').innerHTML !== was", before)


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_nobody_is_shut_out(open_page: "OpenPage", hostile_report: Reported, scheme: str) -> None:
    page = show(open_page(color_scheme=scheme), hostile_report)
    assert grave_findings(page) == []
    page.locator("#heat-map .heat-canvas").focus()
    page.keyboard.press("Enter")
    page.wait_for_selector("dialog[open] .transcript-body :text('x')")
    assert grave_findings(page) == []


def test_the_dark_page_is_dark_and_can_be_read(open_page: "OpenPage", hostile_report: Reported) -> None:
    papers = []
    for scheme in ("light", "dark"):
        page = show(open_page(color_scheme=scheme), hostile_report)
        papers.append(colour(page, "backgroundColor", "html"))
        assert contrast(papers[-1], colour(page, "color")) >= 7
    assert min(papers[0][:3]) > 200
    assert max(papers[1][:3]) < 60


def test_the_theme_can_be_chosen_against_the_system(shown: "Page") -> None:
    light, button = colour(shown, "backgroundColor", "html"), shown.locator("#theme")
    for expected in ("light", "dark", "system"):
        button.click()
        assert button.inner_text() == f"theme: {expected}"
        assert (colour(shown, "backgroundColor", "html") == light) == (expected != "dark")


def test_a_phone_scrolls_down_and_never_sideways(open_page: "OpenPage", hostile_report: Reported) -> None:
    page = show(open_page(PHONE), hostile_report)
    assert page.evaluate("document.documentElement.scrollWidth") <= PHONE[0]
    page.locator("#heat-map .heat-canvas").focus()
    page.keyboard.press("Enter")
    box = page.locator("dialog[open]").bounding_box()
    assert box is not None
    assert box["width"] <= PHONE[0]


@pytest.mark.parametrize("size", [WIDE, PHONE])
def test_sentence_cards_and_figure_are_on_the_first_screen(
    open_page: "OpenPage", study_report: Path, size: tuple[int, int]
) -> None:
    page = open_page(size)
    page.goto((study_report / "index.html").as_uri())
    until(page, "document.querySelector('[data-chart=tradeoff] svg') !== null")
    claim = "PerMix-RLVR is better than RLVR in character; no difference is shown in stability or accuracy."
    assert page.locator("#claim").inner_text() == claim
    cards = page.locator("#first .card")
    assert cards.locator("h2").evaluate_all("(all) => all.map((one) => one.firstChild.textContent.trim())") == [
        "Stability (PSS)", "Character (identifiability)", "Accuracy (mean over personas)",
    ]  # fmt: skip
    assert cards.locator(".outcome").all_inner_texts() == ["no difference shown", "better", "no difference shown"]
    bottoms = [box["y"] + box["height"] for one in cards.all() if (box := one.bounding_box()) is not None]
    assert len(bottoms) == 3
    assert max(bottoms) < size[1]
    figure = page.locator("[data-chart=tradeoff] svg").first.bounding_box()
    assert figure is not None
    assert figure["y"] < size[1] - 150  # a good part of it, at least
    assert page.evaluate("document.documentElement.scrollWidth") <= size[0]
    for card, is_better in zip(cards.all(), (False, True, False), strict=True):
        bar = card.locator(".range").bounding_box()
        axis = card.locator(".axis").bounding_box()
        assert bar is not None
        assert axis is not None
        assert (bar["x"] > axis["x"] + axis["width"] / 2) == is_better  # to the right of 0


def test_the_table_of_models_fits_and_its_headings_do_not_break(open_page: "OpenPage", study_report: Path) -> None:
    page = open_page(WIDE)
    page.goto((study_report / "index.html").as_uri())
    until(page, "'ready' in document.documentElement.dataset")
    table = page.locator("#table-methods")
    assert table.evaluate("(one) => one.parentElement.scrollWidth <= one.parentElement.clientWidth")
    heights = table.locator("thead button").evaluate_all("(all) => all.map((one) => one.getBoundingClientRect().height)")
    assert max(heights) < 30  # one line, with its arrow
    assert page.locator("#models > .sideways").first.is_hidden()
    page.set_viewport_size({"width": PHONE[0], "height": PHONE[1]})
    until(page, "!document.querySelector('#models > .sideways').hidden")


def test_on_paper_every_chart_is_drawn_and_nothing_is_cut(open_page: "OpenPage", study_report: Path, tmp_path: Path) -> None:
    """Without scrolling: a reader prints the page that was just opened."""
    page = open_page(WIDE)
    page.goto((study_report / "index.html").as_uri())
    until(page, DRAWN)
    assert page.locator("main details[open]").count() == 0
    page.emulate_media(media="print")
    page.evaluate("dispatchEvent(new Event('beforeprint'))")
    assert page.locator("main details:not([open])").count() == 0
    until(page, "!document.querySelector('.heat-canvas') || document.querySelector('.heat-canvas').height > 50")
    cut = "[...document.querySelectorAll('.heat-scroller')].filter((one) => one.scrollHeight > one.clientHeight + 1).length"
    assert page.evaluate(cut) == 0
    assert page.locator(".heat-controls:visible").count() == 0
    page.evaluate("dispatchEvent(new Event('afterprint'))")
    assert page.locator("main details[open]").count() == 0
    assert len(page.pdf(path=tmp_path / "page.pdf")) > 10_000


def test_numbers_of_charts_have_the_decimals_of_tables(shown: "Page") -> None:
    cases = [
        Estimate(value=0.4444, low=low, high=high, n=n)
        for low, high, n in ((0.4, 0.5, 3), (0.4, 0.51, 9999), (None, None, 399), (None, None, 400), (0.4444, 0.4444, 1))
    ]
    cases += [Estimate(value=-0.001, low=-0.3, high=0.2, n=5), Estimate(value=None, n=0)]
    texts = shown.evaluate("(all) => all.map(permix.estimate)", [one.model_dump() for one in cases])
    assert texts == [str(one) for one in cases]


def test_who_wants_no_motion_gets_none(open_page: "OpenPage", hostile_report: Reported) -> None:
    page = show(open_page(reduced_motion="reduce"), hostile_report)
    moving = "document.getAnimations().filter((one) => one.playState === 'running').length"
    assert page.evaluate(moving) == 0
    assert page.evaluate("getComputedStyle(document.documentElement).scrollBehavior") == "auto"


def test_on_paper_nothing_is_dark_and_no_control_is_left(open_page: "OpenPage", hostile_report: Reported) -> None:
    page = show(open_page(color_scheme="dark"), hostile_report)
    page.emulate_media(media="print", color_scheme="light")
    assert contrast(colour(page, "color"), (255, 255, 255)) >= 7
    assert not page.locator("#theme").is_visible()
    assert not page.locator(f"{PERSONAS}-filter").is_visible()
    assert page.locator("#heat-map .heat-canvas").is_visible()


def test_every_section_can_be_photographed(open_page: "OpenPage", hostile_report: Reported, tmp_path: Path) -> None:
    """They are looked at by people; here each must show something: letters alone have ten greys."""
    views: list[tuple[str, Any]] = [("light", WIDE), ("dark", PHONE)]
    for scheme, size in views:
        page = show(open_page(size, color_scheme=scheme), hostile_report)
        for section in page.locator("main > section[id]").all():
            section.scroll_into_view_if_needed()
            settle(page.context)
            path = tmp_path / f"{section.get_attribute('id')}-{scheme}-{size[0]}.png"
            section.screenshot(path=path)
            assert len(Image.open(path).convert("RGB").getcolors(1 << 24) or []) > 10

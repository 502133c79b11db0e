"""The heat map and the transcripts in a real browser, from disk: by pointer, by keyboard, by link, and with hostile text."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("playwright", reason="no Playwright: it drives the browser")

from playwright.sync_api import expect

from permix.report.runs import collect_models
from permix.types import Cell, Message
from tests.bare_page import write_bare_page
from tests.report.test_build import fidelity_run, write_run
from tests.report.test_transcripts import CONFIG, HOSTILE, answered


def grid(model: str, right: dict[str, str]) -> Iterator[Cell]:
    """Persona -> "10-": right, wrong, not scored on q0, q1, q2."""
    for persona, scores in right.items():
        for q, score in enumerate(scores):
            text = f"{model} as {persona} on q{q} {HOSTILE}"
            yield answered(persona or None, f"q{q}", text, {"1": True, "0": False, "-": None}[score])


def worded(question: str, said: str, **fields: Any) -> Cell:
    """The answer of persona a to a question in these words."""
    return answered("a", question, "x", messages=(Message(role="user", content=said),), **fields)


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two models. Shown order of the first: none, clerk, troll; q0 (two right), q1 (one), q2 (none scored with persona)."""
    folder = tmp_path_factory.mktemp("heat")
    asked = {"persona_ids": ["troll", "clerk"], "question_ids": ["q0", "q1", "q2"], "samples": 1}
    for label, scores in (
        ("one", {"": "101", "troll": "10-", "clerk": "11-"}),
        ("two", {"": "111", "troll": "111", "clerk": "01-"}),
    ):
        run = write_run(folder / label, CONFIG | {"label": label}, grid(label, scores), {"default_system": "Be kind."})
        (run / "grid.json").write_text(json.dumps(asked))
    fidelity_run(folder / "fidelity", "one")
    return write_bare_page(collect_models([folder]), folder / "out")


@pytest.fixture
def page(browser: Any, report: Path) -> Iterator[Any]:
    """The page when all is drawn; a message on its console fails the test unless the test took it."""
    opened = browser.new_page(viewport={"width": 1000, "height": 800})
    opened.said = []
    opened.on("console", lambda message: opened.said.append(message.text))
    opened.on("pageerror", lambda error: opened.said.append(str(error)))
    opened.on("dialog", lambda dialog: opened.said.append("a dialog opened"))
    open_page(opened, report)
    yield opened
    said = opened.said
    opened.close()
    assert said == []


def open_page(page: Any, path: Path, hash: str = "") -> None:
    page.goto("about:blank")
    page.goto(path.as_uri() + hash)
    page.wait_for_selector("[data-chart=grid][data-drawn]")
    page.wait_for_selector("[data-chart=completions][data-drawn]")


def readout(page: Any) -> str:
    return str(page.text_content(".heat-readout"))


def transcript(page: Any) -> list[str]:
    """Title of the dialog, then each model's column."""
    page.wait_for_selector("dialog[open] article")
    return [page.text_content("#transcript-title"), *page.locator("dialog article").all_text_contents()]


def shows(page: Any, selector: str, text: str) -> None:
    """Wait until it does."""
    expect(page.locator(selector)).to_have_text(text)


def press(page: Any, *keys: str) -> None:
    for key in keys:
        page.keyboard.press(key)


@pytest.mark.slow
def test_by_keyboard_to_a_transcript_and_back(page: Any, report: Path) -> None:
    assert readout(page) == "no persona × q0: right (1)"
    page.focus(".heat-canvas")
    press(page, "ArrowDown", "ArrowRight")
    assert readout(page) == page.text_content("#said") == "clerk × q1: right (1)"
    press(page, "ArrowDown")
    assert readout(page) == "troll × q1: wrong (0)"
    press(page, "End", "ArrowRight")
    assert readout(page) == "troll × q2: no score"
    press(page, "Home", "PageUp")
    assert readout(page) == "no persona × q0: right (1)"
    press(page, "Control+End", "Enter")
    title, mine, other = transcript(page)
    assert title == "troll × q2"
    assert mine.startswith("one– not scored: timed out")
    assert other.startswith("two✓ right")
    press(page, "Escape")
    assert page.evaluate("document.activeElement.className") == "heat-canvas"
    expect(page).to_have_url(report.as_uri())


def test_a_transcript_is_text_alone(page: Any) -> None:
    page.focus(".heat-canvas")
    press(page, "ArrowDown", "Enter")
    _, mine, _ = transcript(page)
    assert "one as clerk on q0 </script><script>alert(1)</script> \\x1b[31m \\u202e\\u200b" in mine
    assert page.locator("dialog script").count() == 0
    asked = page.text_content(".transcript-asked")
    assert asked == "System promptYou are clerk.AskedWhat is q0?"
    assert "Gold4" in mine
    assert "Completion tokens2" in mine


def test_steps_within_the_dialog_by_key_and_by_button(page: Any) -> None:
    page.focus(".heat-canvas")
    press(page, "Enter")
    assert transcript(page)[0] == "no persona × q0"
    assert "the chat template then adds its own: “Be kind.”" in page.text_content(".transcript-asked")
    press(page, "ArrowRight")
    shows(page, "#transcript-title", "no persona × q1")
    press(page, "Shift+ArrowRight")
    shows(page, "#transcript-title", "clerk × q1")
    page.get_by_role("button", name="‹ question", exact=True).click()
    shows(page, "#transcript-title", "clerk × q0")
    assert page.get_by_role("button", name="‹ question", exact=True).is_disabled()
    press(page, "Escape")
    assert readout(page) == "clerk × q0: right (1)"  # the map went along


def test_pointer_reads_out_and_opens(page: Any) -> None:
    box = page.locator(".heat-canvas").bounding_box()
    page.mouse.move(box["x"] + 200, box["y"] + 55)  # second row of personas, first column
    assert readout(page) == "troll × q0: right (1)"
    page.mouse.click(box["x"] + 200, box["y"] + 10)
    assert transcript(page)[0] == "no persona × q0"


def test_events_without_a_place_choose_no_cell(page: Any) -> None:
    before = readout(page)
    page.evaluate("""() => {
        const canvas = document.querySelector(".heat-canvas");
        for (const type of ["pointermove", "click", "pointerleave"]) canvas.dispatchEvent(new Event(type, { bubbles: true }));
    }""")
    assert readout(page) == before


def test_labelled_fields_are_another_way_in(page: Any) -> None:
    page.get_by_label("Go to persona").select_option("troll")
    page.get_by_label("Go to question").fill("q1")
    assert readout(page) == "troll × q1: wrong (0)"
    page.get_by_label("Go to question").fill("no such question")
    press(page, "Tab")
    assert page.text_content("#said") == "There is no question no such question."
    page.get_by_label("Model").select_option("two")
    shows(page, ".heat-readout", "troll × q1: right (1)")
    page.get_by_label("Show").select_option("one")  # two less one
    page.get_by_label("Go to question").fill("q0")
    shows(page, ".heat-readout", "troll × q0: 0.00 against one")
    page.get_by_label("Go to persona").select_option("clerk")
    shows(page, ".heat-readout", "clerk × q0: −1.00 against one")


def test_an_address_opens_its_cell(page: Any, report: Path) -> None:
    open_page(page, report, "#cell=stability/two/troll/q2")
    title, mine, other = transcript(page)
    assert (title, mine[:3], other[:3]) == ("troll × q2", "two", "one")
    assert page.get_attribute("dialog a", "href") == "#cell=stability/two/troll/q2"
    open_page(page, report, "#cell=stability/two/nobody/q2")
    shows(page, "#said", "The address names a cell that this report does not have.")
    open_page(page, report, "#cell=%/%")
    assert page.locator("dialog[open]").count() == 0


def test_a_missing_file_is_said_in_words(page: Any, report: Path) -> None:
    gone = report.parent / "cells" / "stability-0-0-0.js"
    held = gone.read_bytes()
    try:
        gone.unlink()
        open_page(page, report, "#cell=stability/one/troll/q0")
        _, mine, other = transcript(page)
        assert "cells/stability-0-0-0.js could not be loaded" in mine
        assert "keep both together" in mine
        assert other.startswith("two✓ right")
        gone.write_text("1;\n")
        open_page(page, report, "#cell=stability/one/troll/q0")
        assert "does not contain the tile of its name" in transcript(page)[1]
        gone.write_text('permix.cells("stability-0-0-0","H4sI");\n')
        open_page(page, report, "#cell=stability/one/troll/q0")
        assert "is damaged" in transcript(page)[1]
        gone.write_bytes(held.replace(b"stability-1", b"stability-0"))
    finally:
        gone.write_bytes(held)
    assert page.said
    assert all("ERR_FILE_NOT_FOUND" in one for one in page.said)
    page.said.clear()


def test_completions_side_by_side(page: Any) -> None:
    assert [one[:3] for one in page.locator(".completions section:first-child article").all_text_contents()] == ["one", "two"]
    page.get_by_label("Asked").select_option("open")
    expect(page.locator(".completions article")).to_have_count(3)
    first = page.locator(".completions section").first.text_content()
    assert first.startswith("q0What did you do on day 0?one")
    assert "open-ended" in first
    page.click("text=next questions ›")
    page.wait_for_selector("text=4 to 6 of 20")
    page.locator("text=full transcript").first.click()
    assert transcript(page)[0] == "p0 × q3"


def test_a_third_reads_as_a_third(browser: Any, tmp_path: Path) -> None:
    cells = [answered(persona, "q0", "x", sample == 0, sample=sample) for persona in (None, "a") for sample in range(3)]
    run = write_run(tmp_path / "run", CONFIG | {"samples": 3}, cells)
    page = browser.new_page()
    open_page(page, write_bare_page(collect_models([run]), tmp_path / "out"))
    shows(page, ".heat-readout", "no persona × q0: mean score 0.33")
    page.close()


def test_completions_of_models_asked_in_other_words(browser: Any, tmp_path: Path) -> None:
    """q0 was asked in words of each model's own, q1 in the same; the second model has two samples under two templates."""
    runs = [
        write_run(tmp_path / "one", CONFIG | {"label": "one"}, [worded("q0", "Add 2 and 2."), worded("q1", "Again?")]),
        write_run(
            tmp_path / "two", CONFIG | {"label": "two", "samples": 2, "templates": ["you_are", "Be {persona}."]},
            [worded(q, said, template="t2", sample=1) for q, said in (("q0", "What is 2 + 2?"), ("q1", "Again?"))],
        ),
    ]  # fmt: skip
    templates = {"t1": "You are {persona}.", "t2": "Be {persona}."}
    asked = {"persona_ids": ["a"], "question_ids": ["q0", "q1"], "samples": 2, "templates": templates}
    (runs[1] / "grid.json").write_text(json.dumps(asked))
    page = browser.new_page()
    open_page(page, write_bare_page(collect_models(runs), tmp_path / "out"))
    other, same = page.locator(".completions > section").all()
    assert other.locator("> pre").count() == 0
    assert other.locator("article").all_text_contents()[0].startswith("one✓ rightAskedAdd 2 and 2.Completionx")
    assert (
        other.locator("article")
        .all_text_contents()[1]
        .startswith("two✓ rightsample 2, “Be {persona}.”AskedWhat is 2 + 2?Completionx")
    )
    assert same.locator("> pre").all_text_contents() == ["Again?"]
    assert same.locator("article").all_text_contents()[0].startswith("one✓ rightCompletionx")
    assert same.locator("article").all_text_contents()[1].startswith("two✓ rightsample 2, “Be {persona}.”Completionx")
    page.close()


def test_an_answer_that_is_pending_was_asked_for_in_every_kind_of_run(browser: Any, tmp_path: Path) -> None:
    """q1 has no record in either run, in both views of it."""
    asked = {"persona_ids": ["a"], "question_ids": ["q0", "q1"], "samples": 1}
    for name, config, score in (("stable", CONFIG, True), ("open", CONFIG | {"stage": "fidelity"}, None)):
        run = write_run(tmp_path / name, config, [answered(persona, "q0", "x", score) for persona in (None, "a")])
        (run / "grid.json").write_text(json.dumps(asked))
    page = browser.new_page()
    path = write_bare_page(collect_models([tmp_path]), tmp_path / "out")
    open_page(page, path)
    for kind in ("stability", "open"):
        page.get_by_label("Asked").select_option(kind)
        expect(page.locator(".completions section").nth(1)).to_contain_text("Asked, but no answer is recorded.")
        page.locator(".completions").get_by_text("full transcript").click()
        page.wait_for_selector("dialog[open] article")
        press(page, "ArrowRight")
        shows(page, "#transcript-title", "a × q1")
        assert "Asked, but no answer is recorded." in transcript(page)[1]
        press(page, "Escape")
    page.close()

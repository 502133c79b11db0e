"""The page in a real browser: it follows a run that grows, shows hostile text as text, and says when the viewer has gone."""

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from permix.types import Failure
from tests.view.hand import append, stability_run, whole
from tests.worlds import answered, cell

playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="there is no chromium on this machine")
FLAGS = (
    "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync",
)  # fmt: skip
HOSTILE = "<script>window.hurt = 1</script><img src=x onerror='window.hurt = 1'>\x1b[31m\u202e" + "y" * 50_000
PATIENCE_MS = 30_000


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with playwright.sync_playwright() as running:
        browser = running.chromium.launch(executable_path=CHROMIUM, args=list(FLAGS))
        yield browser
        browser.close()


@pytest.fixture
def viewer(tmp_path: Path) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """The viewer as it is started, over a folder with one run that is under way; and its address."""
    stability_run(tmp_path / "run", whole()[:4], label="base <b>bold</b>")
    command = [sys.executable, "-m", "permix", "view", str(tmp_path), "--port", "0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        found = re.match(r"http://\S+", process.stdout.readline())
        assert found is not None
        yield process, found[0]
        process.kill()


class Seen:
    """A page, and what it complained of."""

    def __init__(self, browser: Any, url: str, **options: Any) -> None:
        self.page = browser.new_page(**options)
        self.page.set_default_timeout(PATIENCE_MS)
        self.complaints: list[str] = []
        self.page.on("console", lambda message: self.complaints.append(message.text) if message.type == "error" else None)
        self.page.on("pageerror", lambda error: self.complaints.append(str(error)))
        self.page.goto(url)

    def waits_for(self, where: str, words: str) -> None:
        playwright.expect(self.page.locator(where)).to_contain_text(words, timeout=PATIENCE_MS)


def test_the_page_follows_a_run_to_its_end(browser: Any, viewer: tuple[Any, str], tmp_path: Path) -> None:
    seen = Seen(browser, viewer[1])
    seen.waits_for("#detail", "4 of 9 cells")
    seen.waits_for("#detail h2", "base <b>bold</b>")
    seen.waits_for("#detail", "stopped, 5 cells owed: run the same command again")
    seen.waits_for("#detail pre.command", "permix stability mine.toml")
    append(tmp_path / "run", *whole()[4:7], cell("q2", persona_id="troll", failure=Failure(type="HTTPError", message="500 <i>")))
    seen.waits_for("#detail", "7 of 9 cells")
    seen.waits_for("#part-errors", "500 <i>")
    append(tmp_path / "run", *whole()[7:])
    (tmp_path / "run" / "metrics.json").write_text("{}")
    seen.waits_for("#runs", "✓ finished")
    seen.waits_for("#part-measures", "mean over personas")
    seen.waits_for("#part-personas", "troll")
    assert seen.page.locator("#part-errors").inner_text() == ""
    stability_run(tmp_path / "later", whole()[:1], label="second")
    seen.waits_for("#count", "(2)")
    assert seen.complaints == []


def test_hostile_text_is_text(browser: Any, viewer: tuple[Any, str], tmp_path: Path) -> None:
    append(tmp_path / "run", answered("q2", persona_id="clerk", text=HOSTILE))
    seen = Seen(browser, viewer[1])
    seen.waits_for("#part-newest h3 + article pre", r"</script><img src=x onerror=")
    shown = seen.page.locator("#part-newest pre").first.inner_text()
    assert r"\x1b[31m\u202eyyy" in shown
    assert len(shown) < 2000
    assert seen.page.evaluate("window.hurt") is None
    assert seen.page.locator("#detail script, #detail img, #detail b").count() == 0
    assert seen.complaints == []


def test_it_says_when_the_viewer_has_gone_and_keeps_what_it_had(browser: Any, viewer: tuple[Any, str], tmp_path: Path) -> None:
    seen = Seen(browser, viewer[1])
    seen.waits_for("#detail", "4 of 9 cells")
    viewer[0].kill()
    seen.waits_for("#gone", "The viewer has ended; what you see is from ")
    assert re.search(r"from \d\d:\d\d:\d\d\.", seen.page.locator("#gone").inner_text())
    seen.waits_for("#detail", "4 of 9 cells")
    assert [one for one in seen.complaints if "ERR_CONNECTION_REFUSED" not in one] == []


def test_runs_are_chosen_by_keyboard_on_a_small_dark_screen(browser: Any, viewer: tuple[Any, str], tmp_path: Path) -> None:
    stability_run(tmp_path / "second", whole(), label="second", ended=True)
    seen = Seen(browser, viewer[1], viewport={"width": 390, "height": 800}, color_scheme="dark")
    seen.waits_for("#count", "(2)")
    page = seen.page
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.className") == "skip"
    while "second" not in page.evaluate("document.activeElement.textContent"):
        page.keyboard.press("Tab")
    page.keyboard.press("Enter")
    seen.waits_for("#detail h2", "second")
    playwright.expect(page.locator("#runs a[aria-current=true]")).to_contain_text("second")
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") != "rgb(255, 255, 255)"
    assert seen.complaints == []


def test_a_reader_of_the_screen_finds_nothing_serious(browser: Any, viewer: tuple[Any, str]) -> None:
    axe = pytest.importorskip("axe_playwright_python.sync_playwright", reason="axe-playwright-python is not installed")
    for scheme in ("light", "dark"):
        seen = Seen(browser, viewer[1], color_scheme=scheme, bypass_csp=True)
        seen.waits_for("#part-personas", "clerk")
        found = axe.Axe().run(seen.page).response["violations"]
        assert [one["id"] for one in found if one["impact"] in ("serious", "critical")] == []


def test_curves_of_a_training_are_drawn(browser: Any, viewer: tuple[Any, str], tmp_path: Path) -> None:
    from tests.view.hand import put

    settings = {"stage": "train", "method": "permix", "label": "taught", "plan": {"steps": 4}, "train": {"iterations": 1}}
    put(tmp_path / "taught", "config.json", settings)
    put(tmp_path / "taught", "provenance.json", {"command": ["permix", "train"]})
    log = '{"step": 1, "reward": 0.25}\n{"step": 2, "reward": null}\n{"step": 3, "reward": 0.5}\n'
    (tmp_path / "taught" / "log.jsonl").write_text(log)
    os.utime(tmp_path / "taught" / "log.jsonl", (0, 0))
    seen = Seen(browser, viewer[1])
    seen.page.locator("#runs a", has_text="taught").click()
    drawn = seen.page.locator("#part-curve svg")
    playwright.expect(drawn).to_have_count(1, timeout=PATIENCE_MS)
    assert drawn.get_attribute("aria-label") == "mean reward: from 0.25 at step 1 to 0.5 at step 3"
    assert seen.page.locator("#part-curve .line").get_attribute("d").count("M") == 2  # the line breaks where there is no reward
    assert seen.complaints == []

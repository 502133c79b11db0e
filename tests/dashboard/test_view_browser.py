"""The page in a real browser: it follows a run that grows, shows hostile text as text, and says when the viewer has gone."""

import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import pytest

from permix.storage.run_dir import RUN_FORMAT
from permix.types import Failure
from tests.dashboard.fake_runs import append, held, put, stability_run, whole
from tests.sample_runs import answered, cell

pytestmark = pytest.mark.slow

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

    from tests.browser import Witness

HOSTILE = "<script>window.hurt = 1</script><img src=x onerror='window.hurt = 1'>\x1b[31m\u202e" + "y" * 50_000


class Viewer(NamedTuple):
    process: subprocess.Popen[str]
    url: str


@pytest.fixture
def viewer(tmp_path: Path) -> Iterator[Viewer]:
    """The viewer as it is started, over a folder with one run that is under way."""
    stability_run(tmp_path / "run", whole()[:4], label="base <b>bold</b>")
    command = [sys.executable, "-m", "permix", "view", str(tmp_path), "--port", "0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        found = re.match(r"http://\S+", process.stdout.readline())
        assert found is not None
        yield Viewer(process, found[0])
        process.kill()


class Seen(NamedTuple):
    """The viewer's page, and who saw what it did."""

    page: "Page"
    witness: "Witness"

    def waits_for(self, where: str, words: str) -> None:
        from playwright.sync_api import expect

        expect(self.page.locator(where)).to_contain_text(words)

    def shows_nothing(self, where: str) -> None:
        from playwright.sync_api import expect

        expect(self.page.locator(where)).to_have_text("")


See = Callable[..., Seen]


@pytest.fixture
def see(browser: "Browser", viewer: Viewer) -> Iterator[See]:
    """Opens the viewer's page: see(PHONE, color_scheme="dark")."""
    from tests.browser import WIDE, watched_page

    with ExitStack() as stack:

        def opened(size: tuple[int, int] = WIDE, **settings: object) -> Seen:
            seen = Seen(*stack.enter_context(watched_page(browser, size, [viewer.url], **settings)))
            seen.page.goto(viewer.url)
            return seen

        yield opened


def test_the_page_follows_a_run_to_its_end(see: See, tmp_path: Path) -> None:
    seen = see()
    seen.waits_for("#detail", "4 of 9 cells")
    seen.waits_for("#detail h2", "base <b>bold</b>")
    seen.waits_for("#detail", "stopped, 5 cells pending: run the same command again")
    seen.waits_for("#detail pre.command", "permix stability mine.toml")
    append(tmp_path / "run", *whole()[4:7], cell("q2", persona_id="troll", failure=Failure(type="HTTPError", message="500 <i>")))
    seen.waits_for("#detail", "7 of 9 cells")
    seen.waits_for("#part-errors", "500 <i>")
    append(tmp_path / "run", *whole()[7:])
    (tmp_path / "run" / "metrics.json").write_text("{}")
    seen.waits_for("#runs", "✓ finished")
    seen.waits_for("#part-measures", "mean over personas")
    seen.waits_for("#part-personas", "troll")
    seen.shows_nothing("#part-errors")
    stability_run(tmp_path / "later", whole()[:1], label="second")
    seen.waits_for("#count", "(2)")
    assert seen.witness.complaints == []


def test_hostile_text_is_text(see: See, tmp_path: Path) -> None:
    append(tmp_path / "run", answered("q2", persona_id="clerk", text=HOSTILE))
    seen = see()
    seen.waits_for("#part-newest h3 + article pre", r"</script><img src=x onerror=")
    shown = seen.page.locator("#part-newest pre").first.inner_text()
    assert r"\x1b[31m\u202eyyy" in shown
    assert len(shown) < 2000
    assert seen.page.evaluate("window.hurt") is None
    assert seen.page.locator("#detail script, #detail img, #detail b").count() == 0
    assert seen.witness.complaints == []


def test_it_says_when_the_viewer_has_gone_and_keeps_what_it_had(see: See, viewer: Viewer) -> None:
    seen = see()
    seen.waits_for("#detail", "4 of 9 cells")
    viewer.process.kill()
    seen.waits_for("#gone", "The viewer has ended; what you see is from ")
    assert re.search(r"from \d\d:\d\d:\d\d\.", seen.page.locator("#gone").inner_text())
    seen.waits_for("#detail", "4 of 9 cells")
    assert [one for one in seen.witness.complaints if "net::ERR_" not in one] == []


def test_it_says_when_watching_has_stopped(see: See) -> None:
    seen = see()
    seen.waits_for("#live", "live: seen at ")
    state = seen.page.evaluate("fetch('/state.json').then((answer) => answer.json())")
    seen.page.route("**/state.json", lambda route: route.fulfill(json=state | {"watching": False}))
    seen.page.evaluate("document.dispatchEvent(new Event('visibilitychange'))")
    seen.waits_for("#gone", "Watching has stopped")
    seen.waits_for("#live", "not live: watching has stopped")


def cut_short(route: Any) -> None:
    answer = route.fetch()
    route.fulfill(response=answer, body=answer.body()[:50])


def test_an_answer_that_ends_early_is_asked_for_again(see: See) -> None:
    """Its tag is that of the whole answer, which the viewer would not send again to a page that claims to have it."""
    seen = see()
    seen.waits_for("#detail", "4 of 9 cells")
    for address in ("**/state.json", "**/run.json*"):
        seen.page.route(address, cut_short, times=1)
        with seen.page.expect_response(address):
            seen.page.reload()
        seen.waits_for("#detail", "4 of 9 cells")


def test_a_run_that_is_gone_is_shown_no_longer(see: See, tmp_path: Path) -> None:
    seen = see()
    seen.waits_for("#detail", "4 of 9 cells")
    (tmp_path / "run").rename(tmp_path / ".gone")
    seen.waits_for("#notes", "No run here yet.")
    seen.shows_nothing("#detail")
    (tmp_path / ".gone").rename(tmp_path / "run")
    seen.waits_for("#detail", "4 of 9 cells")


def test_a_run_that_is_chosen_during_a_look_is_shown_before_it_has_the_focus(see: See, tmp_path: Path) -> None:
    stability_run(tmp_path / "second", whole(), label="second", ended=True)
    seen = see()
    seen.waits_for("#count", "(2)")
    page = seen.page
    page.locator("#runs a", has_text="base").click()
    seen.waits_for("#detail h2", "base")
    page.evaluate(
        "document.getElementById('detail')"
        ".addEventListener('focus', (event) => { document.body.dataset.focused = event.target.innerText })"
    )
    held_up: list[Any] = []
    page.route("**/run.json*", lambda route: held_up.append(route), times=1)
    with page.expect_request("**/run.json*"):
        pass
    page.locator("#runs a", has_text="second").click()
    page.evaluate("new Promise(requestAnimationFrame)")
    held_up[0].continue_()
    page.locator("body[data-focused]").wait_for(state="attached")
    assert page.evaluate("document.body.dataset.focused").startswith("second")


def test_runs_are_chosen_by_keyboard_on_a_small_dark_screen(see: See, tmp_path: Path) -> None:
    from tests.browser import PHONE

    stability_run(tmp_path / "second", whole(), label="second", ended=True)
    seen = see(PHONE, color_scheme="dark")
    seen.waits_for("#count", "(2)")
    page = seen.page
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.className") == "skip"
    while "second" not in page.evaluate("document.activeElement.textContent"):
        page.keyboard.press("Tab")
    page.keyboard.press("Enter")
    seen.waits_for("#detail h2", "second")
    seen.waits_for("#runs a[aria-current=true]", "second")
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") != "rgb(255, 255, 255)"
    assert seen.witness.complaints == []


def visible_runs(page: "Page") -> list[str]:
    """The labels of the runs in the list, from top to bottom."""
    return page.locator("#runs li:visible strong").all_inner_texts()


def many_runs(root: Path) -> None:
    """Forty more runs, sweep-39 with the newest record."""
    for number in range(40):
        run = stability_run(root / "sweep" / f"lr-{number:02}", whole(), label=f"sweep-{number:02}", ended=True)
        os.utime(run / "records.jsonl", (1_700_000_000 + number,) * 2)


def test_running_runs_come_first_and_then_the_newest(see: See, tmp_path: Path) -> None:
    many_runs(tmp_path)
    os.utime(tmp_path / "run" / "records.jsonl", (1_600_000_000,) * 2)
    seen = see()
    seen.waits_for("#count", "(41)")
    seen.waits_for("#runs li:last-child", "base")
    assert visible_runs(seen.page) == [f"sweep-{number:02}" for number in range(39, -1, -1)] + ["base <b>bold</b>"]
    link = seen.page.locator("#runs a", has_text="sweep-38")
    link.focus()
    with held(tmp_path / "run"):
        seen.waits_for("#runs li:first-child", "▶ going on")
        assert visible_runs(seen.page)[:2] == ["base <b>bold</b>", "sweep-39"]
        assert "sweep-38" in seen.page.evaluate("document.activeElement.textContent")  # though the list was put in a new order
    assert seen.witness.complaints == []


def test_the_list_and_the_run_scroll_apart(see: See, tmp_path: Path) -> None:
    many_runs(tmp_path)
    seen = see()
    seen.waits_for("#count", "(41)")
    page = seen.page
    page.locator("#runs a").last.click()
    seen.waits_for("#detail h2", "sweep-00")
    heading, place = page.locator("#detail h2").bounding_box(), page.locator("#runs a").last.bounding_box()
    assert heading is not None
    assert place is not None
    assert 0 < heading["y"] < 200  # the run is in sight, at its top
    assert place["y"] + place["height"] <= 900  # and so is its line in the list, at the end of it
    assert page.evaluate("document.getElementById('runs').scrollTop") > 1000
    assert page.evaluate("document.documentElement.scrollHeight <= innerHeight")
    page.evaluate("document.getElementById('detail').scrollTop = 200")
    assert page.evaluate("document.getElementById('runs').scrollTop") > 1000
    assert seen.witness.complaints == []


def test_on_a_phone_the_list_has_its_own_box_and_the_page_scrolls(see: See, tmp_path: Path) -> None:
    from tests.browser import PHONE

    many_runs(tmp_path)
    seen = see(PHONE)
    seen.waits_for("#count", "(41)")
    page = seen.page
    box = page.locator("#runs").bounding_box()
    assert box is not None
    assert box["height"] <= 844 * 0.46
    page.locator("#runs a").last.click()
    seen.waits_for("#detail h2", "sweep-00")
    assert page.evaluate("document.documentElement.scrollHeight > innerHeight")
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    assert page.evaluate("document.activeElement.id") == "detail"


def test_the_filter_takes_label_stage_and_folder_and_survives_polls(see: See, tmp_path: Path) -> None:
    many_runs(tmp_path)
    seen = see()
    seen.waits_for("#count", "(41)")
    page = seen.page
    page.keyboard.press("Tab")
    for _ in range(10):
        page.keyboard.press("Tab")
        if page.evaluate("document.activeElement.id") == "filter":
            break
    page.keyboard.type("SWEEP stabil lr-1")
    seen.waits_for("#count", "(10 of 41)")
    assert visible_runs(page) == [f"sweep-{number}" for number in range(19, 9, -1)]
    stability_run(tmp_path / "late", whole(), label="late lr-1 sweep", ended=True)
    stability_run(tmp_path / "later", whole(), label="other", ended=True)
    seen.waits_for("#count", "(11 of 43)")
    assert visible_runs(page)[0] == "late lr-1 sweep"
    page.keyboard.press("Tab")
    page.keyboard.press("Enter")
    seen.waits_for("#detail h2", "late lr-1 sweep")
    page.locator("#filter").fill("nothing like it")
    seen.waits_for("#count", "(0 of 43)")
    page.locator("#filter").fill("")
    seen.waits_for("#count", "(43)")
    assert seen.witness.complaints == []


def test_without_the_flag_the_tab_says_how_it_is_switched_on(see: See) -> None:
    seen = see()
    seen.page.locator("#tab-try").click()
    seen.waits_for(
        "#answers", "This page only shows. To ask models from here, end the viewer with Ctrl-C, start it again with --try-it"
    )
    assert not seen.page.locator("#try-form").is_visible()
    seen.page.locator("#tab-runs").click()
    seen.waits_for("#detail h2", "base")
    assert seen.witness.complaints == []


def test_a_reader_of_the_screen_finds_nothing_serious(see: See) -> None:
    from tests.browser import grave_findings

    for scheme in ("light", "dark"):
        seen = see(color_scheme=scheme, bypass_csp=True)
        seen.waits_for("#part-personas", "clerk")
        assert grave_findings(seen.page) == []


def test_curves_of_a_training_are_drawn(see: See, tmp_path: Path) -> None:
    settings = {
        "stage": "train",
        "method": "permix",
        "label": "taught",
        "plan": {"steps": 4},
        "train": {"updates_per_rollout": 1},
    }
    put(tmp_path / "taught", "config.json", settings)
    put(tmp_path / "taught", "provenance.json", {"format": RUN_FORMAT, "command": ["permix", "train"]})
    log = '{"step": 1, "reward": 0.25}\n{"step": 2, "reward": null}\n{"step": 3, "reward": 0.5}\n'
    (tmp_path / "taught" / "log.jsonl").write_text(log)
    os.utime(tmp_path / "taught" / "log.jsonl", (0, 0))
    seen = see()
    seen.waits_for("#runs", "taught")
    seen.page.locator("#runs a", has_text="taught").click()
    drawn = seen.page.locator("#part-curve svg")
    drawn.wait_for()
    assert drawn.count() == 1
    assert drawn.get_attribute("aria-label") == "mean reward: from 0.25 at step 1 to 0.5 at step 3"
    line = seen.page.locator("#part-curve .line").get_attribute("d")
    assert line is not None
    assert line.count("M") == 2  # the line breaks where there is no reward
    assert seen.witness.complaints == []

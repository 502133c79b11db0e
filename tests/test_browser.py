"""The witness sees what a page does, whatever it does; nothing here is about a page of ours."""

from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.browser import PHONE, WIDE, contrast, find_chromium, grave_findings, settle, watched_page

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

    from tests.browser import OpenPage

POLICY = """<meta http-equiv="Content-Security-Policy" content="default-src 'none'; script-src 'unsafe-inline'">"""


def write(folder: Path, body: str, head: str = "") -> str:
    path = folder / "page.html"
    path.write_text(f'<!doctype html><html lang="en"><title>t</title>{head}<main><h1>t</h1>{body}</main>', encoding="utf-8")
    return path.as_uri()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("body", "complaint"),
    [
        ("<script>console.error('spilt')</script>", "console: spilt"),
        ("<script>throw new Error('torn')</script>", "uncaught: torn"),
        ("<script>alert('boo')</script>", "dialog: alert boo"),
        ("<img src='https://example.invalid/spy.png'>", "request: GET https://example.invalid/spy.png"),
        ("<script>fetch('http://127.0.0.1:9/')</script>", "request: GET http://127.0.0.1:9/"),
        ("<script>new WebSocket('ws://127.0.0.1:9/')</script>", "request: websocket ws://127.0.0.1:9/"),
    ],
)
def test_what_a_page_must_not_do_is_seen(browser: "Browser", tmp_path: Path, body: str, complaint: str) -> None:
    with watched_page(browser) as (page, witness):
        page.goto(write(tmp_path, body))
    assert any(complaint in one for one in witness.complaints)


def test_a_breach_of_the_policy_is_seen_and_an_innocent_page_is_left_alone(browser: "Browser", tmp_path: Path) -> None:
    with watched_page(browser) as (page, witness):
        page.goto(write(tmp_path, "<p style='color: red'>quiet</p>", POLICY))
        settle(page.context)
        assert any("policy style-src-attr forbids inline" in one for one in witness.complaints)
        witness.complaints.clear()
        page.goto(write(tmp_path, "<p>quiet</p><script>document.title += '!'</script>", POLICY))
        settle(page.context)
        assert (page.title(), witness.complaints) == ("t!", [])


def test_a_second_window_is_seen(browser: "Browser", tmp_path: Path) -> None:
    with watched_page(browser) as (page, witness):
        page.goto(write(tmp_path, "<a href='about:blank' target='_blank'>away</a>"))
        with page.context.expect_page():
            page.click("a")
        assert any("a second window" in one for one in witness.complaints)


def test_a_page_has_the_size_and_the_colours_it_was_asked_for(open_page: "OpenPage", tmp_path: Path) -> None:
    where = write(tmp_path, "")
    for size, scheme in ((PHONE, "dark"), (WIDE, "light")):
        page = open_page(size, color_scheme=scheme)
        page.goto(where)
        assert page.evaluate("innerWidth") == size[0]
        assert page.evaluate("matchMedia('(prefers-color-scheme: dark)').matches") == (scheme == "dark")


def test_grave_findings_name_the_rule_and_the_place(page: "Page", tmp_path: Path) -> None:
    page.goto(write(tmp_path, "<button id='mute'></button><p>well</p>", POLICY))
    assert grave_findings(page) == ["button-name (critical), 1 times: #mute"]
    page.goto(write(tmp_path, "<button>speak</button>", POLICY))
    assert grave_findings(page) == []


def test_contrast_is_that_of_wcag() -> None:
    assert contrast((0, 0, 0), (255, 255, 255)) == pytest.approx(21)
    assert contrast((118, 118, 118), (255, 255, 255)) == pytest.approx(4.54, abs=0.01)  # the lightest grey for text on white


def test_a_named_chromium_comes_first_and_a_wrong_name_is_passed_over(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in ("mine", "chromium"):
        (tmp_path / name).write_text("")
        (tmp_path / name).chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setenv("CHROMIUM", str(tmp_path / "mine"))
    assert find_chromium() == str(tmp_path / "mine")
    monkeypatch.setenv("CHROMIUM", "/nowhere/chromium")
    assert find_chromium() == str(tmp_path / "chromium")
    (tmp_path / "chromium").unlink()
    assert find_chromium() is None

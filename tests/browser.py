"""A real browser for tests: Debian's Chromium driven by Playwright, and a witness of all that a page must not do.

Contract: `Witness.complaints` holds a line for every error on the console, uncaught error, breach of the content security policy,
dialog, download, second window, and request that goes neither to a file nor to an origin that the test allowed. Chromium itself
resolves no name, so that nothing leaves this machine whatever a page tries.
"""

import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Browser, BrowserContext, Page, Request, expect, sync_playwright

NAMES = ("chromium", "chromium-browser", "google-chrome")
MISSING = f"no Chromium: neither $CHROMIUM nor {', '.join(NAMES)} on PATH; `make browser` installs it on Debian"
QUIET = (
    "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync", "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1",
)  # fmt: skip
HARMLESS = ("file:", "data:", "about:")
WIDE, PHONE = (1280, 900), (390, 844)
SETTLE_MS = 100
PATIENCE_MS = 180_000
"""How long everything may take in the browser. A test that would wait so long is no slower on an idle machine."""
REPORT_VIOLATIONS = """document.addEventListener("securitypolicyviolation", (violation) =>
    console.error(`policy ${violation.violatedDirective} forbids ${violation.blockedURI} ${violation.sample}`))"""

expect.set_options(timeout=PATIENCE_MS)


def find_chromium() -> str | None:
    """$CHROMIUM, where it names a program, comes before what is on PATH."""
    named = os.environ.get("CHROMIUM", "")
    return next((found for name in (named, *NAMES) if name and (found := shutil.which(name))), None)


@contextmanager
def chromium(program: str) -> Iterator[Browser]:
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=program, args=list(QUIET))
        yield browser
        browser.close()


@dataclass
class Witness:
    """What the pages of one context did; `allowed` are origins that they may ask, such as "http://127.0.0.1:8000"."""

    allowed: tuple[str, ...] = ()
    complaints: list[str] = field(default_factory=list)

    def watch(self, context: BrowserContext) -> None:
        """Listens to the pages that are opened from now on."""
        context.add_init_script(REPORT_VIOLATIONS)
        context.on("request", self._on_request)
        context.on("weberror", lambda error: self._complain(f"uncaught: {error.error}"))
        context.on("console", lambda said: self._complain(f"console: {said.text}") if said.type == "error" else None)
        context.on("dialog", self._on_dialog)
        context.on("page", self._on_page)

    def _complain(self, what: str) -> None:
        self.complaints.append(what[:500])

    def _on_request(self, request: Request) -> None:
        if not request.url.startswith((*HARMLESS, *self.allowed)):
            self._complain(f"request: {request.method} {request.url}")

    def _on_dialog(self, dialog: Any) -> None:
        self._complain(f"dialog: {dialog.type} {dialog.message}")
        dialog.dismiss()

    def _on_page(self, page: Page) -> None:
        if len(page.context.pages) > 1:
            self._complain(f"a second window: {page.url}")
        page.on("download", lambda download: self._complain(f"download: {download.url}"))
        page.on("websocket", lambda socket: self._on_socket(socket.url))

    def _on_socket(self, url: str) -> None:
        if not url.replace("ws", "http", 1).startswith(self.allowed):
            self._complain(f"request: websocket {url}")


@contextmanager
def watched_page(
    browser: Browser, size: tuple[int, int] = WIDE, allowed: Sequence[str] = (), **settings: Any
) -> Iterator[tuple[Page, Witness]]:
    """A page of a context of its own; `settings` are Playwright's for a context, such as `color_scheme="dark"`."""
    context = browser.new_context(viewport={"width": size[0], "height": size[1]}, **settings)
    context.set_default_timeout(PATIENCE_MS)
    witness = Witness(tuple(allowed))
    witness.watch(context)
    yield context.new_page(), witness
    settle(context)
    context.close()


def settle(context: BrowserContext) -> None:
    """Lets what a page has done just now be heard of: the browser tells of it from processes of its own."""
    for page in context.pages:
        page.wait_for_timeout(SETTLE_MS)


def grave_findings(page: Page, within: str | None = None) -> list[str]:
    """What axe finds serious or critical: the rule, and the elements that break it."""
    found = Axe().run(page, context=within, options={"resultTypes": ["violations"]}).response["violations"]
    return [_told(one) for one in found if one["impact"] in ("serious", "critical")]


def _told(finding: dict[str, Any]) -> str:
    places = [" ".join(map(str, node["target"])) for node in finding["nodes"]]
    return f"{finding['id']} ({finding['impact']}), {len(places)} times: {'; '.join(places[:5])}"


def contrast(one: Sequence[float], other: Sequence[float]) -> float:
    """Of two colours in sRGB, 0 to 255: 1 (the same) to 21, as WCAG 2 defines it."""
    light, dark = sorted((_luminance(one), _luminance(other)), reverse=True)
    return (light + 0.05) / (dark + 0.05)


def _luminance(colour: Sequence[float]) -> float:
    red, green, blue = (part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in _shares(colour))
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


def _shares(colour: Sequence[float]) -> list[float]:
    return [part / 255 for part in colour[:3]]


OpenPage = Callable[..., Page]
"""The page of a `watched_page` of the browser at hand: open_page(PHONE, color_scheme="dark")."""

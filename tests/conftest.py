"""What every test shares: quiet threads, no model hub, one tiny model on disk, and a browser where there is one."""

import os
import signal

# Before anything imports torch or transformers.
os.environ["OMP_WAIT_POLICY"] = "PASSIVE"
os.environ["GOMP_SPINCOUNT"] = "0"
os.environ["TOKENIZERS_PARALLELISM"] = "false"
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TORCH_CPP_LOG_LEVEL"] = "ERROR"

from collections.abc import Iterator
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from permix.inference import embedder
from permix.metrics import priors
from tests.tiny import make_folder

with suppress(ImportError):  # the environments of tests/engines do without it
    from hypothesis import settings

    settings.register_profile("busy machine", deadline=None)  # no test depends on how long an example takes
    settings.load_profile("busy machine")

if TYPE_CHECKING:  # a worker without a browser test does not import Playwright
    from playwright.sync_api import Browser, Page

    from tests.browser import OpenPage, Witness

# A shell's background jobs ignore Ctrl-C, and their children would too: some tests send it.
signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Hugging Face folder that a test may read but not change."""
    return make_folder(tmp_path_factory.mktemp("models") / "tiny")


@pytest.fixture(scope="session", autouse=True)
def fewer_draws() -> None:
    """Draws of true accuracies that are enough for a test; what subprocesses measure has them all."""
    priors.N_DRAWS, priors.MAX_CHAIN_PERSONAS = 1000, 1000


@pytest.fixture(scope="session", autouse=True)
def no_bundled_embedder() -> None:
    """Results do not depend on whether the extra embed is installed; without it recognisability is not measured."""
    embedder.find_bundled_embedder = lambda: None


@pytest.fixture(scope="module")
def browser() -> Iterator["Browser"]:
    """Chromium; a test that needs it is skipped without.

    It ends with its module: Playwright keeps an event loop running in this thread, and beside it no later test could start one.
    """
    from tests.browser import MISSING, chromium, find_chromium

    program = find_chromium()
    if program is None:
        pytest.skip(MISSING)
    with chromium(program) as opened:
        yield opened


@pytest.fixture
def open_page(browser: "Browser") -> Iterator["OpenPage"]:
    """Opens pages, each in a context of its own; the test fails at its end if one of them did what no page may do."""
    from tests.browser import WIDE, watched_page

    opened: list[tuple[Page, Witness]] = []
    with ExitStack() as stack:

        def one(size: tuple[int, int] = WIDE, **settings: Any) -> "Page":
            opened.append(stack.enter_context(watched_page(browser, size, **settings)))
            return opened[-1][0]

        yield one
    assert [complaint for _, witness in opened for complaint in witness.complaints] == []


@pytest.fixture
def page(open_page: "OpenPage") -> "Page":
    """One such page, 1280 pixels wide."""
    return open_page()


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Without a browser, the last lines say what was left out and what mends it."""
    reasons = {str(one.longrepr[2]) for one in terminalreporter.stats.get("skipped", []) if isinstance(one.longrepr, tuple)}
    for reason in sorted(one for one in reasons if "Chromium" in one):
        terminalreporter.write_line(f"the tests in a browser were left out: {reason.removeprefix('Skipped: ')}")

"""The tab "Try it" in a real browser: a trained model and an endpoint answer side by side, and what goes wrong is one line."""

import contextlib
import json
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import pytest

from permix.dashboard.try_it import SAVED_FILE
from tests.dashboard.fake_runs import serving
from tests.dashboard.try_folder import KEY, endpoint_run, fidelity_run, trained_run
from tests.servers import OpenAIServer, Reply, openai_server

pytestmark = pytest.mark.slow

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

    from tests.browser import Witness

HOSTILE = "<script>window.hurt = 1</script><img src=x onerror='window.hurt = 1'>\x1b[31m\u202e The answer is 12."


def script(body: dict[str, Any], nth: int, headers: Any) -> str | Reply:
    asked = body["messages"][-1]["content"]
    if "Go on" in asked:
        return Reply("and on and on", finish="length")
    if "What do you think" in asked:
        return "Arr! The wind be high, arr!"
    return f"<think>seven, and five</think>{HOSTILE}"


class Tab(NamedTuple):
    """The tab, the folder that is viewed, the endpoint, and who saw what the page did."""

    page: "Page"
    root: Path
    remote: OpenAIServer
    witness: "Witness"

    def waits_for(self, where: str, words: str) -> None:
        from playwright.sync_api import expect

        expect(self.page.locator(where)).to_contain_text(words)

    def choose_models(self, *names: str) -> None:
        for choice in self.page.locator("#try-models .choice").all():
            choice.locator("input").set_checked(any(name in choice.inner_text() for name in names))

    def choose_run(self, words: str) -> None:
        options = self.page.locator("#try-run option").all_inner_texts()
        self.page.locator("#try-run").select_option(label=next(one for one in options if words in one))

    def ask(self) -> None:
        self.page.locator("#try-ask").click()
        self.page.locator("#answers button").wait_for()


OpenTab = Callable[..., Tab]


@pytest.fixture
def open_tab(browser: "Browser", tmp_path: Path, tiny_model: Path) -> Iterator[OpenTab]:
    """Opens the tab of a viewer that was started with --try-it: open_tab(PHONE, token=False)."""
    from tests.browser import WIDE, watched_page

    with ExitStack() as stack:
        remote = stack.enter_context(openai_server(script))
        endpoint_run(tmp_path / "served" / "stability", remote.base_url)
        fidelity_run(tmp_path / "served" / "fidelity", remote.base_url)
        trained_run(tmp_path / "taught", tiny_model)
        endpoint_run(tmp_path / "down", "http://127.0.0.1:9/v1", label="down")
        command = [sys.executable, "-m", "permix", "view", str(tmp_path), "--port", "0", "--try-it"]
        process = stack.enter_context(subprocess.Popen(command, stdout=subprocess.PIPE, text=True))
        stack.callback(process.kill)
        assert process.stdout is not None
        found = re.match(r"(http://\S+/)#token=\S+", process.stdout.readline())
        assert found is not None

        def opened(size: tuple[int, int] = WIDE, token: bool = True, **settings: object) -> Tab:
            page, witness = stack.enter_context(watched_page(browser, size, [found[1]], **settings))
            page.goto(found[0] if token else found[1])
            page.locator("#tab-try").click()
            tab = Tab(page, tmp_path, remote, witness)
            if token:  # each run that the viewer reads makes the lists anew: a test begins when all are read
                for name in ("taught, trained", "gone/base", remote.base_url, "http://127.0.0.1:9/v1"):
                    tab.waits_for("#try-models", name)
                for name in ("stability, served/stability", "fidelity, served/fidelity", "stability, down"):
                    tab.waits_for("#try-run", name)
            return tab

        yield opened


def test_models_answer_side_by_side(open_tab: OpenTab) -> None:
    tab = open_tab()
    tab.waits_for("#try-models", f"with the key in ${KEY} (not set)")
    assert "token" not in tab.page.url  # nor in what a copied address would hold
    tab.choose_models("taught, trained", tab.remote.base_url)
    tab.choose_run("stability, served/stability")
    tab.waits_for("#try-run-note", "2 personas, 2 questions")
    tab.page.locator("#try-persona-kind").select_option("run")
    tab.page.locator("#try-persona").select_option("sailor")
    tab.waits_for("#try-persona-shown", "You are a retired sailor.")
    tab.page.locator("#try-question-kind").select_option("run")
    tab.waits_for("#try-question-shown", "right answer: 12")
    tab.page.locator("#try-tokens").fill("8")
    tab.ask()
    assert tab.page.locator("#answers .card h3").all_inner_texts() == ["taught, trained", "test"]
    tab.waits_for("#answers .card >> nth=0", "✗ wrong")
    tab.waits_for("#answers .card >> nth=0", " tokens · prompt ")
    served = tab.page.locator("#answers .card").last
    assert "✓ right: read 12" in served.inner_text()
    assert "3 tokens · prompt 7 tokens" in served.inner_text()
    assert not served.get_by_text("seven, and five").is_visible()  # the thinking is folded
    served.get_by_text("Thinking").click()
    assert served.get_by_text("seven, and five").is_visible()
    assert r"onerror='window.hurt = 1'>\x1b[31m\u202e The answer is 12." in served.inner_text()
    assert tab.page.evaluate("window.hurt") is None
    assert [one["role"] for one in tab.remote.asked[0].body["messages"]] == ["system", "user"]
    places = [one.bounding_box() for one in tab.page.locator("#answers .card").all()]
    assert places[0] is not None
    assert places[1] is not None
    assert places[0]["y"] == places[1]["y"]
    assert tab.page.evaluate("document.documentElement.scrollHeight <= innerHeight")
    assert not (tab.root / SAVED_FILE).exists()
    tab.page.locator("#answers button").click()
    tab.waits_for("#answers button", f"Saved to {SAVED_FILE}")
    assert len(json.loads((tab.root / SAVED_FILE).read_text())["answers"]) == 2
    assert tab.witness.complaints == []


def test_own_texts_and_an_answer_that_is_cut_off(open_tab: OpenTab) -> None:
    tab = open_tab()
    tab.choose_models(tab.remote.base_url)
    tab.page.locator("#try-persona-kind").select_option("system")
    tab.page.locator("#try-persona-own").fill("You are the assistant of a bank.")
    tab.page.locator("#try-question-own").fill("Go on")
    tab.page.locator("#try-gold").fill("7")
    tab.ask()
    tab.waits_for("#answers .card", "✂ cut off at the token limit")
    tab.waits_for("#answers .card", "✗ wrong: no answer found")
    tab.waits_for("#answers details", "system: You are the assistant of a bank.")
    assert tab.remote.asked[0].user == "Go on"
    assert tab.witness.complaints == []


def test_a_run_that_is_read_after_the_tab_was_opened_joins_the_lists(open_tab: OpenTab, tiny_model: Path) -> None:
    tab = open_tab()
    tab.choose_models("taught, trained")
    trained_run(tab.root / "later", tiny_model, label="later")
    tab.waits_for("#try-models", "later, trained")
    chosen = [one for one in tab.page.locator("#try-models .choice").all() if one.locator("input").is_checked()]
    assert [one.locator("strong").inner_text() for one in chosen] == ["taught, trained"]


def test_the_persona_that_a_classifier_names(open_tab: OpenTab) -> None:
    tab = open_tab()
    tab.choose_models(tab.remote.base_url)
    tab.choose_run("fidelity")
    tab.waits_for("#try-run-note", "2 personas, 12 questions")
    tab.page.locator("#try-persona-kind").select_option("run")
    tab.page.locator("#try-persona").select_option("sailor")
    tab.page.locator("#try-question-kind").select_option("run")
    tab.ask()
    tab.waits_for("#answers .card", "trained on this model's 22 answers to other questions, names the persona sailor: ✓ right.")
    tab.waits_for("#answers .card", "By chance it is right 1 time in 2; one answer is not a rate.")
    tab.page.locator("#try-question-kind").select_option("own")
    tab.page.locator("#try-question-own").fill("What do you think now?")
    tab.ask()
    tab.waits_for("#answers .card", "The classifier was not asked: no open-ended fidelity run of this model asked this persona")


def test_what_goes_wrong_is_one_line(open_tab: OpenTab) -> None:
    tab = open_tab()
    tab.choose_models()
    tab.page.locator("#try-ask").click()
    tab.waits_for("#try-error", "models: choose one at least")
    tab.choose_models("127.0.0.1:9", "gone/base")
    tab.page.locator("#try-ask").click()
    tab.waits_for("#try-error", "question: is empty")
    tab.page.locator("#try-question-own").fill("What is 7 + 5?")
    tab.ask()
    assert not tab.page.locator("#try-error").is_visible()
    errors = tab.page.locator("#answers .card .warning").all_inner_texts()
    assert any("http://127.0.0.1:9/v1: no endpoint there" in one for one in errors)
    assert any("'gone/base': is neither a folder nor in this machine's cache of hub models" in one for one in errors)
    assert all("\n" not in one for one in errors)
    assert [one for one in tab.witness.complaints if "400 (Bad Request)" not in one] == []


def test_without_the_token_the_tab_names_the_way(open_tab: OpenTab) -> None:
    tab = open_tab(token=False)
    tab.waits_for("#try-error", "open the address that permix view printed when it started")
    assert tab.page.locator("#try-models input").count() == 0
    assert [one for one in tab.witness.complaints if "403 (Forbidden)" not in one] == []


def test_it_is_asked_by_keyboard_on_a_small_dark_screen(open_tab: OpenTab) -> None:
    from tests.browser import PHONE, grave_findings

    tab = open_tab(PHONE, color_scheme="dark", bypass_csp=True)
    tab.choose_models(tab.remote.base_url)
    tab.page.locator("#try-question-own").focus()
    tab.page.keyboard.type("Go on")
    while tab.page.evaluate("document.activeElement.id") != "try-ask":
        tab.page.keyboard.press("Tab")
    tab.page.keyboard.press("Enter")
    tab.waits_for("#answers .card", "and on and on")
    assert tab.page.locator("#answers .card").first.evaluate("node => node.getBoundingClientRect().top < innerHeight")
    assert tab.page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    assert grave_findings(tab.page) == []
    assert tab.witness.complaints == []


# A report that somebody else made

MARK = "document.documentElement.setAttribute('data-ran', '1')"
WORKER = """
onmessage = ({ data }) =>
  fetch("/try/answers.json", data).then((reply) => postMessage(reply.status), () => postMessage("refused"));
"""
ATTACKS = """
const given = { headers: { "X-Permix-Token": sessionStorage.getItem("permix-token") } };
const ask = (world) => world.fetch("/try/answers.json", given).then((reply) => reply.status, () => "refused");
const askFromWorker = () => new Promise((resolve) => {
  const worker = new Worker("cells/worker.js");
  worker.onmessage = ({ data }) => resolve(data);
  worker.onerror = () => resolve("refused");
  worker.postMessage(given);
});
const askFromWindow = async (address) => {
  try {
    for (const other = open(address); !other.closed; await new Promise((resolve) => setTimeout(resolve, 50)))
      if (other.location.pathname === address && other.document.readyState === "complete") return await ask(other);
  } catch {} // its window is out of reach
  return "refused";
};
"""
FOREIGN_REPORT = {
    "index.html": '<!doctype html><title>x</title><img src="one.svg"><script src="cells/attacks.js"></script>',
    "one.svg": '<svg xmlns="http://www.w3.org/2000/svg" width="7" height="7"><script href="cells/mark.js"/></svg>',
    "cells/mark.js": MARK,
    "cells/worker.js": WORKER,
    "cells/attacks.js": ATTACKS,
}


def test_scripts_of_a_foreign_report_ask_nothing_although_they_can_read_the_token(browser: "Browser", tmp_path: Path) -> None:
    for name, content in FOREIGN_REPORT.items():
        (tmp_path / "report" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "report" / name).write_text(content)
    with serving(tmp_path, with_try_it=True) as server, contextlib.closing(browser.new_context()) as context:
        page = context.new_page()
        page.goto(server.start_url)
        page.goto(f"{server.url}report/")
        assert page.evaluate("document.images[0].naturalWidth") == 7  # a figure is shown
        assert page.evaluate("given.headers['X-Permix-Token']") == server.start_url.partition("=")[2]
        found = {"page": page.evaluate("ask(window)"), "worker": page.evaluate("askFromWorker()")}
        for address in ("/", "/view.js", "/state.json", "/nothing", "/report/one.svg"):
            found[address] = page.evaluate("askFromWindow", address)
        page.goto(f"{server.url}report/one.svg")
        found["svg"] = page.evaluate("document.documentElement.dataset.ran ?? 'refused'")
        page.goto(server.url)
        page.add_script_tag(url="/report/cells/attacks.js")
        own = page.evaluate("ask(window)")
    assert set(found.values()) == {"refused"}
    assert own == 200  # of the viewer's own page

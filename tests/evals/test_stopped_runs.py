"""A run whose endpoint stops answering keeps and measures what it has, says why, and is complete after another start."""

import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from permix import cli
from permix.inference.openai import OpenAIModel
from permix.judges.runner import find_judge_failures
from permix.report.runs import collect_models
from tests.cell_files import read_cells
from tests.sample_runs import endpoint, fidelity_values, stability_values, toml
from tests.servers import Action, Drop, OpenAIServer, Raw, Reply, error, openai_server

HTML = Raw(b"<html><b>Sign in</b></html>")


@pytest.fixture(autouse=True)
def _short_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(OpenAIModel.__init__, "__kwdefaults__", {"backoff_s": 0.001})


class Ailing:
    """A script that answers `n_answers` requests, and then does `trouble` until it is cured."""

    def __init__(self, trouble: Action, n_answers: int, reply: Callable[[Mapping[str, Any]], str]) -> None:
        self.trouble, self.n_answers, self.reply = trouble, n_answers, reply
        self.is_cured = False

    def __call__(self, body: Mapping[str, Any], nth: int, headers: Mapping[str, str]) -> Action:
        return Reply(self.reply(body)) if self.is_cured or nth < self.n_answers else self.trouble


def answer(body: Mapping[str, Any]) -> str:
    return "I think of 12." if "response_format" not in body else '{"reason": "So it is.", "score": 4}'


def start(command: str, folder: Path, values: Mapping[str, Any], capsys: pytest.CaptureFixture[str]) -> tuple[int, str]:
    """(exit code, last line of stderr)."""
    (folder / "run.toml").write_text(toml(values))
    code = cli.run_cli([command, str(folder / "run.toml")])
    return code, capsys.readouterr().err.splitlines()[-1]


def completions(run: Path) -> int:
    return sum(one.has_completion for one in read_cells(run / "records.jsonl").summaries.values())


@pytest.fixture
def served() -> Iterator[Callable[[Ailing], OpenAIServer]]:
    with ExitStack() as stack:
        yield lambda script: stack.enter_context(openai_server(script))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("trouble", "words"),
    [
        (Drop(), "APIConnectionError: Connection error"),
        (HTML, "MalformedReplyError: "),
        (error(401, "key revoked"), "HTTP 401: key revoked"),
    ],
    ids=["drop", "html", "key"],
)
def test_a_stability_run_keeps_measures_and_resumes(
    trouble: Action,
    words: str,
    served: Callable[[Ailing], OpenAIServer],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    script = Ailing(trouble, 10, answer)
    server = served(script)
    values = stability_values(tmp_path, server.base_url)  # 24 cells, 6 of them without a persona
    code, said = start("stability", tmp_path, values, capsys)
    assert code == 3
    assert (
        "run: 14 of 24 cells, with or without a persona, have no score; "
        f"{server.base_url}: asked no more after 8 failures in a row; " in said
    )
    assert f"; run the same command again to fill them (8 × {words}" in said
    assert "; what helps: " in said
    assert (len(server.asked), completions(tmp_path / "run")) == (18, 10)
    metrics = json.loads((tmp_path / "run" / "metrics.json").read_text())
    assert (metrics["n_scored"], metrics["n_asked"]) == (4, 18)
    script.is_cured = True
    code, _ = start("stability", tmp_path, values, capsys)
    assert (code, len(server.asked), completions(tmp_path / "run")) == (0, 32, 24)


@pytest.mark.parametrize("trouble", [error(500, "no GPU"), HTML], ids=["500", "html"])
def test_a_run_without_any_answer_is_an_error_and_can_be_started_again(
    trouble: Action, served: Callable[[Ailing], OpenAIServer], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    script = Ailing(trouble, 0, answer)
    server = served(script)
    values = stability_values(tmp_path, server.base_url)
    code, said = start("stability", tmp_path, values, capsys)
    assert code == 2
    assert f"model.base_url = {server.base_url}: answers no request; 8 failures in a row" in said
    assert len(server.asked) == 8
    script.is_cured = True
    assert start("stability", tmp_path, values, capsys)[0] == 0
    assert completions(tmp_path / "run") == 24


def test_a_run_that_stops_on_resume_still_counts_what_it_has(
    served: Callable[[Ailing], OpenAIServer], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    server = served(Ailing(error(500), 10, answer))
    values = stability_values(tmp_path, server.base_url)
    assert start("stability", tmp_path, values, capsys)[0] == 3
    code, said = start("stability", tmp_path, values, capsys)
    assert code == 3
    assert "14 of 24 cells, with or without a persona, have no score" in said
    assert len(server.asked) == 18 + 8
    assert (tmp_path / "run" / "metrics.json").exists()


def test_rounds_and_strategies_ask_no_further(
    served: Callable[[Ailing], OpenAIServer], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A vote asks more personas after the first cells; none of that is asked once the endpoint has stopped."""
    server = served(Ailing(error(500), 7, answer))
    values = stability_values(tmp_path, server.base_url, strategy="persona-vote")
    code, said = start("stability", tmp_path, values, capsys)
    assert code == 3
    assert "asked no more after 8 failures in a row" in said
    assert len(server.asked) == 7 + 8


def test_a_fidelity_run_keeps_its_answers(
    served: Callable[[Ailing], OpenAIServer], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    script = Ailing(error(500), 20, answer)
    server = served(script)
    values = fidelity_values(tmp_path, server.base_url)
    code, said = start("fidelity", tmp_path, values, capsys)
    assert code == 3
    assert "16 of 36 answers are missing" in said
    assert "asked no more after 8 failures in a row; run the same command again to fill them (8 × HTTP 500: scripted)" in said
    assert (len(server.asked), completions(tmp_path / "run")) == (28, 20)
    script.is_cured = True
    assert start("fidelity", tmp_path, values, capsys)[0] == 0
    assert completions(tmp_path / "run") == 36


def test_interviews_end_in_the_turn_in_which_the_endpoint_stops(
    served: Callable[[Ailing], OpenAIServer], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    script = Ailing(error(500), 4, answer)
    server = served(script)
    values = fidelity_values(tmp_path, server.base_url, interview={"turns": 3})
    code, said = start("fidelity", tmp_path, values, capsys)
    assert code == 3
    assert "5 of 9 turns are missing" in said
    assert len(server.asked) <= 4 + 8
    script.is_cured = True
    assert start("fidelity", tmp_path, values, capsys)[0] == 0
    assert completions(tmp_path / "run") == 9


@pytest.mark.slow
def test_a_judge_keeps_its_scores_and_the_report_names_the_reasons(
    served: Callable[[Ailing], OpenAIServer], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    server, script = served(Ailing(error(500), 1000, answer)), Ailing(error(503, "<b>*busy*</b> |"), 30, answer)
    judge_server = served(script)
    judge = endpoint(judge_server.base_url, label="j", answers_per_control=20)
    values = fidelity_values(tmp_path, server.base_url, judge=judge)
    code, said = start("fidelity", tmp_path, values, capsys)
    assert code == 3
    assert "have no score; " in said
    assert "asked no more after 8 failures in a row; run the same" in said
    assert "; run the same command again to ask for them (8 × HTTP 503: <b>*busy*</b> |); what helps: the endpoint's own" in said
    assert len(judge_server.asked) == 38
    assert len(list(find_judge_failures(tmp_path / "run" / "judges" / "j"))) == 8
    (model,) = collect_models([tmp_path / "run"])
    assert {kind: [one.n for one in found] for kind, found in model.failure_reasons.items()} == {"fidelity, judge j": [8]}
    script.is_cured = True
    assert start("fidelity", tmp_path, values, capsys)[0] == 0


def test_the_report_names_reasons_with_counts_as_text(
    served: Callable[[Ailing], OpenAIServer], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = "<img src=x onerror=alert(1)> **busy** [a](http://evil.invalid) | $x$"
    server = served(Ailing(error(500, words), 10, answer))
    assert start("stability", tmp_path, stability_values(tmp_path, server.base_url), capsys)[0] == 3
    report = tmp_path / "run" / "report"
    table = json.loads((report / "table.json").read_text())
    assert table["failures"] == {
        "test": {
            "stability": [
                {
                    "n": 8,
                    "text": f"HTTP 500: {words}",
                    "cure": "the endpoint's own log, which says what fails there",
                }
            ]
        }
    }
    markdown = (report / "report.md").read_text()
    (line,) = [line for line in markdown.splitlines() if line.startswith("> **Failed**: test, stability: 8 × HTTP 500")]
    assert line.endswith("the endpoint's own log, which says what fails there.")
    assert not set("<>*[]|$") & set(line.removeprefix("> **Failed**"))
    page = (report / "index.html").read_text()
    assert "8 × HTTP 500: " in page
    assert "<img src=x" not in page
    assert 'href="http://evil.invalid' not in page


def test_a_complete_run_reports_no_failures(
    served: Callable[[Ailing], OpenAIServer], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    script = Ailing(error(500), 10, answer)
    server = served(script)
    values = stability_values(tmp_path, server.base_url)
    start("stability", tmp_path, values, capsys)
    script.is_cured = True
    assert start("stability", tmp_path, values, capsys)[0] == 0
    report = tmp_path / "run" / "report"
    assert json.loads((report / "table.json").read_text())["failures"] == {}
    assert "Failed" not in (report / "report.md").read_text()

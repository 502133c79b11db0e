"""An incomplete run says why, and every command shares what a run found out about its endpoint."""

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from permix import cli
from permix.config import FidelityConfig, StabilityConfig
from permix.errors import DataError
from permix.evals.interview import prepare_interview, run_interview
from permix.inference.base import remember_request_changes
from permix.inference.request_body import FilteredReplyError, RequestBody
from permix.storage.failures import (
    JUDGE_OPTIONS,
    MODEL_OPTIONS,
    FailureCause,
    NextStart,
    explain_missing,
    find_cause,
    find_cure,
    find_failures,
    is_permanent,
)
from permix.types import Failure, Message, Sampling, Verdict
from tests.cell_files import read_cells
from tests.inference.test_openai import model_at
from tests.sample_runs import answered, cell, endpoint, fidelity_config, fidelity_values, stability_values, toml
from tests.servers import Action, Reply, error, openai_server

RATE = "HTTP 429: slow down"


def failures(*counted: tuple[int, str, str]) -> list[Failure]:
    return [Failure(type=kind, message=message) for n, kind, message in counted for _ in range(n)]


@pytest.mark.parametrize(
    ("found", "text"),
    [
        ([], "; run the same command again to fill them"),
        (
            failures((20, "RateLimitError", RATE)),
            "; run the same command again to fill them (20 × HTTP 429: slow down); what helps: a smaller model.concurrency",
        ),
        (
            failures((1, "TimeoutError", "no complete reply within model.timeout_s = 5"), (2, "RateLimitError", RATE)),
            "; run the same command again to fill them (2 × HTTP 429: slow down; "
            "1 × TimeoutError: no complete reply within model.timeout_s = 5); what helps: a smaller model.concurrency; a larger "
            "model.timeout_s",
        ),
        (
            failures((1, "A", "x"), (4, "B", "x"), (3, "C", "x"), (2, "D", "x"), (1, "E", "x")),
            "; run the same command again to fill them (4 × B: x; 3 × C: x; 2 × D: x; 2 × other reasons)",
        ),
        (
            failures((3, "FilteredReplyError", "a content filter stopped the reply")),
            "; running the same command again does not help, since the endpoint refuses these requests, or a content filter "
            "stops the replies: 3 × FilteredReplyError: a content filter stopped the reply; what helps: a content filter that is "
            "switched off at the endpoint, or other personas and questions",
        ),
        (
            failures((3, "BadRequestError", "HTTP 400: Unknown role: system")),
            "; running the same command again does not help, since the endpoint refuses these requests, or a content filter "
            "stops the replies: 3 × HTTP 400: Unknown role: system; what helps: --personas.template in_question, which puts the "
            "persona into the user's message",
        ),
        (
            failures((3, "BadRequestError", "HTTP 400: Unsupported parameter: 'n'"), (1, "RateLimitError", RATE)),
            "; run the same command again to fill them (3 × HTTP 400: Unsupported parameter: 'n'; 1 × HTTP 429: slow down; it "
            "does not help with 3 of them, since the endpoint refuses these requests, or a content filter stops the replies); "
            "what helps: a smaller model.concurrency",
        ),
        (
            [Failure(type="X", message=f"asked for {n} of 64") for n in range(5)],
            "; run the same command again to fill them (5 × X: asked for 0 of 64)",
        ),
        (
            failures((1, "X", "\x1b[2J\u202e two\nlines sk-hunter2hunter2hunter2" + "y" * 10_000)),
            "; run the same command again to fill them (1 × X: \\x1b[2J\\u202e two lines (hidden))",
        ),
    ],
)
def test_reasons_are_counted_by_kind(found: list[Failure], text: str) -> None:
    assert explain_missing(found) == text


@pytest.mark.parametrize(
    ("kind", "message", "permanent"),
    [
        (FilteredReplyError.__name__, "a content filter stopped the reply", True),
        ("BadRequestError", "HTTP 400: The response was filtered due to the prompt triggering content management policy", True),
        ("BadRequestError", "HTTP 400: This model's maximum context length is 64 tokens", True),
        ("UnprocessableEntityError", "HTTP 422: top_k: Extra inputs are not permitted", True),
        ("APIStatusError", "HTTP 413: too large", True),
        ("UnicodeEncodeError", "surrogates not allowed", True),
        ("BadRequestError", "HTTP 400: Developer instruction is not enabled", True),
        ("InternalServerError", "HTTP 500: Unknown role: system", True),
        ("BadRequestError", "HTTP 400: try again", False),
        ("RateLimitError", "HTTP 429: slow down", False),
        ("InternalServerError", "HTTP 500: ", False),
        ("AuthenticationError", "HTTP 401: no key", False),
        ("TimeoutError", "no complete reply within model.timeout_s = 5", False),
        ("scorer", "RuntimeError: out of memory", False),
    ],
)
def test_what_is_refused_for_good(kind: str, message: str, permanent: bool) -> None:
    assert is_permanent(Failure(type=kind, message=message)) == permanent


@pytest.mark.parametrize(
    ("kind", "message", "cause", "cure"),
    [
        ("RateLimitError", "HTTP 429: You exceeded your current quota, see billing", "QUOTA", "new credit at the provider"),
        ("APIStatusError", "HTTP 402: Payment Required", "QUOTA", "new credit at the provider"),
        ("BadRequestError", "HTTP 400: Your credit balance is too low", "QUOTA", "new credit at the provider"),
        ("RateLimitError", RATE, "RATE_LIMIT", "a smaller judge.concurrency"),
        ("RateLimitError", "HTTP 429: Limit of 10000 tokens per minute", "RATE_LIMIT", "a smaller judge.concurrency"),
        ("FilteredReplyError", "a content filter stopped the reply", "CONTENT_FILTER", "a content filter that is switched off"),
        ("PermissionDeniedError", "HTTP 403: Input was flagged", "CONTENT_FILTER", "a content filter that is switched off"),
        (
            "BadRequestError",
            "HTTP 400: maximum context length is 64",
            "CONTEXT_LENGTH",
            "shorter prompts, or a smaller judge.max_new",
        ),
        (
            "BadRequestError",
            "HTTP 400: prompt is too long: 9 tokens",
            "CONTEXT_LENGTH",
            "shorter prompts, or a smaller judge.max_new",
        ),
        ("APIStatusError", "HTTP 413: Payload Too Large", "CONTEXT_LENGTH", "shorter prompts, or a smaller judge.max_new_tokens"),
        (
            "AuthenticationError",
            "HTTP 401: no key",
            "KEY",
            "a valid key in the environment variable that judge.api",
        ),
        ("NotFoundError", "HTTP 404: no such model", "NOT_FOUND", "another judge.name, or a judge.base_url that ends in /v1"),
        ("MalformedReplyError", "reply: bad JSON; the reply was \n<HTML>", "WEB_PAGE", "a judge.base_url that ends in /v1"),
        ("MalformedReplyError", "empty completion without a generated token", "EMPTY_REPLY", ""),
        ("MalformedReplyError", "reply: bad JSON; the reply was {", None, ""),
        ("TimeoutError", "no complete reply within model.timeout_s = 5", "TIMEOUT", "a larger judge.timeout_s"),
        ("APIConnectionError", "Connection error.", "NO_CONNECTION", "an endpoint that runs at judge.base_url"),
        ("InternalServerError", "HTTP 503: busy", "SERVER_ERROR", "the endpoint's own log, which says what fails there"),
        ("BadRequestError", "HTTP 400: no", None, ""),
        ("BadRequestError", "HTTP 400: Developer instruction is not enabled for x", "SYSTEM_ROLE", "another judge.name"),
        ("InternalServerError", "HTTP 500: Conversation roles must alternate", "SYSTEM_ROLE", "another judge.name"),
        ("scorer", "TimeoutError: HTTP 500: content filter", None, ""),
    ],
)
def test_causes_and_what_helps(kind: str, message: str, cause: str | None, cure: str) -> None:
    failure = Failure(type=kind, message=message)
    found = find_cause(failure)
    assert (found and found.name) == cause
    assert find_cure(failure, JUDGE_OPTIONS).startswith(cure)
    assert (find_cure(failure, JUDGE_OPTIONS) == "") == (cure == "")


def test_cures_name_options_that_exist() -> None:
    for options, config in ((MODEL_OPTIONS, StabilityConfig), (JUDGE_OPTIONS, FidelityConfig)):
        for cause in FailureCause:
            for section, field in re.findall(r"\b(model|judge|sampling)\.(\w+)", cause.cure(options)):
                inner = config.model_fields[section].annotation
                assert inner is not None
                assert field in inner.model_fields


def test_a_stop_is_named_before_what_to_do() -> None:
    found = failures((8, "InternalServerError", "HTTP 500: no GPU"))
    assert explain_missing(found, stop_reason="http://x/v1: asked no more") == (
        "; http://x/v1: asked no more; run the same command again to fill them (8 × HTTP 500: no GPU); what helps: the "
        "endpoint's own log, which says what fails there"
    )
    # The requests that were never sent may be answered, whatever became of those that were.
    assert "does not help with 2 of them" in explain_missing(failures((2, "FilteredReplyError", "x")), stop_reason="stopped")
    assert explain_missing([], stop_reason="stopped") == "; stopped; run the same command again to fill them"


def test_a_refusal_that_the_next_requests_do_without_is_not_for_good() -> None:
    start = NextStart("write the next batch", "writing it again", ("at most 16 of `seed`",))
    refused, filtered = (2, "UnprocessableEntityError", "HTTP 422: at most 32 of `seed`"), (1, "FilteredReplyError", "x")
    assert explain_missing(failures(refused), start) == "; write the next batch (2 × HTTP 422: at most 32 of `seed`)"
    assert "; it does not help with 1 of them, since" in explain_missing(failures(refused, filtered), start)
    assert explain_missing(failures(filtered), start).startswith("; writing it again does not help, since")


def test_failures_of_cells_with_and_without_scores() -> None:
    late = Failure(type="TimeoutError", message="late")
    broken = answered("q2", correct=None).model_copy(update={"verdict": Verdict(correct=None, error="no sandbox")})
    cells = {one.key: one for one in (answered("q1"), broken, cell("q3", failure=late), cell("q4"))}
    assert list(find_failures(cells, scored=True)) == [Failure(type="scorer", message="no sandbox"), late]
    assert list(find_failures(cells, scored=False)) == [late]


def flaky(body: Mapping[str, Any], nth: int, headers: Mapping[str, str]) -> Action:
    refused = error(400, "content_policy_violation")
    actions: list[Action] = [Reply("18"), Reply("8", finish="content_filter"), error(500, "busy\x1b"), refused]
    return actions[nth % 4]


@pytest.mark.parametrize("command", ["stability", "fidelity"])
def test_a_command_that_ends_incomplete_names_its_reasons(
    command: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    values = {"stability": stability_values, "fidelity": fidelity_values}[command]
    with openai_server(flaky) as server:
        (tmp_path / "run.toml").write_text(toml(values(tmp_path, server.base_url)))
        assert cli.run_cli([command, str(tmp_path / "run.toml")]) == 3
    said = capsys.readouterr().err.splitlines()[-1]
    n = 6 if command == "stability" else 9
    assert f"; run the same command again to fill them ({n} × FilteredReplyError: a content filter stopped the reply" in said
    assert f"; {n} × HTTP 500: busy\\x1b" in said
    assert f"; {n} × HTTP 400: content_policy_violation; it does not help with {2 * n} of them" in said
    assert said.endswith(
        "; what helps: a content filter that is switched off at the endpoint, or other personas and questions; the endpoint's "
        "own log, which says what fails there"
    )


# What is found out about an endpoint


def no_seed(body: Mapping[str, Any], nth: int, headers: Mapping[str, str]) -> Action:
    return error(400, "'seed' is not supported") if "seed" in body else Reply("Do you agree?")


def test_an_interviewer_and_its_model_are_kept_apart(tmp_path: Path) -> None:
    with openai_server(no_seed) as server, openai_server(lambda *_: "I like it.") as other:
        config = fidelity_config(tmp_path, other.base_url, interview={"turns": 3}, interviewer=endpoint(server.base_url))
        run_interview(config)
        found = json.loads((tmp_path / "run" / "endpoint.json").read_text())
        assert found == {f"test at {server.base_url}": {"seed": "'seed' is not supported"}}
        assert all("seed" in one.body for one in other.asked), "nobody refused it there"
        assert len([one for one in server.asked if "seed" in one.body]) == 1
        assert prepare_interview(config).question_orders is None


@pytest.mark.slow
def test_a_judge_remembers_between_starts(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def habit(body: Mapping[str, Any], nth: int, headers: Mapping[str, str]) -> Action:
        return (
            no_seed(body, nth, headers)
            if "seed" in body
            else Reply('{"reason": "So it is.", "score": 4}' if "response_format" in body else "Well.")
        )

    with openai_server(habit) as server:
        values = fidelity_values(tmp_path, server.base_url, judge=endpoint(server.base_url, label="j", answers_per_control=20))
        (tmp_path / "run.toml").write_text(toml(values))
        assert cli.run_cli(["fidelity", str(tmp_path / "run.toml")]) == 0
        judge = tmp_path / "run" / "judges" / "j"
        for folder in (tmp_path / "run", judge):
            assert json.loads((folder / "endpoint.json").read_text()) == {
                f"test at {server.base_url}": {"seed": "'seed' is not supported"}
            }
        lines = (judge / "judgements.jsonl").read_text().splitlines(keepends=True)
        (judge / "judgements.jsonl").write_text("".join(lines[:-2]))
        n = len(server.asked)
        assert cli.run_cli(["fidelity", str(tmp_path / "run.toml")]) == 0
        assert [("seed" in one.body) for one in server.asked[n:]] == [False, False], "nothing is found out again"
        assert capsys.readouterr().err.count("note: ") == 2
        assert len(read_cells(tmp_path / "run" / "records.jsonl")) == 36


@pytest.mark.parametrize(
    "text",
    [
        "", "{", "[]", "\x00",
        '{"a": 1}', '{"a": {"messages": "x"}}', '{"a": {"model": "x"}}', '{"a": {"seed": 1}}', '{"seed": "x"}',
        "[" * 100_000, '{"a": ' + "9" * 10_000 + "}",
    ],
)  # fmt: skip
def test_a_damaged_file_is_refused(text: str, tmp_path: Path) -> None:
    (tmp_path / "endpoint.json").write_text(text)
    with (
        pytest.raises(DataError, match=r"endpoint\.json: "),
        remember_request_changes(model_at("http://127.0.0.1:1/v1"), tmp_path),
    ):
        pass


def test_what_was_found_out_never_drops_a_setting_that_matters() -> None:
    body = RequestBody("m")
    body.changes["top_p"] = "refused at 1"
    messages = (Message(role="user", content="q"),)
    assert "top_p" not in body.build(messages, 0, Sampling())
    assert body.build(messages, 0, Sampling(temperature=1, top_p=0.9))["top_p"] == 0.9

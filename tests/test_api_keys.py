"""The API key is in nothing that permix writes or prints, however an endpoint repeats it."""

import json
import logging
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from permix import cli
from permix.config import InterviewerConfig, JudgeModelConfig, ModelConfig
from permix.errors import ConfigError
from permix.inference.openai import OpenAIModel
from permix.sanitize import redact_arguments, redact_secrets
from tests.inference.test_openai import model_at, questions
from tests.sample_runs import endpoint, fidelity_values, stability_values, toml
from tests.servers import Action, Raw, Reply, openai_server

KEY = "Key/zq7Vx+mWp2R=0123456789"
"""With characters that URLs, JSON and HTML may write in other ways, and without a prefix that gives it away."""
PIECE = "zq7Vx"  # half a key is a leak too

WRITTEN = (
    KEY,
    KEY.replace("/", "\\/"),
    KEY.replace("/", "%2F").replace("+", "%2B").replace("=", "%3D"),
    KEY.replace("/", "\\u002f").replace("=", "\\u003d"),
    "".join(f"&#{ord(c)};" for c in KEY),
    "".join(f"\\u{ord(c):04x}" for c in KEY),
)


@pytest.fixture(autouse=True)
def _environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PERMIX_TEST_KEY", KEY)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")


def refused(message: str, status: int = 400) -> Raw:
    return Raw(json.dumps({"error": {"message": message}}).encode(), status, {"X-Echo": KEY})


def echoing(body: dict[str, Any], nth: int, headers: Mapping[str, str]) -> Action:
    """Refuses a field, some requests, and answers the others, with the key in every word."""
    if "max_tokens" in body:
        return refused("x" * 280 + f" {KEY} max_tokens is not supported; use max_completion_tokens")
    written = WRITTEN[nth % len(WRITTEN)]
    actions: list[Action] = [
        Reply(f"18 {written} [[4]]"),
        refused(f"Bearer {written}"),
        Raw(f"<html>{written}</html>".encode(), 503),
        Raw(f'{{"you": "{written}"}}'.encode()),
        Raw(f"data: {{{written}".encode()),
        Raw(b"x" * 470 + written.encode(), 400),
        Reply("8", finish="content_filter"),
        Raw(json.dumps({"choices": [{"message": {"content": "8", "reasoning": written}}]}).encode()),
        Raw(b"", 307, {"Location": f"http://evil.invalid/{written}"}),
    ]
    return actions[nth % 9]


def leaks(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*") if path.is_file() and PIECE.encode() in path.read_bytes()]


def command_line(path: Path, *words: str) -> list[str]:
    return [words[0], str(path), *words[1:]]


@pytest.mark.slow
def test_no_file_and_no_output_of_a_run_holds_the_key(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    with openai_server(echoing, models=Raw(json.dumps({"data": [{"id": "test", "root": KEY}]}).encode())) as server:
        model = endpoint(server.base_url, api_key_env="PERMIX_TEST_KEY", concurrency=2)
        values = stability_values(tmp_path, server.base_url, model=model)
        (tmp_path / "stability.toml").write_text(toml(values))
        assert cli.run_cli(command_line(tmp_path / "stability.toml", "stability")) == 3
        shown = fidelity_values(tmp_path, server.base_url, model=model, out=str(tmp_path / "fidelity"), judge=model)
        (tmp_path / "fidelity.toml").write_text(toml(shown))
        server.script = lambda body, nth, headers: echoing(body, 0, headers)
        assert cli.run_cli(command_line(tmp_path / "fidelity.toml", "fidelity")) in (0, 3)
        assert len({one.headers["Authorization"] for one in server.asked}) == 1
        assert cli.run_cli(["report", str(tmp_path / "run"), str(tmp_path / "fidelity"), "--out", str(tmp_path / "report")]) == 0
    found = "".join(capfd.readouterr()) + caplog.text
    assert "[redacted]" in found
    assert PIECE not in found
    assert leaks(tmp_path) == []
    assert {path.name for path in tmp_path.rglob("endpoint.json")} == {"endpoint.json"}
    assert (tmp_path / "report" / "index.html").exists()


def test_a_short_key_is_a_placeholder_and_stays_in_answers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PERMIX_TEST_KEY", "EMPTY")
    with openai_server(lambda *_: "the box is EMPTY") as server:
        (found,) = model_at(server.base_url, api_key_env="PERMIX_TEST_KEY").generate(questions(1), sampling())
    assert getattr(found.result, "text", "") == "the box is EMPTY"


def sampling() -> Any:
    from permix.types import Sampling

    return Sampling()


# Headers


def test_headers_arrive_with_the_values_of_their_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TEAM", " evals ")
    monkeypatch.setenv("GATE", 'a "quoted" one')
    with openai_server(lambda *_: "fine") as server:
        model = model_at(server.base_url, headers=("X-Team=TEAM", "api-key=GATE"))
        (found,) = model.generate(questions(1), sampling())
        assert getattr(found.result, "text", "") == "fine"
        assert {name.lower(): value for name, value in server.asked[0].headers.items()}.items() >= {
            ("x-team", "evals"),
            ("api-key", 'a "quoted" one'),
        }


def test_a_header_whose_variable_is_not_set_or_cannot_be_sent_is_refused_before_any_request(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delenv("TEAM", raising=False)
    with openai_server(lambda *_: "fine") as server:
        with pytest.raises(ConfigError, match=r"^model\.headers: the environment variable TEAM, .* of X-Team, is not set"):
            _ = model_at(server.base_url, headers=("X-Team=TEAM",)).fingerprint
        monkeypatch.setenv("TEAM", "hunter2\nX-Other: 1")
        with pytest.raises(ConfigError, match=r"^environment variable TEAM: is no value for the header X-Team") as caught:
            _ = model_at(server.base_url, headers=("X-Team=TEAM",)).fingerprint
        assert "hunter2" not in str(caught.value)
        assert server.asked == []


@pytest.mark.slow
@pytest.mark.parametrize("command", ["stability", "fidelity", "judge"])
def test_no_file_and_no_output_holds_the_value_of_a_header(
    command: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("GATE_VALUE", KEY)
    monkeypatch.setenv("PERMIX_TEST_KEY", "another-key-0123456789")
    monkeypatch.setitem(vars(OpenAIModel)["__init__"].__kwdefaults__, "backoff_s", 0.001)  # an endpoint that fails is asked often
    with openai_server(echoing) as server:
        model = endpoint(server.base_url, api_key_env="PERMIX_TEST_KEY", headers=["X-Gate=GATE_VALUE"])
        values = stability_values if command == "stability" else fidelity_values
        if command == "judge":
            server.script = lambda body, nth, headers: "[[4]]"
            (tmp_path / "fidelity.toml").write_text(toml(fidelity_values(tmp_path, server.base_url)))
            assert cli.run_cli(["fidelity", str(tmp_path / "fidelity.toml")]) == 0
            server.script = echoing
            shown: dict[str, Any] = {"run": str(tmp_path / "run"), "judge": model}
        else:
            shown = values(tmp_path, server.base_url, model=model)
        n_before = len(server.asked)
        (tmp_path / "a.toml").write_text(toml(shown))
        assert cli.run_cli([command, str(tmp_path / "a.toml")]) in (2, 3)
        assert {one.headers["X-Gate"] for one in server.asked[n_before:]} == {KEY}
    found = "".join(capfd.readouterr())
    assert "[redacted]" in found
    assert PIECE not in found
    assert leaks(tmp_path) == []
    if command != "fidelity":
        assert any(b"X-Gate=GATE_VALUE" in path.read_bytes() for path in tmp_path.rglob("config.json"))


def test_a_short_value_of_a_header_stays_in_messages(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BETA", "1")
    monkeypatch.setenv("GATE_VALUE", "open-sesame")
    with openai_server(lambda *_: refused("1 of open-sesame%21 and open-sesame")) as server:
        model = model_at(server.base_url, headers=("X-Beta=BETA", "X-Gate=GATE_VALUE"))
        (found,) = model.generate(questions(1), sampling())
    assert getattr(found.result, "message", "") == "HTTP 400: 1 of [redacted]%21 and [redacted]"


def test_headers_are_no_part_of_what_the_model_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TEAM", "evals")
    with openai_server(lambda *_: "fine") as server:
        prints = {model_at(server.base_url, headers=headers).fingerprint for headers in ((), ("X-Team=TEAM",))}
    assert len(prints) == 1
    from permix.config import TeacherConfig, TrainConfig
    from permix.training.sft_data import teacher_identity

    teacher = {"name": "m", "backend": "openai", "base_url": "http://h/v1"}
    plain, with_header = (
        teacher_identity(TrainConfig(method="seqkd", teacher=TeacherConfig.model_validate(teacher | added)))
        for added in ({}, {"headers": ["X-Team=TEAM"]})
    )
    assert plain == with_header


@pytest.mark.parametrize("section", [ModelConfig, JudgeModelConfig, InterviewerConfig])
@pytest.mark.parametrize(
    ("headers", "words"),
    [
        (["Authorization=GATE"], "Authorization is set by permix itself; leave it out; the key belongs into the environment"),
        (["AUTHORIZATION=GATE"], "AUTHORIZATION is set by permix itself"),
        (["X-A=A", "Content-Length=GATE"], "Content-Length is set by permix itself; leave it out"),
        (["X-Gate: hunter2"], "entry 1 must be NAME=VARIABLE, such as X-Project=MY_PROJECT"),
        (["X-A=A", "X Gate=GATE"], "entry 2 must be NAME=VARIABLE"),
        (["=GATE"], "entry 1 must be NAME=VARIABLE"),
        (["X-Gate=sk-hunter2"], "entry 1: after = must be the name of an environment variable"),
        (["X-Gate=hunter2hunter2hunter2hunter2"], "entry 1: after = must be the name of an environment variable"),
        (["hunter2=="], "entry 1: after = must be the name of an environment variable"),
        (["X-Gate="], "entry 1: after = must be the name of an environment variable"),
        (["X-Gate=A", "x-gate=B"], "x-gate is given twice; give it once"),
    ],
)
def test_headers_that_cannot_be_sent_are_refused_and_not_repeated(
    section: type[ModelConfig], headers: list[str], words: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(ValueError, match="headers") as caught:
        section(name="m", backend="openai", base_url="http://h/v1", headers=tuple(headers))
    assert words in str(caught.value)
    (tmp_path / "run.toml").write_text(toml({"judge": {"backend": "openai", "base_url": "http://h/v1", "headers": headers}}))
    assert cli.run_cli(["judge", str(tmp_path / "run.toml")]) == 2
    flags = ["--judge.backend", "openai", "--judge.base-url", "http://h/v1", "--judge.headers", *headers]
    assert cli.run_cli(["judge", "x", *flags]) == 2
    shown = "".join(capsys.readouterr())
    assert shown.count(f"judge.headers: {words}") == 2
    assert "hunter2" not in str(caught.value) + shown


def test_a_model_in_this_process_takes_no_headers() -> None:
    with pytest.raises(ValueError, match='headers: backend "transformers" sends no HTTP request; leave headers out'):
        ModelConfig(headers=("X-Team=TEAM",))


def test_a_traceback_holds_no_key() -> None:
    """A bug in permix's own code, at the worst moment: the environment holds the key, locals are not printed."""
    code = """
import sys
from permix.config import ModelConfig
from permix.inference import openai, openai_endpoint
from permix.types import Request, Sampling
def broken(*_): raise RuntimeError("a bug")
openai_endpoint.Endpoint._raise_if_all_refused = broken
model = openai.OpenAIModel(ModelConfig(name="test", backend="openai", base_url=sys.argv[1], api_key_env="PERMIX_TEST_KEY"))
list(model.generate([Request(({"role": "user", "content": "q"},), 0)], Sampling()))
"""
    with openai_server(lambda *_: refused(f"no {KEY}")) as server:
        done = subprocess.run([sys.executable, "-c", code, server.base_url], capture_output=True, text=True, timeout=60)
    assert "RuntimeError: a bug" in done.stderr
    assert PIECE not in done.stderr


# What the configuration refuses


@pytest.mark.parametrize("section", [ModelConfig, JudgeModelConfig])
@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"base_url": "https://user:hunter2@h/v1"}, "base_url holds credentials; put the key into the environment variable"),
        ({"base_url": "https://hunter2@h/v1"}, "base_url holds credentials"),
        ({"base_url": "https://h/v1?api_key=hunter2"}, "base_url holds credentials"),
        ({"base_url": "https://h/v1?x=hunter2"}, "without a query; put a key into the environment variable"),
        ({"base_url": "https://h/v1#hunter2"}, "without a query"),
        ({"base_url": "https://h/sk-hunter2hunter2hunter2/v1"}, "base_url holds credentials"),
        ({"api_key_env": "sk-hunter2"}, "api_key_env is not the name of an environment variable"),
        ({"api_key_env": "gsk_hunter2hunter2hunter2"}, "api_key_env is not the name"),
        ({"api_key_env": "hunter2hunter2hunter2hunter2"}, "api_key_env is not the name"),
        ({"extra_body": '{"api_key": "hunter2"}'}, "holds a secret in 'api_key', and the run records it"),
        ({"extra_body": '{"headers": {"Authorization": "hunter2"}}'}, "holds a secret in 'Authorization'"),
        ({"extra_body": '{"metadata": [{"x": "sk-hunter2hunter2hunter2"}]}'}, "holds a secret in 'x'"),
    ],
)
def test_a_configuration_with_a_secret_is_refused_and_not_repeated(
    section: type[ModelConfig], fields: dict[str, Any], words: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    values = {"name": "m", "backend": "openai", "base_url": "http://h/v1", **fields}
    with pytest.raises(ValueError, match="environment variable") as caught:
        section(**values)
    assert words in str(caught.value)
    (tmp_path / "run.toml").write_text(toml({"stage": "judge", "run": "x", "judge": values}))
    assert cli.run_cli(["judge", str(tmp_path / "run.toml")]) == 2
    flags = [word for name, value in values.items() for word in (f"--judge.{name.replace('_', '-')}", value)]
    assert cli.run_cli(["judge", "x", *flags]) == 2
    shown = "".join(capsys.readouterr())
    assert shown.count(words) == 2
    assert "hunter2" not in str(caught.value) + shown


@pytest.mark.parametrize(
    ("typed", "kept"),
    [
        (["--x.api-key", "hunter2"], ["--x.api-key", "(hidden)"]),
        (["--password=hunter2"], ["--password=(hidden)"]),
        (["https://u:hunter2@h/v1"], ["https://(hidden)@h/v1"]),
        (["https://h/v1?a=1&api_key=hunter2&b=2"], ["https://h/v1?a=1&api_key=(hidden)&b=2"]),
        (["https://h/?access_token=hunter2#x"], ["https://h/?access_token=(hidden)#x"]),
        (["gsk_hunter2hunter2hunter2"], ["(hidden)"]),
        (["AIzahunter2hunter2hunter2"], ["(hidden)"]),
        (["--task.n", "3", "--out", "runs/key=1"], ["--task.n", "3", "--out", "runs/key=1"]),
    ],
)
def test_what_was_typed_is_recorded_without_secrets(typed: list[str], kept: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    assert list(redact_arguments(typed)) == kept
    from permix.storage.run_dir import collect_provenance

    monkeypatch.setattr(sys, "argv", ["/bin/permix", *typed])
    assert collect_provenance()["command"] == ["permix", *kept]


def test_redacting_takes_linear_time() -> None:
    for unit in ("//", "//a@", "?key=", "sk-", "&api_key=", "a" * 10 + "@"):
        assert redact_secrets(unit * 200_000) is not None

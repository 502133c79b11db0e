"""A run goes on at another address if the model there is the same: by what its server says of the weights, or by the user."""

import json
import multiprocessing
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from html import unescape
from pathlib import Path
from typing import Any

import pytest

import permix
from permix import cli
from permix.config import ConfigSection, JudgeConfig, ModelConfig, StabilityConfig, build_config, normalize_address
from permix.errors import ConfigError, DataError, IncompleteRunError, MissingScoresError
from permix.evals.stability import run_stability
from permix.inference.addresses import (
    MAX_NAME_CHARS,
    AddressCheck,
    AddressUse,
    ConfirmedBy,
    ModelAddresses,
    ServerStatement,
    check_addresses,
    parse_statement,
    read_addresses,
)
from permix.inference.openai import OpenAIModel
from permix.inference.scripted import ScriptedModel
from permix.judges.judging import judge_fidelity_run
from permix.pipelines.fidelity import run_fidelity
from permix.storage.files import read_json
from tests.judges.judgeable import GOOD, answered_run, judge_stage
from tests.sample_runs import asked_what, endpoint, fidelity_config, solve, stability_config, stability_values, toml
from tests.servers import Action, OpenAIServer, Raw, error, listing, openai_server

ROOT_A, ROOT_B = listing("test", root="/w/a"), listing("test", root="/w/b")
GGUF = {"n_params": 135_000_000, "size": 270_000_000, "n_vocab": 49_152, "n_embd": 576, "n_ctx_train": 8_192}
LLAMA_CPP = listing("test", meta=GGUF)
SILENT = listing("test", root="test", owned_by="sglang", max_model_len=8_192)  # as SGLang: the name again


@pytest.fixture(autouse=True)
def _no_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")


def right(body: Mapping[str, Any], nth: int = 0, headers: Mapping[str, str] = {}) -> str:
    return f"The answer is {solve(asked_what(body))}."


def one_failure(at: int) -> Any:
    return lambda body, nth, headers: error(400, "no") if nth == at else right(body)


@contextmanager
def two_servers(first: Action | None, second: Action | None) -> Iterator[tuple[OpenAIServer, OpenAIServer]]:
    """Two servers, of which the first refuses its eighth request."""
    with openai_server(one_failure(7), models=first) as one, openai_server(right, models=second) as other:
        yield one, other


def config_at(folder: Path, server: OpenAIServer, **model: Any) -> StabilityConfig:
    return stability_config(folder, server.base_url, model=endpoint(server.base_url, **model))


def started(folder: Path, server: OpenAIServer) -> None:
    """A run that lacks one of its 24 answers."""
    with pytest.raises(IncompleteRunError):
        run_stability(config_at(folder, server))


def uses(folder: Path, section: str = "model") -> list[tuple[str, dict[str, Any], str | None]]:
    recorded = read_addresses(folder / "run")[section].addresses
    return [(use.address, use.server_says, use.confirmed_by) for use in recorded]


def at(server: OpenAIServer) -> str:
    return server.base_url.removeprefix("http://")


def record_address(
    run: Path, model: OpenAIModel, address: str, server_says: ServerStatement, confirmed_by: ConfirmedBy | None
) -> None:
    """Record in `run` that the model answers at `address`, if it is not recorded yet with this statement of the server."""
    use = AddressUse(address=address, first_used="2026-01-01", server_says=dict(server_says), confirmed_by=confirmed_by)
    known = ModelAddresses(name=model.name, request=model.request_digest, addresses=())
    AddressCheck("model", "model", model=known, former_uses=(use,)).record(run)


def completions(folder: Path) -> dict[str, str]:
    """The text that counts of each cell, by its key: the last record."""
    lines = [json.loads(line) for line in (folder / "run" / "records.jsonl").read_text().splitlines()]
    return {f"{one['persona_id']} {one['question_id']}": json.dumps([one["messages"], one["completion"]]) for one in lines}


# The rule


@pytest.mark.parametrize(
    ("before", "after", "said"),
    [
        (ROOT_A, ROOT_A, {"root": "/w/a"}),
        (LLAMA_CPP, LLAMA_CPP, {name: GGUF[name] for name in ("n_params", "size", "n_vocab", "n_embd")}),
        (listing("test", root="/adapter", parent="base", created=1), listing("test", root="/adapter", parent="base", created=2),
         {"root": "/adapter", "parent": "base"}),
    ],
)  # fmt: skip
def test_equal_statements_are_enough(
    before: Raw, after: Raw, said: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with two_servers(before, after) as (one, other):
        started(tmp_path, one)
        assert run_stability(config_at(tmp_path, other)).n_scored == 18
        assert len(other.asked) == 1
        assert uses(tmp_path) == [(at(one), said, None), (at(other), said, "server")]
        shown = capsys.readouterr().err.replace("\n", " ")
        assert f"note: model: the run goes on at {at(other)}, whose server says the same: " in shown
        run_stability(config_at(tmp_path, other))
        run_stability(config_at(tmp_path, one))
        assert len(uses(tmp_path)) == 2
        assert "goes on" not in capsys.readouterr().err


@pytest.mark.parametrize(
    ("before", "after", "first", "second"),
    [
        (ROOT_A, ROOT_B, "root = '/w/a'", "root = '/w/b'"),
        (listing("test", root="/l", parent="a"), listing("test", root="/l", parent="b"), "parent = 'a'", "parent = 'b'"),
    ],
)
def test_other_names_of_weights_are_refused_and_may_be_confirmed(
    before: Raw, after: Raw, first: str, second: str, tmp_path: Path
) -> None:
    with two_servers(before, after) as (one, other):
        started(tmp_path, one)
        with pytest.raises(ConfigError) as refused:
            run_stability(config_at(tmp_path, other))
        assert str(refused.value) == (
            f"out = {tmp_path / 'run'}: this run was made with other weights under the same model.name: the server at {at(one)} "
            f"said {first}, the server at {at(other)} says {second}; give another folder, or the model that the run was made "
            "with; if both are the same weights, confirm it once with --model.same-weights"
        )
        assert (len(other.asked), len(uses(tmp_path))) == (0, 1)
        assert run_stability(config_at(tmp_path, other, same_weights=True)).n_scored == 18
        run_stability(config_at(tmp_path, other))
        run_stability(config_at(tmp_path, one))
        assert [by for _, _, by in uses(tmp_path)] == [None, "user"]


def test_other_sizes_are_refused_and_cannot_be_confirmed(tmp_path: Path) -> None:
    larger = listing("test", root="/elsewhere", meta=GGUF | {"size": 540_000_000})
    with two_servers(listing("test", root="/here", meta=GGUF), larger) as (one, other):
        started(tmp_path, one)
        for confirmed in (False, True):
            with pytest.raises(ConfigError) as refused:
                run_stability(config_at(tmp_path, other, same_weights=confirmed))
            assert "said root = '/here', size = 270000000, the server at" in str(refused.value)
            assert "says root = '/elsewhere', size = 540000000; give another folder" in str(refused.value)
            assert "same-weights" not in str(refused.value)
        assert len(uses(tmp_path)) == 1


SILENCE = [
    (SILENT, SILENT, "where the server says nothing of its weights"),
    (None, None, "where the server says nothing of its weights"),
    (listing("other"), error(404), "where the server says nothing of its weights"),
    (ROOT_A, SILENT, "where the server says nothing of its weights"),
    (SILENT, ROOT_A, "where the server says root = '/w/a', while nothing was said of the weights before"),
    (ROOT_A, LLAMA_CPP, "which cannot be compared with what was said before"),
    (listing("test", root="test", parent="a"), listing("test", root="test", parent="a"), "which cannot be compared"),
]


@pytest.mark.parametrize(("before", "after", "why"), SILENCE)
def test_without_a_statement_on_both_sides_the_user_confirms_once(
    before: Raw | None, after: Raw | None, why: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with two_servers(before, after) as (one, other):
        started(tmp_path, one)
        with pytest.raises(ConfigError) as refused:
            run_stability(config_at(tmp_path, other))
        message = str(refused.value)
        assert message.startswith(
            f"out = {tmp_path / 'run'}: this run was answered by 'test' at {at(one)}, and would go on at {at(other)}, "
        )
        assert why in message
        assert message.endswith("confirm it once with --model.same-weights, else give another folder")
        assert "\n" not in message
        assert len(other.asked) == 0
        capsys.readouterr()
        assert run_stability(config_at(tmp_path, other, same_weights=True)).n_scored == 18
        assert len(other.asked) == 1
        shown = capsys.readouterr().err.replace("\n", " ")
        assert f"the run goes on at {at(other)}; addresses.json records that you confirmed the weights" in shown
        assert [(where, by) for where, _, by in uses(tmp_path)] == [(at(one), None), (at(other), "user")]
        run_stability(config_at(tmp_path, other))
        run_stability(config_at(tmp_path, one))
        assert len(uses(tmp_path)) == 2


def test_a_server_that_says_something_else_at_the_same_address_is_checked(tmp_path: Path) -> None:
    with openai_server(right, models=SILENT) as server:
        run_stability(config_at(tmp_path, server))
        server.models = ROOT_A
        with pytest.raises(ConfigError, match=r"where the server now says root = '/w/a', while nothing was said"):
            run_stability(config_at(tmp_path, server))
        run_stability(config_at(tmp_path, server, same_weights=True))
        server.models = ROOT_B
        with pytest.raises(ConfigError, match=r"said root = '/w/a', the server at .* says root = '/w/b'"):
            run_stability(config_at(tmp_path, server))
        server.models = error(404)
        run_stability(config_at(tmp_path, server))
    assert [said for _, said, _ in uses(tmp_path)] == [{}, {"root": "/w/a"}]


def test_the_first_start_needs_no_confirmation_and_one_that_was_refused_records_nothing(tmp_path: Path) -> None:
    with openai_server(right, models=SILENT) as server:
        run_stability(config_at(tmp_path, server))
        before = (tmp_path / "run" / "addresses.json").read_bytes()
        with pytest.raises(ConfigError, match=r"this run was made with seed = 0, not 1"):
            run_stability(stability_config(tmp_path, server.base_url, seed=1))
        server.models = listing("else", "test")
        with pytest.raises(ConfigError, match=r"this run was made with model.name = 'test', not 'else'"):
            run_stability(config_at(tmp_path, server, name="else", same_weights=True))
        with pytest.raises(ConfigError, match=r"this run was made with model.extra_body = '', not '{\"a\": 1}'"):
            run_stability(config_at(tmp_path, server, extra_body='{"a": 1}', same_weights=True))
    assert (tmp_path / "run" / "addresses.json").read_bytes() == before
    assert uses(tmp_path) == [(at(server), {}, None)]


def test_a_later_address_is_compared_with_all_that_was_said(tmp_path: Path) -> None:
    """After the user confirmed that /w/b has the weights of /w/a, either name is enough, and a third one is not."""
    with openai_server(right, models=ROOT_A) as server:
        run_stability(config_at(tmp_path, server))
    model = OpenAIModel(config_at(tmp_path, server).model)
    run = tmp_path / "run"
    record_address(run, model, "second:1/v1", {"root": "/w/b"}, "user")
    record_address(run, model, "second:1/v1", {"root": "/w/b"}, "server")  # is recorded already
    with openai_server(right, models=ROOT_B) as third, openai_server(right, models=listing("test", root="/w/c")) as fourth:
        run_stability(config_at(tmp_path, third))
        with pytest.raises(ConfigError, match=r"said root = '/w/a', the server at .* says root = '/w/c'"):
            run_stability(config_at(tmp_path, fourth))
        third.models = SILENT
        with pytest.raises(ConfigError, match=rf"at {at(server)}, second:1/v1, {at(third)}, and would go on at {at(third)}, "):
            run_stability(config_at(tmp_path, third))
    assert [by for *_, by in uses(tmp_path)] == [None, "user", "server"]


def test_a_run_that_moved_has_the_records_of_one_that_did_not(tmp_path: Path) -> None:
    (tmp_path / "moved").mkdir()
    (tmp_path / "stayed").mkdir()
    with two_servers(ROOT_A, ROOT_A) as (one, other):
        run_stability(config_at(tmp_path / "stayed", other))
        started(tmp_path / "moved", one)
        run_stability(config_at(tmp_path / "moved", other))
    assert completions(tmp_path / "moved") == completions(tmp_path / "stayed")
    assert len(completions(tmp_path / "moved")) == 24
    for file in ("metrics.json", "grid.json"):
        assert read_json(tmp_path / "moved" / "run" / file) == read_json(tmp_path / "stayed" / "run" / file)
    identities = [read_json(tmp_path / name / "run" / "provenance.json")["identity"] for name in ("moved", "stayed")]
    assert identities[0] == identities[1]


def test_the_identity_stays_as_it_was(tmp_path: Path) -> None:
    """So runs that were comparable before one of them moved are comparable afterwards."""
    with two_servers(ROOT_A, SILENT) as (one, other):
        started(tmp_path, one)
        before = read_json(tmp_path / "run" / "provenance.json")
        run_stability(config_at(tmp_path, other, same_weights=True))
    assert read_json(tmp_path / "run" / "provenance.json") == before


def test_the_answers_of_a_killed_run_are_kept_at_another_address(tmp_path: Path) -> None:
    with openai_server(right, models=ROOT_A) as one, openai_server(right, models=ROOT_A) as other:
        killed = multiprocessing.get_context("fork").Process(target=_run_and_die, args=(tmp_path, one))
        killed.start()
        killed.join()
        assert killed.exitcode == -9
        n_before = len(completions(tmp_path))
        assert 0 < n_before < 24
        run_stability(config_at(tmp_path, other))
        assert len(other.asked) == 24 - n_before
        assert completions(tmp_path) == completions_of_one_start(tmp_path, other)


def _run_and_die(folder: Path, server: OpenAIServer) -> None:
    import os
    import signal

    from permix.storage.run_dir import RunDir

    append, n_appended = RunDir.append, 0

    def append_and_die(run: RunDir, cells: Any) -> None:
        nonlocal n_appended
        append(run, cells)
        n_appended += 1
        if n_appended == 7:
            os.kill(os.getpid(), signal.SIGKILL)

    RunDir.append = append_and_die  # type: ignore[method-assign, assignment]
    run_stability(config_at(folder, server))


def completions_of_one_start(folder: Path, server: OpenAIServer) -> dict[str, str]:
    (folder / "whole").mkdir()
    run_stability(config_at(folder / "whole", server))
    return completions(folder / "whole")


# Runs of earlier versions


def test_an_old_run_was_answered_at_the_address_in_its_configuration(tmp_path: Path) -> None:
    with two_servers(SILENT, SILENT) as (one, other):
        started(tmp_path, one)
        (tmp_path / "run" / "addresses.json").unlink()
        with pytest.raises(ConfigError, match=rf"answered by 'test' at {at(one)}, and would go on at {at(other)}, where"):
            run_stability(config_at(tmp_path, other))
        assert not (tmp_path / "run" / "addresses.json").exists()
        created = read_json(tmp_path / "run" / "provenance.json")["created"]
        run_stability(config_at(tmp_path, one))
        (tmp_path / "run" / "addresses.json").unlink()
        run_stability(config_at(tmp_path, other, same_weights=True))
    assert uses(tmp_path) == [(at(one), {}, None), (at(other), {}, "user")]
    assert read_addresses(tmp_path / "run")["model"].addresses[0].first_used == created


def test_an_old_run_whose_server_said_the_same_goes_on(tmp_path: Path) -> None:
    with two_servers(ROOT_A, ROOT_A) as (one, other):
        started(tmp_path, one)
        (tmp_path / "run" / "addresses.json").unlink()
        run_stability(config_at(tmp_path, other))
        assert uses(tmp_path) == [(at(one), {"root": "/w/a"}, None), (at(other), {"root": "/w/a"}, "server")]
        (tmp_path / "run" / "addresses.json").unlink()
        other.models = ROOT_B
        with pytest.raises(ConfigError, match=r"made with other weights, another tokenizer, .* under the same model.name; give"):
            run_stability(config_at(tmp_path, other))


def test_an_old_run_whose_server_said_nothing_may_be_confirmed(tmp_path: Path) -> None:
    with two_servers(None, ROOT_A) as (one, other):
        started(tmp_path, one)
        (tmp_path / "run" / "addresses.json").unlink()
        run_stability(config_at(tmp_path, other, same_weights=True))
    assert uses(tmp_path) == [(at(one), {}, None), (at(other), {"root": "/w/a"}, "user")]


@pytest.mark.parametrize("config", [None, "{", '{"model": {}}', '{"model": {"base_url": 3}}', '{"model": {"base_url": "h"}}'])
def test_an_old_run_without_an_address_goes_on_at_any(config: str | None, tmp_path: Path) -> None:
    with two_servers(SILENT, SILENT) as (one, other):
        started(tmp_path, one)
        (tmp_path / "run" / "addresses.json").unlink()
        file = tmp_path / "run" / "config.json"
        file.unlink() if config is None else file.write_text(config)
        run_stability(config_at(tmp_path, other))
    assert uses(tmp_path) == [(at(other), {}, None)]


# Other stages


def test_a_judge_is_confirmed_by_its_own_option_before_any_answer(tmp_path: Path) -> None:
    run = answered_run(tmp_path)
    flaky = openai_server(lambda body, nth, headers: error(500, "no") if nth == 3 else GOOD)
    with flaky as one, pytest.raises(MissingScoresError):
        judge_fidelity_run(judge_stage(run, one.base_url, attempts=1))
    folder = run / "judges" / "test"
    assert list(read_addresses(folder)) == ["judge"]
    with openai_server(lambda *_: GOOD) as other:
        moved = judge_stage(run, other.base_url, attempts=1)
        with pytest.raises(ConfigError) as refused:
            judge_fidelity_run(moved)
        assert str(refused.value).startswith(f"judge: out = {folder}: this run was answered by 'test' at {at(one)}, and ")
        assert "with --judge.same-weights, else" in str(refused.value)
        whole = fidelity_config(tmp_path, other.base_url, judge=moved.judge.model_dump(mode="json"))
        with pytest.raises(ConfigError, match=r"--judge.same-weights"):
            run_fidelity(whole.model_copy(update={"out": run}))
        assert other.asked == []
        judge_fidelity_run(judge_stage(run, other.base_url, attempts=1, same_weights=True))
        assert len(other.asked) == 1
        judge_fidelity_run(moved)
    assert [use.confirmed_by for use in read_addresses(folder)["judge"].addresses] == [None, "user"]


def interview(folder: Path, model: dict[str, Any], interviewer: dict[str, Any]) -> Any:
    return fidelity_config(folder, "http://unused/v1", model=model, interview={"turns": 3}, interviewer=interviewer)


def test_an_interviewer_and_its_model_are_checked_apart(tmp_path: Path) -> None:
    with openai_server(lambda *_: "What is it?") as one, openai_server(lambda *_: "What is it?") as other:
        run_fidelity(interview(tmp_path, endpoint(one.base_url), endpoint(one.base_url)))
        moved, confirmed = endpoint(other.base_url), endpoint(other.base_url, same_weights=True)
        with pytest.raises(ConfigError, match=r"with --interviewer.same-weights"):
            run_fidelity(interview(tmp_path, endpoint(one.base_url), moved))
        with pytest.raises(ConfigError, match=r"with --model.same-weights"):
            run_fidelity(interview(tmp_path, moved, confirmed))
        run_fidelity(interview(tmp_path, endpoint(one.base_url), confirmed))
        run_fidelity(interview(tmp_path, endpoint(one.base_url), moved))
    assert uses(tmp_path) == [(at(one), {}, None)]
    assert uses(tmp_path, "interviewer") == [(at(one), {}, None), (at(other), {}, "user")]


def test_a_model_made_in_python_brings_its_confirmation(tmp_path: Path) -> None:
    sums = [{"question": f"What is {n} + 5?", "answer": n + 5} for n in range(1, 5)]

    def evaluate(server: OpenAIServer, **fields: Any) -> permix.StabilityRun:
        model = permix.load_model(server.base_url, name="test", **fields)
        return permix.evaluate_stability(
            model, task=sums, answer="number", personas=["a poet", "a sailor"], out=tmp_path / "run", resamples=100
        )

    with openai_server(right) as one, openai_server(right) as other:
        evaluate(one)
        with pytest.raises(ConfigError, match=r"confirm it once with model\.same_weights=True, else"):  # a field, and no flag
            evaluate(other)
        evaluate(other, same_weights=True)
        evaluate(other)
    assert [by for *_, by in uses(tmp_path)] == [None, "user"]


# The option and the file


def test_the_confirmation_is_that_of_one_start_and_in_no_file(tmp_path: Path) -> None:
    with openai_server(right) as server:
        config = config_at(tmp_path, server, same_weights=True)
        run_stability(config)
    assert "same_weights" not in (tmp_path / "run" / "config.json").read_text()
    assert config.model.same_weights
    with pytest.raises(ConfigError, match=r'same_weights: backend "transformers" has no address; leave same_weights out'):
        build_config(StabilityConfig, {"model": {"name": "bundled", "same_weights": True}}, source="test")
    section: type[ConfigSection]
    for section, values in ((ModelConfig, {"name": "m"}), (JudgeConfig, {"run": "r"})):
        given = {"base_url": "http://h/v1", "same_weights": True}
        fields = values | (given if section is ModelConfig else {"judge": given})
        assert build_config(section, fields, source="test") is not None


@pytest.mark.slow
def test_the_command_line_confirms_and_the_recorded_configuration_does_not(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with openai_server(right) as one, openai_server(right) as other, openai_server(right) as third:
        (tmp_path / "run.toml").write_text(toml(stability_values(tmp_path, one.base_url)))
        command = ["stability", str(tmp_path / "run.toml")]
        assert cli.run_cli(command) == 0
        capsys.readouterr()
        moved = [*command, "--model.base-url", other.base_url]
        assert cli.run_cli(moved) == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert line.startswith(f"permix stability: out = {tmp_path / 'run'}: this run was answered by 'test' at {at(one)}, and ")
        assert cli.run_cli([*moved, "--model.same-weights"]) == 0
        assert cli.run_cli(moved) == 0
        again = ["stability", str(tmp_path / "run" / "config.json"), "--model.base-url", third.base_url]
        assert cli.run_cli(again) == 2
    assert [by for *_, by in uses(tmp_path)] == [None, "user"]


def test_a_model_in_this_process_has_no_addresses(tmp_path: Path) -> None:
    assert check_addresses(ScriptedModel(["x"]), tmp_path) == AddressCheck("model", "model")
    AddressCheck("model", "model").record(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_several_addresses_are_checked_one_after_the_other(tmp_path: Path) -> None:
    with openai_server(right, models=ROOT_A) as server:
        model = OpenAIModel(ModelConfig(name="test", base_url=server.base_url, backend="openai"))
        check = check_addresses(model, tmp_path, addresses={"a:1/v1": {"root": "/w/a"}, "b:1/v1": {"root": "/w/a"}})
        assert [(use.address, use.confirmed_by) for use in check.new_uses] == [("a:1/v1", None), ("b:1/v1", "server")]
        with pytest.raises(ConfigError, match=r"at a:1/v1 said root = '/w/a', the server at b:1/v1 says root = '/w/b'"):
            check_addresses(model, tmp_path, addresses={"a:1/v1": {"root": "/w/a"}, "b:1/v1": {"root": "/w/b"}})
        with pytest.raises(ConfigError, match=r"at a:1/v1, and would go on at batch files, where the server says nothing"):
            check_addresses(model, tmp_path, addresses={"a:1/v1": {}, "batch files": {}})
        check.record(tmp_path)
        assert [use.address for use in read_addresses(tmp_path)["model"].addresses] == ["a:1/v1", "b:1/v1"]


def test_two_processes_record_their_addresses_at_the_same_time(tmp_path: Path) -> None:
    processes = [multiprocessing.get_context("fork").Process(target=_record_twenty, args=(tmp_path, n)) for n in range(3)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    assert len({use.address for use in read_addresses(tmp_path)["model"].addresses}) == 60


def _record_twenty(folder: Path, number: int) -> None:
    model = OpenAIModel(ModelConfig(name="test", base_url="http://h:1/v1", backend="openai"))
    for n in range(20):
        record_address(folder, model, f"h:{number}{n:02}/v1", {}, "server")


@pytest.mark.parametrize(
    "text",
    ["{", "[]", '{"model": 3}', '{"model": {"name": "test"}}', '{"model": {"name": "a", "request": "b", "addresses": [{}]}}'],
)
def test_a_damaged_file_is_refused_in_one_line(text: str, tmp_path: Path) -> None:
    with openai_server(right) as server:
        run_stability(config_at(tmp_path, server))
        n_asked = len(server.asked)
        (tmp_path / "run" / "addresses.json").write_text(text)
        with pytest.raises(DataError, match=r"addresses.json: (not|contains) ") as refused:
            run_stability(config_at(tmp_path, server))
        assert "\n" not in str(refused.value)
        assert len(server.asked) == n_asked


# Hostile servers and runs


@pytest.mark.parametrize(
    ("root", "parent", "meta", "said"),
    [
        ("test", None, None, {}),
        ("", "", {}, {}),
        (["/w"], {"a": 1}, [1], {}),
        (3, True, "x", {}),
        ("/w", "base", {"size": 0, "n_params": -1, "n_vocab": True, "n_embd": 2**63}, {"root": "/w", "parent": "base"}),
        (None, None, {"size": 1e9, "n_params": 1.5, "n_vocab": float("inf"), "n_embd": float("nan")}, {"size": 10**9}),
        (None, None, {"size": "10", "n_params": [1], "deep": {"a": {"b": []}}, "n_ctx_train": 5}, {}),
        ("/w\x00\x1b[31m\n\u202e", None, None, {"root": r"/w\x00\x1b[31m\n\u202e"}),
        ("\ud800", None, None, {"root": r"\ud800"}),
        ("http://ann:pw@h/w?api_key=abc", None, None, {"root": "http://(hidden)@h/w?api_key=(hidden)"}),
        ("secret/w", None, None, {"root": "[redacted]/w"}),
    ],
)
def test_what_a_server_says(root: object, parent: object, meta: object, said: dict[str, Any]) -> None:
    assert parse_statement("test", root, parent, meta, lambda text: text.replace("secret", "[redacted]")) == said


def test_a_name_of_any_length_is_kept_short_and_told_apart() -> None:
    names = ["x" * MAX_NAME_CHARS, *("x" * 1_000_000 + end for end in "ab")]
    kept = [str(parse_statement("test", name, None, None)["root"]) for name in names]
    assert kept[0] == names[0]
    assert [len(one) for one in kept] == [MAX_NAME_CHARS] * 3
    assert len(set(kept)) == 3
    assert re.fullmatch(r"x+… \(1000001 characters, digest [0-9a-f]{16}\)", kept[1])


@pytest.mark.slow
def test_a_hostile_statement_is_one_short_printable_line_in_a_refusal(tmp_path: Path) -> None:
    hostile = listing("test", root="/w\x00\x1b[31m\n" + "y" * 1_000_000, parent={"a": [[]] * 1000}, meta={"size": 10**400})
    with two_servers(hostile, hostile) as (one, other):
        started(tmp_path, one)
        run_stability(config_at(tmp_path, other))
        assert (tmp_path / "run" / "addresses.json").stat().st_size < 2_000
        other.models = listing("test", root="/w\x00\x1b[31m\n" + "z" * 1_000_000)
        with pytest.raises(ConfigError, match=r"root = '/w\\\\x00") as refused:
            run_stability(config_at(tmp_path, other))
        assert len(str(refused.value)) < 1_000
        assert str(refused.value).isprintable()


def test_a_strangers_addresses_are_shown_cut_and_without_secrets(tmp_path: Path) -> None:
    with two_servers(SILENT, SILENT) as (one, other):
        started(tmp_path, one)
        file = tmp_path / "run" / "addresses.json"
        recorded = read_json(file)
        recorded["model"]["addresses"][0]["address"] = "http://ann:pw@h\x1b[31m\n/" + "y" * 10_000
        recorded["model"]["name"] = "\x1b" * 10_000
        file.write_text(json.dumps(recorded))
        with pytest.raises(ConfigError) as refused:
            run_stability(config_at(tmp_path, other))
        assert "ann" not in str(refused.value)
        assert len(str(refused.value)) < 1_000
        assert str(refused.value).isprintable()


def test_no_more_than_three_addresses_are_named(tmp_path: Path) -> None:
    with openai_server(right) as server:
        run_stability(config_at(tmp_path, server))
        model = OpenAIModel(config_at(tmp_path, server).model)
        for port in range(4):
            record_address(tmp_path / "run", model, f"h:{port}/v1", {}, "user")
    with openai_server(right) as other, pytest.raises(ConfigError, match=r"h:0/v1, h:1/v1 and 2 more, and would go on at"):
        run_stability(config_at(tmp_path, other))


def test_a_key_that_a_server_repeats_is_in_no_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    key = "a-secret-of-the-user-0123456789"
    monkeypatch.setenv("OPENAI_API_KEY", key)
    with openai_server(right, models=listing("test", root=f"/w/{key}", parent=f"{key}")) as server:
        run_stability(config_at(tmp_path, server))
    assert uses(tmp_path) == [(at(server), {"root": "/w/[redacted]", "parent": "[redacted]"}, None)]


@pytest.mark.parametrize(
    ("base_url", "address"),
    [
        ("http://127.0.0.1:8000/v1", "127.0.0.1:8000/v1"),
        ("https://API.Example.com/v1/", "api.example.com/v1"),
        ("https://h:443/V1", "h/V1"),
        ("http://h:80", "h"),
        ("http://h:443/v1", "h:443/v1"),
        ("http://[::1]:8000/v1", "[::1]:8000/v1"),
        ("http://ann:pw@h:1/v1", "h:1/v1"),
        ("http://localhost:8000/v1", "localhost:8000/v1"),
    ],
)
def test_an_address_is_host_port_and_path(base_url: str, address: str) -> None:
    assert normalize_address(base_url) == address


# The report


def report(folder: Path) -> tuple[str, str]:
    """report.md and the page of the run in `folder`."""
    assert cli.run_cli(["report", str(folder / "run"), "--out", str(folder / "report")]) == 0
    return (folder / "report" / "report.md").read_text(), (folder / "report" / "index.html").read_text()


def test_the_report_shows_addresses_and_who_confirmed_the_weights(tmp_path: Path) -> None:
    with two_servers(ROOT_A, ROOT_A) as (one, other):
        started(tmp_path, one)
        run_stability(config_at(tmp_path, other))
        other.models = SILENT
        run_stability(config_at(tmp_path, other, same_weights=True))
    markdown, page = report(tmp_path)
    lines = [line for line in unescape(markdown).splitlines() if at(one) in line or at(other) in line]
    times = [use.first_used for use in read_addresses(tmp_path / "run")["model"].addresses]
    expected = [
        ["test", "stability", "model", at(one), times[0], "root /w/a", "– (first address)"],
        ["test", "stability", "model", at(other), times[1], "root /w/a", "server"],
        ["test", "stability", "model", at(other), times[2], "nothing of its weights", "user"],
    ]
    assert [line.strip("| ").split(" | ") for line in lines] == expected
    assert "same weights confirmed by" in page
    assert page.count(at(one)) == 1


def test_a_report_without_endpoints_has_no_table_of_addresses(tmp_path: Path) -> None:
    with openai_server(right) as server:
        run_stability(config_at(tmp_path, server))
    (tmp_path / "run" / "addresses.json").unlink()
    assert "same weights confirmed by" not in report(tmp_path)[0]


@pytest.mark.slow
def test_the_report_shows_addresses_as_text(tmp_path: Path) -> None:
    with openai_server(right, models=listing("test", root="<b>**x**</b>|[a](http://evil.invalid)")) as server:
        run_stability(config_at(tmp_path, server))
    file = tmp_path / "run" / "addresses.json"
    recorded = read_json(file)
    recorded["model"]["addresses"][0] |= {"address": "http://ann:pw@h/\x1b[31m<img src=x>", "first_used": "\u202e" * 1000}
    file.write_text(json.dumps(recorded))
    markdown, page = report(tmp_path)
    for text in (markdown, page):
        for acting in ("ann:pw", "<b>**x", "<img src=x", "\x1b", "\u202e", 'href="http://evil.invalid'):
            assert acting not in text

"""vLLM in this process: a substitute engine behind its real interface answers with the tiny model, as transformers does.

The names and parameters are checked against those recorded from released packages (`vllm_interface.json`); with vLLM installed,
also against its own.
"""

import asyncio
import gc
import importlib.metadata
import importlib.util
import inspect
import os
import shutil
import threading
from collections.abc import Iterator
from itertools import groupby
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from permix import cli
from permix.config import ENGINE_FIELDS, ModelConfig
from permix.errors import ConfigError, EndpointStoppedError
from permix.inference import cache, check_model, load_model
from permix.inference.chat_template import encode_chat
from permix.inference.hf import HFModel, load_causal_lm, load_tokenizer
from permix.inference.vllm import ENVIRONMENT, VLLMModel, engine_arguments
from permix.storage.files import read_json
from permix.types import Completion, Failure, Message, Request, Sampling
from tests.fake_vllm import INTERFACE, EngineDeadError, Recorder, install, recorded
from tests.sample_runs import stability_values, toml
from tests.tiny import DEFAULT_SYSTEM, SYSTEM_REFUSED, make_base_folder, make_folder, make_tokenizer

GREEDY, SAMPLED = Sampling(max_new_tokens=16), Sampling(temperature=0.7, top_p=0.8, max_new_tokens=16)


def ask(text: str, seed: int = 0, persona: str | None = None) -> Request:
    system = (Message(role="system", content=persona),) if persona else ()
    return Request((*system, Message(role="user", content=text)), seed)


REQUESTS = [ask(f"What is {n} + 5?", seed=n, persona=("You are a sailor.", "You are a clerk.", None)[n % 3]) for n in range(9)]


@pytest.fixture
def engine(tiny_model: Path, monkeypatch: pytest.MonkeyPatch) -> Recorder:
    """The engine that vLLM's module makes from now on."""
    import torch

    for name in ENVIRONMENT:
        monkeypatch.delenv(name, raising=False)
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)
    made = Recorder(load_causal_lm(str(tiny_model), torch.float32, "cpu"), load_tokenizer(str(tiny_model)))
    install(monkeypatch, made)
    return made


def model_of(folder: Path, **fields: Any) -> VLLMModel:
    made = load_model(ModelConfig.model_validate({"name": str(folder), "backend": "vllm", "dtype": "float32"} | fields))
    assert isinstance(made, VLLMModel)
    return made


def answers(model: Any, requests: list[Request], sampling: Sampling) -> list[Completion | Failure]:
    found = dict(model.generate(requests, sampling))
    assert sorted(found) == list(range(len(requests)))
    return [found[place] for place in range(len(requests))]


# Answers


@pytest.mark.parametrize("sampling", [GREEDY, SAMPLED], ids=["greedy", "sampled"])
def test_answers_are_those_of_transformers(tiny_model: Path, engine: Recorder, sampling: Sampling) -> None:
    """Prompts, stop tokens, seeds, texts, token counts and what was cut off."""
    ours = HFModel(ModelConfig(name=str(tiny_model), dtype="float32"))
    found = answers(model_of(tiny_model), REQUESTS, sampling)
    assert found == answers(ours, REQUESTS, sampling)
    assert {one.finish for one in found if isinstance(one, Completion)} >= {"stop"}
    cut = answers(model_of(tiny_model), REQUESTS[:1], Sampling(max_new_tokens=1))[0]
    assert isinstance(cut, Completion)
    assert (cut.finish, cut.completion_tokens) == ("length", 1)


def test_a_request_is_what_vllm_is_asked(tiny_model: Path, engine: Recorder) -> None:
    schema = {"type": "object", "properties": {"score": {"type": "integer"}}}
    model = model_of(tiny_model)
    list(model.generate([REQUESTS[4]._replace(schema=schema)], SAMPLED))
    asked = dict(engine.parameters[0].given)
    assert asked.pop("structured_outputs").given == {"json": schema}
    assert asked.pop("output_kind").name == "FINAL_ONLY"
    assert asked == {
        "temperature": 0.7, "top_p": 0.8, "seed": 4, "max_tokens": 16, "stop_token_ids": [1], "detokenize": False,
    }  # fmt: skip
    list(model.generate(REQUESTS[4:5], GREEDY))
    assert (engine.parameters[1].given["seed"], engine.parameters[1].given["structured_outputs"]) == (None, None)
    assert engine.prompts == [encode_chat(engine.tokenizer, REQUESTS[4].messages)] * 2


def test_the_end_of_a_turn_stops_a_base_model(tiny_model: Path, tmp_path: Path, engine: Recorder) -> None:
    base = make_base_folder(tiny_model, tmp_path / "base")
    model = model_of(base)
    list(model.generate(REQUESTS[:1], GREEDY))
    assert engine.parameters[0].given["stop_token_ids"] == [0, 1]
    assert model.fingerprint != model_of(tiny_model).fingerprint


def test_the_template_is_that_of_every_other_model(tiny_model: Path, tmp_path: Path, engine: Recorder) -> None:
    assert model_of(tiny_model).default_system == DEFAULT_SYSTEM
    shutil.copytree(tiny_model, tmp_path / "refusing")
    make_tokenizer(SYSTEM_REFUSED).save_pretrained(tmp_path / "refusing")
    refusing = model_of(tmp_path / "refusing")
    with pytest.raises(ConfigError, match="takes no system message, so it cannot be given a persona there"):
        list(refusing.generate(REQUESTS[:1], GREEDY))
    with pytest.raises(ConfigError, match=r"model.thinking = 'on': the chat template of .* has no switch of thinking"):
        model_of(tiny_model, thinking="on")


# The order


def test_prompts_of_a_persona_follow_each_other(tiny_model: Path, engine: Recorder) -> None:
    list(model_of(tiny_model).generate(REQUESTS, GREEDY))
    assert engine.prompts == sorted(engine.prompts)
    runs = [name for name, _ in groupby(engine.prompts, key=lambda prompt: persona_in(engine.tokenizer.decode(prompt)))]
    assert sorted(runs) == ["clerk", "none", "sailor"]


def persona_in(text: str) -> str:
    return next((name for name in ("clerk", "sailor") if name in text), "none")


def test_a_completion_is_yielded_while_others_are_computed(tiny_model: Path, engine: Recorder) -> None:
    engine.held = lambda text: "0 + 5" in text
    results = model_of(tiny_model).generate(REQUESTS, GREEDY)
    first = [next(results).request_index for _ in range(8)]
    assert sorted(first) == list(range(1, 9)), "the one that is held comes last"
    engine.release()
    assert [one.request_index for one in results] == [0]


@pytest.mark.parametrize(("copies", "most"), [(1, 4), (2, 8)])
def test_requests_in_flight_are_bounded(tiny_model: Path, engine: Recorder, copies: int, most: int) -> None:
    """Twice as many as the engine computes at a time: two by each copy of the weights."""
    engine.max_num_seqs = 2
    requests = [ask(f"What is {n} + 5?", seed=n) for n in range(20)]
    assert len(answers(model_of(tiny_model, data_parallel_size=copies), requests, GREEDY)) == 20
    assert engine.most_in_flight == most


def test_it_answers_inside_a_running_event_loop(tiny_model: Path, engine: Recorder) -> None:
    async def notebook() -> int:
        return len(answers(model_of(tiny_model), REQUESTS, GREEDY))

    assert asyncio.run(notebook()) == 9


# What goes wrong


def test_one_bad_request_is_its_own_failure(tiny_model: Path, engine: Recorder) -> None:
    def refuse(text: str) -> None:
        if "3 + 5" in text:
            raise RuntimeError("wrapped") from ValueError("the JSON schema is\nnested too deeply")

    engine.before = refuse
    found = answers(model_of(tiny_model), REQUESTS, GREEDY)
    assert found[3] == Failure(type="RuntimeError", message="the JSON schema is nested too deeply")
    assert all(isinstance(one, Completion) for place, one in enumerate(found) if place != 3)


def test_a_prompt_that_is_too_long_is_not_asked(tiny_model: Path, engine: Recorder) -> None:
    model = model_of(tiny_model, max_model_len=64)
    long, short = ask("What is " + "1 + " * 60 + "1?"), ask("1?")
    n_tokens = len(encode_chat(engine.tokenizer, long.messages))
    found = answers(model, [long, short], GREEDY)
    assert found[0] == Failure(
        type="PromptTooLong",
        message=f"the prompt has {n_tokens} tokens; the model takes at most 48 with max_new_tokens = 16",
    )
    assert isinstance(found[1], Completion)
    assert len(engine.prompts) == 1


@pytest.mark.parametrize(
    ("sampling", "said"),
    [
        ({"temperature": 2.5}, r"sampling.temperature = 2.5: vLLM takes 0, or 0.01 to 2"),
        ({"temperature": 0.001}, r"sampling.temperature = 0.001: vLLM takes 0, or 0.01 to 2"),
        ({"max_new_tokens": 512}, r"sampling.max_new_tokens = 512: leaves no room for a prompt; .* at most 512 tokens together"),
    ],
)
def test_what_vllm_cannot_sample_is_refused_before_anything_is_asked(
    tiny_model: Path, engine: Recorder, sampling: dict[str, Any], said: str
) -> None:
    with pytest.raises(ConfigError, match=said):
        list(model_of(tiny_model).generate(REQUESTS, Sampling.model_validate(sampling)))
    assert engine.prompts == []


def test_an_engine_that_ends_stops_the_run(tiny_model: Path, engine: Recorder) -> None:
    def die(text: str) -> None:
        if len(engine.prompts) > 3:
            raise EngineDeadError

    engine.before = die
    arrived = []
    with pytest.raises(EndpointStoppedError, match="vLLM's engine has ended: EngineCore encountered an issue"):
        arrived += [one.request_index for one in model_of(tiny_model).generate(REQUESTS, GREEDY)]


def test_closing_the_iterator_aborts_what_is_in_flight(tiny_model: Path, engine: Recorder) -> None:
    engine.held = lambda text: "0 + 5" not in text
    model = model_of(tiny_model)
    results = model.generate(REQUESTS, GREEDY)
    assert next(results).request_index == 0
    results.close()  # type: ignore[attr-defined]
    engine.release()
    assert len(answers(model, REQUESTS, GREEDY)) == 9, "the engine goes on"
    assert len(engine.aborted) == 8


def test_a_broken_output_is_a_failure(tiny_model: Path, engine: Recorder, monkeypatch: pytest.MonkeyPatch) -> None:
    model = model_of(tiny_model)
    job = type("Job", (), {"prompt": [1, 2]})()
    output = type("Output", (), {"token_ids": [5], "finish_reason": "abort"})()
    assert model._completion(job, output) == Failure(type="RequestAborted", message="vLLM ended the request: abort")


@pytest.mark.parametrize(
    "error", [ValueError("max_model_len\n is too large"), RuntimeError("Engine core initialization failed.")]
)
def test_an_engine_that_does_not_start_is_one_line(tiny_model: Path, engine: Recorder, error: Exception) -> None:
    engine.start_error = error
    with pytest.raises(ConfigError) as refused:
        model_of(tiny_model)
    said = " ".join(str(error).split())
    assert str(refused.value).startswith(f"model.backend = \"vllm\": the engine cannot start with '{tiny_model}': {said} (")
    assert "\n" not in str(refused.value)


def test_the_engine_ends_with_the_model(tiny_model: Path, engine: Recorder) -> None:
    model = model_of(tiny_model)
    thread = model._thread._thread
    list(model.generate(REQUESTS[:2], GREEDY))
    assert (engine.shut_down, thread.is_alive()) == (0, True)
    del model
    gc.collect()
    assert (engine.shut_down, thread.is_alive()) == (1, False)


def test_an_engine_may_be_collected_in_its_own_thread(tiny_model: Path, engine: Recorder) -> None:
    model = model_of(tiny_model)  # its own end comes later, and finds nothing left to do
    thread = model._thread
    thread._loop.call_soon_threadsafe(thread.close)
    thread._thread.join()
    assert not thread._thread.is_alive()
    assert engine.shut_down == 1


def test_two_closes_at_the_same_time_end_the_engine_once(tiny_model: Path, engine: Recorder) -> None:
    model = model_of(tiny_model)
    entered, may_end, shutdown = threading.Event(), threading.Event(), model._thread.engine.shutdown

    def slow_shutdown(timeout: float) -> None:
        entered.set()
        assert may_end.wait(60)
        shutdown(timeout)

    model._thread.engine.shutdown = slow_shutdown
    first, second = (threading.Thread(target=model._thread.close) for _ in range(2))
    first.start()
    assert entered.wait(60)
    second.start()
    second.join(0.3)  # time to do wrong in
    may_end.set()
    first.join()
    second.join()
    assert (engine.shut_down, model._thread._loop.is_closed()) == (1, True)


# Identity


def test_a_fingerprint_is_of_the_weights_and_the_engine(tiny_model: Path, tmp_path: Path, engine: Recorder) -> None:
    model, other = model_of(tiny_model), model_of(make_folder(tmp_path / "other", seed=1))
    assert model.name == str(tiny_model)
    assert model.content_addressed
    assert model.fingerprint == model_of(tiny_model, tensor_parallel_size=2, gpu_memory_utilization=0.5).fingerprint
    different = {
        other.fingerprint,
        model_of(tiny_model, dtype="auto").fingerprint,
        HFModel(ModelConfig(name=str(tiny_model))).fingerprint,
    }
    assert len({model.fingerprint, *different}) == 4
    (other_folder := Path(other.source)).joinpath("adapter_config.json").write_text("{}")
    assert not model_of(other_folder).content_addressed


def test_arguments_are_vllms_own(engine: Recorder, tiny_model: Path) -> None:
    settings = {"tensor_parallel_size": 2, "data_parallel_size": 4, "gpu_memory_utilization": 0.5, "max_model_len": 300}
    model_of(tiny_model, **settings)
    always = {
        "model": str(tiny_model), "tokenizer": str(tiny_model), "dtype": "float32", "enable_prefix_caching": True,
        "trust_remote_code": False, "enable_log_requests": False, "disable_log_stats": True,
    }  # fmt: skip
    assert engine.arguments == always | settings
    plain = engine_arguments(ModelConfig(name="org/model", backend="vllm"), "org/model", "abc")
    assert plain == always | {
        "model": "org/model", "tokenizer": "org/model", "dtype": "auto", "tensor_parallel_size": 1, "data_parallel_size": 1,
        "revision": "abc", "tokenizer_revision": "abc",
    }  # fmt: skip
    assert set(plain) | set(settings) <= recorded("AsyncEngineArgs")


def test_its_environment_is_set_where_it_is_not(tiny_model: Path, engine: Recorder, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VLLM_LOGGING_LEVEL", "DEBUG")
    model_of(tiny_model)
    assert {name: os.environ[name] for name in ENVIRONMENT} == ENVIRONMENT | {"VLLM_LOGGING_LEVEL": "DEBUG"}
    assert set(ENVIRONMENT) <= recorded("environment")


# Configuration and commands


@pytest.mark.parametrize("name", ENGINE_FIELDS)
def test_fields_of_the_engine_are_refused_elsewhere(name: str) -> None:
    value = 0.5 if name == "gpu_memory_utilization" else 2
    with pytest.raises(
        ValidationError, match=f'{name} = {value}: backend "transformers" has no such setting; give backend = "vllm"'
    ):
        ModelConfig.model_validate({name: value})
    assert getattr(ModelConfig.model_validate({"backend": "vllm", name: value}), name) == value
    with pytest.raises(ValidationError):
        ModelConfig.model_validate({"backend": "vllm", name: 0})


def test_a_budget_of_thinking_is_refused() -> None:
    with pytest.raises(ValidationError, match='thinking_budget = 9: backend "vllm" cannot bound the thinking'):
        ModelConfig(backend="vllm", thinking_budget=9)


@pytest.mark.skipif(importlib.util.find_spec("vllm") is not None, reason="vllm is here")
def test_without_the_package_one_line_names_the_extra(
    tiny_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    said = r'model.backend = "vllm" needs vllm, which is not installed: pip install .*\[vllm\].*; or leave backend out'
    config = ModelConfig(name=str(tiny_model), backend="vllm")
    check_model(config, contact=False)
    for load in (load_model, lambda one: check_model(one, contact=True)):
        with pytest.raises(ConfigError, match=said):
            load(config)
    path = tmp_path / "config.toml"
    path.write_text(toml(stability_values(tmp_path, "", model={"name": str(tiny_model), "backend": "vllm"})))
    assert cli.run_cli(["check", str(path)]) == 0
    assert 'model.backend = "vllm" needs vllm' in capsys.readouterr().out
    assert cli.run_cli(["stability", str(path)]) == 2
    assert capsys.readouterr().err.strip().count("\n") == 0


@pytest.fixture
def versions(monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[str, str]]:
    """The versions of packages that are not installed, as the cache sees them."""
    found, said = importlib.metadata.version, {"vllm": "0.33.0"}
    monkeypatch.setattr(cache, "version", lambda name: said.get(name) or found(name))
    cache.decoder_versions.cache_clear()
    yield said
    cache.decoder_versions.cache_clear()


@pytest.mark.slow
def test_a_run_that_the_engine_left_goes_on(
    tiny_model: Path, tmp_path: Path, engine: Recorder, versions: dict[str, str], capsys: pytest.CaptureFixture[str]
) -> None:
    """24 cells: the engine ends at the tenth request, then the rest is asked, and another run takes all from the cache."""

    def die(text: str) -> None:
        if len(engine.prompts) >= 10:
            raise EngineDeadError

    path = tmp_path / "config.toml"
    path.write_text(toml(stability_values(tmp_path, "", model={"name": str(tiny_model), "backend": "vllm", "dtype": "float32"})))
    assert cli.run_cli(["stability", str(path), "--dry-run"]) == 0
    assert "none: the model runs in this process" in capsys.readouterr().out
    engine.before, engine.max_num_seqs = die, 1
    words = ["stability", str(path), "--cache", str(tmp_path / "cache")]
    assert cli.run_cli(words) == 3
    done = sum('"completion":{' in line.replace(" ", "") for line in (tmp_path / "run/records.jsonl").read_text().splitlines())
    assert 7 <= done <= 9, "all but those in flight"
    assert "vLLM's engine has ended" in capsys.readouterr().err
    engine.before = lambda _: None
    engine.prompts.clear()
    assert cli.run_cli(words) == 0
    assert len(engine.prompts) == 24 - done
    again = [*words, "--out", str(tmp_path / "again"), "--model.gpu-memory-utilization", "0.5"]
    engine.prompts.clear()
    assert cli.run_cli(again) == 0
    assert engine.prompts == []
    assert read_json(tmp_path / "again/config.json")["model"]["backend"] == "vllm"
    assert cli.run_cli(["report", str(tmp_path / "run"), "--out", str(tmp_path / "report")]) == 0
    assert "model by vllm of unknown version; permix " in (tmp_path / "report/report.md").read_text()
    versions["vllm"] = "0.34.0"
    cache.decoder_versions.cache_clear()
    assert cli.run_cli([*words, "--out", str(tmp_path / "newer")]) == 0
    assert len(engine.prompts) == 24, "another version may decode otherwise"


def test_another_engine_does_not_go_on_with_a_run(
    tiny_model: Path, tmp_path: Path, engine: Recorder, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "config.toml"
    path.write_text(toml(stability_values(tmp_path, "", model={"name": str(tiny_model), "backend": "vllm"})))
    assert cli.run_cli(["stability", str(path)]) == 0
    assert cli.run_cli(["stability", str(path), "--model.backend", "transformers"]) == 2
    assert "this run was made with model" in capsys.readouterr().err


# The released packages


def test_versions_are_recorded_up_to_the_extra_and_trls() -> None:
    assert sorted(INTERFACE) == ["0.31.0", "0.33.0"]
    assert {"token_ids", "finish_reason"} <= recorded("CompletionOutput")
    assert "outputs" in recorded("RequestOutput")


@pytest.mark.skipif(importlib.util.find_spec("vllm") is None, reason="needs vllm")
def test_the_installed_vllm_has_the_recorded_parameters() -> None:
    vllm = importlib.import_module("vllm")
    for name in ("AsyncEngineArgs", "SamplingParams"):
        assert recorded(name) <= set(inspect.signature(getattr(vllm, name)).parameters)
    assert recorded("AsyncLLMEngine.generate") <= set(inspect.signature(vllm.AsyncLLMEngine.generate).parameters)

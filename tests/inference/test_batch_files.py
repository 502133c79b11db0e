"""Batch files: the form of requests, how they are split, which results are taken, and files that are damaged or hostile."""

import json
import os
import sys
from collections.abc import Callable, Iterator
from itertools import count
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from permix.config import ModelConfig
from permix.errors import ConfigError, DataError, IncompleteRunError
from permix.inference import batch_files
from permix.inference.base import CompletionResult, remember_request_changes
from permix.inference.batch_files import (
    BatchResult,
    RequestFiles,
    ResultIndex,
    build_batch_request,
    read_batch_result,
    size_text,
)
from permix.inference.batch_model import BatchFlags, BatchModel, open_batch_model
from permix.storage.failures import FailureCause, find_cause
from permix.storage.files import read_json
from permix.types import Completion, Failure, Message, Request, Sampling, digest
from tests.batch_runner import (
    completed,
    expired,
    refused_by_openai,
    refused_by_vllm,
    requests_in,
    result_line,
    run_batch,
)
from tests.servers import Reply

SAMPLING = Sampling(temperature=0.5, top_p=0.9, max_new_tokens=32)

CONFIG = ModelConfig(name="served", backend="batch")


def request(text: str = "What is 2 + 3?", seed: int = 7, **fields: Any) -> Request:
    return Request((Message(role="system", content="You are a sailor."), Message(role="user", content=text)), seed, **fields)


def write(folder: Path, requests: list[Request], config: ModelConfig = CONFIG, shards: int | None = None) -> BatchModel:
    model = BatchModel(config, None, RequestFiles(folder, stage="stability", run=Path("run"), shards=shards))
    assert list(model.generate(requests, SAMPLING)) == []
    model.finish("read them")
    return model


def read(folder: Path, requests: list[Request], config: ModelConfig = CONFIG) -> tuple[BatchModel, list[CompletionResult]]:
    model = BatchModel(config, ResultIndex(folder), None)
    return model, list(model.generate(requests, SAMPLING))


def text_of(result: Completion | Failure) -> str:
    assert isinstance(result, Completion)
    return result.text


# Requests


def test_a_line_is_the_request_that_http_sends(tmp_path: Path) -> None:
    config = ModelConfig(name="served", backend="batch", extra_body='{"top_k": 5}', thinking="off")
    schema = {"type": "object", "properties": {"score": {"type": "integer"}}}
    write(tmp_path / "b", [request(seed=2**40 + 3, schema=schema)], config)
    (line,) = requests_in(tmp_path / "b")
    assert line == {
        "custom_id": line["custom_id"],
        "method": "POST",
        "url": "/v1/chat/completions",
        "body": {
            "model": "served",
            "messages": [{"role": "system", "content": "You are a sailor."}, {"role": "user", "content": "What is 2 + 3?"}],
            "temperature": 0.5,
            "top_p": 0.9,
            "max_tokens": 32,
            "seed": 3,  # the low 31 bits
            "top_k": 5,
            "chat_template_kwargs": {"enable_thinking": False, "thinking": False},
            "response_format": {"type": "json_schema", "json_schema": {"name": "reply", "strict": True, "schema": schema}},
        },
    }


def test_a_line_has_the_fields_of_the_engines() -> None:
    line = json.loads(build_batch_request({"model": "m", "messages": []}).line)
    assert set(line) == {"custom_id", "method", "url", "body"}  # vLLM's BatchRequestInput
    assert all(isinstance(line[name], str) for name in ("custom_id", "method", "url"))
    assert len(line["custom_id"]) <= 64  # the longest that Together and OpenAI take


def test_an_id_depends_on_all_that_is_sent_and_on_nothing_else() -> None:
    body = {"model": "m", "messages": [{"role": "user", "content": "a"}], "seed": 1, "temperature": 0.0}
    same = {"temperature": 0.0, "seed": 1, "messages": [{"content": "a", "role": "user"}], "model": "m"}
    others = [
        body | {"seed": 2},
        body | {"model": "n"},
        body | {"temperature": 0.5},
        body | {"messages": []},
        body | {"top_k": 1},
    ]
    ids = [build_batch_request(one).custom_id for one in (body, same, *others)]
    assert ids[0] == ids[1]
    assert len(set(ids)) == 1 + len(others)


def test_a_line_is_ascii_and_one_line_and_a_lone_surrogate_is_a_failure(tmp_path: Path) -> None:
    odd = "é\u2028\u0085\r\n\x00" + "\U0001f600"
    model = BatchModel(CONFIG, None, RequestFiles(tmp_path / "b", stage="stability", run=Path("run")))
    (failed,) = model.generate([request(odd), request("half \ud83d")], SAMPLING)
    model.finish("read them")
    assert (failed.request_index, isinstance(failed.result, Failure) and failed.result.type) == (1, "UnicodeEncodeError")
    raw = (tmp_path / "b/requests-0000.jsonl").read_bytes()
    assert (raw.isascii(), raw.count(b"\n"), len(raw.splitlines())) == (True, 1, 1)
    assert json.loads(raw)["body"]["messages"][1]["content"] == odd


def test_equal_requests_share_a_line_and_its_result(tmp_path: Path) -> None:
    requests = [request(), request("other"), request()]
    write(tmp_path, requests)
    assert len(requests_in(tmp_path)) == 2
    run_batch(tmp_path, lambda body: completed(body["messages"][1]["content"].upper()))
    model, results = read(tmp_path, requests)
    assert [(index, text_of(result)) for index, result in results] == [
        (0, "WHAT IS 2 + 3?"), (1, "OTHER"), (2, "WHAT IS 2 + 3?"),
    ]  # fmt: skip
    assert model.counts.answered == 3


# Files


def test_files_are_even_and_keep_the_order(tmp_path: Path) -> None:
    requests = [request(str(number)) for number in range(10)]
    write(tmp_path, requests, shards=4)
    sizes = [len(path.read_text().splitlines()) for path in sorted(tmp_path.glob("requests-*.jsonl"))]
    assert sizes == [2, 3, 2, 3]  # ends at 10·1//4 = 2, 5, 7, 10
    assert [one["body"]["messages"][1]["content"] for one in requests_in(tmp_path)] == [str(number) for number in range(10)]


def test_no_file_is_empty(tmp_path: Path) -> None:
    write(tmp_path, [request("1"), request("2")], shards=5)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["batch.json", "requests-0000.jsonl", "requests-0001.jsonl"]


def test_without_a_number_files_keep_to_the_limits_of_hosted_apis(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(batch_files, "MAX_FILE_REQUESTS", 4)
    write(tmp_path / "a", [request(str(number)) for number in range(9)])
    assert [one["requests"] for one in read_json(tmp_path / "a/batch.json")["files"]] == [4, 4, 1]
    size = len(build_batch_request(json.loads((tmp_path / "a/requests-0000.jsonl").read_text().splitlines()[0])["body"]).line)
    monkeypatch.setattr(batch_files, "MAX_FILE_BYTES", 3 * size)
    write(tmp_path / "b", [request(str(number)) for number in range(9)])
    assert [(one["requests"], one["bytes"]) for one in read_json(tmp_path / "b/batch.json")["files"]] == [(3, 3 * size)] * 3
    monkeypatch.setattr(batch_files, "MAX_FILE_BYTES", 10)  # a line above the limit has a file of its own
    write(tmp_path / "c", [request("1"), request("2")])
    assert [one["requests"] for one in read_json(tmp_path / "c/batch.json")["files"]] == [1, 1]


def test_the_manifest_says_what_was_written_and_how_to_read_it_back(tmp_path: Path) -> None:
    model = write(tmp_path, [request("12345"), request("123")])
    manifest = read_json(tmp_path / "batch.json")
    file = (tmp_path / "requests-0000.jsonl").read_bytes()
    assert manifest["files"][0]["bytes"] == len(file)
    assert {name: manifest[name] for name in manifest if name != "files"} == {
        "format": 1, "stage": "stability", "run": "run", "model": "served", "read_back": "read them", "requests": 2,
        "sampling": {"temperature": 0.5, "top_p": 0.9, "max_new_tokens": 32},
        "prompt_characters": 2 * len("You are a sailor.") + 5 + 3, "max_new_tokens": 64,
    }  # fmt: skip
    assert model.manifest is not None
    assert model.manifest.bytes == len(file)


def test_the_same_requests_give_the_same_files_and_fewer_replace_them(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    requests = [request(str(number)) for number in range(6)]
    write(tmp_path, requests, shards=3)
    first = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    write(tmp_path, requests, shards=3)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == first
    assert "6 requests written, as before" in capsys.readouterr().err
    write(tmp_path, requests[:1], shards=3)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["batch.json", "requests-0000.jsonl"]
    assert len(requests_in(tmp_path)) == 1


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("notes.txt", "mine", "holds other files, such as notes.txt; give a new folder"),
        ("requests-0000.jsonl.bak", "mine", "holds other files, such as requests-0000.jsonl.bak; give a new folder"),
        ("requests-0000.jsonl", '{"custom_id": "task-1", "body": {}}\n', "requests-0000.jsonl was not written by permix"),
        ("batch.json", '{"format": 1}', "batch.json was not written by permix"),
        ("batch.json", "no json", "batch.json was not written by permix"),
    ],
)
def test_a_folder_with_other_files_is_refused_and_left_alone(tmp_path: Path, name: str, content: str, words: str) -> None:
    (tmp_path / name).write_text(content)
    with pytest.raises(ConfigError, match=words):
        RequestFiles(tmp_path, stage="stability", run=Path("run"))
    assert (tmp_path / name).read_text() == content


def test_a_folder_with_results_or_of_another_run_is_refused(tmp_path: Path) -> None:
    write(tmp_path, [request()])
    with pytest.raises(
        ConfigError, match="holds the requests of permix stability for run, not for runs/other; give another folder"
    ):
        RequestFiles(tmp_path, stage="stability", run=Path("runs/other"))
    with pytest.raises(ConfigError, match="not for run; give another folder"):
        RequestFiles(tmp_path, stage="judge", run=Path("run"))
    run_batch(tmp_path, lambda body: completed("5"))
    with pytest.raises(ConfigError, match=r"such as results-0.jsonl; if they are results, read them with --batch-in; give a new"):
        RequestFiles(tmp_path, stage="stability", run=Path("run"))


def test_a_file_in_the_place_of_the_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "b").write_text("")
    with pytest.raises(ConfigError, match="is not a folder"):
        RequestFiles(tmp_path / "b", stage="stability", run=Path("run"))


def test_what_an_interrupted_start_left_is_replaced(tmp_path: Path) -> None:
    write(tmp_path, [request("1"), request("2")], shards=2)
    (tmp_path / "batch.json").unlink()  # killed between the request files and the manifest
    (tmp_path / ".requests.part").write_text("half a li")
    (tmp_path / ".requests-0001.jsonl.part").write_text("half a li")
    write(tmp_path, [request("3")])
    assert sorted(path.name for path in tmp_path.iterdir()) == ["batch.json", "requests-0000.jsonl"]
    assert [one["body"]["messages"][1]["content"] for one in requests_in(tmp_path)] == ["3"]


def test_an_error_leaves_the_folder_as_it_was(tmp_path: Path) -> None:
    write(tmp_path, [request("1")])
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    flags = BatchFlags(batch_out=tmp_path)

    def stop() -> None:
        with open_batch_model(flags, CONFIG, stage="stability", run=Path("run"), read_back="") as model:
            assert model is not None
            list(model.generate([request("2")], SAMPLING))
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        stop()
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_a_scratch_file_that_is_a_link_is_not_written_through(tmp_path: Path) -> None:
    (tmp_path / "b").mkdir()
    (tmp_path / "mine").write_text("mine")
    for name in (".requests.part", ".requests-0000.jsonl.part", ".batch.json.part"):
        (tmp_path / "b" / name).symlink_to(tmp_path / "mine")
    write(tmp_path / "b", [request()])
    assert (tmp_path / "mine").read_text() == "mine"
    assert not any(path.is_symlink() for path in (tmp_path / "b").iterdir())


# Results


@pytest.mark.parametrize(
    ("result", "expected"),
    [
        (completed("5"), Completion(text="5", prompt_tokens=7, completion_tokens=3, finish="stop")),
        (
            completed(Reply("so", finish="length", usage=None)),
            Completion(text="so", prompt_tokens=None, completion_tokens=None, finish="length"),
        ),
        # Fireworks puts the completion into `response` itself.
        (
            {"response": json.loads(Reply("5").body)},
            Completion(text="5", prompt_tokens=7, completion_tokens=3, finish="stop"),
        ),
        (
            completed(Reply("", finish="content_filter")),
            Failure(
                type="FilteredReplyError", message="a content filter stopped the reply; finish_reason = 'content_filter'",
                prompt_tokens=7, completion_tokens=3,
            ),
        ),
        (refused_by_openai(400, "too long"), Failure(type="BadRequestError", message="HTTP 400: too long")),
        (refused_by_openai(429, "slow down"), Failure(type="RateLimitError", message="HTTP 429: slow down")),
        (refused_by_vllm(400, "too long"), Failure(type="BadRequestError", message="HTTP 400: too long")),
        (
            {"response": {"status_code": 400, "body": None}, "error": "stream mode"},
            Failure(type="BadRequestError", message="HTTP 400: stream mode"),
        ),
        (refused_by_vllm(503, "overloaded"), Failure(type="InternalServerError", message="HTTP 503: overloaded")),
        (expired(), Failure(type="BatchError", message="batch_expired: The completion window expired.")),
        ({"response": None, "error": None}, Failure(type="BatchError", message="neither a response nor an error")),
    ],
)  # fmt: skip
def test_a_result_is_read_as_a_reply_over_http_is(result: dict[str, Any], expected: Completion | Failure) -> None:
    assert read_batch_result(result).result == expected


def test_thinking_and_parts_are_read() -> None:
    message = {"role": "assistant", "content": [{"type": "text", "text": "5"}], "reasoning_content": "2 and 3"}
    body = {"choices": [{"message": message, "finish_reason": "stop"}], "usage": {"prompt_tokens": 4, "completion_tokens": 9}}
    assert read_batch_result({"response": {"status_code": 200, "body": body}}).result == Completion(
        text="5", prompt_tokens=4, completion_tokens=9, finish="stop", reasoning="2 and 3"
    )


def test_failures_have_causes_and_bounded_printable_words() -> None:
    long = read_batch_result(refused_by_openai(400, "This model's maximum context length is 4096 tokens")).result
    assert isinstance(long, Failure)
    assert find_cause(long) is FailureCause.CONTEXT_LENGTH
    odd = read_batch_result(refused_by_vllm(500, "\x1b[31m key sk-abcdefghijklmnopqrstuvwxyz0123456789 " + "a" * 10_000)).result
    assert isinstance(odd, Failure)
    assert len(odd.message) <= 500
    assert odd.message.isprintable()
    assert "sk-abcdefghij" not in odd.message


def test_any_order_any_file_partial(tmp_path: Path) -> None:
    requests = [request(str(number)) for number in range(20)]
    write(tmp_path, requests, shards=3)
    paths = run_batch(tmp_path, lambda body: completed(f"answer {body['messages'][1]['content']}"), files=4, seed=3)
    paths[2].unlink()
    model, results = read(tmp_path, requests)
    assert [text_of(result) for _, result in results] == [
        f"answer {requests[index].messages[1]['content']}" for index, _ in results
    ]
    assert [index for index, _ in results] == sorted(index for index, _ in results)  # in the order of asking
    assert (model.counts.answered, len(results)) == (15, 15)


def test_the_first_good_result_counts_and_differing_ones_are_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write(tmp_path / "b", [request("1"), request("2")])
    one, two = (line["custom_id"] for line in requests_in(tmp_path / "b"))
    (tmp_path / "b/results.jsonl").write_text(
        result_line(one, refused_by_openai(500, "first"))
        + result_line(one, completed("good"))
        + result_line(one, completed("late"))
        + result_line(two, expired())
        + result_line(two, refused_by_vllm(500, "last"))
    )
    model, results = read(tmp_path / "b", [request("1"), request("2")])
    assert text_of(results[0].result) == "good"
    assert results[1].result == Failure(type="InternalServerError", message="HTTP 500: last")
    model.finish("")
    said = capsys.readouterr().err
    assert "1 requests have several answers that differ; the first of each counts" in said
    assert "read 5 results in 1 file: 1 recorded, 1 failed, 0 recorded before, 0 unknown" in said


def test_a_failure_is_given_once_in_a_start(tmp_path: Path) -> None:
    write(tmp_path, [request("1")])
    run_batch(tmp_path, lambda body: expired())
    model, results = read(tmp_path, [request("1")])
    assert len(results) == 1
    assert list(model.generate([request("1")], SAMPLING)) == []


def test_results_of_other_messages_seeds_and_runs_are_not_taken(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write(tmp_path, [request("1"), request("2", seed=8), request("3")])
    run_batch(tmp_path, lambda body: completed("x"))
    with (tmp_path / "results-0.jsonl").open("a") as file:
        file.write(result_line("request-17", completed("of another program")))
    model, results = read(tmp_path, [request("1"), request("2", seed=9), request("3 and more")])
    model.pass_over(lambda: [request("3")], SAMPLING)
    model.finish("")
    assert [index for index, _ in results] == [0]
    said = capsys.readouterr().err
    assert "read 4 results in 1 file: 1 recorded, 0 failed, 1 recorded before, 2 unknown" in said
    assert "note: 2 results answer no request of this run as it is now" in said


def test_reading_and_writing_in_one_start_writes_what_is_missing_and_what_failed(tmp_path: Path) -> None:
    requests = [request(str(number)) for number in range(6)]
    write(tmp_path / "a", requests)

    def answer(body: dict[str, Any]) -> dict[str, Any]:
        number = int(body["messages"][1]["content"])
        return completed("ok") if number < 3 else expired()

    run_batch(tmp_path / "a", answer)
    for repeats, expected in ((True, ["3", "4", "5", "new"]), (False, ["new"])):
        folder = tmp_path / f"b{repeats}"
        files = RequestFiles(folder, stage="stability", run=Path("run"))
        model = BatchModel(CONFIG, ResultIndex(tmp_path / "a"), files, repeats_failed=repeats)
        results = list(model.generate([*requests, request("new")], SAMPLING))
        model.finish("")
        assert [index for index, _ in results] == [0, 1, 2, 3, 4, 5]
        assert [one["body"]["messages"][1]["content"] for one in requests_in(folder)] == expected


def test_a_refused_field_is_left_out_of_the_next_batch(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = "Unsupported parameter: 'max_tokens' is not supported with this model. Use 'max_completion_tokens' instead."
    write(tmp_path / "a", [request()])
    run_batch(tmp_path / "a", lambda body: refused_by_openai(400, words, param="max_tokens"))
    files = RequestFiles(tmp_path / "b", stage="stability", run=Path("run"))
    model = BatchModel(CONFIG, ResultIndex(tmp_path / "a"), files)
    (refused,) = model.generate([request()], SAMPLING)
    assert isinstance(refused.result, Failure)
    assert model.request_changes == {"max_tokens": words}
    assert "note: max_tokens is sent as max_completion_tokens in the next batch, since it was refused" in capsys.readouterr().err
    list(model.generate([request("again")], SAMPLING))
    model.finish("")
    body = requests_in(tmp_path / "b")[-1]["body"]
    assert body["max_completion_tokens"] == 32
    assert "max_tokens" not in body


# Ray Data


def run_ray_code(requests: Path, out: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """Run the code of docs/guide.md with a Ray Data that answers 5: the rows that its engine got, and the builder's options."""
    guide = (Path(__file__).parents[2] / "docs" / "guide.md").read_text()
    code = "import glob, json, ray" + guide.partition("import glob, json, ray")[2].partition("```")[0]
    rows: list[dict[str, Any]] = []
    options: dict[str, Any] = {}

    class Lines(list[dict[str, Any]]):
        def write_json(self, path: str) -> None:
            out.mkdir()
            (out / "0.json").write_text("".join(json.dumps(row) + "\n" for row in self))

    def read_text(pattern: str) -> Lines:
        paths = sorted(requests.glob(Path(pattern).name))
        return Lines({"text": line} for path in paths for line in path.read_text().splitlines())

    def build_processor(config: Any, before: Any, after: Any, builder_kwargs: dict[str, Any]) -> Callable[[Lines], Lines]:
        options.update(builder_kwargs)

        def process(lines: Lines) -> Lines:
            rows.extend(map(before, lines))
            counts = {"generated_text": "It is 5.", "num_generated_tokens": 3, "num_input_tokens": 9}
            return Lines(after({name: row[name] for name in row if name != "sampling_params"} | counts) for row in rows)

        return process

    modules = {name: ModuleType(name) for name in ("ray", "ray.data", "ray.data.llm")}
    vars(modules["ray"])["data"] = modules["ray.data"]
    vars(modules["ray.data"])["read_text"] = read_text
    vars(modules["ray.data.llm"]).update(build_processor=build_processor, vLLMEngineProcessorConfig=dict)
    for name, module in modules.items():
        monkeypatch.setitem(sys.modules, name, module)
    exec(code.replace("batches/qwen/requests-", f"{requests}/requests-"), {})
    return rows, options


def test_the_guides_code_for_ray_data_hands_on_every_field(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = ModelConfig(name="served", backend="batch", extra_body='{"top_k": 5}', thinking="off")
    (tmp_path / "endpoint.json").write_text(json.dumps({"served in batch files": {"seed": "no", "max_tokens": "use the other"}}))
    schema = {"type": "object", "properties": {"score": {"type": "integer"}}}
    requests = [request("1", schema=schema), request("2", schema=schema)]
    ask(tmp_path, "", "b", requests, config)
    rows, options = run_ray_code(tmp_path / "b", tmp_path / "out", monkeypatch)
    assert options == {"chat_template_kwargs": {"enable_thinking": False, "thinking": False}}
    assert rows[0]["messages"][1]["content"] == "1"
    sampling = rows[0]["sampling_params"]
    assert json.loads(sampling.pop("structured_outputs")["json"]) == schema
    assert sampling == {"temperature": 0.5, "top_p": 0.9, "max_tokens": 32, "top_k": 5}
    assert texts_of(ask(tmp_path, "out", "", requests, config)[1]) == ["It is 5."] * 2


def test_the_guides_code_for_ray_data_refuses_a_field_that_it_does_not_hand_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = ModelConfig(name="served", backend="batch", extra_body='{"reasoning_effort": "low"}')
    ask(tmp_path, "", "b", [request("1")], config)
    with pytest.raises(ValueError, match=r"not handed on to the engine: .*'reasoning_effort': 'low'"):
        run_ray_code(tmp_path / "b", tmp_path / "out", monkeypatch)


# What a host refuses

EXTRA = "Extra inputs are not permitted"

CONTEXT_LENGTH = (
    "'max_tokens' or 'max_completion_tokens' is too large: 64. This model's maximum context length is 2048 tokens and your "
    "request has 2000 input tokens (64 > 2048 - 2000)."
)


def ask(
    folder: Path, batch_in: str, batch_out: str, requests: list[Request], config: ModelConfig = CONFIG, **options: Any
) -> tuple[BatchModel, list[CompletionResult]]:
    """One start with files in `folder`, which keeps what was refused as a run does. "": no files."""
    results = ResultIndex(folder / batch_in) if batch_in else None
    files = RequestFiles(folder / batch_out, stage="stability", run=Path("run")) if batch_out else None
    model = BatchModel(config, results, files, **options)
    with remember_request_changes(model, folder):
        found = list(model.generate(requests, SAMPLING))
    model.finish("read them")
    return model, found


def refused_by_mistral(field: str) -> dict[str, Any]:
    detail = {"detail": [{"type": "extra_forbidden", "loc": ["body", field], "msg": EXTRA, "input": -1}]}
    body = {"object": "error", "message": detail, "type": "invalid_request_error", "param": None, "code": None}
    return {"response": {"status_code": 422, "body": body}, "error": None}


def bodies_in(folder: Path) -> list[dict[str, Any]]:
    return [one["body"] for one in requests_in(folder)]


def texts_of(results: list[CompletionResult]) -> list[str]:
    return [text_of(one.result) for one in results]


def former_id(body: dict[str, Any]) -> str:
    """The id that earlier versions gave a request that was sent with this body."""
    return f"permix-{digest(json.dumps(body, sort_keys=True), length=32)}"


def answer_in_turn() -> Callable[[dict[str, Any]], dict[str, Any]]:
    numbers = count()
    return lambda body: completed(f"answer {next(numbers)}")


def test_samples_stay_apart_when_no_seed_is_sent(tmp_path: Path) -> None:
    samples = [request(seed=seed) for seed in (7, 8, 9)]
    ask(tmp_path, "", "a", samples)
    run_batch(tmp_path / "a", lambda body: refused_by_mistral("seed"))
    ask(tmp_path, "a", "", samples)
    ask(tmp_path, "", "b", samples)
    lines = requests_in(tmp_path / "b")
    assert [one["body"] for one in lines] == [lines[0]["body"]] * 3
    assert "seed" not in lines[0]["body"]
    assert [one["custom_id"] for one in lines] == [one["custom_id"] for one in requests_in(tmp_path / "a")]
    assert len({one["custom_id"] for one in lines}) == 3
    run_batch(tmp_path / "b", answer_in_turn())
    model, found = ask(tmp_path, "b", "", samples)
    assert sorted(texts_of(found)) == ["answer 0", "answer 1", "answer 2"]
    assert model.results is not None
    assert model.results.n_left == 0


def test_results_of_earlier_versions_are_read_by_the_ids_that_they_had(tmp_path: Path) -> None:
    """They took the body as it was sent after each of the refusals that endpoint.json names."""
    requests = [request(str(number)) for number in range(4)]
    ask(tmp_path, "", "a", requests)
    lines = []
    for number, body in enumerate(bodies_in(tmp_path / "a")):
        renamed = {("max_completion_tokens" if name == "max_tokens" else name): value for name, value in body.items()}
        without = {name: value for name, value in renamed.items() if name != "temperature"}
        lines.append(result_line(former_id([body, renamed, without, without][number]), completed(f"answer {number}")))
    (tmp_path / "a" / "results.jsonl").write_text("".join(lines))
    known = {"served in batch files": {"max_tokens": "use max_completion_tokens", "temperature": "no"}}
    (tmp_path / "endpoint.json").write_text(json.dumps(known))
    model, found = ask(tmp_path, "a", "", requests)
    assert texts_of(found) == ["answer 0", "answer 1", "answer 2", "answer 3"]
    # A start that has recorded some of them knows their lines too.
    model = BatchModel(CONFIG, ResultIndex(tmp_path / "a"), None)
    model.pass_over(lambda: requests[1:3], SAMPLING)
    with remember_request_changes(model, tmp_path):
        assert texts_of(list(model.generate([requests[0], requests[3]], SAMPLING))) == ["answer 0", "answer 3"]
    model.finish("")
    assert model.counts.recorded_before == 2
    assert model.results is not None
    assert model.results.n_left == 0


def test_a_line_that_samples_shared_in_an_earlier_version_answers_one_of_them(tmp_path: Path) -> None:
    samples = [request(seed=seed) for seed in (7, 8, 9)]
    (tmp_path / "endpoint.json").write_text(json.dumps({"served in batch files": {"seed": EXTRA}}))
    ask(tmp_path, "", "a", samples)
    body = bodies_in(tmp_path / "a")[0]
    (tmp_path / "old").mkdir()
    (tmp_path / "old" / "results.jsonl").write_text(result_line(former_id(body), completed("the one answer")))
    _, found = ask(tmp_path, "old", "b", samples)
    assert [(index, text_of(result)) for index, result in found] == [(0, "the one answer")]
    assert len(requests_in(tmp_path / "b")) == 2
    # Once it is recorded, no other sample takes it.
    model = BatchModel(CONFIG, ResultIndex(tmp_path / "old"), None)
    model.pass_over(lambda: samples[:1], SAMPLING)
    with remember_request_changes(model, tmp_path):
        assert list(model.generate(samples[1:], SAMPLING)) == []
    assert model.counts.recorded_before == 1


def test_a_refusal_of_one_prompt_changes_no_other_request(tmp_path: Path) -> None:
    requests = [request(str(number)) for number in range(6)]
    ask(tmp_path, "", "a", requests)
    first, second = run_batch(
        tmp_path / "a",
        lambda body: refused_by_vllm(400, CONTEXT_LENGTH) if body["messages"][1]["content"] == "2" else completed("5"),
        files=2,
    )
    (second if '"status_code": 400' in first.read_text() else first).rename(tmp_path / "later")
    read_first, _ = ask(tmp_path, "a", "b", requests)  # the file with the refusal is read first
    assert read_first.request_changes == {}
    assert not (tmp_path / "endpoint.json").exists()
    assert {"max_tokens", "seed", "temperature", "top_p"} < set(bodies_in(tmp_path / "b")[0])
    (tmp_path / "later").rename(second if not second.exists() else first)
    model, found = ask(tmp_path, "a", "", requests)
    assert sum(isinstance(one.result, Completion) for one in found) == 5
    assert model.results is not None
    assert model.results.n_left == 0


def test_a_field_that_was_sent_with_an_answered_request_is_kept(tmp_path: Path) -> None:
    """The words may be about the prompt after all."""
    requests = [request(str(number)) for number in range(4)]
    ask(tmp_path, "", "a", requests)
    words = "Unsupported parameter: 'temperature'"
    run_batch(
        tmp_path / "a", lambda body: completed("5") if body["messages"][1]["content"] == "3" else refused_by_vllm(400, words)
    )
    model, found = ask(tmp_path, "a", "b", requests)
    assert sum(isinstance(one.result, Failure) for one in found) == 3
    assert model.request_changes == {}
    assert all("temperature" in body for body in bodies_in(tmp_path / "b"))


@pytest.mark.parametrize("further", [False, True])
@pytest.mark.parametrize("refused_first", [True, False])
def test_a_new_folder_learns_a_refusal_whose_requests_were_answered_later(
    further: bool, refused_first: bool, tmp_path: Path
) -> None:
    """The later answers are to lines without the field. further: a request that was first written after the refusal."""
    requests = [request(str(number)) for number in range(4)]
    ask(tmp_path, "", "a", requests[:3])
    run_batch(tmp_path / "a", lambda body: refused_by_openai(400, "Unsupported parameter: 'seed'", param="seed"))
    ask(tmp_path, "a", "b", requests if further else requests[:3])
    answers = [result_line(one["custom_id"], completed("5")) for one in requests_in(tmp_path / "b")]
    del answers[2]  # one of them is still to be asked
    refusals = [(tmp_path / "a" / name).read_text() for name in sorted(os.listdir(tmp_path / "a")) if "results" in name]
    (tmp_path / "new").mkdir()
    for number, texts in enumerate([refusals, answers] if refused_first else [answers, refusals]):
        (tmp_path / "new" / f"results-{number}.jsonl").write_text("".join(texts))
    (tmp_path / "endpoint.json").unlink()
    model, found = ask(tmp_path, "new", "c", requests)
    assert sum(isinstance(one.result, Completion) for one in found) == (3 if further else 2)
    assert model.request_changes == {"seed": "Unsupported parameter: 'seed'"}
    assert ["seed" in body for body in bodies_in(tmp_path / "c")] == [False] * (1 if further else 2)


def test_the_batch_that_a_start_writes_does_without_what_this_start_reads(tmp_path: Path) -> None:
    requests = [request(str(number)) for number in range(3)]
    ask(tmp_path, "", "a", requests)
    run_batch(tmp_path / "a", lambda body: refused_by_openai(422, EXTRA, param="seed"))
    model, found = ask(tmp_path, "a", "b", requests)
    assert [isinstance(one.result, Failure) for one in found] == [True] * 3
    assert model.request_changes == {"seed": EXTRA}
    assert [("seed" in body, body["max_tokens"]) for body in bodies_in(tmp_path / "b")] == [(False, 32)] * 3
    manifest = read_json(tmp_path / "b" / "batch.json")
    assert manifest["files"][0]["bytes"] == (tmp_path / "b" / "requests-0000.jsonl").stat().st_size
    run_batch(tmp_path / "b", answer_in_turn())
    model, found = ask(tmp_path, "b", "", requests)
    assert sorted(texts_of(found)) == ["answer 0", "answer 1", "answer 2"]


def test_lines_that_were_written_before_a_refusal_is_read_do_without_too(tmp_path: Path) -> None:
    """Turns of interviews: the first batch of a start may be written before the results of another are read."""
    ask(tmp_path, "", "a", [request("2")])
    run_batch(tmp_path / "a", lambda body: refused_by_openai(422, EXTRA, param="seed"))
    files = RequestFiles(tmp_path / "b", stage="stability", run=Path("run"))
    model = BatchModel(CONFIG, ResultIndex(tmp_path / "a"), files)
    for text in ("1", "2"):
        list(model.generate([request(text)], SAMPLING))
    model.finish("")
    assert ["seed" in body for body in bodies_in(tmp_path / "b")] == [False, False]


def test_answers_before_and_after_a_refusal_are_read_together(tmp_path: Path) -> None:
    requests = [request(str(number)) for number in range(4)]
    ask(tmp_path, "", "all", requests)
    (refused,) = run_batch(tmp_path / "all", lambda body: refused_by_mistral("seed"))
    ask(tmp_path, "all", "b", requests)
    refused.rename(tmp_path / "all" / "z.jsonl")
    (path,) = run_batch(tmp_path / "b", lambda body: completed("without a seed"), out=tmp_path / "all")
    path.write_text("".join(path.read_text().splitlines(keepends=True)[:3]))
    missing = {one["custom_id"] for one in requests_in(tmp_path / "all")} - {
        json.loads(line)["custom_id"] for line in path.open()
    }
    (tmp_path / "all" / "y.jsonl").write_text("".join(result_line(one, completed("with a seed")) for one in missing))
    _, found = ask(tmp_path, "all", "", requests)
    assert sorted(texts_of(found)) == ["with a seed"] + ["without a seed"] * 3


@pytest.mark.parametrize(
    "refused",
    [
        refused_by_openai(
            400, "Invalid parameter: 'response_format' of type 'json_schema' is not supported", param="response_format"
        ),
        refused_by_vllm(400, "This model does not support response format `json_schema`."),
        refused_by_vllm(501, "structured outputs are not implemented"),
    ],
)
def test_a_schema_that_a_host_refuses_is_left_out_of_the_next_batch(refused: dict[str, Any], tmp_path: Path) -> None:
    requests = [request(str(number), schema={"type": "object"}) for number in range(3)]
    ask(tmp_path, "", "a", requests)
    assert all("response_format" in body for body in bodies_in(tmp_path / "a"))
    run_batch(tmp_path / "a", lambda body: refused)
    model, _ = ask(tmp_path, "a", "b", requests)
    assert set(model.request_changes) == {"response_format"}
    assert not any("response_format" in body for body in bodies_in(tmp_path / "b"))
    run_batch(tmp_path / "b", lambda body: completed('{"score": 4}'))
    assert texts_of(ask(tmp_path, "b", "", requests)[1]) == ['{"score": 4}'] * 3


def test_files_for_the_endpoint_of_the_configuration_do_without_what_it_refused_over_http(tmp_path: Path) -> None:
    known = {
        "served at http://h:1/v1": {"max_tokens": "use max_completion_tokens", "stream": "only streams", "seed": "no seed"},
        "served at http://h:2/v1": {"temperature": "only 1"},
        "served in batch files": {"top_p": "only 0.9"},
    }
    (tmp_path / "endpoint.json").write_text(json.dumps(known))
    there = ModelConfig(name="served", base_url="http://h:1/v1")
    ask(tmp_path, "", "a", [request()], there)
    assert set(bodies_in(tmp_path / "a")[0]) == {"model", "messages", "temperature", "top_p", "max_completion_tokens"}
    assert read_json(tmp_path / "endpoint.json")["served in batch files"] == {
        "top_p": "only 0.9", "max_tokens": "use max_completion_tokens", "seed": "no seed",
    }  # fmt: skip
    (tmp_path / "endpoint.json").write_text(json.dumps(known))
    ask(tmp_path, "", "b", [request()])  # a name alone says nothing of the host
    assert {"max_tokens", "seed", "temperature"} < set(bodies_in(tmp_path / "b")[0])


# Damaged and hostile files


def hostile_lines() -> Iterator[tuple[bytes, str]]:
    yield b"\x00" * 50 + b"\n", "not JSON"
    yield b'{"custom_id": "permix-\n', "not JSON"
    yield b"\xff\xfe{}\n", "not UTF-8"
    yield b"[" * 100_000 + b"\n", "nested too deeply"
    yield b"[1]\n", "contains list, not an object"
    yield b'{"custom_id": 7, "response": {}}\n', "has no custom_id"
    yield b'{"custom_id": "x"}\n', "has neither a response nor an error"
    yield b'{"custom_id": "x", "response": ' + b"9" * 5000 + b"}\n", ""


@pytest.mark.parametrize(("line", "words"), list(hostile_lines()))
def test_a_damaged_line_is_named_and_the_rest_is_used(
    tmp_path: Path, line: bytes, words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    write(tmp_path, [request("1"), request("2")])
    one, two = (one["custom_id"] for one in requests_in(tmp_path))
    good = [result_line(one, completed("a")).encode(), result_line(two, completed("b")).encode()]
    (tmp_path / "results.jsonl").write_bytes(good[0] + line + b"\n" + good[1])
    model, results = read(tmp_path, [request("1"), request("2")])
    model.finish("")
    assert [text_of(result) for _, result in results] == ["a", "b"]
    said = capsys.readouterr().err
    assert "1 damaged lines were passed over" in said
    assert f"results.jsonl:2: {words}" in said


def test_an_overlong_line_is_passed_over_in_pieces(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path, [request("1")])
    (line,) = requests_in(tmp_path)
    monkeypatch.setattr(batch_files, "MAX_LINE_BYTES", 1000)
    good = result_line(line["custom_id"], completed("a"))
    assert len(good) < 1000
    (tmp_path / "results.jsonl").write_text('{"custom_id": "' + "x" * 5000 + '"}\n' + good)
    model, results = read(tmp_path, [request("1")])
    assert [text_of(result) for _, result in results] == ["a"]
    assert model.results is not None
    assert [(one.number, one.reason) for one in model.results.damaged] == [(1, "longer than 0 MB")]


@pytest.mark.parametrize("cut", [0, 1, 30])
def test_a_last_line_that_was_cut_off(tmp_path: Path, cut: int) -> None:
    write(tmp_path, [request("1"), request("2")])
    one, two = (one["custom_id"] for one in requests_in(tmp_path))
    whole = result_line(one, completed("a")) + result_line(two, completed("b"))
    (tmp_path / "results.jsonl").write_text("\ufeff" + whole[: len(whole) - cut])  # 1: only the newline is missing
    model, results = read(tmp_path, [request("1"), request("2")])
    assert [text_of(result) for _, result in results] == (["a"] if cut == 30 else ["a", "b"])
    assert model.results is not None
    assert [str(one).partition("results")[2] for one in model.results.damaged] == (
        [f".jsonl:2: not JSON: {model.results.damaged[0].reason.partition(': ')[2]}"] if cut == 30 else []
    )
    assert all("the line was cut off" in one.reason for one in model.results.damaged)


@pytest.mark.parametrize(
    "result",
    [
        {"response": {"status_code": "200", "body": {}}},
        {"response": {"status_code": True, "body": {}}},
        {"response": {"status_code": 10**40, "body": [1]}},
        {"response": "text", "error": 5},
        {"response": {"status_code": 200, "body": None}},
        {"response": {"status_code": 200, "body": {"choices": "none", "usage": [1]}}},
        {"response": {"status_code": 200, "body": {"choices": [{"message": {"content": {"a": 1}}}]}}},
        {"response": {"status_code": 404, "body": {"error": {"message": {"a": [1]}}}}},
        {"response": [], "error": {"code": [], "message": None}},
    ],
)
def test_wrong_types_are_a_failure_with_words(result: dict[str, Any]) -> None:
    found: BatchResult = read_batch_result(result)
    assert isinstance(found.result, Failure)
    assert found.result.message
    assert found.result.message.isprintable()


def test_request_files_and_the_manifest_are_no_results(tmp_path: Path) -> None:
    write(tmp_path, [request("1")])
    (tmp_path / "copy-of-requests.jsonl").write_bytes((tmp_path / "requests-0000.jsonl").read_bytes())
    with pytest.raises(ConfigError, match=r"holds no file of results .*; it holds requests, which an engine has to answer first"):
        ResultIndex(tmp_path)
    run_batch(tmp_path, lambda body: completed("a"))
    index = ResultIndex(tmp_path)
    assert [path.name for path in index.paths] == ["results-0.jsonl"]
    assert (index.n_results, index.n_requests) == (1, 0)


def test_results_of_ray_data_and_a_single_file_are_read(tmp_path: Path) -> None:
    write(tmp_path / "b", [request("1")])
    (path,) = run_batch(tmp_path / "b", lambda body: completed("a"), out=tmp_path / "ray")
    path.rename(tmp_path / "ray/12_000000_000000.json")
    assert len(read(tmp_path / "ray", [request("1")])[1]) == 1
    assert len(read(tmp_path / "ray/12_000000_000000.json", [request("1")])[1]) == 1


def test_a_file_of_requests_in_place_of_results_is_refused(tmp_path: Path) -> None:
    """Without that it holds 0 results, and the advice to write the next batch would be paid for twice."""
    write(tmp_path, [request("1")])
    for name in ("requests-0000.jsonl", "batch.json"):
        with pytest.raises(ConfigError, match=rf"--batch-in .*{name}: it holds requests, which an engine has to answer first"):
            ResultIndex(tmp_path / name)


@pytest.mark.parametrize("indent", [None, 1])
def test_a_file_that_is_one_json_array_is_one_damage_with_its_cause(
    indent: int | None, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write(tmp_path, [request("1"), request("2")])
    (path,) = run_batch(tmp_path, lambda body: completed("a"))
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    (tmp_path / "out.json").write_text(json.dumps(lines, indent=indent))
    path.write_text(json.dumps(lines[0]) + "\n")
    model, results = read(tmp_path, [request("1"), request("2")])
    model.finish("")
    assert texts_of(results) == ["a"]
    said = capsys.readouterr().err
    assert "1 damaged lines were passed over" in said
    assert "out.json:1: the file is one JSON array; results are one object a line" in said


def test_folders_without_results_pipes_and_packed_files_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"--batch-in .*nowhere: no such folder"):
        ResultIndex(tmp_path / "nowhere")
    with pytest.raises(ConfigError, match=r"holds no file of results \(\*.jsonl or \*.json\)$"):
        ResultIndex(tmp_path)
    (tmp_path / "results.jsonl.gz").write_bytes(b"")
    with pytest.raises(ConfigError, match=r"results.jsonl.gz is packed; unpack it first"):
        ResultIndex(tmp_path)
    (tmp_path / "results.jsonl.gz").unlink()
    os.mkfifo(tmp_path / "results.jsonl")
    with pytest.raises(DataError, match="is a pipe, not a file"):
        ResultIndex(tmp_path)


def test_a_file_that_changes_while_it_is_read_is_damage_and_no_answer(tmp_path: Path) -> None:
    write(tmp_path, [request("1"), request("2")])
    (path,) = run_batch(tmp_path, lambda body: completed("a"))
    index = ResultIndex(tmp_path)
    path.write_text("x" * path.stat().st_size)
    model = BatchModel(CONFIG, index, None)
    assert list(model.generate([request("1")], SAMPLING)) == []
    path.unlink()
    assert list(model.generate([request("2")], SAMPLING)) == []
    assert [one.reason for one in index.damaged] == ["was changed while it was read"] * 2


def test_many_files_are_not_open_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(batch_files, "MAX_OPEN_RESULT_FILES", 2)
    requests = [request(str(number)) for number in range(12)]
    write(tmp_path, requests)
    run_batch(tmp_path, lambda body: completed("a"), files=5)
    before = len(os.listdir("/proc/self/fd"))
    index = ResultIndex(tmp_path)
    model = BatchModel(CONFIG, index, None)
    assert len(list(model.generate(requests, SAMPLING))) == 12
    assert len(os.listdir("/proc/self/fd")) <= before + 2
    index.close()
    assert len(os.listdir("/proc/self/fd")) == before


# Flags


def test_flags_are_checked(tmp_path: Path) -> None:
    for flags, words in (
        (BatchFlags(batch_files=2), "--batch-files 2: is the number of files of --batch-out, which is missing"),
        (BatchFlags(batch_out=tmp_path, batch_files=0), "--batch-files 0: must be 1 to 9999"),
        (BatchFlags(batch_out=tmp_path, batch_in=tmp_path), "is the folder of --batch-in too; give a new folder"),
    ):
        with pytest.raises(ConfigError, match=words):
            flags.check()


def test_without_flags_there_is_no_model() -> None:
    with open_batch_model(BatchFlags(), CONFIG, stage="stability", run=Path("run"), read_back="") as model:
        assert model is None


def test_a_start_that_writes_ends_well_and_one_that_only_reads_says_what_is_missing(tmp_path: Path) -> None:
    def start(flags: BatchFlags, requests: list[Request]) -> BatchModel:
        with open_batch_model(flags, CONFIG, stage="stability", run=Path("run"), read_back="") as model:
            assert model is not None
            if len(list(model.generate(requests, SAMPLING))) < len(requests):
                raise IncompleteRunError("some are missing", 1)
        return model

    model = start(BatchFlags(batch_out=tmp_path / "b"), [request("1")])
    assert model.counts.written == 1
    run_batch(tmp_path / "b", lambda body: completed("a"))
    with pytest.raises(IncompleteRunError, match="some are missing"):
        start(BatchFlags(batch_in=tmp_path / "b"), [request("1"), request("2")])
    assert start(BatchFlags(tmp_path / "b", tmp_path / "c"), [request("1")]).manifest is None
    assert not (tmp_path / "c").exists()  # nothing is pending


def test_sizes_are_written_for_people() -> None:
    assert [size_text(n) for n in (900, 12_345, 2_500_000, 1_300_000_000)] == ["1 kB", "12 kB", "2.5 MB", "1.3 GB"]

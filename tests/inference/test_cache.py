"""Answers by content: nothing is asked twice, nothing is taken for what it is not, and two processes share a folder."""

import json
import multiprocessing
import sqlite3
from pathlib import Path

import pytest

from permix.config import FidelityConfig, ModelConfig, StabilityConfig
from permix.errors import ConfigError, DataError
from permix.evals.stability import run_stability
from permix.inference.base import Model
from permix.inference.cache import CACHE_DATABASE, cache_key_text, cached_model
from permix.inference.hf import HFModel
from permix.inference.scripted import ScriptedModel, ScriptedReply
from permix.storage.files import read_json
from permix.types import Completion, Failure, Message, Request, Sampling
from tests.cell_files import read_cells

GREEDY, DRAWN = Sampling(temperature=0, max_new_tokens=8), Sampling(temperature=0.7, max_new_tokens=8)


def request(text: str, seed: int = 0, system: str | None = None) -> Request:
    first = () if system is None else (Message(role="system", content=system),)
    return Request((*first, Message(role="user", content=text)), seed)


def texts(model: Model, folder: Path, requests: list[Request], sampling: Sampling = GREEDY) -> list[str | None]:
    with cached_model(model, folder, folder / "run") as kept:
        found = dict(kept.generate(requests, sampling))
    results = (found[place] for place in range(len(requests)))
    return [one.text if isinstance(one, Completion) else None for one in results]


def counting(name: str = "a") -> ScriptedModel:
    """Every answer it gives is a new one."""
    said: list[str] = []

    def reply(asked: Request) -> ScriptedReply:
        said.append(asked.messages[-1]["content"])
        return f"{said[-1]} {len(said)}"

    return ScriptedModel(reply, name)


def test_another_run_asks_only_what_is_new(tmp_path: Path) -> None:
    first, again = counting(), counting()
    assert texts(first, tmp_path, [request("x"), request("y")]) == ["x 1", "y 2"]
    assert texts(again, tmp_path, [request("y"), request("z"), request("x")]) == ["y 2", "z 1", "x 1"]
    assert [one.messages[-1]["content"] for one in again.requests] == ["z"]


def test_everything_that_an_answer_depends_on_tells_it_apart(tmp_path: Path) -> None:
    model = counting()
    asked = [
        (request("x"), GREEDY), (request("x", system="You are x."), GREEDY), (request("x"), DRAWN), (request("x", seed=1), DRAWN),
        (request("x"), GREEDY.model_copy(update={"max_new_tokens": 9})), (request("x"), DRAWN.model_copy(update={"top_p": 0.9})),
        (Request((Message(role="system", content="x"),), 0), GREEDY),
    ]  # fmt: skip
    for one, sampling in asked:
        texts(model, tmp_path, [one], sampling)
    assert len(model.requests) == len(asked)
    texts(counting("another"), tmp_path, [request("x")])
    with sqlite3.connect(tmp_path / CACHE_DATABASE) as table:
        assert table.execute("SELECT COUNT(*) FROM answers").fetchone() == (len(asked) + 1,)


def test_a_greedy_answer_has_no_seed_and_a_drawn_one_has(tmp_path: Path) -> None:
    model = counting()
    assert texts(model, tmp_path, [request("x", seed=1)]) == texts(model, tmp_path, [request("x", seed=2)]) == ["x 1"]
    assert texts(model, tmp_path, [request("x", seed=1)], DRAWN) == ["x 2"]
    assert texts(model, tmp_path, [request("x", seed=2)], DRAWN) == ["x 3"]


def test_a_row_that_only_has_the_key_is_no_hit(tmp_path: Path) -> None:
    """As by a collision of hashes, or a file that somebody edited."""
    texts(counting(), tmp_path, [request("x")])
    with sqlite3.connect(tmp_path / CACHE_DATABASE) as table:
        table.execute("UPDATE answers SET asked = ?", (cache_key_text("other", request("x"), GREEDY),))
    assert texts(ScriptedModel({"x": "new"}, "a"), tmp_path, [request("x")]) == ["new"]
    assert texts(ScriptedModel({}, "a"), tmp_path, [request("x")]) == ["new"], "and it took the row's place"


def test_failures_are_not_kept_and_hostile_text_is(tmp_path: Path) -> None:
    hostile = "\ud800 \x00 \u202e <script>"
    replies: list[ScriptedReply] = [Failure(type="PromptTooLong", message="long"), hostile]
    assert texts(ScriptedModel(replies, "a"), tmp_path, [request("x"), request("y")]) == [None, hostile]
    assert texts(ScriptedModel(["now"], "a"), tmp_path, [request("y"), request("x")]) == [hostile, "now"]


def test_an_answer_is_kept_as_soon_as_it_is_there(tmp_path: Path) -> None:
    with cached_model(counting(), tmp_path, tmp_path / "run") as kept:
        answers = kept.generate([request("x"), request("y")], GREEDY)
        next(answers)  # and then the process dies
    assert texts(ScriptedModel({"y": "y"}, "a"), tmp_path, [request("x"), request("y")]) == ["x 1", "y"]


def write(folder: Path, name: str) -> None:
    texts(ScriptedModel(lambda asked: asked.messages[-1]["content"], name), folder, [request(str(n)) for n in range(100)])


def test_processes_share_a_folder(tmp_path: Path) -> None:
    context = multiprocessing.get_context("forkserver")
    writers = [context.Process(target=write, args=(tmp_path, name)) for name in ("a", "a", "b")]
    for one in writers:
        one.start()
    for one in writers:
        one.join()
    assert [one.exitcode for one in writers] == [0, 0, 0]
    with sqlite3.connect(tmp_path / CACHE_DATABASE) as table:
        assert table.execute("SELECT COUNT(*) FROM answers").fetchone() == (200,)


def make(folder: Path) -> None:
    with cached_model(ScriptedModel({}, "a"), folder, folder):
        pass


@pytest.mark.slow
def test_many_processes_make_the_file_at_once(tmp_path: Path) -> None:
    context = multiprocessing.get_context("forkserver")
    for attempt in range(5):
        makers = [context.Process(target=make, args=(tmp_path / str(attempt),)) for _ in range(6)]
        for one in makers:
            one.start()
        for one in makers:
            one.join()
        assert [one.exitcode for one in makers] == [0] * 6


def test_a_damaged_answer_is_asked_again(tmp_path: Path) -> None:
    texts(counting(), tmp_path, [request("x")])
    with sqlite3.connect(tmp_path / CACHE_DATABASE) as table:
        table.execute("UPDATE answers SET answer = '{'")
    assert texts(ScriptedModel({"x": "new"}, "a"), tmp_path, [request("x")]) == ["new"]


def test_what_cannot_be_used_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    (tmp_path / "odd").mkdir()
    (tmp_path / "odd" / CACHE_DATABASE).write_text("not a database, and longer than the header of one would be" * 10)
    for folder in ("file", "odd"):
        with pytest.raises(ConfigError, match=rf"cache = .*{folder}: .*; give a folder that can be written to"):
            texts(counting(), tmp_path / folder, [request("x")])
    model = counting()
    model.content_addressed = False
    with pytest.raises(ConfigError, match="weights under the name 'a' may change"):
        texts(model, tmp_path / "new", [request("x")])
    assert not (tmp_path / "new").exists()
    endpoint = {"backend": "openai", "base_url": "http://127.0.0.1:1/v1", "name": "m"}
    for stage in (StabilityConfig, FidelityConfig):
        with pytest.raises(ValueError, match="the model behind an endpoint may change"):
            stage.model_validate({"model": endpoint, "cache": "x"})


def test_a_run_from_the_cache_is_the_run(tiny_model: Path, tmp_path: Path) -> None:
    """With other personas beside the old ones, only those are generated."""
    assert HFModel(ModelConfig(name=str(tiny_model))).content_addressed

    def run(name: str, personas: int) -> tuple[StabilityConfig, float | None]:
        values = {
            "out": tmp_path / name, "model": {"name": str(tiny_model)}, "task": {"n": 4}, "personas": {"n": personas},
            "sampling": {"max_new_tokens": 4}, "threads": 1, "resamples": 100, "cache": tmp_path / "cache",
        }  # fmt: skip
        config = StabilityConfig.model_validate(values)
        return config, run_stability(config).mean.value

    first, mean = run("first", 2)
    second, same = run("second", 2)
    assert mean == same
    notes = [read_json(config.out / "cache.json") for config in (first, second)]
    assert notes == [{"held": 0, "asked": 12}, {"held": 12, "asked": 12}]
    assert read_cells(first.out / "records.jsonl") == read_cells(second.out / "records.jsonl")
    run("third", 3)
    with sqlite3.connect(tmp_path / "cache" / CACHE_DATABASE) as table:
        rows = table.execute("SELECT asked FROM answers").fetchall()
    assert len(rows) == 4 * (3 + 1)
    assert {json.loads(row[0])["seed"] for row in rows} == {None}


@pytest.mark.parametrize(
    "answer", [None, 7, 1.5, b"\x80\x04N.", b"\xff", "", "[]", "{", "[" * 100_000, "9" * 10_000, '{"text": 1}', '{"text": NaN}']
)
def test_a_row_of_any_kind_is_asked_again(answer: object, tmp_path: Path) -> None:
    assert texts(ScriptedModel(lambda _: "18"), tmp_path, [request("q")]) == ["18"]
    with sqlite3.connect(tmp_path / CACHE_DATABASE) as connection:
        connection.executescript("ALTER TABLE answers RENAME TO old; CREATE TABLE answers (key PRIMARY KEY, asked, answer);")
        connection.execute("INSERT INTO answers SELECT key, asked, ? FROM old", (answer,))
    assert texts(ScriptedModel(lambda _: "19"), tmp_path, [request("q")]) == ["19"]


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", '{"held": "1", "asked": 2}', '{"held": 1, "asked": NaN}', "[" * 100_000])
def test_damaged_counts_are_refused_before_a_model_is_asked(text: str, tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "cache.json").write_text(text)
    model = ScriptedModel(lambda _: "18")
    with pytest.raises(DataError, match=r"cache\.json: "):
        texts(model, tmp_path, [request("q")])
    assert model.requests == []

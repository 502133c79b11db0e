"""What requests cost before they are sent: counts by hand, prices, and what earlier runs tell."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from permix.config import ModelConfig
from permix.errors import ConfigError
from permix.inference.chat_template import encode_chat
from permix.inference.cost import RequestGroup, duration_text, estimate_cost, find_measured, runs_beside
from permix.inference.hf import load_tokenizer
from permix.progress import command_output
from permix.types import Message

ENDPOINT = ModelConfig(name="m", backend="openai", base_url="http://127.0.0.1:1/v1")
"""A model that nobody serves: an estimate that asked would fail."""

FORTY = (Message(role="system", content="s" * 10), Message(role="user", content="u" * 30))
"""Forty characters: ten tokens by the estimate."""


def prices(folder: Path, text: str = '["m"]\ninput = 100\noutput = 1000\n') -> ModelConfig:
    (folder / "prices.toml").write_text(text)
    return ENDPOINT.model_copy(update={"prices": folder / "prices.toml"})


def recorded(folder: Path, tokens: list[int | None], *, limit: int = 16, seconds: float = 8, **config: Any) -> Path:
    """A stability run of the model "m" with one completion for each number of tokens; one at the limit was cut off there."""
    folder.mkdir(parents=True)
    model = {"name": "m", "backend": "openai", "base_url": "http://127.0.0.1:9/v1"}
    values = {"stage": "stability", "model": model, "sampling": {"max_new_tokens": limit}} | config
    (folder / "config.json").write_text(json.dumps(values))
    (folder / "usage.json").write_text(json.dumps({"wall_seconds": seconds}))
    ends = ["length" if one == limit else "stop" for one in tokens]
    lines = [{"completion": {"text": "", "completion_tokens": one, "finish": end}} for one, end in zip(tokens, ends, strict=True)]
    (folder / "records.jsonl").write_text("".join(json.dumps(line) + "\n" for line in [*lines, {"completion": None}]))
    return folder


def test_requests_and_tokens_are_counted_and_a_price_gives_dollars(tmp_path: Path) -> None:
    groups = [RequestGroup([FORTY] * 3, 16, n_later=2), RequestGroup([FORTY], 4, times=5, answer_tokens=6)]
    facts = estimate_cost(groups, prices(tmp_path), None, n_recorded=7)
    # Prompts: (3 + 2) × 10 and 5 × (10 + 6); new tokens: 5 × 16 + 5 × 4 = 100; 130 × 100 $/M + 100 × 1000 $/M = 0.113 $.
    assert facts == {
        "requests": "8, then at most 2 more; 7 more are recorded already",
        "prompt tokens": "about 130 (estimate: 4 characters a token, with answers of the greatest length)",
        "new tokens": "at most 100",
        "time": "unknown: no earlier run of this model was timed",
        "cost": "at most 0.1130 US dollars if no request is repeated",
    }


def test_the_prompts_of_repeated_requests_count_in_what_is_at_most(tmp_path: Path) -> None:
    measured = find_measured([recorded(tmp_path / "one", [2])], "stability", ENDPOINT, 16)
    with command_output(as_json=True, is_quiet=True) as shown:
        facts = estimate_cost([RequestGroup([FORTY] * 3, 16, n_repeats=6, answer_tokens=12)], prices(tmp_path), measured)
    # Prompts: 3 × 10 + 12 = 42, each asked three times at most; 126 × 100 $/M + 9 × 16 × 1000 $/M = 0.1566 $.
    assert facts["prompt tokens"] == "about 42, at most 126 (estimate: 4 characters a token, with answers of the greatest length)"
    assert facts["cost"] == "at most 0.1566 US dollars if no request is repeated, about 0.0102 expected"
    numbers = shown.result["estimates"]["model"]
    assert (numbers["requests_at_most"], numbers["prompt_tokens"], numbers["prompt_tokens_at_most"]) == (9, 42, 126)


def test_an_earlier_run_tells_length_time_and_likely_cost(tmp_path: Path) -> None:
    folder = recorded(tmp_path / "runs" / "one", [2, 4, 6])
    measured = find_measured([tmp_path / "none", folder], "stability", ENDPOINT, 16)
    assert measured is not None
    assert (measured.run, measured.n, measured.mean_new_tokens, measured.per_second) == (folder, 3, 4.0, 3 / 8)
    facts = estimate_cost([RequestGroup([FORTY] * 30, 16)], prices(tmp_path), measured)
    assert facts["new tokens"] == f"at most 480, about 120 expected (mean of 3 answers in {folder}: 4.0)"
    assert facts["time"] == f"about 80 s (0.375 requests/s in {folder})"  # 30 / (3 / 8)
    assert facts["cost"] == "at most 0.5100 US dollars if no request is repeated, about 0.1500 expected"
    short = estimate_cost([RequestGroup([FORTY], 3)], ENDPOINT, measured)["new tokens"]
    assert short.startswith("at most 3, about 3 expected")  # no answer is longer than the limit


def test_runs_that_do_not_tell_are_passed_over(tmp_path: Path) -> None:
    def told(limit: int = 16, stage: str = "stability", model: ModelConfig = ENDPOINT, **fields: Any) -> bool:
        folder = recorded(tmp_path / f"run-{len(list(tmp_path.iterdir()))}", **({"tokens": [2, 16]} | fields))
        return find_measured([folder], stage, model, limit) is not None

    assert told()
    assert not told(17)  # an answer was cut off at 16, and would have been longer
    assert told(17, tokens=[2, 15])
    assert not told(stage="fidelity")
    assert not told(model=ENDPOINT.model_copy(update={"name": "other"}))
    assert not told(tokens=[])
    assert not told(interviewer={"name": "asker"})


def test_what_a_run_does_not_know_is_unknown(tmp_path: Path) -> None:
    def measured(**fields: Any) -> tuple[float | None, float | None]:
        folder = recorded(tmp_path / f"run-{len(list(tmp_path.iterdir()))}", **({"tokens": [2]} | fields))
        found = find_measured([folder], "stability", ENDPOINT, 16)
        assert found is not None
        return found.mean_new_tokens, found.per_second

    assert measured(tokens=[2, None]) == (None, 0.25)
    assert measured(seconds=0) == (2, None)
    assert measured(cache="cache") == (2, None)  # completions from a cache take no time


@pytest.mark.parametrize(
    "damage",
    [
        lambda folder: (folder / "records.jsonl").write_text("[]\n"),
        lambda folder: (folder / "records.jsonl").write_text("{\n"),
        lambda folder: (folder / "config.json").write_text("{"),
        lambda folder: (folder / "config.json").write_text('{"stage": "stability", "model": 3}'),
        lambda folder: (folder / "usage.json").write_text('{"wall_seconds": "long"}'),
    ],
)
def test_a_damaged_run_is_passed_over(damage: Callable[[Path], int], tmp_path: Path) -> None:
    damaged, whole = recorded(tmp_path / "damaged", [1]), recorded(tmp_path / "whole", [2])
    damage(damaged)
    found = find_measured([damaged, whole], "stability", ENDPOINT, 16)
    assert found is not None
    assert found.run == whole


def test_the_run_itself_comes_first(tmp_path: Path) -> None:
    for name in ("a", "b", "c"):
        recorded(tmp_path / "runs" / name, [1])
    assert next(iter(runs_beside(tmp_path / "runs" / "b"))) == tmp_path / "runs" / "b"
    assert {path.name for path in runs_beside(tmp_path / "runs" / "b")} == {"a", "b", "c"}
    assert list(runs_beside(tmp_path / "none" / "x")) == [tmp_path / "none" / "x"]


@pytest.mark.slow
def test_a_local_tokenizer_counts(tiny_model: Path) -> None:
    model, tokenizer = ModelConfig(name=str(tiny_model)), load_tokenizer(str(tiny_model))
    chats = [(Message(role="user", content=text),) for text in ("one", "one and two and three")]
    exact = sum(len(encode_chat(tokenizer, chat)) for chat in chats)
    facts = estimate_cost([RequestGroup(chats, 8)], model, None)
    assert facts["prompt tokens"] == f"{exact} (the model's tokenizer)"
    assert facts["cost"] == "none: the model runs in this process"
    later = estimate_cost([RequestGroup(chats, 8, n_later=2)], model, None)["prompt tokens"]
    assert later == f"about {2 * exact} (the model's tokenizer)"


def test_a_model_that_is_not_here_is_estimated_and_not_fetched() -> None:
    facts = estimate_cost([RequestGroup([FORTY], 8)], ModelConfig(name="nobody/no-such-model"), None)
    assert facts["prompt tokens"] == "about 10 (estimate: 4 characters a token)"


def test_bad_prices_name_the_option(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"model\.prices = prices\.csv: must be a \.toml file"):
        estimate_cost([], ENDPOINT.model_copy(update={"prices": Path("prices.csv")}), None)
    with pytest.raises(ConfigError, match=r'prices\.toml: \["m"\] output'):
        estimate_cost([], prices(tmp_path, '["m"]\ninput = 1\n'), None)
    assert estimate_cost([], prices(tmp_path, '["n"]\ninput = 1\noutput = 1\n'), None)["cost"] == "unknown: no price for m"


@pytest.mark.parametrize(("seconds", "text"), [(75, "75 s"), (600, "10 min"), (8000, "2 h 13 min"), (0, "0 s")])
def test_durations(seconds: float, text: str) -> None:
    assert duration_text(seconds) == text

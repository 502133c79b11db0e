"""Prices: who costs what, what a table may say, and how many calls a limit allows at once."""

from pathlib import Path
from typing import Any

import pytest

from permix.config import JudgeModelConfig
from permix.errors import ConfigError
from permix.inference.cost import FREE, Price, load_prices
from permix.judges.runner import (
    call_cost,
    count_affordable,
    load_judge_price,
    max_call_cost,
    reserved_cost,
)
from permix.types import Completion, Failure, Message, Request

TABLE = '["gpt-*"]\ninput = 1\noutput = 2\n["gpt-mini"]\ninput = 0.5\noutput = 1\n["gpt-mini-*"]\ninput = 9\noutput = 9\n'
PRICE = Price(input=1, output=10)


def table(folder: Path, text: str = TABLE) -> Path:
    path = folder / "prices.toml"
    path.write_text(text, encoding="utf-8")
    return path


def judge(name: str, prices: Path | None, **fields: Any) -> JudgeModelConfig:
    return JudgeModelConfig(name=name, backend="openai", base_url="http://127.0.0.1:1/v1", prices=prices, **fields)


@pytest.mark.parametrize(("name", "dollars"), [("gpt-mini", 0.5), ("gpt-large", 1), ("gpt-mini-2", 1)])
def test_a_full_name_counts_first_and_then_the_first_pattern(name: str, dollars: float, tmp_path: Path) -> None:
    found = load_judge_price(judge(name, table(tmp_path)))
    assert found is not None
    assert found.input == dollars


def test_an_unknown_model_has_no_price_and_no_limit(tmp_path: Path) -> None:
    assert load_judge_price(judge("claude", table(tmp_path))) is None
    assert load_judge_price(judge("claude", None)) is None
    with pytest.raises(ConfigError, match=r"max_cost = 2: .*no price for 'claude'.*known: gpt-\*, gpt-mini"):
        load_judge_price(judge("claude", table(tmp_path), max_cost=2))
    with pytest.raises(ConfigError, match="did you mean 'gpt-mini'"):
        load_judge_price(judge("gptmini", table(tmp_path), max_cost=2))


def test_a_judge_in_this_process_costs_nothing() -> None:
    assert load_judge_price(JudgeModelConfig(name="folder")) == FREE


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ('["m"]\ninput = 1\n', r'\["m"\] output'),
        ('["m"]\ninput = -1\noutput = 1\n', r'\["m"\] input = -1'),
        ('["m"]\ninput = inf\noutput = 1\n', r'\["m"\] input = inf'),
        ('["m"]\ninput = 1\noutput = 1\ncached = 1\n', r'\["m"\] cached'),
        ("m = 1\n", r'\["m"\]'),
        ("m = \n", "not a TOML file"),
    ],
)
def test_a_bad_table_is_refused_by_entry(text: str, words: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=words):
        load_prices(table(tmp_path, text))


def test_costs_are_dollars_for_a_million_tokens() -> None:
    reply = Completion(text="x", prompt_tokens=1000, completion_tokens=100, finish="stop")
    assert call_cost(reply, PRICE, 9) == pytest.approx((1000 * 1 + 100 * 10) / 1_000_000)
    assert call_cost(reply, None, 9) is None
    assert call_cost(Failure(type="X", message="", prompt_tokens=1000, completion_tokens=0), PRICE, 9) == pytest.approx(0.001)
    assert call_cost(Failure(type="X", message=""), PRICE, 9) == 0
    uncounted = Completion(text="x", prompt_tokens=0, completion_tokens=0, finish="stop")
    assert call_cost(uncounted, PRICE, 9) == 9  # an endpoint that does not count may charge as much as it can have cost
    for half in ({"prompt_tokens": 7}, {"completion_tokens": 7}):
        assert call_cost(uncounted.model_copy(update=half), PRICE, 9) == 9


def test_what_a_call_that_broke_off_may_have_cost_is_reserved_and_no_cost() -> None:
    timeout = Failure(type="TimeoutError", message="no complete reply")
    assert (reserved_cost(timeout, 9), call_cost(timeout, PRICE, 9)) == (9, 0)
    assert reserved_cost(Failure(type="APIStatusError", message="HTTP 500: busy"), 9) == 0
    assert reserved_cost(timeout.model_copy(update={"prompt_tokens": 3}), 9) == 0
    assert reserved_cost(Completion(text="x", prompt_tokens=0, completion_tokens=0, finish="stop"), 9) == 0


def test_nothing_costs_more_than_its_bytes_and_all_it_may_write() -> None:
    request = Request((Message(role="user", content="é" * 100),), seed=0)
    assert max_call_cost(request, PRICE, 50) >= PRICE.cost(200, 50)
    assert max_call_cost(request._replace(schema={"type": "object"}), PRICE, 50) > max_call_cost(request, PRICE, 50)


def test_so_many_calls_go_together_as_the_limit_allows_at_their_dearest() -> None:
    assert count_affordable([0.3, 0.3, 0.3], 1.0) == 3
    assert count_affordable([0.5, 0.5, 0.1], 1.0) == 2
    assert count_affordable([0.5, 0.1], 0.4) == 0
    assert count_affordable([0.5, 0.1], -1) == 0
    assert count_affordable([0.5] * 7, None) == 7

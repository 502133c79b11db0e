"""What judges cost: a table of prices that the user keeps, and a limit that is never exceeded.

    ["gpt-4o-mini*"]         # a model's name as the endpoint serves it, or a pattern with * and ? in it
    input = 0.15             # US dollars for a million tokens
    output = 0.60

A name that stands there in full counts before any pattern, and patterns count in the order of the file. Models in this process
cost nothing.
"""

import json
from collections.abc import Iterable, Sequence
from fnmatch import fnmatchcase
from itertools import accumulate
from pathlib import Path

from pydantic import Field, ValidationError

from permix.config import JudgeModelConfig, format_validation_error, read_config_values
from permix.errors import ConfigError, closest_match
from permix.inference.openai import is_http_failure
from permix.judges.types import Judgement
from permix.types import Completion, Failure, Record, Request

CHAT_TEMPLATE_TOKENS = 64
"""More than a chat template adds to two messages."""


class Price(Record):
    """US dollars for a million tokens."""

    input: float = Field(ge=0)
    output: float = Field(ge=0)

    def cost(self, prompt_tokens: int, completion_tokens: int) -> float:
        """In US dollars."""
        return (prompt_tokens * self.input + completion_tokens * self.output) / 1e6


FREE = Price(input=0, output=0)


def load_judge_price(judge: JudgeModelConfig) -> Price | None:
    """The judge's price; None where no price is known, which a judge with a limit cannot do with (ConfigError)."""
    prices = {} if judge.prices is None else load_prices(judge.prices)
    if not judge.capabilities.is_priced:
        return FREE
    found = prices.get(judge.name) or next((one for name, one in prices.items() if fnmatchcase(judge.name, name)), None)
    if found is None and judge.max_cost is not None:
        near = closest_match(judge.name, prices)
        hint = f"did you mean {near!r}? " if near else ""
        raise ConfigError(
            f"judge.max_cost = {judge.max_cost:g}: {judge.prices} has no price for {judge.name!r}; {hint}"
            f"known: {', '.join(prices) or 'none'}"
        )
    return found


def load_prices(path: Path) -> dict[str, Price]:
    """The table of a TOML file. ConfigError naming the entry that is wrong."""
    if path.suffix != ".toml":
        raise ConfigError(f"judge.prices = {path}: must be a .toml file")
    found = {}
    for name, entry in read_config_values(path).items():
        try:
            found[name] = Price.model_validate(entry)
        except ValidationError as error:
            raise ConfigError(
                f'{path}: ["{name}"] {format_validation_error(error)}; an entry is input = 0.15 and output = 0.60'
            ) from error
    return found


def call_cost(result: Completion | Failure, price: Price | None, max_cost: float) -> float | None:
    """US dollars of one call; None without a price.

    A completion that lacks a count, of tokens read or written, is taken for the dearest that it can have been, `max_cost`. Of a
    failure what the endpoint has counted is known, and nothing else: see `reserved_cost`.
    """
    if price is None:
        return None
    tokens = token_counts(result)
    return max_cost if isinstance(result, Completion) and not all(tokens) else price.cost(*tokens)


def reserved_cost(result: Completion | Failure, max_cost: float) -> float:
    """US dollars that a call may have cost of which nothing is known: it failed without a count and without an HTTP status.

    A timeout, a lost connection: the endpoint may have generated, and charged, all the same. `max_cost` is that of all its tries.
    """
    unknown = isinstance(result, Failure) and not any(token_counts(result)) and not is_http_failure(result)
    return max_cost if unknown else 0.0


def recorded_cost(call: Judgement, price: Price | None = None) -> float | None:
    """US dollars of a call in a ledger; None where it was charged, and nobody can say how much.

    A call of a start that knew no price has no cost there; where its tokens were counted, today's `price` does.
    """
    result = call.reply or call.failure
    if call.cost is not None or result is None:
        return call.cost or 0.0
    tokens = token_counts(result)
    if isinstance(result, Failure) and not any(tokens):
        return 0.0
    return None if price is None or (isinstance(result, Completion) and not all(tokens)) else price.cost(*tokens)


def total_cost(costs: Iterable[float | None]) -> float | None:
    """None as soon as one of them is not known."""
    every = list(costs)
    known = [cost for cost in every if cost is not None]
    return sum(known) if len(known) == len(every) else None


def token_counts(result: Completion | Failure) -> tuple[int, int]:
    """Read and written, 0 where they were not counted."""
    return result.prompt_tokens or 0, result.completion_tokens or 0


def max_call_cost(request: Request, price: Price | None, max_new_tokens: int) -> float:
    """No single reply to the request costs more: a token is a byte at least, and a schema may be charged as if it were text."""
    if price is None:
        return 0.0
    texts = [message["content"] for message in request.messages]
    shown = "".join(texts) + (json.dumps(request.schema) if request.schema else "")
    return price.cost(len(shown.encode("utf-8", "replace")) + CHAT_TEMPLATE_TOKENS, max_new_tokens)


def count_affordable(max_costs: Sequence[float], budget: float | None) -> int:
    """How many of the next calls can be made at once so that, were each as dear as it can be, `budget` would do."""
    if budget is None:
        return len(max_costs)
    return sum(total <= budget for total in accumulate(max_costs))

"""Prices of judges and the cost of their calls, in US dollars.

The user keeps a TOML file of prices:

    ["gpt-4o-mini*"]         # the model name at the endpoint, or a pattern with * and ?
    input = 0.15             # US dollars per million tokens
    output = 0.60

An exact name takes precedence over patterns; patterns apply in the order of the file. Models in this process are free. The upper
bounds and reserved costs computed here let `judges.runner` keep a cost limit.
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
"""An upper bound on the tokens that a chat template adds to two messages."""


class Price(Record):
    """US dollars per million tokens, for tokens read (`input`) and written (`output`)."""

    input: float = Field(ge=0)
    output: float = Field(ge=0)

    def cost(self, prompt_tokens: int, completion_tokens: int) -> float:
        """Cost of these token counts in US dollars."""
        return (prompt_tokens * self.input + completion_tokens * self.output) / 1e6


FREE = Price(input=0, output=0)


def load_judge_price(judge: JudgeModelConfig) -> Price | None:
    """The judge's price; None if it is unknown. Raises ConfigError if it is unknown and `judge.max_cost` is set."""
    prices = {} if judge.prices is None else load_prices(judge.prices)  # also for a free judge: an invalid file is refused
    if not judge.capabilities.is_priced:
        return FREE
    price = prices.get(judge.name) or next((one for name, one in prices.items() if fnmatchcase(judge.name, name)), None)
    if price is None and judge.max_cost is not None:
        near = closest_match(judge.name, prices)
        hint = f"did you mean {near!r}? " if near else ""
        raise ConfigError(
            f"judge.max_cost = {judge.max_cost:g}: {judge.prices} has no price for {judge.name!r}; {hint}"
            f"known: {', '.join(prices) or 'none'}"
        )
    return price


def load_prices(path: Path) -> dict[str, Price]:
    """Read a TOML file of prices. Raises ConfigError, naming the entry, if an entry is invalid."""
    if path.suffix != ".toml":
        raise ConfigError(f"judge.prices = {path}: must be a .toml file")
    prices = {}
    for name, entry in read_config_values(path).items():
        try:
            prices[name] = Price.model_validate(entry)
        except ValidationError as error:
            raise ConfigError(
                f'{path}: ["{name}"] {format_validation_error(error)}; an entry is input = 0.15 and output = 0.60'
            ) from error
    return prices


def call_cost(result: Completion | Failure, price: Price | None, max_cost: float) -> float | None:
    """Cost of one call in US dollars; None without a price.

    A completion without a count of tokens read or written costs `max_cost`, its upper bound. A failure costs only the tokens that
    the endpoint counted; `reserved_cost` covers the rest.
    """
    if price is None:
        return None
    tokens = token_counts(result)
    return max_cost if isinstance(result, Completion) and not all(tokens) else price.cost(*tokens)


def reserved_cost(result: Completion | Failure, max_cost: float) -> float:
    """US dollars to reserve for a call that failed without token counts and without an HTTP status; 0 for any other call.

    After a timeout or a lost connection the endpoint can still have generated and charged. `max_cost` covers all HTTP retries.
    """
    unknown = isinstance(result, Failure) and not any(token_counts(result)) and not is_http_failure(result)
    return max_cost if unknown else 0.0


def recorded_cost(call: Judgement, price: Price | None = None) -> float | None:
    """Cost in US dollars of a recorded call; None if it was charged but the amount is unknown.

    A call that was recorded without a price is priced with `price` if its tokens were counted.
    """
    result = call.reply or call.failure
    if call.cost is not None or result is None:
        return call.cost or 0.0
    tokens = token_counts(result)
    if isinstance(result, Failure) and not any(tokens):
        return 0.0
    return None if price is None or (isinstance(result, Completion) and not all(tokens)) else price.cost(*tokens)


def total_cost(costs: Iterable[float | None]) -> float | None:
    """Sum of the costs; None if one of them is unknown."""
    all_costs = list(costs)
    known = [cost for cost in all_costs if cost is not None]
    return sum(known) if len(known) == len(all_costs) else None


def token_counts(result: Completion | Failure) -> tuple[int, int]:
    """Tokens (read, written); 0 if the endpoint did not count them."""
    return result.prompt_tokens or 0, result.completion_tokens or 0


def max_call_cost(request: Request, price: Price | None, max_new_tokens: int) -> float:
    """Upper bound in US dollars on one reply to the request; 0 without a price.

    It holds since a token has at least one byte; the schema counts as text, since an endpoint may charge it.
    """
    if price is None:
        return 0.0
    texts = [message["content"] for message in request.messages]
    sent_text = "".join(texts) + (json.dumps(request.schema) if request.schema else "")
    return price.cost(len(sent_text.encode("utf-8", "replace")) + CHAT_TEMPLATE_TOKENS, max_new_tokens)


def count_affordable(max_costs: Sequence[float], budget: float | None) -> int:
    """Number of leading calls whose maximum costs sum to at most `budget`, both in US dollars; all of them without a budget."""
    if budget is None:
        return len(max_costs)
    return sum(total <= budget for total in accumulate(max_costs))

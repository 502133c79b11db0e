"""Estimate what the requests of a run cost before the first one is sent: tokens, time and money. Also reads the prices of models.

Contract: no request is sent, no weights are loaded and nothing is written. Each number says where it comes from. What earlier
runs did not measure is "unknown"; it is never a guess.
"""

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any, NamedTuple

from pydantic import Field, ValidationError

from permix.config import ModelConfig, format_validation_error, read_config_values
from permix.errors import ConfigError, DataError
from permix.progress import add_result
from permix.sanitize import escape_control
from permix.storage.files import read_jsonl
from permix.storage.run_dir import UNTIMED, read_run_file, read_usage
from permix.storage.workers import worker_files
from permix.types import Message, Record


class Price(Record):
    """US dollars per million tokens, for tokens read (`input`) and written (`output`)."""

    input: float = Field(ge=0)
    output: float = Field(ge=0)

    def cost(self, prompt_tokens: float, completion_tokens: float) -> float:
        """Cost of these token counts in US dollars."""
        return (prompt_tokens * self.input + completion_tokens * self.output) / 1e6


FREE = Price(input=0, output=0)


def load_prices(path: Path, option: str = "judge.prices") -> dict[str, Price]:
    """Read a TOML file of prices. Raises ConfigError, naming the option or the entry, if the file cannot be used."""
    if path.suffix != ".toml":
        raise ConfigError(f"{option} = {path}: must be a .toml file")
    prices = {}
    for name, entry in read_config_values(path).items():
        try:
            prices[name] = Price.model_validate(entry)
        except ValidationError as error:
            raise ConfigError(
                f'{path}: ["{name}"] {format_validation_error(error)}; an entry is input = 0.15 and output = 0.60'
            ) from error
    return prices


def find_price(model: ModelConfig, option: str = "model.prices") -> Price | None:
    """The price of the model; None if it is unknown. A full name takes precedence over a pattern.

    Raises ConfigError for an invalid file of prices, also if the model costs nothing.
    """
    prices = {} if model.prices is None else load_prices(model.prices, option)
    if not model.capabilities.is_priced:
        return FREE
    return prices.get(model.name) or next((one for name, one in prices.items() if fnmatchcase(model.name, name)), None)


class RequestGroup(NamedTuple):
    """Requests to one model that share a token limit.

    `prompts`: the messages of the requests whose prompts are known. `n_later`: the most further requests, whose prompts are known
    only later; they are counted as long as the mean of `prompts`. `times`: how often the whole group is asked.
    `n_repeats`: the most further requests with prompts of this group, each equally often, because replies are of no use; they
    count in what is at most, and in nothing that is expected.
    `answer_tokens`: the most tokens that the prompts contain in addition, as answers of the model that do not exist yet; without
    those of `n_repeats`.
    """

    prompts: Sequence[Sequence[Message]]
    max_new_tokens: int
    n_later: int = 0
    times: int = 1
    answer_tokens: int = 0
    n_repeats: int = 0

    @property
    def n_at_most(self) -> int:
        return self.n_expected + self.n_repeats

    @property
    def n_expected(self) -> int:
        return (len(self.prompts) + self.n_later) * self.times


class MeasuredRequests(NamedTuple):
    """What the requests of an earlier run cost: mean tokens of a completion, and requests per second of wall time.

    A value is None if the run does not tell: counts that an endpoint did not send, or a run that used a cache.
    """

    run: Path
    n: int
    mean_new_tokens: float | None
    per_second: float | None


def find_measured(
    folders: Iterable[Path], stage: str, model: ModelConfig, max_new_tokens: int, section: str = "model"
) -> MeasuredRequests | None:
    """The first of `folders` in which this stage asked this model, and which tells how long its answers are; None without one.

    `section` is the section of config.json that names the model. A run with a lower token limit counts only if none of its
    answers was cut off there, since it does not tell how long they would have been. A damaged run is passed over.
    """
    for folder in folders:
        try:
            measured = _measure_folder(folder, stage, model, max_new_tokens, section)
        except DataError:
            continue
        if measured is not None:
            return measured
    return None


def runs_beside(out: Path) -> Iterator[Path]:
    """`out`, then the other folders in the folder that contains it, the newest configuration first."""
    yield out
    others = [one.parent for one in out.parent.glob("*/config.json") if one.parent != out]
    yield from sorted(others, key=lambda one: (-(one / "config.json").stat().st_mtime, one))


def _measure_folder(folder: Path, stage: str, model: ModelConfig, max_new_tokens: int, section: str) -> MeasuredRequests | None:
    lists = (worker_files(folder / name) for name in ("records.jsonl", "judgements.jsonl"))
    records = next((found for paths in lists if (found := [path for path in paths if path.is_file()])), None)
    if records is None or not (folder / "config.json").is_file():
        return None
    config = read_run_file(folder / "config.json")
    recorded = config.get(section, {})
    if (config.get("stage"), recorded.get("name"), recorded.get("backend")) != (stage, model.name, model.backend):
        return None
    if config.get("interviewer", {}).get("name", "script") != "script":
        return None  # its records are answers and questions, of two models
    n, new_tokens, cut_off, complete = 0, 0, 0, True
    for reply in (one for path in records for one in read_jsonl(path, _parse_reply, "a record")):
        if reply is None:
            continue
        count = reply.get("completion_tokens")
        n, cut_off, complete = n + 1, cut_off + (reply.get("finish") == "length"), complete and isinstance(count, int)
        new_tokens += min(count, max_new_tokens) if isinstance(count, int) else 0
    limit = (config.get("sampling") or recorded).get("max_new_tokens")
    if not n or (cut_off and not (isinstance(limit, int) and limit >= max_new_tokens)):
        return None
    usage = read_usage(folder)
    seconds = usage.get("wall_seconds", 0.0)
    # A run of an earlier version has not recorded how many answers its seconds took: all of them, if no start was killed.
    timed = usage.get("answers", n)
    is_asked = recorded.get("backend") != "batch" and not config.get("cache")
    rate = timed / seconds if seconds > 0 and timed not in (0, UNTIMED) and is_asked else None
    return MeasuredRequests(folder, n, new_tokens / n if complete else None, rate)


def _parse_reply(line: bytes) -> Mapping[str, Any] | None:
    """The completion of a cell, or the reply of a judge; None if the line has none."""
    values = json.loads(line)
    if not isinstance(values, dict):
        raise ValueError("not an object")
    reply = values.get("completion") or values.get("reply")
    return reply if isinstance(reply, dict) else None


def estimate_cost(
    groups: Sequence[RequestGroup],
    model: ModelConfig,
    measured: MeasuredRequests | None,
    *,
    n_recorded: int = 0,
    price_option: str = "model.prices",
    prefix: str = "",
    max_dollars: float | None = None,
) -> dict[str, str]:
    """Facts about the requests, by name: their number, prompt tokens, new tokens, time, and cost in US dollars.

    `n_recorded`: requests of the run that have an answer already; `groups` are the others. `prefix` is put before each name.
    `max_dollars`: a strict upper bound of the cost, where the caller knows one; without it, the cost of answers of the greatest
    length and of the prompt tokens of all requests that may be asked, as counted here. The numbers alone are added to the result
    for --json ("estimates").
    Raises ConfigError for an invalid file of prices, and for a prompt that the chat template of a local model refuses.
    """
    known, most = sum(len(group.prompts) * group.times for group in groups), sum(group.n_at_most for group in groups)
    expected_requests = sum(group.n_expected for group in groups)
    price, count = find_price(model, price_option), _count_prompt_tokens(groups, model)
    max_new = sum(group.n_at_most * group.max_new_tokens for group in groups)
    mean = None if measured is None else measured.mean_new_tokens
    expected = None if mean is None else sum(group.n_expected * min(mean, group.max_new_tokens) for group in groups)
    rate = None if measured is None else measured.per_second
    if price is not None and max_dollars is None:
        max_dollars = price.cost(count.at_most, max_new)
    dollars_at_most = None if price is None else max_dollars
    dollars_expected = None if price is None or expected is None else price.cost(count.tokens, expected)
    numbers = {
        "requests": known,
        "requests_at_most": most,
        "requests_recorded": n_recorded,
        "prompt_tokens": round(count.tokens),
        "prompt_tokens_at_most": round(count.at_most),
        "prompt_tokens_are_exact": count.is_exact,
        "new_tokens_at_most": max_new,
        "new_tokens_expected": expected,
        "seconds": 0.0 if not most else None if rate is None else expected_requests / rate,
        "dollars_at_most": dollars_at_most,
        "dollars_expected": dollars_expected,
        "measured_in": None if measured is None else str(measured.run),
    }
    add_result(estimates={prefix.removesuffix(": ") or "model": numbers})
    later = f", then at most {most - known} more" if most > known else ""
    recorded = f"; {n_recorded} more are recorded already" if n_recorded else ""
    new_tokens = f"at most {max_new}"
    if measured is not None and expected:
        new_tokens += f", about {expected:.0f} expected (mean of {measured.n} answers in {_shown(measured.run)}: {mean:.1f})"
    repeated = f", at most {count.at_most:.0f}" if count.at_most > count.tokens else ""
    facts = {
        "requests": f"{known}{later}{recorded}",
        "prompt tokens": f"{'' if count.is_exact else 'about '}{count.tokens:.0f}{repeated} ({count.source})",
        "new tokens": new_tokens,
        "time": _time_text(expected_requests, measured),
        "cost": _cost_text(model, dollars_at_most, dollars_expected),
    }
    return {prefix + name: text for name, text in facts.items()}


def _time_text(n: int, measured: MeasuredRequests | None) -> str:
    if not n:
        return "none: every answer is recorded"
    if measured is None or measured.per_second is None:
        return "unknown: no earlier run of this model was timed"
    return f"about {duration_text(n / measured.per_second)} ({measured.per_second:.3g} requests/s in {_shown(measured.run)})"


def _cost_text(model: ModelConfig, at_most: float | None, expected: float | None) -> str:
    if not model.capabilities.is_priced:
        return "none: the model runs in this process"
    if at_most is None:
        return f"unknown: no price for {_shown(model.name)}"
    likely = "" if expected is None else f", about {expected:.4f} expected"
    return f"at most {at_most:.4f} US dollars if no request is repeated{likely}"


def duration_text(seconds: float) -> str:
    """75 -> "75 s", 600 -> "10 min", 8000 -> "2 h 13 min"."""
    if seconds < 100:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 100 else f"{minutes // 60} h {minutes % 60} min"


def _shown(text: Path | str) -> str:
    return escape_control(str(text))


MAX_COUNTED_PROMPTS = 2000
"""Prompts that the tokenizer counts; of more prompts an even selection is counted, so that a large run takes seconds too."""

CHARACTERS_PER_TOKEN = 4


class _PromptCount(NamedTuple):
    """`tokens`: if no request is repeated; `at_most`: with all of `n_repeats`."""

    tokens: float
    at_most: float
    is_exact: bool
    source: str


def _count_prompt_tokens(groups: Sequence[RequestGroup], model: ModelConfig) -> _PromptCount:
    tokenizer = _tokenizer_at_hand(model)
    total, at_most, is_exact = 0.0, 0.0, tokenizer is not None
    for group in groups:
        n = len(group.prompts)
        counted = group.prompts if n <= MAX_COUNTED_PROMPTS else group.prompts[:: -(-n // MAX_COUNTED_PROMPTS)]
        is_exact = is_exact and len(counted) == n and not group.n_later and not group.answer_tokens
        mean = sum(_prompt_tokens(one, tokenizer) for one in counted) / max(len(counted), 1)
        tokens = (mean * (n + group.n_later) + group.answer_tokens) * group.times
        total += tokens
        at_most += tokens * group.n_at_most / group.n_expected if group.n_repeats else tokens
    estimate = f"estimate: {CHARACTERS_PER_TOKEN} characters a token"
    source = estimate if tokenizer is None else "the model's tokenizer"
    if any(group.answer_tokens for group in groups):
        source += ", with answers of the greatest length"
    return _PromptCount(total, at_most, is_exact, source)


def _prompt_tokens(messages: Sequence[Message], tokenizer: Any) -> float:
    if tokenizer is None:
        return sum(len(message["content"]) for message in messages) / CHARACTERS_PER_TOKEN
    from permix.inference.chat_template import encode_chat

    return len(encode_chat(tokenizer, messages))


def _tokenizer_at_hand(model: ModelConfig) -> Any:
    """The tokenizer of a local model; None if it is not on this machine, or if transformers is not installed."""
    if not model.capabilities.is_local:
        return None
    try:
        import transformers  # noqa: F401
    except ModuleNotFoundError:
        return None
    from permix.inference import hf

    folder = _tokenizer_folder(model.name)
    return None if folder is None else hf.load_tokenizer(str(folder), model.thinking)


def _tokenizer_folder(name: str) -> Path | None:
    from permix.inference import hf

    if name == "bundled":
        folder = hf.model_cache_folder() / hf.BUNDLED_NAME
        return folder if (folder / "config.json").is_file() else None
    if Path(name).is_dir():
        return Path(name)
    from huggingface_hub import try_to_load_from_cache

    found = try_to_load_from_cache(name, "tokenizer_config.json") if name.count("/") <= 1 else None
    return Path(found).parent if isinstance(found, str) else None

"""Ways to use personas at inference, without any training. One file a strategy, one line here."""

from pathlib import Path

from permix.errors import DataError
from permix.evals.grid import Answers, read_answers
from permix.evals.strategies.base import PLAIN, Setup, Spent, Strategy, StrategySummary
from permix.evals.strategies.persona_ensemble import PERSONA_PLUS_NEUTRAL
from permix.evals.strategies.persona_search import PERSONA_SEARCH
from permix.evals.strategies.persona_vote import PERSONA_VOTE
from permix.storage.files import read_json

__all__ = ["STRATEGIES", "Setup", "Spent", "Strategy", "StrategySummary", "measure_strategy"]

STRATEGIES: dict[str, Strategy] = {
    "none": PLAIN,
    "persona-search": PERSONA_SEARCH,
    "persona-vote": PERSONA_VOTE,
    "persona-plus-neutral": PERSONA_PLUS_NEUTRAL,
}


def measure_strategy(run: Path, answers: Answers | None = None) -> StrategySummary | None:
    """What a run's strategy gained and cost, from its records; None for a run without one.

    `answers`: where they are read already. Raises DataError for a strategy that is not known here.
    """
    config = read_json(run / "config.json")
    name = config.get("strategy", "none")
    if name not in STRATEGIES:
        raise DataError(f"{run}: config.json has strategy {name!r}; strategies are {', '.join(STRATEGIES)}")
    measure = STRATEGIES[name].measure
    return None if measure is None else measure(answers or read_answers(run), config["seed"], config["resamples"])

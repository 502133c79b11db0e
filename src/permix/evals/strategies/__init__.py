"""Ways to use personas at inference, without any training. One file a strategy, one line here."""

from pathlib import Path

from permix.errors import DataError
from permix.evals.grid import GridResults, read_grid_results
from permix.evals.strategies.base import NO_STRATEGY, EvalSetup, Strategy, StrategySummary, StrategyTokens
from permix.evals.strategies.persona_ensemble import PERSONA_ENSEMBLE
from permix.evals.strategies.persona_search import PERSONA_SEARCH
from permix.evals.strategies.persona_vote import PERSONA_VOTE
from permix.storage.files import read_json

__all__ = ["STRATEGIES", "EvalSetup", "Strategy", "StrategySummary", "StrategyTokens", "measure_strategy"]

STRATEGIES: dict[str, Strategy] = {
    "none": NO_STRATEGY,
    "persona-search": PERSONA_SEARCH,
    "persona-vote": PERSONA_VOTE,
    "persona-ensemble": PERSONA_ENSEMBLE,
}


def measure_strategy(run: Path, answers: GridResults | None = None) -> StrategySummary | None:
    """What a run's strategy gained and cost, from its records; None for a run without one.

    `answers`: where they are read already. Raises DataError for a strategy that is not known here.
    """
    config = read_json(run / "config.json")
    name = config.get("strategy", "none")
    if name not in STRATEGIES:
        raise DataError(f"{run}: config.json has strategy {name!r}; strategies are {', '.join(STRATEGIES)}")
    measure = STRATEGIES[name].measure
    return None if measure is None else measure(answers or read_grid_results(run), config["seed"], config["resamples"])

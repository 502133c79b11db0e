"""Strategies: ways to use personas at inference without training. Each strategy is one file and one entry of `STRATEGIES`."""

from pathlib import Path

from permix.errors import DataError
from permix.evals.grid import GridResults, read_grid_results
from permix.evals.strategies.base import NO_STRATEGY, EvalSetup, Strategy, StrategySummary, StrategyTokens, answer_comparison
from permix.evals.strategies.persona_ensemble import PERSONA_ENSEMBLE
from permix.evals.strategies.persona_search import PERSONA_SEARCH
from permix.evals.strategies.persona_vote import PERSONA_VOTE
from permix.storage.run_dir import RunReader

__all__ = ["STRATEGIES", "EvalSetup", "Strategy", "StrategySummary", "StrategyTokens", "measure_strategy"]

STRATEGIES: dict[str, Strategy] = {
    "none": NO_STRATEGY,
    "persona-search": PERSONA_SEARCH,
    "persona-vote": PERSONA_VOTE,
    "persona-ensemble": PERSONA_ENSEMBLE,
}


def measure_strategy(run: Path, results: GridResults | None = None) -> StrategySummary | None:
    """Measure gain and cost of a run's strategy from its records; None for a run without a strategy.

    `results`: those of `read_grid_results(run)`, if the caller has them already. Raises DataError if the strategy is
    unknown.
    """
    config = RunReader(run).config
    name = config.get("strategy", "none")
    if name not in STRATEGIES:
        raise DataError(f"{run}: config.json: strategy = {name!r}; must be one of {', '.join(STRATEGIES)}")
    measure = STRATEGIES[name].measure
    if measure is None:
        return None
    comparison = answer_comparison(config.get("task", {}).get("name", ""))
    return measure(results or read_grid_results(run), config["seed"], config["resamples"], comparison)

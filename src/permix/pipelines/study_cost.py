"""Estimate the cost of a study before a model is loaded: units, rollouts, tokens, cells, judge calls, and time.

Contract: counts are upper bounds for the whole study; time is that of the parts that are not finished. Time comes from finished
parts of the study (wall seconds in their usage.json), or else from the rates of the configuration, or else is unknown; it is
never guessed.
"""

from collections.abc import Iterator, Mapping, Sequence
from statistics import fmean
from typing import NamedTuple

from permix.config import SUPERVISED_METHODS, TRAIN_PART, FidelityConfig, StabilityConfig, StudyConfig, StudyUnit, TrainConfig
from permix.errors import error_context
from permix.evals.interview import MOST_QUESTION_TOKENS
from permix.evals.stability import count_most_cells, preflight_stability
from permix.inference.cost import duration_text
from permix.judges.judging import load_judge_setup
from permix.pipelines.fidelity import count_later_calls, preflight_fidelity, required_rubrics
from permix.pipelines.study_content import check_same_content
from permix.pipelines.study_units import (
    check_found_trainings,
    check_same_settings,
    finished_parts,
    pending_parts,
    require_content,
)
from permix.pipelines.train import preflight_training, training_requests
from permix.progress import add_result, separate_result
from permix.storage.run_dir import RunReader
from permix.training.job import prepare_training
from permix.training.sft_data import teacher_cells


class PartCost(NamedTuple):
    """Upper bounds of one run of a part. `answers`: cells of a stability run, or answers of a fidelity run; 0 for a training.

    `generated` and `trained` count tokens, and `interviewer_tokens` those of an interviewer model.
    """

    rollouts: int = 0
    answers: int = 0
    judge_calls: int = 0
    judge_tokens: int = 0
    generated: int = 0
    trained: int = 0
    interviewer_tokens: int = 0


def preflight_study(config: StudyConfig) -> dict[str, str]:
    """Facts about a study, without loading a model. Raises ConfigError or DataError for a problem in one of its parts."""
    if config.report:
        return _preflight_report(config)
    check_study(config)
    units = config.chosen_units()
    costs = study_costs(config)
    counts = {name: sum(1 for unit in units if name in (unit.arm or TRAIN_PART, *unit.evaluations)) for name in costs}
    total = PartCost(*(sum(counts[name] * cost[at] for name, cost in costs.items()) for at in range(len(PartCost._fields))))
    n_finished = sum(not pending_parts(unit) for unit in units)
    facts = {
        "units": f"{len(units)}: {_units_text(units)}; {n_finished} of them finished",
        **{f"arm {arm}": _arm_text(config, arm, counts[arm], costs[arm]) for arm in config.arms if counts[arm]},
        **{f"evaluation {name}": _evaluation_text(config, name, counts[name], costs[name]) for name in config.evaluations},
        "rollouts": f"{total.rollouts}",
        "cells and answers": f"{total.answers}",
        "judge calls": f"at most {total.judge_calls}, at most {total.judge_tokens} new tokens" if total.judge_calls else "none",
        "new tokens": f"at most {total.generated}",
        **({"interviewer": f"at most {total.interviewer_tokens} new tokens"} if total.interviewer_tokens else {}),
        "tokens trained on": f"at most {total.trained}",
    }
    time = estimate_time(config, units, costs)
    add_result(
        estimates={
            "study": {**total._asdict(), "units": len(units), "units_finished": n_finished, "seconds": time.seconds},
        }
    )
    return facts | {"time": time.text(config.jobs)}


def _preflight_report(config: StudyConfig) -> dict[str, str]:
    """Facts about a start that only writes the report: nothing is run."""
    from permix.report.study import check_headlines

    require_content(config)
    check_headlines(config)
    check_same_settings(config)
    units = config.chosen_units()
    with_results = [unit.name for unit in units if set(finished_parts(unit)) - {TRAIN_PART}]
    return {"units": f"{len(units)}; {len(with_results)} of them have results", "runs": "none: only the report is written"}


def _units_text(units: Sequence[StudyUnit]) -> str:
    n = sum(unit.arm is not None for unit in units)
    trained = [f"{n} trained {'one' if n == 1 else 'ones'}"] if n else []
    return " and ".join([*(["the untrained model"] if n < len(units) else []), *trained])


def check_study(config: StudyConfig) -> None:
    """Check the pending parts of the chosen units as `permix check` does. Raises ConfigError or DataError for the first problem.

    Only the first seed of an arm is checked, and of an evaluation that of the untrained model, since the others need the same
    data. Where a part is pending, it must be made from the same content as the recorded parts.
    """
    from permix.report.study import check_headlines  # `permix check` of other stages does without the report

    require_content(config)
    check_headlines(config)
    check_same_settings(config)
    check_found_trainings(config)
    pending = {unit.name: pending_parts(unit) for unit in config.chosen_units()}
    if any(pending.values()):
        check_same_content(config)
    asked = {name for names in pending.values() for name in names}
    with separate_result():
        for unit in first_units(config, pending):
            if unit.training is not None:
                with error_context(f"arm {unit.arm}"):
                    preflight_training(unit.training)
        for name, evaluation in config.units()[0].evaluations.items():
            if name not in asked:
                continue
            with error_context(f"evaluation {name}"):
                if isinstance(evaluation, FidelityConfig):
                    preflight_fidelity(evaluation)
                else:
                    preflight_stability(evaluation)


def first_units(config: StudyConfig, pending: Mapping[str, Sequence[str]] | None = None) -> Iterator[StudyUnit]:
    """The first chosen unit of each arm; of those whose training is pending, if the pending parts of each unit are given."""
    seen = set[str]()
    for unit in config.chosen_units():
        if pending is not None and TRAIN_PART not in pending[unit.name]:
            continue
        if unit.arm is not None and unit.arm not in seen:
            seen.add(unit.arm)
            yield unit


def study_costs(config: StudyConfig) -> dict[str, PartCost]:
    """The cost of one training of each arm, and of each evaluation of one model, by name."""
    trainings = {str(unit.arm): training_cost(unit.training) for unit in first_units(config) if unit.training is not None}
    with separate_result():
        evaluations = {name: evaluation_cost(part) for name, part in config.units()[0].evaluations.items()}
    return dict.fromkeys(config.arms, PartCost()) | trainings | evaluations


def training_cost(training: TrainConfig) -> PartCost:
    """The cost of a training. A supervised method on given answers has no rollouts; a distillation has as many as RL."""
    job = prepare_training(training)
    settings, method = job.config.train, job.config.method
    groups = training_requests(job)
    generated = sum(group.n_at_most * group.max_new_tokens for group in groups)
    if method not in SUPERVISED_METHODS:
        rollouts = sum(row.rollouts for row in job.plan.rows)
        trained = rollouts * settings.max_new_tokens * settings.updates_per_rollout
    elif method == "seqkd":
        rollouts = sum(len(cells) for _, cells in teacher_cells(job.plan))
        generated += rollouts * settings.max_new_tokens
        trained = rollouts * settings.max_new_tokens * settings.epochs
    else:
        rollouts, trained = 0, len(job.plan.rows) * settings.max_new_tokens * settings.epochs
    return PartCost(rollouts=rollouts, generated=generated, trained=trained)


def evaluation_cost(evaluation: StabilityConfig | FidelityConfig) -> PartCost:
    """The cost of an evaluation of one model."""
    if isinstance(evaluation, StabilityConfig):
        most = count_most_cells(evaluation)
        return PartCost(answers=most.n_cells, generated=most.n_cells * most.max_new_tokens)
    answers = int(preflight_fidelity(evaluation)["answers"])
    calls = 0
    if evaluation.judge.name != "none":
        calls = count_later_calls(evaluation, load_judge_setup(evaluation.judge, required_rubrics(evaluation)), answers).n_calls
    return PartCost(
        answers=answers,
        judge_calls=calls,
        judge_tokens=calls * evaluation.judge.max_new_tokens,
        generated=answers * evaluation.sampling.max_new_tokens,
        interviewer_tokens=answers * MOST_QUESTION_TOKENS if evaluation.interviewer.is_model else 0,
    )


def _arm_text(config: StudyConfig, arm: str, n: int, cost: PartCost) -> str:
    rollouts = f"{cost.rollouts} rollouts, " if cost.rollouts else ""
    return f"method {config.arms[arm]['method']}, {n} trainings of {rollouts}at most {cost.generated} new tokens each"


def _evaluation_text(config: StudyConfig, name: str, n: int, cost: PartCost) -> str:
    what = "cells" if config.evaluations[name]["stage"] == "stability" else "answers"
    judged = f", at most {cost.judge_calls} judge calls" if cost.judge_calls else ""
    judged += f", at most {cost.interviewer_tokens} new tokens of the interviewer" if cost.interviewer_tokens else ""
    return f"{n} models, each {cost.answers} {what}{judged}, at most {cost.generated} new tokens"


class StudyTime(NamedTuple):
    """The time of the pending parts on one device. `seconds`: of the parts whose time is known, None without such a part;
    `sources`: where the time comes from; `unknown`: the parts whose time is unknown."""

    seconds: float | None
    sources: Sequence[str]
    unknown: Sequence[str]
    unit_seconds: Sequence[float] = ()
    """The known time of each unit, which one process works on."""

    def text(self, jobs: int) -> str:
        if self.seconds is None:
            if not self.unknown:
                return "none: every part is finished"
            return "unknown: no part of this study is finished, and [rates] gives no rate"
        shared = max(self.seconds / jobs, *self.unit_seconds, 0.0)
        divided = f", about {duration_text(shared)} with {jobs} jobs on as many devices" if jobs > 1 else ""
        unknown = f"; unknown for {', '.join(self.unknown)}" if self.unknown else ""
        return f"about {duration_text(self.seconds)} on one device{divided} ({'; '.join(self.sources)}){unknown}"


def estimate_time(config: StudyConfig, units: Sequence[StudyUnit], costs: Mapping[str, PartCost]) -> StudyTime:
    """The time of the parts of these units that are not finished."""
    known, unknown, total, n_known = dict[str, None](), dict[str, None](), 0.0, 0
    measured = _measured_seconds(config)
    of_units: list[float] = []
    for unit in units:
        before = total
        for name in pending_parts(unit):
            key = str(unit.arm) if name == TRAIN_PART else name
            seconds, source = _part_seconds(config, key, unit, name, costs[key], measured)
            if seconds is None:
                unknown[key] = None
                continue
            known[source] = None
            total, n_known = total + seconds, n_known + 1
        of_units.append(total - before)
    return StudyTime(total if n_known else None, list(known), list(unknown), of_units)


def _part_seconds(
    config: StudyConfig, key: str, unit: StudyUnit, name: str, cost: PartCost, measured: Mapping[str, Sequence[float]]
) -> tuple[float | None, str]:
    method = f"method {unit.training.method}" if name == TRAIN_PART and unit.training is not None else key
    for found in (key, method):
        if seconds := measured.get(found):
            return fmean(seconds), f"{found}: mean of {len(seconds)} finished, {duration_text(fmean(seconds))} each"
    rates = config.rates
    parts = ((cost.generated, rates.generation_tokens_per_s), (cost.trained, rates.training_tokens_per_s))
    if any(tokens and rate is None for tokens, rate in parts):
        return None, ""
    where = f", measured on {rates.measured_on}" if rates.measured_on else ""
    others = [one for one, is_asked in (("judges", cost.judge_calls), ("interviewers", cost.interviewer_tokens)) if is_asked]
    without = f", without {' and '.join(others)}" if others else ""
    return sum(tokens / rate for tokens, rate in parts if rate is not None), f"at most, by [rates]{where}{without}"


def _measured_seconds(config: StudyConfig) -> dict[str, list[float]]:
    """Wall seconds of the finished parts, by arm and by method of a training, and by name of an evaluation."""
    found: dict[str, list[float]] = {}
    for unit in config.units():
        for name in finished_parts(unit):
            seconds = RunReader(unit.parts[name].out).usage.get("wall_seconds")
            if not seconds:
                continue
            keys = [name] if unit.training is None or name != TRAIN_PART else [str(unit.arm), f"method {unit.training.method}"]
            for key in keys:
                found.setdefault(key, []).append(seconds)
    return found

"""Finds run directories, groups them by model, and measures each run from its records.

Contract: every number comes from `records.jsonl` (or log.jsonl of a training run, judgements.jsonl of a judge), never from a
stage's `metrics.json`. Models keep the order in which they first appear. DataError names a path that
cannot be used: a folder without runs, or two runs of the same kind and label.
"""

import os
from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple, TypeVar

from pydantic import Field

from permix.config import BACKENDS, BATCH_BACKEND, DevEvalConfig, build_config, fidelity_kind
from permix.errors import DataError
from permix.evals import open_ended, stability
from permix.evals.drift_report import Drift, JudgeTurnScores, measure_drift
from permix.evals.fidelity_records import is_interviewer_question
from permix.evals.grid import CutOffCounts, GridResults, count_cut_off, cut_off_warning, grid_results
from permix.evals.in_character import measure_right_in_character
from permix.evals.reference_runs import find_reference
from permix.evals.stability import StabilityGrid, read_rounds
from permix.evals.strategies import STRATEGIES, measure_strategy
from permix.evals.strategies.base import StrategySummary
from permix.evals.text_metrics import TextMetrics, measure_text_metrics
from permix.judges.runner import find_judge_failures
from permix.metrics.dev_curve import DevCurve
from permix.metrics.identifiability import Identifiability
from permix.metrics.linear_models import ContextSummary, TemplateEffects
from permix.metrics.measures import CHARACTER_MEASURES, CharacterRecord, select_measures
from permix.metrics.recognisability import Recognisability
from permix.metrics.right_in_character import RightInCharacter
from permix.metrics.sequential import Round
from permix.metrics.stability import StabilitySummary
from permix.progress import progress_bar
from permix.report.judges import (
    INTERVIEW_KIND,
    OPEN_ENDED_KIND,
    PERSONAGYM_KIND,
    RUN_KIND_OF_FIDELITY,
    JudgedRun,
    JudgeScoreEntry,
    read_judged_run,
)
from permix.storage.cells import CellSummary
from permix.storage.failures import JUDGE_OPTIONS, FailureReason, count_failures, find_failures
from permix.storage.files import read_json
from permix.storage.run_dir import UNTIMED, RunReader, is_set_aside
from permix.training.dev_eval import load_dev_curve
from permix.types import CellKey, Estimate

REPORTED_STAGES = ("stability", "fidelity", "train")

FIDELITY_RUN_KINDS = (OPEN_ENDED_KIND, PERSONAGYM_KIND, INTERVIEW_KIND)

WHOLE_GRID_STRATEGIES = frozenset(name for name, strategy in STRATEGIES.items() if strategy.is_full_grid)


class Run(RunReader):
    """One run of a report: a `RunReader` with measures on top. Raises DataError when the folder is not a run directory."""

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self.strategy: str = self.config.get("strategy", "none")

    @cached_property
    def grid_results(self) -> GridResults:
        return grid_results(self)

    @cached_property
    def cell_summaries(self) -> dict[CellKey, CellSummary]:
        """The summaries of the cells from which stability or identifiability is measured."""
        return self.grid_results.grid_summaries

    @cached_property
    def cut_off(self) -> CutOffCounts:
        """The answers of a stability run that the token limit cut off."""
        return count_cut_off(self.grid_results)

    @cached_property
    def cut_off_warning(self) -> str | None:
        """One sentence on the answers that the token limit cut off; None if they are few."""
        counts = self.cut_off if self.stage == "stability" else None
        return cut_off_warning(self, self.grid_results, is_judged=self.judged_run is not None, counts=counts)

    @cached_property
    def rounds(self) -> tuple[Round, ...]:
        """The rounds of a run with adaptive allocation of cells; empty for other runs."""
        return read_rounds(self.path)

    @property
    def kind(self) -> str:
        """The stage, with the strategy or with what a fidelity run asks. A model has one run of each kind."""
        if self.stage == "fidelity":
            return RUN_KIND_OF_FIDELITY[fidelity_kind(self.config)]
        return strategy_kind(self.strategy) if self.stage == "stability" else self.stage

    @cached_property
    def judged_run(self) -> JudgedRun | None:
        """Results of the judges of a fidelity run. None when no judge has scored it."""
        return read_judged_run(self.path, self.kind, self.config) if self.stage == "fidelity" else None

    @cached_property
    def dev_curve(self) -> DevCurve | None:
        """The dev evaluations of a training run, measured from their records."""
        config = build_config(DevEvalConfig, self.config.get("dev_eval", {}), source=f"{self.path / 'config.json'}: dev_eval")
        curve = load_dev_curve(self.path, config) if self.stage == "train" and config.every else None
        return None if curve is None else curve._replace(chooses_weights=not self.is_imported)

    @cached_property
    def failure_reasons(self) -> list[FailureReason]:
        """Why cells of a stability or fidelity run have no result, the most frequent reason first."""
        if self.stage not in ("stability", "fidelity"):
            return []
        return count_failures(find_failures(self.cells, scored=self.stage == "stability"))

    @property
    def is_imported(self) -> bool:
        """Whether another program made what the run holds."""
        return "imported" in self.config

    @property
    def model_name(self) -> str:
        return str(self.config.get("model", {}).get("name") or self.path.name)

    @property
    def description(self) -> str:
        """The kind of the run for readers; for a training its method too, as in "train (sft)", and the engine if not permix."""
        method, engine = self.config.get("method"), self.config.get("engine")
        return f"{self.stage} ({method}{f', {engine}' if engine else ''})" if method else self.kind

    @property
    def tokens(self) -> int | None:
        """Number of tokens generated; for a training on fixed answers, tokens learnt from. None when a part is not recorded."""
        if self.stage == "train" and not self.cells:
            return self.log[-1].get("tokens") if self.log else None
        total = _sum_or_none([one.completion_tokens for one in self._answered()])
        return None if total is None else int(total)

    @property
    def cpu_seconds(self) -> float | None:
        return self.usage.get("cpu_seconds")

    @property
    def wall_seconds(self) -> float | None:
        return self.usage.get("wall_seconds")

    @property
    def n_timed_answers(self) -> int | None:
        """How many answers the wall seconds took; of a run of an earlier version all of them. None for answers of batch files."""
        timed = int(self.usage.get("answers", self.n_answered))
        return None if timed == UNTIMED or self.config.get("model", {}).get("backend") == BATCH_BACKEND else timed

    @property
    def asks_endpoint(self) -> bool:
        """Whether the model answers elsewhere (an endpoint, batch files), so this machine's CPU seconds are not the answers'."""
        backend = BACKENDS.get(str(self.config.get("model", {}).get("backend")))
        return backend is not None and backend.is_priced

    @property
    def n_answered(self) -> int:
        """Number of recorded cells with a completion of the run's model."""
        return len(self._answered())

    def _answered(self) -> list[CellSummary]:
        """The cells with a completion, without those of an interviewer model, which are not of the run's model."""
        is_interview = self.kind == INTERVIEW_KIND
        return [
            one
            for key, one in self.cells.summaries.items()
            if one.has_completion and not (is_interview and is_interviewer_question(key.question_id))
        ]

    @property
    def peak_mb(self) -> int | None:
        """Largest resident memory of the process so far, in MB. It may include runs that the same process executed before."""
        return self.usage.get("peak_mb")


class ModelRow(CharacterRecord):
    """One model of the main table. `n_scored` of `n_asked` counts persona cells. Tokens and seconds are None unless recorded.

    `pss_reason` says why PSS has no value, if that is known. `n_cut_off` of `n_known_ends` answers of the stability run were cut
    off at the token limit; `accuracy_of_others` is the accuracy of those that were not. `judged` has one entry for each judge and
    kind of fidelity run. `right_in_character_by_chance` is what classifiers trained on shuffled labels give. `eval_wall_s` and
    `eval_requests` (answers of the evaluations that took these seconds) are None for a model in this process.
    """

    VIEW = "table_row"

    label: str
    measures: dict[str, Estimate] = Field(default_factory=dict)
    identifiability: Estimate | None = None
    chance: float | None = None
    right_in_character: Estimate | None = None
    right_in_character_by_chance: float | None = None
    recognisability: Estimate | None = None
    judged: tuple[JudgeScoreEntry, ...] = ()
    pss_reason: str | None = None
    n_cut_off: int | None = None
    n_known_ends: int | None = None
    accuracy_of_others: float | None = None
    train_tokens: int | None = None
    train_cpu_s: float | None = None
    eval_tokens: int | None = None
    eval_cpu_s: float | None = None
    eval_wall_s: float | None = None
    eval_requests: int | None = None
    n_questions: int | None = None
    n_personas: int | None = None
    n_scored: int | None = None
    n_asked: int | None = None
    n_answers: int | None = None
    n_answers_asked: int | None = None


class ModelRuns(NamedTuple):
    """One model of the report: its runs, and their measures.

    The key of `runs` is the kind of run, and the key of a stage alone names the run from which that stage is measured. Runs of
    other strategies are under "STAGE, STRATEGY".
    """

    label: str
    runs: dict[str, Run]
    stability: StabilitySummary | None
    grid: StabilityGrid | None
    identifiability: Identifiability | None
    strategies: tuple[StrategySummary, ...]
    template_effects: TemplateEffects | None = None
    contexts: tuple[ContextSummary, ...] = ()
    """The stability in each context of a run with contexts."""
    text_metrics: Mapping[str, TextMetrics] = MappingProxyType({})
    """By kind of fidelity run."""
    drift: Drift | None = None
    cut_off: CutOffCounts | None = None
    """Of the stability run."""
    right_in_character: RightInCharacter | None = None
    """Of the stability run, if it asks for it."""
    unmeasured_reasons: tuple[str, ...] = ()
    """One reason for each measure that could not be computed."""
    recognisability: Recognisability | None = None
    recognisability_reason: str = ""
    """Why recognisability was not measured, though there is a run of open-ended questions."""

    def character_estimate(self, name: str) -> Estimate | None:
        """A measure of `CHARACTER_MEASURES` by name; None if it was not measured."""
        estimates = {
            "right_in_character": None if self.right_in_character is None else self.right_in_character.share,
            "identifiability": None if self.identifiability is None else self.identifiability.accuracy,
            "recognisability": None if self.recognisability is None else self.recognisability.accuracy,
        }
        return estimates[name]

    @property
    def runs_with_judges(self) -> dict[str, Run]:
        """All runs by kind, with each judge's run as "KIND, judge LABEL"."""
        judging = {
            f"{kind}, judge {label}": Run(folder)
            for kind, run in self.runs.items()
            if run.judged_run is not None
            for label, folder in run.judged_run.judge_dirs.items()
        }
        return self.runs | judging

    @property
    def failure_reasons(self) -> dict[str, list[FailureReason]]:
        """Why results are missing, by kind of run, and by judge as "KIND, judge LABEL"; only of those that miss some."""
        reasons = {kind: run.failure_reasons for kind, run in self.runs.items()}
        for run in self.judged_runs:
            for label, folder in run.judge_dirs.items():
                reasons[f"{run.kind}, judge {label}"] = count_failures(find_judge_failures(folder), JUDGE_OPTIONS)
        return {kind: found for kind, found in reasons.items() if found}

    @property
    def dev_curve(self) -> DevCurve | None:
        return self.runs["train"].dev_curve if "train" in self.runs else None

    @property
    def judged_runs(self) -> list[JudgedRun]:
        """The judged fidelity runs, one of each kind."""
        return [
            run.judged_run
            for kind in FIDELITY_RUN_KINDS
            if (run := self.runs.get(kind)) is not None and run.judged_run is not None
        ]

    @property
    def row(self) -> ModelRow:
        evaluations = [self.runs[kind] for kind in ("stability", *FIDELITY_RUN_KINDS) if kind in self.runs]
        values: dict[str, Any] = {
            "eval_tokens": _sum_or_none([run.tokens for run in evaluations]),
            "eval_cpu_s": _sum_or_none([run.cpu_seconds for run in evaluations]),
        }
        if evaluations and all(run.asks_endpoint for run in evaluations):
            values["eval_wall_s"] = _sum_or_none([run.wall_seconds for run in evaluations])
            values["eval_requests"] = _sum_or_none([run.n_timed_answers for run in evaluations])
        if self.cut_off is not None:
            values |= {"n_cut_off": self.cut_off.n_cut_off, "n_known_ends": self.cut_off.n_known}
            values["accuracy_of_others"] = self.cut_off.accuracy_of_others
        if self.stability is not None:
            values["measures"] = select_measures("table_row", self.stability.measures)
            values["pss_reason"] = self.stability.pss_reason
            values |= {name: getattr(self.stability, name) for name in ("n_questions", "n_personas", "n_scored", "n_asked")}
        if self.identifiability is not None:
            values["chance"] = self.identifiability.chance
            values |= {"n_answers": self.identifiability.n_answered, "n_answers_asked": self.identifiability.n_asked}
        if self.right_in_character is not None:
            values["right_in_character_by_chance"] = self.right_in_character.share_by_chance.value
        values |= {name: self.character_estimate(name) for name in CHARACTER_MEASURES}
        values["judged"] = tuple(one for judged in self.judged_runs for one in judged.score_entries)
        if "train" in self.runs:
            values |= {"train_tokens": self.runs["train"].tokens, "train_cpu_s": self.runs["train"].cpu_seconds}
        return ModelRow(label=self.label, **values)


_PROGRESS_MIN_MODELS = 8
"""Number of models from which progress is shown: measuring one takes seconds."""


def collect_models(paths: Sequence[Path], description: str = "measures") -> list[ModelRuns]:
    """Find every model in `paths`, and measure it. Raises DataError as `find_all_runs` does.

    `description`: the text next to the progress bar, which many models have.
    """
    groups = _group_by_label(find_all_runs(paths))
    models = []
    with progress_bar(description, len(groups), "models", min_total=_PROGRESS_MIN_MODELS) as progress:
        for label, runs in groups.items():
            models.append(_measure_model(label, runs))
            progress.advance()
    return models


def find_all_runs(paths: Sequence[Path]) -> list[Run]:
    """The runs of all paths, each once. Raises DataError without paths, and as `find_runs` does."""
    if not paths:
        raise DataError("no runs: give run directories, or folders that contain some")
    return list({run.path.resolve(): run for path in paths for run in find_runs(path)}.values())


def find_runs(path: Path) -> Iterator[Run]:
    """Yield the run at `path`, or all runs below it in the order of their names, without those that a study has set aside. Raises
    DataError when there is none."""
    if is_run(path):
        yield Run(path)
        return
    if not path.is_dir():
        raise DataError(f"runs = {path}: no such folder; give run directories, or folders that contain some")
    if (path / "config.json").exists():
        stage = read_json(path / "config.json").get("stage")
        raise DataError(f"{path}: config.json has stage {stage!r}; a report reads runs of {', '.join(REPORTED_STAGES)}")
    inside = list(_runs_below(path))
    if not inside:
        raise DataError(f"{path}: neither a run directory (no config.json with a stage) nor a folder that contains one")
    yield from (Run(one) for one in inside)


def is_run(path: Path) -> bool:
    """Whether a folder holds a run that a report reads, of any format version."""
    return (path / "config.json").is_file() and read_json(path / "config.json").get("stage") in REPORTED_STAGES


def _runs_below(path: Path) -> Iterator[Path]:
    for folder, names, _ in os.walk(path):
        names[:] = sorted(name for name in names if not is_set_aside(Path(folder, name)))
        if is_run(Path(folder)):
            names.clear()  # folders inside a run (model, checkpoints) hold no runs
            yield Path(folder)


def _group_by_label(runs: Sequence[Run]) -> dict[str, dict[str, Run]]:
    models: dict[str, dict[str, Run]] = {}
    for run in runs:
        kinds = models.setdefault(model_label(run, runs), {})
        if run.kind in kinds:
            raise DataError(
                f'{run.path} and {kinds[run.kind].path}: two {run.kind} runs have the label "{model_label(run, runs)}"; '
                "give each its own --label, or make separate reports"
            )
        kinds[run.kind] = run
    return {name: with_default_stability(runs) for name, runs in models.items()}


_T = TypeVar("_T")


def with_default_stability(by_kind: Mapping[str, _T]) -> dict[str, _T]:
    """Without a plain stability run, the first run of a strategy that asks the whole grid becomes the run of kind "stability"."""
    whole = {strategy_kind(strategy) for strategy in WHOLE_GRID_STRATEGIES}
    default = next((kind for kind in by_kind if kind in whole), None)
    is_plain = "stability" in by_kind or default is None
    return {"stability" if kind == default and not is_plain else kind: one for kind, one in by_kind.items()}


def strategy_kind(strategy: str) -> str:
    """The kind of a stability run with this strategy."""
    return "stability" if strategy == "none" else f"stability, {strategy}"


def model_label(run: Run, runs: Sequence[Run]) -> str:
    """The run's label, or else its model's name. A training run without a label gets the label of the run that evaluated
    its model.
    """
    if run.label:
        return run.label
    if run.stage != "train":
        return run.model_name
    trained = (run.path / "model").resolve()
    return next(
        (model_label(one, runs) for one in runs if one.stage != "train" and Path(one.model_name).resolve() == trained),
        run.path.name,
    )


def _measure_model(label: str, runs: dict[str, Run]) -> ModelRuns:
    stable, fidelity, interview = runs.get("stability"), runs.get("fidelity"), runs.get(INTERVIEW_KIND)
    identifiability, reason = (None, "") if fidelity is None else _measure_identifiability(fidelity)
    in_character, other_reason = (None, "") if stable is None else _measure_right_in_character(stable)
    drift, drift_reason = (None, "") if interview is None else _measure_drift(interview)
    recognisability, why_not = (None, "") if fidelity is None else open_ended.try_recognisability(fidelity.path)
    return ModelRuns(
        label=label,
        runs=runs,
        stability=None if stable is None else stability.measure_stability(stable.path, stable.grid_results),
        grid=None if stable is None else stability.read_stability_grid(stable.path, stable.grid_results),
        identifiability=identifiability,
        template_effects=None if stable is None else stability.measure_template_effects(stable.path, stable.grid_results),
        contexts=() if stable is None else stability.measure_contexts(stable.path, stable.grid_results),
        text_metrics={kind: measure_text_metrics(runs[kind].path) for kind in FIDELITY_RUN_KINDS if kind in runs},
        strategies=tuple(one for run in runs.values() if (one := measure_strategy(run.path, run.grid_results)) is not None),
        drift=drift,
        cut_off=None if stable is None else stable.cut_off,
        right_in_character=in_character,
        unmeasured_reasons=tuple(one for one in (reason, other_reason, drift_reason) if one),
        recognisability=recognisability,
        recognisability_reason=why_not,
    )


def _measure_identifiability(run: Run) -> tuple[Identifiability | None, str]:
    """(identifiability, ""), or (None, reason) when the answers do not allow measuring it."""
    reference = find_reference_run(run)
    try:
        return open_ended.measure_identifiability(run.path, reference), ""
    except DataError as error:
        return None, f"{run.path}: {error}"


def _measure_right_in_character(run: Run) -> tuple[RightInCharacter | None, str]:
    """(right and in character, ""), or (None, reason) when the answers do not allow it; nothing when the run does not ask
    for it.
    """
    if not run.config.get("right_in_character"):
        return None, ""
    try:
        reference = find_reference_run(run, "character_reference")
        return measure_right_in_character(run.path, reference, run.grid_results), ""
    except DataError as error:
        return None, f"{run.path}: {error}"


def _measure_drift(run: Run) -> tuple[Drift | None, str]:
    """(drift, ""), or (None, reason) when no measure can be computed; when the reference alone cannot be used, the other
    measures and the reason.
    """
    scores, reason = _scores_by_judge(run), ""
    try:
        return measure_drift(run.path, find_reference_run(run), scores), ""
    except DataError as error:
        reason = f"{run.path}: {error}"
    try:
        return measure_drift(run.path, None, scores), reason
    except DataError:
        return None, reason


def _scores_by_judge(run: Run) -> dict[str, JudgeTurnScores]:
    return {} if run.judged_run is None else run.judged_run.scores_by_judge


def find_reference_run(run: Run, field: str = "reference") -> Path | None:
    """The run whose answers train the classifier (`permix.evals.reference_runs.find_reference`).

    None when no reference is configured. Raises DataError when the configured run is not found, or another one is in its place.
    """
    return find_reference(run.path, run.config, field)


def _sum_or_none(parts: Sequence[Any]) -> Any:
    """The sum. None when there is no part or when one part is unknown, because an incomplete sum would mislead."""
    return sum(parts) if parts and all(part is not None for part in parts) else None

"""Reads and measures the judges of a run: each judge's scores, agreement between judges, and differences between two models.

Contract: everything is computed from the judges' judgements.jsonl and the runs' records. A model has one fidelity run of each
kind. Two models are compared on a judge's scores only when the judge has the same name, settings, fingerprint and prompts in both
runs.
"""

from collections.abc import Iterable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

from pydantic import Field

from permix.config import FidelityKind
from permix.errors import DataError
from permix.evals.drift_report import JudgeTurnScores
from permix.judges.results import JudgeResults, read_judge_inputs, read_judge_results
from permix.judges.runner import judge_folders
from permix.judges.summary import (
    JudgeAgreement,
    JudgeSummary,
    ScoreDifference,
    measure_judge_agreement,
    measure_score_difference,
    summarize_judge,
)
from permix.judges.types import IN_CHARACTER
from permix.rendering.table import SourceRun
from permix.storage.run_dir import RunReader
from permix.types import Estimate, Record

OPEN_ENDED_KIND, PERSONAGYM_KIND, INTERVIEW_KIND = "fidelity", "fidelity, personagym", "fidelity, interview"

RUN_KIND_OF_FIDELITY: Mapping[FidelityKind, str] = {
    "open": OPEN_ENDED_KIND,
    "personagym": PERSONAGYM_KIND,
    "interview": INTERVIEW_KIND,
}
"""Name of each kind of fidelity run in a report. A model has one run of each kind."""

SCORE_NAMES = {
    PERSONAGYM_KIND: "PersonaScore",
    OPEN_ENDED_KIND: "in-character score",
    INTERVIEW_KIND: "in-character score of interviews",
}
"""Name of the mean of a judge's scores, by kind of run.

"PersonaScore" is only the mean over PersonaGym's tasks; "in-character score" is only the score of the rubric "In Character".
"""

RUBRIC_MEAN_NAMES = {OPEN_ENDED_KIND: "mean over rubrics", INTERVIEW_KIND: "mean over rubrics of interviews"}
"""The name of that mean when the user chose other rubrics, by kind of run."""


def score_name(kind: str, rubrics: Iterable[str]) -> str:
    """The name of the mean of a judge's scores by these rubrics."""
    return SCORE_NAMES[kind] if kind == PERSONAGYM_KIND or set(rubrics) <= {IN_CHARACTER} else RUBRIC_MEAN_NAMES[kind]


def listed_rubrics(kind: str, rubrics: Iterable[str]) -> list[str]:
    """The rubrics that get a row of their own next to the row of their mean.

    Empty when there is one rubric and the mean's name already names it.
    """
    names = list(dict.fromkeys(rubrics))
    return names if len(names) > 1 or score_name(kind, names) != SCORE_NAMES[kind] else []


KIND_FILE_STEMS = {PERSONAGYM_KIND: "personagym", OPEN_ENDED_KIND: "open", INTERVIEW_KIND: "interview"}
"""Stem of the file names of figures and tables, by kind of run."""

KIND_TITLES = {PERSONAGYM_KIND: "PersonaGym's questions", OPEN_ENDED_KIND: "open-ended questions", INTERVIEW_KIND: "interviews"}
"""Title of each kind of run. Sections and figures have this order."""


class JudgeScoreEntry(Record):
    """A judge's mean score in the main table, and whether the score means anything (see `JudgeSummary`)."""

    kind: str
    judge: str
    rubrics: tuple[str, ...] = Field(default=(IN_CHARACTER,), exclude=True)
    persona_score: Estimate
    n_scored: int
    n_asked: int
    discriminates_persona: bool | None

    @property
    def name(self) -> str:
        """The name of the score and the judge, such as "PersonaScore, judge qwen"."""
        return f"{score_name(self.kind, self.rubrics)}, judge {self.judge}"


class JudgedRun(NamedTuple):
    """A fidelity run and the results of all its judges, by the judge's label."""

    kind: str
    results_by_judge: dict[str, JudgeResults]
    judges: dict[str, JudgeSummary]
    agreement: JudgeAgreement | None
    seed: int
    resamples: int
    judge_dirs: Mapping[str, Path] = MappingProxyType({})
    """The run directory of each judge."""

    @property
    def scores_by_judge(self) -> dict[str, JudgeTurnScores]:
        """Each judge's plain scores, for measures that group the scores in their own way."""
        return {
            label: JudgeTurnScores(self.results_by_judge[label].scores["none"], tuple(one.tasks), one.discriminates_persona)
            for label, one in self.judges.items()
        }

    @property
    def score_entries(self) -> list[JudgeScoreEntry]:
        return [
            JudgeScoreEntry(
                kind=self.kind,
                judge=label,
                rubrics=tuple(one.tasks),
                persona_score=one.persona_score,
                n_scored=one.n_scored,
                n_asked=one.n_asked,
                discriminates_persona=one.discriminates_persona,
            )
            for label, one in self.judges.items()
        ]


class JudgeScoreDifference(Record):
    """The scores of one kind of run by one judge: a model − the model that it is compared with (`label` − `against` of the
    `Comparison` that has this record)."""

    kind: str
    discriminates_persona: bool
    """Whether the judge distinguishes personas on both models."""
    scores: ScoreDifference

    @property
    def score_name(self) -> str:
        return score_name(self.kind, self.scores.tasks)


def judge_sources(label: str, kind: str, judge: str) -> tuple[SourceRun, SourceRun]:
    """The two runs behind a judge's number: the judge's run and the run with the answers."""
    return SourceRun(label, f"{kind}, judge {judge}"), SourceRun(label, kind)


UNTRUSTED_MARK, UNTESTED_MARK = "†", "‡"


def trust_mark(trusted: bool | None) -> str:
    """The mark of a judge's number; empty for a judge that is trusted."""
    return "" if trusted else f" {UNTESTED_MARK if trusted is None else UNTRUSTED_MARK}"


class BootstrapSettings(NamedTuple):
    """The seed and the number of resamples of a run's intervals and tests."""

    seed: int
    resamples: int


def bootstrap_settings(config: Mapping[str, Any]) -> BootstrapSettings:
    """The settings of a run's configuration; those of the commands where it has none."""
    return BootstrapSettings(int(config.get("seed", 0)), int(config.get("resamples", 2000)))


def read_judged_run(run: Path, kind: str, config: Mapping[str, Any]) -> JudgedRun | None:
    """Read and measure all judges of a run. None when no judge has scored the run."""
    folders = judge_folders(run)
    if not folders:
        return None
    answers, (seed, resamples) = read_judge_inputs(run), bootstrap_settings(config)
    results = [read_judge_results(run, folder, answers) for folder in folders]
    judges = {one.label: _summarize_judge(folder, one) for folder, one in zip(folders, results, strict=True)}
    agreement = measure_judge_agreement(results, seed=seed, resamples=resamples)
    folder_of = {one.label: folder for folder, one in zip(folders, results, strict=True)}
    return JudgedRun(kind, {one.label: one for one in results}, judges, agreement, seed, resamples, folder_of)


def judge_score_differences(run: JudgedRun, against: JudgedRun) -> list[JudgeScoreDifference]:
    """`run` − `against` for each judge that scored both runs in the same way."""
    differences = []
    for label, results_against in against.results_by_judge.items():
        results = run.results_by_judge.get(label)
        if results is None or judge_incompatibilities(results_against, results):
            continue
        is_trusted = bool(against.judges[label].discriminates_persona and run.judges[label].discriminates_persona)
        scores = measure_score_difference(results, results_against, seed=against.seed, resamples=against.resamples)
        differences.append(JudgeScoreDifference(kind=against.kind, discriminates_persona=is_trusted, scores=scores))
    return differences


def judge_incompatibilities(one: JudgeResults, two: JudgeResults) -> tuple[str, ...]:
    """Why the scores of two judges with the same name cannot be compared; empty when they can be."""
    return tuple(
        f"Not the same judge {one.label} ({first}; {second})"
        for first, second in zip(one.comparability_key, two.comparability_key, strict=True)
        if first != second
    )


def _summarize_judge(folder: Path, results: JudgeResults) -> JudgeSummary:
    config = RunReader(folder).config
    try:
        return summarize_judge(results, seed=results.seed, resamples=bootstrap_settings(config).resamples)
    except DataError as error:
        raise DataError(f"{folder}: {error}") from error

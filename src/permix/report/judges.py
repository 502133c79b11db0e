"""What judges say of the runs of a report: each judge measured, judges held against each other, and models on one judge's scores.

Contract: everything from the ledgers and the records. A model has one fidelity run of each kind. Two models are compared on a
judge alone that is the same by name, settings, fingerprint and words.
"""

from collections.abc import Iterable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

from pydantic import Field

from permix.errors import DataError
from permix.evals.drift_report import JudgeTurnScores
from permix.evals.fidelity_records import FidelityKind
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
"""What a report calls a run of each kind: a model has one run of each."""

SCORE_NAMES = {
    PERSONAGYM_KIND: "PersonaScore",
    OPEN_ENDED_KIND: "in-character score",
    INTERVIEW_KIND: "in-character score of interviews",
}
"""By kind of run, what the mean of a judge's scores is called: PersonaScore is of PersonaGym's tasks alone, and an in-character
score of the rubric "In Character" alone."""

RUBRIC_MEAN_NAMES = {OPEN_ENDED_KIND: "mean over rubrics", INTERVIEW_KIND: "mean over rubrics of interviews"}
"""And by the rubrics of a user's choice."""


def score_name(kind: str, rubrics: Iterable[str]) -> str:
    """What the mean of a judge's scores by these rubrics is called."""
    return SCORE_NAMES[kind] if kind == PERSONAGYM_KIND or set(rubrics) <= {IN_CHARACTER} else RUBRIC_MEAN_NAMES[kind]


def listed_rubrics(kind: str, rubrics: Iterable[str]) -> list[str]:
    """The rubrics that get a line of their own beside their mean: none where there is but one, and the mean's name says which."""
    names = list(dict.fromkeys(rubrics))
    return names if len(names) > 1 or score_name(kind, names) != SCORE_NAMES[kind] else []


KIND_FILE_STEMS = {PERSONAGYM_KIND: "personagym", OPEN_ENDED_KIND: "open", INTERVIEW_KIND: "interview"}
"""What the files of figures and tables are called after."""

KIND_TITLES = {PERSONAGYM_KIND: "PersonaGym's questions", OPEN_ENDED_KIND: "open-ended questions", INTERVIEW_KIND: "interviews"}
"""What a kind of run asks, for people; sections and figures stand in this order."""


class JudgeScoreEntry(Record):
    """A judge's number in the main table, and whether it means anything: see `JudgeSummary`."""

    kind: str
    judge: str
    rubrics: tuple[str, ...] = Field(default=(IN_CHARACTER,), exclude=True)
    persona_score: Estimate
    n_scored: int
    n_asked: int
    discriminates_persona: bool | None

    @property
    def name(self) -> str:
        """ "PersonaScore, judge qwen"."""
        return f"{score_name(self.kind, self.rubrics)}, judge {self.judge}"


class JudgedRun(NamedTuple):
    """A run and all its judges, by label."""

    kind: str
    results_by_judge: dict[str, JudgeResults]
    judges: dict[str, JudgeSummary]
    agreement: JudgeAgreement | None
    seed: int
    resamples: int
    judge_dirs: Mapping[str, Path] = MappingProxyType({})
    """Of each judge, its own run."""

    @property
    def scores_by_judge(self) -> dict[str, JudgeTurnScores]:
        """What each judge scored, for measures that lay scores out in their own way."""
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
    """Other − first on one judge's scores of one kind of run."""

    kind: str
    discriminates_persona: bool
    """Whether the judge told personas apart on both models."""
    scores: ScoreDifference

    @property
    def score_name(self) -> str:
        return score_name(self.kind, self.scores.tasks)


def judge_sources(label: str, kind: str, judge: str) -> tuple[SourceRun, SourceRun]:
    """The runs behind a judge's number: the judge's own, and the answers'."""
    return SourceRun(label, f"{kind}, judge {judge}"), SourceRun(label, kind)


UNTRUSTED_MARK, UNTESTED_MARK = "†", "‡"


def trust_mark(trusted: bool | None) -> str:
    """What stands beside every number of a judge; nothing where it is trusted."""
    return "" if trusted else f" {UNTESTED_MARK if trusted is None else UNTRUSTED_MARK}"


def read_judged_run(run: Path, kind: str, config: Mapping[str, Any]) -> JudgedRun | None:
    """None for a run that nobody has judged."""
    folders = judge_folders(run)
    if not folders:
        return None
    answers, seed, resamples = read_judge_inputs(run), int(config.get("seed", 0)), int(config.get("resamples", 2000))
    read = [read_judge_results(run, folder, answers) for folder in folders]
    judges = {one.label: _summarize_judge(folder, one) for folder, one in zip(folders, read, strict=True)}
    agreement = measure_judge_agreement(read, seed=seed, resamples=resamples)
    folder_of = {one.label: folder for folder, one in zip(folders, read, strict=True)}
    return JudgedRun(kind, {one.label: one for one in read}, judges, agreement, seed, resamples, folder_of)


def judge_score_differences(first: JudgedRun, other: JudgedRun) -> list[JudgeScoreDifference]:
    """Of every judge that scored both in the same way."""
    return [
        JudgeScoreDifference(
            kind=first.kind,
            discriminates_persona=bool(first.judges[label].discriminates_persona and other.judges[label].discriminates_persona),
            scores=measure_score_difference(verdicts, other.results_by_judge[label], seed=first.seed, resamples=first.resamples),
        )
        for label, verdicts in first.results_by_judge.items()
        if label in other.results_by_judge and not judge_incompatibilities(verdicts, other.results_by_judge[label])
    ]


def judge_incompatibilities(one: JudgeResults, two: JudgeResults) -> tuple[str, ...]:
    """Why the scores of two judges of one name must not be held against each other; empty when they may be."""
    return tuple(
        f"Not the same judge {one.label} ({here}; {there})"
        for here, there in zip(one.comparability_key, two.comparability_key, strict=True)
        if here != there
    )


def _summarize_judge(folder: Path, results: JudgeResults) -> JudgeSummary:
    config = RunReader(folder).config
    try:
        return summarize_judge(results, seed=results.seed, resamples=int(config.get("resamples", 2000)))
    except DataError as error:
        raise DataError(f"{folder}: {error}") from error

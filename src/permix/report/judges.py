"""What judges say of the runs of a report: each judge measured, judges held against each other, and models on one judge's scores.

Contract: everything from the ledgers and the records. A model has one fidelity run of each kind. Two models are compared on a
judge alone that is the same by name, settings, fingerprint and words.
"""

from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

from permix.errors import DataError
from permix.evals.drift_report import ByJudge
from permix.evals.fidelity_records import Kind
from permix.judges.results import Verdicts, read_bill, read_items, read_verdicts
from permix.judges.runner import judges_of
from permix.judges.summary import Agreement, Judged, ScoreDifference, measure_agreement, measure_difference, measured
from permix.rendering.table import Source
from permix.storage.files import read_json
from permix.types import Estimate, Record

OPEN, GYM, INTERVIEW = "fidelity", "fidelity, personagym", "fidelity, interview"

KINDS: Mapping[Kind, str] = {"open": OPEN, "personagym": GYM, "interview": INTERVIEW}
"""What a report calls a run of each kind: a model has one run of each."""

SCORE_OF = {GYM: "PersonaScore", OPEN: "in-character score", INTERVIEW: "in-character score of interviews"}
"""By kind of run, what the mean of a judge's scores is called: PersonaScore is of PersonaGym's tasks alone."""


FILES = {GYM: "personagym", OPEN: "open", INTERVIEW: "interview"}
"""What the files of figures and tables are called after."""

TITLES = {GYM: "PersonaGym's questions", OPEN: "open-ended questions", INTERVIEW: "interviews"}
"""What a kind of run asks, for people; sections and figures stand in this order."""


class Scored(Record):
    """A judge's number in the main table, and whether it means anything: see `Judged`."""

    kind: str
    judge: str
    persona_score: Estimate
    n_scored: int
    n_asked: int
    trusted: bool | None

    @property
    def name(self) -> str:
        """ "PersonaScore, judge qwen"."""
        return f"{SCORE_OF[self.kind]}, judge {self.judge}"


class JudgedRun(NamedTuple):
    """A run and all its judges, by label."""

    kind: str
    verdicts: dict[str, Verdicts]
    judges: dict[str, Judged]
    agreement: Agreement | None
    seed: int
    resamples: int
    folders: Mapping[str, Path] = MappingProxyType({})
    """Of each judge, its own run."""

    @property
    def by_judge(self) -> dict[str, ByJudge]:
        """What each judge scored, for measures that lay scores out in their own way."""
        return {label: ByJudge(self.verdicts[label].scores, one.trusted) for label, one in self.judges.items()}

    @property
    def scored(self) -> list[Scored]:
        return [
            Scored(
                kind=self.kind, judge=label, persona_score=one.persona_score, n_scored=one.n_scored, n_asked=one.n_asked,
                trusted=one.trusted,
            )
            for label, one in self.judges.items()
        ]  # fmt: skip


class JudgedDifference(Record):
    """Other − first on one judge's scores of one kind of run."""

    kind: str
    trusted: bool
    """Whether the judge told personas apart on both models."""
    scores: ScoreDifference


def sources(label: str, kind: str, judge: str) -> tuple[Source, Source]:
    """The runs behind a judge's number: the judge's own, and the answers'."""
    return Source(label, f"{kind}, judge {judge}"), Source(label, kind)


UNTRUSTED, UNTRIED = "†", "‡"


def mark(trusted: bool | None) -> str:
    """What stands beside every number of a judge; nothing where it is trusted."""
    return "" if trusted else f" {UNTRIED if trusted is None else UNTRUSTED}"


def read_judged(run: Path, kind: str, config: Mapping[str, Any]) -> JudgedRun | None:
    """None for a run that nobody has judged."""
    folders = judges_of(run)
    if not folders:
        return None
    items, seed, resamples = read_items(run), int(config.get("seed", 0)), int(config.get("resamples", 2000))
    read = [read_verdicts(run, folder, items) for folder in folders]
    judges = {one.label: _measured(folder, one) for folder, one in zip(folders, read, strict=True)}
    agreement = measure_agreement(read, seed=seed, resamples=resamples)
    folder_of = {one.label: folder for folder, one in zip(folders, read, strict=True)}
    return JudgedRun(kind, {one.label: one for one in read}, judges, agreement, seed, resamples, folder_of)


def differences_of(first: JudgedRun, other: JudgedRun) -> list[JudgedDifference]:
    """Of every judge that scored both in the same way."""
    return [
        JudgedDifference(
            kind=first.kind,
            trusted=bool(first.judges[label].trusted and other.judges[label].trusted),
            scores=measure_difference(verdicts, other.verdicts[label], seed=first.seed, resamples=first.resamples),
        )
        for label, verdicts in first.verdicts.items()
        if label in other.verdicts and not unlike_judges(verdicts, other.verdicts[label])
    ]


def unlike_judges(one: Verdicts, two: Verdicts) -> tuple[str, ...]:
    """Why the scores of two judges of one name must not be held against each other; empty when they may be."""
    return tuple(
        f"Not the same judge {one.label} ({here}; {there})"
        for here, there in zip(one.identity, two.identity, strict=True)
        if here != there
    )


def _measured(folder: Path, verdicts: Verdicts) -> Judged:
    config = read_json(folder / "config.json")
    try:
        return measured(verdicts, read_bill(folder), seed=verdicts.seed, resamples=int(config.get("resamples", 2000)))
    except DataError as error:
        raise DataError(f"{folder}: {error}") from error

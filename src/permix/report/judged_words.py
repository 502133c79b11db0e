"""What judges' scores say, in words, and first of all whether they say anything.

Contract: a number of a judge that is not trusted is shown, marked, and called meaningless; a difference is called higher or lower
only when its interval leaves out 0 and the judge told personas apart on both models. Markdown out, labels escaped.
"""

from collections.abc import Iterable, Sequence

from permix.judging.measure import Judged
from permix.report.judged import SCORE_OF, UNTRIED, UNTRUSTED, JudgedDifference, JudgedRun, mark
from permix.report.tables import dollars, estimate, label, of, probability, word

MEANING = (
    f"{UNTRUSTED} The judge scores an answer under a wrong persona no lower than under its own (the interval of the AUC includes "
    f"0.5, or lies below): either it cannot tell, or these answers show no persona, and the number means nothing. {UNTRIED} The "
    "judge was not tried, so it is not known what the number means."
)


def verdict_on(name: str, run: JudgedRun) -> list[str]:
    """For the headline: of each judge that is not trusted, that its number means nothing for this model."""
    return [_worthless(name, run.kind, one) for one in run.judges.values() if not one.trusted]


def standing(name: str, run: JudgedRun) -> list[str]:
    """For the headline of a model by itself: the judges that are trusted."""
    return [
        f"{label(name)}: judge {label(one.label)} tells personas apart ({SCORE_OF[run.kind]} {one.persona_score})"
        for one in run.judges.values()
        if one.trusted
    ]


def changes(found: Iterable[JudgedDifference]) -> list[str]:
    """For the headline of a comparison: a few words for each judge that is trusted on both models."""
    return [
        f"{SCORE_OF[one.kind]} by judge {label(one.scores.judge)} {word(one.scores.persona_score)}"
        for one in found
        if one.trusted
    ]


def details(name: str, run: JudgedRun) -> list[str]:
    """A sentence with numbers for each judge of a model."""
    return [_told(name, run.kind, one) for one in run.judges.values()]


def against(found: Sequence[JudgedDifference]) -> list[str]:
    """A phrase with numbers for each judge of a comparison."""
    return [
        f"{SCORE_OF[one.kind]} by judge {label(one.scores.judge)} {word(one.scores.persona_score)} "
        f"({one.scores.persona_score.signed()}, p {_p(one.scores.p)}, {one.scores.n_answers} answers)"
        + ("" if one.trusted else ", which means nothing: that judge is not trusted on both")
        for one in found
    ]


def _worthless(name: str, kind: str, one: Judged) -> str:
    what = f"{SCORE_OF[kind]} by judge {label(one.label)}"
    if one.trusted is None:
        return f"{label(name)}: nobody knows what {what} means, the judge was not tried"
    return f"{label(name)}: {what} means nothing, the judge does not tell right from wrong persona (AUC {one.trial.auc})"


def _told(name: str, kind: str, one: Judged) -> str:
    worth = {True: "it tells personas apart", False: "it does not tell personas apart", None: "it was not tried"}[one.trusted]
    return (
        f"**{label(name)}**, judge {label(one.label)}: {SCORE_OF[kind]} {estimate(one.persona_score).text}{mark(one.trusted)}, "
        f"{of(one.n_scored, one.n_asked)} answers of {one.persona_score.n} personas scored, share of fives {one.fives}; {worth} "
        f"(AUC {one.trial.auc}); cost {dollars(one.bill.cost)}."
    )


def _p(p: float | None) -> str:
    shown = probability(p)
    return shown if shown.startswith("<") else f"= {shown}"

"""`permix fidelity`: answers of a model in character, of one of three kinds, and what is measured of them without a judge.

open         questions that all personas share            `open_ended.py`
personagym   PersonaGym's questions, each persona its own  `personagym.py`
interview    a conversation with each persona              `interview.py`
"""

from collections.abc import Callable, Mapping

from permix.config import FidelityStage
from permix.evals.interview import interview
from permix.evals.open_ended import open_ended
from permix.evals.personagym import personagym
from permix.judging.run import judge, judge_of, refuse_unfit
from permix.types import Record

KINDS: Mapping[str, Callable[[FidelityStage], Record]] = {
    "open": open_ended,
    "personagym": personagym,
    "interview": interview,
}
"""Each runs, or goes on with, an evaluation of one kind, writes its metrics.json and returns what is in it."""


def fidelity(config: FidelityStage) -> Record:
    """Run, or go on with, an evaluation; writes metrics.json and returns it.

    With a judge, the answers are judged once all are there. Raises OwedCellsError when answers are missing, OwedScoresError when
    only scores are, DataError when there are too few answers to measure, and ConfigError, before anything is asked, for a judge
    that could not judge.
    """
    judged = config.judge.name != "none"
    if judged:
        refuse_unfit(config)
    result = KINDS[config.kind](config)
    if judged:
        judge(judge_of(config))
    return result

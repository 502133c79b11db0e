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
from permix.types import Record

KINDS: Mapping[str, Callable[[FidelityStage], Record]] = {
    "open": open_ended,
    "personagym": personagym,
    "interview": interview,
}
"""Each runs, or goes on with, an evaluation of one kind, writes its metrics.json and returns what is in it."""


def fidelity(config: FidelityStage) -> Record:
    """Run, or go on with, an evaluation; writes metrics.json and returns it.

    Raises OwedCellsError when answers are missing, DataError when there are too few to measure.
    """
    return KINDS[config.kind](config)

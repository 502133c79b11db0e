"""What an interviewer asks, and in which order whom: so that a turn and the question put in it can be told apart.

Contract: were all personas asked in one order, a late fall would be the late questions' as well as the conversation's. Here the
first question of the script opens every interview, and the n others are asked in orders that are rows of a Williams design
(Williams 1949, Experimental designs balanced for the estimation of residual effects of treatments): over n personas every
question stands once at every later turn, and over n (n even) or 2 n (n odd) every one follows every other equally often. Which
persona has which row hangs on ids and the seed.
"""

from collections.abc import Mapping, Sequence
from importlib.resources import files
from pathlib import Path

from permix.config import InterviewConfig
from permix.errors import ConfigError
from permix.personas.pool import load_roleplay
from permix.types import Question, seed_from

Orders = Mapping[str, tuple[Question, ...]]
"""The questions of each persona, by id, in the order of asking."""


def choose_script(config: InterviewConfig) -> tuple[Question, ...]:
    """The first `turns` questions of the script. ConfigError when it has fewer, DataError for a bad file."""
    script = load_roleplay(config.script or Path(str(files("permix.personas") / "interview.toml")))
    if len(script) < config.turns:
        named = f"{config.script} has" if config.script else "the built-in script has"
        raise ConfigError(
            f"interview.turns = {config.turns}: {named} {len(script)} questions; give at most that, or a longer script"
        )
    return script[: config.turns]


def orders(persona_ids: Sequence[str], script: Sequence[Question], order: str, seed: int) -> Orders:
    """Who is asked what when: as the script stands ("written"), or the opening and then a row of the design ("balanced")."""
    if order == "written":
        return {persona: tuple(script) for persona in persona_ids}
    opening, *others = script
    rows = williams(len(others))
    drawn = sorted(persona_ids, key=lambda persona: seed_from(seed, "interview", persona))
    place = {persona: rank % len(rows) for rank, persona in enumerate(drawn)}
    return {persona: (opening, *(others[one] for one in rows[place[persona]])) for persona in persona_ids}


def williams(n: int) -> list[list[int]]:
    """Orders of 0..n-1; the first n are a Latin square, and all of them balance who follows whom.

    Row i is (w + i) mod n with w = 0, 1, n-1, 2, n-2, ...; of an odd n the rows follow once more, turned round.
    """
    first = [(place + 1) // 2 if place % 2 else (n - place // 2) % n for place in range(n)]
    square = [[(one + shift) % n for one in first] for shift in range(n)]
    return square if n % 2 == 0 else square + [row[::-1] for row in square]

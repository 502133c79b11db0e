"""What of a model's replies is kept: pure functions of the replies, in the order in which they were asked for.

Whatever is left out is counted under its reason. A reply is None where the call failed; it adds nothing.
"""

import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

from permix.config import GymTask
from permix.gym import usable
from permix.gym.lists import read_list, read_object
from permix.gym.usable import RefusedError
from permix.personas.split import NEAR, grams
from permix.types import normalise

Replies = Sequence[str | None]

LEAST_SITUATIONS, MOST_SITUATIONS = 3, 10


class Sifted(NamedTuple):
    """What was kept, in order, and how often something was left out, by reason."""

    kept: tuple[str, ...]
    refused: Counter[str]


def situations_of(replies: Replies, listed: Sequence[str]) -> Sifted:
    """The situations that were chosen from the list, as the list spells them: at most `MOST_SITUATIONS`."""
    known, kept, refused = {bare(one): one for one in listed}, list[str](), Counter[str]()
    for item in _items(replies, refused):
        found = known.get(bare(item)) if isinstance(item, str) else None
        if found is None:
            refused["not in the list"] += 1
        elif found in kept:
            refused["repeated"] += 1
        elif len(kept) == MOST_SITUATIONS:
            refused["more than asked for"] += 1
        else:
            kept.append(found)
    return Sifted(tuple(kept), refused)


def questions_of(replies: Mapping[GymTask, Replies], n: int) -> dict[GymTask, Sifted]:
    """The first `n` usable questions of each task that resemble none before them, of any task of this persona.

    All tasks' first replies come before any task's second, so what was kept stays kept when more is asked for.
    """
    kept: dict[GymTask, list[str]] = {task: [] for task in replies}
    refused = {task: Counter[str]() for task in replies}
    there: list[frozenset[str]] = []
    for place in range(max(map(len, replies.values()), default=0)):
        for task in replies:
            for item in _items(replies[task][place : place + 1], refused[task]):
                try:
                    text = _new_question(item, there)
                    if len(kept[task]) == n:
                        raise RefusedError("more than asked for")
                except RefusedError as reason:
                    refused[task][str(reason)] += 1
                    continue
                kept[task].append(text)
                there.append(grams(text))
    return {task: Sifted(tuple(kept[task]), refused[task]) for task in replies}


def examples_of(replies: Replies) -> Sifted:
    """Five answers, for the scores 1 to 5, out of the first reply that holds them; none otherwise."""
    refused = Counter[str]()
    for reply in replies:
        if reply is None:
            continue
        try:
            found = read_object(reply)
            if found is None:
                raise RefusedError("no object in the reply")
            return Sifted(usable.examples(found), refused)
        except RefusedError as reason:
            refused[str(reason)] += 1
    return Sifted((), refused)


def setting_of(question: str, situations: Sequence[str]) -> str | None:
    """The one situation whose words stand in the question; None where that is not one."""
    plain = normalise(question)
    named = [one for one in situations if bare(one) in plain]
    return named[0] if len(named) == 1 else None


def _items(replies: Replies, refused: Counter[str]) -> Iterator[object]:
    """All items of all replies; a reply without a list is counted."""
    for reply in replies:
        if reply is None:
            continue
        items = read_list(reply)
        if items is None:
            refused["no list in the reply"] += 1
        yield from items or []


def _new_question(item: object, there: Sequence[frozenset[str]]) -> str:
    text = usable.question(item)
    mine = grams(text)
    if any(len(mine & one) >= NEAR * (len(mine) * len(one)) ** 0.5 for one in there):
        raise RefusedError("repeated")
    return text


def bare(situation: str) -> str:
    """What a situation is known by: without case, article and the marks at its ends."""
    return re.sub(r"^(an?|the)\s", "", normalise(situation).strip(" .,;:!-–\"'*"))

"""Who is asked what when: balance that can be counted, and scripts that cannot be used."""

from collections import Counter
from itertools import pairwise
from pathlib import Path

import pytest

from permix.config import InterviewConfig
from permix.errors import ConfigError, DataError
from permix.evals.interview import assign_question_orders, load_interview_script, williams_design
from permix.types import Question

PERSONAS = [f"p{number}" for number in range(8)]


def script(*texts: str) -> tuple[Question, ...]:
    return tuple(Question(id=text, task="roleplay", text=text, gold="") for text in texts)


@pytest.mark.parametrize("n", [2, 3, 4, 7, 15])
def test_every_question_stands_once_at_every_turn_and_after_every_other_equally_often(n: int) -> None:
    rows = williams_design(n)
    assert all(sorted(row) == list(range(n)) for row in rows)
    for turn in range(n):
        assert sorted(row[turn] for row in rows[:n]) == list(range(n))
    followed = Counter(pair for row in rows for pair in pairwise(row))
    assert len(rows) == (n if n % 2 == 0 else 2 * n)
    assert set(followed.values()) == {1 if n % 2 == 0 else 2}
    assert len(followed) == n * (n - 1)


def test_the_design_of_four_is_that_of_the_paper() -> None:
    assert williams_design(4) == [[0, 1, 3, 2], [1, 2, 0, 3], [2, 3, 1, 0], [3, 0, 2, 1]]


def test_all_begin_alike_and_four_personas_fill_a_latin_square() -> None:
    found = assign_question_orders(PERSONAS[:4], script("opening", "a", "b", "c", "d"), "balanced", seed=0)
    assert {order[0].id for order in found.values()} == {"opening"}
    for turn in range(1, 5):
        assert sorted(order[turn].id for order in found.values()) == ["a", "b", "c", "d"]


def test_who_has_which_order_hangs_on_ids_and_seed_alone() -> None:
    asked = script("opening", "a", "b", "c", "d")
    first = assign_question_orders(PERSONAS, asked, "balanced", seed=0)
    assert assign_question_orders(PERSONAS[::-1], asked, "balanced", seed=0) == first
    assert assign_question_orders(PERSONAS, asked, "balanced", seed=1) != first


def test_as_written_is_as_written() -> None:
    asked = script("opening", "a", "b")
    assert assign_question_orders(PERSONAS[:2], asked, "written", seed=0) == {"p0": asked, "p1": asked}


def test_the_built_in_script_opens_mixes_kinds_and_goes_back_only_to_the_opening() -> None:
    found = load_interview_script(InterviewConfig(turns=16))
    assert [one.id for one in load_interview_script(InterviewConfig(turns=5))] == [one.id for one in found[:5]]
    assert len({one.tags[0] for one in found[:8]}) >= 7  # a short interview has nearly every kind
    assert Counter(one.tags[0] for one in found) == dict.fromkeys(
        ("talk", "day", "temptation", "opinion", "callback", "fact", "pressure", "digression"), 2
    )


def test_a_script_of_ones_own_and_what_is_wrong_with_others(tmp_path: Path) -> None:
    own = tmp_path / "own.txt"
    own.write_text("Hello there.\n\nWhat now?\nAnd then?\n")
    assert [one.text for one in load_interview_script(InterviewConfig(turns=3, script=own))] == [
        "Hello there.",
        "What now?",
        "And then?",
    ]
    with pytest.raises(ConfigError, match=r"interview\.turns = 4: .*own\.txt has 3 questions"):
        load_interview_script(InterviewConfig(turns=4, script=own))
    with pytest.raises(ConfigError, match=r"interview\.turns = 17: the built-in script has 16"):
        load_interview_script(InterviewConfig(turns=17))
    with pytest.raises(DataError, match=r"missing\.txt: no such file"):
        load_interview_script(InterviewConfig(turns=3, script=tmp_path / "missing.txt"))
    own.write_text("Hello there.\nWhat now?\nwhat  now?\n")
    with pytest.raises(DataError, match=r"own\.txt:3: .*repeats .*own\.txt:2"):
        load_interview_script(InterviewConfig(turns=3, script=own))

"""2,000 golds in the forms of MATH, each changed a little: every changed answer is wrong, and every gold rewritten is right."""

import random
from collections import Counter

import pytest

from bench.mutations import figures, golds, mutations, rewritings
from permix.tasks import TASKS, verify_completion
from permix.verification.latex import clean_latex
from permix.verification.math_verifier import answers_equal


@pytest.mark.slow
def test_every_changed_gold_is_refused() -> None:
    rng = random.Random(0)
    kinds: Counter[str] = Counter()
    for gold in golds(rng, 2000):
        assert answers_equal(gold, gold)
        for kind, changed in mutations(gold, rng):
            if clean_latex(changed) == clean_latex(gold):
                continue
            kinds[kind] += 1
            assert not answers_equal(changed, gold), (kind, gold, changed)
            assert not answers_equal(gold, changed), (kind, changed, gold)
    assert set(kinds) == {
        "digit", "sign", "exponent", "radical", "unit", "half of the day", "base", "order", "bracket", "constant", "item",
        "letter",
    }  # fmt: skip
    assert min(kinds.values()) > 30


def test_every_gold_rewritten_is_right() -> None:
    for gold in golds(random.Random(1), 300):
        for completion in rewritings(gold):
            found = verify_completion(TASKS["math"], completion, gold)
            assert found.correct, (gold, completion, found.extracted)


def test_the_figures_count_by_hand() -> None:
    found = {one["kind"]: one for one in figures(["7", "0"])}
    assert found["digit"]["n"] == 2
    assert found["digit"]["otherwise"] == 0
    assert found["sign"]["which"] == [["0", "-0"]]
    assert found["rewritten"]["otherwise"] == 0

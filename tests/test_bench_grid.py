"""The arithmetic of the grid's benchmark, and our arm on a tiny model. No time is asserted."""

import importlib.util
from pathlib import Path

import pytest

from bench.grid import cost_ratio, find_divergence, share_equal, split_blocks
from bench.grid_arms import MISSING, Divergence, LmEvalArm, PermixArm, Setup, logit_gaps
from permix.evals.grid import PromptFormat, build_grid
from permix.types import Cell, Persona, Question
from tests.tiny import make_folder


def test_a_ratio_is_of_the_sums_and_its_range_of_the_blocks() -> None:
    assert cost_ratio([6.0, 2.0], [2.0, 1.0]) == pytest.approx((8 / 3, 2.0, 3.0))
    with pytest.raises(ValueError, match="zip"):
        cost_ratio([6.0, 2.0], [2.0])


def test_share_of_equals_counts_two_missing_answers_as_equal() -> None:
    assert share_equal(["7", None, "8", None], ["7", None, "9", "8"]) == 0.5


def test_completions_diverge_at_their_first_different_token_or_where_one_stops() -> None:
    assert find_divergence([1, 2], [5, 6, 7], [5, 8, 7], stop=0) == Divergence([1, 2, 5], 6, 8)
    assert find_divergence([1, 2], [5], [5, 8], stop=0) == Divergence([1, 2, 5], 0, 8)


WORDS = ("sum ", "7 ", "why ")


def cells() -> list[Cell]:
    asked = [Question(id=str(n), task="gsm8k", text=f"{word * 9}?", gold=str(n)) for n, word in enumerate(WORDS)]
    personas = [Persona(id=name, text=f"a {name}") for name in ("sailor", "poet")]
    return build_grid(
        personas, asked, PromptFormat(lambda question: question.text, "you_are", empty_system_prompt=False), samples=1, seed=0
    )


def test_blocks_hold_every_cell_once_in_order() -> None:
    blocks = split_blocks(cells(), 4)
    assert [len(block) for block in blocks] == [4, 2]
    assert [cell for block in blocks for cell in block] == cells()


@pytest.fixture(scope="module")
def setup(tmp_path_factory: pytest.TempPathFactory) -> Setup:
    folder: Path = make_folder(tmp_path_factory.mktemp("grid") / "tiny")
    return Setup(str(folder), "float32", threads=1, new_tokens=6, batch_size=None)


def test_our_arm_answers_in_the_order_it_is_asked(setup: Setup) -> None:
    arm, asked = PermixArm(setup), cells()
    assert len(set(arm.answer(asked))) > 1
    assert arm.answer(asked[::-1]) == arm.answer(asked)[::-1]
    assert arm.prompt(asked[0]) != arm.prompt(asked[3]), "another persona"


def test_a_gap_is_between_the_two_logits_whichever_comes_first(setup: Setup) -> None:
    there, back, same = logit_gaps(setup.model, [Divergence([5, 6], 7, 8), Divergence([5, 6], 8, 7), Divergence([5, 6], 7, 7)])
    assert there == back > 0 == same


@pytest.mark.skipif(importlib.util.find_spec("lm_eval") is not None, reason="lm-evaluation-harness is there")
def test_the_other_arm_says_which_extra_is_missing(setup: Setup) -> None:
    with pytest.raises(SystemExit, match=r"\.\[bench\]"):
        LmEvalArm(setup._replace(batch_size=8))
    assert "lm-evaluation-harness" in MISSING

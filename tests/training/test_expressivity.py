"""The expressivity reward: pays a right answer for its voice, and a wrong one nothing."""

import pytest

from permix.training.rewards import NEUTRAL_EXPRESSIVITY, ExpressivityReward, rank_percentile
from permix.types import Cell, Completion, Message

VOICES = {
    "pirate": ["Arr, the sea be cruel, matey!", "Arr, hoist the sails, ye dogs!", "Arr, I be sailin' at dawn, matey!"],
    "clerk": ["Please find the form attached.", "Kindly submit the form in triplicate.", "The form is hereby approved."],
    "child": ["Mommy I want a puppy!!", "Puppy puppy puppy, yay!!", "I love my puppy so much!!"],
}


def cells() -> list[Cell]:
    return [
        Cell(
            persona_id=persona, question_id=f"q{number}", seed=0,
            messages=(Message(role="system", content=f"You are a {persona}."), Message(role="user", content="How are you?")),
            completion=Completion(text=text, prompt_tokens=1, completion_tokens=1, finish="stop"),
        )
        for persona, texts in VOICES.items()
        for number, text in enumerate(texts)
    ]  # fmt: skip


def test_the_share_of_others_below_by_hand() -> None:
    assert rank_percentile([0.3, -1.0, 0.1, 0.3], 0) == pytest.approx((1 + 1 + 0.5) / 3)
    assert rank_percentile([0.3, -1.0], 1) == 0.0


def test_a_voice_is_known_by_its_words_and_not_by_its_name() -> None:
    express = ExpressivityReward(cells(), weight=0.5)
    said = ["Arr, 12, matey!", "Please find 12 in the form.", "12 puppy!!"]
    assert express.score_completions(said, ["pirate", "clerk", "child"]) == [1.0, 1.0, 1.0]
    assert max(express.score_completions(said, ["clerk", "child", "pirate"])) <= 0.5
    assert express.score_completions(["12"], [None]) == [NEUTRAL_EXPRESSIVITY]
    assert express.score_completions(["Arr"], ["stranger"]) == [NEUTRAL_EXPRESSIVITY]


def test_two_voices_are_enough() -> None:
    two = [cell for cell in cells() if cell.persona_id != "child"]
    assert ExpressivityReward(two, weight=1.0).score_completions(["Arr, matey!"] * 2, ["pirate", "clerk"]) == [1.0, 0.0]


def test_being_in_character_never_pays_for_being_wrong() -> None:
    express = ExpressivityReward(cells(), weight=0.5)
    assert express.shaped_rewards([1.0, 1.0, 0.0, None], [1.0, 0.5, 1.0, 1.0]) == [1.5, 1.25, 0.0, None]

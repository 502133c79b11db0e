"""Arithmetic: what a level holds, which side a question is on, and that an item does not depend on how many are drawn."""

import re
from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from permix.config import PlanConfig, StabilityConfig, TaskConfig, TrainConfig
from permix.errors import ConfigError
from permix.tasks.arithmetic import (
    ARITHMETIC,
    ARITHMETIC_LEVELS,
    DEFAULT_ARITHMETIC_LEVELS,
    arithmetic_questions,
    iterate_shuffled,
    level_questions,
    make_arithmetic_question,
)
from permix.types import SPLITS, Question, Split, digest

SMALL = tuple(level for level in ARITHMETIC_LEVELS if ARITHMETIC_LEVELS[level].n_combinations <= 10_000)
levels = st.lists(st.sampled_from(sorted(ARITHMETIC_LEVELS)), min_size=1, max_size=3).map(tuple)
seeds = st.integers(0, 2**31)
splits = st.sampled_from(SPLITS)
FEWEST: dict[Split, int] = {"train": 37, "dev": 5, "heldout": 13}  # what sub-1, the smallest level, has


def operands(question: Question) -> list[int]:
    return [int(number) for number in re.findall(r"\d+", question.text)]


def test_a_question_reads_as_a_person_would_ask_it() -> None:
    assert make_arithmetic_question("add-1", (7, 5)) == Question(
        id="arithmetic:7+5", task="arithmetic", text="What is 7 + 5?", gold="12", tags=("add-1",), solution="7 + 5 = 12."
    )
    assert make_arithmetic_question("sub-2", (40, 17)).gold == "23"
    assert make_arithmetic_question("mul-2x1", (12, 3)).gold == "36"
    assert make_arithmetic_question("add-1x3", (1, 2, 9)).text == "What is 1 + 2 + 9?"


def test_the_prompt_is_the_bare_question() -> None:
    assert ARITHMETIC.prompt(make_arithmetic_question("add-1", (7, 5))) == "What is 7 + 5?"


@pytest.mark.parametrize(
    ("completion", "answer"),
    [
        ("7 + 5 = 12", "12"),
        ("Arr, that be 12 doubloons!", "12"),
        ("\\boxed{12} is what 7 and 5 make", "12"),
        ("It was 13. No: \\boxed{13}, then \\boxed{12}", "12"),
        ("12, so put it in \\boxed{}", "12"),
        ("I hate numbers.", None),
        ("", None),
    ],
)
def test_the_answer_is_the_last_box_else_the_last_number(completion: str, answer: str | None) -> None:
    assert ARITHMETIC.extract_answer(completion) == answer


@settings(max_examples=30, deadline=None)
@given(levels=levels, seed=seeds, split=splits, few=st.integers(1, 12), more=st.integers(0, 20))
def test_item_i_does_not_depend_on_how_many_are_drawn(
    levels: tuple[str, ...], seed: int, split: Split, few: int, more: int
) -> None:
    few = min(few, FEWEST[split])
    config = TaskConfig(levels=levels, seed=seed, split=split, n=few)
    longer = arithmetic_questions(config.model_copy(update={"n": min(few + more, FEWEST[split])}))
    assert longer[:few] == arithmetic_questions(config)


@settings(max_examples=30, deadline=None)
@given(levels=levels, seed=seeds, split=splits)
def test_gold_is_the_value_of_the_expression(levels: tuple[str, ...], seed: int, split: Split) -> None:
    for question in arithmetic_questions(TaskConfig(levels=levels, seed=seed, split=split, n=FEWEST[split])):
        expression = question.text.removeprefix("What is ").removesuffix("?")
        assert int(question.gold) == eval(expression) >= 0
        assert question.tags[0] in levels


@settings(max_examples=10, deadline=None)
@given(one=seeds, other=seeds, third=seeds)
def test_the_sides_share_nothing_not_even_mirrored_under_any_seeds(one: int, other: int, third: int) -> None:
    levels = ("add-1", "sub-1", "mul-1", "add-1x3", "add-2")
    train = arithmetic_questions(TaskConfig(levels=levels, seed=one, split="train", n=1000))
    heldout = arithmetic_questions(TaskConfig(levels=levels, seed=other, split="heldout", n=200))
    dev = arithmetic_questions(TaskConfig(levels=levels, seed=third, split="dev", n=200))

    def content(question: Question) -> tuple[str, ...]:
        numbers = operands(question) if "-" in question.text else sorted(operands(question))
        return (question.text.split()[3], *map(str, numbers))

    asked = [{content(question) for question in side} for side in (train, heldout, dev)]
    assert len(asked[0] | asked[1] | asked[2]) == sum(map(len, asked))


@pytest.mark.parametrize("level", SMALL)
def test_the_three_sides_together_are_the_whole_level(level: str) -> None:
    train, dev, heldout = ([one.id for one in level_questions(level, 0, side)] for side in SPLITS)
    size = ARITHMETIC_LEVELS[level].n_combinations
    if level.startswith("sub"):
        size = (size + len(ARITHMETIC_LEVELS[level].operand_ranges[0])) // 2  # half of the pairs that differ, and all that do not
    assert len({*train, *dev, *heldout}) == len(train) + len(dev) + len(heldout) == size
    assert 0.15 < len(heldout) / size < 0.35
    assert 0.05 < len(dev) / size < 0.15  # an eighth of three quarters is 0.09


HELDOUT = {"add-1": "e5af64c9dee9f5b4", "sub-1": "65541792a8b7a548", "mul-1": "9e9145115326dd1f", "add-1x3": "16c90faa22645d9c"}


@pytest.mark.parametrize("level", HELDOUT)
def test_which_questions_are_held_out_never_changes(level: str) -> None:
    assert digest(*sorted(question.id for question in level_questions(level, 0, "heldout"))) == HELDOUT[level]


def test_levels_take_turns_and_a_used_up_level_is_passed_over() -> None:
    levels = ("add-1", "sub-1", "mul-1", "add-1x3", "add-2")
    ten = arithmetic_questions(TaskConfig(levels=levels, split="train", n=10))
    assert [one.tags[0] for one in ten] == [*levels, *levels]
    shares = Counter(one.tags[0] for one in arithmetic_questions(TaskConfig(levels=levels, split="heldout", n=100)))
    assert shares == {"add-1": 19, "sub-1": 13, "mul-1": 23, "add-1x3": 23, "add-2": 22}  # 19 and 13 are all there are


def test_the_defaults_of_every_stage_have_enough_questions() -> None:
    assert set(DEFAULT_ARITHMETIC_LEVELS) <= set(ARITHMETIC_LEVELS)
    for config in (StabilityConfig().task, TrainConfig().task, PlanConfig().task):
        assert len(arithmetic_questions(config)) == config.n


def test_seeds_draw_different_questions() -> None:
    one, other = (arithmetic_questions(TaskConfig(levels=("add-3",), seed=seed, n=20)) for seed in (0, 1))
    assert not {question.id for question in one} & {question.id for question in other}


def test_the_questions_of_a_published_config_never_change() -> None:
    config = TaskConfig(levels=("add-1", "sub-1", "mul-1", "add-1x3", "add-2"), seed=0, split="heldout", n=5)
    assert [question.text for question in arithmetic_questions(config)] == [
        "What is 5 + 3?",
        "What is 2 - 0?",
        "What is 3 * 8?",
        "What is 6 + 3 + 1?",
        "What is 86 + 15?",
    ]
    other = arithmetic_questions(config.model_copy(update={"seed": 1, "n": 200}))
    assert [question.text for question in other[:5]] == [
        "What is 1 + 1?",
        "What is 8 - 2?",
        "What is 1 * 3?",
        "What is 3 + 8 + 6?",
        "What is 37 + 96?",
    ]
    assert digest(*(question.id for question in other)) == "910229ad2f17ae66"


def test_the_dev_side_of_a_level_can_be_used_up() -> None:
    config = TaskConfig(levels=("add-1", "sub-1"), split="dev", n=17)
    assert len(arithmetic_questions(config)) == 17
    with pytest.raises(ConfigError, match=r"task.n = 18: .* 17 distinct .* dev split .*\(add-1 12, sub-1 5\)"):
        arithmetic_questions(config.model_copy(update={"n": 18}))


def test_more_than_there_are_is_refused_with_the_number_there_is() -> None:
    config = TaskConfig(levels=("add-1", "sub-1"), split="heldout", n=32)
    assert len(arithmetic_questions(config)) == 32
    with pytest.raises(ConfigError, match=r"task.n = 33: .* 32 distinct .* heldout split .*\(add-1 19, sub-1 13\)"):
        arithmetic_questions(config.model_copy(update={"n": 33}))


def test_an_unknown_level_is_refused_with_the_nearest() -> None:
    with pytest.raises(ConfigError, match=r"no level 'add1'; did you mean add-1\? levels: add-1, "):
        arithmetic_questions(TaskConfig(levels=("add1",)))


def test_a_path_is_refused() -> None:
    with pytest.raises(ConfigError, match="reads no file"):
        arithmetic_questions(TaskConfig.model_validate({"path": "x.jsonl"}))


@given(size=st.integers(0, 60), seed=seeds)
def test_shuffled_gives_every_number_once(size: int, seed: int) -> None:
    assert sorted(iterate_shuffled(size, seed)) == list(range(size))


def test_shuffled_gives_every_order_alike() -> None:
    orders = Counter(tuple(iterate_shuffled(3, seed)) for seed in range(6000))
    assert len(orders) == 6
    assert all(850 < n < 1150 for n in orders.values())  # 1000 expected, standard deviation 29

"""Persona and neutral together: when the model is asked to choose, how its choice is read, and what the pairs' grid measures."""

import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from permix.config import StabilityConfig, TaskConfig
from permix.errors import IncompleteRunError
from permix.evals.grid import PromptFormat
from permix.evals.stability import measure_stability, run_stability
from permix.evals.strategies import measure_strategy
from permix.evals.strategies.base import EvalSetup
from permix.evals.strategies.persona_ensemble import (
    EnsemblePair,
    EnsembleSummary,
    build_choice_cell,
    build_choice_cells,
    choice_key,
    is_persona_first,
    parse_choice,
    resolve_pair,
)
from permix.prompts import pairwise_choice_prompt
from permix.storage.files import read_json
from permix.tasks import load_questions
from permix.types import Cell, Completion, Failure, Question, Verdict
from tests.cell_files import read_cells
from tests.sample_runs import answered, asked_as, asked_what, cell, pool, solve, stability_config
from tests.servers import Action, error, openai_server

QUESTIONS = [question.text for question in load_questions(TaskConfig(levels=("add-1",), n=6))[1]]


@pytest.fixture(autouse=True)
def _environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")


# Reading a choice


@pytest.mark.parametrize(
    ("reply", "letter"),
    [
        ("A", "A"),
        ("b", "B"),
        (" **B**. ", "B"),
        ("(A)", "A"),
        ("\\boxed{B}", "B"),
        ("I think so: \\boxed{\\text{A}}", "A"),
        ("B. The other one forgot to carry.", "B"),
        ("A, because 7 + 5 is 12.", "A"),
        ("Answer: B", "B"),
        ("The correct answer is A.", "A"),
        ("The answer is **B** because 3 + 4 is 7.", "B"),
        ("You're right, I'll give the answer.\n\nThe answer is A.", "A"),
        ("Answer A is wrong. Answer B is right.", "B"),
        ("Both look fine, but B is the correct one.", "B"),
        ("I choose answer A over the other.", "A"),
        ("7 + 5 is 12, so B.", "B"),
        ("I would go with option B here", "B"),
        # No telling.
        ("", None),
        ("12", None),
        ("A careful check shows 12.", None),
        ("The answer is A careful one.", None),
        ("Both are right.", None),
        ("A is right and B is right.", None),
        ("Answer A and answer B differ.", None),
        ("Neither A nor B.", None),
        ("Answer A:\nIt is 12.", None),  # what it was shown, said again
        ("Apples and Bananas", None),
    ],
)
def test_a_choice_is_read_tolerantly_and_never_guessed(reply: str, letter: str | None) -> None:
    assert parse_choice(reply) == letter


# Settling


def said(text: str | None, correct: bool | None = False) -> Cell:
    return answered().model_copy(update={"verdict": Verdict(correct=correct, extracted=text)})


@pytest.mark.parametrize(
    ("persona", "neutral", "settled"),
    [
        (said("12"), said("12.0"), "neutral"),
        (said("1/2"), said("0.5"), "neutral"),
        (said("12"), said("13"), "ask"),
        (said("12"), said(None), "persona"),
        (said(None), said("12"), "neutral"),
        (said(None), said(None), "neutral"),
        (said("2x", None), said("x*2"), "ask"),
        (said("12"), None, None),
        (cell(failure=Failure(type="HTTP", message="503")), said("12"), None),
    ],
)
def test_the_model_is_asked_only_between_two_answers(persona: Cell | None, neutral: Cell | None, settled: str | None) -> None:
    assert resolve_pair(persona, neutral) == settled


def chosen(reply: str, seed: int) -> Cell:
    done = Completion(text=reply, prompt_tokens=5, completion_tokens=1, finish="stop")
    return cell(completion=done, gold=None).model_copy(update={"seed": seed})


@pytest.mark.parametrize(
    ("reply", "seed", "side"),
    [
        ("A", 2, "persona"),
        ("B", 2, "neutral"),
        ("A", 3, "neutral"),
        ("B", 3, "persona"),
        ("who knows", 2, "neutral"),
        ("who knows", 3, "neutral"),
    ],
)
def test_a_letter_means_whose_reply_stood_there(reply: str, seed: int, side: str) -> None:
    assert is_persona_first(seed) == (seed == 2)
    persona, neutral = said("12", True), said("13")
    pair = EnsemblePair(persona, neutral, chosen(reply, seed), resolve_pair(persona, neutral))
    assert pair.winner == side
    assert pair.score == (1.0 if side == "persona" else 0.0)


def test_no_score_is_not_zero() -> None:
    persona, neutral = said("12", True), said("13")
    for choice in (None, cell(gold=None, failure=Failure(type="HTTP", message="503"))):
        pair = EnsemblePair(persona, neutral, choice, "ask")
        assert pair.winner is None
        assert math.isnan(pair.score)
    unjudged = EnsemblePair(said("12", None), neutral, chosen("A", 2), "ask")
    assert unjudged.winner == "persona"
    assert math.isnan(unjudged.score)


# Asking


def setup(folder: Path, samples: int = 1) -> EvalSetup:
    questions = tuple(Question(id=f"q{n}", task="arithmetic", text=f"What is {n} + 1?", gold=str(n + 1)) for n in range(20))
    return EvalSetup(questions, pool(folder / "pool.toml"), PromptFormat(lambda one: one.text, "you_are", False), samples, 0)


def test_both_orders_occur_and_a_reply_stands_where_the_seed_says(tmp_path: Path) -> None:
    world = setup(tmp_path)
    orders = []
    for question in world.questions:
        persona, neutral = (answered(question.id, text, persona_id=id) for text, id in (("Arr, 8!", "sailor"), ("7.", None)))
        choice = build_choice_cell(question, persona, neutral, world)
        assert choice.key == choice_key("sailor", question.id, 0)
        assert (choice.persona_id, choice.gold) == (None, None)
        (message,) = choice.messages
        first, second = ("Arr, 8!", "7.") if is_persona_first(choice.seed) else ("7.", "Arr, 8!")
        assert message["content"] == pairwise_choice_prompt(question.text, first, second)
        assert message["content"].startswith(f"{question.text}\n\nTwo answers")
        orders.append(is_persona_first(choice.seed))
    assert 4 <= sum(orders) <= 16  # of 20


def test_keys_of_choices_are_never_the_same() -> None:
    ids = [("a", "b:c"), ("a:b", "c"), ('a", "b', "c"), ("a", 'b", "c'), ("é", "\u2028")]
    assert len({choice_key(persona, question, sample) for persona, question in ids for sample in (0, 1)}) == 10


def test_choices_are_laid_out_for_what_differs_and_is_there(tmp_path: Path) -> None:
    world = setup(tmp_path, samples=2)._replace(questions=setup(tmp_path).questions[:2])
    cells = [
        answered("q0", "1"),
        answered("q0", "2", persona_id="clerk"),  # differs
        answered("q0", "1.0", persona_id="nurse"),
        answered("q0", "1", sample=1),
        answered("q0", "3", persona_id="nurse", sample=1),  # differs
        answered("q1", "5", persona_id="troll"),  # nothing to hold it against yet
    ]
    asked = build_choice_cells(world, {one.key: one for one in cells})
    assert [one.key for one in asked] == [choice_key("clerk", "q0", 0), choice_key("nurse", "q0", 1)]
    assert len({one.seed for one in asked}) == 2


# The whole


def number(question: str, persona: str | None) -> int | None:
    """What is said to a question as whom. None: no answer.

    Neutral: right on three of six, else one too much. The clerk is always right, the sailor says what neutral says, the troll
    gives no answer at first and then says two too much.
    """
    at, right = QUESTIONS.index(question), solve(question)
    if persona == "troll":
        return None if at == 0 else right + 2
    return right if persona == "clerk" or at < 3 else right + 1


def reply(body: Mapping[str, Any], nth: int = 0, headers: Mapping[str, str] | None = None) -> str:
    """As `number` says; asked to choose, the letter of the right answer, if one is right."""
    prompt = asked_what(body)
    if "Two answers were given" not in prompt:
        said = number(prompt, asked_as(body))
        return "no idea" if said is None else f"It is {said}."
    assert asked_as(body) is None
    question = prompt.partition("\n")[0]
    shown = {letter: int(said) for letter, said in re.findall(r"Answer ([AB]):\nIt is (\d+)\.", prompt)}
    assert len(shown) == 2
    return next((letter for letter, said in shown.items() if said == solve(question)), "Neither.")


def both(folder: Path, base_url: str, **fields: Any) -> StabilityConfig:
    return stability_config(folder, base_url, strategy="persona-ensemble", **fields)


def found_in(config: StabilityConfig) -> EnsembleSummary:
    found = measure_strategy(config.out)
    assert isinstance(found, EnsembleSummary)
    return found


def test_the_numbers_are_exact(tmp_path: Path) -> None:
    with openai_server(reply) as server:
        config = both(tmp_path, server.base_url)
        plain = run_stability(config)
        assert len(server.asked) == 24 + 8
    found = found_in(config)
    # Right of six, plain: neutral 3, clerk 6, sailor 3, troll 0. As pairs: clerk 6, sailor 3, troll 3 (the neutral answers).
    assert [one.accuracy.value for one in plain.personas] == [1.0, 0.5, 0.0]
    assert [one.accuracy.value for one in found.ensemble.personas] == [1.0, 0.5, 0.5]
    assert found.ensemble.pss_observed.value == 0.5
    assert found.accuracy.value == pytest.approx(12 / 18)
    assert found.baseline.value == 0.5
    assert found.gain.value == pytest.approx(1 / 6)
    assert found.mean_gain is not None
    assert found.mean_gain.value == pytest.approx(1 / 6)
    for gain, with_neutral, without in (
        (found.pss_gain, found.ensemble.pss, plain.pss),
        (found.worst_gain, found.ensemble.worst, plain.worst),
    ):
        assert gain is not None
        assert with_neutral.value is not None
        assert without.value is not None
        assert gain.value == pytest.approx(with_neutral.value - without.value)
    # The clerk differs 3 times and the troll 5, of which in 3 neither answer is right.
    assert (found.n_agreed, found.n_one_sided, found.n_disagreed) == (9, 1, 8)
    assert (found.n_persona_chosen, found.n_unreadable) == (3, 3)
    assert (found.n_scored, found.n_asked) == (18, 18)
    assert found.tokens_per_answer is not None
    assert found.baseline_tokens is not None
    assert found.tokens_per_answer.total == pytest.approx(20 + 80 / 18)
    assert found.baseline_tokens.total == 10.0
    assert found.token_ratio == pytest.approx(2 + 8 / 18)
    metrics = read_json(config.out / "metrics.json")
    assert metrics.pop("strategy") == found.model_dump(mode="json")
    assert metrics.items() >= plain.model_dump(mode="json").items()


def test_choices_are_no_part_of_the_grid(tmp_path: Path) -> None:
    with openai_server(reply) as server:
        config = both(tmp_path, server.base_url)
        plain = run_stability(config)
    assert plain == measure_stability(config.out)
    assert (plain.n_questions, plain.n_scored, plain.n_asked) == (6, 18, 18)
    kept = read_cells(config.out / "records.jsonl")
    choices = [one for key, one in kept.items() if key.question_id.startswith("choice:")]
    assert len(choices) == 8
    assert {one.verdict for one in choices} == {None}
    assert all(one.completion is not None for one in choices)


def test_a_choice_that_failed_is_owed_and_only_it_is_asked_again(tmp_path: Path) -> None:
    def flaky(body: dict[str, Any], nth: int, headers: Mapping[str, str]) -> str | Action:
        return error(400, "no") if nth == 26 else reply(body)

    with openai_server(flaky) as server:
        config = both(tmp_path, server.base_url)
        with pytest.raises(
            IncompleteRunError,
            match=r"1 of 32 cells, .* have no score; run the same command again to fill them \(1 × HTTP 400: no\)$",
        ):
            run_stability(config)
        partly = found_in(config)
        assert (partly.n_scored, partly.n_asked, partly.n_disagreed) == (17, 18, 7)
        assert read_json(config.out / "metrics.json")["strategy"] == partly.model_dump(mode="json")
        run_stability(config)
        assert len(server.asked) == 32 + 1
    assert found_in(config).n_scored == 18


def test_an_answer_that_is_owed_holds_back_its_own_choice_alone(tmp_path: Path) -> None:
    def flaky(body: dict[str, Any], nth: int, headers: Mapping[str, str]) -> str | Action:
        return error(400, "no") if nth == 11 else reply(body)  # the clerk's last, which differs

    with openai_server(flaky) as server:
        config = both(tmp_path, server.base_url)
        with pytest.raises(IncompleteRunError, match="1 of 31 cells"):
            run_stability(config)
        assert found_in(config).n_scored == 17
        server.script = reply
        run_stability(config)
        assert len(server.asked) == 31 + 2
    assert found_in(config).accuracy.value == pytest.approx(12 / 18)


@pytest.mark.parametrize("bare", [False, True])
def test_the_choice_is_asked_without_persona_as_the_run_asks_without_one(bare: bool, tmp_path: Path) -> None:
    with openai_server(reply) as server:
        config = both(tmp_path, server.base_url)
        config = config.model_copy(update={"personas": config.personas.model_copy(update={"empty_system_prompt": bare})})
        run_stability(config)
        sent = [one.body["messages"] for one in server.asked if "Two answers" in asked_what(one.body)]
    assert {tuple(message["role"] for message in messages) for messages in sent} == {("system", "user") if bare else ("user",)}

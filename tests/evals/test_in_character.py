"""Right and in character of a stability run: from its records alone, with samples, templates, gaps, and a reference run."""

import json
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

import permix
from permix.api import StabilityRun
from permix.config import StabilityConfig
from permix.errors import ConfigError, DataError, IncompleteRunError
from permix.evals.grid import PromptFormat, read_grid_results
from permix.evals.in_character import check_right_in_character, measure_right_in_character, read_persona_answers
from permix.evals.strategies.base import EvalSetup
from permix.inference.scripted import ScriptedModel
from permix.metrics.right_in_character import RightInCharacter
from permix.personas.pool import PersonaPool
from permix.storage.files import read_json
from permix.types import Message, Persona, Request
from tests.sample_runs import solve

VOICES = {"pirate": "Arrr matey,", "robot": "Beep boop,", "poet": "O gentle soul,"}
PERSONAS = [Persona(id=name, text=f"a {name}") for name in VOICES]
SUMS = [{"question": f"What is {a} + 7?", "answer": a + 7} for a in range(2, 14)]


def persona_of(messages: Sequence[Message]) -> str | None:
    stated = next((one["content"] for one in messages if one["role"] == "system"), messages[-1]["content"])
    return next((name for name in VOICES if name in stated), None)


def question_of(messages: Sequence[Message]) -> str:
    return next(line for line in messages[-1]["content"].splitlines() if line.startswith("What is"))


def in_voice(messages: Sequence[Message]) -> str:
    """In character; the pirate's sums are one too high."""
    who = persona_of(messages)
    right = solve(question_of(messages))
    return f"{VOICES.get(who or '', 'So')} it is {right + (who == 'pirate')}."


def flat(messages: Sequence[Message]) -> str:
    """Right, and never in character."""
    return f"It is {solve(question_of(messages))}."


def evaluate(model: Any, out: Path, **fields: Any) -> StabilityRun:
    named = {} if isinstance(model, ScriptedModel) else {"name": "mine"}
    settings: dict[str, Any] = {"task": SUMS, "personas": PERSONAS, "answer": "number", "resamples": 100, **named}
    return permix.evaluate_stability(model, out=out, **{**settings, **fields})


def values(found: RightInCharacter | Mapping[str, Any]) -> Any:
    """(share, right, recognised)."""
    if isinstance(found, RightInCharacter):
        return found.share.value, found.right.value, found.recognised.value
    return tuple(found[name]["value"] for name in ("share", "right", "recognised"))


def test_metrics_json_has_it_only_when_asked(tmp_path: Path) -> None:
    run = evaluate(in_voice, tmp_path / "run", right_in_character=True)
    found = read_json(run.path / "metrics.json")["right_in_character"]
    assert values(found) == (pytest.approx(2 / 3), pytest.approx(2 / 3), 1.0)
    assert {one["id"]: one["share"]["value"] for one in found["personas"]} == {"pirate": 0.0, "robot": 1.0, "poet": 1.0}
    assert (found["n_answers"], found["n_asked"], found["n_questions"], found["reference"]) == (36, 36, 12, "own answers")
    assert run.summary.mean.value == found["right"]["value"]
    plain = evaluate(in_voice, tmp_path / "plain")
    assert not any("in_character" in name for name in read_json(plain.path / "metrics.json"))


def test_a_finished_run_measures_it_later_and_asks_nothing(tmp_path: Path) -> None:
    first = ScriptedModel(lambda request: in_voice(request.messages))
    run = evaluate(first, tmp_path / "run")
    assert len(first.requests) == 48
    again = ScriptedModel(lambda request: in_voice(request.messages))
    evaluate(again, tmp_path / "run", right_in_character=True)
    assert again.requests == []
    assert read_json(run.path / "metrics.json")["right_in_character"] == run.right_in_character().model_dump(mode="json")
    assert read_json(run.path / "config.json")["right_in_character"] is True


def test_answers_without_character_are_right_and_at_chance(tmp_path: Path) -> None:
    found = evaluate(flat, tmp_path / "run").right_in_character()
    assert values(found) == (pytest.approx(1 / 3), 1.0, pytest.approx(1 / 3))


def test_the_classifier_of_the_reference_measures_every_model_against_the_same_characters(tmp_path: Path) -> None:
    base = evaluate(in_voice, tmp_path / "base", label="base")

    def swapped(messages: Sequence[Message]) -> str:
        return f"{list(VOICES.values())[list(VOICES).index(persona_of(messages) or 'poet') - 1]} it is 0."

    run = evaluate(swapped, tmp_path / "run", right_in_character=True, character_reference=base.path)
    found = read_json(run.path / "metrics.json")["right_in_character"]
    assert (values(found)[2], found["reference"]) == (0.0, "answers of base")
    assert values(run.right_in_character())[2] == 0.0
    assert measure_right_in_character(run.path).recognised.value == 1.0


def test_every_sample_and_every_template_is_an_answer(tmp_path: Path) -> None:
    def alternating(request: Request) -> str:
        """In voice in the first template; in the second flat, and wrong where the question has a 3."""
        if request.messages[0]["role"] == "system":
            return in_voice(request.messages)
        return flat(request.messages) if "3" not in question_of(request.messages) else "It is 0."

    templates = ("you_are", "Imagine you are {persona}.\n\n{question}")
    model = ScriptedModel(alternating)
    run = evaluate(model, tmp_path / "run", templates=templates, samples=2, right_in_character=True)
    found = run.right_in_character()
    assert (found.n_answers, found.n_asked) == (144, 144)
    assert found.right.value == pytest.approx((2 / 3 + 10 / 12) / 2)
    read = read_persona_answers(read_grid_results(run.path), run.persona_ids, run.question_ids)
    assert read.scores_P_Q_S.shape == (3, 12, 4)
    assert all(len(set(texts)) == 2 for row in read.texts_P_Q_S for texts in row)
    assert found.recognised.value is not None
    assert 0.5 < found.recognised.value < 0.8  # every flat answer is named at chance, every other one rightly


def test_thinking_is_not_part_of_the_answer(tmp_path: Path) -> None:
    run = evaluate(lambda messages: f"<think>{in_voice(messages)}</think>{flat(messages)}", tmp_path / "run")
    assert values(run.right_in_character()) == (pytest.approx(1 / 3), 1.0, pytest.approx(1 / 3))


def test_missing_answers_are_left_out_and_counted(tmp_path: Path) -> None:
    def sometimes(messages: Sequence[Message]) -> str:
        if persona_of(messages) == "robot" and question_of(messages).startswith("What is 2 "):
            raise TimeoutError("too slow")
        return in_voice(messages)

    with pytest.raises(IncompleteRunError):
        evaluate(sometimes, tmp_path / "run", right_in_character=True)
    found = read_json(tmp_path / "run" / "metrics.json")["right_in_character"]
    assert (found["n_answers"], found["n_asked"]) == (35, 36)
    assert values(found) == (pytest.approx(2 / 3), pytest.approx(2 / 3), 1.0)


def test_too_few_answers_give_the_reason_instead_of_a_number(tmp_path: Path) -> None:
    def silent(messages: Sequence[Message]) -> str:
        if persona_of(messages) in ("robot", "poet"):
            raise TimeoutError("too slow")
        return in_voice(messages)

    with pytest.raises(IncompleteRunError):
        evaluate(silent, tmp_path / "run", right_in_character=True)
    metrics = read_json(tmp_path / "run" / "metrics.json")
    assert "right_in_character" not in metrics
    assert "1 of 3 personas have answers to 10 questions or more" in metrics["right_in_character_reason"]


@pytest.mark.parametrize(
    ("fields", "error", "message"),
    [
        ({"personas": PERSONAS[:1]}, ConfigError, "only the persona 'pirate' is selected"),
        ({"task": SUMS[:9]}, ConfigError, "9 questions; give 10 or more"),
        ({"character_reference": "nowhere"}, DataError, "character_reference = nowhere"),
        ({"right_in_character": False, "character_reference": "x"}, ConfigError, "without right_in_character = true"),
    ],
)
def test_what_cannot_be_measured_is_refused_before_the_model_is_asked(
    fields: dict[str, Any], error: type[Exception], message: str, tmp_path: Path
) -> None:
    model = ScriptedModel(lambda request: in_voice(request.messages))
    with pytest.raises(error, match=message):
        evaluate(model, tmp_path / "run", **{"right_in_character": True, **fields})
    assert model.requests == []


def test_a_reference_with_other_questions_or_personas_is_refused(tmp_path: Path) -> None:
    base = evaluate(in_voice, tmp_path / "base")
    model = ScriptedModel(lambda request: in_voice(request.messages))
    fields: dict[str, Any] = {"right_in_character": True, "character_reference": base.path}
    more = [*SUMS, {"question": "What is 50 + 7?", "answer": 57}]
    with pytest.raises(DataError, match="1 of 13 questions are missing"):
        evaluate(model, tmp_path / "a", task=more, **fields)
    with pytest.raises(DataError, match="1 of 4 personas are missing, such as 'nurse'"):
        evaluate(model, tmp_path / "b", personas=[*PERSONAS, Persona(id="nurse", text="a nurse")], **fields)
    other_golds = [*SUMS[:-1], {**SUMS[-1], "answer": 99}]
    with pytest.raises(DataError, match="1 of 12 questions are missing"):
        evaluate(model, tmp_path / "c", task=other_golds, **fields)
    assert model.requests == []


def test_a_strategy_that_does_not_ask_every_persona_is_refused() -> None:
    config = StabilityConfig(strategy="persona-search", right_in_character=True)
    setup = EvalSetup((), PersonaPool(personas=tuple(PERSONAS)), PromptFormat(str, "you_are", empty_system_prompt=False), 1, 0)
    with pytest.raises(ConfigError, match='strategy = "persona-search" does not ask every question'):
        check_right_in_character(config, setup)


def test_a_reference_of_another_command_is_refused(tmp_path: Path) -> None:
    base = evaluate(in_voice, tmp_path / "base")
    config = read_json(base.path / "config.json")
    (base.path / "config.json").write_text(json.dumps(config | {"stage": "fidelity"}))
    run = evaluate(in_voice, tmp_path / "run")
    with pytest.raises(DataError, match="is a run of permix fidelity"):
        run.right_in_character(base.path)


def test_the_records_are_enough(tmp_path: Path) -> None:
    """A run that was moved and has no metrics.json gives the same number."""
    run = evaluate(in_voice, tmp_path / "run")
    before = run.right_in_character()
    shutil.move(run.path, tmp_path / "moved")
    (tmp_path / "moved" / "metrics.json").unlink()
    assert measure_right_in_character(tmp_path / "moved") == before


def test_a_sequential_run_uses_the_questions_that_all_personas_have(tmp_path: Path) -> None:
    many = [{"question": f"What is {a} + 7?", "answer": a + 7} for a in range(40)]
    run = evaluate(in_voice, tmp_path / "run", task=many, budget=150, right_in_character=True)
    found = read_json(run.path / "metrics.json")["right_in_character"]
    assert (found["n_questions"], found["n_asked"]) == (30, 90)

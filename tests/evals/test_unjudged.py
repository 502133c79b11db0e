"""The record of what needs no judge: which answers it counts, over what it resamples, what it quotes."""

import json
from collections.abc import Mapping
from pathlib import Path

import pytest

from permix.evals.text_metrics import (
    PersonaAnswer,
    compute_text_metrics,
    measure_text_metrics,
    read_persona_texts,
    resampling_unit,
)
from permix.types import Cell, Completion, Message

TEXTS = {"sailor": "You are a retired sailor.", "nurse": "You are a strict nurse."}


def cell(persona: str | None, question: str, text: str | None, finish: str | None = "stop") -> Cell:
    system = [] if persona is None else [Message(role="system", content=TEXTS[persona])]
    done = text is not None and Completion.model_validate(
        {"text": text, "prompt_tokens": 1, "completion_tokens": 2, "finish": finish}
    )
    messages = (*system, Message(role="user", content=f"Why {question}?"))
    return Cell(persona_id=persona, question_id=question, seed=1, messages=messages, completion=done or None)


ASKED = {"persona_ids": ["sailor", "nurse"], "question_ids": ["q1", "q2"], "samples": 1}


def write(run: Path, cells: list[Cell], asked: Mapping[str, object] | None = None, **config: object) -> Path:
    run.mkdir()
    (run / "config.json").write_text(json.dumps({"stage": "fidelity", "seed": 3, "resamples": 100} | config))
    (run / "records.jsonl").write_text("".join(one.model_dump_json() + "\n" for one in cells))
    if asked is not None:
        (run / "grid.json").write_text(json.dumps(asked))
    return run


CELLS = [
    cell("sailor", "q1", "Aye, I sail."),
    cell("sailor", "q2", "As an AI, I do not sail.", "length"),
    cell("nurse", "q1", ""),
    cell("nurse", "q2", None),
    cell(None, "q1", "As an AI, I have no persona."),
]


def test_what_is_counted(tmp_path: Path) -> None:
    found = measure_text_metrics(write(tmp_path / "run", CELLS))
    assert (found.n_answers, found.n_asked, found.n_personas, found.resampling_unit) == (3, 4, 2, "questions")
    assert found.break_rate.value == pytest.approx(1 / 3)
    assert found.breaks_by_rule == {"machine": 1}
    assert [(hit.persona_id, hit.question_id, hit.before, hit.quote) for hit in found.break_examples] == [
        ("sailor", "q2", "", "As an AI")
    ]
    assert found.words.value == pytest.approx((3 + 7 + 0) / 3)
    assert found.truncated_share.value == pytest.approx(1 / 3)
    assert found.echo_own.value == pytest.approx(2 / 3)
    assert found.echo_others.value == 0.0
    assert found.distinct_1.value is None  # fewer words than are drawn: no score, not zero


def test_what_is_not_said_is_not_zero(tmp_path: Path) -> None:
    unknown = [cell("sailor", "q1", "Aye.", None), cell("nurse", "q1", "No.", None)]
    assert measure_text_metrics(write(tmp_path / "run", unknown)).truncated_share.value is None
    nothing = measure_text_metrics(write(tmp_path / "none", [cell("sailor", "q1", None)]))
    assert (nothing.break_rate.value, nothing.words.value, nothing.n_answers, nothing.n_asked) == (None, None, 0, 1)


def test_a_run_that_still_asks_less_or_has_no_record(tmp_path: Path) -> None:
    asked = {"persona_ids": ["sailor"], "question_ids": ["q1", "q3"], "samples": 1}
    found = measure_text_metrics(write(tmp_path / "run", CELLS, asked))
    assert (found.n_answers, found.n_asked, found.break_rate.value) == (1, 2, 0.0)


def test_personas_with_questions_of_their_own(tmp_path: Path) -> None:
    told = {"persona_texts": {"sailor": "an artificial intelligence that sails"}}
    run = write(tmp_path / "run", CELLS, told | ASKED, personagym={"path": "gym", "hub": None})
    assert read_persona_texts(run, CELLS) == {"sailor": "an artificial intelligence that sails", "nurse": TEXTS["nurse"]}
    found = measure_text_metrics(run)
    assert (found.resampling_unit, found.break_rate.value, found.break_rate.n) == ("personas", 0.0, 2)


@pytest.mark.parametrize(
    ("asked", "config", "whole"),
    [
        ({"questions_asked": [{"id": f"q{q}"} for q in range(7)]}, {"personagym": {"path": "gym"}}, 7),
        ({"turns_asked": {"sailor": ["q1", "q2"], "nurse": []}}, {"interview": {"turns": 6}}, 12),
        ({"samples": 3}, {}, 2 * 2 * 3),
        ({}, {"personagym": {"path": "gym"}}, 4),
    ],
)
def test_what_a_run_that_was_cut_short_still_owes_counts_as_asked(
    asked: dict[str, object], config: dict[str, object], whole: int, tmp_path: Path
) -> None:
    """The last is older than the questions in words: there only what is recorded is known."""
    found = measure_text_metrics(write(tmp_path / "run", CELLS, ASKED | asked, **config))
    assert (found.n_answers, found.n_asked) == (3, whole)


def test_the_unit() -> None:
    assert (
        resampling_unit({})
        == resampling_unit({"personagym": {"path": None, "hub": None}, "interview": {"turns": 0}})
        == "questions"
    )
    assert resampling_unit({"interview": {"turns": 3}}) == resampling_unit({"personagym": {"hub": "x"}}) == "personas"


def test_the_order_of_answers_changes_nothing_and_few_are_quoted() -> None:
    answers = [PersonaAnswer("sailor", f"q{q:02}", f"I sail {q} ships, as an AI.", False) for q in range(20)]
    found = compute_text_metrics(answers, TEXTS, resamples=100)
    assert compute_text_metrics(answers[::-1], TEXTS, resamples=100) == found
    assert found.break_rate.value == 1.0
    assert [hit.question_id for hit in found.break_examples] == ["q00", "q04", "q08", "q12", "q16"]
    assert found.echo.value is None  # there is nobody else to hold it against

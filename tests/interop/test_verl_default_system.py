"""Rollouts of verl under chat templates that insert a system message of their own, which has the words of a persona."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from permix.errors import DataError
from permix.interop.verl_dump import DumpedRollout, PromptIndex
from permix.pipelines.verl_import import import_verl_training
from permix.types import Message, PlanRow, digest
from tests.interop import verl_dumps as dumps
from tests.interop.verl_dumps import importing, read_lines

SUMS = {"What is 5 + 5?": "10", "What is 5 + 6?": "11", "What is 5 + 7?": "12"}

DEFAULTS = {
    "qwen2.5": ("You are Qwen, created by Alibaba Cloud. You are a helpful assistant.", "a helpful assistant"),
    "words after it": ("You are a helpful assistant. Think first.", "a helpful assistant"),
    "smollm2": ("You are a helpful AI assistant named SmolLM, trained by Hugging Face", "a helpful AI assistant named SmolLM"),
    "granite": ("Knowledge Cutoff Date: April 2024. You are Granite, developed by IBM. You are G.", "G"),
    "words in both": ("You are a poet. You are a nurse. You are kind.", "a nurse"),
}
"""The template's own system text, and a persona whose system message is in it."""


def messages(persona: str | None, question: str, dot: str = ".") -> tuple[Message, ...]:
    system = () if persona is None else (Message(role="system", content=f"You are {persona}{dot}"),)
    return (*system, Message(role="user", content=question))


def row(step: int, group: int, persona: str | None, question: str, *, rollouts: int = 1, dot: str = ".") -> PlanRow:
    return PlanRow(
        step=step, group=group, rollouts=rollouts, task="arithmetic", question_id=question, question_hash=digest(question),
        persona_id=persona, persona_tags=() if persona is None else ("kind",), seed=step, gold=SUMS[question],
        messages=messages(persona, question, dot),
    )  # fmt: skip


def sent(of: PlanRow, default: str) -> str:
    """What the template makes of a row's messages."""
    own = () if of.messages[0]["role"] == "system" else (Message(role="system", content=default),)
    return dumps.decoded((*own, *of.messages))


def rollout(of: PlanRow, default: str, *, number: int = 0, prompt: str = "p") -> DumpedRollout:
    return DumpedRollout("dump:1", sent(of, default), "10", of.gold, 1.0, True, f"{prompt}-{of.step}-{of.group}_{number}_0")


def learnt(rows: Sequence[PlanRow], asked: Sequence[DumpedRollout]) -> PromptIndex:
    index = PromptIndex(rows, "the plan")
    assert index.has_rivals
    index.learn(asked)
    return index


@pytest.mark.parametrize("name", DEFAULTS)
@pytest.mark.parametrize("others", [["a troll"], ["a troll", "a pirate"], []])
def test_each_answer_of_a_validation_is_that_of_its_row(name: str, others: list[str]) -> None:
    default, persona = DEFAULTS[name]
    dot = "" if name == "smollm2" else "."
    rows = [row(0, 0, who, question, dot=dot) for who in (None, persona, *others) for question in SUMS]
    rows = [one.model_copy(update={"group": place}) for place, one in enumerate(rows)]
    asked = [rollout(one, default) for one in rows]
    for order in (asked, asked[::-1]):
        index = learnt(rows, order)
        assert [index.find_row(one, 0) for one in asked] == rows


@pytest.mark.parametrize("name", DEFAULTS)
def test_each_rollout_of_a_training_is_that_of_its_row(name: str) -> None:
    """The questions come again in other steps, under another persona or none."""
    default, persona = DEFAULTS[name]
    dot = "" if name == "smollm2" else "."
    people = [None, persona, "a troll"]
    rows = [
        row(step, group, people[(step + group) % 3], question, dot=dot)
        for step in range(3)
        for group, question in enumerate(SUMS)
    ]
    asked = [rollout(one, default) for one in rows]
    index = learnt(rows, asked)
    assert [index.find_row(one, one_row.step) for one, one_row in zip(asked, rows, strict=True)] == rows
    # Also where verl takes a row of another step: the text around the messages says it.
    assert [index.find_row(one, 9) for one in asked] == rows


def test_in_the_first_steps_the_step_says_what_the_texts_do_not() -> None:
    """Only prompts without a persona are dumped yet, so that nothing shows what stands around one."""
    default, persona = DEFAULTS["qwen2.5"]
    rows = [row(step, 0, who, question) for step, who in enumerate((None, persona)) for question in list(SUMS)[:1]]
    index = learnt(rows, [rollout(rows[0], default)])
    assert index.find_row(rollout(rows[0], default), 0) == rows[0]
    index = learnt(rows, [rollout(rows[1], default)])
    assert index.find_row(rollout(rows[1], default), 1) == rows[1]


EXACT = "You are a helpful assistant."


def test_where_the_template_inserts_exactly_the_persona_the_step_decides() -> None:
    rows = [row(step, 0, who, question) for step, who in enumerate((None, "a helpful assistant", "a troll")) for question in SUMS]
    rows = [one.model_copy(update={"group": place % 3}) for place, one in enumerate(rows)]
    asked = [rollout(one, EXACT) for one in rows]
    index = learnt(rows, asked)
    assert [index.find_row(one, one_row.step) for one, one_row in zip(asked, rows, strict=True)] == rows


def test_where_the_rollouts_of_a_group_differ_their_number_decides() -> None:
    people = [None, "a helpful assistant", "a troll", None]
    rows = [row(0, 0, who, "What is 5 + 5?") for who in people]
    asked = [rollout(one, EXACT, number=number) for number, one in enumerate(rows)]
    index = learnt(rows, asked)
    assert [index.find_row(one, 0).persona_id for one in asked] == people


def test_a_validation_whose_prompts_are_the_same_is_refused() -> None:
    rows = [row(0, 0, who, question) for who in (None, "a helpful assistant", "a troll") for question in SUMS]
    rows = [one.model_copy(update={"group": place}) for place, one in enumerate(rows)]
    asked = [rollout(one, EXACT) for one in rows]
    index = learnt(rows, asked)
    with pytest.raises(DataError, match=r"2 prompts of the plan .*they cannot be told apart: where no system message is sent"):
        index.find_row(asked[0], 0)


def test_an_import_has_the_baseline_and_the_persona_of_a_validation(tmp_path: Path) -> None:
    default, persona = DEFAULTS["qwen2.5"]
    dev = [row(0, 0, who, question) for who in (None, persona, "a troll") for question in SUMS]
    dev = [one.model_copy(update={"group": place}) for place, one in enumerate(dev)]
    dumps.write_dump(tmp_path)
    dumps.write_export(tmp_path, dev=dev)
    lines: list[dict[str, Any]] = [
        dumps.line(0, one, 0, float(one.persona_id is None)) | {"input": sent(one, default)} for one in dev
    ]
    dumps.write_dump(tmp_path, {0: lines}, "validation")
    config = importing(tmp_path, plan=str(tmp_path / "export"), validation=str(tmp_path / "validation"))
    assert config.verl is not None
    import_verl_training(config, config.verl)
    (metrics,) = (tmp_path / "run" / "dev_eval").glob("*/stability/metrics.json")
    found = json.loads(metrics.read_text())
    assert found["baseline"]["value"] == 1.0
    assert {one["id"]: one["accuracy"]["value"] for one in found["personas"]} == {persona: 0.0, "a troll": 0.0}
    records = read_lines(metrics.with_name("records.jsonl"))
    assert {(line["persona_id"], line["sample"]) for line in records} == {(None, 0), (persona, 0), ("a troll", 0)}

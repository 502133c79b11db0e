"""Plans that draw templates and contexts: by weight and position alone, with recorded turns, and as files."""

import dataclasses
import json
from collections import Counter
from collections.abc import Mapping
from itertools import pairwise
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from permix.config import OptimConfig, PersonasConfig, PlanConfig, RolloutPlanConfig, TrainConfig, build_config
from permix.errors import ConfigError, DataError
from permix.evals.open_ended import run_open_ended
from permix.interop.engine_export import PlanExport, _json_values, export_identity
from permix.personas.recorded_turns import RecordedTurns
from permix.plan import (
    PersonaSampler,
    Plan,
    PlanBuilder,
    compile_plan,
    compile_plan_from_config,
    describe_plan,
    draw_name,
    read_plan,
    write_plan,
)
from permix.prompts import template_id
from permix.training.compatibility import check_plan
from permix.training.sft_data import teacher_cells
from permix.types import Persona, Question, RecordedTurn
from tests.sample_runs import fidelity_config, write_pool
from tests.servers import openai_server

QUESTIONS = tuple(Question(id=f"q{n}", task="arithmetic", text=f"What is {n} + {n}?", gold=str(2 * n)) for n in range(10))
PERSONAS = (Persona(id="sailor", text="a sailor"), Persona(id="poet", text="a poet"))
TURNS = {one.id: tuple(RecordedTurn(f"Question {n}?", f"{one.id} {n}.") for n in range(6)) for one in PERSONAS}
CONTEXTS = {"system": 2.0, "user": 1.0, "turns-2": 1.0}


def plan_of(mix: float = 0.8, steps: int = 10, **options: Any) -> Plan:
    values = {"mix": mix, "steps": steps, "questions_per_step": 3, "group_size": 4} | options
    if "turns" in str(options):
        values |= {"context_turns": "turns"}
    config = RolloutPlanConfig.model_validate(values)
    turns = RecordedTurns(Path("turns"), TURNS, {}, is_conversation=False)
    sampler = PersonaSampler(PERSONAS, (1.0, 1.0))
    return compile_plan(PlanBuilder(QUESTIONS, lambda one: one.text, sampler, config, PersonasConfig(split="train"), turns))


def test_a_plan_without_the_fields_keeps_its_hash_and_its_columns(tmp_path: Path) -> None:
    plan = plan_of(steps=2)
    assert plan.hash == "26cbf7fd4ea044b0"  # as before plans could draw templates and contexts
    assert not {"template", "context"} & set(json.loads(plan.rows[0].model_dump_json()))
    write_plan(plan, tmp_path / "plan.parquet")
    assert not {"template", "context"} & set(pq.ParquetFile(tmp_path / "plan.parquet").schema_arrow.names)
    assert not {"templates", "contexts"} & set(describe_plan(plan))


def test_drawing_contexts_changes_no_persona_no_question_and_no_seed() -> None:
    plain, drawn = plan_of(steps=30), plan_of(steps=30, contexts=CONTEXTS, templates={"you_are": 1, "adopt": 1})
    for one, two in zip(plain.rows, drawn.rows, strict=True):
        assert (one.persona_id, one.question_id, one.seed, one.gold) == (two.persona_id, two.question_id, two.seed, two.gold)
        if one.persona_id is None:
            assert (two.messages, two.context, two.template) == (one.messages, "", "")
        if (two.context, two.template) == ("system", "you_are"):
            assert two.messages == one.messages


def test_plans_that_differ_in_mix_keep_the_templates_and_contexts_of_their_rows() -> None:
    options = {"contexts": CONTEXTS, "templates": {"you_are": 1, "adopt": 1}}
    plans = [plan_of(mix=mix, steps=30, **options) for mix in (0.0, 0.3, 0.6, 1.0)]
    for smaller, larger in pairwise(plans):
        for one, two in zip(smaller.rows, larger.rows, strict=True):
            if one.persona_id is not None:
                assert one == two


def test_contexts_and_templates_are_drawn_by_weight() -> None:
    plan = plan_of(mix=1, steps=1000, contexts={"system": 6, "user": 3, "in-character": 1, "turns-1": 0})
    found = Counter(row.context for row in plan.rows)
    for context, share in (("system", 0.6), ("user", 0.3), ("in-character", 0.1)):
        assert found[context] / 3000 == pytest.approx(share, abs=4 * (share * (1 - share) / 3000) ** 0.5)
    assert "turns-1" not in found
    assert {row.template for row in plan.rows} == {""}


def test_the_order_of_the_names_does_not_matter() -> None:
    one, two = {"a": 1.0, "b": 2.0}, {"b": 2.0, "a": 1.0}
    assert [draw_name(seed, one) for seed in range(50)] == [draw_name(seed, two) for seed in range(50)]
    named, written = {"adopt": 1, "you_are": 2}, {"You are {persona}.": 2, "adopt": 1}
    assert plan_of(templates=named).rows == plan_of(templates=written).rows
    assert draw_name(3, {}) == ""
    assert draw_name(3, {"a": 0.0, "b": 1e-9}) == "b"


def test_rows_hold_the_messages_of_their_context() -> None:
    own = "Be {persona}!"
    plan = plan_of(mix=1, steps=20, contexts=CONTEXTS, templates={own: 1})
    seen: dict[str, Any] = {row.context: row for row in plan.rows}
    assert set(seen) == set(CONTEXTS)
    assert {row.template for row in plan.rows} == {template_id(own)}
    for row in plan.rows:
        who, asked = f"Be a {row.persona_id}!", f"What is {row.question_id[1:]} + {row.question_id[1:]}?"
        said = [(message["role"], message["content"]) for message in row.messages]
        if row.context == "system":
            assert said == [("system", who), ("user", asked)]
        elif row.context == "user":
            assert said == [("user", f"{who}\n\n{asked}")]
        else:
            assert [role for role, _ in said] == ["system", "user", "assistant", "user", "assistant", "user"]
            assert (said[0], said[-1]) == (("system", who), ("user", asked))
            pairs = {RecordedTurn(said[place][1], said[place + 1][1]) for place in (1, 3)}
            assert len(pairs) == 2
            assert pairs <= set(TURNS[str(row.persona_id)])
    turns = {row.messages[1]["content"] for row in plan.rows if row.context == "turns-2"}
    assert len(turns) > 1  # each row draws its own turns


def test_a_file_holds_templates_and_contexts(tmp_path: Path) -> None:
    plan = plan_of(contexts=CONTEXTS, templates={"you_are": 1, "adopt": 1})
    write_plan(plan, tmp_path / "plan.parquet")
    found = read_plan(tmp_path / "plan.parquet")
    assert found.rows == plan.rows
    assert found.hash == plan.hash
    facts = describe_plan(found)
    counts = Counter(row.context for row in plan.rows if row.context)
    assert facts["contexts"] == ", ".join(f"{name} {4 * n}" for name, n in sorted(counts.items())) + " rollouts"
    assert facts["templates"].startswith("adopt ")
    only = plan_of(contexts={"user": 1})
    write_plan(only, tmp_path / "one.parquet")
    assert "template" not in pq.ParquetFile(tmp_path / "one.parquet").schema_arrow.names
    assert read_plan(tmp_path / "one.parquet").rows == only.rows


def test_the_teacher_is_asked_in_the_row_s_context() -> None:
    plan = plan_of(mix=1, contexts=CONTEXTS)
    cells = [(row, cell) for row, asked in teacher_cells(plan) for cell in asked]
    assert all((cell.context, cell.messages) == (row.context, row.messages) for row, cell in cells)
    assert len({cell.key for _, cell in cells}) == len(cells)


def test_a_kl_reference_without_persona_does_not_go_with_contexts() -> None:
    config = OptimConfig(beta=0.1, kl_reference_prompt="no-persona")
    check_plan(plan_of(contexts={"system": 1}), config)
    with pytest.raises(ConfigError, match="has a row in context 'in-character'"):
        check_plan(plan_of(mix=1, contexts={"in-character": 1}), config)


def speak(body: Mapping[str, Any], nth: int, headers: Mapping[str, str]) -> str:
    return f"{body['messages'][0]['content']} {body['messages'][-1]['content']}"


def plan_config(folder: Path, **plan: Any) -> PlanConfig:
    values = {
        "stage": "plan",
        "task": {"name": "arithmetic", "levels": ["add-1"], "n": 20},
        "personas": {"pool": str(write_pool(folder / "pool.toml", "clerk", "sailor", "troll")), "split": "heldout"},
        "plan": {"mix": 1, "steps": 4, "questions_per_step": 3, "group_size": 2} | plan,
    }
    return build_config(PlanConfig, values, source="test")


def test_a_plan_takes_its_turns_from_a_fidelity_run(tmp_path: Path) -> None:
    with openai_server(speak) as server:
        turns = fidelity_config(tmp_path, server.base_url, out=str(tmp_path / "turns"))
        run_open_ended(turns)
    config = plan_config(tmp_path, contexts={"turns-1": 1}, context_turns=str(turns.out))
    plan = compile_plan_from_config(config.task, config.personas, config.plan)
    for row in plan.rows:
        assert row.messages[2]["content"] == f"{row.messages[0]['content']} {row.messages[1]['content']}"
    assert len(plan.metadata["context_turns"]) == 16
    records = turns.out / "records.jsonl"
    kept = [line for line in records.read_text().splitlines(keepends=True) if json.loads(line)["persona_id"] != "troll"]
    records.write_text("".join(kept))
    with pytest.raises(
        DataError, match=r"plan\.context_turns = .*turns-1 needs 1 recorded answers of each persona; 1 of 3 .*troll"
    ):
        compile_plan_from_config(config.task, config.personas, config.plan)


@pytest.mark.parametrize(
    ("plan", "personas", "said"),
    [
        ({"contexts": {"sistem": 1}}, {}, "plan.contexts = 'sistem': give system, user"),
        ({"contexts": {"user": -1}}, {}, "contexts = 'user': weight -1.0: must be a finite number, 0 or above"),
        ({"contexts": {"user": 0}}, {}, "contexts: the weights add up to 0"),
        ({"contexts": {"turns-2": 1}}, {}, "needs context_turns, a fidelity run of the base model"),
        ({"context_turns": "runs/x"}, {}, "no context of contexts has turns"),
        ({"templates": {"adpot": 1}}, {}, "plan.templates = 'adpot': give one of you_are"),
        ({"templates": {"you_are": 1, "You are {persona}.": 1}}, {}, "has the same text as another one"),
        ({"templates": {"you_are": 1}}, {"template": "adopt"}, "plan.templates replace it"),
        ({"templates": {"in_question": 1}, "contexts": {"system": 1}}, {}, "plan.contexts: the template 'in_question'"),
        ({"contexts": {"system": 1}}, {"template": "in_question"}, "plan.contexts: the template 'in_question'"),
    ],
)
def test_what_cannot_be_drawn_is_refused(plan: dict[str, Any], personas: dict[str, Any], said: str) -> None:
    values = {"stage": "plan", "task": {"name": "arithmetic", "n": 20}, "plan": plan | {"steps": 2}, "personas": personas}

    def build() -> Plan:
        config = build_config(PlanConfig, values, source="test")
        return compile_plan_from_config(config.task, config.personas, config.plan)

    with pytest.raises(ConfigError) as caught:
        build()
    assert said in str(caught.value)


def test_an_export_of_an_earlier_version_is_the_same_export() -> None:
    plain = PlanExport(plan=Plan((), {}), config=TrainConfig(), model="m")
    assert export_identity("verl", plain)["export"] == "020d5db0acd1c3c9"
    drawn = RolloutPlanConfig.model_validate({"contexts": {"turns-1": 1}, "context_turns": "runs/turns"})
    other = dataclasses.replace(plain, config=TrainConfig(plan=drawn))
    assert export_identity("verl", other)["export"] != "020d5db0acd1c3c9"
    assert json.loads(json.dumps(_json_values(other.settings)))["plan.context_turns"] == "runs/turns"

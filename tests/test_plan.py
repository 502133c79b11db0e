"""The plan: the same on every machine, the same questions whatever the mix, and refused when it is not what was hashed."""

import json
import os
import random
from collections import Counter
from itertools import pairwise
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from permix.config import PersonasConfig, RolloutPlanConfig, TaskConfig, TrainMethod
from permix.errors import ConfigError, DataError
from permix.plan import (
    PersonaSampler,
    Plan,
    PlanBuilder,
    compile_plan,
    compile_plan_from_config,
    describe_plan,
    load_training_plan,
    read_plan,
    write_plan,
)
from permix.types import Message, Persona, PlanRow, Question

QUESTIONS = tuple(Question(id=f"q{n}", task="arithmetic", text=f"What is {n} + {n}?", gold=str(2 * n)) for n in range(10))
SAILOR = Persona(id="sailor", text="a sailor", tags=("character",))
TUTOR = Persona(id="tutor", text="a tutor", tags=("expert",))
POET = Persona(id="poet", text="a poet", tags=("character",))
EVEN = PersonaSampler((SAILOR, TUTOR, POET), (1.0, 1.0, 1.0))


def compiled(config: RolloutPlanConfig, mixture: PersonaSampler = EVEN, questions: tuple[Question, ...] = QUESTIONS) -> Plan:
    return compile_plan(PlanBuilder(questions, lambda question: question.text, mixture, config, PersonasConfig(split="train")))


def plan_of(mix: float = 0.8, steps: int = 2, **options: object) -> Plan:
    values = {"mix": mix, "steps": steps, "questions_per_step": 3, "group_size": 4} | options
    return compiled(RolloutPlanConfig.model_validate(values))


def test_the_hash_is_the_same_on_every_machine() -> None:
    assert plan_of().hash == "92dbd898819d6a86"


def test_a_small_plan_read_by_eye() -> None:
    plan = plan_of(mix=0.5)
    seen = [(row.step, row.group, row.rollouts, row.question_id, row.persona_id) for row in plan.rows]
    assert seen == [
        (0, 0, 4, "q7", None),
        (0, 1, 4, "q8", "tutor"),
        (0, 2, 4, "q5", None),
        (1, 0, 4, "q1", None),
        (1, 1, 4, "q9", "sailor"),
        (1, 2, 4, "q3", "tutor"),
    ]
    row = next(row for row in plan.rows if row.persona_id == "sailor")
    text = f"What is {row.question_id[1:]} + {row.question_id[1:]}?"
    assert row.messages == (Message(role="system", content="You are a sailor."), Message(role="user", content=text))
    assert row.gold == str(2 * int(row.question_id[1:]))
    assert row.persona_tags == ("character",)
    alone = next(row for row in plan.rows if row.persona_id is None)
    assert [message["role"] for message in alone.messages] == ["user"]
    assert (plan.steps, plan.groups_per_step, plan.group_size) == (2, 3, 4)


def test_the_hash_covers_every_field_of_every_row() -> None:
    plan = plan_of()
    changes = {
        "step": 9, "group": 9, "rollouts": 9, "task": "gsm8k", "question_id": "x", "question_hash": "x", "persona_id": "x",
        "persona_tags": ("x",), "seed": 9, "messages": (Message(role="user", content="x"),), "gold": "x",
        "spare": True,
        "solution": "x", "template": "x", "context": "x",
    }  # fmt: skip
    assert changes.keys() == PlanRow.model_fields.keys()
    for field, value in changes.items():
        other = (*plan.rows[:-1], plan.rows[-1].model_copy(update={field: value}))
        assert Plan(other, plan.metadata).hash != plan.hash, field
    assert Plan(plan.rows[::-1], {}).hash != plan.hash


def test_spare_groups_ask_other_questions_and_leave_the_rest_as_it_was() -> None:
    plain, spared = plan_of(steps=12), plan_of(steps=12, dynamic_sampling_groups=2)
    assert tuple(row for row in spared.rows if not row.spare) == plain.rows
    assert (spared.groups_per_step, spared.dynamic_sampling_groups, spared.group_size) == (3, 2, 4)
    for step in range(12):
        rows = [row for row in spared.rows if row.step == step]
        assert [(row.group, row.spare) for row in rows] == [(0, False), (1, False), (2, False), (3, True), (4, True)]
        assert len({row.question_id for row in rows}) == 5
    assert len({row.seed for row in spared.rows}) == len(spared.rows)
    assert "96 of them spare" in describe_plan(spared)["rollouts"]
    with pytest.raises(
        ConfigError, match=r"plan.questions_per_step = 3 and plan.dynamic_sampling_groups = 8: the task has only 10 questions"
    ):
        plan_of(dynamic_sampling_groups=8)


def test_plans_that_differ_in_mix_ask_the_same_questions_and_keep_their_personas() -> None:
    plans = [plan_of(mix=mix, steps=30) for mix in (0.0, 0.3, 0.6, 1.0)]
    for smaller, larger in pairwise(plans):
        for one, two in zip(smaller.rows, larger.rows, strict=True):
            assert (one.question_id, one.gold, one.seed) == (two.question_id, two.gold, two.seed)
            assert one.persona_id in (None, two.persona_id)
    assert all(row.persona_id is None for row in plans[0].rows)
    assert all(row.persona_id is not None for row in plans[-1].rows)


def test_the_share_without_persona_is_one_minus_mix() -> None:
    plan = plan_of(mix=0.7, steps=1000)
    without = sum(row.persona_id is None for row in plan.rows)
    assert without / 3000 == pytest.approx(0.3, abs=4 * (0.3 * 0.7 / 3000) ** 0.5)


def test_personas_are_drawn_by_weight() -> None:
    plan = compiled(
        RolloutPlanConfig(mix=1, steps=1000, questions_per_step=3), PersonaSampler((SAILOR, TUTOR, POET), (6.0, 3.0, 1.0))
    )
    drawn = Counter(row.persona_id for row in plan.rows)
    for persona, share in (("sailor", 0.6), ("tutor", 0.3), ("poet", 0.1)):
        assert drawn[persona] / 3000 == pytest.approx(share, abs=4 * (share * (1 - share) / 3000) ** 0.5)


def test_tag_weights_reach_the_plan() -> None:
    personas = PersonasConfig(split="train", include=("expert", "character"))
    plan = compile_plan_from_config(
        TaskConfig(split="train", n=50), personas, RolloutPlanConfig(mix=1, steps=20, tag_weights={"expert": 0.001})
    )
    experts = sum("expert" in row.persona_tags for row in plan.rows)
    assert experts <= 3 < len(plan.rows) - experts


def test_scope_rollout_gives_each_rollout_its_own_persona_and_the_group_one_question() -> None:
    plan = plan_of(mix=0.8, steps=20, scope="rollout")
    assert {row.rollouts for row in plan.rows} == {1}
    assert len(plan.rows) == 20 * 3 * 4
    assert plan.group_size == 4
    groups = [plan.rows[start : start + 4] for start in range(0, len(plan.rows), 4)]
    for group in groups:
        assert len({(row.step, row.group, row.question_id) for row in group}) == 1
        assert len({row.seed for row in group}) == 4
    assert max(len({row.persona_id for row in group}) for group in groups) == 4
    assert [group[0].question_id for group in groups] == [row.question_id for row in plan_of(steps=20).rows]


def test_every_question_once_in_a_pass_and_never_twice_in_a_step() -> None:
    plan = compiled(RolloutPlanConfig(steps=15, questions_per_step=5))
    for start in range(0, 75, 10):
        asked = Counter(row.question_id for row in plan.rows[start : start + 10])
        assert max(asked.values()) == 1
    first, second = ([row.question_id for row in plan.rows[start : start + 10]] for start in (0, 10))
    assert first != second


def test_a_pass_leaves_what_does_not_fill_a_step_to_the_next() -> None:
    plan = compiled(RolloutPlanConfig(steps=40, questions_per_step=4))
    for step in range(40):
        assert len({row.question_id for row in plan.rows if row.step == step}) == 4
    assert {row.question_id for row in plan.rows} == {question.id for question in QUESTIONS}


def test_the_order_of_the_questions_depends_on_their_content_and_not_on_their_file() -> None:
    config = RolloutPlanConfig(steps=2, questions_per_step=3, group_size=4)
    assert compiled(config, questions=QUESTIONS[::-1]).rows == compiled(config).rows
    assert compiled(config.model_copy(update={"seed": 1})).rows != compiled(config).rows


def test_seeds_of_rows_differ() -> None:
    plan = plan_of(steps=50, scope="rollout")
    assert len({row.seed for row in plan.rows}) == len(plan.rows)


def test_too_few_questions_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"plan.questions_per_step = 11: the task has only 10 questions"):
        compiled(RolloutPlanConfig(questions_per_step=11))


def test_a_mix_without_personas_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"plan.mix = 0.8: there are no personas"):
        compiled(RolloutPlanConfig(questions_per_step=3), PersonaSampler((), ()))
    assert compiled(RolloutPlanConfig(mix=0, questions_per_step=3), PersonaSampler((), ())).rows


def test_round_trip(tmp_path: Path) -> None:
    plan = plan_of(scope="rollout")
    write_plan(plan, tmp_path / "folder" / "plan.parquet")
    back = read_plan(tmp_path / "folder" / "plan.parquet")
    assert back.rows == plan.rows
    assert back.hash == plan.hash
    assert back.metadata == {**plan.metadata, "hash": plan.hash}
    assert [path.name for path in (tmp_path / "folder").iterdir()] == ["plan.parquet"]


def test_hostile_text_survives_the_round_trip(tmp_path: Path) -> None:
    odd = Question(id="odd", task="arithmetic", text='{persona} "quoted" \\ \x00 \u2028 naïve {x}', gold="½")
    plan = compiled(RolloutPlanConfig(steps=1, questions_per_step=1, group_size=2), questions=(odd,))
    write_plan(plan, tmp_path / "plan.parquet")
    assert read_plan(tmp_path / "plan.parquet").rows == plan.rows


def test_an_edited_plan_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "plan.parquet"
    write_plan(plan_of(), path)
    table = pq.read_table(path)
    golds = table.column("gold").to_pylist()
    edited = table.set_column(table.column_names.index("gold"), "gold", pa.array(["0", *golds[1:]]))
    pq.write_table(edited.replace_schema_metadata(table.schema.metadata), path)
    with pytest.raises(DataError, match="the file was edited or cut short"):
        read_plan(path)
    pq.write_table(table.slice(0, 3), path)
    with pytest.raises(DataError, match="the file was edited or cut short"):
        read_plan(path)
    pq.write_table(table.slice(0, 0), path)
    with pytest.raises(DataError, match="has no rows"):
        read_plan(path)


def test_a_plan_of_an_earlier_format_says_how_to_make_it_anew(tmp_path: Path) -> None:
    path = tmp_path / "plan.parquet"
    write_plan(plan_of(), path)
    table = pq.read_table(path).drop_columns(["solution"])
    pq.write_table(table.replace_schema_metadata({"permix": json.dumps({"format": "permix-plan-1", "hash": "x"})}), path)
    with pytest.raises(DataError, match=r"has format permix-plan-1, not permix-plan-3; make it again with `permix plan`"):
        read_plan(path)


def test_a_plan_that_no_method_is_named_for_has_permixs_mix() -> None:
    plan = compiled(RolloutPlanConfig(steps=2, questions_per_step=3, group_size=4))
    assert plan.rows == plan_of(mix=0.8).rows
    assert plan.metadata["plan"]["mix"] == 0.8


@pytest.mark.parametrize("method", ["rlvr", "sft"])
def test_a_plan_file_with_personas_is_refused_for_a_method_without(tmp_path: Path, method: TrainMethod) -> None:
    path = tmp_path / "plan.parquet"
    write_plan(plan_of(mix=1.0), path)
    with pytest.raises(ConfigError, match=rf'the first, \w+, in step 0\), but method = "{method}" uses none'):
        load_training_plan(path, method)
    write_plan(plan_of(mix=0.0), path)
    assert load_training_plan(path, method).rows == plan_of(mix=0.0).rows
    for mixing in ("permix", "sft-personas", "seqkd"):
        assert load_training_plan(path, mixing).rows


@pytest.mark.parametrize("content", [b"", b"not parquet", b"PAR1" + bytes(100) + b"PAR1"])
def test_a_file_that_is_no_plan_is_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "plan.parquet"
    path.write_bytes(content)
    with pytest.raises(DataError, match="not a plan file"):
        read_plan(path)


def test_another_parquet_file_is_refused(tmp_path: Path) -> None:
    pq.write_table(pa.table({"x": [1]}), tmp_path / "other.parquet")
    with pytest.raises(DataError, match="not a plan file"):
        read_plan(tmp_path / "other.parquet")


@pytest.mark.parametrize(
    ("about", "message"),
    [
        ({}, "plan: does not say which task its questions are of; make it again with `permix plan`"),
        ({"task": {"name": 3}}, "plan: the task that it names is none: "),
        ({"task": None}, "plan: the task that it names is none: "),
    ],
)
def test_a_plan_of_programs_that_does_not_say_where_their_tests_are_is_refused(
    tmp_path: Path, about: dict[str, object], message: str
) -> None:
    rows = tuple(row.model_copy(update={"task": "code"}) for row in plan_of(mix=0.0).rows)
    write_plan(Plan(rows, about), tmp_path / "plan.parquet")
    with pytest.raises(DataError, match=message):
        load_training_plan(tmp_path / "plan.parquet", "rlvr")


def test_a_plan_that_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no such file; make one with `permix plan`"):
        read_plan(tmp_path / "plan.parquet")
    with pytest.raises(DataError, match="plan"):
        read_plan(tmp_path)


def test_describe_counts_rollouts() -> None:
    facts = describe_plan(plan_of(mix=1.0))
    assert facts["rollouts"] == "24 in groups of 4"
    assert facts["steps"] == "2"
    assert facts["without persona"] == "0.0% of rollouts"
    assert describe_plan(plan_of(mix=0.0))["without persona"] == "100.0% of rollouts"
    assert describe_plan(plan_of(mix=0.0))["personas"] == "0"


# A plan of a stranger


def altered(path: Path, **columns: pa.Array) -> None:
    """A plan on disk, with these columns replaced."""
    write_plan(plan_of(), path)
    table = pq.read_table(path)
    for name, column in columns.items():
        place = table.column_names.index(name) if name in table.column_names else table.num_columns
        table = (table.remove_column(place) if name in table.column_names else table).add_column(place, name, column)
    pq.write_table(table, path)


N_ROWS = len(plan_of().rows)


@pytest.mark.parametrize(
    ("columns", "words"),
    [
        ({"step": pa.array(["0"] * N_ROWS)}, "column 'step' has type string; valid: int32"),
        ({"seed": pa.array([1.5] * N_ROWS)}, "column 'seed' has type double; valid: int64"),
        ({"messages": pa.array([b"\x80\x04N."] * N_ROWS)}, "column 'messages' has type binary; valid: string"),
        ({"persona_tags": pa.array([{"a": 1}] * N_ROWS)}, "column 'persona_tags' has type struct"),
        ({"more": pa.array([b"\x80\x04N."] * N_ROWS)}, "column 'more' has type binary; valid: no such column"),
        ({"messages": pa.array(["[" * 100_000] * N_ROWS)}, "not a plan file"),
        ({"messages": pa.array(["9" * 10_000] * N_ROWS)}, "not a plan file"),
        ({"messages": pa.array(["NaN"] * N_ROWS)}, "not a plan file"),
        ({"messages": pa.array([None] * N_ROWS, pa.string())}, "not a plan file"),
        ({"step": pa.array([-1] * N_ROWS, pa.int32())}, "not a plan file"),
        ({"rollouts": pa.array([0] * N_ROWS, pa.int32())}, "not a plan file"),
        ({"gold": pa.array(["\x1b[2J"] * N_ROWS)}, "the file was edited or cut short"),
        ({"task": pa.array(["../../x\x1b"] * N_ROWS)}, r"its task '../../x\x1b' is unknown; known: arithmetic"),
    ],
)
def test_wrong_columns_are_named(columns: dict[str, pa.Array], words: str, tmp_path: Path) -> None:
    altered(tmp_path / "plan.parquet", **columns)
    with pytest.raises(DataError) as caught:
        read_plan(tmp_path / "plan.parquet")
    assert words in str(caught.value)
    assert len(str(caught.value)) < 700


@pytest.mark.parametrize(
    "about", ["[]", "{}", "3", "[" * 100_000, '{"format": ["x"]}', '{"format": "permix-plan-3", "hash": {}}', "\x00"]
)
def test_metadata_of_all_kinds(about: str, tmp_path: Path) -> None:
    path = tmp_path / "plan.parquet"
    write_plan(plan_of(), path)
    pq.write_table(pq.read_table(path).replace_schema_metadata({"permix": about}), path)
    with pytest.raises(DataError, match="plan "):
        read_plan(path)


@pytest.mark.parametrize("seed", range(40))
def test_a_damaged_plan_is_refused_or_the_same(seed: int, tmp_path: Path) -> None:
    path, rng = tmp_path / "plan.parquet", random.Random(seed)
    write_plan(plan_of(), path)
    content = bytearray(path.read_bytes())
    for _ in range(rng.choice((1, 20, 400))):
        content[rng.randrange(len(content))] = rng.randrange(256)
    path.write_bytes(content[: rng.choice((len(content), rng.randrange(len(content))))])
    try:
        rows = read_plan(path).rows
    except DataError:
        return
    assert rows == plan_of().rows


def test_a_small_file_of_many_rows_is_not_read_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "plan.parquet"
    write_plan(plan_of(), path)
    row = pq.read_table(path).slice(0, 1)
    big = pa.table(
        {name: pa.array(row.column(name).to_pylist() * 300_000, row.schema.field(name).type) for name in row.column_names}
    )
    pq.write_table(big.replace_schema_metadata(row.schema.metadata), path)
    assert path.stat().st_size < 1_000_000
    monkeypatch.setattr("permix.plan.MAX_PLAN_BYTES", 1_000_000)
    with pytest.raises(DataError, match=r"has more than 0\.001 GB of rows; give a plan of fewer steps"):
        read_plan(path)


def test_what_is_no_regular_file_is_not_opened(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "plan.parquet")
    with pytest.raises(DataError, match="not a file"):
        read_plan(tmp_path / "plan.parquet")

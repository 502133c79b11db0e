"""Distillation: samples have the plan's seeds and personas, the right ones are learnt, and what did not come is owed."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from permix.config import OptimConfig, PersonasConfig, RolloutPlanConfig, TrainConfig, build_config
from permix.errors import ConfigError, IncompleteRunError, PermixError
from permix.inference.addresses import read_addresses
from permix.inference.openai import OpenAIModel
from permix.pipelines.train import FORMER_IDENTITY_KEYS
from permix.plan import PersonaSampler, Plan, PlanBuilder, compile_plan
from permix.storage.files import read_json
from permix.storage.run_dir import RunDir
from permix.training.sft_data import (
    SFTDataset,
    TeacherRequests,
    select_teacher_samples,
    teacher_cells,
    teacher_config,
    teacher_examples,
    teacher_identity,
)
from permix.types import Cell, CellKey, Completion, Persona, Question, Verdict, seed_from
from permix.verification.math_verifier import check_answer
from tests.sample_runs import endpoint, former_fingerprint
from tests.servers import Action, OpenAIServer, Reply, error, listing, openai_server
from tests.training.scoring import judge_arithmetic_by

SAILOR = PersonaSampler((Persona(id="sailor", text="a sailor"),), (1.0,))
REPLIES = ("6", "It is 6.", "7", "6", "8", "9", "10", "11")
"""To 3 + 3: right, right, wrong, right again in the same words; to 4 + 4 right once."""


@pytest.fixture(autouse=True)
def _environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)


def plan_of(*numbers: int, steps: int = 2, mix: float = 1.0, group_size: int = 4) -> Plan:
    """A step asks one of n + n, for these n."""
    questions = [Question(id=f"q{n}", task="arithmetic", text=f"What is {n} + {n}?", gold=str(2 * n)) for n in numbers]
    config = RolloutPlanConfig(mix=mix, steps=steps, questions_per_step=1, group_size=group_size)
    return compile_plan(PlanBuilder(questions, lambda question: question.text, SAILOR, config, PersonasConfig(split="train")))


PLAN = plan_of(3, 4)


def stage(out: Path, base_url: str, **teacher: Any) -> TrainConfig:
    values = {
        "out": str(out), "method": "seqkd", "teacher": endpoint(base_url) | teacher,
        "train": {"temperature": 0.7, "top_p": 0.9, "max_new_tokens": 20},
    }  # fmt: skip
    return build_config(TrainConfig, values, source="test")


def ask(config: TrainConfig, plan: Plan = PLAN) -> SFTDataset:
    with RunDir.open(config.out, config, {}) as run:
        return teacher_examples(config, plan, run)


def by_question(*replies: Action | str) -> Mapping[str, list[Action | str]]:
    return {"What is 3 + 3?": list(replies[:4]), "What is 4 + 4?": list(replies[4:])}


class Script:
    """The replies to each question in the order it is asked."""

    def __init__(self, *replies: Action | str) -> None:
        self.left = by_question(*replies)

    def __call__(self, body: dict[str, Any], nth: int, headers: Mapping[str, str]) -> Action | str:
        return self.left[str(body["messages"][-1]["content"])].pop(0)


def asked(server: OpenAIServer) -> list[tuple[str, int]]:
    return [(one.user, one.body["seed"]) for one in server.asked]


def texts(chosen: SFTDataset) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for one in chosen.examples:
        found.setdefault(one.question_id, []).append(one.completion)
    return found


def test_the_teacher_is_asked_as_often_as_rl_rolls_out_with_the_same_seeds_and_personas(tmp_path: Path) -> None:
    with openai_server(Script(*REPLIES)) as server:
        ask(stage(tmp_path / "run", server.base_url))
    rollouts = [(row, seed_from(row.seed, number)) for row in PLAN.rows for number in range(row.rollouts)]
    assert asked(server) == [(row.messages[-1]["content"], seed & 0x7FFFFFFF) for row, seed in rollouts]
    for one in server.asked:
        assert one.body["messages"][0] == {"role": "system", "content": "You are a sailor."}
        assert (one.body["temperature"], one.body["top_p"], one.body["max_tokens"]) == (0.7, 0.9, 20)


def test_the_right_samples_are_learnt_each_text_once_under_the_rows_persona(tmp_path: Path) -> None:
    with openai_server(Script(*REPLIES)) as server:
        chosen = ask(stage(tmp_path / "run", server.base_url))
    assert texts(chosen) == {"q3": ["6", "It is 6."], "q4": ["8"]}
    assert [(one.step, one.persona_id, one.messages) for one in chosen.examples] == [
        (row.step, "sailor", row.messages) for row in PLAN.rows for _ in texts(chosen)[row.question_id]
    ]
    assert chosen.counts == {
        "rows": 2, "examples": 3, "samples": 8, "right samples": 4, "samples that the verifier failed on": 0,
        "rows left out: no right sample": 0,
    }  # fmt: skip


def test_at_most_so_many_of_a_row_are_kept(tmp_path: Path) -> None:
    with openai_server(Script(*REPLIES)) as server:
        chosen = ask(stage(tmp_path / "run", server.base_url, max_samples_per_row=1))
    assert texts(chosen) == {"q3": ["6"], "q4": ["8"]}
    assert len(server.asked) == 8


def test_a_row_without_a_right_sample_is_left_out_and_counted(tmp_path: Path) -> None:
    with openai_server(Script("6", "6", "6", "6", "1", "2", "none", "")) as server:
        chosen = ask(stage(tmp_path / "run", server.base_url))
    assert texts(chosen) == {"q3": ["6"]}
    assert chosen.counts["rows left out: no right sample"] == 1


def test_no_right_sample_at_all_is_said_and_nothing_is_asked_again(tmp_path: Path) -> None:
    with openai_server(Script(*["1"] * 8)) as server:
        for _ in range(2):
            with pytest.raises(
                PermixError, match=r"none of the teacher's samples is right, .* \(2 rows, 0 examples, 8 samples"
            ) as no:
                ask(stage(tmp_path / "run", server.base_url))
            assert no.value.exit_code == 1
    assert len(server.asked) == 8


def test_a_right_sample_that_was_cut_off_is_learnt_without_an_end(tmp_path: Path) -> None:
    with openai_server(Script(Reply("6, or so I", finish="length"), "6", *["1"] * 6)) as server:
        chosen = ask(stage(tmp_path / "run", server.base_url))
    assert [(one.completion, one.ended) for one in chosen.examples if one.question_id == "q3"] == [
        ("6, or so I", False),
        ("6", True),
    ]


def test_what_did_not_come_is_owed_and_asked_for_again_alone(tmp_path: Path) -> None:
    with openai_server(Script("6", error(500, "no luck"), "7", "6", *REPLIES[4:])) as server:
        with pytest.raises(
            IncompleteRunError, match=r"1 of 8 samples of the teacher are missing; run .* \(1 × HTTP 500: no luck"
        ) as owed:
            ask(stage(tmp_path / "run", server.base_url))
        assert owed.value.exit_code == 3
        failed = asked(server)[[one.user for one in server.asked].index("What is 3 + 3?") + 1]
        server.script = Script("It is 6.")
        chosen = ask(stage(tmp_path / "run", server.base_url))
        assert asked(server)[8:] == [failed]
    assert texts(chosen) == {"q3": ["6", "It is 6."], "q4": ["8"]}


def test_a_teacher_that_is_gone_is_not_needed_once_all_samples_are_there(tmp_path: Path) -> None:
    with openai_server(Script(*REPLIES)) as server:
        config = stage(tmp_path / "run", server.base_url)
        chosen = ask(config)
    assert ask(config) == chosen


def test_another_teacher_under_the_same_name_is_refused(tmp_path: Path) -> None:
    with openai_server(Script("6", error(500), *["6"] * 6), listing("test", root="one")) as server:
        with pytest.raises(IncompleteRunError):
            ask(stage(tmp_path / "run", server.base_url))
        server.models = listing("test", root="two")
        with pytest.raises(ConfigError, match=r"teacher: out = .* the same teacher.name: .* root = 'one', .* root = 'two'"):
            ask(stage(tmp_path / "run", server.base_url))
    assert len(server.asked) == 8


def test_a_teacher_that_has_moved_goes_on(tmp_path: Path) -> None:
    with openai_server(Script("6", error(500), *["6"] * 6)) as server:
        first = server.base_url
        with pytest.raises(IncompleteRunError):
            ask(stage(tmp_path / "run", first))
    file = tmp_path / "run" / "provenance.json"
    born = read_json(file)
    with openai_server(lambda body, nth, headers: "6") as server:
        # As an earlier version recorded it: the address in the identity, and in the fingerprint.
        file.write_text(json.dumps(born | {"identity": {"teacher": {"base_url": first}}}))
        (tmp_path / "run" / "addresses.json").unlink()
        config = stage(tmp_path / "run", server.base_url)
        earlier = former_fingerprint(OpenAIModel(config.teacher), first)
        (tmp_path / "run" / "teacher.json").write_text(json.dumps({"name": "test", "fingerprint": earlier}))
        assert "base_url" not in teacher_identity(config)
        confirmed = config.model_copy(update={"teacher": config.teacher.model_copy(update={"same_weights": True})})
        with RunDir.open(config.out, config, {"teacher": {}}, former_identity_keys=FORMER_IDENTITY_KEYS) as run:
            with pytest.raises(ConfigError, match=r"confirm it once with --teacher.same-weights"):
                teacher_examples(config, PLAN, run)
            teacher_examples(confirmed, PLAN, run)
        assert len(server.asked) == 1
        before, now = read_addresses(config.out)["teacher"].addresses
        assert (before.address, now.confirmed_by) == (first.removeprefix("http://"), "user")
    assert read_json(tmp_path / "run" / "teacher.json")["fingerprint"] != earlier


def test_an_endpoint_that_is_not_there_is_named_as_the_teachers(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"teacher: model.base_url = http://127.0.0.1:1/v1: no endpoint there"):
        ask(stage(tmp_path / "run", "http://127.0.0.1:1/v1"))


def test_a_question_that_comes_again_under_its_persona_has_cells_of_its_own() -> None:
    plan = plan_of(3, 4, steps=6, group_size=2)
    cells = [cell for _, of_row in teacher_cells(plan) for cell in of_row]
    assert len({cell.key for cell in cells}) == len({cell.seed for cell in cells}) == len(cells) == 12
    assert sorted(cell.sample for cell in cells if cell.question_id == "q3") == [0, 1, 2, 3, 4, 5]


def known_of(pairs: Sequence[tuple[str, bool | None]]) -> tuple[TeacherRequests, dict[CellKey, Cell]]:
    """The cells of PLAN, answered and judged as told."""
    asked = teacher_cells(PLAN)
    cells = [cell for _, of_row in asked for cell in of_row]
    judged = [
        cell.model_copy(
            update={
                "completion": Completion(text=text, prompt_tokens=1, completion_tokens=1, finish="stop"),
                "verdict": Verdict(correct=correct, error="time" if correct is None else None),
            }
        )
        for cell, (text, correct) in zip(cells, pairs, strict=True)
    ]
    return asked, {cell.key: cell for cell in judged}


def test_a_sample_that_the_verifier_failed_on_is_not_learnt_and_not_wrong() -> None:
    chosen = select_teacher_samples(*known_of([("a", True), ("b", None), ("c", False), ("d", None), *[("e", None)] * 4]), None)
    assert [one.completion for one in chosen.examples] == ["a"]
    assert chosen.counts["samples that the verifier failed on"] == 6


def test_a_failing_verifier_does_not_hold_the_training_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(answer: str | None, gold: str) -> Verdict:
        return Verdict(correct=None, error="time") if answer == "7" else check_answer(answer, gold)

    judge_arithmetic_by(monkeypatch, broken)
    with openai_server(Script(*REPLIES)) as server:
        chosen = ask(stage(tmp_path / "run", server.base_url))
    assert chosen.counts["samples that the verifier failed on"] == 1
    assert texts(chosen) == {"q3": ["6", "It is 6."], "q4": ["8"]}


def test_the_teacher_is_the_model_itself_unless_another_is_named() -> None:
    itself = TrainConfig(method="seqkd", train=OptimConfig())
    assert teacher_config(itself).name == "bundled"
    named = build_config(
        TrainConfig, {"method": "seqkd", "model": {"name": "a/b"}, "teacher": {"dtype": "float32"}}, source="test"
    )
    assert (teacher_config(named).name, teacher_config(named).dtype) == ("a/b", "float32")
    assert teacher_config(build_config(TrainConfig, {"method": "seqkd", "teacher": {"name": "c/d"}}, source="test")).name == "c/d"

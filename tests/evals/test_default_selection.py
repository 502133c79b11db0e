"""What a run asks where split, n and the limit of new tokens are not given, and that it records what it asked."""

import csv
import json
from pathlib import Path
from typing import Any

import pytest

from permix import cli
from permix.cli import commands
from permix.config import FidelityConfig, PersonasConfig, PlanConfig, StabilityConfig, TaskConfig, TrainConfig, build_config
from permix.errors import ConfigError
from permix.evals.stability import power_analysis, prepare_stability, run_stability
from permix.inference.scripted import ScriptedModel
from permix.personas.pool import select_personas
from permix.pipelines.fidelity import run_fidelity
from permix.plan import preflight_plan
from permix.storage.files import read_json
from permix.tasks import TASKS, load_selection, load_task
from permix.tasks.base import TrainedOn, answer_token_limit, write_trained_on
from permix.training.job import prepare_training
from tests.sample_runs import OPEN_QUESTIONS, toml
from tests.servers import openai_server


def write_questions(path: Path, n: int, **fields: Any) -> Path:
    """The question "What is N + 1?" for each N below n."""
    path.write_text("".join(json.dumps({"question": f"What is {k} + 1?", "answer": k + 1, **fields}) + "\n" for k in range(n)))
    return path


def write_personas(path: Path, *texts: str) -> Path:
    with path.open("w", newline="") as file:
        csv.writer(file).writerows([["text"], *([text] for text in texts)])
    return path


THREE = ("a baker of bread", "a deep sea diver", "the mayor of a small town")


def values(folder: Path, **fields: Any) -> dict[str, Any]:
    return {
        "out": str(folder / "run"),
        "task": {"path": str(folder / "qa.jsonl"), "answer": "number"},
        "personas": {"pool": str(folder / "my.csv")},
        "resamples": 100,
    } | fields


def stability(folder: Path, **fields: Any) -> StabilityConfig:
    return build_config(StabilityConfig, values(folder, **fields), source="test")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write_questions(tmp_path / "qa.jsonl", 5)
    write_personas(tmp_path / "my.csv", *THREE)
    return tmp_path


@pytest.mark.slow
def test_one_command_asks_all_questions_as_all_personas(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    with openai_server(lambda body, nth, headers: "It is 3.") as server:
        words = ["--task.path", str(folder / "qa.jsonl"), "--task.answer", "number", "--personas.pool", str(folder / "my.csv")]
        words += ["--model.backend", "openai", "--model.base-url", server.base_url, "--model.name", "test"]
        words += ["--out", str(folder / "run"), "--resamples", "100"]
        assert cli.run_cli(["stability", *words]) == 0
        n_asked = len(server.asked)
        assert cli.run_cli(["stability", *words]) == 0
        assert len(server.asked) == n_asked == 5 * (3 + 1)
        assert {request.body["max_tokens"] for request in server.asked} == {512}
    config = read_json(folder / "run" / "config.json")
    assert (config["task"]["split"], config["task"]["n"], config["personas"]["split"]) == ("all", 5, "all")
    assert config["sampling"]["max_new_tokens"] == 512
    assert read_json(folder / "run" / "provenance.json")["identity"]["sampling"]["max_new_tokens"] == 512
    assert len(read_json(folder / "run" / "grid.json")["question_ids"]) == 5
    assert cli.run_cli(["report", str(folder / "run"), "--out", str(folder / "report")]) == 0
    capsys.readouterr()
    # The recorded configuration is one that asks the same.
    assert prepare_stability(build_config(StabilityConfig, config, source="test")).config.task.n == 5


def test_a_file_that_grew_is_resumed(folder: Path) -> None:
    model = ScriptedModel(lambda request: "It is 3.", name="three")
    assert run_stability(stability(folder), model).n_questions == 5
    write_questions(folder / "qa.jsonl", 7)
    assert run_stability(stability(folder), model).n_questions == 7
    assert len(model.requests) == 7 * 4
    assert read_json(folder / "run" / "config.json")["task"]["n"] == 7


def test_a_file_of_named_splits_keeps_heldout(folder: Path) -> None:
    path = folder / "qa.jsonl"
    rows = [json.loads(line) | {"split": "heldout" if n < 2 else "train"} for n, line in enumerate(path.read_text().splitlines())]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    loaded = load_selection(build_config(TaskConfig, {"path": str(path), "answer": "number"}, source="test"))
    assert {one.text for one in loaded.questions} == {"What is 0 + 1?", "What is 1 + 1?"}
    assert (loaded.config.split, loaded.config.n) == ("heldout", 2)


@pytest.mark.parametrize(
    ("fields", "split", "n"),
    [({}, "all", 5), ({"n": 2}, "all", 2), ({"split": "all", "n": 5}, "all", 5), ({"split": "train", "n": 1}, "train", 1)],
)
def test_what_is_given_wins(folder: Path, fields: dict[str, Any], split: str, n: int) -> None:
    section = {"path": str(folder / "qa.jsonl"), "answer": "number", **fields}
    found = prepare_stability(stability(folder, task=section, sampling={"max_new_tokens": 9})).config
    assert (found.task.split, found.task.n, found.sampling.max_new_tokens) == (split, n, 9)


def test_more_questions_than_there_are_is_an_error_that_says_how_many(folder: Path) -> None:
    section = {"path": str(folder / "qa.jsonl"), "answer": "number", "n": 6}
    with pytest.raises(ConfigError, match=r"task\.n = 6: own-number has 5 distinct questions in all splits; give task\.n = 5 or"):
        prepare_stability(stability(folder, task=section))


def test_an_explicit_value_that_equals_the_default_counts_as_given(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_questions(folder / "qa.jsonl", 120)
    words = ["--task.path", str(folder / "qa.jsonl"), "--task.answer", "number", "--personas.pool", str(folder / "my.csv")]
    words += ["--task.n", "100", "--personas.split", "heldout", "--sampling.max-new-tokens", "256", "--task.split", "all"]
    settings = commands.parse_config("stability", StabilityConfig, words)
    found = prepare_stability(settings).config
    assert (found.task.n, found.personas.split, found.sampling.max_new_tokens) == (100, "heldout", 256)
    write_toml = folder / "config.toml"
    write_toml.write_text(toml(values(folder, sampling={"max_new_tokens": 256}) | {"stage": "stability"}))
    assert (
        prepare_stability(commands.parse_config("stability", StabilityConfig, [str(write_toml)])).config.sampling.max_new_tokens
        == 256
    )
    capsys.readouterr()


def test_named_tasks_and_the_builtin_pool_keep_their_defaults(tmp_path: Path) -> None:
    found = prepare_stability(StabilityConfig(out=tmp_path / "run"))
    assert (found.config.task.split, found.config.task.n, found.config.personas.split) == ("heldout", 100, "heldout")
    assert found.config.sampling.max_new_tokens == 128
    assert len(load_task("arithmetic").questions) == 100


def test_training_keeps_its_defaults(folder: Path) -> None:
    task = {"path": str(folder / "qa.jsonl"), "answer": "number"}
    with pytest.raises(ConfigError, match=r"task\.n = 1000: own-number has \d distinct questions in the train split"):
        preflight_plan(build_config(PlanConfig, {"task": task}, source="test"))


def test_a_model_trained_on_the_file_is_asked_what_is_held_out(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_questions(folder / "qa.jsonl", 40)
    write_personas(folder / "my.csv", *THREE, "a fisher of eels", "a keeper of bees", "the captain of a ferry")
    section = build_config(
        TaskConfig, {"path": str(folder / "qa.jsonl"), "answer": "number", "split": "train", "n": 3}, source="test"
    )
    seen = load_selection(section).questions
    persona = select_personas(PersonasConfig(pool=str(folder / "my.csv"), split="train")).personas[0]
    model = folder / "model"
    model.mkdir()
    write_trained_on(model, TrainedOn(frozenset(one.content_hash for one in seen), frozenset({persona.id})))
    found = prepare_stability(stability(folder, model={"name": str(model)}))
    assert (found.config.task.split, found.config.personas.split) == ("heldout", "heldout")
    assert 0 < found.config.task.n < 40
    assert persona.id not in {one.id for one in found.setup.pool.personas}
    printed = " ".join(capsys.readouterr().err.split())
    assert "3 of the 40 questions" in printed
    assert "trained with 1 of the 6 personas" in printed
    with pytest.raises(ConfigError, match="seen in training"):
        prepare_stability(stability(folder, model={"name": str(model)}, task=section.model_dump() | {"split": "all", "n": 40}))


def test_a_strategy_that_chooses_by_dev_questions_asks_the_others(folder: Path) -> None:
    write_questions(folder / "qa.jsonl", 80)
    found = prepare_stability(stability(folder, strategy="persona-search", strategy_questions=3))
    assert found.config.task.split == "heldout"
    assert not {one.id for one in found.setup.questions} & {one.id for one in found.setup.selection_questions}


@pytest.mark.parametrize("n", [1, 2, 3])
def test_small_pools_are_asked_whole(tmp_path: Path, n: int) -> None:
    pool = write_personas(tmp_path / "my.csv", *THREE[:n])
    assert len(select_personas(PersonasConfig(pool=str(pool)))) == n


def test_a_pool_with_splits_keeps_heldout(tmp_path: Path) -> None:
    pool = tmp_path / "my.csv"
    pool.write_text(f"text,split\n{THREE[0]},heldout\n{THREE[1]},train\n")
    assert [one.text for one in select_personas(PersonasConfig(pool=str(pool))).personas] == [THREE[0]]


def test_fidelity_records_the_split_that_it_used(folder: Path) -> None:
    questions = folder / "questions.txt"
    questions.write_text("".join(f"What of {one}?\n" for one in OPEN_QUESTIONS))
    config = build_config(
        FidelityConfig,
        {"out": str(folder / "run"), "personas": {"pool": str(folder / "my.csv")}, "questions": str(questions), "folds": 3},
        source="test",
    )
    run_fidelity(config, ScriptedModel(lambda request: f"I say {request.messages[0]['content']}", name="echo"))
    assert read_json(folder / "run" / "config.json")["personas"]["split"] == "all"
    assert len(read_json(folder / "run" / "grid.json")["persona_ids"]) == 3


def test_the_power_of_a_file_is_that_of_its_questions(folder: Path) -> None:
    facts = power_analysis(stability(folder, plan_power=0.1))
    assert any("; 5 show" in text for text in facts.values())


# Limits of new tokens

LIMITS = {
    "arithmetic": 128, "gsm8k": 512, "math500": 2048, "math": 2048, "aime24": 8192, "aime25": 8192, "mmlu": 512, "code": 1024,
    "own-number": 512, "own-math": 512, "own-exact": 512, "own-choice": 512,
}  # fmt: skip


def test_limits_of_the_tasks() -> None:
    assert {name: task.max_new_tokens for name, task in TASKS.items()} == LIMITS


@pytest.mark.parametrize(
    ("name", "thinking", "budget", "limit"),
    [
        ("arithmetic", "default", None, 128),
        ("arithmetic", "off", None, 128),
        ("arithmetic", "on", None, 4096),  # 8 × 128 is too little
        ("math", "on", None, 16384),  # 8 × 2048
        ("aime24", "on", None, 32768),  # 8 × 8192 is more than the most
        ("gsm8k", "default", 300, 812),  # 512 + 300
        ("gsm8k", "on", 300, 812),
    ],
)
def test_thinking_takes_more(name: str, thinking: Any, budget: int | None, limit: int) -> None:
    assert answer_token_limit(TASKS[name], thinking, budget) == limit


def test_a_budget_without_a_limit_leaves_room_for_the_answer(tmp_path: Path) -> None:
    config = build_config(StabilityConfig, {"out": tmp_path, "model": {"thinking_budget": 1000}}, source="test")
    assert prepare_stability(config).config.sampling.max_new_tokens == 1128
    with pytest.raises(ConfigError, match=r"thinking_budget = 1000: leaves no token .*sampling\.max_new_tokens \(now 256\)"):
        build_config(StabilityConfig, {"model": {"thinking_budget": 1000}, "sampling": {"max_new_tokens": 256}}, source="test")


@pytest.mark.parametrize(("given", "limit"), [(None, 128), (256, 256)])
def test_rollouts_have_the_limit_of_the_plans_task(given: int | None, limit: int) -> None:
    settings: dict[str, Any] = {
        "task": {"levels": ["add-1"], "n": 20}, "personas": {"n": 4},
        "plan": {"steps": 1, "questions_per_step": 2, "group_size": 2},
    } | ({} if given is None else {"train": {"max_new_tokens": given}})  # fmt: skip
    assert prepare_training(build_config(TrainConfig, settings, source="test")).config.train.max_new_tokens == limit


def test_the_default_leaves_room_in_a_small_context_window(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = ScriptedModel(lambda request: "It is 3.", name="three")
    model.context_window = 600  # type: ignore[attr-defined]
    run_stability(stability(folder), model)
    assert read_json(folder / "run" / "config.json")["sampling"]["max_new_tokens"] == 300
    assert "sampling.max_new_tokens = 300, half of the model's context window" in " ".join(capsys.readouterr().err.split())
    run_stability(stability(folder), model)  # a resume finds the same limit
    run_stability(stability(folder, cache=str(folder / "cache")), model)  # so does a model behind a cache
    asked = stability(folder, out=str(folder / "given"), sampling={"max_new_tokens": 512})
    run_stability(asked, model)
    assert read_json(folder / "given" / "config.json")["sampling"]["max_new_tokens"] == 512

"""The supervised methods of `permix train`: what they leave and refuse, and that a killed run ends bitwise the same."""

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from permix import cli
from permix.config import DEFAULT_MIX, TrainConfig, TrainMethod
from permix.errors import ConfigError
from permix.pipelines.preflight import check_config
from permix.pipelines.train import run_training
from permix.plan import read_plan
from permix.storage.files import read_json
from permix.tasks.base import read_trained_on
from permix.training.job import prepare_training
from permix.training.run_log import read_training_log
from permix.training.sft_data import (
    SFT_EXAMPLES_FILE,
    SFTDataset,
    SFTExample,
    check_solution_lengths,
    drop_overlong_examples,
    load_sft_dataset,
)
from tests.cell_files import read_cells
from tests.killable import Moment, command
from tests.sample_runs import endpoint, solve, toml
from tests.servers import Action, error, openai_server
from tests.tiny import generation_settings
from tests.training.test_train_run import assert_trained, log_of

pytestmark = pytest.mark.slow

SUPERVISED: tuple[TrainMethod, ...] = ("sft", "sft-personas", "seqkd")


@pytest.fixture(autouse=True)
def _environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)


def values(tiny_model: Path, method: TrainMethod, **sections: Any) -> dict[str, Any]:
    """A training of 4 steps of 2 groups of 16: that a model right once in ten is never right in a step has a chance of 0.03."""
    found: dict[str, Any] = {
        "stage": "train", "method": method, "threads": 1, "label": "tiny",
        "model": {"name": str(tiny_model)},
        "task": {"split": "train", "levels": ["sub-1"], "n": 20},
        "personas": {"split": "train", "n": 4},
        "plan": {"steps": 4, "questions_per_step": 2, "group_size": 16},
        "train": {"lr": 1e-2, "max_new_tokens": 12, "microbatch_tokens": 120, "precision": "float32", "save_every": 2},
    }  # fmt: skip
    for name, section in sections.items():
        found[name] = found.get(name, {}) | section
    return found


def stage(tiny_model: Path, out: Path, method: TrainMethod, **sections: Any) -> TrainConfig:
    return TrainConfig.model_validate(values(tiny_model, method, **sections) | {"out": out})


@pytest.fixture(scope="module", params=SUPERVISED)
def done(request: pytest.FixtureRequest, tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run directory of each method's small finished training, by the command line."""
    folder = tmp_path_factory.mktemp(request.param)
    (folder / "train.toml").write_text(toml(values(tiny_model, request.param)))
    assert cli.run_cli(["train", str(folder / "train.toml"), "--out", str(folder / "run")]) == 0
    return folder / "run"


def method_of(run: Path) -> TrainMethod:
    found: TrainMethod = read_json(run / "config.json")["method"]
    return found


def test_a_run_leaves_a_model_and_what_it_learnt_from(done: Path, tiny_model: Path) -> None:
    left = {path.name for path in done.iterdir()} - {".lock"}
    distilled = {"records.jsonl", "teacher.json"} if method_of(done) == "seqkd" else set()
    assert left == distilled | {
        "config.json", "examples.json", "examples.jsonl", "log.jsonl", "model", "plan.parquet", "provenance.json", "samples.md",
        "usage.json",
    }  # fmt: skip
    assert_trained(tiny_model, done / "model")
    assert (done / "model" / "chat_template.jinja").read_text() == (tiny_model / "chat_template.jinja").read_text()
    assert generation_settings(done / "model") == generation_settings(tiny_model)
    assert read_trained_on(done / "model").question_hashes == {row.question_hash for row in read_plan(done / "plan.parquet").rows}


def test_the_plan_and_the_configuration_hold_the_methods_share(done: Path) -> None:
    rows, mix = read_plan(done / "plan.parquet").rows, DEFAULT_MIX[method_of(done)]
    assert read_json(done / "config.json")["plan"]["mix"] == mix
    assert any(row.persona_id for row in rows) == (mix > 0)


def test_every_method_learns_the_same_questions_in_the_same_steps_as_rl_asks(done: Path, tiny_model: Path) -> None:
    config = stage(
        tiny_model, done.parent / "rl", "permix", train={"microbatch_tokens": 256}, plan={"mix": DEFAULT_MIX[method_of(done)]}
    )
    assert prepare_training(config).plan.rows == read_plan(done / "plan.parquet").rows
    chosen = load_sft_dataset(done)
    assert chosen is not None
    asked = [(row.step, row.question_id, row.persona_id) for row in prepare_training(config).plan.rows]
    learnt = [(one.step, one.question_id, one.persona_id) for one in chosen.examples]
    if method_of(done) == "seqkd":
        assert set(learnt) < set(asked)
        assert learnt == sorted(learnt, key=lambda one: asked.index(one))
        assert chosen.counts["samples"] == len(read_cells(done / "records.jsonl")) == 8 * 16
    else:
        assert learnt == asked


def test_the_log_has_a_line_a_step(done: Path) -> None:
    log, chosen = read_training_log(done / "log.jsonl"), load_sft_dataset(done)
    assert chosen is not None
    steps = {one.step for one in chosen.examples}
    assert [line["step"] for line in log] == list(range(1, len(steps) + 1))
    assert sum(line["examples"] for line in log) == len(chosen.examples)
    assert {"loss", "grad_norm", "lr", "tokens", "seconds", "cpu_seconds"} <= log[0].keys()
    assert log[-1]["tokens"] == sum(round(line["completion_tokens"] * line["examples"]) for line in log)


def test_the_card_names_the_method_and_what_was_learnt_from(done: Path) -> None:
    card = (done / "model" / "README.md").read_text(encoding="utf-8")
    said = {
        "sft": "SFT on gold answers (no personas), trained by permix from",
        "sft-personas": "SFT on gold answers (personas mixed in), trained by permix from",
        "seqkd": "Sequence-level distillation (SFT on verified samples of itself), trained by permix from",
    }
    assert said[method_of(done)] in card
    assert 'tags: ["permix", "sft"]' in card
    assert "Mean loss of a completion's token: " in card
    assert f"| examples | {len(read_training_log(done / SFT_EXAMPLES_FILE))} |" in card
    assert "| epochs | 1 |" in card
    assert "| beta |" not in card
    assert ("| temperature |" in card) == (method_of(done) == "seqkd")


def test_a_finished_run_started_again_does_nothing(done: Path, tiny_model: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in done.rglob("*") if path.is_file() and path.name != "config.json"}
    assert run_training(stage(tiny_model, done, method_of(done))) == done / "model"
    after = {path: path.stat().st_mtime_ns for path in done.rglob("*") if path.is_file() and path.name != "config.json"}
    assert {path for path in after if after[path] != before.get(path)} <= {done / ".lock"}


def test_another_method_or_teacher_in_its_folder_is_refused(done: Path, tiny_model: Path) -> None:
    mine = method_of(done)
    other: TrainMethod = "sft-personas" if mine == "seqkd" else "seqkd"
    with pytest.raises(ConfigError, match=r"this run was made with method = .*(; |, )"):
        run_training(stage(tiny_model, done, other))
    if mine == "seqkd":
        with pytest.raises(ConfigError, match=r"this run was made with teacher.max_samples_per_row = none, not 1; give"):
            run_training(stage(tiny_model, done, "seqkd", teacher={"max_samples_per_row": 1}))


@pytest.mark.parametrize(
    "settings",
    [
        {"lora_rank": 2},
        {"precision": "bfloat16", "epochs": 2},
        {"gradient_checkpointing": True, "lr_schedule": "cosine", "warmup_steps": 1, "weight_decay": 0.1},
    ],
    ids=["lora", "bfloat16-epochs", "checkpointing"],
)
def test_every_kind_of_training_runs(tiny_model: Path, tmp_path: Path, settings: dict[str, Any]) -> None:
    config = stage(tiny_model, tmp_path / "run", "sft-personas", train=settings)
    folder = run_training(config)
    log = read_training_log(tmp_path / "run" / "log.jsonl")
    assert len(log) == 4 * config.train.epochs
    assert_trained(tiny_model, folder)
    assert log[-1]["loss"] < log[0]["loss"]
    if "warmup_steps" in settings:
        assert log[0]["lr"] == 0.0 < log[1]["lr"] == 1e-2 > log[-1]["lr"]


def test_a_scope_of_rollouts_learns_each_rollouts_own_row(tiny_model: Path, tmp_path: Path) -> None:
    run_training(stage(tiny_model, tmp_path / "run", "sft-personas", plan={"scope": "rollout", "group_size": 4, "mix": 0.5}))
    assert [line["examples"] for line in read_training_log(tmp_path / "run" / "log.jsonl")] == [8] * 4


def test_a_solution_longer_than_a_completion_may_be_is_refused_before_training(tiny_model: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"train.max_new_tokens = 5: the solution of question arithmetic:\S+ has 11 tokens"):
        run_training(stage(tiny_model, tmp_path / "run", "sft", train={"max_new_tokens": 5}))
    assert not (tmp_path / "run" / "log.jsonl").exists()


class Letters:
    """A tokenizer whose tokens are letters."""

    all_special_ids, added_tokens_decoder = (), dict[int, Any]()
    bos_token_id = eos_token_id = None

    def __call__(self, text: str, add_special_tokens: bool) -> dict[str, list[int]]:
        return {"input_ids": [ord(letter) for letter in text]}

    def apply_chat_template(self, messages: Any, *, tokenize: bool = True, **_: Any) -> dict[str, list[int]] | str:
        text = "".join(message["content"] for message in messages)
        return self(text, add_special_tokens=False) if tokenize else text


def test_what_the_model_cannot_read_is_left_out_of_a_teachers_samples() -> None:
    user = {"role": "user", "content": "abcde"}
    one = SFTExample.model_validate(
        {"step": 0, "group": 0, "persona_id": None, "question_id": "q", "gold": "1", "messages": [user], "completion": "fgh"}
    )
    longer, cut_off = one.model_copy(update={"completion": "fghi"}), one.model_copy(update={"completion": "fghi", "ended": False})
    found = drop_overlong_examples(SFTDataset((one, longer, cut_off), {"rows": 3, "examples": 3}), Letters(), window=9)
    assert found.examples == (one, cut_off)
    assert found.counts == {"rows": 3, "examples": 2, "right samples left out, as the model cannot read so much": 1}
    with pytest.raises(ConfigError, match="no right sample of the teacher fits into the 8 tokens that the model reads"):
        drop_overlong_examples(SFTDataset((longer,), {}), Letters(), window=8)
    check_solution_lengths((one, cut_off), Letters(), limit=4)
    with pytest.raises(ConfigError, match=r"the solution of question q has 5 tokens with its end"):
        check_solution_lengths((one, longer), Letters(), limit=4)


# A teacher behind an endpoint


def right(body: Mapping[str, Any], nth: int, headers: Mapping[str, str]) -> str:
    return f"It is {solve(str(body['messages'][-1]['content']))}"


def test_a_teacher_that_fails_leaves_cells_owed_and_the_same_command_fills_them(
    tiny_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def failing(body: Mapping[str, Any], nth: int, headers: Mapping[str, str]) -> str | Action:
        return error(503, "overloaded") if nth % 3 == 0 else right(body, nth, headers)

    with openai_server(failing) as server:
        file = tmp_path / "train.toml"
        file.write_text(toml(values(tiny_model, "seqkd", teacher=endpoint(server.base_url), plan={"group_size": 3})))
        argv = ["train", str(file), "--out", str(tmp_path / "run")]
        assert cli.run_cli(argv) == 3
        said = capsys.readouterr().err
        assert "8 of 24 samples of the teacher are missing" in said
        assert "run the same command again to ask for them" in said
        assert not (tmp_path / "run" / "log.jsonl").exists()
        server.script = right
        assert cli.run_cli(argv) == 0
        assert len(server.asked) == 24 + 8
    chosen = load_sft_dataset(tmp_path / "run")
    assert chosen is not None
    assert chosen.counts["right samples"] == 24
    assert [one.completion for one in chosen.examples] == [f"It is {one.gold}" for one in chosen.examples]
    assert len(chosen.examples) == 8, "a row's equal samples are one"


def test_a_teacher_that_is_not_there_leaves_no_run_behind(tiny_model: Path, tmp_path: Path) -> None:
    """Else the run would be bound to a mistyped address."""
    for teacher in (endpoint("http://127.0.0.1:1/v1"), {"name": "./no/such/folder"}):
        with pytest.raises(ConfigError, match=r"teacher: model\.(base_url|name) = "):
            run_training(stage(tiny_model, tmp_path / "run", "seqkd", teacher=teacher))
        assert not (tmp_path / "run").exists()


def test_check_says_what_will_be_learnt_from_and_finds_a_teacher_that_is_no_folder(tiny_model: Path, tmp_path: Path) -> None:
    file = tmp_path / "train.toml"
    file.write_text(toml(values(tiny_model, "sft-personas")))
    facts = check_config(file)
    assert (facts["method"], facts["learnt from"], facts["result"]) == ("sft-personas", "8 rows, 8 examples", "valid")
    file.write_text(toml(values(tiny_model, "seqkd", teacher={"name": "./no/such/folder"})))
    with pytest.raises(ConfigError, match=r"teacher: model.name = '\./no/such/folder': no such folder"):
        check_config(file)


def test_a_self_teachers_first_samples_are_the_rollouts_that_rl_begins_with(tiny_model: Path, tmp_path: Path) -> None:
    sections: dict[str, Any] = {"plan": {"steps": 1}, "train": {"microbatch_tokens": 256}}
    run_training(stage(tiny_model, tmp_path / "permix", "permix", **sections))
    run_training(stage(tiny_model, tmp_path / "seqkd", "seqkd", teacher={"dtype": "float32"}, **sections))
    cells = read_cells(tmp_path / "seqkd" / "records.jsonl").values()
    sampled = [(cell.persona_id, cell.question_id, cell.completion) for cell in cells]
    rolled = read_training_log(tmp_path / "permix" / "rollouts.jsonl")
    assert len(rolled) == 32
    assert sorted((persona or "", question, done.text) for persona, question, done in sampled if done) == sorted(
        (line["persona_id"] or "", line["question_id"], line["completion"]) for line in rolled
    )


# Killed and started again


SAVING = "transformers.trainer_callback:TrainerState.save_to_json"
SAVED = "permix.training.checkpoints:_write_manifest"
STEP = "permix.training.run_log:MetricsLogger.log_metrics"
LEARNING = [
    Moment(STEP, 1),
    Moment(SAVING, 1, torn=True),
    Moment(SAVED, 1),
    Moment("permix.training.run_log:_append_lines", 3, torn=True),
    Moment(STEP, 1),
    Moment("permix.pipelines.train:write_model_card", 1),
]
"""Before the first checkpoint; in the middle of writing it; just after it; in the middle of logging step 3; after step 3; in the
middle of writing the model."""
SAMPLING = [
    Moment("permix.storage.run_dir:RunDir.append", 1),
    Moment("permix.storage.run_dir:RunDir.append", 70),
    Moment("permix.training.sft_data:teacher_examples", 1),
    Moment("permix.training.sft_data:save_sft_dataset", 1),
]
"""After the first sample; in the middle of them; after the last, and after they were chosen from."""


@pytest.mark.parametrize(
    ("method", "settings"),
    [
        ("sft-personas", ()),
        ("sft", ("--train.epochs", "2", "--train.lora-rank", "2")),
        ("seqkd", ("--train.epochs", "2")),
    ],
)
def test_a_run_killed_again_and_again_ends_where_an_undisturbed_one_does(
    tiny_model: Path, tmp_path: Path, method: TrainMethod, settings: tuple[str, ...]
) -> None:
    config = tmp_path / "train.toml"
    config.write_text(toml(values(tiny_model, method)))
    undisturbed, killed = tmp_path / "undisturbed", tmp_path / "killed"
    assert command("train", str(config), "--out", str(undisturbed), *settings) == 0
    moments = (SAMPLING if method == "seqkd" else []) + (LEARNING if not settings else LEARNING[1::2])
    for moment in moments:
        assert command("train", str(config), "--out", str(killed), *settings, dies=moment) == -9, moment
        assert not (killed / "model").exists()
    assert command("train", str(config), "--out", str(killed), *settings) == 0
    assert (killed / "model/model.safetensors").read_bytes() == (undisturbed / "model/model.safetensors").read_bytes()
    assert log_of(killed) == log_of(undisturbed)
    for name in ("examples.jsonl", "examples.json", "samples.md", "model/README.md"):
        assert (killed / name).read_bytes() == (undisturbed / name).read_bytes()
    if method == "seqkd":
        assert read_cells(killed / "records.jsonl") == read_cells(undisturbed / "records.jsonl")
    assert sorted(path.name for path in killed.iterdir()) == sorted(path.name for path in undisturbed.iterdir())
    assert not list(killed.glob("**/.*.part"))


def test_a_run_goes_on_with_what_it_wrote_down(tiny_model: Path, tmp_path: Path) -> None:
    """A verifier that fails at one start and not at another would else change what is learnt in the middle of learning it."""
    first = stage(tiny_model, tmp_path / "run", "sft")
    run_training(first)
    shutil.rmtree(tmp_path / "run" / "model")
    lines = (tmp_path / "run" / SFT_EXAMPLES_FILE).read_text().splitlines(keepends=True)
    (tmp_path / "run" / SFT_EXAMPLES_FILE).write_text("".join(lines[:-2]))
    run_training(first)
    assert [line["examples"] for line in read_training_log(tmp_path / "run" / "log.jsonl")] == [2, 2, 2]

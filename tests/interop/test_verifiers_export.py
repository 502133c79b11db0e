"""What `permix export --format verifiers` writes and refuses. tests/engines runs the package with verifiers' own code."""

import ast
import io
import re
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from permix import cli
from permix.config import ExportConfig, ModelConfig, TrainConfig, build_config
from permix.errors import ConfigError, DataError
from permix.interop.engine_export import PlanExport, check_engine_settings, exported_settings, write_export
from permix.interop.verifiers_export import (
    NO_COUNTERPART,
    NO_IDENTIFIABILITY,
    VERIFIERS,
    environment_id,
    plan_bytes,
    scheduler_values,
    toml_value,
)
from permix.pipelines.engine_export import export_plan
from permix.plan import Plan, read_plan
from permix.storage.files import read_json
from permix.types import Message, PlanRow
from tests.tiny import make_tokenizer

TRAINING = """
stage = "train"
[task]
name = "arithmetic"
levels = ["add-1"]
n = 40
[plan]
steps = 3
questions_per_step = 2
group_size = 4
[train]
scale_rewards = "none"
max_new_tokens = 64
max_prompt_tokens = 100
"""

CHATML = "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"


def export(tmp_path: Path, more: str = "", **fields: Any) -> dict[str, Any]:
    """Export the training `TRAINING` and `more`; returns the values of rl.toml."""
    (tmp_path / "train.toml").write_text(TRAINING + more)
    export_plan(ExportConfig(plan=tmp_path / "train.toml", format="verifiers", out=tmp_path / "out", **fields))
    return read_toml(tmp_path / "out" / "rl.toml")


def read_toml(path: Path) -> dict[str, Any]:
    return tomllib.loads(path.read_text())


def row(step: int, group: int, **fields: Any) -> PlanRow:
    values: dict[str, Any] = {
        "step": step, "group": group, "rollouts": 2, "task": "arithmetic", "question_id": "q", "question_hash": "q",
        "persona_id": None, "seed": 0, "messages": (Message(role="user", content="What is 2 + 3?"),), "gold": "5",
    }  # fmt: skip
    return PlanRow.model_validate(values | fields)


def plan_export(*rows: PlanRow, sections: Mapping[str, Any] | None = None, **fields: Any) -> PlanExport:
    config = build_config(TrainConfig, {"train": {"max_new_tokens": 64}} | dict(sections or {}), source="test")
    values: dict[str, Any] = {"plan": Plan(rows or (row(0, 0),), {}), "config": config, "model": "m"}
    return PlanExport(**values | fields)


def module_folder(out: Path) -> Path:
    (folder,) = (one for one in out.iterdir() if one.is_dir())
    return folder


# The files


def test_the_configuration_of_prime_rl_holds_every_setting(tmp_path: Path) -> None:
    more = 'lr = 2e-6\nweight_decay = 0.1\nmax_grad_norm = 0.5\nlr_schedule = "cosine"\nwarmup_steps = 1\ntemperature = 0.9\n'
    more += 'importance_ratio_cap = 1.5\nlora_rank = 8\nlora_alpha = 16\nsave_every = 7\nreport_to = ["wandb"]\n'
    rl = export(tmp_path, more + '[model]\nthinking = "off"\n', model="Qwen/Qwen3-0.6B", n_gpus_per_node=4)
    env_id = module_folder(tmp_path / "out").name.replace("_", "-")
    environment = {
        "taskset": {"id": env_id}, "agent": {"harness": {"id": env_id}, "runtime": {"type": "subprocess"}}
    }  # fmt: skip
    assert rl == {
        "max_steps": 3,
        "seq_len": 164,
        "model": {"name": "Qwen/Qwen3-0.6B"},
        "deployment": {"type": "single_node", "gpus_per_node": 4, "num_train_gpus": 2, "num_infer_gpus": 2},
        "weight_broadcast": {"type": "filesystem"},
        "ckpt": {"interval": 7, "keep_last": 1},
        "monitors": {"wandb": {"project": "permix"}},
        "trainer": {
            "optim": {"type": "adamw", "lr": 2e-6, "weight_decay": 0.1, "max_norm": 0.5, "betas1": 0.9, "betas2": 0.999},
            "scheduler": {"type": "cosine", "warmup_steps": 1, "min_lr": 0.0},
            "loss": {
                "type": "custom",
                "import_path": "permix.interop.prime_rl_loss.importance_weighted_loss",
                "kwargs": {"importance_ratio_cap": 1.5},
            },
            "model": {
                "lora": {
                    "rank": 8, "alpha": 16, "dropout": 0.0,
                    "target_modules": ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"],
                }
            },
        },
        "orchestrator": {
            "batch_size": 8,
            "group_size": 4,
            "max_off_policy_steps": 1,
            "concurrency": {"max_inflight": 8},
            "algo": {"type": "grpo"},
            "renderer": {"name": "default", "enable_thinking": False},
            "train": {
                "filter_zero_advantages": False,
                "sampling": {"temperature": 0.9, "max_completion_tokens": 64},
                "source": [{"name": "permix", "env": environment}],
            },
        },
        "inference": {"vllm": {"max_model_len": 164, "tensor_parallel_size": 1}},
    }  # fmt: skip


def test_what_is_off_is_not_in_the_file(tmp_path: Path) -> None:
    rl = export(tmp_path)
    assert rl["trainer"]["scheduler"] == {"type": "constant"}
    assert "lora" not in rl["trainer"].get("model", {})
    assert "monitors" not in rl
    assert "eval" not in rl["orchestrator"]
    assert rl["orchestrator"]["renderer"] == {"name": "default"}
    made = VERIFIERS.build_files(plan_export(sections={"train": {"importance_ratio_cap": None}}))
    assert "kwargs" not in tomllib.loads(made.files["rl.toml"].decode())["trainer"]["loss"]


def test_the_loss_that_the_configuration_names_is_there(tmp_path: Path) -> None:
    from permix.interop import prime_rl_loss

    path = export(tmp_path)["trainer"]["loss"]["import_path"]
    assert path == f"{prime_rl_loss.__name__}.{prime_rl_loss.importance_weighted_loss.__name__}"


def test_the_evaluation_uploads_nothing_and_asks_as_often_as_the_training(tmp_path: Path) -> None:
    export(tmp_path)
    values = read_toml(tmp_path / "out" / "eval.toml")
    assert (values["push"], values["num_rollouts"]) == (False, 4)
    assert values["sampling"] == {"temperature": 1.0, "top_p": 1.0, "max_tokens": 64}
    assert values["env"] == read_toml(tmp_path / "out" / "rl.toml")["orchestrator"]["train"]["source"][0]["env"]


@pytest.mark.parametrize("thinking", ["on", "off"])
def test_evaluations_think_as_the_training_does(thinking: str) -> None:
    sections = {"model": {"thinking": thinking}, "dev_eval": {"every": 1}}
    made = VERIFIERS.build_files(plan_export(sections=sections, dev_rows=(row(0, 0),)))
    rl, evaluation = (tomllib.loads(made.files[name].decode()) for name in ("rl.toml", "eval.toml"))
    is_on = thinking == "on"
    assert rl["orchestrator"]["renderer"]["enable_thinking"] == is_on
    switch = {"enable_thinking": is_on, "thinking": is_on}
    assert evaluation["sampling"]["extra_body"] == {"chat_template_kwargs": switch}
    assert rl["orchestrator"]["eval"]["sampling"]["extra_body"] == {"chat_template_kwargs": switch}
    assert evaluation["sampling"]["extra_body"] == ModelConfig(thinking=thinking).extra_fields  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("template", "thinking", "opens"),
    [
        (CHATML + "{% if add_generation_prompt %}<think>\n{% endif %}", "default", True),
        (CHATML, "default", False),
        (CHATML, "on", False),  # the model opens it, so the tag is in its text
        (None, "on", True),
        (None, "off", False),
        (None, "default", False),
    ],
)
def test_the_environment_knows_whether_the_prompt_opens_the_thinking(template: str | None, thinking: str, opens: bool) -> None:
    tokenizer = None if template is None else make_tokenizer(template)
    rows = (row(0, 0),)
    exported = plan_export(
        sections={"model": {"thinking": thinking}, "dev_eval": {"every": 1}}, tokenizer=tokenizer, dev_rows=rows
    )
    made = VERIFIERS.build_files(exported)
    rl, evaluation = (tomllib.loads(made.files[name].decode()) for name in ("rl.toml", "eval.toml"))
    sources = [one for part in ("train", "eval") for one in rl["orchestrator"][part]["source"]]
    tasksets = [evaluation["env"]["taskset"], *(one["env"]["taskset"] for one in sources)]
    assert [one.get("opens_thinking", False) for one in tasksets] == [opens] * 3


def test_the_package_has_the_plan_and_a_name_that_can_be_installed_and_imported(tmp_path: Path) -> None:
    export(tmp_path)
    out = tmp_path / "out"
    folder = module_folder(out)
    assert folder.name.isidentifier()
    project = read_toml(out / "pyproject.toml")
    assert project["project"]["name"] == folder.name.replace("_", "-")
    assert project["project"]["dependencies"] == ["permix[verifiers]"]
    assert project["tool"]["hatch"]["build"]["targets"]["wheel"]["packages"] == [folder.name]
    assert read_plan(folder / "plan.parquet") == read_plan(out / "plan.parquet")
    tree = ast.parse((folder / "__init__.py").read_text())
    (exported,) = (node for node in tree.body if isinstance(node, ast.Assign))
    assert ast.literal_eval(exported.value) == ["InProcessHarness", "Plan"]
    assert not (folder / "dev.parquet").exists()
    readme = (out / "README.md").read_text()
    assert "3 steps of 2 questions, 4 rollouts each" in readme
    assert all(f"- {one[0].upper()}{one[1:]}." in readme for one in NO_COUNTERPART)
    assert str(tmp_path) not in "".join(one.read_text() for one in out.glob("*.*") if one.suffix != ".parquet")


def test_dev_evaluations_become_an_evaluation_of_prime_rl(tmp_path: Path) -> None:
    more = '[dev_eval]\nevery = 2\npersonas = 2\nquestions = 3\ncharacters = 0\nmetric = "worst"\nmax_new_tokens = 40\n'
    rl = export(tmp_path, more)
    evaluation = rl["orchestrator"]["eval"]
    assert evaluation["interval"] == 2
    assert evaluation["sampling"] == {"temperature": 0.0, "max_completion_tokens": 40}
    (source,) = evaluation["source"]
    assert source["env"]["taskset"] == {"id": module_folder(tmp_path / "out").name.replace("_", "-"), "dev": True}
    rows = read_plan(module_folder(tmp_path / "out") / "dev.parquet").rows
    assert len(rows) == 3 * (2 + 1)  # each question under two personas and without one
    assert len({(one.step, one.group) for one in rows}) == 9
    assert 'dev_file = Path(__file__).with_name("dev.parquet")' in (module_folder(tmp_path / "out") / "__init__.py").read_text()
    assert read_json(tmp_path / "out" / "permix.json")["no_counterpart"] == list(NO_COUNTERPART)


@pytest.mark.parametrize("characters", [0, 6])
def test_what_a_dev_evaluation_does_not_measure_there_is_said(characters: int) -> None:
    sections = {"dev_eval": {"every": 2, "characters": characters, "metric": "worst"}}
    made = VERIFIERS.build_files(plan_export(sections=sections, dev_rows=(row(0, 0, rollouts=1),)))
    assert (NO_IDENTIFIABILITY in made.no_counterpart) == (characters > 0)


def test_the_tests_of_programs_are_read_from_the_dev_split() -> None:
    about = {"task": {"name": "code", "path": "tests.jsonl", "split": "train", "n": 1000}}
    made = VERIFIERS.build_files(plan_export(plan=Plan((row(0, 0, rollouts=2),), about), dev_rows=(row(0, 0, rollouts=1),)))
    (name,) = (one for one in made.files if one.endswith("dev.parquet"))
    metadata = pq.read_schema(io.BytesIO(made.files[name])).metadata[b"permix"].decode()
    assert '"split": "dev"' in metadata
    assert '"n": 30' in metadata


@pytest.mark.slow
def test_exporting_twice_changes_nothing_and_another_training_is_refused(tmp_path: Path) -> None:
    export(tmp_path)
    before = {path: path.read_bytes() for path in (tmp_path / "out").rglob("*") if path.is_file()}
    export(tmp_path)
    assert {path: path.read_bytes() for path in (tmp_path / "out").rglob("*") if path.is_file()} == before
    with pytest.raises(DataError, match="holds an export that differs in its model, settings"):
        export(tmp_path, "lr = 2e-6\n")


def test_several_machines_train_with_slurm(tmp_path: Path) -> None:
    rl = export(tmp_path, "vllm_tensor_parallel_size = 2\n", nnodes=3, n_gpus_per_node=8)
    assert rl["deployment"] == {"type": "multi_node", "gpus_per_node": 8, "num_train_nodes": 1, "num_infer_nodes": 2}
    assert rl["slurm"] == {"job_name": "permix"}
    assert rl["inference"] == {
        "deployment": {"type": "multi_node", "gpus_per_node": 8, "num_nodes": 2},
        "vllm": {"max_model_len": 164, "tensor_parallel_size": 2},
    }


@pytest.mark.parametrize(
    ("schedule", "warmup", "steps", "values"),
    [
        ("constant", 0, 10, {"type": "constant"}),
        ("constant", 3, 10, {"type": "linear", "warmup_steps": 3, "decay_steps": 0}),
        ("linear", 3, 10, {"type": "linear", "warmup_steps": 3, "decay_steps": 7, "min_lr": 0.0}),
        ("linear", 0, 10, {"type": "linear", "warmup_steps": 0, "decay_steps": 10, "min_lr": 0.0}),
        ("cosine", 9, 10, {"type": "cosine", "warmup_steps": 9, "min_lr": 0.0}),
    ],
)
def test_schedules_of_the_learning_rate(schedule: str, warmup: int, steps: int, values: dict[str, Any]) -> None:
    assert scheduler_values(schedule, warmup, steps) == values


# Refusals


def test_every_setting_has_a_rule() -> None:
    assert set(VERIFIERS.settings) == set(exported_settings(TrainConfig()))


def test_the_document_names_every_setting_that_is_mapped_dropped_or_refused() -> None:
    text = (Path(__file__).parents[2] / "docs" / "engines.md").read_text(encoding="utf-8")
    section = text[text.index("\n## verifiers and prime-rl\n") : text.index("\n## tinker-cookbook\n")]
    for name, rule in VERIFIERS.settings.items():
        if rule.target or rule.reason or rule.is_reported:
            assert f"`{name}`" in section, name


def test_a_training_without_refused_settings_passes() -> None:
    check_engine_settings(VERIFIERS, plan_export(sections={"train": {"scale_rewards": "none", "loss": "bnpo"}}).settings)


@pytest.mark.parametrize(
    ("section", "name", "value", "words"),
    [
        ("plan", "scope", "rollout", "one prompt for all rollouts of a group"),
        ("plan", "dynamic_sampling_groups", 1, "no spare groups"),
        ("plan", "curriculum_strength", 0.5, "drawn while it trains"),
        ("train", "beta", 0.1, "no reference model"),
        ("train", "loss", "grpo", 'divides the loss by the number of tokens of the batch; give "dapo"'),
        ("train", "loss", "dr_grpo", "number of tokens"),
        ("train", "scale_rewards", "group", 'divides by no standard deviation; give "none"'),
        ("train", "scale_rewards", "batch", 'divides by no standard deviation; give "none"'),
        ("train", "updates_per_rollout", 2, "one optimizer step on each batch; give 1"),
        ("train", "temperature", 2.5, "at most 2"),
        ("train", "top_p", 0.9, "from all tokens; give 1"),
        ("train", "precision", "float32", "computes in bfloat16"),
        ("train", "report_to", ("wandb", "mlflow"), "has wandb alone"),
        ("character", "replay", 1.0, "with the fixed weight 1"),
        ("character", "expressivity", 0.2, "needs a classifier"),
        ("dev_eval", "select", "best", 'ends with the last weights; give "last"'),
        ("dev_eval", "patience", 3, "trains all steps"),
    ],
)
def test_what_prime_rl_cannot_do_is_refused_with_the_reason(section: str, name: str, value: Any, words: str) -> None:
    settings = plan_export(sections={"train": {"scale_rewards": "none"}}).settings | {f"{section}.{name}": value}
    with pytest.raises(ConfigError, match=f"^{section}.{name} = {re.escape(repr(value))}: .*{re.escape(words)}"):
        check_engine_settings(VERIFIERS, settings)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("more", "fields", "words"),
    [
        ("", {"n_gpus_per_node": 1}, "n_gpus_per_node = 1: prime-rl trains and samples on different GPUs; give 2 or more"),
        ("vllm_tensor_parallel_size = 3\n", {}, "train.vllm_tensor_parallel_size = 3: must divide the 4 GPUs that sample"),
        ("vllm_tensor_parallel_size = 3\n", {"nnodes": 2}, "must divide n_gpus_per_node = 8"),
        ('lr_schedule = "linear"\nwarmup_steps = 3\n', {}, "train.warmup_steps = 3: with lr_schedule"),
    ],
)
def test_machines_and_schedules_that_cannot_be_are_refused_before_anything_is_written(
    tmp_path: Path, more: str, fields: dict[str, Any], words: str
) -> None:
    with pytest.raises(ConfigError, match=re.escape(words)):
        export(tmp_path, more, **fields)
    assert not (tmp_path / "out").exists()


def test_the_command_names_every_refused_setting_and_writes_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "train.toml").write_text(TRAINING.replace('"none"', '"group"') + "beta = 0.1\n")
    code = cli.run_cli(["export", str(tmp_path / "train.toml"), "--format", "verifiers", "--out", str(tmp_path / "out")])
    message = capsys.readouterr().err
    assert code == 2
    assert "train.scale_rewards = 'group': " in message
    assert "train.beta = 0.1: " in message
    assert not (tmp_path / "out").exists()


# Names and texts that a file must survive

HOSTILE = ['a"b', "a\\b", "a\n[evil]\nb", "é😀", "\x00\x1f\x7f", "'''", "#", "${HOME}", "[[x]]", "a\r\nb"]


@pytest.mark.parametrize("text", HOSTILE)
def test_a_text_comes_back_as_it_was(text: str) -> None:
    assert tomllib.loads(f"x = {toml_value(text)}") == {"x": text}


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_name_of_a_model_changes_no_other_value(name: str, tmp_path: Path) -> None:
    for model in ("m", name):
        made = VERIFIERS.build_files(plan_export(model=model))
        values = {file: tomllib.loads(made.files[file].decode()) for file in ("rl.toml", "eval.toml", "pyproject.toml")}
        assert values["rl.toml"].pop("model") == {"name": model}
        assert values["eval.toml"].pop("model") == model
        if model == "m":
            expected = values
    assert values == expected


def test_half_of_a_surrogate_pair_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"'a\\ud800': cannot be written as UTF-8"):
        VERIFIERS.build_files(plan_export(model="a\ud800"))


@pytest.mark.parametrize(
    ("task", "begin"),
    [
        ("arithmetic", "permix-arithmetic-"), ("own-exact", "permix-own-exact-"), ("My.Pkg:TASK", "permix-my-pkg-task-"),
        ("été:É", "permix-t-"), ("_:_", "permix-"), ("x" * 300, f"permix-{'x' * 40}-"),
    ],
)  # fmt: skip
def test_every_task_gives_an_id_that_pip_python_and_verifiers_accept(task: str, begin: str) -> None:
    name = environment_id(plan_export(row(0, 0, task=task)))
    assert re.fullmatch(re.escape(begin) + "[0-9a-f]{8}", name)
    assert name.replace("-", "_").isidentifier()


def test_a_task_of_ones_own_is_named_in_the_configuration_and_not_in_the_package() -> None:
    made = VERIFIERS.build_files(plan_export(row(0, 0, task="my_tasks:TOWNS")))
    assert tomllib.loads(made.files["rl.toml"].decode())["orchestrator"]["train"]["source"][0]["env"]["taskset"]["own_task"] == (
        "my_tasks:TOWNS"
    )
    (init,) = (content for name, content in made.files.items() if name.endswith("__init__.py"))
    assert b"my_tasks" not in init
    assert b"`my_tasks:TOWNS` must be importable there" in made.files["README.md"]


def test_equal_plans_have_equal_files() -> None:
    plan = Plan((row(0, 0), row(0, 1)), {"task": {"name": "arithmetic"}})
    assert plan_bytes(plan) == plan_bytes(plan)


def test_an_empty_folder_is_filled_also_the_current_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    write_export(VERIFIERS, "verifiers", plan_export(), Path("."))
    write_export(VERIFIERS, "verifiers", plan_export(), tmp_path.parent / f"{tmp_path.name}-new")
    names = [sorted(one.name for one in folder.iterdir()) for folder in (Path("."), tmp_path.parent / f"{tmp_path.name}-new")]
    assert names[0] == names[1]
    assert {"permix.json", "plan.parquet", "rl.toml"} < set(names[0])


def test_an_export_that_was_interrupted_in_its_folder_goes_on(tmp_path: Path) -> None:
    write_export(VERIFIERS, "verifiers", plan_export(), tmp_path)
    for one in tmp_path.iterdir():
        if one.is_file() and one.name != "permix.json":
            one.unlink()
    write_export(VERIFIERS, "verifiers", plan_export(), tmp_path)
    assert (tmp_path / "rl.toml").exists()


def test_a_folder_with_other_content_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine.txt").write_text("mine")
    with pytest.raises(DataError, match="has other content"):
        write_export(VERIFIERS, "verifiers", plan_export(), tmp_path / "out")
    assert [one.name for one in (tmp_path / "out").iterdir()] == ["mine.txt"]

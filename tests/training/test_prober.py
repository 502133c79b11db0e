"""Probing while training: the weights come out as without probes, nothing is asked twice, what was chosen is what is written."""

import json
import random
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from transformers import TrainerControl, TrainerState

from permix import cli
from permix.config import (
    DevEvalConfig,
    OptimConfig,
    PersonasConfig,
    RolloutPlanConfig,
    TaskConfig,
    TrainableModelConfig,
    TrainConfig,
)
from permix.errors import ConfigError, DataError
from permix.evals import stability
from permix.inference.hf import load_causal_lm, load_tokenizer
from permix.metrics.dev_curve import selected_step, selection_text
from permix.pipelines.train import run_training
from permix.report.builder import build_report
from permix.storage.files import read_json
from permix.training.dev_eval import check_dev_eval_prompts, load_dev_curve
from permix.training.job import prepare_training
from permix.training.network import restore_weights, save_weights
from permix.training.run_log import StepClock, read_training_log
from permix.training.trl_setup import (
    DevEvalCallback,
    TrainerHooks,
    selected_weights_path,
    weights_fingerprint,
)
from permix.types import Cell
from tests.cell_files import read_cells
from tests.killable import Moment, command
from tests.multi_process import team
from tests.training import test_sharded

pytestmark = pytest.mark.slow

QUICK = {"lr": 1e-2, "max_new_tokens": 6, "microbatch_tokens": 256, "precision": "float32", "save_every": 2}
SMALL = {"every": 2, "personas": 3, "questions": 15, "characters": 2, "roleplay_max_new_tokens": 6, "metric": "mean"}
ASKED = (3 + 1) * 15 + 2 * 10
"""Answers of one such probe."""


def stage(
    tiny_model: Path, out: Path, probe: dict[str, Any] | None = None, steps: int = 4, method: str = "permix", **settings: Any
) -> TrainConfig:
    """A training with a learning rate under which the tiny model gets worse."""
    mix = None if method == "sft" else 0.6
    return TrainConfig.model_validate(
        {
            "out": out, "threads": 1, "model": TrainableModelConfig(name=str(tiny_model)), "label": "tiny", "method": method,
            "task": TaskConfig(split="train", levels=("add-1", "sub-1"), n=20), "personas": PersonasConfig(split="train", n=4),
            "plan": RolloutPlanConfig(steps=steps, questions_per_step=2, group_size=16, mix=mix),
            "train": OptimConfig.model_validate(QUICK | settings),
            "dev_eval": DevEvalConfig() if probe is None else DevEvalConfig.model_validate(SMALL | probe),
        }
    )  # fmt: skip


def toml_of(tiny_model: Path) -> str:
    """The same, as a file."""
    return f"""
threads = 1
label = "tiny"
model.name = {json.dumps(str(tiny_model))}
task = {{ split = "train", levels = ["add-1", "sub-1"], n = 20 }}
personas = {{ split = "train", n = 4 }}
plan = {{ steps = 4, questions_per_step = 2, group_size = 16 }}
train = {{ lr = 1e-2, max_new_tokens = 6, microbatch_tokens = 256, precision = "float32", save_every = 2, samples_every = 2 }}
[dev_eval]
every = 2
personas = 3
questions = 15
characters = 2
roleplay_max_new_tokens = 6
"""


def lines_of(out: Path) -> list[dict[str, Any]]:
    """dev_eval.jsonl without its wall seconds."""
    return [
        {name: value for name, value in line.items() if name != "seconds"} for line in read_training_log(out / "dev_eval.jsonl")
    ]


def log_of(out: Path) -> list[dict[str, Any]]:
    timed = ("seconds", "cpu_seconds")
    return [{name: value for name, value in line.items() if name not in timed} for line in read_training_log(out / "log.jsonl")]


def records(out: Path) -> dict[str, list[Cell]]:
    """Every answer of every probe, by file; each cell as often as it was written."""
    return {
        str(path.relative_to(out)): [Cell.model_validate_json(line) for line in path.read_text().splitlines()]
        for path in sorted(out.glob("dev_eval/**/records.jsonl"))
    }


@pytest.fixture(scope="module")
def probed(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run directory of a finished training with probes."""
    return run_training(stage(tiny_model, tmp_path_factory.mktemp("probed") / "run", {})).parent


# Training is not disturbed


@pytest.mark.parametrize(
    ("method", "settings"),
    [
        ("permix", {}),
        ("permix", {"lora_rank": 2, "beta": 0.1}),
        ("permix", {"updates_per_rollout": 2}),
        ("permix", {"precision": "bfloat16"}),
        ("sft", {}),
        ("sft-personas", {"lora_rank": 2, "precision": "bfloat16"}),
    ],
    ids=["plain", "lora-kl", "updates_per_rollout", "bfloat16", "sft", "sft-lora-bfloat16"],
)
def test_a_run_with_probes_ends_bitwise_where_one_without_does(
    tiny_model: Path, tmp_path: Path, method: str, settings: dict[str, Any]
) -> None:
    if method != "permix":
        settings = settings | {"max_new_tokens": 16}
    without = run_training(stage(tiny_model, tmp_path / "without", method=method, **settings))
    probing = run_training(stage(tiny_model, tmp_path / "with", {}, method=method, **settings))
    assert (probing / "model.safetensors").read_bytes() == (without / "model.safetensors").read_bytes()
    assert log_of(tmp_path / "with") == log_of(tmp_path / "without")
    last = log_of(tmp_path / "with")[-1]["step"]
    assert [line["step"] for line in lines_of(tmp_path / "with")] == [*range(0, last, 2), last]
    assert {name.split("/")[1] for name in records(tmp_path / "with")} == {f"step-{n:04d}" for n in (*range(0, last, 2), last)}


@pytest.fixture
def network(tiny_model: Path) -> Any:
    torch.set_num_threads(1)
    return load_causal_lm(str(tiny_model), torch.float32, "cpu").train()


class Trainer:
    """As much of a trainer as a prober sees."""

    def __init__(self, tiny_model: Path, network: Any) -> None:
        self.tracked: list[dict[str, float]] = []
        self.probed = TrainerHooks(
            tokenizer=load_tokenizer(str(tiny_model)),
            generation_network=lambda: nullcontext(network),
            unwrapped_model=lambda: network,
            clock=StepClock(),
            log_to_trackers=self.tracked.append,
        )
        self.state = TrainerState(max_steps=10)

    def begin(self, prober: DevEvalCallback) -> None:
        prober.on_train_begin(None, self.state, TrainerControl())

    def end_step(self, prober: DevEvalCallback, step: int) -> TrainerControl:
        self.state.global_step = step
        control = TrainerControl(should_log=True, should_save=True)
        prober.on_step_end(None, self.state, control)
        return control


def prober_of(config: TrainConfig, trainer: Trainer, done: int = 0) -> DevEvalCallback:
    probe = prepare_training(config).dev_eval
    assert probe is not None
    config.out.mkdir(exist_ok=True)
    return DevEvalCallback(probe, done, trainer.probed)


def test_a_probe_leaves_the_global_generators_as_they_were(tiny_model: Path, tmp_path: Path, network: Any) -> None:
    @contextmanager
    def greedy() -> Iterator[Any]:
        random.random(), np.random.random(), torch.rand(1)
        yield network

    def state() -> tuple[object, ...]:
        return random.getstate(), str(np.random.get_state()), torch.get_rng_state().tolist()

    trainer = Trainer(tiny_model, network)
    trainer.probed = trainer.probed._replace(generation_network=greedy)
    before = state()
    trainer.begin(prober_of(stage(tiny_model, tmp_path / "run", {}), trainer))
    assert state() == before


def test_of_two_processes_the_main_one_asks_and_both_stop(tiny_model: Path, tmp_path: Path) -> None:
    """Their weights are one process's but for rounding: so are the probes, as long as no two tokens are that close."""
    config = tmp_path / "train.toml"
    config.write_text(toml_of(tiny_model) + "select = 'best'\npatience = 1\n")
    one, two = tmp_path / "one", tmp_path / "two"
    assert command("train", str(config), "--out", str(one)) == 0
    found = team(tmp_path / "team", "train", str(config), "--out", str(two))
    assert [end.code for end in found] == [0, 0], found
    assert found[1].said == "", "only the main process speaks"
    assert lines_of(two)[-1]["stop"]
    assert lines_of(two) == lines_of(one)
    assert len(log_of(two)) == len(log_of(one)) == lines_of(one)[-1]["step"]
    assert files(two) == files(one)


@pytest.mark.parametrize("settings", [(), ("--train.lora-rank", "2", "--train.lr", "0.3")], ids=["all weights", "lora"])
def test_weights_that_are_shared_out_are_probed_kept_and_written_whole(
    tiny_model: Path, tmp_path: Path, settings: tuple[str, ...]
) -> None:
    config = tmp_path / "train.toml"
    config.write_text(toml_of(tiny_model) + "select = 'best'\nmetric = 'mean'\n")
    found = test_sharded.train(tmp_path / "team", str(config), "--out", str(tmp_path / "run"), *settings)
    assert [end.code for end in found] == [0, 0], found
    lines = lines_of(tmp_path / "run")
    assert [line["step"] for line in lines] == [0, 2, 4]
    assert lines[-1]["best_step"] == 0, "the tiny model got better where it was to get worse: the test shows nothing"
    expected, written = load_file(tiny_model / "model.safetensors"), load_file(tmp_path / "run/model/model.safetensors")
    assert expected.keys() == written.keys()
    assert all(torch.equal(expected[name], written[name]) for name in expected)


# What a probe leaves


def test_a_line_a_probe_says_what_the_records_say(probed: Path) -> None:
    lines = lines_of(probed)
    assert [line["step"] for line in lines] == [0, 2, 4]
    curve = load_dev_curve(probed, DevEvalConfig.model_validate(SMALL))
    assert curve is not None
    for line, point in zip(lines, curve.points, strict=True):
        assert point.model_dump(mode="json") == {name: line[name] for name in point.model_dump()}
        cells = read_cells(probed / "dev_eval" / f"step-{line['step']:04d}" / "stability" / "records.jsonl")
        right: dict[str | None, list[bool]] = {}
        for cell in cells.values():
            assert cell.verdict is not None
            right.setdefault(cell.persona_id, []).append(bool(cell.verdict.correct))
        accuracy = {persona: sum(found) / len(found) for persona, found in right.items()}
        assert line["baseline"]["value"] == pytest.approx(accuracy.pop(None))
        folder = probed / "dev_eval" / f"step-{line['step']:04d}" / "stability"
        assert line["worst"] == stability.measure_stability(folder).worst.model_dump(mode="json")
        assert line["mean"]["value"] == pytest.approx(sum(accuracy.values()) / 3) == pytest.approx(line["score"])
        tokens = [cell.completion.completion_tokens or 0 for cell in cells.values() if cell.completion]
        assert line["completion_tokens"] == pytest.approx(sum(tokens) / 60)
        assert line["chance"] == 0.5
    assert all(0 < line["seconds"] < 60 for line in read_training_log(probed / "dev_eval.jsonl"))


def test_what_its_steps_took_counts_as_probing_and_not_as_training(probed: Path) -> None:
    seconds = [line["seconds"] for line in read_training_log(probed / "log.jsonl")]
    probing = [line["dev_eval"] for line in seconds]
    assert [one > 0 for one in probing] == [False, True, False, True]
    assert seconds[1]["training"] < probing[1]
    assert seconds[0]["training"] < 10 * seconds[2]["training"] + 1, "the probe before the first step is no step's time"


def test_probes_are_runs_like_any_other(probed: Path, tmp_path: Path) -> None:
    """So a point of the curve can be looked into; step 0 taught the classifier of all of them."""
    rows = build_report([probed / "dev_eval" / "step-0000", probed / "dev_eval" / "step-0004"], tmp_path / "report")
    lines = lines_of(probed)
    assert [row.label for row in rows] == ["tiny, step 0", "tiny, step 4"]
    for row, line in zip(rows, (lines[0], lines[2]), strict=True):
        assert row.identifiability is not None
        assert row.measures["mean"].model_dump() == line["mean"]
        assert row.identifiability.model_dump() == line["identifiability"]
    report = (tmp_path / "report" / "report.md").read_text()
    assert "task.split = dev, personas.split = dev; not held out: use for choices" in report


def test_trackers_get_the_figures_and_the_steps_own_log_is_still_due(tiny_model: Path, tmp_path: Path, network: Any) -> None:
    trainer = Trainer(tiny_model, network)
    prober = prober_of(stage(tiny_model, tmp_path / "run", {}), trainer)
    trainer.begin(prober)
    assert trainer.end_step(prober, 1).should_log
    control = trainer.end_step(prober, 2)
    assert control.should_log
    assert control.should_save
    assert [set(figures) for figures in trainer.tracked] == [
        {f"dev_eval/{name}" for name in ("mean", "worst", "pss", "baseline", "identifiability", "cut_off")}
    ] * 2
    assert trainer.tracked[0]["dev_eval/mean"] == lines_of(tmp_path / "run")[0]["mean"]["value"]


# Choosing


def test_the_best_weights_become_the_model(tiny_model: Path, tmp_path: Path) -> None:
    """Those are what a run that ends at the best step writes: its steps are the same."""
    config = stage(tiny_model, tmp_path / "run", {"every": 1, "select": "best", "metric": "balanced"})
    folder = run_training(config)
    best = lines_of(tmp_path / "run")[-1]["best_step"]
    assert best < 4, "the tiny model got better where it was to get worse: the test shows nothing"
    source = tiny_model if best == 0 else run_training(stage(tiny_model, tmp_path / "short", steps=best))
    expected, found = load_file(source / "model.safetensors"), load_file(folder / "model.safetensors")
    assert expected.keys() == found.keys()
    assert all(torch.equal(expected[name], found[name]) for name in expected)
    curve = load_dev_curve(tmp_path / "run", config.dev_eval)
    assert curve is not None
    assert selected_step(curve) == best
    assert selection_text(curve) in (folder / "README.md").read_text(encoding="utf-8")
    assert not list((tmp_path / "run").glob("dev_eval/**/*.safetensors"))


def test_the_best_adapters_become_the_model(tiny_model: Path, tmp_path: Path) -> None:
    """Before training adapters do nothing: a run whose best probe is the first one writes the model it began with."""
    settings: dict[str, Any] = {"lora_rank": 2, "lr": 0.3}
    folder = run_training(stage(tiny_model, tmp_path / "run", {"select": "best"}, **settings))
    assert lines_of(tmp_path / "run")[-1]["best_step"] == 0
    expected, found = load_file(tiny_model / "model.safetensors"), load_file(folder / "model.safetensors")
    assert all(torch.equal(expected[name], found[name]) for name in expected)
    assert "No dev evaluation was better than that of the model before training" in (folder / "README.md").read_text(
        encoding="utf-8"
    )


def test_patience_ends_the_training_and_the_run_is_finished(tiny_model: Path, tmp_path: Path) -> None:
    config = stage(tiny_model, tmp_path / "run", {"every": 1, "patience": 2}, steps=12)
    folder = run_training(config)
    lines = lines_of(tmp_path / "run")
    scores = [line["score"] for line in lines]
    expected = next(n for n in range(2, 13) if max(scores[: n - 1]) >= max(scores[n - 1 : n + 1]))
    assert [line["step"] for line in read_training_log(tmp_path / "run" / "log.jsonl")] == list(range(1, expected + 1))
    assert [line["stop"] for line in lines] == [False] * expected + [True]
    assert f"Training ended at step {expected}: no dev evaluation after step {expected - 2} was better (patience = 2)." in (
        folder / "README.md"
    ).read_text(encoding="utf-8")
    assert not (tmp_path / "run" / "checkpoints").exists()
    before = (folder / "model.safetensors").stat().st_mtime_ns
    assert run_training(config) == folder
    assert (folder / "model.safetensors").stat().st_mtime_ns == before


def test_a_stop_leaves_no_checkpoint_of_its_own_step(tiny_model: Path, tmp_path: Path, network: Any) -> None:
    """A run resumed from one would take another step before it could stop."""
    trainer = Trainer(tiny_model, network)
    prober = prober_of(stage(tiny_model, tmp_path / "run", {"patience": 1}), trainer)
    trainer.begin(prober)
    control = trainer.end_step(prober, 2)  # the same weights: no better
    assert (control.should_training_stop, control.should_save, control.should_log) == (True, False, True)


def test_weights_that_no_resumed_run_could_choose_are_dropped_when_a_checkpoint_is_whole(
    tiny_model: Path, tmp_path: Path, network: Any
) -> None:
    trainer = Trainer(tiny_model, network)
    config = stage(tiny_model, tmp_path / "run", {"select": "best"})
    prober = prober_of(config, trainer)
    trainer.begin(prober)
    lines = read_training_log(tmp_path / "run" / "dev_eval.jsonl")
    for step, mean in ((2, 0.9), (4, 0.8)):
        folder = tmp_path / "run" / "dev_eval" / f"step-{step:04d}"
        folder.mkdir(parents=True)
        save_weights(network, folder / "weights.safetensors")
        lines.append(lines[0] | {"step": step, "mean": lines[0]["mean"] | {"value": mean, "low": None, "high": None}})
    (tmp_path / "run" / "dev_eval.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))

    def left() -> list[str]:
        return sorted(path.parent.name for path in (tmp_path / "run").glob("dev_eval/*/weights.safetensors"))

    assert left() == ["step-0000", "step-0002", "step-0004"]
    prober.on_save()  # this one knows only of step 0
    assert left() == ["step-0000"]
    save_weights(network, tmp_path / "run" / "dev_eval" / "step-0002" / "weights.safetensors")
    prober_of(config, trainer, done=4)
    assert left() == ["step-0002"]
    assert [line["step"] for line in read_training_log(tmp_path / "run" / "dev_eval.jsonl")] == [0, 2, 4]


def test_kept_weights_are_put_back_bit_for_bit(network: Any, tmp_path: Path) -> None:
    before = {name: one.detach().clone() for name, one in network.named_parameters()}
    save_weights(network, tmp_path / "weights.safetensors")
    assert [path.name for path in tmp_path.iterdir()] == ["weights.safetensors"]
    with torch.no_grad():
        for one in network.parameters():
            one.add_(1.0)
    restore_weights(network, tmp_path / "weights.safetensors")
    assert all(torch.equal(one, before[name]) for name, one in network.named_parameters())
    with pytest.raises(DataError, match=r"gone\.safetensors: the weights that the dev evaluations chose are missing"):
        restore_weights(network, tmp_path / "gone.safetensors")


def test_a_state_of_tied_weights_gets_them_under_each_of_their_names(network: Any, tmp_path: Path) -> None:
    """As one gathered from processes that share the weights out."""
    save_weights(network, tmp_path / "weights.safetensors")
    state: dict[str, Any] = {"lm_head.weight": None, "model.embed_tokens.weight": None}
    restore_weights(network, tmp_path / "weights.safetensors", state)
    assert set(state) == set(network.state_dict())
    assert all(torch.equal(one, state[name]) for name, one in network.state_dict().items())


def test_the_last_weights_need_no_file(probed: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert selected_weights_path(probed, DevEvalConfig.model_validate(SMALL)) is None
    assert "The weights are those of step 4, the last (select = last; of 3 dev evaluations" in capsys.readouterr().err


# Resuming


def test_a_fingerprint_follows_the_weights_and_their_precision(network: Any) -> None:
    before = weights_fingerprint(network)
    assert weights_fingerprint(network) == before
    assert weights_fingerprint(network.to(torch.bfloat16).to(torch.float32)) != before
    rounded = weights_fingerprint(network)
    assert weights_fingerprint(network.to(torch.bfloat16)) != rounded


def test_records_of_other_weights_are_set_aside_and_kept(tiny_model: Path, tmp_path: Path, network: Any) -> None:
    """As a step done again on another machine need not give the same bits."""
    trainer = Trainer(tiny_model, network)
    config = stage(tiny_model, tmp_path / "run", {})
    trainer.begin(prober_of(config, trainer))
    before = records(tmp_path / "run")
    for number in (1, 2):
        with torch.no_grad():
            for one in network.parameters():
                one.mul_(0.9)
        (tmp_path / "run" / "dev_eval.jsonl").unlink()
        trainer.begin(prober_of(config, trainer))
        aside = f"dev_eval/step-0000-set-aside-{number}"
        assert (tmp_path / "run" / aside / "fidelity" / "records.jsonl").exists()
    after = records(tmp_path / "run")
    assert len(after) == 6
    for kind in ("stability", "fidelity"):
        assert after[f"dev_eval/step-0000-set-aside-1/{kind}/records.jsonl"] == before[f"dev_eval/step-0000/{kind}/records.jsonl"]


MOMENTS = [
    Moment("permix.storage.run_dir:RunDir.append", 30),
    Moment("safetensors.torch:save_file", 1, torn=True),
    Moment("permix.training.trl_setup:save_weights", 1),
    Moment("permix.training.trl_setup:DevEvalCallback._write_log", 2),
    Moment("permix.storage.run_dir:RunDir.append", ASKED - 5),
    Moment("permix.training.checkpoints:_write_manifest", 1),
    Moment("permix.training.trl_setup:dev_point_from_metrics", 1),
    Moment("permix.training.model_card:selection_text", 1),
]
"""Where each start of the run dies: in the probe before training; in the middle of keeping its weights; when they are kept and
its line is not written; after that line; in the open-ended half of the next probe; when the first checkpoint is whole; when the
probe after it is measured and not written down; in the middle of writing the model."""


@pytest.mark.parametrize(
    "settings",
    [
        ("--dev-eval.select", "best"),
        ("--dev-eval.select", "best", "--dev-eval.patience", "2", "--plan.steps", "8"),
        ("--dev-eval.select", "best", "--train.lora-rank", "2", "--train.save-every", "3"),
    ],
    ids=["best", "patience", "lora"],
)
def test_a_run_killed_again_and_again_chooses_and_ends_as_an_undisturbed_one(
    tiny_model: Path, tmp_path: Path, settings: tuple[str, ...]
) -> None:
    config = tmp_path / "train.toml"
    config.write_text(toml_of(tiny_model))
    undisturbed, killed = tmp_path / "undisturbed", tmp_path / "killed"
    assert command("train", str(config), "--out", str(undisturbed), *settings) == 0
    for moment in MOMENTS if settings == ("--dev-eval.select", "best") else MOMENTS[1::3]:
        assert command("train", str(config), "--out", str(killed), *settings, dies=moment) == -9, moment
        assert not (killed / "model").exists()
    assert command("train", str(config), "--out", str(killed), *settings) == 0
    assert (killed / "model/model.safetensors").read_bytes() == (undisturbed / "model/model.safetensors").read_bytes()
    assert (killed / "model/README.md").read_bytes() == (undisturbed / "model/README.md").read_bytes()
    assert log_of(killed) == log_of(undisturbed)
    assert lines_of(killed) == lines_of(undisturbed)
    assert lines_of(killed)[-1]["stop"] == ("--dev-eval.patience" in settings)
    assert records(killed) == records(undisturbed), "nothing is lost, and nothing is generated twice"
    assert files(killed) == files(undisturbed)


def files(out: Path) -> list[str]:
    return sorted(str(path.relative_to(out)) for path in out.rglob("*") if path.is_file())


# Refusals, and the whole way


def test_a_prompt_that_leaves_no_room_for_its_answer_is_refused(tiny_model: Path, tmp_path: Path) -> None:
    config = stage(tiny_model, tmp_path / "run", {"max_new_tokens": 500})
    refused = r"dev_eval.max_new_tokens = 500: .* reads 512; give dev_eval.max_new_tokens = \d+ or less"
    with pytest.raises(ConfigError, match=refused):
        run_training(config)
    assert not (tmp_path / "run" / "dev_eval.jsonl").exists()
    probe = prepare_training(config.model_copy(update={"dev_eval": DevEvalConfig.model_validate(SMALL)})).dev_eval
    assert probe is not None
    check_dev_eval_prompts(probe, load_tokenizer(str(tiny_model)), 512)


def test_another_probe_in_its_folder_is_refused(tiny_model: Path, probed: Path) -> None:
    for other, named in (({"every": 3}, "dev_eval.every = 2, not 3; give"), (None, "dev_eval.every = 2, not 0; ")):
        with pytest.raises(ConfigError, match=f"this run was made with .*{named}"):
            run_training(stage(tiny_model, probed, other))


@pytest.fixture
def trained(tiny_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Path:
    """A run directory made by the command line."""
    flags = {
        "model.name": tiny_model, "out": tmp_path / "run", "threads": 1, "label": "tiny", "task.n": 20, "personas.n": 4,
        "plan.steps": 2, "plan.questions-per-step": 2, "plan.group-size": 8, "train.max-new-tokens": 6, "train.lr": 0.01,
        "train.precision": "float32",
        "dev_eval.every": 1, "dev_eval.personas": 2, "dev_eval.questions": 5, "dev_eval.characters": 2, "dev_eval.select": "best",
        "dev_eval.roleplay-max-new-tokens": 6, "dev_eval.patience": 5,
    }  # fmt: skip
    words = [word for name, value in flags.items() for word in (f"--{name}", str(value))]
    assert cli.run_cli(["train", *words]) == 0
    shown = capsys.readouterr()
    assert shown.out.strip() == str(tmp_path / "run" / "model")
    for step in (0, 1, 2):
        assert f"\ndev evaluation at step {step}: mean 0." in f"\n{shown.err}"
    shares = {line["step"]: line["cut_off"] for line in lines_of(tmp_path / "run")}
    for step, share in shares.items():  # the line names the share where an answer was cut off
        (line,) = (line for line in shown.err.splitlines() if line.startswith(f"dev evaluation at step {step}:"))
        assert (", cut off " in line) == (share > 0)
    assert "The weights are those of step " in shown.err
    (summary,) = (line for line in shown.err.splitlines() if line.startswith("trained tiny: "))
    assert summary.startswith("trained tiny: 2 steps in 0:")
    assert "; reward 0." in summary
    return tmp_path / "run"


def test_from_the_command_line_to_the_report(trained: Path, tmp_path: Path) -> None:
    assert cli.run_cli(["report", str(trained), "--out", str(tmp_path / "report")]) == 0
    config = TrainConfig.model_validate(read_json(trained / "config.json"))
    curve = load_dev_curve(trained, config.dev_eval)
    assert curve is not None
    (data,) = read_json(tmp_path / "report" / "table.json")["dev_evals"].values()
    assert data["points"] == [point.model_dump(mode="json") for point in curve.points]
    assert data["weights_of_step"] == lines_of(trained)[-1]["best_step"] == selected_step(curve)
    assert (tmp_path / "report" / "probes.png").read_bytes().startswith(b"\x89PNG")
    report = (tmp_path / "report" / "report.md").read_text(encoding="utf-8")
    assert "![dev evaluations during training](probes.png)" in report
    assert f"- **tiny**: {selection_text(curve)}" in report
    assert "They are not results" in report

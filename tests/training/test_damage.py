"""A training's folder that something has damaged: it ends with an undisturbed run's bits, or one line names the file."""

import os
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from permix import cli
from permix.config import DevEvalConfig, PersonasConfig, TaskConfig, TrainConfig
from permix.errors import DataError
from permix.pipelines.train import run_training
from permix.storage.files import read_json, write_json
from permix.training.checkpoints import MANIFEST, newest_checkpoint
from permix.training.run_log import MetricsLogger, read_training_log
from tests.training.test_train_run import stage

SETTINGS: dict[str, Any] = {"updates_per_rollout": 2, "save_every": 1, "max_new_tokens": 4}
PROBE = {"every": 2, "personas": 2, "questions": 5, "characters": 0, "metric": "mean", "select": "best"}
LAST = 5
"""The run is interrupted after its fifth optimizer step, amid the two steps of the third generation."""


def config_of(tiny_model: Path, out: Path, probe: bool = True) -> TrainConfig:
    config = stage(tiny_model, out, plan={"steps": 3, "group_size": 4}, **SETTINGS)
    more = {"task": TaskConfig(split="train", levels=("add-1", "sub-1"), n=20), "personas": PersonasConfig(split="train", n=4)}
    return config.model_copy(update=more | ({"dev_eval": DevEvalConfig.model_validate(PROBE)} if probe else {}))


class Interrupted(BaseException):
    """Ends a training as a kill would: nothing is caught or cleaned up."""


def interrupt(config: TrainConfig, monkeypatch: pytest.MonkeyPatch, step: int) -> Path:
    """Train until `step` has been logged, whose checkpoint is not yet written."""
    original = MetricsLogger.log_metrics

    def log_metrics(log: MetricsLogger, number: int, metrics: Any) -> None:
        original(log, number, metrics)
        if number == step:
            raise Interrupted

    with monkeypatch.context() as patched:
        patched.setattr(MetricsLogger, "log_metrics", log_metrics)
        with pytest.raises(Interrupted):
            run_training(config)
    return config.out


class Runs:
    """An undisturbed run and an interrupted one, with checkpoints 4 and 5 and the log of step 6."""

    def __init__(self, tiny_model: Path, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.tiny_model = tiny_model
        self.undisturbed = run_training(config_of(tiny_model, folder / "undisturbed")).parent
        self.interrupted = interrupt(config_of(tiny_model, folder / "interrupted"), monkeypatch, LAST + 1)

    def copy(self, out: Path) -> TrainConfig:
        shutil.copytree(self.interrupted, out)
        return config_of(self.tiny_model, out)


@pytest.fixture(scope="module")
def runs(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Runs:
    with pytest.MonkeyPatch.context() as monkeypatch:
        return Runs(tiny_model, tmp_path_factory.mktemp("damage"), monkeypatch)


def untimed(path: Path) -> list[dict[str, Any]]:
    timed = ("seconds", "cpu_seconds")
    return [{name: value for name, value in line.items() if name not in timed} for line in read_training_log(path)]


def assert_same(found: Path, expected: Path) -> None:
    """The same weights to the bit, and the same logs."""
    weights = "model/model.safetensors"
    assert (found / weights).read_bytes() == (expected / weights).read_bytes()
    for name in ("log.jsonl", "rollouts.jsonl", "dev_eval.jsonl"):
        assert untimed(found / name) == untimed(expected / name), name
    assert not (found / "checkpoints").exists()


def newest(out: Path) -> Path:
    return out / "checkpoints" / f"checkpoint-{LAST}"


def halve(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def nul(path: Path) -> None:
    """NULs over its middle third: the size stays."""
    content = path.read_bytes()
    third = len(content) // 3
    path.write_bytes(content[:third] + bytes(third) + content[2 * third :])


def pipe(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


FILES = ("model.safetensors", "optimizer.pt", "scheduler.pt", "rng_state.pth", "config.json", "trainer_state.json",
         "permix_rollouts-0-of-1.pt", MANIFEST)  # fmt: skip
DAMAGES = (halve, nul, Path.unlink, pipe)


@pytest.mark.slow
@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("damage", DAMAGES, ids=["half", "nul", "gone", "pipe"])
def test_a_checkpoint_with_a_damaged_file_is_not_used(
    runs: Runs, tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str, damage: Callable[[Path], None]
) -> None:
    out = runs.copy(tmp_path / "run").out
    damage(newest(out) / name)
    assert newest_checkpoint(out / "checkpoints") == out / "checkpoints" / "checkpoint-4"
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"note: {newest(out)}")
    assert name in line
    assert line.endswith(", so it is not used; training continues from checkpoint-4")


def test_a_file_more_is_a_damage_too(runs: Runs, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The trainer may prefer it to the one that was written."""
    out = runs.copy(tmp_path / "run").out
    (newest(out) / "pytorch_model.bin").write_bytes(b"")
    assert newest_checkpoint(out / "checkpoints") == out / "checkpoints" / "checkpoint-4"
    assert f"{newest(out)}/pytorch_model.bin: is not a file of this checkpoint" in capsys.readouterr().err


@pytest.mark.parametrize("content", ["{}", "[]", '{"step": 5, "run": 1, "files": [], "logs": {}}', "[" * 100_000])
def test_a_manifest_that_is_none(runs: Runs, tmp_path: Path, content: str) -> None:
    out = runs.copy(tmp_path / "run").out
    (newest(out) / MANIFEST).write_text(content)
    assert newest_checkpoint(out / "checkpoints") == out / "checkpoints" / "checkpoint-4"


@pytest.mark.slow
def test_the_checkpoint_before_gives_the_same_bits(runs: Runs, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = runs.copy(tmp_path / "run")
    nul(newest(config.out) / "model.safetensors")
    run_training(config)
    assert "model.safetensors: is damaged, since its content has changed, so it is not used; " in capsys.readouterr().err
    assert_same(config.out, runs.undisturbed)


@pytest.mark.slow
def test_without_a_whole_checkpoint_training_starts_again_and_gives_the_same_bits(
    runs: Runs, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = runs.copy(tmp_path / "run")
    (newest(config.out) / "scheduler.pt").unlink()
    halve(config.out / "checkpoints" / "checkpoint-4" / "optimizer.pt")
    run_training(config)
    notes = [line for line in capsys.readouterr().err.splitlines() if line.startswith("note: ")]
    assert [line.rpartition("; ")[2] for line in notes] == ["training starts again from its first step"] * 2
    assert_same(config.out, runs.undisturbed)


def make_whole(checkpoint: Path, step: int) -> None:
    """Make a copy of another checkpoint as much like one of `step` as a reader of its state can tell."""
    for name, key in (("trainer_state.json", "global_step"), (MANIFEST, "step")):
        write_json(checkpoint / name, read_json(checkpoint / name) | {key: step})


@pytest.mark.slow
def test_what_is_no_checkpoint_of_the_run_is_not_used(runs: Runs, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A name without a step, a file, a checkpoint from beyond the end, one of another run, and a file where the next is due."""
    config = runs.copy(tmp_path / "run")
    folder = config.out / "checkpoints"
    (folder / "checkpoint-x").mkdir()
    (folder / "checkpoint-98").write_bytes(b"")
    (folder / f"checkpoint-{LAST + 1}").write_bytes(b"")
    shutil.copytree(newest(config.out), folder / "checkpoint-99")
    make_whole(folder / "checkpoint-99", 99)
    shutil.copytree(newest(config.out), folder / "checkpoint-97")
    make_whole(folder / "checkpoint-97", 97)
    manifest = folder / "checkpoint-97" / MANIFEST
    write_json(manifest, read_json(manifest) | {"run": "0123456789abcdef"})
    assert newest_checkpoint(folder) == newest(config.out)
    notes = capsys.readouterr().err.splitlines()
    assert [line.split(", so ")[0].removeprefix(f"note: {folder}/") for line in notes] == [
        "checkpoint-99/trainer_state.json: is damaged, since its size has changed",
        "checkpoint-98: is not a folder",
        "checkpoint-97: was written at step 97 of another run, or renamed",
        "checkpoint-6: is not a folder",
    ]
    run_training(config)
    assert_same(config.out, runs.undisturbed)


LOGS = ("log.jsonl", "rollouts.jsonl", "dev_eval.jsonl")


@pytest.mark.parametrize("name", LOGS)
@pytest.mark.parametrize("torn", [b'{"step": 1, "rew', b"\0" * 4096, b"[1]", b"{}"], ids=["half", "nul", "list", "empty"])
def test_a_torn_line_in_the_middle_of_a_log_is_named(
    runs: Runs, tmp_path: Path, name: str, torn: bytes, capsys: pytest.CaptureFixture[str]
) -> None:
    config = runs.copy(tmp_path / "run")
    lines = (config.out / name).read_bytes().splitlines(keepends=True)
    (config.out / name).write_bytes(b"".join([lines[0], torn + b"\n", *lines[2:]]))
    before = sorted(config.out.rglob("*"))
    with pytest.raises(DataError) as refused:
        run_training(config)
    assert str(refused.value).startswith(f"{config.out / name}:2: not a line with a step: ")
    assert "\n" not in str(refused.value)
    assert sorted(config.out.rglob("*")) == before


@pytest.mark.parametrize("name", LOGS)
@pytest.mark.parametrize("damage", [Path.unlink, lambda path: path.write_bytes(b"")], ids=["gone", "empty"])
def test_a_log_that_is_gone_is_refused(runs: Runs, tmp_path: Path, name: str, damage: Callable[[Path], None]) -> None:
    config = runs.copy(tmp_path / "run")
    damage(config.out / name)
    advice = (
        f"checkpoint-{LAST} was written with it; restore the file, or remove .*/checkpoints to train again from the first step"
    )
    with pytest.raises(DataError, match=f"^{config.out / name}: .*, and {advice}$"):
        run_training(config)
    assert newest(config.out).exists()


@pytest.mark.slow
def test_without_logs_and_checkpoints_training_starts_again_and_gives_the_same_bits(runs: Runs, tmp_path: Path) -> None:
    """As the refusal advises."""
    config = runs.copy(tmp_path / "run")
    for name in LOGS:
        (config.out / name).unlink()
    shutil.rmtree(config.out / "checkpoints")
    run_training(config)
    assert_same(config.out, runs.undisturbed)


@pytest.mark.slow
def test_nuls_at_the_end_of_a_log_are_a_torn_line(runs: Runs, tmp_path: Path) -> None:
    config = runs.copy(tmp_path / "run")
    for name in LOGS:
        with (config.out / name).open("ab") as file:
            file.write(bytes(4096))
    run_training(config)
    assert_same(config.out, runs.undisturbed)


@pytest.mark.slow
@pytest.mark.parametrize("damage", DAMAGES[:3], ids=["half", "nul", "gone"])
def test_weights_that_dev_evaluations_chose_and_that_are_damaged_are_refused_before_training(
    runs: Runs, tmp_path: Path, damage: Callable[[Path], None], capsys: pytest.CaptureFixture[str]
) -> None:
    config = runs.copy(tmp_path / "run")
    best = read_training_log(config.out / "dev_eval.jsonl")[-1]["best_step"]
    weights = config.out / "dev_eval" / f"step-{best:04d}" / "weights.safetensors"
    damage(weights)
    steps = len(read_training_log(config.out / "log.jsonl"))
    with pytest.raises(
        DataError, match=r"weights\.safetensors: the weights that the dev evaluations chose are missing or damaged"
    ):
        run_training(config)
    assert len(read_training_log(config.out / "log.jsonl")) <= steps
    if damage is halve:  # what the refusal advises
        shutil.rmtree(config.out / "checkpoints")
        run_training(config)
        assert_same(config.out, runs.undisturbed)


def test_a_pickle_of_a_stranger_does_not_run(runs: Runs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not even if somebody wrote the manifest anew, for there is no trust in one: torch loads weights and plain data only."""

    class Evil:
        def __reduce__(self) -> Any:
            return (Path.touch, (tmp_path / "ran",))

    config = runs.copy(tmp_path / "run")
    for name in ("optimizer.pt", "rng_state.pth", "scheduler.pt", "permix_rollouts-0-of-1.pt"):
        (newest(config.out) / name).write_bytes(pickle.dumps(Evil()))
    monkeypatch.setattr("permix.training.checkpoints._check_files", lambda *_: None)
    with pytest.raises(pickle.UnpicklingError, match="Weights only load failed"):
        run_training(config)
    assert not (tmp_path / "ran").exists()


@pytest.mark.slow
def test_a_supervised_training_goes_on_from_the_checkpoint_before(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def config(name: str) -> TrainConfig:
        sections = stage(tiny_model, tmp_path / name, save_every=1, max_new_tokens=16, plan={"steps": 4, "mix": 0.0})
        return TrainConfig.model_validate(sections.model_dump(exclude={"character"}) | {"method": "sft"})

    undisturbed = run_training(config("undisturbed")).parent
    out = interrupt(config("damaged"), monkeypatch, 4)
    (out / "checkpoints" / "checkpoint-3" / "optimizer.pt").unlink()
    examples = (out / "examples.jsonl").rename(tmp_path / "examples.jsonl")
    with pytest.raises(DataError, match=r"examples\.jsonl: is missing, and checkpoint-2 was written with it"):
        run_training(config("damaged"))
    examples.rename(out / "examples.jsonl")
    run_training(config("damaged"))
    weights = "model/model.safetensors"
    assert (out / weights).read_bytes() == (undisturbed / weights).read_bytes()
    assert untimed(out / "log.jsonl") == untimed(undisturbed / "log.jsonl")


def test_the_command_says_it_in_one_line(runs: Runs, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = runs.copy(tmp_path / "run")
    (config.out / "rollouts.jsonl").unlink()
    write_json(config.out / "config.json", read_json(config.out / "config.json") | {"out": str(config.out)})
    assert cli.run_cli(["train", str(config.out / "config.json")]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(
        f"permix train: {config.out / 'rollouts.jsonl'}: is missing, and checkpoint-{LAST} was written with it"
    )

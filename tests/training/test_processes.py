"""Two processes train like one, end like one, and leave one message when something is wrong."""

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from permix.config import OptimConfig
from permix.errors import PermixError
from permix.inference.hardware import cores_per_process
from permix.inference.hf import load_causal_lm
from permix.training import distributed
from permix.training.gradient_step import GradientStep, ReplayBatch
from permix.training.grpo_trainer import PlanGRPOTrainer
from permix.training.rollouts import Sample
from permix.training.run_log import RolloutLogger, read_training_log
from tests.killable import Moment
from tests.multi_process import Ended, command, each, ended, started, team

pytestmark = pytest.mark.slow

SETTINGS = {
    "dapo": (),
    "grpo-kl-iterations-checkpointing": (
        "--train.loss",
        "grpo",
        "--train.beta",
        "0.1",
        "--train.updates_per_rollout",
        "2",
        "--train.gradient-checkpointing",
    ),
    "lora-kl-rollout-scope": ("--train.lora-rank", "2", "--train.beta", "0.1", "--plan.scope", "rollout"),
    "dr-grpo-batch-replay": (
        "--train.loss",
        "dr_grpo",
        "--train.scale-rewards",
        "batch",
        "--character.replay",
        "0.5",
        "--character.expressivity",
        "0.5",
    ),
    "adaptive-spares": (
        "--plan.group-size",
        "4",
        "--plan.dynamic_sampling_groups",
        "3",
        "--plan.curriculum_strength",
        "4",
        "--plan.curriculum-update-every",
        "1",
    ),
    "on-policy-replay": ("--character.replay", "0.5", "--character.replay-policy", "on"),
}


@pytest.fixture
def config(tiny_model: Path, tmp_path: Path) -> Path:
    path = tmp_path / "train.toml"
    path.write_text(
        f"""
        threads = 1
        label = "tiny"
        model.name = {json.dumps(str(tiny_model))}
        task = {{ split = "train", levels = ["sub-1"], n = 20 }}
        personas = {{ split = "train", n = 4 }}
        plan = {{ steps = 3, questions_per_step = 4, group_size = 8, mix = 0.6 }}
        train = {{ lr = 1e-2, max_new_tokens = 6, microbatch_tokens = 256, precision = "float32", save_every = 2, samples_every = 2 }}
        character = {{ personas = 2, questions = 3, max_new_tokens = 6, replay_answers = 3 }}
        """  # noqa: E501
    )
    return path


TRLS_MEANS = {"completion_tokens", "truncated", "reward_std", "frac_nonzero_advantage_groups"}
"""Of spare groups these count what was generated to fill up a process's share, too."""


def relative_distance(one: Path, two: Path, start: Path) -> float:
    """How far two models are from each other, as a share of how far training moved the first."""
    ours, theirs, before = (load_file(folder / "model.safetensors") for folder in (one, two, start))

    def norm(left: dict[str, torch.Tensor], right: dict[str, torch.Tensor]) -> float:
        return float(torch.cat([(left[name] - right[name]).double().flatten() for name in left]).norm())

    zeros = {name: torch.zeros_like(value) for name, value in ours.items()}
    assert norm(ours, before) > 1e-2 * norm(ours, zeros)
    return norm(ours, theirs) / norm(ours, zeros)


def close(one: Any, two: Any, relative: float) -> bool:
    return bool(one == two or (one is not None and two is not None and one == pytest.approx(two, rel=relative, abs=2e-6)))


def untimed(log: Path) -> list[dict[str, Any]]:
    return [
        {name: one for name, one in line.items() if name not in ("seconds", "cpu_seconds")} for line in read_training_log(log)
    ]


@pytest.mark.parametrize("settings", SETTINGS.values(), ids=SETTINGS)
def test_two_processes_train_like_one(config: Path, tiny_model: Path, tmp_path: Path, settings: tuple[str, ...]) -> None:
    one, two = tmp_path / "one", tmp_path / "two"
    assert team(tmp_path / "alone", "train", str(config), "--out", str(one), *settings, size=1)[0].code == 0
    found = team(tmp_path / "team", "train", str(config), "--out", str(two), *settings)
    assert [end.code for end in found] == [0, 0], found
    # Adam makes a whole step of a gradient that is rounding alone, as off-policy replay's is while the model still is its base.
    noisy, spares = "--character.expressivity" in settings, "--plan.dynamic_sampling_groups" in settings
    assert relative_distance(one / "model", two / "model", tiny_model) <= (1e-3 if noisy else 1e-4 if spares else 1e-5)
    for name in ("rollouts.jsonl", "samples.md", "plan.parquet", "plan_blocks.jsonl", "model/README.md"):
        if (one / name).exists():
            assert (one / name).read_bytes() == (two / name).read_bytes(), name
    assert sorted(path.name for path in one.iterdir()) == sorted(path.name for path in two.iterdir())
    for ours, theirs in zip(untimed(two / "log.jsonl"), untimed(one / "log.jsonl"), strict=True):
        assert ours.keys() == theirs.keys()
        for name in ours.keys() - (TRLS_MEANS if spares else set()):
            assert close(ours[name], theirs[name], 1e-2 if noisy else 2e-4), (name, ours[name], theirs[name])
    assert found[1].said == "", "only the main process speaks"
    lines = found[0].said.splitlines()
    assert lines[-1] == str(two / "model")
    assert len(lines) == len(set(lines))


# One step's gradient, dealt in different ways.

PROMPTS = ((5, 6, 7, 8), (9, 10, 11))
COMPLETIONS = ([20, 21, 22], [23, 24], [25, 26, 27, 28, 29], [30])
DEALS = {
    "both live": (1.0, -0.5, 0.25, -2.0),
    "the first process has nothing to learn": (0.0, 0.0, 1.5, -1.0),
    "the last process has nothing to learn": (2.0, -1.0, 0.0, 0.0),
    "nobody has": (0.0, 0.0, 0.0, 0.0),
}


def rollouts_of(advantages: tuple[float, ...]) -> list[Sample]:
    """Two groups of two; completions of unlike lengths, so that a mean of the processes' means would be another number."""
    return [
        Sample(PROMPTS[place // 2], COMPLETIONS[place], advantage, ref_logprobs=[-4.0 - place] * len(COMPLETIONS[place]))
        for place, advantage in enumerate(advantages)
    ]


def answers() -> list[Sample]:
    return [Sample(PROMPTS[0], [40, 41, 42], 0.0, ref_logprobs=[-5.0] * 3), Sample(PROMPTS[1], [43], 0.0, ref_logprobs=[-6.0])]


SIDES: dict[str, dict[str, Any]] = {
    "dapo": {"loss": "dapo"},
    "grpo": {"loss": "grpo"},
    "dr_grpo": {"loss": "dr_grpo"},
    "kl": {"beta": 0.3},
    "replay": {},
}


def all_steps(model: Path, out: Path) -> None:
    """This process's part of every step; leaves their losses, figures and gradients in `out`."""
    from accelerate import Accelerator
    from accelerate.state import AcceleratorState

    torch.set_num_threads(1)
    with distributed.process_group():
        AcceleratorState._reset_state()  # another test of this process may have left bfloat16
        accelerator = Accelerator(cpu=True, mixed_precision="no")
        network = accelerator.prepare(load_causal_lm(str(model), torch.float32, "cpu").train())
        size, rank = distributed.world_size(), distributed.rank()
        found = {}
        for side, settings in SIDES.items():
            # Packs of at most 9 tokens: a process with rollouts has more of them than one without.
            config = OptimConfig.model_validate(settings | {"max_new_tokens": 8})
            for deal, advantages in DEALS.items():
                own = rollouts_of(advantages)[rank * 4 // size : (rank + 1) * 4 // size]
                replayed = ReplayBatch(0.5, answers()[rank::size], ()) if side == "replay" else None
                network.zero_grad()
                loss, figures = GradientStep(config, accelerator, 1, microbatch_tokens=9).accumulate(network, own, replayed)
                found[side, deal] = loss, figures, torch.cat([one.grad.flatten() for one in network.parameters()])
        torch.save(found, out / f"steps-{rank}-of-{size}.pt")


@pytest.fixture(scope="module")
def steps(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("steps")
    all_steps(tiny_model, out)
    found = each(out / "team", all_steps, tiny_model, out)
    assert [end.code for end in found] == [0, 0], found
    return out


@pytest.mark.parametrize("deal", DEALS)
@pytest.mark.parametrize("side", SIDES)
def test_the_gradient_is_one_processs_however_live_rollouts_are_dealt(steps: Path, side: str, deal: str) -> None:
    loss, figures, gradient = torch.load(steps / "steps-0-of-1.pt")[side, deal]
    assert bool(gradient.norm() > 1e-3) == (any(DEALS[deal]) or side in ("kl", "replay"))
    for rank in (0, 1):
        their_loss, their_figures, their_gradient = torch.load(steps / f"steps-{rank}-of-2.pt")[side, deal]
        assert float((their_gradient - gradient).norm()) <= 1e-5 * float(gradient.norm())
        assert float(their_loss) == pytest.approx(float(loss), rel=1e-5, abs=1e-6)
        assert their_figures == pytest.approx(figures, rel=1e-5)


# How they end.


def test_cores_are_shared_out_whole_and_nobody_has_none(monkeypatch: pytest.MonkeyPatch) -> None:
    assert cores_per_process(7) == 7
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    assert [cores_per_process(cores) for cores in (8, 7, 2, 1)] == [4, 3, 1, 1]


def messages(found: list[Ended]) -> list[str]:
    """What was said, but for the meter."""
    return [line for end in found for line in end.said.splitlines() if not line.startswith("train ")]


def test_groups_that_cannot_be_shared_evenly_are_refused_with_one_message(config: Path, tmp_path: Path) -> None:
    found = team(tmp_path / "team", "train", str(config), "--out", str(tmp_path / "run"), "--plan.questions-per-step", "3")
    assert all(end.code for end in found)
    assert messages(found) == [
        "permix train: plan.questions_per_step = 3: a process trains whole groups, and 2 processes cannot share 3 "
        "evenly; start 1 or 3, or give plan.questions_per_step a multiple of 2"
    ]
    assert not (tmp_path / "run").exists()


def test_a_flag_nobody_knows_is_refused_once(tmp_path: Path) -> None:
    found = team(tmp_path / "team", "train", "--train.lrr", "3")
    # The first process ends with the error, the others with 1.
    assert sorted(end.code or 0 for end in found) == [1, 2]
    assert "".join(end.said for end in found).count("did you mean --train.lr?") == 1


def test_a_run_that_another_command_writes_is_refused_once(config: Path, tmp_path: Path) -> None:
    import fcntl

    (tmp_path / "run").mkdir()
    with (tmp_path / "run" / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        found = team(tmp_path / "team", "train", str(config), "--out", str(tmp_path / "run"))
    assert all(end.code for end in found)
    assert len(messages(found)) == 1
    assert "is writing this run" in messages(found)[0]


def breaks(rank: int, argv: tuple[str, ...], error: type[BaseException]) -> None:
    """One process meets an error of its own in step 2."""
    seen = 0
    original = PlanGRPOTrainer._reward

    def reward(*arguments: Any, **columns: Any) -> Any:
        nonlocal seen
        seen += 1
        if distributed.rank() == rank and seen == 2:
            raise error("this process's disk burns")
        return original(*arguments, **columns)

    PlanGRPOTrainer._reward = reward  # type: ignore[method-assign]
    command(argv, {})


@pytest.mark.parametrize("rank", [0, 1])
def test_an_error_of_one_process_ends_all_with_its_message(config: Path, tmp_path: Path, rank: int) -> None:
    argv = ("train", str(config), "--out", str(tmp_path / "run"))
    found = each(tmp_path / "team", breaks, rank, argv, PermixError)
    assert [end.code for end in found] == [1, 1]
    assert messages(found) == ["permix train: this process's disk burns"]
    assert "disk burns" in found[rank].said
    assert [line["step"] for line in read_training_log(tmp_path / "run" / "log.jsonl")] == [1]
    assert json.loads((tmp_path / "run" / "usage.json").read_text())["starts"] == 1


def test_an_error_nobody_foresaw_leaves_one_traceback(config: Path, tmp_path: Path) -> None:
    found = each(tmp_path / "team", breaks, 1, ("train", str(config), "--out", str(tmp_path / "run")), KeyError)
    assert [end.code for end in found] == [1, 1]
    assert [end.said.count("Traceback") for end in found] == [0, 1]


def slowly(argv: tuple[str, ...]) -> None:
    """Steps of at least a tenth of a second, so that a signal finds the run in the middle."""
    original = RolloutLogger.log_metrics

    def step(*arguments: Any) -> None:
        original(*arguments)
        time.sleep(0.1)

    RolloutLogger.log_metrics = step  # type: ignore[method-assign,assignment]
    command(argv, {})


def test_ctrl_c_ends_all_and_the_run_goes_on(config: Path, tiny_model: Path, tmp_path: Path) -> None:
    argv = ("train", str(config), "--plan.steps", "30", "--out", str(tmp_path / "run"))
    with started(tmp_path / "team", slowly, (argv,), 2, {}) as running:
        until = time.monotonic() + 60
        while len(read_training_log(tmp_path / "run" / "log.jsonl")) < 3 and time.monotonic() < until:
            time.sleep(0.05)
        # All are stopped while the signal is sent, so that none loses its peer before it has the signal too.
        for number in (signal.SIGSTOP, signal.SIGINT, signal.SIGCONT):
            for process in running:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(process.pid, number)
        found = ended(tmp_path / "team", running)
    assert [end.code for end in found] == [130, 130], found
    (said,) = messages([Ended(end.code, end.said.strip()) for end in found])
    assert said == "permix train: interrupted; finished work is saved, run the same command again to continue"
    done = len(read_training_log(tmp_path / "run" / "log.jsonl"))
    assert 3 <= done < 30
    assert team(tmp_path / "again", *argv)[0].code == 0
    assert [line["step"] for line in read_training_log(tmp_path / "run" / "log.jsonl")] == list(range(1, 31))


def test_two_processes_killed_and_started_again_end_where_undisturbed_ones_do(config: Path, tmp_path: Path) -> None:
    argv = ("train", str(config), "--train.updates_per_rollout", "2", "--train.save-every", "3")
    undisturbed, killed = tmp_path / "undisturbed", tmp_path / "killed"
    assert team(tmp_path / "team", *argv, "--out", str(undisturbed))[0].code == 0
    kills = (
        {1: Moment("permix.training.grpo_trainer:save_rollouts", 1)},  # in the middle of the first checkpoint
        {0: Moment("permix.training.checkpoints:_write_manifest", 1)},  # after it, amid a generation's steps
        {1: Moment("permix.training.grpo_trainer:PlanGRPOTrainer.training_step", 1)},  # in the step that goes on from there
    )
    for number, dies in enumerate(kills):
        found = team(tmp_path / f"kill-{number}", *argv, "--out", str(killed), dies=dies)
        (killed_one,) = dies
        assert found[killed_one].code == -9, found
        # Under torchrun the store outlives the main process; here it dies with it, and what cannot be known is not said.
        assert ("another process of this run ended without an error message" in found[1 - killed_one].said) == (killed_one == 1)
    assert [path.name for path in (killed / "checkpoints").glob("checkpoint-*")] == ["checkpoint-3"]
    assert len(list((killed / "checkpoints" / "checkpoint-3").glob("permix_rollouts-*-of-2.pt"))) == 2

    (alone,) = team(tmp_path / "alone", *argv, "--out", str(killed), size=1)
    assert alone.code == 2
    assert "was written by 2 processes, and this run has 1; continue with 2 (torchrun --nproc_per_node 2)" in alone.said

    assert [end.code for end in team(tmp_path / "last", *argv, "--out", str(killed))] == [0, 0]
    assert (killed / "model/model.safetensors").read_bytes() == (undisturbed / "model/model.safetensors").read_bytes()
    assert untimed(killed / "log.jsonl") == untimed(undisturbed / "log.jsonl")
    assert (killed / "rollouts.jsonl").read_bytes() == (undisturbed / "rollouts.jsonl").read_bytes()


def test_torchrun_starts_the_command_line_as_a_module(config: Path, tmp_path: Path) -> None:
    starter = shutil.which("torchrun") or str(Path(sys.executable).with_name("torchrun"))
    command = [starter, "--standalone", "--nproc_per_node", "2", "-m", "permix", "train", str(config), "--plan.steps", "1"]
    done = subprocess.run([*command, "--out", str(tmp_path / "run")], capture_output=True, text=True, timeout=240, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout == f"{tmp_path / 'run' / 'model'}\n"
    born = json.loads((tmp_path / "run" / "provenance.json").read_text())
    assert (born["processes"], born["command"][:2]) == (2, ["permix", "train"])
    assert len(read_training_log(tmp_path / "run" / "rollouts.jsonl")) == 32

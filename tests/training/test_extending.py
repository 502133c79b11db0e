"""A loss and a training backend are added as CONTRIBUTING.md describes: to a copy of the package, which then trains by them."""

import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any, get_args

import pytest
import torch
from safetensors.torch import load_file

from permix.config import TrainerBackendName
from permix.storage.files import read_json
from permix.tasks.base import read_trained_on
from permix.training import loss
from permix.training.backend import TRAINER_BACKENDS
from permix.training.run_log import read_training_log
from tests.training.test_grpo import QUICK, batch, ours, plain_logps, plan_of, trainer_of
from tests.training.test_train_run import assert_trained

pytestmark = pytest.mark.slow

SOURCE = Path(loss.__file__).parents[2]
END = object()
"""In an edit: the text is added at the end of the file."""

SEQUENCE_LOSS = '''
def sequence_losses(logp_N, old_logp_N, advantage_N, *, sequence_N, clip_low, clip_high, importance_weight_N, ref_logp_N, beta):
    """GSPO (Zheng et al. 2025): one ratio a rollout, the geometric mean of its tokens' ratios."""
    length_B = torch.bincount(sequence_N)
    log_ratio_B = torch.zeros(len(length_B)).index_add(0, sequence_N, logp_N - old_logp_N) / length_B
    ratio_N = torch.exp(log_ratio_B)[sequence_N]
    clamped_N = ratio_N.clamp(1 - clip_low, 1 + clip_high)
    loss_N = -torch.minimum(ratio_N * advantage_N, clamped_N * advantage_N)
    return TokenTerms(loss_N, ratio_N, ratio_N != clamped_N, None)


'''

ADD_A_LOSS: dict[str, list[tuple[object, str]]] = {
    "config/training.py": [('LossName = Literal["grpo", ', 'LossName = Literal["gspo", "grpo", ')],
    "training/loss.py": [
        ("class Loss(NamedTuple):", SEQUENCE_LOSS + "class Loss(NamedTuple):"),
        (
            "LOSSES: dict[str, Loss] = {\n",
            'LOSSES: dict[str, Loss] = {\n    "gspo": Loss(mean_over_rollouts, sequence_losses),\n',
        ),
    ],
}

COPYING_BACKEND = '''"""Writes the model that it was given."""

from safetensors.torch import load_file, save_file
from transformers import AutoConfig

from permix.errors import ConfigError


class CopyingBackend:
    def check(self, job):
        if job.dev_eval is not None:
            raise ConfigError('backend = "copy": has no dev evaluation; give dev_eval.every = 0')

    def check_launch(self, job):
        pass

    def train(self, job, source, tokenizer, run, folder):
        folder.mkdir()
        save_file(load_file(f"{source}/model.safetensors"), folder / "model.safetensors", {"format": "pt"})
        AutoConfig.from_pretrained(source).save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        (run.path / "log.jsonl").write_text(f'{{"step": {job.plan.steps}, "loss": 0.0, "tokens": 0}}\\n')
'''

ADD_A_BACKEND: dict[str, list[tuple[object, str]]] = {
    "config/training.py": [('TrainerBackendName = Literal["trl"]', 'TrainerBackendName = Literal["trl", "copy"]')],
    "training/copying_backend.py": [(END, COPYING_BACKEND)],
    "training/backend.py": [
        (
            "from permix.training.job import",
            "from permix.training.copying_backend import CopyingBackend\nfrom permix.training.job import",
        ),
        ('{"trl": TRLBackend()}', '{"trl": TRLBackend(), "copy": CopyingBackend()}'),
    ],
}


def permix_with(folder: Path, edits: dict[str, list[tuple[object, str]]], *argv: str) -> subprocess.CompletedProcess[str]:
    """Run `permix` from a copy of the package in which these files are edited: each text, which is there once, gives way."""
    shutil.copytree(SOURCE / "permix", folder / "permix", ignore=shutil.ignore_patterns("__pycache__"))
    for name, replacements in edits.items():
        path = folder / "permix" / name
        text = path.read_text(encoding="utf-8") if path.exists() else ""
        for old, new in replacements:
            assert old is END or text.count(str(old)) == 1, (name, old)
            text = text + new if old is END else text.replace(str(old), new)
        path.write_text(text, encoding="utf-8")
    environment = os.environ | {"PYTHONPATH": str(folder)}
    command = [sys.executable, "-m", "permix", *argv]
    return subprocess.run(command, env=environment, cwd=folder, capture_output=True, text=True, timeout=240, check=False)


def flags(tiny_model: Path, out: Path) -> list[str]:
    """A training of two steps, each of two updates."""
    given = {
        "model.name": tiny_model, "out": out, "threads": 1, "label": "tiny", "task.n": 20, "task.levels": "sub-1",
        "personas.n": 4, "plan.steps": 2, "plan.questions-per-step": 2, "plan.group-size": 16,
        "train.max-new-tokens": 6, "train.lr": 0.01, "train.microbatch-tokens": 256,
        "train.precision": "float32", "train.updates-per-rollout": 2,
    }  # fmt: skip
    return ["train", *(word for name, value in given.items() for word in (f"--{name}", str(value)))]


def test_every_backend_can_be_named_in_a_configuration_and_no_other() -> None:
    assert list(TRAINER_BACKENDS) == list(get_args(TrainerBackendName))


def test_a_loss_is_added_in_two_files_and_trains(tiny_model: Path, tmp_path: Path) -> None:
    assert len(ADD_A_LOSS) <= 2
    done = permix_with(tmp_path / "source", ADD_A_LOSS, *flags(tiny_model, tmp_path / "run"), "--train.loss", "gspo")
    assert done.returncode == 0, done.stderr
    assert read_json(tmp_path / "run" / "config.json")["train"]["loss"] == "gspo"
    assert [line["step"] for line in read_training_log(tmp_path / "run" / "log.jsonl")] == [1, 2, 3, 4]
    assert_trained(tiny_model, tmp_path / "run" / "model")


def test_a_backend_is_added_in_four_files_or_fewer_and_trains(tiny_model: Path, tmp_path: Path) -> None:
    assert len(ADD_A_BACKEND) <= 4
    argv = [*flags(tiny_model, tmp_path / "run"), "--backend", "copy"]
    done = permix_with(tmp_path / "source", ADD_A_BACKEND, *argv)
    assert done.returncode == 0, done.stderr
    assert done.stdout == f"{tmp_path / 'run' / 'model'}\n"
    start, end = load_file(tiny_model / "model.safetensors"), load_file(tmp_path / "run" / "model" / "model.safetensors")
    assert start.keys() == end.keys()
    assert all(torch.equal(start[name], end[name]) for name in start)
    assert {path.name for path in (tmp_path / "run").iterdir()} - {".lock"} == {
        "config.json", "log.jsonl", "model", "plan.parquet", "provenance.json", "usage.json",
    }  # fmt: skip
    assert "PerMix-RLVR (persona-mixed RLVR), trained by permix from" in (tmp_path / "run/model/README.md").read_text()
    assert read_trained_on(tmp_path / "run" / "model").question_hashes
    refused = permix_with(tmp_path / "again", ADD_A_BACKEND, *argv, "--dev-eval.every", "1", "--dev-eval.questions", "5")
    assert (refused.returncode, refused.stderr) == (
        2, 'permix train: backend = "copy": has no dev evaluation; give dev_eval.every = 0\n',
    )  # fmt: skip


def test_a_loss_of_whole_sequences_is_given_whole_sequences(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """So its gradient is the same however rollouts are packed, and it is not that of a loss of tokens."""
    names: dict[str, Any] = dict(vars(loss))
    exec(SEQUENCE_LOSS, names)
    monkeypatch.setitem(loss.LOSSES, "gspo", loss.Loss(loss.mean_over_rollouts, names["sequence_losses"]))
    inputs, noise = batch([1.0, -1.0, 0.3, 0.2, -0.4]), torch.randn(5, 10, generator=torch.Generator().manual_seed(0))

    def gradient_of(name: str, microbatch_tokens: int) -> torch.Tensor:
        config = QUICK.model_copy(update={"loss": name, "microbatch_tokens": microbatch_tokens})
        trainer, _ = trainer_of(tiny_model, tmp_path / name, plan_of(), config)
        return ours(trainer, inputs | {"old_per_token_logps": plain_logps(trainer, inputs) + 0.1 * noise})[1]

    narrow, wide, token_wise = gradient_of("gspo", 30), gradient_of("gspo", 1000), gradient_of("grpo", 1000)
    assert float(narrow.norm()) > 1e-3
    assert float((narrow - wide).norm()) <= 1e-5 * float(wide.norm())
    assert float((token_wise - wide).norm()) > 1e-2 * float(wide.norm())

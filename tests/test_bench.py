"""The benchmark of a training step runs, and its arms compute the same. No time is asserted."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow

ROOT = Path(__file__).resolve().parents[1]


def test_both_arms_run_on_the_tiny_model_and_agree() -> None:
    command = [sys.executable, "-W", "ignore", "-m", "bench.train_step", "--model", "tiny", "--pairs", "1"]
    ended = subprocess.run(
        [*command, "--groups", "2", "--group-size", "4", "--new-tokens", "8"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert ended.returncode == 0, ended.stderr[-3000:]
    lines = [json.loads(line) for line in ended.stdout.splitlines()]
    value = {line["figure"]: line["value"] for line in lines}
    assert value["logp_difference_float32"] <= 1e-4
    assert value["gradient_difference_float32"] <= 1e-4
    assert {"generation_ratio", "training_ratio", "step_ratio", "peak_memory_gib_trl", "peak_memory_gib_ours"} <= value.keys()
    assert all(line["n"] == 1 for line in lines if line["figure"].endswith("_ratio"))

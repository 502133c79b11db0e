"""The benchmark of decoding prints its figures, on a tiny model; both arms give the same answers."""

import json
import sys
from pathlib import Path

import pytest

from bench import bench_decoding
from permix.inference import hardware


def test_both_arms_answer_all_cells_alike(
    tiny_model: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    sizes = ["--personas", "3", "--questions", "5", "--batch-size", "4", "--new-tokens", "12"]
    # bfloat16 rounds with the shape of a batch, and the arms have batches of other shapes.
    monkeypatch.setattr(hardware, "has_fast_bfloat16", lambda device: False)
    monkeypatch.setattr(sys, "argv", ["bench_decoding", "--model", str(tiny_model), *sizes])
    bench_decoding.main()
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    value = {line["figure"]: line["value"] for line in lines}
    assert value["decoding_equal_answers"] == 1.0
    assert value["decoding_ratio"] > 0
    assert {"decoding_batches_cells_per_cpu_s", "decoding_continuous_cells_per_cpu_s"} <= value.keys()
    assert {line["cells"] for line in lines} == {15}
